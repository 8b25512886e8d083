//! What the worker does to a graph's state, and what it leaves alone: layouts, expiry, states that are missing,
//! vanish or cannot be read.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Layout};
use crate::harness::eventually;
use crate::harness::gate::Gate;

/// A document as somebody else may write it: odd spacing, numbers that no float holds, escapes, members of their own.
const DOCUMENT: (&str, &str) = (
    r#"{ "graph_id":"g",
  "exact": [1e400, 123456789012345678901234567890, 0.10, -0.0, 1.0E+2, "\u00e9\/"],
  "graph" : {"nodes":{"other":{"config":{"k": 1e400}}},"edges":[],"mine":true}, "status":"running",
	"inputs":{"a":1,"huge":98765432109876543210},
  "node_states" : {"other": {"status":"completed","output":{"n":1e400,"m":[ ] },"x-tag":"kept"} "#,
    r#"},
  "submitted_at":"2026-01-02T03:04:05.000000001Z", "tail" : null }
"#,
);

fn sum(graph: &str, node: &str, expression: &str) -> Value {
    json!({"graph_id": graph, "node_id": node,
        "config": {"tool_name": "calculate", "tool_params": {"expression": expression}}})
}

#[tokio::test]
async fn what_is_not_the_workers_survives_in_a_document_byte_for_byte() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    let key = bed.key("state:g");
    bed.ask::<()>(&["SET", &key, &format!("{}{}", DOCUMENT.0, DOCUMENT.1), "EX", "86400"]).await;

    assert_eq!(bed.run(&sum("g", "n", "{{ a }} + 1")).await.output(), &json!(2));
    let once: String = bed.ask(&["GET", &key]).await;
    let added = once.strip_prefix(DOCUMENT.0).and_then(|rest| rest.strip_suffix(DOCUMENT.1));
    let added = added.unwrap_or_else(|| panic!("other bytes changed: {once}"));
    let state = added.trim_start_matches(',').strip_prefix(r#""n":"#).unwrap_or_else(|| panic!("{added}"));
    let state: Value = serde_json::from_str(state).expect("a node state");
    assert_eq!((&state["output"], &state["status"]), (&json!(2), &json!("completed")));

    // The second run replaces the first one's state and nothing else.
    assert_eq!(bed.run(&sum("g", "n", "{{ huge }} * 0 + 3")).await.output(), &json!(3));
    let twice: String = bed.ask(&["GET", &key]).await;
    let replaced = twice.strip_prefix(DOCUMENT.0).and_then(|rest| rest.strip_suffix(DOCUMENT.1));
    let replaced = replaced.unwrap_or_else(|| panic!("other bytes changed: {twice}"));
    assert_eq!(replaced.matches(r#""n":"#).count(), 1);
    assert_eq!(bed.node_state("g", "n").await.expect("a state")["output"], 3);
}

#[tokio::test]
async fn fields_of_a_hash_that_are_not_the_nodes_own_are_not_touched() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    let key = bed.key("state:g");
    let fields = [
        ("graph", r#"{ "nodes" : {}, "k": 1e400 }"#),
        ("inputs", r#"{"a": 1 , "b":1e400}"#),
        ("status", "running"),
        ("meta", "not even JSON"),
        ("node:other", r#"{ "status":"completed" }"#),
        ("of somebody", "\u{1}\u{7f}"),
    ];
    for (field, value) in fields {
        bed.ask::<()>(&["HSET", &key, field, value]).await;
    }
    assert_eq!(bed.run(&sum("g", "n", "1 + 1")).await.output(), &json!(2));
    let mut after: std::collections::HashMap<String, String> = bed.ask(&["HGETALL", &key]).await;
    assert!(after.remove("node:n").is_some_and(|state| state.contains("completed")));
    assert_eq!(after.len(), fields.len());
    for (field, value) in fields {
        assert_eq!(after[field], value, "{field}");
    }
}

#[tokio::test]
async fn an_expiry_is_prolonged_and_never_shortened_and_a_persistent_state_stays() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").set("state.ttl", "1h").start().ready().await;
    for layout in Layout::BOTH {
        for (name, before, expected) in [("short", 60, 3500..=3600), ("long", 7200, 7100..=7200), ("none", 0, -1..=-1)]
        {
            let graph = format!("{name} {layout:?}");
            let key = bed.key(&format!("state:{graph}"));
            bed.put_state(layout, &graph, &json!({"inputs": {}})).await;
            match before {
                0 => bed.ask::<()>(&["PERSIST", &key]).await,
                seconds => bed.ask::<()>(&["EXPIRE", &key, &seconds.to_string()]).await,
            }
            bed.run(&sum(&graph, "n", "1")).await;
            assert!(bed.node_state(&graph, "n").await.is_some());
            let after: i64 = bed.ask(&["TTL", &key]).await;
            assert!(expected.contains(&after), "{graph}: {after} s are left");
        }
    }
}

#[tokio::test]
async fn a_state_is_created_only_for_an_item_that_brings_config_and_inputs() {
    for layout in ["hash", "string"] {
        let bed = Bed::new().await;
        let _worker = bed.worker("w1").set("state.layout", layout).set("state.ttl", "1h").start().ready().await;
        let mut item = sum("g", "n", "{{ a }} + 0");
        let event = bed.run(&item).await;
        assert_eq!(event.failure(), ("validation", "state_missing"), "config alone");
        assert_eq!(bed.ask::<usize>(&["EXISTS", &bed.key("state:g")]).await, 0);

        item["inputs"] = json!({"a": 5, "big": 1});
        assert_eq!(bed.run(&item).await.output(), &json!(5));
        let key = bed.key("state:g");
        let kind: String = bed.ask(&["TYPE", &key]).await;
        assert_eq!(kind, layout);
        let ttl: i64 = bed.ask(&["TTL", &key]).await;
        assert!((3500..=3600).contains(&ttl), "{ttl}");
        assert_eq!(bed.node_state("g", "n").await.expect("a state")["output"], 5);
        let (inputs, graph) = if layout == "hash" {
            let fields: (String, String) = bed.ask(&["HMGET", &key, "inputs", "graph"]).await;
            let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
            (parse(&fields.0), parse(&fields.1))
        } else {
            let document: String = bed.ask(&["GET", &key]).await;
            let document: Value = serde_json::from_str(&document).expect("JSON");
            assert_eq!(document["graph_id"], "g");
            (document["inputs"].clone(), document["graph"].clone())
        };
        assert_eq!(inputs, item["inputs"]);
        assert_eq!(graph["nodes"]["n"]["config"], item["config"]);

        // The next node of the graph finds it and needs no inputs of its own.
        assert_eq!(bed.run(&sum("g", "m", "{{ a }} + {{ n }}")).await.output(), &json!(10));
    }
}

#[tokio::test]
async fn a_state_that_vanished_while_its_node_ran_is_not_made_anew() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let _worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    for layout in Layout::BOTH {
        let graph = format!("{layout:?}");
        bed.put_state(layout, &graph, &json!({"inputs": {}})).await;
        let before = bed.count().await;
        bed.submit(&json!({"graph_id": graph, "node_id": "n", "config": gate.node(&graph)})).await;
        gate.arrived(&graph, 1).await;
        bed.ask::<()>(&["DEL", &bed.key(&format!("state:{graph}"))]).await;
        gate.open(&graph);
        let events = bed.ended(before + 1).await;
        let event = events.iter().find(|event| event["graph_id"] == graph.as_str()).expect("the event goes out");
        assert_eq!(event.output()["status"], 200);
        assert_eq!(bed.ask::<usize>(&["EXISTS", &bed.key(&format!("state:{graph}"))]).await, 0);
    }
}

#[tokio::test]
async fn a_state_that_cannot_be_read_fails_its_node_and_holds_up_nothing() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").start().ready().await;
    let (list, text, cut) = (bed.key("state:list"), bed.key("state:text"), bed.key("state:cut"));
    bed.ask::<()>(&["RPUSH", &list, "x"]).await;
    bed.ask::<()>(&["SET", &text, "no JSON at all"]).await;
    bed.ask::<()>(&["SET", &cut, r#"{"inputs":{"a":1},"node_states":{"#]).await;
    let state = bed.key("state:field");
    bed.ask::<()>(&["HSET", &state, "inputs", "{\"a\":"]).await;
    for (graph, code) in
        [("list", "state_wrong_type"), ("text", "state_corrupt"), ("cut", "state_corrupt"), ("field", "state_corrupt")]
    {
        let event = bed.run(&sum(graph, "n", "{{ a }}")).await;
        assert_eq!(event.failure(), ("validation", code), "{graph}");
        assert!(event.error().contains(&bed.key(&format!("state:{graph}"))), "{}", event.error());
    }
    assert_eq!(bed.ask::<String>(&["GET", &text]).await, "no JSON at all");
    assert_eq!(bed.ask::<usize>(&["LLEN", &list]).await, 1);
    assert!(bed.dead_letters().await.is_empty());
    assert_eq!(worker.get("/ready").await.status, 200);
    bed.put_state(Layout::Hash, "good", &json!({"inputs": {"a": 1}})).await;
    assert_eq!(bed.run(&sum("good", "n", "{{ a }} + 0")).await.output(), &json!(1));
}

#[tokio::test]
async fn a_state_that_becomes_unusable_while_its_node_runs_does_not_hold_up_its_event() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let _worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    for (graph, spoil) in [("a", vec!["RPUSH"]), ("b", vec!["SET"])] {
        bed.put_state(Layout::Document, graph, &json!({"inputs": {}})).await;
        let before = bed.count().await;
        bed.submit(&json!({"graph_id": graph, "node_id": "n", "config": gate.node(graph)})).await;
        gate.arrived(graph, 1).await;
        let key = bed.key(&format!("state:{graph}"));
        bed.ask::<()>(&["DEL", &key]).await;
        bed.ask::<()>(&[spoil[0], &key, "spoiled"]).await;
        gate.open(graph);
        let events = bed.ended(before + 1).await;
        assert!(events.iter().any(|event| event["graph_id"] == graph), "the event goes out");
    }
    assert_eq!(bed.ask::<String>(&["GET", &bed.key("state:b")]).await, "spoiled", "what is not understood stays");
}

#[tokio::test]
async fn a_result_that_one_graph_cannot_take_waits_and_the_others_go_on() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").start().ready().await;
    let done = bed.key("done:bad");
    bed.ask::<()>(&["RPUSH", &done, "not a hash"]).await;
    let mut item = sum("bad", "n", "1");
    item["inputs"] = json!({});
    bed.submit(&item).await;
    bed.pending_is(1).await;
    for at in 0..20 {
        let mut other = sum("good", &format!("n{at}"), "1");
        other["inputs"] = json!({});
        bed.submit(&other).await;
    }
    eventually("the other graph's nodes end", async || (bed.count().await == 20).then_some(())).await;
    worker.said("cannot be written yet").await;
    bed.ask::<()>(&["DEL", &done]).await;
    let events = bed.ended(21).await;
    assert!(events.iter().any(|event| event["graph_id"] == "bad"), "once the key is free the result is written");
}
