//! `http_request`: asks a host that the configuration allows. What may be asked and how is `clients::http`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::clients::http::{FetchClient, FetchRequest, Fetched, InvalidHost, Method};
use crate::config::HttpRequestConfig;
use crate::domain::outcome::Failure;
use crate::domain::tool::{Arguments, ToolHints};
use crate::ports::CallContext;
use crate::tools::registry::Registry;

pub(super) const NAME: &str = "http_request";

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct HttpRequest {
    /// The method; GET if absent.
    #[serde(default)]
    method: Method,
    /// The http or https URL.
    url: String,
    /// Headers by name.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// The body as text; not together with `json`.
    body: Option<String>,
    /// The body as JSON, sent with content-type application/json; not together with `body`.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Value")]
    json: Option<Value>,
}

/// Tells `"json": null`, which is a body, from no `json` at all.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

pub(super) fn register(registry: &mut Registry, config: &HttpRequestConfig) -> Result<(), InvalidHost> {
    let client = Arc::new(FetchClient::new(config)?);
    let description = format!(
        "Sends an HTTP request and returns status, headers and body (parsed as `json` where the response is JSON). \
         A status of 400 and above is an answer, not an error. Allowed hosts: {}.",
        config.allow.join(", ")
    );
    registry.register(NAME, &description, ToolHints::default(), move |args: HttpRequest, context| {
        let client = Arc::clone(&client);
        async move {
            let limit = context.deadline.saturating_duration_since(Instant::now());
            let fetched = client.fetch(request(args, &context)?, limit).await?;
            Ok(answer(fetched))
        }
    });
    registry.judge_effects(NAME, effects);
    Ok(())
}

/// What the method promises (RFC 9110, section 9.2).
fn effects(arguments: &Arguments) -> ToolHints {
    match arguments.get("method").map(Method::deserialize) {
        None => ToolHints::READ_ONLY,
        Some(Ok(method)) => ToolHints { read_only: method.is_safe(), idempotent: method.is_idempotent() },
        Some(Err(_)) => ToolHints::default(),
    }
}

fn request(args: HttpRequest, context: &CallContext) -> Result<FetchRequest, Failure> {
    let given = |name: &str| args.headers.keys().any(|key| key.eq_ignore_ascii_case(name));
    let mut added = Vec::new();
    if args.json.is_some() && !given("content-type") {
        added.push((String::from("content-type"), String::from("application/json")));
    }
    if !args.method.is_safe() && !given("idempotency-key") {
        added.push((String::from("idempotency-key"), context.idempotency_key.clone()));
    }
    if let Some(traceparent) = context.traceparent.as_ref().filter(|_| !given("traceparent")) {
        added.push((String::from("traceparent"), traceparent.clone()));
    }
    let body = match (args.body, args.json) {
        (Some(_), Some(_)) => {
            return Err(Failure::validation(
                "invalid_arguments",
                "the arguments of `http_request` do not fit: `body` and `json` exclude each other",
            ));
        }
        (Some(text), None) => Some(Bytes::from(text)),
        (None, Some(json)) => Some(Bytes::from(json.to_string())),
        (None, None) => None,
    };
    let headers = args.headers.into_iter().chain(added).collect();
    Ok(FetchRequest { method: args.method, url: args.url, headers, body })
}

fn answer(fetched: Fetched) -> Value {
    let mut headers = Map::new();
    let mut is_json = false;
    for (name, value) in fetched.headers {
        if name == "content-type" {
            is_json = json_type(&value);
        }
        match headers.get_mut(&name) {
            None => {
                headers.insert(name, Value::String(value));
            }
            Some(Value::Array(values)) => values.push(Value::String(value)),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    let mut answer = Map::new();
    answer.insert(String::from("status"), json!(fetched.status));
    answer.insert(String::from("headers"), Value::Object(headers));
    let parsed = if is_json && !fetched.truncated { serde_json::from_slice(&fetched.body).ok() } else { None };
    let (name, body) = match parsed {
        Some(value) => ("json", value),
        None => match text(fetched.body, fetched.truncated) {
            Ok(text) => ("body", Value::String(text)),
            Err(bytes) => ("body_base64", Value::String(BASE64_STANDARD.encode(bytes))),
        },
    };
    answer.insert(String::from(name), body);
    answer.insert(String::from("truncated"), Value::Bool(fetched.truncated));
    Value::Object(answer)
}

/// Whether a media type is JSON: `application/json`, or anything with the suffix `+json`.
fn json_type(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media == "application/json" || media.ends_with("+json")
}

/// The body as text, if it is UTF-8; a cut may have gone through the last character, which is then left out.
fn text(body: Vec<u8>, truncated: bool) -> Result<String, Vec<u8>> {
    String::from_utf8(body).or_else(|error| {
        let valid = error.utf8_error().valid_up_to();
        let cut = truncated && error.utf8_error().error_len().is_none();
        let mut bytes = error.into_bytes();
        if !cut {
            return Err(bytes);
        }
        bytes.truncate(valid);
        String::from_utf8(bytes).map_err(|error| error.into_bytes())
    })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use wiremock::matchers::{body_json, body_string, header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;
    use crate::config::Config;
    use crate::domain::outcome::Category;
    use crate::tools::builtin::testing::context;

    fn registry(server: &MockServer) -> Registry {
        // Another test may have been first; either way there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = Config::default().tools;
        config.http_request.allow = vec![server.address().to_string()];
        config.http_request.max_bytes = NonZeroUsize::new(64).expect("not zero");
        Registry::builtin(&config).expect("valid")
    }

    async fn call(server: &MockServer, arguments: Value) -> Result<Value, Failure> {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        registry(server).call(NAME, &arguments, &context()).await.map(|output| output.into_value())
    }

    #[tokio::test]
    async fn the_method_says_whether_a_request_may_be_repeated() {
        let registry = registry(&MockServer::start().await);
        for (method, read_only, idempotent) in [
            (json!({}), true, true),
            (json!({"method": "head"}), true, true),
            (json!({"method": "PUT"}), false, true),
            (json!({"method": "delete"}), false, true),
            (json!({"method": "POST"}), false, false),
            (json!({"method": "patch"}), false, false),
            (json!({"method": 7}), false, false),
        ] {
            let Value::Object(arguments) = &method else { panic!("an object") };
            assert_eq!(registry.effects(NAME, arguments), ToolHints { read_only, idempotent }, "{method}");
        }
        assert_eq!(registry.effects("calculate", &Map::new()), ToolHints::READ_ONLY, "by the hints alone");
        assert_eq!(registry.effects("nothing", &Map::new()), ToolHints::default());
    }

    #[tokio::test]
    async fn json_is_sent_and_read_with_an_idempotency_key_that_is_the_callers() {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .and(path("/orders"))
            .and(body_json(json!({"n": 1})))
            .and(header("content-type", "application/json"))
            .and(header("idempotency-key", "key-1"))
            .and(header("x-tenant", "t"))
            .respond_with(
                ResponseTemplate::new(201)
                    .set_body_raw(r#"{"id":12345678901234567890}"#, "application/problem+json; charset=utf-8")
                    .append_header("set-cookie", "a=1")
                    .append_header("set-cookie", "b=2"),
            )
            .expect(1)
            .mount(&server)
            .await;
        let arguments = json!({
            "method": "POST", "url": format!("{}/orders", server.uri()), "json": {"n": 1}, "headers": {"X-Tenant": "t"}
        });
        let answer = call(&server, arguments).await.expect("answered");
        assert_eq!(answer["status"], 201);
        assert_eq!(answer["json"]["id"], json!(12345678901234567890_u64));
        assert_eq!(answer["headers"]["set-cookie"], json!(["a=1", "b=2"]));
        assert_eq!((answer.get("body"), &answer["truncated"]), (None, &json!(false)));
    }

    #[tokio::test]
    async fn an_error_status_is_an_answer() {
        let server = MockServer::start().await;
        Mock::given(method("GET"))
            .respond_with(ResponseTemplate::new(503).set_body_string("down"))
            .mount(&server)
            .await;
        let answer = call(&server, json!({"url": server.uri()})).await.expect("an answer");
        assert_eq!((&answer["status"], &answer["body"]), (&json!(503), &json!("down")));
        let got = server.received_requests().await.expect("recorded");
        assert!(!got[0].headers.contains_key("idempotency-key"), "a GET needs none");
        assert!(got[0].headers.contains_key("traceparent"));
    }

    #[tokio::test]
    async fn a_long_body_is_cut_and_says_so_and_a_binary_one_is_base64() {
        let server = MockServer::start().await;
        let long = "ä".repeat(40);
        Mock::given(path("/long"))
            .respond_with(ResponseTemplate::new(200).set_body_string(format!("-{long}")))
            .mount(&server)
            .await;
        Mock::given(path("/fits"))
            .respond_with(ResponseTemplate::new(200).set_body_string("x".repeat(64)))
            .mount(&server)
            .await;
        Mock::given(path("/raw"))
            .respond_with(ResponseTemplate::new(200).set_body_bytes([0xff, 0x00]))
            .mount(&server)
            .await;
        Mock::given(path("/json"))
            .respond_with(ResponseTemplate::new(200).set_body_raw("{broken", "application/json"))
            .mount(&server)
            .await;
        let at = |path: &str| json!({"url": format!("{}{path}", server.uri())});
        let answer = call(&server, at("/long")).await.expect("answered");
        assert_eq!((&answer["truncated"], &answer["body"]), (&json!(true), &json!(format!("-{}", "ä".repeat(31)))));
        let answer = call(&server, at("/fits")).await.expect("answered");
        assert_eq!((&answer["truncated"], &answer["body"]), (&json!(false), &json!("x".repeat(64))));
        assert_eq!(call(&server, at("/raw")).await.expect("answered")["body_base64"], "/wA=");
        assert_eq!(call(&server, at("/json")).await.expect("answered")["body"], "{broken");
    }

    #[tokio::test]
    async fn a_text_body_is_sent_as_it_is() {
        let server = MockServer::start().await;
        Mock::given(method("PUT"))
            .and(body_string("plain"))
            .and(header("idempotency-key", "mine"))
            .respond_with(ResponseTemplate::new(204))
            .expect(1)
            .mount(&server)
            .await;
        let arguments =
            json!({"method": "put", "url": server.uri(), "body": "plain", "headers": {"Idempotency-Key": "mine"}});
        assert_eq!(call(&server, arguments).await.expect("answered")["status"], 204);
    }

    #[tokio::test]
    async fn bad_input_is_refused_before_anything_is_sent() {
        let server = MockServer::start().await;
        let refused = async |arguments: Value| {
            let failure = call(&server, arguments).await.expect_err("refused");
            (failure.category, failure.code.into_owned())
        };
        let url = server.uri();
        let validation = |code: &str| (Category::Validation, code.to_owned());
        assert_eq!(refused(json!({})).await, validation("invalid_arguments"));
        assert_eq!(refused(json!({"url": 1})).await, validation("invalid_arguments"));
        assert_eq!(refused(json!({"url": url, "method": "TRACE"})).await, validation("invalid_arguments"));
        assert_eq!(refused(json!({"url": url, "body": "a", "json": null})).await, validation("invalid_arguments"));
        assert_eq!(refused(json!({"url": "no url"})).await, validation("invalid_url"));
        assert_eq!(refused(json!({"url": "file:///etc/passwd"})).await, validation("invalid_url"));
        assert_eq!(refused(json!({"url": url.replace("//", "//u:p@")})).await, validation("invalid_url"));
        assert_eq!(refused(json!({"url": url, "headers": {"a b": "c"}})).await, validation("invalid_header"));
        assert_eq!(refused(json!({"url": url, "headers": {"a": "b\r\nc: d"}})).await, validation("invalid_header"));
        assert_eq!(refused(json!({"url": url, "headers": {"HOST": "other"}})).await, validation("invalid_header"));
        assert_eq!(
            refused(json!({"url": "http://example.org/"})).await,
            (Category::Configuration, String::from("host_not_allowed"))
        );
        assert!(server.received_requests().await.expect("recorded").is_empty());
    }
}
