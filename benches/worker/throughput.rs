//! A stream full of small tool nodes: how many the worker settles in a second, against the bare client.

use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;

use crate::PATIENCE;
use crate::bare::{self, Sample};
use crate::process::{Worker, cpu, server_pid};
use crate::redis_server::RedisServer;
use crate::report::{Report, median};
use crate::workload::{COMPLETED, check, lay_out, span, state_bytes};

const NO_PROGRESS: &str = "events.progress=[]";

/// One round.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    /// CPU time of the client for one item, in microseconds.
    client: f64,
    /// The same of the server.
    server: f64,
}

/// Commands that both sides send, or their scripts do. Those of a worker alone, such as registering, are not here.
const COMMANDS: [&str; 8] = ["evalsha", "hget", "hmget", "hset", "xack", "xadd", "xdel", "xpending"];

const XADD: usize = 5;

/// Rounds of one kind.
#[derive(Default)]
struct Rounds(Vec<Round>);

impl Rounds {
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(&self.0.iter().map(of).collect::<Vec<_>>())
    }

    fn note(&self, report: &mut Report, name: &str) {
        let (least, most) = self.0.iter().fold((f64::MAX, 0.0_f64), |(least, most), round| {
            (least.min(round.per_second), most.max(round.per_second))
        });
        report.note(
            &format!("throughput: {name}, items/s, median (least to most)"),
            format!("{:.0} ({least:.0} to {most:.0})", self.median(|round| round.per_second)),
        );
        report.note(
            &format!("throughput: {name}, CPU for one item in µs, client + redis"),
            format!("{:.0} + {:.0}", self.median(|round| round.client), self.median(|round| round.server)),
        );
    }
}

/// What is measured, and where.
struct At<'a> {
    program: &'a Path,
    url: String,
    server_pid: u32,
}

/// Measures `rounds` rounds of each kind in turn, so that whatever else the machine does meets all of them.
pub async fn measure(report: &mut Report, program: &Path, items: usize, rounds: usize) {
    let server = RedisServer::start();
    let mut redis = server.connect().await;
    let at = At { program, url: server.url(), server_pid: server_pid(&mut redis).await };
    eprintln!("throughput: {items} items, {} bytes of state each, {rounds} rounds", state_bytes());

    // One small run for the texts that the bare client writes, and to have everything loaded from disk.
    lay_out(&mut redis, 500).await;
    by_worker(&at, &mut redis, 500, &[]).await;
    let sample = Sample::take(&mut redis).await;

    let (mut bare, mut worker, mut quiet) = (Rounds::default(), Rounds::default(), Rounds::default());
    for _ in 0..rounds {
        lay_out(&mut redis, items).await;
        bare.0.push(by_bare(&mut redis, at.server_pid, items, &sample).await);
        let reference = commands(&mut redis, items).await;
        lay_out(&mut redis, items).await;
        worker.0.push(by_worker(&at, &mut redis, items, &[]).await);
        let xadd = commands(&mut redis, items).await[XADD];
        eprintln!("         {:.2} progress events for one item", xadd - 1.0);
        lay_out(&mut redis, items).await;
        quiet.0.push(by_worker(&at, &mut redis, items, &[NO_PROGRESS]).await);
        let own = commands(&mut redis, items).await;
        let differ = reference.iter().zip(&own).any(|(theirs, ours)| (theirs - ours).abs() > 0.05);
        assert!(!differ, "the bare client no longer does what the worker does: {COMMANDS:?} {reference:?} {own:?}");
    }
    bare.note(report, "bare client");
    worker.note(report, "worker");
    quiet.note(report, "worker without progress events");
    let ratio = |rounds: &Rounds| rounds.median(|round| round.per_second) / bare.median(|round| round.per_second);
    report.at_least("throughput: worker / bare client", ratio(&worker), 0.5);
    report.at_least("throughput: worker without progress events / bare client", ratio(&quiet), 0.5);
}

async fn by_bare(redis: &mut MultiplexedConnection, server_pid: u32, items: usize, sample: &Sample) -> Round {
    let before = (cpu(std::process::id()), cpu(server_pid));
    bare::run(redis, sample).await;
    let after = (cpu(std::process::id()), cpu(server_pid));
    round(redis, "bare", items, after.0 - before.0, after.1 - before.1).await
}

async fn by_worker(at: &At<'_>, redis: &mut MultiplexedConnection, items: usize, settings: &[&str]) -> Round {
    let before = cpu(at.server_pid);
    let worker = Worker::start(at.program, &at.url, settings);
    until_completed(redis, items).await;
    let (client, server_cpu) = (cpu(worker.pid()), cpu(at.server_pid) - before);
    worker.stop();
    round(redis, if settings.is_empty() { "worker" } else { "quiet" }, items, client, server_cpu).await
}

async fn round(
    redis: &mut MultiplexedConnection,
    kind: &str,
    items: usize,
    client: Duration,
    server: Duration,
) -> Round {
    check(redis, items).await;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / items as f64;
    let round = Round { per_second: items as f64 / span(redis).await, client: each(client), server: each(server) };
    eprintln!(
        "  {kind:6} {:>6.0} items/s, CPU for one item: client {:>4.0} µs, redis {:>4.0} µs",
        round.per_second, round.client, round.server
    );
    round
}

/// Waits for all results; looks seldom, so as not to be in the way.
async fn until_completed(redis: &mut MultiplexedConnection, items: usize) {
    let started = std::time::Instant::now();
    loop {
        let completed: usize = redis::cmd("XLEN").arg(COMPLETED).query_async(redis).await.expect("the server answers");
        if completed >= items {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{completed} of {items} items are completed after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often each of [`COMMANDS`] was called for one item since the work was laid out.
async fn commands(redis: &mut MultiplexedConnection, items: usize) -> [f64; COMMANDS.len()] {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await.expect("the server answers");
    COMMANDS.map(|command| {
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        let calls = line.and_then(|line| line.split(',').next()).map_or(0.0, |calls| calls.parse().expect("a number"));
        calls / items as f64
    })
}
