//! Limits that protect a fleet: what real workers ask of a model together, who waits where, and how a provider that
//! fails is left alone.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Event};
use crate::harness::eventually;
use crate::harness::model::Model;
use crate::harness::worker::Spec;

const PLAIN: &str = "rules:\n  - reply: {text: fine, usage: {input_tokens: 90, output_tokens: 10}}\n";

fn item(node: &str, prompt: &str) -> Value {
    json!({"graph_id": "g", "node_id": node, "config": {"llm_config": {"prompt": prompt}}, "inputs": {}})
}

fn items(count: usize) -> impl Iterator<Item = Value> {
    (0..count).map(|at| item(&format!("n{at}"), &format!("number {at}")))
}

/// A worker whose provider has these members.
fn worker(bed: &Bed, model: &Model, id: &str, members: &str) -> Spec {
    bed.worker_with_model(id, model).file(&format!("[llm.providers.anthropic]\n{members}"))
}

/// When requests came to the model, from the first on.
fn arrivals(model: &Model) -> Vec<Duration> {
    let arrivals = model.calls().arrivals;
    arrivals.iter().map(|at| Duration::from_millis(at.saturating_sub(arrivals[0]))).collect()
}

fn all_fine(events: &[Event]) {
    assert!(events.iter().all(|event| event.output()["content"] == "fine" && event["metadata"]["attempt"] == 1));
}

#[tokio::test]
async fn workers_that_share_a_limit_stay_within_it_together() {
    const ITEMS: usize = 20;
    let (bed, model) = (Bed::new().await, Model::start(PLAIN));
    let spec = |id: &str| {
        worker(&bed, &model, id, "requests_per_minute = 240\nburst = \"1s\"")
            .set("pool.size", "6")
            .set("retry.park_after", "1s")
    };
    bed.submit_all(items(ITEMS)).await;
    let (one, two) = (spec("w1").start(), spec("w2").start());
    let (one, two) = (one.ready().await, two.ready().await);
    let events = bed.ended(ITEMS).await;
    all_fine(&events);
    let of = |worker: &str| events.iter().filter(|event| event.worker() == worker).count();
    assert!(of("w1") > 0 && of("w2") > 0, "both had a part");
    let at = arrivals(&model);
    assert_eq!(at.len(), ITEMS, "nobody asks twice");
    // In any time no more than comes together in it and in a second, at four a second; what is due at several moments
    // may arrive in one on a busy machine.
    let slack = Duration::from_secs(1);
    for (first, from) in at.iter().enumerate() {
        for (last, until) in at.iter().enumerate().skip(first) {
            let share = (*until - *from + slack).as_secs_f64() * 4.0 + 4.0;
            assert!((last - first + 1) as f64 <= share, "{} within {:?}: {at:?}", last - first + 1, *until - *from);
        }
    }
    let mut waited = 0.0;
    for worker in [&one, &two] {
        waited += worker.metric("executor_llm_limit_wait_seconds_count", &["anthropic"]).await;
    }
    assert!((waited - ITEMS as f64).abs() < f64::EPSILON, "{waited}");
}

#[tokio::test]
async fn tokens_are_corrected_by_what_was_used() {
    let (bed, model) = (Bed::new().await, Model::start(PLAIN));
    // Every call is charged for the 16,000 tokens that it may write; without correction the second would wait 40 s.
    let members = "tokens_per_minute = 20000\nconcurrency = 1";
    let _workers = [
        worker(&bed, &model, "w1", members).start().ready().await,
        worker(&bed, &model, "w2", members).start().ready().await,
    ];
    for at in 0..6 {
        let event = bed.run(&item(&format!("n{at}"), "hello")).await;
        assert_eq!(event.output()["content"], "fine");
    }
    let used: Option<u64> = bed.ask(&["HGET", &bed.key("limit:anthropic:claude-sonnet-5-5"), "tokens"]).await;
    let now: (u64, u64) = bed.ask(&["TIME"]).await;
    // 600 tokens come together in 1.8 s.
    let missing = used.unwrap_or_default().saturating_sub(now.0 * 1_000_000 + now.1);
    assert!(missing <= 1_800_000, "{missing}");
}

#[tokio::test]
async fn a_wait_that_the_provider_asks_for_stops_the_other_workers_too() {
    let script = "rules:\n  - match: {prompt: limited}\n    reply: {text: fine, fail_first: {times: 1, status: 429, retry_after: 2s}}\n  - reply: {text: fine}\n";
    let (bed, model) = (Bed::new().await, Model::start(script));
    let elsewhere = format!("{}.second", bed.stream);
    let members = "rate_headers = \"always\"";
    let _first = worker(&bed, &model, "w1", members).start().ready().await;
    let second = worker(&bed, &model, "w2", members).set("work.streams", &elsewhere).start().ready().await;
    bed.submit(&item("a", "limited")).await;
    eventually("the provider refuses", async || (model.calls().errors == 1).then_some(())).await;
    let key = bed.key("limit:anthropic:claude-sonnet-5-5");
    eventually("it is told", async || bed.ask::<bool>(&["EXISTS", &key]).await.then_some(())).await;
    bed.ask::<String>(&["XADD", &elsewhere, "*", "data", &item("b", "something else").to_string()]).await;
    let events = bed.ended(2).await;
    all_fine(&events);
    let at = arrivals(&model);
    assert_eq!(at.len(), 3);
    assert!(at[1] >= Duration::from_millis(1_950), "the other worker waited as well: {at:?}");
    assert!(second.metric("executor_llm_limit_wait_seconds_sum", &[]).await > 0.5);
}

#[tokio::test]
async fn calls_in_line_for_a_slot_see_that_the_provider_has_closed() {
    let script = "
rules:
  - match: {prompt: limited}
    reply: {delay: 400ms, error: {status: 429, retry_after: 2s, message: enough}}
  - reply: {text: fine}
";
    let (bed, model) = (Bed::new().await, Model::start(script));
    let _worker = worker(&bed, &model, "w1", "rate_headers = \"always\"\nconcurrency = 1").start().ready().await;
    let mut limited = item("a", "limited");
    limited["config"]["retry"] = json!({"max_attempts": 1});
    limited["config"]["timeout"] = json!("1s");
    bed.submit(&limited).await;
    eventually("the slot is taken", async || (model.calls().arrivals.len() == 1).then_some(())).await;
    bed.submit_all(items(3)).await;
    bed.ended(4).await;
    let at = arrivals(&model);
    assert!(at[1] >= Duration::from_millis(2_300), "who waited for the slot waits for the provider as well: {at:?}");
}

#[tokio::test]
async fn headers_that_say_that_nothing_is_left_stop_everybody_until_there_is() {
    let script = r#"
rules:
  - match: {prompt: the last one}
    reply: {text: fine, headers: {x-ratelimit-remaining-requests: "0", x-ratelimit-reset-requests: "3s"}}
  - reply: {text: fine}
"#;
    let (bed, model) = (Bed::new().await, Model::start(script));
    let _worker = worker(&bed, &model, "w1", "requests_per_minute = 60000").start().ready().await;
    bed.run(&item("a", "the last one")).await;
    bed.run(&item("b", "another")).await;
    bed.run(&item("c", "and another")).await;
    let at = arrivals(&model);
    assert!(at[1] >= Duration::from_millis(2_950), "{at:?}");
    assert!(at[2] - at[1] < Duration::from_millis(2_900), "one word stops once: {at:?}");
}

#[tokio::test]
async fn a_long_wait_for_the_limit_frees_the_only_slot() {
    let (bed, model) = (Bed::new().await, Model::start(PLAIN));
    let members = "requests_per_minute = 20\nburst = \"0s\"";
    let worker = worker(&bed, &model, "w1", members)
        .set("pool.size", "1")
        .set("retry.park_after", "500ms")
        .start()
        .ready()
        .await;
    bed.run(&item("first", "one")).await;
    bed.submit(&item("second", "two")).await;
    bed.parked_is(1).await;
    let other = json!({"tool_name": "calculate", "tool_params": {"expression": "1 + 1"}});
    bed.submit(&json!({"graph_id": "g", "node_id": "tool", "config": other, "inputs": {}})).await;
    let events = bed.ended(2).await;
    assert!(events.iter().any(|event| event["node_id"] == "tool"), "the slot was free");
    assert_eq!(model.calls().requests, 1);
    let events = bed.ended(3).await;
    let second = events.iter().find(|event| event["node_id"] == "second").expect("it came back");
    assert_eq!((second.output()["content"].as_str(), &second["metadata"]["attempt"]), (Some("fine"), &json!(1)));
    let at = arrivals(&model);
    assert!(at[1] >= Duration::from_millis(2_500), "{at:?}");
    assert!(worker.metric("executor_llm_deferred_total", &["cause=\"limit\""]).await >= 1.0);
}

#[tokio::test]
async fn a_large_call_is_not_passed_by_small_ones_while_its_node_waits_outside_of_a_slot() {
    const SMALL: usize = 24;
    let script = "
rules:
  - match: {prompt: everything}
    reply: {text: fine, usage: {input_tokens: 0, output_tokens: 120000}}
  - match: {prompt: much}
    reply: {text: fine, usage: {input_tokens: 10, output_tokens: 10000}}
  - reply: {text: fine, usage: {input_tokens: 20, output_tokens: 480}}
";
    let (bed, model) = (Bed::new().await, Model::start(script));
    // Two thousand tokens a second. A small call is never away from its turn for as long as it would give up its slot.
    let worker = worker(&bed, &model, "w1", "tokens_per_minute = 120000")
        .set("pool.size", "4")
        .set("retry.park_after", "1500ms")
        .start()
        .ready()
        .await;
    bed.run(&item("first", "everything that was saved up")).await;
    let sized = |node: &str, prompt: &str, tokens: u32| {
        let mut item = item(node, prompt);
        item["config"]["llm_config"]["max_tokens"] = json!(tokens);
        item
    };
    bed.submit(&sized("large", "much", 10_000)).await;
    bed.parked_is(1).await;
    bed.submit_all((0..SMALL).map(|at| sized(&format!("small-{at}"), "little", 480))).await;
    let events = bed.ended(SMALL + 2).await;
    all_fine(&events);
    let place = events.iter().position(|event| event["node_id"] == "large").expect("it ended");
    assert!(place < SMALL / 2, "{place} of {SMALL} before it");
    assert!(worker.metric("executor_llm_deferred_total", &["cause=\"limit\""]).await >= 1.0);
}

#[tokio::test]
async fn who_can_ask_another_provider_does_not_wait_for_the_limit_of_the_first() {
    let (bed, first, second) = (Bed::new().await, Model::start(PLAIN), Model::start(PLAIN));
    let provider = |name: &str, model: &Model, members: &str| {
        format!(
            "[llm.providers.{name}]\nkind = \"anthropic\"\napi_key = \"k\"\nbase_url = \"{}\"\n{members}\n",
            model.base_url()
        )
    };
    let file = format!(
        "[llm]\ndefault = \"first\"\nfallback = [\"second\"]\n{}{}",
        provider("first", &first, "requests_per_minute = 1\nburst = \"0s\""),
        provider("second", &second, "")
    );
    let worker = bed.worker("w1").file(&file).start().ready().await;
    for at in 0..3 {
        let event = bed.run(&item(&format!("n{at}"), "hello")).await;
        assert_eq!(event.output()["provider"], if at == 0 { "first" } else { "second" });
        assert!(event["metadata"]["duration_ms"].as_u64() < Some(30_000), "{}", event.body);
    }
    assert_eq!((first.calls().requests, second.calls().requests), (1, 2));
    assert!((worker.metric("executor_items_parked_total", &[]).await).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_limit_that_cannot_be_asked_fails_no_node_and_is_told_once() {
    let (bed, model) = (Bed::new().await, Model::start(PLAIN));
    bed.ask::<()>(&["RPUSH", &bed.key("limit:anthropic:claude-sonnet-5-5"), "no limit"]).await;
    let members = "requests_per_minute = 120\nburst = \"1s\"";
    let worker = worker(&bed, &model, "w1", members).start().ready().await;
    bed.submit_all(items(5)).await;
    all_fine(&bed.ended(5).await);
    let at = arrivals(&model);
    assert!(at[4] >= Duration::from_secs(1), "the worker keeps the limit by itself: {at:?}");
    assert!(worker.metric("executor_llm_limit_alone_total", &["anthropic"]).await >= 5.0);
    let told = worker.log().matches("the shared limits do not answer").count();
    assert_eq!(told, 1, "{}", worker.log());
}

#[tokio::test]
async fn a_provider_that_keeps_failing_is_left_alone_until_one_probe_is_answered() {
    const ITEMS: usize = 10;
    // They all say the same, so their failures are counted together.
    let script = "rules:\n  - reply: {text: fine, fail_first: {times: 7, status: 500}}\n";
    let (bed, model) = (Bed::new().await, Model::start(script));
    let members = "concurrency = 1\nbreaker_failures = 5\nbreaker_pause = \"500ms\"\nbreaker_max_pause = \"1s\"";
    let worker = worker(&bed, &model, "w1", members)
        .set("retry.max_attempts", "20")
        .set("retry.park_after", "30s")
        .start()
        .ready()
        .await;
    bed.submit_all((0..ITEMS).map(|at| item(&format!("n{at}"), "down for a while"))).await;
    eventually("it is left alone", async || {
        (worker.metric("executor_llm_circuits_open", &["anthropic"]).await > 0.0).then_some(())
    })
    .await;
    let events = bed.ended(ITEMS).await;
    assert!(events.iter().all(|event| event.output()["content"] == "fine"));
    let at = arrivals(&model);
    assert_eq!(at.len(), ITEMS + 7);
    let pauses: Vec<Duration> = (4..7).map(|call| at[call + 1] - at[call]).collect();
    for (pause, least) in pauses.iter().zip([500, 1000, 1000]) {
        assert!(*pause >= Duration::from_millis(least - 20), "one probe, then a pause: {pauses:?}");
    }
    assert!((worker.metric("executor_llm_circuits_open", &["anthropic"]).await).abs() < f64::EPSILON);
    assert!(worker.metric("executor_llm_deferred_total", &["cause=\"circuit\""]).await >= 5.0);
}

#[tokio::test]
async fn nodes_whose_provider_stays_away_end_with_their_time_and_say_why() {
    let (bed, model) = (Bed::new().await, Model::start("rules:\n  - reply: {error: {status: 500}}\n"));
    let members = "concurrency = 1\nbreaker_failures = 2\nbreaker_pause = \"1s\"\nbreaker_max_pause = \"1s\"";
    let _worker = worker(&bed, &model, "w1", members).start().ready().await;
    let hurried = |node: &str| {
        let mut item = item(node, "down");
        item["config"]["timeout"] = json!("3s");
        item
    };
    bed.submit_all(["a", "b", "c", "d"].map(hurried)).await;
    let events = bed.ended(4).await;
    let failures: Vec<(&str, &str)> = events.iter().map(Event::failure).collect();
    assert!(failures.contains(&("retriable", "circuit_open")), "{failures:?}");
    let late = events.iter().find(|event| event.failure().1 == "circuit_open").expect("one of them");
    assert!(late["data"]["error_details"]["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), "{}", late.body);
    // Two failures, and a probe a second.
    assert!(model.calls().requests <= 6, "{:?}", arrivals(&model));
}

#[tokio::test]
async fn a_process_has_no_more_calls_under_way_than_its_concurrency() {
    let script = "rules:\n  - reply: {text: fine, delay: 300ms}\n";
    let (bed, model) = (Bed::new().await, Model::start(script));
    let _worker = worker(&bed, &model, "w1", "concurrency = 2").start().ready().await;
    bed.submit_all(items(6)).await;
    bed.ended(6).await;
    let at = arrivals(&model);
    for (call, later) in at.iter().zip(&at[2..]) {
        assert!(*later - *call >= Duration::from_millis(290), "two at once: {at:?}");
    }
}
