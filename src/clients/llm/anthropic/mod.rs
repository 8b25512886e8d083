//! The Anthropic Messages API over HTTP: one request, one answer, every wait and every buffer bounded.

mod content;
pub(super) mod request;
pub(super) mod response;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url, redirect};
use secrecy::{ExposeSecret, SecretString};

use crate::clients::llm::LlmError;

use crate::config::{AuthHeader, ProviderConfig};
use crate::domain::message::Completion;
use crate::ports::LlmRequest;

/// Bytes of one answer that are read; the longest completion is far below.
const MAX_BODY: usize = 32 * 1024 * 1024;
/// Bytes of an error answer that are read; a longer one is an error page.
const MAX_ERROR_BODY: usize = 256 * 1024;
/// Idle connections are closed before the usual proxies drop them unseen.
const POOL_IDLE: Duration = Duration::from_secs(55);

/// The client of one provider that speaks the Messages API.
pub struct AnthropicClient {
    name: String,
    config: ProviderConfig,
    endpoint: Url,
    headers: HeaderMap,
    configured: bool,
    /// Made at the first call, because it reads the system's certificates and a worker should start at once.
    http: OnceLock<Client>,
}

impl std::fmt::Debug for AnthropicClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnthropicClient").field("name", &self.name).field("endpoint", &self.endpoint.as_str()).finish()
    }
}

impl AnthropicClient {
    pub(super) fn new(name: &str, config: &ProviderConfig) -> Result<Self, LlmError> {
        let wrong = |problem: String| LlmError::Config { provider: name.to_owned(), problem };
        let endpoint = endpoint(&config.base_url).map_err(|problem| wrong(format!("`base_url` {problem}")))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let version = HeaderValue::from_str(&config.version)
            .map_err(|_| wrong(String::from("`version` has characters that a header cannot carry")))?;
        headers.insert("anthropic-version", version);
        if !config.betas.is_empty() {
            let betas = HeaderValue::from_str(&config.betas.join(","))
                .map_err(|_| wrong(String::from("`betas` has characters that a header cannot carry")))?;
            headers.insert("anthropic-beta", betas);
        }
        let key = config.api_key.as_ref().map(SecretString::expose_secret).map(str::trim).filter(|key| !key.is_empty());
        if let Some(key) = key {
            let (header, value): (HeaderName, _) = match config.auth {
                AuthHeader::ApiKey => (HeaderName::from_static("x-api-key"), HeaderValue::from_str(key)),
                AuthHeader::Bearer => (AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}"))),
            };
            let mut value =
                value.map_err(|_| wrong(String::from("`api_key` has characters that a key cannot have")))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            endpoint,
            headers,
            configured: key.is_some(),
            http: OnceLock::new(),
        })
    }

    pub(super) fn default_model(&self) -> &str {
        &self.config.model
    }

    pub(super) fn configured(&self) -> bool {
        self.configured
    }

    pub(super) async fn complete(&self, request: &LlmRequest) -> Result<Completion, LlmError> {
        if !self.configured {
            return Err(LlmError::NotConfigured { provider: self.name.clone() });
        }
        let started = Instant::now();
        let limit = time_limit(self.config.timeout, request);
        let prepared = request::prepare(request, &self.config);
        let model = request.settings.model.as_deref().unwrap_or(&self.config.model);
        let mut call = self.http()?.post(self.endpoint.clone()).headers(self.headers.clone()).timeout(limit);
        if let Some(parent) = request.context.traceparent.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
            call = call.header("traceparent", parent);
        }
        let response = call.body(prepared.body).send().await.map_err(|error| self.sending(error, limit, None))?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let request_id = response::request_id(&headers);
        let ok = response.status().is_success();
        let body = self.read(response, if ok { MAX_BODY } else { MAX_ERROR_BODY }, limit, &request_id).await;
        tracing::debug!(
            llm.provider = %self.name,
            llm.model = model,
            http.status = status,
            request_id,
            elapsed_ms = started.elapsed().as_millis(),
            "model answered"
        );
        if !ok {
            // The status says enough even where its body does not arrive whole.
            return Err(self.refused(status, &headers, &body.unwrap_or_default()));
        }
        let body = body?;
        if response::is_error(&body) {
            return Err(self.refused(status, &headers, &body));
        }
        response::completion(&body, model, request_id.clone(), prepared.warnings)
            .map_err(|problem| LlmError::Malformed { provider: self.name.clone(), problem, request_id })
    }

    fn http(&self) -> Result<&Client, LlmError> {
        if let Some(client) = self.http.get() {
            return Ok(client);
        }
        let mut builder = Client::builder()
            .user_agent(concat!("da-node-executor/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.config.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            // A redirect would carry the key elsewhere and turn the POST into a GET.
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never());
        if loopback(&self.endpoint) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| LlmError::Config {
            provider: self.name.clone(),
            problem: format!("no HTTP client can be made: {}", crate::clients::llm::error::root(&error)),
        })?;
        Ok(self.http.get_or_init(|| client))
    }

    async fn read(
        &self,
        mut response: Response,
        cap: usize,
        limit: Duration,
        request_id: &Option<String>,
    ) -> Result<Vec<u8>, LlmError> {
        let mut body = Vec::new();
        loop {
            // Only an answer that has begun can stall: a model says nothing at all while it thinks.
            let chunk = tokio::time::timeout(self.config.stall_timeout, response.chunk()).await.map_err(|_| {
                let (provider, limit) = (self.name.clone(), self.config.stall_timeout);
                LlmError::Stalled { provider, limit, request_id: request_id.clone() }
            })?;
            let chunk = chunk.map_err(|error| self.sending(error, limit, request_id.clone()))?;
            let Some(chunk) = chunk else { return Ok(body) };
            if body.len() + chunk.len() > cap {
                let request_id = request_id.clone();
                return Err(LlmError::TooLarge { provider: self.name.clone(), limit: cap, request_id });
            }
            body.extend_from_slice(&chunk);
        }
    }

    fn sending(&self, error: reqwest::Error, limit: Duration, request_id: Option<String>) -> LlmError {
        let provider = self.name.clone();
        let source = error.without_url();
        if source.is_connect() {
            LlmError::Connect { provider, host: self.endpoint.authority().to_owned(), source }
        } else if source.is_timeout() {
            LlmError::TimedOut { provider, limit }
        } else {
            LlmError::Interrupted { provider, request_id, source }
        }
    }

    fn refused(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> LlmError {
        let key = self.config.api_key.as_ref().map(SecretString::expose_secret).map(str::trim);
        let error = response::error(&self.name, status, headers, body, key);
        LlmError::Status(Box::new(error))
    }
}

/// What one call may take: the provider's timeout, or less if the node's time is up before.
pub(super) fn time_limit(timeout: Duration, request: &LlmRequest) -> Duration {
    timeout.min(request.context.deadline.saturating_duration_since(Instant::now()))
}

/// The address of the endpoint. A base URL that already ends in `/v1` or in the whole path is taken as it is meant.
fn endpoint(base_url: &str) -> Result<Url, String> {
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
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix("/messages").unwrap_or(path);
    let path = format!("{}/v1/messages", path.strip_suffix("/v1").unwrap_or(path));
    url.set_path(&path);
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
            assert_eq!(endpoint(base).map(String::from), Ok(whole.to_owned()));
        }
        for wrong in ["", "api.anthropic.com", "ftp://h", "https://u:p@h", "https://h?x=1", "mailto:a@b"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_this_machine_is_reached_without_the_proxy() {
        let is = |text: &str| loopback(&Url::parse(text).expect("a URL"));
        assert!(is("http://localhost:1") && is("http://127.0.0.9") && is("http://[::1]:2"));
        assert!(!is("https://api.anthropic.com") && !is("http://10.0.0.1"));
    }
}
