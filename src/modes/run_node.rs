//! One execution of a node from its delivery to its report: read the configuration, open the run, put the values in,
//! run the mode within its time, shape the output. What a mode does is its own file's.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use crate::domain::cancel::{CANCELLED_STATUS, CancelOrder, CancelScope};
use crate::domain::event::EventType;
use crate::domain::node::{Mode, NodeConfig};
use crate::domain::outcome::{Category, Failure, Outcome, Report};
use crate::domain::state::{NodeView, Snapshot};
use crate::domain::work::{Delivery, WorkItem};
use crate::failpoint::{self, Point};
use crate::modes::ModeSettings;
use crate::modes::agent::{self, AgentPlan, AgentTask};
use crate::modes::execution::{Execution, Ledger};
use crate::modes::llm::{self, LlmPlan, LlmTask};
use crate::modes::mapping::OutputMapping;
use crate::modes::names::Names;
use crate::modes::scope::{MAX_DEPTH, Scope, measure};
use crate::modes::template::{TemplateError, ValueTemplate};
use crate::modes::tool::{self, ToolPlan, ToolTask};
use crate::ports::{Cancel, CancelReason, Events, Opened, Ports, Store, Wanted};
use crate::retry::{Retry, RetryPolicy, backoff};

/// Upper bounds of the waits for a store that is away: work goes on soon after it is back.
const STORE_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_STORE_PAUSE: Duration = Duration::from_secs(1);

/// The longest limit of time; a sum with a longer one might not be a moment any more.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Executes the delivered node. Never fails: whatever happens is the report's outcome.
pub async fn run_node<P: Ports>(
    ports: &P,
    settings: &ModeSettings,
    delivery: &Arc<Delivery>,
    cancel: &Cancel,
) -> Report {
    let ledger = Ledger::default();
    let mode = Cell::new(None);
    if let Some(reason) = cancel.reason() {
        return Report::early(cancelled(reason, cancel, delivery));
    }
    let run = NodeRun { ports, settings, delivery, ledger: &ledger, mode: &mode, start: Instant::now() };
    let outcome = tokio::select! {
        // A result that is there is used, whatever happened in the same moment.
        biased;
        result = run.execute() => result.unwrap_or_else(failed),
        reason = cancel.cancelled() => cancelled(reason, cancel, delivery),
    };
    let outcome = match outcome {
        Outcome::Failed { failure, .. } => Outcome::Failed { failure, partial: ledger.partial.take() },
        other => other,
    };
    Report { outcome, mode: mode.get(), spent: ledger.spent.take(), warnings: ledger.warnings.take() }
}

fn failed(failure: Failure) -> Outcome {
    Outcome::Failed { failure, partial: None }
}

fn cancelled(reason: CancelReason, cancel: &Cancel, delivery: &Delivery) -> Outcome {
    match reason {
        CancelReason::Lost => Outcome::Lost,
        CancelReason::Stopping => Outcome::Unfinished,
        CancelReason::Requested => {
            let order = cancel.order().cloned().unwrap_or_else(|| CancelOrder::bare(CancelScope::Node));
            failed(order.failure(&delivery.item.graph_id))
        }
    }
}

struct NodeRun<'a, P> {
    ports: &'a P,
    settings: &'a ModeSettings,
    delivery: &'a Arc<Delivery>,
    ledger: &'a Ledger,
    mode: &'a Cell<Option<Mode>>,
    start: Instant,
}

impl<P: Ports> NodeRun<'_, P> {
    async fn execute(&self) -> Result<Outcome, Failure> {
        let item = &self.delivery.item;
        // A configuration that cannot be read fails only after the opening: the run may be somebody else's.
        let planned = item.config.as_ref().map(|config| self.plan(config.get()));
        let wanted = match &planned {
            Some(Ok(plan)) => plan.names().wanted(item),
            Some(Err(_)) => Wanted::default(),
            None => Wanted { config: true, inputs: true, ..Wanted::default() },
        };
        let opened = self.store_step(|| self.ports.store().open(self.delivery, &wanted)).await?;
        let (mut snapshot, config) = match opened {
            Opened::Duplicate => return Ok(Outcome::Duplicate),
            Opened::Lost => return Ok(Outcome::Lost),
            Opened::Cancelled(order) => return Err(order.failure(&item.graph_id)),
            Opened::Ready { status, .. } if status.as_deref() == Some(CANCELLED_STATUS) => {
                return Err(CancelOrder::bare(CancelScope::Graph).failure(&item.graph_id));
            }
            Opened::Ready { snapshot, config, .. } => (snapshot, config),
        };
        failpoint::reach(Point::AfterStateLoad);
        let plan = match planned {
            Some(plan) => plan?,
            None => {
                let plan = self.plan(&config.ok_or_else(|| missing_config(item))?)?;
                self.read_nodes(&plan, &mut snapshot).await?;
                plan
            }
        };
        self.mode.set(Some(plan.mode()));
        let deadline = Deadline::of(self.start, item, plan.time_limit, self.settings.node_timeout)?;
        self.ports.events().progress(self.delivery, EventType::NodeStarted, json!({ "mode": plan.mode() }));
        let work = self.work(plan, snapshot, deadline.at);
        match timeout_at(deadline.at, work).await {
            // Clients end a call at the node's time themselves, a moment before it: that is no trouble of theirs.
            Ok(Err(failure)) if failure.category == Category::Retriable && deadline.is_up() => Err(deadline.failure()),
            Ok(result) => result,
            Err(_) => Err(deadline.failure()),
        }
    }

    /// Reads a configuration; what can be wrong with it by itself is found here, before anything is spent.
    fn plan(&self, config: &str) -> Result<Plan, Failure> {
        let (config, warnings) = NodeConfig::parse(config)?;
        if self.settings.strict && !warnings.is_empty() {
            let members = warnings.join("; ").replace(" was ignored", "");
            return Err(Failure::configuration("unknown_member", format!("{members} (`work.strict` is set)")));
        }
        self.ledger.warn(warnings);
        if config.limits.max_cost_usd.is_some() {
            self.ledger.warn([String::from(
                "`limits.max_cost_usd` is not enforced: the worker knows no prices; use `limits.max_tokens`",
            )]);
        }
        Plan::compile(&config, self.settings)
    }

    /// Reads the nodes that a configuration out of the graph names; the inputs came with it.
    async fn read_nodes(&self, plan: &Plan, snapshot: &mut Snapshot) -> Result<(), Failure> {
        let wanted = Wanted { inputs: false, ..plan.names().wanted(&self.delivery.item) };
        if wanted != Wanted::default() {
            let graph = &self.delivery.item.graph_id;
            snapshot.nodes = self.store_step(|| self.ports.store().read(graph, &wanted)).await?.nodes;
        }
        Ok(())
    }

    async fn work(&self, plan: Plan, snapshot: Snapshot, deadline: Instant) -> Result<Outcome, Failure> {
        let policy = plan.policy;
        let (task, output_mapping) = match self.put_in(plan, snapshot) {
            Ok(rendered) => rendered,
            Err((error, inputs)) => return Err(self.explain(error, inputs).await),
        };
        let execution = Execution {
            ports: self.ports,
            settings: self.settings,
            delivery: self.delivery,
            ledger: self.ledger,
            policy,
            deadline,
        };
        let output = match task {
            Task::Agent(task) => agent::run(&execution, task).await?,
            Task::Llm(task) => llm::run(&execution, task).await?,
            Task::Tool(task) => tool::run(&execution, task).await?,
        };
        finished(&output, &output_mapping, self.settings.output_limit)
    }

    /// Puts the values into all templates; an error comes with the names of the inputs that exist.
    fn put_in(&self, plan: Plan, snapshot: Snapshot) -> Result<(Task, OutputMapping), (TemplateError, Vec<String>)> {
        let mut scope = self.scope(snapshot);
        let rendered = ValueTemplate::object(&plan.input_mapping, &scope).and_then(|mapped| {
            scope.lay_over(mapped);
            plan.work.render(&scope)
        });
        match rendered {
            Ok(task) => Ok((task, plan.output_mapping)),
            Err(error) => Err((error, scope.input_names().map(ToOwned::to_owned).collect())),
        }
    }

    /// The state with the item's inputs laid over it, and its node states where the state has none.
    fn scope(&self, snapshot: Snapshot) -> Scope {
        let item = &self.delivery.item;
        let Snapshot { mut inputs, mut nodes } = snapshot;
        if let Some(brought) = &item.inputs {
            inputs.extend(brought.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        for (id, state) in &item.node_states {
            if !nodes.contains_key(id)
                && let Ok(view) = serde_json::from_value::<NodeView>(state.clone())
            {
                nodes.insert(id.clone(), view);
            }
        }
        Scope::new(inputs, nodes, self.settings.output_limit)
    }

    async fn explain(&self, error: TemplateError, inputs: Vec<String>) -> Failure {
        let mut nodes = Vec::new();
        if matches!(error, TemplateError::UnknownName { .. }) {
            let item = &self.delivery.item;
            // Only for the message: without the list the error is still the same.
            nodes = self.ports.store().node_ids(&item.graph_id).await.unwrap_or_default();
            nodes.extend(item.node_states.keys().filter(|id| !nodes.contains(id)).cloned().collect::<Vec<_>>());
        }
        error.into_failure(&inputs, &nodes)
    }

    /// A step at the store. The node's own time begins only when the run is known to be ours.
    ///
    /// A store that is away is no fault of the node, and its failure could not be written either: the step is tried
    /// for as long as a node may take. Whoever reads work logs the outage, once.
    async fn store_step<T, F, Op>(&self, mut operation: F) -> Result<T, Failure>
    where
        F: FnMut() -> Op,
        Op: Future<Output = Result<T, Failure>>,
    {
        let limit = self.start + self.settings.node_timeout.min(LONGEST);
        let mut attempt = 0;
        loop {
            let failure = match operation().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            attempt += 1;
            let pause = backoff(STORE_PAUSE, LONGEST_STORE_PAUSE, attempt, 0.5 + fastrand::f64() / 2.0);
            if failure.retry() == Retry::Never || Instant::now() + pause >= limit {
                return Err(Failure { attempts: attempt, ..failure });
            }
            tokio::time::sleep(pause).await;
        }
    }
}

fn missing_config(item: &WorkItem) -> Failure {
    Failure::configuration(
        "missing_config",
        format!(
            "neither the item nor the graph has a configuration of node `{}`; send `config`, or put it into the state's `graph.nodes`",
            item.node_id
        ),
    )
}

/// How far apart two timers of one moment may fire.
const TIMER_SLACK: Duration = Duration::from_millis(5);

/// When the node's time is up, and whose limit that is.
struct Deadline {
    at: Instant,
    /// The limit that comes first: a length of time, or the item's own moment.
    limit: Option<Duration>,
}

impl Deadline {
    fn of(start: Instant, item: &WorkItem, own: Option<Duration>, default: Duration) -> Result<Self, Failure> {
        let limit = own.unwrap_or(default).min(LONGEST);
        let relative = Self { at: start + limit, limit: Some(limit) };
        let Some(moment) = item.deadline else {
            return Ok(relative);
        };
        let left = moment.duration_since(Timestamp::now());
        let Some(left) = Duration::try_from(left).ok().filter(|left| !left.is_zero()) else {
            return Err(Self { at: start, limit: None }.failure());
        };
        match Instant::now().checked_add(left) {
            Some(at) if at < relative.at => Ok(Self { at, limit: None }),
            _ => Ok(relative),
        }
    }

    fn is_up(&self) -> bool {
        Instant::now() + TIMER_SLACK >= self.at
    }

    fn failure(&self) -> Failure {
        match self.limit {
            Some(limit) => Failure::timed_out(limit),
            None => Failure::permanent(
                "deadline_exceeded",
                "the item's `deadline` has passed; the result would be of no use",
            ),
        }
    }
}

/// A node's configuration, read.
struct Plan {
    work: Work,
    input_mapping: Vec<(String, ValueTemplate)>,
    output_mapping: OutputMapping,
    policy: RetryPolicy,
    time_limit: Option<Duration>,
}

enum Work {
    Agent(AgentPlan),
    Llm(LlmPlan),
    Tool(ToolPlan),
}

enum Task {
    Agent(AgentTask),
    Llm(LlmTask),
    Tool(ToolTask),
}

impl Plan {
    fn compile(config: &NodeConfig, settings: &ModeSettings) -> Result<Self, Failure> {
        let work = match config.mode()? {
            Mode::Agent => Work::Agent(AgentPlan::compile(config, settings)?),
            Mode::Llm => Work::Llm(LlmPlan::compile(config)?),
            Mode::Tool => Work::Tool(ToolPlan::compile(config)?),
        };
        Ok(Self {
            work,
            input_mapping: ValueTemplate::members(&config.input_mapping).map_err(TemplateError::alone)?,
            output_mapping: OutputMapping::compile(&config.output_mapping)?,
            policy: RetryPolicy {
                max_attempts: config.retry.max_attempts.unwrap_or(settings.retry.max_attempts),
                initial: config.retry.initial.unwrap_or(settings.retry.initial),
                max: config.retry.max.unwrap_or(settings.retry.max),
            },
            time_limit: config.time_limit(),
        })
    }

    fn mode(&self) -> Mode {
        match self.work {
            Work::Agent(_) => Mode::Agent,
            Work::Llm(_) => Mode::Llm,
            Work::Tool(_) => Mode::Tool,
        }
    }

    fn names(&self) -> Names {
        let mut names = Names::default();
        match &self.work {
            Work::Agent(plan) => plan.names(&mut names),
            Work::Llm(plan) => plan.names(&mut names),
            Work::Tool(plan) => plan.names(&mut names),
        }
        // What the mapping makes is there already; what it is made of has to be read.
        self.input_mapping.iter().for_each(|(name, _)| names.forget(name));
        self.input_mapping.iter().for_each(|(_, value)| value.names(&mut names));
        names
    }
}

impl Work {
    fn render(self, scope: &Scope) -> Result<Task, TemplateError> {
        Ok(match self {
            Self::Agent(plan) => Task::Agent(plan.render(scope)?),
            Self::Llm(plan) => Task::Llm(plan.render(scope)?),
            Self::Tool(plan) => Task::Tool(plan.render(scope)?),
        })
    }
}

/// The outcome of an output: mapped, written as JSON, and checked against the limits that consumers rely on.
fn finished(output: &Value, mapping: &OutputMapping, limit: usize) -> Result<Outcome, Failure> {
    let (_, depth) = measure(output);
    if depth > MAX_DEPTH {
        return Err(Failure::validation(
            "output_too_deep",
            format!("the output is nested {depth} levels deep; others can read at most {MAX_DEPTH}"),
        ));
    }
    let mapped = mapping.apply(output)?;
    let raw = |value: &Value| to_raw_value(value).expect("JSON values can be written as JSON");
    let output = raw(output);
    let mapped = mapped.map(|mapped: Map<String, Value>| raw(&Value::Object(mapped)));
    let size = output.get().len() + mapped.as_deref().map_or(0, |mapped| mapped.get().len());
    if size > limit {
        return Err(Failure::validation(
            "output_too_large",
            format!("the output has {size} bytes; `limits.output` allows {limit}; let the node return less"),
        ));
    }
    Ok(Outcome::Completed { output, mapped })
}

#[cfg(test)]
mod tests;
