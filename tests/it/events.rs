//! What goes in and out beside the plain path: live progress, odd ids, large values, streams of the wrong kind.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Layout};
use crate::harness::eventually;
use crate::harness::model::Model;

async fn progress(bed: &Bed, kind: &str) -> Vec<Value> {
    let entries = bed.entries(&bed.key(&format!("events:{kind}"))).await;
    let parse = |(name, value): &(String, Vec<u8>)| {
        assert_eq!(name, "data", "progress is not counted");
        serde_json::from_slice(value).expect("an event is JSON")
    };
    entries.iter().map(|fields| parse(&fields[0])).collect()
}

const AGENT: &str = r#"
rules:
  - match: {prompt: work}
    replies:
      - {text: first, tool_calls: [{name: calculate, input: {expression: "1"}}, {name: calculate, input: {expression: "1/0"}}]}
      - {text: done}
"#;

fn agent() -> Value {
    json!({"graph_id": "g", "node_id": "n", "run_id": "r", "inputs": {},
        "config": {"task": "work", "tools": ["calculate"], "llm_config": {}}})
}

#[tokio::test]
async fn the_steps_of_a_node_are_told_while_it_runs() {
    let (bed, model) = (Bed::new().await, Model::start(AGENT));
    let _worker = bed.worker_with_model("w1", &model).start().ready().await;
    let event = bed.run(&agent()).await;
    eventually("the progress is written", async || {
        (progress(&bed, "node.progress").await.len() == 2 && progress(&bed, "tool.executed").await.len() == 2)
            .then_some(())
    })
    .await;
    let mut all = Vec::new();
    for (kind, count) in [("node.started", 1), ("node.progress", 2), ("tool.executed", 2)] {
        let told = progress(&bed, kind).await;
        assert_eq!(told.len(), count, "{kind}");
        for step in &told {
            let members =
                ["v", "id", "type", "graph_id", "execution_id", "node_id", "run_id", "timestamp", "data", "metadata"];
            assert!(members.iter().all(|member| step.get(member).is_some()), "{step}");
            assert_eq!((&step["type"], &step["graph_id"], &step["run_id"]), (&json!(kind), &json!("g"), &json!("r")));
            assert_eq!(step["metadata"]["delivery"], 1);
            assert_eq!(step["metadata"]["work_id"], event["metadata"]["work_id"]);
        }
        all.extend(told);
    }
    let mut seqs: Vec<u64> = all.iter().map(|step| step["metadata"]["seq"].as_u64().expect("a count")).collect();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs.len(), 5, "each step has a number of its own");
    let tools = progress(&bed, "tool.executed").await;
    assert_eq!(tools.iter().filter(|tool| tool["data"]["is_error"] == true).count(), 1);
    assert!(tools.iter().all(|tool| tool["data"]["tool"] == "calculate" && tool["data"]["duration_ms"].is_u64()));
    let text = tools.iter().chain(&all).map(Value::to_string).collect::<String>();
    assert!(!text.contains("1/0"), "arguments have no place in progress");
}

#[tokio::test]
async fn progress_that_nobody_wants_is_not_told() {
    let (bed, model) = (Bed::new().await, Model::start(AGENT));
    let _worker = bed.worker_with_model("w1", &model).set("events.progress", "tool.executed").start().ready().await;
    bed.run(&agent()).await;
    eventually("tool calls are told", async || (progress(&bed, "tool.executed").await.len() == 2).then_some(())).await;
    let keys: Vec<String> = bed.ask(&["KEYS", &bed.key("events:*")]).await;
    assert_eq!(keys.len(), 2, "{keys:?}");
}

#[tokio::test]
async fn an_answer_is_told_while_it_is_written_and_priced_when_it_is_there() {
    const SCRIPT: &str = "
rules:
  - match: {prompt: slowly}
    reply:
      thinking: one moment
      text: a letter that takes its time and is told in pieces while it is written
      pace: 60ms
      usage: {input_tokens: 1000, output_tokens: 200, cache_read_tokens: 600}
";
    let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
    let prices = "[llm.prices.claude-sonnet-5-5]\ninput = 2\noutput = 10\ncache_read = 0.5\n";
    let worker = bed.worker_with_model("w1", &model).file(prices).set("events.progress", "llm.delta");
    let worker = worker.start().ready().await;
    let config = json!({"llm_config": {"prompt": "slowly", "model": "claude-sonnet-5-5"}});
    let event = bed.run(&json!({"graph_id": "g", "node_id": "n", "run_id": "r", "inputs": {}, "config": config})).await;
    let joined = |told: &[Value], kind: &str| -> String {
        let pieces = told.iter().flat_map(|step| step["data"]["pieces"].as_array().expect("pieces"));
        pieces.filter(|piece| piece["type"] == kind).filter_map(|piece| piece["text"].as_str()).collect()
    };
    let told = eventually("the last piece is written", async || {
        let told = progress(&bed, "llm.delta").await;
        (event.output()["content"] == joined(&told, "text")).then_some(told)
    })
    .await;
    assert!(told.len() >= 3, "it took a second or more: {told:?}");
    assert_eq!((&told[0]["data"]["pieces"][0], &told[0]["data"]["turn"]), (&json!({"type": "begin"}), &json!(1)));
    assert_eq!(joined(&told, "thinking"), "one moment");
    assert!(told[0]["timestamp"].as_str() < event["timestamp"].as_str(), "it is told before the end");
    // 400 at 2, 600 at 0.5 and 200 at 10 dollars a million.
    assert_eq!(event.output()["usage"]["cost_usd"], 0.0031);
    assert_eq!(worker.metric("executor_llm_cost_usd_total", &[]).await, 0.0031);
}

#[tokio::test]
async fn progress_never_stands_in_the_way_of_a_result() {
    let (bed, model) = (Bed::new().await, Model::start(AGENT));
    let _worker = bed.worker_with_model("w1", &model).start().ready().await;
    for kind in ["node.started", "node.progress", "tool.executed"] {
        bed.ask::<()>(&["SET", &bed.key(&format!("events:{kind}")), "in the way"]).await;
    }
    let event = bed.run(&agent()).await;
    assert_eq!(event.output()["result"], "done");
}

#[tokio::test]
async fn ids_may_have_any_character_but_control_characters() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    let long = "ä".repeat(256);
    let ids =
        ["a b", "näme/with:all*kinds?[of]{signs}", r#"quote"back\slash"#, "seq", "{{ x }}", "日本 🚀", "-", &long];
    let mut ended = 0;
    for layout in Layout::BOTH {
        for id in ids {
            let graph = format!("{id}{}", if layout == Layout::Hash { "" } else { "'" });
            let graph: String = graph.chars().take(256).collect();
            bed.ask::<()>(&["DEL", &bed.key(&format!("state:{graph}"))]).await;
            bed.put_state(
                layout,
                &graph,
                &json!({"inputs": {"a": 2}, "node_states": {id: {"status": "completed", "output": 40}}}),
            )
            .await;
            let config =
                json!({"tool_name": "calculate", "tool_params": {"expression": "{{ nodes[which].output }} + {{ a }}"}});
            let run = format!("{id} {layout:?}");
            let run: String = run.chars().rev().take(256).collect();
            let item =
                json!({"graph_id": graph, "node_id": id, "run_id": run, "config": config, "inputs": {"which": id}});
            let event = bed.run(&item).await;
            ended += 1;
            assert_eq!(event.output(), &json!(42), "{id}");
            assert_eq!(
                (&event["graph_id"], &event["node_id"], &event["run_id"]),
                (&json!(graph), &json!(id), &json!(run))
            );
            assert_eq!(bed.node_state(&graph, id).await.expect("a state")["output"], 42);
        }
    }
    assert_eq!(bed.count().await, ended);
}

#[tokio::test]
async fn large_items_and_large_outputs_come_through_whole() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").set("limits.inline_output", "8388608").start().ready().await;
    let rows: Vec<Value> = (0..9000).map(|at| json!({"id": at, "text": "x".repeat(80), "exact": 0.1})).collect();
    let item = |node: &str, config: Value| json!({"graph_id": "g", "node_id": node, "config": config, "inputs": {"rows": rows}});
    let all = json!({"tool_name": "json_query", "tool_params": {"data": "{{ rows }}", "expression": "@"}});
    let item = item("n", all);
    assert!(item.to_string().len() > 900_000, "just below the limit of an item");
    for layout in Layout::BOTH {
        bed.ask::<()>(&["DEL", &bed.key("state:g")]).await;
        bed.put_state(layout, "g", &json!({"inputs": {}})).await;
        let event = bed.run(&item).await;
        assert_eq!(event.output().as_array().map(Vec::len), Some(9000));
        assert_eq!(event.output(), &json!(rows));
        assert_eq!(&bed.node_state("g", "n").await.expect("a state")["output"], event.output());
        // The next node reads it.
        let count = json!({"tool_name": "json_query", "tool_params": {"data": "{{ n }}", "expression": "length(@)"}});
        let event = bed.run(&json!({"graph_id": "g", "node_id": "m", "config": count})).await;
        assert_eq!(event.output(), &json!(9000));
    }
}

#[tokio::test]
async fn a_work_stream_of_another_type_is_waited_for() {
    let bed = Bed::new().await;
    bed.ask::<()>(&["SET", &bed.stream, "no stream"]).await;
    let worker = bed.worker("w1").start();
    worker.said("reading work failed").await;
    let body = worker.answers("/ready", 503).await.json();
    assert!(body["reasons"].to_string().contains("group"), "{body}");
    assert_eq!(worker.get("/live").await.status, 200);
    bed.ask::<()>(&["DEL", &bed.stream]).await;
    let _worker = worker.ready().await;
    let item = json!({"graph_id": "g", "node_id": "n", "inputs": {}, "config": {"tool_name": "current_time"}});
    assert_eq!(bed.run(&item).await["type"], "node.completed");
}
