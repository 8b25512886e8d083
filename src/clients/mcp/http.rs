//! A server over Streamable HTTP: one request is one POST and one future, answered by JSON or by server-sent events.
//! No task runs for a request; dropping it drops the connection's stream.

mod link;
mod old;
mod refusal;
mod stream;
mod tails;

use std::future::{Future, ready};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceT};
use jsonrpsee::types::{Id, Request};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::value::RawValue;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::MAX_MESSAGE;
use super::endpoint::Endpoint;
use super::era::Dialect;
use super::error::{McpError, excerpt};
use super::inbox::Inbox;
use super::mirror;
use super::pending::Pending;
use super::service::{Flight, FlightPlan, NoBatches};
use super::wire;

pub(super) use link::is_loopback;
use link::{HttpLink, media_type};
pub(super) use old::OldSseService;
pub(super) use refusal::retry_after;
use tails::Tails;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");
/// The media type of server-sent events.
const EVENT_STREAM: &str = "text/event-stream";

/// How long a message that has no answer may take: a pong, a refusal, the end of the session.
const SIDE_LIMIT: Duration = Duration::from_secs(5);

/// How long an answer may still come on the server's own stream after that of its request broke.
const OTHER_STREAM: Duration = Duration::from_secs(1);

/// The transport.
#[derive(Clone)]
pub(super) struct HttpService {
    inner: Arc<Inner>,
}

struct Inner {
    link: HttpLink,
    /// From the answer to `initialize` alone: some servers put one on the refusal of a stranger, too.
    session: OnceLock<HeaderValue>,
    version: OnceLock<HeaderValue>,
    /// A request of this session was accepted, so a refusal afterwards may mean that the session is gone.
    proven: AtomicBool,
    /// The server said that it does not know the session any more.
    lost: AtomicBool,
    /// The requests of this session, whose answers count on whichever stream they come.
    pending: Arc<Pending>,
    /// Whether the server's own stream is open was found out, or is not waited for any more.
    settled: CancellationToken,
    /// Streams of answers whose end is still to come.
    tails: Arc<Tails>,
}

/// What one event stream has to bring.
#[derive(Clone, Copy, PartialEq)]
enum Awaited {
    /// The answer to the request with this id.
    Answer(u64),
    /// Nothing: what comes, comes.
    News,
}

impl HttpService {
    /// For the URL of a server. Nothing is sent yet.
    pub(super) fn new(url: &str, endpoint: &Endpoint, inbox: Arc<Inbox>) -> Result<Self, McpError> {
        let pending = Pending::new(Arc::clone(&inbox));
        let link = HttpLink::new(url, endpoint, inbox)?;
        let (session, version) = (OnceLock::new(), OnceLock::new());
        let (proven, lost) = (AtomicBool::new(false), AtomicBool::new(false));
        let settled = CancellationToken::new();
        let tails = Arc::default();
        Ok(Self { inner: Arc::new(Inner { link, session, version, proven, lost, pending, settled, tails }) })
    }

    /// The version of the session, sent along from now on.
    pub(super) fn negotiated(&self, version: &str) {
        if let Ok(version) = HeaderValue::from_str(version) {
            let _ = self.inner.version.set(version);
        }
    }

    /// Listens for what the server tells on its own, until the session ends or the server offers no such stream.
    pub(super) fn listen(&self) {
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            let closed = inner.inbox().closed().clone();
            closed.run_until_cancelled(inner.listen()).await;
        });
    }

    /// Tells the server that the session ends; it need not understand.
    pub(super) async fn close(&self) {
        let inner = &self.inner;
        if inner.inbox().closed().is_cancelled() {
            return;
        }
        inner.inbox().closed().cancel();
        if inner.session.get().is_some() {
            let flight = FlightPlan::plain("the end of the session", SIDE_LIMIT).start();
            let _ = timeout(SIDE_LIMIT, inner.link.send(inner.request(Method::DELETE), &flight)).await;
        }
    }
}

impl RpcServiceT for HttpService {
    type MethodResponse = Result<Box<RawValue>, McpError>;
    type NotificationResponse = Result<(), McpError>;
    type BatchResponse = NoBatches;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        let inner = Arc::clone(&self.inner);
        async move { inner.exchange(request).await }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        ready(NoBatches)
    }

    fn notification<'a>(&self, n: Notification<'a>) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        let inner = Arc::clone(&self.inner);
        async move {
            let flight = FlightPlan::plain(&n.method, SIDE_LIMIT).start();
            let body = serde_json::to_string(&n).expect("messages serialise");
            let response = inner.link.send(inner.post(body), &flight).await?;
            if response.status().is_success() { Ok(()) } else { Err(inner.refused(response, &flight, false).await) }
        }
    }
}

impl Inner {
    fn inbox(&self) -> &Arc<Inbox> {
        self.link.inbox()
    }

    /// One request to its answer.
    async fn exchange(self: &Arc<Self>, request: Request<'_>) -> Result<Box<RawValue>, McpError> {
        let flight = Flight::of(&request);
        let Id::Number(id) = request.id else { return Err(self.link.protocol("a request without a number")) };
        if self.lost.load(Ordering::Acquire) {
            return Err(McpError::SessionLost { server: Arc::clone(self.inbox().server()), may_have_run: false });
        }
        if self.inbox().closed().is_cancelled() {
            return Err(self.link.closed("the session has ended", false));
        }
        self.tails.settle().await;
        let body = serde_json::to_string(&request).expect("messages serialise");
        if let Dialect::Modern(version) = flight.plan().dialect {
            let post = modern(self.link.request(Method::POST), version, &request.method, flight.plan()).body(body);
            return self.carry(post, &request.method, id, &flight).await;
        }
        if flight.plan().effect {
            self.settle().await;
        }
        let mut elsewhere = pin!(self.pending.expect(id, &flight)?.answer());
        // Whichever comes first is the answer. The other is dropped: the stream of the POST is closed with it, and what
        // comes on the server's own stream afterwards belongs to nothing.
        let own = tokio::select! {
            biased;
            answer = &mut elsewhere => return answer,
            own = self.carry(self.post(body), &request.method, id, &flight) => own,
        };
        match own {
            // Two connections keep no order: the answer may be on its way by the other one.
            Err(McpError::Closed { .. }) if self.inbox().hears() => {
                timeout(OTHER_STREAM, elsewhere).await.unwrap_or(own)
            }
            own => own,
        }
    }

    /// Posts a request and reads what the POST is answered with.
    async fn carry(
        self: &Arc<Self>,
        post: RequestBuilder,
        method: &str,
        id: u64,
        flight: &Flight,
    ) -> Result<Box<RawValue>, McpError> {
        let response = self.link.send(post, flight).await?;
        if !response.status().is_success() {
            return Err(Box::pin(self.refused(response, flight, false)).await);
        }
        if method == wire::INITIALIZE {
            if let Some(session) = response.headers().get(SESSION_ID) {
                let _ = self.session.set(session.clone());
            }
        } else {
            self.proven.store(true, Ordering::Release);
        }
        match media_type(&response) {
            "application/json" => {
                let body = self.body(response, flight).await?;
                let text = std::str::from_utf8(&body).map_err(|_| self.link.protocol("its answer is not UTF-8"))?;
                let messages =
                    wire::parse(text).ok_or_else(|| self.link.protocol("its answer is no JSON-RPC message"))?;
                for message in messages {
                    if let Some(answer) = self.take(message, Awaited::Answer(id)).await {
                        return answer;
                    }
                }
                Err(self.link.protocol("its answer belongs to another request"))
            }
            // What is rarely needed is not a part of every call's memory.
            EVENT_STREAM => Box::pin(self.follow(response, id, flight)).await,
            other => Err(self.link.protocol(&format!("it answered with the content type `{}`", excerpt(other)))),
        }
    }

    /// A message within what the handshake agreed on.
    fn post(&self, body: String) -> RequestBuilder {
        json(self.request(Method::POST)).body(body)
    }

    fn request(&self, method: Method) -> RequestBuilder {
        let mut request = self.link.request(method);
        if let Some(version) = self.version.get() {
            request = request.header(PROTOCOL_VERSION, version);
        }
        if let Some(session) = self.session.get() {
            request = request.header(SESSION_ID, session);
        }
        request
    }

    /// The body of an answer.
    async fn body(&self, mut response: Response, flight: &Flight) -> Result<Vec<u8>, McpError> {
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(|error| self.link.broken_off(&error, flight))? {
            if body.len() + bytes.len() > MAX_MESSAGE {
                return Err(self.link.too_large("an answer", MAX_MESSAGE));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }
}

/// A message that takes either kind of answer.
fn json(request: RequestBuilder) -> RequestBuilder {
    request.header(ACCEPT, "application/json, text/event-stream").header(CONTENT_TYPE, "application/json")
}

/// A request that says everything by itself.
fn modern(request: RequestBuilder, version: &str, method: &str, plan: &FlightPlan) -> RequestBuilder {
    let mut request = json(request).header(PROTOCOL_VERSION, version).header(METHOD, method);
    if let Some(name) = &plan.name {
        request = request.header(NAME, mirror::encoded(name));
    }
    for (name, value) in &plan.mirrored {
        request = request.header(name, value);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::http::tests::given_up;
    use crate::config::McpServerConfig;

    /// The size of a future that is never made.
    fn size_of<Argument, Made>(_: impl FnOnce(Argument) -> Made) -> usize {
        std::mem::size_of::<Made>()
    }

    fn service(url: &str) -> HttpService {
        let endpoint = Endpoint::new("s", McpServerConfig { url: Some(url.to_owned()), ..McpServerConfig::default() });
        HttpService::new(url, &endpoint, Inbox::new(Arc::from("s"), None)).expect("nothing is sent yet")
    }

    #[tokio::test]
    async fn a_call_whose_connection_ends_before_it_is_sent_has_not_run() {
        let error = given_up(async |address| {
            let service = service(&format!("http://{address}/mcp"));
            let flight = FlightPlan::tool("t", SIDE_LIMIT, SIDE_LIMIT).start();
            let error = service.inner.link.send(service.inner.post(String::new()), &flight).await;
            (error.expect_err("nobody answers"), flight)
        });
        let (error, flight) = error.await;
        assert!(flight.may_have_run(), "another end would leave it in doubt");
        assert!(matches!(error, McpError::Connect { .. }) && !error.may_have_run(), "{error}");
    }

    #[test]
    fn a_thousand_requests_under_way_take_little_memory() {
        let service = service("http://127.0.0.1:1/mcp");
        let (inner, flight) = (&service.inner, FlightPlan::tool("t", SIDE_LIMIT, SIDE_LIMIT).start());
        let request = size_of(|request| inner.exchange(request));
        let stream = size_of(|response| inner.follow(response, 1, &flight));
        assert!(
            request < 2048 && stream < 2560,
            "{request} bytes for a request, {stream} more for the stream of its answer"
        );
    }
}
