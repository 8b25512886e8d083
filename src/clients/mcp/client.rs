//! The typed client: opening a session, listing tools, calling one. Generic over the transport and its layers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jsonrpsee::types::{Id, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::era::{self, Dialect, Era, HEADER_MISMATCH};
use super::error::{McpError, excerpt};
use super::inbox::Inbox;
use super::input::in_words;
use super::list::ToolList;
use super::mirror::{self, Mirrored};
use super::service::{FlightPlan, McpService};
use super::task::{self, Begun};
use super::wire::{self, CallResult, DiscoverResult, InitializeResult, ToolsPage};
use crate::domain::ids::{GraphId, NodeId, RunId};
use crate::domain::tool::{Arguments, ToolHints};
use crate::ports::{CallContext, ProgressSender};

/// Pages of one tool list.
const MAX_PAGES: usize = 1_000;
/// How often a tool may ask for something within one call.
const MAX_ROUNDS: usize = 10;

/// Who a server says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Its own name, for display.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The era of the protocol that is spoken with it.
    pub era: Era,
    /// The protocol version.
    pub protocol_version: String,
    /// How to use it, for a model.
    pub instructions: Option<String>,
    /// Whether it tells when its tools change.
    pub tells_changes: bool,
}

/// A tool as its server describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct McpTool {
    /// Its name there.
    pub name: String,
    /// Its name for people.
    pub title: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// The JSON Schema of its arguments, as the server wrote it.
    pub input_schema: Arc<Value>,
    /// The JSON Schema of its structured answer.
    pub output_schema: Option<Arc<Value>>,
    /// What is said of its effects.
    pub hints: ToolHints,
}

/// The tools of a server, each name once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolListing {
    /// The tools.
    pub tools: Vec<McpTool>,
    /// For how long the server says that they stay as they are; none where it does not say.
    pub fresh_for: Option<Duration>,
}

/// Who calls a tool and until when. What is not about this process goes to the server in `_meta`.
#[derive(Debug, Clone)]
pub struct CallMeta {
    /// The graph.
    pub graph_id: GraphId,
    /// The node.
    pub node_id: NodeId,
    /// The identity of the execution.
    pub run_id: RunId,
    /// Stable across attempts, so that a server can tell a repetition.
    pub idempotency_key: String,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// When the node's time is up.
    pub deadline: Instant,
    /// Who wants to know how far the call has come.
    pub progress: Option<ProgressSender>,
    /// How long this tool may be silent; as long as its server where none is given.
    pub timeout: Option<Duration>,
}

impl From<&CallContext> for CallMeta {
    fn from(context: &CallContext) -> Self {
        Self {
            graph_id: context.graph_id.clone(),
            node_id: context.node_id.clone(),
            run_id: context.run_id.clone(),
            idempotency_key: context.idempotency_key.clone(),
            traceparent: context.traceparent.clone(),
            deadline: context.deadline,
            progress: None,
            timeout: None,
        }
    }
}

impl CallMeta {
    /// As it goes out. Trace context stands without a prefix by an exception of the specification.
    fn add_to(&self, meta: &mut Map<String, Value>, progress_token: u64) {
        let mut add = |key: &str, value: Value| meta.insert(key.to_owned(), value);
        add("progressToken", Value::from(progress_token));
        add("da-node-executor/graphId", Value::from(self.graph_id.as_str()));
        add("da-node-executor/nodeId", Value::from(self.node_id.as_str()));
        add("da-node-executor/runId", Value::from(self.run_id.as_str()));
        add("da-node-executor/idempotencyKey", Value::from(self.idempotency_key.as_str()));
        if let Some(traceparent) = &self.traceparent {
            add("traceparent", Value::from(traceparent.as_str()));
        }
    }
}

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallLimits {
    /// How long the server may be silent.
    pub(super) silence: Duration,
    /// How long it may take in all.
    pub(super) longest: Duration,
}

/// The client of one server.
pub(super) struct Client<S> {
    service: S,
    inbox: Arc<Inbox>,
    dialect: Dialect,
    /// Whether arguments that tools mark are repeated in headers: over HTTP in the modern era.
    mirrors: bool,
    next_id: AtomicU64,
    /// The marks of the tools that have any, as last listed.
    marks: RwLock<HashMap<String, Arc<[Mirrored]>>>,
}

/// The parameters of a call.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallParams<'a> {
    name: &'a str,
    arguments: &'a Arguments,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_responses: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_state: Option<&'a str>,
    #[serde(rename = "_meta")]
    meta: Map<String, Value>,
}

impl<S: McpService> Client<S> {
    /// Over `service`; it does not know yet what its server speaks.
    pub(super) fn new(service: S, inbox: Arc<Inbox>) -> Self {
        let (next_id, marks) = (AtomicU64::new(1), RwLock::default());
        Self { service, inbox, dialect: Dialect::Legacy, mirrors: false, next_id, marks }
    }

    /// From now on requests are made up like this; `http` is for requests that have headers.
    pub(super) fn speak(&mut self, dialect: Dialect, http: bool) {
        self.dialect = dialect;
        self.mirrors = http && dialect.era() == Era::Modern;
    }

    /// Asks a modern server what it is. None of the answer where the server is not modern after all.
    pub(super) async fn discover(&self, plan: FlightPlan) -> Result<DiscoverResult, McpError> {
        let params = json!({"_meta": self.meta()});
        let result: DiscoverResult = self.request(self.id(), wire::DISCOVER, &params, plan).await?.1;
        match result.result_type.is_some() || result.supported_versions.is_some() {
            true => Ok(result),
            false => Err(self.broken("its answer to `server/discover` is none")),
        }
    }

    /// The first half of opening a session. The transport learns the version before [`Self::initialized`] is sent.
    pub(super) async fn initialize(&self, version: &str, limit: Duration) -> Result<ServerInfo, McpError> {
        let params = json!({
            "protocolVersion": version,
            "capabilities": self.capabilities(),
            "clientInfo": era::client_info(),
        });
        // The protocol forbids to cancel it.
        let plan = FlightPlan { cancellable: false, ..FlightPlan::plain(wire::INITIALIZE, limit) };
        let result: InitializeResult = self.request(self.id(), wire::INITIALIZE, &params, plan).await?.1;
        if era::legacy(&result.protocol_version).is_none() {
            let version = excerpt(&result.protocol_version);
            return Err(McpError::UnsupportedVersion { server: Arc::clone(self.server()), version });
        }
        Ok(ServerInfo {
            name: result.server_info.name,
            version: result.server_info.version,
            era: Era::Legacy,
            protocol_version: result.protocol_version,
            instructions: result.instructions,
            tells_changes: result.capabilities.tools.is_some_and(|tools| tools.list_changed),
        })
    }

    /// The second half: the server may work from now on.
    pub(super) async fn initialized(&self) -> Result<(), McpError> {
        self.service.notification(wire::notification("notifications/initialized")).await
    }

    /// Asks for a sign of life. Who refuses the question is there, too.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), McpError> {
        let (method, params) = match self.dialect.era() {
            Era::Legacy => (wire::PING, json!({})),
            // It has no question of that kind any more; this is the least that one can ask.
            Era::Modern => (wire::DISCOVER, json!({"_meta": self.meta()})),
        };
        match self.request::<Value>(self.id(), method, &params, FlightPlan::plain(method, limit)).await {
            Ok(_) | Err(McpError::Rpc { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Listens for changes of the tools, for as long as the server tells them.
    pub(super) async fn listen(&self) -> Result<(), McpError> {
        let params = json!({"notifications": {"toolsListChanged": true}, "_meta": self.meta()});
        let plan = FlightPlan::plain(wire::LISTEN, Duration::MAX);
        self.request::<Value>(self.id(), wire::LISTEN, &params, plan).await.map(|_| ())
    }

    /// All tools, page by page; `limit` is for all of them together.
    pub(super) async fn list_tools(&self, limit: Duration) -> Result<ToolListing, McpError> {
        let deadline = Instant::now() + limit;
        match self.list_pages(deadline).await {
            // The list changed while it was read, and the place to go on from is no longer in it.
            Err((McpError::Rpc { code: wire::INVALID_PARAMS, .. }, true)) => self.list_pages(deadline).await,
            listed => listed,
        }
        .map_err(|(error, _)| error)
    }

    /// The flag of an error says that it was about a further page.
    async fn list_pages(&self, deadline: Instant) -> Result<ToolListing, (McpError, bool)> {
        let mut list = ToolList::new(Arc::clone(self.server()), self.mirrors);
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut params = Map::new();
            if let Some(cursor) = &cursor {
                params.insert(String::from("cursor"), Value::from(cursor.as_str()));
            }
            if self.dialect.era() == Era::Modern {
                params.insert(String::from("_meta"), self.meta().into());
            }
            let plan = FlightPlan::plain("tools/list", deadline.saturating_duration_since(Instant::now()));
            let (size, page): (usize, ToolsPage) = match self.request(self.id(), "tools/list", &params, plan).await {
                // A server without tools need not know the method.
                Err(McpError::Rpc { code: wire::METHOD_NOT_FOUND, .. }) if cursor.is_none() => {
                    return Ok(ToolListing::default());
                }
                page => page.map_err(|error| (error, cursor.is_some()))?,
            };
            cursor = list.add(size, page).map_err(|error| (error, false))?;
            if cursor.is_none() {
                let (listing, marks) = list.done();
                *self.marks.write().unwrap_or_else(PoisonError::into_inner) = marks;
                return Ok(listing);
            }
        }
        Err((self.too_large("the number of pages of the tool list", MAX_PAGES), false))
    }

    /// One call, with what the tool asks for in its course. The node's deadline may be earlier than the limits. Where
    /// `tasks` may be, the server may also take it on as one.
    pub(super) async fn call_tool(
        &self,
        name: &str,
        arguments: &Arguments,
        meta: &CallMeta,
        limits: CallLimits,
        tasks: bool,
    ) -> Result<Begun, McpError> {
        let tasks = tasks && self.era() == Era::Modern;
        let begun = tokio::time::Instant::now();
        let silence = meta.timeout.unwrap_or(limits.silence);
        let longest = limits.longest.max(silence).min(meta.deadline.saturating_duration_since(Instant::now()));
        let mut again = false;
        let mut answers: Option<Map<String, Value>> = None;
        let mut state: Option<String> = None;
        for _ in 0..MAX_ROUNDS {
            let id = self.id();
            let mut plan = FlightPlan::tool(name, silence, longest);
            plan.begun = Some(begun);
            plan.progress = meta.progress.clone();
            if self.mirrors {
                plan.mirrored = mirror::headers(&self.marks_of(name), arguments);
            }
            let mut params = CallParams {
                name,
                arguments,
                input_responses: answers.as_ref(),
                request_state: state.as_deref(),
                meta: if tasks { self.meta_with_tasks() } else { self.meta() },
            };
            meta.add_to(&mut params.meta, id);
            let result: CallResult = match self.request(id, wire::CALL, &params, plan).await {
                // The server refused it before it ran: what the tool marks has changed, or was never known here.
                Err(McpError::Rpc { code: HEADER_MISMATCH, .. }) if self.mirrors && !again => {
                    again = true;
                    Box::pin(self.list_tools(longest.saturating_sub(begun.elapsed()))).await?;
                    continue;
                }
                result => result?.1,
            };
            match result.result_type.as_deref() {
                None | Some("complete") => return Ok(Begun::Done(result.into_output())),
                Some("task") if tasks => {
                    return task::begun(&result)
                        .ok_or_else(|| self.broken("a call became a task without a name that can be used"));
                }
                Some("input_required") => {
                    let asked = Box::pin(self.answers_to(name, result.input_requests.as_ref()));
                    let left = longest.saturating_sub(begun.elapsed());
                    answers = timeout(left, asked).await.map_err(|_| McpError::TimedOut {
                        server: Arc::clone(self.server()),
                        what: format!("what the tool `{name}` asks for"),
                        limit: longest,
                        may_have_run: true,
                    })??;
                    state = result.request_state;
                    if answers.is_none() && state.is_none() {
                        return Err(self.broken("it asks for input without a question"));
                    }
                }
                Some(other) => {
                    return Err(self.broken(&format!("the result of a call is of the unknown type `{other}`")));
                }
            }
        }
        Err(self.input_required(name, &format!("it asked {MAX_ROUNDS} times")))
    }

    /// The answers to what a tool asks; none if it asks nothing and only wants to be called again.
    async fn answers_to(
        &self,
        tool: &str,
        requests: Option<&Map<String, Value>>,
    ) -> Result<Option<Map<String, Value>>, McpError> {
        let Some(requests) = requests else { return Ok(None) };
        let mut answers = Map::new();
        for (key, request) in requests {
            let method = request.get("method").and_then(Value::as_str).unwrap_or_default();
            let params = request.get("params").unwrap_or(&Value::Null);
            let Some(answer) = self.inbox.ask(method, params, None).await else {
                return Err(self.input_required(tool, &in_words(method, params)));
            };
            answers.insert(key.clone(), answer);
        }
        Ok(Some(answers))
    }

    pub(super) fn input_required(&self, tool: &str, asked: &str) -> McpError {
        let what = FlightPlan::in_words(tool);
        McpError::InputRequired { server: Arc::clone(self.server()), what, asked: excerpt(asked) }
    }

    fn marks_of(&self, tool: &str) -> Arc<[Mirrored]> {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        marks.get(tool).cloned().unwrap_or_default()
    }

    /// One request and its answer, with the answer's size.
    pub(super) async fn request<R: DeserializeOwned>(
        &self,
        id: u64,
        method: &'static str,
        params: &impl Serialize,
        mut plan: FlightPlan,
    ) -> Result<(usize, R), McpError> {
        let mut request: Request<'static> = Request {
            jsonrpc: jsonrpsee::types::TwoPointZero,
            id: Id::Number(id),
            method: Cow::Borrowed(method),
            params: Some(Cow::Owned(wire::params(params))),
            extensions: Default::default(),
        };
        plan.dialect = self.dialect;
        if self.mirrors {
            // Closing the stream of the answer is the cancellation.
            plan.cancellable = false;
        }
        let flight = plan.start();
        let _watched = flight.plan().effect.then(|| self.inbox.watch(id, &flight));
        request.extensions.insert(flight);
        let answer: Box<RawValue> = self.service.call(request).await?;
        let result = serde_json::from_str(answer.get())
            .map_err(|error| self.broken(&format!("the answer to `{method}` cannot be read: {error}")))?;
        Ok((answer.get().len(), result))
    }

    /// What every request of this dialect says of us.
    fn meta(&self) -> Map<String, Value> {
        self.dialect.meta(&self.capabilities())
    }

    /// The same, where a call may become a task.
    pub(super) fn meta_with_tasks(&self) -> Map<String, Value> {
        let mut capabilities = self.capabilities();
        task::declare(&mut capabilities);
        self.dialect.meta(&capabilities)
    }

    /// The era that is spoken.
    pub(super) fn era(&self) -> Era {
        self.dialect.era()
    }

    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    fn capabilities(&self) -> Value {
        self.inbox.answers().map_or_else(|| json!({}), |answers| answers.capabilities())
    }

    pub(super) fn server(&self) -> &Arc<str> {
        self.inbox.server()
    }

    pub(super) fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn broken(&self, problem: &str) -> McpError {
        McpError::Protocol { server: Arc::clone(self.server()), problem: excerpt(problem) }
    }

    fn too_large(&self, what: &'static str, limit: usize) -> McpError {
        McpError::TooLarge { server: Arc::clone(self.server()), what, limit }
    }
}
