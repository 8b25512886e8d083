//! Processes and servers that die at any moment, again and again: every identity still ends once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Event};
use crate::harness::eventually;
use crate::harness::gate::Gate;
use crate::harness::worker::{Spec, Worker};

const GRAPHS: usize = 5;

fn item(at: usize, config: Value) -> Value {
    let graph = format!("g{}", at % GRAPHS);
    json!({"graph_id": graph, "node_id": format!("n{at}"), "run_id": format!("run-{at}"), "config": config, "inputs": {}})
}

/// Every identity has ended once, as completed, and every state says so.
async fn assert_each_once(bed: &Bed, events: &[Event]) {
    let mut seqs: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in events {
        assert_eq!(event["type"], "node.completed", "{}", event.body);
        seqs.entry(event["graph_id"].to_string()).or_default().push(event.seq);
        let (graph, node) = (event["graph_id"].as_str().expect("an id"), event["node_id"].as_str().expect("an id"));
        let state = bed.node_state(graph, node).await.expect("a state");
        assert_eq!((&state["run_id"], &state["output"]), (&event["run_id"], event.output()));
    }
    let mut runs: Vec<String> = events.iter().map(|event| event["run_id"].to_string()).collect();
    runs.sort_unstable();
    runs.dedup();
    assert_eq!(runs.len(), events.len(), "no identity ended twice");
    for (graph, seqs) in seqs {
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "{graph} counts its events without a gap");
    }
}

#[tokio::test]
async fn workers_that_are_killed_again_and_again_end_every_identity_once() {
    const ITEMS: usize = 100;
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    gate.open_all();
    let spec = |id: usize| -> Spec {
        bed.worker(&format!("w{id}"))
            .set("tools.http_request.allow", gate.host())
            .set("lease.duration", "1s")
            .set("lease.renew", "200ms")
            .set("pool.size", "8")
            .set("work.max_crashes", "100")
            // Every second state is a document, so that both ways of settling are in the middle of it.
            .set("state.layout", if id.is_multiple_of(2) { "string" } else { "hash" })
    };
    let mut workers: Vec<Worker> = vec![spec(0).start().ready().await, spec(1).start().ready().await];
    bed.submit_all((0..ITEMS).map(|at| item(at, gate.node("door")))).await;
    for round in 1..=6 {
        eventually("more items end", async || (bed.count().await >= round * 12).then_some(())).await;
        workers.remove(0).kill();
        workers.push(spec(round + 1).start());
    }
    let events = bed.ended(ITEMS).await;
    assert_each_once(&bed, &events).await;
    assert!(bed.dead_letters().await.is_empty());
}

#[tokio::test]
async fn a_redis_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    const ITEMS: usize = 90;
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let (mut bed, gate) = (Bed::with_own_redis(&durable).await, Gate::start().await);
    gate.open_all();
    let spec = |id: &str| bed.worker(id).set("tools.http_request.allow", gate.host()).set("pool.size", "4").start();
    let workers = [spec("w1").ready().await, spec("w2").ready().await];
    bed.submit_all((0..ITEMS).map(|at| item(at, gate.node(&format!("{at}"))))).await;
    for round in 1..=3 {
        eventually("more items end", async || (bed.count().await >= round * 15).then_some(())).await;
        bed.own_server().kill();
        for worker in &workers {
            worker.answers("/ready", 503).await;
        }
        bed.own_server().start_again();
        bed.reconnect().await;
    }
    let events = bed.ended(ITEMS).await;
    assert_each_once(&bed, &events).await;
    assert!(bed.dead_letters().await.is_empty());
    assert_eq!(bed.ask::<usize>(&["EXISTS", &bed.key(&format!("crashes:{}", bed.stream))]).await, 0);
}

#[tokio::test]
async fn after_redis_hung_for_longer_than_a_lease_nobody_takes_what_a_living_worker_has() {
    const LEASE: Duration = Duration::from_secs(3);
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let spec = |id: &str| {
        bed.worker(id)
            .set("tools.http_request.allow", gate.host())
            .set("redis.command_timeout", "300ms")
            .set("lease.duration", "3s")
            .start()
    };
    let holder = spec("w1").ready().await;
    for at in 0..4 {
        bed.submit(&item(at, gate.node("held"))).await;
    }
    gate.arrived("held", 4).await;
    let other = spec("w2").ready().await;
    // A frozen server would still read what its clients send meanwhile, so the holder must not send renewals.
    holder.freeze();
    let frozen = bed.freeze_redis().await;
    other.answers("/ready", 503).await;
    tokio::time::sleep(LEASE).await;
    drop(frozen);
    other.answers("/ready", 200).await;
    assert!(
        bed.pending_is(4).await.iter().all(|(_, _, idle, _)| *idle >= LEASE.as_millis() as u64),
        "every lease looks expired, and nobody took one"
    );
    holder.thaw();
    // More than one lease of renewals later nothing has changed hands.
    let (mut renewals, mut idle) = (0, 0);
    eventually("leases are renewed", async || {
        let now = bed.pending_is(4).await[0].2;
        renewals += usize::from(now < idle);
        idle = now;
        (renewals >= 15).then_some(())
    })
    .await;
    assert!(bed.pending_is(4).await.iter().all(|(_, _, _, deliveries)| *deliveries == 1), "nothing was taken over");
    gate.open_all();
    let events = bed.ended(4).await;
    assert_each_once(&bed, &events).await;
    assert_eq!(gate.arrivals("held"), 4);
}

#[tokio::test]
async fn a_redis_that_is_full_still_takes_results_and_new_work_waits_for_room() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    bed.submit(&item(0, gate.node("held"))).await;
    gate.arrived("held", 1).await;
    bed.submit(&item(1, gate.node("later"))).await;
    gate.arrived("later", 1).await;
    bed.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    gate.open("held");
    eventually("the result is written", async || (bed.count().await == 1).then_some(())).await;
    assert_eq!(bed.node_state("g0", "n0").await.expect("a state")["status"], "completed");
    // Work that comes now can be read but not begun; it must neither fail nor be lost.
    bed.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    bed.submit(&item(2, gate.node("held"))).await;
    bed.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    gate.open("later");
    eventually("the second result is written", async || (bed.count().await >= 2).then_some(())).await;
    bed.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let events = bed.ended(3).await;
    assert_each_once(&bed, &events).await;
    worker.answers("/ready", 200).await;
}
