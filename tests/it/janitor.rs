//! What a worker cleans up by itself, and where it stops rather than let something grow.

use std::collections::HashMap;

use redis::Value as RedisValue;
use serde_json::json;

use crate::harness::bed::{Bed, GROUP};
use crate::harness::eventually;

async fn consumers(bed: &Bed) -> HashMap<String, u64> {
    let consumers: Vec<HashMap<String, RedisValue>> = bed.ask(&["XINFO", "CONSUMERS", &bed.stream, GROUP]).await;
    let fact = |facts: &HashMap<String, RedisValue>, name: &str| facts[name].clone();
    consumers
        .iter()
        .map(|facts| {
            let name = redis::from_redis_value(fact(facts, "name")).expect("a name");
            (name, redis::from_redis_value(fact(facts, "idle")).expect("a number"))
        })
        .collect()
}

#[tokio::test]
async fn a_worker_cleans_up_soon_after_its_start() {
    let bed = Bed::new().await;
    bed.ask::<()>(&["XGROUP", "CREATE", &bed.stream, GROUP, "0", "MKSTREAM"]).await;
    bed.ask::<()>(&["XGROUP", "CREATECONSUMER", &bed.stream, GROUP, "gone:1"]).await;
    let crashes = bed.key(&format!("crashes:{}", bed.stream));
    bed.ask::<()>(&["HSET", &crashes, "1-0", "1"]).await;
    let bodies = bed.key(&format!("parked-bodies:{}", bed.stream));
    let data =
        json!({"graph_id": "g", "node_id": "m", "config": {"tool_name": "current_time"}, "inputs": {}}).to_string();
    let meta = json!({"origin": "7-0", "attempt": 1}).to_string();
    bed.ask::<()>(&["HSET", &bodies, "7-0", &data, "7-0:meta", &meta, "7-0:run", "g\nm\nr"]).await;
    let completed = bed.key("events:node.completed");
    let mut pipeline = redis::pipe();
    for _ in 0..500 {
        pipeline.cmd("XADD").arg(&completed).arg("*").arg("data").arg("{}").ignore();
    }
    bed.pipeline(&pipeline).await;
    eventually("the consumer that is gone was silent for three leases", async || {
        (consumers(&bed).await["gone:1"] > 700).then_some(())
    })
    .await;

    let _worker = bed
        .worker("w1")
        .set("lease.duration", "210ms")
        .set("lease.renew", "70ms")
        .set("work.block", "100ms")
        .set("work.reap_after", "1ms")
        .set("events.maxlen", "100")
        .set("events.hard_cap", "10000")
        .start()
        .ready()
        .await;
    eventually("the silent consumer that held nothing is gone", async || {
        (!consumers(&bed).await.contains_key("gone:1")).then_some(())
    })
    .await;
    eventually("the count of an entry that is gone is forgotten", async || {
        (!bed.ask::<bool>(&["HEXISTS", &crashes, "1-0"]).await).then_some(())
    })
    .await;
    eventually("the terminal stream nobody reads is short", async || {
        (bed.ask::<u64>(&["XLEN", &completed]).await < 250).then_some(())
    })
    .await;
    // The body that nothing waited for is run, with the name it always had.
    let node = eventually("the node that waits is run", async || bed.node_state("g", "m").await).await;
    assert_eq!(node["metadata"]["work_id"], format!("{}/7-0", bed.stream));
    bed.settled().await;
    let left = consumers(&bed).await;
    assert!(left.len() == 1 && left.keys().all(|name| name.starts_with("w1:")), "{left:?}");
}

#[tokio::test]
async fn a_full_event_stream_stops_fetching_until_its_group_has_caught_up() {
    // A server of its own, so that nobody else waits in a read there.
    let bed = Bed::with_own_redis(&[]).await;
    let failed = bed.key("events:node.failed");
    bed.ask::<()>(&["XGROUP", "CREATE", &failed, "reader", "0", "MKSTREAM"]).await;
    let spec = bed.worker("w1").set("events.maxlen", "100").set("events.hard_cap", "300");
    let worker = spec.start().ready().await;
    let mut pipeline = redis::pipe();
    for _ in 0..500 {
        pipeline.cmd("XADD").arg(&failed).arg("*").arg("data").arg("{}").ignore();
    }
    bed.pipeline(&pipeline).await;
    worker.said("a terminal event stream is full").await;
    let ready = worker.answers("/ready", 503).await;
    assert!(ready.text.contains("a terminal event stream is full"), "{}", ready.text);
    let mut quiet = 0;
    eventually("the reader has not asked for longer than a read takes", async || {
        let info: String = bed.ask(&["INFO", "clients"]).await;
        quiet = if info.contains("blocked_clients:0") { quiet + 1 } else { 0 };
        // Sixty looks, five milliseconds apart, are more than the 200 ms of a read.
        (quiet > 60).then_some(())
    })
    .await;
    bed.submit(&json!({"graph_id": "g", "node_id": "n", "config": {"tool_name": "current_time"}, "inputs": {}})).await;
    let moved = worker.metric("executor_items_received_total", &[]).await;
    assert!(moved == 0.0 && bed.ask::<u64>(&["XLEN", &bed.stream]).await == 1, "nothing is fetched");
    assert_eq!(bed.ask::<u64>(&["XLEN", &failed]).await, 500, "nothing that the group has not read is trimmed");

    let entries: Vec<(String, RedisValue)> = bed.ask(&["XRANGE", &failed, "-", "+"]).await;
    let words = ["XREADGROUP", "GROUP", "reader", "c", "COUNT", "500", "NOACK", "STREAMS", &failed, ">"];
    bed.ask::<RedisValue>(&words).await;
    assert_eq!(entries.len(), 500);
    worker.said("have room again").await;
    worker.answers("/ready", 200).await;
    eventually("the item is run", async || bed.node_state("g", "n").await).await;
    assert!(bed.ask::<u64>(&["XLEN", &failed]).await < 300);
}
