//! What stands behind an HTTP status that is no success.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::super::era::Era;
use super::super::error::{McpError, excerpt};
use super::super::service::Flight;
use super::super::wire::{self, Fault, Incoming};
use super::Inner;

/// Bytes of an error's body that are read.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// The longest wait that we let a server ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

impl Inner {
    /// The error behind a status that is no success; `accepted` says that the request itself was taken before.
    pub(super) async fn refused(&self, response: Response, flight: &Flight, accepted: bool) -> McpError {
        let status = response.status();
        let server = Arc::clone(self.inbox().server());
        let retry_after = retry_after(response.headers());
        let fault = read_fault(response).await;
        let legacy = flight.plan().dialect.era() == Era::Legacy;
        if legacy && self.says_session_lost(status, fault.as_ref()) {
            self.lose();
            return McpError::SessionLost { server, may_have_run: accepted && flight.may_have_run() };
        }
        // 503 is said by who did not begin; behind every other 5xx the work may go on.
        let begun = status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE;
        let may_have_run = flight.may_have_run() && (accepted || begun);
        match fault {
            Some(fault) if matches!(status.as_u16(), 400 | 404 | 422) && !accepted => {
                self.link.rpc(&fault, Some(status))
            }
            fault => {
                let said = fault.map(|fault| excerpt(&fault.message));
                let message = match (said, self.link.remedy(status)) {
                    (Some(said), Some(remedy)) => format!("{said}; {remedy}"),
                    (Some(text), None) | (None, Some(text)) => text,
                    (None, None) => status.canonical_reason().unwrap_or_default().to_owned(),
                };
                McpError::Http { server, status: status.as_u16(), message, retry_after, may_have_run }
            }
        }
    }

    /// 404 by the specification. Servers of the TypeScript SDK say 400 with an error of their own, which is believed
    /// only of a session that has worked: otherwise opening a new one would change nothing.
    fn says_session_lost(&self, status: StatusCode, fault: Option<&Fault>) -> bool {
        if self.session.get().is_none() {
            return false;
        }
        match status {
            StatusCode::NOT_FOUND => true,
            StatusCode::BAD_REQUEST if self.proven.load(Ordering::Acquire) => {
                fault.is_none_or(|fault| matches!(fault.code, -32000 | -32600))
            }
            _ => false,
        }
    }

    /// Nothing can be asked in this session any more.
    pub(super) fn lose(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            tracing::debug!(mcp.server = %self.inbox().server(), "session lost");
        }
        self.inbox().closed().cancel();
    }
}

/// The JSON-RPC error in a refusal, if there is one.
async fn read_fault(mut response: Response) -> Option<Fault> {
    let mut body = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        body.extend_from_slice(&bytes);
        if body.len() > MAX_ERROR_BODY {
            return None;
        }
    }
    match wire::parse(std::str::from_utf8(&body).ok()?)?.pop()? {
        Incoming::Answer { outcome: Err(fault), .. } => Some(fault),
        Incoming::Answer { .. } | Incoming::Request { .. } | Incoming::Notification { .. } => None,
    }
}

/// `Retry-After` in seconds or as a date.
pub(in super::super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
            Duration::try_from(at.duration_since(jiff::Timestamp::now())).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}
