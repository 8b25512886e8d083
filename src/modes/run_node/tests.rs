//! The rules of one execution from delivery to report, one a test.

use super::*;
use crate::domain::tool::ToolOutput;
use crate::modes::scripted_ports::{LlmAct, Script, code, delivery, failure, output, says, settings, text_output};

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
