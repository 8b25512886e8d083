//! What can go wrong with an MCP server, what it says about trying again, and how it reads to a person.
//! A tool that reports its own failure is no error here: that is an answer with `is_error`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use humantime::format_duration;

use super::auth::AuthError;
use super::era::{HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION};
use super::wire::INVALID_PARAMS;
use crate::domain::outcome::{Category, Failure};
use crate::retry::Retry;

/// JSON-RPC: the server failed while it worked on the request.
const INTERNAL_ERROR: i64 = -32603;

/// Why a request to an MCP server failed.
#[derive(Debug, thiserror::Error)]
pub enum McpError {
    /// The server's configuration cannot be used.
    #[error("the MCP server `{server}` is configured wrongly: {problem}")]
    Misconfigured {
        /// The server.
        server: Arc<str>,
        /// What is wrong, and where.
        problem: String,
    },
    /// The child process cannot be started.
    #[error("the MCP server `{server}` cannot be started: `{program}`: {source}; check `mcp.servers.{server}.command`")]
    Spawn {
        /// The server.
        server: Arc<str>,
        /// The program as configured.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// No connection: nothing was sent.
    #[error("the MCP server `{server}` cannot be reached: {cause}")]
    Connect {
        /// The server.
        server: Arc<str>,
        /// The innermost cause.
        cause: String,
    },
    /// An HTTP status that is no success.
    #[error("the MCP server `{server}` answered with HTTP status {status}{}", detail(.message))]
    Http {
        /// The server.
        server: Arc<str>,
        /// The status code.
        status: u16,
        /// What the server said, shortened.
        message: String,
        /// How long the server asked us to wait.
        retry_after: Option<Duration>,
        /// Whether a tool may have run all the same.
        may_have_run: bool,
    },
    /// The connection or the process ended before the answer came.
    #[error("the MCP server `{server}` closed the connection{}{}", detail(.cause), outcome(*.may_have_run))]
    Closed {
        /// The server.
        server: Arc<str>,
        /// What is known of the cause.
        cause: String,
        /// Whether a tool may have run all the same.
        may_have_run: bool,
    },
    /// No answer in time.
    #[error("{what} of the MCP server `{server}` did not answer within {}{}", format_duration(*.limit), outcome(*.may_have_run))]
    TimedOut {
        /// The server.
        server: Arc<str>,
        /// The tool, or the request if it was none.
        what: String,
        /// How long we waited.
        limit: Duration,
        /// Whether a tool may have run all the same.
        may_have_run: bool,
    },
    /// The server answered with a JSON-RPC error.
    #[error("the MCP server `{server}` refused the request: {message} (error {code})")]
    Rpc {
        /// The server.
        server: Arc<str>,
        /// The JSON-RPC error code.
        code: i64,
        /// What the server said, shortened.
        message: String,
        /// The HTTP status it came with, where that was no success.
        status: Option<u16>,
    },
    /// The server refused the version of the request.
    #[error("the MCP server `{server}` speaks only the protocol versions {}", listed(.supported))]
    VersionRefused {
        /// The server.
        server: Arc<str>,
        /// The versions that it speaks, as it says.
        supported: Vec<String>,
    },
    /// A tool wants to know something that nobody here can tell.
    #[error("{what} of the MCP server `{server}` asks for input that this worker cannot give: {asked}")]
    InputRequired {
        /// The server.
        server: Arc<str>,
        /// The tool.
        what: String,
        /// What it asks for, shortened.
        asked: String,
    },
    /// The server does not know the task any more that it made of a call.
    #[error(
        "{what} of the MCP server `{server}` was called, and its task is lost: {why}. The call may have taken effect"
    )]
    TaskLost {
        /// The server.
        server: Arc<str>,
        /// The tool.
        what: String,
        /// What the server says, shortened.
        why: String,
    },
    /// The task of a call was cancelled, by somebody else than us.
    #[error("the call of {what} of the MCP server `{server}` was cancelled there{}", detail(.message))]
    TaskCancelled {
        /// The server.
        server: Arc<str>,
        /// The tool.
        what: String,
        /// What the server says, shortened.
        message: String,
    },
    /// The server no longer knows our session; a new one must be opened.
    #[error("the MCP server `{server}` lost our session{}", outcome(*.may_have_run))]
    SessionLost {
        /// The server.
        server: Arc<str>,
        /// Whether a tool may have run all the same.
        may_have_run: bool,
    },
    /// The server speaks no version of the protocol that we do.
    #[error("the MCP server `{server}` speaks protocol version {version}, which this worker does not know")]
    UnsupportedVersion {
        /// The server.
        server: Arc<str>,
        /// Its version, shortened.
        version: String,
    },
    /// The answer is not what the protocol says.
    #[error("the MCP server `{server}` broke the protocol: {problem}")]
    Protocol {
        /// The server.
        server: Arc<str>,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A message or a list exceeds its bound.
    #[error("{what} of the MCP server `{server}` is over the limit of {limit}")]
    TooLarge {
        /// The server.
        server: Arc<str>,
        /// What is too large.
        what: &'static str,
        /// The bound, in bytes or pieces.
        limit: usize,
    },
    /// No token that the server would take.
    #[error(transparent)]
    Auth(Box<AuthError>),
}

impl From<AuthError> for McpError {
    fn from(error: AuthError) -> Self {
        Self::Auth(Box::new(error))
    }
}

impl McpError {
    /// Whether a tool that was called may have taken effect. Means nothing for requests that call no tool.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Http { may_have_run, .. }
            | Self::Closed { may_have_run, .. }
            | Self::TimedOut { may_have_run, .. }
            | Self::SessionLost { may_have_run, .. } => *may_have_run,
            // The server had the request and answered something that cannot be read.
            Self::Protocol { .. } | Self::TooLarge { .. } | Self::InputRequired { .. } => true,
            Self::TaskLost { .. } | Self::TaskCancelled { .. } => true,
            Self::Rpc { code, .. } => !rejected_before_it_ran(*code),
            Self::Misconfigured { .. }
            | Self::Spawn { .. }
            | Self::Connect { .. }
            | Self::VersionRefused { .. }
            | Self::UnsupportedVersion { .. }
            | Self::Auth(_) => false,
        }
    }

    /// Whether the same request may be sent again: never if a tool may have run.
    pub fn retry(&self) -> Retry {
        if self.may_have_run() { Retry::Never } else { self.retry_if_repeatable() }
    }

    /// The same for a tool that may run twice, because it only reads or is idempotent.
    pub fn retry_if_repeatable(&self) -> Retry {
        match self {
            Self::Connect { .. }
            | Self::Closed { .. }
            | Self::TimedOut { .. }
            | Self::SessionLost { .. }
            | Self::TaskLost { .. } => Retry::After(None),
            Self::Auth(error) => error.retry(),
            Self::Http { status: 408 | 429 | 500..=599, retry_after, .. } => Retry::After(*retry_after),
            Self::Rpc { code: INTERNAL_ERROR, .. } => Retry::After(None),
            Self::Spawn { source, .. } if source.kind() == io::ErrorKind::WouldBlock => Retry::After(None),
            Self::Http { .. }
            | Self::Rpc { .. }
            | Self::Spawn { .. }
            | Self::Misconfigured { .. }
            | Self::UnsupportedVersion { .. }
            | Self::VersionRefused { .. }
            | Self::InputRequired { .. }
            | Self::TaskCancelled { .. }
            | Self::Protocol { .. }
            | Self::TooLarge { .. } => Retry::Never,
        }
    }

    /// The failure of the step; `repeatable` says that the tool may run twice.
    pub fn into_failure(self, repeatable: bool) -> Failure {
        let retry = if repeatable { self.retry_if_repeatable() } else { self.retry() };
        let (category, retry_after) = match retry {
            Retry::After(wait) => (Category::Retriable, wait),
            Retry::Never => (self.lasting_category(), None),
        };
        Failure::new(category, self.code(), self.to_string()).with_retry_after(retry_after)
    }

    /// The category of a failure that is not tried again.
    fn lasting_category(&self) -> Category {
        match self {
            Self::Misconfigured { .. }
            | Self::Spawn { .. }
            | Self::UnsupportedVersion { .. }
            | Self::VersionRefused { .. }
            | Self::Rpc { code: MISSING_CAPABILITY, .. }
            | Self::Http { status: 401 | 403, .. } => Category::Configuration,
            Self::Auth(error) => error.lasting_category(),
            Self::Rpc { code: INVALID_PARAMS, .. } => Category::Validation,
            Self::Rpc { .. }
            | Self::Http { .. }
            | Self::Connect { .. }
            | Self::Closed { .. }
            | Self::TimedOut { .. }
            | Self::SessionLost { .. }
            | Self::InputRequired { .. }
            | Self::TaskLost { .. }
            | Self::TaskCancelled { .. }
            | Self::Protocol { .. }
            | Self::TooLarge { .. } => Category::Permanent,
        }
    }

    /// The stable name of the cause.
    fn code(&self) -> &'static str {
        match self {
            Self::Misconfigured { .. } => "mcp_misconfigured",
            Self::Spawn { .. } => "mcp_spawn_failed",
            Self::Connect { .. } => "mcp_unreachable",
            Self::Http { status: 401 | 403, .. } => "mcp_unauthorized",
            Self::Http { .. } => "mcp_http_error",
            Self::Closed { .. } => "mcp_connection_closed",
            Self::TimedOut { .. } => "mcp_timeout",
            Self::Rpc { code: MISSING_CAPABILITY, .. } => "mcp_missing_capability",
            Self::Rpc { .. } => "mcp_error",
            Self::InputRequired { .. } => "mcp_input_required",
            Self::SessionLost { .. } => "mcp_session_lost",
            Self::TaskLost { .. } => "mcp_task_lost",
            Self::TaskCancelled { .. } => "mcp_task_cancelled",
            Self::UnsupportedVersion { .. } | Self::VersionRefused { .. } => "mcp_unsupported_version",
            Self::Protocol { .. } => "mcp_protocol_error",
            Self::TooLarge { .. } => "mcp_too_large",
            Self::Auth(error) => error.code(),
        }
    }
}

impl From<McpError> for Failure {
    fn from(error: McpError) -> Self {
        error.into_failure(false)
    }
}

/// JSON-RPC reserves these codes for requests that were never carried out: not JSON, no request, no such method,
/// parameters that do not fit; and MCP those for headers, capabilities and versions. Every other code may come from the
/// middle of the work.
fn rejected_before_it_ran(code: i64) -> bool {
    matches!(code, -32700 | -32602..=-32600 | UNSUPPORTED_VERSION..=HEADER_MISMATCH)
}

fn listed(versions: &[String]) -> String {
    if versions.is_empty() { String::from("that it does not name") } else { excerpt(&versions.join(", ")) }
}

fn detail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

fn outcome(may_have_run: bool) -> &'static str {
    if may_have_run { "; the tool may have taken effect" } else { "" }
}

/// A text of a server, fit for one line of an error: no control characters, at most 300 characters.
pub(super) fn excerpt(text: &str) -> String {
    const LIMIT: usize = 300;
    let mut line: String = text.trim().chars().take(LIMIT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().chars().nth(LIMIT).is_some() {
        line.push('…');
    }
    line
}

/// The innermost cause of an error: the outer ones repeat what the sentence around it says already.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    excerpt(&cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Arc<str> {
        Arc::from("search")
    }

    fn http(status: u16, may_have_run: bool) -> McpError {
        McpError::Http { server: server(), status, message: String::new(), retry_after: None, may_have_run }
    }

    #[test]
    fn a_call_that_may_have_run_is_repeated_only_if_the_tool_may_run_twice() {
        let error = McpError::Closed { server: server(), cause: String::new(), may_have_run: true };
        assert_eq!(error.retry(), Retry::Never);
        assert_eq!(error.retry_if_repeatable(), Retry::After(None));
        let unsafe_tool =
            McpError::Closed { server: server(), cause: String::new(), may_have_run: true }.into_failure(false);
        assert_eq!((unsafe_tool.category, &*unsafe_tool.code), (Category::Permanent, "mcp_connection_closed"));
        assert!(unsafe_tool.message.contains("may have taken effect"), "{}", unsafe_tool.message);
        assert_eq!(error.into_failure(true).category, Category::Retriable);
    }

    #[test]
    fn a_request_that_never_left_is_sent_again() {
        let error = McpError::Connect { server: server(), cause: String::from("connection refused") };
        assert_eq!(error.retry(), Retry::After(None));
        assert_eq!(Failure::from(error).category, Category::Retriable);
    }

    #[test]
    fn a_server_that_is_busy_says_how_long_to_wait() {
        let wait = Some(Duration::from_secs(7));
        let error = McpError::Http {
            server: server(),
            status: 429,
            message: String::from("slow down"),
            retry_after: wait,
            may_have_run: false,
        };
        assert_eq!(error.retry(), Retry::After(wait));
        assert_eq!(Failure::from(error).retry_after, wait);
    }

    #[test]
    fn refused_credentials_are_a_matter_of_configuration() {
        let failure = Failure::from(http(401, false));
        assert_eq!((failure.category, &*failure.code), (Category::Configuration, "mcp_unauthorized"));
        assert_eq!(Failure::from(http(404, false)).category, Category::Permanent);
    }

    #[test]
    fn an_error_of_the_protocol_layer_means_that_nothing_ran() {
        let rpc = |code| McpError::Rpc { server: server(), code, message: String::new(), status: None };
        assert!(!rpc(-32602).may_have_run());
        assert!(rpc(-32603).may_have_run());
        assert!(rpc(7).may_have_run());
        assert_eq!(rpc(-32603).retry(), Retry::Never);
        assert_eq!(rpc(-32603).retry_if_repeatable(), Retry::After(None));
        assert_eq!(Failure::from(rpc(-32602)).category, Category::Validation);
    }

    #[test]
    fn a_servers_words_are_one_short_line() {
        assert_eq!(excerpt(" a\nb\u{1b}[31m "), "a b [31m");
        assert_eq!(excerpt(&"é".repeat(400)).chars().count(), 301);
    }
}
