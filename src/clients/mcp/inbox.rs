//! What a server sends unasked, the same for every transport: notifications, and requests that we answer or decline.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::error::excerpt;
use super::input::{AnswerInput, Question};
use super::service::{Flight, Pause};
use super::wire::{self, ProgressNote};
use crate::domain::tool::Progress;

/// Requests of one server that are worked on beside its stream at once.
const MAX_REQUESTS: usize = 32;
/// Questions of one server that are open at once.
const MAX_QUESTIONS: usize = 16;

/// The receiving side of one session.
pub(super) struct Inbox {
    server: Arc<str>,
    answers: Option<Arc<dyn AnswerInput>>,
    tools_changed: AtomicU64,
    /// Whether there is a way by which the server can tell of changes now.
    hears: AtomicBool,
    noise: AtomicU64,
    closed: CancellationToken,
    /// Requests of the server that may be worked on beside its stream at once.
    requests: Arc<Semaphore>,
    /// Questions that may be open at once; fewer than requests, for a person takes long and a pong must not wait.
    questions: Semaphore,
    /// The requests under way whose progress counts.
    flights: Mutex<HashMap<u64, Flight>>,
}

/// Takes a request off the list of those whose progress counts.
pub(super) struct Watched {
    inbox: Arc<Inbox>,
    id: u64,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.inbox.flights().remove(&self.id);
    }
}

impl Inbox {
    /// Of a session with `server`.
    pub(super) fn new(server: Arc<str>, answers: Option<Arc<dyn AnswerInput>>) -> Arc<Self> {
        Arc::new(Self {
            server,
            answers,
            tools_changed: AtomicU64::new(0),
            hears: AtomicBool::new(false),
            noise: AtomicU64::new(0),
            closed: CancellationToken::new(),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            questions: Semaphore::new(MAX_QUESTIONS),
            flights: Mutex::default(),
        })
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<u64, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Progress of this request counts until the value is dropped.
    pub(super) fn watch(self: &Arc<Self>, id: u64, flight: &Flight) -> Watched {
        self.flights().insert(id, flight.clone());
        Watched { inbox: Arc::clone(self), id }
    }

    /// The server's name in the configuration.
    pub(super) fn server(&self) -> &Arc<str> {
        &self.server
    }

    /// Who answers what the server asks.
    pub(super) fn answers(&self) -> Option<&Arc<dyn AnswerInput>> {
        self.answers.as_ref()
    }

    /// Fires once the session is of no more use.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// How often the server said that its tools changed.
    pub(super) fn tools_changed(&self) -> u64 {
        self.tools_changed.load(Ordering::Acquire)
    }

    /// The way by which the server can tell of changes is open, or is not.
    pub(super) fn listens(&self, open: bool) {
        self.hears.store(open, Ordering::Release);
    }

    /// Whether the server can tell of changes now.
    pub(super) fn hears(&self) -> bool {
        self.hears.load(Ordering::Acquire)
    }

    /// The tools may have changed.
    pub(super) fn change_tools(&self) {
        self.tools_changed.fetch_add(1, Ordering::AcqRel);
    }

    /// A notification came.
    pub(super) fn notification(&self, method: &str, progress: Option<ProgressNote>) {
        match (method, progress) {
            ("notifications/tools/list_changed", _) => {
                self.change_tools();
                tracing::debug!(mcp.server = %self.server, "tools changed");
            }
            // Until now a change was not told, so there may have been one.
            ("notifications/subscriptions/acknowledged", _) => {
                self.listens(true);
                self.change_tools();
            }
            (_, Some(note)) => {
                let flight = self.flights().get(&note.progress_token).cloned();
                if let Some(flight) = flight {
                    let message = note.message.as_deref().map(excerpt);
                    flight.progressed(Progress { progress: note.progress, total: note.total, message });
                }
            }
            (_, None) => {}
        }
    }

    /// The answer to a request of the server: `ping` gets its pong, what somebody here can answer gets that, everything
    /// else is declined, as it was not offered.
    pub(super) async fn answer(&self, id: &RawValue, method: &str, params: &Value) -> String {
        if method == wire::PING {
            return format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
        }
        match self.ask(method, params, None).await {
            Some(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#),
            None => {
                tracing::debug!(mcp.server = %self.server, "request of the server declined");
                format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"Method not found"}}}}"#)
            }
        }
    }

    /// The result of a request of the server that asks a person; none if nobody answers it. `key` is the server's name
    /// for it, where that is never another one's.
    pub(super) async fn ask(&self, method: &str, params: &Value, key: Option<&str>) -> Option<Value> {
        let answers = self.answers.as_ref()?;
        let question = Question { key: key.map(str::to_owned), ..Question::read(&self.server, method, params)? };
        let _open = match self.questions.try_acquire() {
            Ok(open) => open,
            // What has a name stands at the server until it is answered; whoever asks bounds the wait.
            Err(_) if key.is_some() => self.questions.acquire().await.ok()?,
            Err(_) => {
                tracing::debug!(mcp.server = %self.server, "the server asks too much at once");
                return None;
            }
        };
        // It is most likely in the course of a call, which goes on only when it is answered.
        let flights: Vec<Flight> = self.flights().values().cloned().collect();
        let _ours: Vec<Pause> = flights.iter().map(Flight::pause).collect();
        answers.answer(&question).await.map(|reply| reply.result(&question))
    }

    /// Works on a request of the server beside what else it sends: that may be what a call waits for. Waits only while
    /// too many are worked on already, so that a flood is held up and memory stays bounded.
    pub(super) async fn beside(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let permit = Arc::clone(&self.requests).acquire_owned().await.expect("the semaphore is never closed");
        let closed = self.closed.clone();
        tokio::spawn(async move {
            closed.run_until_cancelled(work).await;
            drop(permit);
        });
    }

    /// Something came that belongs to nothing. Logged at each doubling, so that a flood stays a few lines.
    pub(super) fn noise(&self, kind: &'static str) {
        let count = self.noise.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::debug!(mcp.server = %self.server, kind, count, "message dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{BoxFuture, join_all};
    use serde_json::json;

    use super::super::input::Reply;
    use super::*;

    /// Somebody who answers when there is time.
    struct Busy {
        heard: Semaphore,
        time: Semaphore,
    }

    impl AnswerInput for Busy {
        fn capabilities(&self) -> Value {
            json!({})
        }

        fn answer<'a>(&'a self, _: &'a Question) -> BoxFuture<'a, Option<Reply>> {
            Box::pin(async {
                self.heard.add_permits(1);
                self.time.acquire().await.ok()?.forget();
                Some(Reply::Decline)
            })
        }
    }

    #[tokio::test]
    async fn no_more_questions_are_open_at_once_than_may_be_and_those_with_a_name_wait() {
        let person = Arc::new(Busy { heard: Semaphore::new(0), time: Semaphore::new(0) });
        let inbox = Inbox::new(Arc::from("s"), Some(Arc::clone(&person) as Arc<dyn AnswerInput>));
        let params = json!({"message": "Go on?", "requestedSchema": {"type": "object"}});
        let ask = |key: Option<&'static str>| {
            let (inbox, params) = (Arc::clone(&inbox), params.clone());
            tokio::spawn(async move { inbox.ask("elicitation/create", &params, key).await })
        };
        let mut asked: Vec<_> = (0..MAX_QUESTIONS).map(|_| ask(None)).collect();
        let all = u32::try_from(MAX_QUESTIONS).expect("a small number");
        person.heard.acquire_many(all).await.expect("nobody closes it").forget();
        assert_eq!(ask(None).await.expect("it ends"), None, "one more is declined");
        asked.extend([ask(Some("first")), ask(Some("second"))]);
        tokio::task::yield_now().await;
        assert_eq!(person.heard.available_permits(), 0, "they wait");
        person.time.add_permits(MAX_QUESTIONS + 2);
        for answer in join_all(asked).await {
            assert_eq!(answer.expect("it ends"), Some(json!({"action": "decline"})));
        }
    }
}
