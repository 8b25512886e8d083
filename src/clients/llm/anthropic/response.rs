//! What the Messages API sends back: messages, errors, and the headers about them.

use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::clients::llm::StatusError;
use crate::clients::llm::headers::{self, ErrorText};
use crate::domain::message::{AssistantTurn, Completion, StopReason, ToolUse, Usage};

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    model: Option<String>,
    content: Box<RawValue>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    stop_details: Option<StopDetails>,
    #[serde(default)]
    usage: WireUsage,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StopDetails {
    category: Option<String>,
    explanation: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
}

/// The members of a block that the worker reads; blocks of other types pass through unread.
#[derive(Deserialize)]
struct Block {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    input: Option<Value>,
}

/// Reads a message. `asked` is the model of the request, for servers that name none in the answer.
pub(in crate::clients::llm) fn completion(
    body: &[u8],
    asked: &str,
    request_id: Option<String>,
    warnings: Vec<String>,
) -> Result<Completion, String> {
    let message: Message = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let blocks: Vec<Block> = serde_json::from_str(message.content.get())
        .map_err(|error| format!("`content` is no list of blocks: {error}"))?;
    let reason = message.stop_reason.ok_or("it has no `stop_reason`, so it is not complete")?;
    let stop_reason = stop_reason(reason, message.stop_details.unwrap_or_default());
    let text = blocks.iter().filter(|block| block.r#type == "text").filter_map(|block| block.text.as_deref()).collect();
    // What was being written when the answer was cut may lack arguments; running it would be a guess.
    let cut = matches!(stop_reason, StopReason::MaxTokens | StopReason::ContextExceeded | StopReason::Refusal { .. });
    let whole = if cut { blocks.len().saturating_sub(1) } else { blocks.len() };
    let tool_uses = blocks
        .into_iter()
        .take(whole)
        .filter(|block| block.r#type == "tool_use")
        .map(tool_use)
        .collect::<Result<_, _>>()?;
    Ok(Completion {
        turn: AssistantTurn { raw: message.content, text, tool_uses, author: None },
        stop_reason,
        model: message.model.filter(|model| !model.is_empty()).unwrap_or_else(|| asked.to_owned()),
        provider: None,
        usage: usage(&message.usage),
        request_id,
        warnings,
        shortened: 0,
    })
}

fn stop_reason(reason: String, details: StopDetails) -> StopReason {
    match reason.as_str() {
        "end_turn" => StopReason::EndTurn,
        "tool_use" => StopReason::ToolUse,
        "max_tokens" => StopReason::MaxTokens,
        "stop_sequence" => StopReason::StopSequence,
        // After a summary of its own the provider waits to be asked to go on, as after a pause.
        "pause_turn" | "compaction" => StopReason::PauseTurn,
        "refusal" => StopReason::Refusal { category: details.category, explanation: details.explanation },
        "model_context_window_exceeded" => StopReason::ContextExceeded,
        _ => StopReason::Other(reason),
    }
}

fn tool_use(block: Block) -> Result<ToolUse, String> {
    let name = block.name.filter(|name| !name.is_empty()).ok_or("a `tool_use` block has no `name`")?;
    let id = block.id.filter(|id| !id.is_empty()).ok_or_else(|| format!("the use of tool {name:?} has no `id`"))?;
    let input = match block.input {
        Some(Value::Object(input)) => input,
        // Servers that imitate the API leave out the arguments of a tool that takes none.
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err(format!("the `input` of tool {name:?} is not an object")),
    };
    Ok(ToolUse { id, name, input, problem: None })
}

/// The API counts cached tokens beside `input_tokens`; here they are part of them.
fn usage(wire: &WireUsage) -> Usage {
    let read = wire.cache_read_input_tokens.unwrap_or_default();
    let written = wire.cache_creation_input_tokens.unwrap_or_default();
    Usage {
        input_tokens: wire.input_tokens.unwrap_or_default().saturating_add(read).saturating_add(written),
        output_tokens: wire.output_tokens.unwrap_or_default(),
        cache_read_tokens: read,
        cache_write_tokens: written,
        cost: None,
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorMember,
    #[serde(default)]
    request_id: Option<String>,
}

#[derive(Deserialize)]
struct ErrorMember {
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

/// Reads an error answer; a body that is no error of the API still makes an error with its status. A gateway may
/// repeat the key in its message, so the key is cut out.
pub(in crate::clients::llm) fn error(
    provider: &str,
    status: u16,
    headers: &HeaderMap,
    body: &[u8],
    key: Option<&str>,
) -> StatusError {
    let parsed: Option<ErrorBody> = serde_json::from_slice(body).ok();
    let text = parsed.map(|body| ErrorText {
        kind: body.error.r#type,
        message: body.error.message,
        request_id: body.request_id,
    });
    headers::status_error(provider, status, headers, text.unwrap_or_default(), key)
}

/// Whether a body with a status of success is an error all the same, as some gateways send it.
pub(in crate::clients::llm) fn is_error(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(default)]
        r#type: Option<String>,
        #[serde(default)]
        error: Option<Map<String, Value>>,
        #[serde(default)]
        content: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Kind>(body).is_ok_and(|body| {
        body.error.is_some() && body.content.is_none() && body.r#type.is_none_or(|kind| kind == "error")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(message: &Value) -> Result<Completion, String> {
        completion(message.to_string().as_bytes(), "asked", Some(String::from("req_1")), Vec::new())
    }

    fn with_reason(reason: &str, content: Value) -> Completion {
        read(&json!({"model": "m", "content": content, "stop_reason": reason, "usage": {}})).expect("a message")
    }

    #[test]
    fn blocks_are_found_by_type_and_the_raw_text_stays_as_it_came() {
        let raw = r#"[{"type":"thinking","thinking":"","signature":"s=="}, {"type":"text","text":"a"},{"type":"later","x":1.0},{"type":"text","text":"b"},{"type":"tool_use","id":"t1","name":"add","input":{"b":1,"a":2}}]"#;
        let body = format!(r#"{{"id":"msg_1","content":{raw},"stop_reason":"tool_use","model":"m","new_member":1}}"#);
        let read = completion(body.as_bytes(), "asked", None, Vec::new()).expect("a message");
        assert_eq!(read.turn.raw.get(), raw);
        assert_eq!(read.turn.text, "ab");
        assert_eq!(read.turn.tool_uses.len(), 1);
        assert_eq!(read.turn.tool_uses[0].input, *json!({"b": 1, "a": 2}).as_object().expect("object"));
        assert_eq!((read.model.as_str(), read.stop_reason), ("m", StopReason::ToolUse));
    }

    #[test]
    fn every_stop_reason_has_its_arm() {
        for (wire, reason) in [
            ("end_turn", StopReason::EndTurn),
            ("tool_use", StopReason::ToolUse),
            ("max_tokens", StopReason::MaxTokens),
            ("stop_sequence", StopReason::StopSequence),
            ("pause_turn", StopReason::PauseTurn),
            ("compaction", StopReason::PauseTurn),
            ("model_context_window_exceeded", StopReason::ContextExceeded),
            ("coffee_break", StopReason::Other(String::from("coffee_break"))),
        ] {
            assert_eq!(with_reason(wire, json!([])).stop_reason, reason);
        }
        let refusal = json!({"content": [], "stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "bio", "explanation": null}});
        let reason = StopReason::Refusal { category: Some(String::from("bio")), explanation: None };
        assert_eq!(read(&refusal).expect("a refusal").stop_reason, reason);
        let bare = json!({"content": [], "stop_reason": "refusal", "stop_details": null});
        assert_eq!(
            read(&bare).expect("a refusal").stop_reason,
            StopReason::Refusal { category: None, explanation: None }
        );
    }

    #[test]
    fn a_tool_use_that_was_cut_off_is_not_asked_for() {
        let content = json!([
            {"type": "tool_use", "id": "t1", "name": "whole", "input": {"x": 1}},
            {"type": "tool_use", "id": "t2", "name": "cut", "input": {}},
        ]);
        for reason in ["max_tokens", "model_context_window_exceeded", "refusal"] {
            let uses = with_reason(reason, content.clone()).turn.tool_uses;
            assert_eq!(uses.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["whole"], "{reason}");
        }
        assert_eq!(with_reason("tool_use", content).turn.tool_uses.len(), 2);
    }

    #[test]
    fn cached_tokens_are_part_of_the_input() {
        let usage = json!({"input_tokens": 10, "cache_creation_input_tokens": 200, "cache_read_input_tokens": 3000,
            "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 5}});
        let read = read(&json!({"content": [], "stop_reason": "end_turn", "usage": usage})).expect("a message");
        assert_eq!(
            read.usage,
            Usage {
                input_tokens: 3210,
                output_tokens: 7,
                cache_read_tokens: 3000,
                cache_write_tokens: 200,
                cost: None
            }
        );
        assert_eq!(read.model, "asked", "a server that names no model answers with the one asked for");
    }

    #[test]
    fn what_is_no_message_is_refused_with_the_reason() {
        for (body, words) in [
            (json!({"stop_reason": "end_turn"}), "content"),
            (json!({"content": [], "stop_reason": null}), "not complete"),
            (json!({"content": "text", "stop_reason": "end_turn"}), "no list of blocks"),
            (json!({"content": [{"type": "tool_use", "id": "t"}], "stop_reason": "tool_use"}), "no `name`"),
            (json!({"content": [{"type": "tool_use", "name": "a"}], "stop_reason": "tool_use"}), "no `id`"),
            (
                json!({"content": [{"type": "tool_use", "id": "t", "name": "a", "input": 3}], "stop_reason": "tool_use"}),
                "not an object",
            ),
        ] {
            let problem = read(&body).expect_err(words);
            assert!(problem.contains(words), "{words}: {problem}");
        }
        let no_arguments = json!([{"type": "tool_use", "id": "t", "name": "a"}]);
        assert!(with_reason("tool_use", no_arguments).turn.tool_uses[0].input.is_empty());
    }

    #[test]
    fn an_error_body_is_read_and_a_page_is_an_error_all_the_same() {
        let body = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"},
            "request_id": "req_body"});
        let error = error("p", 429, &HeaderMap::new(), body.to_string().as_bytes(), None);
        assert_eq!((error.kind.as_deref(), error.message.as_str()), (Some("rate_limit_error"), "slow down"));
        assert_eq!(error.request_id.as_deref(), Some("req_body"));
        let page = super::error("p", 502, &HeaderMap::new(), b"<html>", None);
        assert_eq!((page.kind, page.message.as_str()), (None, "(no message)"));
    }

    #[test]
    fn an_error_is_told_from_a_message() {
        assert!(is_error(br#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#));
        assert!(is_error(br#"{"error":{"message":"m"}}"#));
        assert!(!is_error(br#"{"type":"message","content":[],"error":{}}"#));
        assert!(!is_error(b"<html>"));
    }
}
