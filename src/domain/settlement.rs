//! What an execution leaves behind, as text: the node state and the terminal event. Writing them is the Publisher's.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::domain::event::{
    Event, EventType, Subject, completed_data, error_details, failed_data, question_event_id, terminal_event_id,
};
use crate::domain::outcome::{Category, Failure, Partial, Report, Resumed};
use crate::domain::state::{NodeRecord, NodeStatus};
use crate::domain::wait::{Ask, WaitId};
use crate::domain::work::Delivery;

/// The worker's side of an execution.
#[derive(Debug, Clone, Copy)]
pub struct Execution<'a> {
    /// The worker.
    pub worker_id: &'a str,
    /// What was executed.
    pub delivery: &'a Delivery,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub completed_at: Timestamp,
}

/// How a node ended, of the ends that are written down.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// With an output.
    Completed {
        /// The output.
        output: &'a RawValue,
        /// What `output_mapping` found in it.
        mapped: Option<&'a RawValue>,
    },
    /// With an error.
    Failed {
        /// The error.
        failure: &'a Failure,
        /// How far an agent came.
        partial: Option<&'a Partial>,
    },
}

/// The texts that are written in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The terminal event's type.
    pub event: EventType,
    /// Its id.
    pub event_id: String,
    /// The event, JSON.
    pub event_json: String,
    /// The node state, JSON.
    pub node_json: String,
}

/// The texts that are written when a node begins to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenWait {
    /// The node state, JSON.
    pub node_json: String,
    /// The questions.
    pub asks: Vec<WrittenAsk>,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenAsk {
    /// Its name.
    pub wait_id: WaitId,
    /// How it is kept, JSON.
    pub ask_json: String,
    /// The event, JSON.
    pub event_json: String,
}

#[derive(Serialize)]
struct Metadata<'a> {
    worker_id: &'a str,
    work_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
    attempt: u32,
    duration_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    redriven: Option<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed: Option<Resumed>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    decisions: &'a [Value],
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<&'a RawValue>,
}

impl Execution<'_> {
    /// Puts state and event into words.
    pub fn write(&self, end: End<'_>, report: &Report) -> Written {
        let item = &self.delivery.item;
        let subject = Subject { graph_id: &item.graph_id, node_id: &item.node_id, run_id: &item.run_id };
        let mapped = match end {
            End::Completed { mapped, .. } => mapped,
            End::Failed { .. } => None,
        };
        let metadata = self.metadata(report);
        let (event, status, output, error, data) = match end {
            End::Completed { output, .. } => (
                EventType::NodeCompleted,
                NodeStatus::Completed,
                Some(output),
                None,
                completed_data(subject, output, mapped),
            ),
            End::Failed { failure, partial } => (
                EventType::NodeFailed,
                if failure.category == Category::Cancelled { NodeStatus::Cancelled } else { NodeStatus::Failed },
                None,
                Some(failure.message.as_str()),
                failed_data(subject, failure, report.spent.usage.as_ref(), partial),
            ),
        };
        let record = NodeRecord {
            node_id: item.node_id.as_str(),
            status,
            output,
            mapped,
            error,
            error_details: match end {
                End::Completed { .. } => None,
                End::Failed { failure, .. } => Some(error_details(failure)),
            },
            usage: report.spent.usage.filter(|_| matches!(end, End::Failed { .. })),
            partial: match end {
                End::Completed { .. } => None,
                End::Failed { partial, .. } => partial,
            },
            started_at: self.started_at,
            completed_at: Some(self.completed_at),
            waiting: None,
            run_id: item.run_id.as_str(),
            metadata: &metadata,
        };
        let event_id = terminal_event_id(&self.delivery.work_id, self.delivery.meta.redriven);
        let event_json = Event::new(event, &event_id, subject, self.completed_at, &data, &metadata).to_json();
        let node_json = serde_json::to_string(&record).expect("a node state has string keys");
        Written { event, event_id, event_json, node_json }
    }

    fn metadata(&self, report: &Report) -> Box<RawValue> {
        let item = &self.delivery.item;
        let metadata = Metadata {
            worker_id: self.worker_id,
            work_id: self.delivery.work_id.as_str(),
            mode: report.mode.map(crate::domain::node::Mode::as_str),
            attempt: report.spent.attempts.max(self.delivery.meta.attempt + 1),
            duration_ms: self.completed_at.as_millisecond() - self.started_at.as_millisecond(),
            redriven: Some(self.delivery.meta.redriven).filter(|&times| times > 0),
            warnings: &report.warnings,
            resumed: report.resumed,
            decisions: &report.decisions,
            traceparent: item.traceparent.as_deref(),
            item: item.metadata.as_deref(),
        };
        serde_json::value::to_raw_value(&metadata).expect("metadata has string keys")
    }

    /// Puts into words that the node waits: its state, and for each question how it is kept and its event.
    pub fn write_waiting(&self, asks: &[Ask], report: &Report) -> WrittenWait {
        let item = &self.delivery.item;
        let subject = Subject { graph_id: &item.graph_id, node_id: &item.node_id, run_id: &item.run_id };
        let metadata = self.metadata(report);
        let record = NodeRecord {
            waiting: Some(asks.iter().map(Ask::brief).collect()),
            ..NodeRecord::unended(item, NodeStatus::Waiting, self.started_at, &metadata)
        };
        let kind = EventType::NodeInputRequired;
        let question = |ask: &Ask| {
            let data = serde_json::value::to_raw_value(&ask.clone().told()).expect("a question has string keys");
            let event = Event::new(kind, question_event_id(&ask.wait_id), subject, ask.asked_at, &data, &metadata);
            let ask_json = serde_json::to_string(ask).expect("a question has string keys");
            WrittenAsk { wait_id: ask.wait_id.clone(), event_json: event.to_json(), ask_json }
        };
        WrittenWait {
            node_json: serde_json::to_string(&record).expect("a node state has string keys"),
            asks: asks.iter().map(question).collect(),
        }
    }
}
