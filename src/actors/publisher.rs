//! Publisher: the one way out. Writes every result in one settle and holds it until Redis has answered.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, ResponseFuture};
use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::actors::custody::Custody;
use crate::actors::kept::Kept;
use crate::actors::messages::{DeadLetter, Decide, NodeFinished};
use crate::actors::supervise::DeathWatch;
use crate::clients::redis::{
    Blobs, Decided, Keys, LargeOutput, Leases, ParkingLot, RawEntry, RedisError, Settled, Settlement, Settler,
    WaitingRoom,
};
use crate::domain::blob::BlobRef;
use crate::domain::outcome::{Failure, Outcome, Parking, Report, Waiting};
use crate::domain::settlement::{End, Execution, Written};
use crate::domain::wait::Decision;
use crate::domain::work::{Delivery, Meta};
use crate::failpoint::{self, Point};
use crate::health::Health;
use crate::metrics::{CategoryLabels, Metrics, ModeLabels, ReasonLabels, ResultLabels};
use crate::modes::schema::fits;
use crate::ports::CancelReason;
use crate::retry::backoff;

/// While Redis is away a held result is tried again at least this often, so that work goes on soon after it is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// What settling needs.
pub struct PublisherDeps {
    /// The settle scripts.
    pub settler: Settler,
    /// Where large outputs are.
    pub blobs: Blobs,
    /// Bytes of an output above which it is stored by itself.
    pub inline_output: usize,
    /// Where nodes wait that wait for long.
    pub parking: ParkingLot,
    /// Where nodes wait that others have to say something to.
    pub waiting: WaitingRoom,
    /// The lease scripts, for entries that are handed back.
    pub leases: Leases,
    /// Which keys are whose.
    pub keys: Keys,
    /// The worker's name.
    pub worker_id: String,
    /// What the worker knows about itself.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What was settled in the last seconds.
    pub kept: Arc<Kept>,
    /// Cancelled at the very end of a stop: results that Redis still did not take are given up.
    pub give_up: CancellationToken,
}

/// Writes results.
pub struct Publisher {
    deps: Arc<PublisherDeps>,
    _watch: DeathWatch,
}

impl Publisher {
    /// A publisher that reports its death to `watch`.
    pub fn new(deps: Arc<PublisherDeps>, watch: DeathWatch) -> Self {
        Self { deps, _watch: watch }
    }
}

impl Actor for Publisher {
    type Context = Context<Self>;
}

impl Handler<NodeFinished> for Publisher {
    type Result = ResponseFuture<Option<Custody>>;

    fn handle(&mut self, finished: NodeFinished, _: &mut Self::Context) -> Self::Result {
        let deps = Arc::clone(&self.deps);
        Box::pin(async move { deps.finish(finished).await })
    }
}

impl Handler<DeadLetter> for Publisher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, DeadLetter { entry, custody, letter }: DeadLetter, _: &mut Self::Context) -> Self::Result {
        let deps = Arc::clone(&self.deps);
        Box::pin(async move {
            tracing::warn!(stream = %entry.stream, entry = %entry.entry, reason = %letter.reason, error = %letter.error,
                "an entry cannot be understood and becomes a dead letter");
            custody.settling();
            let answer = deps.until_answered(|| deps.settler.dead_letter(&entry, &letter)).await;
            // Whoever lost the entry did not write the letter.
            if let Some(Settled::Done) = answer {
                deps.metrics.dead_letters.get_or_create(&ReasonLabels { reason: letter.reason }).inc();
            }
        })
    }
}

impl Handler<Decide> for Publisher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Decide { entry, custody, decision }: Decide, _: &mut Self::Context) -> Self::Result {
        let deps = Arc::clone(&self.deps);
        Box::pin(async move {
            custody.settling();
            deps.decide(&entry, &decision).await;
            drop(custody);
        })
    }
}

impl PublisherDeps {
    /// Writes down what somebody decided, or why it does not count.
    async fn decide(&self, entry: &RawEntry, decision: &Decision) {
        let decided = Cell::new(None);
        let ask = || async {
            let answer = self.waiting.decide(decision, Some(entry), fits).await;
            match answer {
                Ok(answer) => {
                    decided.set(Some(answer));
                    Ok(Settled::Done)
                }
                // Said so that it is tried again when somebody has mended it.
                Err(RedisError::WrongType { key: Some(key) }) => Ok(Settled::WrongType { key }),
                Err(error) => Err(error),
            }
        };
        self.until_answered(ask).await;
        let result = match decided.take() {
            Some(Decided::Counts) => "accepted",
            Some(Decided::Refused(refusal)) => {
                tracing::info!(wait.id = %decision.wait_id, graph.id = %decision.graph_id, node.id = %decision.node_id,
                    code = refusal.code, "a decision does not count");
                refusal.code
            }
            Some(Decided::Lost) | None => return,
        };
        self.metrics.decisions.get_or_create(&ResultLabels { result }).inc();
    }

    /// Writes what came of a node; gives its custody back if its end is written.
    async fn finish(&self, finished: NodeFinished) -> Option<Custody> {
        let NodeFinished { delivery, custody, mut report, started_at, started, letter } = finished;
        let delivery = with_present_token(delivery, &custody);
        let mode = report.mode.map_or("unknown", crate::domain::node::Mode::as_str);
        let took = started.elapsed();
        self.metrics.retries.inc_by(u64::from(report.spent.retries));
        if let (Some(mode), false) = (report.mode, matches!(report.outcome, Outcome::Parked(_) | Outcome::Waiting(_))) {
            let histogram = self.metrics.duration.get_or_create(&ModeLabels { mode: mode.as_str() });
            Metrics::seconds(&histogram, took);
        }
        let blob = self.blob(&delivery, &mut report);
        let ended = match &report.outcome {
            Outcome::Completed { output, mapped } => End::Completed { output, mapped: mapped.as_deref() },
            Outcome::Failed { failure, partial } => End::Failed { failure, partial: partial.as_ref() },
            Outcome::Duplicate => {
                tracing::info!(node.mode = mode, "this run is done or running elsewhere, its entry was dropped");
                self.metrics.ended(mode, "duplicate");
                return None;
            }
            Outcome::Lost => {
                self.lost(mode);
                return None;
            }
            Outcome::Unfinished => {
                self.hand_back(&custody, mode).await;
                return None;
            }
            Outcome::Parked(parking) => {
                self.park(&delivery, &custody, parking, mode).await;
                return None;
            }
            Outcome::Waiting(waiting) => {
                let execution = Execution {
                    worker_id: &self.worker_id,
                    delivery: &delivery,
                    started_at,
                    completed_at: Timestamp::now(),
                };
                self.wait(&execution, &custody, waiting, &report, mode).await;
                return None;
            }
        };
        let completed_at = Timestamp::now();
        let execution = Execution { worker_id: &self.worker_id, delivery: &delivery, started_at, completed_at };
        let written = execution.write(ended, &report);
        let failure = match &report.outcome {
            Outcome::Failed { failure, .. } => Some(failure),
            _ => None,
        };
        let mut settlement = settlement(&delivery, written, letter, failure);
        settlement.blob = blob.map(LargeOutput::new);
        settlement.session = report.session.take();
        failpoint::reach(Point::BeforeSettle);
        custody.settling();
        let settle = || failpoint::sent(Point::SettleSent, self.settler.settle(&settlement));
        let mut answer = self.until_answered(settle).await;
        if let Some(Settled::WrongType { key }) = &answer {
            // The state cannot take the node's end, and waiting would not change that: the event tells it.
            tracing::error!(key, "the graph's state cannot be read or written, the result goes out as an event alone");
            settlement.write_state = false;
            answer = self.until_answered(|| self.settler.settle(&settlement)).await;
        }
        failpoint::reach(Point::SettleAnswered);
        match answer {
            Some(Settled::Done | Settled::DoneStateGone | Settled::Again) => {
                self.health.processed(completed_at);
                self.settled(&settlement, &report, failure, mode, took);
                // The journal with the questions is gone; should this fail, whoever looks for them finds that out.
                let _ = self.waiting.forget(&delivery.meta.asks).await;
                // The item itself may be large, and writing the result again needs only its names.
                settlement.delivery = Arc::new(settlement.delivery.bare());
                self.kept.keep(Arc::new(settlement), Instant::now());
                return Some(custody);
            }
            Some(Settled::Duplicate) => self.metrics.ended(mode, "duplicate"),
            Some(Settled::Lost) => self.lost(mode),
            // The loop ends with these only when the worker gives up at the end of a stop.
            Some(Settled::Conflict | Settled::WrongType { .. }) | None => {
                tracing::error!(work.id = %delivery.work_id, "redis did not take the result before the worker ended; \
                    the entry will be taken over and run again");
            }
        }
        None
    }

    fn settled(
        &self,
        settlement: &Settlement,
        report: &Report,
        failure: Option<&Failure>,
        mode: &'static str,
        took: Duration,
    ) {
        let elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if report.resumed.is_some() {
            self.metrics.resumed.inc();
        }
        if let Some(letter) = &settlement.letter {
            self.metrics.dead_letters.get_or_create(&ReasonLabels { reason: letter.reason.clone() }).inc();
        }
        match failure {
            None => {
                self.metrics.ended(mode, "completed");
                tracing::debug!(node.mode = mode, elapsed_ms, "node completed");
            }
            Some(failure) => {
                let category = failure.category.as_str();
                self.metrics.ended(mode, "failed");
                self.metrics.errors.get_or_create(&CategoryLabels { category }).inc();
                tracing::warn!(node.mode = mode, elapsed_ms, error.category = category, error.code = %failure.code,
                    error = %failure.message, attempts = failure.attempts, "node failed");
            }
        }
    }

    fn lost(&self, mode: &'static str) {
        tracing::warn!(node.mode = mode, "the entry belongs to another worker by now, nothing is written");
        self.metrics.ended(mode, "lost");
    }

    /// Takes out of the report what is too large for state and event, an output or the conversation of a node that
    /// failed, and leaves a reference.
    fn blob(&self, delivery: &Delivery, report: &mut Report) -> Option<Box<RawValue>> {
        match &mut report.outcome {
            Outcome::Completed { output, .. } if output.get().len() > self.inline_output => {
                let reference = BlobRef::new(self.blobs.key(delivery), output).to_raw();
                Some(std::mem::replace(output, reference))
            }
            Outcome::Failed { partial: Some(partial), .. } => {
                let conversation = report.conversation.take()?;
                let reference = BlobRef::new(self.blobs.key(delivery), &conversation);
                partial.conversation = Some(reference.to_value());
                Some(conversation)
            }
            _ => None,
        }
    }

    async fn park(&self, delivery: &Delivery, custody: &Custody, parking: &Parking, mode: &'static str) {
        let Parking { until, failure, waits, since } = parking;
        let attempt = waits.values().copied().max().unwrap_or_default();
        let meta = Meta {
            origin: Some(delivery.meta.first_entry(&delivery.entry).to_string()),
            attempt,
            crashes: if custody.has_progressed() { 0 } else { delivery.crashes },
            redriven: delivery.meta.redriven,
            waits: waits.clone(),
            since: Some(*since),
            waited_ms: waited_ms(delivery),
            asked_at: None,
            asks: delivery.meta.asks.clone(),
        };
        let pause_ms = u64::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
        custody.settling();
        match self.until_answered(|| self.parking.park(delivery, &meta, *until)).await {
            Some(Settled::Done | Settled::DoneStateGone | Settled::Again) => {
                self.metrics.parked.inc();
                self.metrics.ended(mode, "parked");
                tracing::info!(node.mode = mode, steps = ?waits.keys(), error.code = %failure.code, error = %failure.message, attempt,
                    pause_ms, "the node waits outside of its slot");
            }
            Some(Settled::Duplicate) => self.metrics.ended(mode, "duplicate"),
            Some(Settled::Lost) => self.lost(mode),
            Some(Settled::Conflict | Settled::WrongType { .. }) | None => {
                tracing::error!(work.id = %delivery.work_id, "redis did not take the waiting node before the worker \
                    ended; the entry will be taken over and run again");
            }
        }
    }

    /// Ends the run around what others are asked.
    async fn wait(
        &self,
        execution: &Execution<'_>,
        custody: &Custody,
        waiting: &Waiting,
        report: &Report,
        mode: &'static str,
    ) {
        let delivery = execution.delivery;
        let meta = Meta {
            origin: Some(delivery.meta.first_entry(&delivery.entry).to_string()),
            attempt: delivery.meta.attempt,
            crashes: if custody.has_progressed() { 0 } else { delivery.crashes },
            redriven: delivery.meta.redriven,
            waits: waiting.waits.clone(),
            since: Some(waiting.since),
            waited_ms: waited_ms(delivery),
            asked_at: Some(execution.completed_at),
            asks: waiting.asks.iter().map(|ask| ask.wait_id.clone()).collect(),
        };
        let written = execution.write_waiting(&waiting.asks, report);
        custody.settling();
        failpoint::reach(Point::BeforeSettle);
        let wait = || failpoint::sent(Point::SettleSent, self.waiting.wait(delivery, &meta, waiting, &written, true));
        let mut answer = self.until_answered(wait).await;
        if let Some(Settled::WrongType { key }) = &answer {
            tracing::error!(
                key,
                "the graph's state cannot be read or written, so it does not show that the node waits"
            );
            answer = self.until_answered(|| self.waiting.wait(delivery, &meta, waiting, &written, false)).await;
        }
        match answer {
            Some(Settled::Done | Settled::DoneStateGone | Settled::Again) => {
                for ask in &waiting.asks {
                    tracing::info!(node.mode = mode, wait.id = %ask.wait_id, kind = ask.kind.as_str(),
                        tool = ask.tool, expires_at = %ask.expires_at, "the node waits for a decision");
                }
                self.metrics.ended(mode, "waiting");
            }
            Some(Settled::Duplicate) => self.metrics.ended(mode, "duplicate"),
            Some(Settled::Lost) => self.lost(mode),
            Some(Settled::Conflict | Settled::WrongType { .. }) | None => {
                tracing::error!(work.id = %delivery.work_id, "redis did not take the waiting node before the worker \
                    ended; the entry will be taken over and run again");
            }
        }
    }

    async fn hand_back(&self, custody: &Custody, mode: &'static str) {
        if custody.cancel.reason() == Some(CancelReason::Lost) {
            return self.lost(mode);
        }
        self.metrics.ended(mode, "handed_back");
        match self.leases.hand_back(&[custody.held()]).await {
            Ok(_) => tracing::info!(node.mode = mode, "the node did not end in time and was handed back"),
            Err(error) => tracing::warn!(%error, "handing back failed, the lease will expire instead"),
        }
    }

    /// Asks Redis until it answers: its answer alone says whether the result is written. A result that Redis refuses
    /// or cannot be asked about stops the reader from fetching more. None only when the worker gives up.
    async fn until_answered<F>(&self, ask: impl Fn() -> F) -> Option<Settled>
    where
        F: Future<Output = Result<Settled, RedisError>>,
    {
        let mut holding = None;
        let mut attempt = 0;
        let mut broken = None;
        loop {
            let answer = ask().await;
            if answer.is_ok() {
                holding = None;
            }
            let problem = match answer {
                Ok(Settled::Conflict) => String::from("the state document keeps changing"),
                Ok(Settled::WrongType { key }) if !self.keys.is_state(&key) => {
                    format!("key {key} has the wrong type; delete or rename it")
                }
                Ok(answer) => {
                    self.health.redis_answers(true);
                    if let (Settled::Lost, Some(problem)) = (&answer, broken) {
                        tracing::error!(
                            problem,
                            "redis broke off the writing of a result and does not know its entry \
                            now: unless another worker took it over, the result is lost"
                        );
                    }
                    return Some(answer);
                }
                Err(error) => {
                    if error.may_be_half_done() {
                        broken = Some(error.to_string());
                    }
                    if error.is_outage() {
                        self.health.redis_answers(false);
                    }
                    // What Redis does not take from us now it would not take for further work either.
                    holding.get_or_insert_with(|| Holding::new(&self.health));
                    error.to_string()
                }
            };
            attempt += 1;
            self.metrics.settle_retries.inc();
            // One line an outage, however many results it holds up; a trouble of one key is told for itself.
            if attempt == 3 && holding.as_ref().is_none_or(|_| self.health.tell_hold()) {
                tracing::warn!(problem, "a result cannot be written yet and is held");
            }
            let pause = backoff(FIRST_PAUSE, LONGEST_PAUSE, attempt, 0.5 + fastrand::f64() / 2.0);
            tokio::select! {
                () = self.give_up.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// How long the node has waited for others so far.
fn waited_ms(delivery: &Delivery) -> u64 {
    u64::try_from(delivery.meta.waited(&delivery.entry).as_millis()).unwrap_or(u64::MAX)
}

/// A result that Redis has not taken; its drop ends the hold whatever happens.
struct Holding<'a>(&'a Health);

impl<'a> Holding<'a> {
    fn new(health: &'a Health) -> Self {
        health.holding_result(true);
        Self(health)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.holding_result(false);
    }
}

/// An entry that was claimed again while it ran here has a newer token than it was started with.
fn with_present_token(delivery: Arc<Delivery>, custody: &Custody) -> Arc<Delivery> {
    let deliveries = custody.held().deliveries;
    if deliveries == delivery.token.deliveries {
        return delivery;
    }
    let mut renewed = Delivery::clone(&delivery);
    renewed.token.deliveries = deliveries;
    Arc::new(renewed)
}

fn settlement(
    delivery: &Arc<Delivery>,
    written: Written,
    letter: Option<crate::clients::redis::Letter>,
    failure: Option<&Failure>,
) -> Settlement {
    // A state of the wrong type cannot take the node's end; the event still tells it.
    let write_state = failure.is_none_or(|failure| failure.code != "state_wrong_type");
    Settlement {
        delivery: Arc::clone(delivery),
        event: written.event,
        event_id: written.event_id,
        event_json: written.event_json,
        node_state_json: written.node_json,
        write_state,
        letter,
        blob: None,
        session: None,
    }
}
