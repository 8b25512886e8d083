//! What a running node has at hand: the ports behind the one layer of retries, its deadline, and the ledger of what
//! it used. What it does with them is each mode's.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::domain::event::EventType;
use crate::domain::message::{Completion, Usage};
use crate::domain::node::LlmConfig;
use crate::domain::outcome::{Failure, Partial, Spent};
use crate::domain::tool::{Arguments, ToolOutput, ToolSpec};
use crate::domain::work::Delivery;
use crate::failpoint::{self, Point};
use crate::modes::ModeSettings;
use crate::modes::dialogue::Dialogue;
use crate::modes::step::step;
use crate::ports::{CallContext, Events, Llm, LlmRequest, Ports, ToolCall, Tools};
use crate::retry::RetryPolicy;

/// What an execution used and remarked. It outlives the work, so that a node whose time is up can tell it as well.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub spent: RefCell<Spent>,
    pub partial: RefCell<Option<Partial>>,
    pub warnings: RefCell<Vec<String>>,
}

impl Ledger {
    /// Adds remarks, each once.
    pub fn warn(&self, warnings: impl IntoIterator<Item = String>) {
        let mut all = self.warnings.borrow_mut();
        for warning in warnings {
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
    }

    /// Does a step and notes how many attempts it took.
    pub async fn step<T, F, Op>(
        &self,
        name: &'static str,
        policy: &RetryPolicy,
        deadline: Instant,
        operation: F,
    ) -> Result<T, Failure>
    where
        F: FnMut() -> Op,
        Op: Future<Output = Result<T, Failure>>,
    {
        let result = step(name, policy, deadline, operation).await;
        let attempts = match &result {
            Ok((_, attempts)) => *attempts,
            Err(failure) => failure.attempts,
        };
        let mut spent = self.spent.borrow_mut();
        spent.attempts = spent.attempts.max(attempts);
        result.map(|(value, _)| value)
    }
}

/// Where in a node's course a call is made: stable when the node is run again from its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) enum CallSite {
    /// The discovery of tools.
    Discovery,
    /// The model's turn of this number.
    Turn(u32),
    /// A tool call: the turn that asked for it and its place there.
    Tool { turn: u32, index: usize },
}

/// How a model is asked, the same in every turn.
#[derive(Debug)]
pub(super) struct Brief {
    pub settings: Arc<LlmConfig>,
    pub system: Option<String>,
    pub tools: Arc<[ToolSpec]>,
    pub output_schema: Option<Arc<Value>>,
}

/// One execution of a node.
pub(super) struct Execution<'a, P> {
    pub ports: &'a P,
    pub settings: &'a ModeSettings,
    pub delivery: &'a Arc<Delivery>,
    pub ledger: &'a Ledger,
    pub policy: RetryPolicy,
    pub deadline: Instant,
}

impl<P: Ports> Execution<'_, P> {
    /// Asks the model for the next turn of a dialogue.
    pub async fn ask(&self, brief: &Brief, dialogue: &Dialogue) -> Result<Completion, Failure> {
        let request = LlmRequest {
            settings: Arc::clone(&brief.settings),
            system: brief.system.clone(),
            turns: dialogue.turns().clone(),
            tools: Arc::clone(&brief.tools),
            tools_allowed: dialogue.tools_allowed(),
            output_schema: brief.output_schema.clone(),
            context: self.context(CallSite::Turn(dialogue.iterations() + 1)),
        };
        let completion = self.step("llm call", || self.ports.llm().complete(request.clone())).await?;
        failpoint::reach(Point::AfterLlmRecord);
        *self.ledger.spent.borrow_mut().usage.get_or_insert_default() += completion.usage;
        self.ledger.warn(completion.warnings.iter().cloned());
        Ok(completion)
    }

    /// Finds the tools that the patterns name.
    pub async fn find_tools(&self, patterns: &[String]) -> Result<Vec<ToolSpec>, Failure> {
        let context = self.context(CallSite::Discovery);
        self.step("tool discovery", || self.ports.tools().find(patterns, &context)).await
    }

    /// Calls a tool and tells it.
    pub async fn call_tool(
        &self,
        spec: &ToolSpec,
        arguments: Arguments,
        site: CallSite,
    ) -> Result<ToolOutput, Failure> {
        let call = ToolCall { target: spec.target.clone(), arguments: Arc::new(arguments), context: self.context(site) };
        self.ledger.spent.borrow_mut().tool_calls += 1;
        let start = Instant::now();
        failpoint::reach(Point::AfterToolStart);
        let result = self.step("tool call", || self.ports.tools().call(call.clone())).await;
        failpoint::reach(Point::AfterToolEnd);
        let data = json!({
            "tool": spec.target.to_string(),
            "duration_ms": u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            "is_error": result.as_ref().map_or(true, |output| output.is_error),
        });
        self.progress(EventType::ToolExecuted, data);
        result
    }

    /// Tells live progress.
    pub fn progress(&self, kind: EventType, data: Value) {
        self.ports.events().progress(self.delivery, kind, data);
    }

    /// Tokens used so far.
    pub fn usage(&self) -> Usage {
        self.ledger.spent.borrow().usage.unwrap_or_default()
    }

    async fn step<T, F, Op>(&self, name: &'static str, operation: F) -> Result<T, Failure>
    where
        F: FnMut() -> Op,
        Op: Future<Output = Result<T, Failure>>,
    {
        self.ledger.step(name, &self.policy, self.deadline, operation).await
    }

    fn context(&self, site: CallSite) -> CallContext {
        let item = &self.delivery.item;
        CallContext {
            graph_id: item.graph_id.clone(),
            node_id: item.node_id.clone(),
            run_id: item.run_id.clone(),
            work_id: self.delivery.work_id.clone(),
            traceparent: item.traceparent.clone(),
            idempotency_key: idempotency_key(self.delivery, site),
            deadline: self.deadline.into_std(),
        }
    }
}

/// The name of one call: of the identity and the place alone, so that every attempt and every worker gives it alike.
fn idempotency_key(delivery: &Delivery, site: CallSite) -> String {
    let item = &delivery.item;
    let site = match site {
        CallSite::Discovery => String::from("discovery"),
        CallSite::Turn(turn) => format!("turn {turn}"),
        CallSite::Tool { turn, index } => format!("turn {turn} call {index}"),
    };
    // Ids have no control characters, so the parts cannot run into each other.
    let name = [item.graph_id.as_str(), item.node_id.as_str(), item.run_id.as_str(), &site].join("\n");
    Sha256::digest(name.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
