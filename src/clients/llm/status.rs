//! An error that the provider sent: classified by status and error type, and by its words only where the provider has
//! no type for what matters.

use std::time::Duration;

use super::error::named;
use crate::domain::breaker::Sign;
use crate::domain::outcome::{Category, OVERLOADED};
use crate::retry::Retry;

/// Error types by which providers say that the conversation is longer than the model's window.
const CONTEXT_KINDS: &[&str] =
    &["context_length_exceeded", "exceed_context_size_error", "model_context_window_exceeded"];

/// The Messages API says the same in words only, under the type of any wrong request: "prompt is too long: 215000
/// tokens > 200000 maximum" and "input length and `max_tokens` exceed context limit: …". A sentence that changes some
/// day makes it a wrong request again, which fails as well, only without a shorter second try.
const CONTEXT_WORDS: &[&str] = &["prompt is too long", "exceed context limit"];

/// Error types by which providers say that the account cannot pay, whatever the status: waiting does not cure it.
const BILLING_KINDS: &[&str] = &["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"];
/// Error types by which providers say that they decline to answer, where that is an error and no answer.
const REFUSAL_KINDS: &[&str] = &["content_filter", "content_policy_violation"];

/// An error that the provider sent.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "the model provider `{provider}` answered {}: {message}{}{}{}",
    self.answer(),
    self.class().advice(),
    self.asked(),
    named(.request_id)
)]
pub struct StatusError {
    /// The provider by its configured name.
    pub provider: String,
    /// The HTTP status.
    pub status: u16,
    /// The provider's type of the error, such as `rate_limit_error`.
    pub kind: Option<String>,
    /// The provider's words, shortened.
    pub message: String,
    /// How long the provider asks us to wait.
    pub retry_after: Option<Duration>,
    /// The provider's own word on trying again (`x-should-retry`).
    pub should_retry: Option<bool>,
    /// The provider's id of the request.
    pub request_id: Option<String>,
    /// Where it was asked.
    pub endpoint: Option<String>,
}

impl StatusError {
    /// What the error means.
    pub fn class(&self) -> ErrorClass {
        let kind = self.kind.as_deref();
        if matches!(self.status, 400 | 413 | 422) && kind.is_some_and(|kind| CONTEXT_KINDS.contains(&kind)) {
            return ErrorClass::ContextOverflow;
        }
        let too_long = || CONTEXT_WORDS.iter().any(|words| self.message.contains(words));
        if self.status == 400 && kind == Some("invalid_request_error") && too_long() {
            return ErrorClass::ContextOverflow;
        }
        if kind.is_some_and(|kind| BILLING_KINDS.contains(&kind)) {
            return ErrorClass::Billing;
        }
        if matches!(self.status, 400 | 403) && kind.is_some_and(|kind| REFUSAL_KINDS.contains(&kind)) {
            return ErrorClass::Refused;
        }
        match self.status {
            400 | 422 => ErrorClass::InvalidRequest,
            401 => ErrorClass::Authentication,
            402 => ErrorClass::Billing,
            403 => ErrorClass::Permission,
            404 => ErrorClass::NotFound,
            408 => ErrorClass::Timeout,
            409 => ErrorClass::Conflict,
            413 => ErrorClass::RequestTooLarge,
            429 => ErrorClass::RateLimited,
            503 | 529 => ErrorClass::Overloaded,
            500..=599 => ErrorClass::ServerError,
            // Some gateways put an error into an answer with status 200: there the type alone speaks.
            _ => kind.map_or(ErrorClass::Unexpected, ErrorClass::of_kind),
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> Retry {
        match (self.should_retry, self.class().passes()) {
            (Some(true), _) | (None, true) => Retry::After(self.retry_after),
            (Some(false), _) | (None, false) => Retry::Never,
        }
    }

    /// Where it was asked, in an error that may come of a wrong address.
    fn asked(&self) -> String {
        let wrong = matches!(self.class(), ErrorClass::NotFound | ErrorClass::Unexpected);
        let endpoint = self.endpoint.as_ref().filter(|_| wrong);
        endpoint.map(|endpoint| format!(" (asked at {endpoint})")).unwrap_or_default()
    }

    fn answer(&self) -> String {
        match &self.kind {
            Some(kind) => format!("{} {kind}", self.status),
            None => self.status.to_string(),
        }
    }
}

/// What an error that the provider sent means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The request breaks a rule of the API.
    InvalidRequest,
    /// The conversation is longer than the model's window.
    ContextOverflow,
    /// The request has more bytes than the API takes.
    RequestTooLarge,
    /// The key is unknown.
    Authentication,
    /// The account cannot pay.
    Billing,
    /// The key may not do this.
    Permission,
    /// The model or the address does not exist.
    NotFound,
    /// The provider gave up waiting.
    Timeout,
    /// The provider saw a conflict that passes.
    Conflict,
    /// Too many requests or tokens.
    RateLimited,
    /// The provider has no capacity.
    Overloaded,
    /// The provider declines to answer.
    Refused,
    /// The provider failed.
    ServerError,
    /// A status that the API does not use, such as a redirect.
    Unexpected,
}

impl ErrorClass {
    fn of_kind(kind: &str) -> Self {
        match kind {
            "invalid_request_error" => Self::InvalidRequest,
            "authentication_error" => Self::Authentication,
            "billing_error" => Self::Billing,
            "permission_error" => Self::Permission,
            "not_found_error" => Self::NotFound,
            "invalid_api_key" => Self::Authentication,
            "model_not_found" => Self::NotFound,
            "request_too_large" => Self::RequestTooLarge,
            "timeout_error" => Self::Timeout,
            "conflict_error" => Self::Conflict,
            "rate_limit_error" | "rate_limit_exceeded" | "RESOURCE_EXHAUSTED" => Self::RateLimited,
            "overloaded_error" | "server_overloaded" | "service_unavailable" | "UNAVAILABLE" => Self::Overloaded,
            "api_error" | "server_error" | "internal_error" => Self::ServerError,
            kind if REFUSAL_KINDS.contains(&kind) => Self::Refused,
            kind if CONTEXT_KINDS.contains(&kind) => Self::ContextOverflow,
            _ => Self::Unexpected,
        }
    }

    /// The stable name.
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::ContextOverflow => "context_overflow",
            Self::RequestTooLarge => "request_too_large",
            Self::Authentication => "authentication",
            Self::Billing => "billing",
            Self::Permission => "permission",
            Self::NotFound => "not_found",
            Self::Timeout => "llm_timeout",
            Self::Conflict => "conflict",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => OVERLOADED,
            Self::Refused => "refusal",
            Self::ServerError => "server_error",
            Self::Unexpected => "unexpected_status",
        }
    }

    /// Whether it passes with time.
    fn passes(self) -> bool {
        match self {
            Self::Timeout | Self::Conflict | Self::RateLimited | Self::Overloaded | Self::ServerError => true,
            Self::InvalidRequest
            | Self::ContextOverflow
            | Self::RequestTooLarge
            | Self::Authentication
            | Self::Billing
            | Self::Permission
            | Self::NotFound
            | Self::Refused
            | Self::Unexpected => false,
        }
    }

    /// What it says of the provider's health.
    pub(super) fn sign(self) -> Sign {
        match self {
            Self::Timeout | Self::Overloaded | Self::ServerError => Sign::Sick,
            Self::Unexpected => Sign::None,
            Self::InvalidRequest
            | Self::ContextOverflow
            | Self::RequestTooLarge
            | Self::Authentication
            | Self::Billing
            | Self::Permission
            | Self::NotFound
            | Self::Conflict
            | Self::RateLimited
            | Self::Refused => Sign::Well,
        }
    }

    /// The category when it is not tried again.
    pub(super) fn lasting_category(self) -> Category {
        match self {
            Self::Authentication | Self::Permission | Self::NotFound | Self::Unexpected => Category::Configuration,
            Self::InvalidRequest
            | Self::ContextOverflow
            | Self::RequestTooLarge
            | Self::Billing
            | Self::Timeout
            | Self::Conflict
            | Self::RateLimited
            | Self::Overloaded
            | Self::Refused
            | Self::ServerError => Category::Permanent,
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Authentication => "; check the API key (LLM_API_KEY, or `api_key` of the provider)",
            Self::Billing => "; check the account's credit and limits",
            Self::Permission => "; the key may not use this model or feature",
            Self::NotFound => "; check the model's name and `base_url`",
            Self::ContextOverflow | Self::RequestTooLarge => "; shorten the prompt, the tool results or the tool list",
            Self::Unexpected => "; check `base_url`",
            Self::InvalidRequest
            | Self::Timeout
            | Self::Conflict
            | Self::RateLimited
            | Self::Overloaded
            | Self::Refused
            | Self::ServerError => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::llm::LlmError;
    use crate::domain::outcome::Failure;

    fn status(status: u16, kind: Option<&str>) -> StatusError {
        StatusError {
            provider: String::from("anthropic"),
            status,
            kind: kind.map(str::to_owned),
            message: String::from("no"),
            retry_after: None,
            should_retry: None,
            request_id: Some(String::from("req_1")),
            endpoint: Some(String::from("http://h/v1/messages")),
        }
    }

    fn failure(error: StatusError) -> Failure {
        LlmError::Status(Box::new(error)).into()
    }

    #[test]
    fn every_status_has_its_code_and_category() {
        use Category::{Configuration, Permanent, Retriable};
        for (number, code, category) in [
            (400, "invalid_request", Permanent),
            (401, "authentication", Configuration),
            (402, "billing", Permanent),
            (403, "permission", Configuration),
            (404, "not_found", Configuration),
            (408, "llm_timeout", Retriable),
            (409, "conflict", Retriable),
            (413, "request_too_large", Permanent),
            (422, "invalid_request", Permanent),
            (429, "rate_limited", Retriable),
            (500, "server_error", Retriable),
            (503, "overloaded", Retriable),
            (504, "server_error", Retriable),
            (529, "overloaded", Retriable),
            (301, "unexpected_status", Configuration),
        ] {
            let failure = failure(status(number, None));
            assert_eq!((failure.code.as_ref(), failure.category), (code, category), "{number}");
            assert!(failure.message.contains("req_1"), "{}", failure.message);
            let address = failure.message.contains("http://h/v1/messages");
            assert_eq!(address, matches!(number, 404 | 301), "{}", failure.message);
        }
    }

    #[test]
    fn the_providers_word_on_retrying_wins_over_the_status() {
        let stop = StatusError { should_retry: Some(false), ..status(529, None) };
        assert_eq!(failure(stop).retry(), Retry::Never);
        let wait = Some(Duration::from_secs(3));
        let again = StatusError { should_retry: Some(true), retry_after: wait, ..status(400, None) };
        assert_eq!(failure(again).retry(), Retry::After(wait));
    }

    #[test]
    fn a_full_context_is_told_by_the_error_type_and_by_words_where_it_has_none() {
        assert_eq!(status(400, Some("exceed_context_size_error")).class(), ErrorClass::ContextOverflow);
        let says = |message: &str, kind| StatusError { message: message.to_owned(), ..status(400, kind) }.class();
        let wrong = Some("invalid_request_error");
        for message in [
            "prompt is too long: 215000 tokens > 200000 maximum",
            "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        ] {
            assert_eq!(says(message, wrong), ErrorClass::ContextOverflow);
            assert_eq!(says(message, None), ErrorClass::InvalidRequest, "other providers have types for it");
        }
        assert_eq!(says("messages: at least one is required", wrong), ErrorClass::InvalidRequest);
    }

    #[test]
    fn an_empty_account_is_told_from_a_rate_limit_and_a_refusal_from_a_mistake() {
        let empty = failure(status(429, Some("insufficient_quota")));
        assert_eq!((empty.code.as_ref(), empty.retry()), ("billing", Retry::Never));
        let declined = failure(status(400, Some("content_filter")));
        assert_eq!((declined.code.as_ref(), declined.category), ("refusal", Category::Permanent));
    }

    #[test]
    fn an_error_inside_an_answer_with_status_200_is_told_by_its_type() {
        assert_eq!(status(200, Some("overloaded_error")).class(), ErrorClass::Overloaded);
        assert_eq!(status(200, Some("authentication_error")).class(), ErrorClass::Authentication);
        assert_eq!(status(200, Some("made_up")).class(), ErrorClass::Unexpected);
    }
}
