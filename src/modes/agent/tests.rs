//! The rules of the agent loop, one a test, with a scripted model and scripted tools.

use std::time::Duration;

use super::*;
use crate::domain::message::{StopReason, ToolResult, Turn};
use crate::domain::outcome::{Outcome, Partial, Report};
use crate::domain::price::Cost;
use crate::domain::tool::{ToolHints, ToolOutput};
use crate::modes::portable::Portable;
use crate::modes::scripted_ports::{
    Death, LlmAct, Script, code, failure, output, says, settings, text_output, turn, wants,
};

fn echo(arguments: &Value) -> Result<ToolOutput, Failure> {
    Ok(text_output(&arguments.to_string()))
}

fn config() -> Value {
    json!({"task": "Do it", "tools": ["*"], "llm_config": {}})
}

fn with(members: Value) -> Value {
    let mut config = config();
    config.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
    config
}

fn partial(report: &Report) -> Partial {
    match &report.outcome {
        Outcome::Failed { partial: Some(partial), .. } => partial.clone(),
        other => panic!("no partial: {other:?}"),
    }
}

/// The results of the last round of tool calls that the model was shown in request number `request`.
fn results(script: &Script, request: usize) -> Vec<ToolResult> {
    let requests = script.requests.borrow();
    let turns = requests[request].turns.iter().rev();
    turns
        .filter_map(|turn| match &**turn {
            Turn::ToolResults(results) => Some(results.clone()),
            _ => None,
        })
        .next()
        .expect("tool results")
}

fn text(result: &ToolResult) -> &str {
    result.content[0]["text"].as_str().expect("a text")
}

#[tokio::test(start_paused = true)]
async fn tools_are_offered_called_and_answered_until_the_model_is_done() {
    let script = Script::new()
        .state(json!({"what": "math"}), json!({}))
        .tool("add", echo)
        .model([turn("Let me see.", &[("add", json!({"a": 1}))], StopReason::ToolUse), says("It is 1.")]);
    let report = script.run(with(json!({"task": "Do {{ what }}", "system": "Be {{ what }}y"}))).await;
    let usage = json!({"input_tokens": 20, "output_tokens": 10, "cache_read_tokens": 4, "cache_write_tokens": 2});
    let expected = json!({"result": "It is 1.", "iterations": 2, "tool_calls": 1, "model": "scripted-1",
            "provider": "scripted", "stop_reason": "end_turn", "usage": usage});
    assert_eq!(output(&report), expected);
    {
        let requests = script.requests.borrow();
        assert!(matches!(&*requests[0].turns[0], Turn::User(task) if task == "Do math"));
        assert_eq!(requests[0].system.as_deref(), Some("Be mathy"));
        assert_eq!((requests[0].tools[0].name.as_str(), requests[0].tools_allowed), ("add", true));
    }
    assert_eq!((text(&results(&script, 1)[0]), results(&script, 1)[0].is_error), (r#"{"a":1}"#, false));
    let turns = script.told(EventType::NodeProgress);
    assert_eq!(
        (&turns[0]["iteration"], &turns[0]["stop_reason"], &turns[0]["tool_calls"]),
        (&json!(1), &json!("tool_use"), &json!(1))
    );
    assert_eq!((turns.len(), turns[0]["usage"]["output_tokens"].clone()), (2, json!(5)));
    assert_eq!(script.told(EventType::ToolExecuted).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_turn_run_at_once_within_bounds_and_are_answered_in_order() {
    let any = || json!({"type": "object"});
    let mut script = Script::new();
    for (name, seconds) in [("slow", 9), ("quick", 1)] {
        script = script.tool_with(name, any(), Duration::from_secs(seconds), move |_| Ok(text_output(name)));
    }
    let uses =
        [("slow", json!({})), ("quick", json!({})), ("quick", json!({})), ("quick", json!({})), ("quick", json!({}))];
    let script = script.model([wants(&uses), says("done")]);
    let start = tokio::time::Instant::now();
    let report = script.run(config()).await;
    assert_eq!(output(&report)["tool_calls"], 5);
    assert_eq!(start.elapsed(), Duration::from_secs(9), "the quick ones run beside the slow one");
    assert_eq!(script.most_running.get(), 4, "agent.parallel_tools is 4");
    let results = results(&script, 1);
    assert_eq!(results.iter().map(text).collect::<Vec<_>>(), ["slow", "quick", "quick", "quick", "quick"]);
    assert_eq!(results[4].tool_use_id, "use-4");
    let calls = script.calls.borrow();
    let keys: std::collections::HashSet<_> = calls.iter().map(|call| call.context.idempotency_key.clone()).collect();
    assert_eq!(keys.len(), 5, "every call has a key of its own");
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_with_a_tool_is_told_to_the_model() {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let script = Script::new()
        .tool_with("count", schema, Duration::ZERO, echo)
        .tool("broken", |_| Err(Failure::permanent("http_404", "not found")))
        .tool("flaky", |_| Err(Failure::retriable("unreachable", "no answer")))
        .tool("sad", |_| Ok(ToolOutput { is_error: true, ..text_output("no") }));
    let uses = [
        ("cuont", json!({})),
        ("count", json!({"n": "x"})),
        ("broken", json!({})),
        ("flaky", json!({})),
        ("sad", json!({})),
    ];
    let script = script.model([wants(&uses), says("done")]);
    let report = script.run(config()).await;
    assert_eq!(output(&report)["result"], "done");
    let results = results(&script, 1);
    assert!(results.iter().all(|result| result.is_error));
    assert!(text(&results[0]).contains("Did you mean `count`"), "{}", text(&results[0]));
    assert!(text(&results[1]).contains("`/n`"), "{}", text(&results[1]));
    assert!(text(&results[2]).contains("not found") && text(&results[3]).contains("no answer"));
    assert_eq!(text(&results[4]), "no");
    let tried: Vec<String> = script.calls.borrow().iter().map(|call| call.target.name.clone()).collect();
    assert_eq!(tried.iter().filter(|name| *name == "flaky").count(), 3, "a retriable failure is tried again");
    assert!(!tried.contains(&String::from("count")), "arguments that do not fit never reach the tool");
    assert_eq!(output(&report)["tool_calls"], 3, "calls that were refused are not calls");
}

#[tokio::test(start_paused = true)]
async fn a_schema_that_apis_refuse_is_shown_in_other_words_and_the_tool_gets_its_own() {
    let schema = json!({
        "type": "object",
        "properties": {"$top": {"$ref": "#/$defs/n"}, "q": {"type": "string"}},
        "anyOf": [{"required": ["$top"]}, {"required": ["q"]}],
        "$defs": {"n": {"type": "integer"}},
    });
    let shown = Value::clone(&Portable::of(&Arc::new(schema.clone())).schema);
    let names = shown["properties"].as_object().expect("an object").keys();
    let top = names.clone().find(|name| name.starts_with("_top_")).expect("another name");
    let uses = [("list", json!({top: 3})), ("list", json!({top: "three"})), ("list", json!({}))];
    let script = Script::new().tool_with("list", schema, Duration::ZERO, echo).model([wants(&uses), says("done")]);
    script.run(config()).await;
    assert_eq!(*script.requests.borrow()[0].tools[0].input_schema, shown);
    let results = results(&script, 1);
    assert_eq!(text(&results[0]), r#"{"$top":3}"#);
    assert!(text(&results[1]).contains("`/$top`"), "{}", text(&results[1]));
    assert!(results[2].is_error, "what only the tool's own schema says is checked: {}", text(&results[2]));
    assert_eq!(script.calls.borrow().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_made_again_has_the_tools_own_names_too() {
    let schema = json!({"type": "object", "properties": {"$top": {"type": "integer"}}});
    let names = Value::clone(&Portable::of(&Arc::new(schema.clone())).schema);
    let top = names["properties"].as_object().expect("an object").keys().next().expect("a name").clone();
    let script = Script::new()
        .tool_with("list", schema, Duration::ZERO, echo)
        .hinting(ToolHints::READ_ONLY)
        .model([wants(&[("list", json!({top: 3}))]), says("done")]);
    // After the third entry, which says that the call begins, the worker dies.
    script.dies(Death::After(3), config()).await;
    script.run(config()).await;
    assert_eq!(text(&results(&script, 1)[0]), r#"{"$top":3}"#);
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_known_of_the_tools_stands_in_the_warnings() {
    let script = Script::new().tool("add", echo).warning("`srv/add` is described differently").model([says("done")]);
    let report = script.run(config()).await;
    assert_eq!(report.warnings, ["`srv/add` is described differently"]);
    let script = Script::new().tool("add", echo).warning("`srv/add` is described differently");
    assert_eq!(script.run(json!({"tool_name": "add"})).await.warnings.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn long_results_lose_their_middle_and_other_blocks_stay() {
    let image = json!({"type": "image", "data": "x".repeat(500), "mimeType": "image/png"});
    let content = vec![json!({"type": "text", "text": format!("A{}Z", "ä".repeat(998))}), image.clone()];
    let script = Script::new()
        .tool("long", move |_| Ok(ToolOutput { content: content.clone(), ..ToolOutput::default() }))
        .model([wants(&[("long", json!({}))]), says("done")]);
    script.run(config()).await;
    let result = &results(&script, 1)[0];
    assert_eq!(result.content[1], image);
    let shown = text(result);
    assert!(shown.starts_with("Aä") && shown.ends_with("äZ") && shown.contains("900 of 1000 characters left out"));
    assert!(shown.chars().count() < 150);
}

#[tokio::test(start_paused = true)]
async fn a_result_of_many_blocks_is_shortened_as_one() {
    for (blocks, length) in [(300, 10), (3, 1000), (2, 51), (101, 1)] {
        let content: Vec<Value> = (0..blocks)
            .map(|n| json!({"type": "text", "text": char::from(b'a' + (n % 26) as u8).to_string().repeat(length)}))
            .chain([json!({"type": "resource", "resource": {"uri": "u", "text": ""}})])
            .collect();
        let whole: String = content.iter().filter_map(|block| block["text"].as_str()).collect();
        let script = Script::new()
            .tool("long", move |_| Ok(ToolOutput { content: content.clone(), ..ToolOutput::default() }))
            .model([wants(&[("long", json!({}))]), says("done")]);
        script.run(config()).await;
        let result = &results(&script, 1)[0];
        let texts = result.content[..result.content.len() - 1].iter().filter_map(|block| block["text"].as_str());
        let shown: String = texts.collect();
        let total = whole.chars().count();
        let marker = format!("\n[… {} of {total} characters left out …]\n", total - 100);
        assert_eq!(
            shown.replace(&marker, "|"),
            format!("{}|{}", &whole[..50], &whole[total - 50..]),
            "{blocks} of {length}"
        );
        assert!(result.content.iter().any(|block| block["type"] == "resource"), "other blocks stay");
    }
}

fn blob(text: &str) -> &str {
    let key = text.split('`').nth(1).expect("a key in backticks");
    assert!(text.contains("application/json"), "{text}");
    key
}

#[tokio::test(start_paused = true)]
async fn the_whole_of_a_shortened_result_comes_with_the_record_and_the_model_is_told_where_it_is() {
    let whole = ToolOutput {
        content: vec![
            json!({"type": "text", "text": "long ".repeat(100)}),
            json!({"type": "audio", "data": "UklGRg=="}),
        ],
        structured: Some(json!({"long": "long ".repeat(100)})),
        is_error: false,
    };
    let answer = whole.clone();
    let script = Script::new()
        .tool("long", move |_| Ok(answer.clone()))
        .tool("add", echo)
        .model([wants(&[("add", json!({})), ("long", json!({}))]), says("done")]);
    script.run(config()).await;
    let written = script.journal.written.borrow();
    let stored: Vec<_> = written.iter().filter_map(|entry| Some((&*entry.field, entry.whole.as_ref()?))).collect();
    let [("t1:c1:end", kept)] = &stored[..] else { panic!("one result is stored, with its record: {stored:?}") };
    assert_eq!(serde_json::from_str::<ToolOutput>(kept.json.get()).expect("an output"), whole, "nothing of it is lost");
    let result = &results(&script, 1)[1];
    let note = result.content.last().expect("a note")["text"].as_str().expect("a text");
    assert_eq!((blob(note), result.is_error), ("blob:t1:c1", false));
    assert!(note.contains(&format!("{} bytes", kept.json.get().len())), "{note}");
    assert_eq!(
        script.journal.field("t1:c1:end")["answered"]["content"][2]["text"],
        note,
        "whoever goes on shows it too"
    );
    let told = script.told(EventType::ToolExecuted);
    let told: Vec<_> = told.iter().filter_map(|call| call.get("stored")).collect();
    assert_eq!((told.len(), &told[0]["key"], &told[0]["type"]), (1, &json!("blob:t1:c1"), &json!("application/json")));
    assert_eq!(told[0]["bytes"], kept.json.get().len());
}

#[tokio::test(start_paused = true)]
async fn a_structured_answer_that_is_shown_in_part_is_stored_as_it_was() {
    let rows = json!((0..100).map(|row| json!({"row": row})).collect::<Vec<_>>());
    let answer = rows.clone();
    let script = Script::new()
        .tool("rows", move |_| Ok(ToolOutput::structured(answer.clone())))
        .model([wants(&[("rows", json!({}))]), says("done")]);
    script.run(config()).await;
    let written = script.journal.written.borrow();
    let kept = written.iter().find_map(|entry| entry.whole.clone()).expect("it is stored");
    assert_eq!(serde_json::from_str::<Value>(kept.json.get()).expect("JSON")["structured"], rows);
    assert!(text(&results(&script, 1)[0]).contains("characters left out"));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_large_to_be_stored_or_has_no_place_is_shortened_all_the_same() {
    for (keeps, limit) in [(true, 499), (true, 0), (false, 1 << 20)] {
        let mut script = Script::new()
            .tool("long", |_| Ok(text_output(&"x".repeat(500))))
            .model([wants(&[("long", json!({}))]), says("done")]);
        script.keeps = keeps;
        let settings = ModeSettings { stored_tool_result: limit, ..settings() };
        script.run_with(&settings, json!({"config": config()})).await;
        assert!(script.journal.written.borrow().iter().all(|entry| entry.whole.is_none()));
        let result = &results(&script, 1)[0];
        assert_eq!(result.content.len(), 1, "nobody is sent to a place where nothing is");
        assert!(text(result).contains("400 of 500 characters left out"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_made_again_by_another_worker_stores_its_result_in_the_same_place() {
    let long = |_: &Value| Ok(text_output(&"x".repeat(500)));
    let hints = ToolHints { read_only: true, idempotent: true };
    let script = Script::new().tool("long", long).hinting(hints).model([wants(&[("long", json!({}))])]);
    // The third entry is the end of the call: the result was there, and is not on record.
    script.dies(Death::Before(3), config()).await;
    let script = Script::new().tool("long", long).hinting(hints).model([says("done")]).after(script);
    assert_eq!(output(&script.run(config()).await)["result"], "done");
    let written = script.journal.written.borrow();
    let calls: Vec<_> = written.iter().filter_map(|entry| Some(entry.whole.as_ref()?.call.to_string())).collect();
    assert_eq!(calls, ["t1:c0"]);
    assert_eq!(blob(results(&script, 0)[0].content[1]["text"].as_str().expect("a text")), "blob:t1:c0");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_large_whatever_is_left_out_is_told_in_words() {
    let image = json!({"type": "image", "data": "x".repeat(9 << 20), "mimeType": "image/png"});
    let script = Script::new()
        .tool("draw", move |_| Ok(ToolOutput { content: vec![image.clone()], ..ToolOutput::default() }))
        .model([wants(&[("draw", json!({}))]), says("done")]);
    assert_eq!(output(&script.run(config()).await)["result"], "done");
    let result = &results(&script, 1)[0];
    assert!(result.is_error && text(result).contains("was made, but its result was left out"), "{}", text(result));
    assert_eq!(blob(result.content[1]["text"].as_str().expect("a text")), "blob:t1:c0", "people find it");
    let written = script.journal.written.borrow();
    let kept = written.iter().find_map(|entry| entry.whole.clone()).expect("it is stored");
    assert!(kept.json.get().len() > 9 << 20);
}

#[tokio::test(start_paused = true)]
async fn the_iteration_limit_is_a_failure_that_keeps_what_was_reached() {
    let act = |text: &str| turn(text, &[("add", json!({"text": text}))], StopReason::ToolUse);
    let script = Script::new().tool("add", echo).model([act("one"), act("two")]);
    let report = script.run(with(json!({"max_iterations": 2}))).await;
    assert_eq!(code(&report), ("permanent", "iteration_limit"));
    assert_eq!(partial(&report), Partial { text: "two".into(), iterations: 2, conversation: None });
    assert_eq!(report.spent.usage.expect("usage").input_tokens, 20);
    assert_eq!(script.calls.borrow().len(), 1, "tools whose results nobody would see are not run");
    let kept: Value = serde_json::from_str(report.conversation.expect("it is kept").get()).expect("JSON");
    let turns = kept["turns"].as_array().expect("turns");
    assert_eq!((turns.len(), &turns[0]["user"]), (5, &json!("Do it")));
    assert_eq!(turns[4]["tool_results"][0]["content"][0]["text"], "Not run.", "somebody can go on with it: {kept}");
}

#[tokio::test(start_paused = true)]
async fn with_finalize_a_limit_is_followed_by_one_last_turn_without_tools() {
    let mut settings = settings();
    settings.agent.finalize = true;
    let act = || wants(&[("add", json!({}))]);
    let script = Script::new().tool("add", echo).model([act(), act(), says("best guess")]);
    let report = script.run_with(&settings, json!({"config": with(json!({"max_iterations": 2}))})).await;
    assert_eq!((&output(&report)["result"], &output(&report)["iterations"]), (&json!("best guess"), &json!(3)));
    assert_eq!(script.requests.borrow().iter().map(|r| r.tools_allowed).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(script.calls.borrow().len(), 2);

    let script = Script::new().tool("add", echo).model([act(), act(), says("best guess")]);
    let limits = with(json!({"limits": {"max_tool_calls": 1}}));
    let report = script.run_with(&settings, json!({ "config": limits })).await;
    assert_eq!((&output(&report)["result"], script.calls.borrow().len()), (&json!("best guess"), 1));
    assert!(results(&script, 2)[0].is_error, "the call over the limit has its result as well");
}

#[tokio::test(start_paused = true)]
async fn tool_calls_and_tokens_have_budgets() {
    let act = |n: u32| wants(&[("add", json!({"n": n})), ("add", json!({"n": n}))]);
    let script = Script::new().tool("add", echo).model([act(1), act(2)]);
    let report = script.run(with(json!({"limits": {"max_tool_calls": 3}}))).await;
    assert_eq!((code(&report), script.calls.borrow().len()), (("permanent", "tool_call_limit"), 2));
    let script = Script::new().tool("add", echo).model([act(1), act(2)]);
    let report = script.run(with(json!({"limits": {"max_tokens": 30}}))).await;
    assert_eq!((code(&report), script.requests.borrow().len()), (("permanent", "token_limit"), 2));
    assert_eq!(partial(&report).iterations, 2);
}

#[tokio::test(start_paused = true)]
async fn money_has_a_budget_that_counts_what_was_on_record() {
    let paid = |usd: f64| {
        let LlmAct::Says(mut completion) = wants(&[("add", json!({"usd": usd}))]) else { unreachable!("it says") };
        completion.usage.cost = Some(Cost::usd(usd));
        LlmAct::Says(completion)
    };
    let limits = || with(json!({"limits": {"max_cost_usd": 0.5}}));
    let script = Script::new().tool("add", echo).model([paid(0.2), paid(0.29), paid(0.01), says("done")]);
    let report = script.run(limits()).await;
    assert_eq!((code(&report), script.requests.borrow().len()), (("permanent", "cost_limit"), 3));
    let message = &failure(&report).message;
    assert!(message.contains("0.5 USD of 0.5 USD"), "{message}");
    assert_eq!(report.spent.usage.expect("usage").cost, Some(Cost::usd(0.5)));
    // Whoever takes over counts what the journal has and asks no more.
    let again = script.run(limits()).await;
    assert_eq!((code(&again), script.requests.borrow().len()), (("permanent", "cost_limit"), 3));
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_money_without_a_price_costs_no_call() {
    let mut script = Script::new().tool("add", echo).model([says("done")]);
    script.priceless = true;
    let report = script.run(with(json!({"limits": {"max_cost_usd": 0.5}}))).await;
    assert_eq!((code(&report), script.requests.borrow().len()), (("configuration", "price_unknown"), 0));
    let report = script.run(with(json!({}))).await;
    assert_eq!(output(&report)["result"], "done");
}

#[tokio::test(start_paused = true)]
async fn what_the_model_writes_is_told_in_batches_where_somebody_wants_it() {
    let mut script = Script::new().tool("add", echo).model([wants(&[("add", json!({}))]), says("done")]);
    script.told_early = vec!["a", "b", "c", "d"];
    let report = script.run(with(json!({}))).await;
    assert_eq!(output(&report)["result"], "done");
    let told = script.told(EventType::LlmDelta);
    assert!(told.len() > 2 && told.len() <= 8, "four pieces in 600 ms, twice: {told:?}");
    for turn in [1, 2] {
        let pieces: Vec<&Value> = told
            .iter()
            .filter(|event| event["turn"] == turn)
            .flat_map(|event| event["pieces"].as_array().expect("pieces"))
            .collect();
        assert_eq!(pieces[0], &json!({"type": "begin"}));
        let text: String = pieces.iter().filter_map(|piece| piece["text"].as_str()).collect();
        assert_eq!(text, "abcd");
    }
    let silent = Script::new().tool("add", echo).model([says("done")]);
    silent.run(with(json!({}))).await;
    assert!(silent.requests.borrow()[0].deltas.is_none() && silent.told(EventType::LlmDelta).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_tool_call_that_was_cut_never_runs() {
    let script =
        Script::new().tool("pay", echo).model([turn("so", &[("pay", json!({"amount": 1}))], StopReason::MaxTokens)]);
    let report = script.run(config()).await;
    assert_eq!(code(&report), ("permanent", "max_tokens"));
    assert_eq!((partial(&report).text.as_str(), script.calls.borrow().len()), ("so", 0));
}

#[tokio::test(start_paused = true)]
async fn tools_wanted_under_another_stop_reason_are_still_called() {
    let script =
        Script::new().tool("add", echo).model([turn("", &[("add", json!({}))], StopReason::EndTurn), says("done")]);
    assert_eq!(output(&script.run(config()).await)["tool_calls"], 1);
}

#[tokio::test(start_paused = true)]
async fn identical_rounds_are_noted_and_then_end_the_agent() {
    // The order of an object's members is not a difference.
    let act = |round: usize| {
        let arguments = if round.is_multiple_of(2) { json!({"a": 1, "b": 2}) } else { json!({"b": 2, "a": 1}) };
        wants(&[("look", arguments)])
    };
    let script = Script::new().tool("look", |_| Ok(text_output("nothing"))).model((0..5).map(act));
    let report = script.run(config()).await;
    assert_eq!(code(&report), ("permanent", "stuck_loop"));
    assert_eq!(script.requests.borrow().len(), 5);
    assert_eq!(results(&script, 2)[0].content.len(), 1, "two rounds are not noted");
    assert!(results(&script, 3)[0].content[1]["text"].as_str().expect("a note").contains("3 times in a row"));
}

#[tokio::test(start_paused = true)]
async fn the_same_call_with_another_result_is_no_stuck_loop() {
    let polls = std::cell::Cell::new(0);
    let poll = move |_: &Value| {
        polls.set(polls.get() + 1);
        Ok(text_output(&format!("{} percent", polls.get())))
    };
    let acts = (0..8).map(|_| wants(&[("poll", json!({}))])).chain([says("done")]);
    let script = Script::new().tool("poll", poll).model(acts);
    assert_eq!(output(&script.run(config()).await)["iterations"], 9);
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_a_schema_is_corrected_even_at_the_iteration_limit() {
    let schema = json!({"type": "object", "required": ["n"]});
    let members = json!({"output_schema": schema, "max_iterations": 1});
    let script = Script::new().tool("add", echo).model([says("one"), says(r#"{"n": 1}"#)]);
    let report = script.run(with(members.clone())).await;
    assert_eq!((&output(&report)["parsed"], &output(&report)["iterations"]), (&json!({"n": 1}), &json!(2)));
    let script = Script::new().tool("add", echo).model([says("one"), says("two"), says("three")]);
    let report = script.run(with(members)).await;
    assert_eq!((code(&report), partial(&report).text.as_str()), (("validation", "output_invalid"), "three"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_time_is_up_tells_how_far_it_came() {
    let script = Script::new()
        .tool("add", echo)
        .model([turn("thinking", &[("add", json!({}))], StopReason::ToolUse), LlmAct::Hangs]);
    let start = tokio::time::Instant::now();
    let report = script.run(with(json!({"limits": {"timeout": "5s"}}))).await;
    assert_eq!((code(&report), start.elapsed()), (("permanent", "timeout"), Duration::from_secs(5)));
    assert!(failure(&report).message.contains("5s"));
    assert_eq!(partial(&report), Partial { text: "thinking".into(), iterations: 1, conversation: None });
    assert_eq!((report.spent.tool_calls, report.spent.usage.expect("usage").output_tokens), (1, 5));
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_hangs_ends_with_the_node_and_not_as_a_result() {
    let any = json!({"type": "object"});
    let script =
        Script::new().tool_with("sleep", any, Duration::from_secs(3600), echo).model([wants(&[("sleep", json!({}))])]);
    let report = script.run(with(json!({"timeout": 5}))).await;
    assert_eq!(code(&report), ("permanent", "timeout"));
    // Whoever goes on with the conversation must not think that nothing was done.
    let kept: Value = serde_json::from_str(report.conversation.expect("it is kept").get()).expect("JSON");
    let said = kept["turns"][2]["tool_results"][0]["content"][0]["text"].as_str().expect("a text").to_owned();
    assert!(said.contains("may or may not have taken effect"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn unknown_tools_and_a_missing_task_are_configuration_failures() {
    let script = Script::new();
    assert_eq!(code(&script.run(config()).await), ("configuration", "unknown_tool"));
    let report = script.run(json!({"tools": ["a"], "llm_config": {}})).await;
    assert_eq!(code(&report), ("configuration", "missing_task"));
}

/// A picture of 5,000 bytes, which a result keeps whole.
fn picture(_: &Value) -> Result<ToolOutput, Failure> {
    let content = vec![json!({"type": "image", "data": "A".repeat(5000), "mimeType": "image/png"})];
    Ok(ToolOutput { content, structured: None, is_error: false })
}

fn overflow() -> LlmAct {
    LlmAct::Fails(Failure::permanent("context_overflow", "the model says that it is too long"))
}

/// Whether each result that the model was shown in its last request was left out.
fn left_out(script: &Script) -> Vec<bool> {
    let requests = script.requests.borrow();
    let results = requests.last().expect("a request").turns.iter().filter_map(|turn| match &**turn {
        Turn::ToolResults(results) => Some(results.clone()),
        _ => None,
    });
    results
        .flatten()
        .map(|result| result.content[0]["text"].as_str().is_some_and(|text| text.contains("left out")))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_conversation_that_does_not_fit_is_shortened_and_stays_so_for_the_next_worker() {
    let draw = || wants(&[("draw", json!({}))]);
    let script = || {
        let acts = [draw(), draw(), overflow(), wants(&[("add", json!({}))]), says("done"), says("done")];
        Script::new().tool("draw", picture).tool("add", echo).model(acts)
    };
    let undisturbed = script();
    let report = undisturbed.run(config()).await;
    assert_eq!(output(&report)["result"], "done");
    assert!(report.warnings.iter().any(|warning| warning.contains("did not fit")), "{:?}", report.warnings);
    assert_eq!(left_out(&undisturbed), [true, false, false], "the oldest picture, and no more than is needed");
    let progress = undisturbed.told(EventType::NodeProgress);
    assert!(progress.iter().any(|told| told["left_out_bytes"].as_u64().is_some_and(|bytes| bytes > 4000)));

    let last = undisturbed.journal.written.borrow().len();
    let script = script();
    script.dies(Death::Before(last), config()).await;
    let report = script.run(config()).await;
    assert_eq!(output(&report)["result"], "done");
    assert_eq!(left_out(&script), [true, false, false], "what was on record goes on from the shorter conversation");
    assert!(report.warnings.iter().any(|warning| warning.contains("did not fit")), "{:?}", report.warnings);
}

#[tokio::test(start_paused = true)]
async fn a_conversation_of_which_nothing_can_be_left_out_ends_with_its_sizes() {
    let script = Script::new().tool("add", echo).model([wants(&[("add", json!({}))]), overflow()]);
    let report = script.run(config()).await;
    assert_eq!((code(&report), script.requests.borrow().len()), (("permanent", "context_overflow"), 2));
    let message = &failure(&report).message;
    assert!(message.contains("too long; the conversation has 3 turns with "), "{message}");
    assert!(message.contains("15 tokens were used"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_the_end_of_the_window_cut_is_asked_for_again_after_less() {
    let cut = turn("Half an ans", &[("draw", json!({}))], StopReason::ContextExceeded);
    let script = Script::new().tool("draw", picture).model([wants(&[("draw", json!({}))]), cut, says("done")]);
    let report = script.run(config()).await;
    assert_eq!((output(&report)["result"].as_str(), &output(&report)["iterations"]), (Some("done"), &json!(3)));
    assert_eq!((left_out(&script), script.calls.borrow().len()), (vec![true], 1), "a cut tool call never runs");
    let requests = script.requests.borrow();
    assert_eq!(requests[2].turns.len(), 3, "the cut turn is not kept: {:?}", requests[2].turns);
}
