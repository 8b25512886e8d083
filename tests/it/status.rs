//! `executor-worker status`: what Redis holds, as a person or a program sees it.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, GROUP};
use crate::harness::eventually;
use crate::harness::gate::Gate;

async fn status(bed: &Bed) -> Value {
    let command = bed.worker("cli").argument("status").argument("--json").start();
    let (code, text) = command.ends().await;
    assert_eq!(code, Some(0), "{text}");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

async fn table(bed: &Bed) -> String {
    let (code, text) = bed.worker("cli").argument("status").start().ends().await;
    assert_eq!(code, Some(0), "{text}");
    text
}

#[tokio::test]
async fn what_waits_is_told_before_any_worker_came() {
    let bed = Bed::new().await;
    let seen = status(&bed).await;
    assert_eq!((&seen["streams"][0]["length"], &seen["streams"][0]["group"]), (&json!(0), &json!(false)));
    assert_eq!((&seen["workers"], &seen["strays"]), (&json!([]), &json!([])));
    let now: Vec<u64> = bed.ask(&["TIME"]).await;
    let old = format!("{}-0", (now[0] - 90) * 1000);
    bed.ask::<()>(&["XADD", &bed.stream, &old, "data", "{}"]).await;
    bed.submit_raw(b"{}").await;
    let stream = &status(&bed).await["streams"][0];
    assert_eq!((&stream["length"], &stream["lag"], &stream["pending"]), (&json!(2), &json!(2), &json!(0)));
    let age = stream["oldest_waiting_seconds"].as_f64().expect("an age");
    assert!((89.0..150.0).contains(&age), "{age}");
    let table = table(&bed).await;
    assert!(table.contains("no consumer group") && table.contains("no worker is running"), "{table}");
    assert!(table.contains("1m ") || table.contains("2m "), "an age for people: {table}");
}

#[tokio::test]
async fn what_runs_and_who_runs_it_is_told() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let spec = |id: &str| {
        let spec = bed.worker(id).set("tools.http_request.allow", gate.host()).set("pool.size", "2");
        spec.set("lease.duration", "1h").set("lease.renew", "1m")
    };
    let worker = spec("w1").start().ready().await;
    for node in ["a", "b", "c"] {
        bed.submit(&json!({"graph_id": "g", "node_id": node, "config": gate.node(node), "inputs": {}})).await;
    }
    gate.arrived("a", 1).await;
    gate.arrived("b", 1).await;
    bed.ask::<()>(&["XADD", &bed.letters(), "*", "reason", "poison"]).await;
    bed.ask::<()>(&["ZADD", &bed.key(&format!("parked:{}", bed.stream)), "4102444800000", "1-0"]).await;
    let bodies = bed.key(&format!("parked-bodies:{}", bed.stream));
    bed.ask::<()>(&["HSET", &bodies, "1-0", "{}", "1-0:meta", "{}", "1-0:run", "g\nd\nr"]).await;
    let seen = eventually("the worker is in the registry", async || {
        Some(status(&bed).await).filter(|seen| seen["workers"][0].is_object())
    })
    .await;
    let stream = &seen["streams"][0];
    let facts = ["length", "lag", "pending", "handed_back", "parked", "dead_letters"].map(|name| stream[name].clone());
    assert_eq!(facts, [json!(3), json!(1), json!(2), json!(0), json!(1), json!(1)]);
    assert!(stream["oldest_waiting_seconds"].is_f64() && stream["oldest_pending_seconds"].is_f64(), "{stream}");
    assert_eq!((&seen["workers"][0]["id"], &seen["strays"]), (&json!("w1"), &json!([])));
    let holder = &stream["holders"][0];
    let instance = seen["workers"][0]["metadata"]["instance"].as_str().expect("a nonce");
    assert_eq!((&holder["consumer"], &holder["pending"]), (&json!(format!("w1:{instance}")), &json!(2)));
    assert!(holder["idle_seconds"].is_f64() && stream["holders"].as_array().map(Vec::len) == Some(1), "{stream}");
    let shown = table(&bed).await;
    assert!(shown.lines().any(|line| line.trim_start().starts_with("w1 ")), "the worker: {shown}");
    let held = shown.lines().find(|line| line.contains(&format!("w1:{instance}"))).expect("who holds items");
    assert!(held.contains(&bed.stream) && held.contains("ago"), "{held}");

    worker.kill();
    bed.ask::<()>(&["DEL", &bed.key("workers:w1")]).await;
    let seen = status(&bed).await;
    assert_eq!(seen["strays"][0]["pending"], 2);
    let consumer = seen["strays"][0]["consumer"].as_str().expect("a name");
    assert!(consumer.starts_with("w1:"), "{consumer}");
    assert!(table(&bed).await.contains("announces itself no more"));
    let pending = bed.pending_is(2).await;
    let words = ["XCLAIM", &bed.stream, GROUP, "released", "0", &pending[0].0, "JUSTID"];
    bed.ask::<Vec<String>>(&words).await;
    let seen = status(&bed).await;
    assert_eq!((&seen["streams"][0]["handed_back"], &seen["strays"][0]["pending"]), (&json!(1), &json!(1)));
    // A server that cannot tell the lag: an entry was deleted unread.
    let waiting: Vec<(String, Vec<String>)> = bed.ask(&["XREVRANGE", &bed.stream, "+", "-", "COUNT", "1"]).await;
    bed.submit_raw(b"{}").await;
    bed.ask::<()>(&["XDEL", &bed.stream, &waiting[0].0]).await;
    assert_eq!(status(&bed).await["streams"][0]["lag"], 1);
}
