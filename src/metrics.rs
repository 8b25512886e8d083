//! What is counted and timed, in Prometheus' terms. Labels are closed sets or configured names: never a graph, a
//! node, a run or an error's text.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Labels of an ended node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ItemLabels {
    /// `agent`, `llm`, `tool`, or `unknown` where the configuration could not be read.
    pub mode: &'static str,
    /// `completed`, `failed`, `duplicate`, `lost`, `handed_back`, `parked`, `waiting`.
    pub outcome: &'static str,
}

/// Labels of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CategoryLabels {
    /// The failure's category.
    pub category: &'static str,
}

/// Labels of a mode.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModeLabels {
    /// `agent`, `llm`, `tool`.
    pub mode: &'static str,
}

/// Labels of a tool call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ToolLabels {
    /// The MCP server by its configured name, or `builtin`.
    pub server: String,
    /// The tool; only tools that were discovered get here.
    pub tool: String,
    /// `ok`, `tool_error`, `failed`.
    pub outcome: &'static str,
}

/// Labels of a call of a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LlmLabels {
    /// The provider by its configured name.
    pub provider: String,
    /// `ok` or `failed`.
    pub outcome: &'static str,
}

/// Labels of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TokenLabels {
    /// The provider by its configured name.
    pub provider: String,
    /// `input`, `output`, `cache_read`, `cache_write`.
    pub kind: &'static str,
}

/// Labels of a provider of models.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProviderLabels {
    /// The provider by its configured name.
    pub provider: String,
}

/// Labels of a call of a model that was sent away before it began.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeferLabels {
    /// The provider by its configured name.
    pub provider: String,
    /// `limit` or `circuit`.
    pub cause: &'static str,
}

/// Labels of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// A stable name of the cause.
    pub reason: std::borrow::Cow<'static, str>,
}

/// Labels of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabels {
    /// `accepted`, or the code of why it does not count.
    pub result: &'static str,
}

/// Labels of a tool server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServerLabels {
    /// The server by its configured name.
    pub server: String,
}

/// Labels of what is spoken with a tool server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EraLabels {
    /// The server by its configured name.
    pub server: String,
    /// `legacy` or `modern`.
    pub era: &'static str,
    /// The protocol version; one of those that this worker speaks.
    pub version: String,
}

/// Labels of trouble with a tool server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TroubleLabels {
    /// The server by its configured name.
    pub server: String,
    /// The stable name of the cause.
    pub code: String,
}

/// Labels of an actor.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ActorLabels {
    /// The actor's role.
    pub actor: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Every figure of the worker.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Entries received, by delivery and by takeover.
    pub received: Counter,
    /// Entries taken over from dead or stopped workers.
    pub taken_over: Counter,
    /// Nodes that went on from what an earlier worker had on record.
    pub resumed: Counter,
    /// Ended nodes.
    pub items: Family<ItemLabels, Counter>,
    /// How long nodes took.
    pub duration: Histograms<ModeLabels>,
    /// How long entries waited in the stream.
    pub queued: Histogram,
    /// Failed nodes by category.
    pub errors: Family<CategoryLabels, Counter>,
    /// Steps that were tried again, in all.
    pub retries: Counter,
    /// Dead letters.
    pub dead_letters: Family<ReasonLabels, Counter>,
    /// Leases found lost.
    pub leases_lost: Counter,
    /// Nodes that left their slot for a long wait.
    pub parked: Counter,
    /// Nodes of all workers that wait outside of their streams.
    pub parked_now: Gauge,
    /// Questions of all workers' nodes that nobody has answered.
    pub waits_open: Gauge,
    /// Decisions about nodes that wait.
    pub decisions: Family<ResultLabels, Counter>,
    /// Nodes running or waiting to be settled.
    pub in_flight: Gauge,
    /// Nodes that may run at once.
    pub pool_size: Gauge,
    /// Tool calls.
    pub tool_calls: Family<ToolLabels, Counter>,
    /// How long tool calls took.
    pub tool_duration: Histograms<ServerLabels>,
    /// Calls of models.
    pub llm_calls: Family<LlmLabels, Counter>,
    /// How long calls of models took.
    pub llm_duration: Histograms<LlmLabels>,
    /// Tokens.
    pub llm_tokens: Family<TokenLabels, Counter>,
    /// What they cost, where models have prices.
    pub llm_cost: Family<ProviderLabels, Counter<f64, AtomicU64>>,
    /// How long calls of models waited for their limit.
    pub llm_limit_wait: Histograms<ProviderLabels>,
    /// Calls whose shared limit did not answer, so that this worker alone decided.
    pub llm_limit_alone: Family<ProviderLabels, Counter>,
    /// Calls of models that were sent away before they began.
    pub llm_deferred: Family<DeferLabels, Counter>,
    /// Models that are left alone because they keep failing.
    pub llm_circuits_open: Family<ProviderLabels, Gauge>,
    /// Tool servers with an open session.
    pub mcp_up: Family<ServerLabels, Gauge>,
    /// Tools that a server offers and its configuration allows, as last listed.
    pub mcp_tools: Family<ServerLabels, Gauge>,
    /// What is spoken with a tool server; 1 for the era and version of its open session.
    pub mcp_era: Family<EraLabels, Gauge>,
    /// Failures of tool servers to connect, to list their tools or to answer a call.
    pub mcp_errors: Family<TroubleLabels, Counter>,
    /// Seconds that a tool server's last answer took.
    pub mcp_latency: Family<ServerLabels, Gauge<f64, AtomicU64>>,
    /// Sessions of tool servers that were opened.
    pub mcp_connects: Family<ServerLabels, Counter>,
    /// Tools that are described differently than at the discovery before.
    pub mcp_tool_changes: Family<ServerLabels, Counter>,
    /// Actors that were rebuilt.
    pub actor_restarts: Family<ActorLabels, Counter>,
    /// Progress events dropped because Redis was slower than they came.
    pub progress_dropped: Counter<u64, AtomicU64>,
    /// Failed attempts to write a result, each retried.
    pub settle_retries: Counter,
}

const NODE_SECONDS: [f64; 14] = [0.005, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const QUEUE_SECONDS: [f64; 11] = [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0];
/// The buckets that the GenAI semantic conventions advise for a client's operation.
const CALL_SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

fn node_histogram() -> Histogram {
    Histogram::new(NODE_SECONDS)
}

fn call_histogram() -> Histogram {
    Histogram::new(CALL_SECONDS)
}

impl Metrics {
    /// All figures at zero, named `executor_…`.
    pub fn new(worker_id: &str) -> Self {
        let mut registry = Registry::with_prefix("executor");
        let metrics = Self {
            registry: Registry::default(),
            received: Counter::default(),
            taken_over: Counter::default(),
            resumed: Counter::default(),
            items: Family::default(),
            duration: Family::new_with_constructor(node_histogram),
            queued: Histogram::new(QUEUE_SECONDS),
            errors: Family::default(),
            retries: Counter::default(),
            dead_letters: Family::default(),
            leases_lost: Counter::default(),
            parked: Counter::default(),
            parked_now: Gauge::default(),
            waits_open: Gauge::default(),
            decisions: Family::default(),
            in_flight: Gauge::default(),
            pool_size: Gauge::default(),
            tool_calls: Family::default(),
            tool_duration: Family::new_with_constructor(call_histogram),
            llm_calls: Family::default(),
            llm_duration: Family::new_with_constructor(call_histogram),
            llm_tokens: Family::default(),
            llm_cost: Family::default(),
            llm_limit_wait: Family::new_with_constructor(call_histogram),
            llm_limit_alone: Family::default(),
            llm_deferred: Family::default(),
            llm_circuits_open: Family::default(),
            mcp_up: Family::default(),
            mcp_connects: Family::default(),
            mcp_tools: Family::default(),
            mcp_era: Family::default(),
            mcp_errors: Family::default(),
            mcp_latency: Family::default(),
            mcp_tool_changes: Family::default(),
            actor_restarts: Family::default(),
            progress_dropped: Counter::default(),
            settle_retries: Counter::default(),
        };
        let r = &mut registry;
        r.register("items_received", "Entries received, by delivery and by takeover", metrics.received.clone());
        r.register("items_taken_over", "Entries taken over from other workers", metrics.taken_over.clone());
        r.register(
            "items_resumed",
            "Nodes that went on from the journal of an earlier worker",
            metrics.resumed.clone(),
        );
        r.register("items", "Nodes that ended, by mode and outcome", metrics.items.clone());
        r.register_with_unit("item_duration", "How long nodes took", Unit::Seconds, metrics.duration.clone());
        r.register_with_unit("item_queue", "How long entries waited", Unit::Seconds, metrics.queued.clone());
        r.register("errors", "Failed nodes by category", metrics.errors.clone());
        r.register("retries", "Steps tried again", metrics.retries.clone());
        r.register("dead_letters", "Dead letters by reason", metrics.dead_letters.clone());
        r.register("leases_lost", "Leases found lost", metrics.leases_lost.clone());
        r.register("items_parked", "Nodes that left their slot for a long wait", metrics.parked.clone());
        r.register("items_parked_now", "Nodes of all workers that wait outside", metrics.parked_now.clone());
        r.register("waits_open", "Questions that nobody has answered", metrics.waits_open.clone());
        r.register("wait_decisions", "Decisions about nodes that wait, by result", metrics.decisions.clone());
        r.register("items_in_flight", "Nodes running or waiting to be settled", metrics.in_flight.clone());
        r.register("pool_size", "Nodes that may run at once", metrics.pool_size.clone());
        r.register("tool_calls", "Tool calls", metrics.tool_calls.clone());
        r.register_with_unit(
            "tool_call_duration",
            "How long tool calls took",
            Unit::Seconds,
            metrics.tool_duration.clone(),
        );
        r.register("llm_requests", "Calls of models", metrics.llm_calls.clone());
        r.register_with_unit(
            "llm_request_duration",
            "How long model calls took",
            Unit::Seconds,
            metrics.llm_duration.clone(),
        );
        r.register("llm_tokens", "Tokens by kind", metrics.llm_tokens.clone());
        r.register("llm_cost_usd", "What tokens cost in US dollars", metrics.llm_cost.clone());
        r.register_with_unit(
            "llm_limit_wait",
            "How long model calls waited for their limit",
            Unit::Seconds,
            metrics.llm_limit_wait.clone(),
        );
        r.register("llm_limit_alone", "Model calls whose shared limit did not answer", metrics.llm_limit_alone.clone());
        r.register("llm_deferred", "Model calls sent away before they began", metrics.llm_deferred.clone());
        r.register("llm_circuits_open", "Models left alone for failing", metrics.llm_circuits_open.clone());
        r.register("mcp_server_up", "Tool servers with an open session", metrics.mcp_up.clone());
        r.register("mcp_server_connects", "Sessions of tool servers opened", metrics.mcp_connects.clone());
        r.register("mcp_server_tools", "Tools of tool servers as last listed", metrics.mcp_tools.clone());
        r.register("mcp_server_era", "Era and protocol version of open sessions", metrics.mcp_era.clone());
        r.register("mcp_server_errors", "Failures of tool servers by cause", metrics.mcp_errors.clone());
        r.register_with_unit(
            "mcp_server_latency",
            "How long the last answer of a tool server took",
            Unit::Seconds,
            metrics.mcp_latency.clone(),
        );
        r.register("mcp_tool_changes", "Tools whose description changed", metrics.mcp_tool_changes.clone());
        r.register("actor_restarts", "Actors that were rebuilt", metrics.actor_restarts.clone());
        r.register("progress_dropped", "Progress events dropped", metrics.progress_dropped.clone());
        r.register("settle_retries", "Failed attempts to write a result", metrics.settle_retries.clone());
        let build =
            Info::new(vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("worker", worker_id.to_owned())]);
        r.register("build", "This worker", build);
        Self { registry, ..metrics }
    }

    /// An ended node.
    pub fn ended(&self, mode: &'static str, outcome: &'static str) {
        self.items.get_or_create(&ItemLabels { mode, outcome }).inc();
    }

    /// Observes a duration in seconds.
    pub fn seconds(histogram: &Histogram, took: Duration) {
        histogram.observe(took.as_secs_f64());
    }

    /// All figures in the text format of OpenMetrics.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_appear_under_their_names_and_labels() {
        let metrics = Metrics::new("w");
        metrics.ended("agent", "completed");
        Metrics::seconds(&metrics.duration.get_or_create(&ModeLabels { mode: "agent" }), Duration::from_millis(30));
        let text = metrics.encode();
        assert!(text.contains(r#"executor_items_total{mode="agent",outcome="completed"} 1"#), "{text}");
        assert!(text.contains(r#"executor_item_duration_seconds_bucket{le="0.05",mode="agent"} 1"#), "{text}");
    }
}
