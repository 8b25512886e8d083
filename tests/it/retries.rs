//! The one layer of retries, seen from outside: what is tried again, how often, how long it waits, and what the event
//! says about it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::eventually;
use crate::harness::model::Model;

const SCRIPT: &str = r#"
rules:
  - match: {prompt: overloaded once}
    reply: {text: fine, fail_first: {times: 1, status: 529}}
  - match: {prompt: broken twice}
    reply: {text: fine, fail_first: {times: 2, status: 500}}
  - match: {prompt: stumbles, tool: calculate}
    replies:
      - {tool_calls: [{name: calculate, input: {expression: "1"}}], fail_first: {times: 1, status: 529}}
      - {text: done, fail_first: {times: 2, status: 529}}
  - match: {prompt: limited}
    reply: {text: fine, fail_first: {times: 4, status: 429, retry_after: 250ms}}
  - match: {prompt: always busy}
    reply: {error: {status: 529}}
  - match: {prompt: come back later}
    reply: {error: {status: 429, retry_after: 90s}}
  - match: {prompt: wrong}
    reply: {error: {status: 400}}
"#;

fn item(node: &str, prompt: &str, more: &Value) -> Value {
    let mut config = json!({"llm_config": {"prompt": prompt}});
    config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({"graph_id": "g", "node_id": node, "config": config, "inputs": {}})
}

#[tokio::test]
async fn a_step_that_fails_in_passing_is_tried_again_and_the_event_says_so() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let worker = bed.worker_with_model("w1", &model).start().ready().await;
    let event = bed.run(&item("a", "overloaded once", &json!({}))).await;
    assert_eq!((event.output()["content"].as_str(), event["metadata"]["attempt"].as_u64()), (Some("fine"), Some(2)));
    assert_eq!(model.calls().requests, 2);
    // Whoever asks the provider about it finds the request's name in the log.
    eventually("the log names the request", async || worker.log().contains("(request req_scripted_").then_some(()))
        .await;
    let event = bed.run(&item("b", "broken twice", &json!({}))).await;
    assert_eq!((event.output()["content"].as_str(), event["metadata"]["attempt"].as_u64()), (Some("fine"), Some(3)));
    assert_eq!(worker.metric("executor_retries_total", &[]).await, 3.0);
    // Every try of every step counts, not those of the worst step alone.
    let agent = json!({"task": "stumbles", "tools": ["calculate"], "llm_config": {}});
    let event = bed.run(&json!({"graph_id": "g", "node_id": "c", "config": agent, "inputs": {}})).await;
    assert_eq!((event["type"].as_str(), event["metadata"]["attempt"].as_u64()), (Some("node.completed"), Some(3)));
    assert_eq!(worker.metric("executor_retries_total", &[]).await, 6.0);
    let event = bed.run(&item("d", "wrong", &json!({}))).await;
    assert_eq!((event.failure().0, event["metadata"]["attempt"].as_u64()), ("permanent", Some(1)));
    assert!(event.error().contains("(request req_scripted_"), "{}", event.error());
    assert_eq!(model.calls().requests, 11, "what fails for good is not tried again");
}

#[tokio::test]
async fn a_wait_that_the_provider_asks_for_is_kept_and_uses_up_no_attempt() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let _worker = bed.worker_with_model("w1", &model).start().ready().await;
    let event = bed.run(&item("n", "limited", &json!({}))).await;
    assert_eq!(event.output()["content"], "fine", "four refusals are more than the three attempts there are");
    assert_eq!((model.calls().requests, event["metadata"]["attempt"].as_u64()), (5, Some(1)));
    let took = Duration::from_millis(event["metadata"]["duration_ms"].as_u64().expect("a duration"));
    assert!(took >= 4 * Duration::from_millis(250), "{took:?}");
}

#[tokio::test]
async fn a_wait_longer_than_the_nodes_time_fails_it_with_the_wait_in_the_event() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let _worker = bed.worker_with_model("w1", &model).start().ready().await;
    let event = bed.run(&item("n", "come back later", &json!({"timeout": "30s"}))).await;
    assert_eq!(event.failure(), ("retriable", "rate_limited"));
    assert_eq!(event["data"]["error_details"]["retry_after_ms"], 90_000);
    assert!(event["metadata"]["duration_ms"].as_u64() < Some(10_000), "nobody waits in vain: {}", event.body);
    assert_eq!(model.calls().requests, 1);
}

#[tokio::test]
async fn a_node_may_ask_for_more_or_fewer_attempts() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let _worker = bed.worker_with_model("w1", &model).start().ready().await;
    for (node, attempts) in [("one", 1), ("five", 5)] {
        let before = model.calls().requests;
        let retry = json!({"retry": {"max_attempts": attempts, "initial": "5ms", "max": "20ms"}});
        let event = bed.run(&item(node, "always busy", &retry)).await;
        assert_eq!(event.failure(), ("retriable", "overloaded"));
        assert_eq!(event["data"]["error_details"]["attempts"], attempts);
        assert_eq!(model.calls().requests - before, attempts);
    }
}
