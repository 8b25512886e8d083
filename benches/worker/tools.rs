//! A node that uses one tool of a server with ten tools, and of one with five thousand: what it costs must not grow
//! with what it does not use.

use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::process::{ScriptedModel, Worker, cpu};
use crate::redis_server::RedisServer;
use crate::report::{Report, median};
use crate::workload::{COMPLETED, STREAM};

/// How many tools the server has.
const FEW: usize = 10;
const MANY: usize = 5_000;
/// Nodes of one round, and nodes before it: the first ones find out what there is.
const NODES: usize = 2_000;
const FIRST: usize = 50;

/// Nodes of one kind.
struct Kind {
    name: &'static str,
    config: Value,
}

/// Measures nodes of each kind with few and with many tools in turn.
pub async fn measure(report: &mut Report, program: &Path, rounds: usize) {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let model = ScriptedModel::start(
        program,
        "rules: [{replies: [{tool_calls: [{name: tool_7, input: {order: 17}}]}, {text: done}]}]",
    );
    let kinds = [
        Kind { name: "tool mode", config: json!({"tool_name": "bench/tool_7", "tool_params": {"order": 17}}) },
        Kind { name: "tool mode, bare name", config: json!({"tool_name": "tool_7", "tool_params": {"order": 17}}) },
        Kind {
            name: "built-in function",
            config: json!({"tool_name": "calculate", "tool_params": {"expression": "1+1"}}),
        },
        Kind { name: "agent", config: json!({"task": "look", "tools": ["bench/tool_7"], "llm_config": {}}) },
    ];
    eprintln!("tools: {NODES} nodes of each kind, {FEW} and {MANY} tools, {rounds} rounds");
    for kind in kinds {
        let mut cost = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (tools, cost) in [FEW, MANY].into_iter().zip(&mut cost) {
                cost.push(round(&mut redis, program, &server.url(), &model, &kind.config, tools).await);
            }
        }
        let [few, many] = cost.map(|cost| median(&cost));
        report.note(
            &format!("tools: CPU of one node in µs, {}, {FEW} and {MANY} tools", kind.name),
            format!("{few:.0} and {many:.0}"),
        );
        report.at_most(&format!("tools: {}, {MANY} tools / {FEW} tools", kind.name), many / few, 1.25);
    }
}

/// CPU time of the worker for one node, in microseconds.
async fn round(
    redis: &mut MultiplexedConnection,
    program: &Path,
    url: &str,
    model: &ScriptedModel,
    config: &Value,
    tools: usize,
) -> f64 {
    redis::cmd("FLUSHALL").exec_async(redis).await.expect("the server is ours");
    let own = std::env::current_exe().expect("this program has a path");
    let settings = [
        format!("mcp.servers.bench.command={}", own.display()),
        format!("mcp.servers.bench.args=[\"--serve-tools\", \"{tools}\"]"),
        format!("llm.providers.anthropic.base_url={}", model.base_url),
        String::from("llm.providers.anthropic.api_key=none"),
    ];
    let mut worker = Worker::start(program, url, &settings.each_ref().map(String::as_str));
    worker.ready();
    submit(redis, config, 0..FIRST).await;
    let before = cpu(worker.pid());
    submit(redis, config, FIRST..FIRST + NODES).await;
    let took = cpu(worker.pid()) - before;
    worker.stop();
    took.as_secs_f64() * 1e6 / NODES as f64
}

/// Submits nodes at once and waits until all of them are completed.
async fn submit(redis: &mut MultiplexedConnection, config: &Value, nodes: std::ops::Range<usize>) {
    let until = nodes.end;
    let mut pipe = redis::Pipeline::with_capacity(nodes.len());
    for node in nodes {
        let item = json!({"graph_id": format!("graph-{node}"), "node_id": "n", "config": config, "inputs": {}});
        pipe.cmd("XADD").arg(STREAM).arg("*").arg("data").arg(item.to_string()).ignore();
    }
    pipe.exec_async(redis).await.expect("the work is well formed");
    let started = Instant::now();
    loop {
        let completed: usize = redis::cmd("XLEN").arg(COMPLETED).query_async(redis).await.expect("the server answers");
        if completed >= until {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{completed} of {until} nodes are completed after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Serves so many tools over stdin and stdout until stdin ends: all this server knows it has by heart.
pub fn serve(tools: usize) {
    let schema = r#"{"type":"object","properties":{"order":{"type":"integer","description":"Its number."}},"required":["order"]}"#;
    let mut list = String::new();
    for tool in 0..tools {
        let comma = if tool == 0 { "" } else { "," };
        let _ = write!(
            list,
            r#"{comma}{{"name":"tool_{tool}","description":"Looks up orders of place {tool}.","inputSchema":{schema}}}"#
        );
    }
    let mut stdout = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let message: Value = serde_json::from_str(&line).expect("the worker writes JSON");
        let Some(id) = message.get("id") else { continue };
        let result = match message["method"].as_str().unwrap_or_default() {
            "server/discover" => String::from(
                r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private"}"#,
            ),
            "tools/list" => {
                format!(r#"{{"resultType":"complete","ttlMs":3600000,"cacheScope":"private","tools":[{list}]}}"#)
            }
            _ => String::from(
                r#"{"resultType":"complete","content":[{"type":"text","text":"It was packed on Tuesday."}]}"#,
            ),
        };
        if writeln!(stdout, r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#).and_then(|()| stdout.flush()).is_err()
        {
            return;
        }
    }
}
