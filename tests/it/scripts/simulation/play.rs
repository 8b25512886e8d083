//! A history, played against a real server and the model side by side: each answer and all that is stored must be the
//! same after each step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use da_node_executor::clients::redis::{
    CancelOrders, CancelWatch, DeadLetter, DeadLetters, Held, Leases, Letter, Link, Moved, ParkingLot, RawEntry,
    Redriven, Renewal, Settled, Settlement, Settler, Span, Takeover,
};
use da_node_executor::config::Config;
use da_node_executor::domain::cancel::{CancelOrder, CancelScope};
use da_node_executor::domain::event::{EventType, terminal_event_id};
use da_node_executor::domain::ids::{EntryId, GraphId, NodeId};
use da_node_executor::domain::journal::JournalEntry;
use da_node_executor::domain::work::{Delivery, Meta, parse_entry};
use da_node_executor::ports::{Appended, Opened, Wanted};
use serde_json::value::RawValue;

use super::model::{Answer, Append, End, Id, Model, Owner, Place, Seen, Take, Work};
use super::operations::{Ending, Operation, RUNS, STREAMS, WORKERS};
use super::sight::{self, LEASE_MS, node};
use super::wire::Wire;
use crate::harness::PATIENCE;
use crate::scripts::{GROUP, Worker, World, delivery};

mod requests;
mod results;
mod surroundings;

/// What went wrong, in words.
pub type Check<T = ()> = Result<T, String>;

/// What nobody understands.
const NONSENSE: &str = "not json";
/// Rounds after which everything must have ended.
const ROUNDS: usize = 12;

/// Says what differs.
fn agree<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Check {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}, but it should be {expected:?}")) }
}

fn answered<T, E: std::fmt::Display>(what: &str, answer: Result<T, E>) -> Check<T> {
    answer.map_err(|error| format!("{what}: {error}"))
}

/// What was sent and whose answer never came: it is sent again as it was, and nothing else is.
#[derive(Clone)]
enum Sent {
    End { ending: Ending, large: bool },
    Park { due: bool, asks: bool },
}

/// A piece of work as a worker believes to have it.
#[derive(Clone)]
struct Holding {
    work: usize,
    raw: RawEntry,
    /// None for what cannot be understood.
    item: Option<Arc<Delivery>>,
    opened: bool,
    ordered: bool,
    sent: Option<Sent>,
    /// The entry of the journal whose answer never came: before anything else is put on record it is sent again.
    unanswered: Option<Append>,
}

impl Holding {
    /// It can be understood and was not opened yet.
    fn is_new(&self) -> bool {
        self.item.is_some() && !self.opened && self.sent.is_none()
    }

    fn runs(&self) -> bool {
        self.opened && !self.ordered && self.sent.is_none()
    }

    fn may_wait(&self) -> bool {
        self.runs() || matches!(self.sent, Some(Sent::Park { .. }))
    }

    fn entry(&self) -> Id {
        Id::parse(self.raw.entry.as_str())
    }

    fn owner(&self) -> Owner {
        Owner { consumer: self.raw.token.consumer.to_string(), deliveries: self.raw.token.deliveries }
    }

    fn held(&self) -> Held {
        Held {
            stream: Arc::clone(&self.raw.stream),
            entry: self.raw.entry.clone(),
            deliveries: self.raw.token.deliveries,
        }
    }
}

/// A process.
struct Process {
    consumer: String,
    tools: Worker,
    watch: CancelWatch,
    held: Vec<Holding>,
}

/// How the server is reached.
pub struct Access {
    /// By everything that is asked in one step.
    pub link: Link,
    /// By what lets others pass between two steps.
    pub slow: Link,
    /// The wire of that.
    pub wire: Wire,
    /// The digests of scripts that are second steps.
    pub second_steps: Vec<String>,
    /// The wire of the others, where they need one.
    pub _plain: Option<Wire>,
}

/// One history.
pub struct Play<'a> {
    world: World,
    access: &'a Access,
    model: Model,
    processes: Vec<Process>,
    started: usize,
    /// Letters as somebody saw them, with their works.
    seen: Vec<(usize, DeadLetter)>,
    /// What was handed back while requests about it may still have been on their way.
    stragglers: Vec<Holding>,
}

impl<'a> Play<'a> {
    /// A new beginning: streams, groups and a state under names of their own.
    pub async fn begin(world: World, access: &'a Access) -> Self {
        let model = Model::new(world.work.streams.clone(), RUNS);
        let mut play =
            Self { world, access, model, processes: Vec::new(), started: 0, seen: Vec::new(), stragglers: Vec::new() };
        for _ in 0..WORKERS {
            let process = play.process();
            play.processes.push(process);
        }
        let mut begin = redis::pipe();
        for stream in &play.model.streams {
            begin.cmd("XGROUP").arg("CREATE").arg(stream).arg(GROUP).arg("0").arg("MKSTREAM");
        }
        begin.cmd("HSET").arg(play.world.key("state:g")).arg("status").arg("running");
        begin.cmd("PEXPIRE").arg(play.world.key("state:g")).arg(86_400_000);
        begin.exec_async(&mut play.world.raw.clone()).await.expect("the server takes it");
        play
    }

    fn process(&mut self) -> Process {
        self.started += 1;
        let consumer = format!("w:{}", self.started);
        let tools = self.world.worker_by(&consumer, &self.access.link);
        let watch = tools.leases.cancel_watch();
        Process { consumer, tools, watch, held: Vec::new() }
    }

    /// One operation, and a look at everything.
    pub async fn step(&mut self, operation: &Operation) -> Check {
        let performed = tokio::time::timeout(PATIENCE, Box::pin(self.perform(operation))).await;
        performed.map_err(|_| String::from("it does not come to an end"))??;
        let (found, events) = sight::found(&self.world, &self.model.streams, RUNS).await;
        sight::difference(&found, &sight::expected(&self.model))?;
        self.guarantees(&events)
    }

    /// The promise that needs no model: it is read from what is stored.
    fn guarantees(&self, events: &[String]) -> Check {
        let events: Vec<serde_json::Value> =
            events.iter().map(|event| serde_json::from_str(event).expect("an event is JSON")).collect();
        let ids: HashSet<String> = events.iter().map(|event| event["id"].to_string()).collect();
        agree("different ids of terminal events", ids.len(), events.len())?;
        for (at, run) in self.model.runs.iter().enumerate() {
            let ends = events.iter().filter(|event| event["node"] == node(at)).count();
            if ends > 1 + run.redriven {
                return Err(format!("identity {at} ended {ends} times, and was redriven {} times", run.redriven));
            }
        }
        Ok(())
    }

    async fn perform(&mut self, operation: &Operation) -> Check {
        match operation.clone() {
            Operation::Submit { run, stream } => self.submit(run, stream).await,
            Operation::Read { worker, permits, lost } => self.read(worker, permits, lost).await,
            Operation::Open { worker, pick } => match self.choose(worker, pick, Holding::is_new) {
                Some((worker, at)) => self.open(worker, at).await,
                None => Ok(()),
            },
            Operation::Append { worker, pick, field, restart, progress, lost } => {
                let Some((worker, at)) = self.choose(worker, pick, Holding::runs) else { return Ok(()) };
                self.append(worker, at, field, restart, progress, lost).await
            }
            Operation::Straggle { pick, field } => self.straggle(pick, field).await,
            Operation::Settle { worker, pick, ending, large, lost, between } => {
                let Some((worker, at)) = self.choose(worker, pick, |_| true) else { return Ok(()) };
                self.settle(worker, at, ending, large, lost, &between).await
            }
            Operation::Park { worker, pick, due, lost } => {
                let Some((worker, at)) = self.choose(worker, pick, Holding::may_wait) else { return Ok(()) };
                // Half of what waits waits for somebody.
                self.park(worker, at, due, pick % 2 == 1, lost).await
            }
            Operation::Move { stream, lost, between } => {
                self.bring_back(stream, &between).await?;
                if lost {
                    // Who was not told asks again, and nothing comes back twice.
                    self.bring_back(stream, &[]).await?;
                }
                Ok(())
            }
            Operation::HandBack { worker, pick } => self.hand_back(worker, pick).await,
            Operation::Renew { worker, lost } => {
                self.renew(worker, lost).await?;
                // Somebody decides meanwhile, about one run or another.
                self.decide(worker).await
            }
            Operation::Claim { worker, stream, limit, suspects, lost, between } => {
                let takeover = suspects.map_or(Takeover::Released, |suspects| Takeover::Expired { suspects });
                self.claim(worker, stream, limit, takeover, lost, &between).await
            }
            Operation::Stranded { worker, stream } => self.stranded(worker, stream).await,
            Operation::Redrive { pick, stale } => self.redrive(pick, stale).await,
            Operation::Order { run } => self.order(run, true).await,
            Operation::Recall { run } => self.order(run, false).await,
            Operation::Clean { worker } => self.clean(worker).await,
            Operation::Die { worker } => {
                self.processes[worker] = self.process();
                Ok(())
            }
            Operation::Late => self.jump(true).await,
            Operation::Early => self.jump(false).await,
            Operation::Stall { pick } => self.stall(pick).await,
            Operation::Forget => self.forget().await,
        }
    }

    /// Something that this worker holds or, if there is nothing of the kind, another one.
    fn choose(&self, worker: usize, pick: usize, wanted: impl Fn(&Holding) -> bool) -> Option<(usize, usize)> {
        let of = |worker: usize| {
            let held = self.processes[worker].held.iter().enumerate();
            held.filter(|(_, holding)| wanted(holding)).map(move |(at, _)| (worker, at)).collect::<Vec<_>>()
        };
        let found = (0..WORKERS).map(|step| of((worker + step) % WORKERS)).find(|found| !found.is_empty())?;
        Some(found[pick % found.len()])
    }

    fn running(&self, worker: usize, stream: usize) -> (Vec<EntryId>, Vec<Id>) {
        let stream = self.model.streams[stream].as_str();
        let of_stream = self.processes[worker].held.iter().filter(|holding| *holding.raw.stream == *stream);
        of_stream.map(|holding| (holding.raw.entry.clone(), holding.entry())).unzip()
    }

    /// Entries came to a worker: the right ones, with everything that is known about them.
    fn took(&mut self, what: &str, worker: usize, found: Vec<RawEntry>, expected: Vec<usize>, lost: bool) -> Check {
        let entries: Vec<Id> = found.iter().map(|raw| Id::parse(raw.entry.as_str())).collect();
        let works = expected.iter().filter_map(|at| self.model.works[*at].entry()).collect();
        agree(what, entries, works)?;
        for (raw, at) in found.into_iter().zip(expected) {
            let work = &self.model.works[at];
            let Place::Held { owner, .. } = &work.place else { return Err(format!("{what}: it is not held")) };
            let token = Owner { consumer: raw.token.consumer.to_string(), deliveries: raw.token.deliveries };
            agree("the token", &token, owner)?;
            let known = if token.deliveries == 1 { 0 } else { work.crashes };
            agree("the crashes", raw.crashes, known)?;
            let item = work.run.is_some().then(|| delivery(raw.clone()));
            if let Some(item) = &item {
                agree("what was written beside the item", &item.meta, &work.meta)?;
                agree("the name of the work", item.work_id.as_str(), self.model.name(at).as_str())?;
            } else if parse_entry(&raw.stream, &raw.entry, raw.data.as_deref(), None, 1 << 20).is_ok() {
                return Err(String::from("nonsense was understood"));
            }
            if !lost {
                let held = &mut self.processes[worker].held;
                // What is delivered again while it runs here is adopted, never started twice.
                held.retain(|holding| holding.raw.entry != raw.entry || holding.raw.stream != raw.stream);
                held.push(Holding { work: at, raw, item, opened: false, ordered: false, sent: None, unanswered: None });
            }
        }
        Ok(())
    }

    fn stream(&self, name: &str) -> usize {
        self.model.streams.iter().position(|stream| stream == name).expect("one of ours")
    }

    fn names(&self) -> impl Iterator<Item = Arc<str>> + use<> {
        self.model.streams.clone().into_iter().map(Arc::from)
    }

    fn letters(&self) -> DeadLetters {
        DeadLetters::new(self.access.link.clone(), self.world.keys.clone())
    }

    /// Who lets others pass has a wire of its own.
    fn way(&self, between: &[Operation]) -> Link {
        if between.is_empty() { self.access.link.clone() } else { self.access.slow.clone() }
    }

    fn settler(&self, between: &[Operation]) -> Settler {
        Settler::new(self.way(between), self.world.keys.clone(), &self.world.state, self.names(), GROUP)
    }

    fn lot(&self, between: &[Operation]) -> ParkingLot {
        ParkingLot::new(self.way(between), self.world.keys.clone(), &self.world.state, self.names(), GROUP)
    }

    fn leases(&self, consumer: &str, between: &[Operation]) -> Leases {
        let lease = Config::default().lease.duration;
        Leases::new(self.way(between), self.world.keys.clone(), GROUP, Arc::from(consumer), lease, self.names())
    }

    /// Other things happen while a request is on the wire to its second step.
    async fn let_others_pass<T: Send + 'static>(
        &mut self,
        mut asked: tokio::task::JoinHandle<T>,
        between: &[Operation],
    ) -> Check<Asked<T>> {
        if between.is_empty() {
            return Ok(Asked::Answered(asked.await.expect("requests do not panic")));
        }
        // The request has not begun: a spawned task runs only when this one waits.
        let wire = &self.access.wire;
        wire.keep_back(self.access.second_steps.clone());
        tokio::select! {
            finished = &mut asked => {
                wire.disarm();
                let answer = finished.expect("requests do not panic");
                for operation in between {
                    self.step(operation).await?;
                }
                return Ok(Asked::Answered(answer));
            }
            () = wire.arrived() => {}
        }
        for operation in between {
            if let Err(error) = self.step(operation).await {
                self.access.wire.let_go();
                return Err(error);
            }
        }
        Ok(Asked::Kept(asked))
    }
}

/// A request whose answer is known, one that is on its way, or one that is kept back.
enum Asked<T> {
    Answered(T),
    Sent(tokio::task::JoinHandle<T>),
    Kept(tokio::task::JoinHandle<T>),
}

impl<T> Asked<T> {
    async fn finish(self, wire: &Wire) -> T {
        match self {
            Self::Answered(answer) => answer,
            Self::Sent(asked) => asked.await.expect("requests do not panic"),
            Self::Kept(asked) => {
                wire.let_go();
                asked.await.expect("requests do not panic")
            }
        }
    }
}

fn graph() -> GraphId {
    GraphId::new("g").expect("an id")
}

fn node_id(run: usize) -> NodeId {
    NodeId::new(node(run)).expect("an id")
}

fn ended(settled: Settled) -> Check<Answer> {
    match settled {
        Settled::Done => Ok(Answer::Done),
        Settled::Again => Ok(Answer::Again),
        Settled::Duplicate => Ok(Answer::Duplicate),
        Settled::Lost => Ok(Answer::Lost),
        other => Err(format!("{other:?}")),
    }
}

fn silence(pipe: &mut redis::Pipeline, stream: &str, entry: Id, owner: &Owner, idle: u64) {
    pipe.cmd("XCLAIM").arg(stream).arg(GROUP).arg(&owner.consumer).arg(0).arg(entry.to_string());
    pipe.arg("IDLE").arg(idle).arg("JUSTID");
}
