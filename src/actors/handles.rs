//! The ports over messages: what the modes call becomes a message to an actor here, and nothing else happens.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::slice;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::dev::ToEnvelope;
use actix::{Actor, Handler, Message};
use futures_util::FutureExt as _;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::actors::custody::InFlight;
use crate::actors::llm::LlmActor;
use crate::actors::mcp::{McpSessionActor, Server};
use crate::actors::messages::{
    Append, CallTool, Complete, Discover, FetchBlob, GiveUpTask, Lapse, LookAtTask, NodeIds, Open, Read,
};
use crate::actors::progress::ProgressLog;
use crate::actors::routes::routes;
use crate::actors::store::StateStore;
use crate::actors::supervise::Post;
use crate::clients::llm::Prices;
use crate::clients::redis::Keys;
use crate::config::Protocol;
use crate::domain::blob::BlobRef;
use crate::domain::event::EventType;
use crate::domain::ids::GraphId;
use crate::domain::journal::{CallId, JournalEntry};
use crate::domain::message::Completion;
use crate::domain::node::{LlmConfig, nearest};
use crate::domain::outcome::Failure;
use crate::domain::state::Snapshot;
use crate::domain::task::{Task, TaskNews, ToolAnswer};
use crate::domain::tool::{Arguments, ToolHints, ToolOutput, ToolSpec, ToolTarget};
use crate::domain::wait::{Ask, Said};
use crate::domain::work::Delivery;
use crate::metrics::{Metrics, ServerLabels, ToolLabels};
use crate::ports::{
    Appended, Away, Events, Found, Journal, Llm, LlmRequest, Opened, Ports, Route, Store, ToolCall, Tools, Wanted,
};
use crate::tools::index::ToolIndex;
use crate::tools::registry::Registry;
use crate::tools::resolve::{Catalog, matches, resolve};

/// How long looking for tools again may take that somebody ordered; the server's own limit holds as well.
const REFRESH: Duration = Duration::from_secs(60);

/// All ports of one worker.
#[derive(Clone)]
pub struct Handles {
    /// Models.
    pub llm: LlmHandle,
    /// Tools.
    pub tools: ToolHandle,
    /// State.
    pub store: StoreHandle,
    /// Journals.
    pub journal: JournalHandle,
    /// Progress.
    pub events: ProgressLog,
}

impl Ports for Handles {
    type Llm = LlmHandle;
    type Tools = ToolHandle;
    type Store = StoreHandle;
    type Journal = JournalHandle;
    type Events = ProgressLog;

    fn llm(&self) -> &LlmHandle {
        &self.llm
    }
    fn tools(&self) -> &ToolHandle {
        &self.tools
    }
    fn store(&self) -> &StoreHandle {
        &self.store
    }
    fn journal(&self) -> &JournalHandle {
        &self.journal
    }
    fn events(&self) -> &ProgressLog {
        &self.events
    }
}

/// Sends a message and waits for its answer. An actor that is being rebuilt is a passing trouble.
async fn ask<A, M, T>(post: &Post<A>, role: &'static str, message: M) -> Result<T, Failure>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message<Result = Result<T, Failure>> + Send + 'static,
    T: Send + 'static,
{
    let away = || Failure::retriable("actor_restarting", format!("the worker's {role} is being restarted"));
    post.addr().ok_or_else(away)?.send(message).await.map_err(|_| away())?
}

/// Models, a provider an actor.
#[derive(Clone)]
pub struct LlmHandle {
    providers: Arc<HashMap<String, (Protocol, Post<LlmActor>)>>,
    prices: Arc<HashMap<String, Prices>>,
    default: Arc<[String]>,
}

impl LlmHandle {
    /// These providers with their prices; nodes that name none use the first of `default`, and the others when it is
    /// overloaded or away.
    pub fn new(
        providers: HashMap<String, (Protocol, Post<LlmActor>)>,
        prices: HashMap<String, Prices>,
        default: Vec<String>,
    ) -> Self {
        Self { providers: Arc::new(providers), prices: Arc::new(prices), default: Arc::from(default) }
    }

    fn provider(&self, name: &str) -> Result<&(Protocol, Post<LlmActor>), Failure> {
        self.providers.get(name).ok_or_else(|| {
            let mut known: Vec<&str> = self.providers.keys().map(String::as_str).collect();
            known.sort_unstable();
            let hint = nearest(name, known.iter().copied()).map(|near| format!("; did you mean {near}?"));
            Failure::configuration(
                "unknown_provider",
                format!(
                    "provider {name:?} is not configured; `llm.providers` has {}{}; name one of them, or configure it",
                    known.join(", "),
                    hint.unwrap_or_default()
                ),
            )
        })
    }
}

impl Llm for LlmHandle {
    fn routes(&self, settings: &Arc<LlmConfig>) -> Result<Vec<Route>, Failure> {
        let named = if settings.provider.is_empty() { &*self.default } else { &settings.provider };
        routes(named, settings, |name| self.provider(name).map(|(protocol, _)| *protocol))
    }

    fn priced(&self, settings: &LlmConfig) -> bool {
        let name = settings.provider.first().or(self.default.first()).map_or("", String::as_str);
        // What is not configured fails with its own words.
        self.prices.get(name).is_none_or(|prices| prices.knows(settings.model.as_deref()))
    }

    async fn complete(&self, request: LlmRequest) -> Result<Completion, Failure> {
        let named = request.settings.provider.first().or(self.default.first()).map_or("", String::as_str);
        let (_, post) = self.provider(named)?;
        let cancel = CancellationToken::new();
        let _cancelled_when_dropped = cancel.clone().drop_guard();
        ask(post, "model client", Complete { request, cancel }).await
    }
}

/// Tools, a server an actor, and the function registry.
#[derive(Clone)]
pub struct ToolHandle {
    servers: Arc<[(Arc<Server>, Post<McpSessionActor>)]>,
    registry: Arc<Registry>,
    registry_specs: Arc<ToolIndex>,
    metrics: Arc<Metrics>,
    /// Collisions that were logged, so that each is logged once.
    reported: Arc<Mutex<HashSet<String>>>,
}

impl ToolHandle {
    /// These servers in the order of resolution, then the registry.
    pub fn new(
        servers: Vec<(Arc<Server>, Post<McpSessionActor>)>,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let registry_specs = Arc::new(ToolIndex::new(registry.specs()));
        Self { servers: servers.into(), registry, registry_specs, metrics, reported: Arc::default() }
    }

    async fn catalog(
        &self,
        server: &Server,
        post: &Post<McpSessionActor>,
        named: bool,
        deadline: Instant,
    ) -> Result<Arc<ToolIndex>, Failure> {
        match server.current_tools() {
            Some(tools) => Ok(tools),
            None => ask(post, "tool client", Discover { named, deadline }).await,
        }
    }

    /// Why the first of these names that leads nowhere does so, if it is an approval or the configuration that keeps its
    /// tool away.
    fn kept_away(&self, catalogs: &[Catalog], patterns: &[String]) -> Option<Failure> {
        let leads = |pattern: &String| resolve(catalogs, &self.registry_specs, slice::from_ref(pattern)).is_ok();
        let lost = patterns.iter().find(|pattern| !leads(pattern))?;
        let concerned = || self.servers.iter().filter(|(server, _)| concerns(lost, &server.name));
        let own = |server: &Server| {
            let own = lost.strip_prefix(server.name.as_str()).and_then(|rest| rest.strip_prefix('/'));
            own.unwrap_or(lost).to_owned()
        };
        let mut withheld = concerned().filter_map(|(server, _)| {
            let own = own(server);
            server.approval.refusal(|tool| matches(&own, tool))
        });
        if let Some(failure) = withheld.next() {
            return Some(failure);
        }
        let mut hidden = concerned().filter_map(|(server, _)| server.why_hidden(&own(server)));
        let why = hidden.next().or_else(|| self.registry.why_off(lost).map(str::to_owned))?;
        Some(Failure::configuration("unknown_tool", why))
    }

    /// Looks for the tools of a server again, whatever is known of them.
    pub async fn refresh(&self, server: &Server) -> Result<Arc<ToolIndex>, Failure> {
        let (_, post) =
            self.servers.iter().find(|(known, _)| known.name == server.name).expect("a server of this worker");
        server.outdate()?;
        ask(post, "tool client", Discover { named: true, deadline: Instant::now() + REFRESH }).await
    }

    /// The way to a server.
    fn post(&self, name: &str) -> Result<&Post<McpSessionActor>, Failure> {
        let Some((_, post)) = self.servers.iter().find(|(server, _)| server.name == name) else {
            let near = nearest(name, self.servers.iter().map(|(server, _)| server.name.as_str()));
            let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            return Err(Failure::configuration("unknown_server", format!("no MCP server is named {name:?}{hint}")));
        };
        Ok(post)
    }

    /// What the servers' approvals say of these tools.
    fn warnings(&self, tools: &[ToolSpec]) -> Vec<String> {
        let warned = tools.iter().filter_map(|tool| {
            let server = tool.target.server.as_deref()?;
            let (server, _) = self.servers.iter().find(|(known, _)| known.name == server)?;
            server.approval.warning(&tool.target.name)
        });
        warned.collect()
    }

    async fn builtin(&self, call: &ToolCall) -> Result<ToolOutput, Failure> {
        let started = Instant::now();
        let run = self.registry.call(&call.target.name, &*call.arguments, &call.context);
        let answer = AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_| {
            Err(Failure::internal("panic", format!("the built-in tool {:?} hit a fault of its own", call.target.name)))
        });
        let outcome = match &answer {
            Ok(output) if output.is_error => "tool_error",
            Ok(_) => "ok",
            Err(_) => "failed",
        };
        let server = ServerLabels { server: String::from("builtin") };
        Metrics::seconds(&self.metrics.tool_duration.get_or_create(&server), started.elapsed());
        let labels = ToolLabels { server: server.server, tool: call.target.name.clone(), outcome };
        self.metrics.tool_calls.get_or_create(&labels).inc();
        answer
    }
}

/// Whether a pattern can mean a tool of this server.
fn concerns(pattern: &str, server: &str) -> bool {
    match pattern.split_once('/') {
        Some((named, _)) => named == server,
        None => true,
    }
}

impl Tools for ToolHandle {
    async fn find(&self, patterns: &[String], deadline: Instant) -> Result<Found, Failure> {
        let asked = self.servers.iter().filter(|(server, _)| patterns.iter().any(|p| concerns(p, &server.name)));
        let named =
            |server: &Server| patterns.iter().any(|p| p.split_once('/').is_some_and(|(named, _)| named == server.name));
        let answers = futures_util::future::join_all(
            asked.map(async |(server, post)| (server, self.catalog(server, post, named(server), deadline).await)),
        )
        .await;
        let mut catalogs = Vec::with_capacity(answers.len());
        let mut away = Vec::new();
        for (server, answer) in answers {
            match answer.or_else(|failure| server.last_known_tools().ok_or(failure)) {
                Ok(tools) => catalogs.push(Catalog { server: server.name.clone(), tools }),
                Err(failure) => {
                    // A server that is named must answer; one that is merely searched may be away.
                    if named(server) {
                        return Err(failure);
                    }
                    away.push(Away { server: server.name.clone(), failure });
                }
            }
        }
        match resolve(&catalogs, &self.registry_specs, patterns) {
            Ok(resolved) => {
                for collision in resolved.collisions {
                    let text = collision.to_string();
                    if self.reported.lock().expect("nobody panics while holding the set").insert(text.clone()) {
                        tracing::warn!(collision = text, "a tool name is offered in several places");
                    }
                }
                Ok(Found { warnings: self.warnings(&resolved.tools), tools: resolved.tools, away })
            }
            // The name may be one of the server that is away, or one that is withheld.
            Err(unknown) => {
                let trouble = away.pop().map(|away| away.failure);
                Err(trouble.or_else(|| self.kept_away(&catalogs, patterns)).unwrap_or(unknown))
            }
        }
    }

    fn effects(&self, spec: &ToolSpec, arguments: &Arguments) -> ToolHints {
        match &spec.target.server {
            Some(_) => spec.hints,
            None => self.registry.effects(&spec.target.name, arguments),
        }
    }

    async fn call(&self, call: ToolCall) -> Result<ToolAnswer, Failure> {
        let Some(name) = &call.target.server else { return self.builtin(&call).await.map(ToolAnswer::Done) };
        let post = self.post(name)?;
        let cancel = CancellationToken::new();
        let _cancelled_when_dropped = cancel.clone().drop_guard();
        ask(post, "tool client", CallTool { call, cancel }).await
    }

    async fn look(&self, call: ToolCall, task: Task) -> Result<TaskNews, Failure> {
        let post = self.post(call.target.server.as_deref().unwrap_or_default())?;
        let cancel = CancellationToken::new();
        let _cancelled_when_dropped = cancel.clone().drop_guard();
        ask(post, "tool client", LookAtTask { call, task, cancel }).await
    }

    async fn give_up(&self, target: &ToolTarget, task: &str) {
        let told = match self.post(target.server.as_deref().unwrap_or_default()) {
            Ok(post) => ask(post, "tool client", GiveUpTask { task: task.to_owned() }).await,
            Err(failure) => Err(failure),
        };
        match told {
            Ok(()) => tracing::debug!(tool = %target, task, "a task was given up"),
            Err(error) => {
                tracing::info!(tool = %target, task, %error, "a task goes on at its server, which could not be told that nobody waits for it")
            }
        }
    }
}

/// The graph's state.
#[derive(Clone)]
pub struct StoreHandle {
    store: Post<StateStore>,
    in_flight: InFlight,
}

impl StoreHandle {
    /// The state by this store, for the entries of this table.
    pub fn new(store: Post<StateStore>, in_flight: InFlight) -> Self {
        Self { store, in_flight }
    }
}

impl Store for StoreHandle {
    async fn open(&self, delivery: &Arc<Delivery>, wanted: &Wanted) -> Result<Opened, Failure> {
        let open = Open { delivery: Arc::clone(delivery), wanted: wanted.clone() };
        let opened = ask(&self.store, "state store", open).await?;
        if matches!(opened, Opened::Ready { .. } | Opened::Cancelled { .. }) {
            self.in_flight.opened(delivery);
        }
        Ok(opened)
    }

    async fn read(&self, graph_id: &GraphId, wanted: &Wanted) -> Result<Snapshot, Failure> {
        ask(&self.store, "state store", Read { graph_id: graph_id.clone(), wanted: wanted.clone() }).await
    }

    async fn blob(&self, graph_id: &GraphId, node_id: &str, blob: &BlobRef) -> Result<Option<Box<RawValue>>, Failure> {
        let fetch = FetchBlob { graph_id: graph_id.clone(), node_id: String::from(node_id), blob: blob.clone() };
        ask(&self.store, "state store", fetch).await
    }

    async fn node_ids(&self, graph_id: &GraphId) -> Result<Vec<String>, Failure> {
        ask(&self.store, "state store", NodeIds { graph_id: graph_id.clone() }).await
    }
}

/// The journals of what this process holds.
#[derive(Clone)]
pub struct JournalHandle {
    store: Post<StateStore>,
    in_flight: InFlight,
    keys: Keys,
}

impl JournalHandle {
    /// Journals through this store, for the entries of this table.
    pub fn new(store: Post<StateStore>, in_flight: InFlight, keys: Keys) -> Self {
        Self { store, in_flight, keys }
    }
}

impl Journal for JournalHandle {
    fn place(&self, delivery: &Delivery, call: CallId) -> Option<String> {
        let item = &delivery.item;
        Some(self.keys.tool_result(&item.graph_id, &item.node_id, &item.run_id, call))
    }

    async fn append(&self, delivery: &Arc<Delivery>, entry: &Arc<JournalEntry>) -> Result<Appended, Failure> {
        loop {
            let token = self.in_flight.token(delivery);
            let append = Append { delivery: Arc::clone(delivery), token: token.clone(), entry: Arc::clone(entry) };
            let answer = ask(&self.store, "state store", append).await?;
            // Lost under a token that was replaced on the way says nothing about the present one.
            if answer == Appended::Done || self.in_flight.token(delivery) == token {
                if entry.progress && answer == Appended::Done {
                    self.in_flight.progressed(delivery);
                }
                return Ok(answer);
            }
        }
    }

    async fn lapse(&self, ask: &Arc<Ask>, said: &Said) -> Result<(), Failure> {
        let lapse = Lapse { ask: Arc::clone(ask), said: said.clone() };
        self::ask(&self.store, "state store", lapse).await
    }
}

impl Events for ProgressLog {
    fn wants(&self, kind: EventType) -> bool {
        self.tells(kind)
    }

    fn progress(&self, delivery: &Arc<Delivery>, kind: EventType, data: Value) {
        self.tell(delivery, kind, data);
    }
}
