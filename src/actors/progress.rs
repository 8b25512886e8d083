//! Live progress, best effort: a bounded queue that never makes anybody wait, and one writer that empties it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::clients::redis::EventLog;
use crate::domain::event::{Event, EventType, Subject};
use crate::domain::work::Delivery;
use crate::metrics::Metrics;

/// Events that may wait; more are dropped and counted.
const QUEUE: usize = 4096;
/// Events written in one go.
const BATCH: usize = 128;

/// Where progress is told.
#[derive(Clone)]
pub struct ProgressLog {
    queue: mpsc::Sender<(EventType, String)>,
    wanted: Arc<HashSet<EventType>>,
    worker_id: Arc<str>,
    counter: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl ProgressLog {
    /// A log of the wanted kinds, and the end that [`write_until_closed`] empties.
    pub fn new(
        wanted: impl IntoIterator<Item = EventType>,
        worker_id: &str,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::Receiver<(EventType, String)>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let log = Self {
            queue,
            wanted: Arc::new(wanted.into_iter().collect()),
            worker_id: Arc::from(worker_id),
            counter: Arc::default(),
            metrics,
        };
        (log, events)
    }

    /// Whether events of this kind are wanted.
    pub fn tells(&self, kind: EventType) -> bool {
        self.wanted.contains(&kind)
    }

    /// Queues an event, or drops it when the queue is full.
    pub fn tell(&self, delivery: &Delivery, kind: EventType, mut data: Value) {
        if !self.wanted.contains(&kind) {
            return;
        }
        let Ok(slot) = self.queue.try_reserve() else {
            self.metrics.progress_dropped.inc();
            return;
        };
        let item = &delivery.item;
        data["graph_id"] = json!(item.graph_id);
        data["node_id"] = json!(item.node_id);
        let metadata = json!({
            "worker_id": &*self.worker_id,
            "work_id": delivery.work_id,
            "delivery": delivery.token.deliveries,
            "seq": self.counter.fetch_add(1, Ordering::Relaxed),
        });
        let data = serde_json::value::to_raw_value(&data).expect("progress has string keys");
        let metadata = serde_json::value::to_raw_value(&metadata).expect("metadata has string keys");
        let subject = Subject { graph_id: &item.graph_id, node_id: &item.node_id, run_id: &item.run_id };
        let id = uuid::Uuid::now_v7().to_string();
        slot.send((kind, Event::new(kind, id, subject, Timestamp::now(), &data, &metadata).to_json()));
    }
}

/// Writes what is queued until every [`ProgressLog`] is gone. An event that Redis does not take is dropped.
pub async fn write_until_closed(mut events: mpsc::Receiver<(EventType, String)>, log: EventLog, metrics: Arc<Metrics>) {
    let mut batch = Vec::with_capacity(BATCH);
    while events.recv_many(&mut batch, BATCH).await > 0 {
        if let Err(error) = log.progress(&batch).await {
            metrics.progress_dropped.inc_by(batch.len() as u64);
            tracing::debug!(%error, events = batch.len(), "progress was dropped");
        }
        batch.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{EntryId, WorkId};
    use crate::domain::work::{Meta, Token, WorkItem};

    fn delivery() -> Delivery {
        let entry = EntryId::new("1-0");
        Delivery {
            stream: Arc::from("s"),
            token: Token { consumer: Arc::from("w:1"), deliveries: 1 },
            meta: Meta::default(),
            crashes: 0,
            work_id: WorkId::new("s", &entry),
            item: WorkItem::parse(br#"{"graph_id":"g","node_id":"n"}"#, "s", &entry).expect("well formed"),
            entry,
        }
    }

    #[tokio::test]
    async fn progress_is_dropped_and_counted_when_redis_is_slower() {
        let metrics = Arc::new(Metrics::new("w"));
        let (log, mut events) = ProgressLog::new([EventType::NodeStarted], "w", Arc::clone(&metrics));
        for _ in 0..QUEUE + 3 {
            log.tell(&delivery(), EventType::NodeStarted, json!({}));
        }
        log.tell(&delivery(), EventType::ToolExecuted, json!({}));
        assert_eq!(metrics.progress_dropped.get(), 3, "what is not wanted is not counted as dropped");
        let (_, first) = events.recv().await.expect("the queue is full");
        let event: Value = serde_json::from_str(&first).expect("events are JSON");
        assert_eq!((&event["data"]["node_id"], &event["metadata"]["seq"]), (&json!("n"), &json!(0)));
    }
}
