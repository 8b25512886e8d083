//! The program with functions of your own: the same command line and the same worker, with more tools in the registry.

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

use clap::Parser as _;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::cli::{Cli, WRONG_ARGUMENTS};
use crate::domain::outcome::Failure;
use crate::domain::tool::{ToolHints, ToolOutput};
use crate::ports::CallContext;
use crate::tools::Registry;

/// `executor-worker` with functions beside the built-in ones. `examples/custom_tool.rs` is a whole program.
///
/// ```no_run
/// # use da_node_executor::{Worker, domain::tool::ToolHints};
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Shout { text: String }
/// # fn main() -> std::process::ExitCode {
/// Worker::new()
///     .tool("shout", "Writes a text in capitals.", ToolHints::READ_ONLY, |args: Shout, _| async move {
///         Ok(serde_json::json!({"text": args.text.to_uppercase()}))
///     })
///     .main()
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Worker {
    functions: Registry,
}

impl Worker {
    /// With the built-in functions alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a function whose schema follows from its argument type; one that is called as a built-in replaces that.
    ///
    /// # Panics
    /// If the name is not 1–64 letters, digits, `_` or `-`: models accept no other.
    #[must_use]
    pub fn tool<A, R, F, Fut>(mut self, name: &str, description: &str, hints: ToolHints, function: F) -> Self
    where
        A: DeserializeOwned + JsonSchema,
        R: Into<ToolOutput> + 'static,
        F: Fn(A, CallContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        self.functions.register(name, description, hints, function);
        self
    }

    /// Adds functions in the ways that the registry has: with a schema of their own, or judged call by call.
    #[must_use]
    pub fn tools(mut self, add: impl FnOnce(&mut Registry)) -> Self {
        add(&mut self.functions);
        self
    }

    /// Runs the program with the arguments of the process. Call it in `main` and return what it returns.
    pub fn main(self) -> ExitCode {
        ExitCode::from(self.run(std::env::args_os()))
    }

    /// The same with these arguments, the program's name first; the answer is the exit code.
    pub fn run(self, arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> u8 {
        // The one TLS provider of the process; clients that ask the process default would panic without it. An
        // application that chose one before keeps it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        match Cli::try_parse_from(arguments) {
            Ok(cli) => cli.run_with(self.functions),
            Err(error) => {
                // Help that was asked for is no error.
                let _ = error.print();
                u8::try_from(error.exit_code()).unwrap_or(WRONG_ARGUMENTS)
            }
        }
    }
}
