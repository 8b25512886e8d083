//! A server over Streamable HTTP: one request is one POST and one future, answered by JSON or by server-sent events.
//! No task runs for a request; dropping it drops the connection's stream.

use std::future::{Future, ready};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceT};
use jsonrpsee::types::{Id, Request};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

use super::MAX_MESSAGE;
use super::auth::{Authorize, Challenge};
use super::error::{McpError, excerpt, root_cause};
use super::inbox::Inbox;
use super::service::{Flight, NoBatches};
use super::sse::SseDecoder;
use super::wire::{self, Fault, Incoming};
use crate::config::McpServerConfig;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: &str = "text/event-stream";

/// Bytes of all events that answer one request.
const MAX_STREAM: usize = 4 * MAX_MESSAGE;
/// Bytes of an error's body that are read.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Redirects that are followed, all on the same origin.
const MAX_REDIRECTS: usize = 3;
/// Times in a row that a broken stream is taken up again and brings nothing new.
const MAX_RESUMES: u32 = 5;
/// How long we wait before we take up a stream: where the server says nothing, at least, and at most.
const RESUME_PAUSE: Duration = Duration::from_secs(1);
const RESUME_PAUSE_MIN: Duration = Duration::from_millis(20);
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a message that has no answer may take: a pong, a refusal, the end of the session.
const SIDE_LIMIT: Duration = Duration::from_secs(5);
/// The longest wait that we let a server ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// The transport.
#[derive(Clone)]
pub(super) struct HttpService {
    inner: Arc<Inner>,
}

struct Inner {
    inbox: Arc<Inbox>,
    http: reqwest::Client,
    url: Url,
    authorize: Option<Arc<dyn Authorize>>,
    /// From the answer to `initialize` alone: some servers put one on the refusal of a stranger, too.
    session: OnceLock<HeaderValue>,
    version: OnceLock<HeaderValue>,
    /// A request of this session was accepted, so a refusal afterwards may mean that the session is gone.
    proven: AtomicBool,
    /// The server said that it does not know the session any more.
    lost: AtomicBool,
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
    /// For the endpoint of a server. Nothing is sent yet.
    pub(super) fn new(
        url: &str,
        config: &McpServerConfig,
        authorize: Option<Arc<dyn Authorize>>,
        inbox: Arc<Inbox>,
    ) -> Result<Self, McpError> {
        let wrong = |problem: String| McpError::Misconfigured { server: Arc::clone(inbox.server()), problem };
        let url = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| wrong(String::from("`url` is no http or https URL")))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let header =
                HeaderName::try_from(name).map_err(|_| wrong(format!("`headers`: `{name}` is no header name")))?;
            let mut value = HeaderValue::try_from(value.expose_secret())
                .map_err(|_| wrong(format!("`headers.{name}` has characters that no header may have")))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        // The binary has done this first thing; where the library is used alone, building a client would panic.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(config.connect_timeout)
            .redirect(redirect::Policy::custom(same_origin));
        if is_loopback(&url) {
            // A proxy of the environment is not meant for the machine's own servers.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| wrong(root_cause(&error)))?;
        let (session, version) = (OnceLock::new(), OnceLock::new());
        let (proven, lost) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { inner: Arc::new(Inner { inbox, http, url, authorize, session, version, proven, lost }) })
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
            let closed = inner.inbox.closed().clone();
            closed.run_until_cancelled(inner.listen()).await;
        });
    }

    /// Tells the server that the session ends; it need not understand.
    pub(super) async fn close(&self) {
        let inner = &self.inner;
        if inner.inbox.closed().is_cancelled() {
            return;
        }
        inner.inbox.closed().cancel();
        if inner.session.get().is_some() {
            let flight = Flight::plain("the end of the session", SIDE_LIMIT);
            let _ = timeout(SIDE_LIMIT, inner.send(inner.request(Method::DELETE), &flight)).await;
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
            let flight = Flight::plain(&n.method, SIDE_LIMIT);
            let response = inner.send(inner.post(&n), &flight).await?;
            if response.status().is_success() { Ok(()) } else { Err(inner.refused(response, &flight, false).await) }
        }
    }
}

impl Inner {
    /// One request to its answer.
    async fn exchange(&self, request: Request<'_>) -> Result<Box<RawValue>, McpError> {
        let flight = Flight::of(&request);
        let Id::Number(id) = request.id else { return Err(self.protocol("a request without a number")) };
        if self.lost.load(Ordering::Acquire) {
            return Err(McpError::SessionLost { server: Arc::clone(self.inbox.server()), may_have_run: false });
        }
        if self.inbox.closed().is_cancelled() {
            return Err(self.closed("the session has ended", false));
        }
        let response = self.send(self.post(&request), &flight).await?;
        if !response.status().is_success() {
            return Err(self.refused(response, &flight, false).await);
        }
        if request.method == wire::INITIALIZE {
            if let Some(session) = response.headers().get(SESSION_ID) {
                let _ = self.session.set(session.clone());
            }
        } else {
            self.proven.store(true, Ordering::Release);
        }
        match media_type(&response) {
            "application/json" => {
                let body = self.body(response, &flight).await?;
                let text = std::str::from_utf8(&body).map_err(|_| self.protocol("its answer is not UTF-8"))?;
                let messages = wire::parse(text).ok_or_else(|| self.protocol("its answer is no JSON-RPC message"))?;
                for message in messages {
                    if let Some(answer) = self.take(message, Awaited::Answer(id)).await {
                        return answer;
                    }
                }
                Err(self.protocol("its answer belongs to another request"))
            }
            EVENT_STREAM => self.follow(response, id, &flight).await,
            other => Err(self.protocol(&format!("it answered with the content type `{}`", excerpt(other)))),
        }
    }

    /// Reads an event stream to the answer, over as many connections as the server makes of it.
    async fn follow(&self, first: Response, id: u64, flight: &Flight) -> Result<Box<RawValue>, McpError> {
        let mut decoder = SseDecoder::new(MAX_MESSAGE);
        let mut total = 0;
        let mut fruitless = 0;
        let mut response = Some(first);
        loop {
            if let Some(stream) = response.take() {
                let before = (total, decoder.last_id().map(str::to_owned));
                if let Some(answer) = self.drain(stream, &mut decoder, &mut total, Awaited::Answer(id)).await? {
                    return answer;
                }
                let news = before.1.as_deref() != decoder.last_id();
                fruitless = if news { 0 } else { fruitless + 1 };
            }
            let Some(last) = decoder.last_id().and_then(|last| HeaderValue::from_str(last).ok()) else {
                return Err(self.closed("its event stream ended before the answer", flight.may_have_run()));
            };
            if fruitless > MAX_RESUMES {
                return Err(self.closed("its event stream broke off again and again", flight.may_have_run()));
            }
            sleep(decoder.retry().unwrap_or(RESUME_PAUSE).clamp(RESUME_PAUSE_MIN, RESUME_PAUSE_MAX)).await;
            decoder.restart();
            match self.open_stream(Some(last)).await {
                Ok(stream) if stream.status().is_success() && media_type(&stream) == EVENT_STREAM => {
                    response = Some(stream);
                }
                Ok(refusal) => return Err(self.refused(refusal, flight, true).await),
                Err(_) => fruitless += 1,
            }
        }
    }

    /// Reads one connection's events. None if it ends without what is awaited.
    async fn drain(
        &self,
        mut response: Response,
        decoder: &mut SseDecoder,
        total: &mut usize,
        awaited: Awaited,
    ) -> Result<Option<Result<Box<RawValue>, McpError>>, McpError> {
        // However it ends, by its length or by a fault, what counts is whether the answer came.
        while let Ok(Some(bytes)) = response.chunk().await {
            *total += bytes.len();
            if awaited != Awaited::News && *total > MAX_STREAM {
                return Err(self.too_large("the event stream of an answer", MAX_STREAM));
            }
            let mut events = Vec::new();
            decoder
                .feed(&bytes, |event| events.push(event.data))
                .map_err(|_| self.too_large("an answer", MAX_MESSAGE))?;
            for data in events {
                let Some(messages) = wire::parse(&data) else {
                    self.inbox.noise("event that is no message");
                    continue;
                };
                for message in messages {
                    if let Some(answer) = self.take(message, awaited).await {
                        return Ok(Some(answer));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Handles one message; the answer that is awaited is handed back.
    async fn take(&self, message: Incoming, awaited: Awaited) -> Option<Result<Box<RawValue>, McpError>> {
        match (message, awaited) {
            (Incoming::Answer { id: Some(id), outcome }, Awaited::Answer(ours)) if id == ours => {
                Some(outcome.map_err(|fault| self.rpc(fault)))
            }
            // Servers that could not read a request do not know its id; the stream tells whose error it is.
            (Incoming::Answer { id: None, outcome: Err(fault) }, Awaited::Answer(_)) => Some(Err(self.rpc(fault))),
            (Incoming::Answer { .. }, _) => {
                self.inbox.noise("answer to nothing that is pending");
                None
            }
            (Incoming::Notification { method }, _) => {
                self.inbox.notification(&method);
                None
            }
            (Incoming::Request { id, method }, _) => {
                let answer = self.inbox.answer(&id, &method);
                // Answered before the next event is read, so that a flood of requests waits for us.
                let flight = Flight::plain("the answer to the server", SIDE_LIMIT);
                let sent = timeout(SIDE_LIMIT, self.send(self.post_text(answer), &flight)).await;
                if !matches!(sent, Ok(Ok(_))) {
                    self.inbox.noise("answer to the server that could not be sent");
                }
                None
            }
        }
    }

    /// The server's own stream, taken up again when it breaks.
    async fn listen(&self) {
        let mut decoder = SseDecoder::new(MAX_MESSAGE);
        let mut opened = false;
        let mut fruitless = 0;
        while fruitless <= MAX_RESUMES {
            let last = decoder.last_id().and_then(|last| HeaderValue::from_str(last).ok());
            match self.open_stream(last).await {
                Ok(stream) if stream.status().is_success() && media_type(&stream) == EVENT_STREAM => {
                    opened = true;
                    let mut total = 0;
                    if self.drain(stream, &mut decoder, &mut total, Awaited::News).await.is_err() {
                        break;
                    }
                    fruitless = if total > 0 { 0 } else { fruitless + 1 };
                }
                // A stream that was there and is not any more: so is the session.
                Ok(refusal) if opened && refusal.status() == StatusCode::NOT_FOUND => {
                    return self.lose();
                }
                Ok(_) if !opened => break,
                Ok(_) | Err(_) => fruitless += 1,
            }
            let asked = decoder.retry().unwrap_or(RESUME_PAUSE).clamp(RESUME_PAUSE_MIN, RESUME_PAUSE_MAX);
            let pause = asked.saturating_mul(1 << fruitless.min(5)).min(RESUME_PAUSE_MAX);
            sleep(pause.mul_f64(0.75 + fastrand::f64() * 0.5)).await;
            decoder.restart();
        }
        tracing::debug!(mcp.server = %self.inbox.server(), "server offers no stream of its own, or no longer");
    }

    /// Sends a request, authorised; once more if it is refused for want of that and the authoriser can do better.
    async fn send(&self, request: RequestBuilder, flight: &Flight) -> Result<Response, McpError> {
        let Some(authorize) = &self.authorize else {
            flight.leave();
            return request.send().await.map_err(|error| self.broken_off(&error, flight));
        };
        let again = request.try_clone();
        let (sent, response) = self.send_with(authorize.header().await?, request, flight).await?;
        if !matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok(response);
        }
        let challenge = Challenge {
            status: response.status().as_u16(),
            www_authenticate: response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .collect(),
            sent: sent.as_ref(),
        };
        match again {
            Some(again) if authorize.challenged(challenge).await? => {
                Ok(self.send_with(authorize.header().await?, again, flight).await?.1)
            }
            Some(_) | None => Ok(response),
        }
    }

    async fn send_with(
        &self,
        authorization: Option<HeaderValue>,
        mut request: RequestBuilder,
        flight: &Flight,
    ) -> Result<(Option<HeaderValue>, Response), McpError> {
        if let Some(value) = &authorization {
            let mut value = value.clone();
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        flight.leave();
        let response = request.send().await.map_err(|error| self.broken_off(&error, flight))?;
        Ok((authorization, response))
    }

    async fn open_stream(&self, last_event: Option<HeaderValue>) -> Result<Response, McpError> {
        let mut get = self.request(Method::GET).header(ACCEPT, EVENT_STREAM);
        if let Some(last_event) = last_event {
            get = get.header(LAST_EVENT_ID, last_event);
        }
        self.send(get, &Flight::plain("the stream of events", Duration::MAX)).await
    }

    fn post(&self, message: &impl Serialize) -> RequestBuilder {
        self.post_text(serde_json::to_string(message).expect("messages serialise"))
    }

    fn post_text(&self, body: String) -> RequestBuilder {
        self.request(Method::POST)
            .header(ACCEPT, "application/json, text/event-stream")
            .header(CONTENT_TYPE, "application/json")
            .body(body)
    }

    fn request(&self, method: Method) -> RequestBuilder {
        let mut request = self.http.request(method, self.url.clone());
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
        while let Some(bytes) = response.chunk().await.map_err(|error| self.broken_off(&error, flight))? {
            if body.len() + bytes.len() > MAX_MESSAGE {
                return Err(self.too_large("an answer", MAX_MESSAGE));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// The error behind a status that is no success; `accepted` says that the request itself was taken before.
    async fn refused(&self, response: Response, flight: &Flight, accepted: bool) -> McpError {
        let status = response.status();
        let server = Arc::clone(self.inbox.server());
        let retry_after = retry_after(response.headers());
        let fault = read_fault(response).await;
        if self.says_session_lost(status, fault.as_ref()) {
            self.lose();
            return McpError::SessionLost { server, may_have_run: accepted && flight.may_have_run() };
        }
        // 503 is said by who did not begin; behind every other 5xx the work may go on.
        let begun = status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE;
        let may_have_run = flight.may_have_run() && (accepted || begun);
        match fault {
            Some(fault) if matches!(status.as_u16(), 400 | 404 | 422) && !accepted => self.rpc(fault),
            fault => {
                let message = match fault {
                    Some(fault) => excerpt(&fault.message),
                    None if status.is_redirection() => String::from("it redirects to another place; set `url` to that"),
                    None => status.canonical_reason().unwrap_or_default().to_owned(),
                };
                McpError::Http { server, status: status.as_u16(), message, retry_after, may_have_run }
            }
        }
    }

    /// 404 by the specification. Servers of the TypeScript SDK say 400 with an error of their own, which is believed
    /// only of a session that has worked: otherwise opening a new one would change nothing.
    fn says_session_lost(&self, status: StatusCode, fault: Option<&Fault>) -> bool {
        if self.session.get().is_none() {
            return false;
        }
        match status {
            StatusCode::NOT_FOUND => true,
            StatusCode::BAD_REQUEST if self.proven.load(Ordering::Acquire) => {
                fault.is_none_or(|fault| matches!(fault.code, -32000 | -32600))
            }
            _ => false,
        }
    }

    /// Nothing can be asked in this session any more.
    fn lose(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            tracing::debug!(mcp.server = %self.inbox.server(), "session lost");
        }
        self.inbox.closed().cancel();
    }

    fn broken_off(&self, error: &reqwest::Error, flight: &Flight) -> McpError {
        let cause = root_cause(error);
        if error.is_connect() {
            return McpError::Connect { server: Arc::clone(self.inbox.server()), cause };
        }
        self.closed(&cause, flight.may_have_run())
    }

    fn closed(&self, cause: &str, may_have_run: bool) -> McpError {
        McpError::Closed { server: Arc::clone(self.inbox.server()), cause: cause.to_owned(), may_have_run }
    }

    fn rpc(&self, fault: Fault) -> McpError {
        McpError::Rpc { server: Arc::clone(self.inbox.server()), code: fault.code, message: excerpt(&fault.message) }
    }

    fn protocol(&self, problem: &str) -> McpError {
        McpError::Protocol { server: Arc::clone(self.inbox.server()), problem: problem.to_owned() }
    }

    fn too_large(&self, what: &'static str, limit: usize) -> McpError {
        McpError::TooLarge { server: Arc::clone(self.inbox.server()), what, limit }
    }
}

/// Follows a redirect that keeps method and body and stays on the origin, as from `/mcp` to `/mcp/`. Any other could
/// carry the credentials somewhere else, or turn a POST into a GET: the redirect itself is then the answer.
fn same_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let keeps_body = matches!(attempt.status().as_u16(), 307 | 308);
    let previous = attempt.previous();
    let stays = previous.last().is_some_and(|from| from.origin() == attempt.url().origin());
    if keeps_body && stays && previous.len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.stop() }
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

/// The media type without its parameters.
fn media_type(response: &Response) -> &str {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The JSON-RPC error in a refusal, if there is one.
async fn read_fault(mut response: Response) -> Option<Fault> {
    let mut body = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        body.extend_from_slice(&bytes);
        if body.len() > MAX_ERROR_BODY {
            return None;
        }
    }
    match wire::parse(std::str::from_utf8(&body).ok()?)?.pop()? {
        Incoming::Answer { outcome: Err(fault), .. } => Some(fault),
        Incoming::Answer { .. } | Incoming::Request { .. } | Incoming::Notification { .. } => None,
    }
}

/// `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
            Duration::try_from(at.duration_since(jiff::Timestamp::now())).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}
