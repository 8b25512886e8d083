//! Many nodes that only wait for somebody else: the worker should add little to the time that the waiting takes.

use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::delay_server::DelayServer;
use crate::process::{ScriptedModel, Worker, cpu};
use crate::redis_server::RedisServer;
use crate::report::{Report, median, ms};
use crate::workload::{COMPLETED, STREAM, millis, state_key};

const NODES: usize = 2000;
const POOL: usize = 1000;
const DELAY: Duration = Duration::from_millis(200);
const GRAPH: &str = "waiting";

/// Nodes of one kind: what the worker needs for them, what each is, and what its output has to hold.
struct Kind {
    name: &'static str,
    settings: Vec<String>,
    config: Value,
    answer: &'static str,
}

/// Nodes that ask a server over HTTP, then nodes that ask a model, whose client speaks to it over HTTP too.
pub async fn measure(report: &mut Report, program: &Path, rounds: usize) {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let ideal = DELAY * u32::try_from(NODES.div_ceil(POOL)).expect("few rounds");

    let delays = DelayServer::start(DELAY);
    let tool = Kind {
        name: "http_request",
        settings: vec![format!("tools.http_request.allow=[\"127.0.0.1:{}\"]", delays.port())],
        config: json!({"tool_name": "http_request",
            "tool_params": {"url": format!("http://127.0.0.1:{}/wait", delays.port())}}),
        answer: r#""json":{"ok":true}"#,
    };
    let took = rounds_of(&tool, program, &server.url(), &mut redis, rounds).await;
    let (most, connections) = delays.counts();
    eprintln!("  at most {most} requests at once, {connections} connections in all");
    report.note("waiting: 2000 requests of 200 ms, pool 1000, ms, median", format!("{:.0}", ms(took)));
    report.at_most("waiting: time / ideal time (400 ms)", ms(took) / ms(ideal), 1.3);

    let model = ScriptedModel::start(program, &format!("rules: [{{reply: {{text: waited, delay: {DELAY:?}}}}}]"));
    let llm = Kind {
        name: "llm",
        settings: vec![
            format!("llm.providers.anthropic.base_url={}", model.base_url),
            String::from("llm.providers.anthropic.api_key=none"),
            format!("llm.providers.anthropic.concurrency={POOL}"),
        ],
        config: json!({"llm_config": {"prompt": "wait"}}),
        answer: r#""content":"waited""#,
    };
    let took = rounds_of(&llm, program, &server.url(), &mut redis, rounds).await;
    report.note("waiting: the same for nodes in llm mode, time / ideal time", format!("{:.2}", ms(took) / ms(ideal)));
}

/// Submits all nodes of one graph at once to a worker that idles, `rounds` times, each to a new worker; the median.
async fn rounds_of(
    kind: &Kind,
    program: &Path,
    url: &str,
    redis: &mut MultiplexedConnection,
    rounds: usize,
) -> Duration {
    eprintln!("waiting: {NODES} nodes with {}, {DELAY:?} each, pool {POOL}", kind.name);
    let pool = format!("pool.size={POOL}");
    let settings: Vec<&str> = kind.settings.iter().map(String::as_str).chain([pool.as_str()]).collect();
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let mut worker = Worker::start(program, url, &settings);
        worker.ready();
        let before = cpu(worker.pid());
        let took = round(redis, kind).await;
        eprintln!("  {took:?}, CPU of the worker {:?}", cpu(worker.pid()) - before);
        times.push(took);
        worker.stop();
    }
    median(&times)
}

/// From the moment at which the work is there to the last result, by the server's clock.
async fn round(redis: &mut MultiplexedConnection, kind: &Kind) -> Duration {
    let mut clear = redis::pipe();
    clear.cmd("DEL").arg(COMPLETED).arg(state_key(GRAPH)).arg(format!("dago:done:{GRAPH}")).ignore();
    clear.cmd("HSET").arg(state_key(GRAPH)).arg("inputs").arg("{}").ignore();
    clear.exec_async(redis).await.expect("the server is ours");

    // In one transaction all of it is there at once.
    let mut pipe = redis::Pipeline::with_capacity(NODES);
    pipe.atomic();
    for node in 0..NODES {
        let item = json!({"graph_id": GRAPH, "node_id": format!("node-{node}"), "config": kind.config});
        pipe.cmd("XADD").arg(STREAM).arg("*").arg("data").arg(item.to_string());
    }
    let entries: Vec<String> = pipe.query_async(redis).await.expect("the work is well formed");
    let submitted = millis(&entries[0]);

    let started = std::time::Instant::now();
    loop {
        let mut last = redis::cmd("XREVRANGE");
        last.arg(COMPLETED).arg("+").arg("-").arg("COUNT").arg(1);
        let mut pipe = redis::pipe();
        pipe.cmd("XLEN").arg(COMPLETED).add_command(last);
        let (completed, last): (usize, Vec<(String, redis::Value)>) =
            pipe.query_async(redis).await.expect("the server answers");
        if completed >= NODES {
            let answered: usize = answered(redis, kind.answer).await;
            assert_eq!((completed, answered), (NODES, NODES), "every node got the answer, none twice");
            return Duration::from_millis(millis(&last[0].0) - submitted);
        }
        assert!(started.elapsed() < PATIENCE, "{completed} of {NODES} nodes are completed after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nodes whose output bears what the server answered.
async fn answered(redis: &mut MultiplexedConnection, answer: &str) -> usize {
    let states: Vec<String> = redis::cmd("HVALS").arg(state_key(GRAPH)).query_async(redis).await.expect("the state");
    states.iter().filter(|state| state.contains(answer)).count()
}
