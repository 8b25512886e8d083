//! Opening a session with a server of which nothing is known: asked in the words of the modern era first, its answer
//! tells which era it lives in. What a server of the legacy era is called to is a handshake.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Client, ServerInfo};
use super::endpoint::{Endpoint, Known};
use super::era::{self, Choice, Dialect, Era, LEGACY, MODERN, Verdict};
use super::error::McpError;
use super::http::{HttpService, OldSseService};
use super::inbox::Inbox;
use super::service::FlightPlan;
use super::session::{Layered, Session, Transport, layered};
use super::stdio::StdioService;
use super::wire::{self, DiscoverResult};

/// The longest time that the first question may go unanswered before the other era is tried.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// A transport with a client on it that is not sure yet what to speak.
pub(super) struct Line {
    pub(super) transport: Transport,
    pub(super) client: Client<Layered>,
    pub(super) inbox: Arc<Inbox>,
}

/// What the first question brought to light.
enum Found {
    /// It needs no handshake.
    Modern(ServerInfo),
    /// It wants a handshake for this version.
    Legacy(&'static str),
    /// It ended at the question.
    Gone,
}

/// Opens a session.
pub(super) async fn open(endpoint: &Endpoint) -> Result<Session, McpError> {
    let started = Instant::now();
    let (line, info) = match (&endpoint.config.url, &endpoint.config.command) {
        (Some(url), None) => over_http(endpoint, url).await?,
        (None, Some(program)) => over_stdio(endpoint, program).await?,
        (Some(_), Some(_)) | (None, None) => {
            let problem = String::from("set either `url` or `command`");
            return Err(McpError::Misconfigured { server: Arc::clone(&endpoint.server), problem });
        }
    };
    tracing::debug!(
        mcp.server = %endpoint.server,
        mcp.version = %info.protocol_version,
        elapsed_ms = started.elapsed().as_millis() as u64,
        "session opened"
    );
    Ok(Session::new(line, info, &endpoint.config))
}

async fn over_http(endpoint: &Endpoint, url: &str) -> Result<(Line, ServerInfo), McpError> {
    let line = || {
        let inbox = Inbox::new(Arc::clone(&endpoint.server), endpoint.answers.clone());
        let transport = Transport::Http(HttpService::new(url, endpoint, Arc::clone(&inbox))?);
        Ok::<_, McpError>(Line::new(endpoint, transport, inbox))
    };
    if endpoint.known() == Some(Known::Legacy) {
        let mut line = line()?;
        match line.handshake(endpoint, LEGACY).await {
            Ok(info) => return Ok((line, info)),
            Err(error) if !refused(&error) => return Err(error),
            // Another server stands there now.
            Err(_) => endpoint.learn(None),
        }
    }
    if endpoint.known() == Some(Known::OldSse) {
        match over_old_sse(endpoint, url).await {
            Ok(opened) => return Ok(opened),
            Err(error @ McpError::Connect { .. }) => return Err(error),
            Err(_) => endpoint.learn(None),
        }
    }
    let mut line = line()?;
    match line.probe(endpoint, true).await? {
        Found::Modern(info) => Ok((line, info)),
        Found::Legacy(version) => match line.handshake(endpoint, version).await {
            Ok(info) => Ok((line, info)),
            // Neither era is at home where messages are posted to; then it is the oldest transport, or nothing.
            Err(error) if unfit(&error) => match over_old_sse(endpoint, url).await {
                Ok(opened) => Ok(opened),
                Err(_) => Err(error),
            },
            Err(error) => line.reconsider(endpoint, error, true).await.map(|info| (line, info)),
        },
        Found::Gone => unreachable!("a probe over HTTP ends in an error then"),
    }
}

async fn over_old_sse(endpoint: &Endpoint, url: &str) -> Result<(Line, ServerInfo), McpError> {
    let inbox = Inbox::new(Arc::clone(&endpoint.server), endpoint.answers.clone());
    let transport = OldSseService::open(url, endpoint, Arc::clone(&inbox)).await?;
    let mut line = Line::new(endpoint, Transport::OldSse(transport), inbox);
    let info = line.handshake(endpoint, LEGACY).await?;
    endpoint.learn(Some(Known::OldSse));
    Ok((line, info))
}

async fn over_stdio(endpoint: &Endpoint, program: &str) -> Result<(Line, ServerInfo), McpError> {
    let line = || {
        let inbox = Inbox::new(Arc::clone(&endpoint.server), endpoint.answers.clone());
        let transport = StdioService::spawn(program, &endpoint.config, Arc::clone(&inbox))?;
        Ok::<_, McpError>(Line::new(endpoint, Transport::Stdio(transport), inbox))
    };
    let mut first = line()?;
    let found = match endpoint.known() {
        Some(Known::Legacy | Known::OldSse) => Found::Legacy(LEGACY),
        None => first.probe(endpoint, false).await?,
    };
    let (mut line, version) = match found {
        Found::Modern(info) => return Ok((first, info)),
        Found::Legacy(version) => (first, version),
        // Some servers end at a first message that is no handshake; another process gets one.
        Found::Gone => (line()?, LEGACY),
    };
    match line.handshake(endpoint, version).await {
        Ok(info) => Ok((line, info)),
        Err(error) => line.reconsider(endpoint, error, false).await.map(|info| (line, info)),
    }
}

/// Whether a handshake was refused by somebody who cannot be posted to here.
fn unfit(error: &McpError) -> bool {
    let status = match error {
        McpError::Http { status, .. } => *status,
        McpError::Rpc { status: Some(status), .. } => *status,
        _ => return false,
    };
    matches!(status, 400 | 404 | 405 | 406 | 410 | 415 | 422)
}

/// Whether the server refused a handshake as something that it does not know.
fn refused(error: &McpError) -> bool {
    matches!(Verdict::of(error), Verdict::Legacy | Verdict::Supports(_) | Verdict::Modern | Verdict::Gone)
}

impl Line {
    pub(super) fn new(endpoint: &Endpoint, transport: Transport, inbox: Arc<Inbox>) -> Self {
        let service = layered(transport.clone(), &endpoint.server);
        let client = Client::new(service, Arc::clone(&inbox));
        Self { transport, client, inbox }
    }

    /// Asks the server what it is.
    async fn probe(&mut self, endpoint: &Endpoint, http: bool) -> Result<Found, McpError> {
        let limit = (endpoint.config.connect_timeout / 2).min(PROBE_LIMIT);
        let mut version = MODERN;
        let mut again = false;
        loop {
            self.client.speak(Dialect::Modern(version), http);
            // Whoever does not know the question knows nothing of its end either.
            // Its silence tells something, that of an authorization server nothing: that has until the end.
            let longest = endpoint.config.connect_timeout;
            let plan = FlightPlan { cancellable: false, longest, ..FlightPlan::plain(wire::DISCOVER, limit) };
            let error = match self.client.discover(plan).await {
                Ok(result) => return self.modern(endpoint, version, result, http),
                Err(error) => error,
            };
            match Verdict::of(&error) {
                Verdict::Supports(supported) => match era::choose(&supported) {
                    Some(Choice::Modern(other)) if !again => (version, again) = (other, true),
                    Some(Choice::Legacy(version)) => return Ok(Found::Legacy(version)),
                    Some(Choice::Modern(_)) | None => return Err(error),
                },
                Verdict::Modern => return Ok(Found::Modern(unknown(version))),
                Verdict::Gone if !http => return Ok(Found::Gone),
                Verdict::Legacy => {
                    if matches!(error, McpError::TimedOut { .. }) {
                        // Should it stay silent, it is called by its other name next time.
                        endpoint.learn(Some(Known::Legacy));
                    }
                    return Ok(Found::Legacy(LEGACY));
                }
                Verdict::Unclear | Verdict::Gone => return Err(error),
            }
        }
    }

    /// Reads what a modern server says of itself.
    fn modern(
        &mut self,
        endpoint: &Endpoint,
        asked: &'static str,
        result: DiscoverResult,
        http: bool,
    ) -> Result<Found, McpError> {
        let version = match &result.supported_versions {
            None => asked,
            Some(supported) => match era::choose(supported) {
                Some(Choice::Modern(version)) => version,
                Some(Choice::Legacy(version)) => return Ok(Found::Legacy(version)),
                None => {
                    let server = Arc::clone(&endpoint.server);
                    return Err(McpError::VersionRefused { server, supported: supported.clone() });
                }
            },
        };
        self.client.speak(Dialect::Modern(version), http);
        endpoint.learn(None);
        let who = result.meta.server_info.or(result.server_info).unwrap_or_default();
        Ok(Found::Modern(ServerInfo {
            name: who.name,
            version: who.version,
            instructions: result.instructions,
            tells_changes: result.capabilities.tools.is_some_and(|tools| tools.list_changed),
            ..unknown(version)
        }))
    }

    /// Opens a session by a handshake.
    pub(super) async fn handshake(&mut self, endpoint: &Endpoint, version: &str) -> Result<ServerInfo, McpError> {
        self.client.speak(Dialect::Legacy, false);
        let info = self.client.initialize(version, endpoint.config.connect_timeout).await?;
        self.transport.negotiated(&info);
        self.client.initialized().await?;
        endpoint.learn(Some(Known::Legacy));
        Ok(info)
    }

    /// A handshake failed. A server that was slow to answer the first question may have taken it all the same, and is
    /// bound to the modern era by it.
    async fn reconsider(&mut self, endpoint: &Endpoint, error: McpError, http: bool) -> Result<ServerInfo, McpError> {
        endpoint.learn(None);
        let McpError::VersionRefused { supported, .. } = &error else { return Err(error) };
        if !matches!(era::choose(supported), Some(Choice::Modern(_))) {
            return Err(error);
        }
        match self.probe(endpoint, http).await? {
            Found::Modern(info) => Ok(info),
            Found::Legacy(_) | Found::Gone => Err(error),
        }
    }
}

/// A modern server that says nothing of itself.
fn unknown(version: &str) -> ServerInfo {
    ServerInfo {
        name: String::new(),
        version: String::new(),
        era: Era::Modern,
        protocol_version: version.to_owned(),
        instructions: None,
        tells_changes: false,
    }
}
