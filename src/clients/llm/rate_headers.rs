//! What providers say of their limits in the headers of an answer: `anthropic-ratelimit-…` and `x-ratelimit-…`.

use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use reqwest::header::HeaderMap;

use super::headers::{MAX_RETRY_AFTER, header};
use crate::domain::rate::RateWord;

/// The counts, by the middle of their names. Only the first two are of what is counted here too.
const ANTHROPIC: [&str; 4] = ["requests", "tokens", "input-tokens", "output-tokens"];
const OPENAI: [&str; 2] = ["requests", "tokens"];

/// What the headers of an answer that came at `at` say; nothing, if they say nothing.
pub(super) fn read(headers: &HeaderMap, at: Instant, now: SystemTime) -> Option<RateWord> {
    let number = |name: String| header(headers, &name).and_then(|text| text.parse::<u64>().ok());
    let anthropic = ANTHROPIC.iter().map(|count| {
        let left = number(format!("anthropic-ratelimit-{count}-remaining"));
        let reset = header(headers, &format!("anthropic-ratelimit-{count}-reset"));
        (*count, left, reset.and_then(|text| until(text, now)))
    });
    let openai = OPENAI.iter().map(|count| {
        let left = number(format!("x-ratelimit-remaining-{count}"));
        (*count, left, header(headers, &format!("x-ratelimit-reset-{count}")).and_then(span))
    });
    let mut word = RateWord { at, requests: None, tokens: None, empty_for: None };
    let mut said = false;
    for (count, left, reset) in anthropic.chain(openai) {
        let Some(left) = left else { continue };
        said = true;
        match count {
            "requests" => word.requests = Some(left),
            "tokens" => word.tokens = Some(left),
            _ => {}
        }
        if left == 0 {
            word.empty_for = word.empty_for.max(reset.map(|reset| reset.min(MAX_RETRY_AFTER)));
        }
    }
    said.then_some(word)
}

/// The time until a moment in RFC 3339.
fn until(text: &str, now: SystemTime) -> Option<Duration> {
    let moment: Timestamp = text.parse().ok()?;
    SystemTime::from(moment).duration_since(now).ok()
}

/// A span such as `1s`, `6m0s`, `2m59.56s` or `120ms`; a bare number means seconds.
fn span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        seconds += number
            * match &rest[digits..unit_end] {
                "ms" => 0.001,
                "s" | "" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn word(pairs: &[(&'static str, &'static str)]) -> Option<RateWord> {
        let headers =
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_760_000_000); // 2025-10-09T08:53:20Z
        read(&headers.collect(), Instant::now(), now)
    }

    #[test]
    fn both_families_are_read() {
        let told = word(&[
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "49"),
            ("anthropic-ratelimit-requests-reset", "2025-10-09T08:53:21Z"),
            ("anthropic-ratelimit-tokens-remaining", "38000"),
            ("anthropic-ratelimit-tokens-reset", "2025-10-09T08:53:22Z"),
            ("anthropic-ratelimit-input-tokens-remaining", "30000"),
            ("anthropic-ratelimit-output-tokens-remaining", "0"),
            ("anthropic-ratelimit-output-tokens-reset", "2025-10-09T08:53:50Z"),
        ])
        .expect("it says something");
        assert_eq!(
            (told.requests, told.tokens, told.empty_for),
            (Some(49), Some(38_000), Some(Duration::from_secs(30)))
        );
        let told = word(&[
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "2m59.56s"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "6ms"),
        ])
        .expect("it says something");
        assert_eq!((told.requests, told.tokens, told.empty_for), (Some(0), Some(149_984), Some(MAX_RETRY_AFTER)));
        let told = word(&[("x-ratelimit-remaining-requests", "7")]).expect("it says something");
        assert_eq!((told.requests, told.tokens, told.empty_for), (Some(7), None, None));
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        assert_eq!(word(&[]), None);
        assert_eq!(word(&[("x-ratelimit-remaining-requests", "many"), ("x-ratelimit-reset-requests", "1s")]), None);
        for reset in ["soon", "", "-1s", "1y", "1.1.1s", "2025-10-09T08:53:00Z"] {
            let told = word(&[("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", reset)]);
            assert_eq!(told.expect("nothing is left").empty_for, None, "{reset:?}");
            let told =
                word(&[("anthropic-ratelimit-tokens-remaining", "0"), ("anthropic-ratelimit-tokens-reset", reset)]);
            assert_eq!(told.expect("nothing is left").empty_for, None, "{reset:?}");
        }
    }

    #[test]
    fn spans_are_written_in_many_ways() {
        for (text, millis) in
            [("1s", 1000), ("6m0s", 360_000), ("120ms", 120), ("8.64s", 8640), ("1h2m", 3_720_000), ("3", 3000)]
        {
            assert_eq!(span(text), Some(Duration::from_millis(millis)), "{text}");
        }
    }
}
