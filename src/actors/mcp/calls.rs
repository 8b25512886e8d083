//! A call of a tool on its server: whether it may be made, on which session, and what its answer is worth.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::server::Server;
use crate::clients::mcp::{Begun, CallMeta, Era, McpError, Session};
use crate::domain::outcome::Failure;
use crate::domain::task::{Task, ToolAnswer};
use crate::domain::tool::ToolOutput;
use crate::ports::ToolCall;
use crate::tools::resolve::{allowed, matches};

impl Server {
    /// Calls a tool; once more where its session was lost and that is safe.
    pub(super) async fn call(&self, call: &ToolCall) -> Result<ToolAnswer, Failure> {
        if !allowed(&self.config, &call.target.name) {
            return Err(Failure::configuration(
                "tool_not_allowed",
                format!("tool {} is not allowed; see `mcp.servers.{}.allow` and `deny`", call.target, self.name),
            ));
        }
        if self.approval.is_pinned() {
            // A tool may have changed since the node found it.
            self.discover().await?;
        }
        self.approval.check(&call.target.name)?;
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let _under_way = UnderWay::begin(self);
        let meta = || self.meta(call);
        let mut session = self.session().await?;
        let repeatable = self.fact(&call.target.name, |facts| facts.repeatable).unwrap_or(false);
        let mut started = Instant::now();
        let answer = match self.put(&session, call, meta()).await {
            Err(error @ McpError::SessionLost { .. }) => {
                self.forget(&session).await;
                if error.may_have_run() && !repeatable {
                    let failure = error.into_failure(false);
                    self.failed(&failure);
                    return Err(failure);
                }
                // It did not run, because the server no longer knows the session; or it may run twice.
                session = self.session().await?;
                started = Instant::now();
                self.put(&session, call, meta()).await
            }
            answer => answer,
        };
        match answer {
            Ok(Begun::Done(output)) => {
                self.answered(started.elapsed());
                self.check(&call.target.name, &output);
                Ok(output.into())
            }
            Ok(Begun::Task { id, pace }) => {
                self.answered(started.elapsed());
                tracing::debug!(mcp.server = self.name, tool = call.target.name, task = id, "a call became a task");
                Ok(ToolAnswer::Task(Task::new(id, pace, Timestamp::now())))
            }
            Err(error) => {
                let failure = error.into_failure(repeatable);
                self.failed(&failure);
                Err(failure)
            }
        }
    }

    /// Makes a call, with somebody who answers what the tool asks.
    async fn put(&self, session: &Session, call: &ToolCall, meta: CallMeta) -> Result<Begun, McpError> {
        let made = session.begin_call(&call.target.name, &call.arguments, meta);
        let Some(asker) = &self.asker else { return made.await };
        let alone = session.info().era == Era::Legacy;
        asker.during(call.questions.clone(), alone, made).await
    }

    /// What is said of a call to the session.
    pub(super) fn meta(&self, call: &ToolCall) -> CallMeta {
        let timeout = self.timeout_of(&call.target.name);
        CallMeta { progress: call.progress.clone(), timeout, ..CallMeta::from(&call.context) }
    }

    /// How long a tool may be silent, where it has a limit of its own.
    fn timeout_of(&self, tool: &str) -> Option<Duration> {
        let limits = &self.config.tool_timeouts;
        // Of several patterns the one that says most.
        let fitting = || limits.iter().filter(|(pattern, _)| matches(pattern, tool)).max_by_key(|(p, _)| p.len());
        limits.get(tool).or_else(|| fitting().map(|(_, limit)| limit)).copied()
    }

    /// Compares a structured answer with what its tool promised. It is handed on either way: a model can make more of an
    /// answer that does not fit than of none.
    pub(super) fn check(&self, tool: &str, output: &ToolOutput) {
        let Some(structured) = output.structured.as_ref().filter(|_| !output.is_error) else { return };
        let problem = self.fact(tool, |facts| facts.output_schema.as_ref()?.problem_of(structured));
        if let Some(problem) = problem.flatten() {
            tracing::warn!(mcp.server = self.name, tool, "a structured answer does not fit the tool's own schema");
            // It may quote the answer.
            tracing::debug!(mcp.server = self.name, tool, problem, "what does not fit");
        }
    }
}

/// Counts a call while it is under way.
struct UnderWay<'a>(&'a Server);

impl<'a> UnderWay<'a> {
    fn begin(server: &'a Server) -> Self {
        server.status_mut().in_flight += 1;
        Self(server)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.status_mut().in_flight -= 1;
    }
}
