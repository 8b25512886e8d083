//! Who authorises requests to a server over HTTP: asked before each, and once more after a refusal.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use da_node_executor::clients::mcp::auth::{Authorize, Challenge};
use da_node_executor::clients::mcp::{Endpoint, McpError};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use serde_json::json;
use wiremock::matchers::{header, method};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::harness::*;

/// Has a stale token first, and a good one after the first challenge, if it is to get one.
struct Keys {
    good: bool,
    challenged: AtomicUsize,
}

impl Authorize for Keys {
    fn header(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, McpError>> {
        let token =
            if self.good && self.challenged.load(Ordering::SeqCst) > 0 { "Bearer good" } else { "Bearer stale" };
        async move { Ok(Some(HeaderValue::from_static(token))) }.boxed()
    }

    fn challenged<'a>(&'a self, challenge: Challenge<'a>) -> BoxFuture<'a, Result<bool, McpError>> {
        assert_eq!(challenge.status, 401);
        assert_eq!(challenge.www_authenticate, ["Bearer scope=\"tools\""]);
        assert_eq!(challenge.sent.map(HeaderValue::as_bytes), Some(b"Bearer stale".as_slice()));
        self.challenged.fetch_add(1, Ordering::SeqCst);
        async move { Ok(self.good) }.boxed()
    }
}

async fn guarded() -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(header("authorization", "Bearer good"))
        .respond_with(|request: &Request| {
            let body: serde_json::Value = serde_json::from_slice(&request.body).expect("requests are JSON");
            let opened = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "m", "version": "1"}});
            let answer = json!({"jsonrpc": "2.0", "id": body["id"], "result": opened});
            ResponseTemplate::new(200).set_body_json(answer)
        })
        .mount(&server)
        .await;
    let refusal = ResponseTemplate::new(401).insert_header("www-authenticate", "Bearer scope=\"tools\"");
    Mock::given(wiremock::matchers::any()).respond_with(refusal).with_priority(9).mount(&server).await;
    server
}

#[tokio::test]
async fn a_refused_request_is_sent_once_more_when_there_is_a_better_token() {
    let server = guarded().await;
    let keys = Arc::new(Keys { good: true, challenged: AtomicUsize::new(0) });
    let endpoint = Endpoint::new("under-test", at(server.uri())).authorized(Arc::clone(&keys) as Arc<dyn Authorize>);
    let session = endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(keys.challenged.load(Ordering::SeqCst), 1, "later requests bring the good token at once");
    session.close().await;
}

/// Always has another token that is no better.
struct Eager;

impl Authorize for Eager {
    fn header(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, McpError>> {
        async { Ok(Some(HeaderValue::from_static("Bearer stale"))) }.boxed()
    }

    fn challenged<'a>(&'a self, _: Challenge<'a>) -> BoxFuture<'a, Result<bool, McpError>> {
        async { Ok(true) }.boxed()
    }
}

#[tokio::test]
async fn a_request_is_sent_a_few_times_at_the_most_however_sure_its_authoriser_is() {
    let server = guarded().await;
    let endpoint = Endpoint::new("under-test", at(server.uri())).authorized(Arc::new(Eager));
    let Err(error) = endpoint.connect().await else { panic!("a session was opened") };
    assert!(matches!(error, McpError::Http { status: 401, .. }), "{error:?}");
    assert_eq!(server.received_requests().await.expect("they are kept").len(), 4);
}

#[tokio::test]
async fn a_refusal_stands_when_there_is_no_better_token() {
    let server = guarded().await;
    let keys = Arc::new(Keys { good: false, challenged: AtomicUsize::new(0) });
    let endpoint = Endpoint::new("under-test", at(server.uri())).authorized(Arc::clone(&keys) as Arc<dyn Authorize>);
    let Err(error) = endpoint.connect().await else { panic!("a session was opened") };
    assert!(matches!(error, McpError::Http { status: 401, .. }), "{error:?}");
    assert_eq!(keys.challenged.load(Ordering::SeqCst), 1);
}
