//! What the worker costs, measured against what it could cost at best, in one run on one machine: `make bench`.
//! Figures are ratios to a reference of the same run, for absolute ones mean nothing on another machine.

mod bare;
mod delay_server;
mod idle;
mod process;
#[path = "../../tests/it/harness/redis.rs"]
#[allow(dead_code, reason = "the integration tests use more of it")]
mod redis_server;
mod report;
mod throughput;
mod tools;
mod waiting;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use report::Report;

/// The longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures the worker and says whether each figure reaches its target.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure; everything if nothing is named.
    sections: Vec<Section>,
    /// Items of one round of `throughput`.
    #[arg(long, default_value_t = 20_000)]
    items: usize,
    /// Rounds of each kind in `throughput` and `waiting`.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The program to measure, instead of the one that was built with this benchmark.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_executor-worker"))]
    worker: PathBuf,
    /// Serves so many tools over stdin and stdout instead, for `tools`.
    #[arg(long, hide = true)]
    serve_tools: Option<usize>,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Items a second against a bare pipelined client.
    Throughput,
    /// Memory at rest, time to readiness.
    Idle,
    /// Many nodes that wait for HTTP.
    Waiting,
    /// Nodes that use one tool of few and of many.
    Tools,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(tools) = args.serve_tools {
        tools::serve(tools);
        return ExitCode::SUCCESS;
    }
    let all = [Section::Idle, Section::Waiting, Section::Tools, Section::Throughput];
    let sections = if args.sections.is_empty() { &all[..] } else { &args.sections };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime.expect("a runtime on this thread can always be made").block_on(async {
        let mut report = Report::default();
        for section in sections {
            match section {
                Section::Idle => idle::measure(&mut report, &args.worker).await,
                Section::Waiting => waiting::measure(&mut report, &args.worker, args.rounds).await,
                Section::Tools => tools::measure(&mut report, &args.worker, args.rounds).await,
                Section::Throughput => throughput::measure(&mut report, &args.worker, args.items, args.rounds).await,
            }
        }
        report
    });
    println!("{report}");
    if report.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
