//! How one server is looked after and listed, against a mock that counts what it is asked.

mod calls;
mod freshness;
mod told;

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wiremock::{Mock, MockServer, Request, ResponseTemplate, matchers};

use super::Server;
use crate::config::McpServerConfig;
use crate::domain::ids::{EntryId, GraphId, NodeId, RunId, WorkId};
use crate::domain::tool::ToolTarget;
use crate::domain::tool_server::ServerState;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::ports::{CallContext, ToolCall};
use crate::tools::approval::Approval;

/// The most that anything in a test may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Holds a paused clock where it is while something real goes on: beside a blocking task the clock does not run ahead
/// by itself. After [`PATIENCE`] it does, so that what hangs runs into its own limits.
struct Still {
    _end: mpsc::Sender<()>,
}

impl Still {
    fn hold() -> Self {
        let (end, ended) = mpsc::channel();
        tokio::task::spawn_blocking(move || ended.recv_timeout(PATIENCE));
        Self { _end: end }
    }
}

/// A server of the legacy era with one tool.
async fn mock() -> MockServer {
    let server = MockServer::start().await;
    let respond = |request: &Request| {
        let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let result = match message["method"].as_str() {
            Some("initialize") => {
                json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {}})
            }
            Some("tools/list") => {
                let output = json!({"type": "object", "required": ["a"]});
                json!({"tools": [{"name": "t", "inputSchema": {"type": "object"}, "outputSchema": output}]})
            }
            Some("ping") => json!({}),
            Some(notification) if notification.starts_with("notifications/") => return ResponseTemplate::new(202),
            _ => return ResponseTemplate::new(405),
        };
        ResponseTemplate::new(200).set_body_json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
    };
    Mock::given(matchers::any()).respond_with(respond).mount(&server).await;
    server
}

/// A server of the modern era with a list of tools that is whatever stands there now.
async fn modern(page: Value) -> (MockServer, Arc<Mutex<Value>>) {
    let (server, page) = (MockServer::start().await, Arc::new(Mutex::new(page)));
    let now = Arc::clone(&page);
    let respond = move |request: &Request| {
        let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut result = match message["method"].as_str() {
            Some("server/discover") => json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}),
            Some("tools/list") => now.lock().expect("nobody panics with it").clone(),
            Some("tools/call") => json!({"content": [{"type": "text", "text": "done"}]}),
            _ => return ResponseTemplate::new(405),
        };
        result["resultType"] = json!("complete");
        ResponseTemplate::new(200).set_body_json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
    };
    Mock::given(matchers::any()).respond_with(respond).mount(&server).await;
    (server, page)
}

fn server_at(mock: &MockServer, config: McpServerConfig, approval: Approval) -> Arc<Server> {
    server_of(McpServerConfig { url: Some(mock.uri()), ..config }, approval)
}

fn server_of(config: McpServerConfig, approval: Approval) -> Arc<Server> {
    let (health, metrics) = (Arc::new(Health::new(Duration::from_secs(1))), Arc::new(Metrics::new("w")));
    Server::new("s", config, approval, health, metrics, CancellationToken::new())
}

fn no_lock() -> Approval {
    Approval::new("s", None).expect("nothing to read")
}

fn required(mock: &MockServer) -> Arc<Server> {
    let connect_timeout = Duration::from_secs(10);
    server_at(mock, McpServerConfig { required: true, connect_timeout, ..McpServerConfig::default() }, no_lock())
}

/// A call of a tool without arguments.
fn call(tool: &str) -> ToolCall {
    let context = CallContext {
        graph_id: GraphId::new("g").expect("valid"),
        node_id: NodeId::new("n").expect("valid"),
        run_id: RunId::new("r").expect("valid"),
        work_id: WorkId::new("executor.work", &EntryId::new("1-0")),
        traceparent: None,
        idempotency_key: String::from("key-1"),
        deadline: Instant::now() + PATIENCE,
    };
    let target = ToolTarget { server: Some(String::from("s")), name: tool.to_owned() };
    ToolCall { target, arguments: Arc::default(), context, progress: None, questions: None }
}

/// How often the server was asked for something.
async fn asked(server: &MockServer, method: &str) -> usize {
    let requests = server.received_requests().await.expect("they are kept");
    let messages = requests.iter().filter_map(|request| serde_json::from_slice::<Value>(&request.body).ok());
    messages.filter(|message| message["method"] == method).count()
}

#[tokio::test]
async fn a_required_server_is_asked_for_a_sign_of_life_and_not_for_its_tools() {
    let mock = mock().await;
    let server = required(&mock);
    for _ in 0..5 {
        server.look_after().await;
    }
    assert_eq!((asked(&mock, "tools/list").await, asked(&mock, "ping").await), (1, 4));
    assert_eq!(server.status().state, ServerState::Up);
    assert!(server.status().latency_ms.is_some());

    mock.reset().await;
    server.look_after().await;
    let status = server.status();
    assert_eq!(status.state, ServerState::Down);
    assert_eq!(status.last_error.expect("it is told").code, "mcp_http_error");
}

#[tokio::test]
async fn nodes_and_the_look_after_a_server_share_one_list() {
    let mock = mock().await;
    let server = required(&mock);
    server.look_after().await;
    server.outdate().expect("nothing is pinned");
    let (listed, (), ()) = tokio::join!(server.discover(), server.look_after(), server.look_after());
    assert_eq!(listed.expect("a list").len(), 1);
    assert_eq!(asked(&mock, "tools/list").await, 2, "one at the start, one for all of them");
}

#[tokio::test]
async fn a_schema_that_stays_the_same_is_compiled_once() {
    let mock = mock().await;
    let server = required(&mock);
    let schema = || server.fact("t", |facts| facts.output_schema.clone()).flatten().expect("it has one");
    let listed = server.discover().await.expect("a list");
    let before = schema();
    assert!(before.problem_of(&json!({})).is_some() && before.problem_of(&json!({"a": 1})).is_none());
    server.outdate().expect("nothing is pinned");
    let again = server.discover().await.expect("a list");
    assert!(Arc::ptr_eq(&before, &schema()));
    assert!(!Arc::ptr_eq(&listed, &again), "it was read again");
    assert!(Arc::ptr_eq(&listed[0].input_schema, &again[0].input_schema), "known by its place, as before");
}

/// How long a server is waited for that hangs.
const HANGS: Duration = Duration::from_secs(4);

/// A server that takes every question, or every one of a kind, and says nothing.
async fn hanging(mock: MockServer, question: Option<&str>) -> (MockServer, Arc<Server>) {
    let silence = ResponseTemplate::new(200).set_delay(Duration::from_secs(600));
    let asked = json!(question.map_or_else(|| json!({}), |method| json!({"method": method})));
    Mock::given(matchers::body_partial_json(asked)).respond_with(silence).with_priority(1).mount(&mock).await;
    let server = server_at(&mock, McpServerConfig { connect_timeout: HANGS, ..McpServerConfig::default() }, no_lock());
    (mock, server)
}

#[tokio::test]
async fn a_server_that_hangs_keeps_nobody_waiting_who_does_not_name_it() {
    let (mock, server) = hanging(MockServer::start().await, None).await;
    let began = Instant::now();
    let first = server.offer(false).await.expect_err("nothing was ever heard of it");
    assert_eq!(first.code, "mcp_timeout");
    assert!(began.elapsed() > HANGS * 9 / 10, "it gets its time once: {:?}", began.elapsed());
    let asked = mock.received_requests().await.expect("they are kept").len();

    let deadline = Instant::now() + Duration::from_secs(30);
    let mut longest = Duration::ZERO;
    while mock.received_requests().await.expect("they are kept").len() == asked {
        assert!(Instant::now() < deadline, "nobody tries again");
        let began = Instant::now();
        assert_eq!(server.offer(false).await.expect_err("still nothing").code, "mcp_timeout");
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(longest < HANGS * 2 / 3, "who does not name it waits for a second: {longest:?}");
    let began = Instant::now();
    server.offer(false).await.expect_err("still nothing");
    server.offer(false).await.expect_err("still nothing");
    assert!(began.elapsed() < HANGS / 3, "and not for the rest of it: {:?}", began.elapsed());
}

#[tokio::test]
async fn who_waits_for_a_list_that_fails_shares_the_failure() {
    let (mock, server) = hanging(mock().await, Some("tools/list")).await;
    let began = Instant::now();
    let all = (0..5).map(|_| server.discover());
    for listed in futures_util::future::join_all(all).await {
        assert_eq!(listed.expect_err("no list").code, "mcp_timeout");
    }
    assert!(began.elapsed() < HANGS * 2, "one attempt for all of them: {:?}", began.elapsed());
    assert_eq!(asked(&mock, "tools/list").await, 1);
}
