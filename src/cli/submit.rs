//! `submit`: puts a work item into the stream and, with `--wait`, tells the node's events until it has ended.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use console::style;
use serde_json::Value;

use crate::cli::{FAILED, Settings, UNAVAILABLE, block_on, fail, read_input};
use crate::clients::redis::{EventTail, Keys, Link, submit};
use crate::config::Config;
use crate::domain::event::EventType;
use crate::domain::ids::EntryId;
use crate::domain::work::WorkItem;

/// How long one look for events waits.
const LOOK: Duration = Duration::from_millis(500);

/// Arguments of `submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// The work item (JSON), or `-` for stdin.
    file: PathBuf,
    /// The stream; the first of `work.streams` by default.
    #[arg(long)]
    stream: Option<String>,
    /// Print the node's events as they come and end with its result.
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as `10m`.
    #[arg(long, default_value = "15m", value_parser = humantime::parse_duration, requires = "wait")]
    timeout: Duration,
}

/// Submits; with `--wait`, exit 0 only if the node completed.
pub fn run(settings: &Settings, args: &SubmitArgs) -> u8 {
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let text = match read_input(&args.file) {
        Ok(text) => text,
        Err(error) => return fail(&error),
    };
    let stream = args.stream.clone().unwrap_or_else(|| config.work.streams[0].clone());
    // What a worker would refuse is refused here, where somebody can mend it.
    let item = match WorkItem::parse(text.as_bytes(), &stream, &EntryId::new("0-0")) {
        Ok(item) => item,
        Err(malformed) => return fail(&format!("{} is not a work item: {malformed}", args.file.display())),
    };
    if text.len() > config.limits.item.get() {
        return fail(&format!("the item has {} bytes, more than `limits.item` allows", text.len()));
    }
    match block_on(deliver(&config, args, &stream, &text, &item)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("executor-worker: {error:#}");
            UNAVAILABLE
        }
    }
}

async fn deliver(config: &Config, args: &SubmitArgs, stream: &str, text: &str, item: &WorkItem) -> anyhow::Result<u8> {
    let keys = Keys::new(&config.state.prefix);
    let tail = match args.wait {
        // Before the item goes in, so that no event of it is missed.
        true => Some(EventTail::begin(&config.redis, &keys, &EventType::ALL).await?),
        false => None,
    };
    let entry = submit(&Link::new(&config.redis)?, stream, text.as_bytes()).await?;
    let Some(tail) = tail else {
        println!("{entry}");
        return Ok(0);
    };
    eprintln!("{} {stream} {entry}", style("submitted").for_stderr().dim());
    // Without a run_id of its own the item's identity is its place in the stream.
    let run_id =
        WorkItem::parse(text.as_bytes(), stream, &entry).map_or_else(|_| item.run_id.clone(), |item| item.run_id);
    follow(tail, args.timeout, item, run_id.as_str()).await
}

async fn follow(mut tail: EventTail, timeout: Duration, item: &WorkItem, run_id: &str) -> anyhow::Result<u8> {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        for event in tail.next(LOOK).await? {
            let Ok(body) = serde_json::from_str::<Value>(&event.data) else { continue };
            let ours = body["graph_id"] == item.graph_id.as_str()
                && body["node_id"] == item.node_id.as_str()
                && body["run_id"] == run_id;
            if !ours {
                continue;
            }
            tell(event.kind, &body);
            match event.kind {
                EventType::NodeCompleted => {
                    println!("{}", body["data"]["output"]);
                    return Ok(0);
                }
                EventType::NodeFailed => return Ok(FAILED),
                EventType::NodeStarted | EventType::NodeProgress | EventType::ToolExecuted => {}
            }
        }
    }
    eprintln!("the node did not end within {}; it goes on without us", humantime::format_duration(timeout));
    Ok(FAILED)
}

/// One line an event on a terminal, the event itself elsewhere; results go to stdout, steps to stderr.
fn tell(kind: EventType, body: &Value) {
    if !std::io::stderr().is_terminal() {
        eprintln!("{body}");
        return;
    }
    let (data, metadata) = (&body["data"], &body["metadata"]);
    let name = style(kind.as_str()).for_stderr();
    match kind {
        EventType::NodeCompleted => {
            let mode = metadata["mode"].as_str().unwrap_or("?");
            eprintln!("{} {mode} in {} ms, attempt {}", name.green(), metadata["duration_ms"], metadata["attempt"]);
        }
        EventType::NodeFailed => {
            let details = &data["error_details"];
            let kind = format!(
                "{} ({})",
                details["category"].as_str().unwrap_or("?"),
                details["code"].as_str().unwrap_or("?")
            );
            eprintln!("{} {kind}: {}", name.red(), data["error"].as_str().unwrap_or_default());
        }
        EventType::NodeStarted => eprintln!("{} on {}", name.cyan(), metadata["worker_id"].as_str().unwrap_or("?")),
        EventType::NodeProgress | EventType::ToolExecuted => {
            let mut facts = data.clone();
            if let Some(facts) = facts.as_object_mut() {
                facts.remove("graph_id");
                facts.remove("node_id");
            }
            eprintln!("{} {facts}", name.dim());
        }
    }
}
