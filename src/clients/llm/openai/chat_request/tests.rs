//! Golden bodies of chat completions.

use std::sync::Arc;

use super::*;
use crate::clients::llm::fixture::{assistant, request, with_settings, with_tools};
use crate::config::ProviderKind;
use crate::domain::message::{ToolUse, text_block};

fn config() -> ProviderConfig {
    let base_url = String::from("http://127.0.0.1:8000/v1");
    ProviderConfig { base_url, model: String::from("m"), ..ProviderConfig::of(ProviderKind::Openai) }
}

fn text_with(request: &LlmRequest, config: &ProviderConfig) -> String {
    String::from_utf8(prepare(request, config, false).body).expect("JSON is UTF-8")
}

fn text(request: &LlmRequest) -> String {
    text_with(request, &config())
}

fn json_of(request: &LlmRequest) -> Value {
    serde_json::from_str(&text(request)).expect("a body")
}

fn result(id: &str, content: Vec<Value>) -> ToolResult {
    ToolResult { tool_use_id: id.to_owned(), content, is_error: false }
}

#[test]
fn the_smallest_body_has_nothing_that_was_not_asked_for() {
    assert_eq!(
        text(&request("hello")),
        r#"{"model":"m","max_tokens":16000,"messages":[{"role":"user","content":"hello"}]}"#
    );
    let streamed = String::from_utf8(prepare(&request("hello"), &config(), true).body).expect("JSON is UTF-8");
    assert_eq!(
        streamed,
        r#"{"model":"m","max_tokens":16000,"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hello"}]}"#
    );
}

#[test]
fn every_setting_has_its_place() {
    let mut call = with_settings(
        with_tools(request("task"), &["add"]),
        json!({"model": "other", "max_tokens": 500, "stop": ["END"], "effort": "low", "temperature": 0.5,
            "top_p": 0.9, "extra": {"seed": 7, "parallel_tool_calls": false}}),
    );
    call.system = Some(String::from("be brief"));
    assert_eq!(
        json_of(&call),
        json!({
            "model": "other",
            "max_tokens": 500,
            "tools": [{"type": "function", "function": {
                "name": "add",
                "description": "Does add.",
                "parameters": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0}}},
            }}],
            "reasoning_effort": "low",
            "temperature": 0.5,
            "top_p": 0.9,
            "stop": ["END"],
            "seed": 7,
            "parallel_tool_calls": false,
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "task"}],
        })
    );
    assert!(prepare(&call, &config(), false).warnings.is_empty());
}

#[test]
fn openai_itself_gets_the_newer_name_of_the_limit_and_no_sampling_for_models_that_reason() {
    let openai = ProviderConfig { api: crate::config::Api::Chat, ..ProviderConfig::of(ProviderKind::Openai) };
    let call = with_settings(request("x"), json!({"temperature": 0.5, "stop": "END".split(' ').collect::<Vec<_>>()}));
    let prepared = prepare(&call, &openai, false);
    let body: Value = serde_json::from_slice(&prepared.body).expect("a body");
    assert_eq!(
        body,
        json!({"model": "gpt-5.6", "max_completion_tokens": 16000,
        "messages": [{"role": "user", "content": "x"}]})
    );
    assert!(prepared.warnings[0].contains("`temperature`, `stop_sequences`"), "{:?}", prepared.warnings);
    let calm = with_settings(request("x"), json!({"temperature": 0.5, "effort": "none"}));
    assert_eq!(prepare(&calm, &openai, false).warnings.len(), 0);
    let older = with_settings(request("x"), json!({"temperature": 0.5, "model": "gpt-4o"}));
    assert!(text_with(&older, &openai).contains(r#""temperature":0.5"#));
    for (max_tokens_as, name) in
        [(MaxTokensAs::MaxTokens, "max_tokens"), (MaxTokensAs::MaxCompletionTokens, "max_completion_tokens")]
    {
        let config = ProviderConfig { max_tokens_as, ..openai.clone() };
        assert!(text_with(&request("x"), &config).contains(&format!(r#""{name}":16000"#)), "{name}");
    }
}

#[test]
fn what_the_model_wrote_goes_back_byte_for_byte() {
    let raw = r#"{"role":"assistant","content":null, "reasoning_content":"\u00e9 é","new_member":{"b":12345678901234567890123,"n":1.0e2},"tool_calls":[{"id":"c1","type":"function","function":{"name":"add","arguments":"{\"z\": 1, \"a\":2}"},"extra_content":{"google":{"thought_signature":"Ab+/="}}}]}"#;
    let mut call = with_tools(request("task"), &["add"]);
    call.turns.push(assistant(raw));
    assert!(text(&call).contains(raw), "{}", text(&call));
}

#[test]
fn the_same_conversation_makes_the_same_bytes_and_only_grows_at_its_end() {
    let mut call = with_tools(request("task"), &["b", "a"]);
    let before = text(&call);
    assert_eq!(before, text(&call.clone()));
    call.turns.push(assistant(r#"{"role":"assistant","content":"x"}"#));
    call.turns.push(Arc::new(Turn::User(String::from("more"))));
    assert!(text(&call).starts_with(before.trim_end_matches("]}")));
}

#[test]
fn each_result_is_a_message_in_call_order_and_images_follow_the_last() {
    let mut call = with_tools(request("task"), &["add"]);
    let image = json!({"type": "image", "data": "AAAA", "mimeType": "image/png"});
    call.turns.push(Arc::new(Turn::ToolResults(vec![
        result("c2", vec![text_block("two"), image]),
        ToolResult::error("c1", "no"),
        result("c3", Vec::new()),
    ])));
    assert_eq!(
        json_of(&call)["messages"].as_array().expect("messages")[1..],
        [
            json!({"role": "tool", "tool_call_id": "c2", "content": "two\n[image, shown below]"}),
            json!({"role": "tool", "tool_call_id": "c1", "content": "Error: no"}),
            json!({"role": "tool", "tool_call_id": "c3", "content": "(no output)"}),
            json!({"role": "user", "content": [
                {"type": "text", "text": "From the result of the tool call c2:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ]}),
        ]
    );
}

#[test]
fn what_we_show_with_the_prompt_are_parts_of_our_message() {
    let mut call = request("x");
    let image = json!({"type": "image", "url": "https://h/a.png"});
    call.turns = vec![Arc::new(Turn::Content(vec![image, text_block("what is it?")]))];
    assert_eq!(
        json_of(&call)["messages"],
        json!([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://h/a.png"}},
            {"type": "text", "text": "what is it?"},
        ]}])
    );
}

#[test]
fn a_turn_of_another_protocol_keeps_its_text_and_its_calls() {
    let mut call = with_tools(request("task"), &["add"]);
    let tool_uses = vec![ToolUse {
        id: String::from("toolu_1"),
        name: String::from("add"),
        input: json!({"z": 1, "a": 2}).as_object().expect("an object").clone(),
        problem: None,
    }];
    let raw = r#"[{"type":"thinking","thinking":"secret","signature":"s"},{"type":"text","text":"now"},{"type":"tool_use","id":"toolu_1","name":"add","input":{"z":1,"a":2}}]"#;
    let turn = AssistantTurn {
        raw: serde_json::from_str(raw).expect("JSON"),
        text: String::from("now"),
        tool_uses,
        author: None,
    };
    call.turns.push(Arc::new(Turn::Assistant(turn)));
    call.turns.push(assistant("[]"));
    assert_eq!(
        json_of(&call)["messages"].as_array().expect("messages")[1..],
        [json!({"role": "assistant", "content": "now", "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": {"name": "add", "arguments": "{\"z\":1,\"a\":2}"}},
        ]})]
    );
}

#[test]
fn reasoning_is_kept_from_servers_that_refuse_it() {
    let mut call = request("task");
    call.turns
        .push(assistant(r#"{"role":"assistant","content":"a","reasoning":"r","reasoning_details":[1],"x":1.0e2}"#));
    let config = ProviderConfig { reasoning_history: false, ..config() };
    assert!(text_with(&call, &config).contains(r#"{"role":"assistant","content":"a","x":1.0e2}"#));
    assert!(text(&call).contains(r#""reasoning":"r""#));
}

#[test]
fn a_last_turn_without_tools_still_lists_them() {
    let mut call = with_tools(request("task"), &["add"]);
    call.tools_allowed = false;
    let body = json_of(&call);
    assert_eq!((&body["tool_choice"], &body["tools"][0]["function"]["name"]), (&json!("none"), &json!("add")));
    let mut bare = request("task");
    bare.tools_allowed = false;
    assert!(json_of(&bare).get("tool_choice").is_none(), "the API refuses a choice among no tools");
    // Tools of the provider are the node's own wish, and no part of our loop.
    let search = json!({"type": "web_search"});
    let mut searching = with_settings(request("task"), json!({"extra": {"tools": [search]}}));
    searching.tools_allowed = false;
    assert_eq!((&json_of(&searching)["tools"], json_of(&searching).get("tool_choice")), (&json!([search]), None));
}

#[test]
fn a_schema_is_enforced_as_the_server_can() {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]});
    let mut call = request("x");
    call.output_schema = Some(Arc::new(schema.clone()));
    let format = &json_of(&call)["response_format"];
    assert_eq!(
        format,
        &json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": {
            "type": "object",
            "properties": {"n": {"type": "integer", "description": "(maximum: 9)"}},
            "required": ["n"],
            "additionalProperties": false,
        }}})
    );
    for (structured_output, format) in
        [(StructuredOutput::JsonObject, json!({"type": "json_object"})), (StructuredOutput::Prompt, Value::Null)]
    {
        let config = ProviderConfig { structured_output, ..config() };
        let body: Value = serde_json::from_str(&text_with(&call, &config)).expect("a body");
        assert_eq!(body["response_format"], format);
        let system = body["messages"][0]["content"].as_str().expect("a text");
        assert!(system.contains(&schema.to_string()), "{system}");
    }
    let with_tools = with_tools(call, &["add"]);
    let body = json_of(&with_tools);
    assert_eq!((&body["response_format"], &body["messages"][0]["role"]), (&Value::Null, &json!("system")));
    let openai = ProviderConfig { api: crate::config::Api::Chat, ..ProviderConfig::of(ProviderKind::Openai) };
    assert!(text_with(&with_tools, &openai).contains("json_schema"), "OpenAI itself leaves room for tools");
}

#[test]
fn extra_members_join_ours_and_never_replace_what_the_worker_writes() {
    let call = with_settings(
        with_tools(request("x"), &["add"]),
        json!({"thinking": {"type": "adaptive"}, "extra": {
            "model": "other", "messages": [], "stream": true, "max_tokens": 1, "n": 3,
            "tools": [{"type": "web_search"}], "user": "u",
        }}),
    );
    let prepared = prepare(&call, &config(), false);
    let body: Value = serde_json::from_slice(&prepared.body).expect("a body");
    assert_eq!((&body["model"], &body["max_tokens"], &body["user"]), (&json!("m"), &json!(16000), &json!("u")));
    assert_eq!(body["tools"][1], json!({"type": "web_search"}));
    assert_eq!((body.get("stream"), body.get("n")), (None, None));
    assert_eq!(prepared.warnings.len(), 6, "{:?}", prepared.warnings);
}

#[test]
fn a_tool_that_takes_nothing_has_properties_all_the_same() {
    let mut call = with_tools(request("x"), &["now"]);
    let mut tool = call.tools[0].clone();
    tool.input_schema = Arc::new(json!({"type": "object"}));
    call.tools = Arc::from([tool]);
    assert_eq!(json_of(&call)["tools"][0]["function"]["parameters"], json!({"type": "object", "properties": {}}));
}
