//! HTTP with parties that a server has named: encrypted, never redirected, capped, with a deadline.
//! What the answers mean is not decided here.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, RequestBuilder, StatusCode, Url, redirect};
use tokio::time::timeout_at;
use url::Origin;

use super::error::AuthError;
use crate::clients::mcp::error::root_cause;
use crate::clients::mcp::http::{is_loopback, retry_after};
use crate::clients::tls;
use crate::config::McpAuthConfig;

/// Bytes of one document or one token answer.
const MAX_BODY: usize = 256 * 1024;
/// Bytes of an address that somebody names.
const MAX_ADDRESS: usize = 2048;

/// Speaks to authorization servers for one MCP server.
pub(super) struct Fetch {
    server: Arc<str>,
    connect_timeout: Duration,
    /// Whether tokens may go unencrypted.
    allow_http: bool,
    /// Whether the MCP server is on this machine: only then may it name other places on it.
    local: bool,
    /// Where the operator's own issuer is: what that names there is as good as itself.
    vouched: Option<Origin>,
    /// Made when they are first needed; most servers need none or one of them.
    direct: OnceLock<Client>,
    proxied: OnceLock<Client>,
}

/// An answer, whatever its status.
pub(super) struct Reply {
    /// The status.
    pub(super) status: StatusCode,
    /// The whole body.
    pub(super) body: Vec<u8>,
    /// How long we were asked to wait.
    pub(super) retry_after: Option<Duration>,
}

impl Fetch {
    /// For the MCP server at this address.
    pub(super) fn new(server: Arc<str>, url: Option<&Url>, connect_timeout: Duration, auth: &McpAuthConfig) -> Self {
        let issuer = auth.issuer.as_deref().and_then(|issuer| Url::parse(issuer).ok());
        Self {
            server,
            connect_timeout,
            allow_http: auth.allow_http,
            local: url.is_some_and(is_loopback),
            vouched: issuer.map(|issuer| issuer.origin()),
            direct: OnceLock::new(),
            proxied: OnceLock::new(),
        }
    }

    /// An address that somebody else named, if it may be asked at all.
    pub(super) fn named(&self, what: &str, text: &str) -> Result<Url, AuthError> {
        let untrusted = |problem: &str| {
            let problem = format!("its {what} {problem}");
            AuthError::Untrusted { server: Arc::clone(&self.server), problem }
        };
        if text.len() > MAX_ADDRESS {
            return Err(untrusted(&format!("has more than {MAX_ADDRESS} bytes")));
        }
        let url = Url::parse(text).map_err(|_| untrusted("is no address"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(untrusted("is no http or https address"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err(untrusted("has a user, a password or a fragment in it"));
        }
        if self.vouched.as_ref() == Some(&url.origin()) || (self.local && is_loopback(&url)) {
            return Ok(url);
        }
        // A server elsewhere has no business with what listens here.
        if is_loopback(&url) {
            return Err(untrusted(&format!("at {} is on this machine, and the server is not", place(&url))));
        }
        if url.scheme() != "https" && !self.allow_http {
            return Err(untrusted(&format!("at {} is not https", place(&url))));
        }
        Ok(url)
    }

    /// Gets a document.
    pub(super) async fn get(&self, what: &str, url: &Url, deadline: Instant) -> Result<Reply, AuthError> {
        let request = self.client(url)?.get(url.clone()).header(ACCEPT, "application/json");
        self.exchange(what, url, request, deadline).await
    }

    /// Posts a form, with credentials in it or in the header.
    pub(super) async fn post(
        &self,
        what: &str,
        url: &Url,
        form: String,
        authorization: Option<HeaderValue>,
        deadline: Instant,
    ) -> Result<Reply, AuthError> {
        let mut request = self
            .client(url)?
            .post(url.clone())
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        if let Some(mut value) = authorization {
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        self.exchange(what, url, request, deadline).await
    }

    async fn exchange(
        &self,
        what: &str,
        url: &Url,
        request: RequestBuilder,
        deadline: Instant,
    ) -> Result<Reply, AuthError> {
        let what = format!("{what} from {}", place(url));
        let away = |cause: String| AuthError::Unavailable {
            server: Arc::clone(&self.server),
            what: what.clone(),
            cause,
            retry_after: None,
        };
        let exchange = async {
            // The address may have a query with a key in it.
            let broken = |error: reqwest::Error| away(root_cause(&error.without_url()));
            let mut response = request.send().await.map_err(broken)?;
            let (status, retry_after) = (response.status(), retry_after(response.headers()));
            let mut body = Vec::new();
            while let Some(bytes) = response.chunk().await.map_err(broken)? {
                if body.len() + bytes.len() > MAX_BODY {
                    let problem = format!("it has more than {MAX_BODY} bytes");
                    return Err(AuthError::Malformed { server: Arc::clone(&self.server), what: what.clone(), problem });
                }
                body.extend_from_slice(&bytes);
            }
            Ok(Reply { status, body, retry_after })
        };
        match within(deadline, exchange).await {
            Some(reply) => reply,
            None => Err(away(String::from("no answer in time"))),
        }
    }

    fn client(&self, url: &Url) -> Result<&Client, AuthError> {
        let direct = is_loopback(url);
        let cell = if direct { &self.direct } else { &self.proxied };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let mut client = tls::client()
            .connect_timeout(self.connect_timeout)
            .redirect(redirect::Policy::none())
            // Asked once in an hour, from whichever thread needs a token then: a connection is not worth keeping.
            .pool_max_idle_per_host(0);
        if direct {
            client = client.no_proxy();
        }
        let client = client.build().map_err(|error| AuthError::Unavailable {
            server: Arc::clone(&self.server),
            what: String::from("a client"),
            cause: root_cause(&error),
            retry_after: None,
        })?;
        Ok(cell.get_or_init(|| client))
    }
}

/// An address as it is told to people: the path may say which tenant, the query may be a key.
pub(super) fn place(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path().trim_end_matches('/'))
}

/// Waits for something, at most until then.
pub(super) async fn within<F: Future>(deadline: Instant, work: F) -> Option<F::Output> {
    timeout_at(deadline.into(), work).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(server: &str, auth: &McpAuthConfig) -> Fetch {
        let url = Url::parse(server).expect("an address");
        Fetch::new(Arc::from("crm"), Some(&url), Duration::from_secs(1), auth)
    }

    #[test]
    fn only_encrypted_addresses_are_asked_or_those_of_a_machine_that_speaks_of_itself() {
        let auth = McpAuthConfig::default();
        let remote = fetch("https://mcp.example.com/mcp", &auth);
        assert!(remote.named("issuer", "https://id.example.com/tenant").is_ok());
        for (text, why) in [
            ("http://id.example.com", "not https"),
            ("http://127.0.0.1:80/", "on this machine"),
            ("https://[::1]/", "on this machine"),
            ("https://localhost/", "on this machine"),
            ("file:///etc/passwd", "no http"),
            ("ftp://id.example.com", "no http"),
            ("javascript:alert(1)", "no http"),
            ("//id.example.com", "no address"),
            ("https://me:pw@id.example.com", "a user"),
            ("https://id.example.com/#x", "fragment"),
        ] {
            let error = remote.named("issuer", text).expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("pw@"), "{error}");
        }
        assert!(remote.named("issuer", &format!("https://id/{}", "x".repeat(3000))).is_err(), "it would fill the logs");
        let local = fetch("http://localhost:1/mcp", &auth);
        assert!(local.named("issuer", "http://127.0.0.1:80/").is_ok());
        assert!(local.named("issuer", "http://id.example.com").is_err());
        let lax = McpAuthConfig { allow_http: true, ..McpAuthConfig::default() };
        assert!(fetch("http://mcp/mcp", &lax).named("issuer", "http://id.example.com").is_ok());
        let own = McpAuthConfig { issuer: Some(String::from("http://localhost:9/realm")), ..McpAuthConfig::default() };
        let vouched = fetch("https://mcp.example.com/mcp", &own);
        assert!(vouched.named("token endpoint", "http://localhost:9/realm/token").is_ok());
        assert!(vouched.named("token endpoint", "http://localhost:8/realm/token").is_err());
    }
}
