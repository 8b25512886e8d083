//! An order to stop one node or a whole graph, as a person or an orchestrator gives it, and the failure that it ends
//! a node with. Where orders are kept is the Redis client's.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::domain::ids::GraphId;
use crate::domain::outcome::{Category, Failure};

/// The name under which the order for a whole graph is kept, in the place of a node's id.
pub const WHOLE_GRAPH: &str = "*";
/// The graph's status that stops its nodes.
pub const CANCELLED_STATUS: &str = "cancelled";
/// The longest part of somebody's words that goes into an error.
const WORDS: usize = 300;

/// What an order is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelScope {
    /// One node.
    Node,
    /// Every node of the graph.
    Graph,
}

/// An order to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelOrder {
    /// What it is about.
    pub scope: CancelScope,
    /// Who gave it.
    pub by: Option<String>,
    /// Why.
    pub note: Option<String>,
}

impl CancelOrder {
    /// An order for one node, or for the graph, that says no more than that.
    pub fn bare(scope: CancelScope) -> Self {
        Self { scope, by: None, note: None }
    }

    /// Reads an order as it is kept. One that was written by hand and says nothing of use is an order all the same.
    pub fn read(scope: CancelScope, value: &[u8]) -> Self {
        let members: Map<String, Value> = serde_json::from_slice(value).unwrap_or_default();
        let words = |name: &str| {
            let words = members.get(name)?.as_str()?.trim();
            (!words.is_empty()).then(|| words.chars().take(WORDS).collect())
        };
        Self { scope, by: words("by"), note: words("note") }
    }

    /// The order as it is kept.
    pub fn to_json(&self, at: Timestamp) -> String {
        let mut members = Map::new();
        for (name, words) in [("by", &self.by), ("note", &self.note)] {
            if let Some(words) = words {
                members.insert(String::from(name), Value::from(words.as_str()));
            }
        }
        members.insert(String::from("at"), Value::from(at.to_string()));
        Value::Object(members).to_string()
    }

    /// What a node of this graph ends with.
    pub fn failure(&self, graph: &GraphId) -> Failure {
        let (code, mut message) = match self.scope {
            CancelScope::Node => ("cancelled", String::from("the node was cancelled")),
            CancelScope::Graph => ("graph_cancelled", format!("the graph `{graph}` is cancelled")),
        };
        if let Some(by) = &self.by {
            message.push_str(" by ");
            message.push_str(by);
        }
        if let Some(note) = &self.note {
            message.push_str(": ");
            message.push_str(note);
        }
        Failure::new(Category::Cancelled, code, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_comes_back_as_it_was_given() {
        let order = CancelOrder {
            scope: CancelScope::Node,
            by: Some(String::from("ann")),
            note: Some(String::from("the prompt is wrong")),
        };
        let kept = order.to_json("2026-01-02T03:04:05Z".parse().expect("a time"));
        assert_eq!(kept, r#"{"by":"ann","note":"the prompt is wrong","at":"2026-01-02T03:04:05Z"}"#);
        assert_eq!(CancelOrder::read(CancelScope::Node, kept.as_bytes()), order);
        let failure = order.failure(&GraphId::new("g").expect("an id"));
        assert_eq!((failure.category, failure.code.as_ref()), (Category::Cancelled, "cancelled"));
        assert_eq!(failure.message, "the node was cancelled by ann: the prompt is wrong");
    }

    #[test]
    fn an_order_written_by_hand_counts_whatever_it_says() {
        for value in ["1", "", "{", r#"{"by":7,"note":" "}"#, "[]"] {
            let order = CancelOrder::read(CancelScope::Graph, value.as_bytes());
            assert_eq!(order, CancelOrder::bare(CancelScope::Graph), "{value}");
        }
        let long = format!(r#"{{"note":"{}"}}"#, "x".repeat(10_000));
        let note = CancelOrder::read(CancelScope::Graph, long.as_bytes()).note.expect("a note");
        assert_eq!(note.len(), WORDS, "an error stays readable");
    }
}
