//! The work of a run, drawn from its seed: nodes of every mode, loops with several identities of one node, copies of
//! one item, nodes that wait for a moment, a person or a task, that are cancelled, or whose output is large, poison, and
//! entries that nobody can read.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use super::evidence::{End, Identity, Intended, Member};

/// Nodes of one graph.
const NODES: u64 = 12;
/// Identities of one graph, so that most nodes run several times.
const PER_GRAPH: usize = 40;

/// Everything that is submitted, and what has to come of it.
#[derive(Debug, Default)]
pub struct Work {
    /// In the order of submission.
    pub entries: Vec<Entry>,
    pub identities: Vec<Identity>,
    pub undecodable: Vec<String>,
    /// Graphs whose state is one document.
    pub documents: Vec<String>,
    /// Graphs whose state is a hash from the beginning; the workers make the others.
    pub hashes: BTreeSet<String>,
    /// Graphs that are cancelled, as a whole or in their one node.
    pub cancelled: BTreeSet<String>,
}

/// One entry of the work stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The field `data`.
    pub data: Vec<u8>,
    /// The order that stops it after a while.
    pub stop: Option<Stop>,
}

/// An order to stop a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub graph: String,
    /// Counted from the submission.
    pub after: Duration,
    pub how: How,
}

/// How the order is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    Node(String),
    WholeGraph,
    Status,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Replace,
    Charge,
    Put,
    Large,
    Llm,
    Agent,
    /// Kinds that are asked to come again later than a slot may be held for.
    PatientTool,
    PatientLlm,
    PatientAgent,
    /// A call that its server works on by itself, asked for several times.
    Task,
    /// An agent two of whose calls want a person's word.
    Asking,
    /// Never ends unless somebody cancels it.
    Held,
    Slow,
    Poison,
    FromTheFuture,
}

impl Work {
    /// `count` identities with names that begin with `prefix`, for tools at `host`.
    pub fn draw(rng: &mut Rng, prefix: &str, count: usize, host: &str) -> Self {
        let mut work = Self::default();
        // Each poison item costs many workers, so there are few.
        let poison = (count / 4000).clamp(1, 4);
        let every = count / poison;
        for number in 0..count {
            let mut graph = format!("{prefix}g{}", number / PER_GRAPH);
            if number % PER_GRAPH == 0 && rng.u8(..4) == 0 {
                work.documents.push(graph.clone());
            }
            let node = format!("n{}", rng.u64(..NODES));
            let kind = match rng.u16(..1000) {
                _ if number % every == every / 2 => Kind::Poison,
                0..180 => Kind::Request,
                180..200 => Kind::Task,
                200..260 => Kind::Replace,
                260..390 => Kind::Charge,
                390..480 => Kind::Put,
                480..520 => Kind::Large,
                520..690 => Kind::Llm,
                690..890 => Kind::Agent,
                890..920 => Kind::Asking,
                920..935 => Kind::PatientTool,
                935..950 => Kind::PatientLlm,
                950..970 => Kind::PatientAgent,
                970..977 => Kind::Held,
                977..990 => Kind::Slow,
                _ => Kind::FromTheFuture,
            };
            if kind == Kind::Held {
                graph = format!("{prefix}c{number}");
            }
            if kind == Kind::FromTheFuture && !work.documents.contains(&graph) {
                // An item that cannot be read makes no state, so its end would find none if it came first.
                work.hashes.insert(graph.clone());
            }
            let stop = (kind == Kind::Held).then(|| work.stop(rng, &graph, &node));
            let run = format!("{prefix}r{number}");
            let (entry, identity) = item(kind, graph, node, run, host);
            work.entries.push(Entry { data: entry.to_string().into_bytes(), stop });
            work.identities.push(identity);
        }
        work.copy(rng);
        work.spoil(rng, prefix, (count / 200).max(2));
        work
    }

    /// The same without the items that kill their worker.
    pub fn without_poison(mut self) -> Self {
        let poison = End::Failed { category: "poison", letter: true };
        self.identities.retain(|identity| identity.end != poison);
        self.entries.retain(|entry| memchr::memmem::find(&entry.data, b"effects/poison").is_none());
        self
    }

    /// Adds nodes that run until they are cancelled, so long after their submission; gives their entries.
    pub fn hold(&mut self, prefix: &str, count: usize, after: Duration, host: &str) -> Vec<Entry> {
        let entry = |number: usize| {
            let (graph, node) = (format!("{prefix}g{number}"), String::from("n"));
            self.cancelled.insert(graph.clone());
            self.hashes.insert(graph.clone());
            let stop = Stop { graph: graph.clone(), after, how: How::WholeGraph };
            let (entry, identity) = item(Kind::Held, graph, node, format!("{prefix}r{number}"), host);
            self.identities.push(identity);
            Entry { data: entry.to_string().into_bytes(), stop: Some(stop) }
        };
        (0..count).map(entry).collect()
    }

    /// What stands in the document of a graph's state beside its nodes.
    pub fn document(graph: &str) -> Value {
        json!({"graph_id": graph, "graph": {"nodes": {}}, "status": "running", "inputs": {}, "others": "keep this"})
    }

    /// What others than workers wrote into the states.
    pub fn written_by_others(&self) -> Vec<Member> {
        let stopped: HashSet<&str> = self
            .entries
            .iter()
            .filter_map(|entry| entry.stop.as_ref())
            .filter_map(|stop| (stop.how == How::Status).then_some(stop.graph.as_str()))
            .collect();
        let status = |graph: &String| {
            let status = if stopped.contains(graph.as_str()) { "cancelled" } else { "running" };
            Member { graph: graph.clone(), name: String::from("status"), value: Value::from(status) }
        };
        let members = |graph: &String| {
            let Value::Object(members) = Self::document(graph) else { unreachable!("it is an object") };
            let member = |(name, value)| Member { graph: graph.clone(), name, value };
            members.into_iter().map(member).collect::<Vec<_>>()
        };
        self.hashes.iter().map(status).chain(self.documents.iter().flat_map(members)).collect()
    }

    /// Makes the graph one that is cancelled.
    fn stop(&mut self, rng: &mut Rng, graph: &str, node: &str) -> Stop {
        self.cancelled.insert(String::from(graph));
        // A node that is cancelled before it begins makes no state, so its end would find none.
        self.hashes.insert(String::from(graph));
        let how = match rng.u8(..3) {
            0 => How::Node(String::from(node)),
            1 => How::WholeGraph,
            _ => How::Status,
        };
        Stop { graph: String::from(graph), after: Duration::from_millis(rng.u64(..1000)), how }
    }

    /// Sends some items again, at once or much later.
    fn copy(&mut self, rng: &mut Rng) {
        let plain = |identity: &Identity| matches!(identity.end, End::Completed | End::CompletedOrUnknown);
        let copied: Vec<usize> =
            (0..self.identities.len()).filter(|at| plain(&self.identities[*at]) && rng.u8(..32) == 0).collect();
        // From the back, so that earlier places stay where they are.
        for at in copied.into_iter().rev() {
            for _ in 0..rng.usize(1..3) {
                let later = (at + 1 + rng.usize(..200)).min(self.entries.len());
                let entry = self.entries[at].clone();
                self.entries.insert(later, entry);
            }
        }
    }

    /// Adds entries that nobody can read.
    fn spoil(&mut self, rng: &mut Rng, prefix: &str, count: usize) {
        for number in 0..count {
            let text = match number % 3 {
                0 => format!("{{ {prefix}junk {number}"),
                1 => json!({"graph_id": "g", "why": format!("no node in {prefix}junk {number}")}).to_string(),
                _ => json!([format!("{prefix}junk {number}")]).to_string(),
            };
            let at = rng.usize(..=self.entries.len());
            self.entries.insert(at, Entry { data: text.clone().into_bytes(), stop: None });
            self.undecodable.push(text);
        }
    }
}

/// One item and what must come of it.
pub fn item(kind: Kind, graph: String, node: String, run: String, host: &str) -> (Value, Identity) {
    let request = |method: &str, path: &str| {
        let params = json!({"method": method, "url": format!("http://{host}/{path}/{{{{ name }}}}.0")});
        json!({"tool_name": "http_request", "tool_params": params})
    };
    let tool = |name: &str| json!({"tool_name": name, "tool_params": {"effect": "{{ name }}.0"}});
    let agent =
        |system: &str, tools: Value| json!({"task": "{{ name }}", "system": system, "tools": tools, "llm_config": {}});
    // For each effect whether it may be asked for again.
    let (config, effects): (Value, &[bool]) = match kind {
        Kind::Request => (request("POST", "effect"), &[false]),
        Kind::Replace => (request("PUT", "effect"), &[true]),
        Kind::Slow => (request("POST", "slow"), &[false]),
        Kind::Charge => (tool("effects/charge"), &[false]),
        Kind::Large => (tool("effects/large"), &[false]),
        Kind::PatientTool => (tool("effects/busy"), &[false]),
        Kind::Task => (tool("works/build"), &[false]),
        Kind::Put | Kind::FromTheFuture => (tool("effects/put"), &[true]),
        Kind::Held => (tool("effects/hold"), &[true]),
        Kind::Poison => (tool("effects/poison"), &[true]),
        Kind::Llm => (json!({"llm_config": {"prompt": "{{ name }}"}}), &[]),
        Kind::PatientLlm => (json!({"llm_config": {"prompt": "{{ name }}", "system": "patient"}}), &[]),
        Kind::Agent => (agent("an agent", json!(["effects/charge", "effects/put"])), &[false, true, false]),
        Kind::Asking => {
            let mut config = agent("an agent", json!(["effects/charge", "effects/put"]));
            config["approve"] = json!(["effects/charge"]);
            (config, &[false, true, false])
        }
        Kind::PatientAgent => {
            let tools = json!(["effects/charge", "effects/busy", "effects/put"]);
            (agent("a patient agent", tools), &[false, false, true])
        }
    };
    let effects = effects.iter().enumerate();
    let effects: Vec<Intended> = effects
        .map(|(number, idempotent)| Intended { name: format!("{run}.{number}"), idempotent: *idempotent })
        .collect();
    let mut entry = json!({
        "graph_id": graph, "node_id": node, "run_id": run, "config": config, "inputs": {"name": run},
    });
    let agent = matches!(kind, Kind::Agent | Kind::PatientAgent | Kind::Asking);
    let end = match kind {
        Kind::Poison => End::Failed { category: "poison", letter: true },
        Kind::Held => End::Failed { category: "cancelled", letter: false },
        Kind::FromTheFuture => {
            entry["v"] = json!(99);
            End::Failed { category: "validation", letter: true }
        }
        _ if !agent && effects.iter().any(|effect| !effect.idempotent) => End::CompletedOrUnknown,
        _ => End::Completed,
    };
    let waits = match kind {
        Kind::PatientTool | Kind::PatientLlm => 1,
        Kind::PatientAgent | Kind::Asking => 2,
        // Once before each look.
        Kind::Task => 3,
        _ => 0,
    };
    let large = kind == Kind::Large;
    (entry, Identity { bears: run.clone(), graph, node, run, end, effects, agent, large, waits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_work() {
        let draw = || Work::draw(&mut Rng::with_seed(7), "a", 500, "h:1");
        let (work, again) = (draw(), draw());
        assert_eq!(work.entries, again.entries);
        assert_ne!(work.entries, Work::draw(&mut Rng::with_seed(8), "a", 500, "h:1").entries);
        let runs: HashSet<_> = work.identities.iter().map(|identity| &identity.run).collect();
        assert_eq!(runs.len(), 500);
        assert!(work.entries.len() > 500 + work.undecodable.len(), "some items are sent again");
        assert!(work.identities.iter().any(|identity| identity.end != End::Completed));
        assert!(work.entries.iter().any(|entry| entry.stop.is_some()) && work.identities.iter().any(|one| one.large));
    }
}
