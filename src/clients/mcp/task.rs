//! Tasks, an extension of the modern era: a call that its server works on by itself is asked for its end, told the answers
//! to its questions, or given up. When it is asked is not decided here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::client::{CallLimits, CallMeta, Client};
use super::era::Era;
use super::error::{McpError, excerpt};
use super::input::in_words;
use super::service::{FlightPlan, McpService};
use super::wire::{self, CallResult, TaskState};
use crate::domain::task::{Pace, Task};
use crate::domain::tool::ToolOutput;

/// The name of the extension.
const EXTENSION: &str = "io.modelcontextprotocol/tasks";
/// Bytes of a task's name: it goes into a header of each look.
const LONGEST_ID: usize = 1024;
/// Questions that one task may ask.
const MAX_QUESTIONS: usize = 100;

/// What a call came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// It has ended.
    Done(ToolOutput),
    /// The server works on it by itself.
    Task {
        /// The name that the server gave it.
        id: String,
        /// What the server says of its time.
        pace: Pace,
    },
}

/// What a look at a task found.
#[derive(Debug)]
pub enum Look {
    /// It goes on.
    GoesOn {
        /// What the server says of its time by now.
        pace: Pace,
        /// What is happening, in the server's words, shortened.
        message: Option<String>,
        /// Its questions that were answered just now.
        answered: Vec<String>,
    },
    /// It has ended, as the call would have.
    Ended(Result<ToolOutput, McpError>),
}

/// Says that a call may become a task.
pub(super) fn declare(capabilities: &mut Value) {
    capabilities["extensions"][EXTENSION] = json!({});
}

/// The task that a call came to; none if the answer has no name for it that could be used.
pub(super) fn begun(result: &CallResult) -> Option<Begun> {
    let id = result.task_id.as_str()?;
    let usable = !id.is_empty() && id.len() <= LONGEST_ID;
    let pace = wire::pace(&result.ttl_ms, &result.poll_interval_ms);
    usable.then(|| Begun::Task { id: id.to_owned(), pace })
}

impl<S: McpService> Client<S> {
    /// A look at the task of a call of `tool`, with the answers to what it asks.
    pub(super) async fn look(
        &self,
        tool: &str,
        task: &Task,
        meta: &CallMeta,
        limits: CallLimits,
    ) -> Result<Look, McpError> {
        if self.era() == Era::Legacy {
            return Err(self.lost(tool, "it speaks another version by now, without tasks"));
        }
        let state: TaskState = match self.about_task(wire::GET_TASK, &task.id, json!({}), meta, limits).await {
            Err(McpError::Rpc { code: wire::INVALID_PARAMS | wire::METHOD_NOT_FOUND, message, .. }) => {
                return Err(self.lost(tool, &message));
            }
            state => state?,
        };
        let TaskState { status, status_message, ttl_ms, poll_interval_ms, input_requests, result, error } = state;
        let message = status_message.as_deref().filter(|words| !words.trim().is_empty()).map(excerpt);
        let mut answered = Vec::new();
        match status.as_str() {
            "working" => {}
            "input_required" => {
                let requests = input_requests.unwrap_or_default();
                answered = self.answer_task(tool, task, &requests, meta, limits).await?;
            }
            "completed" => {
                let result = result.ok_or_else(|| self.broken("a task is completed and has no result"))?;
                return Ok(Look::Ended(Ok(self.completed(result)?)));
            }
            "failed" => {
                let fault = error.ok_or_else(|| self.broken("a task has failed and has no error"))?;
                return Ok(Look::Ended(Err(fault.to_error(Arc::clone(self.server()), None))));
            }
            "cancelled" => {
                return Ok(Look::Ended(Err(McpError::TaskCancelled {
                    server: Arc::clone(self.server()),
                    what: FlightPlan::in_words(tool),
                    message: message.unwrap_or_default(),
                })));
            }
            other => return Err(self.broken(&format!("a task has the unknown status `{other}`"))),
        }
        Ok(Look::GoesOn { pace: wire::pace(&ttl_ms, &poll_interval_ms), message, answered })
    }

    /// Tells the server that nobody waits for a task any more.
    pub(super) async fn give_up(&self, id: &str, limit: Duration) -> Result<(), McpError> {
        if self.era() == Era::Legacy {
            return Ok(());
        }
        let params = json!({"taskId": id, "_meta": self.meta_with_tasks()});
        self.request::<Value>(self.id(), wire::CANCEL_TASK, &params, plan(wire::CANCEL_TASK, id, limit)).await?;
        Ok(())
    }

    /// Answers what a task asks and was not answered before; gives the server's names for those questions.
    async fn answer_task(
        &self,
        tool: &str,
        task: &Task,
        requests: &Map<String, Value>,
        meta: &CallMeta,
        limits: CallLimits,
    ) -> Result<Vec<String>, McpError> {
        let mut answers = Map::new();
        for (key, request) in requests.iter().filter(|(key, _)| !task.answered.contains(key)) {
            let method = request.get("method").and_then(Value::as_str).unwrap_or_default();
            let params = request.get("params").unwrap_or(&Value::Null);
            if task.answered.len() + answers.len() >= MAX_QUESTIONS {
                return Err(self.input_required(tool, &format!("it asked {MAX_QUESTIONS} times")));
            }
            // However long somebody takes, the node's time is the limit, or it is ended around this.
            let left = meta.deadline.saturating_duration_since(Instant::now());
            let name = format!("{} {key}", task.id);
            let asked = Box::pin(self.inbox().ask(method, params, Some(&name)));
            let Ok(Some(answer)) = timeout(left, asked).await else {
                return Err(self.input_required(tool, &in_words(method, params)));
            };
            answers.insert(key.clone(), answer);
        }
        if answers.is_empty() {
            // The server has the answers and did not come to them yet.
            return Ok(Vec::new());
        }
        let keys = answers.keys().cloned().collect();
        self.about_task::<Value>(wire::UPDATE_TASK, &task.id, json!({"inputResponses": answers}), meta, limits).await?;
        Ok(keys)
    }

    /// A request about a task.
    async fn about_task<R: DeserializeOwned>(
        &self,
        method: &'static str,
        id: &str,
        mut params: Value,
        meta: &CallMeta,
        limits: CallLimits,
    ) -> Result<R, McpError> {
        let mut own = self.meta_with_tasks();
        if let Some(traceparent) = &meta.traceparent {
            own.insert(String::from("traceparent"), Value::from(traceparent.as_str()));
        }
        params["taskId"] = Value::from(id);
        params["_meta"] = Value::Object(own);
        let silence = meta.timeout.unwrap_or(limits.silence);
        let limit = silence.min(meta.deadline.saturating_duration_since(Instant::now()));
        Ok(self.request(self.id(), method, &params, plan(method, id, limit)).await?.1)
    }

    fn completed(&self, result: Value) -> Result<ToolOutput, McpError> {
        let result: CallResult = serde_json::from_value(result)
            .map_err(|error| self.broken(&format!("the result of a task cannot be read: {error}")))?;
        match result.result_type.as_deref() {
            None | Some("complete") => Ok(result.into_output()),
            Some(other) => Err(self.broken(&format!("the result of a task is of the type `{other}`"))),
        }
    }

    fn lost(&self, tool: &str, why: &str) -> McpError {
        let what = FlightPlan::in_words(tool);
        McpError::TaskLost { server: Arc::clone(self.server()), what, why: excerpt(why) }
    }
}

/// Proxies find the way to the instance that has the task by its name.
fn plan(method: &'static str, id: &str, limit: Duration) -> FlightPlan {
    FlightPlan { name: Some(id.to_owned()), ..FlightPlan::plain(method, limit) }
}
