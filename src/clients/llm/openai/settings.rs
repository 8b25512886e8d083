//! A node's settings as both of OpenAI's protocols take them: sampling, extra members, tools, and the part of a schema
//! that servers enforce.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::super::schema;
use crate::config::{Api, ProviderConfig};
use crate::domain::node::LlmConfig;
use crate::domain::tool::ToolSpec;

/// Formats that the vendor's strict mode takes; another one would fail the request.
const FORMATS: &[&str] = &["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"];

/// Whether a model of OpenAI reasons: `o1`, `o3-mini`, `gpt-5` and later, but for those made for chat.
pub(super) fn reasons(model: &str) -> bool {
    let model = model.rsplit('/').next().unwrap_or(model);
    let number = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse::<u32>().ok());
    if let Some(rest) = model.strip_prefix("gpt-") {
        return number(rest).is_some_and(|number| number >= 5) && !model.contains("-chat");
    }
    model.strip_prefix('o').and_then(number).is_some()
}

/// Whether responses are spoken for this model.
pub(super) fn speaks_responses(config: &ProviderConfig, model: &str) -> bool {
    match config.api {
        Api::Chat => false,
        Api::Responses => true,
        // Newer models refuse tools in chat completions unless they are told not to reason.
        Api::Auto => config.is_openai_itself() && reasons(model),
    }
}

/// Sampling and stop sequences.
pub(super) struct Sampling<'a> {
    settings: &'a LlmConfig,
    /// Whether the model refuses them.
    refused: bool,
}

impl<'a> Sampling<'a> {
    pub fn of(settings: &'a LlmConfig, config: &ProviderConfig, model: &str) -> Self {
        let reasoning = settings.effort.as_deref() != Some("none");
        Self { settings, refused: config.is_openai_itself() && reasons(model) && reasoning }
    }

    /// Adds them; `stop` is what the protocol calls the stop sequences, and empty where it has none.
    pub fn write(&self, members: &mut Map<String, Value>, stop: &str, warnings: &mut Vec<String>) {
        let Self { settings, refused } = self;
        let mut left_out = Vec::new();
        for (name, value) in [("temperature", settings.temperature), ("top_p", settings.top_p)] {
            match value {
                Some(_) if *refused => left_out.push(name),
                Some(value) => {
                    members.insert(name.to_owned(), json!(value));
                }
                None => {}
            }
        }
        if !settings.stop_sequences.is_empty() {
            if *refused || stop.is_empty() {
                left_out.push("stop_sequences");
            } else {
                members.insert(stop.to_owned(), json!(settings.stop_sequences));
            }
        }
        if !left_out.is_empty() {
            let names = left_out.join("`, `");
            warnings.push(format!("`{names}` was left out: the model or its API refuses it"));
        }
    }
}

/// Adds the node's own members; an object joins one of ours. Tools are added elsewhere.
pub(super) fn extend(
    members: &mut Map<String, Value>,
    settings: &LlmConfig,
    ours: &[(&str, &str)],
    warnings: &mut Vec<String>,
) {
    if settings.thinking.is_some() {
        warnings.push(String::from("`thinking` was left out: this provider takes `effort`"));
    }
    for (name, value) in settings.extra.iter().filter(|(name, _)| *name != "tools") {
        if let Some((_, instead)) = ours.iter().find(|(ours, _)| ours == name) {
            warnings.push(format!("`llm_config.extra.{name}` was left out; set {instead}"));
            continue;
        }
        match (members.get_mut(name), value) {
            (Some(Value::Object(ours)), Value::Object(more)) => ours.extend(more.clone()),
            _ => {
                members.insert(name.clone(), value.clone());
            }
        }
    }
}

/// The tools of the vendor's own that a node adds.
pub(super) fn extra_tools<'a>(settings: &'a LlmConfig, warnings: &mut Vec<String>) -> &'a [Value] {
    match settings.extra.get("tools") {
        Some(Value::Array(tools)) => tools,
        Some(_) => {
            warnings.push(String::from("`llm_config.extra.tools` was left out: it is not a list"));
            &[]
        }
        None => &[],
    }
}

/// The schema of a tool's arguments, and whether the model is held to it: where the node wants that and the schema
/// keeps the rules of the strict mode. An object without `properties` is refused, though it means an object without
/// members.
pub(super) fn parameters<'a>(tool: &'a ToolSpec, settings: &LlmConfig) -> (Cow<'a, Value>, bool) {
    if settings.strict_tools
        && let Ok(mut subset) = schema::subset(&tool.input_schema)
        && tighten(&mut subset)
    {
        return (Cow::Owned(subset), true);
    }
    let parameters = match &*tool.input_schema {
        Value::Object(members) if !members.contains_key("properties") => {
            let mut members = members.clone();
            members.insert(String::from("properties"), json!({}));
            Cow::Owned(Value::Object(members))
        }
        schema => Cow::Borrowed(schema),
    };
    (parameters, false)
}

/// The part of a schema that the server enforces, and whether it is one of the strict mode, which demands that every
/// property is required. Where there is none the model is told in words, with a warning.
pub(super) fn schema_format(schema: &Value, warnings: &mut Vec<String>) -> Option<(Value, bool)> {
    match schema::subset(schema) {
        Ok(mut subset) => {
            let strict = tighten(&mut subset);
            Some((subset, strict))
        }
        Err(reason) => {
            warnings
                .push(format!("the API cannot enforce `output_schema`, so the model is only told about it: {reason}"));
            None
        }
    }
}

/// Gives every part its type and takes unknown formats away; says whether every property is required.
fn tighten(schema: &mut Value) -> bool {
    let Value::Object(members) = schema else { return true };
    if members.get("format").and_then(Value::as_str).is_some_and(|format| !FORMATS.contains(&format)) {
        members.shift_remove("format");
    }
    if !members.contains_key("type") && !members.contains_key("anyOf") {
        let values = members.get("enum").and_then(Value::as_array).cloned();
        let values = values.or_else(|| members.get("const").map(|value| vec![value.clone()])).unwrap_or_default();
        let mut types: Vec<&str> = values.iter().map(type_of).collect();
        types.sort_unstable();
        types.dedup();
        members.insert(String::from("type"), if let [one] = types[..] { json!(one) } else { json!(types) });
    }
    let required = members.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    let mut strict = true;
    if let Some(Value::Object(properties)) = members.get_mut("properties") {
        strict = required == properties.len();
        for property in properties.values_mut() {
            strict &= tighten(property);
        }
    }
    if let Some(items) = members.get_mut("items") {
        strict &= tighten(items);
    }
    if let Some(Value::Array(variants)) = members.get_mut("anyOf") {
        for variant in variants {
            strict &= tighten(variant);
        }
    }
    strict
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProviderKind;

    #[test]
    fn models_that_reason_are_known_by_their_names() {
        for model in ["o1", "o3-mini", "o4-mini-2025-04-16", "gpt-5", "gpt-5.6-terra", "gpt-10", "openai/gpt-5-mini"] {
            assert!(reasons(model), "{model}");
        }
        for model in ["gpt-4o", "gpt-4.1-mini", "gpt-5-chat-latest", "gpt-5.3-chat-latest", "ollama", "o", "llama3", ""]
        {
            assert!(!reasons(model), "{model}");
        }
    }

    #[test]
    fn responses_are_spoken_with_openai_itself_for_models_that_reason_and_where_they_are_chosen() {
        let openai = ProviderConfig::of(ProviderKind::Openai);
        assert!(speaks_responses(&openai, "gpt-5.6") && !speaks_responses(&openai, "gpt-4o"));
        let elsewhere = ProviderConfig { base_url: String::from("http://h/v1"), ..openai.clone() };
        assert!(!speaks_responses(&elsewhere, "gpt-5.6"));
        assert!(speaks_responses(&ProviderConfig { api: Api::Responses, ..elsewhere }, "x"));
        assert!(!speaks_responses(&ProviderConfig { api: Api::Chat, ..openai }, "gpt-5.6"));
        assert!(speaks_responses(&ProviderConfig::of(ProviderKind::OpenaiResponses), "gpt-4o"));
    }

    #[test]
    fn a_tool_is_strict_where_the_node_wants_it_and_its_schema_allows_it() {
        use crate::domain::tool::{ToolHints, ToolTarget};
        let tool = |schema: Value| ToolSpec {
            name: String::from("add"),
            target: ToolTarget { server: None, name: String::from("add") },
            description: None,
            input_schema: std::sync::Arc::new(schema),
            hints: ToolHints::default(),
        };
        let whole = tool(json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}));
        let partly = tool(json!({"type": "object", "properties": {"x": {"type": "integer"}}}));
        let wanted = LlmConfig { strict_tools: true, ..LlmConfig::default() };
        let (schema, strict) = parameters(&whole, &wanted);
        assert!(strict && schema["additionalProperties"] == json!(false));
        assert!(!parameters(&partly, &wanted).1 && !parameters(&whole, &LlmConfig::default()).1);
    }

    #[test]
    fn the_strict_mode_is_for_schemas_whose_properties_are_all_required() {
        let mut warnings = Vec::new();
        let all = json!({"type": "object", "required": ["a", "b"], "properties": {
            "a": {"enum": ["x", null]}, "b": {"type": "array", "items": {"type": "string", "format": "uri"}}}});
        let (sent, strict) = schema_format(&all, &mut warnings).expect("a part is enforced");
        assert!(strict);
        assert_eq!(sent["properties"]["a"]["type"], json!(["null", "string"]));
        assert_eq!(sent["properties"]["b"]["items"].get("format"), None);
        let some = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "object",
            "properties": {"x": {"type": "null"}}}}});
        let (sent, strict) = schema_format(&some, &mut warnings).expect("a part is enforced");
        assert!(!strict && sent["additionalProperties"] == json!(false));
        assert!(warnings.is_empty());
        assert!(schema_format(&json!({"type": "array", "items": {}}), &mut warnings).is_none());
        assert!(warnings[0].contains("only told about it"), "{warnings:?}");
    }
}
