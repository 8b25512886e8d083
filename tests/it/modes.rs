//! Each mode from the entry in the stream to the event: what is stored, what is told, what is left behind. Models are
//! spoken to over HTTP, tools over MCP, in the state's two layouts.

use std::collections::BTreeSet;

use da_node_executor::domain::blob::BlobRef;
use serde_json::{Value, json};

use crate::harness::bed::{Bed, Event, Layout};
use crate::harness::mcp;
use crate::harness::model::Model;

fn names(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn time(value: &Value) -> jiff::Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no RFC 3339 time"))
}

/// Checks everything that the end of a node leaves behind, apart from the output itself.
async fn assert_end(bed: &Bed, event: &Event, item: &Value, entry: &str, mode: &str) {
    let (graph, node) = (item["graph_id"].as_str().expect("an id"), item["node_id"].as_str().expect("an id"));
    let work_id = format!("{}/{entry}", bed.stream);
    let run = item["run_id"].as_str().map_or_else(|| work_id.clone(), String::from);

    assert_eq!(event.fields, ["data", "seq"]);
    let members = "v id type graph_id execution_id node_id run_id timestamp data metadata";
    assert_eq!(names(&event.body), members.split(' ').collect());
    assert_eq!(event["v"], 1);
    assert!(event["id"].as_str().is_some_and(|id| !id.is_empty()));
    assert_eq!(event["type"], "node.completed");
    assert_eq!((&event["graph_id"], &event["execution_id"]), (&json!(graph), &json!(graph)));
    assert_eq!((&event["node_id"], &event["run_id"]), (&json!(node), &json!(run)));
    assert_eq!((&event["data"]["graph_id"], &event["data"]["node_id"]), (&json!(graph), &json!(node)));

    let metadata = &event["metadata"];
    assert_eq!(metadata["worker_id"], "w1");
    assert_eq!(metadata["work_id"], work_id);
    assert_eq!((&metadata["mode"], &metadata["attempt"]), (&json!(mode), &json!(1)));
    assert!(metadata["duration_ms"].is_u64(), "{metadata}");
    assert_eq!(metadata["traceparent"], item["traceparent"]);
    assert_eq!(metadata["item"], item["metadata"]);

    let state = bed.node_state(graph, node).await.expect("the node has a state");
    assert_eq!((&state["node_id"], &state["status"]), (&json!(node), &json!("completed")));
    assert_eq!((&state["run_id"], &state["output"]), (&json!(run), event.output()));
    assert_eq!(state.get("error"), None);
    assert!(time(&state["started_at"]) <= time(&state["completed_at"]));
    assert!(time(&state["completed_at"]) <= time(&event["timestamp"]));

    let done: std::collections::HashMap<String, String> =
        bed.ask(&["HGETALL", &bed.key(&format!("done:{graph}"))]).await;
    let record = done.get(&format!("{node}\n{run}")).unwrap_or_else(|| panic!("no record of the run in {done:?}"));
    let lines: Vec<&str> = record.lines().collect();
    assert_eq!((lines[0], lines[1]), ("d", work_id.as_str()));
    assert_eq!(lines.last().copied(), event["id"].as_str());
    let ttl: i64 = bed.ask(&["TTL", &bed.key(&format!("done:{graph}"))]).await;
    assert!(ttl > 23 * 3600, "records live as long as the state, not {ttl} s");

    bed.settled().await;
    let crashes: usize = bed.ask(&["EXISTS", &bed.key(&format!("crashes:{}", bed.stream))]).await;
    assert_eq!((crashes, bed.dead_letters().await.len()), (0, 0));
}

/// An item with every member that is handed through.
fn item(graph: &str, node: &str, config: Value) -> Value {
    json!({
        "v": 1, "graph_id": graph, "node_id": node, "run_id": format!("run of {node}"), "node_type": "executor",
        "config": config, "dependencies": ["earlier"], "metadata": {"tenant": "t-1", "nested": {"n": [1, 2]}},
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "unheard_of": true,
    })
}

#[tokio::test]
async fn a_tool_node_completes_in_both_layouts() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    for layout in Layout::BOTH {
        let graph = format!("{layout:?}");
        bed.put_state(layout, &graph, &json!({"inputs": {"a": 6}})).await;
        let config = json!({"tool_name": "calculate", "tool_params": {"expression": "{{ a }} * 7"}});
        let item = item(&graph, "sum", config);
        let entry = bed.submit(&item).await;
        let before = if layout == Layout::Hash { 0 } else { 1 };
        let event = bed.ended(before + 1).await.into_iter().find(|event| event["graph_id"] == graph.as_str());
        let event = event.expect("an event of this graph");
        assert_eq!(event.output(), &json!(42));
        assert_eq!((event.seq, event["metadata"].get("warnings")), (1, None));
        assert_end(&bed, &event, &item, &entry, "tool").await;
    }
}

#[tokio::test]
async fn an_llm_node_completes_in_both_layouts() {
    let bed = Bed::new().await;
    let model = Model::start(
        r#"
rules:
  - match: {prompt: "capital of France", system: "Be brief", model: the-model}
    reply: {text: Paris, usage: {input_tokens: 30, output_tokens: 2, cache_read_tokens: 10}}
"#,
    );
    let _worker = bed.worker_with_model("w1", &model).env("LLM_MODEL", "the-model").start().ready().await;
    for (at, layout) in Layout::BOTH.into_iter().enumerate() {
        let graph = format!("{layout:?}");
        bed.put_state(layout, &graph, &json!({"inputs": {"country": "France"}})).await;
        let llm = json!({"prompt": "What is the capital of {{ country }}?", "system_prompt": "Be brief."});
        let item = item(&graph, "ask", json!({"llm_config": llm}));
        let entry = bed.submit(&item).await;
        let event = bed.ended(at + 1).await.into_iter().find(|event| event["graph_id"] == graph.as_str());
        let event = event.expect("an event of this graph");
        let usage = json!({"input_tokens": 30, "output_tokens": 2, "cache_read_tokens": 10, "cache_write_tokens": 0});
        let expected = json!({"content": "Paris", "model": "the-model", "provider": "anthropic",
            "stop_reason": "end_turn", "usage": usage});
        assert_eq!(event.output(), &expected);
        assert_end(&bed, &event, &item, &entry, "llm").await;
    }
    assert_eq!(model.calls().completions, 2);
}

#[tokio::test]
async fn an_agent_completes_in_both_layouts_with_its_tools_answered_in_call_order() {
    let bed = Bed::new().await;
    // The first call answers last; the model must see its result first all the same.
    let model = Model::start(
        r#"
rules:
  - match: {prompt: speak, tool: say}
    replies:
      - thinking: Both at once.
        tool_calls:
          - {name: say, input: {text: slow, after: 0.5}}
          - {name: say, input: {text: quick}}
          - {name: calculate, input: {expression: "1 + 1"}}
        usage: {input_tokens: 100, output_tokens: 20}
      - {text: "heard {{ tool_results | join(', ') }}", usage: {input_tokens: 150, output_tokens: 5}}
"#,
    );
    let server = mcp::stdio("voice", &mcp::fastmcp(), &["stdio"]);
    let _worker = bed.worker_with_model("w1", &model).file(&server).start().ready().await;
    for (at, layout) in Layout::BOTH.into_iter().enumerate() {
        let graph = format!("{layout:?}");
        bed.put_state(layout, &graph, &json!({"inputs": {"verb": "speak"}})).await;
        let config = json!({"task": "Please {{ verb }}.", "tools": ["voice/say", "calculate"], "llm_config": {}});
        let item = item(&graph, "agent", config);
        let entry = bed.submit(&item).await;
        let event = bed.ended(at + 1).await.into_iter().find(|event| event["graph_id"] == graph.as_str());
        let event = event.expect("an event of this graph");
        let output = event.output();
        assert_eq!(output["result"], "heard slow, quick, 2");
        assert_eq!((&output["iterations"], &output["tool_calls"]), (&json!(2), &json!(3)));
        assert_eq!(output["stop_reason"], "end_turn");
        assert_eq!((&output["usage"]["input_tokens"], &output["usage"]["output_tokens"]), (&json!(250), &json!(25)));
        assert_end(&bed, &event, &item, &entry, "agent").await;
    }
    assert_eq!((model.calls().completions, model.calls().errors), (4, 0));
}

#[tokio::test]
async fn tools_answer_over_stdio_and_over_streamable_http() {
    let bed = Bed::new().await;
    let (everything, fastmcp) = (mcp::HttpServer::everything(), mcp::HttpServer::fastmcp());
    let servers = [
        mcp::stdio("everything-stdio", &mcp::everything(), &[]),
        mcp::http("everything-http", &everything),
        mcp::stdio("fastmcp-stdio", &mcp::fastmcp(), &["stdio"]),
        mcp::http("fastmcp-http", &fastmcp),
    ];
    let _worker = bed.worker("w1").file(&servers.join("\n")).start().ready().await;
    let calls = [
        // Text of one block, structured content, and text that is no JSON object.
        ("everything-stdio/echo", json!({"message": "{{ word }}"}), json!("Echo: hello")),
        (
            "everything-http/get-structured-content",
            json!({"location": "New York"}),
            json!({"temperature": 33, "conditions": "Cloudy", "humidity": 82}),
        ),
        ("everything-http/echo", json!({"message": "{{ word }}"}), json!("Echo: hello")),
        ("fastmcp-stdio/add", json!({"a": "{{ n }}", "b": 2}), json!({"result": 42})),
        ("fastmcp-http/add", json!({"a": "{{ n }}", "b": 3}), json!({"result": 43})),
    ];
    for (at, (tool, params, expected)) in calls.into_iter().enumerate() {
        let config = json!({"tool_name": tool, "tool_params": params});
        let event = bed
            .run(&json!({"graph_id": "g", "node_id": format!("n{at}"), "config": config,
                "inputs": {"word": "hello", "n": 40}}))
            .await;
        assert_eq!(event.output(), &expected, "{tool}");
    }
}

#[tokio::test]
async fn a_configuration_out_of_the_graph_is_used_when_the_item_has_none() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    for layout in Layout::BOTH {
        let graph = format!("{layout:?}");
        let config =
            json!({"tool_name": "calculate", "tool_params": {"expression": "{{ base }} + {{ nodes.one.output }}"}});
        let nodes = json!({"two": {"id": "two", "type": "executor", "config": config}, "one": {"id": "one", "type": "executor"}});
        let state = json!({
            "graph": {"nodes": nodes, "edges": [["one", "two"]], "entry_node": "one"},
            "inputs": {"base": 1}, "status": "running",
            "node_states": {"one": {"node_id": "one", "status": "completed", "output": 41}},
        });
        bed.put_state(layout, &graph, &state).await;
        let event = bed.run(&json!({"graph_id": graph, "node_id": "two"})).await;
        assert_eq!(event.output(), &json!(42), "{layout:?}");
        let event = bed.run(&json!({"graph_id": graph, "node_id": "three"})).await;
        assert_eq!(event.failure(), ("configuration", "missing_config"), "{layout:?}");
    }
}

#[tokio::test]
async fn inputs_of_the_item_are_laid_over_those_of_the_state_for_this_node_alone() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    for layout in Layout::BOTH {
        let graph = format!("{layout:?}");
        bed.put_state(layout, &graph, &json!({"inputs": {"a": "of the state", "b": "of the state"}})).await;
        let config = json!({"tool_name": "template", "tool_params": {"template": "{% raw %}{{ x }}{% endraw %}", "values": {"x": "{{ a }}, {{ b }}"}}});
        let first = json!({"graph_id": graph, "node_id": "n", "config": config, "inputs": {"b": "of the item"}});
        assert_eq!(bed.run(&first).await.output(), "of the state, of the item");
        let second = json!({"graph_id": graph, "node_id": "m", "config": config});
        assert_eq!(bed.run(&second).await.output(), "of the state, of the state");
    }
}

#[tokio::test]
async fn an_event_envelope_is_an_item_too() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    bed.put_state(
        Layout::Document,
        "g",
        &json!({"inputs": {"a": 1}, "node_states": {"old": {"status": "completed", "output": 10}}}),
    )
    .await;
    let envelope = |id: &str, data: Value| {
        json!({
            "id": id, "type": "node.work", "timestamp": "2026-01-02T03:04:05.123456789Z", "execution_id": "g",
            "data": data, "metadata": {"from": "bus"},
        })
    };
    let config = json!({"tool_name": "json_query", "tool_params": {"expression": "@", "data": "{{ [a, old, new] }}"}});
    let node_state = json!({
        "old": {"status": "completed", "output": "not this one, the state has it"},
        "new": {"status": "completed", "output": 100},
    });
    let data =
        json!({"node_id": "n", "node_type": "executor", "config": config, "state": {"a": 2}, "node_state": node_state});
    bed.submit(&envelope("evt-7", data)).await;
    let events = bed.ended(1).await;
    assert_eq!(events[0].output(), &json!([2, 10, 100]));
    assert_eq!((&events[0]["run_id"], &events[0]["execution_id"]), (&json!("evt-7"), &json!("g")));
    assert_eq!(events[0]["metadata"]["item"], json!({"from": "bus"}));

    // Ids of its own win over the envelope's.
    let data = json!({"graph_id": "h", "node_id": "n", "run_id": "mine", "config": {"tool_name": "current_time"}, "state": {}});
    bed.submit(&envelope("evt-8", data)).await;
    let events = bed.ended(2).await;
    let event = events.iter().find(|event| event["graph_id"] == "h").expect("an event of the other graph");
    assert_eq!(event["run_id"], "mine");
    assert_eq!(event["type"], "node.completed", "{}", event.body);
}

#[tokio::test]
async fn outputs_flow_from_node_to_node_with_their_types() {
    let bed = Bed::new().await;
    let model = Model::start(
        "rules: [{match: {prompt: \"List: [1,2.5,\\\"x\\\"], sum 3.5, {{ not a name }}\"}, reply: {text: fine}}]",
    );
    let _worker = bed.worker_with_model("w1", &model).start().ready().await;
    for layout in Layout::BOTH {
        let graph = format!("{layout:?}");
        bed.put_state(layout, &graph, &json!({"inputs": {"list": [1, 2.5, "x"], "trap": "{{ not a name }}"}})).await;
        let run = async |node: &str, config: Value| {
            bed.run(&json!({"graph_id": graph, "node_id": node, "config": config})).await
        };
        let list = json!({"tool_name": "json_query", "tool_params": {"data": {"deep": ["{{ list }}"]}, "expression": "deep[0]"}});
        assert_eq!(run("the-list", list).await.output(), &json!([1, 2.5, "x"]));
        let sum = json!({"tool_name": "json_query", "input_mapping": {"numbers": "{{ nodes['the-list'].output }}"},
            "tool_params": {"data": "{{ numbers }}", "expression": "sum(@[0:2])"}});
        assert_eq!(run("sum", sum).await.output(), &json!(3.5));
        // What is substituted is never rendered again.
        let ask = json!({"llm_config": {"prompt": "List: {{ the-list }}, sum {{ sum }}, {{ trap }}"},
            "output_mapping": {"said": "content", "tokens": "usage.output_tokens"}});
        let event = run("ask", ask).await;
        assert_eq!(event.output()["content"], "fine");
        assert_eq!(event["data"]["mapped"]["said"], "fine");
        let state = bed.node_state(&graph, "ask").await.expect("a state");
        assert_eq!(state["mapped"], event["data"]["mapped"]);
        assert_eq!(event.seq, 3);
    }
}

#[tokio::test]
async fn a_model_reads_the_arguments_of_a_tool_out_of_a_text() {
    let bed = Bed::new().await;
    let model = Model::start("rules: [{match: {prompt: three plus four}, reply: {json: {a: 3, b: 40}}}]");
    let server = mcp::stdio("sums", &mcp::fastmcp(), &["stdio"]);
    let _worker = bed.worker_with_model("w1", &model).file(&server).start().ready().await;
    let config = json!({"tool_name": "add", "tool_params": {"b": 4}, "extract_params": {"from": "{{ text }}"}, "llm_config": {}});
    let item = json!({"graph_id": "g", "node_id": "n", "config": config, "inputs": {"text": "three plus four"}});
    let event = bed.run(&item).await;
    assert_eq!(event.output(), &json!({"result": 7}), "what the node gives wins over what the model reads");
    assert_eq!(event["metadata"]["mode"], "tool");
}

#[tokio::test]
async fn an_answer_that_breaks_its_schema_is_sent_back_and_then_fails() {
    let bed = Bed::new().await;
    let model = Model::start(
        r#"
rules:
  - match: {prompt: learns, last: does not satisfy}
    reply: {json: {n: 1}}
  - match: {prompt: learns}
    reply: {text: "one"}
  - match: {prompt: never}
    reply: {json: {n: "one"}}
"#,
    );
    let _worker = bed.worker_with_model("w1", &model).start().ready().await;
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false});
    let item = |node: &str| {
        let llm = json!({"prompt": node, "output_schema": schema});
        json!({"graph_id": "g", "node_id": node, "config": {"llm_config": llm}, "inputs": {}})
    };
    let event = bed.run(&item("learns")).await;
    assert_eq!(event.output()["parsed"], json!({"n": 1}));
    let event = bed.run(&item("never")).await;
    assert_eq!(event.failure(), ("validation", "output_invalid"));
    assert!(event["data"]["usage"]["output_tokens"].as_u64() > Some(0), "{}", event.body);
}

#[tokio::test]
async fn an_agent_is_told_of_tools_that_fail_and_goes_on() {
    let bed = Bed::new().await;
    let model = Model::start(
        r#"
rules:
  - match: {prompt: try}
    replies:
      - tool_calls:
          - {name: fail, input: {reason: the oven is cold}}
          - {name: add, input: {a: one}}
          - {name: ad, input: {a: 1, b: 1}}
          - {name: add, input: {a: 1, b: 1}}
      - {text: "{{ tool_results | join(' | ') }}"}
"#,
    );
    let server = mcp::stdio("kitchen", &mcp::fastmcp(), &["stdio"]);
    let _worker = bed.worker_with_model("w1", &model).file(&server).start().ready().await;
    let config = json!({"task": "try", "tools": ["kitchen/*"], "llm_config": {}});
    let event = bed.run(&json!({"graph_id": "g", "node_id": "n", "config": config, "inputs": {}})).await;
    let result = event.output()["result"].as_str().expect("a text");
    let results: Vec<&str> = result.split(" | ").collect();
    assert!(results[0].contains("the oven is cold"), "{result}");
    assert!(results[1].contains("do not fit") && results[1].contains('b'), "{result}");
    assert!(results[2].contains("no tool `ad`") && results[2].contains("`add`"), "{result}");
    assert!(results[3].contains('2'), "{result}");
    assert_eq!(event.output()["iterations"], 2);
}

#[tokio::test]
async fn an_agent_stops_at_its_limit_of_turns_or_answers_in_a_last_one_without_tools() {
    let script = r#"
rules:
  - {match: {prompt: for ever, tools_allowed: false}, reply: {text: "this is what I have"}}
  - {match: {prompt: for ever}, reply: {text: "still {{ turn }}", tool_calls: [{name: calculate, input: {expression: "{{ turn }}"}}]}}
"#;
    let config = json!({"task": "for ever", "tools": ["calculate"], "llm_config": {}, "max_iterations": 3});
    let item = json!({"graph_id": "g", "node_id": "n", "config": config, "inputs": {}});

    let (bed, model) = (Bed::new().await, Model::start(script));
    let worker = bed.worker_with_model("w1", &model).start().ready().await;
    let event = bed.run(&item).await;
    assert_eq!(event.failure(), ("permanent", "iteration_limit"));
    let partial = &event["data"]["partial"];
    assert_eq!((&partial["text"], &partial["iterations"]), (&json!("still 2"), &json!(3)));
    let kept = BlobRef::of(&partial["conversation"]).expect("a reference to the conversation");
    let conversation: Vec<u8> = bed.ask(&["GET", &kept.key]).await;
    assert!(kept.fits(&conversation));
    let life: i64 = bed.ask(&["PTTL", &kept.key]).await;
    assert!(life > 0, "it goes with the graph's state: {life}");
    assert!(event["data"]["usage"]["input_tokens"].as_u64() > Some(0), "{}", event.body);
    assert_eq!(model.calls().completions, 3);
    // Whoever wants that gives it to a node as its session, and that goes on from there.
    let conversation = String::from_utf8(conversation).expect("JSON is text");
    bed.ask::<()>(&["HSET", &bed.key("state:g"), "session:resumed", &conversation]).await;
    let more = json!({"llm_config": {"prompt": "What do you have?"}, "session": "resumed"});
    let event = bed.run(&json!({"graph_id": "g", "node_id": "m", "config": more})).await;
    assert_eq!(event.output()["content"], "this is what I have", "{}", event.body);
    drop(worker);

    let (bed, model) = (Bed::new().await, Model::start(script));
    let _worker = bed.worker_with_model("w1", &model).set("agent.finalize", "true").start().ready().await;
    let event = bed.run(&item).await;
    assert_eq!(event.output()["result"], "this is what I have");
    assert_eq!((&event.output()["iterations"], &event.output()["tool_calls"]), (&json!(4), &json!(3)));
}

#[tokio::test]
async fn unknown_members_of_a_configuration_are_warnings_unless_the_worker_is_strict() {
    let item = json!({"graph_id": "g", "node_id": "n", "inputs": {},
        "config": {"tool_name": "calculate", "tool_params": {"expression": "1"}, "time_out": 5}});
    let bed = Bed::new().await;
    let worker = bed.worker("w1").start().ready().await;
    let event = bed.run(&item).await;
    assert_eq!(event.output(), &json!(1));
    let warnings = event["metadata"]["warnings"].to_string();
    assert!(warnings.contains("config.time_out") && warnings.contains("`timeout`"), "{warnings}");
    drop(worker);

    let bed = Bed::new().await;
    let _worker = bed.worker("w1").set("work.strict", "true").start().ready().await;
    let event = bed.run(&item).await;
    assert_eq!(event.failure(), ("configuration", "unknown_member"));
    assert!(event.error().contains("config.time_out") && event.error().contains("`timeout`"), "{}", event.error());
}
