//! Many nodes that only wait for somebody else: the worker should add little to the time that the waiting takes.

use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use serde_json::json;

use crate::PATIENCE;
use crate::delay_server::DelayServer;
use crate::process::{Worker, cpu};
use crate::redis_server::RedisServer;
use crate::report::{Report, median, ms};
use crate::workload::{COMPLETED, STREAM, millis, state_key};

const NODES: usize = 2000;
const POOL: usize = 1000;
const DELAY: Duration = Duration::from_millis(200);
const GRAPH: &str = "waiting";

/// Submits all nodes of one graph at once to a worker that idles, `rounds` times, each to a new worker.
pub async fn measure(report: &mut Report, program: &Path, rounds: usize) {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let delays = DelayServer::start(DELAY);
    let url = format!("http://127.0.0.1:{}/wait", delays.port());
    let allow = format!("tools.http_request.allow=[\"127.0.0.1:{}\"]", delays.port());
    let settings = [allow.as_str(), &format!("pool.size={POOL}")];

    let ideal = DELAY * u32::try_from(NODES.div_ceil(POOL)).expect("few rounds");
    eprintln!("waiting: {NODES} nodes, {DELAY:?} each, pool {POOL}, ideal {ideal:?}");
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let mut worker = Worker::start(program, &server.url(), &settings);
        worker.ready();
        let before = cpu(worker.pid());
        let took = round(&mut redis, &url).await;
        let (most, connections) = delays.take_counts();
        eprintln!(
            "  {took:?}, at most {most} requests at once on {connections} connections, CPU of the worker {:?}",
            cpu(worker.pid()) - before
        );
        times.push(took);
        worker.stop();
    }
    let took = median(&times);
    report.note("waiting: 2000 nodes of 200 ms, pool 1000, ms, median", format!("{:.0}", ms(took)));
    report.at_most("waiting: time / ideal time (400 ms)", ms(took) / ms(ideal), 1.3);
}

/// From the moment at which the work is there to the last result, by the server's clock.
async fn round(redis: &mut MultiplexedConnection, url: &str) -> Duration {
    let mut clear = redis::pipe();
    clear.cmd("DEL").arg(COMPLETED).arg(state_key(GRAPH)).arg(format!("dago:done:{GRAPH}")).ignore();
    clear.cmd("HSET").arg(state_key(GRAPH)).arg("inputs").arg("{}").ignore();
    clear.exec_async(redis).await.expect("the server is ours");

    // In one transaction all of it is there at once.
    let mut pipe = redis::Pipeline::with_capacity(NODES);
    pipe.atomic();
    for node in 0..NODES {
        let item = json!({"graph_id": GRAPH, "node_id": format!("node-{node}"),
            "config": {"tool_name": "http_request", "tool_params": {"url": url}}});
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
            let answered: usize = count_ok(redis).await;
            assert_eq!((completed, answered), (NODES, NODES), "every node got the answer, none twice");
            return Duration::from_millis(millis(&last[0].0) - submitted);
        }
        assert!(started.elapsed() < PATIENCE, "{completed} of {NODES} nodes are completed after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nodes whose output bears what the server answered.
async fn count_ok(redis: &mut MultiplexedConnection) -> usize {
    let states: Vec<String> = redis::cmd("HVALS").arg(state_key(GRAPH)).query_async(redis).await.expect("the state");
    states.iter().filter(|state| state.contains(r#""json":{"ok":true}"#)).count()
}
