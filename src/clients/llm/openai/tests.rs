//! The client against HTTP servers: what it sends, and what it makes of every kind of answer, whole or in pieces.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wiremock::matchers::{body_json, body_partial_json, header, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::clients::llm::fixture::{provider, request, with_settings, with_tools};
use crate::clients::llm::{LlmClient, LlmError};
use crate::config::{Api, ProviderConfig, ProviderKind};
use crate::domain::delta::{Deltas, Piece};
use crate::domain::message::{Completion, StopReason};
use crate::domain::outcome::{Category, Failure};
use crate::ports::LlmRequest;
use crate::retry::Retry;

fn config(base_url: &str) -> ProviderConfig {
    // The fixture installs what TLS needs.
    let with_key = provider(base_url);
    let base_url = with_key.base_url;
    ProviderConfig {
        base_url,
        api_key: with_key.api_key,
        model: String::from("m"),
        ..ProviderConfig::of(ProviderKind::Openai)
    }
}

fn client(config: &ProviderConfig) -> LlmClient {
    LlmClient::new("main", config).expect("a valid provider")
}

fn completion(message: Value, finish_reason: &str) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion", "model": "m-2026", "choices": [
        {"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}})
}

async fn answered(response: ResponseTemplate) -> Result<Completion, LlmError> {
    let server = MockServer::start().await;
    Mock::given(method("POST")).and(path("/v1/chat/completions")).respond_with(response).expect(1).mount(&server).await;
    client(&config(&server.uri())).complete(&request("hello")).await
}

async fn failed(response: ResponseTemplate) -> Failure {
    answered(response).await.expect_err("an error").into()
}

fn events(events: &[Value]) -> String {
    let events = events.iter().map(|event| format!("data: {event}\n\n"));
    format!(": OPENROUTER PROCESSING\n\n{}", events.collect::<String>())
}

fn streamed(body: String) -> ResponseTemplate {
    ResponseTemplate::new(200).set_body_raw(body, "text/event-stream; charset=utf-8")
}

fn delta(delta: Value) -> Value {
    json!({"id": "c", "model": "m-2026", "choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn last(reason: &str) -> Value {
    json!({"id": "c", "model": "m-2026", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

#[tokio::test]
async fn a_call_bears_the_key_and_the_trace() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/chat/completions"))
        .and(header("content-type", "application/json"))
        .and(header("authorization", "Bearer sk-test-0123456789"))
        .and(header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
        .and(body_json(json!({"model": "m", "max_tokens": 16000, "messages": [{"role": "user", "content": "hello"}]})))
        .and(|request: &Request| !request.headers.contains_key("x-api-key"))
        .respond_with(
            ResponseTemplate::new(200)
                .set_body_json(completion(json!({"role": "assistant", "content": "hi"}), "stop"))
                .insert_header("x-request-id", "req_7"),
        )
        .expect(1)
        .mount(&server)
        .await;
    let mut call = request("hello");
    call.context.traceparent = Some(String::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    let completion = client(&config(&server.uri())).complete(&call).await.expect("a completion");
    assert_eq!((completion.turn.text.as_str(), completion.request_id.as_deref()), ("hi", Some("req_7")));
    assert_eq!((completion.model.as_str(), completion.usage.input_tokens), ("m-2026", 9));
}

#[tokio::test]
async fn a_local_server_needs_no_key_and_a_base_url_with_a_path_is_taken_as_it_is() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1beta/openai/chat/completions"))
        .and(|request: &Request| !request.headers.contains_key("authorization"))
        .respond_with(ResponseTemplate::new(200).set_body_json(completion(json!({"content": "hi"}), "stop")))
        .expect(1)
        .mount(&server)
        .await;
    let config = ProviderConfig { api_key: None, ..config(&format!("{}/v1beta/openai/", server.uri())) };
    let client = client(&config);
    assert!(client.configured());
    assert_eq!(client.complete(&request("x")).await.expect("a completion").turn.text, "hi");
}

#[tokio::test]
async fn without_a_key_nothing_is_sent_to_a_vendor() {
    for kind in [ProviderKind::Openai, ProviderKind::Openrouter, ProviderKind::Gemini] {
        provider("http://127.0.0.1:9");
        let client = client(&ProviderConfig::of(kind));
        assert!(!client.configured());
        let failure = Failure::from(client.complete(&request("x")).await.expect_err("no key"));
        assert_eq!(failure.code, "llm_not_configured");
    }
}

#[tokio::test]
async fn responses_are_spoken_where_they_are_chosen() {
    let server = MockServer::start().await;
    let response = json!({"id": "resp_1", "object": "response", "status": "completed", "model": "m", "output": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}],
        "usage": {"input_tokens": 9, "output_tokens": 2}});
    Mock::given(method("POST"))
        .and(path("/v1/responses"))
        .and(body_partial_json(json!({"store": false, "input": [{"role": "user", "content": "hello"}]})))
        .respond_with(ResponseTemplate::new(200).set_body_json(response))
        .expect(1)
        .mount(&server)
        .await;
    let config = ProviderConfig { api: Api::Responses, ..config(&server.uri()) };
    let completion = client(&config).complete(&request("hello")).await.expect("a completion");
    assert_eq!((completion.turn.text.as_str(), completion.usage.output_tokens), ("hi", 2));
}

#[tokio::test]
async fn errors_keep_type_words_and_request() {
    let body = json!({"error": {"message": "The model `x` does not exist", "type": "invalid_request_error",
        "param": null, "code": "model_not_found"}});
    let failure = failed(ResponseTemplate::new(404).set_body_json(body).insert_header("x-request-id", "req_9")).await;
    assert_eq!((failure.category, failure.code.as_ref()), (Category::Configuration, "not_found"));
    for part in ["`main`", "404 model_not_found", "does not exist", "req_9"] {
        assert!(failure.message.contains(part), "{part}: {}", failure.message);
    }
    let page = failed(ResponseTemplate::new(502).set_body_string("<html>")).await;
    assert_eq!((page.code.as_ref(), page.category), ("server_error", Category::Retriable));
}

#[tokio::test]
async fn a_rate_limit_passes_and_an_empty_account_does_not() {
    let error = |code: &str| json!({"error": {"message": "m", "type": code, "code": code}});
    let limited =
        ResponseTemplate::new(429).set_body_json(error("rate_limit_exceeded")).insert_header("retry-after", "7");
    let failure = failed(limited).await;
    assert_eq!((failure.code.as_ref(), failure.retry()), ("rate_limited", Retry::After(Some(Duration::from_secs(7)))));
    let failure = failed(ResponseTemplate::new(429).set_body_json(error("insufficient_quota"))).await;
    assert_eq!((failure.code.as_ref(), failure.retry()), ("billing", Retry::Never));
    let overflow = json!({"error": {"code": 400, "message": "m", "type": "exceed_context_size_error"}});
    assert_eq!(failed(ResponseTemplate::new(400).set_body_json(overflow)).await.code, "context_overflow");
}

#[tokio::test]
async fn an_error_inside_a_success_counts_as_the_status_that_it_names() {
    for body in [
        json!({"error": {"code": 429, "message": "busy"}}),
        json!({"choices": [{"error": {"code": 429, "message": "busy"}, "message": null}]}),
    ] {
        let failure = failed(ResponseTemplate::new(200).set_body_json(body)).await;
        assert_eq!((failure.code.as_ref(), failure.category), ("rate_limited", Category::Retriable));
        assert!(failure.message.contains("busy"), "{}", failure.message);
    }
    let nameless = json!({"error": {"message": "no"}});
    assert_eq!(failed(ResponseTemplate::new(200).set_body_json(nameless)).await.code, "unexpected_status");
}

#[tokio::test]
async fn a_success_that_is_no_completion_is_malformed() {
    for body in ["<html>welcome</html>", "", "{\"object\":\"list\",\"data\":[]}", "null"] {
        let failure =
            failed(ResponseTemplate::new(200).set_body_string(body).insert_header("x-request-id", "r3")).await;
        assert_eq!(failure.code, "malformed_response", "{body:?}");
        assert!(failure.message.contains("r3"), "{}", failure.message);
    }
}

/// Asks for so many tokens that the answer comes in pieces.
async fn streaming(body: String, base: fn(&str) -> ProviderConfig) -> Result<Completion, LlmError> {
    let server = MockServer::start().await;
    Mock::given(body_partial_json(json!({"stream": true}))).respond_with(streamed(body)).expect(1).mount(&server).await;
    let call = with_settings(with_tools(request("x"), &["add"]), json!({"max_tokens": 60_000}));
    client(&base(&server.uri())).complete(&call).await
}

fn responses_config(base_url: &str) -> ProviderConfig {
    ProviderConfig { api: Api::Responses, ..config(base_url) }
}

#[tokio::test]
async fn an_answer_in_pieces_is_the_same_as_a_whole_one() {
    let call = json!({"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"x\":"}});
    let chunks = [
        delta(json!({"role": "assistant", "content": "Let me"})),
        delta(json!({"content": " see."})),
        delta(json!({"tool_calls": [call]})),
        delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})),
        last("tool_calls"),
        json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}),
    ];
    for end in ["data: [DONE]\n\n", ""] {
        let read = streaming(events(&chunks) + end, config).await.expect("a completion");
        assert_eq!((read.turn.text.as_str(), read.stop_reason), ("Let me see.", StopReason::ToolUse));
        assert_eq!((read.usage.input_tokens, read.turn.tool_uses[0].input["x"].clone()), (9, json!(1)));
        assert_eq!(
            read.turn.raw.get(),
            r#"{"role":"assistant","content":"Let me see.","tool_calls":[{"id":"c1","type":"function","function":{"name":"add","arguments":"{\"x\":1}"}}]}"#
        );
    }
}

#[tokio::test]
async fn a_response_in_events_is_the_one_that_the_last_event_bears() {
    let item =
        json!({"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}", "status": "completed"});
    let chunks = [
        json!({"type": "response.created", "response": {"status": "in_progress", "output": []}}),
        json!({"type": "response.output_item.done", "item": item}),
        json!({"type": "response.completed", "response": {"status": "completed", "model": "m", "output": [item]}}),
    ];
    let read = streaming(events(&chunks), responses_config).await.expect("a completion");
    assert_eq!(
        (read.stop_reason, read.turn.raw.get()),
        (StopReason::ToolUse, format!(r#"{{"output":[{item}]}}"#).as_str())
    );
}

#[tokio::test]
async fn whoever_watches_sees_the_pieces() {
    let server = MockServer::start().await;
    let chunks = [
        delta(json!({"reasoning": "hm"})),
        delta(json!({"content": "a"})),
        delta(json!({"content": "b"})),
        delta(json!({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": "{}"}}]})),
        last("tool_calls"),
    ];
    Mock::given(body_partial_json(json!({"stream": true})))
        .respond_with(streamed(events(&chunks)))
        .mount(&server)
        .await;
    let deltas = Deltas::default();
    let call = LlmRequest { deltas: Some(deltas.clone()), ..request("x") };
    client(&config(&server.uri())).complete(&call).await.expect("a completion");
    let (id, name) = (String::from("c1"), String::from("add"));
    let text = |text: &str| Piece::Text { text: text.to_owned() };
    let thinking = Piece::Thinking { text: String::from("hm") };
    assert_eq!(deltas.fetch(), [Piece::Begin, thinking, text("ab"), Piece::ToolUse { id, name }]);
}

#[tokio::test]
async fn a_stream_without_its_end_is_a_failure_that_passes() {
    let half = events(&[delta(json!({"content": "half"}))]);
    for (body, base) in [
        (half.clone(), config as fn(&str) -> ProviderConfig),
        (half + "data: [DONE]\n\n", config),
        (events(&[json!({"type": "response.output_text.delta", "delta": "half"})]), responses_config),
        (String::new(), config),
    ] {
        let failure = Failure::from(streaming(body.clone(), base).await.expect_err("it was cut"));
        assert_eq!(failure.retry(), Retry::After(None), "{body}: {failure}");
        assert_eq!(failure.category, Category::Retriable);
    }
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_is_told() {
    let busy = json!({"error": {"code": 529, "message": "busy"}, "choices": []});
    let failure =
        Failure::from(streaming(events(&[delta(json!({"content": "a"})), busy]), config).await.expect_err("busy"));
    assert_eq!((failure.code.as_ref(), failure.category), ("overloaded", Category::Retriable));
    let failed = json!({"type": "response.failed", "response": {"status": "failed", "output": [],
        "error": {"code": "rate_limit_exceeded", "message": "slow"}}});
    let failure = Failure::from(streaming(events(&[failed]), responses_config).await.expect_err("limited"));
    assert_eq!((failure.code.as_ref(), failure.category), ("rate_limited", Category::Retriable));
    let nonsense = streaming(String::from("data: {\n\n"), config).await.expect_err("no chunk");
    assert!(matches!(nonsense, LlmError::BrokenStream { .. }), "{nonsense}");
}

#[tokio::test]
async fn a_server_that_cannot_stream_may_answer_whole() {
    let server = MockServer::start().await;
    let whole = ResponseTemplate::new(200).set_body_json(completion(json!({"content": "hi"}), "stop"));
    Mock::given(method("POST")).respond_with(whole).mount(&server).await;
    let call = with_settings(request("x"), json!({"max_tokens": 60_000}));
    assert_eq!(client(&config(&server.uri())).complete(&call).await.expect("a completion").turn.text, "hi");
}

#[tokio::test]
async fn a_stream_that_goes_quiet_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let base_url = format!("http://{}", listener.local_addr().expect("bound"));
    let config = ProviderConfig { stall_timeout: Duration::from_millis(200), ..config(&base_url) };
    let serve = async {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let mut request = [0; 8192];
        let _ = socket.read(&mut request).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: r6\r\n\r\n";
        let first = events(&[delta(json!({"content": "a"}))]);
        socket.write_all(format!("{head}{first}").as_bytes()).await.expect("written");
        std::future::pending::<()>().await;
    };
    let (client, call) = (client(&config), with_settings(request("x"), json!({"max_tokens": 60_000})));
    let error = tokio::select! {
        answer = client.complete(&call) => answer.expect_err("it went quiet"),
        () = serve => unreachable!("the server never ends"),
    };
    assert_eq!(error.request_id(), Some("r6"));
    let failure = Failure::from(error);
    assert_eq!((failure.code.as_ref(), failure.retry()), ("llm_stalled", Retry::After(None)));
}
