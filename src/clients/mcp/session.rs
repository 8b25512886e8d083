//! One session with one server: the client, its transport, and what is known of the other side.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::Either;
use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceBuilder, RpcServiceT};
use jsonrpsee::types::Request;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::client::{CallMeta, Client, McpTool, ServerInfo};
use super::endpoint::Endpoint;
use super::error::McpError;
use super::http::HttpService;
use super::inbox::Inbox;
use super::layers::{CancelOnDrop, Deadline};
use super::service::NoBatches;
use super::stdio::StdioService;
use crate::config::McpServerConfig;
use crate::domain::tool::{Arguments, ToolOutput};

/// One initialised session. Share it by `Arc`: calls run side by side, each ends by its answer, its limit or its drop.
///
/// Dropping the session kills the process group of a child at once; [`Session::close`] lets it end in order.
pub struct Session {
    client: Client<Deadline<CancelOnDrop<Transport>>>,
    transport: Transport,
    inbox: Arc<Inbox>,
    info: ServerInfo,
    call_limit: Duration,
    list_limit: Duration,
}

impl Session {
    /// Connects and initialises within the server's `connect_timeout`.
    pub async fn connect(name: &str, config: &McpServerConfig) -> Result<Self, McpError> {
        Self::connect_to(&Endpoint::new(name, config.clone())).await
    }

    /// Connects to an endpoint.
    pub(super) async fn connect_to(endpoint: &Endpoint) -> Result<Self, McpError> {
        let limit = endpoint.config.connect_timeout;
        match timeout(limit, Self::open(endpoint)).await {
            Ok(session) => session,
            Err(_) => Err(McpError::TimedOut {
                server: Arc::clone(&endpoint.server),
                what: String::from("the opening of a session"),
                limit,
                may_have_run: false,
            }),
        }
    }

    async fn open(endpoint: &Endpoint) -> Result<Self, McpError> {
        let (server, config) = (Arc::clone(&endpoint.server), &endpoint.config);
        let inbox = Inbox::new(Arc::clone(&server));
        let transport = match (&config.url, &config.command) {
            (Some(url), None) => {
                Transport::Http(HttpService::new(url, config, endpoint.authorize.clone(), Arc::clone(&inbox))?)
            }
            (None, Some(program)) => Transport::Stdio(StdioService::spawn(program, config, Arc::clone(&inbox))?),
            (Some(_), Some(_)) | (None, None) => {
                let problem = String::from("set either `url` or `command`");
                return Err(McpError::Misconfigured { server, problem });
            }
        };
        let service = RpcServiceBuilder::new()
            .layer_fn(|service| Deadline::new(service, Arc::clone(&server)))
            .layer_fn(CancelOnDrop::new)
            .service(transport.clone());
        let client = Client::new(service, Arc::clone(&server));
        let started = Instant::now();
        let info = client.initialize(config.connect_timeout).await?;
        transport.negotiated(&info);
        client.initialized().await?;
        transport.listen();
        tracing::debug!(
            mcp.server = %server,
            mcp.version = %info.protocol_version,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "session opened"
        );
        Ok(Self { client, transport, inbox, info, call_limit: config.timeout, list_limit: config.connect_timeout })
    }

    /// All tools of the server, each name once, within the server's `connect_timeout`.
    pub async fn list_tools(&self) -> Result<Vec<McpTool>, McpError> {
        self.client.list_tools(self.list_limit).await
    }

    /// Calls a tool within the server's `timeout` and the node's deadline. Dropping the future cancels the call, and
    /// the server is told.
    pub async fn call_tool(&self, name: &str, arguments: &Arguments, meta: CallMeta) -> Result<ToolOutput, McpError> {
        self.client.call_tool(name, arguments, &meta, self.call_limit).await
    }

    /// Who the server says it is.
    pub fn info(&self) -> &ServerInfo {
        &self.info
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
}

impl Drop for Session {
    fn drop(&mut self) {
        self.inbox.closed().cancel();
        self.transport.abandon();
    }
}

/// How a server is spoken to.
#[derive(Clone)]
enum Transport {
    Http(HttpService),
    Stdio(StdioService),
}

impl Transport {
    fn negotiated(&self, info: &ServerInfo) {
        match self {
            Self::Http(http) => http.negotiated(&info.protocol_version),
            Self::Stdio(_) => {}
        }
    }

    fn listen(&self) {
        match self {
            Self::Http(http) => http.listen(),
            Self::Stdio(_) => {}
        }
    }

    async fn close(&self) {
        match self {
            Self::Http(http) => http.close().await,
            Self::Stdio(stdio) => stdio.close().await,
        }
    }

    fn abandon(&self) {
        match self {
            Self::Http(_) => {}
            Self::Stdio(stdio) => stdio.kill(),
        }
    }
}

impl RpcServiceT for Transport {
    type MethodResponse = Result<Box<RawValue>, McpError>;
    type NotificationResponse = Result<(), McpError>;
    type BatchResponse = NoBatches;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        match self {
            Self::Http(http) => Either::Left(http.call(request)),
            Self::Stdio(stdio) => Either::Right(stdio.call(request)),
        }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        std::future::ready(NoBatches)
    }

    fn notification<'a>(&self, n: Notification<'a>) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        match self {
            Self::Http(http) => Either::Left(http.notification(n)),
            Self::Stdio(stdio) => Either::Right(stdio.notification(n)),
        }
    }
}
