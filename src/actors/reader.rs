//! StreamReader: the one way in. Takes permits, takes over or reads at most that many entries, and hands each to the
//! pool with its permit. Entries never change hands beside it, so nothing can be seen twice or half way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::fut::ActorFutureExt as _;
use actix::{Actor, ActorContext as _, AsyncContext as _, Context, WrapFuture as _};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::actors::custody::{Custody, InFlight};
use crate::actors::kept::Rollback;
use crate::actors::lease::Gate;
use crate::actors::messages::{DeadLetter, Decide, Execute, NodeFinished};
use crate::actors::pool::ExecutorPool;
use crate::actors::publisher::Publisher;
use crate::actors::supervise::{DeathWatch, Post};
use crate::clients::redis::{Leases, Letter, RawEntry, RedisError, Takeover, WorkStreams};
use crate::domain::ids::WorkId;
use crate::domain::outcome::{Category, Failure, Outcome, Report};
use crate::domain::work::{Content, Delivery, Malformed, Meta, WorkItem, read_entry};
use crate::failpoint::{self, Point};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::retry::backoff;

/// Entries of one read at the most: more would only wait in memory.
const BATCH: usize = 256;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Work goes on at most this long after Redis is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked for entries that were handed back: nobody died, so nothing has to be waited for.
const RELEASED_ROUND: Duration = Duration::from_secs(1);
/// How often it is looked whether Redis takes results again.
const HOLD_PAUSE: Duration = Duration::from_millis(50);

/// What reading needs.
pub struct ReaderDeps {
    /// Opens a connection of the reader's own.
    pub connect: Box<dyn Fn() -> WorkStreams + Send + Sync>,
    /// The lease scripts, for entries that change hands.
    pub leases: Leases,
    /// Writes again what Redis has lost, before it hands it out again.
    pub rollback: Rollback,
    /// Whether expired leases may be taken over.
    pub gate: Arc<Gate>,
    /// The entries held.
    pub in_flight: InFlight,
    /// One permit a node that may run.
    pub permits: Arc<Semaphore>,
    /// Who runs them.
    pub pool: ExecutorPool,
    /// Who writes dead letters.
    pub publisher: Post<Publisher>,
    /// The streams.
    pub streams: Vec<Arc<str>>,
    /// Bytes of one item at the most.
    pub max_item_bytes: usize,
    /// Dead processes after which an item is poison.
    pub max_crashes: u32,
    /// How often expired leases are looked for.
    pub sweep: Duration,
    /// The worker's name, for dead letters.
    pub worker_id: String,
    /// What the worker knows about itself.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the worker stops fetching.
    pub stop: CancellationToken,
    /// Cancelled by the reader once its last read is answered.
    pub stopped: CancellationToken,
}

/// Reads work.
pub struct StreamReader {
    deps: Arc<ReaderDeps>,
    _watch: DeathWatch,
}

impl StreamReader {
    /// A reader that reports its death to `watch`.
    pub fn new(deps: Arc<ReaderDeps>, watch: DeathWatch) -> Self {
        Self { deps, _watch: watch }
    }
}

impl Actor for StreamReader {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let deps = Arc::clone(&self.deps);
        // A panic in the loop takes the actor with it, and its guard has it rebuilt.
        let work = async move { read_until_stopped(&deps).await };
        ctx.spawn(work.into_actor(self).map(|(), this, ctx| {
            this.deps.stopped.cancel();
            ctx.stop();
        }));
    }
}

async fn read_until_stopped(deps: &ReaderDeps) {
    let mut streams = (deps.connect)();
    let mut failures = 0;
    let mut rounds = Rounds::default();
    let mut prepared = false;
    while !deps.stop.is_cancelled() {
        deps.health.reader_moved();
        match turn(deps, &mut streams, &mut prepared, &mut rounds).await {
            // A turn that asked nothing knows nothing.
            Ok(Asked::No) => {}
            Ok(Asked::Yes) => {
                if failures > 0 {
                    tracing::info!(failures, "redis answers again");
                }
                failures = 0;
                deps.health.redis_answers(true);
            }
            Err(error) => {
                // A missing group, a restarted server, a new connection: all are prepared for again.
                prepared = false;
                deps.health.groups_ready(false);
                if error.is_outage() {
                    deps.health.redis_answers(false);
                }
                failures += 1;
                // One line an outage, not one a try.
                if failures == 1 {
                    tracing::warn!(%error, "reading work failed, trying on");
                }
                let pause = backoff(FIRST_PAUSE, LONGEST_PAUSE, failures, 0.5 + fastrand::f64() / 2.0);
                tokio::select! {
                    () = deps.stop.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// When it is looked next for entries that change hands.
#[derive(Debug, Default)]
struct Rounds {
    released: Option<Instant>,
    expired: Option<Instant>,
    /// A suspect was held the last time round.
    suspect: bool,
}

impl Rounds {
    /// Whether the moment has come; a due round is due again after `every`.
    fn due(next: &mut Option<Instant>, every: Duration) -> bool {
        let now = Instant::now();
        let due = next.is_none_or(|next| now >= next);
        if due {
            *next = Some(now + every);
        }
        due
    }
}

/// Whether a turn of the loop asked Redis, which then answered.
enum Asked {
    Yes,
    No,
}

/// One turn of the loop: groups, permits, entries that change hands, one read.
async fn turn(
    deps: &ReaderDeps,
    streams: &mut WorkStreams,
    prepared: &mut bool,
    rounds: &mut Rounds,
) -> Result<Asked, RedisError> {
    let mut asked = Asked::No;
    if !*prepared {
        deps.rollback.look().await?;
        streams.ensure_groups().await?;
        asked = Asked::Yes;
        *prepared = true;
        deps.health.groups_ready(true);
        // The first read may wait for work for long; the worker is ready before.
        deps.health.redis_answers(true);
        *rounds = Rounds::default();
    }
    if deps.health.stops_fetching() {
        // There is no place for results: what Redis would hand out now could not be settled either.
        tokio::time::sleep(HOLD_PAUSE).await;
        return Ok(asked);
    }
    let Some(mut permits) = deps.permits().await else { return Ok(asked) };
    if deps.health.stops_fetching() {
        // It began while every slot was taken.
        return Ok(asked);
    }
    if std::mem::replace(&mut rounds.suspect, deps.in_flight.holds_suspect()) && !rounds.suspect {
        // It was innocent, or it is a dead letter now: the next suspect may come.
        *rounds = Rounds::default();
    }
    if Rounds::due(&mut rounds.released, deps.sweep.min(RELEASED_ROUND)) {
        // A fleet that lost a worker should not look for its work in one instant.
        let expired = Rounds::due(&mut rounds.expired, deps.sweep.mul_f64(0.9 + fastrand::f64() * 0.2));
        // It may have ended before the loop comes round again, and the next one shall not wait for the next round.
        rounds.suspect |= deps.take_over(&mut permits, expired && deps.gate.open(Instant::now())).await?;
        if permits.num_permits() == 0 {
            // There may be more of it. What others left behind has waited longest, so it goes before new work.
            *rounds = Rounds::default();
            return Ok(Asked::Yes);
        }
    }
    let entries = streams.read(permits.num_permits()).await?;
    deps.health.reader_moved();
    for entry in entries {
        failpoint::reach(Point::AfterRead);
        let permit = permits.split(1).expect("a read returns at most as many entries as there are permits");
        deps.accept(entry, permit);
    }
    Ok(Asked::Yes)
}

impl ReaderDeps {
    /// At least one permit, more if they are free; none when the worker stops or the pool stays full.
    async fn permits(&self) -> Option<OwnedSemaphorePermit> {
        let mut permits = tokio::select! {
            () = self.stop.cancelled() => return None,
            // A full pool is no standstill: the loop comes round to show that it moves.
            () = tokio::time::sleep(Duration::from_secs(1)) => return None,
            permit = Arc::clone(&self.permits).acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let more = self.permits.available_permits().min(BATCH - 1);
        if let Ok(more) = Arc::clone(&self.permits).try_acquire_many_owned(u32::try_from(more).unwrap_or(0)) {
            permits.merge(more);
        }
        Some(permits)
    }

    /// Starts what is pending under our name and held by nobody here (an answer to a read that was lost on the way,
    /// an item whose actor died with it), what was handed back, and, with `expired`, what dead workers held. Says whether
    /// a suspect was among it.
    async fn take_over(&self, permits: &mut OwnedSemaphorePermit, expired: bool) -> Result<bool, RedisError> {
        let mut suspect = false;
        for stream in &self.streams {
            let running = self.in_flight.ids(stream);
            let stranded = self.leases.stranded(stream, &running, permits.num_permits()).await?;
            if !stranded.is_empty() {
                tracing::info!(stream = %stream, entries = stranded.len(), "entries of ours were held by nobody");
            }
            suspect |= self.accept_all(stranded, permits);
            if permits.num_permits() == 0 {
                return Ok(suspect);
            }
            let running = self.in_flight.ids(stream);
            let takeover = if expired {
                // One at a time, so that a poison item takes as few others along as can be.
                Takeover::Expired { suspects: usize::from(!self.in_flight.holds_suspect()) }
            } else {
                Takeover::Released
            };
            let claimed = self.leases.claim(stream, &running, permits.num_permits(), takeover).await?;
            if !claimed.is_empty() {
                tracing::info!(stream = %stream, entries = claimed.len(), "work of other workers is taken over");
                self.metrics.taken_over.inc_by(claimed.len() as u64);
            }
            suspect |= self.accept_all(claimed, permits);
            if permits.num_permits() == 0 {
                return Ok(suspect);
            }
        }
        Ok(suspect)
    }

    /// Accepts them and says whether a suspect was among them.
    fn accept_all(&self, entries: Vec<RawEntry>, permits: &mut OwnedSemaphorePermit) -> bool {
        let suspect = entries.iter().any(is_suspect);
        for entry in entries {
            let permit = permits.split(1).expect("no more entries than permits are asked for");
            self.accept(entry, permit);
        }
        suspect
    }

    /// Takes one entry into custody and sends it on its way.
    fn accept(&self, entry: RawEntry, permit: OwnedSemaphorePermit) {
        self.metrics.received.inc();
        let Some(custody) = self.in_flight.take(&entry.stream, &entry.entry, &entry.token, permit) else { return };
        if is_suspect(&entry) {
            custody.suspected();
        }
        if let Some(added) = entry.entry.millis() {
            let waited = Timestamp::now().as_millisecond() - i64::try_from(added).unwrap_or(i64::MAX);
            Metrics::seconds(&self.metrics.queued, Duration::from_millis(u64::try_from(waited).unwrap_or(0)));
        }
        let parsed =
            read_entry(&entry.stream, &entry.entry, entry.data.as_deref(), entry.meta.as_deref(), self.max_item_bytes);
        match parsed {
            Ok(Content::Decision(decision)) => match self.publisher.addr() {
                // Should the Publisher die with it, the entry is found again as unheld.
                Some(publisher) => publisher.do_send(Decide { entry, custody, decision }),
                None => tracing::warn!("the publisher is away, the entry stays for a later pass"),
            },
            Ok(Content::Work(work)) => {
                let (item, meta) = *work;
                custody.concerns(&item.graph_id, &item.node_id);
                let crashes = died(&meta, &entry);
                let delivery = Delivery {
                    work_id: WorkId::new(&entry.stream, &meta.first_entry(&entry.entry)),
                    stream: Arc::clone(&entry.stream),
                    entry: entry.entry.clone(),
                    token: entry.token.clone(),
                    meta,
                    crashes,
                    item,
                };
                if crashes >= self.max_crashes {
                    self.poison(&entry, Arc::new(delivery), custody);
                } else {
                    self.pool.dispatch(Execute { delivery: Arc::new(delivery), custody });
                }
            }
            Err(malformed) => self.malformed(entry, malformed, custody),
        }
    }

    /// An item that ended too many processes is a dead letter before it runs again, and its consumers are told.
    fn poison(&self, entry: &RawEntry, delivery: Arc<Delivery>, custody: Custody) {
        let message = format!(
            "{} worker processes died while running this item; it is kept as a dead letter in {}:dead",
            delivery.crashes, delivery.stream
        );
        let letter = Letter {
            crashes: delivery.crashes,
            ids: Some(delivery.item.known_ids()),
            ..self.letter(entry, "poison", message.clone(), &delivery.work_id)
        };
        let failure = Failure::new(Category::Poison, "max_crashes", message);
        self.publish_failure(delivery, custody, failure, letter);
    }

    fn malformed(&self, entry: RawEntry, malformed: Malformed, custody: Custody) {
        // An entry that was added again keeps the name of its work and the number of its ends.
        let meta = entry.meta.as_deref().and_then(|meta| serde_json::from_slice::<Meta>(meta).ok()).unwrap_or_default();
        let work_id = WorkId::new(&entry.stream, &meta.first_entry(&entry.entry));
        let letter = Letter {
            ids: malformed.ids.clone(),
            ..self.letter(&entry, malformed.reason, malformed.message.clone(), &work_id)
        };
        let Some(ids) = malformed.ids else {
            return match self.publisher.addr() {
                // Should the Publisher die with it, the entry is found again as unheld.
                Some(publisher) => publisher.do_send(DeadLetter { entry, custody, letter }),
                None => tracing::warn!("the publisher is away, the entry stays for a later pass"),
            };
        };
        let item = WorkItem {
            graph_id: ids.graph_id,
            node_id: ids.node_id,
            run_id: ids.run_id,
            config: None,
            inputs: None,
            node_states: serde_json::Map::new(),
            dependencies: Vec::new(),
            deadline: None,
            traceparent: None,
            metadata: None,
        };
        let delivery = Delivery {
            stream: Arc::clone(&entry.stream),
            entry: entry.entry.clone(),
            token: entry.token.clone(),
            crashes: died(&meta, &entry),
            meta,
            work_id,
            item,
        };
        let failure = Failure::validation(malformed.reason, malformed.message);
        self.publish_failure(Arc::new(delivery), custody, failure, letter);
    }

    fn publish_failure(&self, delivery: Arc<Delivery>, custody: Custody, failure: Failure, letter: Letter) {
        let finished = NodeFinished {
            delivery,
            custody,
            report: Report::early(Outcome::Failed { failure, partial: None }),
            started_at: Timestamp::now(),
            started: Instant::now(),
            letter: Some(letter),
        };
        match self.publisher.addr() {
            // Should the Publisher die with it, the entry is found again as unheld.
            Some(publisher) => publisher.do_send(finished),
            None => tracing::warn!("the publisher is away, the entry stays for a later pass"),
        }
    }

    fn letter(&self, entry: &RawEntry, reason: &'static str, error: String, work_id: &WorkId) -> Letter {
        Letter {
            reason: reason.into(),
            error,
            data: entry.data.clone().unwrap_or_default(),
            meta: entry.meta.clone(),
            ids: None,
            work_id: work_id.to_string(),
            deliveries: entry.token.deliveries,
            crashes: u32::try_from(entry.crashes).unwrap_or(0),
            worker_id: self.worker_id.clone(),
            at: Timestamp::now(),
        }
    }
}

/// Whether processes have died with it more than once: it may be the death of this one too.
fn is_suspect(entry: &RawEntry) -> bool {
    entry.crashes > 1
}

/// Processes that died with the work since it last came further.
fn died(meta: &Meta, entry: &RawEntry) -> u32 {
    u32::try_from(i64::from(meta.crashes).saturating_add(entry.crashes)).unwrap_or(0)
}
