//! Every kind of body that the client of the Messages API sends, held against the types of the vendor's SDK.

use serde_json::{Value, json};

use crate::recording::{self, Answers, PNG, Sent, mistakes};

const PATH: &str = "/v1/messages";

/// A message as the events in which it is streamed.
fn events(message: &Value) -> Option<Vec<Value>> {
    let mut start = message.clone();
    start["content"] = json!([]);
    let mut events = vec![json!({"type": "message_start", "message": start})];
    for (index, block) in message["content"].as_array().expect("blocks").iter().enumerate() {
        events.push(json!({"type": "content_block_start", "index": index, "content_block": block}));
    }
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": message["stop_reason"]}, "usage": {}}));
    events.push(json!({"type": "message_stop"}));
    Some(events)
}

fn message(content: Value, stop_reason: &str) -> Value {
    json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5", "content": content,
        "stop_reason": stop_reason, "stop_sequence": null, "usage": {"input_tokens": 3, "output_tokens": 2}})
}

fn says(text: &str) -> Value {
    message(json!([{"type": "text", "text": text}]), "end_turn")
}

async fn bodies(name: &str, more: &str, node: Value, answers: impl IntoIterator<Item = Value>) -> Vec<Sent> {
    let members = format!("kind = \"anthropic\"\nmodel = \"claude-sonnet-5-5\"\n{more}");
    recording::bodies(name, PATH, &members, node, Answers::streamed(answers, events)).await
}

#[tokio::test]
async fn every_body_that_is_sent_satisfies_the_types_of_the_vendors_sdk() {
    let mut all = Vec::new();
    all.extend(bodies("smallest", "", json!({"llm_config": {"prompt": "hi"}}), [says("hi")]).await);
    let full = json!({"llm_config": {
        "prompt": "hi", "system": "be brief", "max_tokens": 30_000, "stop": ["END"], "effort": "low",
        "thinking": {"type": "adaptive", "display": "summarized"}, "temperature": 0.5, "top_p": 0.9,
        "output_schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]},
        "attachments": [
            {"type": "image", "data": PNG, "mimeType": "image/png"},
            {"type": "image", "url": "https://example.com/a.png"},
            {"type": "document", "data": "JVBERi0xLjQKJcOkw7zDtsOf", "mimeType": "application/pdf", "title": "A"},
            {"type": "document", "url": "https://example.com/a.pdf"},
            {"type": "resource", "resource": {"uri": "file:///a.txt", "text": "hello"}},
            {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
        ],
        "extra": {"metadata": {"user_id": "u-1"}, "service_tier": "standard_only",
            "system": [{"type": "text", "text": "more", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
    }});
    // The first answer does not satisfy the schema, so a correction is sent as well.
    all.extend(bodies("everything", "cache = \"always\"", full, [says("one"), says("{\"n\": 3}")]).await);
    let agent = json!({
        "task": "add", "system": "be exact", "tools": ["calculate", "current_time"], "max_iterations": 2,
        "llm_config": {"strict_tools": true, "extra": {"tool_choice": {"type": "any"}}},
    });
    let wants = message(
        json!([
            {"type": "thinking", "thinking": "hm", "signature": "Ab+/=="},
            {"type": "redacted_thinking", "data": "xyz"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "toolu_1", "name": "calculate", "input": {"expression": "1 + 1"}},
            {"type": "tool_use", "id": "toolu_2", "name": "nobody", "input": {}},
        ]),
        "tool_use",
    );
    let finalize = "\n[agent]\nfinalize = true";
    all.extend(bodies("agent", finalize, agent.clone(), [wants.clone(), wants.clone(), says("2")]).await);
    let streamed = format!("stream = \"always\"\ncache = \"never\"{finalize}");
    all.extend(bodies("streamed", &streamed, agent, [wants.clone(), wants, says("2")]).await);
    let paused = message(json!([{"type": "text", "text": "one "}]), "pause_turn");
    all.extend(bodies("paused", "", json!({"llm_config": {"prompt": "hi"}}), [paused, says("two")]).await);
    let extract = json!({"tool_name": "calculate", "extract_params": {"from": "one and one"}});
    all.extend(bodies("extraction", "", extract, [says("{\"expression\": \"1 + 1\"}")]).await);
    assert_eq!(all.len(), 12, "{:?}", all.iter().map(|sent| &sent.name).collect::<Vec<_>>());

    let tools = &all.iter().find(|sent| sent.name == "agent").expect("it ran").body["tools"];
    assert_eq!(tools[1]["strict"], true, "what is checked is there: {tools}");
    assert_eq!(all[1].body["messages"][0]["content"][2]["type"], "document");
    let found = mistakes(&all).await;
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test]
async fn the_check_finds_what_the_api_would_refuse() {
    let base = || json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
    let with = |pointer: &str, value: Value| {
        let mut body = base();
        body[pointer] = value;
        Sent { name: pointer.to_owned(), path: PATH.to_owned(), body }
    };
    let mut cases = vec![
        with("temperature", json!(1.0)),
        with("max_tokens", json!("many")),
        with("messages", json!([{"role": "tool", "content": "x"}])),
        with("messages", json!([{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}])),
        with("messages", json!([{"role": "assistant", "content": "x", "tool_calls": []}])),
        with("tool_choice", json!("required")),
        with("output_config", json!({"effort": "huge"})),
        with("tools", json!([{"name": "a", "parameters": {}}])),
    ];
    let broken = cases.len();
    cases.push(Sent { name: String::new(), path: PATH.to_owned(), body: base() });
    for (at, case) in cases.iter_mut().enumerate() {
        case.name = format!("{at} {}", case.name);
    }
    let found = mistakes(&cases).await;
    for Sent { name, body, .. } in &cases[..broken] {
        assert!(found.iter().any(|mistake| mistake.starts_with(&format!("{name}:"))), "{name} {body}");
    }
    assert!(!found.iter().any(|mistake| mistake.starts_with(&format!("{broken} "))), "{found:#?}");
}
