//! What is kept of one server over its sessions: its configuration and who authorises requests to it. Opening a
//! session again after one is lost is the caller's decision.

use std::sync::Arc;

use super::auth::Authorize;
use super::error::McpError;
use super::session::Session;
use crate::config::McpServerConfig;

/// One configured server. Sends nothing by itself.
pub struct Endpoint {
    pub(super) server: Arc<str>,
    pub(super) config: McpServerConfig,
    pub(super) authorize: Option<Arc<dyn Authorize>>,
}

impl Endpoint {
    /// A server as it is configured, with nobody who authorises requests beside the configured headers.
    pub fn new(name: &str, config: McpServerConfig) -> Self {
        Self { server: Arc::from(name), config, authorize: None }
    }

    /// The same, with somebody who authorises its requests over HTTP.
    #[must_use]
    pub fn authorized(mut self, authorize: Arc<dyn Authorize>) -> Self {
        self.authorize = Some(authorize);
        self
    }

    /// Connects and initialises within the server's `connect_timeout`.
    pub async fn connect(&self) -> Result<Session, McpError> {
        Session::connect_to(self).await
    }
}
