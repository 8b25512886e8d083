//! What a worker tells about itself over HTTP and in the registry, and how it lives through a Redis that goes away,
//! hangs, or forgets.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::bed::{Bed, GROUP};
use crate::harness::gate::Gate;
use crate::harness::mcp;
use crate::harness::model::Model;
use crate::harness::{PATIENCE, eventually};

fn sum(node: &str) -> Value {
    json!({"graph_id": "g", "node_id": node, "inputs": {}, "config": {"tool_name": "calculate", "tool_params": {"expression": "1"}}})
}

#[tokio::test]
async fn a_worker_is_ready_before_work_comes_however_long_it_waits_for_it() {
    let bed = Bed::new().await;
    let worker = bed.worker("w").set("work.block", "10m").set("lease.duration", "20m").start().ready().await;
    assert_eq!(worker.get("/health").await.json()["redis"], "connected");
}

#[tokio::test]
async fn the_endpoints_answer_as_the_contract_says() {
    let bed = Bed::new().await;
    let worker = bed.worker("executor-1").start().ready().await;
    let health = worker.get("/health").await;
    assert_eq!((health.status, health.content_type.as_str()), (200, "application/json"));
    let expected =
        json!({"status": "healthy", "worker_id": "executor-1", "redis": "connected", "last_processed": null});
    assert_eq!(health.json(), expected);
    assert_eq!(worker.get("/live").await.status, 200);
    assert_eq!(worker.get("/ready").await.json(), json!({"ready": true, "reasons": []}));

    let event = bed.run(&sum("n")).await;
    // The event is there a moment before the worker has the answer to its settle.
    let processed: jiff::Timestamp = eventually("the last end is told", async || {
        let health = worker.get("/health").await.json();
        assert_eq!(health.as_object().expect("an object").len(), 4);
        health["last_processed"].as_str().and_then(|text| text.parse().ok())
    })
    .await;
    let told: jiff::Timestamp = event["timestamp"].as_str().and_then(|text| text.parse().ok()).expect("a time");
    assert!((processed.as_millisecond() - told.as_millisecond()).abs() <= 1, "{processed} {told}");
    assert_eq!(worker.get("/nothing").await.status, 404);
}

#[tokio::test]
async fn the_figures_of_every_kind_of_work_are_there() {
    let bed = Bed::new().await;
    let model = Model::start(
        r#"
rules:
  - match: {prompt: agent, tool: calculate}
    replies:
      - {tool_calls: [{name: calculate, input: {expression: "1"}}], usage: {input_tokens: 10, output_tokens: 3}}
      - {text: done, usage: {input_tokens: 20, output_tokens: 4, cache_read_tokens: 5}}
  - {match: {prompt: once}, reply: {text: ok, fail_first: {times: 1, status: 529}, usage: {input_tokens: 1, output_tokens: 1}}}
"#,
    );
    let server = mcp::stdio("voice", &mcp::fastmcp(), &["stdio"]);
    let worker = bed.worker_with_model("w1", &model).file(&server).set("pool.size", "7").start().ready().await;
    let run = async |node: &str, config: Value| {
        bed.run(&json!({"graph_id": "g", "node_id": node, "inputs": {}, "config": config})).await
    };
    run("agent", json!({"task": "agent", "tools": ["calculate"], "llm_config": {}})).await;
    run("llm", json!({"llm_config": {"prompt": "once"}})).await;
    run("tool", json!({"tool_name": "say", "tool_params": {"text": "hi"}})).await;
    run("fails", json!({"tool_name": "fail", "tool_params": {"reason": "r"}})).await;
    run("wrong", json!({})).await;
    bed.submit_raw(b"rubbish").await;
    eventually("a dead letter", async || {
        (worker.metric("executor_dead_letters_total", &[]).await >= 1.0).then_some(())
    })
    .await;

    let text = worker.get("/metrics").await;
    assert!(text.content_type.starts_with("application/openmetrics-text"), "{}", text.content_type);
    assert!(text.text.ends_with("# EOF\n"));
    for (name, labels, expected) in [
        ("executor_items_total", &[r#"mode="agent""#, r#"outcome="completed""#][..], 1.0),
        ("executor_items_total", &[r#"mode="llm""#, r#"outcome="completed""#], 1.0),
        ("executor_items_total", &[r#"mode="tool""#, r#"outcome="completed""#], 1.0),
        ("executor_items_total", &[r#"mode="tool""#, r#"outcome="failed""#], 1.0),
        ("executor_items_total", &[r#"mode="unknown""#, r#"outcome="failed""#], 1.0),
        ("executor_item_duration_seconds_count", &[r#"mode="agent""#], 1.0),
        ("executor_errors_total", &["permanent"], 1.0),
        ("executor_errors_total", &["configuration"], 1.0),
        ("executor_retries_total", &[], 1.0),
        ("executor_dead_letters_total", &["not_json"], 1.0),
        ("executor_tool_calls_total", &[r#"server="builtin""#, r#"tool="calculate""#, r#"outcome="ok""#], 1.0),
        ("executor_tool_calls_total", &[r#"server="voice""#, r#"tool="say""#, r#"outcome="ok""#], 1.0),
        ("executor_tool_calls_total", &[r#"server="voice""#, r#"tool="fail""#, r#"outcome="tool_error""#], 1.0),
        ("executor_tool_call_duration_seconds_count", &[], 3.0),
        ("executor_llm_requests_total", &[r#"outcome="ok""#], 3.0),
        ("executor_llm_requests_total", &[r#"outcome="failed""#], 1.0),
        ("executor_llm_request_duration_seconds_count", &[], 4.0),
        ("executor_llm_tokens_total", &[r#"kind="input""#], 31.0),
        ("executor_llm_tokens_total", &[r#"kind="output""#], 8.0),
        ("executor_llm_tokens_total", &[r#"kind="cache_read""#], 5.0),
        ("executor_items_in_flight", &[], 0.0),
        ("executor_pool_size", &[], 7.0),
        ("executor_items_received_total", &[], 6.0),
        ("executor_mcp_server_up", &[r#"server="voice""#], 1.0),
    ] {
        assert_eq!(worker.metric(name, labels).await, expected, "{name} {labels:?} in\n{}", text.text);
    }
    for secret in ["a key of the test", "g\"", "node_id", "graph"] {
        assert!(!text.text.contains(secret), "{secret:?} has no place in metrics");
    }
}

#[tokio::test]
async fn pages_are_read_by_get_and_head_and_changed_by_nobody() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").start().ready().await;
    let address = worker.address().await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for path in ["/health", "/live", "/ready", "/metrics"] {
        let ask = async |method: reqwest::Method| {
            let request = client.request(method, format!("http://{address}{path}")).timeout(PATIENCE);
            let response = request.send().await.unwrap_or_else(|error| panic!("{path}: {error}"));
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let (allow, kind) = (header("allow"), header("content-type"));
            (response.status().as_u16(), allow, kind, response.bytes().await.expect("a body").len())
        };
        let (status, _, kind, length) = ask(reqwest::Method::GET).await;
        assert!(status == 200 && length > 0, "{path}: {status}");
        assert_eq!(ask(reqwest::Method::HEAD).await, (200, None, kind, 0), "{path}");
        for method in [reqwest::Method::POST, reqwest::Method::DELETE, reqwest::Method::OPTIONS] {
            let (status, allow, ..) = ask(method.clone()).await;
            assert_eq!((status, allow.as_deref()), (405, Some("GET, HEAD")), "{method} {path}");
        }
    }
    assert_eq!(worker.get("/elsewhere").await.status, 404);
}

#[tokio::test]
async fn a_worker_stands_in_the_registry_while_it_runs() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let server = mcp::stdio("voice", &mcp::fastmcp(), &["stdio"]);
    let worker =
        bed.worker("w1").file(&server).set("tools.http_request.allow", gate.host()).set("pool.size", "5").start();
    let worker = worker.ready().await;
    let key = bed.key("workers:w1");
    let entry = eventually("the worker is registered", async || {
        let entry: Option<String> = bed.ask(&["GET", &key]).await;
        entry.map(|entry| serde_json::from_str::<Value>(&entry).expect("JSON"))
    })
    .await;
    let members = "id type status registered_at last_heartbeat current_task pending_tasks version metadata";
    let names: std::collections::BTreeSet<&str> =
        entry.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, members.split(' ').collect());
    assert_eq!((&entry["id"], &entry["type"], &entry["status"]), (&json!("w1"), &json!("executor"), &json!("idle")));
    assert_eq!((&entry["current_task"], &entry["pending_tasks"]), (&Value::Null, &json!(0)));
    assert_eq!(entry["version"], env!("CARGO_PKG_VERSION"));
    let metadata = &entry["metadata"];
    assert_eq!((&metadata["pool_size"], &metadata["in_flight"]), (&json!(5), &json!(0)));
    assert_eq!(metadata["address"], worker.address().await);
    let tools = metadata["tools"].to_string();
    assert!(tools.contains("voice") && tools.contains("calculate"), "{tools}");
    assert!(metadata["models"].to_string().contains("anthropic"), "{metadata}");
    let ttl: i64 = bed.ask(&["PTTL", &key]).await;
    assert!((1..=30_000).contains(&ttl), "{ttl}");

    // What it does is told by the next renewal, well before the entry would expire.
    bed.submit(&json!({"graph_id": "g", "node_id": "held", "inputs": {}, "config": gate.node("held")})).await;
    gate.arrived("held", 1).await;
    let busy = eventually("the entry tells of the node", async || {
        let entry: String = bed.ask(&["GET", &key]).await;
        let entry: Value = serde_json::from_str(&entry).expect("JSON");
        (entry["status"] == "busy").then_some(entry)
    })
    .await;
    assert_eq!((&busy["current_task"], &busy["pending_tasks"]), (&json!("g/held"), &json!(1)));
    assert_eq!((&busy["metadata"]["in_flight"], &busy["registered_at"]), (&json!(1), &entry["registered_at"]));
    assert_ne!(busy["last_heartbeat"], entry["last_heartbeat"]);
    gate.open("held");
    bed.settled().await;

    // Another process of the same name has the entry by now: a clean stop leaves it alone.
    bed.ask::<()>(&["SET", &key, r#"{"id":"w1","metadata":{"instance":"another"}}"#, "EX", "30"]).await;
    worker.terminate();
    assert_eq!(worker.ends().await.0, Some(0));
    assert_eq!(bed.ask::<usize>(&["EXISTS", &key]).await, 1);
}

#[tokio::test]
async fn work_goes_on_within_two_seconds_after_redis_is_back() {
    let (mut bed, gate) =
        (Bed::with_own_redis(&["--appendonly", "yes", "--appendfsync", "always"]).await, Gate::start().await);
    let worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    bed.submit(&json!({"graph_id": "g", "node_id": "held", "inputs": {}, "config": gate.node("held")})).await;
    gate.arrived("held", 1).await;

    bed.own_server().kill();
    let health = worker.answers("/health", 503).await.json();
    assert_eq!((&health["status"], &health["redis"]), (&json!("unhealthy"), &json!("disconnected")));
    let ready = worker.answers("/ready", 503).await.json();
    assert!(ready["reasons"].to_string().contains("redis"), "{ready}");
    assert_eq!(worker.get("/live").await.status, 200, "a restart would not help");
    // The node ends while there is nowhere to write it; its result is kept.
    gate.open("held");
    eventually("the result is held", async || {
        (worker.metric("executor_settle_retries_total", &[]).await >= 2.0).then_some(())
    })
    .await;

    bed.own_server().start_again();
    let back = Instant::now();
    bed.reconnect().await;
    bed.submit(&sum("next")).await;
    let events = bed.ended(2).await;
    let took = back.elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    assert_eq!((events[0].output().is_null(), gate.arrivals("held")), (false, 1), "the held node did not run again");
    assert_eq!(worker.answers("/health", 200).await.json()["redis"], "connected");
    worker.answers("/ready", 200).await;
}

#[tokio::test]
async fn a_redis_that_hangs_is_noticed_and_work_goes_on_when_it_wakes() {
    let bed = Bed::with_own_redis(&[]).await;
    let worker = bed.worker("w1").set("redis.command_timeout", "400ms").start().ready().await;
    let frozen = bed.freeze_redis().await;
    worker.answers("/ready", 503).await;
    assert_eq!(worker.answers("/health", 503).await.json()["redis"], "disconnected");
    assert_eq!(worker.get("/live").await.status, 200);
    drop(frozen);
    bed.submit(&sum("n")).await;
    let woken = Instant::now();
    bed.ended(1).await;
    assert!(woken.elapsed() < Duration::from_secs(2), "it took {:?}", woken.elapsed());
    worker.answers("/ready", 200).await;
}

#[tokio::test]
async fn a_group_that_vanishes_is_made_again_at_the_first_entry() {
    let bed = Bed::with_own_redis(&[]).await;
    let worker = bed.worker("w1").start().ready().await;
    bed.run(&sum("before")).await;
    bed.ask::<()>(&["XGROUP", "DESTROY", &bed.stream, GROUP]).await;
    bed.submit(&sum("destroyed")).await;
    assert_eq!(bed.ended(2).await[1]["node_id"], "destroyed");

    bed.ask::<()>(&["DEL", &bed.stream]).await;
    bed.submit(&sum("deleted")).await;
    assert_eq!(bed.ended(3).await[2]["node_id"], "deleted");

    bed.ask::<()>(&["FLUSHALL"]).await;
    bed.submit(&sum("flushed")).await;
    let events = bed.ended(1).await;
    assert_eq!((&events[0]["node_id"], events[0].seq), (&json!("flushed"), 1));
    worker.answers("/ready", 200).await;
    assert_eq!(worker.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_node_whose_entry_vanished_writes_nothing() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    bed.submit(&json!({"graph_id": "g", "node_id": "n", "inputs": {}, "config": gate.node("n")})).await;
    gate.arrived("n", 1).await;
    bed.ask::<()>(&["FLUSHALL"]).await;
    eventually("the node is lost", async || {
        (worker.metric("executor_items_total", &["lost"]).await == 1.0).then_some(())
    })
    .await;
    gate.open("n");
    let event = bed.run(&sum("m")).await;
    assert_eq!((event.seq, bed.count().await), (1, 1));
}
