//! A process that is one client: it opens a session, calls, and prints what the calls took of time, CPU and memory.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::{Deserialize, Serialize};

use crate::{Era, ours, theirs};

/// The longest that a whole round is waited for.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The one tool of the server, and what it answers.
pub const TOOL: &str = "look_up";
pub const ANSWER: &str = "The order was packed on Tuesday at 14:05, left the warehouse in Lyon the same evening, and is \
                          expected at the customer's on Friday before noon. Nothing has to be signed.";

/// What a client has to do.
#[derive(Debug, Args)]
pub struct Order {
    /// Who calls.
    pub who: Who,
    /// Which protocol is spoken.
    pub era: Era,
    /// Calls under way at once.
    pub at_once: usize,
    /// Calls in all.
    pub calls: usize,
    /// How long the tool takes, in milliseconds.
    pub delay_ms: u64,
    /// Where the server is; without an address it is a child process.
    pub url: Option<String>,
}

/// The clients that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Who {
    /// The worker's.
    Ours,
    /// The official SDK's as it comes: over HTTP it opens a connection for each call, and makes 16 calls at once.
    Sdk,
    /// The same at its best over HTTP: connections are used again, and all calls are made at once.
    SdkPooled,
}

/// What one round took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Figures {
    /// Calls a second.
    pub rate: f64,
    /// CPU time of this process for one call, in microseconds.
    pub cpu_us: f64,
    /// The most memory that this process ever had, in MB.
    pub peak_mb: f64,
}

/// Somebody who can call the tool.
pub trait Caller: Send + Sync + 'static {
    /// Calls it, and gives the text of the answer.
    fn call(&self, order: u64) -> impl Future<Output = String> + Send;
}

/// Does what was ordered.
pub async fn obey(order: Order) {
    let figures = match order.who {
        Who::Ours => drive(ours::connect(&order).await, &order).await,
        Who::Sdk | Who::SdkPooled => drive(theirs::connect(&order).await, &order).await,
    };
    println!("{}", serde_json::to_string(&figures).expect("figures are numbers"));
    // Neither client's leave-taking is measured.
    std::process::exit(0);
}

async fn drive(caller: impl Caller, order: &Order) -> Figures {
    let caller = Arc::new(caller);
    // Connections are made and memory is found before it counts.
    round(&caller, order.at_once, order.at_once * 2).await;
    let (cpu, started) = (cpu(), Instant::now());
    round(&caller, order.at_once, order.calls).await;
    let (took, cpu) = (started.elapsed(), self::cpu() - cpu);
    let calls = order.calls as f64;
    Figures { rate: calls / took.as_secs_f64(), cpu_us: cpu.as_secs_f64() * 1e6 / calls, peak_mb: peak_mb() }
}

async fn round(caller: &Arc<impl Caller>, at_once: usize, calls: usize) {
    let tasks = (0..at_once).map(|task| {
        let caller = Arc::clone(caller);
        tokio::spawn(async move {
            for call in (task..calls).step_by(at_once) {
                let answer = caller.call(call as u64).await;
                assert_eq!(answer, ANSWER, "the answer came as it was sent");
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    for task in tasks {
        task.await.expect("every call is answered");
    }
}

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask about itself");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).expect("time only grows"))
}

/// `ru_maxrss` would tell of the process that started this one as well.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process may ask about itself");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process has memory");
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024.0 / 1e6
}
