//! Limits of time, each with a code of its own: the age in the queue, one attempt, the node, the item's own moment, and
//! an answer that goes quiet.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::bed::Bed;
use crate::harness::model::Model;

const SLOW: &str = "rules:\n  - reply: {text: late, delay: 60s}\n";

fn item(config: Value) -> Value {
    json!({"graph_id": "g", "node_id": "n", "run_id": "r", "config": config, "inputs": {}})
}

fn asking() -> Value {
    json!({"llm_config": {"prompt": "p"}})
}

#[tokio::test]
async fn an_item_that_is_too_old_at_its_first_start_fails_with_queue_timeout() {
    let bed = Bed::new().await;
    // An entry's id is the moment it was added.
    let old = Timestamp::now().as_millisecond() - 3_700_000;
    let node = json!({"tool_name": "current_time"});
    let entry: String =
        bed.ask(&["XADD", &bed.stream, &format!("{old}-0"), "data", &item(node.clone()).to_string()]).await;
    let mut young = item(node);
    young["node_id"] = json!("m");
    bed.submit(&young).await;
    let _worker = bed.worker("w1").set("limits.queue_age", "1h").start().ready().await;
    let events = bed.ended(2).await;
    let of = |node: &str| events.iter().find(|event| event["node_id"] == node).expect("both ended");
    assert_eq!(of("n").failure(), ("permanent", "queue_timeout"));
    assert_eq!(of("n")["metadata"]["work_id"], format!("{}/{entry}", bed.stream));
    assert!(of("n").error().contains("limits.queue_age"), "{}", of("n").error());
    assert!(of("m").output().is_object());
}

#[tokio::test]
async fn a_call_that_takes_longer_than_an_attempt_may_is_tried_again_and_fails_with_attempt_timeout() {
    let (bed, model) = (Bed::new().await, Model::start(SLOW));
    let _worker = bed.worker_with_model("w1", &model).set("limits.attempt_timeout", "300ms").start().ready().await;
    let event = bed.run(&item(asking())).await;
    assert_eq!(event.failure(), ("retriable", "attempt_timeout"));
    assert_eq!((&event["data"]["error_details"]["attempts"], model.calls().requests), (&json!(3), 3));
    assert!(event.error().contains("limits.attempt_timeout"), "{}", event.error());
}

#[tokio::test]
async fn the_nodes_time_and_the_items_own_moment_have_codes_of_their_own() {
    let (bed, model) = (Bed::new().await, Model::start(SLOW));
    let _worker = bed.worker_with_model("w1", &model).set("limits.attempt_timeout", "30s").start().ready().await;
    let mut limited = item(asking());
    limited["config"]["timeout"] = json!("400ms");
    assert_eq!(bed.run(&limited).await.failure(), ("permanent", "timeout"));
    let mut due = item(asking());
    due["node_id"] = json!("m");
    due["deadline"] = json!((Timestamp::now() + Duration::from_secs(1)).to_string());
    assert_eq!(bed.run(&due).await.failure(), ("permanent", "deadline_exceeded"));
}

#[tokio::test]
async fn an_answer_that_goes_quiet_is_tried_again_and_fails_with_llm_stalled() {
    let bed = Bed::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (asked, mut counted) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            asked.send_modify(|asked| *asked += 1);
            tokio::spawn(async move {
                let mut request = [0; 8192];
                let _ = client.read(&mut request).await;
                let _ = client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"id\"").await;
                // Nothing more comes, and the connection stays.
                let _ = client.read(&mut request).await;
            });
        }
    });
    let _worker = bed
        .worker("w1")
        .env("LLM_API_KEY", "a key of the test")
        .env("LLM_BASE_URL", url)
        .file("[llm.providers.anthropic]\nstall_timeout = \"300ms\"")
        .start()
        .ready()
        .await;
    let event = bed.run(&item(asking())).await;
    assert_eq!(event.failure(), ("retriable", "llm_stalled"));
    assert_eq!((&event["data"]["error_details"]["attempts"], *counted.borrow_and_update()), (&json!(3), 3));
}
