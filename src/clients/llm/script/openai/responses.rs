//! Responses: the request read, the answer written.

use serde_json::{Value, json};

use super::{answer_schema, arguments, common, known_members, pieces, result, tokens_read, tool, user_content};
use crate::clients::llm::script::ApiError;

const MEMBERS: &[&str] = &[
    "model",
    "input",
    "instructions",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "text",
    "reasoning",
    "include",
    "store",
    "temperature",
    "top_p",
    "stream",
    "metadata",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
];

/// A request as one of the Messages API.
pub(super) fn request(body: &Value) -> Result<Value, ApiError> {
    known_members(body, MEMBERS)?;
    let mut system: Vec<String> = body["instructions"].as_str().map(str::to_owned).into_iter().collect();
    let mut messages = Vec::new();
    if body["input"].is_string() {
        messages.push(json!({"role": "user", "content": body["input"]}));
    }
    // Items of one turn become one message.
    let mut turn: Vec<Value> = Vec::new();
    for (index, item) in body["input"].as_array().into_iter().flatten().enumerate() {
        let path = format!("input[{index}]");
        match (item["type"].as_str().unwrap_or("message"), item["role"].as_str()) {
            ("message", Some("assistant")) => turn.extend(said(&item["content"])),
            ("reasoning", _) => {
                if body["store"] == false && !item["encrypted_content"].is_string() {
                    let id = &item["id"];
                    return Err(ApiError::invalid(format!("{path}: item {id} is not stored and not encrypted")));
                }
                turn.push(json!({"type": "thinking", "thinking": item["summary"][0]["text"],
                    "signature": item["encrypted_content"]}));
            }
            ("function_call", _) => turn.push(json!({"type": "tool_use", "id": item["call_id"], "name": item["name"],
                "input": arguments(&item["arguments"], &path)?})),
            (kind, role) => {
                if !turn.is_empty() {
                    messages.push(json!({"role": "assistant", "content": std::mem::take(&mut turn)}));
                }
                match (kind, role) {
                    ("message", Some("user")) => {
                        messages.push(json!({"role": "user", "content": user_content(&item["content"])}));
                    }
                    ("message", Some("system" | "developer")) => {
                        system.push(item["content"].as_str().unwrap_or_default().to_owned());
                    }
                    ("function_call_output", _) => {
                        let result = result(&item["call_id"], &item["output"]);
                        messages.push(json!({"role": "user", "content": [result]}));
                    }
                    (kind, _) => return Err(ApiError::invalid(format!("{path}: the type {kind:?} is not known"))),
                }
            }
        }
    }
    if !turn.is_empty() {
        messages.push(json!({"role": "assistant", "content": turn}));
    }
    let mut tools = Vec::new();
    for (index, listed) in body["tools"].as_array().into_iter().flatten().enumerate() {
        if listed["type"] != "function" {
            return Err(ApiError::invalid(format!("tools[{index}].type: must be \"function\"")));
        }
        let mut listed = listed.clone();
        if listed["strict"].is_null() {
            listed["strict"] = json!(true);
        }
        tools.push(tool(&listed)?);
    }
    if body["text"]["format"]["type"] == "json_schema" {
        answer_schema(&body["text"]["format"])?;
    }
    Ok(common(body, &body["max_output_tokens"], tools, messages, system))
}

fn said(content: &Value) -> Vec<Value> {
    match content {
        Value::String(text) => vec![json!({"type": "text", "text": text})],
        parts => {
            let parts = parts.as_array().into_iter().flatten().filter(|part| part["type"] == "output_text");
            parts.map(|part| json!({"type": "text", "text": part["text"]})).collect()
        }
    }
}

/// A message as a response.
pub(super) fn response(message: &Value) -> Value {
    let (status, incomplete) = match message["stop_reason"].as_str() {
        Some("max_tokens") => ("incomplete", json!({"reason": "max_output_tokens"})),
        Some("refusal") if !message["stop_details"]["explanation"].is_string() => {
            ("incomplete", json!({"reason": "content_filter"}))
        }
        Some("end_turn" | "stop_sequence" | "pause_turn" | "tool_use" | "refusal") => ("completed", Value::Null),
        _ => ("incomplete", json!({"reason": message["stop_reason"]})),
    };
    let (read, cached) = tokens_read(&message["usage"]);
    let written = message["usage"]["output_tokens"].as_u64().unwrap_or_default();
    json!({
        "id": format!("resp_{}", message["id"].as_str().unwrap_or_default()),
        "object": "response",
        "created_at": 1_790_000_000,
        "status": status,
        "error": null,
        "incomplete_details": incomplete,
        "model": message["model"],
        "output": items(message, status),
        "store": false,
        "usage": {
            "input_tokens": read, "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": written, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": read + written,
        },
    })
}

fn items(message: &Value, status: &str) -> Vec<Value> {
    let id = message["id"].as_str().unwrap_or_default();
    let mut items: Vec<Value> = Vec::new();
    for (index, block) in message["content"].as_array().into_iter().flatten().enumerate() {
        match block["type"].as_str() {
            Some("thinking") => items.push(json!({"id": format!("rs_{id}_{index}"), "type": "reasoning",
                "summary": [{"type": "summary_text", "text": block["thinking"]}],
                "encrypted_content": block["signature"]})),
            Some("text") => items.push(json!({"id": format!("msg_{id}_{index}"), "type": "message",
                "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": block["text"], "annotations": []}]})),
            Some("tool_use") => items.push(json!({"id": format!("fc_{id}_{index}"), "type": "function_call",
                "status": "completed", "call_id": block["id"], "name": block["name"],
                "arguments": block["input"].to_string()})),
            _ => {}
        }
    }
    if let Some(words) = message["stop_details"]["explanation"].as_str() {
        items.push(json!({"id": format!("msg_{id}_refusal"), "type": "message", "role": "assistant",
            "status": "completed", "content": [{"type": "refusal", "refusal": words}]}));
    }
    if let Some(last) = items.last_mut().filter(|item| status == "incomplete" && item["status"].is_string()) {
        last["status"] = json!("incomplete");
    }
    items
}

/// A message as the events of a stream.
pub(super) fn events(message: &Value) -> Vec<Value> {
    let whole = response(message);
    let mut begun = whole.clone();
    begun["status"] = json!("in_progress");
    begun["output"] = json!([]);
    begun["usage"] = Value::Null;
    begun["incomplete_details"] = Value::Null;
    let mut events = vec![json!({"type": "response.created", "response": begun})];
    for (index, item) in whole["output"].as_array().into_iter().flatten().enumerate() {
        let mut empty = item.clone();
        empty["status"] = json!("in_progress");
        let (name, text) = match item["type"].as_str() {
            Some("message") => {
                empty["content"] = json!([]);
                ("response.output_text.delta", item["content"][0]["text"].as_str())
            }
            Some("function_call") => {
                empty["arguments"] = json!("");
                ("response.function_call_arguments.delta", item["arguments"].as_str())
            }
            _ => ("response.reasoning_summary_text.delta", item["summary"][0]["text"].as_str()),
        };
        events.push(json!({"type": "response.output_item.added", "output_index": index, "item": empty}));
        let deltas = pieces(text.unwrap_or_default()).into_iter();
        events.extend(
            deltas.map(|delta| json!({"type": name, "output_index": index, "item_id": item["id"], "delta": delta})),
        );
        events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
    }
    let last = if whole["status"] == "completed" { "response.completed" } else { "response.incomplete" };
    events.push(json!({"type": last, "response": whole}));
    for (number, event) in events.iter_mut().enumerate() {
        event["sequence_number"] = json!(number);
    }
    events
}
