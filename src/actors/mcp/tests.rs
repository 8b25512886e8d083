//! How one server is looked after and listed, against a mock that counts what it is asked.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use wiremock::{Mock, MockServer, Request, ResponseTemplate, matchers};

use super::Server;
use crate::config::McpServerConfig;
use crate::domain::tool_server::ServerState;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::tools::approval::Approval;

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

fn required(url: String) -> Arc<Server> {
    let config = McpServerConfig {
        url: Some(url),
        required: true,
        connect_timeout: Duration::from_secs(10),
        ..McpServerConfig::default()
    };
    let approval = Approval::new("s", None).expect("nothing to read");
    let (health, metrics) = (Arc::new(Health::new(Duration::from_secs(1))), Arc::new(Metrics::new("w")));
    Server::new("s", config, approval, health, metrics, CancellationToken::new())
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
    let server = required(mock.uri());
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
    let server = required(mock.uri());
    server.look_after().await;
    server.outdate().expect("nothing is pinned");
    let (listed, (), ()) = tokio::join!(server.discover(), server.look_after(), server.look_after());
    assert_eq!(listed.expect("a list").len(), 1);
    assert_eq!(asked(&mock, "tools/list").await, 2, "one at the start, one for all of them");
}

#[tokio::test]
async fn a_schema_that_stays_the_same_is_compiled_once() {
    let mock = mock().await;
    let server = required(mock.uri());
    let schema = || server.fact("t", |facts| facts.output_schema.clone()).flatten().expect("it has one");
    server.discover().await.expect("a list");
    let before = schema();
    assert!(before.problem_of(&json!({})).is_some() && before.problem_of(&json!({"a": 1})).is_none());
    server.outdate().expect("nothing is pinned");
    server.discover().await.expect("a list");
    assert!(Arc::ptr_eq(&before, &schema()));
}
