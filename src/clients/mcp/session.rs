//! One session with one server: the client, its transport, and what is known of the other side.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Either;
use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceBuilder, RpcServiceT};
use jsonrpsee::types::Request;
use serde_json::value::RawValue;
use tokio::time::sleep;

use super::client::{CallLimits, CallMeta, Client, ServerInfo, ToolListing};
use super::endpoint::Endpoint;
use super::era::{Era, Verdict};
use super::error::McpError;
use super::http::{HttpService, OldSseService};
use super::inbox::Inbox;
use super::layers::{CancelOnDrop, Deadline};
use super::open::Line;
use super::service::NoBatches;
use super::stdio::StdioService;
use super::task::{Begun, Look};
use crate::config::McpServerConfig;
use crate::domain::task::Task;
use crate::domain::tool::{Arguments, ToolOutput};
use crate::retry::{Retry, backoff};

/// How long we wait before we ask again to be told of changes: at first, and at most.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
const LISTEN_PAUSE_MAX: Duration = Duration::from_secs(60);

/// One open session. Share it by `Arc`: calls run side by side, each ends by its answer, its limit or its drop. In the
/// modern era the server knows nothing of it: it is what we agreed on with ourselves.
///
/// Dropping the session kills the process group of a child at once; [`Session::close`] lets it end in order.
pub struct Session {
    client: Arc<Client<Layered>>,
    transport: Transport,
    inbox: Arc<Inbox>,
    info: ServerInfo,
    call_limits: CallLimits,
    list_limit: Duration,
}

impl Session {
    /// Connects within the server's `connect_timeout`, and forgets about the server afterwards.
    pub async fn connect(name: &str, config: &McpServerConfig) -> Result<Self, McpError> {
        Endpoint::new(name, config.clone()).connect().await
    }

    /// A session that has just been opened; starts to listen to what the server tells unasked.
    pub(super) fn new(line: Line, info: ServerInfo, config: &McpServerConfig) -> Self {
        let Line { transport, client, inbox } = line;
        let client = Arc::new(client);
        match info.era {
            Era::Legacy => transport.listen(&inbox),
            Era::Modern if info.tells_changes => {
                let (client, inbox) = (Arc::clone(&client), Arc::clone(&inbox));
                tokio::spawn(async move { inbox.closed().run_until_cancelled(listen(&client, &inbox)).await });
            }
            Era::Modern => {}
        }
        let call_limits = CallLimits { silence: config.timeout, longest: config.max_timeout };
        Self { client, transport, inbox, info, call_limits, list_limit: config.connect_timeout }
    }

    /// All tools of the server, each name once, within the server's `connect_timeout`.
    pub async fn list_tools(&self) -> Result<ToolListing, McpError> {
        self.client.list_tools(self.list_limit).await.map_err(|error| self.reconsidered(error))
    }

    /// Calls a tool within the server's limits and the node's deadline. Dropping the future cancels the call, and
    /// the server is told.
    pub async fn call_tool(&self, name: &str, arguments: &Arguments, meta: CallMeta) -> Result<ToolOutput, McpError> {
        let called = self.client.call_tool(name, arguments, &meta, self.call_limits, false).await;
        match called.map_err(|error| self.reconsidered(error))? {
            Begun::Done(output) => Ok(output),
            Begun::Task { .. } => Err(self.client.broken("a call became a task although that was not offered")),
        }
    }

    /// The same for who knows what to do with a task: a server of the modern era may answer with one.
    pub async fn begin_call(&self, name: &str, arguments: &Arguments, meta: CallMeta) -> Result<Begun, McpError> {
        let called = self.client.call_tool(name, arguments, &meta, self.call_limits, true).await;
        called.map_err(|error| self.reconsidered(error))
    }

    /// Looks at the task of a call of `tool`, within the server's `timeout`, and answers what it asks.
    pub async fn look(&self, tool: &str, task: &Task, meta: CallMeta) -> Result<Look, McpError> {
        let looked = self.client.look(tool, task, &meta, self.call_limits).await;
        looked.map_err(|error| self.reconsidered(error))
    }

    /// Tells the server that nobody waits for a task any more. It may go on all the same.
    pub async fn give_up(&self, task: &str, limit: Duration) -> Result<(), McpError> {
        self.client.give_up(task, limit).await.map_err(|error| self.reconsidered(error))
    }

    /// Asks the server for a sign of life, within the server's `connect_timeout`.
    pub async fn ping(&self) -> Result<(), McpError> {
        self.client.ping(self.list_limit).await.map_err(|error| self.reconsidered(error))
    }

    /// How the server is reached: `http` (Streamable HTTP), `sse` (HTTP+SSE of 2024-11-05) or `stdio`.
    pub fn transport(&self) -> &'static str {
        match self.transport {
            Transport::Http(_) => "http",
            Transport::OldSse(_) => "sse",
            Transport::Stdio(_) => "stdio",
        }
    }

    /// Who the server says it is.
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }

    /// Whether the server tells when its tools change, and we can hear it.
    pub fn tells_changes(&self) -> bool {
        self.info.tells_changes && self.inbox.hears()
    }

    /// How often the server said that its tools changed: a list that was read at another count is out of date.
    pub fn tools_changed(&self) -> u64 {
        self.inbox.tools_changed()
    }

    /// Whether the session is of no more use: the child ended, the server forgot us, or it was closed here.
    pub fn is_closed(&self) -> bool {
        self.inbox.closed().is_cancelled()
    }

    /// Waits until the session is of no more use.
    pub async fn closed(&self) {
        self.inbox.closed().cancelled().await;
    }

    /// Ends the session in order: a server over HTTP is told; a child process gets its time to end by itself, then it is
    /// killed, and what it started with it.
    pub async fn close(&self) {
        self.transport.close().await;
    }

    /// A modern server that speaks another version by now, or another era, has to be met anew: in its terms, the session
    /// is lost. It refused the request before anything ran.
    fn reconsidered(&self, error: McpError) -> McpError {
        let strange = match &error {
            McpError::VersionRefused { .. } => true,
            McpError::Rpc { status: Some(_), code: -32600 | -32000, .. }
            | McpError::Http { status: 400 | 404 | 405, .. } => Verdict::of(&error) == Verdict::Legacy,
            _ => false,
        };
        if self.info.era == Era::Modern && strange {
            tracing::debug!(mcp.server = %self.inbox.server(), %error, "the server has to be met anew");
            self.inbox.closed().cancel();
            return McpError::SessionLost { server: Arc::clone(self.inbox.server()), may_have_run: false };
        }
        error
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inbox.closed().cancel();
        self.transport.abandon();
    }
}

/// Asks a modern server to tell of changes, again when it stops to.
async fn listen(client: &Client<Layered>, inbox: &Inbox) {
    let mut failures = 0;
    loop {
        let ended = client.listen().await;
        if inbox.hears() {
            // It worked until it was cut.
            failures = 0;
        }
        inbox.listens(false);
        match ended {
            // It ended in order, or it broke: either way we missed what happens until it is opened again.
            Ok(()) => failures = 0,
            Err(error) if error.retry() == Retry::Never => {
                tracing::debug!(%error, "the server does not tell when its tools change");
                return;
            }
            Err(_) => {}
        }
        failures += 1;
        sleep(backoff(LISTEN_PAUSE, LISTEN_PAUSE_MAX, failures, 0.5 + fastrand::f64() / 2.0)).await;
    }
}

/// A transport with its layers.
pub(super) type Layered = Deadline<CancelOnDrop<Transport>>;

/// Puts the layers around a transport.
pub(super) fn layered(transport: Transport, server: &Arc<str>) -> Layered {
    RpcServiceBuilder::new()
        .layer_fn(|service| Deadline::new(service, Arc::clone(server)))
        .layer_fn(CancelOnDrop::new)
        .service(transport)
}

/// How a server is spoken to.
#[derive(Clone)]
pub(super) enum Transport {
    /// One POST for each message.
    Http(HttpService),
    /// One POST for each message, one stream for all answers: as it was in 2024-11-05.
    OldSse(OldSseService),
    /// The pipes of a child process.
    Stdio(StdioService),
}

impl Transport {
    /// What the handshake agreed on.
    pub(super) fn negotiated(&self, info: &ServerInfo) {
        match self {
            Self::Http(http) => http.negotiated(&info.protocol_version),
            Self::OldSse(_) | Self::Stdio(_) => {}
        }
    }

    fn listen(&self, inbox: &Inbox) {
        match self {
            Self::Http(http) => http.listen(),
            // Whatever the server tells comes by the one way that there is.
            Self::OldSse(_) | Self::Stdio(_) => inbox.listens(true),
        }
    }

    async fn close(&self) {
        match self {
            Self::Http(http) => http.close().await,
            Self::OldSse(old) => old.close(),
            Self::Stdio(stdio) => stdio.close().await,
        }
    }

    fn abandon(&self) {
        match self {
            Self::Http(_) => {}
            Self::OldSse(old) => old.close(),
            Self::Stdio(stdio) => stdio.kill(),
        }
    }
}

impl RpcServiceT for Transport {
    type MethodResponse = Result<Box<RawValue>, McpError>;
    type NotificationResponse = Result<(), McpError>;
    type BatchResponse = NoBatches;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        // On the heap, or each layer around it would hold the whole of it twice.
        match self {
            Self::Http(http) => http.call(request).boxed(),
            Self::OldSse(old) => old.call(request).boxed(),
            Self::Stdio(stdio) => stdio.call(request).boxed(),
        }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        std::future::ready(NoBatches)
    }

    fn notification<'a>(&self, n: Notification<'a>) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        match self {
            Self::Http(http) => Either::Left(http.notification(n)),
            Self::OldSse(old) => Either::Right(Either::Left(old.notification(n))),
            Self::Stdio(stdio) => Either::Right(Either::Right(stdio.notification(n))),
        }
    }
}
