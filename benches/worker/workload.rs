//! The work of `throughput`: graphs whose state has about 4 KB, with one tool node each that looks into it.

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

/// Commands sent at once while the work is laid out.
const PIPE: usize = 500;

/// The work stream.
pub const STREAM: &str = "executor.work";
/// Its consumer group.
pub const GROUP: &str = "executor-workers";
/// The node that is run.
pub const NODE: &str = "select";
/// The completed node that it reads.
pub const SOURCE: &str = "fetch";
/// The stream of results.
pub const COMPLETED: &str = "dago:events:node.completed";

/// The name of graph number `index`; all have the same length.
pub fn graph_id(index: usize) -> String {
    format!("graph-{index:08}")
}

/// The key of a graph's state.
pub fn state_key(graph: &str) -> String {
    format!("dago:state:{graph}")
}

fn orders() -> Vec<Value> {
    let cities = ["Lisbon", "Oslo", "Trieste", "Nantes", "Gdansk"];
    let order = |n: usize| {
        json!({"id": 10_000 + n, "customer": format!("customer-{:02}", n * 7 % 47), "city": cities[n % 5],
            "price": 5.25 + (n * 37 % 100) as f64, "items": n % 4 + 1})
    };
    (0..47).map(order).collect()
}

/// The state's fields.
fn state() -> [(&'static str, String); 4] {
    let source = json!({"node_id": SOURCE, "status": "completed", "output": {"orders": orders()},
        "started_at": "2026-01-02T03:04:05.000000000Z", "completed_at": "2026-01-02T03:04:06.000000000Z",
        "run_id": "run-1", "metadata": {"worker_id": "bench", "attempt": 1}});
    let graph = json!({"nodes": {SOURCE: {"id": SOURCE, "type": "tool"}, NODE: {"id": NODE, "type": "tool"}},
        "edges": [{"from": SOURCE, "to": NODE}], "entry_node": SOURCE});
    [
        ("graph", graph.to_string()),
        ("inputs", json!({"region": "eu", "limit": 90}).to_string()),
        ("status", String::from("running")),
        ("node:fetch", source.to_string()),
    ]
}

/// Bytes of one state.
pub fn state_bytes() -> usize {
    state().iter().map(|(field, value)| field.len() + value.len()).sum()
}

fn item(graph: &str) -> Value {
    json!({"v": 1, "graph_id": graph, "node_id": NODE, "run_id": format!("run-{graph}"), "node_type": "tool",
        "dependencies": [SOURCE],
        "config": {"tool_name": "json_query", "tool_params": {
            "data": "{{ fetch }}", "expression": "orders[?price > `90`].{id: id, price: price}"}}})
}

/// Empties the server and lays out the work: states first, then the stream, read by nobody yet.
pub async fn lay_out(redis: &mut MultiplexedConnection, items: usize) {
    redis::cmd("FLUSHALL").exec_async(redis).await.expect("the server is ours");
    let state = state();
    for first in (0..items).step_by(PIPE) {
        let mut pipe = redis::Pipeline::with_capacity(PIPE);
        for index in first..items.min(first + PIPE) {
            pipe.hset_multiple(state_key(&graph_id(index)), &state).ignore();
            pipe.cmd("PEXPIRE").arg(state_key(&graph_id(index))).arg(86_400_000).ignore();
        }
        for index in first..items.min(first + PIPE) {
            pipe.cmd("XADD").arg(STREAM).arg("*").arg("data").arg(item(&graph_id(index)).to_string()).ignore();
        }
        pipe.exec_async(redis).await.expect("the work is well formed");
    }
    redis::cmd("XGROUP").arg("CREATE").arg(STREAM).arg(GROUP).arg("0").exec_async(redis).await.expect("a new group");
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(redis).await.expect("the server is ours");
}

/// Fails unless every item was settled exactly once with the right output.
pub async fn check(redis: &mut MultiplexedConnection, items: usize) {
    let mut pipe = redis::pipe();
    pipe.cmd("XLEN").arg(COMPLETED).cmd("XLEN").arg(STREAM).cmd("XLEN").arg("dago:events:node.failed");
    pipe.cmd("XPENDING").arg(STREAM).arg(GROUP);
    let (completed, left, failed, pending): (usize, usize, usize, (usize, Unused, Unused, Unused)) =
        pipe.query_async(redis).await.expect("the streams are there");
    assert_eq!((completed, left, failed, pending.0), (items, 0, 0, 0), "completed, left, failed, pending");
    let node: String = redis::cmd("HGET")
        .arg(state_key(&graph_id(items - 1)))
        .arg(format!("node:{NODE}"))
        .query_async(redis)
        .await
        .expect("the last node was written");
    let node: Value = serde_json::from_str(&node).expect("a node state is JSON");
    let dear = orders().into_iter().filter(|order| order["price"].as_f64() > Some(90.0));
    let expected: Vec<Value> = dear.map(|order| json!({"id": order["id"], "price": order["price"]})).collect();
    assert_eq!(node["output"], json!(expected));
}

/// A part of an answer that nobody looks at.
type Unused = redis::Value;

/// The time between the first and the last result, by the clock of the server that took them, in seconds.
pub async fn span(redis: &mut MultiplexedConnection) -> f64 {
    let edge = async |command: &str, from: &str, to: &str, redis: &mut MultiplexedConnection| -> u64 {
        let mut range = redis::cmd(command);
        range.arg(COMPLETED).arg(from).arg(to).arg("COUNT").arg(1);
        let entries: Vec<(String, redis::Value)> = range.query_async(redis).await.expect("the stream is there");
        millis(&entries.first().expect("there are results").0)
    };
    let first = edge("XRANGE", "-", "+", redis).await;
    let last = edge("XREVRANGE", "+", "-", redis).await;
    (last - first) as f64 / 1000.0
}

/// The milliseconds that the id of an entry begins with.
pub fn millis(id: &str) -> u64 {
    id.split('-').next().and_then(|millis| millis.parse().ok()).expect("an id begins with milliseconds")
}
