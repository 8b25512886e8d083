//! The body of a request to the Messages API. Model content goes out byte for byte as it came, and the same
//! conversation always makes the same bytes, because signatures and caches depend on both.

use std::borrow::Cow;
use std::sync::Once;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{content, schema};
use crate::config::ProviderConfig;
use crate::domain::message::{ToolResult, Turn};
use crate::domain::tool::ToolSpec;
use crate::ports::LlmRequest;

/// The first API version without sampling parameters; versions are dates, so they compare as texts.
pub(super) const NO_SAMPLING_SINCE: &str = "2026-10-21";
/// Parameters that this version refuses, even at their default values.
pub(super) const SAMPLING: &[&str] = &["temperature", "top_p", "top_k"];

/// Members of `extra` that would contradict what the worker itself writes, each with what is to be set instead.
const OURS: &[(&str, &str)] = &[
    ("model", "`llm_config.model`"),
    ("max_tokens", "`llm_config.max_tokens`"),
    ("system", "`system`"),
    ("messages", "the prompt or the task"),
    ("stream", "nothing: answers are read whole"),
];

/// A body with the remarks that belong to it.
pub(super) struct Prepared {
    /// The JSON text.
    pub body: Vec<u8>,
    /// What was left out, and why.
    pub warnings: Vec<String>,
}

/// Writes the body of one call.
pub(super) fn prepare(request: &LlmRequest, config: &ProviderConfig) -> Prepared {
    let mut warnings = Vec::new();
    let settings = &request.settings;
    let mut system = request.system.as_deref().filter(|system| !system.is_empty()).map(Cow::Borrowed);
    let mut members = Map::new();
    let mut output_config = Map::new();
    if let Some(effort) = &settings.effort {
        output_config.insert(String::from("effort"), json!(effort));
    }
    if let Some(full) = request.output_schema.as_deref() {
        match schema::subset(full) {
            Ok(subset) => {
                output_config.insert(String::from("format"), json!({"type": "json_schema", "schema": subset}));
            }
            Err(reason) => {
                warnings.push(format!(
                    "the API cannot enforce `output_schema`, so the model is only told about it: {reason}"
                ));
                system = Some(Cow::Owned(told(system.as_deref(), full)));
            }
        }
    }
    let tools = tools(request, &mut warnings);
    if !settings.stop_sequences.is_empty() {
        members.insert(String::from("stop_sequences"), json!(settings.stop_sequences));
    }
    if let Some(thinking) = &settings.thinking {
        members.insert(String::from("thinking"), thinking.clone());
    }
    for (name, value) in [("temperature", settings.temperature), ("top_p", settings.top_p)] {
        if let Some(value) = value {
            members.insert(name.to_owned(), json!(value));
        }
    }
    extend(&mut members, &mut output_config, &settings.extra, &mut warnings);
    if !tools.is_empty() && !request.tools_allowed {
        // The tools stay listed: the history uses them, and taking them away would change the cached prefix.
        members.insert(String::from("tool_choice"), json!({"type": "none"}));
    }
    if !output_config.is_empty() {
        members.insert(String::from("output_config"), Value::Object(output_config));
    }
    leave_out_sampling(&mut members, &config.version, &mut warnings);
    let body = Body {
        model: settings.model.as_deref().unwrap_or(&config.model),
        max_tokens: settings.max_tokens.unwrap_or(config.max_tokens).get(),
        system,
        tools,
        members,
        messages: request.turns.iter().filter_map(|turn| message(turn)).collect(),
    };
    Prepared { body: serde_json::to_vec(&body).expect("texts, JSON values and raw JSON serialise"), warnings }
}

fn tools<'a>(request: &'a LlmRequest, warnings: &mut Vec<String>) -> Vec<Tool<'a>> {
    let mut tools: Vec<Tool<'_>> = request.tools.iter().map(Tool::own).collect();
    match request.settings.extra.get("tools") {
        Some(Value::Array(more)) => tools.extend(more.iter().map(Tool::Extra)),
        Some(_) => warnings.push(String::from("`llm_config.extra.tools` was left out: it is not a list")),
        None => {}
    }
    tools
}

/// Adds the node's own members. Those of `output_config` join ours, and tools were added to ours already.
fn extend(
    members: &mut Map<String, Value>,
    output_config: &mut Map<String, Value>,
    extra: &Map<String, Value>,
    warnings: &mut Vec<String>,
) {
    for (name, value) in extra {
        if let Some((_, instead)) = OURS.iter().find(|(ours, _)| ours == name) {
            warnings.push(format!("`llm_config.extra.{name}` was left out; set {instead}"));
            continue;
        }
        match (name.as_str(), value) {
            ("tools", _) => {}
            ("output_config", Value::Object(more)) => {
                output_config.extend(more.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            _ => {
                members.insert(name.clone(), value.clone());
            }
        }
    }
}

fn leave_out_sampling(members: &mut Map<String, Value>, version: &str, warnings: &mut Vec<String>) {
    static TOLD: Once = Once::new();
    if version < NO_SAMPLING_SINCE {
        return;
    }
    let left_out: Vec<&str> = SAMPLING.iter().copied().filter(|name| members.shift_remove(*name).is_some()).collect();
    if !left_out.is_empty() {
        let names = left_out.join("`, `");
        warnings.push(format!("`{names}` was left out: API version {version} refuses sampling parameters"));
        TOLD.call_once(|| {
            tracing::warn!(llm.version = version, "sampling parameters are left out: this API version refuses them");
        });
    }
}

fn told(system: Option<&str>, schema: &Value) -> String {
    let rule = format!("Answer with one JSON value and nothing else. It must satisfy this JSON Schema:\n{schema}");
    match system {
        Some(system) => format!("{system}\n\n{rule}"),
        None => rule,
    }
}

fn message(turn: &Turn) -> Option<Message<'_>> {
    match turn {
        Turn::User(text) => Some(Message { role: "user", content: Content::Text(text) }),
        // The API itself may answer with no content at all, but it does not take that back.
        Turn::Assistant(turn) if turn.raw.get().chars().filter(|c| !c.is_ascii_whitespace()).eq("[]".chars()) => None,
        Turn::Assistant(turn) => Some(Message { role: "assistant", content: Content::Raw(&turn.raw) }),
        Turn::ToolResults(results) => {
            Some(Message { role: "user", content: Content::Results(results.iter().map(ResultBlock::of).collect()) })
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(flatten)]
    members: Map<String, Value>,
    messages: Vec<Message<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Tool<'a> {
    Own {
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'a str>,
        input_schema: &'a Value,
    },
    Extra(&'a Value),
}

impl<'a> Tool<'a> {
    fn own(tool: &'a ToolSpec) -> Self {
        Self::Own {
            name: &tool.name,
            description: tool.description.as_deref().filter(|text| !text.is_empty()),
            input_schema: &tool.input_schema,
        }
    }
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(&'a str),
    Raw(&'a RawValue),
    Results(Vec<ResultBlock<'a>>),
}

#[derive(Serialize)]
struct ResultBlock<'a> {
    r#type: &'static str,
    tool_use_id: &'a str,
    content: Vec<Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_error: bool,
}

impl<'a> ResultBlock<'a> {
    fn of(result: &'a ToolResult) -> Self {
        Self {
            r#type: "tool_result",
            tool_use_id: &result.tool_use_id,
            content: content::blocks(&result.content),
            is_error: result.is_error,
        }
    }
}
