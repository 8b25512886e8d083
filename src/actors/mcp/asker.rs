//! Puts what a tool server asks in the middle of a call to whoever made the call.

use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::clients::mcp::{AnswerInput, Mode, Question, Reply};
use crate::domain::tool::{ToolQuestion, ToolReply};
use crate::ports::QuestionSender;

tokio::task_local! {
    /// Who answers the call that this task makes.
    static OWN: Option<QuestionSender>;
}

/// Knows whose call a question belongs to. A server of the modern era asks in its answer to the call; one of the era
/// before asks beside it and names no call, so such a server gets one call at a time.
#[derive(Debug, Default)]
pub struct Asker {
    only: Mutex<Option<QuestionSender>>,
    turn: tokio::sync::Mutex<()>,
}

impl Asker {
    /// Makes a call whose questions go to `questions`; `alone` where questions will name no call.
    pub async fn during<T>(&self, questions: Option<QuestionSender>, alone: bool, call: impl Future<Output = T>) -> T {
        if !alone {
            return OWN.scope(questions, call).await;
        }
        let _turn = self.turn.lock().await;
        *self.only() = questions;
        let _clear = Clear(self);
        call.await
    }

    fn only(&self) -> std::sync::MutexGuard<'_, Option<QuestionSender>> {
        self.only.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody is asked any more once a call is over, however it ended.
struct Clear<'a>(&'a Asker);

impl Drop for Clear<'_> {
    fn drop(&mut self) {
        *self.0.only() = None;
    }
}

impl AnswerInput for Asker {
    fn capabilities(&self) -> Value {
        json!({"elicitation": {"form": {"applyDefaults": true}, "url": {}}})
    }

    fn answer<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<Reply>> {
        let own = OWN.try_with(Clone::clone).ok().flatten();
        let Some(sender) = own.or_else(|| self.only().clone()) else { return async { None }.boxed() };
        let (schema, url) = match &question.mode {
            Mode::Form { schema } => (Some(schema.clone()), None),
            Mode::Url { url, .. } => (None, Some(url.to_string())),
        };
        let question = ToolQuestion { message: question.message.clone(), schema, url, key: question.key.clone() };
        async move {
            let (answer, answered) = oneshot::channel();
            sender.send(Box::new((question, answer))).await.ok()?;
            Some(match answered.await.ok()? {
                ToolReply::Accept(values) => Reply::Accept(values),
                ToolReply::Decline => Reply::Decline,
                ToolReply::Cancel => Reply::Cancel,
            })
        }
        .boxed()
    }
}
