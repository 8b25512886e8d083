//! `waits`, `approve` and `reject`: shows what nodes wait for, and decides. What a decision does is the Redis client's; the
//! workers need not run for it.

use std::io::Write as _;

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::cli::{FAILED, Settings, WRONG_ARGUMENTS, block_on, complain, print_line, print_note, redis_failed};
use crate::clients::redis::{Decided, Keys, Link, Open, RedisError, WaitingRoom};
use crate::config::Config;
use crate::domain::ids::{GraphId, NodeId};
use crate::domain::wait::{Action, Asked, Decision, Kind, Refusal, Told, WaitId, words};
use crate::modes::schema::fits;

/// Questions that a table shows unless it is told otherwise.
const SHOWN: usize = 100;
/// The longest part of the arguments in a table.
const ARGUMENT_CHARS: usize = 60;

/// What can be asked about nodes that wait.
#[derive(Debug, Subcommand)]
pub enum WaitsCommand {
    /// List the open questions, the one that is due first leading.
    List {
        /// Only those of this graph.
        #[arg(long)]
        graph: Option<GraphId>,
        /// Only those of nodes of this id.
        #[arg(long)]
        node: Option<NodeId>,
        /// How many to list, 0 for all. Default: 100 in a table, all elsewhere; how many there are is always told.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// How to print it.
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Output::Table)]
        output: Output,
    },
    /// Show everything that is known of one, JSON.
    Show {
        /// The question, as `list` or the event names it.
        wait_id: String,
    },
}

/// The forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON object with all of it.
    Json,
    /// One JSON object a line.
    Jsonl,
}

/// Arguments of `approve`.
#[derive(Debug, Args)]
pub struct ApproveArgs {
    /// The question, as `waits list` or the event names it.
    wait_id: String,
    /// Other arguments for the call, a JSON object; the model is told.
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    edit: Option<Value>,
    /// The answer to what a tool server asks, JSON.
    #[arg(long, value_name = "JSON", value_parser = json_value, conflicts_with = "edit")]
    content: Option<Value>,
    /// What else should be known; the model is told.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Who decides.
    #[arg(long, value_name = "NAME", env = "USER", hide_env = true)]
    by: Option<String>,
}

/// Arguments of `reject`.
#[derive(Debug, Args)]
pub struct RejectArgs {
    /// The question, as `waits list` or the event names it.
    wait_id: String,
    /// Why; the model is told.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Cancel the node instead; a tool server is told that nobody answers.
    #[arg(long)]
    cancel: bool,
    /// Who decides.
    #[arg(long, value_name = "NAME", env = "USER", hide_env = true)]
    by: Option<String>,
}

fn json_value(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("this is not JSON: {error}"))
}

fn json_object(text: &str) -> Result<Value, String> {
    json_value(text)?.as_object().cloned().map(Value::Object).ok_or_else(|| String::from("this is no JSON object"))
}

/// Runs a subcommand of `waits`; the answer is the exit code.
pub fn run(settings: &Settings, command: &WaitsCommand) -> u8 {
    with_room(settings, async |room| match command {
        WaitsCommand::List { graph, node, limit, output } => {
            let wanted = |open: &Open| {
                graph.as_ref().is_none_or(|graph| *graph == open.graph_id)
                    && node.as_ref().is_none_or(|node| *node == open.node_id)
            };
            let default = if *output == Output::Table { SHOWN } else { 0 };
            list(room, wanted, limit.unwrap_or(default), *output).await
        }
        WaitsCommand::Show { wait_id } => show(room, &WaitId::from_text(wait_id.as_str())).await,
    })
}

/// Agrees; exit 1 if that does not count.
pub fn approve(settings: &Settings, args: &ApproveArgs) -> u8 {
    let ApproveArgs { wait_id, edit, content, note, by } = args;
    let content = edit.as_ref().map(|arguments| json!({ "arguments": arguments })).or_else(|| content.clone());
    let only = edit.is_some().then_some(Kind::Approval);
    let (by, note) = (by.as_deref(), note.as_deref());
    decide(settings, wait_id, Wish { action: Action::Accept, content, by, note, only })
}

/// Refuses; exit 1 if that does not count.
pub fn reject(settings: &Settings, args: &RejectArgs) -> u8 {
    let RejectArgs { wait_id, note, cancel, by } = args;
    if note.is_none() && !cancel {
        complain("say why with --note: the model is told, and does better when it knows");
        return WRONG_ARGUMENTS;
    }
    let action = if *cancel { Action::Cancel } else { Action::Reject };
    let (by, note) = (by.as_deref(), note.as_deref());
    decide(settings, wait_id, Wish { action, content: None, by, note, only: None })
}

fn with_room(settings: &Settings, work: impl AsyncFnOnce(&WaitingRoom) -> Result<u8, RedisError>) -> u8 {
    let config: Config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let work = async {
        let room = WaitingRoom::new(Link::new(&config.redis)?, Keys::new(&config.state.prefix), &config);
        work(&room).await
    };
    block_on(work).unwrap_or_else(|error| redis_failed(error, &config))
}

/// What somebody wants to become of a question.
struct Wish<'a> {
    action: Action,
    content: Option<Value>,
    by: Option<&'a str>,
    note: Option<&'a str>,
    /// The only kind of question that this is an answer to.
    only: Option<Kind>,
}

fn decide(settings: &Settings, wait_id: &str, wish: Wish<'_>) -> u8 {
    with_room(settings, async |room| {
        let wait_id = WaitId::from_text(wait_id);
        let Some(open) = room.find(&wait_id).await? else {
            return tell_unknown(room, &wait_id).await;
        };
        let Wish { action, content, by, note, only } = wish;
        let kind = look(room, &open).await?.map(|asked| asked.ask.kind);
        if only.is_some() && kind.is_some_and(|kind| Some(kind) != only) {
            complain(
                "this asks for an answer of its own, give it with --content; --edit is for the arguments of a call",
            );
            return Ok(WRONG_ARGUMENTS);
        }
        let Open { graph_id, node_id, run_id, .. } = open;
        let what = format!("node {node_id} of graph {graph_id}");
        let (by, note) = (by.and_then(words), note.and_then(words));
        let decision = Decision { graph_id, node_id, run_id, wait_id, action, content, by, note };
        Ok(match room.decide(&decision, None, fits).await? {
            Decided::Counts => {
                print_line(match action {
                    Action::Accept => format!("approved: {what} goes on"),
                    Action::Reject | Action::Decline => format!("refused: {what} goes on"),
                    Action::Cancel if kind == Some(Kind::Approval) => format!("cancelled: {what} ends"),
                    Action::Cancel => format!("cancelled: {what} goes on without an answer"),
                });
                0
            }
            Decided::Refused(Refusal { code: "content_invalid", message, .. }) => {
                complain(format_args!("{message}; `waits show` has the schema"));
                FAILED
            }
            Decided::Refused(Refusal { message, .. }) => {
                complain(message);
                FAILED
            }
            Decided::Lost => {
                complain("the decision was taken over by somebody else");
                FAILED
            }
        })
    })
}

/// A question that is not open was answered, or is a slip.
async fn tell_unknown(room: &WaitingRoom, wait_id: &WaitId) -> Result<u8, RedisError> {
    match room.audited(wait_id).await? {
        Some(line) => {
            let text = |name: &str| line[name].as_str().unwrap_or("?").to_owned();
            let by = line["by"].as_str().unwrap_or("somebody");
            complain(format_args!("{by} decided first: {} at {}", text("action"), text("at")));
        }
        None => complain(format_args!("no open question is named {wait_id}; `waits list` shows those that are")),
    }
    Ok(FAILED)
}

async fn look(room: &WaitingRoom, open: &Open) -> Result<Option<Asked>, RedisError> {
    Ok(room.look(std::slice::from_ref(open)).await?.pop().transpose()?.flatten())
}

async fn show(room: &WaitingRoom, wait_id: &WaitId) -> Result<u8, RedisError> {
    let found = match room.find(wait_id).await? {
        Some(open) => look(room, &open).await?,
        None => None,
    };
    let Some(Asked { ask, said: None }) = found else { return tell_unknown(room, wait_id).await };
    let page = serde_json::to_string_pretty(&ask).expect("a question has string keys");
    print_line(page);
    Ok(0)
}

async fn list(
    room: &WaitingRoom,
    wanted: impl Fn(&Open) -> bool,
    limit: usize,
    output: Output,
) -> Result<u8, RedisError> {
    let (total, asks) = room.soonest(wanted, if limit == 0 { usize::MAX } else { limit }).await?;
    let mut out = std::io::stdout().lock();
    // A reader that went away, such as `head`, changes nothing about the answer.
    let _ = match output {
        Output::Table => writeln!(out, "{}", table(&asks)),
        Output::Json => writeln!(out, "{:#}", json!({ "total": total, "waits": asks })),
        Output::Jsonl => asks.iter().try_for_each(|ask| writeln!(out, "{}", json!(ask))),
    };
    if output == Output::Table {
        let shown = asks.len();
        print_note(match total {
            1 => String::from("1 open question"),
            _ if shown < total => format!("{shown} of {total} open questions; --limit 0 shows all"),
            _ => format!("{total} open questions"),
        });
    }
    Ok(0)
}

fn table(asks: &[Told]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["WAIT", "KIND", "GRAPH", "NODE", "WHAT", "UNTIL"]);
    for Told { ask, .. } in asks {
        let what = match (ask.kind, &ask.tool, &ask.arguments) {
            (Kind::Approval, Some(tool), Some(arguments)) => {
                format!("{tool} {}", shortened(&Value::Object(arguments.clone()).to_string()))
            }
            _ => shortened(&ask.message),
        };
        let until = ask.expires_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        table.add_row([
            ask.wait_id.to_string(),
            ask.kind.as_str().to_owned(),
            ask.graph_id.to_string(),
            ask.node_id.to_string(),
            what,
            until,
        ]);
    }
    table
}

fn shortened(text: &str) -> String {
    let text = text.replace(char::is_control, " ");
    match text.char_indices().nth(ARGUMENT_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
