//! NodeExecutor: runs one node from beginning to end and hands what came of it to the Publisher.
//! What running means is [`run_node()`]'s; a panic there is an outcome like any other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, Context, Handler, ResponseFuture};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tracing::Instrument as _;

use crate::actors::handles::Handles;
use crate::actors::messages::{Execute, NodeFinished};
use crate::actors::publisher::Publisher;
use crate::actors::supervise::{DeathWatch, Post};
use crate::domain::outcome::{Failure, Outcome, Report};
use crate::health::Health;
use crate::modes::{ModeSettings, give_up_tasks, run_node};

/// What every executor needs.
pub struct ExecutorDeps {
    /// Models, tools, state and progress.
    pub handles: Handles,
    /// How modes run.
    pub settings: ModeSettings,
    /// Where results go.
    pub publisher: Post<Publisher>,
    /// What the worker knows about itself.
    pub health: Arc<Health>,
}

/// Runs nodes; many at once, each a future of its own.
pub struct NodeExecutor {
    deps: Arc<ExecutorDeps>,
    _watch: DeathWatch,
}

impl NodeExecutor {
    /// An executor that reports its death to `watch`.
    pub fn new(deps: Arc<ExecutorDeps>, watch: DeathWatch) -> Self {
        deps.health.executor(true);
        Self { deps, _watch: watch }
    }
}

impl Actor for NodeExecutor {
    type Context = Context<Self>;
}

impl Drop for NodeExecutor {
    fn drop(&mut self) {
        self.deps.health.executor(false);
    }
}

impl Handler<Execute> for NodeExecutor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Execute { delivery, custody }: Execute, _: &mut Self::Context) -> Self::Result {
        let deps = Arc::clone(&self.deps);
        let span = tracing::info_span!("node", work.id = %delivery.work_id, graph.id = %delivery.item.graph_id,
            node.id = %delivery.item.node_id);
        let work = async move {
            deps.health.began(format!("{}/{}", delivery.item.graph_id, delivery.item.node_id));
            let (started_at, started) = (Timestamp::now(), Instant::now());
            let run = run_node(&deps.handles, &deps.settings, &delivery, &custody.cancel);
            let mut report = AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|panic| panicked(&*panic));
            let tasks = std::mem::take(&mut report.tasks);
            let finished = NodeFinished { delivery, custody, report, started_at, started, letter: None };
            match deps.publisher.addr() {
                // The Publisher answers when the settle is answered, so its death would be seen here.
                Some(publisher) => match publisher.send(finished).await {
                    // Held until the servers are told, so that a worker that stops does not end before.
                    Ok(Some(_custody)) => give_up_tasks(&deps.handles.tools, tasks).await,
                    // Whoever has the node now, or takes it over, goes on with them.
                    Ok(None) => {}
                    Err(_) => tracing::error!("the publisher died, the entry stays for a later pass"),
                },
                None => tracing::error!("the publisher is away, the entry stays for a later pass"),
            }
        };
        Box::pin(work.instrument(span))
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Report {
    let words = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let words = words.unwrap_or("no message");
    tracing::error!(panic = words, "a node panicked");
    let failure = Failure::internal(
        "panic",
        "the worker hit a fault of its own while running this node; its log has the details",
    );
    Report::early(Outcome::Failed { failure, partial: None })
}
