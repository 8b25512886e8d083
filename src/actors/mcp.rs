//! McpSessionActor: one tool server. Connects when it is first needed, keeps the session and its tools, connects
//! again with backoff when the session is lost. Many calls run at once; none waits for another.

mod asker;
mod calls;
mod catalog;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, ResponseFuture, WrapFuture as _};

pub use self::server::Server;
use crate::actors::messages::{CallTool, Discover};
use crate::actors::supervise::DeathWatch;
use crate::domain::outcome::{Category, Failure};
use crate::domain::tool::ToolOutput;
use crate::metrics::{Metrics, ToolLabels};
use crate::tools::index::ToolIndex;

/// How often a required server is looked after while nobody calls it.
const WATCH: Duration = Duration::from_secs(5);

/// Speaks to one tool server.
pub struct McpSessionActor {
    server: Arc<Server>,
    _watch: DeathWatch,
}

impl McpSessionActor {
    /// An actor for this server.
    pub fn new(server: Arc<Server>, watch: DeathWatch) -> Self {
        Self { server, _watch: watch }
    }
}

impl Actor for McpSessionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if !self.server.config.required {
            return;
        }
        // Readiness depends on this server: connect now, and notice when it goes and comes back.
        let server = Arc::clone(&self.server);
        let watch = async move {
            while !server.stop.is_cancelled() {
                server.look_after().await;
                tokio::select! {
                    () = server.stop.cancelled() => {}
                    () = tokio::time::sleep(WATCH) => {}
                }
            }
        };
        ctx.spawn(watch.into_actor(self).map(|(), _, _| ()));
    }
}

impl Handler<Discover> for McpSessionActor {
    type Result = ResponseFuture<Result<Arc<ToolIndex>, Failure>>;

    fn handle(&mut self, Discover { deadline }: Discover, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            tokio::time::timeout_at(deadline.into(), server.offer()).await.unwrap_or_else(|_| {
                Err(Failure::permanent(
                    "timeout",
                    format!("tool server {:?} did not list its tools before the node's time was up", server.name),
                ))
            })
        })
    }
}

impl Handler<CallTool> for McpSessionActor {
    type Result = ResponseFuture<Result<ToolOutput, Failure>>;

    fn handle(&mut self, CallTool { call, cancel }: CallTool, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            let started = Instant::now();
            let answer = tokio::select! {
                // Dropping the call tells the server.
                () = cancel.cancelled() => return Err(Failure::new(Category::Cancelled, "cancelled", "the call was cancelled")),
                answer = tokio::time::timeout_at(call.context.deadline.into(), server.call(&call)) => {
                    answer.unwrap_or_else(|_| Err(Failure::permanent(
                        "timeout",
                        format!("tool {} did not answer before the node's time was up", call.target),
                    )))
                }
            };
            Metrics::seconds(&server.metrics.tool_duration.get_or_create(&server.labels()), started.elapsed());
            let outcome = match &answer {
                Ok(output) if output.is_error => "tool_error",
                Ok(_) => "ok",
                Err(_) => "failed",
            };
            let labels = ToolLabels { server: server.name.clone(), tool: call.target.name.clone(), outcome };
            server.metrics.tool_calls.get_or_create(&labels).inc();
            answer
        })
    }
}
