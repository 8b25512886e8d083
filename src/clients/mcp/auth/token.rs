//! An access token and the answer of a token endpoint that it came in. When a new one is got is not decided here.

use std::time::{Duration, Instant};

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

use super::scopes::Scopes;

/// The most by which a token is renewed before it ends.
const MARGIN: Duration = Duration::from_secs(30);
/// The longest life that is believed; after that a new token is asked for in any case.
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a token endpoint gave.
#[derive(Clone)]
pub struct Granted {
    /// The token.
    pub access_token: SecretString,
    /// How long it is good for; until it is refused, if the server does not say.
    pub expires_in: Option<Duration>,
    /// What gets the next one.
    pub refresh_token: Option<SecretString>,
}

impl Granted {
    /// Reads the answer of a token endpoint: RFC 6749 §5.1. The error names what is wrong without repeating it.
    pub fn read(body: &[u8]) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Answer {
            access_token: Option<SecretString>,
            token_type: Option<String>,
            expires_in: Option<Value>,
            refresh_token: Option<SecretString>,
        }
        let answer: Answer = serde_json::from_slice(body).map_err(|_| "it is no token answer in JSON")?;
        let access_token = answer.access_token.ok_or("it has no `access_token`")?;
        if bearer(&access_token).is_none() {
            return Err("its `access_token` cannot be sent in a header");
        }
        if answer.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err("its `token_type` is not Bearer");
        }
        // Some servers write the number as a text.
        let expires_in = match answer.expires_in {
            None | Some(Value::Null) => None,
            Some(Value::Number(seconds)) => seconds.as_f64(),
            Some(Value::String(seconds)) => seconds.trim().parse().ok(),
            Some(_) => return Err("its `expires_in` is no number"),
        };
        let expires_in = expires_in
            .map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LONGEST_LIFE).min(LONGEST_LIFE));
        Ok(Self { access_token, expires_in, refresh_token: answer.refresh_token })
    }
}

/// The header that carries a token.
pub(super) fn bearer(token: &SecretString) -> Option<HeaderValue> {
    let token = token.expose_secret();
    let visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok().filter(|_| visible)?;
    value.set_sensitive(true);
    Some(value)
}

/// A token in use.
pub(super) struct Token {
    /// The header that carries it.
    pub(super) header: HeaderValue,
    /// Who gave it.
    pub(super) issuer: String,
    /// The scopes that it was asked for with.
    pub(super) scopes: Scopes,
    /// What gets the next one.
    pub(super) refresh: Option<SecretString>,
    renew_at: Option<Instant>,
    ends_at: Option<Instant>,
}

impl Token {
    /// A token that was asked for at `asked`; its life counts from then, so that no wait makes it look younger.
    pub(super) fn new(granted: Granted, issuer: &str, scopes: Scopes, asked: Instant) -> Option<Self> {
        let header = bearer(&granted.access_token)?;
        // Who gets tokens in a way of his own may not have read the life as carefully as we do.
        let life = granted.expires_in.map(|life| life.min(LONGEST_LIFE));
        let renew_at = life.map(|life| asked + life - MARGIN.min(life / 10));
        let ends_at = life.map(|life| asked + life);
        Some(Self { header, issuer: issuer.to_owned(), scopes, refresh: granted.refresh_token, renew_at, ends_at })
    }

    /// Whether it need not be renewed yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.renew_at.is_none_or(|at| Instant::now() < at)
    }

    /// Whether it can be sent at all.
    pub(super) fn is_valid(&self) -> bool {
        self.ends_at.is_none_or(|at| Instant::now() < at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Granted, &'static str> {
        Granted::read(body.as_bytes())
    }

    #[test]
    fn a_token_answer_is_read_with_the_liberties_that_servers_take() {
        let granted = read(r#"{"access_token":"a","token_type":"bearer","expires_in":"3600","refresh_token":"r"}"#);
        let granted = granted.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(granted.expires_in, Some(Duration::from_secs(3600)));
        assert_eq!(granted.refresh_token.map(|token| token.expose_secret().to_owned()).as_deref(), Some("r"));
        for (body, life) in [
            (r#"{"access_token":"a"}"#, None),
            (r#"{"access_token":"a","expires_in":null}"#, None),
            (r#"{"access_token":"a","expires_in":-5}"#, Some(Duration::ZERO)),
            (r#"{"access_token":"a","expires_in":1e300}"#, Some(LONGEST_LIFE)),
        ] {
            assert_eq!(read(body).unwrap_or_else(|error| panic!("{body}: {error}")).expires_in, life, "{body}");
        }
    }

    #[test]
    fn an_answer_that_is_no_bearer_token_is_refused_without_being_repeated() {
        for body in [
            "<html>s3cret</html>",
            r#"{"access_token":""}"#,
            r#"{"access_token":"s3cret\r\nx: y"}"#,
            r#"{"access_token":"s3cret ä"}"#,
            r#"{"access_token":"s3cret","token_type":"DPoP"}"#,
            r#"{"access_token":"s3cret","expires_in":{}}"#,
            r#"{"token":"s3cret"}"#,
            r#"["s3cret"]"#,
        ] {
            let Err(error) = read(body) else { panic!("{body} was taken") };
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_token_is_renewed_a_tenth_of_its_life_before_its_end_and_at_most_half_a_minute() {
        let asked = Instant::now();
        let token = |life| {
            let granted = Granted { access_token: "a".into(), expires_in: Some(life), refresh_token: None };
            Token::new(granted, "https://id", Scopes::default(), asked).expect("a token")
        };
        let margin = |token: &Token| token.ends_at.zip(token.renew_at).map(|(end, renew)| end - renew);
        let seconds = Duration::from_secs;
        assert_eq!(margin(&token(seconds(3600))), Some(seconds(30)));
        assert_eq!(margin(&token(seconds(60))), Some(seconds(6)));
        let ended = token(Duration::ZERO);
        assert!(token(seconds(60)).is_fresh() && !ended.is_fresh() && !ended.is_valid());
        // Whoever granted it.
        assert_eq!(token(Duration::MAX).ends_at, Some(asked + LONGEST_LIFE));
    }
}
