//! What is kept of one server over its sessions: its configuration, the era it speaks, who authorises requests to it and
//! who answers what its tools ask. Opening a session again after one is lost is the caller's decision.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::timeout;

use super::auth::{self, Authorize};
use super::error::McpError;
use super::input::AnswerInput;
use super::open;
use super::session::Session;
use crate::config::McpServerConfig;

/// One configured server. Sends nothing by itself.
pub struct Endpoint {
    pub(super) server: Arc<str>,
    pub(super) config: McpServerConfig,
    pub(super) authorize: Option<Arc<dyn Authorize>>,
    pub(super) answers: Option<Arc<dyn AnswerInput>>,
    known: Mutex<Option<Known>>,
}

/// What need not be found out again. That a server speaks the modern era is not among it: asking it what it is takes
/// the same one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It wants a handshake.
    Legacy,
    /// It wants a handshake, over the transport of 2024-11-05.
    OldSse,
}

impl Endpoint {
    /// A server as it is configured, its authentication included.
    pub fn new(name: &str, config: McpServerConfig) -> Self {
        let server = Arc::from(name);
        let authorize = auth::configured(&server, &config);
        Self { server, config, authorize, answers: None, known: Mutex::default() }
    }

    /// The same, with somebody else who authorises its requests over HTTP.
    #[must_use]
    pub fn authorized(mut self, authorize: Arc<dyn Authorize>) -> Self {
        self.authorize = Some(authorize);
        self
    }

    /// The same, with somebody who answers what its tools ask in the middle of a call.
    #[must_use]
    pub fn answered(mut self, answers: Arc<dyn AnswerInput>) -> Self {
        self.answers = Some(answers);
        self
    }

    /// Connects within the server's `connect_timeout`.
    pub async fn connect(&self) -> Result<Session, McpError> {
        let limit = self.config.connect_timeout;
        let before = self.known();
        match timeout(limit, open::open(self)).await {
            Ok(opened) => opened,
            Err(_) => {
                // Silence tells nothing: what was only assumed gets one try, what failed to help is forgotten.
                if before.is_some() {
                    self.learn(None);
                }
                Err(McpError::TimedOut {
                    server: Arc::clone(&self.server),
                    what: String::from("the opening of a session"),
                    limit,
                    may_have_run: false,
                })
            }
        }
    }

    pub(super) fn known(&self) -> Option<Known> {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn learn(&self, known: Option<Known>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}
