//! The typed client: opening a session, listing tools, calling one. Generic over the transport and its layers.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jsonrpsee::types::{Id, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::error::{McpError, excerpt};
use super::service::{Flight, McpService};
use super::wire::{self, CallResult, InitializeResult, ToolsPage};
use crate::domain::ids::{GraphId, NodeId, RunId};
use crate::domain::tool::{Arguments, ToolHints, ToolOutput};
use crate::ports::CallContext;

/// Pages of one tool list.
const MAX_PAGES: usize = 1_000;
/// Tools of one server.
const MAX_TOOLS: usize = 20_000;
/// Bytes of all pages of one tool list.
const MAX_LIST_BYTES: usize = 32 * 1024 * 1024;

/// Who a server says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Its own name, for display.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The protocol version of the session.
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

/// Who calls a tool and until when. All but the deadline goes to the server in `_meta`.
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
        }
    }
}

impl CallMeta {
    /// As it goes out. Trace context stands without a prefix by an exception of the specification.
    fn to_wire(&self, progress_token: u64) -> Value {
        let mut meta = json!({
            "progressToken": progress_token,
            "da-node-executor/graphId": self.graph_id.as_str(),
            "da-node-executor/nodeId": self.node_id.as_str(),
            "da-node-executor/runId": self.run_id.as_str(),
            "da-node-executor/idempotencyKey": self.idempotency_key,
        });
        if let Some(traceparent) = &self.traceparent {
            meta["traceparent"] = Value::from(traceparent.as_str());
        }
        meta
    }
}

/// The client of one server.
pub(super) struct Client<S> {
    service: S,
    server: Arc<str>,
    next_id: AtomicU64,
}

impl<S: McpService> Client<S> {
    /// Over `service`, which speaks to `server`.
    pub(super) fn new(service: S, server: Arc<str>) -> Self {
        Self { service, server, next_id: AtomicU64::new(1) }
    }

    /// The first half of opening a session. The transport learns the version before [`Self::initialized`] is sent.
    pub(super) async fn initialize(&self, limit: Duration) -> Result<ServerInfo, McpError> {
        let params = json!({
            "protocolVersion": wire::VERSION,
            "capabilities": {},
            "clientInfo": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
        });
        let flight = Flight::plain(wire::INITIALIZE, limit);
        let result: InitializeResult = self.request(self.id(), wire::INITIALIZE, &params, flight).await?.1;
        if !wire::VERSIONS.contains(&result.protocol_version.as_str()) {
            let version = excerpt(&result.protocol_version);
            return Err(McpError::UnsupportedVersion { server: Arc::clone(&self.server), version });
        }
        Ok(ServerInfo {
            name: result.server_info.name,
            version: result.server_info.version,
            protocol_version: result.protocol_version,
            instructions: result.instructions,
            tells_changes: result.capabilities.tools.is_some_and(|tools| tools.list_changed),
        })
    }

    /// The second half: the server may work from now on.
    pub(super) async fn initialized(&self) -> Result<(), McpError> {
        self.service.notification(wire::notification("notifications/initialized")).await
    }

    /// All tools, page by page; `limit` is for all of them together.
    pub(super) async fn list_tools(&self, limit: Duration) -> Result<Vec<McpTool>, McpError> {
        let deadline = Instant::now() + limit;
        let mut list = ToolList::default();
        let mut cursor: Option<String> = None;
        let mut cursors = HashSet::new();
        for _ in 0..MAX_PAGES {
            let params = match &cursor {
                Some(cursor) => json!({"cursor": cursor}),
                None => json!({}),
            };
            let flight = Flight::plain("tools/list", deadline.saturating_duration_since(Instant::now()));
            let (size, page): (usize, ToolsPage) = match self.request(self.id(), "tools/list", &params, flight).await {
                // A server without tools need not know the method.
                Err(McpError::Rpc { code: wire::METHOD_NOT_FOUND, .. }) if cursor.is_none() => return Ok(Vec::new()),
                page => page?,
            };
            list.add(&self.server, size, page.tools)?;
            let Some(next) = page.next_cursor else { return Ok(list.tools) };
            if !cursors.insert(next.clone()) {
                return Err(self.broken("its tool list runs in a circle"));
            }
            cursor = Some(next);
        }
        Err(self.too_large("the number of pages of the tool list", MAX_PAGES))
    }

    /// One call; `limit` is the most it may take, the node's deadline may be earlier.
    pub(super) async fn call_tool(
        &self,
        name: &str,
        arguments: &Arguments,
        meta: &CallMeta,
        limit: Duration,
    ) -> Result<ToolOutput, McpError> {
        #[derive(Serialize)]
        struct Params<'a> {
            name: &'a str,
            arguments: &'a Arguments,
            _meta: Value,
        }
        let id = self.id();
        let flight = Flight::tool(name, limit.min(meta.deadline.saturating_duration_since(Instant::now())));
        let params = Params { name, arguments, _meta: meta.to_wire(id) };
        let result: Map<String, Value> = self.request(id, "tools/call", &params, flight).await?.1;
        // What another era would ask for in between is no result; it was not offered, so it is not answered.
        if !matches!(result.get("resultType").and_then(Value::as_str), None | Some("complete")) {
            return Err(self.broken("it answered a call with something else than a result"));
        }
        let result: CallResult = serde_json::from_value(Value::Object(result))
            .map_err(|error| self.broken(&format!("the result of a call cannot be read: {error}")))?;
        Ok(ToolOutput {
            content: result.content,
            structured: result.structured_content,
            is_error: result.is_error.unwrap_or(false),
        })
    }

    /// One request and its answer, with the answer's size.
    async fn request<R: DeserializeOwned>(
        &self,
        id: u64,
        method: &'static str,
        params: &impl Serialize,
        flight: Flight,
    ) -> Result<(usize, R), McpError> {
        let mut request: Request<'static> = Request {
            jsonrpc: jsonrpsee::types::TwoPointZero,
            id: Id::Number(id),
            method: Cow::Borrowed(method),
            params: Some(Cow::Owned(wire::params(params))),
            extensions: Default::default(),
        };
        request.extensions.insert(flight);
        let answer: Box<RawValue> = self.service.call(request).await?;
        let result = serde_json::from_str(answer.get())
            .map_err(|error| self.broken(&format!("the answer to `{method}` cannot be read: {error}")))?;
        Ok((answer.get().len(), result))
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn broken(&self, problem: &str) -> McpError {
        McpError::Protocol { server: Arc::clone(&self.server), problem: excerpt(problem) }
    }

    fn too_large(&self, what: &'static str, limit: usize) -> McpError {
        McpError::TooLarge { server: Arc::clone(&self.server), what, limit }
    }
}

/// The tools of the pages so far.
#[derive(Default)]
struct ToolList {
    tools: Vec<McpTool>,
    names: HashSet<String>,
    bytes: usize,
}

impl ToolList {
    fn add(&mut self, server: &Arc<str>, size: usize, page: Vec<Value>) -> Result<(), McpError> {
        self.bytes += size;
        let too_large = |what, limit| Err(McpError::TooLarge { server: Arc::clone(server), what, limit });
        if self.bytes > MAX_LIST_BYTES {
            return too_large("the tool list", MAX_LIST_BYTES);
        }
        if self.tools.len() + page.len() > MAX_TOOLS {
            return too_large("the number of tools", MAX_TOOLS);
        }
        for tool in page {
            match read_tool(tool) {
                Some(tool) if self.names.insert(tool.name.clone()) => self.tools.push(tool),
                Some(tool) => {
                    tracing::warn!(mcp.server = %server, tool = %excerpt(&tool.name), "tool listed twice, the first is used");
                }
                None => tracing::warn!(mcp.server = %server, "tool left out: its description cannot be read"),
            }
        }
        Ok(())
    }
}

fn read_tool(tool: Value) -> Option<McpTool> {
    let tool: wire::Tool = serde_json::from_value(tool).ok()?;
    let input_schema = tool.input_schema.unwrap_or_else(|| json!({"type": "object"}));
    if tool.name.is_empty() || !input_schema.is_object() {
        return None;
    }
    let annotations = tool.annotations.unwrap_or_default();
    Some(McpTool {
        name: tool.name,
        title: tool.title.or(annotations.title),
        description: tool.description,
        input_schema: Arc::new(input_schema),
        output_schema: tool.output_schema.map(Arc::new),
        hints: ToolHints {
            read_only: annotations.read_only_hint.unwrap_or(false),
            idempotent: annotations.idempotent_hint.unwrap_or(false),
        },
    })
}
