//! One execution of a node from its delivery to its report: read the configuration, open the run, put the values in,
//! run the mode within its time, shape the output. What a mode does is its own file's.

use std::borrow::Cow;
use std::cell::{Cell, LazyCell};
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::domain::blob::BlobRef;
use crate::domain::cancel::{CANCELLED_STATUS, CancelOrder, CancelScope};
use crate::domain::event::EventType;
use crate::domain::node::{Mode, NodeConfig};
use crate::domain::outcome::{Failure, Outcome, Parking, Report, Resumed, Waiting};
use crate::domain::session::Session;
use crate::domain::state::{NodeView, Snapshot};
use crate::domain::task::OpenTask;
use crate::domain::work::{Delivery, WorkItem};
use crate::failpoint::{self, Point};
use crate::modes::ModeSettings;
use crate::modes::agent::{self, AgentPlan, AgentTask};
use crate::modes::approval::Approvals;
use crate::modes::attachments::Texts;
use crate::modes::budget::Budget;
use crate::modes::deadline::{self, Deadline};
use crate::modes::dialogue::{CUT_OFF, NOT_RUN, closed};
use crate::modes::execution::{Execution, Ledger};
use crate::modes::llm::{self, LlmPlan, LlmTask};
use crate::modes::logbook::{Desk, Earlier, Logbook, Subject, digest};
use crate::modes::mapping::OutputMapping;
use crate::modes::names::Names;
use crate::modes::scope::{MAX_DEPTH, Scope, measure};
use crate::modes::step::until_answered;
use crate::modes::tasks::give_up_tasks;
use crate::modes::template::{TemplateError, ValueTemplate};
use crate::modes::tool::{self, ToolPlan, ToolTask};
use crate::modes::waits::{Page, Stillness};
use crate::ports::{Cancel, CancelReason, Events, Opened, Ports, Store, Wanted};
use crate::retry::RetryPolicy;

/// Bytes of stored outputs that one node can read.
const LARGEST_INPUT: u64 = 64 << 20;
/// How long an order to stop waits for the opening of the run that it is for.
const OPENING: Duration = Duration::from_secs(5);

/// Executes the delivered node. Never fails: whatever happens is the report's outcome.
pub async fn run_node<P: Ports>(
    ports: &P,
    settings: &ModeSettings,
    delivery: &Arc<Delivery>,
    cancel: &Cancel,
) -> Report {
    let ledger = Ledger::default();
    let mode = Cell::new(None);
    if let Some(reason @ (CancelReason::Lost | CancelReason::Stopping)) = cancel.reason() {
        return Report::early(cancelled(reason, cancel, delivery));
    }
    let (start, started_at) = (Instant::now(), Timestamp::now());
    let run = NodeRun { ports, settings, delivery, cancel, ledger: &ledger, mode: &mode, start, started_at };
    let outcome = tokio::select! {
        // A result that is there is used, whatever happened in the same moment.
        biased;
        result = run.execute() => result.unwrap_or_else(failed),
        still = ledger.waits.all_still() => run.parked(still),
        reason = told_to_stop(cancel, &ledger) => cancelled(reason, cancel, delivery),
    };
    let tasks = match outcome {
        // Whoever goes on with the node goes on with its tasks. Once this end is written, nobody does.
        Outcome::Completed { .. } | Outcome::Failed { .. } => ledger.take_tasks(),
        _ => Vec::new(),
    };
    let (outcome, conversation) = match outcome {
        Outcome::Failed { failure, .. } => {
            let partial = ledger.partial.take();
            let conversation = partial.as_ref().and_then(|_| run.conversation());
            (Outcome::Failed { failure, partial }, conversation)
        }
        other => (other, None),
    };
    Report {
        outcome,
        mode: mode.get(),
        spent: ledger.spent.take(),
        warnings: ledger.warnings.take(),
        resumed: ledger.resumed.get(),
        decisions: ledger.decisions.take(),
        session: ledger.session.take(),
        conversation,
        tasks,
    }
}

/// Waits for a reason to stop. An order counts once the run is opened: only then it is known what there is to stop.
async fn told_to_stop(cancel: &Cancel, ledger: &Ledger) -> CancelReason {
    let reason = cancel.cancelled().await;
    if reason == CancelReason::Requested && tokio::time::timeout(OPENING, ledger.opened.cancelled()).await.is_err() {
        // The order stands in the store, so whoever opens the run finds it there, and the journal with it.
        return CancelReason::Stopping;
    }
    reason
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
    cancel: &'a Cancel,
    ledger: &'a Ledger,
    mode: &'a Cell<Option<Mode>>,
    start: Instant,
    started_at: Timestamp,
}

/// What the opening of a run gave: what is to be done, with what, and what is on record of it.
struct Begun<'a> {
    plan: Plan,
    snapshot: Snapshot,
    config: Cow<'a, str>,
    earlier: Earlier,
}

impl<P: Ports> NodeRun<'_, P> {
    async fn execute(&self) -> Result<Outcome, Failure> {
        // Each part on the heap in its turn: a node that waits needs no room for its opening.
        let begun = match Box::pin(self.begin()).await? {
            ControlFlow::Continue(begun) => begun,
            ControlFlow::Break(outcome) => return Ok(outcome),
        };
        // What was waited outside of a slot, and what other workers took, is a part of the node's time.
        let used = begun
            .earlier
            .started_at()
            .into_iter()
            .chain(self.delivery.meta.since)
            .min()
            .map_or(Duration::ZERO, deadline::since)
            // What others took to decide is not.
            .saturating_sub(self.delivery.meta.waited(&self.delivery.entry));
        let (mode, limit) = (begun.plan.mode(), begun.plan.time_limit);
        let deadline = Deadline::of(self.start, used, self.delivery, limit, self.settings.node_timeout)?;
        self.ports.events().progress(self.delivery, EventType::NodeStarted, json!({ "mode": mode }));
        deadline.bound(Box::pin(self.work(begun, deadline.at))).await
    }

    /// Opens the run and plans its work, unless it is somebody else's or was done already.
    async fn begin(&self) -> Result<ControlFlow<Outcome, Box<Begun<'_>>>, Failure> {
        let item = &self.delivery.item;
        // A configuration that cannot be read fails only after the opening: the run may be somebody else's.
        let planned = item.config.as_ref().map(|config| self.plan(config.get()));
        let wanted = match &planned {
            Some(Ok(plan)) => plan.wanted(item),
            Some(Err(_)) => Wanted::default(),
            None => Wanted { config: true, inputs: true, ..Wanted::default() },
        };
        let opened = self.store_step(|| self.ports.store().open(self.delivery, &wanted)).await?;
        let (mut snapshot, config, earlier) = match opened {
            Opened::Duplicate => return Ok(ControlFlow::Break(Outcome::Duplicate)),
            Opened::Lost => return Ok(ControlFlow::Break(Outcome::Lost)),
            Opened::Cancelled { order, journal } => {
                self.knows(&Earlier::read(&journal));
                return Err(order.failure(&item.graph_id));
            }
            Opened::Ready { snapshot, config, journal, status } => {
                let earlier = Earlier::read(&journal);
                self.knows(&earlier);
                if status.as_deref() == Some(CANCELLED_STATUS) {
                    return Err(CancelOrder::bare(CancelScope::Graph).failure(&item.graph_id));
                }
                if self.cancel.reason() == Some(CancelReason::Requested) {
                    let order = self.cancel.order().cloned().unwrap_or_else(|| CancelOrder::bare(CancelScope::Node));
                    return Err(order.failure(&item.graph_id));
                }
                (snapshot, config, earlier)
            }
        };
        let config = match &item.config {
            Some(brought) => Cow::Borrowed(brought.get()),
            None => Cow::Owned(config.ok_or_else(|| missing_config(item))?),
        };
        failpoint::reach(Point::AfterStateLoad);
        deadline::first_start_in_time(self.delivery, self.start, self.settings.queue_age)?;
        let plan = match planned {
            Some(plan) => plan?,
            None => {
                let plan = self.plan(&config)?;
                self.read_nodes(&plan, &mut snapshot).await?;
                plan
            }
        };
        self.mode.set(Some(plan.mode()));
        Ok(ControlFlow::Continue(Box::new(Begun { plan, snapshot, config, earlier })))
    }

    /// From here on it is known what an earlier attempt has on record, and so what others still work on.
    fn knows(&self, earlier: &Earlier) {
        let tasks = earlier.running().map(|(call, running)| (call, OpenTask::of(running)));
        self.ledger.tasks.borrow_mut().extend(tasks);
        self.ledger.opened.cancel();
    }

    /// The end of a run that goes on after a wait.
    fn parked(&self, still: Stillness) -> Outcome {
        let since = self.delivery.meta.since.unwrap_or(self.started_at);
        let Stillness { next, waits, asks, page } = still;
        if let Some(Page { header, restart }) = page {
            let until = next.map(|(until, _)| until.into_std());
            let ends = asks.iter().map(|ask| ask.expires_at).chain(self.delivery.item.deadline);
            let expires_at = ends.min().unwrap_or(Timestamp::MAX);
            return Outcome::Waiting(Box::new(Waiting { asks, expires_at, until, waits, since, header, restart }));
        }
        let (until, failure) = next.expect("what stands still asks or waits");
        let attempt = waits.values().copied().max().unwrap_or_default() + 1;
        let pause_ms = u64::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
        let told = json!({ "waiting_ms": pause_ms, "code": failure.code, "attempt": attempt });
        self.ports.events().progress(self.delivery, EventType::NodeProgress, told);
        Outcome::Parked(Box::new(Parking { until: until.into_std(), failure, waits, since }))
    }

    /// Reads a configuration; what can be wrong with it by itself is found here, before anything is spent.
    fn plan(&self, config: &str) -> Result<Plan, Failure> {
        let (config, warnings) = NodeConfig::parse(config)?;
        if self.settings.strict && !warnings.is_empty() {
            let members = warnings.join("; ").replace(" was ignored", "");
            return Err(Failure::configuration("unknown_member", format!("{members} (`work.strict` is set)")));
        }
        self.ledger.warn(warnings);
        Plan::compile(&config, self.settings)
    }

    /// Reads the nodes that a configuration out of the graph names; the inputs came with it.
    async fn read_nodes(&self, plan: &Plan, snapshot: &mut Snapshot) -> Result<(), Failure> {
        let wanted = Wanted { inputs: false, ..plan.wanted(&self.delivery.item) };
        if wanted != Wanted::default() {
            let graph = &self.delivery.item.graph_id;
            let read = self.store_step(|| self.ports.store().read(graph, &wanted)).await?;
            (snapshot.nodes, snapshot.session) = (read.nodes, read.session);
        }
        Ok(())
    }

    async fn work(&self, mut begun: Box<Begun<'_>>, deadline: Instant) -> Result<Outcome, Failure> {
        self.complete(&mut begun.snapshot);
        Box::pin(self.fetch_large(&mut begun)).await?;
        let Begun { plan, mut snapshot, config, earlier } = *begun;
        let (policy, budget) = (plan.policy, plan.budget);
        let session = plan.session.clone();
        let kept = snapshot.session.take();
        let (task, output_mapping, approvals) = match self.put_in(plan, snapshot) {
            Ok(rendered) => rendered,
            Err((error, inputs)) => return Err(self.explain(error, inputs).await),
        };
        let Self { ports, settings, delivery, cancel, ledger, .. } = *self;
        let desk = Desk { ports, delivery, cancel, ledger, deadline, entry_limit: settings.entry_limit() };
        let subject = Subject { config: &config, rendered: task.texts().map(digest) };
        let logbook = Logbook::open(desk, subject, earlier, self.started_at)?;
        if logbook.has_asked() {
            // On the heap: few nodes need room for it.
            Box::pin(logbook.lapse()).await?;
        }
        let before = match &session {
            Some(name) => logbook.goes_on_with(name, kept.as_deref()).await?,
            None => Vec::new(),
        };
        if let Some(resumed) = logbook.resumed() {
            let Resumed { turns, tool_calls } = resumed;
            ledger.resumed.set(Some(resumed));
            tracing::info!(turns, tool_calls, "going on where an earlier worker ended");
            ports.events().progress(delivery, EventType::NodeProgress, json!({ "resumed": resumed }));
        } else {
            let tasks = ledger.take_tasks();
            if !tasks.is_empty() {
                // Whatever was begun before does not count any more.
                Box::pin(give_up_tasks(ports.tools(), tasks)).await;
            }
        }
        let execution = Execution {
            ports,
            settings,
            delivery,
            ledger,
            logbook: &logbook,
            policy,
            budget,
            deadline,
            approvals,
            before,
        };
        // Each on the heap: a node that waits needs no room for the modes that it is not in.
        let output = match task {
            Task::Agent(task) => Box::pin(agent::run(&execution, task)).await?,
            Task::Llm(task) => Box::pin(llm::run(&execution, task)).await?,
            Task::Tool(task) => Box::pin(tool::run(&execution, task)).await?,
        };
        if let Some(name) = session {
            self.leave(&name);
        }
        finished(&output, &output_mapping, self.settings.output_limit)
    }

    /// Leaves the conversation to later nodes.
    fn leave(&self, name: &str) {
        let item = &self.delivery.item;
        let session = Session::new(name, &item.node_id, &item.run_id, &self.ledger.said.take());
        let (bytes, limit) = (session.json.len(), self.settings.output_limit);
        if bytes <= limit {
            self.ledger.session.replace(Some(session));
        } else {
            // What the node was for is done; the next one finds the conversation as it was before this one.
            self.ledger.warn([format!(
                "session `{name}` was not kept: it would have {bytes} bytes, and `limits.output` allows {limit}"
            )]);
        }
    }

    /// The conversation in which the node failed, for whoever wants to see it or to go on with it.
    fn conversation(&self) -> Option<Box<RawValue>> {
        let item = &self.delivery.item;
        let words = if self.ledger.calling.get() { CUT_OFF } else { NOT_RUN };
        let conversation = Session::write(&item.node_id, &item.run_id, &closed(self.ledger.said.take(), words));
        let (bytes, limit) = (conversation.get().len(), self.settings.output_limit);
        if bytes > limit {
            self.ledger.warn([format!(
                "the conversation was not kept: it would have {bytes} bytes, and `limits.output` allows {limit}"
            )]);
            return None;
        }
        Some(conversation)
    }

    /// Fetches the outputs that templates name and that are stored by themselves.
    async fn fetch_large(&self, begun: &mut Begun<'_>) -> Result<(), Failure> {
        let Begun { plan, snapshot, .. } = begun;
        let graph = &self.delivery.item.graph_id;
        let names = LazyCell::new(|| plan.names().wanted(&self.delivery.item));
        let mut total = 0_u64;
        for (id, node) in &mut snapshot.nodes {
            let Some(blob) = node.output.as_deref().and_then(BlobRef::of_raw) else { continue };
            if !names.all_nodes && !names.nodes.contains(id) {
                continue;
            }
            total = total.saturating_add(blob.bytes);
            if total > LARGEST_INPUT {
                return Err(Failure::validation(
                    "blobs_too_large",
                    format!("the templates name stored outputs of more than {LARGEST_INPUT} bytes; name fewer nodes"),
                ));
            }
            let found = self.store_step(|| self.ports.store().blob(graph, id, &blob)).await?;
            if found.is_some() {
                node.output = found;
            }
        }
        Ok(())
    }

    /// Puts the values into all templates; an error comes with the names of the inputs that exist.
    fn put_in(&self, plan: Plan, snapshot: Snapshot) -> Result<PutIn, (TemplateError, Vec<String>)> {
        let mut scope = Scope::new(snapshot.inputs, snapshot.nodes, self.settings.output_limit);
        let rendered = ValueTemplate::object(&plan.input_mapping, &scope).and_then(|mapped| {
            scope.lay_over(mapped);
            plan.work.render(&scope)
        });
        match rendered {
            Ok(task) => Ok((task, plan.output_mapping, plan.approvals)),
            Err(error) => Err((error, scope.input_names().map(ToOwned::to_owned).collect())),
        }
    }

    /// Lays the item's inputs over the state, and its node states where the state has none.
    fn complete(&self, snapshot: &mut Snapshot) {
        let item = &self.delivery.item;
        if let Some(brought) = &item.inputs {
            snapshot.inputs.extend(brought.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        for (id, state) in &item.node_states {
            if !snapshot.nodes.contains_key(id)
                && let Ok(view) = serde_json::from_value::<NodeView>(state.clone())
            {
                snapshot.nodes.insert(id.clone(), view);
            }
        }
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
    async fn store_step<T, F, Op>(&self, operation: F) -> Result<T, Failure>
    where
        F: FnMut() -> Op,
        Op: Future<Output = Result<T, Failure>>,
    {
        until_answered(self.start + self.settings.node_timeout.min(deadline::LONGEST), operation).await
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

/// A node's configuration, read.
struct Plan {
    work: Work,
    session: Option<String>,
    input_mapping: Vec<(String, ValueTemplate)>,
    output_mapping: OutputMapping,
    policy: RetryPolicy,
    budget: Budget,
    time_limit: Option<Duration>,
    approvals: Approvals,
}

/// A plan with its values put in.
type PutIn = (Task, OutputMapping, Approvals);

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

impl Task {
    /// The texts that were put together for a model, if one is asked.
    fn texts(&self) -> Option<Texts<'_>> {
        match self {
            Self::Agent(task) => Some(task.texts()),
            Self::Llm(task) => Some(task.texts()),
            Self::Tool(task) => task.texts(),
        }
    }
}

impl Plan {
    fn compile(config: &NodeConfig, settings: &ModeSettings) -> Result<Self, Failure> {
        let work = match config.mode()? {
            Mode::Llm if !config.approve.is_empty() => {
                return Err(Failure::configuration(
                    "invalid_config",
                    "`approve` names calls of tools, and a node in llm mode makes none; give it `tools`, or remove `approve`",
                ));
            }
            Mode::Agent => Work::Agent(AgentPlan::compile(config, settings)?),
            Mode::Llm => Work::Llm(LlmPlan::compile(config)?),
            Mode::Tool => Work::Tool(ToolPlan::compile(config)?),
        };
        if let Some(name) = &config.session {
            Session::check_name(name)?;
            if matches!(work, Work::Tool(_)) {
                return Err(Failure::configuration(
                    "invalid_config",
                    "`session` keeps a conversation, which a node in tool mode has not; remove it",
                ));
            }
        }
        Ok(Self {
            work,
            session: config.session.clone(),
            input_mapping: ValueTemplate::members(&config.input_mapping).map_err(TemplateError::alone)?,
            output_mapping: OutputMapping::compile(&config.output_mapping)?,
            policy: RetryPolicy {
                max_attempts: config.retry.max_attempts.unwrap_or(settings.retry.max_attempts),
                initial: config.retry.initial.unwrap_or(settings.retry.initial),
                max: config.retry.max.unwrap_or(settings.retry.max),
            },
            budget: Budget::new(&config.limits),
            time_limit: config.time_limit(),
            approvals: Approvals::compile(config, &settings.wait)?,
        })
    }

    fn mode(&self) -> Mode {
        match self.work {
            Work::Agent(_) => Mode::Agent,
            Work::Llm(_) => Mode::Llm,
            Work::Tool(_) => Mode::Tool,
        }
    }

    /// What has to be read of the state.
    fn wanted(&self, item: &WorkItem) -> Wanted {
        Wanted { session: self.session.clone(), ..self.names().wanted(item) }
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
