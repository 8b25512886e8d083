//! The terminal event of a node, made once more out of the node state that was written with it.

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::domain::event::{Event, EventType, Subject, completed_data, terminal_event_id};
use crate::domain::ids::{GraphId, NodeId, RunId, WorkId};
use crate::domain::state::NodeStatus;

/// The member of `metadata` that tells such a copy from the event itself.
const MARK: &str = "republished";

/// A terminal event that is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Its type.
    pub event: EventType,
    /// Its id, which is that of the first one.
    pub event_id: String,
    /// The event, JSON.
    pub event_json: String,
}

/// Why a node has no such event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCopy {
    /// It has not ended.
    NotEnded,
    /// It ended, but no worker wrote its state.
    NotOurs,
}

#[derive(Deserialize)]
struct State<'a> {
    status: Option<NodeStatus>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    mapped: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    error_details: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    partial: Option<&'a RawValue>,
    completed_at: Option<Timestamp>,
    run_id: Option<RunId>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata {
    work_id: String,
    #[serde(default)]
    redriven: u32,
}

#[derive(Serialize)]
struct FailedData<'a> {
    graph_id: &'a GraphId,
    node_id: &'a NodeId,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_details: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partial: Option<&'a RawValue>,
}

/// The event of the end that this node state tells.
pub fn copy_of(graph: &GraphId, node: &NodeId, state: &str) -> Result<Copy, NoCopy> {
    let state: State<'_> = serde_json::from_str(state).map_err(|_| NoCopy::NotOurs)?;
    let event = match state.status.ok_or(NoCopy::NotOurs)? {
        NodeStatus::Completed => EventType::NodeCompleted,
        NodeStatus::Failed | NodeStatus::Cancelled => EventType::NodeFailed,
        NodeStatus::Pending | NodeStatus::Running | NodeStatus::Waiting => return Err(NoCopy::NotEnded),
        NodeStatus::Skipped => return Err(NoCopy::NotOurs),
    };
    let (Some(metadata), Some(run_id), Some(completed_at)) = (state.metadata, state.run_id, state.completed_at) else {
        return Err(NoCopy::NotOurs);
    };
    let Metadata { work_id, redriven } = serde_json::from_str(metadata.get()).map_err(|_| NoCopy::NotOurs)?;
    let subject = Subject { graph_id: graph, node_id: node, run_id: &run_id };
    let data = match (event, state.output) {
        (EventType::NodeCompleted, None) => return Err(NoCopy::NotOurs),
        (EventType::NodeCompleted, Some(output)) => completed_data(subject, output, state.mapped),
        _ => {
            let State { error, error_details, usage, partial, .. } = state;
            to_raw_value(&FailedData { graph_id: graph, node_id: node, error, error_details, usage, partial })
                .expect("failed data has string keys")
        }
    };
    let event_id = terminal_event_id(&WorkId::from_text(work_id), redriven);
    let event_json = Event::new(event, &event_id, subject, completed_at, &data, &marked(metadata)?).to_json();
    Ok(Copy { event, event_id, event_json })
}

/// The metadata with the mark; every other byte of its values stays.
fn marked(metadata: &RawValue) -> Result<Box<RawValue>, NoCopy> {
    // A list can be read as a struct too, and no worker writes one.
    let mut members: IndexMap<String, Box<RawValue>> =
        serde_json::from_str(metadata.get()).map_err(|_| NoCopy::NotOurs)?;
    members.insert(String::from(MARK), to_raw_value(&true).expect("a truth value is JSON"));
    Ok(to_raw_value(&members).expect("metadata has string keys"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::ids::EntryId;

    fn copy(state: &str) -> Result<Copy, NoCopy> {
        copy_of(&GraphId::new("g").expect("an id"), &NodeId::new("n").expect("an id"), state)
    }

    fn state(status: &str, members: &str) -> String {
        format!(
            r#"{{"node_id":"n","status":"{status}",{members}"completed_at":"2026-01-02T03:04:05.5Z","run_id":"r",
                "metadata":{{"worker_id":"w","work_id":"s/1-0","item":{{"big":12345678901234567890123.10}}}}}}"#
        )
    }

    #[test]
    fn the_copy_of_a_completed_node_is_the_event_with_a_mark() {
        let copy = copy(&state("completed", r#""output":{"a": 1.10},"mapped":{"b":2},"#)).expect("a copy");
        let first = terminal_event_id(&WorkId::new("s", &EntryId::new("1-0")), 0);
        assert_eq!((copy.event, &copy.event_id), (EventType::NodeCompleted, &first));
        let event: Value = serde_json::from_str(&copy.event_json).expect("JSON");
        assert_eq!((&event["id"], &event["run_id"]), (&json!(first), &json!("r")));
        assert_eq!(event["timestamp"], "2026-01-02T03:04:05.5Z", "when it ended, not when it was told again");
        assert_eq!((&event["data"]["mapped"], &event["metadata"]["republished"]), (&json!({"b": 2}), &json!(true)));
        assert!(copy.event_json.contains(r#""output":{"a": 1.10}"#), "{}", copy.event_json);
        assert!(copy.event_json.contains("12345678901234567890123.10"), "{}", copy.event_json);
    }

    #[test]
    fn the_copy_of_a_failed_node_says_what_failed() {
        for status in ["failed", "cancelled"] {
            let details = r#""error":"why","error_details":{"category":"poison","code":"c"},
                "usage":{"input_tokens":7},"partial":{"text":"so far","iterations":2},"#;
            let copy = copy(&state(status, details)).expect("a copy");
            let event: Value = serde_json::from_str(&copy.event_json).expect("JSON");
            assert_eq!((copy.event, &event["data"]["error"]), (EventType::NodeFailed, &json!("why")));
            assert_eq!(event["data"]["error_details"], json!({"category": "poison", "code": "c"}));
            assert_eq!(event["data"]["usage"], json!({"input_tokens": 7}));
            assert_eq!(event["data"]["partial"], json!({"text": "so far", "iterations": 2}));
        }
    }

    #[test]
    fn what_was_brought_back_keeps_the_id_of_its_last_end() {
        let state = state("completed", r#""output":1,"#).replace(r#""work_id":"#, r#""redriven":2,"work_id":"#);
        let id = terminal_event_id(&WorkId::new("s", &EntryId::new("1-0")), 2);
        assert_eq!(copy(&state).expect("a copy").event_id, id);
    }

    #[test]
    fn a_node_that_has_not_ended_or_is_not_ours_has_no_copy() {
        for status in ["pending", "running", "waiting"] {
            assert_eq!(copy(&state(status, "")), Err(NoCopy::NotEnded), "{status}");
        }
        let unnamed = state("completed", r#""output":1,"#).replace("work_id", "other");
        let others = [state("skipped", ""), state("completed", ""), unnamed, String::from("{"), String::from("{}")];
        for state in others {
            assert_eq!(copy(&state), Err(NoCopy::NotOurs), "{state}");
        }
        assert_eq!(copy(r#"{"status":"completed","output":1}"#), Err(NoCopy::NotOurs), "written by an orchestrator");
        let listed = r#"{"status":"completed","output":1,"run_id":"r","completed_at":"2026-01-02T03:04:05Z",
            "metadata":["s/1-0"]}"#;
        assert_eq!(copy(listed), Err(NoCopy::NotOurs), "metadata that is a list");
    }
}
