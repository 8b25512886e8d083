//! One place to send requests over HTTP: the configured headers, authorisation, redirects that stay where they are, and
//! the errors of a connection. What is sent there, and what the answers mean, is the transports' business.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, redirect};
use secrecy::ExposeSecret;

use super::super::auth::{Authorize, Challenge};
use super::super::endpoint::Endpoint;
use super::super::error::{McpError, excerpt, root_cause};
use super::super::inbox::Inbox;
use super::super::service::Flight;
use super::super::wire::Fault;
use crate::clients::http::unsent;
use crate::clients::tls;

/// Redirects that are followed, all on the same origin.
const MAX_REDIRECTS: usize = 3;
/// Times that one request may be sent again with better credentials: a stale token, and then one of too small a scope.
const MAX_CHALLENGES: usize = 3;
/// How often the system looks whether the other side of a silent connection is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The way to one server.
pub(in super::super) struct HttpLink {
    inbox: Arc<Inbox>,
    http: reqwest::Client,
    url: Url,
    authorize: Option<Arc<dyn Authorize>>,
    /// Whether headers are configured, which may be meant to say who calls.
    has_headers: bool,
}

impl HttpLink {
    /// To the URL of a server. Nothing is sent yet.
    pub(in super::super) fn new(url: &str, endpoint: &Endpoint, inbox: Arc<Inbox>) -> Result<Self, McpError> {
        let wrong = |problem: String| McpError::Misconfigured { server: Arc::clone(inbox.server()), problem };
        let url = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| wrong(String::from("`url` is no http or https URL")))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &endpoint.config.headers {
            let header =
                HeaderName::try_from(name).map_err(|_| wrong(format!("`headers`: `{name}` is no header name")))?;
            let mut value = HeaderValue::try_from(value.expose_secret())
                .map_err(|_| wrong(format!("`headers.{name}` has characters that no header may have")))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        let mut http = tls::client()
            .default_headers(headers)
            .connect_timeout(endpoint.config.connect_timeout)
            .tcp_keepalive(KEEPALIVE)
            .redirect(redirect::Policy::custom(same_origin));
        if is_loopback(&url) {
            // A proxy of the environment is not meant for the machine's own servers.
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| wrong(root_cause(&error)))?;
        let has_headers = !endpoint.config.headers.is_empty();
        Ok(Self { inbox, http, url, authorize: endpoint.authorize.clone(), has_headers })
    }

    /// Where what the server says goes.
    pub(in super::super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// The configured URL.
    pub(in super::super) fn url(&self) -> &Url {
        &self.url
    }

    /// A request to the configured URL.
    pub(in super::super) fn request(&self, method: Method) -> RequestBuilder {
        self.request_to(method, self.url.clone())
    }

    /// A request to another place of the same server.
    pub(in super::super) fn request_to(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Sends a request, authorised where that is configured.
    pub(in super::super) async fn send(&self, request: RequestBuilder, flight: &Flight) -> Result<Response, McpError> {
        match &self.authorize {
            Some(authorize) => Box::pin(self.send_authorized(request, flight, &**authorize)).await,
            None => {
                flight.leave();
                request.send().await.map_err(|error| self.broken_off(&error, flight))
            }
        }
    }

    /// Sends a request, authorised; again if it is refused for want of that and the authoriser can do better.
    async fn send_authorized(
        &self,
        mut request: RequestBuilder,
        flight: &Flight,
        authorize: &dyn Authorize,
    ) -> Result<Response, McpError> {
        let mut challenges = 0;
        loop {
            let again = request.try_clone();
            let sent = {
                let _ours = flight.pause();
                authorize.header().await?
            };
            if let Some(value) = &sent {
                let mut value = value.clone();
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            flight.leave();
            let response = request.send().await.map_err(|error| self.broken_off(&error, flight))?;
            challenges += 1;
            let Some(again) = again.filter(|_| is_challenge(&response) && challenges <= MAX_CHALLENGES) else {
                return Ok(response);
            };
            // Whoever is refused so was not served: if it ends in here, nothing has run.
            flight.come_back();
            let said = response.headers().get_all(WWW_AUTHENTICATE).iter();
            let challenge = Challenge {
                status: response.status().as_u16(),
                www_authenticate: said.filter_map(|value| value.to_str().ok()).collect(),
                sent: sent.as_ref(),
            };
            let _ours = flight.pause();
            if !authorize.challenged(challenge).await? {
                return Ok(response);
            }
            request = again;
        }
    }

    /// The connection broke before the answer came.
    pub(in super::super) fn broken_off(&self, error: &reqwest::Error, flight: &Flight) -> McpError {
        let cause = root_cause(error);
        if unsent(error) {
            return McpError::Connect { server: Arc::clone(self.inbox.server()), cause };
        }
        self.closed(&cause, flight.may_have_run())
    }

    /// No answer will come.
    pub(in super::super) fn closed(&self, cause: &str, may_have_run: bool) -> McpError {
        McpError::Closed { server: Arc::clone(self.inbox.server()), cause: cause.to_owned(), may_have_run }
    }

    /// The server answered with an error; `status` is the one it came with, where that was no success.
    pub(in super::super) fn rpc(&self, fault: &Fault, status: Option<StatusCode>) -> McpError {
        let server = Arc::clone(self.inbox.server());
        fault.to_error(server, status.map(|status| status.as_u16()))
    }

    /// What a person has to do about a refusal, where the status tells.
    pub(in super::super) fn remedy(&self, status: StatusCode) -> Option<String> {
        let server = self.inbox.server();
        match status {
            StatusCode::UNAUTHORIZED if self.authorize.is_none() => {
                let problem = match self.has_headers {
                    true => format!("it does not take what `mcp.servers.{server}.headers` says of who calls"),
                    false => String::from("it wants to know who calls"),
                };
                let place = "see \"Authentication to MCP servers\" in docs/tools.md";
                Some(format!("{problem}; set `mcp.servers.{server}.auth`, {place}"))
            }
            status if status.is_redirection() => Some(String::from("it redirects to another place; set `url` to that")),
            _ => None,
        }
    }

    /// The answer is not what the protocol says.
    pub(in super::super) fn protocol(&self, problem: &str) -> McpError {
        McpError::Protocol { server: Arc::clone(self.inbox.server()), problem: excerpt(problem) }
    }

    /// Something is over its bound.
    pub(in super::super) fn too_large(&self, what: &'static str, limit: usize) -> McpError {
        McpError::TooLarge { server: Arc::clone(self.inbox.server()), what, limit }
    }
}

fn is_challenge(response: &Response) -> bool {
    matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Follows a redirect that keeps method and body and stays on the origin, as from `/mcp` to `/mcp/`. Any other could
/// carry the credentials somewhere else, or turn a POST into a GET: the redirect itself is then the answer.
fn same_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let keeps_body = matches!(attempt.status().as_u16(), 307 | 308);
    let previous = attempt.previous();
    let stays = previous.last().is_some_and(|from| from.origin() == attempt.url().origin());
    if keeps_body && stays && previous.len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.stop() }
}

/// Whether an address leads to this machine.
pub(in super::super) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

/// The media type without its parameters.
pub(in super::super) fn media_type(response: &Response) -> &str {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}
