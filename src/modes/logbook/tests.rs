//! What a worker's death at each step leaves to the next one, with a scripted model, tools and journal.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::config::{Config, UnknownOutcome};
use crate::domain::event::EventType;
use crate::domain::message::Turn;
use crate::domain::outcome::{Outcome, Report};
use crate::domain::tool::{ToolHints, ToolOutput};
use crate::modes::ModeSettings;
use crate::modes::scripted_ports::{
    Death, LlmAct, Script, code, failure, output, says, settings, text_output, turn, wants,
};
use crate::modes::unknown::UnknownOutcomes;

const IDEMPOTENT: ToolHints = ToolHints { read_only: false, idempotent: true };

fn agent() -> Value {
    json!({"task": "Do it", "tools": ["*"], "llm_config": {}})
}

fn with(members: Value) -> Value {
    let mut config = agent();
    config.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
    config
}

/// Two calls at once, then one, then the answer.
fn course(turn: usize) -> LlmAct {
    match turn {
        0 => wants(&[("send", json!({"n": 1})), ("send", json!({"n": 2}))]),
        1 => wants(&[("send", json!({"n": 3}))]),
        _ => says("done"),
    }
}

fn script(hints: ToolHints) -> Script {
    let send = |arguments: &Value| Ok(text_output(&format!("sent {}", arguments["n"])));
    let (any, takes) = (json!({"type": "object"}), Duration::from_secs(1));
    Script::new().tool_with("send", any, takes, send).hinting(hints).model_by_turn(course)
}

/// Entries of the whole course: three turns, three starts, three ends.
const ENTRIES: usize = 9;

fn calls_by_key(script: &Script) -> HashMap<String, usize> {
    let mut calls = HashMap::new();
    for call in script.calls.borrow().iter() {
        *calls.entry(call.context.idempotency_key.clone()).or_default() += 1;
    }
    calls
}

/// What providers insist on: every tool use has exactly one result, in order, before the next turn.
fn assert_answered(script: &Script) {
    for request in script.requests.borrow().iter() {
        for (place, turn) in request.turns.iter().enumerate() {
            let Turn::Assistant(said) = &**turn else { continue };
            let uses: Vec<&str> = said.tool_uses.iter().map(|tool_use| tool_use.id.as_str()).collect();
            let Some(Turn::ToolResults(results)) = request.turns.get(place + 1).map(|next| &**next) else {
                panic!("a turn with tool uses is not answered: {:?}", request.turns);
            };
            assert_eq!(results.iter().map(|result| result.tool_use_id.as_str()).collect::<Vec<_>>(), uses);
        }
    }
}

/// The texts of all results that the model was shown in its last request.
fn shown(script: &Script) -> Vec<String> {
    let requests = script.requests.borrow();
    let results = requests.last().expect("a request").turns.iter().filter_map(|turn| match &**turn {
        Turn::ToolResults(results) => Some(results.clone()),
        _ => None,
    });
    results.flatten().map(|result| result.content[0]["text"].as_str().expect("a text").to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn wherever_a_worker_dies_no_turn_is_paid_twice_and_no_finished_call_runs_twice() {
    let undisturbed = output(&script(IDEMPOTENT).run(agent()).await);
    let deaths = (1..=ENTRIES).flat_map(|at| [Death::Before(at), Death::After(at)]);
    for death in deaths {
        let script = script(IDEMPOTENT);
        script.dies(death, agent()).await;
        let before = script.journal.written.borrow().last().map(|entry| entry.field.clone());
        let report = script.run(agent()).await;
        assert_eq!(output(&report), undisturbed, "{death:?}");
        assert_answered(&script);
        // A turn is paid for twice only if the worker died before it could put it on record.
        let asked = script.requests.borrow().len();
        let lost_turn = matches!(death, Death::Before(at) if [1, 6, 9].contains(&at));
        assert_eq!(asked, 3 + usize::from(lost_turn), "{death:?} after {before:?}");
        let calls = calls_by_key(&script);
        assert_eq!(calls.len(), 3, "{death:?}: every attempt gives a call the same key");
        for (at, name) in [(1, "t1:c0:end"), (2, "t1:c1:end"), (3, "t2:c0:end")] {
            let ended = script.journal.written.borrow().iter().filter(|entry| entry.field == name).count();
            assert_eq!(ended, 1, "{death:?}: call {at} ends once");
        }
        assert_eq!(shown(&script), ["sent 1", "sent 2", "sent 3"], "{death:?}");
        assert_eq!(report.resumed.is_some(), before.is_some(), "{death:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_taken_effect_is_never_made_again_and_the_model_is_told() {
    for death in (1..=ENTRIES).flat_map(|at| [Death::Before(at), Death::After(at)]) {
        let script = script(ToolHints::default());
        script.dies(death, agent()).await;
        let begun: HashSet<String> = script.journal.names().into_iter().collect();
        let report = script.run(agent()).await;
        assert_eq!(output(&report)["result"], "done", "{death:?}");
        assert_answered(&script);
        let calls = calls_by_key(&script);
        assert!(calls.values().all(|times| *times == 1), "{death:?}: {calls:?}");
        let open = ["t1:c0", "t1:c1", "t2:c0"]
            .map(|call| begun.contains(&format!("{call}:start")) && !begun.contains(&format!("{call}:end")));
        for (text, open) in shown(&script).iter().zip(open) {
            assert_eq!(text.contains("may or may not have taken effect"), open, "{death:?}: {text}");
            assert_eq!(text.starts_with("sent"), !open, "{death:?}: {text}");
            assert!(!text.contains("not run"), "nobody knows that: {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_at_every_single_step_still_comes_to_the_end_without_paying_twice() {
    let script = script(IDEMPOTENT);
    let mut lives = 0;
    while script.journal.names().len() < ENTRIES {
        script.dies(Death::After(1), agent()).await;
        lives += 1;
    }
    let report = script.run(agent()).await;
    assert_eq!((lives, output(&report)["result"].as_str()), (8, Some("done")), "the two calls at once begin together");
    assert_eq!(script.requests.borrow().len(), 3);
    assert_eq!(report.spent.usage.expect("usage").output_tokens, 15, "every turn is counted once");
    assert_eq!(report.spent.tool_calls, 3);
    let resumed = report.resumed.expect("it went on");
    assert_eq!(script.told(EventType::NodeProgress).last().expect("progress")["iteration"], 3);
    let told = script.told(EventType::NodeProgress);
    assert!(told.contains(&json!({"resumed": {"turns": resumed.turns, "tool_calls": resumed.tool_calls}})), "{told:?}");
    for turn in 1..=3 {
        assert!(told.iter().filter(|data| data["iteration"] == turn).count() <= 1, "turn {turn} is told once");
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_end_is_on_record_needs_neither_model_nor_tools_nor_time() {
    let script = script(ToolHints::default());
    script.dies(Death::After(ENTRIES), agent()).await;
    let mut header = script.journal.field("hdr");
    header["started_at"] = json!("2026-01-02T03:04:05Z");
    script.journal.put("hdr", &header);
    // This worker has no tool at all, and its model would never answer.
    let next = Script::new().model_by_turn(|_| LlmAct::Hangs).after(script);
    let report = next.run(agent()).await;
    assert_eq!((output(&report)["result"].as_str(), &output(&report)["tool_calls"]), (Some("done"), &json!(3)));
    assert!(next.requests.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_nodes_time_counts_from_its_first_start_and_nothing_is_begun_after_it() {
    let started = |seconds: u64| {
        let ago = Timestamp::now() - Duration::from_secs(seconds);
        json!(ago.to_string())
    };
    for (ago, left) in [(40, 20), (90, 0)] {
        let script = script(IDEMPOTENT);
        script.dies(Death::After(1), agent()).await;
        let mut header = script.journal.field("hdr");
        header["started_at"] = started(ago);
        script.journal.put("hdr", &header);
        let slow = |_: &Value| Ok(text_output("late"));
        let any = json!({"type": "object"});
        let next = Script::new().tool_with("send", any, Duration::from_secs(1000), slow).model_by_turn(course);
        let next = next.after(script);
        let start = Instant::now();
        let report = next.run(agent()).await;
        assert_eq!(code(&report), ("permanent", "timeout"));
        let took = start.elapsed().as_secs();
        assert!(took <= left && took + 2 > left, "{left} s were left, it took {took} s");
        assert_eq!(next.calls.borrow().len(), if left == 0 { 0 } else { 2 }, "{left} s were left");
        assert_eq!(report.spent.usage.expect("the turn on record was paid for").output_tokens, 5);
    }
}

#[tokio::test(start_paused = true)]
async fn limits_count_what_was_done_before_the_death() {
    for (limit, expected, calls) in [
        (json!({"max_iterations": 2}), "iteration_limit", 2),
        (json!({"limits": {"max_tool_calls": 2}}), "tool_call_limit", 2),
        (json!({"limits": {"max_tokens": 30}}), "token_limit", 3),
    ] {
        let script = script(IDEMPOTENT);
        script.dies(Death::After(5), with(limit.clone())).await;
        let report = script.run(with(limit.clone())).await;
        assert_eq!(code(&report), ("permanent", expected), "{limit}");
        assert_eq!((script.requests.borrow().len(), script.calls.borrow().len()), (2, calls), "{limit}");
        let Outcome::Failed { partial: Some(partial), .. } = report.outcome else { panic!("no partial") };
        assert_eq!(partial.iterations, 2);
    }
}

async fn restarted(script: &Script, config: Value) -> Report {
    let before = calls_by_key(script);
    script.journal.written.borrow_mut().clear();
    let report = script.run(config).await;
    assert!(script.journal.written.borrow()[0].restart, "the old entries go in the same step");
    assert!(script.journal.written.borrow()[1..].iter().all(|entry| !entry.restart));
    assert_eq!((script.journal.field("hdr")["epoch"].as_u64(), report.resumed), (Some(2), None));
    assert!(report.warnings.iter().any(|warning| warning.contains("started over")), "{:?}", report.warnings);
    let after = calls_by_key(script);
    let fresh = after.keys().filter(|key| !before.contains_key(*key)).count();
    assert_eq!(fresh, 3, "a new epoch gives every call a new key");
    report
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_starts_the_node_over_and_what_was_used_stays_counted() {
    let script = script(IDEMPOTENT);
    script.dies(Death::After(5), agent()).await;
    let report = restarted(&script, with(json!({"system": "new"}))).await;
    assert_eq!(
        report.spent.usage.expect("usage").output_tokens,
        4 * 5,
        "one turn of the first epoch, three of the second"
    );
    assert_eq!(report.spent.tool_calls, 2 + 3);
}

#[tokio::test(start_paused = true)]
async fn changed_inputs_start_the_node_over_as_well_and_the_order_of_members_does_not() {
    let config = with(json!({"task": "Do {{ what }}"}));
    let script = script(IDEMPOTENT).state(json!({"what": "this"}), json!({}));
    script.dies(Death::After(5), config.clone()).await;
    let script = script.state(json!({"what": "that"}), json!({}));
    restarted(&script, config).await;

    let script = super::tests::script(IDEMPOTENT);
    script
        .dies(Death::After(5), json!({"task": "Do it", "tools": ["*"], "llm_config": {"model": "m", "effort": "low"}}))
        .await;
    let report =
        script.run(json!({"llm_config": {"effort": "low", "model": "m"}, "tools": ["*"], "task": "Do it"})).await;
    assert_eq!(report.resumed, Some(Resumed { turns: 1, tool_calls: 2 }));
}

#[tokio::test(start_paused = true)]
async fn another_version_of_the_journal_is_left_behind() {
    let script = script(IDEMPOTENT);
    script.dies(Death::After(5), agent()).await;
    let mut header = script.journal.field("hdr");
    header["v"] = json!(99);
    script.journal.put("hdr", &header);
    restarted(&script, agent()).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_unsafe_call_a_journal_that_does_not_fit_ends_the_node_untouched() {
    let script = script(ToolHints::default());
    script.dies(Death::After(3), agent()).await;
    let report = script.run(with(json!({"system": "new"}))).await;
    assert_eq!(code(&report), ("permanent", "journal_mismatch"));
    assert!(failure(&report).message.contains("configuration or inputs"), "{}", failure(&report));
    assert_eq!(report.spent.usage.expect("what was paid for is told").output_tokens, 5);
    assert_eq!((script.requests.borrow().len(), script.calls.borrow().len()), (1, 1), "as before the death");
    script.journal.put("t1:llm", &json!("damaged"));
    let report = script.run(agent()).await;
    assert_eq!(code(&report), ("permanent", "journal_mismatch"));
    assert!(failure(&report).message.contains("`t1:llm`"), "{}", failure(&report));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_missing_before_a_later_turn_is_not_made_up() {
    let script = script(IDEMPOTENT);
    script.dies(Death::After(ENTRIES), agent()).await;
    let journal = Script::new();
    for name in script.journal.names().iter().filter(|name| !name.starts_with("t1:c1")) {
        journal.journal.put(name, &script.journal.field(name));
    }
    let next = super::tests::script(IDEMPOTENT).after(journal);
    assert_eq!(code(&next.run(agent()).await), ("permanent", "journal_mismatch"));
    assert!(next.calls.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_start_to_be_on_record_and_a_lost_node_makes_none() {
    let away = || Err(Failure::retriable("redis_unavailable", "no connection"));
    let answers = std::iter::repeat_with(away).take(20);
    let script = script(IDEMPOTENT).appends(answers);
    let start = Instant::now();
    assert_eq!(output(&script.run(agent()).await)["result"], "done");
    assert!(start.elapsed() > Duration::from_secs(5), "the node waits for a store that is away");
    assert_eq!((script.requests.borrow().len(), script.calls.borrow().len()), (3, 3));

    let script = super::tests::script(IDEMPOTENT).appends([Ok(Appended::Done), Ok(Appended::Lost)]);
    let start = Instant::now();
    let report = script.run(agent()).await;
    assert!(matches!(report.outcome, Outcome::Lost), "{report:?}");
    assert_eq!(start.elapsed(), Duration::ZERO, "at once");
    assert!(script.calls.borrow().len() <= 1, "only the call beside it may have begun");

    let broken = Failure::validation("journal_wrong_type", "a list");
    let script = super::tests::script(IDEMPOTENT).appends([Err(broken)]);
    assert_eq!(code(&script.run(agent()).await), ("validation", "journal_wrong_type"));
    assert!(script.calls.borrow().is_empty());
}

fn deciding(default: UnknownOutcome) -> ModeSettings {
    let mut tools = Config::default().tools;
    tools.on_unknown_outcome = default;
    ModeSettings { unknown_outcomes: UnknownOutcomes::from(&tools), ..settings() }
}

#[tokio::test(start_paused = true)]
async fn the_operator_decides_about_unknown_outcomes() {
    for decision in [UnknownOutcome::Fail, UnknownOutcome::Retry] {
        let script = script(ToolHints::default());
        // Both calls have begun and neither has ended.
        script.dies(Death::Before(4), agent()).await;
        let report = script.run_with(&deciding(decision), json!({"config": agent()})).await;
        let calls = calls_by_key(&script);
        if decision == UnknownOutcome::Fail {
            assert_eq!(code(&report), ("permanent", "unknown_tool_outcome"));
            assert!(failure(&report).message.contains("srv/send"), "{}", failure(&report));
            assert!(calls.values().all(|times| *times == 1));
        } else {
            assert_eq!(output(&report)["result"], "done");
            assert_eq!(shown(&script), ["sent 1", "sent 2", "sent 3"]);
            assert_eq!((calls.len(), calls.values().max()), (3, Some(&2)), "again, with the same key");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_steps_that_show_the_node_alive_clear_the_count_of_crashes() {
    let progress = |script: &Script| -> Vec<(String, bool)> {
        script.journal.written.borrow().iter().map(|entry| (entry.field.clone(), entry.progress)).collect()
    };
    let script = script(ToolHints::default());
    script.run(agent()).await;
    for (field, progress) in progress(&script) {
        assert_eq!(progress, !field.ends_with(":start"), "{field}");
    }
    // A worker died in a call. The turn that follows does not show that the next call will not end this one too.
    let script = super::tests::script(ToolHints::default());
    script.dies(Death::Before(4), agent()).await;
    script.journal.written.borrow_mut().clear();
    script.dies(Death::After(3), agent()).await;
    assert_eq!(progress(&script)[..3].iter().map(|(_, progress)| *progress).collect::<Vec<_>>(), [false; 3]);
    script.journal.written.borrow_mut().clear();
    script.run(agent()).await;
    let expected = [("t2:c0:start", false), ("t2:c0:end", true), ("t3:llm", true)];
    assert_eq!(progress(&script), expected.map(|(field, progress)| (String::from(field), progress)));
}

fn tool() -> Value {
    json!({"tool_name": "send", "tool_params": {"n": "{{ n }}"}})
}

fn sender(hints: ToolHints) -> Script {
    let send = |arguments: &Value| Ok(ToolOutput::structured(json!({"sent": arguments["n"]})));
    Script::new().state(json!({"n": 1}), json!({})).tool("send", send).hinting(hints)
}

#[tokio::test(start_paused = true)]
async fn a_tool_node_writes_a_journal_only_where_there_is_something_to_protect() {
    for hints in [IDEMPOTENT, ToolHints::READ_ONLY] {
        let script = sender(hints);
        assert_eq!(output(&script.run(tool()).await), json!({"sent": 1}));
        assert!(script.journal.names().is_empty());
    }
    let script = sender(ToolHints::default());
    script.run(tool()).await;
    assert_eq!(script.journal.names(), ["hdr", "t0:c0:end", "t0:c0:start"]);
    let start = script.journal.field("t0:c0:start");
    assert_eq!((&start["server"], &start["tool"], &start["class"]), (&json!("srv"), &json!("send"), &json!("unsafe")));
    assert_eq!(start["key"], script.calls.borrow()[0].context.idempotency_key.as_str());
    let header = script.journal.field("hdr");
    assert_eq!((&header["v"], &header["epoch"], &header["owner"]), (&json!(1), &json!(1), &json!("w-1/1")));
    assert_eq!(header["used"]["tool_calls"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_tool_node_ends_with_what_is_on_record_and_calls_nothing_twice() {
    let script = sender(ToolHints::default());
    script.dies(Death::After(2), tool()).await;
    let report = script.run(tool()).await;
    assert_eq!((output(&report), report.resumed), (json!({"sent": 1}), Some(Resumed { turns: 0, tool_calls: 1 })));
    assert_eq!((script.calls.borrow().len(), report.spent.tool_calls), (1, 1));

    let failing = Script::new().tool("send", |_| Err(Failure::permanent("http_404", "gone")));
    failing.dies(Death::After(2), tool_without_inputs()).await;
    assert_eq!(code(&failing.run(tool_without_inputs()).await), ("permanent", "http_404"));
    assert_eq!(failing.calls.borrow().len(), 1);
}

fn tool_without_inputs() -> Value {
    json!({"tool_name": "send", "tool_params": {"n": 1}})
}

#[tokio::test(start_paused = true)]
async fn a_tool_node_has_no_model_to_ask_so_an_unknown_outcome_ends_it() {
    for (decision, again) in
        [(UnknownOutcome::AskModel, false), (UnknownOutcome::Fail, false), (UnknownOutcome::Retry, true)]
    {
        for death in [Death::After(1), Death::Before(2)] {
            let script = sender(ToolHints::default());
            script.dies(death, tool()).await;
            let report = script.run_with(&deciding(decision), json!({"config": tool()})).await;
            if again {
                assert_eq!(output(&report), json!({"sent": 1}));
                assert_eq!(calls_by_key(&script).len(), 1, "again, with the same key");
            } else {
                assert_eq!(code(&report), ("permanent", "unknown_tool_outcome"));
            }
            let before = usize::from(matches!(death, Death::Before(_)));
            assert_eq!(script.calls.borrow().len(), before + usize::from(again));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_is_not_repeated_under_its_key_with_other_arguments() {
    let script = sender(ToolHints::default());
    script.dies(Death::After(1), tool()).await;
    let script = script.state(json!({"n": 2}), json!({}));
    let report = script.run_with(&deciding(UnknownOutcome::Retry), json!({"config": tool()})).await;
    assert_eq!(code(&report), ("permanent", "journal_mismatch"));
    assert!(script.calls.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_completion_is_paid_for_once_in_llm_mode_and_where_a_model_reads_arguments() {
    let config = json!({"llm_config": {"prompt": "p"}});
    let script = Script::new().model_by_turn(|_| turn("yes", &[], crate::domain::message::StopReason::EndTurn));
    script.dies(Death::After(1), config.clone()).await;
    let report = script.run(config).await;
    assert_eq!((output(&report)["content"].as_str(), script.requests.borrow().len()), (Some("yes"), 1));
    assert_eq!(report.spent.usage.expect("usage").output_tokens, 5);
    assert_eq!(report.resumed, Some(Resumed { turns: 1, tool_calls: 0 }));

    let config = json!({"tool_name": "send", "extract_params": {"from": "text", "llm_config": {}}});
    for at in 1..=3 {
        let script = sender(ToolHints::default()).model_by_turn(|_| says(r#"{"n": 7}"#));
        script.dies(Death::After(at), config.clone()).await;
        let report = script.run_with(&deciding(UnknownOutcome::Retry), json!({"config": config})).await;
        assert_eq!((output(&report), script.requests.borrow().len()), (json!({"sent": 7}), 1), "{at}");
        assert_eq!((script.calls.borrow().len(), report.spent.tool_calls), (1, 1), "{at}");
    }
}

/// More than a record may have.
const HUGE: usize = 9 << 20;

#[tokio::test(start_paused = true)]
async fn a_tools_answer_that_is_too_large_for_the_record_ends_the_node_and_is_not_asked_for_again() {
    let script = Script::new().tool("send", |_| Ok(text_output(&"x".repeat(HUGE))));
    script.dies(Death::After(2), tool_without_inputs()).await;
    let end = script.journal.field("t0:c0:end");
    assert_eq!(end["failed"]["code"], "output_too_large");
    let report = script.run(tool_without_inputs()).await;
    assert_eq!(code(&report), ("validation", "output_too_large"));
    assert!(failure(&report).message.contains("may have taken effect"), "{}", failure(&report).message);
    assert_eq!(script.calls.borrow().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_too_large_for_the_record_ends_the_node() {
    let script = Script::new().model([says(&"x".repeat(HUGE))]);
    let report = script.run(json!({"llm_config": {"prompt": "p"}})).await;
    assert_eq!(code(&report), ("validation", "step_too_large"));
    assert!(script.journal.names().is_empty());
}
