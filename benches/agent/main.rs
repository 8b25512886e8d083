//! What an iteration of an agent costs by the worker, beside the same loop in LangGraph and in pydantic-ai, against a
//! model that answers at once, in one run on one machine: `cargo bench --bench agent`.

mod conversation;
mod endpoint;
mod ours;
mod peer;
#[path = "../worker/process.rs"]
#[allow(dead_code, reason = "the other benchmark uses all of it")]
mod process;
#[path = "../../tests/it/harness/redis.rs"]
#[allow(dead_code, reason = "the integration tests use more of it")]
mod redis_server;
#[path = "../worker/report.rs"]
#[allow(dead_code, reason = "the other benchmark uses all of it")]
mod report;
mod rounds;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::TypedValueParser as _;

use report::Report;
use rounds::Size;

/// The longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures iterations of agents and says whether each figure reaches its target.
#[derive(Debug, Parser)]
struct Args {
    /// Conversations of one round.
    #[arg(long, default_value_t = 300)]
    conversations: usize,
    /// Turns of the model in each conversation; all but the last call the tool.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=50).map(usize::from))]
    turns: usize,
    /// Conversations under way at once; the default is the worker's own `pool.size`.
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    /// Rounds of each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Leaves the peers out, for instance to look into the worker with a profiler.
    #[arg(long)]
    worker_only: bool,
    /// The program to measure, instead of the one that was built with this benchmark.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_executor-worker"))]
    worker: PathBuf,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Args { conversations, turns, at_once, rounds, .. } = args;
    let busy = Size { conversations, turns, at_once, rounds, peers: !args.worker_only };
    // A tenth of the conversations: here only the time counts.
    let one_by_one = Size { conversations: conversations.div_ceil(10), at_once: 1, ..busy };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime.expect("a runtime on this thread can always be made").block_on(async {
        let mut report = Report::default();
        rounds::busy(&mut report, &args.worker, busy).await;
        rounds::one_by_one(&mut report, &args.worker, one_by_one).await;
        report
    });
    println!("{report}");
    if report.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
