//! The body of a request for a chat completion. What the model wrote goes out byte for byte as it came, and the same
//! conversation always makes the same bytes, because caches depend on both.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::super::history::{self, Form, Way};
use super::content::{self, Part};
use super::settings::{self, Sampling};
use super::{Prepared, told};
use crate::config::{MaxTokensAs, ProviderConfig, StructuredOutput};
use crate::domain::message::{AssistantTurn, ToolResult, Turn};
use crate::domain::node::LlmConfig;
use crate::domain::tool::ToolSpec;
use crate::ports::LlmRequest;

/// Members of `extra` that would contradict what the worker itself writes, each with what is to be set instead.
const OURS: &[(&str, &str)] = &[
    ("model", "`llm_config.model`"),
    ("max_tokens", "`llm_config.max_tokens`"),
    ("max_completion_tokens", "`llm_config.max_tokens`"),
    ("messages", "the prompt or the task"),
    ("stream", "`stream` of the provider"),
    ("stream_options", "`stream` of the provider"),
    ("n", "nothing: one answer is read"),
];

/// Members of a turn in which servers show what the model thought.
const REASONING: &[&str] = &["reasoning_content", "reasoning", "reasoning_details"];

/// Writes the body of one call.
pub(super) fn prepare(request: &LlmRequest, config: &ProviderConfig, stream: bool) -> Prepared {
    let mut warnings = Vec::new();
    let settings = &request.settings;
    let model = settings.model.as_deref().unwrap_or(&config.model);
    let mut members = Map::new();
    let mut system = request.system.as_deref().filter(|system| !system.is_empty()).map(Cow::Borrowed);
    if let Some(schema) = request.output_schema.as_deref() {
        match response_format(schema, request, config, &mut warnings) {
            Some(format) => {
                members.insert(String::from("response_format"), format);
                if config.structured_output != StructuredOutput::JsonSchema {
                    system = Some(Cow::Owned(told(system.as_deref(), schema)));
                }
            }
            None => system = Some(Cow::Owned(told(system.as_deref(), schema))),
        }
    }
    if let Some(effort) = &settings.effort {
        members.insert(String::from("reasoning_effort"), json!(effort));
    }
    Sampling::of(settings, config, model).write(&mut members, "stop", &mut warnings);
    settings::extend(&mut members, settings, OURS, &mut warnings);
    let tools = tools(request, &mut warnings);
    if !request.tools.is_empty() && !request.tools_allowed {
        // The tools stay listed: the history uses them, and taking them away would change the cached prefix.
        members.insert(String::from("tool_choice"), json!("none"));
    }
    let limit = Some(settings.max_tokens.unwrap_or(config.max_tokens).get());
    let newer = match config.max_tokens_as {
        MaxTokensAs::Auto => config.is_openai_itself(),
        MaxTokensAs::MaxTokens => false,
        MaxTokensAs::MaxCompletionTokens => true,
    };
    let author = request.author();
    let mut messages: Vec<Message<'_>> = system.map(|text| Message::said("system", text)).into_iter().collect();
    for turn in &request.turns {
        push(&mut messages, turn, config, &author);
    }
    let body = Body {
        model,
        max_tokens: limit.filter(|_| !newer),
        max_completion_tokens: limit.filter(|_| newer),
        tools,
        members,
        stream,
        stream_options: stream.then(|| json!({"include_usage": true})),
        messages,
    };
    Prepared { body: serde_json::to_vec(&body).expect("texts, JSON values and raw JSON serialise"), warnings }
}

/// What is asked of the server about the form of the answer. Nothing where the model is only told in words.
fn response_format(
    schema: &Value,
    request: &LlmRequest,
    config: &ProviderConfig,
    warnings: &mut Vec<String>,
) -> Option<Value> {
    // Servers that force every letter of the answer into the form would leave the model no way to call its tools.
    if !request.tools.is_empty() && !config.is_openai_itself() {
        return None;
    }
    match config.structured_output {
        StructuredOutput::JsonSchema => settings::schema_format(schema, warnings)
            .map(|(schema, strict)| json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": strict, "schema": schema}})),
        StructuredOutput::JsonObject => Some(json!({"type": "json_object"})),
        StructuredOutput::Prompt => None,
    }
}

fn tools<'a>(request: &'a LlmRequest, warnings: &mut Vec<String>) -> Vec<Tool<'a>> {
    let function = |tool| Function::of(tool, &request.settings);
    let own = request.tools.iter().map(|tool| Tool::Own { r#type: "function", function: function(tool) });
    own.chain(settings::extra_tools(&request.settings, warnings).iter().map(Tool::Extra)).collect()
}

fn push<'a>(messages: &mut Vec<Message<'a>>, turn: &'a Turn, config: &ProviderConfig, author: &str) {
    match turn {
        Turn::User(text) => messages.push(Message::said("user", Cow::Borrowed(text.as_str()))),
        Turn::Content(blocks) => {
            let content = content::user_content(&content::of_blocks(blocks, config.images));
            messages.push(Message::Shown { role: "user", content });
        }
        Turn::Assistant(turn) => messages.extend(assistant(turn, config, author)),
        Turn::ToolResults(results) => {
            let parts: Vec<Vec<Part>> = results.iter().map(|result| content::parts(result, config.images)).collect();
            messages.extend(results.iter().zip(&parts).map(|(result, parts)| Message::result(result, parts)));
            // All calls must be answered before anything else is said.
            let below = content::shown_below(results.iter().zip(parts.iter().map(Vec::as_slice)));
            if !below.is_empty() {
                messages.push(Message::Shown { role: "user", content: below });
            }
        }
    }
}

fn assistant<'a>(turn: &'a AssistantTurn, config: &ProviderConfig, author: &str) -> Option<Message<'a>> {
    match history::way(turn, Form::Chat, author) {
        Way::Nowhere => None,
        Way::AsIs if config.reasoning_history => Some(Message::Raw(Cow::Borrowed(&turn.raw))),
        Way::AsIs => Some(Message::Raw(without_reasoning(&turn.raw))),
        Way::InWords => {
            let calls: Vec<Value> = turn
                .tool_uses
                .iter()
                .map(|tool| {
                    let arguments = Value::Object(tool.input.clone()).to_string();
                    json!({"id": tool.id, "type": "function", "function": {"name": tool.name, "arguments": arguments}})
                })
                .collect();
            let text = Some(&turn.text).filter(|text| !text.is_empty());
            let mut message = json!({"role": "assistant", "content": text});
            if !calls.is_empty() {
                message["tool_calls"] = Value::Array(calls);
            }
            Some(Message::Value(message))
        }
    }
}

fn without_reasoning(raw: &RawValue) -> Cow<'_, RawValue> {
    let Ok(mut members) = serde_json::from_str::<IndexMap<&str, &RawValue>>(raw.get()) else {
        return Cow::Borrowed(raw);
    };
    members.retain(|name, _| !REASONING.contains(name));
    serde_json::value::to_raw_value(&members).map_or(Cow::Borrowed(raw), Cow::Owned)
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(flatten)]
    members: Map<String, Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<Value>,
    messages: Vec<Message<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Tool<'a> {
    Own { r#type: &'static str, function: Function<'a> },
    Extra(&'a Value),
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    parameters: Cow<'a, Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

impl<'a> Function<'a> {
    fn of(tool: &'a ToolSpec, settings: &LlmConfig) -> Self {
        let (parameters, strict) = settings::parameters(tool, settings);
        let description = tool.description.as_deref().filter(|text| !text.is_empty());
        Self { name: &tool.name, description, parameters, strict }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Message<'a> {
    Said { role: &'static str, content: Cow<'a, str> },
    Result { role: &'static str, tool_call_id: &'a str, content: String },
    Shown { role: &'static str, content: Vec<Value> },
    Raw(Cow<'a, RawValue>),
    Value(Value),
}

impl<'a> Message<'a> {
    fn said(role: &'static str, content: Cow<'a, str>) -> Self {
        Self::Said { role, content }
    }

    fn result(result: &'a ToolResult, parts: &[Part]) -> Self {
        Self::Result { role: "tool", tool_call_id: &result.tool_use_id, content: content::text_of(parts) }
    }
}

#[cfg(test)]
mod tests;
