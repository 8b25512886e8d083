//! How nodes fail: a category that consumers can rely on, a code, a sentence that helps, and a state that says the
//! same. Poison is told with the takeovers, retries have a module of their own.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Event, Layout};
use crate::harness::gate::Gate;
use crate::harness::mcp;
use crate::harness::model::Model;

fn item(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "run_id": format!("run-{node}"), "config": config, "inputs": {"a": 1}})
}

/// Runs an item and checks its event, its state and what is left of it; gives the event.
async fn fails(bed: &Bed, node: &str, config: Value, category: &str, code: &str) -> Event {
    let event = bed.run(&item(node, config)).await;
    assert_eq!(event.failure(), (category, code), "{}", event.body);
    assert!(event.error().len() > 15, "a sentence a person can act on: {}", event.error());
    assert_eq!(event["data"].get("output"), None);
    let state = bed.node_state("g", node).await.expect("a failed node has a state");
    let status = if category == "cancelled" { "cancelled" } else { "failed" };
    assert_eq!((&state["status"], &state["error"]), (&json!(status), &event["data"]["error"]));
    assert_eq!(state.get("output"), None);
    assert_eq!(state["run_id"], format!("run-{node}"));
    assert!(bed.dead_letters().await.is_empty(), "a failed node is no dead letter");
    event
}

#[tokio::test]
async fn trouble_that_may_pass_is_retriable_once_its_attempts_are_used_up() {
    let bed = Bed::new().await;
    let model = Model::start(
        "rules: [{match: {prompt: busy}, reply: {error: {status: 529, message: no capacity, type: overloaded_error}}}]",
    );
    let worker = bed.worker_with_model("w1", &model).start().ready().await;
    let event = fails(&bed, "n", json!({"llm_config": {"prompt": "busy"}}), "retriable", "overloaded").await;
    assert_eq!(event["data"]["error_details"]["attempts"], 3);
    assert_eq!(event["metadata"]["attempt"], 3);
    assert!(event.error().contains("529"), "{}", event.error());
    assert_eq!((model.calls().requests, model.calls().completions), (3, 0));
    assert_eq!(worker.metric("executor_errors_total", &["retriable"]).await, 1.0);
}

#[tokio::test]
async fn a_model_that_cannot_be_reached_is_retriable() {
    let bed = Bed::new().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", free.local_addr().expect("an address"));
    drop(free);
    let _worker = bed.worker("w1").env("LLM_API_KEY", "s3cr3t").env("LLM_BASE_URL", address).start().ready().await;
    let event = fails(&bed, "n", json!({"llm_config": {"prompt": "hello"}}), "retriable", "connect_failed").await;
    assert_eq!(event["data"]["error_details"]["attempts"], 3);
    assert!(!event.body.to_string().contains("s3cr3t"));
}

#[tokio::test]
async fn what_is_configured_wrongly_says_which_member() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    let check = async |node: &str, config: Value, code: &str, words: &[&str]| {
        let event = fails(&bed, node, config, "configuration", code).await;
        for word in words {
            assert!(event.error().contains(word), "{node}: {word:?} is not in: {}", event.error());
        }
    };
    check("no-mode", json!({}), "ambiguous_mode", &["`llm_config`", "`tool_name`"]).await;
    let both = json!({"llm_config": {"prompt": "p"}, "tool_name": "calculate"});
    check("two-modes", both, "ambiguous_mode", &["`llm_config`", "`tool_name`", "`extract_params`"]).await;
    let lies = json!({"type": "agent", "tool_name": "calculate"});
    check("contradiction", lies, "contradicting_type", &["agent", "tool"]).await;
    check("shape", json!({"tool_name": 5}), "invalid_config", &["wrong shape"]).await;
    check("tool", json!({"tool_name": "calcualte"}), "unknown_tool", &["calcualte", "calculate"]).await;
    check("server", json!({"tool_name": "nowhere/echo"}), "unknown_tool", &["nowhere/echo"]).await;
    check("key", json!({"llm_config": {"prompt": "p"}}), "llm_not_configured", &["LLM_API_KEY"]).await;
    let provider = json!({"llm_config": {"prompt": "p", "provider": "antropic"}});
    check("provider", provider, "unknown_provider", &["antropic", "anthropic"]).await;
    let template = json!({"tool_name": "calculate", "tool_params": {"expression": "{{ a"}});
    check("template", template, "template_syntax", &["{{ a"]).await;
    let schema = json!({"llm_config": {"prompt": "p", "output_schema": {"type": "nothing"}}});
    check("schema", schema, "invalid_output_schema", &["`output_schema`"]).await;
    let timeout = json!({"tool_name": "calculate", "timeout": "soon"});
    check("timeout", timeout, "invalid_config", &["soon"]).await;
}

#[tokio::test]
async fn data_that_does_not_fit_is_named_with_what_there_is() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").set("limits.output", "2000").start().ready().await;
    let states = json!({
        "finished": {"status": "completed", "output": {"n": 1}},
        "at work": {"status": "running"}, "gave-up": {"status": "failed", "error": "e"},
    });
    let graph = json!({"nodes": {"later": {"id": "later"}}});
    for layout in Layout::BOTH {
        bed.ask::<()>(&["DEL", &bed.key("state:g")]).await;
        bed.put_state(layout, "g", &json!({"inputs": {"stored": 1}, "node_states": states, "graph": graph})).await;
        let check = async |node: &str, expression: &str, code: &str, words: &[&str]| {
            let node = format!("{node} {layout:?}");
            let config = json!({"tool_name": "calculate", "tool_params": {"expression": expression}});
            let event = fails(&bed, &node, config, "validation", code).await;
            for word in words {
                assert!(event.error().contains(word), "{node}: {word:?} is not in: {}", event.error());
            }
        };
        let names: &[&str] =
            &["`nope`", "`a`", "`stored`", "`finished`", "`at work`", "`gave-up`", "`later`", "default("];
        check("unknown", "{{ nope }}", "unknown_name", names).await;
        check("attribute", "{{ inputs.nope | upper }}", "unknown_name", &["inputs.nope", "`stored`"]).await;
        check("running", "{{ at work }}", "dependency_not_completed", &["`at work`", "running"]).await;
        check("failed", "{{ nodes['gave-up'].output }}", "dependency_not_completed", &["`gave-up`", "failed"]).await;
        check("evaluation", "{{ finished.n.x.y }}", "unknown_name", &["finished.n.x"]).await;
        check("arguments", "1 +* 2", "invalid_expression", &["cannot be read"]).await;
    }
    let config = json!({"tool_name": "template", "tool_params": {"template": "x".repeat(3000)}});
    fails(&bed, "large", config, "validation", "output_too_large").await;
}

#[tokio::test]
async fn what_the_other_side_refuses_for_good_is_permanent() {
    let bed = Bed::new().await;
    let model = Model::start(
        r#"
rules:
  - {match: {prompt: too long}, reply: {error: {status: 400, message: prompt is too long}}}
  - {match: {prompt: no credit}, reply: {error: {status: 402, message: no credit left}}}
  - {match: {prompt: bad thing}, reply: {stop_reason: refusal, text: "no"}}
"#,
    );
    let server = mcp::stdio("kitchen", &mcp::fastmcp(), &["stdio"]);
    let _worker = bed.worker_with_model("w1", &model).file(&server).start().ready().await;
    let ask = |prompt: &str| json!({"llm_config": {"prompt": prompt}});
    let event = fails(&bed, "long", ask("too long"), "permanent", "context_overflow").await;
    assert!(event.error().contains("prompt is too long"), "the provider's own words: {}", event.error());
    fails(&bed, "refused", ask("bad thing"), "permanent", "refusal").await;
    let event = bed.run(&item("credit", ask("no credit"))).await;
    assert_eq!(event.failure().1, "billing");
    assert_eq!(model.calls().requests, 3, "nothing was asked twice");
    let config = json!({"tool_name": "fail", "tool_params": {"reason": "the oven is cold"}});
    let event = fails(&bed, "tool", config, "permanent", "tool_error").await;
    assert!(event.error().contains("the oven is cold"), "{}", event.error());
}

#[tokio::test]
async fn a_node_ends_at_the_earliest_of_its_limits_of_time() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let _worker = bed
        .worker("w1")
        .set("tools.http_request.allow", gate.host())
        .set("limits.node_timeout", "60s")
        .start()
        .ready()
        .await;
    let closed = |timeout: Value| {
        let mut config = gate.node("closed");
        config["timeout"] = timeout;
        config
    };
    let event = fails(&bed, "number", closed(json!(0.3)), "permanent", "timeout").await;
    assert!(event.error().contains("300ms"), "{}", event.error());
    assert!(event["metadata"]["duration_ms"].as_u64() >= Some(300), "{}", event.body);
    fails(&bed, "text", closed(json!("200ms")), "permanent", "timeout").await;
    let mut limited = closed(json!("50s"));
    limited["limits"] = json!({"timeout": "250ms"});
    fails(&bed, "limits", limited, "permanent", "timeout").await;

    let soon = jiff::Timestamp::now() + std::time::Duration::from_millis(400);
    let mut due = item("deadline", closed(json!("50s")));
    due["deadline"] = json!(soon.to_string());
    assert_eq!(bed.run(&due).await.failure(), ("permanent", "deadline_exceeded"));
    let arrivals = gate.arrivals("closed");
    let mut late = item("late", closed(json!("50s")));
    late["deadline"] = json!("2020-01-01T00:00:00Z");
    assert_eq!(bed.run(&late).await.failure(), ("permanent", "deadline_exceeded"));
    assert_eq!(gate.arrivals("closed"), arrivals, "an item that is too late is not run at all");
}

#[tokio::test]
async fn nodes_of_a_cancelled_graph_end_as_cancelled() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    for layout in Layout::BOTH {
        bed.ask::<()>(&["DEL", &bed.key("state:g")]).await;
        bed.put_state(layout, "g", &json!({"inputs": {}, "status": "cancelled"})).await;
        let config = json!({"tool_name": "calculate", "tool_params": {"expression": "1"}});
        fails(&bed, &format!("n {layout:?}"), config, "cancelled", "graph_cancelled").await;
    }
}

#[tokio::test]
async fn a_state_that_breaks_while_its_node_runs_holds_nobody_up() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let _worker = bed.worker("w1").set("tools.http_request.allow", gate.host()).start().ready().await;
    bed.submit(&item("broken", gate.node("door"))).await;
    gate.arrived("door", 1).await;
    let key = bed.key("state:g");
    bed.ask::<u64>(&["DEL", &key]).await;
    bed.ask::<u64>(&["RPUSH", &key, "not a state"]).await;
    gate.open("door");
    let event = bed.ended(1).await.pop().expect("the result goes out as an event");
    assert_eq!(event["type"], "node.completed");

    // The reader goes on: a result that a key cannot take is no trouble of the server.
    let other = json!({"graph_id": "other", "node_id": "n", "config": {"tool_name": "current_time"}, "inputs": {}});
    bed.submit(&other).await;
    bed.ended(2).await;
    bed.settled().await;
}
