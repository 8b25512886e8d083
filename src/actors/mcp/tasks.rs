//! Tasks of a server: how one stands, and that nobody waits for it any more. When it is looked at is the node's decision.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::server::Server;
use crate::clients::mcp::{CallMeta, Look, McpError, Session};
use crate::domain::outcome::Failure;
use crate::domain::task::{Task, TaskNews};
use crate::ports::ToolCall;

/// How long giving a task up may take: whoever ends because of it waits for this.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(3);

impl Server {
    /// Looks at the task of a call; once more where the session was lost, for a look changes nothing.
    pub(super) async fn look(&self, call: &ToolCall, task: &Task) -> Result<TaskNews, Failure> {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let mut session = self.session().await?;
        let mut started = Instant::now();
        let looked = match self.ask(&session, call, task).await {
            Err(McpError::SessionLost { .. }) => {
                self.forget(&session).await;
                session = self.session().await?;
                started = Instant::now();
                self.ask(&session, call, task).await
            }
            looked => looked,
        };
        let tool = &call.target.name;
        let repeatable = self.fact(tool, |facts| facts.repeatable).unwrap_or(false);
        match looked {
            Ok(Look::GoesOn { pace, message, answered }) => {
                self.answered(started.elapsed());
                let now = Timestamp::now();
                let mut by_now = task.clone();
                by_now.goes_on(pace, now);
                if by_now.is_over(now) {
                    // From here on the server may forget it at any moment, and how it ended with it. It is not told
                    // anything: whoever looks at it again would take our word for the server's.
                    return Ok(TaskNews::Lost(self.outlived(tool, by_now.age(now), repeatable)));
                }
                Ok(TaskNews::GoesOn { pace, message, answered })
            }
            Ok(Look::Ended(ended)) => {
                self.answered(started.elapsed());
                let ended = ended.map_err(|error| error.into_failure(repeatable));
                match &ended {
                    Ok(output) => self.check(tool, output),
                    Err(failure) => self.failed(failure),
                }
                Ok(TaskNews::Ended(ended))
            }
            Err(error) => {
                let lost = matches!(error, McpError::TaskLost { .. });
                // Nothing is called here, so it may be asked again whatever the tool does.
                let failure = error.into_failure(repeatable || !lost);
                self.failed(&failure);
                if lost { Ok(TaskNews::Lost(failure)) } else { Err(failure) }
            }
        }
    }

    /// The end of a task that did not end in its time.
    fn outlived(&self, tool: &str, age: Duration, repeatable: bool) -> Failure {
        let why = format!("it had not ended after {} s, and its server keeps it no longer", age.as_secs());
        let what = format!("the tool `{tool}`");
        let failure = McpError::TaskLost { server: Arc::from(&*self.name), what, why }.into_failure(repeatable);
        self.failed(&failure);
        failure
    }

    async fn ask(&self, session: &Session, call: &ToolCall, task: &Task) -> Result<Look, McpError> {
        let meta = CallMeta { progress: None, ..self.meta(call) };
        let looked = session.look(&call.target.name, task, meta);
        match &self.asker {
            // A question names its task, so any number of them may be looked at at once.
            Some(asker) => asker.during(call.questions.clone(), false, looked).await,
            None => looked.await,
        }
    }

    /// Tells the server that nobody waits for a task any more.
    pub(super) async fn give_up(&self, task: &str) -> Result<(), Failure> {
        let told = async {
            let session = self.session().await?;
            session.give_up(task, GIVE_UP_LIMIT).await.map_err(Failure::from)
        };
        tokio::time::timeout(GIVE_UP_LIMIT, told)
            .await
            .unwrap_or_else(|_| Err(Failure::permanent("mcp_timeout", "the server did not answer in time")))
    }
}
