//! McpSessionActor: one tool server. Connects when it is first needed, keeps the session and its tools, connects
//! again with backoff when the session is lost. Many calls run at once; none waits for another.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, ResponseFuture, WrapFuture as _};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::actors::messages::{CallTool, Discover};
use crate::actors::supervise::DeathWatch;
use crate::clients::mcp::{CallMeta, Endpoint, McpError, McpTool, Session};
use crate::config::McpServerConfig;
use crate::domain::outcome::{Category, Failure};
use crate::domain::tool::{ToolOutput, ToolSpec, ToolTarget};
use crate::health::Health;
use crate::metrics::{Metrics, ServerLabels, ToolLabels};
use crate::retry::backoff;
use crate::tools::resolve::allowed;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a required server is looked after while nobody calls it.
const WATCH: Duration = Duration::from_secs(5);

/// One server as the actor needs it; kept over its lives.
pub struct Server {
    /// Its configured name.
    pub name: String,
    config: McpServerConfig,
    endpoint: Endpoint,
    slots: Semaphore,
    link: Mutex<Link>,
    /// The tools as last discovered, readable without asking the actor.
    catalog: RwLock<Option<Catalog>>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Catalog {
    tools: Arc<Vec<ToolSpec>>,
    /// Names that the server offers too and its configuration hides.
    hidden: Arc<[String]>,
    /// The session and its count of announced changes that the tools were read at.
    session: std::sync::Weak<Session>,
    changes: u64,
}

#[derive(Default)]
struct Link {
    session: Option<Arc<Session>>,
    failures: u32,
    not_before: Option<Instant>,
    last_error: Option<Failure>,
    counted_down: bool,
}

impl Server {
    /// A server that is not connected yet.
    pub fn new(
        name: &str,
        config: McpServerConfig,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let link = Link { counted_down: config.required, ..Link::default() };
        if config.required {
            health.required_server(true);
        }
        Arc::new(Self {
            name: name.to_owned(),
            slots: Semaphore::new(config.concurrency.get()),
            endpoint: Endpoint::new(name, config.clone()),
            config,
            link: Mutex::new(link),
            catalog: RwLock::new(None),
            health,
            metrics,
            stop,
        })
    }

    /// The tools as last discovered, if they are still current.
    pub fn current_tools(&self) -> Option<Arc<Vec<ToolSpec>>> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        let catalog = catalog.as_ref()?;
        let session = catalog.session.upgrade()?;
        (!session.is_closed() && session.tools_changed() == catalog.changes).then(|| Arc::clone(&catalog.tools))
    }

    /// The tools as last discovered, however long ago: what is known of a server that is away.
    pub fn last_known_tools(&self) -> Option<Arc<Vec<ToolSpec>>> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        catalog.as_ref().map(|catalog| Arc::clone(&catalog.tools))
    }

    /// Why a tool that the server offers is not there, if its configuration hides it.
    pub fn why_hidden(&self, tool: &str) -> Option<String> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        let hidden = catalog.as_ref()?.hidden.iter().any(|name| name == tool);
        hidden.then(|| format!("`{0}/{tool}` is hidden by `mcp.servers.{0}.allow` or `deny`", self.name))
    }

    /// The open session, or a new one. After a failure the next attempt waits; until then the last error answers.
    async fn session(&self) -> Result<Arc<Session>, Failure> {
        let mut link = self.link.lock().await;
        if let Some(session) = &link.session {
            if !session.is_closed() {
                return Ok(Arc::clone(session));
            }
            tracing::warn!(mcp.server = self.name, "the session is gone, connecting again");
            link.session = None;
            self.mark(&mut link, false);
        }
        if let (Some(until), Some(error)) = (link.not_before, &link.last_error)
            && Instant::now() < until
        {
            let wait = until.duration_since(Instant::now());
            return Err(match error.category {
                Category::Retriable => error.clone().with_retry_after(error.retry_after.or(Some(wait))),
                _ => error.clone(),
            });
        }
        match self.endpoint.connect().await {
            Ok(session) => {
                let info = session.info();
                tracing::info!(
                    mcp.server = self.name,
                    mcp.version = info.protocol_version,
                    server = info.name,
                    "connected to a tool server"
                );
                let session = Arc::new(session);
                *link =
                    Link { session: Some(Arc::clone(&session)), counted_down: link.counted_down, ..Link::default() };
                self.mark(&mut link, true);
                self.metrics.mcp_connects.get_or_create(&self.labels()).inc();
                Ok(session)
            }
            Err(error) => {
                let failure = Failure::from(error);
                link.failures += 1;
                let pause = backoff(FIRST_PAUSE, LONGEST_PAUSE, link.failures, 0.5 + fastrand::f64() / 2.0);
                if link.failures == 1 {
                    tracing::warn!(mcp.server = self.name, error = %failure, "a tool server cannot be reached");
                }
                link.not_before = Some(Instant::now() + pause);
                link.last_error = Some(failure.clone());
                self.mark(&mut link, false);
                Err(failure)
            }
        }
    }

    fn mark(&self, link: &mut Link, up: bool) {
        self.metrics.mcp_up.get_or_create(&self.labels()).set(i64::from(up));
        if self.config.required && link.counted_down == up {
            self.health.required_server(!up);
            link.counted_down = !up;
        }
    }

    fn labels(&self) -> ServerLabels {
        ServerLabels { server: self.name.clone() }
    }

    /// Gives up a session whose server no longer knows it.
    async fn forget(&self, session: &Arc<Session>) {
        let mut link = self.link.lock().await;
        if link.session.as_ref().is_some_and(|present| Arc::ptr_eq(present, session)) {
            link.session = None;
            self.mark(&mut link, false);
        }
    }

    /// The tools, discovered anew where they may have changed.
    pub async fn discover(&self) -> Result<Arc<Vec<ToolSpec>>, Failure> {
        if let Some(tools) = self.current_tools() {
            return Ok(tools);
        }
        let mut session = self.session().await?;
        let changes = session.tools_changed();
        let listed = match session.list_tools().await {
            Err(McpError::SessionLost { .. }) => {
                self.forget(&session).await;
                session = self.session().await?;
                session.list_tools().await
            }
            listed => listed,
        };
        let (listed, hidden): (Vec<_>, Vec<_>) =
            listed?.tools.into_iter().partition(|tool| allowed(&self.config, &tool.name));
        let hidden = hidden.into_iter().map(|tool| tool.name).collect();
        let tools: Vec<ToolSpec> = listed.into_iter().map(|tool| self.spec(tool)).collect();
        tracing::debug!(mcp.server = self.name, tools = tools.len(), "discovered tools");
        let tools = Arc::new(tools);
        let catalog = Catalog { tools: Arc::clone(&tools), hidden, session: Arc::downgrade(&session), changes };
        *self.catalog.write().expect("nobody panics while holding the catalog") = Some(catalog);
        Ok(tools)
    }

    /// Whether the server still answers: a session over HTTP does not notice by itself that nobody is there any more.
    async fn look_after(&self) {
        let open = self.link.lock().await.session.clone().filter(|session| !session.is_closed());
        let Some(session) = open else {
            // The failure was logged and counted where it happened.
            let _ = self.discover().await;
            return;
        };
        if let Err(error) = session.list_tools().await {
            tracing::warn!(mcp.server = self.name, %error, "a required tool server does not answer any more");
            self.forget(&session).await;
        }
    }

    fn spec(&self, tool: McpTool) -> ToolSpec {
        ToolSpec {
            name: tool.name.clone(),
            target: ToolTarget { server: Some(self.name.clone()), name: tool.name },
            description: tool.description.or(tool.title),
            input_schema: tool.input_schema,
            hints: tool.hints,
        }
    }

    async fn call(&self, call: &crate::ports::ToolCall) -> Result<ToolOutput, Failure> {
        if !allowed(&self.config, &call.target.name) {
            return Err(Failure::configuration(
                "tool_not_allowed",
                format!("tool {} is not allowed; see `mcp.servers.{}.allow` and `deny`", call.target, self.name),
            ));
        }
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let meta = || CallMeta::from(&call.context);
        let session = self.session().await?;
        let repeatable = self.repeatable(&call.target.name);
        let answer = match session.call_tool(&call.target.name, &call.arguments, meta()).await {
            Err(error @ McpError::SessionLost { .. }) => {
                self.forget(&session).await;
                if error.may_have_run() && !repeatable {
                    return Err(error.into_failure(false));
                }
                // The server rejected the call before it ran, because it no longer knows the session.
                let session = self.session().await?;
                session.call_tool(&call.target.name, &call.arguments, meta()).await
            }
            answer => answer,
        };
        answer.map_err(|error| error.into_failure(repeatable))
    }

    /// Whether the tool may run twice, as its server says.
    fn repeatable(&self, tool: &str) -> bool {
        let tools = self.last_known_tools();
        tools.is_some_and(|tools| {
            tools.iter().any(|spec| spec.target.name == tool && (spec.hints.read_only || spec.hints.idempotent))
        })
    }

    /// Ends the session, its child process included.
    pub async fn close(&self) {
        let session = self.link.lock().await.session.take();
        if let Some(session) = session {
            session.close().await;
        }
    }
}

/// Speaks to one tool server.
pub struct McpSessionActor {
    server: Arc<Server>,
    _watch: DeathWatch,
}

impl McpSessionActor {
    /// An actor for this server.
    pub fn new(server: Arc<Server>, watch: DeathWatch) -> Self {
        Self { server, _watch: watch }
    }
}

impl Actor for McpSessionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if !self.server.config.required {
            return;
        }
        // Readiness depends on this server: connect now, and notice when it goes and comes back.
        let server = Arc::clone(&self.server);
        let watch = async move {
            while !server.stop.is_cancelled() {
                server.look_after().await;
                tokio::select! {
                    () = server.stop.cancelled() => {}
                    () = tokio::time::sleep(WATCH) => {}
                }
            }
        };
        ctx.spawn(watch.into_actor(self).map(|(), _, _| ()));
    }
}

impl Handler<Discover> for McpSessionActor {
    type Result = ResponseFuture<Result<Arc<Vec<ToolSpec>>, Failure>>;

    fn handle(&mut self, Discover { deadline }: Discover, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            tokio::time::timeout_at(deadline.into(), server.discover()).await.unwrap_or_else(|_| {
                Err(Failure::permanent(
                    "timeout",
                    format!("tool server {:?} did not list its tools before the node's time was up", server.name),
                ))
            })
        })
    }
}

impl Handler<CallTool> for McpSessionActor {
    type Result = ResponseFuture<Result<ToolOutput, Failure>>;

    fn handle(&mut self, CallTool { call, cancel }: CallTool, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.server);
        Box::pin(async move {
            let started = Instant::now();
            let answer = tokio::select! {
                // Dropping the call tells the server.
                () = cancel.cancelled() => return Err(Failure::new(Category::Cancelled, "cancelled", "the call was cancelled")),
                answer = tokio::time::timeout_at(call.context.deadline.into(), server.call(&call)) => {
                    answer.unwrap_or_else(|_| Err(Failure::permanent(
                        "timeout",
                        format!("tool {} did not answer before the node's time was up", call.target),
                    )))
                }
            };
            Metrics::seconds(&server.metrics.tool_duration.get_or_create(&server.labels()), started.elapsed());
            let outcome = match &answer {
                Ok(output) if output.is_error => "tool_error",
                Ok(_) => "ok",
                Err(_) => "failed",
            };
            let labels = ToolLabels { server: server.name.clone(), tool: call.target.name.clone(), outcome };
            server.metrics.tool_calls.get_or_create(&labels).inc();
            answer
        })
    }
}
