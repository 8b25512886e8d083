//! Approvals, one rule a test, with a scripted model, scripted tools and a scripted journal.

use std::time::Duration;

use super::*;
use crate::domain::journal::{ask_field, said_field};
use crate::domain::message::{StopReason, Turn};
use crate::domain::outcome::{Outcome, Report, Waiting};
use crate::domain::tool::ToolOutput;
use crate::modes::scripted_ports::{Script, code, delivery, failure, output, says, settings, text_output, turn, wants};
use crate::modes::{ModeSettings, run_node};
use crate::ports::Cancel;

fn echo(arguments: &Value) -> Result<ToolOutput, Failure> {
    Ok(text_output(&arguments.to_string()))
}

fn agent(approve: Value) -> Value {
    json!({"task": "Do it", "tools": ["*"], "llm_config": {}, "approve": approve})
}

fn waiting(report: &Report) -> &Waiting {
    match &report.outcome {
        Outcome::Waiting(waiting) => waiting,
        other => panic!("the node does not wait: {other:?}"),
    }
}

/// Keeps the questions, as the script that ends the run around them does.
fn keep(script: &Script, waiting: &Waiting) {
    for ask in &waiting.asks {
        script.journal.put(&ask_field(&ask.wait_id), &json!(ask));
    }
}

fn said(action: Action, content: Option<Value>, note: Option<&str>) -> Value {
    let (by, note) = (Some(String::from("ann")), note.map(str::to_owned));
    json!(Said { action, content, by, note, at: Timestamp::UNIX_EPOCH, expired: false })
}

fn decide(script: &Script, ask: &Ask, said: &Value) {
    script.journal.put(&said_field(&ask.wait_id), said);
}

/// What the model was shown of its last round of calls.
fn shown(script: &Script) -> Vec<String> {
    let requests = script.requests.borrow();
    let results = requests.last().expect("a request").turns.iter().rev().find_map(|turn| match &**turn {
        Turn::ToolResults(results) => Some(results.clone()),
        _ => None,
    });
    let text = |block: &Value| block["text"].as_str().unwrap_or_default().to_owned();
    let texts = results.expect("results").into_iter();
    texts.map(|result| result.content.iter().map(text).collect::<Vec<_>>().join(" | ")).collect()
}

fn called(script: &Script) -> Vec<(String, Value)> {
    let calls = script.calls.borrow();
    calls.iter().map(|call| (call.target.name.clone(), json!(*call.arguments))).collect()
}

/// Two calls in one turn, then the answer.
fn course(turn_number: usize) -> crate::modes::scripted_ports::LlmAct {
    match turn_number {
        0 => turn("I shall pay.", &[("pay", json!({"amount": 200})), ("look", json!({"n": 1}))], StopReason::ToolUse),
        _ => says("done"),
    }
}

fn shop() -> Script {
    let schema = json!({"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]});
    let script = Script::new().tool_with("pay", schema, Duration::ZERO, echo);
    script.tool_with("look", json!({"type": "object"}), Duration::from_secs(3), echo).model_by_turn(course)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_wants_a_word_waits_while_the_others_of_its_turn_run() {
    let script = shop();
    let report = script.run(agent(json!(["pay"]))).await;
    let waiting = waiting(&report);
    let [ask] = &waiting.asks[..] else { panic!("one question: {waiting:?}") };
    assert_eq!((ask.kind, ask.tool.as_deref()), (Kind::Approval, Some("srv/pay")));
    assert_eq!(ask.arguments.as_ref().map(|arguments| json!(arguments)), Some(json!({"amount": 200})));
    assert_eq!(ask.last_words.as_deref(), Some("I shall pay."));
    assert_eq!(ask.asked_by, AskedBy::Rule { rule: String::from("pay") });
    assert_eq!(ask.schema["properties"]["arguments"]["required"], json!(["amount"]));
    assert_eq!((waiting.until, waiting.expires_at), (None, ask.expires_at));
    assert_eq!(called(&script), [(String::from("look"), json!({"n": 1}))], "nothing keeps the other call");
    assert_eq!(script.journal.names(), ["hdr", "t1:c1:end", "t1:c1:start", "t1:llm"], "and it is on record");

    keep(&script, waiting);
    decide(&script, ask, &said(Action::Accept, None, None));
    let report = script.run(agent(json!(["pay"]))).await;
    assert_eq!(output(&report)["result"], "done");
    assert_eq!(called(&script).last(), Some(&(String::from("pay"), json!({"amount": 200}))));
    assert_eq!((script.requests.borrow().len(), script.calls.borrow().len()), (2, 2), "nothing was done twice");
    assert_eq!(shown(&script), [r#"{"amount":200}"#, r#"{"n":1}"#], "in the order in which they were wanted");
    assert_eq!(report.decisions[0]["by"], "ann");
    assert_eq!(report.decisions[0]["action"], "accept");
}

#[tokio::test(start_paused = true)]
async fn the_same_question_has_the_same_name_until_it_is_answered() {
    let script = shop();
    let first = script.run(agent(json!(["pay"]))).await;
    keep(&script, waiting(&first));
    let again = script.run(agent(json!(["pay"]))).await;
    assert_eq!(waiting(&again).asks, waiting(&first).asks, "its time goes on as well");
    assert_eq!(script.calls.borrow().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_goes_to_the_model_with_its_note() {
    for action in [Action::Reject, Action::Decline] {
        let script = shop();
        let report = script.run(agent(json!(["pay"]))).await;
        keep(&script, waiting(&report));
        decide(&script, &waiting(&report).asks[0], &said(action, None, Some("too much")));
        let report = script.run(agent(json!(["pay"]))).await;
        assert_eq!(output(&report)["result"], "done");
        assert_eq!(shown(&script)[0], "Not run: the call of `srv/pay` was refused by ann: too much.");
        assert!(called(&script).iter().all(|(name, _)| name != "pay"));
    }
}

#[tokio::test(start_paused = true)]
async fn changed_arguments_are_used_and_the_model_is_told() {
    let script = shop();
    let report = script.run(agent(json!(["pay"]))).await;
    keep(&script, waiting(&report));
    let edited = json!({"arguments": {"amount": 20}});
    decide(&script, &waiting(&report).asks[0], &said(Action::Accept, Some(edited), Some("less is enough")));
    // The worker dies right behind the start of the call: whoever goes on uses the changed arguments too.
    let settings =
        ModeSettings { unknown_outcomes: crate::modes::unknown::UnknownOutcomes::always_retry(), ..settings() };
    script.dies(crate::modes::scripted_ports::Death::After(1), agent(json!(["pay"]))).await;
    let report = script.run_with(&settings, json!({"config": agent(json!(["pay"]))})).await;
    assert_eq!(output(&report)["result"], "done");
    assert_eq!(called(&script).last(), Some(&(String::from("pay"), json!({"amount": 20}))));
    let shown = &shown(&script)[0];
    assert!(shown.contains("ann changed the arguments") && shown.contains(r#"{"amount":20}"#), "{shown}");
    assert!(shown.contains("less is enough") && shown.ends_with(r#"{"amount":20}"#), "{shown}");
    assert_eq!(report.decisions[0]["edited"], true);
}

#[tokio::test(start_paused = true)]
async fn somebody_may_cancel_the_node_instead() {
    let script = shop();
    let report = script.run(agent(json!(["pay"]))).await;
    keep(&script, waiting(&report));
    decide(&script, &waiting(&report).asks[0], &said(Action::Cancel, None, Some("wrong customer")));
    let report = script.run(agent(json!(["pay"]))).await;
    assert_eq!(code(&report), ("cancelled", "cancelled"));
    assert!(failure(&report).message.contains("ann") && failure(&report).message.contains("wrong customer"));
}

#[tokio::test(start_paused = true)]
async fn several_questions_of_a_turn_are_answered_one_by_one() {
    let two = |number| match number {
        0 => wants(&[("pay", json!({"amount": 1})), ("pay", json!({"amount": 2})), ("pay", json!({"amount": 3}))]),
        _ => says("done"),
    };
    let script = Script::new().tool("pay", echo).model_by_turn(two);
    let config = || agent(json!([{"tool": "pay", "when": "args.amount > 1"}]));
    let report = script.run(config()).await;
    let asks = waiting(&report).asks.clone();
    assert_eq!(asks.len(), 2);
    assert_eq!(called(&script), [(String::from("pay"), json!({"amount": 1}))], "the condition does not hold for it");
    keep(&script, waiting(&report));
    decide(&script, &asks[1], &said(Action::Accept, None, None));
    let report = script.run(config()).await;
    assert_eq!(called(&script).last(), Some(&(String::from("pay"), json!({"amount": 3}))), "what is decided is done");
    assert_eq!(waiting(&report).asks, asks[..1], "and the other one is waited for");
    decide(&script, &asks[0], &said(Action::Reject, None, None));
    let report = script.run(config()).await;
    assert_eq!(output(&report)["result"], "done");
    assert_eq!((script.calls.borrow().len(), script.requests.borrow().len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn more_questions_than_calls_may_run_at_once_keep_no_call_from_running() {
    let many = |number| match number {
        0 => {
            let mut uses = vec![("pay", json!({})); 6];
            uses.push(("look", json!({})));
            wants(&uses)
        }
        _ => says("done"),
    };
    let script = Script::new().tool("pay", echo).tool("look", echo).model_by_turn(many);
    let report = script.run(agent(json!(["pay"]))).await;
    assert_eq!(waiting(&report).asks.len(), 6, "agent.parallel_tools is 4");
    assert_eq!(called(&script), [(String::from("look"), json!({}))]);
}

#[tokio::test(start_paused = true)]
async fn the_workers_rules_hold_beside_the_nodes() {
    let rules = Rules::of_settings([("srv/*", "args.amount > 100")]).expect("rules");
    let strict = ModeSettings { approve: Arc::new(rules), ..settings() };
    let script = shop();
    let report = script.run_with(&strict, json!({"config": agent(json!([]))})).await;
    let asked_by = &waiting(&report).asks[0].asked_by;
    assert_eq!(asked_by, &AskedBy::Rule { rule: String::from("srv/* when args.amount > 100") });
    // The node's own condition does not weaken it.
    let script = shop();
    let own = agent(json!([{"tool": "pay", "when": "args.amount > 1000"}]));
    let report = script.run_with(&strict, json!({"config": own})).await;
    assert_eq!(waiting(&report).asks.len(), 2, "a condition that needs what `look` has not holds there");
}

#[tokio::test(start_paused = true)]
async fn when_the_time_to_decide_is_over_the_node_fails_or_takes_the_chosen_way() {
    for (on_expiry, expected) in [(None, "wait_expired"), (Some("reject"), "refused"), (Some("accept"), "paid")] {
        let mut config = agent(json!(["pay"]));
        if let Some(on_expiry) = on_expiry {
            config["wait"] = json!({"timeout": "1h", "on_expiry": on_expiry});
        }
        let script = shop();
        let report = script.run(config.clone()).await;
        let mut ask = waiting(&report).asks[0].clone();
        let hours = (ask.expires_at.as_second() - ask.asked_at.as_second()) / 3600;
        assert_eq!(hours, if on_expiry.is_some() { 1 } else { 24 * 7 });
        ask.expires_at = Timestamp::UNIX_EPOCH;
        script.journal.put(&ask_field(&ask.wait_id), &json!(ask));
        let report = script.run(config).await;
        match expected {
            "wait_expired" => assert_eq!(code(&report), ("permanent", "wait_expired")),
            "refused" => assert!(shown(&script)[0].contains("refused by nobody"), "{:?}", shown(&script)),
            _ => assert_eq!(called(&script).last(), Some(&(String::from("pay"), json!({"amount": 200})))),
        }
        assert_eq!(script.requests.borrow().len(), if expected == "wait_expired" { 1 } else { 2 });
        // What was chosen is on record like anybody's word.
        let field = said_field(&ask.wait_id);
        let said = script.journal.names().contains(&field).then(|| script.journal.field(&field)["expired"].clone());
        assert_eq!(said, (expected != "wait_expired").then_some(Value::Bool(true)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_cannot_agree_by_itself_to_what_the_worker_wants_a_word_on() {
    let rules = || Arc::new(Rules::of_settings([("srv/pay", "always")]).expect("rules"));
    let config = || {
        let mut config = agent(json!(["pay"]));
        config["wait"] = json!({"on_expiry": "accept"});
        config
    };
    let on_expiry = async |settings: &ModeSettings| {
        let report = shop().run_with(settings, json!({"config": config()})).await;
        (waiting(&report).asks[0].on_expiry, report.warnings.len())
    };
    assert_eq!(on_expiry(&settings()).await, (OnExpiry::Accept, 0), "it is the node's own rule");
    let strict = ModeSettings { approve: rules(), ..settings() };
    assert_eq!(on_expiry(&strict).await, (OnExpiry::Fail, 1));
    let wait = WaitConfig { on_expiry: OnExpiry::Accept, ..settings().wait };
    assert_eq!(on_expiry(&ModeSettings { wait, approve: rules(), ..settings() }).await, (OnExpiry::Accept, 0));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_at_its_deadline_does_not_wait_again_because_a_clock_is_behind() {
    let script = shop();
    let hour = SignedDuration::from_hours(1);
    let item = || json!({"config": agent(json!(["pay"])), "deadline": Timestamp::now() + hour});
    let report = script.run_with(&settings(), item()).await;
    let ask = &waiting(&report).asks[0];
    let left = ask.expires_at.duration_since(ask.asked_at);
    assert!(left <= hour && left > hour / 2, "an answer behind the deadline would be of no use: {left}");
    keep(&script, waiting(&report));
    // The server's clock is two hours ahead of this one's.
    let mut back = crate::domain::work::Delivery::clone(&delivery(item()));
    let there = (Timestamp::now() + hour + hour).as_millisecond();
    back.entry = crate::domain::ids::EntryId::new(format!("{there}-0"));
    back.meta.since = Some(Timestamp::now());
    back.meta.asked_at = Some(Timestamp::now());
    let report = run_node(&script, &settings(), &Arc::new(back), &Cancel::new()).await;
    assert_eq!(code(&report), ("permanent", "deadline_exceeded"));
}

#[tokio::test(start_paused = true)]
async fn rules_in_a_node_without_tools_are_an_error_and_not_a_promise() {
    let script = shop();
    let report = script.run(json!({"llm_config": {"prompt": "Pay"}, "approve": ["pay"]})).await;
    assert_eq!(code(&report), ("configuration", "invalid_config"));
    assert!(failure(&report).message.contains("`approve`"), "{}", failure(&report).message);
    assert!(script.requests.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_time_that_others_take_is_not_the_nodes() {
    let script = shop();
    let mut config = agent(json!(["pay"]));
    config["timeout"] = json!("30s");
    let report = script.run(config.clone()).await;
    keep(&script, waiting(&report));
    decide(&script, &waiting(&report).asks[0], &said(Action::Accept, None, None));
    let mut header = script.journal.field("hdr");
    let two_days_ago = Timestamp::now() - SignedDuration::from_hours(48);
    header["started_at"] = json!(two_days_ago);
    script.journal.put("hdr", &header);
    let mut back = crate::domain::work::Delivery::clone(&delivery(json!({"config": config})));
    let now = Timestamp::now().as_millisecond();
    back.entry = crate::domain::ids::EntryId::new(format!("{now}-0"));
    let expired = run_node(&script, &settings(), &Arc::new(back.clone()), &Cancel::new()).await;
    assert_eq!(code(&expired), ("permanent", "timeout"), "without a wait all of it counts");
    back.meta.asked_at = Some(two_days_ago);
    let report = run_node(&script, &settings(), &Arc::new(back), &Cancel::new()).await;
    assert_eq!(output(&report)["result"], "done");
}

#[tokio::test(start_paused = true)]
async fn a_tool_node_asks_as_well() {
    let config = || json!({"tool_name": "pay", "tool_params": {"amount": 5}, "approve": ["pay"]});
    for (action, content) in [(Action::Accept, Some(json!({"arguments": {"amount": 4}}))), (Action::Reject, None)] {
        let script = Script::new().tool("pay", echo);
        let report = script.run(config()).await;
        let waiting = waiting(&report);
        assert!(serde_json::from_str::<Value>(&waiting.header).is_ok_and(|header| header["v"] == 1));
        keep(&script, waiting);
        script.journal.put("hdr", &serde_json::from_str(&waiting.header).expect("JSON"));
        decide(&script, &waiting.asks[0], &said(action, content, Some("so be it")));
        let report = script.run(config()).await;
        match action {
            Action::Accept => assert_eq!(output(&report), json!({"amount": 4})),
            _ => assert_eq!(code(&report), ("permanent", "call_refused")),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_protects_nothing_fails_the_node_before_it_costs_anything() {
    let script = shop();
    let report = script.run(agent(json!(["pay", "srv/lok"]))).await;
    assert_eq!(code(&report), ("configuration", "unknown_tool"));
    assert!(failure(&report).message.contains("did you mean `srv/look`"), "{}", failure(&report).message);
    assert!(script.requests.borrow().is_empty());
    let script = Script::new().tool("pay", echo);
    let report = script.run(json!({"tool_name": "pay", "tool_params": {}, "approve": ["apy"]})).await;
    assert_eq!(code(&report), ("configuration", "unknown_tool"));
    let report = Script::new().run(agent(json!([{"tool": "pay", "when": "1 +"}]))).await;
    assert_eq!(code(&report), ("configuration", "invalid_approve"));
}

#[tokio::test(start_paused = true)]
async fn a_decision_counts_for_the_call_that_was_asked_about_and_for_no_other() {
    let config = || json!({"tool_name": "pay", "tool_params": {"amount": "{{ total }}"}, "approve": ["pay"]});
    let script = Script::new().tool("pay", echo).state(json!({"total": 10}), json!({}));
    let report = script.run(config()).await;
    let waiting = waiting(&report);
    keep(&script, waiting);
    script.journal.put("hdr", &serde_json::from_str(&waiting.header).expect("JSON"));
    decide(&script, &waiting.asks[0], &said(Action::Accept, None, None));
    let script = script.state(json!({"total": 10_000}), json!({}));
    let report = script.run(config()).await;
    assert_eq!(code(&report), ("permanent", "journal_mismatch"));
    assert!(failure(&report).message.contains("asked about"), "{}", failure(&report).message);
    assert!(called(&script).is_empty());
    let script = script.state(json!({"total": 10}), json!({}));
    assert_eq!(output(&script.run(config()).await), json!({"amount": 10}));
}

#[test]
fn changed_arguments_are_held_to_a_schema_that_refers_to_itself() {
    let tree = json!({
        "type": "object",
        "properties": {"top": {"$ref": "#/$defs/Node"}},
        "required": ["top"],
        "$defs": {"Node": {"type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}, "all": {"$ref": "#"}}}},
    });
    let ask = Ask { schema: edited_schema(&tree), ..crate::domain::wait::tests::ask() };
    let fits = |arguments: Value| crate::modes::schema::fits(&ask, &json!({ "arguments": arguments }));
    assert_eq!(fits(json!({"top": {"n": 1, "next": {"n": 2, "all": {"top": {}}}}})), Ok(()));
    assert!(
        fits(json!({"top": {"n": 1, "next": {"n": "two"}}})).is_err_and(|why| why.contains("/arguments/top/next/n"))
    );
    assert!(fits(json!({"top": {"all": {}}})).is_err(), "a reference to the whole means the tool's schema");
    assert!(crate::modes::schema::fits(&ask, &json!({"other": 1})).is_err());
    let broken = Ask { schema: edited_schema(&json!({"$ref": "#/$defs/None"})), ..ask };
    assert_eq!(crate::modes::schema::fits(&broken, &json!({"arguments": {"any": 1}})), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_rule_for_a_tool_whose_server_is_away_is_no_mistake_of_whoever_wrote_it() {
    let unreachable = || Failure::retriable("mcp_unreachable", "connection refused");
    let script = || {
        Script::new().tool("pay", echo).tool("look", echo).model([
            wants(&[("pay", json!({}))]),
            says("fine"),
            says("fine"),
        ])
    };
    for rule in ["pay", "srv/pay"] {
        let back = script().away("pay", unreachable(), 2);
        let report = back.run(agent(json!([rule]))).await;
        assert_eq!(waiting(&report).asks[0].tool.as_deref(), Some("srv/pay"), "it came back, and is asked about");
        let gone = script().away("pay", unreachable(), usize::MAX);
        let report = gone.run(agent(json!([rule]))).await;
        assert_eq!((code(&report), failure(&report).attempts), (("retriable", "mcp_unreachable"), 3));
        assert!(gone.requests.borrow().is_empty(), "nothing was spent");
    }
    // Where the server that is away cannot have it, the name is wrong.
    let report = script().away("pay", unreachable(), usize::MAX).run(agent(json!(["mail/pay"]))).await;
    assert_eq!(code(&report), ("configuration", "unknown_tool"));
    // The same in tool mode.
    let node = json!({"tool_name": "look", "approve": ["pay"]});
    assert_eq!(code(&script().away("pay", unreachable(), usize::MAX).run(node.clone()).await).1, "mcp_unreachable");
    assert_eq!(code(&script().run(node).await), ("configuration", "unknown_tool"));
}
