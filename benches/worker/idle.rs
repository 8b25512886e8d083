//! A worker with nothing to do: how soon it is ready, and what memory it holds.

use std::path::Path;
use std::time::Duration;

use crate::process::{Worker, resident};
use crate::redis_server::RedisServer;
use crate::report::{Report, median, ms};

const STARTS: usize = 10;
/// How long the worker idles before its memory is looked at.
const REST: Duration = Duration::from_secs(5);
const MEGABYTE: f64 = 1_000_000.0;

/// Starts a worker several times, and lets the last one rest.
pub async fn measure(report: &mut Report, program: &Path) {
    let server = RedisServer::start();
    let mut times = Vec::with_capacity(STARTS);
    for _ in 1..STARTS {
        let mut worker = Worker::start(program, &server.url(), &[]);
        times.push(worker.ready());
        worker.stop();
    }
    let mut worker = Worker::start(program, &server.url(), &[]);
    times.push(worker.ready());
    tokio::time::sleep(REST).await;
    let memory = resident(worker.pid());
    worker.stop();
    eprintln!("idle: ready after {times:?}, {memory} bytes resident after {REST:?}");
    report.at_most("idle: from exec to ready, ms, median of 10", ms(median(&times)), 100.0);
    report.at_most("idle: resident memory, MB", memory as f64 / MEGABYTE, 20.0);
}
