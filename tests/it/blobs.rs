//! Large outputs: state and event refer to them, other nodes read them as if they stood there.

use da_node_executor::domain::blob::BlobRef;
use serde_json::{Value, json};

use crate::harness::bed::{Bed, Layout};
use crate::harness::model::Model;

const LENGTH: usize = 5000;

fn item(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "run_id": format!("run-{node}"), "config": config, "inputs": {}})
}

fn model() -> Model {
    Model::start(&format!("rules:\n  - reply: {{text: \"{}\"}}\n", "wide ".repeat(LENGTH / 5)))
}

#[tokio::test]
async fn a_large_output_stands_under_its_own_key_and_templates_read_it() {
    for layout in Layout::BOTH {
        let (bed, model) = (Bed::new().await, model());
        let _worker = bed.worker_with_model("w1", &model).set("limits.inline_output", "4000").start().ready().await;
        let states = json!({"a": {"status": "pending"}});
        bed.put_state(layout, "g", &json!({"graph": {"nodes": {}}, "inputs": {}, "node_states": states})).await;
        let event = bed.run(&item("a", json!({"llm_config": {"prompt": "p"}}))).await;
        let reference = BlobRef::of(event.output()).expect("the event refers to the output");
        assert_eq!(
            (reference.key.as_str(), reference.media_type.as_str()),
            (&*bed.key("blob:g:a:run-a"), "application/json")
        );
        let state = bed.node_state("g", "a").await.expect("a state");
        assert_eq!((&state["output"], &state["status"]), (event.output(), &json!("completed")));
        let stored: String = bed.ask(&["GET", &reference.key]).await;
        assert!(reference.fits(stored.as_bytes()));
        let output: Value = serde_json::from_str(&stored).expect("JSON");
        assert_eq!(output["content"].as_str().map(str::len), Some(LENGTH));
        assert!(output["usage"].is_object());
        let life: i64 = bed.ask(&["PTTL", &reference.key]).await;
        assert!(life > 80_000_000, "it lives as long as the state");
        let staged: Vec<String> = bed.ask(&["KEYS", &bed.key("staged:*")]).await;
        assert_eq!(staged, [""; 0]);

        let reading = |expression: &str| json!({"tool_name": "calculate", "tool_params": {"expression": expression}});
        let event = bed.run(&item("b", reading("{{ a.content | length }} + 1"))).await;
        assert_eq!(*event.output(), LENGTH + 1);
        let event = bed.run(&item("c", reading("{{ nodes['a'].output.usage.output_tokens * 0 }} + 2"))).await;
        assert_eq!(*event.output(), 2, "a small output stands where it always stood");

        bed.ask::<()>(&["DEL", &reference.key]).await;
        let event = bed.run(&item("d", reading("{{ a.content | length }} + 1"))).await;
        assert_eq!(event.failure(), ("validation", "blob_missing"));
        assert!(event.error().contains(&reference.key) && event.error().contains("`a`"), "{}", event.error());
    }
}

#[tokio::test]
async fn a_run_that_is_repeated_leaves_an_output_of_its_own() {
    let (bed, model) = (Bed::new().await, model());
    let _worker = bed.worker_with_model("w1", &model).set("limits.inline_output", "4000").start().ready().await;
    let mut keys = Vec::new();
    for run in ["first", "second"] {
        let mut again = item("a", json!({"llm_config": {"prompt": "p"}}));
        again["run_id"] = json!(run);
        let before = bed.count().await;
        bed.submit(&again).await;
        let events = bed.ended(before + 1).await;
        keys.extend(
            events.iter().filter(|event| event["run_id"] == run).filter_map(|event| BlobRef::of(event.output())),
        );
    }
    assert_eq!(
        keys.iter().map(|blob| blob.key.clone()).collect::<Vec<_>>(),
        ["first", "second"].map(|run| bed.key(&format!("blob:g:a:{run}")))
    );
    let stored: usize = bed.ask(&["EXISTS", &keys[0].key, &keys[1].key]).await;
    assert_eq!(stored, 2);
}

#[tokio::test]
async fn nodes_whose_ids_run_into_each_other_have_outputs_of_their_own() {
    let say = |word: &str| format!("  - {{match: {{prompt: {word}}}, reply: {{text: {}}}}}\n", word.repeat(500));
    let (bed, model) = (Bed::new().await, Model::start(&format!("rules:\n{}{}", say("one"), say("two"))));
    let _worker = bed.worker_with_model("w1", &model).set("limits.inline_output", "1000").start().ready().await;
    let mut blobs = Vec::new();
    for (graph, node, word) in [("a:b", "c", "one"), ("a", "b:c", "two")] {
        let config = json!({"llm_config": {"prompt": word}});
        let item = json!({"graph_id": graph, "node_id": node, "run_id": "r", "config": config, "inputs": {}});
        blobs.push(BlobRef::of(bed.run(&item).await.output()).expect("a reference"));
    }
    assert_eq!([&blobs[0].key, &blobs[1].key], [&bed.key("blob:a%3Ab:c:r"), &bed.key("blob:a:b%3Ac:r")]);
    for blob in blobs {
        let stored: Vec<u8> = bed.ask(&["GET", &blob.key]).await;
        assert!(blob.fits(&stored), "{} holds the output of another node", blob.key);
    }
}

#[tokio::test]
async fn an_output_over_the_hard_limit_still_fails_the_node() {
    let (bed, model) = (Bed::new().await, model());
    let spec = bed.worker_with_model("w1", &model).set("limits.inline_output", "1000").set("limits.output", "4000");
    let _worker = spec.start().ready().await;
    let event = bed.run(&item("a", json!({"llm_config": {"prompt": "p"}}))).await;
    assert_eq!(event.failure(), ("validation", "output_too_large"));
    let stored: Vec<String> = bed.ask(&["KEYS", &bed.key("blob*")]).await;
    assert_eq!(stored, [""; 0]);
}
