//! The rules of the Messages API that a client can break. A scripted model holds them too, so that a request which
//! the real service would refuse fails in a test and not in production.

use std::collections::HashSet;

use serde_json::Value;

use super::ApiError;
use super::reply::{is_signature, signature, signature_of_words};
use crate::clients::llm::anthropic::request::{NO_SAMPLING_SINCE, SAMPLING};

const MEMBERS: &[&str] = &[
    "model",
    "max_tokens",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "output_config",
    "thinking",
    "cache_control",
    "stop_sequences",
    "stream",
    "metadata",
    "service_tier",
    "speed",
    "inference_geo",
    "container",
    "diagnostics",
    "user_profile_id",
    "context_management",
    "mcp_servers",
    "temperature",
    "top_p",
    "top_k",
];

/// Keywords that the API refuses in the schema of an answer.
const REFUSED_KEYWORDS: &[&str] = &[
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "maxItems",
    "uniqueItems",
    "patternProperties",
    "oneOf",
    "not",
    "if",
    "prefixItems",
];

type Checked = Result<(), ApiError>;

fn refuse<T>(message: impl Into<String>) -> Result<T, ApiError> {
    Err(ApiError::invalid(message))
}

/// What a body is held to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Api<'a> {
    /// The version of the API.
    pub version: &'a str,
    /// Whether the script pauses turns, so that a conversation may end with the model's own.
    pub pauses: bool,
    /// Whether the body came in another format, whose servers know less rules.
    pub translated: bool,
}

/// Checks a body.
pub(super) fn request(body: &Value, api: Api<'_>) -> Checked {
    let Value::Object(members) = body else { return refuse("the body is not a JSON object") };
    for name in members.keys() {
        let gone = api.version >= NO_SAMPLING_SINCE && SAMPLING.contains(&name.as_str());
        if gone || !MEMBERS.contains(&name.as_str()) {
            return refuse(format!("{name}: Extra inputs are not permitted"));
        }
    }
    if body["model"].as_str().is_none_or(str::is_empty) {
        return refuse("model: Field required");
    }
    if body["max_tokens"].as_u64().is_none_or(|tokens| tokens == 0) {
        return refuse("max_tokens: a positive number is required");
    }
    tools(body)?;
    if let Some(schema) = body["output_config"]["format"].get("schema") {
        output_schema(schema, "output_config.format.schema")?;
    }
    messages(body, api)
}

fn tools(body: &Value) -> Checked {
    let mut names = HashSet::new();
    for (index, tool) in body["tools"].as_array().into_iter().flatten().enumerate() {
        let name = tool["name"].as_str().unwrap_or_default();
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(valid) {
            return refuse(format!("tools.{index}.name: {name:?} does not match ^[a-zA-Z0-9_-]{{1,64}}$"));
        }
        if !names.insert(name) {
            return refuse("tools: Tool names must be unique.");
        }
        if tool.get("type").is_none_or(|kind| kind == "custom") && tool["input_schema"]["type"] != "object" {
            return refuse(format!("tools.{index}.input_schema.type: must be \"object\""));
        }
    }
    match body["tool_choice"]["type"].as_str() {
        Some(_) if names.is_empty() => refuse("tool_choice: may only be specified while providing tools"),
        Some("any" | "tool") => refuse("tool_choice: this model does not support forced tool use"),
        _ => Ok(()),
    }
}

fn output_schema(schema: &Value, path: &str) -> Checked {
    match schema {
        Value::Object(members) => {
            if let Some(name) = REFUSED_KEYWORDS.iter().find(|name| members.contains_key(**name)) {
                return refuse(format!("{path}: the keyword `{name}` is not supported"));
            }
            let object = members.get("type").is_some_and(|kind| {
                kind == "object" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "object"))
            });
            if object && members.get("additionalProperties") != Some(&Value::Bool(false)) {
                return refuse(format!("{path}: for 'object' type, 'additionalProperties' must be set to false"));
            }
            for (name, schema) in members.get("properties").and_then(Value::as_object).into_iter().flatten() {
                output_schema(schema, &format!("{path}.{name}"))?;
            }
            members.get("items").map_or(Ok(()), |items| output_schema(items, &format!("{path}[]")))?;
            let variants = members.get("anyOf").and_then(Value::as_array);
            variants.into_iter().flatten().try_for_each(|variant| output_schema(variant, path))
        }
        _ => refuse(format!("{path}: a schema must be an object")),
    }
}

/// One message after consecutive ones of the same role were joined, as the API joins them.
struct Joined<'a> {
    role: &'a str,
    blocks: Vec<&'a Value>,
}

fn messages(body: &Value, api: Api<'_>) -> Checked {
    let Some(list) = body["messages"].as_array().filter(|list| !list.is_empty()) else {
        return refuse("messages: at least one message is required");
    };
    let mut joined: Vec<Joined<'_>> = Vec::new();
    for (index, message) in list.iter().enumerate() {
        let role = match message["role"].as_str() {
            Some(role @ ("user" | "assistant")) => role,
            _ => return refuse(format!("messages.{index}.role: must be \"user\" or \"assistant\"")),
        };
        let blocks = match &message["content"] {
            Value::String(text) if text.is_empty() => {
                return refuse(format!("messages.{index}: user messages must have non-empty content"));
            }
            text @ Value::String(_) => vec![text],
            Value::Array(blocks) if !blocks.is_empty() => blocks.iter().collect(),
            _ => return refuse(format!("messages.{index}.content: must be a text or a list with at least one block")),
        };
        for block in blocks.iter().filter(|block| !block.is_string()) {
            let path = format!("messages.{index}.content");
            self::block(block, &path)?;
            if is(block, "thinking") && !api.translated {
                bound(block, body, &path)?;
            }
        }
        match joined.last_mut().filter(|last| last.role == role) {
            Some(last) => last.blocks.extend(blocks),
            None => joined.push(Joined { role, blocks }),
        }
    }
    if joined[0].role != "user" {
        return refuse("messages: first message must use the \"user\" role");
    }
    if joined.last().is_some_and(|last| last.role == "assistant") && !api.pauses {
        return refuse("messages: the conversation must end with a user message, prefilling is not supported");
    }
    let uses_tools = joined.iter().any(|message| message.blocks.iter().any(|block| is(block, "tool_use")));
    if uses_tools && !api.translated && body["tools"].as_array().is_none_or(Vec::is_empty) {
        return refuse("tools: requests which include tool_use blocks must define tools");
    }
    pairs(&joined)
}

fn is(block: &Value, kind: &str) -> bool {
    block["type"] == kind
}

fn block(block: &Value, path: &str) -> Checked {
    match block["type"].as_str() {
        None => refuse(format!("{path}: a block has no type")),
        Some("text") if block["text"].as_str().is_none_or(str::is_empty) => {
            refuse(format!("{path}: text content blocks must be non-empty"))
        }
        Some("thinking") => {
            let given = block["signature"].as_str().unwrap_or_default();
            let thinking = block["thinking"].as_str().unwrap_or_default();
            if given.is_empty() || (is_signature(given) && !given.starts_with(&signature_of_words(thinking))) {
                return refuse(format!("{path}: Invalid `signature` in `thinking` block"));
            }
            Ok(())
        }
        Some("tool_result") => {
            let content = block["content"].as_array().map(Vec::as_slice).unwrap_or_default();
            content.iter().try_for_each(|inner| self::block(inner, &format!("{path}.tool_result")))
        }
        Some(_) => Ok(()),
    }
}

/// Thinking that was given here stands behind what it came from.
fn bound(block: &Value, body: &Value, path: &str) -> Checked {
    let (thinking, given) = (block["thinking"].as_str().unwrap_or_default(), block["signature"].as_str());
    match given.filter(|given| is_signature(given)) {
        Some(given) if given != signature(thinking, body) => refuse(format!(
            "{path}: Invalid `signature` in `thinking` block. The block is bound to a different conversation"
        )),
        _ => Ok(()),
    }
}

/// Every use of a tool is answered in the next message, before anything else is said there, and nothing else is.
fn pairs(messages: &[Joined<'_>]) -> Checked {
    let mut open: Vec<&str> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let mut others = false;
        let mut answered = HashSet::new();
        for block in &message.blocks {
            if !is(block, "tool_result") {
                others = true;
                continue;
            }
            let id = block["tool_use_id"].as_str().unwrap_or_default();
            if message.role != "user" || !open.contains(&id) || !answered.insert(id) {
                return refuse(format!(
                    "messages.{index}: unexpected `tool_use_id` found in `tool_result` blocks: {id}"
                ));
            }
            if others {
                return refuse(format!("messages.{index}: `tool_result` blocks must come first"));
            }
        }
        if let Some(missing) = open.iter().find(|id| !answered.contains(**id)) {
            return refuse(format!(
                "messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: {missing}"
            ));
        }
        open.clear();
        for block in message.blocks.iter().filter(|block| is(block, "tool_use")) {
            let id = block["id"].as_str().unwrap_or_default();
            if id.is_empty() || message.role != "assistant" || !block["input"].is_object() || open.contains(&id) {
                return refuse(format!("messages.{index}: a `tool_use` block is not valid: {id:?}"));
            }
            open.push(id);
        }
    }
    match open.first() {
        Some(id) => refuse(format!("messages: `tool_use` ids were found without `tool_result` blocks: {id}")),
        None => Ok(()),
    }
}
