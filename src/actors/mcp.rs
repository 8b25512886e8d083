//! McpSessionActor: one tool server. Connects when it is first needed, keeps the session and its tools, connects
//! again with backoff when the session is lost. Many calls run at once; none waits for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, ResponseFuture, WrapFuture as _};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::actors::messages::{CallTool, Discover};
use crate::actors::supervise::DeathWatch;
use crate::clients::mcp::{CallMeta, Endpoint, McpError, McpTool, ServerInfo, Session, ToolListing};
use crate::config::McpServerConfig;
use crate::domain::outcome::{Category, Failure};
use crate::domain::tool::{ToolOutput, ToolSpec, ToolTarget};
use crate::domain::tool_server::{ServerState, ServerStatus};
use crate::health::Health;
use crate::metrics::{EraLabels, Metrics, ServerLabels, ToolLabels, TroubleLabels};
use crate::modes::schema::Schema;
use crate::retry::backoff;
use crate::tools::approval::{Approval, Change, Review};
use crate::tools::resolve::{allowed, matches};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a required server is looked after while nobody calls it.
const WATCH: Duration = Duration::from_secs(5);
/// How long a list counts as current where its server neither tells changes nor says how long.
const ASSUMED_FRESH: Duration = Duration::from_secs(60);
/// How long a node waits for a newer list where an older one is at hand.
const NEWER_LIST: Duration = Duration::from_secs(1);

/// One server as the actor needs it; kept over its lives.
pub struct Server {
    /// Its configured name.
    pub name: String,
    config: McpServerConfig,
    endpoint: Endpoint,
    /// Whether its tools are still what they were.
    pub approval: Approval,
    slots: Semaphore,
    link: Mutex<Link>,
    /// The tools as last discovered, readable without asking the actor.
    catalog: RwLock<Option<Catalog>>,
    /// Held while the tools are listed: who comes meanwhile waits for that list and asks for none of his own.
    listing: Mutex<()>,
    status: Arc<StdMutex<ServerStatus>>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Catalog {
    tools: Arc<Vec<ToolSpec>>,
    /// Names that the server offers too and its configuration hides.
    hidden: Arc<[String]>,
    /// What else is known of them, by name.
    facts: Arc<HashMap<String, ToolFacts>>,
    /// The session and its count of announced changes that the tools were read at.
    session: std::sync::Weak<Session>,
    changes: u64,
    /// When the list has to be read again, if nobody tells that it changed.
    stale_at: Option<Instant>,
}

/// What the worker itself has to know of a tool.
struct ToolFacts {
    /// Whether it may run twice.
    repeatable: bool,
    /// What its structured answer has to satisfy; compiled when there is one.
    output_schema: Option<(Arc<serde_json::Value>, std::sync::OnceLock<Option<Schema>>)>,
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
        approval: Approval,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let link = Link { counted_down: config.required, ..Link::default() };
        if config.required {
            health.required_server(true);
        }
        let transport = if config.url.is_some() { "http" } else { "stdio" };
        let status =
            ServerStatus { name: name.to_owned(), transport, required: config.required, ..ServerStatus::default() };
        Arc::new(Self {
            name: name.to_owned(),
            slots: Semaphore::new(config.concurrency.get()),
            endpoint: Endpoint::new(name, config.clone()),
            config,
            approval,
            link: Mutex::new(link),
            catalog: RwLock::new(None),
            listing: Mutex::default(),
            status: health.tool_server(status),
            health,
            metrics,
            stop,
        })
    }

    /// What is known of the server now.
    pub fn status(&self) -> ServerStatus {
        self.status_mut().clone()
    }

    fn status_mut(&self) -> MutexGuard<'_, ServerStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tools as last discovered, if they are still current.
    pub fn current_tools(&self) -> Option<Arc<Vec<ToolSpec>>> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        let catalog = catalog.as_ref()?;
        let session = catalog.session.upgrade()?;
        // Without a moment it was taken as current because changes would be told.
        let stale = catalog.stale_at.map_or_else(|| !session.tells_changes(), |at| at <= Instant::now());
        let current = !session.is_closed() && session.tools_changed() == catalog.changes && !stale;
        current.then(|| Arc::clone(&catalog.tools))
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

    /// Who the server says it is, while there is a session.
    pub async fn info(&self) -> Option<ServerInfo> {
        self.link.lock().await.session.as_ref().map(|session| session.info().clone())
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
                let (info_era, version) = (info.era.as_str(), info.protocol_version.clone());
                let own_name = format!("{} {}", info.name, info.version).trim().to_owned();
                let session = Arc::new(session);
                *link =
                    Link { session: Some(Arc::clone(&session)), counted_down: link.counted_down, ..Link::default() };
                self.mark(&mut link, true);
                {
                    let mut status = self.status_mut();
                    status.era = Some(info_era);
                    status.protocol_version = Some(version.clone());
                    status.server = Some(own_name);
                    status.connects += 1;
                }
                let era = EraLabels { server: self.name.clone(), era: info_era, version };
                self.metrics.mcp_era.get_or_create(&era).set(1);
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
                self.failed(&failure);
                self.mark(&mut link, false);
                Err(failure)
            }
        }
    }

    /// Something went wrong with the server.
    fn failed(&self, failure: &Failure) {
        self.status_mut().failed(failure);
        let labels = TroubleLabels { server: self.name.clone(), code: failure.code.to_string() };
        self.metrics.mcp_errors.get_or_create(&labels).inc();
    }

    /// The server answered.
    fn answered(&self, took: Duration) {
        self.status_mut().answered(took);
        self.metrics.mcp_latency.get_or_create(&self.labels()).set(took.as_secs_f64());
    }

    fn mark(&self, link: &mut Link, up: bool) {
        let spoken = {
            let mut status = self.status_mut();
            status.state = if up { ServerState::Up } else { ServerState::Down };
            status.era.zip(status.protocol_version.clone())
        };
        if let Some((era, version)) = spoken {
            self.metrics.mcp_era.remove(&EraLabels { server: self.name.clone(), era, version });
        }
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
        let _listing = self.listing.lock().await;
        // Somebody else may have listed them while we waited.
        if let Some(tools) = self.current_tools() {
            return Ok(tools);
        }
        let mut session = self.session().await?;
        let mut changes = session.tools_changed();
        let mut started = Instant::now();
        let listed = match session.list_tools().await {
            Err(McpError::SessionLost { .. }) => {
                self.forget(&session).await;
                session = self.session().await?;
                (changes, started) = (session.tools_changed(), Instant::now());
                session.list_tools().await
            }
            listed => listed,
        };
        let listing = listed.map_err(|error| {
            let failure = Failure::from(error);
            self.failed(&failure);
            failure
        })?;
        self.answered(started.elapsed());
        Ok(self.keep(&session, changes, listing))
    }

    /// Keeps a list that was just read.
    fn keep(&self, session: &Arc<Session>, changes: u64, listing: ToolListing) -> Arc<Vec<ToolSpec>> {
        let fresh = match listing.fresh_for {
            Some(fresh) if !fresh.is_zero() => Some(fresh),
            // It tells when they change; nobody has to ask.
            Some(_) | None if session.tells_changes() => None,
            Some(_) | None => Some(ASSUMED_FRESH),
        };
        let (listed, hidden): (Vec<_>, Vec<_>) =
            listing.tools.into_iter().partition(|tool| allowed(&self.config, &tool.name));
        let hidden = hidden.into_iter().map(|tool| tool.name).collect();
        let mut facts = HashMap::new();
        let mut tools = Vec::new();
        for tool in listed {
            let repeatable = tool.hints.read_only || tool.hints.idempotent;
            let output_schema = tool.output_schema.clone().map(|schema| (schema, std::sync::OnceLock::new()));
            facts.insert(tool.name.clone(), ToolFacts { repeatable, output_schema });
            tools.push(self.spec(tool));
        }
        tracing::debug!(mcp.server = self.name, tools = tools.len(), "discovered tools");
        let tools = Arc::new(self.reviewed(tools));
        {
            let mut status = self.status_mut();
            status.tools = Some(tools.len());
            status.listed_at = Some(jiff::Timestamp::now());
        }
        let count = i64::try_from(tools.len()).unwrap_or(i64::MAX);
        self.metrics.mcp_tools.get_or_create(&self.labels()).set(count);
        let catalog = Catalog {
            tools: Arc::clone(&tools),
            hidden,
            facts: Arc::new(facts),
            session: Arc::downgrade(session),
            changes,
            stale_at: fresh.and_then(|fresh| Instant::now().checked_add(fresh)),
        };
        *self.catalog.write().expect("nobody panics while holding the catalog") = Some(catalog);
        tools
    }

    /// The tools for a node: it waits for a newer list only as long as that is quick, if there is an older one. What it
    /// waited for goes on without it.
    async fn offer(self: &Arc<Self>) -> Result<Arc<Vec<ToolSpec>>, Failure> {
        let Some(known) = self.last_known_tools() else { return self.discover().await };
        let server = Arc::clone(self);
        let listing = tokio::spawn(async move { server.discover().await });
        match tokio::time::timeout(NEWER_LIST, listing).await {
            Ok(Ok(Ok(tools))) => Ok(tools),
            // The failure was noted where it happened.
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => Ok(known),
        }
    }

    /// What of the tools may be offered; what changed is told.
    fn reviewed(&self, tools: Vec<ToolSpec>) -> Vec<ToolSpec> {
        let Review { offered, changes, withheld } = self.approval.review(tools);
        for Change { tool, old, new } in changes {
            tracing::warn!(mcp.server = self.name, tool, %old, %new, "a tool is described differently than before");
            self.metrics.mcp_tool_changes.get_or_create(&self.labels()).inc();
        }
        for held in withheld {
            let (tool, code) = (&held.spec.target.name, held.code());
            tracing::warn!(mcp.server = self.name, tool, code, offered = %held.offered, "a tool that was not approved is withheld");
        }
        offered
    }

    /// Lets the next discovery ask the server, whatever is known, and judge by what is approved by now.
    pub fn outdate(&self) -> Result<(), Failure> {
        self.approval.reload().map_err(|error| Failure::configuration("lock_file", error.to_string()))?;
        if let Some(catalog) = self.catalog.write().expect("nobody panics while holding the catalog").as_mut() {
            // It is still what is known of the server if that is away.
            catalog.session = std::sync::Weak::new();
        }
        Ok(())
    }

    /// Whether the server still answers: a session over HTTP does not notice by itself that nobody is there any more.
    async fn look_after(&self) {
        let open = self.link.lock().await.session.clone().filter(|session| !session.is_closed());
        let Some(session) = open else {
            // The failure was logged and counted where it happened.
            let _ = self.discover().await;
            return;
        };
        let (changes, started) = (session.tools_changed(), Instant::now());
        match session.list_tools().await {
            Ok(listing) => {
                self.answered(started.elapsed());
                self.keep(&session, changes, listing);
            }
            Err(error) => {
                tracing::warn!(mcp.server = self.name, %error, "a required tool server does not answer any more");
                self.failed(&Failure::from(error));
                self.forget(&session).await;
            }
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
        if self.approval.is_pinned() {
            // A tool may have changed since the node found it.
            self.discover().await?;
        }
        self.approval.check(&call.target.name)?;
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let _under_way = UnderWay::begin(self);
        let timeout = self.timeout_of(&call.target.name);
        let meta = || CallMeta { progress: call.progress.clone(), timeout, ..CallMeta::from(&call.context) };
        let mut session = self.session().await?;
        let repeatable = self.fact(&call.target.name, |facts| facts.repeatable).unwrap_or(false);
        let mut started = Instant::now();
        let answer = match session.call_tool(&call.target.name, &call.arguments, meta()).await {
            Err(error @ McpError::SessionLost { .. }) => {
                self.forget(&session).await;
                if error.may_have_run() && !repeatable {
                    let failure = error.into_failure(false);
                    self.failed(&failure);
                    return Err(failure);
                }
                // It did not run, because the server no longer knows the session; or it may run twice.
                session = self.session().await?;
                started = Instant::now();
                session.call_tool(&call.target.name, &call.arguments, meta()).await
            }
            answer => answer,
        };
        match answer {
            Ok(output) => {
                self.answered(started.elapsed());
                self.check(&call.target.name, &output);
                Ok(output)
            }
            Err(error) => {
                let failure = error.into_failure(repeatable);
                self.failed(&failure);
                Err(failure)
            }
        }
    }

    /// How long a tool may be silent, where it has a limit of its own.
    fn timeout_of(&self, tool: &str) -> Option<Duration> {
        let limits = &self.config.tool_timeouts;
        // Of several patterns the one that says most.
        let fitting = || limits.iter().filter(|(pattern, _)| matches(pattern, tool)).max_by_key(|(p, _)| p.len());
        limits.get(tool).or_else(|| fitting().map(|(_, limit)| limit)).copied()
    }

    fn fact<T>(&self, tool: &str, fact: impl FnOnce(&ToolFacts) -> T) -> Option<T> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        let facts = Arc::clone(&catalog.as_ref()?.facts);
        drop(catalog);
        facts.get(tool).map(fact)
    }

    /// Compares a structured answer with what its tool promised. It is handed on either way: a model can make more of an
    /// answer that does not fit than of none.
    fn check(&self, tool: &str, output: &ToolOutput) {
        let Some(structured) = output.structured.as_ref().filter(|_| !output.is_error) else { return };
        let problem = self.fact(tool, |facts| {
            let (schema, compiled) = facts.output_schema.as_ref()?;
            let compiled = compiled.get_or_init(|| Schema::compile(Arc::clone(schema)).ok());
            compiled.as_ref()?.check(structured).err()
        });
        if let Some(problem) = problem.flatten() {
            tracing::warn!(mcp.server = self.name, tool, "a structured answer does not fit the tool's own schema");
            // It may quote the answer.
            tracing::debug!(mcp.server = self.name, tool, problem, "what does not fit");
        }
    }

    /// Ends the session, its child process included.
    pub async fn close(&self) {
        let session = self.link.lock().await.session.take();
        if let Some(session) = session {
            session.close().await;
        }
    }
}

/// Counts a call while it is under way.
struct UnderWay<'a>(&'a Server);

impl<'a> UnderWay<'a> {
    fn begin(server: &'a Server) -> Self {
        server.status_mut().in_flight += 1;
        Self(server)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.status_mut().in_flight -= 1;
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
            tokio::time::timeout_at(deadline.into(), server.offer()).await.unwrap_or_else(|_| {
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
