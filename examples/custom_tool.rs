//! A worker with one more function. `cargo run --example custom_tool -- tools call shout '{"text": "hello"}'` calls it by
//! hand, and without arguments this is the whole worker: nodes name the function in `tools` or as their `tool_name`.

use std::process::ExitCode;

use da_node_executor::Worker;
use da_node_executor::domain::tool::ToolHints;
use serde_json::json;

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Shout {
    /// What to shout.
    text: String,
    /// How many exclamation marks follow; one if absent.
    #[serde(default = "one")]
    marks: u8,
}

fn one() -> u8 {
    1
}

/// The program with its function, as `main` runs it.
pub fn worker() -> Worker {
    Worker::new().tool("shout", "Writes a text in capitals.", ToolHints::READ_ONLY, |args: Shout, _| async move {
        Ok(json!({"text": args.text.to_uppercase() + &"!".repeat(args.marks.into())}))
    })
}

#[allow(dead_code, reason = "tests take this file in as a module")]
fn main() -> ExitCode {
    worker().main()
}
