//! `executor-worker reconcile`: the ends of a graph's nodes told again, to consumers that lost them.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Layout};

async fn reconcile(bed: &Bed, arguments: &[&str]) -> (Option<i32>, String, Vec<Value>) {
    let command = bed.worker("cli").argument("reconcile");
    let command = arguments.iter().fold(command, |command, argument| command.argument(*argument)).start();
    let (code, text) = command.ends().await;
    (code, text, command.records())
}

fn item(graph: &str, node: &str, config: Value) -> Value {
    json!({"graph_id": graph, "node_id": node, "run_id": format!("run of {node}"), "config": config, "inputs": {},
        "metadata": {"tenant": "t"}})
}

/// The event as it was, without what tells a copy from it.
fn unmarked(event: &Value) -> Value {
    let mut event = event.clone();
    let mark = event["metadata"].as_object_mut().expect("an object").remove("republished");
    assert_eq!(mark, Some(json!(true)), "a copy says that it is one");
    event
}

#[tokio::test]
async fn every_end_is_told_again_under_its_own_id_in_both_layouts() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    for layout in Layout::BOTH {
        let graph = format!("{layout:?}");
        let own = json!({"theirs": {"status": "completed", "output": 1}, "waits": {"status": "pending"}});
        bed.put_state(layout, &graph, &json!({"node_states": own})).await;
        let mapped = json!({"tool_name": "calculate", "tool_params": {"expression": "6 * 7"},
            "output_mapping": {"whole": "@"}});
        bed.submit(&item(&graph, "good", mapped)).await;
        bed.submit(&item(&graph, "bad", json!({"tool_name": "no_such_tool"}))).await;
        bed.settled().await;
        bed.ask::<()>(&["HSET", &bed.key(&format!("cancel:{graph}")), "stopped", "{}"]).await;
        bed.submit(&item(&graph, "stopped", json!({"tool_name": "current_time"}))).await;
        let events = bed.ended(3).await;
        // The consumer loses everything.
        bed.ask::<()>(&["DEL", &bed.key("events:node.completed"), &bed.key("events:node.failed")]).await;

        let (code, said, _) = reconcile(&bed, &[&graph, "--dry-run"]).await;
        assert_eq!(code, Some(0));
        assert!(
            said.contains("3 events would be sent; 1 nodes have not ended, 1 were not ended by a worker"),
            "{said}"
        );
        assert_eq!(bed.count().await, 0);

        let (code, said, records) = reconcile(&bed, &[&graph, "--json"]).await;
        assert_eq!((code, records.len()), (Some(0), 3), "{said}");
        let copies = bed.events().await;
        assert_eq!(copies.len(), 3);
        for event in &events {
            let copy = copies.iter().find(|copy| copy["id"] == event["id"]).expect("a copy of its own");
            assert_eq!(unmarked(&copy.body), event.body);
            assert_eq!(copy.fields, event.fields);
            assert!(copy.seq > 3, "the graph's count goes on: {}", copy.seq);
        }
        let one = ["--node", "good", "--json"];
        let (_, said, records) = reconcile(&bed, &[&[graph.as_str()], &one[..]].concat()).await;
        assert_eq!((records.len(), &records[0]["seq"]), (1, &json!(7)), "{said}");
        bed.ask::<()>(&["DEL", &bed.key("events:node.completed"), &bed.key("events:node.failed")]).await;
    }
}

#[tokio::test]
async fn a_large_graph_is_told_completely() {
    let bed = Bed::new().await;
    let node = |at: usize| {
        json!({"node_id": format!("node:{at}"), "status": "completed", "output": at, "run_id": "r",
            "completed_at": "2026-01-02T03:04:05Z", "metadata": {"work_id": format!("s/{at}-0")}})
    };
    for layout in Layout::BOTH {
        let graph = format!("{layout:?}");
        let states: serde_json::Map<String, Value> = (0..100).map(|at| (format!("node:{at}"), node(at))).collect();
        bed.put_state(layout, &graph, &json!({"node_states": states})).await;
        let (code, said, records) = reconcile(&bed, &[&graph, "--json"]).await;
        assert_eq!((code, records.len()), (Some(0), 100), "{said}");
    }
    let events = bed.events().await;
    let outputs: std::collections::BTreeSet<u64> =
        events.iter().map(|event| event.output().as_u64().expect("a number")).collect();
    assert_eq!((events.len(), outputs), (200, (0..100).collect()));
    assert!(events.iter().all(|event| event["node_id"] == format!("node:{}", event.output())));
}

#[tokio::test]
async fn a_graph_without_a_state_is_told_apart() {
    let bed = Bed::new().await;
    let (code, said, _) = reconcile(&bed, &["nobody"]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("there is no state") && said.contains("state:nobody"), "{said}");
    bed.ask::<()>(&["RPUSH", &bed.key("state:list"), "x"]).await;
    let (code, said, _) = reconcile(&bed, &["list"]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("has a type that does not belong there"), "{said}");
    bed.ask::<()>(&["SET", &bed.key("state:broken"), "{\"node_states\":"]).await;
    let (code, said, _) = reconcile(&bed, &["broken"]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("is not valid JSON"), "{said}");
}
