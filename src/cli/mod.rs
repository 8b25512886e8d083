//! The command line: which subcommands exist and where each begins. No subcommand runs the worker.

pub mod cancel;
pub mod config;
pub mod dead_letters;
pub mod dev;
pub mod exec;
pub mod healthcheck;
pub mod mcp_demo;
pub mod reconcile;
pub mod run;
pub mod scripted_model;
pub mod status;
pub mod submit;
pub mod tools;
pub mod waits;
pub mod worker;

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::app::Refused;
use crate::clients::redis::RedisError;
use crate::config::Config;
use crate::config::load::{LoadOptions, Loaded, load};
use crate::tools::Registry;

/// The exit codes that scripts may rely on, as `--help` prints them.
const EXIT_CODES: &str = "Exit codes:
  0    done, or stopped cleanly
  1    the command failed; of `submit --wait`, `exec` and `dev --once`: a node did not end as hoped
  2    wrong arguments
  69   a service is needed and does not answer
  70   a fault of the worker itself; a restart may help
  76   of `tools call`: the server refused the call, or its answer cannot be used
  78   wrong configuration; a restart does not help
  130  a second signal ended the worker at once, or Ctrl-C ended `dev` before its end";

/// A generic failure.
pub const FAILED: u8 = 1;
/// Arguments that do not go together; clap's own code.
pub const WRONG_ARGUMENTS: u8 = 2;
/// A service does not answer.
pub const UNAVAILABLE: u8 = 69;
/// A fault of the program itself.
pub const FAULT: u8 = 70;
/// The other side refused, or broke the protocol.
pub const REFUSED: u8 = 76;
/// Somebody interrupted it.
pub const INTERRUPTED: u8 = 130;
/// Wrong configuration.
pub const WRONG_CONFIG: u8 = 78;

/// Runs the nodes of AI-agent graphs from Redis Streams: nothing lost, nothing twice.
#[derive(Debug, Parser)]
#[command(name = "executor-worker", version, about, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every subcommand takes.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Configuration file (TOML) laid over the compiled-in defaults. Environment: EXECUTOR_CONFIG
    #[arg(long, global = true, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Sets one key, such as `--set pool.size=8`; wins over the file and the environment.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = assignment)]
    #[arg(help_heading = "Configuration")]
    pub set: Vec<(String, String)>,
    /// Functions of the program's own, beside the built-in ones.
    #[arg(skip)]
    pub functions: Registry,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the worker (the same as no subcommand).
    Run,
    /// See it work: a private Redis, a scripted model, a demo tool server, a worker, and the sample nodes.
    Dev(dev::DevArgs),
    /// Put a work item into the stream.
    Submit(submit::SubmitArgs),
    /// Run one node here and now, with no Redis; its output goes to stdout.
    Exec(exec::ExecArgs),
    /// Show, call and approve what each MCP server and the function registry offer.
    Tools(tools::ToolsArgs),
    /// Show what waits, what is held, and which workers there are.
    Status(status::StatusArgs),
    /// Stop a node, or every node of a graph, wherever it runs.
    Cancel(cancel::CancelArgs),
    /// Show what nodes wait for.
    #[command(subcommand)]
    Waits(waits::WaitsCommand),
    /// Agree to what a node waits for.
    Approve(waits::ApproveArgs),
    /// Refuse what a node waits for.
    Reject(waits::RejectArgs),
    /// Show, retry or delete the work that no worker tries again.
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    /// Send the terminal events of a graph's nodes again, out of its state, under their own ids.
    Reconcile(reconcile::ReconcileArgs),
    /// Show or check the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Ask a running worker whether it is live; for container health checks.
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Print a completion script for your shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// The tool server of `dev`, over stdin and stdout.
    #[command(hide = true)]
    McpDemo,
    /// Run a program that ends when the process that started it does.
    #[command(hide = true)]
    DieWithParent(dev::child::DieWithParentArgs),
    /// Serve a script of model turns over HTTP in the wire format of the Anthropic Messages API.
    ScriptedModel(scripted_model::ScriptedModelArgs),
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl Cli {
    /// Runs the subcommand with these functions beside the built-in ones; the answer is the exit code.
    pub fn run_with(self, functions: Registry) -> u8 {
        let Self { settings, command } = self;
        let settings = Settings { functions, ..settings };
        match command.unwrap_or(Command::Run) {
            Command::Run => run::run(&settings),
            Command::Dev(args) => dev::run(&settings, &args),
            Command::Submit(args) => submit::run(&settings, &args),
            Command::Exec(args) => exec::run(&settings, &args),
            Command::Tools(args) => tools::run(&settings, &args),
            Command::Status(args) => status::run(&settings, &args),
            Command::Cancel(args) => cancel::run(&settings, &args),
            Command::Waits(command) => waits::run(&settings, &command),
            Command::Approve(args) => waits::approve(&settings, &args),
            Command::Reject(args) => waits::reject(&settings, &args),
            Command::DeadLetters(command) => dead_letters::run(&settings, &command),
            Command::Reconcile(args) => reconcile::run(&settings, &args),
            Command::Config(command) => config::run(&settings, &command),
            Command::Healthcheck(args) => healthcheck::run(&settings, &args),
            Command::Completions { shell } => completions(shell),
            Command::McpDemo => mcp_demo(),
            Command::DieWithParent(args) => dev::child::die_with_parent(&args),
            Command::ScriptedModel(args) => scripted_model::run(&args),
        }
    }
}

impl Settings {
    /// Loads the configuration out of file, environment and flags, or says in one message what is wrong with it.
    pub fn load(&self) -> Result<Loaded, u8> {
        let options = LoadOptions {
            file: self.config.clone(),
            flags: self.set.clone(),
            env: std::env::vars_os().collect(),
            functions: self.functions.specs().into_iter().map(|spec| spec.name).collect(),
            ..LoadOptions::default()
        };
        load(&options).map_err(|error| {
            complain(error);
            WRONG_CONFIG
        })
    }

    /// The same for a command that only needs the values.
    pub fn config(&self) -> Result<Config, u8> {
        Ok(self.load()?.config)
    }
}

fn completions(shell: Shell) -> u8 {
    // Into memory first: a reader such as `head` that closes the pipe early is no error.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "executor-worker", &mut script);
    let _ = std::io::stdout().write_all(&script);
    0
}

fn mcp_demo() -> u8 {
    match block_on(mcp_demo::run()) {
        Ok(()) => 0,
        Err(error) => fail(error),
    }
}

/// Reads a file, or stdin for `-`.
pub fn read_input(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        return Ok(std::io::read_to_string(std::io::stdin())?);
    }
    std::fs::read_to_string(path).map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))
}

/// The same for a JSON object, with the place of a mistake in words about the file.
pub fn read_object(path: &Path) -> anyhow::Result<String> {
    let text = read_input(path)?;
    let name = input_name(path);
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(serde_json::Value::Object(_)) => Ok(text),
        Ok(_) => Err(anyhow::anyhow!("{name} is JSON, but no object")),
        Err(error) => Err(anyhow::anyhow!("{name} is not JSON: {error}")),
    }
}

/// What an input is called in messages.
pub fn input_name(path: &Path) -> String {
    if path.as_os_str() == "-" { String::from("the input") } else { path.display().to_string() }
}

/// Runs a future on a runtime of this thread, for commands that need no actors.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime on this thread can always be made").block_on(work)
}

/// Writes a line of the result to stdout. A reader that went away, such as `head`, changes nothing about the answer.
pub fn print_line(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Writes a line beside the result, to stderr, under the same rule.
pub fn print_note(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Says on stderr, under the program's name, what is wrong.
pub fn complain(what: impl Display) {
    print_note(format_args!("executor-worker: {what}"));
}

/// Complains about a failure, causes included; the answer is the exit code.
pub fn fail(error: impl Into<anyhow::Error>) -> u8 {
    let error = error.into();
    complain(causes(&error));
    exit_code(&error)
}

/// Whether a failure lies in the configuration.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Refused>() {
        Some(_) => WRONG_CONFIG,
        None => FAILED,
    }
}

/// Complains that Redis does not serve, with its address, which has no password in it; the answer is the exit code.
pub fn redis_away(error: &anyhow::Error, config: &Config) -> u8 {
    complain(format_args!("{} (redis.url is {}; REDIS_ADDR sets it)", causes(error), config.redis.url));
    UNAVAILABLE
}

/// Complains about what Redis answered, or did not; the answer is the exit code.
pub fn redis_failed(error: RedisError, config: &Config) -> u8 {
    if error.is_outage() { redis_away(&error.into(), config) } else { fail(error) }
}

/// The error and its causes in one line; what an error repeats of its cause is not told twice.
pub fn causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.contains(&cause) {
        true => told,
        false if told.is_empty() => cause,
        false => format!("{told}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_subcommand_runs_the_worker() {
        let cli = Cli::try_parse_from(["executor-worker", "--set", "pool.size=8"]).expect("it parses");
        assert!(cli.command.is_none());
        assert_eq!(cli.settings.set, [(String::from("pool.size"), String::from("8"))]);
    }

    #[test]
    fn causes_are_told_once() {
        let io = std::io::Error::other("refused");
        let error = anyhow::Error::new(io).context("no connection: refused").context("the store is away");
        assert_eq!(causes(&error), "the store is away: no connection: refused");
    }
}
