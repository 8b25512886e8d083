//! `exec`: one node, here and now, with no Redis: the item from a file, the state from another, the output to stdout.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix_rt::System;
use clap::Args;
use console::style;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::actors::handles::{LlmHandle, ToolHandle};
use crate::actors::pace::Sharing;
use crate::app::wiring::Running;
use crate::cli::{FAILED, Settings, fail, print_line, print_note, read_input, read_object};
use crate::domain::blob::BlobRef;
use crate::domain::event::EventType;
use crate::domain::ids::{EntryId, GraphId, WorkId};
use crate::domain::journal::{CallId, JournalEntry};
use crate::domain::outcome::Failure;
use crate::domain::outcome::{Outcome, Report};
use crate::domain::state::{NodeView, Snapshot};
use crate::domain::wait::{Ask, Said};
use crate::domain::work::{Delivery, Meta, Token, WorkItem};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::modes::{ModeSettings, give_up_tasks, run_node};
use crate::ports::{Appended, Cancel, CancelReason, Events, Journal, Opened, Ports, Store, Wanted};
use crate::telemetry;

/// Arguments of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The work item (JSON), or `-` for stdin; or a bare node configuration.
    file: PathBuf,
    /// The graph's state (JSON, as in the string layout): inputs, graph, node_states.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Print the whole outcome instead of the bare output: usage, attempts, warnings, error details.
    #[arg(long)]
    json: bool,
    /// Tell each step on stderr.
    #[arg(long, short)]
    verbose: bool,
}

/// Runs the node; exit 0 if it completed.
pub fn run(settings: &Settings, args: &ExecArgs) -> u8 {
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let (delivery, state) = match prepare(args) {
        Ok(prepared) => prepared,
        Err(error) => return fail(error),
    };
    if let Err(error) = telemetry::init(&config.log, &config.worker.id) {
        return fail(error);
    }
    let report = System::new().block_on(async {
        let (health, metrics) = (Arc::new(Health::new(Duration::MAX)), Arc::new(Metrics::new("exec")));
        let end = CancellationToken::new();
        let (sharing, draining) = (Sharing::default(), CancellationToken::new());
        let running = Running::start(&config, &settings.functions, &health, &metrics, &sharing, &draining, &end)?;
        let ports = LocalPorts {
            llm: running.llm.clone(),
            tools: running.tools.clone(),
            store: FileStore(state),
            events: Steps(args.verbose),
        };
        let cancel = Cancel::new();
        let interrupted = cancel.clone();
        actix_rt::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.cancel(CancelReason::Requested);
            }
        });
        let mode_settings = ModeSettings { park_after: None, ..ModeSettings::from(&config) };
        let mut report = run_node(&ports, &mode_settings, &delivery, &cancel).await;
        give_up_tasks(&ports.tools, std::mem::take(&mut report.tasks)).await;
        end.cancel();
        running.close().await;
        anyhow::Ok(report)
    });
    match report {
        Ok(report) => print(&report, args.json),
        Err(error) => fail(error),
    }
}

fn prepare(args: &ExecArgs) -> anyhow::Result<(Arc<Delivery>, Document)> {
    let text = read_object(&args.file)?;
    let entry = EntryId::new("0-0");
    let item = match WorkItem::parse(text.as_bytes(), "exec", &entry) {
        Ok(item) => item,
        // A node configuration alone is enough to try a node.
        Err(malformed) if malformed.reason == "missing_id" => {
            let config: Box<RawValue> = serde_json::from_str(&text)?;
            let item = json!({"graph_id": "exec", "node_id": "exec", "config": config});
            WorkItem::parse(item.to_string().as_bytes(), "exec", &entry)?
        }
        Err(malformed) => return Err(malformed.into()),
    };
    let state = match &args.state {
        None => Document::default(),
        Some(path) => Document::read(path)?,
    };
    let delivery = Delivery {
        stream: Arc::from("exec"),
        token: Token { consumer: Arc::from("exec"), deliveries: 1 },
        meta: Meta::default(),
        crashes: 0,
        work_id: WorkId::new("exec", &entry),
        entry,
        item,
    };
    Ok((Arc::new(delivery), state))
}

fn print(report: &Report, whole: bool) -> u8 {
    let (code, outcome) = match &report.outcome {
        Outcome::Completed { output, mapped } => {
            if !whole {
                print_line(output);
            }
            (0, json!({"status": "completed", "output": output, "mapped": mapped}))
        }
        Outcome::Failed { failure, partial } => {
            if !whole {
                let kind = format!("{} ({})", failure.category.as_str(), failure.code);
                print_note(format_args!("{} {kind}: {failure}", style("failed").for_stderr().red()));
            }
            let details = json!({"category": failure.category, "code": failure.code, "attempts": failure.attempts});
            (
                FAILED,
                json!({"status": "failed", "error": failure.message, "error_details": details, "partial": partial}),
            )
        }
        Outcome::Waiting(waiting) => {
            for ask in &waiting.asks {
                print_note(format_args!("{} {}", style("asks").for_stderr().yellow(), ask.message));
            }
            print_note("the node waits for a person's word, and there is nobody to wait here: submit it to a worker");
            (FAILED, json!({"status": "waiting", "waits": waiting.asks}))
        }
        Outcome::Duplicate | Outcome::Lost | Outcome::Unfinished | Outcome::Parked(_) => {
            print_note("the node did not run to its end");
            (FAILED, json!({"status": "unfinished"}))
        }
    };
    for warning in &report.warnings {
        print_note(format_args!("{} {warning}", style("warning").for_stderr().yellow()));
    }
    if whole {
        let mut all = outcome;
        all["mode"] = json!(report.mode);
        all["usage"] = json!(report.spent.usage);
        all["attempts"] = json!(report.spent.attempts);
        all["tool_calls"] = json!(report.spent.tool_calls);
        all["warnings"] = json!(report.warnings);
        print_line(serde_json::to_string_pretty(&all).expect("an outcome has string keys"));
    }
    code
}

/// The ports without Redis.
struct LocalPorts {
    llm: LlmHandle,
    tools: ToolHandle,
    store: FileStore,
    events: Steps,
}

impl Ports for LocalPorts {
    type Llm = LlmHandle;
    type Tools = ToolHandle;
    type Store = FileStore;
    type Journal = NoJournal;
    type Events = Steps;

    fn llm(&self) -> &LlmHandle {
        &self.llm
    }
    fn tools(&self) -> &ToolHandle {
        &self.tools
    }
    fn store(&self) -> &FileStore {
        &self.store
    }
    fn journal(&self) -> &NoJournal {
        &NoJournal
    }
    fn events(&self) -> &Steps {
        &self.events
    }
}

/// A state document, of which only what a node reads is kept.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    graph: Value,
    inputs: Map<String, Value>,
    node_states: indexmap::IndexMap<String, NodeView>,
    status: Option<String>,
    sessions: HashMap<String, Box<RawValue>>,
}

impl Document {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = read_input(path)?;
        serde_json::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{} is not a state document: {error}", path.display()))
    }

    fn snapshot(&self, wanted: &Wanted) -> Snapshot {
        let session = wanted.session.as_ref().and_then(|name| self.sessions.get(name)).cloned();
        Snapshot { inputs: self.inputs.clone(), nodes: self.node_states.clone(), session }
    }

    fn config(&self, node: &str) -> Option<String> {
        let nodes = self.graph.get("nodes")?;
        let node = match nodes {
            Value::Array(list) => list.iter().find(|entry| entry.get("id").and_then(Value::as_str) == Some(node))?,
            nodes => nodes.get(node)?,
        };
        node.get("config").map(Value::to_string)
    }
}

struct FileStore(Document);

impl Store for FileStore {
    async fn open(&self, delivery: &Arc<Delivery>, wanted: &Wanted) -> Result<Opened, Failure> {
        Ok(Opened::Ready {
            snapshot: self.0.snapshot(wanted),
            config: self.0.config(delivery.item.node_id.as_str()),
            status: self.0.status.clone(),
            journal: Vec::new(),
        })
    }

    async fn read(&self, _: &GraphId, wanted: &Wanted) -> Result<Snapshot, Failure> {
        Ok(self.0.snapshot(wanted))
    }

    async fn blob(&self, _: &GraphId, node: &str, blob: &BlobRef) -> Result<Option<Box<RawValue>>, Failure> {
        let message = format!(
            "the output of node `{node}` stands in Redis as `{}`; put the output itself into the state's file",
            blob.key
        );
        Err(Failure::validation("blob_missing", message))
    }

    async fn node_ids(&self, _: &GraphId) -> Result<Vec<String>, Failure> {
        Ok(self.0.node_states.keys().cloned().collect())
    }
}

/// Nobody goes on with a node that ran here.
struct NoJournal;

impl Journal for NoJournal {
    fn place(&self, _: &Delivery, _: CallId) -> Option<String> {
        None
    }

    async fn append(&self, _: &Arc<Delivery>, _: &Arc<JournalEntry>) -> Result<Appended, Failure> {
        Ok(Appended::Done)
    }

    async fn lapse(&self, _: &Arc<Ask>, _: &Said) -> Result<(), Failure> {
        Ok(())
    }
}

/// Tells steps on stderr, if they are wanted.
struct Steps(bool);

impl Events for Steps {
    fn wants(&self, kind: EventType) -> bool {
        // The whole answer follows at once.
        self.0 && kind != EventType::LlmDelta
    }

    fn progress(&self, _: &Arc<Delivery>, kind: EventType, data: Value) {
        if self.0 {
            print_note(format_args!("{} {data}", style(kind.as_str()).for_stderr().dim()));
        }
    }
}
