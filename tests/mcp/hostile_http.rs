//! Servers over HTTP that are odd or break the protocol, as answers of a mock.

use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::McpError;
use da_node_executor::domain::outcome::Failure;
use da_node_executor::retry::Retry;
use serde_json::{Value, json};
use wiremock::matchers::{body_partial_json, header, header_exists, method};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::harness::*;
use crate::raw_server::{Deed, raw};

fn result(request: &Request, result: Value) -> Value {
    let body: Value = serde_json::from_slice(&request.body).expect("requests are JSON");
    json!({"jsonrpc": "2.0", "id": body["id"], "result": result})
}

fn events(text: String) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw(text, "text/event-stream; charset=utf-8")
}

fn asks(what: &str) -> wiremock::matchers::BodyPartialJsonMatcher {
    body_partial_json(json!({"method": what}))
}

/// A server that opens sessions; what it answers to calls is the test's.
async fn server() -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(asks("initialize"))
        .respond_with(|request: &Request| {
            let opened = json!({
                "protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "mock", "version": "1"}
            });
            ResponseTemplate::new(200).insert_header("mcp-session-id", "s-1").set_body_json(result(request, opened))
        })
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .and(asks("notifications/initialized"))
        .and(header("mcp-session-id", "s-1"))
        .and(header("mcp-protocol-version", "2025-06-18"))
        .respond_with(ResponseTemplate::new(202))
        .mount(&server)
        .await;
    server
}

async fn on_call(server: &MockServer, respond: impl wiremock::Respond + 'static) {
    Mock::given(method("POST")).and(asks("tools/call")).respond_with(respond).mount(server).await;
}

async fn answer_of(server: &MockServer) -> Result<da_node_executor::domain::tool::ToolOutput, McpError> {
    let session = connect(&at(server.uri())).await;
    call(&session, "x", json!({})).await
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_taken_up_after_the_wait_that_was_asked_for() {
    let server = server().await;
    on_call(&server, events(String::from("id: e-1\nretry: 300\ndata:\n\n"))).await;
    Mock::given(method("GET"))
        .and(header("last-event-id", "e-1"))
        .and(header("mcp-session-id", "s-1"))
        .and(header("accept", "text/event-stream"))
        .respond_with(events(String::from("id: e-2\nretry: 20\ndata: {\"method\":\"notifications/x\"}\n\n")))
        .expect(1)
        .mount(&server)
        .await;
    // After the question for the era and the opening, the call is the third request.
    let answer = r#"{"jsonrpc":"2.0","id":3,"result":{"content":[{"type":"text","text":"late"}]}}"#;
    Mock::given(method("GET"))
        .and(header("last-event-id", "e-2"))
        .respond_with(events(format!("id: e-3\ndata: {answer}\n\n")))
        .expect(1)
        .mount(&server)
        .await;
    let started = Instant::now();
    assert_eq!(answer_of(&server).await.expect("an answer").text(), "late");
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_stream_that_never_brings_the_answer_ends_in_an_error() {
    let server = server().await;
    on_call(&server, events(String::from("id: e-1\nretry: 1\ndata:\n\n"))).await;
    Mock::given(method("GET")).respond_with(events(String::new())).mount(&server).await;
    let error = answer_of(&server).await.expect_err("no answer");
    assert!(matches!(error, McpError::Closed { may_have_run: true, .. }), "{error:?}");

    let server = self::server().await;
    on_call(&server, events(String::from("data: {\"method\":\"notifications/x\"}\n\n"))).await;
    let error = answer_of(&server).await.expect_err("no answer, and no id to come back for");
    assert!(matches!(error, McpError::Closed { may_have_run: true, .. }), "{error:?}");
}

#[tokio::test]
async fn a_session_that_is_lost_in_the_middle_of_a_call_leaves_its_outcome_open() {
    let server = server().await;
    on_call(&server, events(String::from("id: e-1\nretry: 1\ndata:\n\n"))).await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(404)).mount(&server).await;
    let error = answer_of(&server).await.expect_err("no answer");
    assert!(matches!(error, McpError::SessionLost { may_have_run: true, .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Never);
}

#[tokio::test]
async fn a_refusal_says_whether_the_tool_may_have_run_and_when_to_come_back() {
    for (status, may_have_run, retry) in [
        (400, false, Retry::Never),
        (401, false, Retry::Never),
        (408, false, Retry::After(None)),
        (429, false, Retry::After(Some(Duration::from_secs(7)))),
        (500, true, Retry::Never),
        (502, true, Retry::Never),
        (503, false, Retry::After(Some(Duration::from_secs(7)))),
    ] {
        let server = server().await;
        let mut refusal = ResponseTemplate::new(status).set_body_string("<html>secret</html>");
        if matches!(status, 429 | 503) {
            refusal = refusal.insert_header("retry-after", "7");
        }
        on_call(&server, refusal).await;
        let error = answer_of(&server).await.expect_err("it is refused");
        assert!(matches!(error, McpError::Http { status: said, .. } if said == status), "{status}: {error:?}");
        assert_eq!((error.may_have_run(), error.retry()), (may_have_run, retry), "{status}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_session_id_is_taken_from_a_granted_opening_alone() {
    let server = MockServer::start().await;
    let refusal = json!({"jsonrpc": "2.0", "id": "server-error", "error": {"code": -32600, "message": "go away"}});
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(400).insert_header("mcp-session-id", "trap").set_body_json(refusal))
        .mount(&server)
        .await;
    let error = refusal_of(&server).await;
    assert!(matches!(&error, McpError::Rpc { code: -32600, message, .. } if message == "go away"), "{error:?}");
    Mock::given(header_exists("mcp-session-id"))
        .respond_with(ResponseTemplate::new(200))
        .expect(0)
        .mount(&server)
        .await;
}

async fn refusal_of(server: &MockServer) -> McpError {
    refusal(&at(server.uri())).await
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_same_origin_alone_and_only_if_it_keeps_the_body() {
    let elsewhere = MockServer::start().await;
    Mock::given(wiremock::matchers::any()).respond_with(ResponseTemplate::new(200)).expect(0).mount(&elsewhere).await;
    let server = MockServer::start().await;
    let away = ResponseTemplate::new(307).insert_header("location", format!("{}/mcp", elsewhere.uri()));
    Mock::given(method("POST")).respond_with(away).mount(&server).await;
    let mut config = at(server.uri());
    config.headers.insert(String::from("authorization"), String::from("Bearer s3cret").into());
    let error = refusal(&config).await;
    assert!(matches!(error, McpError::Http { status: 307, .. }), "{error:?}");
    assert!(error.to_string().contains("redirects"), "{error}");

    // As FastMCP under another framework does it: from `/mcp` to `/mcp/`.
    let server = self::server().await;
    on_call(&server, |request: &Request| {
        ResponseTemplate::new(200).set_body_json(result(request, json!({"content": []})))
    })
    .await;
    Mock::given(wiremock::matchers::path("/mcp"))
        .respond_with(ResponseTemplate::new(307).insert_header("location", "/mcp/"))
        .with_priority(1)
        .mount(&server)
        .await;
    let session = connect(&at(format!("{}/mcp", server.uri()))).await;
    call(&session, "x", json!({})).await.expect("the redirect is followed");
}

#[tokio::test]
async fn what_is_no_answer_is_named() {
    for (body, kind) in [
        ("<html></html>", "text/html"),
        ("hello", "application/json"),
        (r#"{"jsonrpc":"2.0","id":99,"result":{}}"#, "application/json"),
        ("", ""),
    ] {
        let server = server().await;
        on_call(&server, ResponseTemplate::new(200).set_body_raw(body, kind)).await;
        let error = answer_of(&server).await.expect_err("no answer");
        assert!(matches!(error, McpError::Protocol { .. }), "{body}: {error:?}");
    }
}

#[tokio::test]
async fn a_huge_answer_is_refused() {
    let huge = vec![b' '; 33 * 1024 * 1024];
    let json = ResponseTemplate::new(200).set_body_raw(huge.clone(), "application/json");
    let stream = ResponseTemplate::new(200).set_body_raw([b"data:".as_slice(), &huge].concat(), "text/event-stream");
    for answer in [json, stream] {
        let server = server().await;
        on_call(&server, answer).await;
        let error = answer_of(&server).await.expect_err("33 MiB are too much");
        assert!(matches!(error, McpError::TooLarge { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_error_without_our_id_on_our_stream_is_ours() {
    let server = server().await;
    let fault = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32602,"message":"no\nsuch thing"}}"#;
    on_call(&server, events(format!("data: {{\"id\":77,\"result\":{{}}}}\n\ndata: {fault}\n\n"))).await;
    let error = answer_of(&server).await.expect_err("an error");
    assert!(matches!(&error, McpError::Rpc { code: -32602, message, .. } if message == "no such thing"), "{error:?}");
    assert!(!error.may_have_run());
}

#[tokio::test]
async fn closing_tells_the_server_that_the_session_ends() {
    let server = server().await;
    Mock::given(method("DELETE"))
        .and(header("mcp-session-id", "s-1"))
        .respond_with(ResponseTemplate::new(405))
        .expect(1)
        .mount(&server)
        .await;
    let session = connect(&at(server.uri())).await;
    session.close().await;
    session.close().await;
    assert!(session.is_closed());
}

#[tokio::test]
async fn configured_headers_go_along_and_are_never_in_an_error() {
    let server = server().await;
    Mock::given(asks("tools/call"))
        .and(header("authorization", "Bearer s3cret"))
        .respond_with(ResponseTemplate::new(403))
        .expect(1)
        .with_priority(1)
        .mount(&server)
        .await;
    let mut config = at(server.uri());
    config.headers.insert(String::from("Authorization"), String::from("Bearer s3cret").into());
    let session = connect(&config).await;
    let error = call(&session, "x", json!({})).await.expect_err("forbidden");
    assert!(!format!("{error} {error:?}").contains("s3cret"));
    config.headers.insert(String::from("x-bad"), String::from("s3cret\n").into());
    let error = refusal(&config).await;
    assert!(matches!(error, McpError::Misconfigured { .. }) && !error.to_string().contains("s3cret"), "{error:?}");
}

#[tokio::test]
async fn what_stands_in_the_address_behind_the_path_is_in_no_error() {
    let refusing = MockServer::start().await;
    Mock::given(wiremock::matchers::any()).respond_with(ResponseTemplate::new(401)).mount(&refusing).await;
    for (url, code) in [
        (format!("http://127.0.0.1:{}/mcp", free_port()), "mcp_unreachable"),
        (String::from("http://no-such-host.invalid/mcp"), "mcp_unreachable"),
        (format!("https://127.0.0.1:{}/mcp", refusing.address().port()), "mcp_unreachable"),
        (raw("server/discover", Deed::Cut).await, "mcp_connection_closed"),
        (raw("server/discover", Deed::Redirect).await, "mcp_http_error"),
        (refusing.uri(), "mcp_unauthorized"),
    ] {
        let mut config = at(format!("{url}?key=s3cret"));
        config.connect_timeout = Duration::from_secs(5);
        let error = refusal(&config).await;
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        assert_eq!(Failure::from(error).code, code, "{url}");
    }
}

#[tokio::test]
async fn a_server_that_wants_to_know_who_calls_leads_to_the_setting_for_that() {
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(401)).mount(&server).await;
    let setting = "set `mcp.servers.under-test.auth`, see \"Authentication to MCP servers\" in docs/tools.md";
    let error = refusal_of(&server).await.to_string();
    assert!(error.contains("wants to know who calls") && error.contains(setting), "{error}");

    let mut config = at(server.uri());
    config.headers.insert(String::from("x-key"), String::from("s3cret").into());
    let error = refusal(&config).await.to_string();
    assert!(error.contains("`mcp.servers.under-test.headers`") && error.contains(setting), "{error}");
    assert!(!error.contains("s3cret"), "{error}");

    // What it says itself is told as well; one that is told who calls has another problem.
    let body = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32001, "message": "no key"}});
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(401).set_body_json(body)).mount(&server).await;
    let error = refusal_of(&server).await.to_string();
    assert!(error.contains("no key; it wants to know who calls"), "{error}");
    let documents = include_str!("../../docs/tools.md");
    assert!(documents.contains("\n## Authentication to MCP servers\n"), "the section that it names");
}
