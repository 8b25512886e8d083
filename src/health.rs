//! What the worker knows about itself, as plain atomics: actors write them, HTTP reads them and never waits.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::domain::tool_server::ServerStatus;

/// A refusal stands for so long unless it is repeated: longer than the wait between two tries to open a run.
const REFUSAL_LASTS_MS: i64 = 1500;

/// Shared facts about this process.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    redis: AtomicBool,
    groups: AtomicBool,
    draining: AtomicBool,
    last_processed_ms: AtomicI64,
    reader_moved_ms: AtomicI64,
    reader_may_wait_ms: i64,
    executors: AtomicUsize,
    unsettled: AtomicUsize,
    hold_told: AtomicBool,
    refused_ms: AtomicI64,
    events_full: AtomicBool,
    forbidden: AtomicBool,
    unseen: AtomicBool,
    required_down: AtomicUsize,
    current: Mutex<Option<String>>,
    servers: Mutex<Vec<Arc<Mutex<ServerStatus>>>>,
}

impl Health {
    /// A worker that just started. The reader counts as stuck when it did not move for `reader_may_wait`.
    pub fn new(reader_may_wait: Duration) -> Self {
        Self {
            started: Instant::now(),
            redis: AtomicBool::new(false),
            groups: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            last_processed_ms: AtomicI64::new(i64::MIN),
            reader_moved_ms: AtomicI64::new(0),
            reader_may_wait_ms: i64::try_from(reader_may_wait.as_millis()).unwrap_or(i64::MAX),
            executors: AtomicUsize::new(0),
            unsettled: AtomicUsize::new(0),
            hold_told: AtomicBool::new(false),
            refused_ms: AtomicI64::new(i64::MIN),
            events_full: AtomicBool::new(false),
            forbidden: AtomicBool::new(false),
            unseen: AtomicBool::new(false),
            required_down: AtomicUsize::new(0),
            current: Mutex::new(None),
            servers: Mutex::default(),
        }
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Redis answered, or did not.
    pub fn redis_answers(&self, answers: bool) {
        self.redis.store(answers, Ordering::Relaxed);
    }

    /// Whether Redis answered the last time it was asked.
    pub fn redis(&self) -> bool {
        self.redis.load(Ordering::Relaxed)
    }

    /// The consumer groups are there, or may have gone.
    pub fn groups_ready(&self, ready: bool) {
        self.groups.store(ready, Ordering::Relaxed);
    }

    /// The worker stops: it takes no new work.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the worker stops.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The reader's loop came round.
    pub fn reader_moved(&self) {
        self.reader_moved_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// An executor started (`true`) or went away.
    pub fn executor(&self, alive: bool) {
        if alive {
            self.executors.fetch_add(1, Ordering::Relaxed);
        } else {
            self.executors.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A required tool server went away (`true`) or came back.
    pub fn required_server(&self, down: bool) {
        if down {
            self.required_down.fetch_add(1, Ordering::Relaxed);
        } else {
            self.required_down.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A tool server is configured. What its actor writes into the status is seen by everybody.
    pub fn tool_server(&self, status: ServerStatus) -> Arc<Mutex<ServerStatus>> {
        let status = Arc::new(Mutex::new(status));
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&status));
        status
    }

    /// The tool servers as they stand, in the order of resolution.
    pub fn tool_servers(&self) -> Vec<ServerStatus> {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.iter().map(|status| status.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }

    /// A result could not be written and is held (`true`), or is no longer.
    pub fn holding_result(&self, holding: bool) {
        if holding {
            self.unsettled.fetch_add(1, Ordering::Relaxed);
        } else if self.unsettled.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.hold_told.store(false, Ordering::Relaxed);
        }
    }

    /// A terminal stream is as long as it may be, or is not. Gives what was known before.
    pub fn events_full(&self, full: bool) -> bool {
        self.events_full.swap(full, Ordering::Relaxed)
    }

    /// Redis would refuse a command that a result needs, or would not. Gives what was known before.
    pub fn forbidden(&self, forbidden: bool) -> bool {
        self.forbidden.swap(forbidden, Ordering::Relaxed)
    }

    /// Nobody has looked yet whether this Redis can be relied on, or somebody has.
    pub fn unseen(&self, unseen: bool) {
        self.unseen.store(unseen, Ordering::Relaxed);
    }

    /// Whether there is no place for results, because Redis does not take them, nobody reads them, or nobody knows yet
    /// whether Redis keeps them: then no more work is fetched.
    pub fn stops_fetching(&self) -> bool {
        self.holds_results()
            || [&self.events_full, &self.forbidden, &self.unseen].iter().any(|bar| bar.load(Ordering::Relaxed))
    }

    /// Whether the results that are held now have not been told of yet; true once.
    pub fn tell_hold(&self) -> bool {
        !self.hold_told.swap(true, Ordering::Relaxed)
    }

    /// Redis did not let a run begin (`true`), or let one begin.
    pub fn refused(&self, refused: bool) {
        let at = if refused { self.elapsed_ms() } else { i64::MIN };
        self.refused_ms.store(at, Ordering::Relaxed);
    }

    /// Whether Redis takes neither results nor new runs: then no more work is fetched.
    pub fn holds_results(&self) -> bool {
        let refused = self.refused_ms.load(Ordering::Relaxed);
        self.unsettled.load(Ordering::Relaxed) > 0 || self.elapsed_ms().saturating_sub(refused) < REFUSAL_LASTS_MS
    }

    /// A node ended now.
    pub fn processed(&self, at: Timestamp) {
        self.last_processed_ms.fetch_max(at.as_millisecond(), Ordering::Relaxed);
    }

    /// When the last node ended.
    pub fn last_processed(&self) -> Option<Timestamp> {
        let ms = self.last_processed_ms.load(Ordering::Relaxed);
        (ms != i64::MIN).then(|| Timestamp::from_millisecond(ms).ok()).flatten()
    }

    /// Names the node that was begun last, for the worker registry.
    pub fn began(&self, node: String) {
        *self.current.lock().expect("nobody panics while holding the name") = Some(node);
    }

    /// The node that was begun last.
    pub fn current(&self) -> Option<String> {
        self.current.lock().expect("nobody panics while holding the name").clone()
    }

    /// Live: the reader moves and an executor exists. Never depends on Redis, a model or a tool server.
    pub fn live(&self) -> bool {
        let reader = self.elapsed_ms() - self.reader_moved_ms.load(Ordering::Relaxed) <= self.reader_may_wait_ms;
        self.draining() || (reader && self.executors.load(Ordering::Relaxed) > 0)
    }

    /// Why the worker is not ready, in words; empty means ready.
    pub fn not_ready(&self) -> Vec<&'static str> {
        let checks = [
            (!self.redis(), "redis does not answer"),
            (self.holds_results(), "redis does not take results"),
            (!self.groups.load(Ordering::Relaxed), "the consumer group is not there yet"),
            (self.events_full.load(Ordering::Relaxed), "a terminal event stream is full"),
            (self.unseen.load(Ordering::Relaxed), "nobody could look yet whether redis keeps what it is given"),
            (self.forbidden.load(Ordering::Relaxed), "redis would refuse a command that results need"),
            (self.draining(), "the worker is stopping"),
            (self.required_down.load(Ordering::Relaxed) > 0, "a required tool server is away"),
            // A stopping worker lets its executors go while their last nodes still run.
            (!self.draining() && self.executors.load(Ordering::Relaxed) == 0, "no executor runs"),
        ];
        checks.into_iter().filter_map(|(failed, why)| failed.then_some(why)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Health {
        let health = Health::new(Duration::from_secs(60));
        health.redis_answers(true);
        health.groups_ready(true);
        health.executor(true);
        health
    }

    #[test]
    fn a_worker_without_redis_is_live_but_not_ready() {
        let health = running();
        assert!(health.live() && health.not_ready().is_empty());
        health.redis_answers(false);
        assert!(health.live());
        assert_eq!(health.not_ready(), ["redis does not answer"]);
    }

    #[test]
    fn a_worker_whose_results_are_not_taken_is_not_ready_and_tells_it_once() {
        let health = running();
        health.holding_result(true);
        health.holding_result(true);
        assert!(health.stops_fetching());
        assert_eq!(health.not_ready(), ["redis does not take results"]);
        assert_eq!([health.tell_hold(), health.tell_hold()], [true, false]);
        health.holding_result(false);
        assert!(!health.tell_hold(), "the same outage goes on");
        health.holding_result(false);
        assert!(health.live() && health.not_ready().is_empty());
        assert!(health.tell_hold(), "the next outage is another one");
    }

    #[test]
    fn a_refused_run_stops_the_fetching_until_one_may_begin() {
        let health = running();
        health.refused(true);
        assert!(health.holds_results() && health.stops_fetching());
        health.refused(false);
        assert!(!health.holds_results() && !health.stops_fetching());
    }

    #[test]
    fn a_stuck_reader_or_a_lost_pool_is_not_live() {
        let stuck = Health { reader_may_wait_ms: -1, ..running() };
        assert!(!stuck.live());
        let health = running();
        health.executor(false);
        assert!(!health.live());
    }

    #[test]
    fn a_stopping_worker_is_live_and_not_ready() {
        let health = running();
        health.drain();
        assert!(health.live());
        assert_eq!(health.not_ready(), ["the worker is stopping"]);
    }

    #[test]
    fn what_redis_forbids_stops_fetching_and_is_told() {
        let health = running();
        assert!(!health.forbidden(true) && health.stops_fetching() && health.live());
        assert_eq!(health.not_ready(), ["redis would refuse a command that results need"]);
        assert!(health.forbidden(false) && !health.stops_fetching() && health.not_ready().is_empty());
    }

    #[test]
    fn nothing_is_fetched_from_a_server_that_nobody_looked_at() {
        let health = running();
        health.unseen(true);
        assert!(health.stops_fetching() && health.live() && health.not_ready().len() == 1);
        health.unseen(false);
        assert!(!health.stops_fetching() && health.not_ready().is_empty());
    }

    #[test]
    fn a_full_event_stream_stops_fetching_and_is_told() {
        let health = running();
        assert!(!health.events_full(true) && health.stops_fetching() && health.live());
        assert_eq!(health.not_ready(), ["a terminal event stream is full"]);
        assert!(health.events_full(false) && !health.stops_fetching() && health.not_ready().is_empty());
    }

    #[test]
    fn the_latest_end_is_remembered() {
        let health = running();
        assert_eq!(health.last_processed(), None);
        let late = Timestamp::from_millisecond(2000).expect("a valid time");
        health.processed(late);
        health.processed(Timestamp::from_millisecond(1000).expect("a valid time"));
        assert_eq!(health.last_processed(), Some(late));
    }
}
