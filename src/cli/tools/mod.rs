//! `tools`: what each MCP server and the function registry offer, one call by hand, and the approval of what is offered.

mod call;
mod list;
mod pin;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use actix_rt::System;
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::actors::pace::Sharing;
use crate::app::wiring::Running;
use crate::cli::{Settings, WRONG_ARGUMENTS, complain, fail};
use crate::config::Config;
use crate::domain::node::nearest;
use crate::health::Health;
use crate::metrics::Metrics;

/// Arguments of `tools`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ToolsArgs {
    #[command(subcommand)]
    command: Option<ToolsCommand>,
    /// Print JSON, input schemas included.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ToolsCommand {
    /// Show each server and what it offers (the same as no subcommand).
    List(list::ListArgs),
    /// Call one tool; its result goes to stdout as JSON.
    #[command(after_help = call::HELP)]
    Call(call::CallArgs),
    /// Approve the tools of servers that have a `pin`, as they are now.
    Pin(pin::PinArgs),
}

/// Runs the subcommand; the answer is the exit code.
pub fn run(settings: &Settings, args: &ToolsArgs) -> u8 {
    match &args.command {
        None => list::run(settings, &list::ListArgs { json: args.json, server: None }),
        Some(ToolsCommand::List(args)) => list::run(settings, args),
        Some(ToolsCommand::Call(args)) => call::run(settings, args),
        Some(ToolsCommand::Pin(args)) => pin::run(settings, args),
    }
}

/// Does something with models and tools at work, and ends them afterwards.
fn with_tools<T, Work>(settings: &Settings, config: &Config, work: impl FnOnce(Arc<Running>) -> Work) -> Result<T, u8>
where
    Work: Future<Output = T>,
{
    let system = System::new();
    let done = system.block_on(async {
        let (health, metrics) = (Arc::new(Health::new(Duration::MAX)), Arc::new(Metrics::new("tools")));
        let end = CancellationToken::new();
        let draining = CancellationToken::new();
        let running =
            Running::start(config, &settings.functions, &health, &metrics, &Sharing::default(), &draining, &end)?;
        let running = Arc::new(running);
        let done = work(Arc::clone(&running)).await;
        end.cancel();
        running.close().await;
        anyhow::Ok(done)
    });
    done.map_err(fail)
}

/// Says that no server has this name; the answer is the exit code.
fn unknown_server(config: &Config, name: &str) -> u8 {
    let near = nearest(name, config.mcp.servers.keys().map(String::as_str));
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    complain(format_args!("no MCP server is called `{name}`{hint}"));
    WRONG_ARGUMENTS
}
