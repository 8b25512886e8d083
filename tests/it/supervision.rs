//! What comes back by itself: tool servers that die, restart or start late.

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::mcp;

fn item(node: &str, tool: &str, params: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "inputs": {}, "config": {"tool_name": tool, "tool_params": params}})
}

#[tokio::test]
async fn a_tool_server_that_dies_in_a_call_is_started_again_for_the_next() {
    let bed = Bed::new().await;
    let server = mcp::stdio("kitchen", &mcp::fastmcp(), &["stdio"]);
    let worker = bed.worker("w1").file(&server).start().ready().await;
    let first = bed.run(&item("a", "pid", json!({}))).await.output()["result"].clone();
    // The call may have taken effect, and nobody said that it may be repeated.
    let event = bed.run(&item("b", "crash", json!({}))).await;
    assert_eq!(event["type"], "node.failed", "{}", event.body);
    assert!(event.error().contains("kitchen"), "{}", event.error());
    let second = bed.run(&item("c", "pid", json!({}))).await.output()["result"].clone();
    assert_ne!(first, second, "a new process");
    assert_eq!(worker.metric("executor_mcp_server_connects_total", &["kitchen"]).await, 2.0);
    assert_eq!(worker.get("/ready").await.status, 200);
}

#[tokio::test]
async fn a_tool_server_over_http_that_was_restarted_is_used_again() {
    let bed = Bed::new().await;
    let mut server = mcp::HttpServer::fastmcp();
    let _worker = bed.worker("w1").env("MCP_SERVERS", format!("kitchen={}", server.url())).start().ready().await;
    let first = bed.run(&item("a", "pid", json!({}))).await.output()["result"].clone();
    server.restart();
    let second = bed.run(&item("b", "pid", json!({}))).await.output()["result"].clone();
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_worker_is_ready_only_while_its_required_tool_server_answers() {
    let bed = Bed::new().await;
    let mut server = mcp::HttpServer::fastmcp();
    let file = format!("{}required = true\n", mcp::http("kitchen", &server));
    server.kill();
    let worker = bed.worker("w1").file(&file).start();
    let away = worker.answers("/ready", 503).await.json();
    worker.said("consumer group created").await;
    assert_eq!(worker.get("/live").await.status, 200, "{away}");
    server.restart();
    let worker = worker.ready().await;
    bed.run(&item("a", "add", json!({"a": 1, "b": 1}))).await;
    server.kill();
    let body = worker.answers("/ready", 503).await.json();
    assert!(body["reasons"].to_string().contains("tool server"), "{body}");
    // Nodes that need no server go on.
    let event = bed.run(&item("b", "calculate", json!({"expression": "1"}))).await;
    assert_eq!(event.output(), &json!(1));
}

#[tokio::test]
async fn a_tool_server_that_is_away_fails_its_own_nodes_alone() {
    let bed = Bed::new().await;
    let mut server = mcp::HttpServer::fastmcp();
    let file = mcp::http("kitchen", &server);
    server.kill();
    let _worker = bed.worker("w1").file(&file).start().ready().await;
    let event = bed.run(&item("a", "kitchen/add", json!({"a": 1, "b": 1}))).await;
    assert_eq!(event.failure().0, "retriable", "{}", event.body);
    assert!(event.error().contains("kitchen"), "{}", event.error());
    // A name that it may have is no unknown name, while one that a built-in tool has is found.
    assert_eq!(bed.run(&item("b", "add", json!({}))).await.failure().0, "retriable");
    let event = bed.run(&item("c", "calculate", json!({"expression": "1"}))).await;
    assert_eq!(event.output(), &json!(1));
}
