//! Every server-side script with its every answer, against a real Redis: streams, leases, state, settling.

mod blobs;
mod cancel;
mod dead_letters;
mod events;
mod journal;
mod lease;
mod open;
mod parking;
mod rate_limit;
mod republish;
mod settle;
mod simulation;
mod stream;
mod trouble;
mod upkeep;
mod waiting;

use std::sync::Arc;

use da_node_executor::clients::redis::{
    Blobs, JournalWriter, Keys, Leases, Letter, Link, ParkingLot, RawEntry, RedisError, Settled, Settlement, Settler,
    StateStore, Takeover, Upkeep, WaitingRoom, WorkStreams,
};
use da_node_executor::config::{Config, RedisConfig, StateConfig, WorkConfig};
use da_node_executor::domain::event::{EventType, terminal_event_id};
use da_node_executor::domain::ids::{EntryId, WorkId};
use da_node_executor::domain::work::{Delivery, parse_entry};
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;

use crate::harness::redis::shared;
use crate::harness::unique;

/// Everything whose lease ran out.
const ALL: Takeover = Takeover::Expired { suspects: usize::MAX };
const GROUP: &str = "executor-workers";
const ITEM: &str = r#"{"graph_id":"g","node_id":"n","run_id":"r"}"#;

/// One stream with its group, under a prefix of its own.
struct World {
    redis: RedisConfig,
    work: WorkConfig,
    state: StateConfig,
    keys: Keys,
    stream: Arc<str>,
    raw: MultiplexedConnection,
}

/// Everything that one worker process speaks to Redis with.
struct Worker {
    streams: WorkStreams,
    leases: Leases,
    store: StateStore,
    journal: JournalWriter,
    settler: Settler,
    parking: ParkingLot,
    waiting: WaitingRoom,
    blobs: Blobs,
    upkeep: Upkeep,
}

impl World {
    async fn new() -> Self {
        let server = shared();
        Self::on(server.config(), server.connect().await).await
    }

    async fn on(redis: RedisConfig, raw: MultiplexedConnection) -> Self {
        let config = Config::default();
        let prefix = format!("{}:", unique("t"));
        let stream = format!("{prefix}work");
        let work = WorkConfig { streams: vec![stream.clone()], group: String::from(GROUP), ..config.work };
        let state = StateConfig { prefix: prefix.clone(), ..config.state };
        let world = Self { redis, work, state, keys: Keys::new(&prefix), stream: Arc::from(stream), raw };
        world.worker("maker").streams.ensure_groups().await.expect("the groups can be made");
        world
    }

    fn worker(&self, consumer: &str) -> Worker {
        self.worker_by(consumer, &Link::new(&self.redis).expect("an address"))
    }

    fn worker_by(&self, consumer: &str, link: &Link) -> Worker {
        let consumer: Arc<str> = Arc::from(consumer);
        let streams = || self.work.streams.iter().map(|stream| Arc::from(stream.as_str()));
        let keys = || self.keys.clone();
        let lease = Config::default().lease.duration;
        Worker {
            streams: WorkStreams::new(&self.redis, &self.work, keys(), Arc::clone(&consumer)).expect("an address"),
            leases: Leases::new(link.clone(), keys(), GROUP, Arc::clone(&consumer), lease, streams()),
            store: StateStore::new(link.clone(), keys(), &self.state, streams(), GROUP),
            journal: JournalWriter::new(link.clone(), keys(), &self.state, GROUP, lease),
            settler: Settler::new(link.clone(), keys(), &self.state, streams(), GROUP),
            blobs: Blobs::new(link.clone(), keys(), &self.state),
            upkeep: Upkeep::new(link.clone(), keys(), GROUP, consumer),
            parking: ParkingLot::new(link.clone(), keys(), &self.state, streams(), GROUP),
            waiting: {
                let (work, state) = (self.work.clone(), self.state.clone());
                WaitingRoom::new(link.clone(), keys(), &Config { work, state, ..Config::default() })
            },
        }
    }

    /// Runs a command written as words.
    async fn redis<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_redis(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    async fn try_redis<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.raw.clone()).await
    }

    async fn submit(&self, item: &str) -> EntryId {
        self.submit_to(&self.stream, item).await
    }

    async fn submit_to(&self, stream: &str, item: &str) -> EntryId {
        EntryId::new(self.redis::<String>(&["XADD", stream, "*", "data", item]).await)
    }

    /// A worker that has an item, read as a worker reads.
    async fn worker_with(&self, consumer: &str, item: &str) -> (Worker, Arc<Delivery>) {
        self.submit(item).await;
        let mut worker = self.worker(consumer);
        let delivery = worker.read_one().await;
        (worker, delivery)
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.state.prefix)
    }

    fn key_of_letters(&self) -> String {
        self.keys.dead(&self.stream)
    }

    async fn length(&self, key: &str) -> u64 {
        self.redis(&["XLEN", key]).await
    }

    async fn pending(&self) -> u64 {
        let (count, _, _, _): (u64, redis::Value, redis::Value, redis::Value) =
            self.redis(&["XPENDING", &self.stream, GROUP]).await;
        count
    }

    async fn ttl(&self, key: &str) -> i64 {
        self.redis(&["PTTL", key]).await
    }

    /// Data and sequence number of each event of a type.
    async fn events(&self, kind: EventType) -> Vec<(String, String)> {
        let entries: Vec<(String, Vec<String>)> = self.redis(&["XRANGE", &self.keys.events(kind), "-", "+"]).await;
        entries.into_iter().map(|(_, fields)| (fields[1].clone(), fields[3].clone())).collect()
    }

    /// Makes another consumer the owner, as a takeover by a worker does.
    async fn steal(&self, delivery: &Delivery, consumer: &str) {
        let entry = delivery.entry.as_str();
        let taken: Vec<redis::Value> = self.redis(&["XCLAIM", &self.stream, GROUP, consumer, "0", entry]).await;
        assert_eq!(taken.len(), 1);
    }

    /// Lets the entry look as if its owner had been silent for an hour.
    async fn silence(&self, entry: &EntryId, consumer: &str) {
        let words = ["XCLAIM", &self.stream, GROUP, consumer, "0", entry.as_str(), "IDLE", "3600000", "JUSTID"];
        let silent: Vec<String> = self.redis(&words).await;
        assert_eq!(silent, [entry.as_str()]);
    }

    /// Owner and delivery count of an entry, if it is pending.
    async fn owner(&self, entry: &EntryId) -> Option<(String, u64)> {
        let words = ["XPENDING", &self.stream, GROUP, entry.as_str(), entry.as_str(), "1"];
        let lines: Vec<(String, String, u64, u64)> = self.redis(&words).await;
        lines.into_iter().next().map(|(_, owner, _, count)| (owner, count))
    }

    /// A list where something else belongs.
    async fn spoil(&self, key: &str) {
        self.redis::<()>(&["DEL", key]).await;
        self.redis::<()>(&["RPUSH", key, "not", "ours"]).await;
    }

    /// Nothing of a settlement was written.
    async fn assert_untouched(&self, delivery: &Delivery) {
        assert_eq!(self.owner(&delivery.entry).await, Some((delivery.token.consumer.to_string(), 1)));
        assert_eq!(self.length(&self.stream).await, 1, "the entry was deleted");
    }
}

impl Worker {
    async fn read_one(&mut self) -> Arc<Delivery> {
        let mut entries = self.streams.read(1).await.expect("the stream can be read");
        delivery(entries.pop().expect("there is an item to read"))
    }

    async fn settle(&self, delivery: &Arc<Delivery>) -> Result<Settled, RedisError> {
        self.settler.settle(&settlement(delivery)).await
    }
}

/// The delivery of an entry that is well formed.
fn delivery(raw: RawEntry) -> Arc<Delivery> {
    let (item, meta) = parse_entry(&raw.stream, &raw.entry, raw.data.as_deref(), raw.meta.as_deref(), 1 << 20)
        .expect("the item is well formed");
    let origin = meta.origin.as_deref().map_or_else(|| raw.entry.clone(), EntryId::new);
    Arc::new(Delivery {
        work_id: WorkId::new(&raw.stream, &origin),
        stream: raw.stream,
        entry: raw.entry,
        token: raw.token,
        crashes: u32::try_from(raw.crashes + i64::from(meta.crashes)).unwrap_or(0),
        meta,
        item,
    })
}

/// The end of a run that completed.
fn settlement(delivery: &Arc<Delivery>) -> Settlement {
    let event_id = terminal_event_id(&delivery.work_id, delivery.meta.redriven);
    Settlement {
        delivery: Arc::clone(delivery),
        event: EventType::NodeCompleted,
        event_json: format!(r#"{{"id":"{event_id}"}}"#),
        event_id,
        node_state_json: format!(r#"{{"node_id":"{}","status":"completed","output":1}}"#, delivery.item.node_id),
        write_state: true,
        letter: None,
        blob: None,
        session: None,
    }
}

fn letter(data: Vec<u8>) -> Letter {
    Letter {
        reason: "not_json".into(),
        error: String::from("field `data` is not valid JSON"),
        data,
        meta: None,
        ids: None,
        work_id: String::from("executor.work/1-0"),
        deliveries: 2,
        crashes: 1,
        worker_id: String::from("w"),
        at: "2026-01-02T03:04:05Z".parse().expect("a time"),
    }
}
