//! The `executor-worker` binary: arguments, configuration, logs, exit code. Everything else is the library's.

use std::process::ExitCode;

use clap::Parser as _;
use da_node_executor::cli::Cli;

/// Nodes build and drop many small JSON values, often on different threads, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The one TLS provider of the process; clients that ask the process default would panic without it.
    rustls::crypto::ring::default_provider().install_default().expect("nothing was installed before main");
    ExitCode::from(Cli::parse().run())
}
