//! `tools list`: the state of each server and its tools, withheld ones included, and what is wrong with those that do
//! not answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use console::style;
use serde_json::{Map, Value, json};

use crate::actors::mcp::Server;
use crate::cli::tools::{unknown_server, with_tools};
use crate::cli::{FAILED, Settings, print_line, print_note};
use crate::clients::mcp::ServerInfo;
use crate::domain::tool::ToolSpec;
use crate::tools::approval::{Digest, Withheld};
use crate::tools::index::ToolIndex;

/// What the functions of the worker itself go by.
const BUILT_IN: &str = "(built in)";

/// Arguments of `tools list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON, input schemas included.
    #[arg(long)]
    pub json: bool,
    /// Only this server.
    pub server: Option<String>,
}

/// What one place offers.
struct Offer {
    name: String,
    pinned: bool,
    info: Option<ServerInfo>,
    era: Option<&'static str>,
    tools: Result<Arc<ToolIndex>, String>,
    withheld: Vec<Withheld>,
    took: Duration,
}

/// Asks every server and prints what it said; exit 1 if one cannot be used.
pub(super) fn run(settings: &Settings, args: &ListArgs) -> u8 {
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    if let Some(name) = args.server.as_ref().filter(|name| !config.mcp.servers.contains_key(*name)) {
        return unknown_server(&config, name);
    }
    let offers = with_tools(settings, &config, async |running| {
        let wanted = |server: &&Arc<Server>| args.server.as_ref().is_none_or(|name| server.name == *name);
        let asked = running.servers.iter().filter(wanted).map(|server| ask(server));
        let mut offers = futures_util::future::join_all(asked).await;
        if args.server.is_none() {
            offers.push(Offer {
                name: String::from(BUILT_IN),
                pinned: false,
                info: None,
                era: None,
                tools: Ok(Arc::new(ToolIndex::new(running.builtin()))),
                withheld: Vec::new(),
                took: Duration::ZERO,
            });
        }
        offers
    });
    let offers = match offers {
        Ok(offers) => offers,
        Err(code) => return code,
    };
    if args.json {
        print_json(&offers)
    } else {
        print_tables(&offers)
    }
    if offers.iter().all(|offer| offer.tools.is_ok()) { 0 } else { FAILED }
}

async fn ask(server: &Server) -> Offer {
    let started = Instant::now();
    let tools = server.discover().await.map_err(|failure| failure.message);
    let took = started.elapsed();
    Offer {
        name: server.name.clone(),
        pinned: server.approval.is_pinned(),
        info: server.info().await,
        era: server.status().era,
        tools,
        withheld: server.approval.withheld(),
        took,
    }
}

fn print_tables(offers: &[Offer]) {
    let mut servers = table(["SERVER", "STATE", "PROTOCOL", "IS", "TOOLS", "TOOK"]);
    for offer in offers.iter().filter(|offer| offer.name != BUILT_IN) {
        let state = if offer.tools.is_ok() { "answers" } else { "failed" };
        let info = offer.info.as_ref();
        let protocol = info.map_or_else(
            || String::from("-"),
            |info| match offer.era {
                Some(era) => format!("{} ({era})", info.protocol_version),
                None => info.protocol_version.clone(),
            },
        );
        let is = info.map_or_else(|| String::from("-"), |info| format!("{} {}", info.name, info.version));
        let count = match (&offer.tools, offer.withheld.len()) {
            (Err(_), _) => String::from("-"),
            (Ok(tools), 0) => tools.len().to_string(),
            (Ok(tools), withheld) => format!("{}, {withheld} withheld", tools.len()),
        };
        let took = format!("{} ms", offer.took.as_millis());
        servers.add_row([&offer.name, state, &protocol, is.trim(), &count, &took]);
    }
    if !servers.is_empty() {
        print_line(format_args!("{}\n", spaced(servers)));
    }
    let mut tools = table(["SERVER", "TOOL", "EFFECTS", "DESCRIPTION"]);
    for offer in offers {
        match &offer.tools {
            Ok(found) => {
                for tool in found.iter() {
                    tools.add_row([&*offer.name, &tool.target.name, effects(tool), described(tool)]);
                }
                for held in &offer.withheld {
                    let why = if held.pinned.is_some() { "WITHHELD: not what was approved" } else { "WITHHELD: new" };
                    tools.add_row([&*offer.name, &held.spec.target.name, why, described(&held.spec)]);
                }
            }
            Err(error) => {
                tools.add_row([&*offer.name, "-", "", error]);
            }
        }
    }
    print_line(spaced(tools));
    for offer in offers {
        if offer.tools.is_err() {
            print_note(style(format!("{} cannot be used", offer.name)).for_stderr().red());
        }
        if !offer.withheld.is_empty() {
            let words = format!("{}: read what is withheld (--json), then `tools pin {}`", offer.name, offer.name);
            print_note(style(words).for_stderr().yellow());
        }
    }
}

fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

/// The columns are for eyes; `--json` is for programs.
fn spaced(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn effects(tool: &ToolSpec) -> &'static str {
    match (tool.hints.read_only, tool.hints.idempotent) {
        (true, _) => "reads",
        (_, true) => "repeatable",
        _ => "",
    }
}

fn described(tool: &ToolSpec) -> &str {
    first_sentence(tool.description.as_deref().unwrap_or_default())
}

/// What stands before the first line break or the end of the first sentence.
fn first_sentence(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.split_once(". ").map_or(line, |(sentence, _)| sentence).trim_end_matches('.')
}

fn print_json(offers: &[Offer]) {
    let offers: Vec<Value> = offers.iter().map(|offer| Value::Object(shown(offer))).collect();
    print_line(serde_json::to_string_pretty(&offers).expect("offers have string keys"));
}

/// One place as JSON. What is known of a server's session stands beside its tools.
fn shown(offer: &Offer) -> Map<String, Value> {
    let mut members = Map::new();
    let mut put = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
    put("server", json!(offer.name));
    if offer.name != BUILT_IN {
        put("state", json!(if offer.tools.is_ok() { "answers" } else { "failed" }));
        put("pinned", json!(offer.pinned));
        put("took_ms", json!(u64::try_from(offer.took.as_millis()).unwrap_or(u64::MAX)));
    }
    if let Some(info) = &offer.info {
        put("protocol_version", json!(info.protocol_version));
        put("era", json!(offer.era));
        put("name", json!(info.name));
        put("version", json!(info.version));
    }
    match &offer.tools {
        Ok(tools) => {
            let offered = tools.iter().map(|tool| describe(tool, None));
            let held = offer.withheld.iter().map(|held| describe(&held.spec, Some(held)));
            put("tools", offered.chain(held).collect());
        }
        Err(error) => put("error", json!(error)),
    }
    members
}

fn describe(tool: &ToolSpec, held: Option<&Withheld>) -> Value {
    let mut shown = json!({
        "name": tool.target.name,
        "description": tool.description,
        "input_schema": *tool.input_schema,
        "read_only": tool.hints.read_only,
        "idempotent": tool.hints.idempotent,
        "digest": Digest::of(tool),
    });
    if let Some(held) = held {
        shown["withheld"] = json!(held.code());
        shown["pinned"] = json!(held.pinned);
    }
    shown
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
