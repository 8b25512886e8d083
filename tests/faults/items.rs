//! The work of a run, drawn from its seed: nodes of every mode, loops with several identities of one node, copies of
//! one item, poison, and entries that nobody can read.

use std::collections::BTreeSet;

use fastrand::Rng;
use serde_json::{Value, json};

use super::checker::{End, Identity};

/// Nodes of one graph.
const NODES: u64 = 12;
/// Identities of one graph, so that most nodes run several times.
const PER_GRAPH: usize = 40;

/// Everything that is submitted, and what has to come of it.
#[derive(Debug, Default)]
pub struct Work {
    /// The entries in order, each the field `data`.
    pub entries: Vec<Vec<u8>>,
    pub identities: Vec<Identity>,
    pub undecodable: Vec<String>,
    /// Graphs whose state is one document.
    pub documents: Vec<String>,
    /// Graphs whose state is a hash from the beginning; the workers make the others.
    pub hashes: BTreeSet<String>,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Charge,
    Put,
    Llm,
    Agent,
    Slow,
    Poison,
    FromTheFuture,
}

impl Work {
    /// `count` identities with names that begin with `prefix`, for tools at `host`.
    pub fn draw(rng: &mut Rng, prefix: &str, count: usize, host: &str) -> Self {
        let mut work = Self::default();
        // Each poison item costs many workers, so there are few.
        let poison = (count / 4000).clamp(1, 8);
        let every = count / poison;
        for number in 0..count {
            let graph = format!("{prefix}g{}", number / PER_GRAPH);
            if number % PER_GRAPH == 0 && rng.u8(..4) == 0 {
                work.documents.push(graph.clone());
            }
            let node = format!("n{}", rng.u64(..NODES));
            let kind = match rng.u16(..1000) {
                _ if number % every == every / 2 => Kind::Poison,
                0..300 => Kind::Request,
                300..450 => Kind::Charge,
                450..550 => Kind::Put,
                550..750 => Kind::Llm,
                750..985 => Kind::Agent,
                985..995 => Kind::Slow,
                _ => Kind::FromTheFuture,
            };
            if kind == Kind::FromTheFuture && !work.documents.contains(&graph) {
                // An item that cannot be read makes no state, so its end would find none if it came first.
                work.hashes.insert(graph.clone());
            }
            let run = format!("{prefix}r{number}");
            let (entry, identity) = item(kind, graph, node, run, host);
            work.entries.push(entry.to_string().into_bytes());
            work.identities.push(identity);
        }
        work.copy(rng);
        work.spoil(rng, prefix, (count / 200).max(2));
        work
    }

    /// Sends some items again, at once or much later.
    fn copy(&mut self, rng: &mut Rng) {
        let plain = |identity: &Identity| identity.end == End::Completed;
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
            self.entries.insert(at, text.clone().into_bytes());
            self.undecodable.push(text);
        }
    }
}

/// One item and what must come of it.
pub fn item(kind: Kind, graph: String, node: String, run: String, host: &str) -> (Value, Identity) {
    let post = |path: &str| {
        let params = json!({"method": "POST", "url": format!("http://{host}/{path}/{{{{ name }}}}.0")});
        json!({"tool_name": "http_request", "tool_params": params})
    };
    let tool = |name: &str| json!({"tool_name": name, "tool_params": {"effect": "{{ name }}.0"}});
    let effect = |number: usize, harmless: bool| (format!("{run}.{number}"), harmless);
    let (config, effects) = match kind {
        Kind::Request => (post("effect"), vec![effect(0, false)]),
        Kind::Slow => (post("slow"), vec![effect(0, false)]),
        Kind::Charge => (tool("effects/charge"), vec![effect(0, false)]),
        Kind::Put | Kind::FromTheFuture => (tool("effects/put"), vec![effect(0, true)]),
        Kind::Poison => (tool("effects/poison"), vec![effect(0, true)]),
        Kind::Llm => (json!({"llm_config": {"prompt": "{{ name }}"}}), Vec::new()),
        Kind::Agent => {
            let config = json!({"task": "{{ name }}", "system": "an agent", "tools": ["effects/charge", "effects/put"],
                "llm_config": {}});
            (config, vec![effect(0, false), effect(1, true), effect(2, false)])
        }
    };
    let mut entry = json!({
        "graph_id": graph, "node_id": node, "run_id": run, "config": config, "inputs": {"name": run},
    });
    let (end, bears) = match kind {
        Kind::Poison => (End::Failed { category: "poison", letter: true }, String::new()),
        Kind::FromTheFuture => {
            entry["v"] = json!(99);
            (End::Failed { category: "validation", letter: true }, String::new())
        }
        _ => (End::Completed, run.clone()),
    };
    (entry, Identity { graph, node, run, end, bears, effects })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
    }
}
