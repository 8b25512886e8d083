//! A graph's state as a node sees it, and the node state that the worker writes. Where it is stored is the
//! Redis client's.

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::domain::message::Usage;
use crate::domain::outcome::Partial;
use crate::domain::work::WorkItem;

/// How far a node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// Not begun.
    Pending,
    /// Being executed.
    Running,
    /// Waiting for a decision or a timer.
    Waiting,
    /// Ended with an output.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended by a cancellation.
    Cancelled,
    /// Left out by the orchestrator.
    Skipped,
}

impl NodeStatus {
    /// The status as the state bears it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

/// What the worker reads of another node: members that it does not need are ignored.
#[derive(Debug, Clone, Deserialize)]
pub struct NodeView {
    /// How far it has come; absent in states that others wrote by hand means completed if there is an output.
    #[serde(default)]
    pub status: Option<NodeStatus>,
    /// Its output, which is taken apart only where a template names it.
    #[serde(default)]
    pub output: Option<Box<RawValue>>,
}

impl NodeView {
    /// The status, derived from the output where it is not given.
    pub fn status(&self) -> NodeStatus {
        self.status.unwrap_or(if self.output.is_some() { NodeStatus::Completed } else { NodeStatus::Pending })
    }
}

/// The node state that the worker writes, in the contract's shape.
#[derive(Debug, Serialize)]
pub struct NodeRecord<'a> {
    /// The node.
    pub node_id: &'a str,
    /// A terminal status, or that it waits.
    pub status: NodeStatus,
    /// The output of a completed node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<&'a RawValue>,
    /// What `output_mapping` found in the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapped: Option<&'a RawValue>,
    /// The error of a failed node, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// The same for programs: category, code, attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_details: Option<Value>,
    /// What a failed node used of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// How far a failed agent came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial: Option<&'a Partial>,
    /// When this execution began.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Value>,
    /// The identity of the execution.
    pub run_id: &'a str,
    /// Worker, work id, mode, attempt, duration.
    pub metadata: &'a RawValue,
}

impl<'a> NodeRecord<'a> {
    /// A node that has not ended: neither output nor error.
    pub fn unended(item: &'a WorkItem, status: NodeStatus, started_at: Timestamp, metadata: &'a RawValue) -> Self {
        Self {
            node_id: item.node_id.as_str(),
            status,
            output: None,
            mapped: None,
            error: None,
            error_details: None,
            usage: None,
            partial: None,
            started_at,
            completed_at: None,
            waiting: None,
            run_id: item.run_id.as_str(),
            metadata,
        }
    }
}

/// What a node reads of its graph.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The graph's inputs with the item's laid over them.
    pub inputs: Map<String, Value>,
    /// The nodes that templates may name, as far as they were read; a node that does not exist is absent.
    pub nodes: IndexMap<String, NodeView>,
    /// The conversation that was asked for, if the graph has it.
    pub session: Option<Box<RawValue>>,
}
