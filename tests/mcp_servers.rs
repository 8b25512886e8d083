//! The MCP client against servers that are not ours, on both transports: the reference server of the TypeScript SDK
//! FastMCP servers of the Python SDK and one of the Rust SDK; and against one of ours that breaks the protocol.

#[path = "mcp/authorization.rs"]
mod authorization;
#[path = "mcp/connections.rs"]
mod connections;
#[path = "mcp/eras.rs"]
mod eras;
#[path = "mcp/example.rs"]
mod example;
#[path = "mcp/harness.rs"]
mod harness;
#[path = "mcp/hostile_http.rs"]
mod hostile_http;
#[path = "mcp/hostile_more.rs"]
mod hostile_more;
#[path = "mcp/hostile_stdio.rs"]
mod hostile_stdio;
#[path = "mcp/raw_server.rs"]
mod raw_server;
#[path = "mcp/rmcp.rs"]
mod rmcp;
#[path = "mcp/streams.rs"]
mod streams;

use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::{McpError, Session};
use da_node_executor::config::McpServerConfig;
use da_node_executor::domain::outcome::{Category, Failure};
use da_node_executor::retry::Retry;
use futures_util::future::join_all;
use harness::*;
use serde_json::json;

async fn the_reference_server_is_understood(config: &McpServerConfig) {
    let session = connect(config).await;
    assert_eq!(session.info().protocol_version, "2025-11-25");
    assert!(!session.info().name.is_empty());

    let tools = session.list_tools().await.expect("the tools").tools;
    let sum = tools.iter().find(|tool| tool.name == "get-sum").expect("it adds");
    assert_eq!(sum.input_schema["required"], json!(["a", "b"]));
    assert!(sum.description.is_some());

    let echo = call(&session, "echo", json!({"message": "grüße ☃"})).await.expect("an echo");
    assert_eq!(echo.into_value(), json!("Echo: grüße ☃"));
    let structured = call(&session, "get-structured-content", json!({"location": "Chicago"})).await.expect("weather");
    assert!(structured.structured.expect("structured content")["temperature"].is_number());
    let image = call(&session, "get-tiny-image", json!({})).await.expect("an image");
    assert!(image.content.iter().any(|block| block["type"] == "image" && block["data"].is_string()));

    let wrong = call(&session, "get-sum", json!({"a": "x"})).await.expect("a result that says so");
    assert!(wrong.is_error);

    let started = Instant::now();
    let long = call(&session, "trigger-long-running-operation", json!({"duration": 1, "steps": 5})).await;
    assert!(long.expect("it ends").text().contains("completed"), "progress comes in between");
    assert!(started.elapsed() >= Duration::from_millis(900));

    assert!(!session.is_closed());
    session.close().await;
    assert!(session.is_closed());
    let late = call(&session, "echo", json!({"message": "x"})).await.expect_err("the session has ended");
    assert!(matches!(late, McpError::Closed { may_have_run: false, .. }), "{late:?}");
}

#[tokio::test]
async fn the_reference_server_is_understood_over_stdio() {
    the_reference_server_is_understood(&stdio(everything(), &["stdio"])).await;
}

#[tokio::test]
async fn the_reference_server_is_understood_over_http() {
    let server = HttpServer::everything(free_port()).await;
    the_reference_server_is_understood(&at(server.url())).await;
}

#[tokio::test]
async fn the_reference_server_is_understood_over_the_oldest_transport() {
    let server = HttpServer::everything_sse(free_port()).await;
    the_reference_server_is_understood(&at(server.url())).await;
}

async fn the_python_server_is_understood(config: &McpServerConfig, asks: bool) {
    let session = connect(config).await;
    assert_eq!(session.info().protocol_version, "2025-11-25");
    assert_eq!(session.info().name, "fastmcp-under-test");
    assert_eq!(session.info().instructions.as_deref(), Some("Add numbers."));

    let tools = session.list_tools().await.expect("the tools").tools;
    let add = tools.iter().find(|tool| tool.name == "add").expect("it adds");
    assert!(add.hints.read_only && add.hints.idempotent);
    assert_eq!(add.title.as_deref(), Some("Adds"));
    assert!(add.output_schema.is_some());
    let fail = tools.iter().find(|tool| tool.name == "fail").expect("it fails");
    assert!(!fail.hints.read_only && !fail.hints.idempotent, "what is not said is not assumed");

    let sum = call(&session, "add", json!({"a": 2, "b": 3})).await.expect("a sum");
    assert_eq!(sum.structured, Some(json!({"result": 5})));
    let failed = call(&session, "fail", json!({"reason": "out of cheese"})).await.expect("an answer");
    assert!(failed.is_error && failed.text().contains("out of cheese"));
    let unknown = call(&session, "no-such-tool", json!({})).await.expect("this SDK answers it so");
    assert!(unknown.is_error);

    let seen = call(&session, "meta", json!({})).await.expect("the meta").into_value();
    let seen = seen.get("result").unwrap_or(&seen);
    assert_eq!(seen["da-node-executor/graphId"], "g-1");
    assert_eq!(seen["da-node-executor/nodeId"], "n-1");
    assert_eq!(seen["da-node-executor/runId"], "r-1");
    assert_eq!(seen["da-node-executor/idempotencyKey"], "r-1/0/1/0");
    assert_eq!(seen["traceparent"], meta().traceparent.expect("one is set"));
    assert!(seen["progressToken"].is_u64());

    // With plain JSON answers a server has no way to ask in the middle of a call.
    if asks {
        let before = session.tools_changed();
        let deadline = Instant::now() + PATIENCE;
        // Told before our ear for it is open, a change is lost: it is told again.
        while session.tools_changed() == before {
            assert!(Instant::now() < deadline, "nobody told us");
            call(&session, "tell_that_tools_changed", json!({})).await.expect("it tells");
        }
        let pong = call(&session, "ping_the_client", json!({})).await.expect("a pong");
        assert_eq!(pong.text(), "pong", "{pong:?}");
        let declined = call(&session, "ask_for_roots", json!({})).await.expect("an answer");
        assert_eq!(declined.text(), "-32601");
    }
    session.close().await;
}

#[tokio::test]
async fn the_python_server_is_understood_over_stdio() {
    the_python_server_is_understood(&stdio(fastmcp(), &["stdio"]), true).await;
}

#[tokio::test]
async fn the_python_server_is_understood_over_http_with_event_streams() {
    let server = HttpServer::fastmcp(free_port()).await;
    the_python_server_is_understood(&at(server.url()), true).await;
}

#[tokio::test]
async fn the_python_server_is_understood_over_http_with_plain_json() {
    let server = HttpServer::fastmcp_json(free_port()).await;
    the_python_server_is_understood(&at(server.url()), false).await;
}

async fn a_call_over_its_limit_is_cancelled_on_the_server(mut config: McpServerConfig) {
    let folder = tempfile::tempdir().expect("a folder");
    config.timeout = Duration::from_millis(500);
    let session = connect(&config).await;

    let log = folder.path().join("limit");
    let error = call(&session, "wait", json!({"seconds": 20, "log": log})).await.expect_err("it takes too long");
    let McpError::TimedOut { what, limit, may_have_run, .. } = &error else { panic!("{error:?}") };
    assert_eq!((what.as_str(), *limit, *may_have_run), ("the tool `wait`", config.timeout, true));
    assert_eq!((error.retry(), error.retry_if_repeatable()), (Retry::Never, Retry::After(None)));
    until("the server knows", || said(&log) == "started\ncancelled\n").await;

    // The node's own deadline counts as well, and a call that is dropped is cancelled just the same.
    let log = folder.path().join("deadline");
    let mut soon = meta();
    soon.deadline = Instant::now() + Duration::from_millis(300);
    let with = arguments(json!({"seconds": 20, "log": log}));
    let error = session.call_tool("wait", &with, soon).await.expect_err("the node's time is up");
    assert!(matches!(error, McpError::TimedOut { limit, .. } if limit <= Duration::from_millis(300)), "{error:?}");
    until("the server knows", || said(&log) == "started\ncancelled\n").await;

    let log = folder.path().join("dropped");
    let with = arguments(json!({"seconds": 20, "log": log}));
    tokio::select! {
        answer = session.call_tool("wait", &with, meta()) => panic!("{answer:?}"),
        () = until("it runs", || said(&log) == "started\n") => {}
    }
    until("the server knows", || said(&log) == "started\ncancelled\n").await;

    assert_eq!(call(&session, "add", json!({"a": 1, "b": 1})).await.expect("the session lives").text(), "2");
    session.close().await;
}

#[tokio::test]
async fn a_call_over_its_limit_is_cancelled_over_stdio() {
    a_call_over_its_limit_is_cancelled_on_the_server(stdio(fastmcp(), &["stdio"])).await;
}

#[tokio::test]
async fn a_call_over_its_limit_is_cancelled_over_http() {
    let server = HttpServer::fastmcp(free_port()).await;
    a_call_over_its_limit_is_cancelled_on_the_server(at(server.url())).await;
}

async fn a_server_that_dies_in_a_call_leaves_its_outcome_open(session: Session) -> Session {
    let error = call(&session, "crash", json!({})).await.expect_err("the server is gone");
    assert!(matches!(error, McpError::Closed { may_have_run: true, .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Never);
    let failure = Failure::from(error);
    assert_eq!((failure.category, &*failure.code), (Category::Permanent, "mcp_connection_closed"));
    session
}

#[tokio::test]
async fn a_child_that_dies_in_a_call_leaves_its_outcome_open_and_ends_the_session() {
    let session = connect(&stdio(fastmcp(), &["stdio"])).await;
    let session = a_server_that_dies_in_a_call_leaves_its_outcome_open(session).await;
    tokio::time::timeout(PATIENCE, session.closed()).await.expect("the session notices");
    let error = call(&session, "add", json!({"a": 1, "b": 1})).await.expect_err("nobody is there");
    assert!(matches!(&error, McpError::Closed { may_have_run: false, cause, .. } if cause.contains("3")), "{error:?}");
    assert_eq!(error.retry(), Retry::After(None));
}

#[tokio::test]
async fn an_http_server_that_dies_in_a_call_leaves_its_outcome_open_and_is_then_unreachable() {
    let mut server = HttpServer::fastmcp(free_port()).await;
    let session = connect(&at(server.url())).await;
    let session = a_server_that_dies_in_a_call_leaves_its_outcome_open(session).await;
    server.kill();
    let error = call(&session, "add", json!({"a": 1, "b": 1})).await.expect_err("nobody is there");
    assert!(matches!(error, McpError::Connect { .. }), "{error:?}");
    assert_eq!((error.may_have_run(), error.retry()), (false, Retry::After(None)));
}

async fn a_restarted_server_does_not_know_the_session(
    start: impl AsyncFn(u16) -> HttpServer,
    tool: &str,
    with: serde_json::Value,
) {
    let port = free_port();
    let mut server = start(port).await;
    let session = connect(&at(server.url())).await;
    call(&session, tool, with.clone()).await.expect("it works");
    server.kill();
    let server = start(port).await;
    let error = call(&session, tool, with.clone()).await.expect_err("the session is gone");
    assert!(matches!(error, McpError::SessionLost { may_have_run: false, .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::After(None));
    assert!(session.is_closed());
    let session = connect(&at(server.url())).await;
    call(&session, tool, with).await.expect("a new session works");
}

#[tokio::test]
async fn a_restarted_reference_server_does_not_know_the_session() {
    a_restarted_server_does_not_know_the_session(HttpServer::everything, "echo", json!({"message": "x"})).await;
}

#[tokio::test]
async fn a_restarted_python_server_does_not_know_the_session() {
    a_restarted_server_does_not_know_the_session(HttpServer::fastmcp, "add", json!({"a": 1, "b": 2})).await;
}

async fn fifty_calls_run_side_by_side(config: &McpServerConfig) {
    let session = connect(config).await;
    let slow = call(&session, "trigger-long-running-operation", json!({"duration": 2, "steps": 1}));
    let quick = async {
        let calls = (0..50).map(|number| {
            let session = &session;
            async move { call(session, "get-sum", json!({"a": number, "b": 1000})).await.expect("a sum").text() }
        });
        let sums = join_all(calls).await;
        for (number, sum) in sums.iter().enumerate() {
            assert!(sum.contains(&(number + 1000).to_string()), "{sum} answers {number}");
        }
        Instant::now()
    };
    let started = Instant::now();
    let (slow, all_quick) = tokio::join!(slow, quick);
    slow.expect("it ends");
    assert!(all_quick - started < Duration::from_millis(1900), "nobody waits for the slow call");
    session.close().await;
}

#[tokio::test]
async fn fifty_calls_run_side_by_side_over_stdio() {
    fifty_calls_run_side_by_side(&stdio(everything(), &["stdio"])).await;
}

#[tokio::test]
async fn fifty_calls_run_side_by_side_over_http() {
    let server = HttpServer::everything(free_port()).await;
    fifty_calls_run_side_by_side(&at(server.url())).await;
}

#[tokio::test]
async fn nobody_at_the_address_is_a_retriable_failure() {
    let error = refusal(&at(format!("http://127.0.0.1:{}/mcp", free_port()))).await;
    assert!(matches!(error, McpError::Connect { .. }), "{error:?}");
    assert_eq!(Failure::from(error).category, Category::Retriable);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_matter_of_configuration() {
    let error = refusal(&stdio(vec![String::from("no-such-program-anywhere")], &[])).await;
    assert!(matches!(error, McpError::Spawn { .. }), "{error:?}");
    let failure = Failure::from(error);
    assert_eq!(failure.category, Category::Configuration);
    assert!(failure.message.contains("no-such-program-anywhere"), "{}", failure.message);
    let error = refusal(&McpServerConfig::default()).await;
    assert!(matches!(error, McpError::Misconfigured { .. }), "{error:?}");
}
