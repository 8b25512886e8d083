//! The MCP client against a server by the official Rust SDK (`examples/rmcp_server.rs`), in both eras and on both
//! transports.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::{
    AnswerInput, Begun, CallMeta, Endpoint, Era, Look, McpError, Question, Reply, Session,
};
use da_node_executor::config::McpServerConfig;
use da_node_executor::domain::task::Task;
use da_node_executor::domain::tool::{Progress, ToolOutput};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
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
    let all = ["add", "fail", "refuse", "count", "wait", "show", "meta", "change", "build"];
    assert_eq!(names, all, "all pages, in order");
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

/// Says that it is for Ann.
struct Ann;

impl AnswerInput for Ann {
    fn capabilities(&self) -> Value {
        json!({"elicitation": {"form": {}}})
    }

    fn answer<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<Reply>> {
        // Behind the name of the task, for another one may ask by the same name.
        let named = question.key.as_deref().is_some_and(|key| key.ends_with(" whom"));
        async move { named.then(|| Reply::Accept(Map::from_iter([(String::from("whom"), json!("Ann"))]))) }.boxed()
    }
}

/// A call that has to become a task.
async fn begun(session: &Session, with: Value) -> Task {
    match session.begin_call("build", &arguments(with), meta()).await.expect("it is taken on") {
        Begun::Task { id, pace } => Task::new(id, pace, Timestamp::now()),
        Begun::Done(output) => panic!("it is no task: {output:?}"),
    }
}

/// The end of a task, and what was said of it on the way.
async fn followed(session: &Session, task: &mut Task) -> (Result<ToolOutput, McpError>, Vec<String>) {
    let (mut told, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        assert!(Instant::now() < deadline, "it does not end");
        match session.look("build", task, meta()).await.expect("a look") {
            Look::GoesOn { message, answered, .. } => {
                told.extend(message);
                task.answered.extend(answered);
            }
            Look::Ended(ended) => return (ended, told),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_task_of_the_rust_sdk_is_followed(config: &McpServerConfig) {
    let endpoint = Endpoint::new("under-test", config.clone()).answered(std::sync::Arc::new(Ann));
    let session = endpoint.connect().await.expect("a session");
    // Who cannot follow a task gets none.
    assert_eq!(call(&session, "build", json!({"ms": 1})).await.expect("an answer").text(), "built at once");

    let mut task =
        begun(&session, json!({"name": "a house", "ms": 200, "poll_ms": 50, "ttl_ms": 60_000, "asks": true})).await;
    assert_eq!((task.poll_ms, task.ttl_ms), (Some(50), Some(60_000)));
    let (ended, told) = followed(&session, &mut task).await;
    assert_eq!(task.answered, ["whom"], "once");
    let text = ended.expect("it is built").text();
    assert!(text.starts_with("built a house") && text.contains("Ann"), "{text}");
    assert!(told.contains(&String::from("laying bricks")), "{told:?}");

    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let mut task = begun(&session, json!({"name": "a tower", "ms": 60_000, "log": log})).await;
    session.give_up(&task.id, PATIENCE).await.expect("it is told");
    let (ended, _) = followed(&session, &mut task).await;
    assert!(matches!(ended, Err(McpError::TaskCancelled { .. })), "{ended:?}");
    until("it stops", || said(&log).ends_with("cancelled a tower\n")).await;

    let unknown = Task { id: String::from("no such ☃ task"), ..task };
    let lost = session.look("build", &unknown, meta()).await;
    assert!(matches!(lost, Err(McpError::TaskLost { .. })), "{lost:?}");
    session.close().await;
}

#[tokio::test]
async fn a_task_of_the_rust_sdk_is_followed_over_stdio() {
    a_task_of_the_rust_sdk_is_followed(&stdio(vec![program()], &["stdio"])).await;
}

#[tokio::test]
async fn a_task_of_the_rust_sdk_is_followed_over_http() {
    for with in [&[][..], &["--json"]] {
        let server = Http::start(with);
        a_task_of_the_rust_sdk_is_followed(&at(&server.url)).await;
    }
}

#[tokio::test]
async fn a_server_of_the_era_of_sessions_answers_at_once() {
    let session = connect(&stdio(vec![program()], &["stdio", "--legacy"])).await;
    let answer = session.begin_call("build", &arguments(json!({})), meta()).await.expect("an answer");
    assert!(matches!(answer, Begun::Done(_)), "{answer:?}");
}
