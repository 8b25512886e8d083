//! The rules of one execution from delivery to report, one a test.

use super::*;
use crate::domain::ids::{EntryId, NodeId, RunId};
use crate::domain::message::{StopReason, Turn};
use crate::domain::tool::{ToolHints, ToolOutput};
use crate::modes::scripted_ports::{
    Death, LlmAct, Script, code, delivery, failure, output, says, settings, text_output, turn, wants,
};

fn echo(arguments: &Value) -> Result<ToolOutput, Failure> {
    Ok(ToolOutput::structured(arguments.clone()))
}

fn echo_script() -> Script {
    Script::new().tool("echo", echo)
}

fn echoing(params: Value) -> Value {
    json!({"tool_name": "echo", "tool_params": params})
}

#[tokio::test(start_paused = true)]
async fn the_state_is_read_once_and_only_where_the_templates_look() {
    let nodes = json!({"a": {"status": "completed", "output": 1}, "b": {"status": "completed", "output": 2}});
    let script = echo_script().state(json!({"i": 3}), nodes);
    let report = script.run(echoing(json!({"a": "{{ nodes.a.output }}", "i": "{{ inputs.i }}"}))).await;
    assert_eq!(output(&report), json!({"a": 1, "i": 3}));
    let wanted = script.wanted.borrow();
    assert_eq!(wanted.len(), 1);
    assert!(wanted[0].inputs && !wanted[0].config && !wanted[0].all_nodes);
    assert!(wanted[0].nodes.contains(&"a".into()) && !wanted[0].nodes.contains(&"b".into()));
    assert_eq!(script.told(EventType::NodeStarted), [json!({"mode": "tool"})]);
    assert_eq!(report.mode, Some(Mode::Tool));
}

#[tokio::test(start_paused = true)]
async fn the_graphs_configuration_stands_in_for_a_missing_one() {
    let script = echo_script()
        .state(json!({"i": 3}), json!({"a": {"status": "completed", "output": 1}}))
        .graph_config(&echoing(json!({"a": "{{ a }}", "i": "{{ i }}"})));
    assert_eq!(output(&script.run_item(json!({})).await), json!({"a": 1, "i": 3}));
    let wanted = script.wanted.take();
    assert!(wanted[0].config && wanted[0].inputs && wanted[1].nodes.contains(&"a".into()) && !wanted[1].inputs);

    let report = echo_script().run_item(json!({})).await;
    assert_eq!(code(&report), ("configuration", "missing_config"));
    assert!(failure(&report).message.contains("`n`"));
}

#[tokio::test(start_paused = true)]
async fn the_items_inputs_win_and_its_node_states_only_fill_gaps() {
    let script = echo_script()
        .state(json!({"i": "state", "j": "state"}), json!({"a": {"status": "completed", "output": "state"}}));
    let envelope = json!({
        "type": "node.work",
        "data": {
            "graph_id": "g", "node_id": "n",
            "config": echoing(json!({"i": "{{ i }}", "j": "{{ j }}", "a": "{{ a }}", "b": "{{ b }}"})),
            "state": {"i": "item"},
            "node_state": {"a": {"output": "item"}, "b": {"output": "item"}},
        },
    });
    let report = script.run_item(envelope).await;
    assert_eq!(output(&report), json!({"i": "item", "j": "state", "a": "state", "b": "item"}));
}

#[tokio::test(start_paused = true)]
async fn input_mapping_is_rendered_first_and_usable_in_the_others() {
    let script = echo_script().state(json!({"user": {"name": "ann"}}), json!({}));
    let mut config = echoing(json!({"who": "{{ name }}", "list": "{{ both }}"}));
    config["input_mapping"] = json!({"name": "{{ user.name | upper }}", "both": ["{{ user.name }}", 1]});
    let report = script.run(config).await;
    assert_eq!(output(&report), json!({"who": "ANN", "list": ["ann", 1]}));
    assert!(!script.wanted.borrow()[0].nodes.contains(&"name".into()), "a mapped name is not looked for in the state");
}

#[tokio::test(start_paused = true)]
async fn output_mapping_stands_beside_the_output() {
    let mut config = echoing(json!({"items": [{"id": 7}]}));
    config["output_mapping"] = json!({"first": "items[0].id"});
    let report = echo_script().run(config.clone()).await;
    let Outcome::Completed { output, mapped: Some(mapped) } = &report.outcome else { panic!("{report:?}") };
    assert_eq!((output.get(), mapped.get()), (r#"{"items":[{"id":7}]}"#, r#"{"first":7}"#));
    config["output_mapping"] = json!({"first": "items["});
    let script = echo_script();
    assert_eq!(code(&script.run(config).await), ("configuration", "invalid_output_mapping"));
    assert!(script.calls.borrow().is_empty(), "a wrong mapping is found before anything is done");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_name_and_an_unfinished_node_are_validation_failures() {
    let script = echo_script().state(json!({"topic": 1}), json!({"a": {"status": "running"}}));
    let report = script.run(echoing(json!({"x": "{{ topik }}"}))).await;
    assert_eq!(code(&report), ("validation", "unknown_name"));
    let message = &failure(&report).message;
    assert!(["`topik`", "`topic`", "`a`"].iter().all(|name| message.contains(name)), "{message}");
    let report = script.run(echoing(json!({"x": "{{ nodes.a.output }}"}))).await;
    assert_eq!(code(&report), ("validation", "dependency_not_completed"));
    assert!(failure(&report).message.contains("`a`") && failure(&report).message.contains("`running`"));
    assert!(script.calls.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn unknown_members_are_warnings_or_failures_by_configuration() {
    let mut config = echoing(json!({}));
    config["tool_parms"] = json!({});
    let report = echo_script().run(config.clone()).await;
    assert_eq!(output(&report), json!({}));
    assert!(report.warnings[0].contains("tool_params"), "{:?}", report.warnings);
    let mut strict = settings();
    strict.strict = true;
    let report = echo_script().run_with(&strict, json!({ "config": config })).await;
    assert_eq!(code(&report), ("configuration", "unknown_member"));
    assert!(failure(&report).message.contains("did you mean `tool_params`"));
}

#[tokio::test(start_paused = true)]
async fn a_broken_configuration_fails_only_once_the_run_is_ours() {
    let script = Script::new();
    let report = script.run(json!({"tools": ["a"], "tool_name": "b"})).await;
    assert_eq!(code(&report), ("configuration", "ambiguous_mode"));
    assert_eq!(script.wanted.borrow().len(), 1);
    let report = Script::new().duplicate().run(json!({"tools": ["a"], "tool_name": "b"})).await;
    assert!(matches!(report.outcome, Outcome::Duplicate));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_graph_runs_nothing() {
    let script = echo_script().status("cancelled");
    let report = script.run(echoing(json!({}))).await;
    assert_eq!(code(&report), ("cancelled", "graph_cancelled"));
    assert!(script.calls.borrow().is_empty() && script.events.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_waited_for_and_costs_no_attempt() {
    let away = || std::iter::repeat_with(|| Failure::retriable("redis_unavailable", "no connection"));
    let report = echo_script().store_fails(away().take(20)).run(echoing(json!({}))).await;
    assert_eq!((output(&report), report.spent.attempts), (json!({}), 1));
    let report = echo_script().store_fails(away().take(10_000)).run(echoing(json!({}))).await;
    assert_eq!(code(&report), ("retriable", "redis_unavailable"), "the node's time ends the wait");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_no_is_not_asked_again() {
    let missing = Failure::validation("state_missing", "no state");
    let report = echo_script().store_fails([missing]).run(echoing(json!({}))).await;
    assert_eq!(code(&report), ("validation", "state_missing"));
}

async fn cancelled_after_a_second(reason: CancelReason) -> Report {
    let script = Script::new().model([LlmAct::Hangs]);
    let cancel = Cancel::new();
    let (settings, delivery) = (settings(), delivery(json!({"config": {"llm_config": {"prompt": "p"}}})));
    let start = Instant::now();
    let (report, ()) = tokio::join!(run_node(&script, &settings, &delivery, &cancel), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cancel.cancel(reason);
    });
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    report
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_ends_the_node_by_its_reason() {
    assert!(matches!(cancelled_after_a_second(CancelReason::Lost).await.outcome, Outcome::Lost));
    assert!(matches!(cancelled_after_a_second(CancelReason::Stopping).await.outcome, Outcome::Unfinished));
    assert_eq!(code(&cancelled_after_a_second(CancelReason::Requested).await), ("cancelled", "cancelled"));
}

#[tokio::test(start_paused = true)]
async fn an_order_to_stop_says_who_gave_it_and_why() {
    let order = |scope| CancelOrder { by: Some(String::from("ann")), note: None, scope };
    let (script, cancel) = (echo_script(), Cancel::new());
    cancel.request(order(CancelScope::Graph));
    let report = run_node(&script, &settings(), &delivery(json!({"config": echoing(json!({}))})), &cancel).await;
    assert_eq!(code(&report), ("cancelled", "graph_cancelled"));
    assert!(failure(&report).message.ends_with("is cancelled by ann"), "{:?}", failure(&report));

    let script = echo_script().cancelled(order(CancelScope::Node));
    let report = script.run(echoing(json!({}))).await;
    assert_eq!(code(&report), ("cancelled", "cancelled"));
    assert_eq!(failure(&report).message, "the node was cancelled by ann");
    assert!(script.calls.borrow().is_empty(), "nothing was called");
}

#[tokio::test(start_paused = true)]
async fn an_order_that_comes_while_the_store_is_away_is_left_to_whoever_opens_the_run() {
    let away = std::iter::repeat_with(|| Failure::retriable("redis_unavailable", "no connection"));
    let (script, cancel) = (echo_script().store_fails(away.take(10_000)), Cancel::new());
    cancel.request(CancelOrder { by: None, note: None, scope: CancelScope::Node });
    let start = Instant::now();
    let report = run_node(&script, &settings(), &delivery(json!({"config": echoing(json!({}))})), &cancel).await;
    assert!(matches!(report.outcome, Outcome::Unfinished), "what it may have begun is not known: {report:?}");
    assert_eq!(start.elapsed(), OPENING);
}

#[tokio::test(start_paused = true)]
async fn what_is_cancelled_before_it_begins_does_not_touch_the_state() {
    let (script, cancel) = (echo_script(), Cancel::new());
    cancel.cancel(CancelReason::Lost);
    let report = run_node(&script, &settings(), &delivery(json!({"config": echoing(json!({}))})), &cancel).await;
    assert!(matches!(report.outcome, Outcome::Lost) && script.wanted.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_earliest_limit_of_time_ends_the_node_and_is_named() {
    let run = async |members: Value| {
        let script = Script::new().model([LlmAct::Hangs]);
        let start = Instant::now();
        let report = script.run_item(members).await;
        (code(&report).1.to_owned(), start.elapsed())
    };
    let config = |timeout: &str| json!({"llm_config": {"prompt": "p"}, "timeout": timeout});
    assert_eq!(
        run(json!({"config": {"llm_config": {"prompt": "p"}}})).await,
        ("timeout".into(), Duration::from_secs(60))
    );
    assert_eq!(run(json!({"config": config("2h")})).await, ("timeout".into(), Duration::from_secs(7200)));
    let soon = (Timestamp::now() + Duration::from_secs(30)).to_string();
    let (code, took) = run(json!({"config": config("2h"), "deadline": soon})).await;
    assert!(
        code == "deadline_exceeded" && took <= Duration::from_secs(30) && took > Duration::from_secs(20),
        "{took:?}"
    );
    let (code, took) = run(json!({"config": config("5s"), "deadline": soon})).await;
    assert_eq!((code.as_str(), took), ("timeout", Duration::from_secs(5)));
}

#[tokio::test(start_paused = true)]
async fn a_limit_beyond_all_time_is_no_fault() {
    let mut config = echoing(json!({}));
    config["timeout"] = json!(1e19);
    assert_eq!(output(&echo_script().run(config).await), json!({}));
}

#[tokio::test(start_paused = true)]
async fn an_item_whose_deadline_has_passed_is_not_begun() {
    let script = echo_script();
    let members = json!({"config": echoing(json!({})), "deadline": "2020-01-01T00:00:00Z"});
    assert_eq!(code(&script.run_item(members).await), ("permanent", "deadline_exceeded"));
    assert!(script.calls.borrow().is_empty() && script.events.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_output_over_its_limits_fails_the_node_with_the_sizes() {
    let script = Script::new().tool("echo", |_| Ok(text_output(&"x".repeat(20_000))));
    let report = script.run(echoing(json!({}))).await;
    assert_eq!(code(&report), ("validation", "output_too_large"));
    assert!(["20002", "10000", "limits.output"].iter().all(|part| failure(&report).message.contains(part)));
    let script =
        Script::new().tool("echo", |_| Ok(ToolOutput::structured((0..120).fold(json!(1), |inner, _| json!([inner])))));
    assert_eq!(code(&script.run(echoing(json!({}))).await), ("validation", "output_too_deep"));
}

#[tokio::test(start_paused = true)]
async fn remarks_of_the_model_client_are_reported_once() {
    let warned = |act| match act {
        LlmAct::Says(mut completion) => {
            completion.warnings = vec![String::from("`temperature` was left out")];
            LlmAct::Says(completion)
        }
        other => other,
    };
    let schema = json!({"type": "object"});
    let script = Script::new().model([warned(says("x")), warned(says("{}"))]);
    let report = script.run(json!({"llm_config": {"prompt": "p", "output_schema": schema}})).await;
    assert_eq!(report.warnings, ["`temperature` was left out"]);
}

/// A limited model, and settings under which a wait of more than five seconds leaves the slot.
fn limited(seconds: u64) -> LlmAct {
    let wait = Some(Duration::from_secs(seconds));
    LlmAct::Fails(Failure::retriable("rate_limited", "slow down").with_retry_after(wait))
}

fn parking() -> ModeSettings {
    ModeSettings { park_after: Some(Duration::from_secs(5)), ..settings() }
}

fn parked(report: &Report) -> &Parking {
    match &report.outcome {
        Outcome::Parked(parking) => parking,
        other => panic!("the node is not parked: {other:?}"),
    }
}

fn still(step: &str, made: u32) -> std::collections::BTreeMap<String, u32> {
    std::collections::BTreeMap::from([(step.to_owned(), made)])
}

/// The delivery as it comes back after it was parked.
fn back(members: Value, parking: &Parking) -> Arc<Delivery> {
    let mut delivery = Arc::unwrap_or_clone(delivery(members));
    (delivery.entry, delivery.meta.origin) = (EntryId::new("6-0"), Some(String::from("5-0")));
    delivery.meta.waits = parking.waits.clone();
    delivery.meta.since = Some(parking.since);
    Arc::new(delivery)
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_ends_the_run_and_leaves_its_slot() {
    let script = Script::new().model([limited(3), limited(30), says("unheard")]);
    let before = Timestamp::now();
    let start = Instant::now();
    let report = script.run_with(&parking(), json!({"config": {"llm_config": {"prompt": "p"}}})).await;
    let Parking { until, failure, waits, since } = parked(&report);
    let pause = until.duration_since(start.into_std());
    assert!(pause >= Duration::from_secs(33) && pause <= Duration::from_secs(37), "{pause:?}");
    assert!(start.elapsed() < Duration::from_secs(4), "the short wait was held out, the long one was not");
    assert_eq!((failure.code.as_ref(), waits), ("rate_limited", &still("turn 1", 0)));
    assert!(*since >= before - Duration::from_secs(5) && *since <= Timestamp::now());
    assert_eq!(script.told(EventType::NodeProgress)[0]["code"], "rate_limited");
    assert_eq!(report.mode, Some(Mode::Llm));
}

#[tokio::test(start_paused = true)]
async fn without_a_place_to_wait_the_slot_is_held() {
    let script = Script::new().model([limited(30), says("heard")]);
    let start = Instant::now();
    assert_eq!(output(&script.run(json!({"llm_config": {"prompt": "p"}})).await)["content"], "heard");
    assert!(start.elapsed() >= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn attempts_are_counted_across_parking_and_only_for_their_step() {
    let members = || json!({"config": {"llm_config": {"prompt": "p"}}});
    let slow = RetryPolicy { initial: Duration::from_secs(3600), max: Duration::from_secs(3600), ..settings().retry };
    let always = ModeSettings {
        park_after: Some(Duration::ZERO),
        retry: slow,
        node_timeout: Duration::from_secs(36_000),
        ..settings()
    };
    let busy = || LlmAct::Fails(Failure::retriable("busy", "busy"));
    let first = Script::new().model([busy()]).run_with(&always, members()).await;
    assert_eq!(parked(&first).waits, still("turn 1", 1));
    let run = async |script: Script, delivery| run_node(&script, &always, &delivery, &Cancel::new()).await;
    let second = run(Script::new().model([busy()]), back(members(), parked(&first))).await;
    assert_eq!(parked(&second).waits, still("turn 1", 2));
    let third = run(Script::new().model([busy()]), back(members(), parked(&second))).await;
    assert_eq!((code(&third), failure(&third).attempts), (("retriable", "busy"), 3));
    let well = run(Script::new().model([says("x")]), back(members(), parked(&second))).await;
    assert_eq!(well.spent.attempts, 3);
    let other = Parking { waits: still("turn 9", 2), ..parked(&second).clone() };
    let well = run(Script::new().model([says("x")]), back(members(), &other)).await;
    assert_eq!(well.spent.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn the_time_outside_of_a_slot_is_a_part_of_the_nodes_time() {
    let members = || json!({"config": {"llm_config": {"prompt": "p"}, "timeout": "40s"}});
    let since = |seconds: u64| Parking {
        until: std::time::Instant::now(),
        failure: Failure::retriable("rate_limited", "slow down"),
        waits: still("turn 1", 0),
        since: Timestamp::now() - Duration::from_secs(seconds),
    };
    let start = Instant::now();
    let script = Script::new().model([LlmAct::Hangs]);
    let report = run_node(&script, &parking(), &back(members(), &since(30)), &Cancel::new()).await;
    assert_eq!(code(&report), ("permanent", "timeout"));
    assert!(start.elapsed() <= Duration::from_secs(10) && start.elapsed() > Duration::from_secs(5));
    assert!(failure(&report).message.contains("40s"), "the whole limit is named");
    let report = run_node(&Script::new(), &parking(), &back(members(), &since(50)), &Cancel::new()).await;
    assert_eq!(code(&report), ("permanent", "timeout"));
    // What would only be due after the deadline is not waited for.
    let script = Script::new().model([limited(20)]);
    let report = run_node(&script, &parking(), &back(members(), &since(30)), &Cancel::new()).await;
    assert_eq!(code(&report), ("retriable", "rate_limited"));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_longer_than_an_attempt_may_is_tried_again() {
    let settings = ModeSettings { attempt_timeout: Some(Duration::from_secs(7)), ..settings() };
    let members = || json!({"config": {"llm_config": {"prompt": "p"}}});
    let script = Script::new().model([LlmAct::Hangs, LlmAct::Hangs, says("x")]);
    let start = Instant::now();
    let report = script.run_with(&settings, members()).await;
    assert_eq!((output(&report)["content"].as_str(), report.spent.attempts), (Some("x"), 3));
    assert!(start.elapsed() >= Duration::from_secs(14));
    let script = Script::new().model([LlmAct::Hangs, LlmAct::Hangs, LlmAct::Hangs]);
    let report = script.run_with(&settings, members()).await;
    assert_eq!((code(&report), failure(&report).attempts), (("retriable", "attempt_timeout"), 3));
    // A tool that may not be called twice fails for good: what was cut off may have taken effect.
    let slow = || {
        Script::new().tool_with("slow", json!({"type": "object"}), Duration::from_secs(8), |_| Ok(text_output("late")))
    };
    let script = slow();
    let report = script.run_with(&settings, json!({"config": {"tool_name": "slow"}})).await;
    assert_eq!((code(&report), script.calls.borrow().len()), (("permanent", "attempt_timeout"), 1));
    let script = slow().hinting(ToolHints::READ_ONLY);
    let report = script.run_with(&settings, json!({"config": {"tool_name": "slow"}})).await;
    assert_eq!((code(&report), script.calls.borrow().len()), (("retriable", "attempt_timeout"), 3));
}

#[tokio::test(start_paused = true)]
async fn an_item_that_waited_too_long_for_its_first_start_fails_and_later_starts_do_not_count() {
    let settings = ModeSettings { queue_age: Some(Duration::from_secs(60)), ..settings() };
    let members = || json!({"config": echoing(json!({}))});
    let aged = |seconds: i64| {
        let mut delivery = Arc::unwrap_or_clone(delivery(members()));
        let added = Timestamp::now().as_millisecond() - seconds * 1000;
        delivery.entry = crate::domain::ids::EntryId::new(format!("{added}-0"));
        delivery
    };
    let run = async |delivery: Delivery| {
        let script = echo_script();
        let report = run_node(&script, &settings, &Arc::new(delivery), &Cancel::new()).await;
        assert_eq!(script.calls.borrow().is_empty(), matches!(report.outcome, Outcome::Failed { .. }));
        report
    };
    assert_eq!(output(&run(aged(50)).await), json!({}));
    let report = run(aged(70)).await;
    assert_eq!(code(&report), ("permanent", "queue_timeout"));
    assert!(failure(&report).message.contains("limits.queue_age"));
    let mut taken_over = aged(70);
    taken_over.token.deliveries = 2;
    assert_eq!(output(&run(taken_over).await), json!({}));
    let mut parked = aged(70);
    parked.meta.since = Some(Timestamp::now());
    assert_eq!(output(&run(parked).await), json!({}));
}

fn large(key: &str, bytes: u64) -> Value {
    json!({"status": "completed", "output": {"$blob": {"key": key, "bytes": bytes, "type": "application/json", "sha256": ""}}})
}

#[tokio::test(start_paused = true)]
async fn a_stored_output_is_fetched_where_a_template_names_its_node() {
    let nodes = json!({"a": large("k1", 7), "b": large("k2", 7), "c": large("k1", 7)});
    let script = || {
        let stored = json!({"x": [1, 2]});
        echo_script().state(json!({}), nodes.clone()).blob("k1", Some(stored)).blob("k2", None)
    };
    let first = script();
    let report = first.run(echoing(json!({"a": "{{ a.x[1] }}", "b": "{{ nodes.b.output }}"}))).await;
    assert_eq!(output(&report)["a"], 2);
    assert_eq!(
        output(&report)["b"]["$blob"]["key"],
        "k2",
        "a key that is not the node's own is a value like any other"
    );
    assert_eq!(first.fetched.take(), ["a", "b"], "c is not named");
    let report = script().run(echoing(json!({"status": "{{ nodes | length }}"}))).await;
    assert_eq!(output(&report), json!({"status": 3}), "a computed name may mean all of them");

    let brought = json!({
        "type": "node.work",
        "data": {
            "graph_id": "g", "node_id": "n", "config": echoing(json!({"d": "{{ d.x }}"})),
            "node_state": {"d": large("k1", 7), "e": large("gone", 7)},
        },
    });
    assert_eq!(output(&script().run_item(brought).await), json!({"d": [1, 2]}), "the item's own node states as well");
}

#[tokio::test(start_paused = true)]
async fn a_stored_output_that_is_gone_or_too_large_is_a_validation_failure() {
    let nodes = json!({"a": large("gone", 7), "b": large("k", 40 << 20), "c": large("k", 40 << 20)});
    let script = || echo_script().state(json!({}), nodes.clone()).blob("k", Some(json!("x")));
    assert_eq!(code(&script().run(echoing(json!({"a": "{{ a }}"}))).await), ("validation", "blob_missing"));
    assert_eq!(output(&script().run(echoing(json!({"b": "{{ b }}"}))).await), json!({"b": "x"}));
    let report = script().run(echoing(json!({"b": "{{ b }}{{ c }}"}))).await;
    assert_eq!(code(&report), ("validation", "blobs_too_large"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_waits_for_a_tool_goes_on_where_it_was_once_the_other_calls_are_on_record() {
    let members = || json!({"config": {"task": "t", "tools": ["*"], "llm_config": {}}});
    let any = || json!({"type": "object"});
    let first = Script::new()
        .model([wants(&[("limited", json!({})), ("slow", json!({}))])])
        .tool("limited", |_| {
            let wait = Some(Duration::from_secs(30));
            Err(Failure::retriable("http_429", "slow down").with_retry_after(wait))
        })
        .tool_with("slow", any(), Duration::from_secs(3), |_| Ok(text_output("done")));
    let start = Instant::now();
    let report = first.run_with(&parking(), members()).await;
    assert_eq!((parked(&report).waits.clone(), start.elapsed()), (still("turn 1 call 0", 0), Duration::from_secs(3)));

    // Nobody had the node in between, so it is known that the call may simply be made again.
    let again = |script: Script| {
        script.tool("limited", |_| Ok(text_output("fine"))).tool("slow", |_| panic!("its end is on record"))
    };
    let second = again(Script::new().after(first).model([says("ready")]));
    let report = run_node(&second, &parking(), &back(members(), parked(&report)), &Cancel::new()).await;
    assert_eq!(output(&report)["result"], "ready");
    assert_eq!((second.calls.borrow().len(), second.requests.borrow().len()), (1, 1));
    let results = format!("{:?}", second.requests.borrow()[0].turns.last());
    assert!(results.contains("fine") && results.contains("done"), "{results}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_waited_for_and_then_lost_with_its_worker_is_unknown() {
    let members = || json!({"config": {"tool_name": "order"}});
    let limited = || {
        let wait = Some(Duration::from_secs(30));
        Err(Failure::retriable("http_429", "slow down").with_retry_after(wait))
    };
    let first = Script::new().tool("order", move |_| limited());
    let report = first.run_with(&parking(), members()).await;
    let parking_once = parked(&report);
    let mut taken_over = Arc::unwrap_or_clone(back(members(), parking_once));
    taken_over.token.deliveries = 2;
    // Whoever read it before has not come to the call.
    let second =
        Script::new().after(first).tool_with("order", json!({}), Duration::from_secs(60), |_| panic!("it died"));
    let cancel = Cancel::new();
    let (settings, taken_over) = (parking(), Arc::new(taken_over));
    let dies = run_node(&second, &settings, &taken_over, &cancel);
    assert!(tokio::time::timeout(Duration::from_secs(1), dies).await.is_err(), "the call is under way");
    assert_eq!(second.calls.borrow().len(), 1, "nobody had made it since");

    let mut again = Arc::unwrap_or_clone(taken_over);
    again.token.deliveries = 3;
    let third = Script::new().after(second).tool("order", |_| panic!("it may have taken effect"));
    let report = run_node(&third, &parking(), &Arc::new(again), &Cancel::new()).await;
    assert_eq!(code(&report), ("permanent", "unknown_tool_outcome"));
}

#[tokio::test(start_paused = true)]
async fn an_agents_call_that_was_waited_for_is_in_doubt_only_once_it_is_made_again() {
    let members = || json!({"config": {"task": "t", "tools": ["*"], "llm_config": {}}});
    let first = Script::new().model([wants(&[("order", json!({}))])]).tool("order", |_| {
        Err(Failure::retriable("http_429", "slow down").with_retry_after(Some(Duration::from_secs(30))))
    });
    let report = first.run_with(&parking(), members()).await;
    let mut taken_over = Arc::unwrap_or_clone(back(members(), parked(&report)));
    taken_over.token.deliveries = 2;
    let (settings, taken_over) = (parking(), Arc::new(taken_over));
    let second =
        Script::new().after(first).tool_with("order", json!({}), Duration::from_secs(60), |_| panic!("it died"));
    let cancel = Cancel::new();
    let dies = run_node(&second, &settings, &taken_over, &cancel);
    assert!(tokio::time::timeout(Duration::from_secs(1), dies).await.is_err(), "the call is under way");
    assert_eq!(second.calls.borrow().len(), 1, "nobody had made it since");

    let mut again = Arc::unwrap_or_clone(taken_over);
    again.token.deliveries = 3;
    let third =
        Script::new().after(second).model([says("ready")]).tool("order", |_| panic!("it may have taken effect"));
    let report = run_node(&third, &settings, &Arc::new(again), &Cancel::new()).await;
    assert_eq!(output(&report)["result"], "ready");
    let told = format!("{:?}", third.requests.borrow()[0].turns.last());
    assert!(told.contains("its result is lost"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_does_not_tell_its_entry_is_read_with_care() {
    let members = || json!({"config": {"tool_name": "order"}});
    for (deliveries, made) in [(1, 1), (2, 0)] {
        let first = Script::new().tool("order", |_| {
            Err(Failure::retriable("http_429", "slow down").with_retry_after(Some(Duration::from_secs(30))))
        });
        let report = first.run_with(&parking(), members()).await;
        let mut delivery = Arc::unwrap_or_clone(back(members(), parked(&report)));
        delivery.token.deliveries = deliveries;
        let mut start = first.journal.field("t0:c0:start");
        assert_eq!(start.as_object_mut().expect("an object").remove("entry"), Some(json!("5-0")));
        first.journal.put("t0:c0:start", &start);
        let second = Script::new().after(first).tool("order", |_| Ok(text_output("done")));
        run_node(&second, &parking(), &Arc::new(delivery), &Cancel::new()).await;
        assert_eq!(second.calls.borrow().len(), made, "{deliveries} deliveries");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_goes_on_with_the_conversation_of_its_session_and_leaves_it_behind() {
    let script =
        Script::new().tool("echo", echo).model([says("Hello Ada"), wants(&[("echo", json!({}))]), says("Ada")]);
    let first = script.run(json!({"llm_config": {"prompt": "I am Ada"}, "session": "chat"})).await;
    let session = first.session.expect("a session");
    assert_eq!(session.name, "chat");
    script.sessions.borrow_mut().insert(String::from("chat"), session.json);
    script.journal.written.borrow_mut().clear();
    let agent = json!({"task": "Who am I?", "tools": ["*"], "llm_config": {}, "session": "chat"});
    let second = script.run_item(json!({"config": agent, "run_id": "another"})).await;
    assert_eq!(output(&second)["iterations"], 2, "turns of earlier nodes are not this one's");
    let requests = script.requests.borrow();
    assert_eq!(requests[1].turns.len(), 3, "{:?}", requests[1].turns);
    assert!(script.wanted.borrow().iter().all(|wanted| wanted.session.as_deref() == Some("chat")));
    let kept: Value = serde_json::from_str(&second.session.expect("a session").json).expect("JSON");
    assert_eq!(kept["turns"].as_array().expect("turns").len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_tools_names_those_that_its_session_shows_in_use() {
    let uses = [("echo", json!({})), ("made up", json!({})), ("echo", json!({}))];
    let first = Script::new().tool("echo", echo).model([wants(&uses), says("x")]);
    let agent = json!({"task": "Do it", "tools": ["*"], "llm_config": {}, "session": "chat"});
    let session = first.run(agent).await.session.expect("a session");
    let second = Script::new().model([says("y")]);
    second.sessions.borrow_mut().insert(String::from("chat"), session.json);
    let report = second.run(json!({"llm_config": {"prompt": "And now?"}, "session": "chat"})).await;
    assert_eq!(output(&report)["content"], "y");
    let requests = [first.requests.take(), second.requests.take()].concat();
    let names =
        |tools: &[crate::domain::tool::ToolSpec]| tools.iter().map(|tool| tool.name.clone()).collect::<Vec<_>>();
    assert_eq!((names(&requests[2].tools), names(&requests[2].earlier_tools)), (vec![], vec![String::from("echo")]));
    assert_eq!((names(&requests[1].tools), names(&requests[1].earlier_tools)), (vec![String::from("echo")], vec![]));
    // What was signed by the model holds for the turns of one node, and not behind other tools.
    assert_eq!(requests[0].frame, requests[1].frame);
    assert_ne!(requests[1].frame, requests[2].frame);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_taken_over_goes_on_with_the_conversation_that_it_began_with() {
    let said = |text: &str| {
        let turns = vec![Arc::new(Turn::User(text.to_owned()))];
        Session::new("chat", &NodeId::new("m").expect("an id"), &RunId::new("r").expect("an id"), &turns).json
    };
    for begun_with in [Some("I am Ada"), None] {
        let script = Script::new().tool("echo", echo).model([wants(&[("echo", json!({}))]), says("x"), says("x")]);
        if let Some(text) = begun_with {
            script.sessions.borrow_mut().insert(String::from("chat"), said(text));
        }
        let agent = || json!({"task": "Who am I?", "tools": ["*"], "llm_config": {}, "session": "chat"});
        script.dies(Death::After(2), agent()).await;
        script.sessions.borrow_mut().insert(String::from("chat"), said("I am Eve"));
        assert_eq!(output(&script.run(agent()).await)["result"], "x");
        let requests = script.requests.borrow();
        let (first, last) = (&requests[0].turns, &requests.last().expect("a request").turns);
        assert_eq!((requests.len(), last.len()), (2, first.len() + 2), "no turn is paid twice: {last:?}");
        assert_eq!(format!("{:?}", first[0]), format!("{:?}", last[0]), "{begun_with:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tool_that_was_wanted_last_and_not_called_has_an_answer_in_the_session() {
    let both = turn("Good bye", &[("echo", json!({}))], StopReason::EndTurn);
    let report = Script::new().model([both]).run(json!({"llm_config": {"prompt": "p"}, "session": "s"})).await;
    assert_eq!(output(&report)["content"], "Good bye");
    let kept: Value = serde_json::from_str(&report.session.expect("a session").json).expect("JSON");
    let last = kept["turns"].as_array().expect("turns").last().expect("a turn");
    assert_eq!(last["tool_results"][0]["is_error"], true, "{kept}");
}

#[tokio::test(start_paused = true)]
async fn a_session_needs_a_conversation_and_a_name() {
    for (config, words) in [
        (json!({"tool_name": "echo", "session": "chat"}), "tool mode"),
        (json!({"llm_config": {"prompt": "p"}, "session": ""}), "empty"),
    ] {
        let report = echo_script().model([says("x")]).run(config).await;
        assert_eq!(code(&report), ("configuration", "invalid_config"));
        assert!(failure(&report).message.contains(words), "{}", failure(&report).message);
        assert_eq!(report.session, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_too_large_is_not_kept_and_the_node_completes() {
    let prompt = "p".repeat(settings().output_limit);
    let report = Script::new().model([says("x")]).run(json!({"llm_config": {"prompt": prompt}, "session": "s"})).await;
    assert_eq!((&output(&report)["content"], &report.session), (&json!("x"), &None));
    assert!(
        report.warnings.iter().any(|warning| warning.contains("session `s` was not kept")),
        "{:?}",
        report.warnings
    );
}

#[tokio::test]
async fn a_node_takes_little_room_while_it_waits() {
    let (script, settings, delivery, cancel) = (echo_script(), settings(), delivery(json!({})), Cancel::new());
    let bytes = std::mem::size_of_val(&run_node(&script, &settings, &delivery, &cancel));
    assert!(bytes <= 8 << 10, "a thousand nodes that wait hold a thousand times {bytes} bytes");
}
