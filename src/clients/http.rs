//! Plain HTTP for the `http_request` tool: allowed hosts only, private addresses refused after name resolution,
//! redirects followed by hand so that every hop is checked. What a status means is the caller's to say.

mod address;
mod error;
mod hosts;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode, redirect};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::runtime::{Handle, Id};
use url::Url;

pub use self::address::{AddressRefused, refused};
pub use self::error::FetchError;
pub(in crate::clients) use self::error::unsent;
pub use self::hosts::{AllowedHosts, InvalidHost, Permission};
use crate::clients::tls;
use crate::config::HttpRequestConfig;

/// Redirects that are followed; more are an error.
pub const MAX_REDIRECTS: usize = 5;

/// Clients kept, one or two for each runtime that made requests; beyond that, older ones are dropped.
const MAX_CLIENTS: usize = 512;

const USER_AGENT: &str = concat!("da-node-executor/", env!("CARGO_PKG_VERSION"));

/// Headers that belong to the connection or would lead past the allowed host; a request may not set them.
const RESERVED: [HeaderName; 9] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
];

/// The method of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Reads.
    #[default]
    #[serde(alias = "get")]
    Get,
    /// Reads the headers alone.
    #[serde(alias = "head")]
    Head,
    /// Asks what is possible.
    #[serde(alias = "options")]
    Options,
    /// Replaces.
    #[serde(alias = "put")]
    Put,
    /// Removes.
    #[serde(alias = "delete")]
    Delete,
    /// Adds, or anything else.
    #[serde(alias = "post")]
    Post,
    /// Changes in part.
    #[serde(alias = "patch")]
    Patch,
}

impl Method {
    /// Whether it changes nothing on the other side.
    pub fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options)
    }

    /// Whether sending it twice is the same as once.
    pub fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Self::Put | Self::Delete)
    }
}

impl From<Method> for reqwest::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Get => Self::GET,
            Method::Head => Self::HEAD,
            Method::Options => Self::OPTIONS,
            Method::Put => Self::PUT,
            Method::Delete => Self::DELETE,
            Method::Post => Self::POST,
            Method::Patch => Self::PATCH,
        }
    }
}

/// What to fetch.
#[derive(Debug, Clone, Default)]
pub struct FetchRequest {
    /// The method.
    pub method: Method,
    /// The address, `http` or `https`.
    pub url: String,
    /// Headers by name.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Option<Bytes>,
}

/// What came back, whatever its status.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The status code.
    pub status: u16,
    /// Headers in the order they came, names in lower case; a name may occur several times.
    pub headers: Vec<(String, String)>,
    /// The body, at most as long as allowed.
    pub body: Vec<u8>,
    /// Whether the body went on.
    pub truncated: bool,
}

/// Fetches from allowed hosts. Costs nothing until the first request.
#[derive(Debug)]
pub struct FetchClient {
    allowed: AllowedHosts,
    timeout: Duration,
    max_bytes: usize,
    /// A connection lives and dies with the runtime that made it, so every runtime has clients of its own.
    clients: Mutex<HashMap<(Id, Permission), reqwest::Client>>,
}

/// One hop: where to, and what of the request goes there.
struct Hop {
    url: Url,
    method: reqwest::Method,
    headers: HeaderMap,
    body: Option<Bytes>,
}

impl FetchClient {
    /// Reads the list of allowed hosts; makes no connection yet.
    pub fn new(config: &HttpRequestConfig) -> Result<Self, InvalidHost> {
        let allowed = AllowedHosts::parse(&config.allow)?;
        if !config.allow.is_empty() {
            tls::prepare();
        }
        Ok(Self { allowed, timeout: config.timeout, max_bytes: config.max_bytes.get(), clients: Mutex::default() })
    }

    /// Sends the request and reads the response within the configured time, or within `limit` if that is less.
    pub async fn fetch(&self, request: FetchRequest, limit: Duration) -> Result<Fetched, FetchError> {
        let limit = limit.min(self.timeout);
        let repeatable = request.method.is_idempotent();
        let hop = Hop {
            url: Url::parse(&request.url).map_err(|error| FetchError::InvalidUrl { reason: error.to_string() })?,
            method: request.method.into(),
            headers: headers(&request.headers)?,
            body: request.body,
        };
        let answered = tokio::time::timeout(limit, self.follow(hop, repeatable)).await;
        answered.unwrap_or(Err(FetchError::TimedOut { limit, repeatable }))
    }

    async fn follow(&self, mut hop: Hop, repeatable: bool) -> Result<Fetched, FetchError> {
        for redirects in 0..=MAX_REDIRECTS {
            let permission = self.check(&hop.url, redirects > 0)?;
            let host = hop.url.host_str().unwrap_or_default().to_owned();
            let mut builder = self.client(permission)?.request(hop.method.clone(), hop.url.clone());
            builder = builder.headers(hop.headers.clone());
            if let Some(body) = &hop.body {
                builder = builder.body(body.clone());
            }
            // Until the first hop is connected nothing was sent, so nothing can have happened twice.
            let untouched = redirects == 0;
            let response =
                builder.send().await.map_err(|error| FetchError::sending(&host, error, repeatable, untouched))?;
            if unheard(&response, repeatable, untouched) {
                return Err(FetchError::NotReceived { host });
            }
            match redirected(&response)? {
                Some(location) => hop = hop.next(response.status(), location),
                None => return self.read(response, &host, repeatable).await,
            }
        }
        Err(FetchError::TooManyRedirects)
    }

    /// Whether this address may be asked, and whether by name: then it may be private as well.
    fn check(&self, url: &Url, redirect: bool) -> Result<Permission, FetchError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FetchError::InvalidUrl {
                reason: format!("the scheme `{}` is not http or https", url.scheme()),
            });
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(FetchError::InvalidUrl {
                reason: String::from("credentials do not belong in the URL; send an `authorization` header"),
            });
        }
        let host = url.host().ok_or_else(|| FetchError::InvalidUrl { reason: String::from("it names no host") })?;
        let port = url.port_or_known_default().unwrap_or(80);
        let Some(permission) = self.allowed.permission(&host, port) else {
            let host = format!("{host}:{port}");
            return Err(if redirect {
                FetchError::RedirectNotAllowed { host }
            } else {
                FetchError::HostNotAllowed { host }
            });
        };
        let literal = match host {
            url::Host::Ipv4(address) => Some(address.into()),
            url::Host::Ipv6(address) => Some(address.into()),
            url::Host::Domain(_) => None,
        };
        if permission == Permission::ByPattern
            && let Some(address) = literal
            && let Some(kind) = refused(address)
        {
            return Err(AddressRefused { host: host.to_string(), address, kind }.into());
        }
        Ok(permission)
    }

    async fn read(&self, mut response: Response, host: &str, repeatable: bool) -> Result<Fetched, FetchError> {
        let status = response.status().as_u16();
        let headers = response.headers().iter();
        let headers = headers
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let mut body = Vec::new();
        let mut truncated = false;
        while let Some(chunk) =
            response.chunk().await.map_err(|error| FetchError::sending(host, error, repeatable, false))?
        {
            let room = self.max_bytes - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                truncated = true;
                break;
            }
        }
        Ok(Fetched { status, headers, body, truncated })
    }

    fn client(&self, permission: Permission) -> Result<reqwest::Client, FetchError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Handle::current().id(), permission);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = build(permission).map_err(|source| FetchError::Setup { source })?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

/// Redirects are followed by [`FetchClient::follow`]. No proxy: it would resolve names itself, past every check.
fn build(permission: Permission) -> Result<reqwest::Client, reqwest::Error> {
    let builder = tls::client()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .pool_idle_timeout(Duration::from_secs(30));
    match permission {
        Permission::ByName => builder,
        Permission::ByPattern => builder.dns_resolver(Arc::new(address::PublicOnly)),
    }
    .build()
}

impl Hop {
    /// The request that follows a redirect. What the caller gave goes to the first origin alone: another host must
    /// not learn its keys.
    fn next(mut self, status: StatusCode, url: Url) -> Self {
        let becomes_get = match status {
            StatusCode::SEE_OTHER => self.method != reqwest::Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => self.method == reqwest::Method::POST,
            _ => false,
        };
        if becomes_get {
            self.method = reqwest::Method::GET;
            self.body = None;
            self.headers.remove(header::CONTENT_TYPE);
        }
        if self.url.origin() != url.origin() {
            let kept = [header::ACCEPT, header::ACCEPT_LANGUAGE, header::CONTENT_TYPE, header::USER_AGENT];
            let mut headers = HeaderMap::new();
            for name in kept {
                if let Some(value) = self.headers.remove(&name) {
                    headers.insert(name, value);
                }
            }
            self.headers = headers;
        }
        self.url = url;
        self
    }
}

/// Whether the server says that it did not get the request: a worker that stood still between connecting and sending
/// meets this. The server closes the connection then; one that keeps it may mean something else by the status, which is
/// to be believed only where a second request does no harm. Once a host was heard (`untouched` no more), the first one may
/// have done what was asked.
fn unheard(response: &Response, repeatable: bool, untouched: bool) -> bool {
    let closes = || {
        let named = response.headers().get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        named.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("close"))
    };
    response.status() == StatusCode::REQUEST_TIMEOUT && (repeatable || (untouched && closes()))
}

/// Where a redirect leads; none if the response is an answer, as a 304 or a 300 without a place is.
fn redirected(response: &Response) -> Result<Option<Url>, FetchError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.headers().get(header::LOCATION) else { return Ok(None) };
    let url = location.to_str().ok().and_then(|location| response.url().join(location).ok());
    url.map(Some).ok_or(FetchError::InvalidRedirect)
}

fn headers(given: &[(String, String)]) -> Result<HeaderMap, FetchError> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let invalid = |reason| FetchError::InvalidHeader { name: name.clone(), reason };
        let key = HeaderName::try_from(name).map_err(|_| invalid("is not a header name"))?;
        if RESERVED.contains(&key) {
            return Err(invalid("is set by the connection and cannot be given"));
        }
        let value = HeaderValue::try_from(value).map_err(|_| invalid("has a value that no header can carry"))?;
        headers.append(key, value);
    }
    Ok(headers)
}

#[cfg(test)]
pub(in crate::clients) mod tests;
