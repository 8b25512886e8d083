//! The client against an HTTP server: what it sends, and what it makes of every kind of answer.

use std::error::Error as _;
use std::time::{Duration, Instant};

use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wiremock::matchers::{body_json, header, method, path};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use super::fixture::{provider, request};
use super::*;
use crate::config::AuthHeader;
use crate::domain::outcome::{Category, Failure};
use crate::retry::Retry;

fn message() -> Value {
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x",
        "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": 3, "output_tokens": 2}})
}

fn client(config: &ProviderConfig) -> LlmClient {
    LlmClient::new("main", config).expect("a valid provider")
}

/// What becomes of a call that is answered with `response`.
async fn answered(response: ResponseTemplate) -> Result<Completion, LlmError> {
    let server = MockServer::start().await;
    Mock::given(method("POST")).and(path("/v1/messages")).respond_with(response).expect(1).mount(&server).await;
    client(&provider(&server.uri())).complete(&request("hello")).await
}

async fn failed(response: ResponseTemplate) -> Failure {
    answered(response).await.expect_err("an error").into()
}

#[tokio::test]
async fn a_call_bears_the_version_the_key_once_and_the_trace() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/messages"))
        .and(header("anthropic-version", "2026-10-21"))
        .and(header("content-type", "application/json"))
        .and(header("x-api-key", "sk-test-0123456789"))
        .and(header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
        .and(body_json(json!({
            "model": "claude-sonnet-5-5", "max_tokens": 16000, "messages": [{"role": "user", "content": "hello"}],
        })))
        .and(|request: &Request| {
            !request.headers.contains_key("authorization") && !request.headers.contains_key("anthropic-beta")
        })
        .respond_with(ResponseTemplate::new(200).set_body_json(message()).insert_header("request-id", "req_7"))
        .expect(1)
        .mount(&server)
        .await;
    let mut call = request("hello");
    call.context.traceparent = Some(String::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    let client = client(&provider(&server.uri()));
    assert_eq!((client.model(&call), client.configured()), ("claude-sonnet-5-5", true));
    let completion = client.complete(&call).await.expect("a completion");
    assert_eq!((completion.turn.text.as_str(), completion.request_id.as_deref()), ("hi", Some("req_7")));
    assert_eq!(completion.model, "claude-x");
}

#[tokio::test]
async fn a_bearer_key_and_betas_are_sent_where_they_are_configured() {
    let server = MockServer::start().await;
    Mock::given(header("authorization", "Bearer sk-test-0123456789"))
        .and(|request: &Request| {
            let betas = request.headers.get("anthropic-beta").and_then(|value| value.to_str().ok());
            betas == Some("one-2026-01-01,two-2026-01-01") && !request.headers.contains_key("x-api-key")
        })
        .respond_with(ResponseTemplate::new(200).set_body_json(message()))
        .expect(1)
        .mount(&server)
        .await;
    let config = ProviderConfig {
        auth: AuthHeader::Bearer,
        betas: vec![String::from("one-2026-01-01"), String::from("two-2026-01-01")],
        ..provider(&server.uri())
    };
    client(&config).complete(&request("hello")).await.expect("a completion");
}

#[tokio::test]
async fn without_a_key_nothing_is_sent() {
    for key in [None, Some(SecretString::from(" "))] {
        let client = client(&ProviderConfig { api_key: key, ..provider("http://127.0.0.1:9") });
        assert!(!client.configured());
        let failure = Failure::from(client.complete(&request("x")).await.expect_err("no key"));
        assert_eq!((failure.category, failure.code.as_ref()), (Category::Configuration, "llm_not_configured"));
    }
}

#[test]
fn settings_that_cannot_work_are_told_at_once_and_without_the_key() {
    let key = ProviderConfig { api_key: Some(SecretString::from("sk-se\ncret")), ..ProviderConfig::default() };
    let url = ProviderConfig { base_url: String::from("api.example.com"), ..ProviderConfig::default() };
    let version = ProviderConfig { version: String::from("a\u{7f}"), ..ProviderConfig::default() };
    let script = ProviderConfig { kind: ProviderKind::Scripted, ..ProviderConfig::default() };
    let missing = ProviderConfig { script: Some("no/such.yaml".into()), ..script.clone() };
    for (config, words) in [
        (key, "`api_key`"),
        (url, "`base_url`"),
        (version, "`version`"),
        (script, "`script` is missing"),
        (missing, "no/such.yaml"),
    ] {
        let error = LlmClient::new("main", &config).expect_err(words);
        let text = error.to_string();
        assert!(text.contains(words) && text.contains("llm.providers.main") && !text.contains("cret"), "{text}");
        assert_eq!((Failure::from(error).category, words), (Category::Configuration, words));
    }
}

#[tokio::test]
async fn the_settings_of_a_client_are_not_shown_with_the_key() {
    let client = client(&provider("http://127.0.0.1:9"));
    assert!(!format!("{client:?}").contains("sk-test"));
}

#[tokio::test]
async fn errors_of_the_api_keep_type_words_and_request() {
    let body = json!({"type": "error", "error": {"type": "not_found_error", "message": "model: claude-zero"},
        "request_id": "req_9"});
    let failure = failed(ResponseTemplate::new(404).set_body_json(body)).await;
    assert_eq!((failure.category, failure.code.as_ref()), (Category::Configuration, "not_found"));
    for part in ["`main`", "404 not_found_error", "claude-zero", "req_9", "check the model's name"] {
        assert!(failure.message.contains(part), "{part}: {}", failure.message);
    }
}

#[tokio::test]
async fn a_rate_limit_asks_for_its_own_wait() {
    let failure = failed(ResponseTemplate::new(429).insert_header("retry-after", "7")).await;
    assert_eq!(failure.code, "rate_limited");
    assert_eq!(failure.retry(), Retry::After(Some(Duration::from_secs(7))));
    let failure = failed(ResponseTemplate::new(529).insert_header("retry-after-ms", "30")).await;
    assert_eq!((failure.code.as_ref(), failure.retry_after), ("overloaded", Some(Duration::from_millis(30))));
}

#[tokio::test]
async fn the_servers_word_on_retrying_is_obeyed() {
    let stop = failed(ResponseTemplate::new(500).insert_header("x-should-retry", "false")).await;
    assert_eq!((stop.retry(), stop.category), (Retry::Never, Category::Permanent));
    let again = failed(ResponseTemplate::new(400).insert_header("x-should-retry", "true")).await;
    assert_eq!(again.retry(), Retry::After(None));
}

#[tokio::test]
async fn nothing_is_retried_here() {
    let server = MockServer::start().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(503)).expect(1).mount(&server).await;
    client(&provider(&server.uri())).complete(&request("x")).await.expect_err("unavailable");
    // Dropping the server checks that it saw one call.
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let failure = failed(ResponseTemplate::new(301).insert_header("location", "https://elsewhere.example/")).await;
    assert_eq!((failure.code.as_ref(), failure.category), ("unexpected_status", Category::Configuration));
    assert!(failure.message.contains("base_url"), "{}", failure.message);
}

#[tokio::test]
async fn an_error_inside_a_success_is_an_error() {
    let body = json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}});
    let failure = failed(ResponseTemplate::new(200).set_body_json(body)).await;
    assert_eq!((failure.code.as_ref(), failure.category), ("overloaded", Category::Retriable));
}

#[tokio::test]
async fn a_success_that_is_no_message_is_malformed() {
    for body in ["<html>welcome</html>", "", "{\"id\":\"msg\"}", "null"] {
        let template = ResponseTemplate::new(200).set_body_string(body).insert_header("request-id", "req_3");
        let error = answered(template).await.expect_err("no message");
        assert_eq!(error.request_id(), Some("req_3"));
        let failure = Failure::from(error);
        assert_eq!((failure.code.as_ref(), failure.category), ("malformed_response", Category::Permanent), "{body:?}");
        assert!(failure.message.contains("req_3"), "{}", failure.message);
    }
}

#[tokio::test]
async fn an_answer_is_waited_for_no_longer_than_the_provider_may_take() {
    let server = MockServer::start().await;
    let slow = ResponseTemplate::new(200).set_body_json(message()).set_delay(Duration::from_secs(30));
    Mock::given(method("POST")).respond_with(slow).mount(&server).await;
    let config = ProviderConfig { timeout: Duration::from_millis(100), ..provider(&server.uri()) };
    let failure = Failure::from(client(&config).complete(&request("x")).await.expect_err("too slow"));
    assert_eq!((failure.code.as_ref(), failure.retry()), ("llm_timeout", Retry::After(None)));
    assert!(failure.message.contains("100ms"), "{}", failure.message);

    let mut call = request("x");
    call.context.deadline = Instant::now() + Duration::from_millis(80);
    let started = Instant::now();
    let error = client(&provider(&server.uri())).complete(&call).await.expect_err("the node's time is up");
    assert!(matches!(&error, LlmError::TimedOut { limit, .. } if *limit <= Duration::from_millis(80)), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_failure_that_names_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let error = client(&provider(&format!("http://{address}"))).complete(&request("x")).await.expect_err("nobody");
    assert!(error.source().is_some(), "the cause is kept");
    let failure = Failure::from(error);
    assert_eq!((failure.code.as_ref(), failure.retry()), ("connect_failed", Retry::After(None)));
    assert!(failure.message.contains(&address.to_string()), "{}", failure.message);
    assert!(failure.message.contains("refused"), "the cause is told: {}", failure.message);
}

/// Serves one connection with these bytes and closes it.
async fn raw_server(head: &'static str, chunk: Vec<u8>, times: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let mut request = [0; 4096];
        let _ = socket.read(&mut request).await;
        let _ = socket.write_all(head.as_bytes()).await;
        for _ in 0..times {
            if socket.write_all(&chunk).await.is_err() {
                return;
            }
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn an_answer_that_breaks_off_may_be_asked_for_again() {
    let head = "HTTP/1.1 200 OK\r\nrequest-id: req_5\r\ncontent-length: 1000\r\n\r\n{\"id\":";
    let url = raw_server(head, Vec::new(), 0).await;
    let error = client(&provider(&url)).complete(&request("x")).await.expect_err("cut");
    assert_eq!(error.request_id(), Some("req_5"));
    let failure = Failure::from(error);
    assert_eq!((failure.code.as_ref(), failure.retry()), ("connection_lost", Retry::After(None)));
}

#[tokio::test]
async fn an_answer_that_goes_quiet_is_given_up_and_may_be_asked_for_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let config = ProviderConfig {
        stall_timeout: Duration::from_millis(300),
        ..provider(&format!("http://{}", listener.local_addr().expect("bound")))
    };
    let serve = async {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let mut request = [0; 4096];
        let _ = socket.read(&mut request).await;
        // A silence before the answer is a model that thinks.
        tokio::time::sleep(Duration::from_millis(600)).await;
        let head = "HTTP/1.1 200 OK\r\nrequest-id: req_6\r\ncontent-length: 1000\r\n\r\n";
        socket.write_all(head.as_bytes()).await.expect("written");
        for _ in 0..4 {
            socket.write_all(b" ").await.expect("written");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    let client = client(&config);
    let call = request("x");
    let error = tokio::select! {
        answer = client.complete(&call) => answer.expect_err("it went quiet"),
        () = serve => unreachable!("the server never ends"),
    };
    assert_eq!(error.request_id(), Some("req_6"));
    let failure = Failure::from(error);
    assert_eq!((failure.code.as_ref(), failure.retry()), ("llm_stalled", Retry::After(None)));
    assert!(failure.message.contains("300ms") && failure.message.contains("req_6"), "{}", failure.message);
}

#[tokio::test]
async fn an_error_whose_body_breaks_off_keeps_its_status() {
    let head = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 3\r\ncontent-length: 1000\r\n\r\n{\"ty";
    let url = raw_server(head, Vec::new(), 0).await;
    let failure = Failure::from(client(&provider(&url)).complete(&request("x")).await.expect_err("limited"));
    assert_eq!((failure.code.as_ref(), failure.retry_after), ("rate_limited", Some(Duration::from_secs(3))));
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let url = raw_server("HTTP/1.1 200 OK\r\n\r\n", vec![b' '; 1024 * 1024], 64).await;
    let failure = Failure::from(client(&provider(&url)).complete(&request("x")).await.expect_err("too large"));
    assert_eq!((failure.code.as_ref(), failure.category), ("response_too_large", Category::Permanent));
}

fn script(text: &str) -> (tempfile::NamedTempFile, LlmClient) {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").expect("a temporary file");
    std::fs::write(file.path(), text).expect("written");
    let config = ProviderConfig {
        kind: ProviderKind::Scripted,
        script: Some(file.path().to_owned()),
        model: String::from("scripted"),
        ..ProviderConfig::default()
    };
    let client = LlmClient::new("demo", &config).expect("a valid script");
    (file, client)
}

#[tokio::test(start_paused = true)]
async fn a_script_in_this_process_answers_like_a_provider() {
    let (_file, client) = script(
        "rules:\n  - match: {prompt: hello}\n    reply: {text: hi, delay: 5s, usage: {input_tokens: 9, cache_read_tokens: 4}}\n",
    );
    let started = tokio::time::Instant::now();
    let completion = client.complete(&request("hello")).await.expect("a completion");
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    assert_eq!((completion.turn.text.as_str(), completion.model.as_str()), ("hi", "scripted"));
    assert_eq!((completion.usage.input_tokens, completion.usage.cache_read_tokens), (9, 4));
    assert!(client.configured());
    let failure = Failure::from(client.complete(&request("goodbye")).await.expect_err("no rule"));
    assert_eq!((failure.code.as_ref(), failure.category), ("invalid_request", Category::Permanent));
    assert!(failure.message.contains("goodbye"), "{}", failure.message);
}

#[tokio::test(start_paused = true)]
async fn a_script_that_is_too_slow_times_out_like_a_provider() {
    let (_file, client) = script("rules:\n  - reply: {text: hi, delay: 1h}\n");
    let started = tokio::time::Instant::now();
    let failure = Failure::from(client.complete(&request("x")).await.expect_err("too slow"));
    assert_eq!(failure.code, "llm_timeout");
    assert!(started.elapsed() <= Duration::from_secs(60));
}
