//! The work itself, generic over the ports: which mode, its templates, its deadline, its outcome.

pub mod mapping;
pub mod names;
pub mod run_node;
pub mod schema;
pub mod scope;
pub mod step;
pub mod template;
pub mod unknown;

mod agent;
mod approval;
mod attachments;
mod budget;
mod deadline;
mod dialogue;
mod elicitation;
mod execution;
mod fallback;
mod llm;
mod logbook;
mod portable;
mod shorten;
mod tasks;
mod tool;
mod tool_schema;
mod toolbox;
mod waits;

#[cfg(test)]
mod scripted_ports;

use std::sync::Arc;
use std::time::Duration;

pub use run_node::run_node;
pub use tasks::give_up_tasks;
pub use tool_schema::ToolSchemas;

use crate::config::{AgentConfig, Config, WaitConfig};
use crate::domain::approve::Rules;
use crate::modes::unknown::UnknownOutcomes;
use crate::retry::RetryPolicy;

/// What the modes need of the worker's settings.
#[derive(Debug, Clone)]
pub struct ModeSettings {
    /// Whether unknown members of a node's configuration fail the node.
    pub strict: bool,
    /// How a step is tried where the node says nothing.
    pub retry: RetryPolicy,
    /// The longest wait of a step that holds a slot; nothing where there is no place to wait but the slot.
    pub park_after: Option<Duration>,
    /// How long a node may take that sets no limit of its own.
    pub node_timeout: Duration,
    /// How long one call of a model or a tool may take, if that is limited.
    pub attempt_timeout: Option<Duration>,
    /// How old an entry may be at its first start, if that is limited.
    pub queue_age: Option<Duration>,
    /// The agent loop.
    pub agent: AgentConfig,
    /// Bytes of one output, and of all that a node's templates put in.
    pub output_limit: usize,
    /// Characters of one tool result that a model gets to see.
    pub tool_result_chars: usize,
    /// Bytes of a tool result that is stored whole when a model gets to see only a part; nothing stores none.
    pub stored_tool_result: usize,
    /// What follows when a worker died during a tool call.
    pub unknown_outcomes: UnknownOutcomes,
    /// Calls that want a person's word, beside those that the node names.
    pub approve: Arc<Rules>,
    /// How long others are waited for where the node says nothing.
    pub wait: WaitConfig,
    /// What was made of the schemas of tools, for all nodes.
    pub tool_schemas: Arc<ToolSchemas>,
}

/// Bytes of a journal's entry for which there is room however small outputs have to be.
const ENTRY_ROOM: usize = 8 * 1024 * 1024;

impl ModeSettings {
    /// Bytes of one entry of a journal at the most: more than an output may have, so that an output that is refused
    /// is refused for what it is.
    pub fn entry_limit(&self) -> usize {
        self.output_limit.saturating_mul(2).max(ENTRY_ROOM)
    }
}

impl From<&Config> for ModeSettings {
    fn from(config: &Config) -> Self {
        Self {
            strict: config.work.strict,
            retry: config.retry.policy(),
            park_after: Some(config.retry.park_after),
            node_timeout: config.limits.node_timeout,
            attempt_timeout: config.limits.attempt_timeout,
            queue_age: config.limits.queue_age,
            agent: config.agent.clone(),
            output_limit: config.limits.output.get(),
            tool_result_chars: config.limits.tool_result_chars.get(),
            stored_tool_result: config.limits.stored_tool_result,
            unknown_outcomes: UnknownOutcomes::from(&config.tools),
            approve: approval::settings_rules(&config.tools.approve),
            wait: config.wait.clone(),
            tool_schemas: Arc::default(),
        }
    }
}
