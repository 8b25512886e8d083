//! What a scripted model answers, and what it refuses as the real service would.

use serde_json::{Value, json};

use super::*;

fn model(script: &str) -> ScriptedModel {
    ScriptedModel::parse(script, "turns.yaml").expect("a valid script")
}

fn body(messages: Value) -> Value {
    json!({"model": "m", "max_tokens": 100, "messages": messages, "tools": [
        {"name": "get_weather", "input_schema": {"type": "object"}},
    ]})
}

fn ask(model: &ScriptedModel, body: &Value) -> Result<Value, ApiError> {
    let pending = model.answer(body, "2026-10-21");
    model.finish(pending)
}

fn user(text: &str) -> Value {
    body(json!([{"role": "user", "content": text}]))
}

const WEATHER: &str = r#"
rules:
  - name: weather
    match: {prompt: weather, tool: get_weather}
    replies:
      - thinking: I should look.
        tool_calls:
          - {name: get_weather, input: {city: "{{ prompt | replace('weather in ', '') }}"}}
          - {name: get_weather, input: {city: Oslo, days: 2}}
      - text: "It is {{ tool_results | join(' and ') }}."
  - match: {prompt: weather}
    reply: {text: no tools}
"#;

fn answered(first: &Value, results: &[(&str, &str)]) -> Value {
    let results: Vec<Value> = results
        .iter()
        .map(
            |(id, text)| json!({"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": text}]}),
        )
        .collect();
    body(json!([
        {"role": "user", "content": "weather in Rome"},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": results},
    ]))
}

#[test]
fn a_conversation_goes_on_at_the_turn_that_the_request_shows() {
    let first = ask(&model(WEATHER), &user("weather in Rome")).expect("the first turn");
    assert_eq!(first["stop_reason"], "tool_use");
    assert_eq!(first["content"][0]["type"], "thinking");
    assert_eq!(first["content"][1]["input"], json!({"city": "Rome"}));
    let ids = [&first["content"][1]["id"], &first["content"][2]["id"]].map(|id| id.as_str().expect("an id"));
    assert_ne!(ids[0], ids[1]);
    // Another process that never saw the first turn goes on with the second.
    let second = ask(&model(WEATHER), &answered(&first, &[(ids[0], "sunny"), (ids[1], "wet")])).expect("the second");
    assert_eq!(second["content"][0]["text"], "It is sunny and wet.");
    assert_eq!(second["stop_reason"], "end_turn");
}

#[test]
fn the_same_request_gets_the_same_bytes() {
    let (one, other) = (model(WEATHER), model(WEATHER));
    let body = user("weather in Rome");
    assert_eq!(ask(&one, &body).expect("one").to_string(), ask(&other, &body).expect("other").to_string());
}

#[test]
fn the_first_rule_that_applies_answers() {
    let mut without_tools = user("weather in Rome");
    without_tools.as_object_mut().expect("object").remove("tools");
    assert_eq!(ask(&model(WEATHER), &without_tools).expect("the second rule")["content"][0]["text"], "no tools");
}

#[test]
fn a_request_that_no_rule_answers_is_shown() {
    let error = ask(&model(WEATHER), &user("news of Rome")).expect_err("no rule");
    assert_eq!((error.status, error.kind.as_str()), (400, "invalid_request_error"));
    assert!(error.message.contains("turn 0") && error.message.contains("news of Rome"), "{}", error.message);
    assert!(error.message.contains("get_weather"), "{}", error.message);
}

#[test]
fn every_member_of_a_match_must_hold() {
    let model = model(
        "rules:\n  - match: {model: m, system: [you, are], turn: 0, last: again, tools_allowed: true}\n    reply: {text: x}\n",
    );
    let good = json!({"model": "m", "max_tokens": 1, "system": "you are", "tools": user("")["tools"],
        "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "again"}]});
    assert!(ask(&model, &good).is_ok());
    for (pointer, value) in [
        ("/model", json!("other")),
        ("/system", json!("you")),
        ("/messages/1/content", json!("once")),
        ("/tool_choice", json!({"type": "none"})),
    ] {
        let mut bad = good.clone();
        match bad.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => bad["tool_choice"] = value,
        }
        assert!(ask(&model, &bad).expect_err(pointer).message.contains("no rule"), "{pointer}");
    }
}

#[test]
fn the_first_calls_of_a_turn_can_fail_and_each_conversation_counts_its_own() {
    let model = model(
        "rules:\n  - reply: {text: done, fail_first: {times: 2, status: 429, retry_after: 1s, message: slow down}}\n",
    );
    for conversation in ["a", "b"] {
        for _ in 0..2 {
            let error = ask(&model, &user(conversation)).expect_err("one of the first two");
            assert_eq!((error.status, error.kind.as_str()), (429, "rate_limit_error"));
            assert_eq!(error.retry_after, Some(Duration::from_secs(1)));
            assert_eq!(error.message, "slow down");
        }
        assert_eq!(ask(&model, &user(conversation)).expect("the third")["content"][0]["text"], "done");
    }
}

#[test]
fn an_error_reply_is_an_error_every_time() {
    let model = model("rules: [{reply: {error: {status: 402}}}]");
    for _ in 0..3 {
        assert_eq!(ask(&model, &user("x")).expect_err("always").kind, "billing_error");
    }
}

#[test]
fn completions_are_counted_when_they_are_given_and_repetitions_are_seen() {
    let model = model("rules: [{reply: {text: hi, delay: 1m}}]");
    let abandoned = model.answer(&user("x"), "2026-10-21");
    assert_eq!(abandoned.delay, Duration::from_secs(60));
    drop(abandoned);
    assert_eq!((model.log().requests, model.log().completions), (1, 0));
    for _ in 0..2 {
        ask(&model, &user("x")).expect("an answer");
    }
    ask(&model, &user("y")).expect("an answer");
    let log = model.log();
    assert_eq!((log.requests, log.completions, log.errors, log.repeated), (4, 3, 0, 1));
    let first = log.conversations.values().next().expect("a conversation");
    assert_eq!((first.prompt.as_str(), first.requests, first.completions, first.turns[&0]), ("x", 3, 2, 2));
}

#[test]
fn only_so_many_conversations_are_remembered() {
    let model = model("rules: [{reply: {text: hi}}]");
    for index in 0..=MAX_CONVERSATIONS {
        ask(&model, &user(&format!("prompt {index}"))).expect("an answer");
    }
    let log = model.log();
    assert_eq!(log.conversations.len(), MAX_CONVERSATIONS);
    assert_eq!(log.conversations.values().next().expect("the oldest").prompt, "prompt 1");
    assert_eq!(log.completions, MAX_CONVERSATIONS as u64 + 1);
}

#[test]
fn tokens_are_counted_from_the_text_or_taken_from_the_script() {
    let counted = ask(&model("rules: [{reply: {text: hello}}]"), &user("a longer prompt")).expect("an answer");
    assert_eq!(counted["usage"]["output_tokens"], 8, "{}", counted["content"]);
    let longer =
        ask(&model("rules: [{reply: {text: hello}}]"), &user("a much, much longer prompt")).expect("an answer");
    assert!(longer["usage"]["input_tokens"].as_u64() > counted["usage"]["input_tokens"].as_u64());
    let set = "rules: [{reply: {text: a, usage: {input_tokens: 100, cache_read_tokens: 60, cache_write_tokens: 10}}}]";
    let set = ask(&model(set), &user("x")).expect("an answer");
    assert_eq!(
        set["usage"],
        json!({"input_tokens": 30, "cache_creation_input_tokens": 10, "cache_read_input_tokens": 60, "output_tokens": 7})
    );
}

#[test]
fn tool_calls_where_tools_are_forbidden_need_a_rule_of_their_own() {
    let mut last = user("weather in Rome");
    last["tool_choice"] = json!({"type": "none"});
    let error = ask(&model(WEATHER), &last).expect_err("tools are forbidden");
    assert!(error.message.contains("tools_allowed: false"), "{}", error.message);
}

#[test]
fn json_raw_blocks_and_stop_reasons_go_out_as_they_are() {
    let script = r#"
rules:
  - reply:
      content: [{type: server_tool_use, id: s1, name: web_search, input: {q: x}}]
      json: {answer: "{{ prompt }}", n: 1.50}
      stop_reason: refusal
      stop_details: {type: refusal, category: cyber}
"#;
    let message = ask(&model(script), &user("p")).expect("an answer");
    assert_eq!(message["content"][0]["name"], "web_search");
    assert_eq!(message["content"][1]["text"], r#"{"answer":"p","n":1.5}"#);
    assert_eq!((&message["stop_reason"], &message["stop_details"]["category"]), (&json!("refusal"), &json!("cyber")));
}

#[test]
fn rules_of_the_api_are_held() {
    let model = model("rules: [{reply: {text: hi}}]");
    let use_of = |id: &str| json!({"type": "tool_use", "id": id, "name": "get_weather", "input": {}});
    let result_of = |id: &str| json!({"type": "tool_result", "tool_use_id": id, "content": "x"});
    let talk = |content: Value, results: Value| {
        body(json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": content},
            {"role": "user", "content": results},
        ]))
    };
    let with = |member: &str, value: Value| {
        let mut body = user("x");
        body[member] = value;
        body
    };
    assert!(ask(&model, &talk(json!([use_of("a"), use_of("b")]), json!([result_of("b"), result_of("a")]))).is_ok());
    let signature = reply::signature("as it was", &user("x"));
    let thinking = |text: &str| json!([{"type": "thinking", "thinking": text, "signature": signature}, use_of("a")]);
    assert!(ask(&model, &talk(thinking("as it was"), json!([result_of("a")]))).is_ok());
    for (body, words) in [
        (talk(json!([use_of("a"), use_of("b")]), json!([result_of("a")])), "without `tool_result`"),
        (talk(json!([use_of("a")]), json!([{"type": "text", "text": "t"}, result_of("a")])), "must come first"),
        (talk(json!([{"type": "text", "text": "t"}]), json!([result_of("a")])), "unexpected `tool_use_id`"),
        (talk(json!([use_of("a")]), json!([result_of("a"), result_of("a")])), "unexpected `tool_use_id`"),
        (talk(json!([use_of("a"), use_of("a")]), json!([result_of("a")])), "not valid"),
        (talk(json!([]), json!("more")), "at least one block"),
        (talk(json!([{"type": "text", "text": ""}]), json!("more")), "non-empty"),
        (talk(thinking("as it was not"), json!([result_of("a")])), "Invalid `signature`"),
        (body(json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])), "prefilling"),
        (body(json!([{"role": "assistant", "content": "a"}])), "first message"),
        (body(json!([{"role": "tool", "content": "a"}])), "role"),
        (body(json!([])), "at least one message"),
        (with("max_tokens", Value::Null), "max_tokens"),
        (with("model", json!("")), "model"),
        (with("temperature", json!(1)), "temperature: Extra inputs"),
        (with("top_k", json!(1)), "top_k: Extra inputs"),
        (with("colour", json!(1)), "colour: Extra inputs"),
        (with("tool_choice", json!({"type": "any"})), "forced tool use"),
        (with("tools", json!([{"name": "a b", "input_schema": {"type": "object"}}])), "does not match"),
        (with("tools", json!([{"name": "a", "input_schema": {}}])), "input_schema.type"),
        (
            with("output_config", json!({"format": {"type": "json_schema", "schema": {"type": "object"}}})),
            "additionalProperties",
        ),
        (
            with("output_config", json!({"format": {"schema": {"type": "array", "items": {"minLength": 1}}}})),
            "`minLength` is not supported",
        ),
    ] {
        let error = ask(&model, &body).expect_err(words);
        assert!(error.status == 400 && error.message.contains(words), "{words}: {}", error.message);
    }
    let mut without_tools = talk(json!([use_of("a")]), json!([result_of("a")]));
    without_tools.as_object_mut().expect("object").remove("tools");
    assert!(ask(&model, &without_tools).expect_err("no tools").message.contains("must define tools"));
    let mut other_system = talk(thinking("as it was"), json!([result_of("a")]));
    other_system["system"] = json!("be brief");
    assert!(ask(&model, &other_system).expect_err("it is bound").message.contains("a different conversation"));
    let older = model.answer(&with("temperature", json!(1)), "2023-06-01");
    assert!(model.finish(older).is_ok(), "an older version takes sampling parameters");
}

#[test]
fn a_paused_turn_may_be_sent_back_as_the_last_one() {
    let model = model("rules: [{replies: [{text: a, stop_reason: pause_turn}, {text: b}]}]");
    let first = ask(&model, &user("q")).expect("the pause");
    let again = body(json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": first["content"]}]));
    assert_eq!(ask(&model, &again).expect("the rest")["content"][0]["text"], "b");
}

#[test]
fn the_example_of_the_documentation_is_a_script() {
    let page = include_str!("../../../../docs/scripted-model.md");
    let example = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a YAML example");
    let model = model(example);
    assert_eq!(ask(&model, &user("weather")).expect("two calls")["content"].as_array().map(Vec::len), Some(3));
    assert_eq!(ask(&model, &user("summarise")).expect_err("once").retry_after, Some(Duration::from_millis(200)));
    assert_eq!(ask(&model, &user("summarise")).expect("then")["content"][0]["text"], "A short summary.");
    assert_eq!(ask(&model, &user("hello")).expect("the last rule")["content"][0]["text"], "You said: hello");
}
