//! The settings of the worker, one struct a section. Every default and its unit stands in `config/default.toml`,
//! which is compiled in; reading files and the environment is [`load`]'s.

pub mod duration;
pub mod env;
pub mod error;
pub mod expand;
pub mod file;
mod jsonc;
pub mod layer;
pub mod load;
pub mod mcp_auth;
pub mod mcp_json;
pub mod mcp_servers;
pub mod presets;
pub mod redis_addr;
pub mod schema;
pub mod show;
pub mod source;
pub mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

pub use presets::{Protocol, ProviderKind};

pub use self::mcp_auth::{McpAuthConfig, TokenEndpointAuthMethod};
use crate::domain::price::Price;
pub use crate::domain::wait::OnExpiry;
use crate::retry::RetryPolicy;

/// `config/default.toml` as compiled in.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This process.
    pub worker: WorkerConfig,
    /// The Redis server.
    pub redis: RedisConfig,
    /// Where work comes from.
    pub work: WorkConfig,
    /// How ownership of an entry is held.
    pub lease: LeaseConfig,
    /// How much runs at once.
    pub pool: PoolConfig,
    /// The graph's state.
    pub state: StateConfig,
    /// What is told.
    pub events: EventsConfig,
    /// Models.
    pub llm: LlmSection,
    /// Tool servers.
    pub mcp: McpSection,
    /// Built-in tools.
    pub tools: ToolsConfig,
    /// The agent loop.
    pub agent: AgentConfig,
    /// Nodes that wait for others.
    pub wait: WaitConfig,
    /// How a step is retried.
    pub retry: RetryConfig,
    /// Sizes and times that nothing may exceed.
    pub limits: LimitsConfig,
    /// Health, metrics and the API.
    pub http: HttpConfig,
    /// Logs.
    pub log: LogConfig,
    /// How the worker stops.
    pub shutdown: ShutdownConfig,
}

/// This process.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerConfig {
    /// Its name among the workers; empty in the file means the host's name, which loading fills in.
    pub id: String,
}

/// The Redis server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://` or `rediss://` with host and port.
    pub url: String,
    /// The password, if the server wants one.
    #[serde(default)]
    pub password: Option<SecretString>,
    /// The database number; wins over one in the URL.
    #[serde(default)]
    pub db: Option<i64>,
    /// How long connecting may take.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// How long one command may take; a blocking read has its own limit.
    #[serde(with = "duration")]
    pub command_timeout: Duration,
}

/// Where work comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkConfig {
    /// The streams that are read, the first first.
    pub streams: Vec<String>,
    /// The consumer group on each of them.
    pub group: String,
    /// How long one read waits for work.
    #[serde(with = "duration")]
    pub block: Duration,
    /// Whether unknown members of a node's configuration fail the node.
    pub strict: bool,
    /// Dead processes after which an item is poison.
    pub max_crashes: NonZeroU32,
    /// How long a consumer of the group that holds nothing may be silent before it is removed; three leases at the least.
    #[serde(with = "duration")]
    pub reap_after: Duration,
}

/// How ownership of an entry is held.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseConfig {
    /// How long an entry stays ours without a renewal.
    #[serde(with = "duration")]
    pub duration: Duration,
    /// How often it is renewed; a sixth of the duration by default.
    #[serde(default, with = "duration::option")]
    pub renew: Option<Duration>,
    /// How often expired leases of others are looked for; the duration, at most 10 s, by default.
    #[serde(default, with = "duration::option")]
    pub sweep: Option<Duration>,
}

impl LeaseConfig {
    /// How often what we hold is renewed.
    pub fn renew(&self) -> Duration {
        self.renew.unwrap_or(self.duration / 6)
    }

    /// How often expired leases of others are looked for.
    pub fn sweep(&self) -> Duration {
        self.sweep.unwrap_or_else(|| self.duration.min(Duration::from_secs(10)))
    }
}

/// How much runs at once.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// Nodes executed at once; also the most entries held unacknowledged.
    pub size: NonZeroUsize,
    /// Threads that execute nodes; as many as cores, at most `size`, by default.
    #[serde(default)]
    pub arbiters: Option<NonZeroUsize>,
}

impl PoolConfig {
    /// Threads that execute nodes.
    pub fn arbiters(&self) -> NonZeroUsize {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.arbiters.unwrap_or(cores).min(self.size)
    }
}

/// How a state that the worker creates is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One hash, a field a node.
    Hash,
    /// One JSON document.
    String,
}

/// The graph's state.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateConfig {
    /// What every key of ours begins with.
    pub prefix: String,
    /// How long a state lives after its last write.
    #[serde(with = "duration")]
    pub ttl: Duration,
    /// How a state that the worker creates is laid out; an existing one keeps its layout.
    pub layout: Layout,
}

/// What is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsConfig {
    /// Entries kept, approximately: in progress streams always, in terminal streams only while no group reads them.
    pub maxlen: NonZeroUsize,
    /// Entries of a terminal stream at which workers stop fetching: its consumers are too slow, or gone.
    #[serde(default)]
    pub hard_cap: Option<NonZeroUsize>,
    /// Which progress events are sent: `node.started`, `node.progress`, `tool.executed`, `llm.delta`.
    pub progress: Vec<String>,
}

impl EventsConfig {
    /// Entries of a terminal stream at which workers stop fetching; ten times `maxlen` and at least a million by default.
    pub fn hard_cap(&self) -> usize {
        self.hard_cap.map_or_else(|| self.maxlen.get().saturating_mul(10).max(1_000_000), NonZeroUsize::get)
    }
}

/// Models.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmSection {
    /// The provider of nodes that name none.
    pub default: String,
    /// Providers that such nodes turn to, in this order, when the default is overloaded or away.
    #[serde(default)]
    pub fallback: Vec<String>,
    /// Providers by name.
    #[serde(default)]
    pub providers: BTreeMap<String, ProviderConfig>,
    /// Prices by model.
    #[serde(default)]
    pub prices: BTreeMap<String, PriceConfig>,
}

/// Which of OpenAI's two protocols is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// Responses where OpenAI itself is asked for a model that reasons, else chat completions.
    #[default]
    Auto,
    /// Chat completions.
    Chat,
    /// Responses.
    Responses,
}

/// What the limit of written tokens is called in chat completions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensAs {
    /// `max_completion_tokens` for OpenAI itself, else `max_tokens`.
    #[default]
    Auto,
    /// The older name, which most servers know.
    MaxTokens,
    /// The newer name, which OpenAI's reasoning models want.
    MaxCompletionTokens,
}

/// How a server of chat completions is held to an `output_schema`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StructuredOutput {
    /// `response_format` of the type `json_schema`.
    #[default]
    JsonSchema,
    /// `response_format` of the type `json_object`; the schema is told in words.
    JsonObject,
    /// In words alone.
    Prompt,
}

/// How the key is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum AuthHeader {
    /// `x-api-key: KEY`.
    #[default]
    #[serde(rename = "x-api-key")]
    ApiKey,
    /// `authorization: Bearer KEY`.
    #[serde(rename = "bearer")]
    Bearer,
}

/// The price of a model in US dollars for a million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriceConfig {
    /// Tokens read; there must be one.
    pub input: Option<f64>,
    /// Tokens written; there must be one.
    pub output: Option<f64>,
    /// Tokens read from the provider's cache; as `input` by default.
    pub cache_read: Option<f64>,
    /// Tokens written to the provider's cache; as `input` by default.
    pub cache_write: Option<f64>,
}

impl PriceConfig {
    /// The price, if it is complete.
    pub fn price(&self) -> Option<Price> {
        let Self { input, output, cache_read, cache_write } = *self;
        let input = input?;
        Some(Price {
            input,
            output: output?,
            cache_read: cache_read.unwrap_or(input),
            cache_write: cache_write.unwrap_or(input),
        })
    }
}

/// What one model may be asked by all workers together, where it is not what holds for its provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelLimits {
    /// Requests in a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens in a minute, read and written together.
    pub tokens_per_minute: Option<NonZeroU64>,
}

/// When something is done that depends on the call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Where it pays.
    #[default]
    Auto,
    /// With every call.
    Always,
    /// With none.
    Never,
}

/// One provider of models. Members that are absent take the defaults written in `config/default.toml`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProviderConfig {
    /// What it is.
    pub kind: ProviderKind,
    /// Where it is, without the path of an endpoint.
    pub base_url: String,
    /// The key.
    pub api_key: Option<SecretString>,
    /// How the key is sent.
    pub auth: AuthHeader,
    /// The model of nodes that name none.
    pub model: String,
    /// The API version, sent as `anthropic-version`.
    pub version: String,
    /// Sent as `anthropic-beta`.
    pub betas: Vec<String>,
    /// Tokens that may be written where the node says nothing.
    pub max_tokens: NonZeroU32,
    /// Whether answers are read while they are written.
    pub stream: When,
    /// Whether conversations are put into the provider's cache.
    pub cache: When,
    /// How long one call may take.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// How long an answer that has begun may pause.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// How long connecting may take.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Calls of this process at once.
    pub concurrency: NonZeroUsize,
    /// Requests of all workers together in a minute, for each model; no limit without it.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of all workers together in a minute, read and written, for each model; no limit without it.
    pub tokens_per_minute: Option<NonZeroU64>,
    /// How much of the requests may be saved up and made at once: as many as come together in this time.
    #[serde(with = "duration")]
    pub burst: Duration,
    /// Limits by model, where they are not the provider's.
    pub limits: BTreeMap<String, ModelLimits>,
    /// Whether what the provider says of its limits (rate headers, `retry-after`) holds for all workers.
    pub rate_headers: When,
    /// Failures in a row after which this process leaves a model alone for a while; 0 never does.
    pub breaker_failures: u32,
    /// How long it is left alone at first; each failed probe doubles it.
    #[serde(with = "duration")]
    pub breaker_pause: Duration,
    /// The longest that it is left alone before one call probes it.
    #[serde(with = "duration")]
    pub breaker_max_pause: Duration,
    /// Prices by model, where they are not those of `llm.prices`.
    pub prices: BTreeMap<String, PriceConfig>,
    /// openai: which of the two protocols is spoken.
    pub api: Api,
    /// openai: what the limit of written tokens is called.
    pub max_tokens_as: MaxTokensAs,
    /// openai: how the server is held to an `output_schema`.
    pub structured_output: StructuredOutput,
    /// openai: whether reasoning that the server showed is sent back with the turn that it belongs to.
    pub reasoning_history: bool,
    /// openai: whether images in tool results are sent as images.
    pub images: bool,
    /// scripted: the file with the turns.
    pub script: Option<PathBuf>,
}

impl fmt::Debug for ProviderConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, base_url, model, script, .. } = self;
        let base_url = show::masked_url(base_url);
        out.debug_struct("ProviderConfig")
            .field("kind", kind)
            .field("base_url", &base_url)
            .field("model", model)
            .field("script", script)
            .finish_non_exhaustive()
    }
}

impl Default for ProviderConfig {
    fn default() -> Self {
        Self {
            kind: ProviderKind::Anthropic,
            base_url: String::from("https://api.anthropic.com"),
            api_key: None,
            auth: AuthHeader::ApiKey,
            model: String::from("claude-sonnet-5-5"),
            version: String::from("2026-10-21"),
            betas: Vec::new(),
            max_tokens: NonZeroU32::new(16_000).expect("16000 is not zero"),
            stream: When::Auto,
            cache: When::Auto,
            timeout: Duration::from_secs(600),
            stall_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(5),
            concurrency: NonZeroUsize::new(256).expect("256 is not zero"),
            requests_per_minute: None,
            tokens_per_minute: None,
            burst: Duration::from_secs(10),
            limits: BTreeMap::new(),
            rate_headers: When::Auto,
            breaker_failures: 10,
            breaker_pause: Duration::from_secs(5),
            breaker_max_pause: Duration::from_secs(60),
            prices: BTreeMap::new(),
            api: Api::Auto,
            max_tokens_as: MaxTokensAs::Auto,
            structured_output: StructuredOutput::JsonSchema,
            reasoning_history: true,
            images: true,
            script: None,
        }
    }
}

/// Tool servers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McpSection {
    /// A file with servers in the shape that desktop clients use, JSON with `mcpServers`.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// Servers in the order in which a name that several offer is resolved; the others follow by name.
    #[serde(default)]
    pub order: Vec<String>,
    /// Servers by name.
    #[serde(default)]
    pub servers: BTreeMap<String, McpServerConfig>,
}

impl McpSection {
    /// All servers in the order of resolution.
    pub fn ordered(&self) -> Vec<(&str, &McpServerConfig)> {
        let first = self.order.iter().filter_map(|name| self.servers.get_key_value(name));
        let rest = self.servers.iter().filter(|(name, _)| !self.order.contains(name));
        first.chain(rest).map(|(name, server)| (name.as_str(), server)).collect()
    }
}

/// One MCP server: `url` for Streamable HTTP, or `command` for a child process.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct McpServerConfig {
    /// The endpoint of a server over Streamable HTTP.
    pub url: Option<String>,
    /// The program of a server over stdio.
    pub command: Option<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, beside a minimal one.
    pub env: BTreeMap<String, SecretString>,
    /// The folder in which it runs; the worker's own if absent.
    pub cwd: Option<PathBuf>,
    /// Headers of every request.
    pub headers: BTreeMap<String, SecretString>,
    /// How we authenticate to a server over HTTP.
    pub auth: Option<McpAuthConfig>,
    /// Tools that may be used; `*` matches any run of characters. Empty means all.
    pub allow: Vec<String>,
    /// Tools that may not be used; wins over `allow`.
    pub deny: Vec<String>,
    /// The file with the digests of the tools that were approved: others are not offered and cannot be called.
    pub pin: Option<PathBuf>,
    /// How long a call may take without a sign of life: progress that the tool tells begins it anew.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// The same for single tools; `*` in a name matches any run of characters, an exact name goes before.
    #[serde(with = "duration::map")]
    pub tool_timeouts: BTreeMap<String, Duration>,
    /// How long a call may take in all, whatever progress it tells; never less than its `timeout`.
    #[serde(with = "duration")]
    pub max_timeout: Duration,
    /// How long connecting and discovery may take.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Calls of this process at once.
    pub concurrency: NonZeroUsize,
    /// Whether the worker is ready only while this server answers.
    pub required: bool,
    /// What becomes of what its tools ask in the middle of a call.
    pub elicitation: Elicitation,
}

/// What becomes of questions that the tools of a server ask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Elicitation {
    /// Nobody answers, and the server is not told that anybody would.
    #[default]
    Decline,
    /// The node waits for a person's answer.
    Wait,
}

impl fmt::Debug for McpServerConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Arguments are left out: people pass tokens in them.
        let Self { url, command, required, .. } = self;
        let url = url.as_deref().map(show::masked_url);
        out.debug_struct("McpServerConfig")
            .field("url", &url)
            .field("command", command)
            .field("required", required)
            .finish_non_exhaustive()
    }
}

impl Default for McpServerConfig {
    fn default() -> Self {
        Self {
            url: None,
            command: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            headers: BTreeMap::new(),
            auth: None,
            allow: Vec::new(),
            deny: Vec::new(),
            pin: None,
            timeout: Duration::from_secs(60),
            tool_timeouts: BTreeMap::new(),
            max_timeout: Duration::from_secs(600),
            connect_timeout: Duration::from_secs(10),
            concurrency: NonZeroUsize::new(32).expect("32 is not zero"),
            required: false,
            elicitation: Elicitation::Decline,
        }
    }
}

/// What follows when a worker died during a tool call, so that nobody knows whether it took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownOutcome {
    /// The model is told so; in tool mode, which has no model, the node fails.
    AskModel,
    /// The node fails.
    Fail,
    /// The call is made again with the same idempotency key.
    Retry,
}

/// Built-in tools.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolsConfig {
    /// Built-in tools that are switched off.
    pub disable: Vec<String>,
    /// What follows when a worker died during a call and no other key says it: see [`UnknownOutcome`].
    pub on_unknown_outcome: UnknownOutcome,
    /// The same for one tool, `server/tool` or the name of a built-in, or for all of a server, `server/*`. It goes
    /// before what the server says of its tools.
    #[serde(default)]
    pub unknown_outcome: BTreeMap<String, UnknownOutcome>,
    /// Tools, as nodes name them, whose calls want a person's word first: `always`, or a condition over `args`.
    #[serde(default)]
    pub approve: BTreeMap<String, String>,
    /// The `http_request` tool.
    pub http_request: HttpRequestConfig,
}

/// The `http_request` tool.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRequestConfig {
    /// Hosts it may ask, `host`, `host:port`, `*.domain` or `*`; empty switches the tool off.
    pub allow: Vec<String>,
    /// How long one request may take.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Bytes of a response that are read.
    pub max_bytes: NonZeroUsize,
}

/// The agent loop.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Turns of the model where the node says nothing.
    pub max_iterations: NonZeroU32,
    /// Tool calls where the node says nothing.
    pub max_tool_calls: u32,
    /// Tool calls of one turn that run at once.
    pub parallel_tools: NonZeroUsize,
    /// Whether the iteration limit is followed by one last turn without tools.
    pub finalize: bool,
}

/// Nodes that wait for what others say.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitConfig {
    /// How long an answer is waited for where the node says nothing.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// What follows when there is none by then.
    pub on_expiry: OnExpiry,
    /// Decisions that the audit keeps, approximately.
    pub audit_maxlen: NonZeroUsize,
}

/// How a step is retried.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryConfig {
    /// Attempts in all, the first included.
    pub max_attempts: NonZeroU32,
    /// Upper bound of the first wait.
    #[serde(with = "duration")]
    pub initial: Duration,
    /// Upper bound of every wait that we choose ourselves.
    #[serde(with = "duration")]
    pub max: Duration,
    /// The longest wait that holds a slot; for a longer one the item leaves the stream until it is over.
    #[serde(with = "duration")]
    pub park_after: Duration,
}

impl RetryConfig {
    /// The policy as a value.
    pub fn policy(&self) -> RetryPolicy {
        RetryPolicy { max_attempts: self.max_attempts, initial: self.initial, max: self.max }
    }
}

/// Sizes and times that nothing may exceed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes of one work item.
    pub item: NonZeroUsize,
    /// Bytes of one output.
    pub output: NonZeroUsize,
    /// Bytes of an output above which it is stored under a key of its own.
    pub inline_output: NonZeroUsize,
    /// How long a node may take that sets no `timeout`.
    #[serde(with = "duration")]
    pub node_timeout: Duration,
    /// How long one call of a model or a tool may take; only their own limits by default.
    #[serde(default, with = "duration::option")]
    pub attempt_timeout: Option<Duration>,
    /// How old an entry may be when it is started for the first time; any age by default.
    #[serde(default, with = "duration::option")]
    pub queue_age: Option<Duration>,
    /// Characters of one tool result that a model gets to see.
    pub tool_result_chars: NonZeroUsize,
    /// Bytes of a longer tool result of an agent that is stored whole under a key of its own; 0 stores none.
    pub stored_tool_result: usize,
}

/// Health, metrics and the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// The address to listen on.
    pub bind: String,
    /// The port to listen on; 0 takes a free one and logs it.
    pub port: u16,
    /// What a request that changes something must bear as `authorization: Bearer …`; without it nobody may.
    #[serde(default)]
    pub admin_token: Option<SecretString>,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// Logs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,da_node_executor=debug`.
    pub level: String,
    /// How they look.
    pub format: LogFormat,
}

/// How the worker stops.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownConfig {
    /// How long running nodes may go on after SIGTERM.
    #[serde(with = "duration")]
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        load::defaults()
    }
}
