//! The body of a request to the Messages API. Model content goes out byte for byte as it came, and the same
//! conversation always makes the same bytes, because signatures and caches depend on both.

use std::borrow::Cow;
use std::sync::Once;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::choice;
use super::messages::{Message, message};
use crate::clients::llm::schema;
use crate::config::{ProviderConfig, When};
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
    ("messages", "the prompt or the task"),
    ("stream", "`stream` of the provider"),
];

/// Tokens above which an answer is streamed: written without a pause it could take longer than ten minutes, and by then
/// whatever stands between has closed a connection on which nothing comes.
const LONGEST_WHOLE: u32 = 21_333;

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
    let mut told = None;
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
                told = Some(full);
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
    let model = settings.model.as_deref().unwrap_or(&config.model);
    choice::settle(&mut members, request, model, &tools, &mut warnings);
    let cache = caches(request, config, &members);
    if cache {
        // Marks the end of the conversation, so that the next turn finds all of this one in the cache.
        members.insert(String::from("cache_control"), json!({"type": "ephemeral"}));
    }
    if !output_config.is_empty() {
        members.insert(String::from("output_config"), Value::Object(output_config));
    }
    leave_out_sampling(&mut members, &config.version, &mut warnings);
    let max_tokens = settings.max_tokens.unwrap_or(config.max_tokens).get();
    let streams = match config.stream {
        When::Auto => request.deltas.is_some() || max_tokens > LONGEST_WHOLE,
        When::Always => true,
        When::Never => false,
    };
    let author = request.author();
    let body = Body {
        model,
        max_tokens,
        stream: streams.then_some(true),
        system: system(request, told, cache, &mut warnings),
        tools,
        members,
        messages: request.turns.iter().filter_map(|turn| message(turn, &author)).collect(),
    };
    Prepared { body: serde_json::to_vec(&body).expect("texts, JSON values and raw JSON serialise"), warnings }
}

fn tools<'a>(request: &'a LlmRequest, warnings: &mut Vec<String>) -> Vec<Tool<'a>> {
    let strict = request.settings.strict_tools;
    let mut tools: Vec<Tool<'_>> = request.tools.iter().map(|tool| Tool::own(tool, strict)).collect();
    match request.settings.extra.get("tools") {
        Some(Value::Array(more)) => tools.extend(more.iter().map(Tool::Extra)),
        Some(_) => warnings.push(String::from("`llm_config.extra.tools` was left out: it is not a list")),
        None => {}
    }
    if tools.is_empty() {
        // Some servers refuse a conversation with uses of tools where no tool is defined.
        tools.extend(request.earlier_tools.iter().map(|tool| Tool::own(tool, false)));
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
            ("tools" | "system", _) => {}
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

/// Whether the conversation is put into the provider's cache. A loop reads it again with every turn; a single question
/// would only pay for the writing. A node that says something of its own about the cache is left alone.
fn caches(request: &LlmRequest, config: &ProviderConfig, members: &Map<String, Value>) -> bool {
    let wanted = match config.cache {
        When::Auto => !request.tools.is_empty(),
        When::Always => true,
        When::Never => false,
    };
    wanted && !members.contains_key("cache_control")
}

/// The system prompt: a text where that is all, else blocks. In the cache it has a mark of its own, because other runs
/// of the same node share it and the tools before it, but not the conversation.
fn system(request: &LlmRequest, schema: Option<&Value>, cache: bool, warnings: &mut Vec<String>) -> Option<Value> {
    let own = request.system.as_deref().filter(|system| !system.is_empty());
    let rule = schema.map(|schema| {
        format!("Answer with one JSON value and nothing else. It must satisfy this JSON Schema:\n{schema}")
    });
    let text = [own, rule.as_deref()].into_iter().flatten().collect::<Vec<_>>().join("\n\n");
    let more = match request.settings.extra.get("system") {
        Some(Value::Array(more)) => more.as_slice(),
        Some(_) => {
            warnings
                .push(String::from("`llm_config.extra.system` was left out: it is not a list of blocks; set `system`"));
            &[]
        }
        None => &[],
    };
    if text.is_empty() {
        return (!more.is_empty()).then(|| json!(more));
    }
    if more.is_empty() && !cache {
        return Some(Value::String(text));
    }
    let mut block = json!({"type": "text", "text": text});
    if cache {
        block["cache_control"] = json!({"type": "ephemeral"});
    }
    Some(Value::Array([block].into_iter().chain(more.iter().cloned()).collect()))
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(flatten)]
    members: Map<String, Value>,
    messages: Vec<Message<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Tool<'a> {
    Own {
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'a str>,
        input_schema: Cow<'a, Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        strict: Option<bool>,
    },
    Extra(&'a Value),
}

impl<'a> Tool<'a> {
    /// A tool of ours. A schema that the API cannot enforce goes out as the server wrote it, and not as strict.
    pub(super) fn own(tool: &'a ToolSpec, strict: bool) -> Self {
        let enforced = if strict { schema::subset(&tool.input_schema).ok() } else { None };
        Self::Own {
            name: &tool.name,
            description: tool.description.as_deref().filter(|text| !text.is_empty()),
            strict: enforced.is_some().then_some(true),
            input_schema: enforced.map_or(Cow::Borrowed(&*tool.input_schema), Cow::Owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use super::*;
    use crate::clients::llm::fixture::{assistant, request, with_settings, with_tools};
    use crate::domain::delta::Deltas;
    use crate::domain::message::{AssistantTurn, ToolResult, ToolUse, Turn, text_block};

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
                "extra": {"service_tier": "standard_only", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
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
                "cache_control": {"type": "ephemeral", "ttl": "1h"},
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
    fn tools_of_earlier_nodes_are_defined_and_forbidden_where_the_node_has_none() {
        let mut call = request("and now?");
        call.earlier_tools = Arc::clone(&with_tools(request("x"), &["add"]).tools);
        call.tools_allowed = false;
        let body = json_of(&call);
        assert_eq!((&body["tools"][0]["name"], &body["tool_choice"]), (&json!("add"), &json!({"type": "none"})));
        assert!(body.get("cache_control").is_none(), "nothing is repeated");
        // Tools of the provider are defined as well, and a node without tools of its own has them for their use.
        let search = json!({"type": "web_search_20260209", "name": "web_search"});
        let searching = with_settings(call.clone(), json!({"extra": {"tools": [search]}}));
        assert_eq!((&json_of(&searching)["tools"], json_of(&searching).get("tool_choice")), (&json!([search]), None));
        let mut own = with_tools(call, &["sub"]);
        own.tools_allowed = true;
        let tools = json_of(&own)["tools"].clone();
        assert_eq!((tools.as_array().map(Vec::len), &tools[0]["name"]), (Some(1), &json!("sub")));
    }

    #[test]
    fn thinking_of_a_node_with_other_tools_is_left_out() {
        let mut call = request("and now?");
        let raw = r#"[{"type":"thinking","thinking":"t","signature":"s"},{"type":"tool_use","id":"t1","name":"add","input":{}}]"#;
        let said = |author: &str| {
            Arc::new(Turn::Assistant(AssistantTurn {
                raw: serde_json::from_str(raw).expect("JSON"),
                text: String::new(),
                tool_uses: vec![ToolUse {
                    id: String::from("t1"),
                    name: String::from("add"),
                    input: Map::new(),
                    problem: None,
                }],
                author: Some(author.to_owned()),
            }))
        };
        call.turns.push(said("/#before"));
        call.frame = Arc::from("before");
        assert_eq!(json_of(&call)["messages"][1]["content"][0]["type"], "thinking");
        call.frame = Arc::from("now");
        let content = json!([{"type": "tool_use", "id": "t1", "name": "add", "input": {}}]);
        assert_eq!(json_of(&call)["messages"][1]["content"], content);
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
    fn an_answer_is_streamed_where_somebody_watches_or_it_may_be_long() {
        let streams = |call: &LlmRequest, config: &ProviderConfig| {
            let body: Value = serde_json::from_slice(&prepare(call, config).body).expect("a body");
            body.get("stream").cloned().unwrap_or_default()
        };
        let mut watched = request("x");
        watched.deltas = Some(Deltas::default());
        let long = |tokens: u32| with_settings(request("x"), json!({ "max_tokens": tokens }));
        assert_eq!(streams(&request("x"), &config()), Value::Null);
        assert_eq!(streams(&watched, &config()), true);
        assert_eq!(streams(&long(21_333), &config()), Value::Null);
        assert_eq!(streams(&long(21_334), &config()), true);
        let set = |stream| ProviderConfig { stream, ..config() };
        assert_eq!(streams(&request("x"), &set(When::Always)), true);
        assert_eq!(streams(&long(100_000), &set(When::Never)), Value::Null);
    }

    #[test]
    fn a_loop_is_cached_with_a_mark_for_what_other_runs_share() {
        let mut call = with_tools(request("x"), &["add"]);
        call.system = Some(String::from("be brief"));
        let body = json_of(&call);
        let mark = json!({"type": "ephemeral"});
        assert_eq!(body["cache_control"], mark);
        assert_eq!(body["system"], json!([{"type": "text", "text": "be brief", "cache_control": mark}]));
        let mut single = request("x");
        single.system = Some(String::from("be brief"));
        assert_eq!((json_of(&single).get("cache_control"), &json_of(&single)["system"]), (None, &json!("be brief")));
        let with = |call: &LlmRequest, cache| {
            let config = ProviderConfig { cache, ..config() };
            serde_json::from_slice::<Value>(&prepare(call, &config).body).expect("a body")
        };
        assert_eq!(with(&single, When::Always)["cache_control"], mark);
        assert_eq!(with(&call, When::Never).get("cache_control"), None);
        // What the node says itself is all there is.
        let own = with_settings(call, json!({"extra": {"cache_control": {"type": "ephemeral", "ttl": "1h"}}}));
        assert_eq!(
            (&json_of(&own)["cache_control"]["ttl"], &json_of(&own)["system"]),
            (&json!("1h"), &json!("be brief"))
        );
    }

    #[test]
    fn blocks_of_the_node_follow_its_system_prompt() {
        let block = json!({"type": "text", "text": "more", "cache_control": {"type": "ephemeral"}});
        let mut call = with_settings(request("x"), json!({"extra": {"system": [block]}}));
        assert_eq!(json_of(&call)["system"], json!([block]));
        call.system = Some(String::from("first"));
        assert_eq!(json_of(&call)["system"], json!([{"type": "text", "text": "first"}, block]));
        let wrong = with_settings(request("x"), json!({"extra": {"system": "text"}}));
        assert_eq!(prepare(&wrong, &config()).warnings.len(), 1);
    }

    #[test]
    fn tools_are_strict_where_the_api_can_enforce_their_schemas() {
        let mut call = with_settings(with_tools(request("x"), &["add", "any"]), json!({"strict_tools": true}));
        let mut tools = call.tools.to_vec();
        tools[1].input_schema = Arc::new(json!({"type": "object", "additionalProperties": {"type": "string"}}));
        call.tools = tools.into();
        let tools = json_of(&call)["tools"].clone();
        assert_eq!(
            (&tools[0]["strict"], &tools[0]["input_schema"]["additionalProperties"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(tools[0]["input_schema"]["properties"]["x"].get("minimum"), None);
        assert_eq!(tools[1].get("strict"), None);
        assert_eq!(tools[1]["input_schema"]["additionalProperties"], json!({"type": "string"}));
    }

    #[test]
    fn the_providers_limit_holds_where_the_node_says_nothing() {
        let config = ProviderConfig { max_tokens: NonZeroU32::MIN, ..config() };
        let body: Value = serde_json::from_slice(&prepare(&request("x"), &config).body).expect("a body");
        assert_eq!(body["max_tokens"], 1);
    }
}
