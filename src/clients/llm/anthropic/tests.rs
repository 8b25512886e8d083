//! Streams that go wrong, and what holds for every conversation and every answer.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wiremock::matchers::{body_partial_json, method};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::request::prepare;
use super::response;
use super::stream::{Assembly, Step};
use crate::clients::llm::fixture::{assistant, provider, request, with_tools};
use crate::clients::llm::{LlmClient, LlmError};
use crate::config::{ProviderConfig, When};
use crate::domain::delta::{Deltas, Piece};
use crate::domain::message::{Completion, StopReason, ToolResult, Turn, text_block};
use crate::domain::outcome::{Category, Failure};
use crate::ports::LlmRequest;
use crate::retry::Retry;

const START: &str = r#"{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"usage":{"input_tokens":3,"output_tokens":1}}}"#;
const TEXT: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"half "}}"#;
const MORE: &str = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"an answer"}}"#;
const END: &str = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}"#;
const STOP: &str = r#"{"type":"message_stop"}"#;

fn events(data: &[&str]) -> String {
    data.iter().map(|data| format!("event: any\ndata: {data}\n\n")).collect()
}

/// What becomes of a call that is answered with these events, and the pieces that were told.
async fn streamed(body: String) -> (Result<Completion, LlmError>, Vec<Piece>) {
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(200)
        .insert_header("request-id", "req_s")
        .set_body_raw(body, "text/event-stream; charset=utf-8");
    Mock::given(method("POST"))
        .and(body_partial_json(json!({"stream": true})))
        .respond_with(answer)
        .expect(1)
        .mount(&server)
        .await;
    let deltas = Deltas::default();
    let call = LlmRequest { deltas: Some(deltas.clone()), ..request("x") };
    let client = LlmClient::new("main", &provider(&server.uri())).expect("a valid provider");
    let answer = client.complete(&call).await;
    (answer, deltas.fetch())
}

async fn failed(body: String) -> Failure {
    let error = streamed(body).await.0.expect_err("no answer");
    assert_eq!(error.request_id(), Some("req_s"));
    let failure = Failure::from(error);
    assert!(failure.message.contains("req_s"), "{}", failure.message);
    failure
}

#[tokio::test]
async fn a_stream_that_ends_well_is_an_answer_and_its_pieces_are_told() {
    let unknown = r#"{"type":"weather_report","sunny":true}"#;
    let body = events(&[START, r#"{"type":"ping"}"#, TEXT, unknown, MORE, END, STOP]);
    let (answer, told) = streamed(body).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.turn.raw.get(), r#"[{"type":"text","text":"half an answer"}]"#);
    assert_eq!(
        (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens),
        (StopReason::EndTurn, 3, 5)
    );
    assert_eq!(told, [Piece::Begin, Piece::Text { text: String::from("half an answer") }]);
}

#[tokio::test]
async fn a_stream_without_its_end_is_no_answer() {
    for data in [&[START, TEXT, MORE] as &[&str], &[START, TEXT, MORE, END], &[]] {
        let failure = failed(events(data)).await;
        assert_eq!((failure.code.as_ref(), failure.retry()), ("stream_truncated", Retry::After(None)));
    }
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_is_that_error() {
    for (kind, code, category) in [
        ("overloaded_error", "overloaded", Category::Retriable),
        ("api_error", "server_error", Category::Retriable),
        ("rate_limit_error", "rate_limited", Category::Retriable),
        ("invalid_request_error", "invalid_request", Category::Permanent),
    ] {
        let error = json!({"type": "error", "error": {"type": kind, "message": "sorry"}}).to_string();
        let failure = failed(events(&[START, TEXT, MORE, &error])).await;
        assert_eq!((failure.code.as_ref(), failure.category), (code, category));
        assert!(failure.message.contains("sorry"), "{}", failure.message);
    }
}

#[tokio::test]
async fn a_broken_event_makes_the_stream_worthless_but_another_try_may_help() {
    for broken in ["{\"type\": \"content_bl", "[DONE]", r#"{"type":"content_block_delta","index":7,"delta":{}}"#] {
        let failure = failed(events(&[START, TEXT, broken, MORE, END, STOP])).await;
        assert_eq!((failure.code.as_ref(), failure.retry()), ("malformed_stream", Retry::After(None)), "{broken}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_stream_is_understood_all_the_same() {
    let server = MockServer::start().await;
    let message = json!({"content": [{"type": "text", "text": "whole"}], "stop_reason": "end_turn"});
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200).set_body_json(message)).mount(&server).await;
    let config = ProviderConfig { stream: When::Always, ..provider(&server.uri()) };
    let client = LlmClient::new("main", &config).expect("a valid provider");
    assert_eq!(client.complete(&request("x")).await.expect("an answer").turn.text, "whole");
}

/// Serves one connection with the head of a stream and these events, then says nothing more.
async fn silent_after(data: &[&str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let body = events(data);
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.expect("a client");
        let mut request = [0; 4096];
        let _ = socket.read(&mut request).await;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nrequest-id: req_q\r\n\r\n";
        let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
        std::future::pending::<()>().await;
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_stream_that_goes_quiet_is_given_up_with_a_code_of_its_own() {
    let url = silent_after(&[START, TEXT]).await;
    let config = ProviderConfig { stall_timeout: Duration::from_millis(200), stream: When::Always, ..provider(&url) };
    let error = LlmClient::new("main", &config).expect("a valid provider").complete(&request("x")).await;
    let error = error.expect_err("it went quiet");
    assert_eq!(error.request_id(), Some("req_q"));
    let failure = Failure::from(error);
    assert_eq!((failure.code.as_ref(), failure.retry()), ("llm_stalled", Retry::After(None)));
    assert!(failure.message.contains("200ms"), "{}", failure.message);
}

#[tokio::test]
async fn a_stream_takes_no_longer_than_the_call_may_take() {
    let url = silent_after(&[]).await;
    let config = ProviderConfig { timeout: Duration::from_millis(200), stream: When::Always, ..provider(&url) };
    let error = LlmClient::new("main", &config).expect("a valid provider").complete(&request("x")).await;
    assert!(matches!(error, Err(LlmError::TimedOut { .. })), "{error:?}");
}

/// JSON values with everything that could be written in two ways.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_filter("JSON has no others", |number| number.is_finite()).prop_map(|n| json!(n)),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"é]{1,4}", inner, 0..4).prop_map(|members| json!(members)),
        ]
    })
}

fn block() -> impl Strategy<Value = Value> {
    prop_oneof![
        "\\PC{0,40}".prop_map(|text| json!({"type": "text", "text": text})),
        ("\\PC{0,40}", "[A-Za-z0-9+/=]{4,20}")
            .prop_map(|(text, signature)| json!({"type": "thinking", "thinking": text, "signature": signature})),
        "[a-z]{1,20}".prop_map(|data| json!({"type": "redacted_thinking", "data": data})),
        prop::collection::btree_map("[a-z]{1,4}", json_value(), 0..4)
            .prop_map(|input| json!({"type": "tool_use", "id": "t1", "name": "add", "input": input})),
        json_value().prop_map(|value| json!({"type": "hologram", "value": value})),
    ]
}

fn turn() -> impl Strategy<Value = Arc<Turn>> {
    let result = ("\\PC{0,20}", any::<bool>()).prop_map(|(text, is_error)| ToolResult {
        tool_use_id: String::from("t1"),
        content: vec![text_block(text)],
        is_error,
    });
    prop_oneof![
        "\\PC{1,20}".prop_map(|text| Arc::new(Turn::User(text))),
        prop::collection::vec(block(), 0..4).prop_map(|blocks| assistant(&Value::from(blocks).to_string())),
        prop::collection::vec(result, 1..3).prop_map(|results| Arc::new(Turn::ToolResults(results))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_request_of_a_turn_begins_with_the_bytes_of_the_turn_before(
        turns in prop::collection::vec(turn(), 1..8),
        more in prop::collection::vec(turn(), 1..4),
    ) {
        let mut call = with_tools(request("task"), &["add", "get"]);
        call.system = Some(String::from("be brief"));
        call.turns.extend(turns);
        let body = |call: &LlmRequest| String::from_utf8(prepare(call, &ProviderConfig::default()).body).expect("text");
        let before = body(&call);
        call.turns.extend(more);
        let after = body(&call);
        let begun = before.strip_suffix("]}").expect("messages come last");
        prop_assert!(after.starts_with(begun), "{} does not begin with {}", after, begun);
    }

    #[test]
    fn a_message_is_the_same_in_whichever_pieces_it_comes(
        blocks in prop::collection::vec(block(), 0..5),
        cuts in prop::collection::vec(1_usize..9, 1..6),
    ) {
        let whole = json!({"model": "m", "content": blocks, "stop_reason": "end_turn", "usage": {"output_tokens": 1}});
        let mut cuts = cuts.into_iter().cycle();
        let mut pieces = |text: &str| {
            let chars: Vec<char> = text.chars().collect();
            let mut rest = chars.as_slice();
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                let (piece, left) = rest.split_at(cuts.next().expect("endless").min(rest.len()));
                pieces.push(piece.iter().collect::<String>());
                rest = left;
            }
            pieces
        };
        let mut events = vec![json!({"type": "message_start", "message": {"model": "m", "content": []}})];
        for (index, block) in blocks.iter().enumerate() {
            let mut begun = block.clone();
            let (member, delta, part) = match block["type"].as_str() {
                Some("text") => ("text", "text_delta", "text"),
                Some("thinking") => ("thinking", "thinking_delta", "thinking"),
                Some("tool_use") => ("input", "input_json_delta", "partial_json"),
                _ => ("", "", ""),
            };
            let grown = match &block[member] {
                Value::Null => Vec::new(),
                Value::String(text) => { begun[member] = json!(""); pieces(text) }
                input => { begun[member] = json!({}); pieces(&input.to_string()) }
            };
            events.push(json!({"type": "content_block_start", "index": index, "content_block": begun}));
            events.extend(grown.into_iter().map(
                |piece| json!({"type": "content_block_delta", "index": index, "delta": {"type": delta, part: piece}}),
            ));
        }
        events.push(json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}));
        events.push(json!({"type": "message_stop"}));
        let mut assembly = Assembly::default();
        let mut message = None;
        for event in &events {
            if let Step::Message(body) = assembly.take(&event.to_string(), None).expect("it makes sense") {
                message = Some(body);
            }
        }
        let read = |body: &[u8]| response::completion(body, "m", None, Vec::new()).expect("a message");
        let (streamed, whole) = (read(&message.expect("it ended")), read(whole.to_string().as_bytes()));
        prop_assert_eq!(streamed.turn.raw.get(), whole.turn.raw.get());
        prop_assert_eq!(streamed.turn.tool_uses, whole.turn.tool_uses);
    }
}
