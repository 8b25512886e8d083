//! Errors of servers that speak as OpenAI does: in the body of a refusal, inside of a success, or in the middle of a
//! stream, each server in a shape of its own.

use serde::Deserialize;
use serde_json::Value;

use super::super::headers::ErrorText;

/// What an error says.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Type, words and request id.
    pub text: ErrorText,
    /// The status that the error itself names; gateways send it inside of a success.
    pub status: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Members {
    error: Option<Value>,
    message: Option<Value>,
    r#type: Option<Value>,
    code: Option<Value>,
    detail: Option<Value>,
    choices: Option<serde::de::IgnoredAny>,
    output: Option<serde::de::IgnoredAny>,
}

/// Reads the body of an answer that is an error; one that is no JSON says nothing.
pub(super) fn read(body: &[u8]) -> Told {
    match serde_json::from_slice(body) {
        // One vendor wraps its errors in a list.
        Ok(Value::Array(list)) => list.first().map(of_body).unwrap_or_default(),
        Ok(body) => of_body(&body),
        Err(_) => Told::default(),
    }
}

/// The error inside of an answer with a status of success, if it is one.
pub(super) fn inside(body: &[u8]) -> Option<Told> {
    let members: Members = serde_json::from_slice(body).ok()?;
    let error = members.error.filter(|error| !error.is_null())?;
    (members.choices.is_none() && members.output.is_none()).then(|| of_error(&error))
}

fn of_body(body: &Value) -> Told {
    let Ok(members) = Members::deserialize(body) else { return Told::default() };
    match members.error {
        Some(error) if !error.is_null() => of_error(&error),
        _ => {
            let message = members.message.or(members.detail);
            of_members(message.as_ref(), members.r#type.as_ref(), members.code.as_ref())
        }
    }
}

/// Reads the value of a member `error`: an object, or words alone.
pub(super) fn of_error(error: &Value) -> Told {
    match error {
        Value::Object(members) => {
            let told = of_members(members.get("message"), members.get("type"), members.get("code"));
            // Another name of the type.
            let kind = told.text.kind.or_else(|| members.get("status").and_then(Value::as_str).map(str::to_owned));
            Told { text: ErrorText { kind, ..told.text }, status: told.status }
        }
        words => of_members(Some(words), None, None),
    }
}

fn of_members(message: Option<&Value>, kind: Option<&Value>, code: Option<&Value>) -> Told {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let number = code.and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
    // A code is more exact than a type, but some servers put the status there.
    let kind = if number.is_some() { text(kind) } else { text(code).or_else(|| text(kind)) };
    let message = match message {
        Some(Value::String(words)) => Some(words.clone()),
        Some(Value::Null) | None => None,
        Some(other) => Some(other.to_string()),
    };
    Told {
        text: ErrorText { kind, message, request_id: None },
        status: number.and_then(|number| u16::try_from(number).ok()).filter(|status| (400..600).contains(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(body: &str) -> (Option<String>, Option<String>, Option<u16>) {
        let told = read(body.as_bytes());
        (told.text.kind, told.text.message, told.status)
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn errors_are_read_in_every_servers_shape() {
        for (body, kind, message, status) in [
            (
                r#"{"error":{"message":"m","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
                some("insufficient_quota"),
                some("m"),
                None,
            ),
            (
                r#"{"error":{"message":"m","type":"requests","code":"rate_limit_exceeded"}}"#,
                some("rate_limit_exceeded"),
                some("m"),
                None,
            ),
            (
                r#"{"error":{"code":400,"message":"m","type":"exceed_context_size_error","n_ctx":512}}"#,
                some("exceed_context_size_error"),
                some("m"),
                Some(400),
            ),
            (r#"{"error":{"code":502,"message":"m","metadata":{}}}"#, None, some("m"), Some(502)),
            (
                r#"[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]"#,
                some("RESOURCE_EXHAUSTED"),
                some("m"),
                Some(429),
            ),
            (
                r#"{"object":"error","message":"m","type":"BadRequestError","code":400}"#,
                some("BadRequestError"),
                some("m"),
                Some(400),
            ),
            (r#"{"error":"model 'x' not found"}"#, None, some("model 'x' not found"), None),
            (r#"{"detail":[{"loc":["body"]}]}"#, None, some(r#"[{"loc":["body"]}]"#), None),
            ("<html>", None, None, None),
        ] {
            assert_eq!(told(body), (kind, message, status), "{body}");
        }
    }

    #[test]
    fn an_error_is_told_from_an_answer() {
        assert!(inside(br#"{"error":{"message":"m","code":502}}"#).is_some());
        assert!(inside(br#"{"error":null,"choices":[]}"#).is_none());
        assert!(inside(br#"{"id":"resp_1","error":{"code":"server_error"},"output":[]}"#).is_none());
        assert!(inside(b"<html>").is_none());
    }
}
