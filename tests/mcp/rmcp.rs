//! The MCP client against a server by the official Rust SDK (`examples/rmcp_server.rs`), in both eras and on both
//! transports.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::{CallMeta, Era, McpError};
use da_node_executor::config::McpServerConfig;
use da_node_executor::domain::tool::Progress;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;
use tokio::sync::watch;

use crate::example::example;
use crate::harness::*;

fn program() -> String {
    example("rmcp_server").into_os_string().into_string().expect("the path is UTF-8")
}

/// The server over HTTP, killed when this is dropped.
struct Http {
    child: Child,
    url: String,
}

impl Http {
    fn start(with: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.arg("http").args(with).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the server starts");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("the pipe was asked for");
        BufReader::new(stdout).read_line(&mut url).expect("the server tells its address");
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a way to the server leaves out.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    /// A server that keeps no sessions cannot be told anything, and tells nothing on its own.
    Sessions,
}

async fn the_server_of_the_rust_sdk_is_understood(config: &McpServerConfig, era: Era, without: Without) {
    let session = connect(config).await;
    let version = match era {
        Era::Legacy => "2025-11-25",
        Era::Modern => "2026-07-28",
    };
    let info = session.info();
    assert_eq!((info.era, &*info.protocol_version, &*info.name), (era, version, "rmcp-under-test"));
    assert_eq!(info.instructions.as_deref(), Some("Add numbers."));

    let tools = session.list_tools().await.expect("the tools").tools;
    let names: Vec<&str> = tools.iter().map(|tool| &*tool.name).collect();
    assert_eq!(names, ["add", "fail", "refuse", "count", "wait", "show", "meta", "change"], "all pages, in order");
    assert!(tools[0].hints.read_only && tools[0].hints.idempotent && tools[0].output_schema.is_some());
    assert_eq!((tools[0].title.as_deref(), &tools[0].input_schema["required"]), (Some("Adds"), &json!(["a", "b"])));

    let with = arguments(json!({}));
    let size = std::mem::size_of_val(&session.call_tool("add", &with, meta()));
    assert!(size < 4096, "a thousand calls may be under way, and one has {size} bytes");
    let sum = call(&session, "add", json!({"a": 2, "b": 3})).await.expect("a sum");
    assert_eq!((sum.structured, sum.is_error), (Some(json!({"sum": 5})), false));
    let failed = call(&session, "fail", json!({})).await.expect("an answer");
    assert_eq!((failed.is_error, failed.text().as_str()), (true, "out of cheese"));
    for refused in ["refuse", "no-such-tool"] {
        let error = call(&session, refused, json!({})).await.expect_err("an error of the protocol");
        assert!(matches!(error, McpError::Rpc { code: -32602, .. }), "{error:?}");
    }
    let shown = call(&session, "show", json!({})).await.expect("content").content;
    let expected = [
        json!({"type": "text", "text": "größe ☃"}),
        json!({"type": "image", "data": "iVBORw0KGgo=", "mimeType": "image/png"}),
        json!({"type": "audio", "data": "UklGRg==", "mimeType": "audio/wav"}),
    ];
    assert_eq!(shown, expected, "every block as it was sent");
    let seen = call(&session, "meta", json!({})).await.expect("the meta").into_value();
    assert_eq!(seen["da-node-executor/idempotencyKey"], "r-1/0/1/0");
    assert_eq!(seen["traceparent"], meta().traceparent.expect("one is set"));

    // Silent for longer than it may be in all, and never for longer than it may be at once.
    let (progress, mut told) = watch::channel(None);
    let patient = CallMeta { timeout: Some(Duration::from_millis(1500)), progress: Some(progress), ..meta() };
    let started = Instant::now();
    let counted = session.call_tool("count", &arguments(json!({"steps": 5, "pause_ms": 400})), patient).await;
    assert_eq!(counted.expect("progress keeps it alive").text(), "counted");
    assert!(started.elapsed() >= Duration::from_millis(1900));
    let last = told.borrow_and_update().clone().expect("it told how far it was");
    assert_eq!(last, Progress { progress: 5.0, total: Some(5.0), message: Some(String::from("step 5")) });
    let impatient = CallMeta { timeout: Some(Duration::from_millis(300)), ..meta() };
    let silent = session.call_tool("count", &arguments(json!({"steps": 1, "pause_ms": 3000})), impatient).await;
    assert!(matches!(silent, Err(McpError::TimedOut { may_have_run: true, .. })), "{silent:?}");

    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let with = arguments(json!({"log": log}));
    tokio::select! {
        answer = session.call_tool("wait", &with, meta()) => panic!("{answer:?}"),
        () = until("it runs", || said(&log) == "started\n") => {}
    }
    if era == Era::Modern || without == Without::Nothing {
        until("the server knows that nobody waits", || said(&log) == "started\ncancelled\n").await;
    }

    if without == Without::Nothing {
        let before = session.tools_changed();
        let deadline = Instant::now() + PATIENCE;
        // Told before our ear for it is open, a change is lost: it is told again.
        while session.tools_changed() == before {
            assert!(Instant::now() < deadline, "nobody told us");
            call(&session, "change", json!({})).await.expect("it tells");
        }
    }

    let many = (0..50).map(|n| call(&session, "add", json!({"a": n, "b": 1})).map(move |sum| (n, sum)));
    for (n, sum) in join_all(many).await {
        assert_eq!(sum.expect("a sum").structured, Some(json!({"sum": n + 1})), "each call has its own answer");
    }
    session.close().await;
    assert!(session.is_closed());
}

#[tokio::test]
async fn the_server_of_the_rust_sdk_is_spoken_to_in_the_modern_era_over_stdio() {
    let config = stdio(vec![program()], &["stdio"]);
    the_server_of_the_rust_sdk_is_understood(&config, Era::Modern, Without::Nothing).await;
}

#[tokio::test]
async fn the_server_of_the_rust_sdk_is_spoken_to_in_the_legacy_era_over_stdio() {
    let config = stdio(vec![program()], &["stdio", "--legacy"]);
    the_server_of_the_rust_sdk_is_understood(&config, Era::Legacy, Without::Nothing).await;
}

#[tokio::test]
async fn the_server_of_the_rust_sdk_is_spoken_to_in_the_modern_era_over_http() {
    let server = Http::start(&[]);
    the_server_of_the_rust_sdk_is_understood(&at(&server.url), Era::Modern, Without::Nothing).await;
}

#[tokio::test]
async fn the_server_of_the_rust_sdk_is_spoken_to_in_the_legacy_era_over_http() {
    let server = Http::start(&["--legacy"]);
    the_server_of_the_rust_sdk_is_understood(&at(&server.url), Era::Legacy, Without::Nothing).await;
}

#[tokio::test]
async fn the_server_of_the_rust_sdk_is_spoken_to_in_the_modern_era_with_plain_json() {
    let server = Http::start(&["--json"]);
    the_server_of_the_rust_sdk_is_understood(&at(&server.url), Era::Modern, Without::Nothing).await;
}

#[tokio::test]
async fn the_server_of_the_rust_sdk_is_spoken_to_in_the_legacy_era_with_plain_json_and_no_session() {
    let server = Http::start(&["--json", "--legacy"]);
    the_server_of_the_rust_sdk_is_understood(&at(&server.url), Era::Legacy, Without::Sessions).await;
}
