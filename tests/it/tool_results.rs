//! Long results of tools: a model is shown a part, and the whole stands in Redis where people are told to look.

use da_node_executor::domain::blob::BlobRef;
use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::gate::Gate;
use crate::harness::mcp;
use crate::harness::model::Model;

/// A model that calls one tool and answers with what it was shown.
fn model(tool: &str, input: &Value) -> Model {
    let call = json!([{"name": tool, "input": input}]);
    Model::start(&format!(
        "rules: [{{replies: [{{tool_calls: {call}}}, {{text: \"{{{{ tool_results | join('\\n') }}}}\"}}]}}]"
    ))
}

fn agent(tool: &str) -> Value {
    let config = json!({"task": "look", "tools": [tool], "llm_config": {}});
    json!({"graph_id": "g", "node_id": "n", "run_id": "r", "config": config, "inputs": {}})
}

async fn blobs(bed: &Bed) -> Vec<String> {
    let mut keys: Vec<String> = bed.ask(&["KEYS", &bed.key("result:*")]).await;
    keys.sort_unstable();
    keys
}

/// The last that was told of the one call.
async fn told(bed: &Bed) -> Value {
    let told = bed.entries(&bed.key("events:tool.executed")).await;
    let last: Value = serde_json::from_slice(&told.last().expect("a call was told")[0].1).expect("JSON");
    last["data"].clone()
}

#[tokio::test]
async fn a_long_structured_result_is_shown_in_part_and_stored_whole() {
    let (bed, model) = (Bed::new().await, model("rows", &json!({"count": 300})));
    let file = mcp::stdio("lists", &mcp::fastmcp(), &["stdio"]);
    let spec = bed.worker_with_model("w1", &model).file(&file).set("limits.tool_result_chars", "400");
    let _worker = spec.start().ready().await;
    let event = bed.run(&agent("lists/rows")).await;
    let shown = event.output()["result"].as_str().expect("a text");
    let key = bed.key("result:g:n:r:t1:c0");
    assert_eq!(blobs(&bed).await, [key.as_str()], "the result is stored once, in the place of its call");
    assert!(shown.contains("characters left out") && shown.contains(&key), "the model knows both: {shown}");
    assert!(shown.len() < 1000, "{}", shown.len());

    let stored: String = bed.ask(&["GET", &key]).await;
    let reference: BlobRef = serde_json::from_value(told(&bed).await["stored"].clone()).expect("a reference");
    assert_eq!((reference.key.as_str(), reference.media_type.as_str()), (key.as_str(), "application/json"));
    assert!(reference.fits(stored.as_bytes()) && shown.contains(&format!("{} bytes", reference.bytes)));
    let whole: Value = serde_json::from_str(&stored).expect("JSON");
    let rows = whole["structured"]["result"].as_array().expect("a list");
    assert_eq!((rows.len(), &rows[299]), (300, &json!({"row": 299, "name": "row number 299"})));
    assert!(!whole["content"].as_array().expect("blocks").is_empty() && whole["is_error"] == false);

    let life: i64 = bed.ask(&["PTTL", &key]).await;
    assert!(life > 80_000_000, "it lives as long as the state: {life}");
    let looked_at: Option<f64> = bed.ask(&["ZSCORE", &bed.key("blobs"), "g\nn\nr\nt1:c0"]).await;
    assert!(looked_at.is_some(), "whoever cleans up keeps it alive");
    let journal: usize = bed.ask(&["EXISTS", &bed.key("journal:g:n:r")]).await;
    assert_eq!(journal, 0, "the journal goes with the end, what people look at stays");
}

#[tokio::test]
async fn an_image_that_is_too_large_for_a_model_is_stored_whole_and_told_in_words() {
    const BYTES: usize = 7 << 20;
    let (bed, model) = (Bed::new().await, model("picture", &json!({"size": BYTES})));
    let file = mcp::stdio("paint", &mcp::fastmcp(), &["stdio"]);
    let spec = bed.worker_with_model("w1", &model).file(&file).set("limits.output", "1048576");
    let _worker = spec.start().ready().await;
    let event = bed.run(&agent("paint/picture")).await;
    let shown = event.output()["result"].as_str().expect("a text");
    let key = bed.key("result:g:n:r:t1:c0");
    assert!(shown.contains("was made, but its result was left out") && shown.contains(&key), "{shown}");
    let stored: String = bed.ask(&["GET", &key]).await;
    let whole: Value = serde_json::from_str(&stored).expect("JSON");
    let image = &whole["content"][0];
    assert_eq!((&image["type"], &image["mimeType"]), (&json!("image"), &json!("image/png")));
    assert_eq!(image["data"].as_str().map(str::len), Some(BYTES.div_ceil(3) * 4), "every byte is there");
}

#[tokio::test]
async fn nothing_is_stored_that_may_not_be() {
    let (bed, model) = (Bed::new().await, model("rows", &json!({"count": 300})));
    let file = mcp::stdio("lists", &mcp::fastmcp(), &["stdio"]);
    let spec = bed.worker_with_model("w1", &model).file(&file).set("limits.tool_result_chars", "400");
    let _worker = spec.set("limits.stored_tool_result", "0").start().ready().await;
    let event = bed.run(&agent("lists/rows")).await;
    let shown = event.output()["result"].as_str().expect("a text");
    assert!(shown.contains("characters left out") && !shown.contains("stored"), "{shown}");
    assert!(blobs(&bed).await.is_empty() && told(&bed).await.get("stored").is_none());
}

#[tokio::test]
async fn a_worker_that_takes_over_stores_nothing_under_a_second_name() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let url = |door: &str| json!({"url": format!("http://{}/{door}", gate.host())});
    let call = |door: &str| json!({"tool_calls": [{"name": "http_request", "input": url(door)}]});
    let model =
        Model::start(&json!({"rules": [{"replies": [call("first"), call("wait"), {"text": "through"}]}]}).to_string());
    let worker = |id: &str| {
        let spec = bed.worker_with_model(id, &model).set("tools.http_request.allow", gate.host());
        spec.set("limits.tool_result_chars", "20").set("lease.duration", "1s").set("lease.renew", "200ms")
    };
    gate.open("first");
    let doomed = worker("w1").start().ready().await;
    bed.submit(&agent("http_request")).await;
    gate.arrived("wait", 1).await;
    let first = bed.key("result:g:n:r:t1:c0");
    assert_eq!(blobs(&bed).await, [first.as_str()], "it is there as soon as the model may know of it");
    let before: String = bed.ask(&["GET", &first]).await;
    let _next = worker("w2").start().ready().await;
    doomed.kill();
    gate.arrived("wait", 2).await;
    gate.open("wait");
    let event = bed.ended(1).await.remove(0);
    assert_eq!((&event.output()["result"], event.worker()), (&json!("through"), "w2"));
    assert_eq!(blobs(&bed).await, [first.as_str(), &bed.key("result:g:n:r:t2:c0")]);
    assert_eq!(bed.ask::<String>(&["GET", &first]).await, before, "what is on record is not made again");
    let calls = model.calls();
    assert_eq!((calls.completions, calls.repeated), (3, 0), "the model was shown the same by both");
}
