//! One POST to a provider and its answer, every wait and every buffer bounded. What stands in the bodies is each
//! protocol's; nothing is sent twice here.

use std::pin::Pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::Stream;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Response, Url, redirect};

use super::error::{LlmError, root};
use super::sse::{Event, EventReader, SseError, StreamLimits};
use super::{headers, rate_headers};
use crate::clients::http::unsent;
use crate::clients::tls;
use crate::config::ProviderConfig;
use crate::ports::LlmRequest;

/// Bytes of one answer that are read; the longest completion is far below.
const MAX_BODY: usize = 32 * 1024 * 1024;
/// Bytes of an error answer that are read; a longer one is an error page.
const MAX_ERROR_BODY: usize = 256 * 1024;
/// Bytes of one event of a stream: the last event of some protocols repeats the whole answer.
const MAX_EVENT: usize = MAX_BODY;
/// Bytes of a whole stream. Events wrap each few letters of the answer, so it is many times as long as its text.
const MAX_STREAM: usize = 128 * 1024 * 1024;
/// Idle connections are closed before the usual proxies drop them unseen.
const POOL_IDLE: Duration = Duration::from_secs(55);
/// How often an open connection is tested: one that vanished would otherwise be waited for as long as a model thinks.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The way to one provider.
pub(super) struct Transport {
    provider: String,
    endpoint: Url,
    headers: HeaderMap,
    timeout: Duration,
    connect_timeout: Duration,
    stall_timeout: Duration,
    /// Made at the first call, because it reads the system's certificates and a worker should start at once.
    http: OnceLock<Client>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { provider, endpoint, .. } = self;
        f.debug_struct("Transport").field("provider", provider).field("endpoint", &endpoint.as_str()).finish()
    }
}

impl Transport {
    /// The way to this endpoint; the headers go out with every call.
    pub fn new(provider: &str, endpoint: Url, mut headers: HeaderMap, config: &ProviderConfig) -> Self {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self {
            provider: provider.to_owned(),
            endpoint,
            headers,
            timeout: config.timeout,
            connect_timeout: config.connect_timeout,
            stall_timeout: config.stall_timeout,
            http: OnceLock::new(),
        }
    }

    /// Where it leads.
    pub fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    /// Sends a body and waits for the head of the answer.
    pub async fn post(&self, request: &LlmRequest, body: Vec<u8>) -> Result<Answer<'_>, LlmError> {
        let started = Instant::now();
        let limit = time_limit(self.timeout, request);
        let mut call = self.http()?.post(self.endpoint.clone()).headers(self.headers.clone()).timeout(limit);
        if let Some(parent) = request.context.traceparent.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
            call = call.header("traceparent", parent);
        }
        let response = call.body(body).send().await.map_err(|error| self.failed(error, limit, None))?;
        if let Some(told) = &request.rate_word
            && let Some(word) = rate_headers::read(response.headers(), Instant::now(), SystemTime::now())
        {
            // Each call has a place of its own, so nobody was before us.
            let _ = told.set(word);
        }
        let request_id = headers::request_id(response.headers());
        let status = response.status().as_u16();
        tracing::debug!(
            llm.provider = %self.provider,
            http.status = status,
            request_id,
            elapsed_ms = started.elapsed().as_millis(),
            "model answers"
        );
        Ok(Answer { way: self, status, request_id, limit, response })
    }

    fn http(&self) -> Result<&Client, LlmError> {
        if let Some(client) = self.http.get() {
            return Ok(client);
        }
        let mut builder = tls::client()
            .user_agent(concat!("da-node-executor/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_keepalive(KEEPALIVE)
            // A redirect would carry the key elsewhere and turn the POST into a GET.
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never());
        if loopback(&self.endpoint) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| LlmError::Config {
            provider: self.provider.clone(),
            problem: format!("no HTTP client can be made: {}", root(&error)),
        })?;
        Ok(self.http.get_or_init(|| client))
    }

    fn failed(&self, error: reqwest::Error, limit: Duration, request_id: Option<String>) -> LlmError {
        let provider = self.provider.clone();
        let source = error.without_url();
        if unsent(&source) {
            LlmError::Connect { provider, host: self.endpoint.authority().to_owned(), source }
        } else if source.is_timeout() {
            LlmError::TimedOut { provider, limit, request_id }
        } else {
            LlmError::Interrupted { provider, request_id, source }
        }
    }
}

/// An answer whose head is there.
pub(super) struct Answer<'a> {
    way: &'a Transport,
    /// The HTTP status.
    pub status: u16,
    /// The provider's id of the request.
    pub request_id: Option<String>,
    limit: Duration,
    response: Response,
}

impl<'a> Answer<'a> {
    /// Whether the provider says that all is well.
    pub fn ok(&self) -> bool {
        self.response.status().is_success()
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Whether its body is a stream of events. A server that cannot stream answers as if it had not been asked to.
    pub fn streams(&self) -> bool {
        let kind = self.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
    }

    /// The whole body.
    pub async fn body(self) -> Result<Vec<u8>, LlmError> {
        let cap = if self.ok() { MAX_BODY } else { MAX_ERROR_BODY };
        let Self { way, request_id, limit, mut response, .. } = self;
        let mut body = Vec::new();
        loop {
            // Only an answer that has begun can stall: a model says nothing at all while it thinks.
            let chunk = tokio::time::timeout(way.stall_timeout, response.chunk()).await.map_err(|_| {
                let (provider, limit) = (way.provider.clone(), way.stall_timeout);
                LlmError::Stalled { provider, limit, request_id: request_id.clone() }
            })?;
            let Some(chunk) = chunk.map_err(|error| way.failed(error, limit, request_id.clone()))? else {
                return Ok(body);
            };
            if body.len() + chunk.len() > cap {
                return Err(LlmError::TooLarge { provider: way.provider.clone(), limit: cap, request_id });
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// The body as events.
    pub fn events(self) -> Events<'a> {
        let Self { way, request_id, limit, response, .. } = self;
        let limits = StreamLimits { event: MAX_EVENT, total: MAX_STREAM, quiet: way.stall_timeout };
        let bytes: ByteStream = Box::pin(response.bytes_stream());
        Events { way, request_id, limit, reader: EventReader::new(bytes, limits) }
    }
}

type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, reqwest::Error>> + Send>>;

/// The events of an answer that is still being written.
pub(super) struct Events<'a> {
    way: &'a Transport,
    request_id: Option<String>,
    limit: Duration,
    reader: EventReader<ByteStream>,
}

impl Events<'_> {
    /// The next event; none at the end of the body.
    pub async fn next(&mut self) -> Result<Option<Event>, LlmError> {
        let error = match self.reader.next().await {
            Ok(event) => return Ok(event),
            Err(error) => error,
        };
        let (provider, request_id) = (self.way.provider.clone(), self.request_id.clone());
        Err(match error {
            SseError::Quiet(limit) => LlmError::Stalled { provider, limit, request_id },
            SseError::TooLarge(limit) => LlmError::TooLarge { provider, limit, request_id },
            SseError::NotText => self.broken("it is no text"),
            SseError::Broken(error) => self.way.failed(error, self.limit, request_id),
        })
    }

    /// The error of a stream that ended before its answer did.
    pub fn truncated(&self) -> LlmError {
        LlmError::Truncated { provider: self.way.provider.clone(), request_id: self.request_id.clone() }
    }

    /// The error of a stream that makes no sense.
    pub fn broken(&self, problem: impl Into<String>) -> LlmError {
        let (provider, request_id) = (self.way.provider.clone(), self.request_id.clone());
        LlmError::BrokenStream { provider, problem: problem.into(), request_id }
    }
}

/// What one call may take: the provider's timeout, or less if the node's time is up before.
pub(super) fn time_limit(timeout: Duration, request: &LlmRequest) -> Duration {
    timeout.min(request.context.deadline.saturating_duration_since(Instant::now()))
}

/// The address of an endpoint: `path`, such as `/v1/messages`, below the base URL. A base URL that already ends in the
/// path or in its beginning is taken as it is meant.
pub(super) fn endpoint(base_url: &str, path: &str) -> Result<Url, String> {
    let mut url = Url::parse(base_url.trim()).map_err(|error| format!("is not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(String::from("must begin with http:// or https:// and a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(String::from("must not carry a user or password; the key goes into `api_key`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(String::from("must not carry a query or a fragment"));
    }
    let mut base = url.path().trim_end_matches('/');
    // The longest beginning of the path that the base URL ends in.
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1).chain([path.len()]);
    if let Some(end) = ends.filter(|end| base.ends_with(&path[..*end])).max() {
        base = &base[..base.len() - end];
    }
    let whole = format!("{base}{path}");
    url.set_path(&whole);
    Ok(url)
}

/// A proxy of the environment is not meant for this machine itself.
fn loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_taken_as_it_is_meant() {
        for (base, whole) in [
            ("https://api.anthropic.com", "https://api.anthropic.com/v1/messages"),
            ("https://api.anthropic.com/", "https://api.anthropic.com/v1/messages"),
            ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1/messages"),
            ("http://h/proxy/v1/messages", "http://h/proxy/v1/messages"),
            ("http://h/anthropic/", "http://h/anthropic/v1/messages"),
        ] {
            assert_eq!(endpoint(base, "/v1/messages").map(String::from), Ok(whole.to_owned()));
        }
        let chat = |base| endpoint(base, "/v1/chat/completions").map(String::from);
        assert_eq!(chat("http://h/api/v1/"), Ok(String::from("http://h/api/v1/chat/completions")));
        assert_eq!(chat("http://h/v1/chat"), Ok(String::from("http://h/v1/chat/completions")));
        for wrong in ["", "api.anthropic.com", "ftp://h", "https://u:p@h", "https://h?x=1", "mailto:a@b"] {
            assert!(endpoint(wrong, "/v1/messages").is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_this_machine_is_reached_without_the_proxy() {
        let is = |text: &str| loopback(&Url::parse(text).expect("a URL"));
        assert!(is("http://localhost:1") && is("http://127.0.0.9") && is("http://[::1]:2"));
        assert!(!is("https://api.anthropic.com") && !is("http://10.0.0.1"));
    }
}
