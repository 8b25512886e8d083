//! Tasks, one rule a test, with a scripted server, a scripted model and a scripted journal.

use serde_json::Value;

use super::*;
use crate::config::{Config, ToolsConfig};
use crate::domain::cancel::{CancelOrder, CancelScope};
use crate::domain::outcome::{Outcome, Parking, Report};
use crate::domain::task::Pace;
use crate::domain::tool::ToolHints;
use crate::modes::portable::Portable;
use crate::modes::scripted_ports::{
    Death, Script, code, delivery, failure, output, says, settings, text_output, wants,
};
use crate::modes::unknown::UnknownOutcomes;
use crate::modes::{ModeSettings, run_node};
use crate::ports::{Cancel, CancelReason};

const QUICK: Pace = Pace { ttl_ms: None, poll_ms: Some(1000) };
const SLOW: Pace = Pace { ttl_ms: None, poll_ms: Some(30_000) };

fn goes_on(pace: Pace) -> Result<TaskNews, Failure> {
    Ok(TaskNews::GoesOn { pace, message: None, answered: Vec::new() })
}

fn done(text: &str) -> Result<TaskNews, Failure> {
    Ok(TaskNews::Ended(Ok(text_output(text))))
}

fn lost() -> Result<TaskNews, Failure> {
    Ok(TaskNews::Lost(Failure::permanent(LOST, "gone; the call may have taken effect")))
}

fn agent() -> Value {
    json!({"task": "Do it", "tools": ["*"], "llm_config": {}})
}

fn tool(name: &str) -> Value {
    json!({"tool_name": name, "tool_params": {"n": 1}})
}

fn parking() -> ModeSettings {
    ModeSettings { park_after: Some(Duration::from_secs(5)), node_timeout: Duration::from_secs(3600), ..settings() }
}

fn with_rule(rule: UnknownOutcome) -> ModeSettings {
    let tools = ToolsConfig { on_unknown_outcome: rule, ..Config::default().tools };
    ModeSettings { unknown_outcomes: UnknownOutcomes::from(&tools), ..settings() }
}

fn parked(report: &Report) -> &Parking {
    match &report.outcome {
        Outcome::Parked(parking) => parking,
        other => panic!("the node is not parked: {other:?}"),
    }
}

/// Lets the time pass until what stands there is due: the clock of the tests stands still.
fn due(script: &Script, field: &str) {
    let mut entry = script.journal.field(field);
    entry["task"]["due"] = entry["task"]["since"].clone();
    script.journal.put(field, &entry);
}

fn called(script: &Script) -> usize {
    script.calls.borrow().len()
}

/// A schema with the name `$top`, which not every model may be shown, and the name that stands for it.
fn renamed() -> (Value, String) {
    let schema = json!({"type": "object", "required": ["$top"], "properties": {"$top": {"type": "integer"}}});
    let shown = Value::clone(&Portable::of(&Arc::new(schema.clone())).schema);
    let top = shown["properties"].as_object().expect("an object").keys().next().expect("a name").clone();
    assert_ne!(top, "$top");
    (schema, top)
}

/// What the model was shown of its calls.
fn shown(script: &Script) -> String {
    let requests = script.requests.borrow();
    json!(requests.last().expect("a request").turns.last().expect("a turn")).to_string()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_became_a_task_is_looked_at_at_its_pace_and_made_once() {
    let script = Script::new()
        .task("build", QUICK, [goes_on(QUICK), goes_on(QUICK), done("built")])
        .model([wants(&[("build", json!({}))]), says("fine")]);
    let start = Instant::now();
    let report = script.run(agent()).await;
    assert_eq!(output(&report)["result"], "fine");
    // Moments on record are by the clock of the wall, which goes on meanwhile.
    let (took, pace) = (start.elapsed(), Duration::from_secs(3));
    assert!(took > pace - Duration::from_millis(500) && took <= pace, "{took:?}");
    assert!(shown(&script).contains("built"), "{}", shown(&script));
    assert_eq!((called(&script), script.looks.borrow().len(), report.spent.tool_calls), (1, 3, 1));
    let entry = script.journal.field("t1:c0:task");
    assert_eq!(
        (&entry["task"]["id"], &entry["tool"], &entry["server"]),
        (&json!("task-1"), &json!("build"), &json!("srv"))
    );
    assert_eq!(entry["key"], script.journal.field("t1:c0:start")["key"]);
    assert!(script.journal.names().contains(&String::from("t1:c0:end")) && script.given_up.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_long_pause_frees_the_slot_and_whoever_comes_back_goes_on_with_the_task() {
    for (config, field) in [(agent(), "t1:c0:task"), (tool("build"), "t0:c0:task")] {
        let script = Script::new()
            .task("build", SLOW, [goes_on(SLOW), done("built")])
            .model([wants(&[("build", json!({}))]), says("fine")]);
        for look in 0..2 {
            let start = Instant::now();
            let report = script.run_with(&parking(), json!({"config": config})).await;
            let Parking { until, failure, waits, .. } = parked(&report);
            assert_eq!(failure.code, "task_working");
            assert_eq!(waits.values().collect::<Vec<_>>(), [&0], "no attempt is used up");
            let wait = until.saturating_duration_since(start.into_std());
            assert!(wait > Duration::from_secs(29) && wait <= Duration::from_secs(30), "{wait:?}");
            assert_eq!((called(&script), script.looks.borrow().len()), (1, look));
            // Somebody brought it back too early: the server is not asked before its time.
            let early = script.run_with(&parking(), json!({"config": config})).await;
            assert_eq!((parked(&early).failure.code.as_ref(), script.looks.borrow().len()), ("task_working", look));
            due(&script, field);
        }
        let report = script.run_with(&parking(), json!({"config": config})).await;
        assert!(matches!(report.outcome, Outcome::Completed { .. }), "{report:?}");
        assert_eq!((called(&script), script.looks.borrow().len(), report.spent.tool_calls), (1, 2, 1));
        assert!(script.given_up.borrow().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_worker_dies_the_call_is_made_once_and_its_task_gone_on_with() {
    use Death::{After, Before};
    // What is on record of an agent: its turn, the call's beginning, its task, its end, its next turn. A tool node has no
    // turns, and of a call that may be made again no beginning.
    for (config, hints, deaths) in [
        (agent(), ToolHints::default(), vec![After(3), Before(4), After(4), Before(5)]),
        (agent(), ToolHints::READ_ONLY, vec![After(3), Before(4), After(4), Before(5)]),
        (tool("build"), ToolHints::default(), vec![After(2), Before(3), After(3)]),
        (tool("build"), ToolHints::READ_ONLY, vec![After(1), Before(2), After(2)]),
    ] {
        for death in deaths {
            let script = Script::new()
                .task("build", QUICK, [goes_on(QUICK), done("built"), done("built")])
                .hinting(hints)
                .model([wants(&[("build", json!({}))]), says("fine"), says("fine")]);
            script.dies(death, config.clone()).await;
            let report = script.run(config.clone()).await;
            assert!(matches!(report.outcome, Outcome::Completed { .. }), "{death:?}: {report:?}");
            assert_eq!(called(&script), 1, "{death:?} {config}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn several_tasks_of_one_turn_wait_together_until_the_first_is_due() {
    let later = Pace { poll_ms: Some(60_000), ..SLOW };
    let script = Script::new()
        .task("build", SLOW, [done("built")])
        .task("test", later, [done("tested")])
        .tool("add", |_| Ok(text_output("3")))
        .model([wants(&[("build", json!({})), ("test", json!({})), ("add", json!({}))]), says("fine")]);
    let start = Instant::now();
    let report = script.run_with(&parking(), json!({"config": agent()})).await;
    let wait = parked(&report).until.saturating_duration_since(start.into_std());
    assert!(wait <= Duration::from_secs(30), "{wait:?}");
    assert_eq!(parked(&report).waits.len(), 2);
    assert!(script.journal.names().contains(&String::from("t1:c2:end")), "the third call came to its end");
    due(&script, "t1:c0:task");
    let report = script.run_with(&parking(), json!({"config": agent()})).await;
    assert_eq!(parked(&report).waits.len(), 1);
    assert_eq!(*script.looks.borrow(), [(String::from("build"), String::from("task-1"))], "the other is not due");
    due(&script, "t1:c1:task");
    let report = script.run_with(&parking(), json!({"config": agent()})).await;
    assert_eq!(output(&report)["result"], "fine");
    assert_eq!((called(&script), script.looks.borrow().len()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_task_means_is_told_as_of_any_call() {
    let refused = Failure::validation("mcp_error", "no such city");
    let script = Script::new()
        .task("build", QUICK, [Ok(TaskNews::Ended(Err(refused.clone())))])
        .model([wants(&[("build", json!({}))]), says("fine")]);
    assert_eq!(output(&script.run(agent()).await)["result"], "fine");
    assert!(shown(&script).contains("no such city"));
    let script = Script::new().task("build", QUICK, [Ok(TaskNews::Ended(Err(refused)))]);
    assert_eq!(code(&script.run(tool("build")).await), ("validation", "mcp_error"));
    assert!(script.given_up.borrow().is_empty(), "it has ended");
    let said = crate::domain::tool::ToolOutput { is_error: true, ..text_output("out of paper") };
    let script = Script::new().task("build", QUICK, [Ok(TaskNews::Ended(Ok(said)))]);
    assert_eq!(code(&script.run(tool("build")).await).1, "tool_error");
}

#[tokio::test(start_paused = true)]
async fn a_lost_task_is_what_the_rule_for_unknown_ends_says() {
    // A call that may be made again is, as often as any.
    let script = Script::new().task("build", QUICK, [lost(), lost(), done("built")]).hinting(ToolHints::READ_ONLY);
    assert_eq!(output(&script.run(tool("build")).await), json!("built"));
    let keys: Vec<String> = script.calls.borrow().iter().map(|call| call.context.idempotency_key.clone()).collect();
    assert_eq!((keys.len(), &keys[0], &keys[0]), (3, &keys[1], &keys[2]), "under one key");
    let script = Script::new().task("build", QUICK, (0..9).map(|_| lost())).hinting(ToolHints::READ_ONLY);
    let report = script.run(tool("build")).await;
    assert_eq!((code(&report).1, failure(&report).attempts, called(&script)), (LOST, 3, 3));

    let unsafe_tool =
        || Script::new().task("build", QUICK, [lost()]).model([wants(&[("build", json!({}))]), says("fine")]);
    let script = unsafe_tool();
    assert_eq!(output(&script.run(agent()).await)["result"], "fine");
    assert!(shown(&script).contains("may have taken effect"));
    let script = unsafe_tool();
    let report = script.run_with(&with_rule(UnknownOutcome::Fail), json!({"config": agent()})).await;
    assert_eq!((code(&report), called(&script)), (("permanent", LOST), 1));
    let script = unsafe_tool();
    assert_eq!(code(&script.run(tool("build")).await), ("permanent", LOST));
    assert_eq!(called(&script), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_call_is_made_again_by_whoever_has_to_find_out_what_it_was_called_with() {
    // Names that the model is not shown as they are, and arguments that a model read out of a text.
    let (schema, top) = renamed();
    let turns = vec![wants(&[("build", json!({top: 3}))]), says("fine")];
    let read = json!({"tool_name": "build", "extract_params": {"from": "Three of them"}});
    for (config, turns, field) in [(agent(), turns, "t1:c0:task"), (read, vec![says(r#"{"$top": 3}"#)], "t0:c0:task")] {
        let looks = [lost(), lost(), done("built")];
        let script = Script::new().task("build", SLOW, looks).hinting(ToolHints::READ_ONLY).taking(schema.clone());
        let script = script.model(turns);
        for made in 1..=3 {
            parked(&script.run_with(&parking(), json!({"config": config})).await);
            assert_eq!(called(&script), made, "{config}");
            due(&script, field);
        }
        let report = script.run_with(&parking(), json!({"config": config})).await;
        assert!(matches!(report.outcome, Outcome::Completed { .. }), "{report:?}");
        assert_eq!((called(&script), script.looks.borrow().len()), (3, 3));
        for call in script.calls.borrow().iter() {
            assert_eq!(json!(*call.arguments), json!({"$top": 3}));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_resumed_call_has_the_tools_own_names_where_they_are_known() {
    let (schema, top) = renamed();
    let script = Script::new()
        .task("build", QUICK, [done("built")])
        .hinting(ToolHints::READ_ONLY)
        .taking(schema)
        .tool("add", |_| Ok(text_output("3")))
        .model([wants(&[("build", json!({top: 3})), ("add", json!({}))]), says("fine")]);
    // The turn and the task are on record; the other call has to be made yet, for which the tools are looked up.
    script.dies(Death::After(3), agent()).await;
    assert_eq!(script.journal.names(), ["hdr", "t1:c0:start", "t1:c0:task", "t1:llm"]);
    let report = script.run(agent()).await;
    assert_eq!(output(&report)["result"], "fine");
    assert_eq!(json!(script.looked_with.borrow().iter().map(|with| &**with).collect::<Vec<_>>()), json!([{"$top": 3}]));
}

#[tokio::test(start_paused = true)]
async fn a_lost_call_is_not_made_with_other_arguments() {
    let script = Script::new()
        .task("build", SLOW, [lost()])
        .hinting(ToolHints::READ_ONLY)
        .model([wants(&[("build", json!({"n": 1}))]), says("fine")]);
    parked(&script.run_with(&parking(), json!({"config": agent()})).await);
    due(&script, "t1:c0:task");
    let mut entry = script.journal.field("t1:c0:task");
    entry["arguments"] = json!("the digest of others");
    script.journal.put("t1:c0:task", &entry);
    let report = script.run_with(&parking(), json!({"config": agent()})).await;
    assert_eq!((output(&report)["result"].clone(), called(&script)), (json!("fine"), 1));
    assert!(shown(&script).contains("gone"), "{}", shown(&script));
}

#[tokio::test(start_paused = true)]
async fn a_task_is_looked_at_when_it_is_due_although_another_call_takes_long() {
    let script = Script::new()
        .task("build", SLOW, [goes_on(SLOW), goes_on(SLOW), done("built")])
        .tool_with("dig", json!({"type": "object"}), Duration::from_secs(200), |_| Ok(text_output("dug")))
        .model([wants(&[("build", json!({})), ("dig", json!({}))]), says("fine")]);
    let start = Instant::now();
    let report = script.run_with(&parking(), json!({"config": agent()})).await;
    assert_eq!((output(&report)["result"].clone(), start.elapsed()), (json!("fine"), Duration::from_secs(200)));
    assert_eq!((called(&script), script.looks.borrow().len()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_asked_again_and_one_that_answers_nonsense_is_not() {
    let away = || Err(Failure::retriable("mcp_unreachable", "connection refused"));
    let script = Script::new().task("build", QUICK, [away(), away(), away(), away(), away(), done("built")]);
    assert_eq!(output(&script.run(tool("build")).await), json!("built"), "more often than a step is tried");
    let nonsense = Err(Failure::permanent("mcp_protocol_error", "a task has the unknown status `asleep`"));
    let script = Script::new().task("build", QUICK, [nonsense]);
    assert_eq!(code(&script.run(tool("build")).await).1, "mcp_protocol_error");
    assert_eq!(*script.given_up.borrow(), ["task-1"], "nobody waits for it any more");
}

#[test]
fn a_call_that_was_made_is_not_to_be_made_again_because_its_end_cannot_be_seen() {
    let away = || Failure::retriable("mcp_unreachable", "connection refused");
    let unsafe_call = unseen(away(), Class::Unsafe);
    assert_eq!((unsafe_call.category, unsafe_call.code.as_ref()), (Category::Permanent, "mcp_task_lost"));
    assert!(unsafe_call.message.contains("refused (mcp_unreachable). The call was made"), "{}", unsafe_call.message);
    let broken = unseen(Failure::permanent("mcp_protocol_error", "an unknown status"), Class::Unsafe);
    assert!(broken.code == "mcp_protocol_error" && broken.message.contains("may have taken effect"), "{broken:?}");
    assert_eq!(unseen(away(), Class::Safe), away());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ends_gives_its_tasks_up() {
    let going = || Script::new().task("build", QUICK, (0..100).map(|_| goes_on(QUICK)));
    let script = going();
    let report = script.run(json!({"tool_name": "build", "timeout": "10s"})).await;
    assert_eq!((code(&report).1, script.given_up.borrow().len()), ("timeout", 1));

    for (reason, given_up) in [(CancelReason::Requested, 1), (CancelReason::Stopping, 0), (CancelReason::Lost, 0)] {
        let (script, cancel) = (going(), Cancel::new());
        let (settings, delivery) = (settings(), delivery(json!({"config": tool("build")})));
        let stop = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            cancel.cancel(reason);
        };
        let (report, ()) = tokio::join!(run_node(&script, &settings, &delivery, &cancel), stop);
        assert!(!matches!(report.outcome, Outcome::Completed { .. }), "{report:?}");
        assert!(script.given_up.borrow().is_empty(), "nobody knows yet whose node it is");
        script.ended(report).await;
        assert_eq!(script.given_up.borrow().len(), given_up, "{reason:?}: somebody else may go on with it");
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_to_stop_reaches_the_task_of_a_node_that_waits_outside() {
    let waiting = async || {
        let script = Script::new().task("build", SLOW, [goes_on(SLOW)]);
        parked(&script.run_with(&parking(), json!({"config": tool("build")})).await);
        script
    };
    let script = waiting().await.cancelled(CancelOrder::bare(CancelScope::Graph));
    let report = script.run(tool("build")).await;
    assert_eq!((code(&report).0, &*script.given_up.borrow()), ("cancelled", &vec![String::from("task-1")]));
    let script = waiting().await.status("cancelled");
    assert_eq!(code(&script.run(tool("build")).await).0, "cancelled");
    assert_eq!(script.given_up.borrow().len(), 1);
    // It was told before the run was opened.
    let (script, cancel) = (waiting().await, Cancel::new());
    cancel.request(CancelOrder::bare(CancelScope::Node));
    let report = run_node(&script, &settings(), &delivery(json!({"config": tool("build")})), &cancel).await;
    let report = script.ended(report).await;
    assert_eq!((code(&report).0, script.given_up.borrow().len()), ("cancelled", 1));
    assert_eq!(script.looks.borrow().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_looked_at_once_more_before_the_nodes_time_is_up() {
    let script = Script::new().task("build", SLOW, [done("built")]);
    let start = Instant::now();
    let report = script.run(json!({"tool_name": "build", "timeout": "20s"})).await;
    assert_eq!((output(&report), start.elapsed()), (json!("built"), Duration::from_secs(18)));
    let script = Script::new().task("build", SLOW, [goes_on(SLOW)]);
    let start = Instant::now();
    let report = script.run_with(&parking(), json!({"config": {"tool_name": "build", "timeout": "20s"}})).await;
    let wait = parked(&report).until.saturating_duration_since(start.into_std());
    assert!(wait <= Duration::from_secs(18), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_server_says_of_its_task_goes_out_as_progress() {
    let at = |words: &str| Ok(TaskNews::GoesOn { pace: QUICK, message: Some(words.to_owned()), answered: Vec::new() });
    let script = Script::new().task("build", QUICK, [at("half"), at("half"), at("nearly"), done("built")]);
    script.run(tool("build")).await;
    let told: Vec<Value> =
        script.told(EventType::ToolExecuted).iter().map(|event| event["progress"]["message"].clone()).collect();
    assert_eq!(told, [json!("half"), json!("nearly"), Value::Null], "each once, and the end");
}

#[tokio::test(start_paused = true)]
async fn answers_to_a_tasks_questions_are_remembered() {
    let answered = Ok(TaskNews::GoesOn { pace: SLOW, message: None, answered: vec![String::from("name")] });
    let script = Script::new().task("build", QUICK, [answered, done("built")]);
    parked(&script.run_with(&parking(), json!({"config": tool("build")})).await);
    assert_eq!(script.journal.field("t0:c0:task")["task"]["answered"], json!(["name"]));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_over_gives_up_what_it_had_begun() {
    let script = Script::new().task("build", SLOW, [goes_on(SLOW)]).hinting(ToolHints::READ_ONLY);
    parked(&script.run_with(&parking(), json!({"config": tool("build")})).await);
    let other = json!({"tool_name": "build", "tool_params": {"n": 2}});
    parked(&script.run_with(&parking(), json!({"config": other})).await);
    assert_eq!((called(&script), &*script.given_up.borrow()), (2, &vec![String::from("task-1")]));
}
