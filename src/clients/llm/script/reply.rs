//! A reply of the script as a message of the Messages API. Ids, signatures and token counts depend on the
//! conversation alone, so the same conversation gets the same bytes in every process.

use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::{Map, Value, json};

use super::ApiError;
use super::ask::{Ask, digest, text_of, tokens};
use super::file::{ErrorReply, Reply};

/// Steps that the templates of one text may take.
const FUEL: u64 = 50_000;
/// What signatures of scripted thinking begin with.
const SIGNATURE: &str = "scripted-";

/// The templates of scripts: unknown names are errors, and no template runs for ever.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
}

/// The signature of a thinking block, as far as it depends on its words.
pub(super) fn signature_of_words(thinking: &str) -> String {
    format!("{SIGNATURE}{}", digest(&[thinking]))
}

/// The signature of a thinking block. As with the models that preserve what they thought, it holds only behind the
/// system prompt and the tools that it came from; marks for the cache do not count.
pub(super) fn signature(thinking: &str, body: &Value) -> String {
    let frame = digest(&[&text_of(&body["system"]), &body["tools"].to_string()]);
    format!("{}-{frame}", signature_of_words(thinking))
}

/// Whether a signature was given here, and so can be checked.
pub(super) fn is_signature(text: &str) -> bool {
    text.starts_with(SIGNATURE)
}

/// The message that answers `ask`, which was read from `body`.
pub(super) fn message(reply: &Reply, ask: &Ask, body: &Value) -> Result<Value, ApiError> {
    let scope = Scope::new(ask);
    let turn = ask.turn.to_string();
    let mut content = Vec::new();
    if let Some(thinking) = &reply.thinking {
        let thinking = scope.render(thinking)?;
        let signature = signature(&thinking, body);
        content.push(json!({"type": "thinking", "thinking": thinking, "signature": signature}));
    }
    content.extend(reply.content.iter().cloned());
    if let Some(text) = &reply.text {
        content.push(json!({"type": "text", "text": scope.render(text)?}));
    }
    if let Some(value) = &reply.json {
        content.push(json!({"type": "text", "text": scope.fill(value)?.to_string()}));
    }
    for (index, call) in reply.tool_calls.iter().enumerate() {
        let id = format!("toolu_{}", digest(&[&ask.key, &turn, &index.to_string()]));
        let input = scope.members(&call.input)?;
        content.push(json!({"type": "tool_use", "id": id, "name": call.name, "input": input}));
    }
    let written: usize = content.iter().map(|block| block.to_string().chars().count()).sum();
    let reason = match &reply.stop_reason {
        Some(reason) => reason,
        None if reply.tool_calls.is_empty() => "end_turn",
        None => "tool_use",
    };
    let mut message = json!({
        "id": format!("msg_{}", digest(&[&ask.key, &turn])),
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": reply.stop_sequence,
        "usage": usage(reply, ask.input_tokens, tokens(written)),
    });
    if let Some(details) = &reply.stop_details {
        message["stop_details"] = details.clone();
    }
    Ok(message)
}

fn usage(reply: &Reply, input: u64, output: u64) -> Value {
    let set = reply.usage.as_ref();
    let read = set.map_or(0, |usage| usage.cache_read_tokens);
    let written = set.map_or(0, |usage| usage.cache_write_tokens);
    let input = set.and_then(|usage| usage.input_tokens).unwrap_or(input);
    json!({
        "input_tokens": input.saturating_sub(read).saturating_sub(written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": set.and_then(|usage| usage.output_tokens).unwrap_or(output),
    })
}

/// The error that a reply stands for.
pub(super) fn error(error: &ErrorReply) -> ApiError {
    let kind = error.kind.clone().unwrap_or_else(|| kind_of(error.status).to_owned());
    let message = error.message.clone().unwrap_or_else(|| format!("the script answers {}", error.status));
    ApiError { status: error.status, kind, message, retry_after: error.retry_after }
}

fn kind_of(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        409 => "conflict_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        500..=599 => "api_error",
        _ => "invalid_request_error",
    }
}

/// What templates of a reply may name.
struct Scope {
    environment: Environment<'static>,
    values: minijinja::Value,
}

impl Scope {
    fn new(ask: &Ask) -> Self {
        let values = context! {
            prompt => &ask.prompt,
            last => &ask.last,
            system => &ask.system,
            model => &ask.model,
            turn => ask.turn,
            tool_results => &ask.tool_results,
            tools => &ask.tools,
        };
        Self { environment: environment(), values }
    }

    fn render(&self, text: &str) -> Result<String, ApiError> {
        self.environment
            .render_str(text, &self.values)
            .map_err(|error| ApiError::invalid(format!("a template of the script cannot be filled: {error}")))
    }

    fn fill(&self, value: &Value) -> Result<Value, ApiError> {
        Ok(match value {
            Value::String(text) => Value::String(self.render(text)?),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.fill(item)).collect::<Result<_, _>>()?),
            Value::Object(members) => Value::Object(self.members(members)?),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        })
    }

    fn members(&self, members: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        members.iter().map(|(name, value)| Ok((name.clone(), self.fill(value)?))).collect()
    }
}
