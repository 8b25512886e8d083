//! How a worker starts, or refuses to: one message that names the key as its author wrote it, exit code 78, and never
//! a secret.

use serde_json::json;

use crate::harness::bed::{Bed, GROUP};
use crate::harness::eventually;
use crate::harness::redis::{RedisServer, connect};
use crate::harness::worker::{Spec, Worker};

/// The lines that are not log records.
fn words(output: &str) -> String {
    output.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n")
}

async fn refused(what: &str, spec: Spec, expected: &[&str]) {
    let (code, output) = spec.start().ends().await;
    assert_eq!(code, Some(78), "{what}: {output}");
    for word in expected {
        assert!(output.contains(word), "{what}: {word:?} is not in: {output}");
    }
    assert!(!output.contains("s3cr3t"), "{what}: a secret is shown: {output}");
    assert!(!output.contains("panicked"), "{what}: {output}");
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_the_key_as_it_was_written() {
    let bare = Spec::bare;
    let cases: Vec<(&str, Spec, &[&str])> = vec![
        (
            "a key that does not exist",
            bare().set("work.blok", "1s"),
            &["EXECUTOR__WORK__BLOK", "EXECUTOR__WORK__BLOCK"],
        ),
        ("a value of the wrong type", bare().set("lease.duration", "soon"), &["EXECUTOR__LEASE__DURATION", "30s"]),
        ("zero", bare().set("pool.size", "0"), &["EXECUTOR__POOL__SIZE", "from 1"]),
        ("a renewal too seldom", bare().set("lease.renew", "30s"), &["EXECUTOR__LEASE__RENEW", "lease.duration"]),
        (
            "a choice that does not exist",
            bare().set("state.layout", "hsah"),
            &["EXECUTOR__STATE__LAYOUT", "did you mean hash"],
        ),
        ("a short name", bare().env("MAX_ITERATIONS", "many"), &["MAX_ITERATIONS"]),
        ("a port", bare().env("HEALTH_PORT", "99999"), &["HEALTH_PORT"]),
        ("a level", bare().env("LOG_LEVEL", "loud"), &["LOG_LEVEL"]),
        ("a provider", bare().env("LLM_PROVIDER", "antropic"), &["LLM_PROVIDER", "anthropic"]),
        ("a cluster", bare().env("REDIS_ADDR", "redis+cluster://u:s3cr3t@h:1"), &["REDIS_ADDR", "cluster"]),
        ("no address", bare().env("REDIS_ADDR", "nowhere"), &["REDIS_ADDR", "host:port"]),
        ("servers", bare().env("MCP_SERVERS", "ftp://h:1"), &["MCP_SERVERS"]),
        ("servers of one name", bare().env("MCP_SERVERS", "a=http://h:1,a=http://i:1"), &["MCP_SERVERS"]),
        (
            "two names for one key",
            bare().env("WORKER_ID", "a").set("worker.id", "b"),
            &["WORKER_ID", "EXECUTOR__WORKER__ID"],
        ),
        (
            "a secret and its file",
            bare().env("REDIS_PASS", "s3cr3t").env("REDIS_PASS_FILE", "/proc/version"),
            &["REDIS_PASS", "REDIS_PASS_FILE"],
        ),
        (
            "a secret's file that is not there",
            bare().env("LLM_API_KEY_FILE", "/nonexistent/key"),
            &["LLM_API_KEY_FILE", "/nonexistent/key"],
        ),
        ("a file that is not there", bare().env("EXECUTOR_CONFIG", "/nonexistent/x.toml"), &["/nonexistent/x.toml"]),
        ("an unknown key of the file", bare().file("[pool]\nsice = 3"), &["pool.sice", "worker.toml:2", "`size`"]),
        ("a file that is no TOML", bare().file("[pool\nsize = 3"), &["worker.toml", "TOML"]),
        (
            "a server with two ways",
            bare().file("[mcp.servers.a]\nurl = \"http://h\"\ncommand = \"c\""),
            &["mcp.servers.a", "`url`", "`command`"],
        ),
        ("a flag", bare().argument("--set").argument("pool.size=none"), &["--set pool.size", "pool.size"]),
    ];
    for (what, spec, expected) in cases {
        refused(what, spec, expected).await;
    }
}

#[tokio::test]
async fn everything_that_is_wrong_is_told_in_one_message() {
    let spec = Spec::bare()
        .set("pool.size", "0")
        .set("work.blok", "1")
        .env("LLM_API_KEY", "s3cr3t\u{7}")
        .env("HEALTH_PORT", "x");
    let (code, output) = spec.start().ends().await;
    assert_eq!(code, Some(78));
    for key in ["EXECUTOR__POOL__SIZE", "EXECUTOR__WORK__BLOK", "HEALTH_PORT"] {
        assert_eq!(output.matches(&format!("{key} ")).count(), 1, "{key} once in: {output}");
    }
    assert!(!output.contains("s3cr3t"), "{output}");
    assert!(!words(&output).is_empty());
}

#[tokio::test]
async fn a_variable_with_one_underscore_is_not_ours() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").env("EXECUTOR_SOMETHING", "else").env("EXECUTOR__", "").start().ready().await;
}

#[tokio::test]
async fn a_worker_starts_without_redis_and_is_ready_once_there_is_one() {
    let mut server = RedisServer::start();
    server.kill();
    let worker = Spec::bare()
        .env("REDIS_ADDR", format!("127.0.0.1:{}", server.port()))
        .env("HEALTH_PORT", "0")
        .set("work.block", "200ms")
        .start();
    let health = worker.answers("/health", 503).await.json();
    assert_eq!((&health["redis"], &health["last_processed"]), (&json!("disconnected"), &json!(null)));
    assert_eq!(worker.get("/live").await.status, 200);
    assert_eq!(worker.get("/ready").await.status, 503);
    server.start_again();
    let worker = worker.ready().await;
    assert_eq!(worker.get("/health").await.status, 200);
    worker.terminate();
    assert_eq!(worker.ends().await.0, Some(0));
}

#[tokio::test]
async fn a_redis_that_evicts_is_refused_whenever_it_is_seen() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let bed = Bed::with_own_redis(&["--maxmemory-policy", policy]).await;
        refused(policy, bed.worker("w1"), &["maxmemory-policy", policy, "noeviction"]).await;
        assert_eq!(bed.ask::<usize>(&["DBSIZE"]).await, 0, "nothing was begun");
    }
    // One that comes later is looked at then.
    let kept = ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "allkeys-random"];
    let mut bed = Bed::with_own_redis(&kept).await;
    let item = json!({"graph_id": "g", "node_id": "n", "inputs": {}, "config": {"tool_name": "current_time"}});
    bed.submit(&item).await;
    bed.own_server().kill();
    let worker = bed.worker("w1").start();
    let ready = worker.answers("/ready", 503).await.json();
    assert!(ready["reasons"].to_string().contains("nobody could look yet"), "{ready}");
    bed.own_server().start_again();
    let (code, output) = worker.ends().await;
    assert_eq!(code, Some(78), "{output}");
    assert!(output.contains("allkeys-random"), "{output}");
    bed.reconnect().await;
    // The group may not be there yet, which is as good.
    let pending = bed.try_ask::<Vec<redis::Value>>(&["XPENDING", &bed.stream, GROUP, "-", "+", "9"]).await;
    let pending = pending.map_or(0, |pending| pending.len());
    let state = (bed.ask::<usize>(&["XLEN", &bed.stream]).await, pending, bed.count().await);
    assert_eq!(state, (1, 0, 0), "the item waits for another Redis, and nobody took it");
}

#[tokio::test]
async fn a_redis_without_an_append_only_file_is_warned_about() {
    let bed = Bed::with_own_redis(&[]).await;
    bed.worker("w1").start().ready().await.said("redis runs without an append-only file").await;
    let bed = Bed::with_own_redis(&["--appendonly", "yes"]).await;
    let worker = bed.worker("w2").start().ready().await;
    assert!(!worker.log().contains("append-only file"), "{}", worker.log());
}

#[tokio::test]
async fn a_user_who_may_not_run_what_results_need_is_refused_before_work_is_read() {
    let bed = Bed::with_own_redis(&[]).await;
    bed.ask::<()>(&["ACL", "SETUSER", "worker", "on", ">s3cr3t", "~*", "&*", "+@all", "-del", "-zadd"]).await;
    let user = |spec: Spec| {
        let port = bed.server().port();
        spec.env("REDIS_ADDR", format!("redis://worker@127.0.0.1:{port}")).env("REDIS_PASS", "s3cr3t")
    };
    let item = json!({"graph_id": "g", "node_id": "n", "inputs": {}, "config": {"tool_name": "current_time"}});
    bed.submit(&item).await;
    refused("two commands", user(bed.worker("w1")), &["DEL ", ":done:", "ZADD ", "ACL SETUSER"]).await;
    let (streams, states) = (format!("~{}*", bed.stream), format!("~{}", bed.key("state:*")));
    bed.ask::<()>(&["ACL", "SETUSER", "worker", "+del", "+zadd", "resetkeys", &streams, &states]).await;
    refused("keys", user(bed.worker("w1")), &["EVALSHA with the keys of", "ACL SETUSER"]).await;
    assert_eq!(bed.ask::<usize>(&["XLEN", &bed.stream]).await, 1, "the item waits for a worker that can end it");
    bed.ask::<()>(&["ACL", "SETUSER", "worker", "~*"]).await;
    let worker = user(bed.worker("w1")).start().ready().await;
    bed.ended(1).await;

    // What is taken away later stops the worker from taking more, and nothing is lost meanwhile.
    bed.ask::<()>(&["ACL", "SETUSER", "worker", "-rename"]).await;
    let body = worker.answers("/ready", 503).await.json();
    assert_eq!(body["reasons"], json!(["redis would refuse a command that results need"]));
    bed.ask::<()>(&["ACL", "SETUSER", "worker", "+rename"]).await;
    worker.answers("/ready", 200).await;
    bed.submit(&item).await;
    bed.ended(2).await;
}

/// The start says that Redis is there and does not let us in, and which settings may be wrong.
async fn refused_us(worker: &Worker) {
    let told = worker.said("redis refuses us").await;
    let words = told["message"].as_str().unwrap_or_default();
    assert!(words.contains("REDIS_PASS") && words.contains("REDIS_DB"), "{told}");
    assert!(!worker.log().contains("does not answer yet"), "it does answer: {}", worker.log());
}

#[tokio::test]
async fn a_password_is_used_and_never_shown() {
    let bed = Bed::with_own_redis(&[]).await;
    bed.ask::<()>(&["CONFIG", "SET", "requirepass", "s3cr3t"]).await;
    let item =
        |node: &str| json!({"graph_id": "g", "node_id": node, "inputs": {}, "config": {"tool_name": "current_time"}});
    let secrets = tempfile::tempdir().expect("a folder");
    let file = secrets.path().join("password");
    std::fs::write(&file, "s3cr3t\n").expect("the folder is ours");
    let file = file.to_str().expect("UTF-8").to_owned();
    let url = format!("redis://:s3cr3t@127.0.0.1:{}", bed.server().port());
    for (way, spec) in [
        ("REDIS_PASS", bed.worker("w1").env("REDIS_PASS", "s3cr3t")),
        ("REDIS_PASS_FILE", bed.worker("w1").env("REDIS_PASS_FILE", file)),
        ("REDIS_ADDR", bed.worker("w1").env("REDIS_ADDR", url)),
    ] {
        let worker = spec.env("LOG_LEVEL", "debug").start().ready().await;
        let event = bed.run(&item(way)).await;
        assert_eq!(event["type"], "node.completed");
        worker.terminate();
        let (code, output) = worker.ends().await;
        assert_eq!(code, Some(0));
        assert!(!output.contains("s3cr3t"), "{way}: {output}");
    }
    let worker = bed.worker("w1").env("REDIS_PASS", "wrong").start();
    assert_eq!(worker.answers("/ready", 503).await.status, 503);
    let record = worker.said("reading work failed").await;
    assert!(record["error"].as_str().is_some_and(|error| error.contains("REDIS_PASS")), "{record}");
    assert_eq!(worker.get("/live").await.status, 200);
    refused_us(&worker).await;
    // Somebody sets it right on the other side.
    bed.ask::<()>(&["CONFIG", "SET", "requirepass", "wrong"]).await;
    worker.answers("/ready", 200).await;
}

#[tokio::test]
async fn another_database_is_used_when_it_is_asked_for() {
    let bed = Bed::with_own_redis(&[]).await;
    let _worker = bed.worker("w1").env("REDIS_DB", "3").start().ready().await;
    let mut third = connect(&format!("{}/3", bed.server().url())).await;
    let data = json!({"graph_id": "g", "node_id": "n", "inputs": {}, "config": {"tool_name": "current_time"}});
    redis::cmd("XADD")
        .arg(&bed.stream)
        .arg("*")
        .arg("data")
        .arg(data.to_string())
        .exec_async(&mut third)
        .await
        .expect("room");
    eventually("the node ends there", async || {
        let mut command = redis::cmd("XLEN");
        let ended: usize =
            command.arg(bed.key("events:node.completed")).query_async(&mut third).await.expect("a number");
        (ended == 1).then_some(())
    })
    .await;
    assert_eq!(bed.ask::<usize>(&["DBSIZE"]).await, 0);
}

#[tokio::test]
async fn a_database_that_redis_does_not_have_is_named_by_its_setting() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").env("REDIS_DB", "99999").start();
    let record = worker.said("reading work failed").await;
    let error = record["error"].as_str().unwrap_or_default();
    assert!(error.contains("REDIS_DB") && error.contains("out of range"), "{record}");
    assert!(!error.contains("cannot be reached"), "it was reached: {record}");
    assert_eq!(worker.answers("/ready", 503).await.status, 503);
    refused_us(&worker).await;
}

#[tokio::test]
async fn a_port_that_is_taken_ends_the_start_with_the_address() {
    let bed = Bed::new().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (code, output) = bed.worker("w1").env("EXECUTOR__HTTP__PORT", &port).start().ends().await;
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains(&port) && output.contains("http.port"), "{output}");
}

#[tokio::test]
async fn the_worker_is_what_runs_without_a_subcommand_and_with_run() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").argument("run").start().ready().await;
    worker.terminate();
    assert_eq!(worker.ends().await.0, Some(0));
}
