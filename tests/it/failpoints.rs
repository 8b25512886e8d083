//! The places where the fault suite makes a worker die are not in the program that is released.

use da_node_executor::failpoint::{MARK, Point};
use serde_json::json;

use crate::harness::bed::Bed;
use crate::harness::model::Model;

/// An agent comes to every place: a turn of the model, a call, another turn.
const SCRIPT: &str = r#"
rules:
  - match: {prompt: count}
    replies:
      - tool_calls: [{name: calculate, input: {expression: 1 + 1}}]
      - {text: two}
"#;

#[tokio::test]
async fn without_the_feature_no_place_is_one_where_a_worker_can_be_told_to_die() {
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let armed = Point::ALL.map(|point| format!("{}=return(kill)", point.name())).join(";");
    let worker = bed.worker_with_model("w1", &model).env("FAILPOINTS", armed).start().ready().await;
    let agent = json!({"task": "count", "tools": ["calculate"], "llm_config": {}});
    let event = bed.run(&json!({"graph_id": "g", "node_id": "n", "config": agent, "inputs": {}})).await;
    assert_eq!(event.output()["result"], "two");
    assert!(worker.poll().is_none() && !worker.log().contains(MARK), "{}", worker.log());
    // The code that would do it is not there either; nor is what reads the variable.
    let program = std::fs::read(env!("CARGO_BIN_EXE_executor-worker")).expect("the program is built");
    for word in [MARK, "FAILPOINTS"] {
        assert!(memchr::memmem::find(&program, word.as_bytes()).is_none(), "{word:?} is in the program");
    }
}
