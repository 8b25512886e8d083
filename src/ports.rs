//! What the modes need from outside: a model, tools, the graph's state and a place for progress.
//! The actors implement these over messages; tests implement them with a script.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures_util::future::BoxFuture;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::domain::blob::BlobRef;
use crate::domain::cancel::CancelOrder;
use crate::domain::delta::Deltas;
use crate::domain::event::EventType;
use crate::domain::ids::{GraphId, NodeId, RunId, WorkId};
use crate::domain::journal::{CallId, JournalEntry};
use crate::domain::message::{Completion, Conversation};
use crate::domain::node::LlmConfig;
use crate::domain::outcome::Failure;
use crate::domain::rate::{Amendment, Demand, RateWord, Verdict};
use crate::domain::state::Snapshot;
use crate::domain::task::{Task, TaskNews, ToolAnswer};
use crate::domain::tool::{Arguments, Progress, ToolHints, ToolQuestion, ToolReply, ToolSpec, ToolTarget};
use crate::domain::wait::{Ask, Said};
use crate::domain::work::Delivery;

/// Why an execution must end before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// The lease is lost: somebody else owns the entry, nothing may be written.
    Lost,
    /// The worker stops: the entry is handed back.
    Stopping,
    /// Somebody cancelled the node or the graph.
    Requested,
}

/// A cancellation with its reason; the first reason stays.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
    order: Arc<OnceLock<CancelOrder>>,
}

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels, unless it is cancelled already.
    pub fn cancel(&self, reason: CancelReason) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Cancels because somebody gave this order, unless it is cancelled already.
    pub fn request(&self, order: CancelOrder) {
        let _ = self.order.set(order);
        self.cancel(CancelReason::Requested);
    }

    /// The order, where there was one.
    pub fn order(&self) -> Option<&CancelOrder> {
        self.order.get()
    }

    /// The reason, once cancelled.
    pub fn reason(&self) -> Option<CancelReason> {
        self.token.is_cancelled().then(|| self.reason.get().copied()).flatten()
    }

    /// Waits until it is cancelled.
    pub async fn cancelled(&self) -> CancelReason {
        self.token.cancelled().await;
        *self.reason.get().expect("the reason is set before the token is cancelled")
    }
}

/// Who calls and until when: travels with every call of a model or a tool.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// The graph.
    pub graph_id: GraphId,
    /// The node.
    pub node_id: NodeId,
    /// The identity.
    pub run_id: RunId,
    /// The piece of work.
    pub work_id: WorkId,
    /// W3C trace context of the item.
    pub traceparent: Option<String>,
    /// Stable across attempts, so that the other side can tell a repetition.
    pub idempotency_key: String,
    /// When the node's time is up.
    pub deadline: Instant,
}

/// One call of a model.
#[derive(Debug, Clone)]
pub struct LlmRequest {
    /// Model, provider and settings of the node.
    pub settings: Arc<LlmConfig>,
    /// The rendered system prompt.
    pub system: Option<String>,
    /// The conversation so far.
    pub turns: Conversation,
    /// The tools offered.
    pub tools: Arc<[ToolSpec]>,
    /// Whether the model may use them; false for a last turn that has to end.
    pub tools_allowed: bool,
    /// Tools that the conversation shows in use and that are not offered, because it was begun by a node with tools.
    pub earlier_tools: Arc<[ToolSpec]>,
    /// A short name of what stands before the conversation, the system prompt and the tools; empty where nobody asks.
    pub frame: Arc<str>,
    /// The JSON Schema that the answer must satisfy.
    pub output_schema: Option<Arc<Value>>,
    /// Where the pieces of the answer are told while it is written; nothing where nobody watches.
    pub deltas: Option<Deltas>,
    /// Whether the same can be had of another provider, so that nobody waits in line for this one.
    pub elsewhere: bool,
    /// Where it is told what the provider says of its limits; nothing where nobody asks.
    pub rate_word: Option<Arc<OnceLock<RateWord>>>,
    /// Who calls and until when.
    pub context: CallContext,
}

impl LlmRequest {
    /// Who writes the answer, and behind what: it is kept with the turn, because what a vendor signed in it holds only
    /// for the same model behind the same system prompt and tools.
    pub fn author(&self) -> String {
        match &*self.frame {
            "" => self.settings.author(),
            frame => format!("{}#{frame}", self.settings.author()),
        }
    }
}

/// Where the progress of a call goes: the last of it, for who looks in time. It never waits and holds no more than one.
pub type ProgressSender = watch::Sender<Option<Progress>>;

/// A question of a tool, and where its answer goes; dropping that means that nobody answers.
pub type Asked = (ToolQuestion, oneshot::Sender<ToolReply>);

/// Where the questions of a call go; on the heap, because a channel has room for 32 from the start.
pub type QuestionSender = mpsc::Sender<Box<Asked>>;

/// One call of a tool.
#[derive(Debug, Clone)]
pub struct ToolCall {
    /// Which tool.
    pub target: ToolTarget,
    /// Its arguments; shared, because every attempt is a call of its own.
    pub arguments: Arc<Arguments>,
    /// Who calls and until when.
    pub context: CallContext,
    /// Who wants to know how far it has come.
    pub progress: Option<ProgressSender>,
    /// Who answers what the tool asks, where anybody does.
    pub questions: Option<QuestionSender>,
}

/// A provider that may be asked, and with what.
#[derive(Debug, Clone)]
pub struct Route {
    /// The provider by its configured name.
    pub provider: Arc<str>,
    /// The node's settings as they are meant for this provider, which is the only one that they name.
    pub settings: Arc<LlmConfig>,
}

/// Models.
pub trait Llm {
    /// The providers that a node with these settings may ask: the first, and those that stand in for it. One that is
    /// not configured is a configuration failure.
    fn routes(&self, settings: &Arc<LlmConfig>) -> Result<Vec<Route>, Failure>;

    /// Whether it is known what the model of these settings costs.
    fn priced(&self, settings: &LlmConfig) -> bool;

    /// One completion. Dropping the future cancels the call.
    fn complete(&self, request: LlmRequest) -> impl Future<Output = Result<Completion, Failure>>;
}

/// What all workers together may ask of models, kept where each of them looks. An error says only that it could not be
/// asked in time: whoever asks has to do without.
pub trait SharedLimits: Send + Sync {
    /// Charges a call of a model, or says when it has a chance.
    fn reserve<'a>(
        &'a self,
        provider: &'a str,
        model: &'a str,
        demand: &'a Demand,
    ) -> BoxFuture<'a, Result<Verdict, Failure>>;

    /// Tells what became of a call. It is told once: what gets lost costs a part of the allowance until that has
    /// filled up again.
    fn amend<'a>(
        &'a self,
        provider: &'a str,
        model: &'a str,
        amendment: &'a Amendment,
    ) -> BoxFuture<'a, Result<(), Failure>>;
}

/// The tools that were found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Each once, in the order in which they were named.
    pub tools: Vec<ToolSpec>,
    /// What whoever uses them should know.
    pub warnings: Vec<String>,
    /// Servers that were searched and could not say what they offer.
    pub away: Vec<Away>,
}

impl Found {
    /// A server that is away and may have a tool of this name.
    pub fn may_have(&self, name: &str) -> Option<&Away> {
        let named = |away: &&Away| name.split_once('/').is_none_or(|(server, _)| server == away.server);
        self.away.iter().find(named)
    }
}

/// A server that could not say what it offers.
#[derive(Debug, Clone)]
pub struct Away {
    /// The server by its configured name.
    pub server: String,
    /// Why not.
    pub failure: Failure,
}

/// Tools of MCP servers and of the function registry.
pub trait Tools {
    /// Finds what the patterns name (`tool`, `server/tool`, `server/*`, `*`), in order, each tool once.
    /// A name that nobody offers is a configuration failure that names the nearest ones.
    fn find(&self, patterns: &[String], deadline: Instant) -> impl Future<Output = Result<Found, Failure>>;

    /// What is said of the effects of a call with these arguments, which may be less than the tool could do.
    fn effects(&self, spec: &ToolSpec, _arguments: &Arguments) -> ToolHints {
        spec.hints
    }

    /// One call. Dropping the future cancels it. A tool that says it failed is an `Ok` with `is_error`.
    fn call(&self, call: ToolCall) -> impl Future<Output = Result<ToolAnswer, Failure>>;

    /// A look at the task that a call came to. What it asks goes where the call's questions go. An error is one of this
    /// look alone, and says nothing of the task.
    fn look(&self, call: ToolCall, task: Task) -> impl Future<Output = Result<TaskNews, Failure>>;

    /// Tells a server that nobody waits for a task any more. It takes no longer than a few seconds, and need not succeed.
    fn give_up(&self, target: &ToolTarget, task: &str) -> impl Future<Output = ()>;
}

/// Which parts of the state a node reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The graph's inputs.
    pub inputs: bool,
    /// Nodes by id; ids that do not exist are no error here.
    pub nodes: Vec<String>,
    /// Every node, because a template computes the name.
    pub all_nodes: bool,
    /// The node's own configuration out of the graph, when the item has none.
    pub config: bool,
    /// A conversation of the graph by its name.
    pub session: Option<String>,
}

/// What opening a run found.
#[derive(Debug, Clone)]
pub enum Opened {
    /// The run is ours.
    Ready {
        /// What was asked for; the item's inputs and node states are not laid over it yet.
        snapshot: Snapshot,
        /// The node's configuration out of the graph, JSON, if it was wanted and is there.
        config: Option<String>,
        /// The graph's status, if it has one.
        status: Option<String>,
        /// The fields of the run's journal, if it was opened before.
        journal: Vec<(String, Vec<u8>)>,
    },
    /// The run is ours, and somebody gave the order not to run it.
    Cancelled {
        /// The order.
        order: CancelOrder,
        /// The fields of the run's journal, if it was opened before.
        journal: Vec<(String, Vec<u8>)>,
    },
    /// The identity is done, or another entry has it: ours is settled away.
    Duplicate,
    /// The entry is no longer ours.
    Lost,
}

/// The graph's state.
pub trait Store {
    /// Gives the run to this entry and reads the state, in one step.
    fn open(&self, delivery: &Arc<Delivery>, wanted: &Wanted) -> impl Future<Output = Result<Opened, Failure>>;

    /// Reads more of the state.
    fn read(&self, graph_id: &GraphId, wanted: &Wanted) -> impl Future<Output = Result<Snapshot, Failure>>;

    /// Fetches the large output of a node that `blob` stands for. None if it does not refer to an output of this node:
    /// then it is a value like any other.
    fn blob(
        &self,
        graph_id: &GraphId,
        node_id: &str,
        blob: &BlobRef,
    ) -> impl Future<Output = Result<Option<Box<RawValue>>, Failure>>;

    /// The ids of all nodes that the state knows, for an error message.
    fn node_ids(&self, graph_id: &GraphId) -> impl Future<Output = Result<Vec<String>, Failure>>;
}

/// What became of an entry for the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is on record, and the lease is renewed.
    Done,
    /// The work is no longer ours: nothing was written.
    Lost,
}

/// The journals of executions, from which another worker goes on.
pub trait Journal {
    /// Where the whole result of a call stands that comes with the record of its end; the same for every worker. None
    /// where nothing is stored.
    fn place(&self, delivery: &Delivery, call: CallId) -> Option<String>;

    /// Puts an entry on record. Sending the same one again does no harm.
    fn append(
        &self,
        delivery: &Arc<Delivery>,
        entry: &Arc<JournalEntry>,
    ) -> impl Future<Output = Result<Appended, Failure>>;

    /// Puts on record what follows from a question that nobody answered in time. Doing it again does no harm.
    fn lapse(&self, ask: &Arc<Ask>, said: &Said) -> impl Future<Output = Result<(), Failure>>;
}

/// Live progress, best effort: never waits, never fails.
pub trait Events {
    /// Whether anybody wants to be told steps of this kind.
    fn wants(&self, kind: EventType) -> bool;

    /// Tells a step of this delivery.
    fn progress(&self, delivery: &Arc<Delivery>, kind: EventType, data: Value);
}

/// All of them together.
pub trait Ports {
    /// Models.
    type Llm: Llm;
    /// Tools.
    type Tools: Tools;
    /// State.
    type Store: Store;
    /// Journals.
    type Journal: Journal;
    /// Progress.
    type Events: Events;

    /// Models.
    fn llm(&self) -> &Self::Llm;
    /// Tools.
    fn tools(&self) -> &Self::Tools;
    /// State.
    fn store(&self) -> &Self::Store;
    /// Journals.
    fn journal(&self) -> &Self::Journal;
    /// Progress.
    fn events(&self) -> &Self::Events;
}
