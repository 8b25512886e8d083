//! Orders to stop: giving them, taking them back, and looking for them while nodes run. What a running node does
//! about one is not decided here.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use redis::{Cmd, Pipeline, Value};

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::{layout, lease, reply};
use crate::domain::cancel::{CANCELLED_STATUS, CancelOrder, CancelScope, WHOLE_GRAPH};
use crate::domain::ids::{GraphId, NodeId};

/// Graphs of one pipeline, and nodes of one command.
const BATCH: usize = 50;
/// Bytes of a state document that are read for its status in one renewal; a larger one is looked at more rarely.
const DOCUMENT_BYTES: u64 = 64 * 1024;

/// Gives orders to stop and takes them back.
#[derive(Debug, Clone)]
pub struct CancelOrders {
    link: Link,
    keys: Keys,
    ttl: Duration,
}

impl CancelOrders {
    /// Orders that lapse after `ttl`, as states do.
    pub fn new(link: Link, keys: Keys, ttl: Duration) -> Self {
        Self { link, keys, ttl }
    }

    /// Gives an order for a node or, without one, for the whole graph. A second one replaces the first.
    pub async fn give(&self, graph: &GraphId, node: Option<&NodeId>, order: &CancelOrder) -> Result<(), RedisError> {
        let key = self.keys.cancel(graph);
        let mut pipeline = Pipeline::with_capacity(4);
        // One transaction, so that no order is left without an expiry.
        pipeline.cmd("MULTI");
        pipeline.cmd("HSET").arg(&key).arg(name(node)).arg(order.to_json(Timestamp::now()));
        pipeline.cmd("PEXPIRE").arg(&key).arg(lease::millis(self.ttl));
        pipeline.cmd("EXEC");
        let answers = self.link.pipeline(&pipeline).await?;
        for answer in answers {
            match answer? {
                // What a command met inside of the transaction stands in the answer of EXEC.
                Value::Array(results) if results.iter().any(|result| matches!(result, Value::ServerError(_))) => {
                    return Err(RedisError::WrongType { key: Some(key) });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes an order back. Says whether there was one.
    pub async fn take_back(&self, graph: &GraphId, node: Option<&NodeId>) -> Result<bool, RedisError> {
        let mut command = redis::cmd("HDEL");
        command.arg(self.keys.cancel(graph)).arg(name(node));
        Ok(reply::number(&self.link.query(&command).await?).unwrap_or_default() > 0)
    }
}

fn name(node: Option<&NodeId>) -> &str {
    node.map_or(WHOLE_GRAPH, NodeId::as_str)
}

/// Asks for the orders for some nodes of a graph.
pub(super) fn ask<'a>(keys: &Keys, graph: &GraphId, nodes: impl IntoIterator<Item = &'a NodeId>) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(keys.cancel(graph)).arg(WHOLE_GRAPH);
    for node in nodes {
        command.arg(node.as_str());
    }
    command
}

/// The order for each of `nodes` nodes that [`ask`] asked for. An order for the graph is one for each of them.
pub(super) fn answer(value: Value, nodes: usize) -> Vec<Option<CancelOrder>> {
    let Value::Array(values) = value else { return vec![None; nodes] };
    let order = |scope, value: Option<&Value>| Some(CancelOrder::read(scope, reply::as_bytes(value?)?));
    let graph = order(CancelScope::Graph, values.first());
    (1..=nodes).map(|at| graph.clone().or_else(|| order(CancelScope::Node, values.get(at)))).collect()
}

/// How the status of a graph is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Its state was not seen yet, or was not there.
    New,
    /// A field of a hash: read each time.
    Hash,
    /// A member of a document: read after so many looks without.
    Document(u64),
}

/// Looks, once in a while, whether nodes that run here are to stop. The cost is small and bounded: for each graph one
/// command for the orders and one for the status of a hash; of a document as many bytes, on average, as
/// `DOCUMENT_BYTES` says.
#[derive(Debug)]
pub struct CancelWatch {
    link: Link,
    keys: Keys,
    looks: HashMap<GraphId, Look>,
    /// The graphs of the nodes that were asked about in this round.
    seen: HashSet<GraphId>,
}

/// The nodes of one graph that run here, by their places in the question.
struct Running<'a> {
    graph: &'a GraphId,
    places: Vec<usize>,
    cancelled: bool,
}

impl CancelWatch {
    /// A watch that has seen nothing yet.
    pub fn new(link: Link, keys: Keys) -> Self {
        Self { link, keys, looks: HashMap::new(), seen: HashSet::new() }
    }

    /// The orders for these nodes, in their order. A graph whose status is `cancelled` counts as one. Graphs of none of
    /// them are forgotten.
    pub async fn look(&mut self, nodes: &[(GraphId, NodeId)]) -> Result<Vec<Option<CancelOrder>>, RedisError> {
        self.seen.clear();
        let orders = self.look_at_some(nodes).await?;
        self.forget_others();
        Ok(orders)
    }

    /// The same for some of the nodes, of many that are looked at one part after the other.
    pub async fn look_at_some(&mut self, nodes: &[(GraphId, NodeId)]) -> Result<Vec<Option<CancelOrder>>, RedisError> {
        let mut orders = vec![None; nodes.len()];
        let mut graphs = by_graph(nodes);
        self.seen.extend(graphs.iter().map(|running| running.graph.clone()));
        for graphs in graphs.chunks_mut(BATCH) {
            let new = self.ask_each(graphs, nodes, &mut orders).await?;
            self.meet(graphs, &new).await?;
        }
        for running in &mut graphs {
            match self.looks.get_mut(running.graph) {
                Some(Look::Document(0)) => self.read_document(running).await?,
                Some(Look::Document(further)) => *further -= 1,
                Some(Look::New | Look::Hash) | None => {}
            }
        }
        for running in graphs.iter().filter(|running| running.cancelled) {
            for &place in &running.places {
                orders[place].get_or_insert_with(|| CancelOrder::bare(CancelScope::Graph));
            }
        }
        Ok(orders)
    }

    /// Forgets the graphs that were not looked at since this was called last.
    pub fn forget_others(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        self.looks.retain(|graph, _| seen.contains(graph));
    }

    /// The orders for all nodes of these graphs and what is known to be cheap about their status. Gives the places of
    /// the graphs that were not seen before, each with the type of its state.
    async fn ask_each(
        &mut self,
        graphs: &mut [Running<'_>],
        nodes: &[(GraphId, NodeId)],
        orders: &mut [Option<CancelOrder>],
    ) -> Result<Vec<(usize, Look)>, RedisError> {
        let mut pipeline = Pipeline::with_capacity(2 * graphs.len());
        for running in graphs.iter() {
            for places in running.places.chunks(BATCH) {
                pipeline.add_command(ask(&self.keys, running.graph, places.iter().map(|&place| &nodes[place].1)));
            }
            let state = self.keys.state(running.graph);
            match self.looks.entry(running.graph.clone()).or_insert(Look::New) {
                Look::New => drop(pipeline.cmd("TYPE").arg(state)),
                Look::Hash => drop(pipeline.cmd("HGET").arg(state).arg("status")),
                Look::Document(_) => {}
            }
        }
        let mut answers = self.link.pipeline(&pipeline).await?.into_iter();
        let mut next = || answers.next().unwrap_or(Err(RedisError::Unexpected { what: "orders to stop" }));
        let mut new = Vec::new();
        for (at, running) in graphs.iter_mut().enumerate() {
            for places in running.places.chunks(BATCH) {
                // Something else under the name of the orders stops nobody; it is told when a node is opened.
                let found = or_wrong_type(next(), Value::Nil)?;
                for (&place, order) in places.iter().zip(answer(found, places.len())) {
                    orders[place] = order;
                }
            }
            match self.looks[running.graph] {
                Look::New => match reply::as_bytes(&next()?) {
                    Some(b"hash") => new.push((at, Look::Hash)),
                    Some(b"string") => new.push((at, Look::Document(0))),
                    _ => {}
                },
                Look::Hash => match next() {
                    Ok(status) => running.cancelled = is_cancelled(&status),
                    Err(RedisError::WrongType { .. }) => {
                        self.looks.insert(running.graph.clone(), Look::New);
                    }
                    Err(error) => return Err(error),
                },
                Look::Document(_) => {}
            }
        }
        Ok(new)
    }

    /// The status of hashes and the length of documents that are seen for the first time.
    async fn meet(&mut self, graphs: &mut [Running<'_>], new: &[(usize, Look)]) -> Result<(), RedisError> {
        if new.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::with_capacity(new.len());
        for &(at, look) in new {
            let state = self.keys.state(graphs[at].graph);
            match look {
                Look::Hash => pipeline.cmd("HGET").arg(state).arg("status"),
                Look::New | Look::Document(_) => pipeline.cmd("STRLEN").arg(state),
            };
        }
        for (&(at, look), answer) in new.iter().zip(self.link.pipeline(&pipeline).await?) {
            // It may have changed its type just now; then it stays new.
            let Some(answer) = or_wrong_type(answer.map(Some), None)? else { continue };
            let running = &mut graphs[at];
            let look = match look {
                Look::Hash => {
                    running.cancelled = is_cancelled(&answer);
                    Look::Hash
                }
                Look::New | Look::Document(_) => Look::Document(rest(reply::number(&answer).unwrap_or_default())),
            };
            self.looks.insert(running.graph.clone(), look);
        }
        Ok(())
    }

    async fn read_document(&mut self, running: &mut Running<'_>) -> Result<(), RedisError> {
        let mut command = redis::cmd("GET");
        command.arg(self.keys.state(running.graph));
        let document = reply::bytes(or_wrong_type(self.link.query(&command).await, Value::Nil)?);
        let look = match &document {
            Some(document) => Look::Document(rest(document.len() as u64)),
            None => Look::New,
        };
        self.looks.insert(running.graph.clone(), look);
        let status = document.and_then(|document| layout::document_status(&document));
        running.cancelled = status.as_deref() == Some(CANCELLED_STATUS);
        Ok(())
    }
}

/// How many looks a document of this length is left alone after it was read.
fn rest(bytes: u64) -> u64 {
    bytes / DOCUMENT_BYTES
}

fn is_cancelled(status: &Value) -> bool {
    reply::as_bytes(status) == Some(CANCELLED_STATUS.as_bytes())
}

fn or_wrong_type<T>(answer: Result<T, RedisError>, instead: T) -> Result<T, RedisError> {
    match answer {
        Err(RedisError::WrongType { .. }) => Ok(instead),
        answer => answer,
    }
}

/// The nodes by their graphs, which are in the order of their names.
fn by_graph(nodes: &[(GraphId, NodeId)]) -> Vec<Running<'_>> {
    let mut places: Vec<usize> = (0..nodes.len()).collect();
    places.sort_unstable_by(|&a, &b| nodes[a].0.cmp(&nodes[b].0));
    let of_one_graph = places.chunk_by(|&a, &b| nodes[a].0 == nodes[b].0);
    of_one_graph
        .map(|places| Running { graph: &nodes[places[0]].0, places: places.to_vec(), cancelled: false })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[(&str, &str)]) -> Vec<(GraphId, NodeId)> {
        let node =
            |(graph, node): &(&str, &str)| (GraphId::new(*graph).expect("an id"), NodeId::new(*node).expect("an id"));
        names.iter().map(node).collect()
    }

    #[test]
    fn nodes_are_asked_for_graph_by_graph_and_keep_their_places() {
        let nodes = nodes(&[("b", "1"), ("a", "2"), ("b", "3")]);
        let graphs = by_graph(&nodes);
        let mut found: Vec<_> = graphs.iter().map(|running| (running.graph.as_str(), running.places.clone())).collect();
        found.iter_mut().for_each(|(_, places)| places.sort_unstable());
        assert_eq!(found, [("a", vec![1]), ("b", vec![0, 2])]);
    }

    #[test]
    fn the_order_for_the_graph_is_one_for_each_node() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let of_node = answer(Value::Array(vec![Value::Nil, Value::Nil, bulk("1")]), 2);
        assert_eq!(of_node, [None, Some(CancelOrder::bare(CancelScope::Node))]);
        let of_graph = answer(Value::Array(vec![bulk(r#"{"by":"ann"}"#), Value::Nil, bulk("1")]), 2);
        assert!(of_graph.iter().flatten().all(|order| order.by.as_deref() == Some("ann")), "{of_graph:?}");
        assert_eq!(answer(Value::Nil, 2), [None, None]);
    }

    #[test]
    fn the_larger_a_document_the_more_rarely_it_is_read() {
        assert_eq!([0, 65_535, 65_536, 10 << 20].map(rest), [0, 0, 1, 160]);
    }
}
