//! Results that Redis has taken a moment ago. Should it lose its last writes, by a failover or a restart without all of
//! its log, they are written once more under the same event ids instead of being worked out again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::clients::redis::{Link, RedisError, ServerIdentity, Settled, Settlement, Settler, identity};

/// How long before the last contact a write may have been made that a failover loses. Only newer results push old
/// ones out, so an outage of any length costs none.
const KEEP: Duration = Duration::from_secs(10);
/// Results kept at the most.
const MOST: usize = 4096;
/// Bytes of them at the most.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// The results of the last seconds.
#[derive(Debug, Default)]
pub struct Kept {
    results: Mutex<Results>,
}

#[derive(Debug, Default)]
struct Results {
    recent: VecDeque<(Instant, Arc<Settlement>)>,
    bytes: usize,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Results> {
        self.results.lock().expect("nobody panics while holding the results")
    }

    /// Keeps a result that Redis has taken.
    pub fn keep(&self, settlement: Arc<Settlement>, now: Instant) {
        let mut results = self.lock();
        results.bytes += bytes(&settlement);
        results.recent.push_back((now, settlement));
        while let Some((at, _)) = results.recent.front() {
            let full = results.recent.len() > MOST || results.bytes > MOST_BYTES;
            if !full && now.duration_since(*at) <= KEEP {
                break;
            }
            if let Some((_, gone)) = results.recent.pop_front() {
                results.bytes -= bytes(&gone);
            }
        }
    }

    /// What is kept, the oldest first.
    pub fn results(&self) -> Vec<Arc<Settlement>> {
        self.lock().recent.iter().map(|(_, settlement)| Arc::clone(settlement)).collect()
    }
}

fn bytes(settlement: &Settlement) -> usize {
    let blob = settlement.blob.as_ref().map_or(0, |blob| blob.get().len());
    let letter = settlement.letter.as_ref().map_or(0, |letter| letter.data.len());
    let session = settlement.session.as_ref().map_or(0, |session| session.json.len());
    settlement.event_json.len() + settlement.node_state_json.len() + blob + letter + session
}

/// Notices that Redis is another one than before, and writes again what it may have lost.
pub struct Rollback {
    link: Link,
    settler: Settler,
    kept: Arc<Kept>,
    seen: tokio::sync::Mutex<Option<ServerIdentity>>,
}

impl Rollback {
    /// Looks through `link`, writes through `settler` what is in `kept`.
    pub fn new(link: Link, settler: Settler, kept: Arc<Kept>) -> Self {
        Self { link, settler, kept, seen: tokio::sync::Mutex::default() }
    }

    /// To be called before work is read on a new connection: what Redis has lost would be handed out again.
    pub async fn look(&self) -> Result<(), RedisError> {
        let mut seen = self.seen.lock().await;
        let now = identity(&self.link).await?;
        // A server that does not tell who it is may be another one each time.
        let same = now.is_known() && seen.as_ref() == Some(&now);
        if seen.is_none() || same {
            *seen = Some(now);
            return Ok(());
        }
        let kept = self.kept.results();
        let mut lost = 0;
        for settlement in &kept {
            lost += u32::from(matches!(self.settler.settle(settlement).await?, Settled::Done | Settled::DoneStateGone));
        }
        *seen = Some(now);
        tracing::warn!(checked = kept.len(), written_again = lost, "redis was started anew or failed over");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::EventType;
    use crate::domain::ids::EntryId;
    use crate::domain::work::{Delivery, Meta, Token, WorkItem};

    fn settlement(bytes: usize) -> Arc<Settlement> {
        let entry = EntryId::new("1-0");
        let item = WorkItem::parse(br#"{"graph_id":"g","node_id":"n"}"#, "s", &entry).expect("well formed");
        let delivery = Delivery {
            stream: Arc::from("s"),
            token: Token { consumer: Arc::from("w:1"), deliveries: 1 },
            meta: Meta::default(),
            crashes: 0,
            work_id: crate::domain::ids::WorkId::new("s", &entry),
            item,
            entry,
        };
        Arc::new(Settlement {
            delivery: Arc::new(delivery),
            event: EventType::NodeCompleted,
            event_id: String::from("evt"),
            event_json: "x".repeat(bytes),
            node_state_json: String::new(),
            write_state: true,
            letter: None,
            blob: None,
            session: None,
        })
    }

    #[test]
    fn results_are_kept_for_seconds_and_through_any_outage() {
        let (kept, start) = (Kept::default(), Instant::now());
        kept.keep(settlement(1), start);
        kept.keep(settlement(1), start + KEEP);
        assert_eq!(kept.results().len(), 2, "nothing was taken for however long: both are still the last ones");
        kept.keep(settlement(1), start + KEEP * 2);
        assert_eq!(kept.results().len(), 2);
        kept.keep(settlement(1), start + KEEP * 9);
        assert_eq!(kept.results().len(), 1);
    }

    #[test]
    fn results_are_bounded_in_number_and_size() {
        let (kept, now) = (Kept::default(), Instant::now());
        for _ in 0..MOST + 5 {
            kept.keep(settlement(1), now);
        }
        assert_eq!(kept.results().len(), MOST);
        kept.keep(settlement(MOST_BYTES - 10), now);
        assert_eq!(kept.results().len(), 11);
        kept.keep(settlement(MOST_BYTES + 1), now);
        assert_eq!((kept.results().len(), kept.lock().bytes), (0, 0), "one that is too large is not kept at all");
    }
}
