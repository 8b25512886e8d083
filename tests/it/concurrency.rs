//! Many nodes at once: none lost, none twice, never more than there is room for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Layout};
use crate::harness::eventually;
use crate::harness::gate::Gate;

#[tokio::test]
async fn fifty_nodes_of_one_graph_that_end_at_once_lose_nothing() {
    const NODES: usize = 50;
    for layout in Layout::BOTH {
        let (bed, gate) = (Bed::new().await, Gate::start().await);
        // Two processes, so that neither can put the writes of a document in order by itself.
        let spec = |id: &str| bed.worker(id).set("tools.http_request.allow", gate.host()).set("pool.size", "25");
        let _workers = [spec("w1").start().ready().await, spec("w2").start().ready().await];
        let big = json!({"padding": "x".repeat(4000)});
        bed.put_state(
            layout,
            "g",
            &json!({"inputs": {}, "node_states": {"before": {"status": "completed", "output": big}}}),
        )
        .await;
        let nodes =
            (0..NODES).map(|at| json!({"graph_id": "g", "node_id": format!("n{at}"), "config": gate.node("all")}));
        bed.submit_all(nodes).await;
        gate.arrived("all", NODES).await;
        gate.open("all");
        let events = bed.ended(NODES).await;
        for at in 0..NODES {
            let state = bed.node_state("g", &format!("n{at}")).await.expect("no result is lost");
            assert_eq!((&state["status"], &state["output"]["json"]["door"]), (&json!("completed"), &json!("all")));
        }
        assert_eq!(bed.node_state("g", "before").await.expect("it stays")["output"], big);
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=NODES as u64).collect::<Vec<_>>(), "{layout:?}");
        assert_eq!(gate.arrivals("all"), NODES);
    }
}

#[tokio::test]
async fn a_pool_that_fills_up_does_not_wait_for_room_for_its_connections() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").set("pool.size", "1000").start().ready().await;
    assert!(worker.room_for_files() >= 2000, "{}", worker.room_for_files());
}

#[tokio::test]
async fn two_workers_share_a_backlog_and_no_item_runs_twice() {
    const ITEMS: usize = 300;
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    gate.open_all();
    let item = |at: usize| {
        let config = gate.node(&format!("{at}"));
        json!({"graph_id": format!("g{}", at % 7), "node_id": format!("n{at}"), "config": config, "inputs": {}})
    };
    bed.submit_all((0..ITEMS).map(item)).await;
    let spec = |id: &str| bed.worker(id).set("tools.http_request.allow", gate.host()).set("pool.size", "4").start();
    let (one, two) = (spec("w1"), spec("w2"));
    let (_one, _two) = (one.ready().await, two.ready().await);
    let events = bed.ended(ITEMS).await;
    let runs: BTreeSet<String> = events.iter().map(|event| event["node_id"].to_string()).collect();
    assert_eq!(runs.len(), ITEMS);
    for at in 0..ITEMS {
        assert_eq!(gate.arrivals(&format!("{at}")), 1, "item {at}");
    }
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    events.iter().for_each(|event| *shares.entry(event.worker()).or_default() += 1);
    assert_eq!(shares.len(), 2, "both workers had a part: {shares:?}");
}

#[tokio::test]
async fn a_worker_holds_no_more_than_its_pool_and_leaves_the_rest_to_others() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let spec = |id: &str| bed.worker(id).set("tools.http_request.allow", gate.host()).set("pool.size", "3");
    let first = spec("w1").start().ready().await;
    let item =
        |at: usize| json!({"graph_id": "g", "node_id": format!("n{at}"), "config": gate.node("all"), "inputs": {}});
    bed.submit_all((0..8).map(item)).await;
    gate.arrived("all", 3).await;
    bed.pending_is(3).await;
    assert_eq!(first.metric("executor_items_in_flight", &[]).await, 3.0);
    let _second = spec("w2").start().ready().await;
    gate.arrived("all", 6).await;
    let pending = bed.pending_is(6).await;
    let owners: BTreeMap<String, usize> = pending.into_iter().fold(BTreeMap::new(), |mut owners, (_, owner, ..)| {
        *owners.entry(owner).or_default() += 1;
        owners
    });
    assert_eq!(owners.values().copied().collect::<Vec<_>>(), [3, 3], "{owners:?}");
    gate.open("all");
    bed.ended(8).await;
    assert_eq!(gate.arrivals("all"), 8);
}

#[tokio::test]
async fn several_streams_are_read_and_none_waits_for_another() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let second = format!("{}.second", bed.stream);
    let streams = format!("{},{second}", bed.stream);
    let _worker = bed
        .worker("w1")
        .set("work.streams", streams)
        .set("tools.http_request.allow", gate.host())
        .set("pool.size", "2")
        .start()
        .ready()
        .await;
    let item = |node: &str, config: Value| json!({"graph_id": "g", "node_id": node, "config": config, "inputs": {}});
    bed.submit(&item("first", gate.node("closed"))).await;
    gate.arrived("closed", 1).await;
    let text = item("second", gate.node("open")).to_string();
    gate.open("open");
    let entry: String = bed.ask(&["XADD", &second, "*", "data", &text]).await;
    eventually("the item of the second stream ends", async || (bed.count().await == 1).then_some(())).await;
    let events = bed.events().await;
    assert_eq!(events[0]["metadata"]["work_id"], format!("{second}/{entry}"));
    assert_eq!(bed.ask::<usize>(&["XLEN", &second]).await, 0);
    gate.open("closed");
    bed.ended(2).await;
}

#[tokio::test]
async fn a_low_soft_limit_of_open_files_does_not_bound_the_connections() {
    const NODES: usize = 100;
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let spec = bed.worker("w").set("tools.http_request.allow", gate.host()).set("pool.size", NODES.to_string());
    let _worker = spec.open_files(64).start().ready().await;
    let node = |at| json!({"graph_id": "g", "node_id": format!("n{at}"), "inputs": {}, "config": gate.node("all")});
    bed.submit_all((0..NODES).map(node)).await;
    gate.arrived("all", NODES).await;
    gate.open("all");
    assert!(bed.ended(NODES).await.iter().all(|event| event["type"] == "node.completed"));
}
