//! What the events tell about each execution, and nothing else: the table, the sabotage and the verdict all read it.

use serde::Deserialize;
use serde_json::Value;

use crate::clients::redis::TailedEvent;
use crate::domain::event::EventType;
use crate::domain::ids::EntryId;

/// One worker's go at an execution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The delivery count of the entry, from 1.
    pub number: u64,
    /// The worker.
    pub worker: String,
    /// Whether that worker was killed for it.
    pub killed: bool,
    /// Tool calls that ended.
    pub tools: u64,
}

/// Steps that were on record when a worker took a node over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Resumed {
    /// Turns of the model.
    pub turns: u64,
    /// Tool calls.
    pub tool_calls: u64,
}

impl Resumed {
    /// What a progress event tells, if it tells this.
    pub fn of(data: &Value) -> Option<Self> {
        Self::deserialize(data.get("resumed")?).ok()
    }
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// `node.completed` or `node.failed`.
    pub kind: EventType,
    /// The event's `data`.
    pub data: Value,
    /// The worker that wrote it.
    pub worker: String,
    /// The highest attempt of any step.
    pub attempts: u64,
    /// What was not done again after a takeover.
    pub resumed: Option<Resumed>,
    /// What others decided about it.
    pub decisions: Vec<Value>,
    /// When it was written, in milliseconds since 1970.
    pub at: u64,
}

/// One execution of a node.
#[derive(Debug, Clone)]
pub struct Run {
    /// The graph.
    pub graph: String,
    /// The node.
    pub node: String,
    /// The identity.
    pub run_id: String,
    /// The mode, once it is known.
    pub mode: Option<String>,
    /// When it was submitted or first heard of, in milliseconds since 1970.
    pub since: u64,
    /// Who had it, in order.
    pub deliveries: Vec<Delivery>,
    /// When it began to wait for a person, in milliseconds since 1970.
    pub asked: Option<u64>,
    /// Whether it waits now.
    pub waits: bool,
    /// Terminal events; more than one is a fault.
    pub endings: Vec<Ending>,
}

impl Run {
    /// The first terminal event.
    pub fn ending(&self) -> Option<&Ending> {
        self.endings.first()
    }

    /// Workers that were killed while they had it.
    pub fn kills(&self) -> usize {
        self.deliveries.iter().filter(|delivery| delivery.killed).count()
    }

    /// Tool calls: what the output says, else what was seen of the last delivery.
    pub fn tools(&self) -> u64 {
        let told = self.ending().and_then(|ending| ending.data.pointer("/output/tool_calls")).and_then(Value::as_u64);
        told.unwrap_or_else(|| self.deliveries.last().map_or(0, |delivery| delivery.tools))
    }
}

/// One step that an event told of.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Place of the run in [`Ledger::runs`].
    pub run: usize,
    /// The event's type.
    pub kind: EventType,
    /// The worker that wrote it.
    pub worker: String,
    /// The event's `data`.
    pub data: Value,
}

/// The parts of an event that are read here.
#[derive(Debug, Deserialize)]
struct Wire {
    graph_id: String,
    node_id: String,
    run_id: String,
    data: Value,
    metadata: Facts,
}

#[derive(Debug, Deserialize)]
struct Facts {
    worker_id: String,
    #[serde(default)]
    delivery: Option<u64>,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    attempt: Option<u64>,
    #[serde(default)]
    resumed: Option<Resumed>,
    #[serde(default)]
    decisions: Vec<Value>,
}

/// All executions since the start, in the order in which they were heard of.
#[derive(Debug, Default)]
pub struct Ledger {
    runs: Vec<Run>,
}

impl Ledger {
    /// The executions.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Notes an item that was submitted; gives the place of its run.
    pub fn submitted(&mut self, graph: &str, node: &str, run_id: String, mode: &str, entry: &EntryId) -> usize {
        self.runs.push(Run {
            graph: graph.to_owned(),
            node: node.to_owned(),
            run_id,
            mode: Some(mode.to_owned()),
            since: entry.millis().unwrap_or_default(),
            deliveries: Vec::new(),
            asked: None,
            waits: false,
            endings: Vec::new(),
        });
        self.runs.len() - 1
    }

    /// Notes an event. Nothing comes back for one that is not in the contract's shape.
    pub fn tell(&mut self, event: &TailedEvent) -> Option<Step> {
        let wire: Wire = serde_json::from_str(&event.data).ok()?;
        let at = event.entry.millis().unwrap_or_default();
        let run = self.run_of(&wire, at);
        let entry = &mut self.runs[run];
        if let Some(mode) = &wire.metadata.mode {
            entry.mode = Some(mode.clone());
        }
        let worker = wire.metadata.worker_id;
        match event.kind {
            EventType::NodeCompleted | EventType::NodeFailed => entry.endings.push(Ending {
                kind: event.kind,
                data: wire.data.clone(),
                worker: worker.clone(),
                attempts: wire.metadata.attempt.unwrap_or(1),
                resumed: wire.metadata.resumed,
                decisions: wire.metadata.decisions,
                at,
            }),
            // Nobody follows the pieces of answers here.
            EventType::LlmDelta => {}
            EventType::NodeInputRequired => {
                entry.asked.get_or_insert(at);
                entry.waits = true;
            }
            EventType::NodeDecision => entry.waits = false,
            EventType::NodeStarted | EventType::NodeProgress | EventType::ToolExecuted => {
                let number = wire.metadata.delivery.unwrap_or(1);
                // Progress comes in several streams, so a tool call may be told of before its node's start.
                if entry.deliveries.last().is_none_or(|last| last.number < number) {
                    entry.deliveries.push(Delivery { number, worker: worker.clone(), killed: false, tools: 0 });
                }
                let delivery = entry.deliveries.iter_mut().find(|delivery| delivery.number == number);
                if let Some(delivery) = delivery.filter(|_| event.kind == EventType::ToolExecuted) {
                    delivery.tools += 1;
                }
            }
        }
        Some(Step { run, kind: event.kind, worker, data: wire.data })
    }

    /// Notes that a worker was killed because of a run.
    pub fn killed(&mut self, run: usize, worker: &str) {
        let delivery =
            self.runs.get_mut(run).and_then(|run| run.deliveries.iter_mut().rfind(|one| one.worker == worker));
        if let Some(delivery) = delivery {
            delivery.killed = true;
        }
    }

    fn run_of(&mut self, wire: &Wire, at: u64) -> usize {
        let known = self
            .runs
            .iter()
            .position(|run| run.run_id == wire.run_id && run.node == wire.node_id && run.graph == wire.graph_id);
        known.unwrap_or_else(|| {
            self.runs.push(Run {
                graph: wire.graph_id.clone(),
                node: wire.node_id.clone(),
                run_id: wire.run_id.clone(),
                mode: None,
                since: at,
                deliveries: Vec::new(),
                asked: None,
                waits: false,
                endings: Vec::new(),
            });
            self.runs.len() - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: EventType, at: &str, data: Value, metadata: Value) -> TailedEvent {
        let event = json!({
            "v": 1, "id": "e", "type": kind.as_str(), "graph_id": "g", "execution_id": "g", "node_id": "n",
            "run_id": "s/5-0", "timestamp": "2026-01-02T03:04:05Z", "data": data, "metadata": metadata,
        });
        TailedEvent { kind, entry: EntryId::new(at), data: event.to_string() }
    }

    fn progress(kind: EventType, worker: &str, delivery: u64) -> TailedEvent {
        event(kind, "6-0", json!({}), json!({"worker_id": worker, "delivery": delivery}))
    }

    #[test]
    fn a_run_that_changes_hands_shows_both_workers_and_the_kill() {
        let mut ledger = Ledger::default();
        let run = ledger.submitted("g", "n", String::from("s/5-0"), "agent", &EntryId::new("5-0"));
        ledger.tell(&progress(EventType::NodeStarted, "one", 1)).expect("an event");
        ledger.tell(&progress(EventType::ToolExecuted, "one", 1)).expect("an event");
        ledger.killed(run, "one");
        ledger.tell(&progress(EventType::ToolExecuted, "two", 2)).expect("an event");
        ledger.tell(&progress(EventType::NodeStarted, "two", 2)).expect("an event");
        ledger.tell(&progress(EventType::ToolExecuted, "two", 2)).expect("an event");
        let end = json!({"worker_id": "two", "mode": "agent", "attempt": 3, "duration_ms": 7});
        ledger.tell(&event(EventType::NodeCompleted, "9-0", json!({"output": 1}), end)).expect("an event");
        let run = &ledger.runs()[run];
        let seen: Vec<_> = run.deliveries.iter().map(|d| (d.number, d.worker.as_str(), d.killed, d.tools)).collect();
        assert_eq!(seen, [(1, "one", true, 1), (2, "two", false, 2)]);
        assert_eq!((run.kills(), run.tools(), run.since), (1, 2, 5));
        let ending = run.ending().expect("it ended");
        assert_eq!((ending.worker.as_str(), ending.attempts, ending.at), ("two", 3, 9));
    }

    #[test]
    fn a_second_terminal_event_is_not_swallowed() {
        let mut ledger = Ledger::default();
        let end = event(EventType::NodeFailed, "9-0", json!({}), json!({"worker_id": "one"}));
        ledger.tell(&end).expect("an event");
        ledger.tell(&end).expect("an event");
        assert_eq!(ledger.runs().len(), 1, "an execution of somebody else gets a row");
        assert_eq!(ledger.runs()[0].endings.len(), 2);
    }

    #[test]
    fn what_is_no_event_is_passed_over() {
        let mut ledger = Ledger::default();
        let event = TailedEvent { kind: EventType::NodeStarted, entry: EntryId::new("1-0"), data: String::from("{") };
        assert_eq!(ledger.tell(&event), None);
        assert!(ledger.runs().is_empty());
    }
}
