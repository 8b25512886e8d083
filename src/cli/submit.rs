//! `submit`: puts a work item into the stream and, with `--wait`, tells the node's events until it has ended.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use console::style;
use serde_json::Value;

use crate::cli::{FAILED, Settings, block_on, fail, input_name, print_line, print_note, read_object, redis_away};
use crate::clients::redis::{EventTail, Keys, Link, settled_by, submit};
use crate::config::Config;
use crate::domain::event::EventType;
use crate::domain::ids::{EntryId, WorkId};
use crate::domain::work::{Malformed, WorkItem};

/// How long one look for events waits.
const LOOK: Duration = Duration::from_millis(500);
/// After which silence it is asked why nothing is heard of the item.
const SILENCE: Duration = Duration::from_secs(3);

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
    let text = match read_object(&args.file) {
        Ok(text) => text,
        Err(error) => return fail(error),
    };
    let stream = args.stream.clone().unwrap_or_else(|| config.work.streams[0].clone());
    // What a worker would refuse is refused here, where somebody can mend it.
    let item = match WorkItem::parse(text.as_bytes(), &stream, &EntryId::new("0-0")) {
        Ok(item) => item,
        Err(malformed) => {
            let name = input_name(&args.file);
            return fail(anyhow!("{name} is not a work item: {malformed}{}", hint(&malformed, &text)));
        }
    };
    if text.len() > config.limits.item.get() {
        return fail(anyhow!(
            "the item has {} bytes, more than `limits.item` allows ({}); put large inputs into the state",
            text.len(),
            config.limits.item
        ));
    }
    match block_on(deliver(&config, args, &stream, &text, item)) {
        Ok(code) => code,
        Err(error) => redis_away(&error, &config),
    }
}

/// What else the text may be, if it is no work item.
fn hint(malformed: &Malformed, text: &str) -> &'static str {
    let ids = ["graph_id", "node_id", "execution_id"];
    let has_ids = serde_json::from_str::<Value>(text).is_ok_and(|item| ids.iter().any(|id| !item[*id].is_null()));
    match malformed.reason {
        "missing_id" if !has_ids => "; a node's configuration alone can be tried with `executor-worker exec`",
        _ => "",
    }
}

async fn deliver(config: &Config, args: &SubmitArgs, stream: &str, text: &str, item: WorkItem) -> anyhow::Result<u8> {
    let keys = Keys::new(&config.state.prefix);
    let link = Link::new(&config.redis)?;
    let tail = match args.wait {
        // Before the item goes in, so that no event of it is missed.
        true => Some(EventTail::begin(&config.redis, &keys, &EventType::ALL).await?),
        false => None,
    };
    let entry = submit(&link, stream, text.as_bytes()).await?;
    let Some(tail) = tail else {
        print_line(entry);
        return Ok(0);
    };
    print_note(format_args!("{} {stream} {entry}", style("submitted").for_stderr().dim()));
    // Without a run_id of its own the item's identity is its place in the stream.
    let item = WorkItem::parse(text.as_bytes(), stream, &entry).unwrap_or(item);
    let work = WorkId::new(stream, &entry);
    Waiting { config, link, keys, item, work }.follow(tail, args.timeout).await
}

/// Somebody who waits for the end of an item.
struct Waiting<'a> {
    config: &'a Config,
    link: Link,
    keys: Keys,
    item: WorkItem,
    work: WorkId,
}

impl Waiting<'_> {
    async fn follow(self, mut tail: EventTail, timeout: Duration) -> anyhow::Result<u8> {
        let begun = Instant::now();
        let mut silent = true;
        while begun.elapsed() < timeout {
            for event in tail.next(LOOK).await? {
                let Ok(body) = serde_json::from_str::<Value>(&event.data) else { continue };
                if !self.is_ours(&body) {
                    continue;
                }
                silent = false;
                tell(event.kind, &body);
                match event.kind {
                    EventType::NodeCompleted => {
                        print_line(&body["data"]["output"]);
                        return Ok(0);
                    }
                    EventType::NodeFailed => return Ok(FAILED),
                    EventType::NodeStarted
                    | EventType::NodeProgress
                    | EventType::ToolExecuted
                    | EventType::LlmDelta
                    | EventType::NodeDecision => {}
                    EventType::NodeInputRequired => {
                        let wait = body["data"]["wait_id"].as_str().unwrap_or("?");
                        print_note(format_args!("the node waits: executor-worker approve {wait}, or reject"));
                    }
                }
            }
            if silent && begun.elapsed() > SILENCE {
                if self.was_settled_before().await? {
                    return Ok(FAILED);
                }
                // Once is enough.
                silent = false;
                let (address, stream) = (&self.config.redis.url, self.work.as_str());
                print_note(format_args!("nothing heard of {stream} yet: does a worker run on {address}?"));
            }
        }
        let waited = humantime::format_duration(timeout);
        print_note(format_args!("the node did not end within {waited}; it goes on without us"));
        Ok(FAILED)
    }

    fn is_ours(&self, body: &Value) -> bool {
        body["graph_id"] == self.item.graph_id.as_str()
            && body["node_id"] == self.item.node_id.as_str()
            && body["run_id"] == self.item.run_id.as_str()
    }

    /// A second item of one identity is dropped without a word; its event went out long ago.
    async fn was_settled_before(&self) -> anyhow::Result<bool> {
        let WorkItem { graph_id, node_id, run_id, .. } = &self.item;
        let settled = settled_by(&self.link, &self.keys, graph_id, node_id, run_id).await?;
        let Some(earlier) = settled.filter(|work| work != self.work.as_str()) else { return Ok(false) };
        print_note(format_args!(
            "run `{run_id}` of this node has ended before, as {earlier}, and runs no second time; take another run_id, or \
             none"
        ));
        Ok(true)
    }
}

/// One line an event on a terminal, the event itself elsewhere; results go to stdout, steps to stderr.
fn tell(kind: EventType, body: &Value) {
    if !std::io::stderr().is_terminal() {
        print_note(body);
        return;
    }
    let (data, metadata) = (&body["data"], &body["metadata"]);
    let name = style(kind.as_str()).for_stderr();
    match kind {
        EventType::NodeCompleted => {
            let mode = metadata["mode"].as_str().unwrap_or("?");
            let (took, attempt) = (&metadata["duration_ms"], &metadata["attempt"]);
            print_note(format_args!("{} {mode} in {took} ms, attempt {attempt}", name.green()));
        }
        EventType::NodeFailed => {
            let details = &data["error_details"];
            let kind = format!(
                "{} ({})",
                details["category"].as_str().unwrap_or("?"),
                details["code"].as_str().unwrap_or("?")
            );
            print_note(format_args!("{} {kind}: {}", name.red(), data["error"].as_str().unwrap_or_default()));
        }
        EventType::NodeStarted => {
            print_note(format_args!("{} on {}", name.cyan(), metadata["worker_id"].as_str().unwrap_or("?")));
        }
        EventType::NodeProgress
        | EventType::ToolExecuted
        | EventType::LlmDelta
        | EventType::NodeInputRequired
        | EventType::NodeDecision => {
            let mut facts = data.clone();
            if let Some(facts) = facts.as_object_mut() {
                facts.remove("graph_id");
                facts.remove("node_id");
            }
            print_note(format_args!("{} {facts}", name.dim()));
        }
    }
}
