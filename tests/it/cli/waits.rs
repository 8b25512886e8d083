//! `executor-worker waits`, `approve` and `reject`, and the same over HTTP: what people see, and that of two one is told.

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::eventually;
use crate::harness::worker::Worker;

const TOKEN: &str = "0123456789abcdef-of-the-test";

/// A tool node that asks.
fn item(graph: &str, node: &str) -> Value {
    let config = json!({"tool_name": "calculate", "tool_params": {"expression": "6 * 7"}, "approve": ["calculate"]});
    json!({"graph_id": graph, "node_id": node, "run_id": format!("run-{node}"), "config": config, "inputs": {}})
}

async fn asked(bed: &Bed, count: usize) {
    eventually(&format!("{count} open questions"), async || {
        let open: usize = bed.ask(&["HLEN", &bed.key("waits")]).await;
        (open == count).then_some(())
    })
    .await;
}

/// A command line with its exit code, what it printed, and all that it said.
async fn said(bed: &Bed, arguments: &[&str]) -> (Option<i32>, Worker, String) {
    let command =
        arguments.iter().fold(bed.worker("cli").env("USER", "ann"), |command, argument| command.argument(*argument));
    let command = command.start();
    let (code, text) = command.ends().await;
    (code, command, text)
}

async fn listed(bed: &Bed, arguments: &[&str]) -> Vec<Value> {
    let (code, command, text) = said(bed, &[&["waits", "list", "-o", "jsonl"], arguments].concat()).await;
    assert_eq!(code, Some(0), "{text}");
    command.records()
}

#[tokio::test]
async fn people_see_what_is_asked_and_decide_by_its_name() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").set("retry.park_after", "100ms").start().ready().await;
    assert_eq!(get(&worker, "/api/waits", Some(TOKEN)).await.0, 403, "no token opens what has none");
    for (graph, node) in [("g", "a"), ("g", "b"), ("h", "c")] {
        bed.submit(&item(graph, node)).await;
    }
    asked(&bed, 3).await;
    let all = listed(&bed, &[]).await;
    assert_eq!(all.len(), 3);
    assert_eq!(listed(&bed, &["--graph", "g", "--limit", "1"]).await.len(), 1);
    let of_c = listed(&bed, &["--node", "c"]).await;
    assert_eq!((of_c.len(), &of_c[0]["graph_id"], &of_c[0]["kind"]), (1, &json!("h"), &json!("approval")));
    let (_, table, text) = said(&bed, &["waits", "list"]).await;
    assert!(table.printed().contains("calculate {\"expression\":\"6 * 7\"}"), "{}", table.printed());
    assert!(text.contains("3 open questions"), "{text}");
    let (_, status, _) = said(&bed, &["status"]).await;
    assert!(status.printed().contains("3 questions are open"), "{}", status.printed());

    let name = |node: &str| {
        let ask = all.iter().find(|ask| ask["node_id"] == node).expect("it asks");
        String::from(ask["wait_id"].as_str().expect("a name"))
    };
    let (code, shown, _) = said(&bed, &["waits", "show", &name("a")]).await;
    let shown: Value = serde_json::from_str(&shown.printed()).expect("JSON");
    assert_eq!((code, &shown["arguments"]["expression"]), (Some(0), &json!("6 * 7")));

    let edit = r#"{"expression": "6 * 8"}"#;
    let (code, _, text) = said(&bed, &["approve", &name("a"), "--edit", edit, "--note", "more"]).await;
    assert_eq!(code, Some(0), "{text}");
    let (code, _, text) = said(&bed, &["reject", &name("b"), "--note", "no need", "--by", "bob"]).await;
    assert_eq!(code, Some(0), "{text}");
    let events = bed.ended(2).await;
    let of = |node: &str| events.iter().find(|event| event["node_id"] == node).expect("it ended");
    assert_eq!(of("a").output(), &json!(48));
    let decision = &of("a")["metadata"]["decisions"][0];
    assert_eq!(
        (&decision["by"], &decision["note"], &decision["edited"]),
        (&json!("ann"), &json!("more"), &json!(true))
    );
    assert_eq!(of("b").failure(), ("permanent", "call_refused"));
    assert!(of("b").error().contains("bob: no need"), "{}", of("b").error());

    // Whoever comes second is told who was first.
    let (code, _, text) = said(&bed, &["approve", &name("b")]).await;
    assert!(code == Some(1) && text.contains("bob decided first: reject"), "{text}");
    let (code, _, text) = said(&bed, &["waits", "show", "wait_nobody"]).await;
    assert!(code == Some(1) && text.contains("no open question is named wait_nobody"), "{text}");
    // What does not fit changes nothing.
    let (code, _, text) = said(&bed, &["approve", &name("c"), "--edit", r#"{"expresion": "1"}"#]).await;
    assert!(code == Some(1) && text.contains("does not fit"), "{text}");
    let (code, _, _) = said(&bed, &["reject", &name("c")]).await;
    assert_eq!(code, Some(2), "a refusal says why");
    assert_eq!(listed(&bed, &[]).await.len(), 1);
    let (code, _, text) = said(&bed, &["cancel", "h"]).await;
    assert!(code == Some(0) && text.contains("1 of its nodes waited for a decision"), "{text}");
    let events = bed.ended(3).await;
    let end = events.iter().find(|event| event["node_id"] == "c").expect("it ended");
    assert_eq!(end.failure(), ("cancelled", "graph_cancelled"));
    assert!(listed(&bed, &[]).await.is_empty());
}

async fn post(worker: &Worker, path: &str, body: &Value, token: Option<&str>) -> (u16, Value) {
    let url = format!("http://{}{path}", worker.address().await);
    let mut request = reqwest::Client::new().post(url).json(body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.expect("the worker answers");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

async fn get(worker: &Worker, path: &str, token: Option<&str>) -> (u16, Value) {
    let mut request = reqwest::Client::new().get(format!("http://{}{path}", worker.address().await));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.expect("the worker answers");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

#[tokio::test]
async fn the_api_shows_and_decides_for_who_has_the_token() {
    let bed = Bed::new().await;
    let spec = bed.worker("w1").set("retry.park_after", "100ms").set("http.admin_token", TOKEN);
    let worker = spec.start().ready().await;
    for node in ["a", "b"] {
        bed.submit(&item("g", node)).await;
    }
    asked(&bed, 2).await;
    assert_eq!(get(&worker, "/api/waits", None).await.0, 401, "questions show what tools are called with");
    let (status, found) = get(&worker, "/api/waits?graph=g", Some(TOKEN)).await;
    assert_eq!((status, &found["total"]), (200, &json!(2)));
    let (_, one) = get(&worker, "/api/waits?limit=1", Some(TOKEN)).await;
    assert_eq!((&one["total"], &one["waits"][0]), (&json!(2), &found["waits"][0]), "the one that is due first");
    let (status, told) = get(&worker, "/api/waits?limit=many", Some(TOKEN)).await;
    assert!(status == 400 && told["error"].as_str().is_some_and(|error| error.contains("query")), "{status} {told}");
    let name = |node: &str| {
        let asks = found["waits"].as_array().expect("a list");
        let ask = asks.iter().find(|ask| ask["node_id"] == node).expect("it asks");
        String::from(ask["wait_id"].as_str().expect("a name"))
    };
    let path = |node: &str, rest: &str| format!("/api/waits/{}{rest}", name(node));
    assert_eq!(get(&worker, &path("a", ""), Some(TOKEN)).await.1["tool"], "calculate");
    assert_eq!(post(&worker, &path("a", "/approve"), &json!({}), None).await.0, 401);
    let bad = json!({"arguments": {"expresion": "1"}, "by": "ann"});
    let (status, told) = post(&worker, &path("a", "/approve"), &bad, Some(TOKEN)).await;
    assert_eq!((status, &told["code"]), (422, &json!("content_invalid")));
    // What cannot be read agrees to nothing, least of all to the arguments as they stand.
    for body in [r#"{"argument": {"expression": "1"}}"#, r#"{"by": "#, "yes"] {
        let url = format!("http://{}{}", worker.address().await, path("a", "/approve"));
        let request = reqwest::Client::new().post(url).bearer_auth(TOKEN).body(body);
        let answer = request.send().await.expect("the worker answers");
        assert_eq!(answer.status().as_u16(), 400, "{body}");
    }
    let odd = json!({"action": "approve"});
    assert_eq!(post(&worker, &path("a", "/decide"), &odd, Some(TOKEN)).await.0, 400);
    let (status, told) = post(&worker, &path("a", "/approve"), &json!({"by": "ann"}), Some(TOKEN)).await;
    assert_eq!((status, told), (200, json!({"accepted": true})));
    let no = json!({"by": "bob", "note": "too late"});
    let (status, told) = post(&worker, &path("a", "/reject"), &no, Some(TOKEN)).await;
    assert_eq!((status, &told["decided"]["by"]), (409, &json!("ann")));
    let (status, _) = post(&worker, &path("b", "/reject"), &json!({"by": "bob", "note": "no"}), Some(TOKEN)).await;
    assert_eq!(status, 200);
    let events = bed.ended(2).await;
    assert!(events.iter().any(|event| event["type"] == "node.completed"));
    for (result, count) in [("accepted", 2.0), ("already_decided", 1.0), ("content_invalid", 1.0)] {
        assert_eq!(worker.metric("executor_wait_decisions_total", &[result]).await, count, "{result}");
    }
    assert_eq!(get(&worker, "/api/waits/wait_nobody", Some(TOKEN)).await.0, 404);
    let (status, _) = post(&worker, "/api/waits/wait_nobody/approve", &json!({}), Some(TOKEN)).await;
    assert_eq!(status, 404);
}
