//! Chat completions: the request read, the answer written.

use serde_json::{Value, json};

use super::{
    answer_schema, arguments, common, known_members, pieces, result, text_of, tokens_read, tool, user_content,
};
use crate::clients::llm::script::ApiError;

const MEMBERS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "service_tier",
];

/// A request as one of the Messages API.
pub(super) fn request(body: &Value) -> Result<Value, ApiError> {
    known_members(body, MEMBERS)?;
    let mut system = Vec::new();
    let mut messages = Vec::new();
    for (index, message) in body["messages"].as_array().into_iter().flatten().enumerate() {
        let path = format!("messages.[{index}]");
        let content = &message["content"];
        match message["role"].as_str() {
            Some("system" | "developer") => system.push(content.as_str().unwrap_or_default().to_owned()),
            Some("user") => messages.push(json!({"role": "user", "content": user_content(content)})),
            Some("tool") => {
                let result = result(&message["tool_call_id"], content);
                messages.push(json!({"role": "user", "content": [result]}));
            }
            Some("assistant") => messages.extend(assistant(message, &path)?),
            _ => return Err(ApiError::invalid(format!("{path}.role: is none of system, user, assistant, tool"))),
        }
    }
    let mut tools = Vec::new();
    for (index, listed) in body["tools"].as_array().into_iter().flatten().enumerate() {
        if listed["type"] != "function" {
            return Err(ApiError::invalid(format!("tools[{index}].type: must be \"function\"")));
        }
        tools.push(tool(&listed["function"])?);
    }
    if body["response_format"]["type"] == "json_schema" {
        answer_schema(&body["response_format"]["json_schema"])?;
    }
    let limit = if body["max_tokens"].is_null() { &body["max_completion_tokens"] } else { &body["max_tokens"] };
    Ok(common(body, limit, tools, messages, system))
}

fn assistant(message: &Value, path: &str) -> Result<Option<Value>, ApiError> {
    // What was thought came as details, with the signature that tells whether it was changed.
    let details = message["reasoning_details"].as_array().into_iter().flatten();
    let mut blocks: Vec<Value> = details
        .map(|detail| json!({"type": "thinking", "thinking": detail["text"], "signature": detail["signature"]}))
        .collect();
    if message.get("tool_calls").is_some_and(|calls| calls.as_array().is_none_or(Vec::is_empty)) {
        return Err(ApiError::invalid(format!("{path}.tool_calls: must be a list with at least one call")));
    }
    match &message["content"] {
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => blocks.push(json!({"type": "text", "text": text})),
        Value::Null if message.get("tool_calls").is_some() => {}
        _ => return Err(ApiError::invalid(format!("{path}.content: must be a text where no tool is called"))),
    }
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        if call["type"] != "function" {
            return Err(ApiError::invalid(format!("{path}.tool_calls: a call is not of the type function")));
        }
        let input = arguments(&call["function"]["arguments"], path)?;
        blocks.push(json!({"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": input}));
    }
    Ok((!blocks.is_empty()).then(|| json!({"role": "assistant", "content": blocks})))
}

/// A message as a completion.
pub(super) fn completion(message: &Value) -> Value {
    let mut body = frame(message, "chat.completion");
    body["choices"] = json!([{
        "index": 0, "message": said(message), "finish_reason": finish_reason(message), "logprobs": null,
    }]);
    body["usage"] = usage(message);
    body
}

fn frame(message: &Value, object: &str) -> Value {
    json!({"id": id(message), "object": object, "created": 1_790_000_000, "model": message["model"]})
}

fn id(message: &Value) -> String {
    format!("chatcmpl-{}", message["id"].as_str().unwrap_or_default())
}

fn said(message: &Value) -> Value {
    let blocks = || message["content"].as_array().into_iter().flatten();
    let text = text_of(message);
    let mut said = json!({"role": "assistant", "content": if text.is_empty() { Value::Null } else { json!(text) }, "refusal": null});
    let thought: Vec<Value> = blocks()
        .filter(|block| block["type"] == "thinking")
        .map(|block| json!({"type": "reasoning.text", "text": block["thinking"], "signature": block["signature"]}))
        .collect();
    if !thought.is_empty() {
        let texts = thought.iter().filter_map(|detail| detail["text"].as_str());
        said["reasoning"] = json!(texts.collect::<Vec<_>>().join("\n"));
        said["reasoning_details"] = json!(thought);
    }
    let calls: Vec<Value> = blocks()
        .filter(|block| block["type"] == "tool_use")
        .map(|block| {
            let function = json!({"name": block["name"], "arguments": block["input"].to_string()});
            json!({"id": block["id"], "type": "function", "function": function})
        })
        .collect();
    if !calls.is_empty() {
        said["tool_calls"] = json!(calls);
    }
    if let (Some("refusal"), Some(words)) =
        (message["stop_reason"].as_str(), message["stop_details"]["explanation"].as_str())
    {
        said["refusal"] = json!(words);
    }
    said
}

fn finish_reason(message: &Value) -> Value {
    match message["stop_reason"].as_str() {
        Some("end_turn" | "stop_sequence" | "pause_turn") => json!("stop"),
        Some("tool_use") => json!("tool_calls"),
        Some("max_tokens") => json!("length"),
        Some("refusal") if message["stop_details"]["explanation"].is_string() => json!("stop"),
        Some("refusal") => json!("content_filter"),
        _ => message["stop_reason"].clone(),
    }
}

fn usage(message: &Value) -> Value {
    let (read, cached) = tokens_read(&message["usage"]);
    let written = message["usage"]["output_tokens"].as_u64().unwrap_or_default();
    json!({"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached}})
}

/// A message as the chunks of a stream; `with_usage` adds the last one, which has no choices.
pub(super) fn chunks(message: &Value, with_usage: bool) -> Vec<Value> {
    let whole = said(message);
    let mut deltas = vec![json!({"role": "assistant", "content": ""})];
    for (index, detail) in whole["reasoning_details"].as_array().into_iter().flatten().enumerate() {
        let mut first = json!({"type": "reasoning.text", "index": index});
        first["signature"] = detail["signature"].clone();
        deltas.push(json!({"reasoning_details": [first]}));
        for piece in pieces(detail["text"].as_str().unwrap_or_default()) {
            let more = json!({"type": "reasoning.text", "index": index, "text": piece});
            deltas.push(json!({"reasoning": piece, "reasoning_details": [more]}));
        }
    }
    deltas.extend(pieces(whole["content"].as_str().unwrap_or_default()).iter().map(|piece| json!({"content": piece})));
    if whole["refusal"].is_string() {
        deltas.push(json!({"refusal": whole["refusal"]}));
    }
    for (index, call) in whole["tool_calls"].as_array().into_iter().flatten().enumerate() {
        let function = json!({"name": call["function"]["name"], "arguments": ""});
        deltas.push(
            json!({"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": function}]}),
        );
        for piece in pieces(call["function"]["arguments"].as_str().unwrap_or_default()) {
            deltas.push(json!({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}));
        }
    }
    let chunk = |delta: Value, reason: Value| {
        let mut chunk = frame(message, "chat.completion.chunk");
        chunk["choices"] = json!([{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": null}]);
        chunk
    };
    let mut chunks: Vec<Value> = deltas.into_iter().map(|delta| chunk(delta, Value::Null)).collect();
    chunks.push(chunk(json!({}), finish_reason(message)));
    if with_usage {
        let mut last = frame(message, "chat.completion.chunk");
        last["choices"] = json!([]);
        last["usage"] = usage(message);
        chunks.push(last);
    }
    chunks
}
