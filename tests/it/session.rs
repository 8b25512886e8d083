//! Conversations that outlive their node: kept in the graph's state, gone on with by a later node.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Layout};
use crate::harness::model::Model;

/// Answers by the first thing that was said and by how many turns it has had.
const SCRIPT: &str = "
rules:
  - match: {prompt: My name is Ada}
    replies: [{text: Hello Ada}, {text: You are Ada}, {text: Still Ada}]
  - reply: {text: 'Who is that? {{ prompt }}'}
";

fn talk(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "config": config})
}

/// The conversation in the graph's state.
async fn session(bed: &Bed, layout: Layout, name: &str) -> Value {
    let key = bed.key("state:g");
    let text = match layout {
        Layout::Hash => bed.ask::<Option<String>>(&["HGET", &key, &format!("session:{name}")]).await,
        Layout::Document => {
            let document: Value = serde_json::from_str(&bed.ask::<String>(&["GET", &key]).await).expect("a document");
            document["sessions"].get(name).map(Value::to_string)
        }
    };
    text.map_or(Value::Null, |text| serde_json::from_str(&text).expect("a session is JSON"))
}

#[tokio::test]
async fn a_conversation_is_gone_on_with_by_later_nodes_and_other_workers_in_both_layouts() {
    for layout in Layout::BOTH {
        let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
        bed.put_state(layout, "g", &json!({"inputs": {}, "status": "running"})).await;
        let llm = |prompt: &str| json!({"llm_config": {"prompt": prompt}, "session": "chat"});

        let worker = bed.worker_with_model("w1", &model).start().ready().await;
        let event = bed.run(&talk("first", llm("My name is Ada."))).await;
        assert_eq!(event.output()["content"], "Hello Ada");
        let kept = session(&bed, layout, "chat").await;
        assert_eq!((&kept["v"], &kept["node_id"]), (&json!(1), &json!("first")));
        assert_eq!(kept["turns"].as_array().expect("turns").len(), 2);
        drop(worker);

        let _worker = bed.worker_with_model("w2", &model).start().ready().await;
        let agent = json!({"task": "Who am I?", "tools": ["calculate"], "llm_config": {}, "session": "chat"});
        assert_eq!(bed.run(&talk("second", agent)).await.output()["result"], "You are Ada");
        // Neither another name nor a node without one knows of it.
        for config in [
            json!({"llm_config": {"prompt": "Who am I?"}, "session": "other"}),
            json!({"llm_config": {"prompt": "Who am I?"}}),
        ] {
            let event = bed.run(&talk("stranger", config)).await;
            assert_eq!(event.output()["content"], "Who is that? Who am I?");
        }
        assert_eq!(bed.run(&talk("third", llm("Sure?"))).await.output()["content"], "Still Ada");
        let kept = session(&bed, layout, "chat").await;
        assert_eq!((kept["turns"].as_array().map(Vec::len), &kept["node_id"]), (Some(6), &json!("third")));
    }
}

#[tokio::test]
async fn a_node_that_fails_leaves_the_conversation_as_it_was() {
    let script = "
rules:
  - match: {prompt: My name is Ada}
    replies: [{text: Hello Ada}, {error: {status: 400, message: no}}, {text: again}]
";
    let (bed, model) = (Bed::new().await, Model::start(script));
    bed.put_state(Layout::Hash, "g", &json!({"inputs": {}})).await;
    let _worker = bed.worker_with_model("w1", &model).start().ready().await;
    let llm = |prompt: &str| json!({"llm_config": {"prompt": prompt}, "session": "chat"});
    bed.run(&talk("first", llm("My name is Ada."))).await;
    let before = session(&bed, Layout::Hash, "chat").await;
    assert_eq!(bed.run(&talk("second", llm("Who am I?"))).await.failure(), ("permanent", "invalid_request"));
    assert_eq!(session(&bed, Layout::Hash, "chat").await, before);

    bed.ask::<()>(&["HSET", &bed.key("state:g"), "session:chat", r#"{"v":9,"turns":[]}"#]).await;
    let event = bed.run(&talk("third", llm("Who am I?"))).await;
    assert_eq!(event.failure(), ("validation", "session_unreadable"));
    assert!(event.error().contains("version is 9"), "{}", event.error());
}

#[tokio::test]
async fn a_node_without_tools_goes_on_with_what_an_agent_thought_and_did() {
    // The server holds the rules of the vendor: signed thinking belongs behind the system prompt and the tools that it
    // came from, and tools in use have to be defined.
    let script = "
rules:
  - match: {prompt: How much is it}
    replies:
      - {thinking: I have to add, tool_calls: [{name: calculate, input: {expression: 1 + 1}}]}
      - {thinking: That was easy, text: It is 2}
      - {thinking: How to say it, text: Two}
      - {tool_calls: [{name: calculate, input: {expression: 2 + 2}}]}
      - {text: It is 4}
      - {text: Four}
";
    for stream in ["never", "always"] {
        let (bed, model) = (Bed::new().await, Model::start(script));
        bed.put_state(Layout::Hash, "g", &json!({"inputs": {}})).await;
        let members = format!("[llm.providers.anthropic]\nstream = \"{stream}\"\n");
        let _worker = bed.worker_with_model("w1", &model).file(&members).start().ready().await;
        let agent = json!({"task": "How much is it?", "tools": ["calculate"], "llm_config": {}, "session": "chat"});
        let llm = json!({"llm_config": {"prompt": "In a word?", "system": "Be brief."}, "session": "chat"});
        for (node, config, member, said) in [
            ("first", &agent, "result", "It is 2"),
            ("second", &llm, "content", "Two"),
            ("third", &agent, "result", "It is 4"),
            ("fourth", &llm, "content", "Four"),
        ] {
            let event = bed.run(&talk(node, config.clone())).await;
            assert_eq!(event["type"], "node.completed", "{node}: {}", event.body);
            assert_eq!(event.output()[member], said, "{node}");
        }
        assert_eq!(model.calls().errors, 0);
    }
}
