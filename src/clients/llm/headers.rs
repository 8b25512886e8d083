//! What every provider says in its headers about an answer, and the error that is made of them.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

use super::status::StatusError;

/// No wait that a provider asks for is taken as longer.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// Characters of a provider's error message that are kept.
const MAX_MESSAGE_CHARS: usize = 500;

/// Characters of the shortest key that is cut out of the middle of a word too.
const SHORTEST_KEY: usize = 8;

/// What a provider's error body says.
#[derive(Debug, Default)]
pub(super) struct ErrorText {
    /// The provider's type of the error.
    pub kind: Option<String>,
    /// Its words.
    pub message: Option<String>,
    /// The id of the request, where it stands in the body.
    pub request_id: Option<String>,
}

/// The error that an answer is. A gateway may repeat the key in its message, so the key is cut out.
pub(super) fn status_error(
    provider: &str,
    status: u16,
    headers: &HeaderMap,
    text: ErrorText,
    key: Option<&str>,
) -> StatusError {
    let mut message = text.message.unwrap_or_else(|| String::from("(no message)"));
    if let Some(key) = key.filter(|key| !key.is_empty()) {
        message = without(&message, key);
    }
    StatusError {
        provider: provider.to_owned(),
        status,
        kind: text.kind.filter(|kind| !kind.is_empty()),
        message: shortened(&message),
        retry_after: retry_after(headers, SystemTime::now()),
        should_retry: header(headers, "x-should-retry").and_then(|value| value.parse().ok()),
        request_id: request_id(headers).or(text.request_id),
        endpoint: None,
    }
}

/// A message without the key. Servers that want none are given any, which may be a part of many a word.
fn without(message: &str, key: &str) -> String {
    let in_word = |c: Option<char>| key.len() < SHORTEST_KEY && c.is_some_and(char::is_alphanumeric);
    let mut rest = message;
    let mut clean = String::new();
    while let Some((before, after)) = rest.split_once(key) {
        let last = before.chars().next_back().or_else(|| clean.chars().next_back());
        clean.push_str(before);
        clean.push_str(if in_word(last) || in_word(after.chars().next()) { key } else { "[key]" });
        rest = after;
    }
    clean + rest
}

/// The provider's id of the request.
pub(super) fn request_id(headers: &HeaderMap) -> Option<String> {
    ["request-id", "x-request-id"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok())
        .find(|id| !id.is_empty())
        .map(str::to_owned)
}

/// How long the provider asks us to wait: `retry-after-ms`, else `retry-after` as seconds or as an HTTP date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let number = |text: &str, unit: f64| {
        text.parse::<f64>().ok().and_then(|amount| Duration::try_from_secs_f64(amount * unit).ok())
    };
    let millis = header(headers, "retry-after-ms").and_then(|text| number(text, 0.001));
    let wait = millis
        .or_else(|| header(headers, "retry-after").and_then(|text| number(text, 1.0).or_else(|| until(text, now))));
    wait.filter(|wait| !wait.is_zero()).map(|wait| wait.min(MAX_RETRY_AFTER))
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

fn until(date: &str, now: SystemTime) -> Option<Duration> {
    // An HTTP date is an RFC 2822 date whose zone is written GMT.
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    SystemTime::from(date).duration_since(now).ok()
}

fn shortened(message: &str) -> String {
    let mut chars = message.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = chars.by_ref().take(MAX_MESSAGE_CHARS).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_wait_is_milliseconds_or_seconds_or_a_date_and_has_a_cap() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_450); // Wed, 21 Oct 2015 07:27:30 GMT
        let wait = |pairs: &[(&'static str, &'static str)]| retry_after(&headers(pairs), now);
        assert_eq!(wait(&[("retry-after", "1.5")]), Some(Duration::from_millis(1500)));
        assert_eq!(wait(&[("retry-after-ms", "250"), ("retry-after", "9")]), Some(Duration::from_millis(250)));
        assert_eq!(wait(&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), Some(Duration::from_secs(30)));
        assert_eq!(wait(&[("retry-after", "9000")]), Some(Duration::from_secs(120)));
        for nothing in ["0", "-1", "soon", "NaN", "inf", "Wed, 21 Oct 2015 07:27:00 GMT", ""] {
            assert_eq!(wait(&[("retry-after", nothing)]), None, "{nothing:?}");
        }
        assert_eq!(wait(&[]), None);
    }

    #[test]
    fn an_error_keeps_what_helps_and_hides_the_key() {
        let text = |message: &str| ErrorText {
            kind: Some(String::from("rate_limit_error")),
            message: Some(message.to_owned()),
            request_id: Some(String::from("req_body")),
        };
        let with_headers = headers(&[("x-should-retry", "true"), ("retry-after", "2")]);
        let error = status_error("p", 429, &with_headers, text("key sk-1\nslow down"), Some("sk-1"));
        assert_eq!(error.message, "key [key] slow down");
        assert_eq!(error.kind.as_deref(), Some("rate_limit_error"));
        assert_eq!((error.should_retry, error.retry_after), (Some(true), Some(Duration::from_secs(2))));
        assert_eq!(error.request_id.as_deref(), Some("req_body"));
        let short = status_error("p", 401, &headers(&[]), text("k: invalid x-api-key `k`"), Some("k"));
        assert_eq!(short.message, "[key]: invalid x-api-key `[key]`");
        let long = status_error("p", 401, &headers(&[]), text("key%20sk-123456"), Some("sk-123456"));
        assert_eq!(long.message, "key%20[key]");
        let page = status_error("p", 502, &headers(&[("request-id", "req_h")]), ErrorText::default(), None);
        assert_eq!((page.kind, page.request_id.as_deref()), (None, Some("req_h")));
        let long = status_error("p", 400, &headers(&[]), text(&"x".repeat(5_000)), None);
        assert_eq!(long.message.chars().count(), 501);
    }
}
