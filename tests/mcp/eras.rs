//! Both eras of the protocol: how the client finds out which one a server lives in, and what it says in the modern one.

use std::time::Duration;

use da_node_executor::clients::mcp::{Endpoint, Era, McpError};
use da_node_executor::config::McpServerConfig;
use serde_json::{Value, json};
use wiremock::matchers::{any, body_partial_json, header, header_exists, method};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::harness::*;
use crate::streams::Person;

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).expect("requests are JSON")
}

fn answers(result: Value) -> impl Fn(&Request) -> ResponseTemplate {
    move |request: &Request| {
        let answer = json!({"jsonrpc": "2.0", "id": body(request)["id"], "result": result});
        ResponseTemplate::new(200).set_body_json(answer)
    }
}

fn refuses(status: u16, code: i64, data: Value) -> impl Fn(&Request) -> ResponseTemplate {
    move |request: &Request| {
        let error = json!({"code": code, "message": "no", "data": data});
        let answer = json!({"jsonrpc": "2.0", "id": body(request)["id"], "error": error});
        ResponseTemplate::new(status).set_body_json(answer)
    }
}

fn asks(what: &str) -> wiremock::matchers::BodyPartialJsonMatcher {
    body_partial_json(json!({"method": what}))
}

async fn on(server: &MockServer, what: &str, respond: impl wiremock::Respond + 'static) {
    Mock::given(method("POST")).and(asks(what)).respond_with(respond).mount(server).await;
}

/// A server of the modern era that says what it is.
async fn modern() -> MockServer {
    let server = MockServer::start().await;
    let discovered = json!({
        "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "mock", "version": "1"}}, "instructions": "Be kind.",
    });
    on(&server, "server/discover", answers(discovered)).await;
    server
}

/// A server that wants a handshake.
async fn legacy(server: &MockServer) {
    let opened = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "old", "version": "1"}});
    on(server, "initialize", answers(opened)).await;
    on(server, "notifications/initialized", ResponseTemplate::new(202)).await;
    on(server, "tools/list", answers(json!({"tools": []}))).await;
}

async fn the_python_server_of_both_eras_is_spoken_to_in_the_modern_one(config: &McpServerConfig) {
    let session = connect(config).await;
    let info = session.info();
    assert_eq!((info.era, &*info.protocol_version, &*info.name), (Era::Modern, "2026-07-28", "mcpserver-under-test"));
    assert_eq!(info.instructions.as_deref(), Some("Add numbers."));
    let listing = session.list_tools().await.expect("the tools");
    let add = listing.tools.iter().find(|tool| tool.name == "add").expect("it adds");
    assert!(add.hints.read_only && add.output_schema.is_some());
    let sum = call(&session, "add", json!({"a": 2, "b": 3})).await.expect("a sum");
    assert_eq!(sum.structured, Some(json!({"result": 5})));
    let failed = call(&session, "fail", json!({"reason": "out of cheese"})).await.expect("an answer");
    assert!(failed.is_error, "{failed:?}");
    let seen = call(&session, "meta", json!({})).await.expect("the meta").into_value();
    assert_eq!(seen["da-node-executor/idempotencyKey"], "r-1/0/1/0");
    assert_eq!(seen["traceparent"], meta().traceparent.expect("one is set"));
    assert_eq!(seen["io.modelcontextprotocol/protocolVersion"], "2026-07-28");

    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("dropped");
    let with = arguments(json!({"seconds": 20, "log": log}));
    tokio::select! {
        answer = session.call_tool("wait", &with, meta()) => panic!("{answer:?}"),
        () = until("it runs", || said(&log) == "started\n") => {}
    }
    // Answering by plain JSON this SDK does not see that nobody waits any more.
    if !config.args.iter().any(|arg| arg == "json") && config.headers.is_empty() {
        until("the server knows", || said(&log) == "started\ncancelled\n").await;
    }
    assert_eq!(call(&session, "add", json!({"a": 1, "b": 1})).await.expect("the session lives").text(), "2");
    session.close().await;
}

#[tokio::test]
async fn the_python_server_of_both_eras_is_spoken_to_in_the_modern_one_over_stdio() {
    the_python_server_of_both_eras_is_spoken_to_in_the_modern_one(&stdio(mcpserver(), &["stdio"])).await;
}

#[tokio::test]
async fn the_python_server_of_both_eras_is_spoken_to_in_the_modern_one_over_http() {
    let server = HttpServer::mcpserver(free_port()).await;
    the_python_server_of_both_eras_is_spoken_to_in_the_modern_one(&at(server.url())).await;
}

#[tokio::test]
async fn the_python_server_of_both_eras_is_spoken_to_in_the_modern_one_over_http_with_plain_json() {
    let server = HttpServer::mcpserver_json(free_port()).await;
    let mut config = at(server.url());
    config.headers.insert(String::from("x-plain"), String::from("json").into());
    the_python_server_of_both_eras_is_spoken_to_in_the_modern_one(&config).await;
}

#[tokio::test]
async fn a_modern_call_says_everything_in_its_headers_and_its_metadata() {
    let server = modern().await;
    let schema = json!({"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}});
    let broken = json!({"type": "object", "properties": {"a": {"type": "number", "x-mcp-header": "A"}}});
    let tools = json!({"resultType": "complete", "ttlMs": 60000, "tools": [
        {"name": "größe", "inputSchema": schema}, {"name": "broken", "inputSchema": broken},
    ]});
    on(&server, "tools/list", answers(tools)).await;
    Mock::given(method("POST"))
        .and(asks("tools/call"))
        .and(header("mcp-protocol-version", "2026-07-28"))
        .and(header("mcp-method", "tools/call"))
        .and(header("mcp-name", "=?base64?Z3LDtsOfZQ==?="))
        .and(header("mcp-param-region", "eu"))
        .and(body_partial_json(json!({"params": {"_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {},
        }}})))
        .respond_with(answers(json!({"resultType": "complete", "content": [{"type": "text", "text": "done"}]})))
        .expect(1)
        .mount(&server)
        .await;
    Mock::given(header_exists("mcp-session-id"))
        .respond_with(ResponseTemplate::new(500))
        .expect(0)
        .mount(&server)
        .await;
    let session = connect(&at(server.uri())).await;
    assert_eq!(session.info().instructions.as_deref(), Some("Be kind."));
    let listing = session.list_tools().await.expect("the tools");
    assert_eq!(listing.tools.iter().map(|tool| &*tool.name).collect::<Vec<_>>(), ["größe"]);
    assert_eq!(listing.fresh_for, Some(Duration::from_secs(60)));
    assert_eq!(call(&session, "größe", json!({"region": "eu"})).await.expect("an answer").text(), "done");
    session.close().await;
}

#[tokio::test]
async fn headers_that_do_not_fit_are_looked_up_and_the_call_is_made_again() {
    let server = modern().await;
    let schema = json!({"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}});
    on(
        &server,
        "tools/list",
        answers(json!({"resultType": "complete", "tools": [{"name": "x", "inputSchema": schema}]})),
    )
    .await;
    Mock::given(asks("tools/call"))
        .and(header("mcp-param-region", "eu"))
        .respond_with(answers(json!({"resultType": "complete", "content": []})))
        .with_priority(1)
        .expect(1)
        .mount(&server)
        .await;
    Mock::given(asks("tools/call")).respond_with(refuses(400, -32020, Value::Null)).expect(1).mount(&server).await;
    let session = connect(&at(server.uri())).await;
    call(&session, "x", json!({"region": "eu"})).await.expect("the second time it is complete");
}

#[tokio::test]
async fn the_era_is_told_from_the_first_answer() {
    for (status, code, data, era) in [
        (400, -32022, json!({"supported": ["2026-07-28"]}), None),
        (404, -32601, Value::Null, Some(Era::Modern)),
        (400, -32022, json!({"supported": ["2025-06-18"]}), Some(Era::Legacy)),
        (200, -32601, Value::Null, Some(Era::Legacy)),
        (400, -32000, Value::Null, Some(Era::Legacy)),
        (406, 0, Value::Null, Some(Era::Legacy)),
    ] {
        let server = MockServer::start().await;
        on(&server, "server/discover", refuses(status, code, data.clone())).await;
        legacy(&server).await;
        match Endpoint::new("under-test", at(server.uri())).connect().await {
            Ok(session) => assert_eq!(Some(session.info().era), era, "{status} {code} {data}"),
            Err(error) => {
                assert_eq!(era, None, "{status} {code} {data}: {error}");
                assert!(matches!(error, McpError::VersionRefused { .. }), "{error:?}");
            }
        }
    }
    for status in [401, 403, 408, 429, 503] {
        let server = MockServer::start().await;
        Mock::given(any()).respond_with(ResponseTemplate::new(status)).expect(1).mount(&server).await;
        let error = refusal(&at(server.uri())).await;
        assert!(matches!(error, McpError::Http { status: said, .. } if said == status), "{status}: {error:?}");
    }
}

#[tokio::test]
async fn the_era_is_kept_and_found_out_again_when_it_no_longer_fits() {
    let server = MockServer::start().await;
    let probe = Mock::given(asks("server/discover")).respond_with(ResponseTemplate::new(405)).expect(1);
    let probe = probe.mount_as_scoped(&server).await;
    legacy(&server).await;
    let endpoint = Endpoint::new("under-test", at(server.uri()));
    for _ in 0..2 {
        let session = endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(session.info().era, Era::Legacy);
    }
    drop(probe);
    server.reset().await;
    on(&server, "server/discover", answers(json!({"resultType": "complete", "supportedVersions": ["2026-07-28"]})))
        .await;
    let session = endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(session.info().era, Era::Modern);

    // And back: the session of the modern era is lost, the next one is opened by a handshake.
    server.reset().await;
    let stranger = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32000, "message": "not initialized"}});
    for what in ["server/discover", "tools/call"] {
        on(&server, what, ResponseTemplate::new(400).set_body_json(&stranger)).await;
    }
    legacy(&server).await;
    let error = call(&session, "x", json!({})).await.expect_err("nobody knows this language");
    assert!(matches!(error, McpError::SessionLost { may_have_run: false, .. }), "{error:?}");
    assert!(session.is_closed());
    let session = endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(session.info().era, Era::Legacy);
}

#[tokio::test]
async fn a_tool_that_asks_for_input_nobody_can_give_fails_with_its_question() {
    let server = modern().await;
    let asked = json!({"resultType": "input_required", "requestState": "s", "inputRequests": {
        "confirm": {"method": "elicitation/create", "params": {"message": "Delete everything?"}}
    }});
    on(&server, "tools/call", answers(asked)).await;
    let session = connect(&at(server.uri())).await;
    let error = call(&session, "x", json!({})).await.expect_err("nobody answers");
    assert!(matches!(&error, McpError::InputRequired { .. }), "{error:?}");
    assert!(error.to_string().contains("Delete everything?"), "{error}");
    let failure = da_node_executor::domain::outcome::Failure::from(error);
    assert_eq!(&*failure.code, "mcp_input_required");
}

#[tokio::test]
async fn a_broken_stream_of_the_modern_era_is_not_taken_up() {
    let server = modern().await;
    let broken = ResponseTemplate::new(200).set_body_raw("id: e-1\ndata:\n\n", "text/event-stream");
    on(&server, "tools/call", broken).await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(500)).expect(0).mount(&server).await;
    let session = connect(&at(server.uri())).await;
    let error = call(&session, "x", json!({})).await.expect_err("no answer");
    assert!(matches!(error, McpError::Closed { may_have_run: true, .. }), "{error:?}");
}

#[tokio::test]
async fn a_change_of_the_tools_is_told_by_a_subscription() {
    let server = MockServer::start().await;
    let capabilities = json!({"tools": {"listChanged": true}});
    let discovered =
        json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": capabilities});
    on(&server, "server/discover", answers(discovered)).await;
    let events = |request: &Request| {
        let body = body(request);
        assert_eq!(body["params"]["notifications"], json!({"toolsListChanged": true}));
        let acknowledged =
            json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {}});
        let changed = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": {}});
        let ended = json!({"jsonrpc": "2.0", "id": body["id"], "result": {"resultType": "complete"}});
        let text = format!("data: {acknowledged}\n\n: alive\n\ndata: {changed}\n\ndata: {ended}\n\n");
        ResponseTemplate::new(200).set_body_raw(text, "text/event-stream")
    };
    on(&server, "subscriptions/listen", events).await;
    let session = connect(&at(server.uri())).await;
    // The acknowledgement may stand for a change that was missed; it is asked for again when it has ended.
    until("the changes are told, twice", || session.tools_changed() >= 4).await;
    session.close().await;
}

#[tokio::test]
async fn the_reference_servers_of_files_and_of_memory_are_understood() {
    let folder = tempfile::tempdir().expect("a folder");
    // The server compares real paths.
    let path = folder.path().canonicalize().expect("it exists");
    std::fs::write(path.join("a.txt"), "hello").expect("a file");
    let files = connect(&stdio(reference("filesystem"), &[path.to_str().expect("UTF-8")])).await;
    let read = call(&files, "read_text_file", json!({"path": path.join("a.txt")})).await.expect("the file");
    assert!(read.text().contains("hello"), "{read:?}");
    let outside = call(&files, "read_text_file", json!({"path": "/etc/hostname"})).await.expect("an answer");
    assert!(outside.is_error, "{outside:?}");
    files.close().await;

    let mut config = stdio(reference("memory"), &[]);
    let store = path.join("memory.jsonl").into_os_string().into_string().expect("UTF-8");
    config.env.insert(String::from("MEMORY_FILE_PATH"), store.into());
    let memory = connect(&config).await;
    let entity = json!({"entities": [{"name": "worker", "entityType": "process", "observations": ["runs"]}]});
    call(&memory, "create_entities", entity).await.expect("it is kept");
    let graph = call(&memory, "read_graph", json!({})).await.expect("the graph").into_value();
    assert_eq!(graph["entities"][0]["name"], "worker", "{graph}");
    memory.close().await;
}

#[tokio::test]
async fn an_old_server_that_wants_its_requests_sent_elsewhere_gets_none() {
    let elsewhere = MockServer::start().await;
    Mock::given(any()).respond_with(ResponseTemplate::new(200)).expect(0).mount(&elsewhere).await;
    let server = MockServer::start().await;
    let stream = format!("event: endpoint\ndata: {}/messages\n\n", elsewhere.uri());
    let stream = ResponseTemplate::new(200).set_body_raw(stream, "text/event-stream");
    Mock::given(method("GET")).respond_with(stream).expect(1).mount(&server).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(405)).mount(&server).await;
    let mut config = at(server.uri());
    config.headers.insert(String::from("authorization"), String::from("Bearer s3cret").into());
    let error = refusal(&config).await;
    assert!(matches!(error, McpError::Http { status: 405, .. }), "{error:?}");
}

async fn progress_keeps_a_call_alive_up_to_a_limit(mut config: McpServerConfig) {
    config.timeout = Duration::from_millis(900);
    config.max_timeout = Duration::from_secs(20);
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("alive");
    let (sender, progress) = tokio::sync::watch::channel(None);
    let session = connect(&config).await;
    let told = da_node_executor::clients::mcp::CallMeta { progress: Some(sender), ..meta() };
    let with = arguments(json!({"seconds": 3, "log": log}));
    let answer = session.call_tool("wait", &with, told).await.expect("it tells progress until it is done");
    assert_eq!(answer.text(), "waited");
    let last = progress.borrow().clone().expect("progress was told");
    assert_eq!((last.progress, last.total), (9.0, Some(10.0)));
    session.close().await;

    config.max_timeout = Duration::from_millis(1500);
    let session = connect(&config).await;
    let log = folder.path().join("cut");
    let error = call(&session, "wait", json!({"seconds": 3, "log": log})).await.expect_err("enough is enough");
    assert!(matches!(error, McpError::TimedOut { limit, .. } if limit == config.max_timeout), "{error:?}");
    until("the server knows", || said(&log) == "started\ncancelled\n").await;
    let mut patient = meta();
    patient.timeout = Some(Duration::from_millis(100));
    let with = arguments(json!({"seconds": 20, "log": folder.path().join("tool")}));
    let error = session.call_tool("wait", &with, patient).await.expect_err("this tool has a limit of its own");
    assert!(matches!(error, McpError::TimedOut { limit, .. } if limit == Duration::from_millis(100)), "{error:?}");
    session.close().await;
}

#[tokio::test]
async fn progress_keeps_a_call_alive_up_to_a_limit_in_the_legacy_era_over_stdio() {
    progress_keeps_a_call_alive_up_to_a_limit(stdio(fastmcp(), &["stdio"])).await;
}

#[tokio::test]
async fn progress_keeps_a_call_alive_up_to_a_limit_in_the_legacy_era_over_http() {
    let server = HttpServer::fastmcp(free_port()).await;
    progress_keeps_a_call_alive_up_to_a_limit(at(server.url())).await;
}

#[tokio::test]
async fn progress_keeps_a_call_alive_up_to_a_limit_in_the_modern_era_over_stdio() {
    progress_keeps_a_call_alive_up_to_a_limit(stdio(mcpserver(), &["stdio"])).await;
}

#[tokio::test]
async fn progress_keeps_a_call_alive_up_to_a_limit_in_the_modern_era_over_http() {
    let server = HttpServer::mcpserver(free_port()).await;
    progress_keeps_a_call_alive_up_to_a_limit(at(server.url())).await;
}

#[tokio::test]
async fn a_tool_that_asks_again_and_again_has_its_longest_time_once() {
    let server = modern().await;
    let respond = answers(json!({"resultType": "input_required", "requestState": "more"}));
    let slow = move |request: &Request| respond(request).set_delay(Duration::from_millis(150));
    on(&server, "tools/call", slow).await;
    let mut config = at(server.uri());
    (config.timeout, config.max_timeout) = (Duration::from_millis(400), Duration::from_millis(500));
    let session = connect(&config).await;
    let error = call(&session, "x", json!({})).await.expect_err("it never ends");
    // Ten rounds of 150 ms would be another error, and later.
    assert!(
        matches!(error, McpError::TimedOut { limit, may_have_run: true, .. } if limit == config.max_timeout),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_person_who_does_not_answer_holds_a_call_no_longer_than_it_may_take() {
    let server = modern().await;
    let question = json!({"method": "elicitation/create", "params": {"message": "Who is it?", "requestedSchema": {"type": "object"}}});
    on(&server, "tools/call", answers(json!({"resultType": "input_required", "inputRequests": {"q": question}}))).await;
    let mut config = at(server.uri());
    (config.timeout, config.max_timeout) = (Duration::from_millis(100), Duration::from_millis(300));
    let endpoint = Endpoint::new("under-test", config).answered(std::sync::Arc::new(Person::Thinks));
    let session = endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"));
    let error = call(&session, "x", json!({})).await.expect_err("nobody answers");
    assert!(matches!(&error, McpError::TimedOut { what, .. } if what.contains("asks for")), "{error:?}");
}
