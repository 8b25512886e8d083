//! Why a call of a model failed, and what that means for the step that called it. Never matched by text; what a
//! provider's own error means is in `status`.

use std::error::Error as StdError;
use std::time::Duration;

use super::status::{ErrorClass, StatusError};
use crate::domain::breaker::Sign;
use crate::domain::outcome::{Category, Failure};
use crate::retry::Retry;

/// Why a call of a model failed.
#[derive(Debug, thiserror::Error)]
pub enum LlmError {
    /// A setting of the provider cannot work.
    #[error("`llm.providers.{provider}` is wrong: {problem}")]
    Config {
        /// The provider by its configured name.
        provider: String,
        /// What is wrong, with the key's name.
        problem: String,
    },
    /// The provider has no key.
    #[error(
        "the model provider `{provider}` has no API key; set {}LLM_API_KEY or LLM_API_KEY_FILE for the provider that \
         LLM_PROVIDER names, or `llm.providers.{provider}.api_key` in the file",
        .variable.map(|variable| format!("{variable}, or ")).unwrap_or_default()
    )]
    NotConfigured {
        /// The provider by its configured name.
        provider: String,
        /// The vendor's own variable for its key.
        variable: Option<&'static str>,
    },
    /// No connection came about, so nothing was sent.
    #[error(
        "cannot connect to {host} of the model provider `{provider}`: {}; check `base_url`, and that the server runs",
        root(.source)
    )]
    Connect {
        /// The provider by its configured name.
        provider: String,
        /// Where it should be.
        host: String,
        /// The cause.
        source: reqwest::Error,
    },
    /// The answer was not complete in time.
    #[error(
        "the model provider `{provider}` did not answer within {}{}",
        humantime::format_duration(*.limit),
        named(.request_id)
    )]
    TimedOut {
        /// The provider by its configured name.
        provider: String,
        /// The time it had: its `timeout`, or what was left of the node's.
        limit: Duration,
        /// The provider's id of the request, if the answer had begun.
        request_id: Option<String>,
    },
    /// The answer began and then went quiet.
    #[error(
        "the answer of the model provider `{provider}` went quiet for {}{}",
        humantime::format_duration(*.limit),
        named(.request_id)
    )]
    Stalled {
        /// The provider by its configured name.
        provider: String,
        /// Its `stall_timeout`.
        limit: Duration,
        /// The provider's id of the request.
        request_id: Option<String>,
    },
    /// The connection broke after the request was sent.
    #[error("the connection to the model provider `{provider}` broke: {}{}", root(.source), named(.request_id))]
    Interrupted {
        /// The provider by its configured name.
        provider: String,
        /// The provider's id of the request, if the answer had begun.
        request_id: Option<String>,
        /// The cause.
        source: reqwest::Error,
    },
    /// The stream of the answer ended before the answer did.
    #[error("the answer of the model provider `{provider}` was cut off before its end{}", named(.request_id))]
    Truncated {
        /// The provider by its configured name.
        provider: String,
        /// The provider's id of the request.
        request_id: Option<String>,
    },
    /// The stream of the answer makes no sense.
    #[error("the model provider `{provider}` sent a broken stream: {problem}{}", named(.request_id))]
    BrokenStream {
        /// The provider by its configured name.
        provider: String,
        /// What is wrong with it.
        problem: String,
        /// The provider's id of the request.
        request_id: Option<String>,
    },
    /// The provider answered with an error.
    #[error(transparent)]
    Status(Box<StatusError>),
    /// The answer is larger than any completion can be.
    #[error("the model provider `{provider}` sent more than {limit} bytes{}", named(.request_id))]
    TooLarge {
        /// The provider by its configured name.
        provider: String,
        /// The bytes that are read at the most.
        limit: usize,
        /// The provider's id of the request.
        request_id: Option<String>,
    },
    /// The provider said that all is well but sent no message.
    #[error(
        "the model provider `{provider}` sent no valid message: {problem}; check `kind` and `base_url`{}",
        named(.request_id)
    )]
    Malformed {
        /// The provider by its configured name.
        provider: String,
        /// What is wrong with it.
        problem: String,
        /// The provider's id of the request.
        request_id: Option<String>,
    },
}

impl LlmError {
    /// Whether the same call may succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Config { .. } | Self::NotConfigured { .. } | Self::TooLarge { .. } | Self::Malformed { .. } => {
                Retry::Never
            }
            Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Stalled { .. }
            | Self::Interrupted { .. }
            | Self::Truncated { .. }
            | Self::BrokenStream { .. } => Retry::After(None),
            Self::Status(error) => error.retry(),
        }
    }

    /// What it says of the provider's health; `patience` is how long the provider itself may take for an answer.
    pub fn sign(&self, patience: Duration) -> Sign {
        match self {
            Self::Config { .. } | Self::NotConfigured { .. } | Self::TooLarge { .. } | Self::Malformed { .. } => {
                Sign::None
            }
            // A node that has no time left says nothing of the provider.
            Self::TimedOut { limit, .. } if *limit < patience => Sign::None,
            Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Stalled { .. }
            | Self::Interrupted { .. }
            | Self::Truncated { .. }
            | Self::BrokenStream { .. } => Sign::Sick,
            Self::Status(error) => error.class().sign(),
        }
    }

    /// Whether tokens may have been used although there is no answer.
    pub fn may_have_cost(&self) -> bool {
        match self {
            Self::Config { .. } | Self::NotConfigured { .. } | Self::Connect { .. } | Self::Status(_) => false,
            Self::TimedOut { .. }
            | Self::Stalled { .. }
            | Self::Interrupted { .. }
            | Self::Truncated { .. }
            | Self::BrokenStream { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. } => true,
        }
    }

    /// How long the provider wants nobody to ask: it has no room, and said until when.
    pub fn closed_for(&self) -> Option<Duration> {
        match self {
            Self::Status(error) if matches!(error.class(), ErrorClass::RateLimited | ErrorClass::Overloaded) => {
                error.retry_after
            }
            _ => None,
        }
    }

    /// The stable name of the cause.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config { .. } => "invalid_provider_config",
            Self::NotConfigured { .. } => "llm_not_configured",
            Self::Connect { .. } => "connect_failed",
            Self::TimedOut { .. } => "llm_timeout",
            Self::Stalled { .. } => "llm_stalled",
            Self::Interrupted { .. } => "connection_lost",
            Self::Truncated { .. } => "stream_truncated",
            Self::BrokenStream { .. } => "malformed_stream",
            Self::Status(error) => error.class().code(),
            Self::TooLarge { .. } => "response_too_large",
            Self::Malformed { .. } => "malformed_response",
        }
    }

    /// The provider's id of the request, for support.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Config { .. } | Self::NotConfigured { .. } | Self::Connect { .. } => None,
            Self::TimedOut { request_id, .. }
            | Self::Stalled { request_id, .. }
            | Self::Truncated { request_id, .. }
            | Self::BrokenStream { request_id, .. }
            | Self::Interrupted { request_id, .. }
            | Self::TooLarge { request_id, .. }
            | Self::Malformed { request_id, .. } => request_id.as_deref(),
            Self::Status(error) => error.request_id.as_deref(),
        }
    }
}

impl From<LlmError> for Failure {
    fn from(error: LlmError) -> Self {
        let lasting = match &error {
            LlmError::Config { .. } | LlmError::NotConfigured { .. } => Category::Configuration,
            LlmError::Status(error) => error.class().lasting_category(),
            LlmError::Connect { .. }
            | LlmError::TimedOut { .. }
            | LlmError::Stalled { .. }
            | LlmError::Interrupted { .. }
            | LlmError::Truncated { .. }
            | LlmError::BrokenStream { .. }
            | LlmError::TooLarge { .. }
            | LlmError::Malformed { .. } => Category::Permanent,
        };
        let (category, wait) = match error.retry() {
            Retry::After(wait) => (Category::Retriable, wait),
            Retry::Never => (lasting, None),
        };
        Failure::new(category, error.code(), error.to_string()).with_retry_after(wait)
    }
}

/// The innermost cause: the outer layers only say that a request failed.
pub(super) fn root(error: &reqwest::Error) -> String {
    let mut cause: &dyn StdError = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The request's id as the end of a sentence.
pub(super) fn named(request_id: &Option<String>) -> String {
    request_id.as_ref().map(|id| format!(" (request {id})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProviderConfig;

    #[test]
    fn a_missing_key_is_a_configuration_failure_that_names_the_variable() {
        let variable = ProviderConfig::default().key_variable();
        let failure = Failure::from(LlmError::NotConfigured { provider: String::from("anthropic"), variable });
        assert_eq!((failure.category, failure.code.as_ref()), (Category::Configuration, "llm_not_configured"));
        assert!(failure.message.contains("LLM_API_KEY_FILE") && failure.message.contains(" ANTHROPIC_API_KEY, or"));
    }
}
