//! `dev`: the whole worker at work with nothing set up: a private Redis, a scripted model, a tool server, two workers,
//! the nodes of `examples/`, two of which cost workers their lives, and a table of what happens.

mod board;
pub mod child;
mod ledger;
mod play;
pub mod redis_server;
mod scenario;
mod stage;
mod verdict;
mod workers;

use std::fmt::Display;

use actix_rt::System;
use clap::Args;
use console::style;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::dev::play::{Ended, Play};
use crate::cli::dev::stage::Stage;
use crate::cli::{FAILED, Settings, complain, print_line, print_note};

/// What a shell gives a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// End after the sample nodes; exit 0 only if every outcome was the expected one.
    #[arg(long)]
    once: bool,
    /// Use this Redis instead of a private one, under keys of its own that are removed at the end.
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Use this model provider of your configuration instead of the scripted model; it costs money.
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
}

/// Why the demo cannot go on, and the exit code that says so.
#[derive(Debug)]
struct Trouble {
    code: u8,
    message: String,
}

impl Trouble {
    fn new(code: u8, message: impl Display) -> Self {
        Self { code, message: message.to_string() }
    }
}

/// The signals that end the demo. They are heard from the first moment on, so none is lost while things start.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn listen() -> Result<Self, Trouble> {
        let listen = |kind| signal(kind).map_err(|error| Trouble::new(FAILED, format!("no signals: {error}")));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Runs the demo.
pub fn run(settings: &Settings, args: &DevArgs) -> u8 {
    match System::new().block_on(perform(settings, args)) {
        Ok(code) => code,
        Err(trouble) => {
            complain(&trouble.message);
            trouble.code
        }
    }
}

async fn perform(settings: &Settings, args: &DevArgs) -> Result<u8, Trouble> {
    let mut interrupts = Interrupts::listen()?;
    let mut stage = Stage::set_up(settings, args).await?;
    print_addresses(&stage);
    print_line("");
    let answer = show(&mut stage, args, &mut interrupts).await;
    let satisfied = matches!(answer, Ok(0 | INTERRUPTED));
    if let Some(logs) = stage.close(!satisfied).await {
        print_note(format_args!("the logs of the workers stay in {}", logs.display()));
    }
    answer
}

fn print_addresses(stage: &Stage) {
    for (name, address) in stage.addresses() {
        print_line(format_args!("{:<7} {address}", style(name).bold()));
    }
}

/// From the first submission to the last word.
async fn show(stage: &mut Stage, args: &DevArgs, interrupts: &mut Interrupts) -> Result<u8, Trouble> {
    let mut play = Play::begin(stage).await?;
    let differences = match play.until_ended(interrupts).await? {
        Ended::Interrupted => return Ok(INTERRUPTED),
        Ended::Everything => play.differences().await?,
        Ended::OutOfTime => {
            let mut differences = vec![String::from("the time for the whole run is up")];
            differences.extend(play.differences().await?);
            differences
        }
    };
    let code = if differences.is_empty() { 0 } else { FAILED };
    play.tell_verdict(&differences);
    if !args.once {
        play.tell_what_next();
        play.until_interrupted(interrupts).await?;
    }
    Ok(code)
}
