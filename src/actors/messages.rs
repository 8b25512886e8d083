//! Every message that crosses actors. Ticks that an actor sends itself stay in its file.

use std::sync::Arc;
use std::time::Instant;

use actix::Message;
use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::actors::custody::Custody;
use crate::clients::redis::{Letter, RawEntry};
use crate::domain::blob::BlobRef;
use crate::domain::ids::GraphId;
use crate::domain::journal::JournalEntry;
use crate::domain::message::Completion;
use crate::domain::outcome::{Failure, Report};
use crate::domain::state::Snapshot;
use crate::domain::task::{Task, TaskNews, ToolAnswer};
use crate::domain::wait::{Ask, Decision, Said};
use crate::domain::work::{Delivery, Token};
use crate::ports::{Appended, LlmRequest, Opened, ToolCall, Wanted};
use crate::tools::index::ToolIndex;

/// StreamReader → NodeExecutor: run this.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Execute {
    /// What to run.
    pub delivery: Arc<Delivery>,
    /// What makes it ours.
    pub custody: Custody,
}

/// NodeExecutor → Publisher: this ended. The answer is the custody if that is written: whoever has something left to do
/// because of it keeps the worker from ending until then.
#[derive(Message)]
#[rtype(result = "Option<Custody>")]
pub struct NodeFinished {
    /// What was run.
    pub delivery: Arc<Delivery>,
    /// What makes it ours; dropped once the settle is answered.
    pub custody: Custody,
    /// How it ended.
    pub report: Report,
    /// When it began.
    pub started_at: Timestamp,
    /// The same moment on the monotonic clock.
    pub started: Instant,
    /// A dead letter to write in the same step.
    pub letter: Option<Letter>,
}

/// StreamReader → Publisher: this entry cannot be understood and its ids cannot be read.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DeadLetter {
    /// The entry.
    pub entry: RawEntry,
    /// What makes it ours.
    pub custody: Custody,
    /// What is written about it.
    pub letter: Letter,
}

/// StreamReader → Publisher: somebody decided about a node that waits.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Decide {
    /// What it came by.
    pub entry: RawEntry,
    /// What makes that ours.
    pub custody: Custody,
    /// The decision.
    pub decision: Box<Decision>,
}

/// NodeExecutor → StateStore: give this run to this entry and read the state.
#[derive(Message)]
#[rtype(result = "Result<Opened, Failure>")]
pub struct Open {
    /// The delivery.
    pub delivery: Arc<Delivery>,
    /// What to read.
    pub wanted: Wanted,
}

/// NodeExecutor → StateStore: read more.
#[derive(Message)]
#[rtype(result = "Result<Snapshot, Failure>")]
pub struct Read {
    /// The graph.
    pub graph_id: GraphId,
    /// What to read.
    pub wanted: Wanted,
}

/// NodeExecutor → StateStore: fetch a large output.
#[derive(Message)]
#[rtype(result = "Result<Option<Box<RawValue>>, Failure>")]
pub struct FetchBlob {
    /// The graph.
    pub graph_id: GraphId,
    /// The node.
    pub node_id: String,
    /// What stands for the output.
    pub blob: BlobRef,
}

/// NodeExecutor → StateStore: which nodes exist.
#[derive(Message)]
#[rtype(result = "Result<Vec<String>, Failure>")]
pub struct NodeIds {
    /// The graph.
    pub graph_id: GraphId,
}

/// NodeExecutor → StateStore: put this into the run's journal.
#[derive(Message)]
#[rtype(result = "Result<Appended, Failure>")]
pub struct Append {
    /// The delivery.
    pub delivery: Arc<Delivery>,
    /// What proves that it is ours by now.
    pub token: Token,
    /// The entry.
    pub entry: Arc<JournalEntry>,
}

/// NodeExecutor → StateStore: nobody answered this question in time, and this follows.
#[derive(Message)]
#[rtype(result = "Result<(), Failure>")]
pub struct Lapse {
    /// The question.
    pub ask: Arc<Ask>,
    /// Its answer.
    pub said: Said,
}

/// NodeExecutor → LlmActor: one completion.
#[derive(Message)]
#[rtype(result = "Result<Completion, Failure>")]
pub struct Complete {
    /// The request.
    pub request: LlmRequest,
    /// Cancelled when nobody waits for the answer any more: a dropped `send` alone does not stop the work.
    pub cancel: CancellationToken,
}

/// NodeExecutor → McpSessionActor: what do you offer.
#[derive(Message)]
#[rtype(result = "Result<Arc<ToolIndex>, Failure>")]
pub struct Discover {
    /// Whether the node cannot do without this server.
    pub named: bool,
    /// When the asking node's time is up.
    pub deadline: Instant,
}

/// NodeExecutor → McpSessionActor: one call.
#[derive(Message)]
#[rtype(result = "Result<ToolAnswer, Failure>")]
pub struct CallTool {
    /// The call.
    pub call: ToolCall,
    /// Cancelled when nobody waits for the answer any more.
    pub cancel: CancellationToken,
}

/// NodeExecutor → McpSessionActor: how does the task of a call stand.
#[derive(Message)]
#[rtype(result = "Result<TaskNews, Failure>")]
pub struct LookAtTask {
    /// The call.
    pub call: ToolCall,
    /// The task.
    pub task: Task,
    /// Cancelled when nobody waits for the answer any more.
    pub cancel: CancellationToken,
}

/// NodeExecutor → McpSessionActor: nobody waits for this task any more.
#[derive(Message)]
#[rtype(result = "Result<(), Failure>")]
pub struct GiveUpTask {
    /// The server's name for it.
    pub task: String,
}
