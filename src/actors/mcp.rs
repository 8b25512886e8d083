//! McpSessionActor: one tool server. Connects when it is first needed, keeps the session and its tools, connects
//! again with backoff when the session is lost. Many calls run at once; none waits for another.

mod asker;
mod calls;
mod catalog;
mod server;
mod tasks;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, ResponseFuture, WrapFuture as _};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub use self::server::Server;
use crate::actors::messages::{CallTool, Discover, GiveUpTask, LookAtTask};
use crate::actors::supervise::DeathWatch;
use crate::domain::outcome::{Category, Failure};
use crate::domain::task::{TaskNews, ToolAnswer};
use crate::domain::tool::ToolOutput;
use crate::metrics::{Metrics, ToolLabels};
use crate::ports::ToolCall;
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

    fn handle(&mut self, Discover { named, deadline }: Discover, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            tokio::time::timeout_at(deadline.into(), server.offer(named)).await.unwrap_or_else(|_| {
                Err(Failure::permanent(
                    "timeout",
                    format!("tool server {:?} did not list its tools before the node's time was up", server.name),
                ))
            })
        })
    }
}

impl Handler<CallTool> for McpSessionActor {
    type Result = ResponseFuture<Result<ToolAnswer, Failure>>;

    fn handle(&mut self, CallTool { call, cancel }: CallTool, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            let started = Instant::now();
            // Dropping the call tells the server.
            let answer = in_time(&call, &cancel, server.call(&call)).await;
            match &answer {
                Ok(ToolAnswer::Done(output)) => count(&server, &call, Ok(output), started.elapsed()),
                Err(failure) if failure.category == Category::Cancelled => {}
                Err(failure) => count(&server, &call, Err(failure), started.elapsed()),
                // It is counted when it has ended.
                Ok(ToolAnswer::Task(_)) => {}
            }
            answer
        })
    }
}

impl Handler<LookAtTask> for McpSessionActor {
    type Result = ResponseFuture<Result<TaskNews, Failure>>;

    fn handle(&mut self, LookAtTask { call, task, cancel }: LookAtTask, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            let news = in_time(&call, &cancel, server.look(&call, &task)).await;
            let age = task.age(Timestamp::now());
            match &news {
                Ok(TaskNews::Ended(ended)) => count(&server, &call, ended.as_ref(), age),
                Ok(TaskNews::Lost(failure)) => count(&server, &call, Err(failure), age),
                Ok(TaskNews::GoesOn { .. }) | Err(_) => {}
            }
            news
        })
    }
}

impl Handler<GiveUpTask> for McpSessionActor {
    type Result = ResponseFuture<Result<(), Failure>>;

    fn handle(&mut self, GiveUpTask { task }: GiveUpTask, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.server);
        Box::pin(async move { server.give_up(&task).await })
    }
}

/// What a call gives within the node's time and for as long as somebody waits for it.
async fn in_time<T>(
    call: &ToolCall,
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        () = cancel.cancelled() => Err(Failure::new(Category::Cancelled, "cancelled", "the call was cancelled")),
        answer = tokio::time::timeout_at(call.context.deadline.into(), work) => {
            answer.unwrap_or_else(|_| Err(Failure::permanent(
                "timeout",
                format!("tool {} did not answer before the node's time was up", call.target),
            )))
        }
    }
}

/// Counts a call that has ended.
fn count(server: &Server, call: &ToolCall, ended: Result<&ToolOutput, &Failure>, took: Duration) {
    Metrics::seconds(&server.metrics.tool_duration.get_or_create(&server.labels()), took);
    let outcome = match ended {
        Ok(output) if output.is_error => "tool_error",
        Ok(_) => "ok",
        Err(_) => "failed",
    };
    let labels = ToolLabels { server: server.name.clone(), tool: call.target.name.clone(), outcome };
    server.metrics.tool_calls.get_or_create(&labels).inc();
}
