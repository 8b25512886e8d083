//! The scripted model in the wire formats of OpenAI: a request becomes one of the Messages API, so that scripts, counts
//! and rules are the same, and the message becomes an answer in its format, whole or in pieces.

mod chat;
mod responses;

use serde_json::{Map, Value, json};

use super::{Api, ApiError, Pending, ScriptedModel};

/// Which of the two formats is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Chat completions.
    Chat,
    /// Responses.
    Responses,
}

/// The version of the Messages API whose rules are held.
const VERSION: &str = "2026-10-21";
/// Tokens that may be written where a request says nothing.
const MAX_TOKENS: u64 = 4096;

impl ScriptedModel {
    /// Decides the answer to a body in one of OpenAI's formats.
    pub fn answer_openai(&self, body: &Value, format: Format) -> Pending {
        let translated = match format {
            Format::Chat => chat::request(body),
            Format::Responses => responses::request(body),
        };
        match translated {
            Ok(request) => self.answer_as(&request, Api { version: VERSION, pauses: self.pauses, translated: true }),
            Err(error) => self.refuse(error),
        }
    }
}

/// A message as the whole answer in a format, or the error that stands for it there.
pub fn whole(message: &Value, format: Format) -> Result<Value, ApiError> {
    if message["stop_reason"] == "model_context_window_exceeded" {
        let message = String::from("the conversation is longer than the model's context");
        return Err(ApiError { kind: String::from("context_length_exceeded"), message, ..ApiError::invalid("") });
    }
    Ok(match format {
        Format::Chat => chat::completion(message),
        Format::Responses => responses::response(message),
    })
}

/// A message as the events in which it is streamed, each as its name and its data; none has a name in chat completions.
pub fn events(message: &Value, format: Format, usage: bool) -> Vec<(String, String)> {
    match format {
        Format::Chat => {
            let chunks = chat::chunks(message, usage).into_iter().map(|chunk| chunk.to_string());
            chunks.chain([String::from("[DONE]")]).map(|data| (String::new(), data)).collect()
        }
        Format::Responses => responses::events(message)
            .into_iter()
            .map(|event| (event["type"].as_str().unwrap_or_default().to_owned(), event.to_string()))
            .collect(),
    }
}

/// An error in the shape of both formats.
pub fn error(error: &ApiError) -> Value {
    let (kind, code) = match error.kind.as_str() {
        "rate_limit_error" => ("requests", json!("rate_limit_exceeded")),
        "billing_error" => ("insufficient_quota", json!("insufficient_quota")),
        "authentication_error" => ("invalid_request_error", json!("invalid_api_key")),
        "not_found_error" => ("invalid_request_error", json!("model_not_found")),
        "api_error" => ("server_error", Value::Null),
        kind @ ("context_length_exceeded" | "insufficient_quota") => ("invalid_request_error", json!(kind)),
        kind => (kind, Value::Null),
    };
    json!({"error": {"message": error.message, "type": kind, "param": null, "code": code}})
}

/// Refuses members that the API does not know.
fn known_members(body: &Value, known: &[&str]) -> Result<(), ApiError> {
    let Value::Object(members) = body else { return Err(ApiError::invalid("the body is not a JSON object")) };
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(ApiError::invalid(format!("Unrecognized request argument supplied: {name}"))),
        None => Ok(()),
    }
}

/// The members that both formats have in common, in the Messages API's words.
fn common(body: &Value, limit: &Value, tools: Vec<Value>, messages: Vec<Value>, system: Vec<String>) -> Value {
    let mut request = Map::new();
    request.insert(String::from("model"), body["model"].clone());
    request.insert(String::from("max_tokens"), if limit.is_null() { json!(MAX_TOKENS) } else { limit.clone() });
    if !system.is_empty() {
        request.insert(String::from("system"), json!(system.join("\n\n")));
    }
    if body["tool_choice"].is_string() && !tools.is_empty() {
        let choice = match body["tool_choice"].as_str() {
            Some("required") => "any",
            Some("none") => "none",
            _ => "auto",
        };
        request.insert(String::from("tool_choice"), json!({ "type": choice }));
    }
    if !tools.is_empty() {
        request.insert(String::from("tools"), json!(tools));
    }
    if body["stream"] == true {
        request.insert(String::from("stream"), json!(true));
    }
    request.insert(String::from("messages"), json!(messages));
    Value::Object(request)
}

/// A function's description; `members` is the object that has its name.
fn tool(members: &Value) -> Result<Value, ApiError> {
    let parameters = &members["parameters"];
    if parameters["type"] == "object" && !parameters["properties"].is_object() {
        let name = members["name"].as_str().unwrap_or_default();
        return Err(ApiError::invalid(format!(
            "Invalid schema for function '{name}': object schema missing properties"
        )));
    }
    if members["strict"] == true {
        strict(parameters)?;
    }
    let mut tool = json!({"name": members["name"], "input_schema": parameters});
    if members["description"].is_string() {
        tool["description"] = members["description"].clone();
    }
    Ok(tool)
}

/// The rules of the strict mode: closed objects whose properties are all required, and a type for every part.
fn strict(schema: &Value) -> Result<(), ApiError> {
    let refuse = |why: &str| Err(ApiError::invalid(format!("Invalid schema for response_format: {why}: {schema}")));
    if schema.get("type").is_none() && schema.get("anyOf").is_none() {
        return refuse("schema must have a 'type' key");
    }
    if let Some(properties) = schema["properties"].as_object() {
        if schema["additionalProperties"] != false {
            return refuse("'additionalProperties' is required to be supplied and to be false");
        }
        let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
        if let Some(name) = properties.keys().find(|name| !required.iter().any(|known| known == *name)) {
            return refuse(&format!("'required' must include every key in properties, missing '{name}'"));
        }
        properties.values().try_for_each(strict)?;
    }
    if schema["items"].is_object() {
        strict(&schema["items"])?;
    }
    schema["anyOf"].as_array().into_iter().flatten().try_for_each(strict)
}

/// A schema of the answer, checked by the rules of its mode.
fn answer_schema(format: &Value) -> Result<(), ApiError> {
    if format["name"].as_str().is_none_or(str::is_empty) {
        return Err(ApiError::invalid("Missing required parameter: name of the schema"));
    }
    if format["schema"]["type"] != "object" {
        return Err(ApiError::invalid("Invalid schema for response_format: the root must be of the type 'object'"));
    }
    if format["strict"] == true { strict(&format["schema"]) } else { Ok(()) }
}

/// The arguments of a call that comes back: a text of a JSON object.
fn arguments(text: &Value, path: &str) -> Result<Value, ApiError> {
    let parsed = text.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    parsed
        .filter(Value::is_object)
        .ok_or_else(|| ApiError::invalid(format!("{path}: the arguments are not a text of a JSON object")))
}

/// A user's content: a text, or parts of which the texts count and the rest is only known to be there.
fn user_content(content: &Value) -> Value {
    let Some(parts) = content.as_array() else { return content.clone() };
    let blocks = parts.iter().map(|part| match part["type"].as_str() {
        Some("text" | "input_text") => json!({"type": "text", "text": part["text"]}),
        Some(kind) => json!({"type": kind}),
        None => part.clone(),
    });
    Value::Array(blocks.collect())
}

/// The content of a tool's answer as blocks.
fn result(id: &Value, content: &Value) -> Value {
    let content = match user_content(content) {
        Value::String(text) if text.is_empty() => json!([]),
        Value::String(text) => json!([{"type": "text", "text": text}]),
        other => other,
    };
    json!({"type": "tool_result", "tool_use_id": id, "content": content})
}

/// All text of a message.
fn text_of(message: &Value) -> String {
    let blocks = message["content"].as_array().into_iter().flatten();
    blocks.filter(|block| block["type"] == "text").filter_map(|block| block["text"].as_str()).collect()
}

/// Tokens read in all, and those of them that came out of the cache.
fn tokens_read(usage: &Value) -> (u64, u64) {
    let count = |name: &str| usage[name].as_u64().unwrap_or_default();
    let cached = count("cache_read_input_tokens");
    (count("input_tokens") + cached + count("cache_creation_input_tokens"), cached)
}

/// A text in pieces.
fn pieces(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(12).map(|piece| piece.iter().collect()).collect()
}
