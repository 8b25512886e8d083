//! A chat completion as the worker's own completion, tolerant of what the many servers of this protocol make of it.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::calls::{self, Ids};
use super::{Read, error};
use crate::domain::message::{AssistantTurn, Completion, StopReason, ToolUse, Usage};

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    message: Option<IndexMap<String, Box<RawValue>>>,
    #[serde(default)]
    finish_reason: Option<String>,
    /// Some servers name the stop sequence here.
    #[serde(default)]
    stop_reason: Option<Value>,
    #[serde(default)]
    error: Option<Value>,
}

/// Tokens as servers count them.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct WireUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    total_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
    prompt_cache_hit_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

impl From<WireUsage> for Usage {
    /// Cached tokens are part of the input already. Some servers leave what the model thought out of the tokens that
    /// it wrote, but not out of the sum.
    fn from(wire: WireUsage) -> Self {
        let input_tokens = wire.prompt_tokens.unwrap_or_default();
        let written = wire.completion_tokens.unwrap_or_default();
        let beside = wire.total_tokens.unwrap_or_default().saturating_sub(input_tokens);
        let details = wire.prompt_tokens_details.unwrap_or_default();
        Self {
            input_tokens,
            output_tokens: written.max(beside),
            cache_read_tokens: details.cached_tokens.or(wire.prompt_cache_hit_tokens).unwrap_or_default(),
            cache_write_tokens: details.cache_write_tokens.unwrap_or_default(),
            cost: None,
        }
    }
}

/// Reads a completion. `asked` is the model of the request, for servers that name none in the answer.
pub(super) fn completion(body: &[u8], asked: &str, ids: &mut Ids<'_>) -> Result<Read, String> {
    let Body { model, choices, usage } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let choice = choices.into_iter().next().ok_or("it has no `choices`")?;
    if let Some(error) = choice.error.filter(|error| !error.is_null()) {
        return Ok(Read::Error(error::of_error(&error)));
    }
    let reason = choice.finish_reason.ok_or("it has no `finish_reason`, so it is not complete")?;
    let message = Message::read(choice.message.ok_or("its choice has no `message`")?, ids)?;
    let stop_reason = stop_reason(&reason, choice.stop_reason.as_ref(), &message);
    let Message { raw, text, mut tool_uses, .. } = message;
    // What was being written when the answer was cut may lack arguments; running it would be a guess.
    if matches!(stop_reason, StopReason::MaxTokens | StopReason::Refusal { .. }) {
        tool_uses.pop();
    }
    Ok(Read::Completion(Box::new(Completion {
        turn: AssistantTurn { raw, text, tool_uses, author: None },
        stop_reason,
        model: model.filter(|model| !model.is_empty()).unwrap_or_else(|| asked.to_owned()),
        provider: None,
        usage: usage.map(Usage::from).unwrap_or_default(),
        request_id: None,
        warnings: Vec::new(),
        shortened: 0,
    })))
}

fn stop_reason(reason: &str, sequence: Option<&Value>, message: &Message) -> StopReason {
    if let Some(refusal) = &message.refusal {
        return StopReason::Refusal { category: None, explanation: Some(refusal.clone()) };
    }
    match reason {
        "length" | "max_tokens" => StopReason::MaxTokens,
        "content_filter" => StopReason::Refusal { category: Some(String::from("content_filter")), explanation: None },
        // Some servers say that the answer is complete although tools are called; what is called counts.
        "stop" | "tool_calls" | "function_call" | "eos" | "end_turn" if !message.tool_uses.is_empty() => {
            StopReason::ToolUse
        }
        "stop" if sequence.is_some_and(Value::is_string) => StopReason::StopSequence,
        "stop" | "eos" | "end_turn" => StopReason::EndTurn,
        other => StopReason::Other(other.to_owned()),
    }
}

/// A message, made fit to be sent back.
struct Message {
    raw: Box<RawValue>,
    text: String,
    refusal: Option<String>,
    tool_uses: Vec<ToolUse>,
}

#[derive(Deserialize)]
struct WireCall {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    function: Option<WireFunction>,
}

#[derive(Deserialize)]
struct WireFunction {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<Box<RawValue>>,
}

type Members = IndexMap<String, Box<RawValue>>;

impl Message {
    /// Reads a message. Members that nobody knows are kept as they came; empty ones are left out, because servers that
    /// send `"tool_calls": null` themselves refuse to be sent it.
    fn read(mut members: Members, ids: &mut Ids<'_>) -> Result<Self, String> {
        members.shift_remove("role");
        let content = members.shift_remove("content");
        let text = content.as_deref().map(text_of).transpose()?.unwrap_or_default();
        let calls = members.shift_remove("tool_calls").filter(|calls| !matches!(calls.get(), "null" | "[]"));
        let (calls, tool_uses) = match calls {
            Some(calls) => read_calls(calls, ids)?,
            None => (None, Vec::new()),
        };
        members.retain(|_, value| !matches!(value.get().trim(), "null" | "[]" | "\"\""));
        let refusal = members.get("refusal").and_then(|raw| serde_json::from_str(raw.get()).ok());
        let nothing = |value: &RawValue| matches!(value.get().trim(), "null" | "\"\"" | "[]");
        let content = content.filter(|content| !nothing(content));
        let raw = if content.is_none() && calls.is_none() && members.is_empty() {
            json("[]")
        } else {
            let mut whole = Members::with_capacity(members.len() + 3);
            whole.insert(String::from("role"), json("\"assistant\""));
            let empty = if calls.is_some() { "null" } else { "\"\"" };
            whole.insert(String::from("content"), content.unwrap_or_else(|| json(empty)));
            whole.extend(members);
            whole.extend(calls.map(|calls| (String::from("tool_calls"), calls)));
            to_raw_value(&whole).map_err(|error| error.to_string())?
        };
        Ok(Self { raw, text, refusal, tool_uses })
    }
}

fn json(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).expect("a constant that is JSON")
}

/// The text of a content: itself, or that of its parts.
fn text_of(content: &RawValue) -> Result<String, String> {
    let content: Value = serde_json::from_str(content.get()).map_err(|error| error.to_string())?;
    Ok(match content {
        Value::String(text) => text,
        Value::Array(parts) => {
            let texts = parts.iter().filter(|part| part["type"] == "text").filter_map(|part| part["text"].as_str());
            texts.collect()
        }
        Value::Null => String::new(),
        other => return Err(format!("the `content` of its message is neither text nor parts: {other}")),
    })
}

/// Reads the calls; the raw text is written anew only where a server's call could not be sent back.
fn read_calls(raw: Box<RawValue>, ids: &mut Ids<'_>) -> Result<(Option<Box<RawValue>>, Vec<ToolUse>), String> {
    let wire: Vec<WireCall> =
        serde_json::from_str(raw.get()).map_err(|error| format!("its `tool_calls` make no sense: {error}"))?;
    let mut tool_uses = Vec::with_capacity(wire.len());
    let mut changes = Vec::with_capacity(wire.len());
    for (index, WireCall { id, function }) in wire.into_iter().enumerate() {
        let WireFunction { name, arguments } = function.ok_or("a tool call has no `function`")?;
        let call = calls::read(ids, index, id.as_deref(), name, arguments.as_deref())?;
        changes.push((call.id, call.arguments));
        tool_uses.push(call.tool_use);
    }
    if changes.iter().all(|(id, arguments)| id.is_none() && arguments.is_none()) {
        return Ok((Some(raw), tool_uses));
    }
    let mut whole: Vec<Members> = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    let text = |text: &String| to_raw_value(text).map_err(|error| error.to_string());
    for (call, (id, arguments)) in whole.iter_mut().zip(&changes) {
        if let Some(id) = id {
            call.insert(String::from("id"), text(id)?);
            call.entry(String::from("type")).or_insert_with(|| json("\"function\""));
        }
        if let (Some(arguments), Some(function)) = (arguments, call.get_mut("function")) {
            let mut members: Members = serde_json::from_str(function.get()).map_err(|error| error.to_string())?;
            members.insert(String::from("arguments"), text(arguments)?);
            *function = to_raw_value(&members).map_err(|error| error.to_string())?;
        }
    }
    Ok((Some(to_raw_value(&whole).map_err(|error| error.to_string())?), tool_uses))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clients::llm::fixture::request;

    fn read_text(body: &str) -> Result<Completion, String> {
        let call = request("x");
        match completion(body.as_bytes(), "asked", &mut Ids::of(&call))? {
            Read::Completion(completion) => Ok(*completion),
            Read::Error(told) => Err(format!("an error: {told:?}")),
        }
    }

    fn read(message: &Value, finish_reason: &str) -> Completion {
        let body = json!({"model": "m", "choices": [{"message": message, "finish_reason": finish_reason}]});
        read_text(&body.to_string()).expect("a completion")
    }

    fn call(id: Value, arguments: Value) -> Value {
        json!({"id": id, "type": "function", "function": {"name": "add", "arguments": arguments}})
    }

    #[test]
    fn a_message_is_kept_byte_for_byte_but_for_its_empty_members() {
        let calls = r#"[{"id":"c1","type":"function","function":{"name":"add","arguments":"{\"b\": 1, \"a\": 2}"},"extra_content":{"google":{"thought_signature":"Ab+/="}}}]"#;
        let body = format!(
            r#"{{"choices":[{{"finish_reason":"tool_calls","message":{{"content":"é\u00e9","role":"assistant","refusal":null,"annotations":[],"reasoning_content":"why","new":12345678901234567890123,"tool_calls":{calls}}}}}],"usage":{{"prompt_tokens":1}}}}"#
        );
        let read = read_text(&body).expect("a completion");
        assert_eq!(
            read.turn.raw.get(),
            format!(
                r#"{{"role":"assistant","content":"é\u00e9","reasoning_content":"why","new":12345678901234567890123,"tool_calls":{calls}}}"#
            )
        );
        assert_eq!((read.turn.text.as_str(), read.model.as_str()), ("éé", "asked"));
        assert_eq!(read.turn.tool_uses[0].input, *json!({"b": 1, "a": 2}).as_object().expect("an object"));
        assert_eq!(read.stop_reason, StopReason::ToolUse);
    }

    #[test]
    fn every_finish_reason_has_its_arm() {
        let refusal =
            |category: Option<&str>| StopReason::Refusal { category: category.map(str::to_owned), explanation: None };
        for (wire, reason) in [
            ("stop", StopReason::EndTurn),
            ("length", StopReason::MaxTokens),
            ("content_filter", refusal(Some("content_filter"))),
            ("coffee", StopReason::Other(String::from("coffee"))),
        ] {
            assert_eq!(read(&json!({"content": "a"}), wire).stop_reason, reason);
        }
        let refused = read(&json!({"content": null, "refusal": "I will not."}), "stop");
        let words = Some(String::from("I will not."));
        assert_eq!(refused.stop_reason, StopReason::Refusal { category: None, explanation: words });
        let stopped = r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop","stop_reason":"END"}]}"#;
        assert_eq!(read_text(stopped).expect("a completion").stop_reason, StopReason::StopSequence);
    }

    #[test]
    fn calls_count_whatever_the_reason_says_unless_they_were_cut_off() {
        let message =
            json!({"content": "", "tool_calls": [call(json!("c1"), json!("{}")), call(json!("c2"), json!("{\"x\":"))]});
        let complete = read(&message, "stop");
        assert_eq!((complete.stop_reason, complete.turn.tool_uses.len()), (StopReason::ToolUse, 2));
        let cut = read(&message, "length");
        assert_eq!((cut.stop_reason, cut.turn.tool_uses.len()), (StopReason::MaxTokens, 1));
        assert_eq!(read(&message, "content_filter").turn.tool_uses.len(), 1);
    }

    #[test]
    fn calls_that_could_not_be_sent_back_are_mended_and_nothing_else_is() {
        let message = json!({"content": null, "tool_calls": [
            call(json!("c1"), json!({"x": 1})), call(json!("c1"), json!("{}")), call(Value::Null, json!("{oops")),
        ]});
        let read = read(&message, "tool_calls");
        let ids: Vec<&str> = read.turn.tool_uses.iter().map(|tool| tool.id.as_str()).collect();
        assert!(ids[0] == "c1" && ids[1].starts_with("call_") && ids[2].starts_with("call_") && ids[1] != ids[2]);
        let problem = read.turn.tool_uses[2].problem.as_deref();
        assert!(problem.is_some_and(|why| why.contains("not a JSON object")), "{problem:?}");
        let raw: Value = serde_json::from_str(read.turn.raw.get()).expect("JSON");
        assert_eq!(raw["content"], Value::Null);
        let calls = raw["tool_calls"].as_array().expect("calls");
        assert_eq!(calls[0], call(json!("c1"), json!(r#"{"x":1}"#)));
        assert_eq!((&calls[1]["id"], &calls[2]["id"]), (&json!(ids[1]), &json!(ids[2])));
        assert_eq!(calls[2]["function"]["arguments"], r#"{"invalid_json":"{oops"}"#);
    }

    #[test]
    fn a_message_that_says_nothing_is_nothing() {
        for message in [json!({"role": "assistant", "content": null}), json!({"content": "", "tool_calls": []})] {
            let read = read(&message, "stop");
            assert_eq!((read.turn.raw.get(), read.turn.text.as_str()), ("[]", ""));
        }
        let thought = read(&json!({"content": "", "reasoning": "r"}), "stop");
        assert_eq!(thought.turn.raw.get(), r#"{"role":"assistant","content":"","reasoning":"r"}"#);
    }

    #[test]
    fn parts_of_a_content_are_read_as_text() {
        let parts = json!([{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        assert_eq!(read(&json!({"content": parts}), "stop").turn.text, "ab");
    }

    #[test]
    fn tokens_are_counted_with_those_that_were_thought() {
        let usage = |wire: Value| -> Usage { serde_json::from_value::<WireUsage>(wire).expect("usage").into() };
        let details = json!({"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107,
            "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 5}});
        let whole =
            Usage { input_tokens: 100, output_tokens: 7, cache_read_tokens: 80, cache_write_tokens: 5, cost: None };
        assert_eq!(usage(details), whole);
        let beside = usage(json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 65}));
        assert_eq!((beside.input_tokens, beside.output_tokens), (10, 55));
        assert_eq!(usage(json!({"prompt_tokens": 9, "prompt_cache_hit_tokens": 4})).cache_read_tokens, 4);
        assert_eq!(usage(json!({"prompt_tokens_details": null})), Usage::default());
    }

    #[test]
    fn what_is_no_completion_is_refused_with_the_reason() {
        for (body, words) in [
            (r#"{"object":"list"}"#, "no `choices`"),
            (r#"{"choices":[{"message":{"content":"a"}}]}"#, "not complete"),
            (r#"{"choices":[{"finish_reason":"stop"}]}"#, "no `message`"),
            (r#"{"choices":[{"finish_reason":"stop","message":{"content":3}}]}"#, "neither text nor parts"),
            (r#"{"choices":[{"finish_reason":"stop","message":{"tool_calls":[{"id":"c"}]}}]}"#, "no `function`"),
            (r#"{"choices":[{"finish_reason":"stop","message":{"tool_calls":[{"function":{}}]}}]}"#, "no name"),
            (r#"{"choices":[{"error":{"message":"busy","code":502},"message":null}]}"#, "an error"),
        ] {
            let problem = read_text(body).expect_err(words);
            assert!(problem.contains(words), "{words}: {problem}");
        }
    }
}
