//! Delayed retries: a node that has to wait for long gives its slot away, and comes back once, to whoever is there.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Layout};
use crate::harness::eventually;
use crate::harness::model::Model;
use crate::harness::worker::Spec;

const SCRIPT: &str = r#"
rules:
  - match: {prompt: limited for long}
    reply: {text: fine, fail_first: {times: 1, status: 429, retry_after: 6s}}
  - match: {prompt: limited for a while}
    reply: {text: fine, fail_first: {times: 1, status: 429, retry_after: 1500ms}}
  - match: {prompt: limited later}
    replies:
      - tool_calls: [{name: calculate, input: {expression: 1 + 1}}]
      - {text: fine, fail_first: {times: 1, status: 429, retry_after: 1h}}
  - match: {prompt: limited for ever}
    reply: {error: {status: 429, retry_after: 5s}}
  - match: {prompt: always busy}
    reply: {error: {status: 529}}
"#;

fn item(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "run_id": format!("run-{node}"), "config": config, "inputs": {}})
}

fn asking(prompt: &str) -> Value {
    json!({"llm_config": {"prompt": prompt}})
}

fn spec(bed: &Bed, model: &Model, id: &str) -> Spec {
    bed.worker_with_model(id, model).set("retry.park_after", "1s")
}

#[tokio::test]
async fn a_long_wait_frees_the_only_slot_and_the_node_completes_afterwards() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let worker = spec(&bed, &model, "w1").set("pool.size", "1").start().ready().await;
    let limited = item("limited", asking("limited for long"));
    let entry = bed.submit(&limited).await;
    bed.parked_is(1).await;
    bed.settled().await;
    let state: i64 = bed.ask(&["PTTL", &bed.key("state:g")]).await;
    assert_eq!(state, -1, "the state does not expire while a node waits");
    // A copy of what waits is dropped; others run.
    bed.submit(&limited).await;
    bed.submit(&item("other", json!({"tool_name": "calculate", "tool_params": {"expression": "1 + 1"}}))).await;
    let events = bed.ended(1).await;
    assert_eq!(events[0]["node_id"], "other");
    bed.parked_is(1).await;
    assert_eq!(worker.metric("executor_items_parked_total", &[]).await, 1.0);
    assert_eq!(worker.metric("executor_items_in_flight", &[]).await, 0.0);
    eventually("the worker counts what waits", async || {
        (worker.metric("executor_items_parked_now", &[]).await == 1.0).then_some(())
    })
    .await;

    let events = bed.ended(2).await;
    let event = events.iter().find(|event| event["node_id"] == "limited").expect("it came back");
    assert_eq!(event.output()["content"], "fine");
    assert_eq!(event["metadata"]["attempt"], 1, "a wait that was asked for uses up no attempt");
    assert_eq!(event["metadata"]["work_id"], format!("{}/{entry}", bed.stream));
    assert_eq!(model.calls().requests, 2);
    bed.nothing_is_parked().await;
    let state: i64 = bed.ask(&["PTTL", &bed.key("state:g")]).await;
    assert!(state > 0, "the state expires again");
    eventually("the worker counts that nothing waits", async || {
        (worker.metric("executor_items_parked_now", &[]).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn crashes_are_remembered_across_a_wait_until_the_node_comes_further() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let _worker = spec(&bed, &model, "w1").set("work.max_crashes", "3").start().ready().await;
    let agent = json!({"task": "limited later", "tools": ["calculate"], "llm_config": {}});
    for (at, (node, config)) in [("stuck", asking("limited for long")), ("further", agent)].into_iter().enumerate() {
        let meta = format!(r#"{{"origin":"1-{at}","crashes":2}}"#);
        let data = item(node, config).to_string();
        bed.ask::<String>(&["XADD", &bed.stream, "*", "data", &data, "meta", &meta]).await;
    }
    bed.parked_is(2).await;
    let bodies = bed.key(&format!("parked-bodies:{}", bed.stream));
    for (field, crashes) in [("1-0:meta", 2), ("1-1:meta", 0)] {
        let meta: String = bed.ask(&["HGET", &bodies, field]).await;
        let meta: Value = serde_json::from_str(&meta).expect("JSON");
        assert_eq!(meta["crashes"], crashes, "{meta}");
    }
}

#[tokio::test]
async fn attempts_are_counted_across_waits() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let worker = spec(&bed, &model, "w1")
        .set("retry.park_after", "100ms")
        .set("retry.initial", "1500ms")
        .set("retry.max", "1500ms")
        .start()
        .ready()
        .await;
    let mut config = asking("always busy");
    config["retry"] = json!({"max_attempts": 5});
    let event = bed.run(&item("n", config)).await;
    assert_eq!(event.failure(), ("retriable", "overloaded"));
    assert_eq!((&event["data"]["error_details"]["attempts"], &event["metadata"]["attempt"]), (&json!(5), &json!(5)));
    assert_eq!(model.calls().requests, 5);
    // Four waits of up to 1.5 s, each drawn anew: that none is above 100 ms happens once in fifty thousand runs.
    assert!(worker.metric("executor_items_parked_total", &[]).await >= 1.0);
    bed.nothing_is_parked().await;
}

#[tokio::test]
async fn the_nodes_time_goes_on_while_it_waits() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let worker = spec(&bed, &model, "w1").start().ready().await;
    let mut config = asking("limited for ever");
    config["timeout"] = json!("8s");
    let event = bed.run(&item("n", config)).await;
    assert_eq!(event.failure(), ("retriable", "rate_limited"));
    assert_eq!(worker.metric("executor_items_parked_total", &[]).await, 1.0, "one wait of 5 s fits into 8 s");
    assert_eq!((&event["data"]["error_details"]["retry_after_ms"], model.calls().requests), (&json!(5000), 2));
    bed.nothing_is_parked().await;
}

#[tokio::test]
async fn what_a_worker_parked_comes_back_although_it_died_or_stopped() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let killed = spec(&bed, &model, "w1").start().ready().await;
    bed.submit(&item("a", asking("limited for a while, a"))).await;
    bed.parked_is(1).await;
    killed.kill();
    let stopped = spec(&bed, &model, "w2").start().ready().await;
    let events = bed.ended(1).await;
    assert_eq!((events[0].worker(), &events[0].output()["content"]), ("w2", &json!("fine")));
    bed.submit(&item("b", asking("limited for long, b"))).await;
    bed.parked_is(1).await;
    stopped.terminate();
    assert_eq!(stopped.ends().await.0, Some(0), "there is nothing to do about what waits");
    bed.parked_is(1).await;
    let _third = spec(&bed, &model, "w3").start().ready().await;
    let events = bed.ended(2).await;
    assert!(events.iter().any(|event| event.worker() == "w3"));
    bed.nothing_is_parked().await;
}

#[tokio::test]
async fn many_nodes_that_wait_come_back_once_each_to_many_workers() {
    const ITEMS: usize = 60;
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let mut workers = Vec::new();
    for id in ["w1", "w2", "w3"] {
        workers.push(spec(&bed, &model, id).start().ready().await);
    }
    let config = |at: usize| asking(&format!("limited for a while, number {at}"));
    bed.submit_all((0..ITEMS).map(|at| item(&format!("n{at}"), config(at)))).await;
    let events = bed.ended(ITEMS).await;
    assert!(events.iter().all(|event| event.output()["content"] == "fine" && event["metadata"]["attempt"] == 1));
    assert_eq!(model.calls().requests, 2 * ITEMS as u64, "nobody asked twice for the same");
    let mut parked = 0.0;
    for worker in &workers {
        parked += worker.metric("executor_items_parked_total", &[]).await;
    }
    assert!((parked - ITEMS as f64).abs() < f64::EPSILON, "{parked}");
    bed.nothing_is_parked().await;
    let done: Vec<String> = bed.ask(&["HKEYS", &bed.key("done:g")]).await;
    assert_eq!(done.len(), ITEMS + 1, "a record a run, and the count of events");
}

#[tokio::test]
async fn an_order_to_stop_ends_a_waiting_node_long_before_its_wait_is_over() {
    let script = "rules:\n  - reply: {error: {status: 429, retry_after: 600s}}\n";
    let (bed, model) = (Bed::new().await, Model::start(script));
    let _worker = spec(&bed, &model, "w1").start().ready().await;
    for node in ["one", "two", "three"] {
        bed.submit(&item(node, asking("whatever"))).await;
    }
    let mut other = item("other", asking("whatever"));
    other["graph_id"] = json!("h");
    bed.put_state(Layout::Hash, "h", &json!({"status": "running"})).await;
    bed.submit(&other).await;
    bed.parked_is(4).await;
    bed.ask::<()>(&["HSET", &bed.key("cancel:g"), "two", "{}"]).await;
    let event = bed.ended(1).await.remove(0);
    assert_eq!((&event["node_id"], event.failure()), (&json!("two"), ("cancelled", "cancelled")));
    bed.parked_is(3).await;
    // The graph's own status is an order too.
    bed.ask::<()>(&["HSET", &bed.key("state:h"), "status", "cancelled"]).await;
    let events = bed.ended(2).await;
    let event = events.iter().find(|event| event["graph_id"] == "h").expect("its end");
    assert_eq!(event.failure(), ("cancelled", "graph_cancelled"));
    assert_eq!(model.calls().requests, 4, "nobody asked the model again");
    bed.ask::<()>(&["HSET", &bed.key("cancel:g"), "*", "{}"]).await;
    bed.ended(4).await;
    bed.nothing_is_parked().await;
}

#[tokio::test]
async fn an_order_in_a_large_document_reaches_nodes_that_wait_whichever_stream_they_came_from() {
    let script = "rules:\n  - reply: {error: {status: 429, retry_after: 600s}}\n";
    let (bed, model) = (Bed::new().await, Model::start(script));
    let second = format!("{}.second", bed.stream);
    let streams = format!("{},{second}", bed.stream);
    let _worker = spec(&bed, &model, "w1").set("work.streams", streams).start().ready().await;
    let mut graphs = Vec::new();
    for stream in [&bed.stream, &second] {
        let graph = format!("of {stream}");
        // Read for its status every other time that it is looked for orders, unless it is forgotten in between.
        let padding = "x".repeat(100 * 1024);
        bed.put_state(Layout::Document, &graph, &json!({"status": "running", "padding": padding})).await;
        let mut item = item("n", asking("whatever"));
        item["graph_id"] = json!(graph);
        bed.ask::<String>(&["XADD", stream, "*", "data", &item.to_string()]).await;
        eventually("its node is parked", async || {
            let parked: usize = bed.ask(&["ZCARD", &bed.key(&format!("parked:{stream}"))]).await;
            (parked == 1).then_some(())
        })
        .await;
        graphs.push((graph, padding));
    }
    for (graph, padding) in &graphs {
        bed.put_state(Layout::Document, graph, &json!({"status": "cancelled", "padding": padding})).await;
    }
    let events = bed.ended(2).await;
    for (graph, _) in &graphs {
        let event = events.iter().find(|event| event["graph_id"] == graph.as_str()).expect("its end");
        assert_eq!(event.failure(), ("cancelled", "graph_cancelled"));
    }
}
