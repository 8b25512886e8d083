//! How a worker stops: what runs finishes, what does not is handed back, nothing more is taken, and a later
//! second signal hands all of it back at once.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::eventually;
use crate::harness::gate::Gate;
use crate::harness::worker::{Spec, Worker};

fn with_gate(bed: &Bed, gate: &Gate, id: &str) -> Spec {
    bed.worker(id).set("tools.http_request.allow", gate.host())
}

fn item(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "config": config, "inputs": {}})
}

async fn registered(bed: &Bed, id: &str) -> bool {
    bed.ask::<usize>(&["EXISTS", &bed.key(&format!("workers:{id}"))]).await == 1
}

/// Waits until the worker has stopped to take work: the consumer reads no more.
async fn draining(worker: &Worker) {
    worker.said("no more work is taken").await;
    let body = worker.answers("/ready", 503).await.json();
    assert_eq!(body["reasons"], json!(["the worker is stopping"]));
    assert_eq!(worker.get("/live").await.status, 200, "a stopping worker is live");
}

#[tokio::test]
async fn a_stop_lets_running_nodes_finish_and_takes_no_more() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let worker = with_gate(&bed, &gate, "w1").set("shutdown.grace", "60s").start().ready().await;
    eventually("the worker is registered", async || registered(&bed, "w1").await.then_some(())).await;
    for node in ["a", "b", "c"] {
        bed.submit(&item(node, gate.node(node))).await;
        gate.arrived(node, 1).await;
    }
    worker.terminate();
    draining(&worker).await;
    // The last read is over once nothing waits for the stream any more.
    eventually("the reader has gone", async || {
        let clients: String = bed.ask(&["CLIENT", "LIST"]).await;
        (!clients.contains("cmd=xreadgroup") || !clients.contains("flags=b")).then_some(())
    })
    .await;
    bed.submit(&item("late", gate.node("late"))).await;
    gate.open("a");
    eventually("the first node ends", async || (bed.count().await == 1).then_some(())).await;
    gate.open_all();
    assert_eq!(worker.ends().await.0, Some(0));
    let events = bed.events().await;
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| event.output()["status"] == 200));
    assert!(bed.pending().await.is_empty(), "nothing is left behind");
    assert_eq!((bed.ask::<usize>(&["XLEN", &bed.stream]).await, gate.arrivals("late")), (1, 0));
    assert!(!registered(&bed, "w1").await, "it is no longer in the registry");
    // What it did not take is there for others.
    let _other = with_gate(&bed, &gate, "w2").start().ready().await;
    assert_eq!(bed.ended(4).await[3]["node_id"], "late");
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_handed_back_and_taken_at_once() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    // Leases of an hour: only handing back can explain that the other worker has the work soon.
    let spec = |id: &str| {
        with_gate(&bed, &gate, id).set("lease.duration", "1h").set("lease.renew", "1m").set("shutdown.grace", "300ms")
    };
    let first = spec("w1").start().ready().await;
    for node in ["a", "b"] {
        bed.submit(&item(node, gate.node(node))).await;
        gate.arrived(node, 1).await;
    }
    let second = spec("w2").start().ready().await;
    let asked = Instant::now();
    first.terminate();
    let (code, log) = first.ends().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(asked.elapsed() >= Duration::from_millis(300), "they had their grace time");
    for node in ["a", "b"] {
        gate.arrived(node, 2).await;
    }
    let pending = bed.pending_is(2).await;
    assert!(pending.iter().all(|(_, owner, _, deliveries)| owner.starts_with("w2:") && *deliveries > 1), "{pending:?}");
    let crashes: usize = bed.ask(&["EXISTS", &bed.key(&format!("crashes:{}", bed.stream))]).await;
    assert_eq!(crashes, 0, "nobody died");
    gate.open_all();
    let events = bed.ended(2).await;
    assert!(events.iter().all(|event| event.worker() == "w2"));
    assert_eq!(second.metric("executor_items_taken_over_total", &[]).await, 2.0);
}

#[tokio::test]
async fn a_later_second_signal_hands_everything_back_at_once() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    // Leases of an hour: only handing back can explain that the other worker has the work soon.
    let spec = |id: &str| {
        with_gate(&bed, &gate, id).set("lease.duration", "1h").set("lease.renew", "1m").set("shutdown.grace", "1h")
    };
    let worker = spec("w1").start().ready().await;
    bed.submit(&item("n", gate.node("closed"))).await;
    gate.arrived("closed", 1).await;
    worker.terminate();
    let told = Instant::now();
    draining(&worker).await;
    let late = Duration::from_millis(1100);
    eventually("it is late enough for another order", async || (told.elapsed() >= late).then_some(())).await;
    worker.terminate();
    assert_eq!(worker.ends().await.0, Some(130));
    assert_eq!(bed.pending().await.len(), 1, "the node is left to others");
    let _other = spec("w2").start().ready().await;
    gate.arrived("closed", 2).await;
    gate.open_all();
    bed.ended(1).await;
}

#[tokio::test]
async fn a_signal_that_comes_twice_in_a_moment_is_one_order() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let worker = with_gate(&bed, &gate, "w1").set("shutdown.grace", "1h").start().ready().await;
    bed.submit(&item("n", gate.node("closed"))).await;
    gate.arrived("closed", 1).await;
    worker.terminate();
    worker.interrupt();
    draining(&worker).await;
    gate.open_all();
    assert_eq!(worker.ends().await.0, Some(0));
    assert_eq!(bed.ended(1).await[0].worker(), "w1");
}

#[tokio::test]
async fn an_idle_worker_stops_without_waiting_for_its_grace_time() {
    let bed = Bed::new().await;
    for signal in ["SIGTERM", "SIGINT"] {
        let worker = bed.worker("w1").set("shutdown.grace", "1h").start().ready().await;
        match signal {
            "SIGTERM" => worker.terminate(),
            _ => worker.interrupt(),
        }
        assert_eq!(worker.ends().await.0, Some(0), "{signal}");
    }
}

#[tokio::test]
async fn a_worker_that_never_saw_redis_stops_at_once() {
    let mut bed = Bed::with_own_redis(&[]).await;
    bed.own_server().kill();
    let worker = bed.worker("w1").set("shutdown.grace", "1h").start();
    worker.answers("/ready", 503).await;
    worker.terminate();
    let (code, log) = worker.ends().await;
    assert_eq!(code, Some(0), "{log}");
}

#[tokio::test]
async fn a_worker_stops_while_redis_is_away() {
    let (mut bed, gate) =
        (Bed::with_own_redis(&["--appendonly", "yes", "--appendfsync", "always"]).await, Gate::start().await);
    let worker = with_gate(&bed, &gate, "w1")
        .set("shutdown.grace", "300ms")
        .set("redis.command_timeout", "500ms")
        .start()
        .ready()
        .await;
    bed.submit(&item("n", gate.node("n"))).await;
    gate.arrived("n", 1).await;
    bed.own_server().kill();
    gate.open("n");
    worker.answers("/ready", 503).await;
    worker.terminate();
    let (code, log) = worker.ends().await;
    assert_eq!(code, Some(0), "{log}");
    bed.own_server().start_again();
    bed.reconnect().await;
    assert_eq!(bed.count().await, 0);
    // The result could not be written, so the node runs again elsewhere.
    let _other = with_gate(&bed, &gate, "w2").start().ready().await;
    let events = bed.ended(1).await;
    assert_eq!(events[0].worker(), "w2");
}
