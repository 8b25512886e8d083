//! What the worker tells of its tool servers, what it goes on with while one is away, and the progress of long calls.

use std::sync::Arc;

use da_node_executor::domain::tool::{ToolHints, ToolSpec, ToolTarget};
use da_node_executor::tools::index::ToolIndex;
use da_node_executor::tools::resolve::{Catalog, resolve};
use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::harness::bed::{Bed, GROUP};
use crate::harness::eventually;
use crate::harness::mcp;
use crate::harness::model::Model;

async fn told(worker: &crate::harness::worker::Worker, name: &str) -> Value {
    let servers = worker.get("/api/mcp").await.json()["servers"].clone();
    let servers = servers.as_array().expect("a list");
    servers.iter().find(|server| server["name"] == name).expect("it is configured").clone()
}

fn tool(node: &str, tool: &str, with: Value) -> Value {
    let config = json!({"tool_name": tool, "tool_params": with});
    json!({"graph_id": "g", "node_id": node, "inputs": {}, "config": config})
}

#[tokio::test]
async fn the_state_of_each_tool_server_is_told_by_the_api_and_the_metrics() {
    let bed = Bed::new().await;
    let mut server = mcp::HttpServer::fastmcp();
    let mut away = mcp::HttpServer::fastmcp();
    let file = mcp::http("sums", &server) + &mcp::http("away", &away);
    away.kill();
    let worker = bed.worker("w1").file(&file).start().ready().await;
    let idle = told(&worker, "sums").await;
    assert_eq!((&idle["state"], &idle["era"], &idle["tools"]), (&json!("idle"), &Value::Null, &Value::Null), "{idle}");

    bed.run(&tool("a", "sums/add", json!({"a": 1, "b": 1}))).await.output();
    let up = told(&worker, "sums").await;
    assert_eq!((&up["state"], &up["transport"]), (&json!("up"), &json!("http")), "{up}");
    assert_eq!((&up["era"], &up["protocol_version"]), (&json!("legacy"), &json!("2025-11-25")), "{up}");
    assert!(up["tools"].as_u64().is_some_and(|tools| tools > 0) && up["latency_ms"].is_u64(), "{up}");
    assert_eq!((&up["connects"], &up["in_flight"], &up["last_error"]), (&json!(1), &json!(0), &Value::Null), "{up}");
    assert!(worker.metric("executor_mcp_server_tools", &["sums"]).await > 0.0);
    assert!((worker.metric("executor_mcp_server_era", &["sums", "legacy", "2025-11-25"]).await - 1.0).abs() < 0.1);

    let item = json!({"tool_name": "away/add", "tool_params": {"a": 1, "b": 1}, "retry": {"max_attempts": 1}});
    let event = bed.run(&json!({"graph_id": "g", "node_id": "b", "inputs": {}, "config": item})).await;
    assert_eq!(event["type"], "node.failed");
    let down = told(&worker, "away").await;
    assert_eq!((&down["state"], &down["last_error"]["code"]), (&json!("down"), &json!("mcp_unreachable")), "{down}");
    assert!(worker.metric("executor_mcp_server_errors_total", &["away", "mcp_unreachable"]).await >= 1.0);
    server.kill();
}

#[tokio::test]
async fn what_every_node_would_repeat_is_logged_once() {
    let bed = Bed::new().await;
    let model = Model::start("rules: [{match: {prompt: hello}, reply: {text: hi}}]");
    let server = mcp::HttpServer::fastmcp();
    let file = mcp::http("first", &server) + &mcp::http("second", &server);
    // The configured order, and not that of their names, says which of them is meant.
    let spec = bed.worker_with_model("w1", &model).file(&file).set("mcp.order", "second,first");
    let worker = spec.start().ready().await;
    for node in ["a", "b", "c"] {
        bed.run(&tool(node, "add", json!({"a": 1, "b": 1}))).await.output();
        let config = json!({"llm_config": {"prompt": "hello", "temperature": 0.5}});
        let event = bed.run(&json!({"graph_id": "h", "node_id": node, "inputs": {}, "config": config})).await;
        assert!(event["metadata"]["warnings"].to_string().contains("temperature"), "each node is told");
    }
    for words in ["a tool name is offered in several places", "sampling parameters are left out"] {
        let told = worker.records().iter().filter(|record| record.to_string().contains(words)).count();
        assert_eq!(told, 1, "{words}: {}", worker.log());
    }
    let told = worker.said("a tool name is offered in several places").await;
    assert_eq!(told["collision"], "`add` of second hides the one of first");
    let calls = async |server: &str| worker.metric("executor_tool_calls_total", &[server, "\"add\""]).await;
    assert_eq!((calls("second").await, calls("first").await), (3.0, 0.0));
}

/// A server whose tools answer with its name and with what they were called.
async fn echo(server: &'static str, tools: &[&str]) -> MockServer {
    let mock = MockServer::start().await;
    let tools: Vec<Value> = tools.iter().map(|name| json!({"name": name, "inputSchema": {"type": "object"}})).collect();
    let respond = move |request: &Request| {
        let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let mut result = match message["method"].as_str() {
            Some("server/discover") => json!({"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}),
            Some("tools/list") => json!({"tools": tools}),
            Some("tools/call") => {
                let name = message["params"]["name"].as_str().unwrap_or_default();
                json!({"content": [{"type": "text", "text": format!("{server}:{name}")}]})
            }
            _ => return ResponseTemplate::new(405),
        };
        result["resultType"] = json!("complete");
        ResponseTemplate::new(200).set_body_json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
    };
    Mock::given(any()).respond_with(respond).mount(&mock).await;
    mock
}

#[tokio::test]
async fn a_model_sees_the_tools_of_its_node_and_no_others_and_each_name_leads_to_its_tool() {
    let bed = Bed::new().await;
    let long = "x".repeat(70);
    let (left, right) = (["look", "a.b", "a/b", "größe", &long, "key"], ["look", "a_b", "other"]);
    let servers = [echo("left", &left).await, echo("right", &right).await];
    let at = |name: &str, at: usize| format!("[mcp.servers.{name}]\nurl = \"{}\"\n", servers[at].uri());
    let file = at("left", 0) + "deny = [\"k*\"]\n" + &at("right", 1);

    // What the model calls them, by the rules that have tests of their own.
    let patterns = ["left/*", "right/look", "a_b"].map(String::from);
    let catalog = |server: &str, tools: &[&str]| {
        let tools = tools.iter().filter(|name| **name != "key").map(|name| ToolSpec {
            name: String::from(*name),
            target: ToolTarget { server: Some(String::from(server)), name: String::from(*name) },
            description: None,
            input_schema: Default::default(),
            hints: ToolHints::default(),
        });
        Catalog { server: String::from(server), tools: Arc::new(ToolIndex::new(tools.collect())) }
    };
    let catalogs = [catalog("left", &left), catalog("right", &right)];
    let found = resolve(&catalogs, &ToolIndex::default(), &patterns).expect("all of them are there").tools;
    let names: Vec<&str> = found.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!((names[0], names[3], names[5]), ("left_look", "gr__e", "right_look"), "{names:?}");

    let beside = ["other", "right_other", "key", "left_key", "calculate", "look"];
    let calls: Vec<Value> = names.iter().chain(&beside).map(|name| json!({"name": name, "input": {}})).collect();
    let answer = "{{ tools | join(' ') }}\n{{ tool_results | join('\n') }}";
    let script = json!({"rules": [{"replies": [{"tool_calls": calls}, {"text": answer}]}]});
    let model = Model::start(&script.to_string());
    let _worker = bed.worker_with_model("w1", &model).file(&file).start().ready().await;
    let config = json!({"task": "Look", "tools": patterns, "llm_config": {}});
    let event = bed.run(&json!({"graph_id": "g", "node_id": "n", "inputs": {}, "config": config})).await;
    let said = event.output()["result"].as_str().expect("a text");
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some(&*names.join(" ")), "what it is offered");
    for tool in &found {
        let expected = tool.target.to_string().replacen('/', ":", 1);
        assert_eq!(lines.next(), Some(&*expected), "{}", tool.name);
    }
    for name in beside {
        let told = lines.next().unwrap_or_default();
        assert!(told.starts_with(&format!("There is no tool `{name}`.")), "{told}");
    }
    let tool_calls = async |server: &MockServer| {
        let requests = server.received_requests().await.expect("they are kept");
        let bodies = requests.iter().filter_map(|request| serde_json::from_slice::<Value>(&request.body).ok());
        bodies.filter(|message| message["method"] == "tools/call").count()
    };
    assert_eq!((tool_calls(&servers[0]).await, tool_calls(&servers[1]).await), (5, 2), "each once");
}

#[tokio::test]
async fn a_node_goes_on_with_the_tools_that_are_known_while_their_server_is_away() {
    let bed = Bed::new().await;
    let model = Model::start("rules: [{match: {prompt: hello}, reply: {text: hi}}]");
    let mut server = mcp::HttpServer::fastmcp();
    let _worker = bed.worker_with_model("w1", &model).file(&mcp::http("sums", &server)).start().ready().await;
    let agent = |node: &str| {
        let config = json!({"task": "hello", "tools": ["sums/*"], "llm_config": {}});
        json!({"graph_id": "g", "node_id": node, "inputs": {}, "config": config})
    };
    assert_eq!(bed.run(&agent("a")).await.output()["result"], "hi");
    server.kill();
    assert_eq!(bed.run(&agent("b")).await.output()["result"], "hi");
}

#[tokio::test]
async fn the_progress_of_a_call_is_told_while_it_runs() {
    let bed = Bed::new().await;
    let server = mcp::stdio("slow", &mcp::slow(), &["stdio"]);
    let _worker = bed.worker("w1").file(&server).start().ready().await;
    let folder = tempfile::tempdir().expect("a folder");
    bed.run(&tool("a", "slow/wait", json!({"seconds": 2, "log": folder.path().join("log")}))).await.output();
    let steps: Vec<Value> = eventually("the end of the call is told", async || {
        let entries = bed.entries(&bed.key("events:tool.executed")).await;
        let steps: Vec<Value> =
            entries.iter().map(|entry| serde_json::from_slice(&entry[0].1).expect("events are JSON")).collect();
        steps.iter().any(|step| step["data"]["duration_ms"].is_u64()).then_some(steps)
    })
    .await;
    let (progress, ends): (Vec<&Value>, Vec<&Value>) =
        steps.iter().partition(|step| step["data"]["progress"].is_object());
    assert_eq!(ends.len(), 1, "{steps:?}");
    assert!((1..=6).contains(&progress.len()), "at most twice a second: {steps:?}");
    assert!(
        progress.iter().all(|step| step["data"]["tool"] == "slow/wait" && step["data"]["progress"]["total"] == 10.0)
    );
}

/// Whoever claims an entry owns it: its worker may neither write a result any more nor go on with the work.
async fn a_lost_lease_ends_the_call_on(server: &str, era: &str) {
    let bed = Bed::new().await;
    let worker = bed
        .worker("w1")
        .file(server)
        // Renewed often enough to notice, and so long that nobody takes the entry over again.
        .set("lease.duration", "1h")
        .set("lease.renew", "200ms")
        .start()
        .ready()
        .await;
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let entry = bed.submit(&tool("a", "slow/wait", json!({"seconds": 60, "log": log}))).await;
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("the tool runs", async || (said() == "started\n").then_some(())).await;
    assert_eq!(told(&worker, "slow").await["era"], era);

    let claim = ["XCLAIM", &bed.stream, GROUP, "another", "0", &entry, "JUSTID"];
    assert_eq!(bed.ask::<Vec<String>>(&claim).await, [entry.as_str()]);
    eventually("the tool is cancelled", async || (said() == "started\ncancelled\n").then_some(())).await;
    eventually("the worker is done with it", async || (told(&worker, "slow").await["in_flight"] == 0).then_some(()))
        .await;
    assert!(bed.events().await.is_empty(), "what was lost is another's to end");
    let pending = bed.pending_is(1).await;
    assert_eq!((pending[0].0.as_str(), pending[0].1.as_str()), (entry.as_str(), "another"));
}

#[tokio::test]
async fn a_lost_lease_cancels_the_call_on_a_child_process() {
    a_lost_lease_ends_the_call_on(&mcp::stdio("slow", &mcp::slow(), &["stdio"]), "legacy").await;
}

#[tokio::test]
async fn a_lost_lease_cancels_the_call_on_a_server_of_the_legacy_era() {
    let server = mcp::HttpServer::slow();
    a_lost_lease_ends_the_call_on(&mcp::http("slow", &server), "legacy").await;
}

#[tokio::test]
async fn a_lost_lease_closes_the_stream_of_the_call_on_a_server_of_the_modern_era() {
    let server = mcp::HttpServer::modern();
    a_lost_lease_ends_the_call_on(&mcp::http("slow", &server), "modern").await;
}

#[tokio::test]
async fn a_server_has_no_more_calls_under_way_than_its_concurrency() {
    let bed = Bed::new().await;
    let server = mcp::stdio("slow", &mcp::slow(), &["stdio"]) + "concurrency = 2\n";
    let _worker = bed.worker("w1").file(&server).start().ready().await;
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    bed.submit_all((0..6).map(|at| tool(&at.to_string(), "slow/wait", json!({"seconds": 0.3, "log": log})))).await;
    for event in bed.ended(6).await {
        event.output();
    }
    let (mut under_way, mut most) = (0, 0);
    for line in std::fs::read_to_string(&log).expect("each call writes").lines() {
        under_way += if line == "started" { 1 } else { -1 };
        most = under_way.max(most);
    }
    assert_eq!((under_way, most), (0, 2));
}

#[tokio::test]
async fn tools_are_listed_again_when_their_server_says_that_they_changed_and_not_for_each_node() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").file(&mcp::stdio("slow", &mcp::slow(), &["stdio"])).start().ready().await;
    let add = async |node: &str| {
        bed.run(&tool(node, "slow/add", json!({"a": 1, "b": 1}))).await.output();
        told(&worker, "slow").await["listed_at"].clone()
    };
    let first = add("a").await;
    assert!(first.is_string(), "{first}");
    assert_eq!((add("b").await, add("c").await), (first.clone(), first.clone()));
    bed.run(&tool("d", "slow/tell_that_tools_changed", json!({}))).await.output();
    assert_ne!(add("e").await, first);
}
