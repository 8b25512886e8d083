//! `tools`: what each MCP server and the function registry offer, and what is wrong with those that do not answer.

use std::sync::Arc;

use actix::System;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use console::style;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::wiring::Running;
use crate::cli::{FAILED, Settings, fail, print_line, print_note};
use crate::domain::tool::ToolSpec;
use crate::health::Health;
use crate::metrics::Metrics;

/// Arguments of `tools`.
#[derive(Debug, Args)]
pub struct ToolsArgs {
    /// Print JSON, input schemas included.
    #[arg(long)]
    json: bool,
}

/// What one place offers.
struct Offer {
    name: String,
    tools: Result<Arc<Vec<ToolSpec>>, String>,
}

/// Asks every server and prints what it said; exit 1 if one did not answer.
pub fn run(settings: &Settings, args: &ToolsArgs) -> u8 {
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let system = System::new();
    let offers = system.block_on(async {
        let (health, metrics) = (Arc::new(Health::new(std::time::Duration::MAX)), Arc::new(Metrics::new("tools")));
        let end = CancellationToken::new();
        let running = Running::start(&config, &health, &metrics, &CancellationToken::new(), &end)?;
        let asked = running.servers.iter().map(async |server| {
            let tools = server.discover().await.map_err(|failure| failure.message);
            Offer { name: server.name.clone(), tools }
        });
        let mut offers = futures_util::future::join_all(asked).await;
        offers.push(Offer { name: String::from("(built in)"), tools: Ok(Arc::new(running.builtin())) });
        end.cancel();
        running.close().await;
        anyhow::Ok(offers)
    });
    let offers = match offers {
        Ok(offers) => offers,
        Err(error) => return fail(error),
    };
    if args.json {
        print_json(&offers)
    } else {
        print_table(&offers)
    }
    if offers.iter().all(|offer| offer.tools.is_ok()) { 0 } else { FAILED }
}

fn print_table(offers: &[Offer]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["SERVER", "TOOL", "EFFECTS", "DESCRIPTION"]);
    for offer in offers {
        match &offer.tools {
            Ok(tools) => {
                for tool in tools.iter() {
                    let effects = match (tool.hints.read_only, tool.hints.idempotent) {
                        (true, _) => "reads",
                        (_, true) => "repeatable",
                        _ => "",
                    };
                    let description = tool.description.as_deref().unwrap_or_default();
                    table.add_row([offer.name.as_str(), &tool.target.name, effects, first_sentence(description)]);
                }
            }
            Err(error) => {
                table.add_row([offer.name.as_str(), "-", "", error]);
            }
        }
    }
    // The columns are for eyes; `--json` is for programs.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    print_line(table.trim_fmt());
    for offer in offers.iter().filter(|offer| offer.tools.is_err()) {
        print_note(style(format!("{} did not answer", offer.name)).for_stderr().red());
    }
}

/// What stands before the first line break or the end of the first sentence.
fn first_sentence(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.split_once(". ").map_or(line, |(sentence, _)| sentence).trim_end_matches('.')
}

fn print_json(offers: &[Offer]) {
    let offers: Vec<Value> = offers
        .iter()
        .map(|offer| match &offer.tools {
            Ok(tools) => json!({
                "server": offer.name,
                "tools": tools.iter().map(|tool| json!({
                    "name": tool.target.name,
                    "description": tool.description,
                    "input_schema": *tool.input_schema,
                    "read_only": tool.hints.read_only,
                    "idempotent": tool.hints.idempotent,
                })).collect::<Vec<_>>(),
            }),
            Err(error) => json!({"server": offer.name, "error": error}),
        })
        .collect();
    print_line(serde_json::to_string_pretty(&offers).expect("offers have string keys"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_cut_to_its_first_sentence() {
        assert_eq!(first_sentence("Adds 1.5 to it. Slowly.\nAnd more."), "Adds 1.5 to it");
        assert_eq!(first_sentence("No full stop\nsecond line"), "No full stop");
        assert_eq!(first_sentence(""), "");
    }
}
