//! The names of our keys. Work streams and the dead-letter streams beside them bear no prefix: the operator names them.

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::Arc;

use crate::domain::event::EventType;
use crate::domain::ids::{GraphId, NodeId, RunId};
use crate::domain::work::Delivery;

/// Builds key names that begin with `state.prefix`.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: Arc<str>,
}

impl Keys {
    /// Keys that begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: Arc::from(prefix) }
    }

    /// The graph's state: a hash or one JSON document.
    pub fn state(&self, graph: &GraphId) -> String {
        self.join("state:", graph.as_str())
    }

    /// Whether a key is some graph's state.
    pub fn is_state(&self, key: &str) -> bool {
        key.strip_prefix(&*self.prefix).is_some_and(|key| key.starts_with("state:"))
    }

    /// The records of the graph's runs.
    pub fn done(&self, graph: &GraphId) -> String {
        self.join("done:", graph.as_str())
    }

    /// The journal of one identity.
    pub fn journal(&self, graph: &GraphId, node: &NodeId, run: &RunId) -> String {
        format!("{}journal:{}:{}:{run}", self.prefix, part(graph.as_str()), part(node.as_str()))
    }

    /// A large output.
    pub fn blob(&self, graph: &GraphId, node: &NodeId, run: &RunId) -> String {
        format!("{}{run}", self.blobs_of(graph, node))
    }

    /// The whole result of a tool call of which the model was shown a part.
    pub fn tool_result(&self, graph: &GraphId, node: &NodeId, run: &RunId, call: impl Display) -> String {
        let (graph, node, run) = (part(graph.as_str()), part(node.as_str()), part(run.as_str()));
        format!("{}result:{graph}:{node}:{run}:{call}", self.prefix)
    }

    /// What the keys of all large outputs of a node begin with.
    pub fn blobs_of(&self, graph: &GraphId, node: &NodeId) -> String {
        format!("{}blob:{}:{}:", self.prefix, part(graph.as_str()), part(node.as_str()))
    }

    /// Where one owner of an entry puts its large output until it settles.
    pub fn staged(&self, delivery: &Delivery) -> String {
        let Delivery { work_id, token, .. } = delivery;
        format!("{}staged:{work_id}:{}:{}", self.prefix, token.consumer, token.deliveries)
    }

    /// When which large output is looked at again.
    pub fn blobs(&self) -> String {
        self.join("blobs", "")
    }

    /// The graph's order to stop.
    pub fn cancel(&self, graph: &GraphId) -> String {
        self.join("cancel:", graph.as_str())
    }

    /// When work that waits outside of the stream is due.
    pub fn parked(&self, stream: &str) -> String {
        self.join("parked:", stream)
    }

    /// The bodies of that work.
    pub fn parked_bodies(&self, stream: &str) -> String {
        self.join("parked-bodies:", stream)
    }

    /// Which questions are open.
    pub fn waits(&self) -> String {
        self.join("waits", "")
    }

    /// What was decided, by whom and when.
    pub fn audit(&self) -> String {
        self.join("waits:audit", "")
    }

    /// How many processes died with each pending entry of a stream.
    pub fn crashes(&self, stream: &str) -> String {
        self.join("crashes:", stream)
    }

    /// The stream of one type of event.
    pub fn events(&self, kind: EventType) -> String {
        self.join("events:", kind.as_str())
    }

    /// What all workers together may still ask of a model.
    pub fn limit(&self, provider: &str, model: &str) -> String {
        format!("{}limit:{provider}:{model}", self.prefix)
    }

    /// A worker's entry in the registry.
    pub fn worker(&self, id: &str) -> String {
        self.join("workers:", id)
    }

    /// The dead letters of a work stream.
    pub fn dead(&self, stream: &str) -> String {
        format!("{stream}:dead")
    }

    fn join(&self, kind: &str, name: &str) -> String {
        let mut key = String::with_capacity(self.prefix.len() + kind.len() + name.len());
        key.push_str(&self.prefix);
        key.push_str(kind);
        key.push_str(name);
        key
    }
}

/// An id that another one follows in a key: its colons are escaped, as in a URL, or ids could run into each other and two
/// nodes share a key. The last id of a key needs none of this, and ids without `:` and `%` stay as they are.
fn part(id: &str) -> Cow<'_, str> {
    if id.contains([':', '%']) { id.replace('%', "%25").replace(':', "%3A").into() } else { id.into() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::journal::CallId;

    #[test]
    fn keys_bear_the_names_of_the_contract() {
        let keys = Keys::new("dago:");
        let graph = GraphId::new("g").expect("an id");
        let node = NodeId::new("n").expect("an id");
        let run = RunId::new("r").expect("an id");
        assert_eq!(keys.state(&graph), "dago:state:g");
        assert_eq!(keys.done(&graph), "dago:done:g");
        assert_eq!(keys.journal(&graph, &node, &run), "dago:journal:g:n:r");
        assert_eq!(keys.blob(&graph, &node, &run), "dago:blob:g:n:r");
        assert_eq!(keys.tool_result(&graph, &node, &run, CallId { turn: 2, index: 1 }), "dago:result:g:n:r:t2:c1");
        assert_eq!(keys.blobs(), "dago:blobs");
        assert_eq!(keys.cancel(&graph), "dago:cancel:g");
        assert_eq!(keys.parked("executor.work"), "dago:parked:executor.work");
        assert_eq!(keys.parked_bodies("executor.work"), "dago:parked-bodies:executor.work");
        assert_eq!((keys.waits(), keys.audit()), (String::from("dago:waits"), String::from("dago:waits:audit")));
        assert_eq!(keys.crashes("executor.work"), "dago:crashes:executor.work");
        assert_eq!(keys.events(EventType::NodeCompleted), "dago:events:node.completed");
        assert_eq!(keys.limit("claude", "m/1"), "dago:limit:claude:m/1");
        assert_eq!(keys.worker("w"), "dago:workers:w");
        assert_eq!(keys.dead("executor.work"), "executor.work:dead");
    }

    #[test]
    fn ids_with_colons_do_not_run_into_each_other() {
        let keys = Keys::new("dago:");
        let graph = |id: &str| GraphId::new(id).expect("an id");
        let node = |id: &str| NodeId::new(id).expect("an id");
        let run = |id: &str| RunId::new(id).expect("an id");
        let alike =
            [("a", "b:c", "d"), ("a:b", "c", "d"), ("a", "b", "c:d"), ("a%3Ab", "c", "d"), ("a%253Ab", "c", "d")];
        for key in [Keys::journal, Keys::blob] {
            let names: HashSet<String> =
                alike.iter().map(|(g, n, r)| key(&keys, &graph(g), &node(n), &run(r))).collect();
            assert_eq!(names.len(), alike.len(), "{names:?}");
        }
        let other = keys.blob(&graph("g"), &node("n:m"), &run("r"));
        assert!(!other.starts_with(&keys.blobs_of(&graph("g"), &node("n"))), "{other} is not of node n");
        // What others read keeps its name, and so does a run that is named after its entry.
        assert_eq!(keys.state(&graph("a:b%")), "dago:state:a:b%");
        assert_eq!(keys.journal(&graph("g"), &node("n"), &run("s:w/1-0%")), "dago:journal:g:n:s:w/1-0%");
    }
}
