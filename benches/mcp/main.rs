//! What a call of a tool costs by our client, beside the official Rust SDK's, in one run on one machine:
//! `cargo bench --bench mcp`. Each client has processes of its own, and their rounds alternate.

mod client;
mod ours;
#[path = "../worker/report.rs"]
#[allow(dead_code, reason = "the other benchmark uses all of it")]
mod report;
mod rounds;
mod server;
mod theirs;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use report::Report;

/// The allocator of the released program, for both clients.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures calls of tools and says whether each figure reaches its target.
#[derive(Debug, Parser)]
struct Args {
    /// The part that a process of its own plays; the whole measurement if none is named.
    #[command(subcommand)]
    role: Option<Role>,
    /// How the server is reached; every way if none is named.
    #[arg(long)]
    way: Vec<Way>,
    /// Calls under way at once.
    #[arg(long, default_values_t = [100, 1000])]
    at_once: Vec<usize>,
    /// Which protocol is spoken; both if none is named.
    #[arg(long)]
    era: Vec<Era>,
    /// How long the tool takes, in milliseconds: long enough that all calls are under way at once.
    #[arg(long, default_value_t = 25)]
    delay_ms: u64,
    /// Calls of one round.
    #[arg(long, default_value_t = 20_000)]
    calls: usize,
    /// Rounds of each client.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Serves over HTTP and prints the address.
    #[command(hide = true)]
    ServeHttp { era: Era, answers: Answers, delay_ms: u64 },
    /// Serves over stdin and stdout.
    #[command(hide = true)]
    ServeStdio { era: Era, delay_ms: u64 },
    /// Calls, and prints what that took.
    #[command(hide = true)]
    Client(client::Order),
}

/// How the server is reached, and how it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Streamable HTTP, answered by JSON.
    Http,
    /// Streamable HTTP, answered by an event stream, as most servers do.
    Sse,
    /// The pipes of a child process.
    Stdio,
}

/// How a server over HTTP answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Answers {
    /// By JSON.
    Json,
    /// By an event stream, whose end comes by itself.
    Sse,
}

/// Which protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Era {
    /// 2025-11-25, with a handshake.
    Legacy,
    /// 2026-07-28, without one.
    Modern,
}

impl Era {
    fn version(self) -> &'static str {
        match self {
            Self::Legacy => "2025-11-25",
            Self::Modern => "2026-07-28",
        }
    }

    /// Its name on the command line.
    fn word(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Modern => "modern",
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime on this thread can always be made");
    match args.role {
        Some(Role::ServeHttp { era, answers, delay_ms }) => {
            runtime.block_on(server::over_http(era, answers, Duration::from_millis(delay_ms)));
        }
        Some(Role::ServeStdio { era, delay_ms }) => {
            runtime.block_on(server::over_stdio(era, Duration::from_millis(delay_ms)));
        }
        Some(Role::Client(order)) => runtime.block_on(client::obey(order)),
        None => return measure(&args),
    }
    ExitCode::SUCCESS
}

fn measure(args: &Args) -> ExitCode {
    let or_all = |named: &[Way]| if named.is_empty() { Way::value_variants().to_vec() } else { named.to_vec() };
    let eras = if args.era.is_empty() { Era::value_variants() } else { &args.era };
    let mut report = Report::default();
    for way in or_all(&args.way) {
        for &at_once in &args.at_once {
            for &era in eras {
                let Args { calls, rounds, delay_ms, .. } = *args;
                rounds::play(&mut report, &rounds::Cell { way, at_once, era, calls, rounds, delay_ms });
            }
        }
    }
    println!("{report}");
    if report.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
