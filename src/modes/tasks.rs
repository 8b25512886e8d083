//! Calls that their server works on by itself: put on record, looked at when that is due, on this worker or another, and
//! given up when nobody waits for them any more.

use std::borrow::Cow;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::config::UnknownOutcome;
use crate::domain::event::EventType;
use crate::domain::journal::{CallId, Class, Running, Start};
use crate::domain::outcome::{Category, Failure};
use crate::domain::task::{LOST, OpenTask, Task, TaskNews, ToolAnswer};
use crate::domain::tool::{Arguments, ToolOutput, ToolTarget};
use crate::modes::execution::{CallSite, Execution, Ledger};
use crate::modes::logbook::digest_of;
use crate::modes::waits::Wait;
use crate::ports::{Ports, ToolCall, Tools};
use crate::retry::{Retry, backoff};

/// What a node outside of its slot waits for.
const WORKING: &str = "task_working";
/// How long before the node's time is up a task is looked at for the last time, if its next look would come too late: who
/// comes back from outside of a slot is up to a second late.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// The longest pause before a call is made again whose task came to nothing. It holds the slot.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a server says of its task that another look would not change.
const FINAL: [&str; 2] = ["mcp_protocol_error", "mcp_input_required"];

/// Tells the servers that nobody waits for these tasks any more.
pub async fn give_up_tasks(tools: &impl Tools, open: Vec<OpenTask>) {
    join_all(open.iter().map(|OpenTask { target, id }| tools.give_up(target, id))).await;
}

impl Ledger {
    /// The tasks that nobody here follows from now on.
    pub fn take_tasks(&self) -> Vec<OpenTask> {
        self.tasks.take().into_values().collect()
    }
}

/// A call that its server works on since before this attempt.
pub(super) struct RunningCall<'a> {
    /// What is on record of it.
    pub running: Box<Running>,
    /// Finds out what it was called with, which is asked for only if it has to be made again: its server may be away.
    pub arguments: LocalBoxFuture<'a, Result<Arguments, Failure>>,
}

/// How a task ended.
enum Ended {
    /// As the call would have.
    Answered(ToolOutput),
    /// In a way that allows to make the call again.
    Again(Failure),
    /// For good.
    Failed(Failure),
}

impl<P: Ports> Execution<'_, P> {
    /// A call to its end, whatever its server makes of it; from where it is, if its server works on it already.
    pub(super) async fn to_its_end(
        &self,
        place: CallId,
        call: &ToolCall,
        class: Class,
        resumed: Option<RunningCall<'_>>,
    ) -> Result<ToolOutput, Failure> {
        let (running, arguments) = match resumed {
            Some(RunningCall { running, arguments }) => (running, Some(arguments)),
            None => match self.made(place, call, class).await? {
                ToolAnswer::Done(output) => return Ok(output),
                ToolAnswer::Task(task) => (Box::pin(self.taken_on(place, call, class, task)).await?, None),
            },
        };
        // On the heap: few calls become a task.
        Box::pin(self.through_tasks(place, call, class, running, arguments)).await
    }

    /// A call once, with what its retries allow.
    async fn made(&self, place: CallId, call: &ToolCall, class: Class) -> Result<ToolAnswer, Failure> {
        let operation = || self.attempt(class, self.ports.tools().call(call.clone()));
        self.step("tool call", CallSite::Tool(place), false, operation).await
    }

    /// A call whose server works on it, to its end; made again where its task came to nothing and that does no harm.
    async fn through_tasks(
        &self,
        place: CallId,
        call: &ToolCall,
        class: Class,
        mut running: Box<Running>,
        mut arguments: Option<LocalBoxFuture<'_, Result<Arguments, Failure>>>,
    ) -> Result<ToolOutput, Failure> {
        let mut call = Cow::Borrowed(call);
        loop {
            let before = running.task.before.saturating_add(1);
            let made_with = running.start.arguments.clone();
            let ended = self.followed(place, &call, *running).await?;
            self.ledger.tasks.borrow_mut().remove(&place);
            let failure = match ended {
                Ended::Answered(output) => return Ok(output),
                Ended::Again(failure) => failure,
                Ended::Failed(failure) => return Err(failure),
            };
            let failure = Failure { attempts: before, ..failure };
            if before >= self.policy.max_attempts.get() {
                return Err(failure);
            }
            if made_with != digest_of(&call.arguments) {
                match arguments.take() {
                    Some(arguments) => {
                        call.to_mut().arguments = Arc::new(arguments.await.map_err(|_| failure.clone())?)
                    }
                    None => return Err(failure),
                }
                // The same key with other arguments would be answered with the result of the first.
                if made_with != digest_of(&call.arguments) {
                    return Err(failure);
                }
            }
            let pause = backoff(self.policy.initial, self.policy.max.min(LONGEST_PAUSE), before, fastrand::f64());
            tracing::info!(tool = %call.target, attempt = before, code = failure.code.as_ref(), error = %failure,
                "the task of a call came to nothing, the call is made again");
            sleep(pause).await;
            running = match self.made(place, &call, class).await? {
                ToolAnswer::Done(output) => return Ok(output),
                ToolAnswer::Task(task) => self.taken_on(place, &call, class, Task { before, ..task }).await?,
            };
        }
    }

    /// Puts on record that the server works on a call: from here on the call is not made by anybody else.
    async fn taken_on(
        &self,
        place: CallId,
        call: &ToolCall,
        class: Class,
        task: Task,
    ) -> Result<Box<Running>, Failure> {
        let start = Start {
            server: call.target.server.clone(),
            tool: call.target.name.clone(),
            arguments: digest_of(&call.arguments),
            key: call.context.idempotency_key.clone(),
            class,
            at: task.since,
            entry: Some(self.delivery.entry.to_string()),
        };
        let running = Box::new(Running { start, task });
        self.ledger.tasks.borrow_mut().insert(place, OpenTask::of(&running));
        self.logbook.runs(place, &running).await?;
        Ok(running)
    }

    /// Looks at a task until it has ended. An error says nothing of the task, which may go on.
    async fn followed(&self, place: CallId, call: &ToolCall, mut running: Running) -> Result<Ended, Failure> {
        let mut recorded = running.task.clone();
        let mut told = None;
        loop {
            self.until_due(place, &mut running, &recorded).await?;
            let look = self.ports.tools().look(call.clone(), running.task.clone());
            let news = self.attempt(Class::Safe, look).await;
            let now = Timestamp::now();
            match news {
                Ok(TaskNews::GoesOn { pace, message, answered }) => {
                    let news = !answered.is_empty();
                    running.task.answered.extend(answered);
                    running.task.goes_on(pace, now);
                    if news {
                        // Whoever comes next need not answer them again.
                        self.logbook.runs(place, &running).await?;
                        recorded = running.task.clone();
                    }
                    if message.is_some() && message != told {
                        let progress = json!({"progress": running.task.age(now).as_secs(), "message": message});
                        let tool = call.target.to_string();
                        self.progress(EventType::ToolExecuted, json!({"tool": tool, "progress": progress}));
                        told = message;
                    }
                }
                Ok(TaskNews::Ended(Ok(output))) => return Ok(Ended::Answered(output)),
                Ok(TaskNews::Ended(Err(failure))) => {
                    return Ok(match failure.retry() {
                        Retry::After(_) if running.start.class == Class::Safe => Ended::Again(failure),
                        Retry::After(_) | Retry::Never => Ended::Failed(failure),
                    });
                }
                Ok(TaskNews::Lost(failure)) => {
                    return Ok(match running.start.class {
                        Class::Safe => Ended::Again(failure),
                        // Whatever its server says of it: somebody has to look at what it did.
                        Class::Unsafe => Ended::Failed(Failure { category: Category::Permanent, ..failure }),
                    });
                }
                Err(failure) => {
                    let asked = match failure.retry() {
                        Retry::After(asked) => Some(asked),
                        Retry::Never if FINAL.contains(&failure.code.as_ref()) => None,
                        // A refusal says nothing of the task: a gateway may stand before the server, a token may be renewed.
                        Retry::Never => Some(None),
                    };
                    if !asked.is_some_and(|asked| running.task.away(asked, now)) {
                        return Err(unseen(failure, running.start.class));
                    }
                    tracing::info!(tool = %call.target, code = failure.code.as_ref(), error = %failure,
                        "a task cannot be looked at, trying again");
                }
            }
        }
    }

    /// Waits until a task is to be looked at; if that is long, without the slot unless other calls hold it.
    async fn until_due(&self, place: CallId, running: &mut Running, recorded: &Task) -> Result<(), Failure> {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let (wait, left) = (running.task.wait(clock), self.deadline.saturating_duration_since(now));
        let wait = match left.checked_sub(LAST_LOOK) {
            _ if wait < left => wait,
            Some(last) => last,
            // Whoever watches the node's time drops this.
            None => pending().await,
        };
        if self.settings.park_after.is_none_or(|longest| wait <= longest) {
            sleep(wait).await;
            return Ok(());
        }
        let due = SignedDuration::try_from(wait).ok().and_then(|wait| clock.checked_add(wait).ok());
        running.task.due = running.task.due.min(due.unwrap_or(Timestamp::MAX));
        if running.task != *recorded {
            self.logbook.runs(place, running).await?;
        }
        let what =
            format!("the server works on the task `{}` of the tool `{}`", running.task.id, running.start.target());
        let wait = Wait {
            until: now + wait,
            made: 0,
            failure: Failure::retriable(WORKING, what),
            site: CallSite::Tool(place).to_string(),
            look: true,
        };
        self.ledger.waits.park(wait).await;
        Ok(())
    }

    /// Whether a call ends its node rather than being told to the model: its task is lost, and a person has to look.
    pub(super) fn ends_node(&self, target: &ToolTarget, class: Class, failure: &Failure) -> bool {
        let rule = || self.settings.unknown_outcomes.of(target, class == Class::Safe);
        let unsure = failure.code == LOST || (class == Class::Unsafe && FINAL.contains(&failure.code.as_ref()));
        unsure && rule() == UnknownOutcome::Fail
    }

    /// Gives the task of a call up whose end nobody waits for any more. Only once that is on record, which proves that the
    /// node is still ours: whoever has it next would take our word for the server's.
    pub(super) async fn give_up_task(&self, place: CallId) {
        let open = self.ledger.tasks.borrow_mut().remove(&place);
        if let Some(OpenTask { target, id }) = open {
            self.ports.tools().give_up(&target, &id).await;
        }
    }
}

/// The end of a call whose task cannot be looked at any more. It was made, so nobody may take the failure for one that
/// another call would cure, unless the call may be made again.
fn unseen(failure: Failure, class: Class) -> Failure {
    match class {
        Class::Safe => failure,
        Class::Unsafe => {
            let message =
                format!("{} ({}). The call was made, and may have taken effect", failure.message, failure.code);
            let code = if FINAL.contains(&failure.code.as_ref()) { failure.code } else { LOST.into() };
            Failure { category: Category::Permanent, code, retry_after: None, message, ..failure }
        }
    }
}

#[cfg(test)]
mod tests;
