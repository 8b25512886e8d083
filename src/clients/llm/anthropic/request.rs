//! The body of a request to the Messages API. Model content goes out byte for byte as it came, and the same
//! conversation always makes the same bytes, because signatures and caches depend on both.

use std::borrow::Cow;
use std::sync::Once;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::content;
use crate::clients::llm::schema;
use crate::config::ProviderConfig;
use crate::domain::message::{ToolResult, Turn};
use crate::domain::tool::ToolSpec;
use crate::ports::LlmRequest;

/// The first API version without sampling parameters; versions are dates, so they compare as texts.
pub(in crate::clients::llm) const NO_SAMPLING_SINCE: &str = "2026-10-21";
/// Parameters that this version refuses, even at their default values.
pub(in crate::clients::llm) const SAMPLING: &[&str] = &["temperature", "top_p", "top_k"];

/// Members of `extra` that would contradict what the worker itself writes, each with what is to be set instead.
const OURS: &[(&str, &str)] = &[
    ("model", "`llm_config.model`"),
    ("max_tokens", "`llm_config.max_tokens`"),
    ("system", "`system`"),
    ("messages", "the prompt or the task"),
    ("stream", "nothing: answers are read whole"),
];

/// A body with the remarks that belong to it.
pub(in crate::clients::llm) struct Prepared {
    /// The JSON text.
    pub body: Vec<u8>,
    /// What was left out, and why.
    pub warnings: Vec<String>,
}

/// Writes the body of one call.
pub(in crate::clients::llm) fn prepare(request: &LlmRequest, config: &ProviderConfig) -> Prepared {
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use super::*;
    use crate::clients::llm::fixture::{assistant, request, with_settings, with_tools};
    use crate::domain::message::text_block;

    fn config() -> ProviderConfig {
        ProviderConfig { model: String::from("claude-x"), ..ProviderConfig::default() }
    }

    fn text(request: &LlmRequest) -> String {
        String::from_utf8(prepare(request, &config()).body).expect("JSON is UTF-8")
    }

    fn json_of(request: &LlmRequest) -> Value {
        serde_json::from_str(&text(request)).expect("a body")
    }

    #[test]
    fn the_smallest_body_has_nothing_that_was_not_asked_for() {
        assert_eq!(
            text(&request("hello")),
            r#"{"model":"claude-x","max_tokens":16000,"messages":[{"role":"user","content":"hello"}]}"#
        );
    }

    #[test]
    fn every_setting_has_its_place() {
        let mut call = with_settings(
            with_tools(request("task"), &["add"]),
            json!({
                "model": "claude-y", "max_tokens": 500, "stop": ["END"], "effort": "low",
                "thinking": {"type": "adaptive", "display": "omitted"},
                "extra": {"service_tier": "standard_only", "cache_control": {"type": "ephemeral"}},
            }),
        );
        call.system = Some(String::from("be brief"));
        call.output_schema =
            Some(Arc::new(json!({"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}})));
        assert_eq!(
            json_of(&call),
            json!({
                "model": "claude-y",
                "max_tokens": 500,
                "system": "be brief",
                "tools": [{
                    "name": "add",
                    "description": "Does add.",
                    "input_schema": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0}}},
                }],
                "stop_sequences": ["END"],
                "thinking": {"type": "adaptive", "display": "omitted"},
                "service_tier": "standard_only",
                "cache_control": {"type": "ephemeral"},
                "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {
                    "type": "object",
                    "properties": {"n": {"type": "integer", "description": "(maximum: 9)"}},
                    "additionalProperties": false,
                }}},
                "messages": [{"role": "user", "content": "task"}],
            })
        );
    }

    #[test]
    fn what_the_model_wrote_goes_back_byte_for_byte() {
        let raw = r#"[ {"type":"thinking","thinking":"\u00e9 é","signature":"Ab+/=="}, {"new_block":{"n":1.0e2,"b":12345678901234567890123},"type":"hologram"} ,{"type":"tool_use","id":"t1","name":"add","input":{"z":1,"a":2}}]"#;
        let mut call = with_tools(request("task"), &["add"]);
        call.turns.push(assistant(raw));
        assert!(text(&call).contains(&format!(r#"{{"role":"assistant","content":{raw}}}"#)), "{}", text(&call));
    }

    #[test]
    fn the_same_conversation_makes_the_same_bytes_and_only_grows_at_its_end() {
        let mut call = with_tools(request("task"), &["b", "a"]);
        let before = text(&call);
        assert_eq!(before, text(&call.clone()));
        call.turns.push(assistant(r#"[{"type":"text","text":"x"}]"#));
        call.turns.push(Arc::new(Turn::User(String::from("more"))));
        assert!(text(&call).starts_with(before.trim_end_matches("]}")));
    }

    #[test]
    fn all_results_of_a_turn_are_one_message_in_call_order() {
        let mut call = with_tools(request("task"), &["add"]);
        let result = |id: &str, text: &str| ToolResult {
            tool_use_id: id.to_owned(),
            content: vec![text_block(text)],
            is_error: false,
        };
        call.turns.push(Arc::new(Turn::ToolResults(vec![
            result("t2", "two"),
            ToolResult::error("t1", "no"),
            ToolResult { content: Vec::new(), ..result("t3", "") },
        ])));
        assert_eq!(
            json_of(&call)["messages"][1],
            json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "two"}]},
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "no"}], "is_error": true},
                {"type": "tool_result", "tool_use_id": "t3", "content": [{"type": "text", "text": "(no output)"}]},
            ]})
        );
    }

    #[test]
    fn a_last_turn_without_tools_still_lists_them() {
        let mut call = with_tools(request("task"), &["add"]);
        call.tools_allowed = false;
        let body = json_of(&call);
        assert_eq!(body["tool_choice"], json!({"type": "none"}));
        assert_eq!(body["tools"][0]["name"], "add");
        let mut bare = request("task");
        bare.tools_allowed = false;
        assert!(json_of(&bare).get("tool_choice").is_none(), "the API refuses a choice among no tools");
    }

    #[test]
    fn sampling_parameters_are_left_out_for_versions_that_refuse_them() {
        let call = with_settings(request("x"), json!({"temperature": 0.5, "top_p": 0.9, "extra": {"top_k": 3}}));
        let prepared = prepare(&call, &config());
        let body: Value = serde_json::from_slice(&prepared.body).expect("a body");
        assert!(SAMPLING.iter().all(|name| body.get(*name).is_none()), "{body}");
        assert_eq!(prepared.warnings.len(), 1);
        assert!(prepared.warnings[0].contains("`temperature`, `top_p`, `top_k`"), "{:?}", prepared.warnings);
        let older = ProviderConfig { version: String::from("2023-06-01"), ..config() };
        let prepared = prepare(&call, &older);
        let body: Value = serde_json::from_slice(&prepared.body).expect("a body");
        assert_eq!((&body["temperature"], &body["top_p"], &body["top_k"]), (&json!(0.5), &json!(0.9), &json!(3)));
        assert!(prepared.warnings.is_empty());
    }

    #[test]
    fn extra_members_join_ours_and_never_replace_what_the_worker_writes() {
        let mut call = with_settings(
            with_tools(request("x"), &["add"]),
            json!({"effort": "low", "max_tokens": 7, "extra": {
                "model": "other", "messages": [], "stream": true, "max_tokens": 1,
                "tools": [{"type": "web_search_20260209", "name": "web_search"}],
                "tool_choice": {"type": "auto", "disable_parallel_tool_use": true},
                "output_config": {"task_budget": {"type": "tokens", "total": 9}},
            }}),
        );
        let prepared = prepare(&call, &config());
        let body: Value = serde_json::from_slice(&prepared.body).expect("a body");
        assert_eq!((&body["model"], &body["max_tokens"]), (&json!("claude-x"), &json!(7)));
        assert_eq!(body["messages"][0]["content"], "x");
        assert!(body.get("stream").is_none());
        assert_eq!(body["tools"][1], json!({"type": "web_search_20260209", "name": "web_search"}));
        assert_eq!(body["tool_choice"]["disable_parallel_tool_use"], true);
        assert_eq!(body["output_config"], json!({"effort": "low", "task_budget": {"type": "tokens", "total": 9}}));
        assert_eq!(prepared.warnings.len(), 4, "{:?}", prepared.warnings);
        call.tools_allowed = false;
        assert_eq!(json_of(&call)["tool_choice"], json!({"type": "none"}));
    }

    #[test]
    fn a_schema_that_the_api_cannot_enforce_is_told_in_words_with_a_warning() {
        let mut call = request("x");
        call.system = Some(String::from("be brief"));
        call.output_schema = Some(Arc::new(json!({"type": "array", "items": {"type": "string"}})));
        let prepared = prepare(&call, &config());
        let body: Value = serde_json::from_slice(&prepared.body).expect("a body");
        assert!(body.get("output_config").is_none());
        let system = body["system"].as_str().expect("a text");
        assert!(system.starts_with("be brief\n\n") && system.contains(r#"{"type":"array""#), "{system}");
        assert!(prepared.warnings[0].contains("root is not an object"), "{:?}", prepared.warnings);
    }

    #[test]
    fn an_empty_answer_is_not_sent_back() {
        let mut call = request("x");
        call.turns.push(assistant("[ ]"));
        call.turns.push(Arc::new(Turn::User(String::from("please answer"))));
        let roles: Vec<Value> = json_of(&call)["messages"]
            .as_array()
            .expect("messages")
            .iter()
            .map(|message| message["role"].clone())
            .collect();
        assert_eq!(roles, ["user", "user"]);
    }

    #[test]
    fn the_providers_limit_holds_where_the_node_says_nothing() {
        let config = ProviderConfig { max_tokens: NonZeroU32::MIN, ..config() };
        let body: Value = serde_json::from_slice(&prepare(&request("x"), &config).body).expect("a body");
        assert_eq!(body["max_tokens"], 1);
    }
}
