//! `submit`: what goes into the stream, what `--wait` tells, and what each end is worth to a script.

use serde_json::{Value, json};

use super::{Ended, Files, ended, typed};
use crate::harness::bed::Bed;
use crate::harness::gate::Gate;

async fn submit(bed: &Bed, arguments: &[&str]) -> Ended {
    ended(typed(bed.worker("cli").argument("submit"), arguments)).await
}

fn product() -> Value {
    json!({"graph_id": "g", "node_id": "n", "run_id": "r", "inputs": {"price": 21},
        "config": {"tool_name": "calculate", "tool_params": {"expression": "{{ price }} * 2"}}})
}

#[tokio::test]
async fn who_waits_sees_the_nodes_own_events_and_gets_its_result_on_stdout() {
    let (bed, gate, files) = (Bed::new().await, Gate::start().await, Files::new());
    let _worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    let item = json!({"graph_id": "g", "node_id": "n", "run_id": "r", "inputs": {}, "config": gate.node("door")});
    let file = files.put("item.json", item.to_string());
    let waiting = typed(bed.worker("cli").argument("submit"), &[&file, "--wait"]).start();
    gate.arrived("door", 1).await;
    // Others of the same node, the same graph and the same run end meanwhile; nobody waits for them here.
    for (graph, node, run) in [("h", "n", "r"), ("g", "m", "r"), ("g", "n", "s")] {
        let config = json!({"tool_name": "current_time"});
        let other = json!({"graph_id": graph, "node_id": node, "run_id": run, "inputs": {}, "config": config});
        bed.submit(&other).await;
    }
    bed.ended_so_far(3).await;
    assert!(waiting.poll().is_none(), "it waits for its own: {}", waiting.log());
    gate.open("door");
    let (code, text) = waiting.ends().await;
    assert_eq!(code, Some(0), "{text}");
    let events = bed.ended(4).await;
    let own = events.iter().find(|event| event["run_id"] == "r" && event["node_id"] == "n" && event["graph_id"] == "g");
    let own = own.expect("its terminal event");
    let printed: Value = serde_json::from_str(&waiting.printed()).expect("the result and nothing else");
    assert_eq!(&printed, own.output());
    let told: Vec<Value> = waiting.records().into_iter().filter(|record| record["type"].is_string()).collect();
    assert!(told.iter().any(|event| event["id"] == own["id"]), "the terminal event is told: {text}");
    assert!(told.iter().any(|event| event["type"] == "node.started"), "and how it began: {text}");
    for event in &told {
        let ids = ["graph_id", "node_id", "run_id"].map(|id| event[id].as_str().unwrap_or_default());
        assert_eq!(ids, ["g", "n", "r"], "{event}");
    }
}

#[tokio::test]
async fn a_node_that_fails_ends_the_wait_with_1_and_nothing_on_stdout() {
    let (bed, files) = (Bed::new().await, Files::new());
    let _worker = bed.worker("w1").start().ready().await;
    let mut item = product();
    item["config"]["tool_params"]["expression"] = json!("{{ prise }} * 2");
    let said = submit(&bed, &[&files.put("item.json", item.to_string()), "--wait"]).await;
    said.expect("a typing slip", 1, &["node.failed", "prise", "price"]);
    assert_eq!(said.printed, "");
    let event = said.records.iter().find(|record| record["type"] == "node.failed").expect("the event");
    assert_eq!(event["data"]["error_details"]["category"], "validation");
}

#[tokio::test]
async fn an_item_out_of_stdin_goes_in_as_it_is_and_its_entry_is_printed() {
    let bed = Bed::new().await;
    // Numbers and spaces that no parser keeps.
    let text = r#"{ "graph_id": "g",  "node_id": "n", "inputs": {"n": 1.0000000000000000000001} }"#;
    let said = ended(typed(bed.worker("cli"), &["submit", "-"]).input(text)).await;
    said.expect("without --wait nobody has to be there", 0, &[]);
    let entries: Vec<(String, Vec<(String, String)>)> = bed.ask(&["XRANGE", &bed.stream, "-", "+"]).await;
    assert_eq!(entries, [(said.printed, vec![(String::from("data"), String::from(text))])]);

    let other = format!("{}.other", bed.stream);
    let said = ended(typed(bed.worker("cli"), &["submit", "--stream", &other, "-"]).input(text)).await;
    said.expect("a stream by name", 0, &[]);
    let lengths = [bed.ask::<u64>(&["XLEN", &bed.stream]).await, bed.ask::<u64>(&["XLEN", &other]).await];
    assert_eq!(lengths, [1, 1]);
}

#[tokio::test]
async fn a_run_that_ended_before_is_not_waited_for_and_runs_no_second_time() {
    let (bed, files) = (Bed::new().await, Files::new());
    let _worker = bed.worker("w1").start().ready().await;
    let file = files.put("item.json", product().to_string());
    submit(&bed, &[&file, "--wait"]).await.expect("the first", 0, &["42"]);
    let first = bed.ended(1).await.remove(0);
    let work = first["metadata"]["work_id"].as_str().expect("an id").to_owned();
    // It ends long before the time that it may wait.
    let said = submit(&bed, &[&file, "--wait", "--timeout", "10m"]).await;
    said.expect("the second", 1, &["run `r` of this node has ended before", &work]);
    assert_eq!(said.printed, "");
    assert_eq!(bed.ended(1).await[0]["id"], first["id"]);
}

#[tokio::test]
async fn where_no_worker_is_the_wait_says_so_ends_in_time_and_leaves_the_item() {
    let (bed, files) = (Bed::new().await, Files::new());
    let file = files.put("item.json", product().to_string());
    let said = submit(&bed, &[&file, "--wait", "--timeout", "4s"]).await;
    let asked = format!("does a worker run on {}", bed.server().url());
    said.expect("nobody", 1, &[&asked, "did not end within 4s"]);
    assert_eq!((said.printed.as_str(), bed.ask::<u64>(&["XLEN", &bed.stream]).await), ("", 1));
}

#[tokio::test]
async fn what_no_worker_would_take_is_refused_before_it_is_in_the_stream() {
    let (bed, files) = (Bed::new().await, Files::new());
    for (text, words) in [
        ("nope", &["item.json is not JSON"][..]),
        ("", &["item.json is not JSON"]),
        ("[1]", &["item.json is JSON, but no object"]),
        (r#"{"graph_id": "g"}"#, &["item.json is not a work item", "`node_id` is missing"]),
        (r#"{"v": 2, "graph_id": "g", "node_id": "n"}"#, &["upgrade the worker"]),
        (r#"{"type": "node.wrk", "data": {"graph_id": "g", "node_id": "n"}}"#, &[r#"`type` is "node.wrk""#]),
        (r#"{"tool_name": "current_time"}"#, &["`graph_id` is missing", "executor-worker exec"]),
    ] {
        submit(&bed, &[&files.put("item.json", text)]).await.expect(text, 1, words);
        let said = ended(typed(bed.worker("cli"), &["submit", "-", "--wait"]).input(text)).await;
        said.expect(text, 1, &["the input is"]);
    }
    let missing = submit(&bed, &["missing.json"]).await;
    missing.expect("no file", 1, &["cannot read missing.json"]);
    let file = files.put("large.json", product().to_string());
    let said = ended(typed(bed.worker("cli").set("limits.item", "100"), &["submit", &file])).await;
    said.expect("more than the limit", 1, &["`limits.item`", "(100)"]);
    assert!(!bed.ask::<bool>(&["EXISTS", &bed.stream]).await);
}

#[tokio::test]
async fn a_redis_that_is_away_ends_a_submission_with_69_and_its_address() {
    let (bed, files) = (Bed::new().await, Files::new());
    let file = files.put("item.json", product().to_string());
    for arguments in [&["submit", &file][..], &["submit", &file, "--wait"]] {
        // Nothing can listen there.
        let spec = bed.worker("cli").env("REDIS_ADDR", "redis://:s3cr3t@127.0.0.1:1");
        let said = ended(typed(spec, arguments)).await;
        said.expect("nobody listens", 69, &["redis://127.0.0.1:1", "REDIS_ADDR"]);
        assert!(!said.text.contains("s3cr3t"), "{}", said.text);
        // It is there and wants to know who we are.
        let spec = bed.worker("cli").env("REDIS_DB", "99999");
        ended(typed(spec, arguments)).await.expect("no such database", 69, &["REDIS_DB"]);
    }
}

#[tokio::test]
async fn arguments_and_settings_that_cannot_be_meant_have_codes_of_their_own() {
    let (bed, files) = (Bed::new().await, Files::new());
    let file = files.put("item.json", product().to_string());
    submit(&bed, &[&file, "--timeout", "1m"]).await.expect("a limit of nothing", 2, &["--wait"]);
    submit(&bed, &[&file, "--wait", "--timeout", "soon"]).await.expect("no duration", 2, &["--timeout"]);
    submit(&bed, &[]).await.expect("nothing", 2, &["<FILE>"]);
    submit(&bed, &[&file, "--set", "pool.size=0"]).await.expect("a setting", 78, &["--set pool.size"]);
    assert!(!bed.ask::<bool>(&["EXISTS", &bed.stream]).await);
}
