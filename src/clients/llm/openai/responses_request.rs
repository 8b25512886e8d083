//! The body of a request for a response. Nothing is stored at the provider: every item goes out again as it came, with
//! its encrypted reasoning, and the same conversation always makes the same bytes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::super::history::{self, Form, Way};
use super::content;
use super::settings::{self, Sampling};
use super::{Prepared, told};
use crate::config::ProviderConfig;
use crate::domain::message::{AssistantTurn, Turn};
use crate::domain::node::LlmConfig;
use crate::domain::tool::ToolSpec;
use crate::ports::LlmRequest;

/// Members of `extra` that would contradict what the worker itself writes, each with what is to be set instead.
const OURS: &[(&str, &str)] = &[
    ("model", "`llm_config.model`"),
    ("max_output_tokens", "`llm_config.max_tokens`"),
    ("instructions", "`system`"),
    ("input", "the prompt or the task"),
    ("stream", "`stream` of the provider"),
    ("store", "nothing: the worker keeps the conversation"),
    ("previous_response_id", "nothing: the worker keeps the conversation"),
    ("conversation", "nothing: the worker keeps the conversation"),
    ("background", "nothing: the worker waits for the answer"),
];

/// Writes the body of one call.
pub(super) fn prepare(request: &LlmRequest, config: &ProviderConfig, stream: bool) -> Prepared {
    let mut warnings = Vec::new();
    let settings = &request.settings;
    let model = settings.model.as_deref().unwrap_or(&config.model);
    let mut members = Map::new();
    let mut instructions = request.system.as_deref().filter(|system| !system.is_empty()).map(Cow::Borrowed);
    if let Some(schema) = request.output_schema.as_deref() {
        match settings::schema_format(schema, &mut warnings) {
            Some((schema, strict)) => {
                let format = json!({"type": "json_schema", "name": "answer", "strict": strict, "schema": schema});
                members.insert(String::from("text"), json!({ "format": format }));
            }
            None => instructions = Some(Cow::Owned(told(instructions.as_deref(), schema))),
        }
    }
    if let Some(effort) = &settings.effort {
        members.insert(String::from("reasoning"), json!({ "effort": effort }));
    }
    if settings::reasons(model) {
        // A reasoning item means something in the next turn only with this, for nothing is stored.
        members.insert(String::from("include"), json!(["reasoning.encrypted_content"]));
    }
    Sampling::of(settings, config, model).write(&mut members, "", &mut warnings);
    settings::extend(&mut members, settings, OURS, &mut warnings);
    let own = request.tools.iter().map(|tool| Tool::own(tool, settings));
    let tools: Vec<Tool<'_>> =
        own.chain(settings::extra_tools(settings, &mut warnings).iter().map(Tool::Extra)).collect();
    if !request.tools.is_empty() && !request.tools_allowed {
        // The tools stay listed: the history uses them, and taking them away would change the cached prefix.
        members.insert(String::from("tool_choice"), json!("none"));
    }
    let author = request.author();
    let mut input = Vec::new();
    for turn in &request.turns {
        push(&mut input, turn, config, &author);
    }
    let body = Body {
        model,
        max_output_tokens: settings.max_tokens.unwrap_or(config.max_tokens).get(),
        instructions,
        tools,
        members,
        store: false,
        stream,
        input,
    };
    Prepared { body: serde_json::to_vec(&body).expect("texts, JSON values and raw JSON serialise"), warnings }
}

fn push<'a>(input: &mut Vec<Item<'a>>, turn: &'a Turn, config: &ProviderConfig, author: &str) {
    match turn {
        Turn::User(text) => input.push(Item::Said { role: "user", content: text }),
        Turn::Content(blocks) => {
            let content = content::input(&content::of_blocks(blocks, config.images));
            input.push(Item::Value(json!({"role": "user", "content": content})));
        }
        Turn::Assistant(turn) => assistant(input, turn, author),
        Turn::ToolResults(results) => input.extend(results.iter().map(|result| {
            let output = content::output(&content::parts(result, config.images));
            Item::Value(json!({"type": "function_call_output", "call_id": result.tool_use_id, "output": output}))
        })),
    }
}

fn assistant<'a>(input: &mut Vec<Item<'a>>, turn: &'a AssistantTurn, author: &str) {
    match history::way(turn, Form::Responses, author) {
        Way::Nowhere => return,
        Way::AsIs => {
            if let Ok(response) = serde_json::from_str::<Output<'a>>(turn.raw.get()) {
                input.extend(response.output.into_iter().filter(|item| can_go_back(item)).map(Item::Raw));
                return;
            }
        }
        Way::InWords => {}
    }
    if !turn.text.is_empty() {
        input.push(Item::Said { role: "assistant", content: &turn.text });
    }
    input.extend(turn.tool_uses.iter().map(|tool| {
        let arguments = Value::Object(tool.input.clone()).to_string();
        Item::Value(json!({"type": "function_call", "call_id": tool.id, "name": tool.name, "arguments": arguments}))
    }));
}

/// Whether the provider understands an item that it has not stored: reasoning only if it brings itself along.
fn can_go_back(item: &RawValue) -> bool {
    #[derive(Deserialize)]
    struct Peek<'a> {
        #[serde(default, borrow)]
        r#type: Option<Cow<'a, str>>,
        #[serde(default)]
        encrypted_content: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_str::<Peek<'_>>(item.get())
        .is_ok_and(|item| item.r#type.as_deref() != Some("reasoning") || item.encrypted_content.is_some())
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    output: Vec<&'a RawValue>,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_output_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(flatten)]
    members: Map<String, Value>,
    store: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
    input: Vec<Item<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Tool<'a> {
    Own {
        r#type: &'static str,
        name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<&'a str>,
        parameters: Cow<'a, Value>,
        /// Strict by default here, unlike in chat completions; servers' schemas rarely keep its rules.
        strict: bool,
    },
    Extra(&'a Value),
}

impl<'a> Tool<'a> {
    fn own(tool: &'a ToolSpec, settings: &LlmConfig) -> Self {
        let (parameters, strict) = settings::parameters(tool, settings);
        Self::Own {
            r#type: "function",
            name: &tool.name,
            description: tool.description.as_deref().filter(|text| !text.is_empty()),
            parameters,
            strict,
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Said { role: &'static str, content: &'a str },
    Raw(&'a RawValue),
    Value(Value),
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clients::llm::fixture::{assistant, request, with_settings, with_tools};
    use crate::config::ProviderKind;
    use crate::domain::message::{ToolResult, ToolUse, text_block};

    fn config() -> ProviderConfig {
        ProviderConfig::of(ProviderKind::OpenaiResponses)
    }

    fn text(request: &LlmRequest) -> String {
        String::from_utf8(prepare(request, &config(), false).body).expect("JSON is UTF-8")
    }

    fn json_of(request: &LlmRequest) -> Value {
        serde_json::from_str(&text(request)).expect("a body")
    }

    #[test]
    fn the_smallest_body_stores_nothing_and_asks_for_reasoning_that_can_go_back() {
        assert_eq!(
            text(&request("hello")),
            r#"{"model":"gpt-5.6","max_output_tokens":16000,"include":["reasoning.encrypted_content"],"store":false,"input":[{"role":"user","content":"hello"}]}"#
        );
        let plain = with_settings(request("hello"), json!({"model": "gpt-4o"}));
        assert!(json_of(&plain).get("include").is_none(), "a model that does not reason refuses it");
    }

    #[test]
    fn every_setting_has_its_place() {
        let mut call = with_settings(
            with_tools(request("task"), &["add"]),
            json!({"max_tokens": 500, "stop": ["END"], "effort": "low", "temperature": 0.5,
                "extra": {"reasoning": {"summary": "auto"}, "text": {"verbosity": "low"}, "store": true,
                    "tools": [{"type": "web_search"}]}}),
        );
        call.system = Some(String::from("be brief"));
        call.output_schema =
            Some(Arc::new(json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})));
        let prepared = prepare(&call, &config(), true);
        let body: Value = serde_json::from_slice(&prepared.body).expect("a body");
        assert_eq!(
            body,
            json!({
                "model": "gpt-5.6",
                "max_output_tokens": 500,
                "instructions": "be brief",
                "tools": [
                    {"type": "function", "name": "add", "description": "Does add.", "strict": false,
                        "parameters": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0}}}},
                    {"type": "web_search"},
                ],
                "text": {
                    "format": {"type": "json_schema", "name": "answer", "strict": true, "schema": {
                        "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
                        "additionalProperties": false}},
                    "verbosity": "low",
                },
                "reasoning": {"effort": "low", "summary": "auto"},
                "include": ["reasoning.encrypted_content"],
                "store": false,
                "stream": true,
                "input": [{"role": "user", "content": "task"}],
            })
        );
        assert_eq!(prepared.warnings.len(), 2, "{:?}", prepared.warnings);
    }

    #[test]
    fn items_go_back_byte_for_byte_but_for_reasoning_that_the_provider_would_have_to_know() {
        let kept = [
            r#"{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":"Ab+/=="}"#,
            r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"\u00e9","n":1.0e2}]}"#,
            r#"{"type":"function_call","call_id":"c1","name":"add","arguments":"{ }","id":"fc_1"}"#,
        ];
        let mut call = with_tools(request("task"), &["add"]);
        let lost = r#"{"id":"rs_2","type":"reasoning","summary":[],"encrypted_content":null}"#;
        let output = format!("[{}, {lost},{} ,{}]", kept[0], kept[1], kept[2]);
        call.turns.push(assistant(&history::responses(&output)));
        let image = json!({"type": "image", "data": "AAAA", "mimeType": "image/png"});
        let result = ToolResult { tool_use_id: String::from("c1"), content: vec![image], is_error: false };
        call.turns.push(Arc::new(Turn::ToolResults(vec![result, ToolResult::error("c2", "no")])));
        let body = text(&call);
        assert!(body.contains(&kept.join(",")), "{body}");
        assert!(!body.contains("rs_2"));
        assert_eq!(
            json_of(&call)["input"].as_array().expect("items")[4..],
            [
                json!({"type": "function_call_output", "call_id": "c1", "output": [
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}]}),
                json!({"type": "function_call_output", "call_id": "c2", "output": "Error: no"}),
            ]
        );
    }

    #[test]
    fn the_same_conversation_makes_the_same_bytes_and_only_grows_at_its_end() {
        let mut call = with_tools(request("task"), &["b", "a"]);
        let before = text(&call);
        call.turns.push(assistant(&history::responses(r#"[{"type":"message"}]"#)));
        call.turns.push(Arc::new(Turn::User(String::from("more"))));
        assert!(text(&call).starts_with(before.trim_end_matches("]}")));
    }

    #[test]
    fn a_turn_of_another_protocol_keeps_its_text_and_its_calls() {
        let mut call = with_tools(request("task"), &["add"]);
        let tool_uses = vec![ToolUse {
            id: String::from("toolu_1"),
            name: String::from("add"),
            input: json!({"x": 1}).as_object().expect("an object").clone(),
            problem: None,
        }];
        let raw = serde_json::from_str(r#"[{"type":"thinking"}]"#).expect("JSON");
        call.turns.push(Arc::new(Turn::Assistant(AssistantTurn {
            raw,
            text: String::from("now"),
            tool_uses,
            author: None,
        })));
        call.turns.push(assistant("[]"));
        call.turns.push(Arc::new(Turn::ToolResults(vec![ToolResult {
            tool_use_id: String::from("toolu_1"),
            content: vec![text_block("3")],
            is_error: false,
        }])));
        assert_eq!(
            json_of(&call)["input"].as_array().expect("items")[1..],
            [
                json!({"role": "assistant", "content": "now"}),
                json!({"type": "function_call", "call_id": "toolu_1", "name": "add", "arguments": "{\"x\":1}"}),
                json!({"type": "function_call_output", "call_id": "toolu_1", "output": "3"}),
            ]
        );
    }

    #[test]
    fn what_we_show_with_the_prompt_are_parts_of_our_item() {
        let mut call = request("x");
        let image = json!({"type": "image", "url": "https://h/a.png"});
        call.turns = vec![Arc::new(Turn::Content(vec![image, text_block("what is it?")]))];
        assert_eq!(
            json_of(&call)["input"],
            json!([{"role": "user", "content": [
                {"type": "input_image", "image_url": "https://h/a.png", "detail": "auto"},
                {"type": "input_text", "text": "what is it?"},
            ]}])
        );
    }

    #[test]
    fn a_last_turn_without_tools_still_lists_them() {
        let mut call = with_tools(request("task"), &["add"]);
        call.tools_allowed = false;
        assert_eq!(
            (&json_of(&call)["tool_choice"], &json_of(&call)["tools"][0]["name"]),
            (&json!("none"), &json!("add"))
        );
        // Tools of the provider are the node's own wish, and no part of our loop.
        let search = json!({"type": "web_search"});
        let mut searching = with_settings(request("task"), json!({"extra": {"tools": [search]}}));
        searching.tools_allowed = false;
        assert_eq!((&json_of(&searching)["tools"], json_of(&searching).get("tool_choice")), (&json!([search]), None));
    }
}
