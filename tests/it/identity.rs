//! What counts as one execution: an identity runs once and has one terminal event, however often it is sent; a loop
//! runs a node as often as it has identities.

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::eventually;
use crate::harness::gate::Gate;

fn item(run: Option<&str>, config: &Value) -> Value {
    let mut item = json!({"graph_id": "g", "node_id": "n", "config": config, "inputs": {}});
    if let Some(run) = run {
        item["run_id"] = json!(run);
    }
    item
}

#[tokio::test]
async fn a_loop_runs_a_node_once_for_each_identity() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    gate.open_all();
    let _worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    for pass in ["pass-1", "pass-2", "pass-3"] {
        let event = bed.run(&item(Some(pass), &gate.node("body"))).await;
        assert_eq!((&event["run_id"], event.output()["status"].as_u64()), (&json!(pass), Some(200)));
        assert_eq!(bed.node_state("g", "n").await.expect("a state")["run_id"], pass);
    }
    assert_eq!(gate.arrivals("body"), 3);
    let events = bed.events().await;
    assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let ids: std::collections::BTreeSet<String> = events.iter().map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn without_a_run_id_each_entry_is_an_execution_of_its_own() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    gate.open_all();
    let _worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    bed.submit_all((0..3).map(|_| item(None, &gate.node("body")))).await;
    let events = bed.ended(3).await;
    assert_eq!(gate.arrivals("body"), 3);
    for event in events {
        assert_eq!(event["run_id"], event["metadata"]["work_id"]);
    }
}

#[tokio::test]
async fn one_identity_sent_twenty_times_at_once_runs_once() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let spec = |id: &str| bed.worker(id).set("tools.http_request.allow", gate.host());
    let workers = [spec("w1").start().ready().await, spec("w2").start().ready().await];
    bed.submit_all((0..20).map(|_| item(Some("once"), &gate.node("body")))).await;
    // The others are dropped while the first runs, not only afterwards.
    bed.pending_is(1).await;
    eventually("only the one that runs is left", async || {
        (bed.ask::<usize>(&["XLEN", &bed.stream]).await == 1).then_some(())
    })
    .await;
    gate.arrived("body", 1).await;
    gate.open("body");
    bed.ended(1).await;
    assert_eq!(gate.arrivals("body"), 1);
    let mut dropped = 0.0;
    for worker in &workers {
        dropped += worker.metric("executor_items_total", &["duplicate"]).await;
    }
    assert_eq!(dropped, 19.0);
    assert!(bed.dead_letters().await.is_empty());
}

#[tokio::test]
async fn an_identity_that_is_done_is_dropped_whenever_it_comes_again() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    gate.open_all();
    let spec = |id: &str| bed.worker(id).set("tools.http_request.allow", gate.host());
    let worker = spec("w1").start().ready().await;
    let first = bed.run(&item(Some("once"), &gate.node("body"))).await;
    // Another process, another configuration, even a failing one: the identity is done.
    drop(worker);
    let worker = spec("w2").start().ready().await;
    bed.submit(&item(Some("once"), &gate.node("another"))).await;
    bed.submit(&item(Some("once"), &json!({}))).await;
    let envelope = json!({"id": "once", "type": "node.work", "execution_id": "g",
        "data": {"node_id": "n", "config": gate.node("another"), "state": {}}});
    bed.submit(&envelope).await;
    eventually("three duplicates are dropped", async || {
        (worker.metric("executor_items_total", &["duplicate"]).await == 3.0).then_some(())
    })
    .await;
    let events = bed.ended(1).await;
    assert_eq!(events[0]["id"], first["id"]);
    assert_eq!((gate.arrivals("body"), gate.arrivals("another")), (1, 0));
    // The same name for another node or another graph is another identity.
    let mut other = item(Some("once"), &gate.node("body"));
    other["node_id"] = json!("m");
    bed.run(&other).await;
    other["graph_id"] = json!("h");
    bed.run(&other).await;
    assert_eq!(gate.arrivals("body"), 3);
}
