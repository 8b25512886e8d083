//! Events as they stand in the event streams: terminal ones, of which each identity has exactly one, and live progress.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::domain::ids::{GraphId, NodeId, RunId, WorkId};
use crate::domain::message::Usage;
use crate::domain::outcome::{Failure, Partial};
use crate::domain::wait::WaitId;

/// The version of the event's shape.
pub const EVENT_VERSION: u8 = 1;

/// What an event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// A node ended with an output.
    NodeCompleted,
    /// A node ended with an error.
    NodeFailed,
    /// A worker began a node.
    NodeStarted,
    /// A node came a step further, such as one turn of an agent.
    NodeProgress,
    /// A tool call ended.
    ToolExecuted,
    /// A model wrote a piece of its answer.
    LlmDelta,
    /// A node waits for what somebody else says.
    NodeInputRequired,
    /// Somebody decided, and this is what came of it.
    NodeDecision,
}

impl EventType {
    /// Every type.
    pub const ALL: [Self; 8] = [
        Self::NodeCompleted,
        Self::NodeFailed,
        Self::NodeStarted,
        Self::NodeProgress,
        Self::ToolExecuted,
        Self::LlmDelta,
        Self::NodeInputRequired,
        Self::NodeDecision,
    ];

    /// Every type that is live progress, best effort.
    pub const PROGRESS: [Self; 4] = [Self::NodeStarted, Self::NodeProgress, Self::ToolExecuted, Self::LlmDelta];

    /// The type as the stream's name and the event bear it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeCompleted => "node.completed",
            Self::NodeFailed => "node.failed",
            Self::NodeStarted => "node.started",
            Self::NodeProgress => "node.progress",
            Self::ToolExecuted => "tool.executed",
            Self::LlmDelta => "llm.delta",
            Self::NodeInputRequired => "node.input_required",
            Self::NodeDecision => "node.decision",
        }
    }
}

/// The event in the contract's shape.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    /// The version of this shape.
    pub v: u8,
    /// The event's id; a second copy after a rollback of Redis bears the same one.
    pub id: Cow<'a, str>,
    /// What it tells.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The graph.
    pub graph_id: &'a str,
    /// The graph again, as orchestrators call it.
    pub execution_id: &'a str,
    /// The node.
    pub node_id: &'a str,
    /// The identity.
    pub run_id: &'a str,
    /// When it was written.
    pub timestamp: Timestamp,
    /// What happened.
    pub data: &'a RawValue,
    /// By whom and how.
    pub metadata: &'a RawValue,
}

/// Whose event it is.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The graph.
    pub graph_id: &'a GraphId,
    /// The node.
    pub node_id: &'a NodeId,
    /// The identity.
    pub run_id: &'a RunId,
}

impl<'a> Event<'a> {
    /// Puts the parts together.
    pub fn new(
        kind: EventType,
        id: impl Into<Cow<'a, str>>,
        subject: Subject<'a>,
        timestamp: Timestamp,
        data: &'a RawValue,
        metadata: &'a RawValue,
    ) -> Self {
        Self {
            v: EVENT_VERSION,
            id: id.into(),
            kind: kind.as_str(),
            graph_id: subject.graph_id.as_str(),
            execution_id: subject.graph_id.as_str(),
            node_id: subject.node_id.as_str(),
            run_id: subject.run_id.as_str(),
            timestamp,
            data,
            metadata,
        }
    }

    /// The JSON that goes into the stream's field `data`.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an event has string keys and finite numbers")
    }
}

/// The id of the event of a question, the same however often it is asked.
pub fn question_event_id(wait: &WaitId) -> String {
    event_id(&Sha256::digest(wait.as_str().as_bytes()))
}

fn event_id(digest: &[u8]) -> String {
    format!("evt_{}", HEXLOWER.encode(&digest[..16]))
}

/// The id of a work item's one terminal event: derived from the work, never drawn, so that every copy bears it. Work
/// that was brought back from the dead letters ends once more, under another id.
pub fn terminal_event_id(work_id: &WorkId, redriven: u32) -> String {
    event_id(&match redriven {
        0 => Sha256::digest(work_id.as_str().as_bytes()),
        again => Sha256::digest(format!("{work_id}\n{again}").as_bytes()),
    })
}

#[derive(Serialize)]
struct CompletedData<'a> {
    graph_id: &'a str,
    node_id: &'a str,
    output: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    mapped: Option<&'a RawValue>,
}

/// `data` of `node.completed`; `mapped` is what `output_mapping` found in the output.
pub fn completed_data(subject: Subject<'_>, output: &RawValue, mapped: Option<&RawValue>) -> Box<RawValue> {
    let data = CompletedData { graph_id: subject.graph_id.as_str(), node_id: subject.node_id.as_str(), output, mapped };
    serde_json::value::to_raw_value(&data).expect("completed data has string keys")
}

/// A failure for programs.
pub fn error_details(failure: &Failure) -> Value {
    let mut details = json!({
        "category": failure.category,
        "code": failure.code,
        "attempts": failure.attempts,
    });
    if let Some(wait) = failure.retry_after {
        details["retry_after_ms"] = Value::from(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    }
    details
}

/// `data` of `node.failed`.
pub fn failed_data(
    subject: Subject<'_>,
    failure: &Failure,
    usage: Option<&Usage>,
    partial: Option<&Partial>,
) -> Box<RawValue> {
    let mut data = json!({
        "graph_id": subject.graph_id,
        "node_id": subject.node_id,
        "error": failure.message,
        "error_details": error_details(failure),
    });
    if let Some(usage) = usage {
        data["usage"] = json!(usage);
    }
    if let Some(partial) = partial {
        data["partial"] = json!(partial);
    }
    serde_json::value::to_raw_value(&data).expect("failed data has string keys")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::EntryId;

    #[test]
    fn every_copy_of_a_terminal_event_bears_the_same_id() {
        let work = WorkId::new("executor.work", &EntryId::new("5-0"));
        let other = WorkId::new("executor.work", &EntryId::new("5-1"));
        assert_eq!(terminal_event_id(&work, 0), terminal_event_id(&work.clone(), 0));
        assert_ne!(terminal_event_id(&work, 0), terminal_event_id(&other, 0));
        assert_eq!(terminal_event_id(&work, 0).len(), 36);
        let redriven = [terminal_event_id(&work, 0), terminal_event_id(&work, 1), terminal_event_id(&work, 2)];
        assert!(redriven[0] != redriven[1] && redriven[1] != redriven[2], "each end of its own has its own id");
    }
}
