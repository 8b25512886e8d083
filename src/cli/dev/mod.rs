//! `dev`: see it work.

use clap::Args;

use crate::cli::Settings;

/// Arguments of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {}

/// Runs the demo.
pub fn run(_: &Settings, _: &DevArgs) -> u8 {
    1
}
