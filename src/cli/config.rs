//! `config show` and `config check`: what the worker would run with, and whether a file is good. How a configuration is
//! read and judged is `config`'s.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::cli::{Settings, complain};
use crate::config::error::ConfigError;
use crate::config::load::{Loaded, load_file};
use crate::config::show as render;

/// What can be done with a configuration.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Print every key with its effective value and where that came from; secrets are masked.
    Show {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say whether a file is good, by itself; with no file, whether the worker would start as things are.
    Check {
        /// The file.
        file: Option<PathBuf>,
    },
}

/// Runs the subcommand; the answer is the exit code.
pub fn run(settings: &Settings, command: &ConfigCommand) -> u8 {
    let text = match command {
        ConfigCommand::Show { json } => match settings.load() {
            Ok(loaded) => show(&loaded, *json),
            Err(code) => return code,
        },
        ConfigCommand::Check { file: Some(file) } => match check(file) {
            Ok(text) => text,
            Err(error) => {
                complain(error);
                return ConfigError::EXIT_CODE;
            }
        },
        ConfigCommand::Check { file: None } => match settings.load() {
            Ok(loaded) => {
                let warnings = loaded.warnings.iter().map(|warning| format!("warning: {warning}\n"));
                verdict(&loaded, "the effective configuration") + &warnings.collect::<String>()
            }
            Err(code) => return code,
        },
    };
    // A reader such as `head` that closes the pipe early is no error.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    0
}

/// The effective configuration with the source of each value, as TOML or as JSON.
pub fn show(loaded: &Loaded, json: bool) -> String {
    if json {
        return render::json(loaded) + "\n";
    }
    let warnings = loaded.warnings.iter().map(|warning| format!("# warning: {warning}\n"));
    render::text(loaded) + &warnings.collect::<String>()
}

/// Judges a file by itself, over the compiled-in defaults and with no environment. There are no warnings: what a file
/// lacks, such as a key, the environment of the worker may bring.
pub fn check(path: &Path) -> Result<String, ConfigError> {
    load_file(path).map(|loaded| verdict(&loaded, &path.display().to_string()))
}

fn verdict(loaded: &Loaded, what: &str) -> String {
    let set = loaded.entries.iter().filter(|entry| !entry.source.is_default()).count();
    format!("{what} is good: {set} of {} keys set\n", loaded.entries.len())
}
