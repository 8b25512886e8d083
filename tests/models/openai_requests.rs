//! Every kind of body that the clients of OpenAI's protocols send, held against the types of that vendor's SDK.

use serde_json::{Value, json};

use crate::recording::{Answers, PNG, Sent, bodies, mistakes};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

/// A provider of chat completions or responses; `more` are further members of it.
fn provider(path: &str, more: &str) -> String {
    let api = if path == CHAT { "chat" } else { "responses" };
    format!("kind = \"openai\"\nmodel = \"gpt-5.6\"\napi = \"{api}\"\n{more}")
}

/// What the model says, in the words of the endpoint.
fn says(path: &str, text: &str) -> Value {
    match path {
        CHAT => completion(json!({"role": "assistant", "content": text, "refusal": null}), "stop"),
        _ => response(json!([message(text)])),
    }
}

/// Tools that the model asks for: one that exists and one that does not.
fn wants(path: &str) -> Value {
    let calls = [("call_1", "calculate", r#"{"expression": "1 + 1"}"#), ("call_2", "nobody", "{}")];
    match path {
        CHAT => {
            let calls = calls.map(|(id, name, arguments)| {
                json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
            });
            completion(json!({"role": "assistant", "content": "Let me see.", "tool_calls": calls}), "tool_calls")
        }
        _ => {
            let reasoning = json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA="});
            let calls = calls.map(|(id, name, arguments)| {
                json!({"type": "function_call", "id": format!("fc_{id}"), "call_id": id, "name": name,
                    "arguments": arguments, "status": "completed"})
            });
            response(Value::Array([vec![reasoning, message("Let me see.")], calls.to_vec()].concat()))
        }
    }
}

fn completion(message: Value, finish_reason: &str) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5.6", "choices": [
        {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": null}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}})
}

fn message(text: &str) -> Value {
    json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}]})
}

fn response(output: Value) -> Value {
    json!({"id": "resp_1", "object": "response", "status": "completed", "model": "gpt-5.6", "output": output,
        "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}})
}

async fn all_bodies(path: &str) -> Vec<Sent> {
    let mut all = Vec::new();
    let send = async |name: &str, more: &str, node: Value, answers: Vec<Value>| {
        bodies(&format!("{path} {name}"), path, &provider(path, more), node, Answers::whole(answers)).await
    };
    all.extend(send("smallest", "", json!({"llm_config": {"prompt": "hi"}}), vec![says(path, "hi")]).await);
    let full = |model: &str, extra: Value| {
        json!({"llm_config": {
            "model": model, "prompt": "hi", "system": "be brief", "max_tokens": 30_000, "stop": ["END"], "effort": "low",
            "temperature": 0.5, "top_p": 0.9,
            "output_schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]},
            "attachments": [
                {"type": "image", "data": PNG, "mimeType": "image/png"},
                {"type": "image", "url": "https://example.com/a.png"},
                {"type": "document", "data": "JVBERi0xLjQKJcOkw7zDtsOf", "mimeType": "application/pdf", "title": "A"},
                {"type": "resource", "resource": {"uri": "file:///a.txt", "text": "hello"}},
                {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
            ],
            "extra": extra,
        }})
    };
    // The first answer does not satisfy the schema, so a correction is sent as well.
    let corrected = || vec![says(path, "one"), says(path, "{\"n\": 3}")];
    let extra = json!({"metadata": {"team": "a"}, "service_tier": "flex", "prompt_cache_key": "k"});
    all.extend(send("everything", "", full("gpt-5.6", extra), corrected()).await);
    // Models that do not reason take what the others refuse.
    all.extend(send("sampling", "stream = \"never\"", full("gpt-4.1", json!({})), corrected()).await);
    let agent = json!({
        "task": "add", "system": "be exact", "tools": ["calculate", "current_time", "json_query", "template"], "max_iterations": 2,
        "llm_config": {"strict_tools": true, "extra": {"parallel_tool_calls": true}},
    });
    let turns = || vec![wants(path), wants(path), says(path, "2")];
    let finalize = "\n[agent]\nfinalize = true";
    all.extend(send("agent", finalize, agent.clone(), turns()).await);
    all.extend(send("streamed", &format!("stream = \"always\"{finalize}"), agent, turns()).await);
    let extract = json!({"tool_name": "calculate", "extract_params": {"from": "one and one"}});
    all.extend(send("extraction", "", extract, vec![says(path, "{\"expression\": \"1 + 1\"}")]).await);
    all
}

fn body<'a>(sent: &'a [Sent], name: &str) -> &'a Value {
    &sent.iter().find(|sent| sent.name.ends_with(name)).expect("it was sent").body
}

#[tokio::test]
async fn every_chat_completion_that_is_asked_for_satisfies_the_types_of_the_vendors_sdk() {
    let mut all = all_bodies(CHAT).await;
    for (name, more) in [
        ("json object", "structured_output = \"json_object\"\nmax_tokens_as = \"max_completion_tokens\""),
        ("in words", "structured_output = \"prompt\"\nmax_tokens_as = \"max_tokens\"\nimages = false"),
    ] {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}});
        let node = json!({"llm_config": {"prompt": "hi", "output_schema": schema}});
        all.extend(
            bodies(name, CHAT, &provider(CHAT, more), node, Answers::whole(vec![says(CHAT, "{\"n\": 3}")])).await,
        );
    }
    assert_eq!(all.len(), 14, "{:?}", all.iter().map(|sent| &sent.name).collect::<Vec<_>>());
    let tools = &body(&all, "agent")["tools"];
    assert_eq!(tools[3]["function"]["name"], "template", "what is checked is there: {tools}");
    assert_eq!(body(&all, "everything")["response_format"]["type"], "json_schema");
    assert_eq!(body(&all, "streamed")["stream"], true);
    assert_eq!(body(&all, "json object")["max_completion_tokens"], 16_000);
    assert_eq!(all[1].body["messages"][1]["content"][0]["type"], "image_url", "{}", all[1].body);
    let found = mistakes(&all).await;
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn every_response_that_is_asked_for_satisfies_the_types_of_the_vendors_sdk() {
    let all = all_bodies(RESPONSES).await;
    assert_eq!(all.len(), 12, "{:?}", all.iter().map(|sent| &sent.name).collect::<Vec<_>>());
    let tools = &body(&all, "agent")["tools"];
    assert_eq!(tools[3]["name"], "template", "what is checked is there: {tools}");
    assert_eq!(body(&all, "everything")["text"]["format"]["type"], "json_schema");
    assert_eq!(body(&all, "streamed")["stream"], true);
    let kinds = |item: &Value| item["type"].as_str().map(str::to_owned);
    let last = all.iter().rfind(|sent| sent.name.ends_with("agent")).expect("it was sent");
    let items: Vec<String> = last.body["input"].as_array().expect("items").iter().filter_map(kinds).collect();
    for kind in ["reasoning", "function_call", "function_call_output"] {
        assert!(items.iter().any(|item| item == kind), "{kind}: {items:?}");
    }
    let found = mistakes(&all).await;
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn the_check_finds_what_these_apis_would_refuse() {
    let chat = || json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    let response = || json!({"model": "m", "input": [{"role": "user", "content": "x"}]});
    let with = |path: &'static str, member: &str, value: Value| {
        let mut body = if path == CHAT { chat() } else { response() };
        body[member] = value;
        (path, body)
    };
    let broken = [
        with(CHAT, "top_k", json!(1)),
        with(CHAT, "stop", json!(5)),
        with(CHAT, "messages", json!([{"role": "assistant", "content": "x", "reasoning_content": "y"}])),
        with(CHAT, "messages", json!([{"role": "tool", "content": "x"}])),
        with(CHAT, "tools", json!([{"name": "a", "parameters": {}}])),
        with(CHAT, "response_format", json!({"type": "json_schema", "schema": {}})),
        with(RESPONSES, "messages", json!([])),
        with(RESPONSES, "max_tokens", json!(1)),
        with(RESPONSES, "tools", json!([{"type": "function", "function": {"name": "a"}}])),
        with(RESPONSES, "input", json!([{"type": "function_call", "name": "a", "arguments": "{}"}])),
        with(RESPONSES, "include", json!(["everything"])),
    ];
    let good = [(CHAT, chat()), (RESPONSES, response())];
    let sent = |at: usize, (path, body): &(&str, Value)| Sent {
        name: format!("case {at}."),
        path: (*path).to_owned(),
        body: body.clone(),
    };
    let all: Vec<Sent> = broken.iter().chain(&good).enumerate().map(|(at, case)| sent(at, case)).collect();
    let found = mistakes(&all).await;
    for (at, (_, body)) in broken.iter().enumerate() {
        assert!(found.iter().any(|mistake| mistake.starts_with(&format!("case {at}."))), "{body}");
    }
    for at in broken.len()..all.len() {
        assert!(!found.iter().any(|mistake| mistake.starts_with(&format!("case {at}."))), "{found:#?}");
    }
}
