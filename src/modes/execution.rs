//! What a running node has at hand: the ports behind the one layer of retries, its deadline, its journal, and the
//! ledger of what it used. What it does with them is each mode's.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Either;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::UnknownOutcome;
use crate::domain::blob::BlobRef;
use crate::domain::delta::Deltas;
use crate::domain::event::EventType;
use crate::domain::journal::{CallId, Class, Start};
use crate::domain::message::{Completion, Conversation, Usage};
use crate::domain::node::LlmConfig;
use crate::domain::outcome::{Failure, Partial, Resumed, Spent};
use crate::domain::session::Session;
use crate::domain::task::OpenTask;
use crate::domain::tool::{Arguments, ToolOutput, ToolSpec, ToolTarget};
use crate::domain::wait::{Ask, WaitId};
use crate::domain::work::Delivery;
use crate::modes::ModeSettings;
use crate::modes::approval::Approvals;
use crate::modes::budget::Budget;
use crate::modes::deadline::since;
use crate::modes::dialogue::{CONTEXT_OVERFLOW, Dialogue};
use crate::modes::elicitation::Followed;
use crate::modes::logbook::{Logbook, digest};
use crate::modes::step::{Halt, Patience, step};
use crate::modes::tasks::RunningCall;
use crate::modes::waits::{Wait, Waits};
use crate::ports::{CallContext, Events, LlmRequest, Ports, ToolCall, Tools};
use crate::retry::RetryPolicy;

/// How often pieces of an answer are told at the most.
const DELTA_PAUSE: Duration = Duration::from_millis(200);
/// The least time between two events of one call's progress; what comes in between is left out.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// Hexadecimal digits that tell one system prompt and its tools from another.
const FRAME_DIGITS: usize = 16;

/// The remark on an answer to a conversation that had to be shortened.
const LEFT_OUT: &str =
    "the conversation did not fit into the model's context window, so the oldest results of tools were shortened";

/// What an execution used and remarked. It outlives the work, so that a node whose time is up can tell it as well.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub spent: RefCell<Spent>,
    pub partial: RefCell<Option<Partial>>,
    pub warnings: RefCell<Vec<String>>,
    pub resumed: Cell<Option<Resumed>>,
    pub waits: Waits,
    /// The conversation as it ended, or as far as it has come.
    pub said: RefCell<Conversation>,
    pub session: RefCell<Option<Session>>,
    /// What others decided, in few words.
    pub decisions: RefCell<Vec<Value>>,
    /// The tools that were wanted last are being called: what comes of each is not in `said` yet.
    pub calling: Cell<bool>,
    /// What servers still work on.
    pub tasks: RefCell<BTreeMap<CallId, OpenTask>>,
    /// Fires once it is known what an earlier attempt has on record.
    pub opened: CancellationToken,
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

    /// Notes how far a dialogue has come, for a node that fails.
    pub fn reached(&self, dialogue: &Dialogue) {
        self.partial.replace(Some(dialogue.partial()));
        self.said.replace(dialogue.turns().clone());
        self.calling.set(false);
    }

    /// Does a step and notes how many attempts it took. Around a step that has to wait for long the node is ended, unless
    /// other calls go on for as long, see [`Waits`].
    pub async fn step<T, F, Op>(
        &self,
        name: &'static str,
        site: &str,
        patience: &Patience,
        mut operation: F,
    ) -> Result<T, Failure>
    where
        F: FnMut() -> Op,
        Op: Future<Output = Result<T, Failure>>,
    {
        // Once the node was parked in this step, its first try here is another one already.
        let tried = Cell::new(patience.parked);
        let mut counted = || {
            self.spent.borrow_mut().retries += u32::from(tried.replace(true));
            operation()
        };
        let mut patience = *patience;
        let result = loop {
            match step(name, &patience, &mut counted).await {
                Err(Halt::Parked { until, made, failure }) => {
                    self.waits.park(Wait { until, made, failure, site: site.to_owned(), look: false }).await;
                    (patience.made, patience.parked) = (made, true);
                }
                Err(Halt::Failed(failure)) => break Err(failure),
                Ok(done) => break Ok(done),
            }
        };
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
    /// A tool call.
    Tool(CallId),
}

impl fmt::Display for CallSite {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovery => out.write_str("discovery"),
            Self::Turn(turn) => write!(out, "turn {turn}"),
            Self::Tool(CallId { turn, index }) => write!(out, "turn {turn} call {index}"),
        }
    }
}

/// How the call of a tool ended.
#[derive(Debug)]
pub(super) struct Called {
    pub answer: Result<ToolOutput, Failure>,
    pub took: Duration,
}

/// How a model is asked, the same in every turn.
#[derive(Debug)]
pub(super) struct Brief {
    pub settings: Arc<LlmConfig>,
    pub system: Option<String>,
    pub tools: Arc<[ToolSpec]>,
    /// What stands in for the definitions of tools that earlier nodes of the session used.
    pub earlier_tools: Arc<[ToolSpec]>,
    pub output_schema: Option<Arc<Value>>,
    frame: OnceCell<Arc<str>>,
}

impl Brief {
    /// How a model without tools is asked.
    pub fn new(settings: Arc<LlmConfig>, system: Option<String>, output_schema: Option<Arc<Value>>) -> Self {
        let none: Arc<[ToolSpec]> = Arc::from([]);
        Self { settings, system, tools: Arc::clone(&none), earlier_tools: none, output_schema, frame: OnceCell::new() }
    }

    /// A short name of all that stands before the conversation. The tools of a node are known by its first turn, and
    /// do not change afterwards.
    fn frame(&self) -> Arc<str> {
        let frame = self.frame.get_or_init(|| {
            let shown = |tool: &ToolSpec| json_of(&(&tool.name, &tool.description, &*tool.input_schema));
            let all = |tools: &[ToolSpec]| tools.iter().map(shown).collect::<String>();
            let extra = ["system", "tools"].map(|name| self.settings.extra.get(name));
            let rest = json_of(&(&self.system, self.output_schema.as_deref(), self.settings.strict_tools, extra));
            let digest = digest([all(&self.tools).as_str(), &all(&self.earlier_tools), &rest]);
            Arc::from(&digest[..FRAME_DIGITS])
        });
        Arc::clone(frame)
    }
}

fn json_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts and JSON values serialise")
}

/// One execution of a node.
pub(super) struct Execution<'a, P> {
    pub ports: &'a P,
    pub settings: &'a ModeSettings,
    pub delivery: &'a Arc<Delivery>,
    pub ledger: &'a Ledger,
    pub logbook: &'a Logbook<'a, P>,
    pub policy: RetryPolicy,
    pub budget: Budget,
    pub deadline: Instant,
    pub approvals: Approvals,
    /// What earlier nodes said with the model, which this one goes on with.
    pub before: Conversation,
}

impl<P: Ports> Execution<'_, P> {
    /// The name of a question at a place of this execution.
    pub fn wait_id(&self, site: CallSite, what: &str) -> WaitId {
        let place = idempotency_key(self.delivery, self.logbook.epoch(), site);
        WaitId::of_digest(&digest([place.as_str(), what]))
    }

    /// Asks somebody else and never returns: the node is ended around it, and goes on from its journal.
    pub async fn wait_for<T>(&self, ask: Ask) -> T {
        self.ledger.waits.ask(ask, self.logbook.page()).await
    }

    /// The next turn of a dialogue, if an earlier attempt has it on record.
    pub fn recorded(&self, dialogue: &Dialogue) -> Option<Completion> {
        let completion = self.logbook.turn(dialogue.iterations() + 1)?;
        self.ledger.warn(completion.warnings.iter().cloned());
        Some(completion)
    }

    /// Asks the model for the next turn of a dialogue. It is on record before anything follows from it. A conversation
    /// that does not fit is shortened as long as that is possible.
    pub async fn ask(&self, brief: &Brief, dialogue: &mut Dialogue) -> Result<Completion, Failure> {
        loop {
            match self.ask_once(brief, dialogue).await {
                Err(failure) if failure.code == CONTEXT_OVERFLOW => match dialogue.shorten() {
                    0 => return Err(dialogue.does_not_fit(&failure.message)),
                    bytes => self.progress(EventType::NodeProgress, json!({ "left_out_bytes": bytes })),
                },
                answer => return answer,
            }
        }
    }

    async fn ask_once(&self, brief: &Brief, dialogue: &Dialogue) -> Result<Completion, Failure> {
        let turn = dialogue.iterations() + 1;
        self.budget.check(&self.ledger.spent.borrow())?;
        let deltas = self.ports.events().wants(EventType::LlmDelta).then(Deltas::default);
        let request = LlmRequest {
            settings: Arc::clone(&brief.settings),
            system: brief.system.clone(),
            turns: dialogue.turns().clone(),
            tools: Arc::clone(&brief.tools),
            tools_allowed: dialogue.tools_allowed(),
            earlier_tools: Arc::clone(&brief.earlier_tools),
            frame: brief.frame(),
            output_schema: brief.output_schema.clone(),
            deltas: deltas.clone(),
            elsewhere: false,
            rate_word: None,
            context: self.context(CallSite::Turn(turn)),
        };
        let mut call = pin!(self.ask_any(request, dialogue.provider(), turn));
        let completion = match deltas {
            Some(deltas) => self.telling(turn, &deltas, call.as_mut()).await?,
            None => call.await?,
        };
        let mut completion = Completion { shortened: dialogue.shortened(), ..completion };
        if completion.shortened > 0 {
            completion.warnings.push(String::from(LEFT_OUT));
        }
        *self.ledger.spent.borrow_mut().usage.get_or_insert_default() += completion.usage;
        self.ledger.warn(completion.warnings.iter().cloned());
        self.logbook.heard(turn, &completion).await?;
        Ok(completion)
    }

    /// Waits for a model and tells what it writes meanwhile, a few times a second: an event for each letter would cost
    /// more than the answer.
    async fn telling<T>(&self, turn: u32, deltas: &Deltas, mut call: Pin<&mut impl Future<Output = T>>) -> T {
        let tell = || {
            let pieces = deltas.fetch();
            if !pieces.is_empty() {
                self.progress(EventType::LlmDelta, json!({ "turn": turn, "pieces": pieces }));
            }
        };
        let mut pulse = interval(DELTA_PAUSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                answer = &mut call => {
                    tell();
                    return answer;
                }
                _ = pulse.tick() => tell(),
            }
        }
    }

    /// Finds the tools that the patterns name.
    pub async fn find_tools(&self, patterns: &[String]) -> Result<Vec<ToolSpec>, Failure> {
        let operation = async || {
            let found = self.ports.tools().find(patterns, self.deadline.into_std()).await?;
            // The tool that a rule names may be one of a server that is away, and then its rule is not idle.
            match self.approvals.rules.idle(&found.tools).and_then(|rule| found.may_have(rule)) {
                Some(away) => Err(away.failure.clone()),
                None => Ok(found),
            }
        };
        let found = self.step("tool discovery", CallSite::Discovery, false, operation).await?;
        self.ledger.warn(found.warnings);
        Ok(found.tools)
    }

    /// Whether a call with these arguments may simply be made again.
    pub fn class(&self, spec: &ToolSpec, arguments: &Arguments) -> Class {
        let effects = self.ports.tools().effects(spec, arguments);
        match self.settings.unknown_outcomes.of(&spec.target, effects.read_only || effects.idempotent) {
            UnknownOutcome::Retry => Class::Safe,
            UnknownOutcome::AskModel | UnknownOutcome::Fail => Class::Unsafe,
        }
    }

    /// What follows for a call during which a worker died.
    pub fn unknown_outcome(&self, call: CallId, start: &Start) -> UnknownOutcome {
        if self.waited(call, start) {
            // It was not broken off: it failed in a way that allows another try, and the node waited for that.
            return UnknownOutcome::Retry;
        }
        tracing::warn!(tool = %start.target(), "a worker ended during a tool call, its outcome is unknown");
        self.settings.unknown_outcomes.of(&start.target(), start.class == Class::Safe)
    }

    /// Whether the node was parked in this call and nobody has made it since. To have read the node is not to have made
    /// the call: the answer to a read may be lost, and a worker may die before it comes to it.
    fn waited(&self, call: CallId, start: &Start) -> bool {
        let Delivery { meta, entry, token, .. } = &**self.delivery;
        let made_since = match &start.entry {
            Some(begun) => begun == entry.as_str(),
            // Written by a worker that did not tell.
            None => token.deliveries > 1,
        };
        !made_since && meta.waits.contains_key(&CallSite::Tool(call).to_string())
    }

    /// Puts on record that a call which was waited for is made now, unless it may be made any number of times.
    pub async fn begin_again(&self, call: CallId, start: Start) -> Result<(), Failure> {
        if start.class == Class::Unsafe && self.waited(call, &start) {
            self.logbook.begins_again(call, start).await?;
        }
        Ok(())
    }

    /// Puts on record that a call is about to be made.
    pub async fn begin_call(
        &self,
        call: CallId,
        target: &ToolTarget,
        arguments: &Arguments,
        class: Class,
    ) -> Result<(), Failure> {
        let key = idempotency_key(self.delivery, self.logbook.epoch(), CallSite::Tool(call));
        self.ledger.spent.borrow_mut().tool_calls += 1;
        self.logbook.begins(call, target, arguments, key, class).await
    }

    /// Calls a tool and tells how far it comes, or goes on with a call that its server works on already. How it ended is
    /// told by [`Self::tell_call`].
    pub async fn call_tool(
        &self,
        call: CallId,
        target: &ToolTarget,
        arguments: Arguments,
        class: Class,
        resumed: Option<RunningCall<'_>>,
    ) -> Called {
        let (place, context) = (call, self.context(CallSite::Tool(call)));
        let start = Instant::now();
        let mut call = ToolCall {
            target: target.clone(),
            arguments: Arc::new(arguments),
            context,
            progress: None,
            questions: None,
        };
        if target.server.is_none() {
            // A function of this process tells nothing meanwhile and asks nothing.
            let answer = Box::pin(self.to_its_end(place, &call, class, resumed)).await;
            return Called { answer, took: start.elapsed() };
        }
        let (sender, mut told) = watch::channel(None);
        // A tool that asks waits for its answer, so there is one at a time.
        let (asking, mut asked) = mpsc::channel(1);
        (call.progress, call.questions) = (Some(sender), Some(asking));
        let earlier = resumed.as_ref().map_or(Duration::ZERO, |resumed| since(resumed.running.start.at));
        let mut work = Box::pin(self.to_its_end(place, &call, class, resumed));
        let mut next = start;
        let ended = loop {
            let news = async {
                sleep_until(next).await;
                told.changed().await
            };
            tokio::select! {
                biased;
                result = &mut work => break Ok(result),
                Some(asked) = asked.recv() => {
                    let (question, answer) = *asked;
                    match self.follow_question(place, target, &call.arguments, question) {
                        // Whoever asked may have gone meanwhile.
                        Ok(Followed::Answered(reply)) => drop(answer.send(reply)),
                        Ok(Followed::Ask(ask)) => break Err(ask),
                        Err(failure) => break Ok(Err(failure)),
                    }
                }
                Ok(()) = news => {
                    let progress = told.borrow_and_update().clone();
                    self.progress(EventType::ToolExecuted, json!({"tool": target.to_string(), "progress": progress}));
                    next = Instant::now() + PROGRESS_PAUSE;
                }
            }
        };
        let answer = match ended {
            Ok(answer) => answer,
            Err(ask) => {
                // The other calls of the turn may go on for long, and need what this one holds at its server.
                drop(work);
                // On the heap: few calls ask.
                Box::pin(self.wait_in_call(place, *ask)).await
            }
        };
        Called { answer, took: earlier + start.elapsed() }
    }

    /// Tells how a call ended, and where its whole result is stored if a model is shown only a part of it.
    pub fn tell_call(&self, target: &ToolTarget, called: &Called, stored: Option<&BlobRef>) {
        let mut data = json!({
            "tool": target.to_string(),
            "duration_ms": u64::try_from(called.took.as_millis()).unwrap_or(u64::MAX),
            "is_error": called.answer.as_ref().map_or(true, |output| output.is_error),
        });
        if let Some(stored) = stored {
            data["stored"] = json!(stored);
        }
        self.progress(EventType::ToolExecuted, data);
    }

    /// Tells live progress.
    pub fn progress(&self, kind: EventType, data: Value) {
        self.ports.events().progress(self.delivery, kind, data);
    }

    /// Tokens used so far.
    pub fn usage(&self) -> Usage {
        self.ledger.spent.borrow().usage.unwrap_or_default()
    }

    /// Does a step of the node. `elsewhere`: whether the same can be had from somebody else, so that no long wait is worth it.
    pub async fn step<T, F, Op>(
        &self,
        name: &'static str,
        site: CallSite,
        elsewhere: bool,
        operation: F,
    ) -> Result<T, Failure>
    where
        F: FnMut() -> Op,
        Op: Future<Output = Result<T, Failure>>,
    {
        if Instant::now() >= self.deadline {
            // What is on record may still be used after the node's time is up, but nothing is begun any more. Whoever
            // watches the time drops this.
            return pending().await;
        }
        let site = site.to_string();
        let before = self.delivery.meta.waits.get(&site).copied();
        let Self { policy, deadline, settings, .. } = *self;
        // Only the last place to turn to is worth a long wait, so what was used up before one belongs to it alone.
        let before = before.filter(|_| !elsewhere);
        let (made, parked) = (before.unwrap_or_default(), before.is_some());
        let patience = Patience { policy, deadline, made, parked, park_after: settings.park_after, elsewhere };
        self.ledger.step(name, &site, &patience, operation).await
    }

    /// One call of a model or a tool, cut off where an attempt may not take longer. No `async fn`: that would keep room for
    /// the call twice, and each step around it as well.
    pub fn attempt<T>(
        &self,
        class: Class,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> impl Future<Output = Result<T, Failure>> {
        match self.settings.attempt_timeout {
            None => Either::Left(call),
            Some(limit) => Either::Right(
                timeout(limit, call).map(move |done| done.unwrap_or_else(|_| Err(too_slow(limit, class)))),
            ),
        }
    }

    fn context(&self, site: CallSite) -> CallContext {
        let item = &self.delivery.item;
        CallContext {
            graph_id: item.graph_id.clone(),
            node_id: item.node_id.clone(),
            run_id: item.run_id.clone(),
            work_id: self.delivery.work_id.clone(),
            traceparent: item.traceparent.clone(),
            idempotency_key: idempotency_key(self.delivery, self.logbook.epoch(), site),
            deadline: self.deadline.into_std(),
        }
    }
}

fn too_slow(limit: Duration, class: Class) -> Failure {
    let limit = humantime::format_duration(limit);
    let message = format!("the call did not answer within {limit}; raise `limits.attempt_timeout`");
    match class {
        Class::Safe => Failure::retriable("attempt_timeout", message),
        Class::Unsafe => Failure::permanent("attempt_timeout", message + ". It may have taken effect"),
    }
}

/// The name of one call: of the identity, the epoch and the place alone, so that every attempt and every worker gives it
/// alike, and a node that was started over gives another. So does one that was brought back from the dead letters: it
/// begins without its journal, and a tool that knows the old key would answer it with what an earlier run asked for.
fn idempotency_key(delivery: &Delivery, epoch: u32, site: CallSite) -> String {
    let item = &delivery.item;
    let epoch = match delivery.meta.redriven {
        0 => format!("epoch {epoch}"),
        redriven => format!("epoch {epoch} of return {redriven}"),
    };
    digest([item.graph_id.as_str(), item.node_id.as_str(), item.run_id.as_str(), &epoch, &site.to_string()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modes::scripted_ports::delivery;

    #[test]
    fn a_call_has_one_name_for_all_attempts_and_another_for_each_new_beginning() {
        let key = |attempt, redriven, epoch| {
            let mut delivery = Delivery::clone(&delivery(json!({})));
            (delivery.meta.attempt, delivery.meta.redriven) = (attempt, redriven);
            idempotency_key(&delivery, epoch, CallSite::Turn(1))
        };
        assert_eq!(key(0, 0, 1), key(3, 0, 1));
        let beginnings = [key(0, 0, 1), key(0, 0, 2), key(0, 1, 1), key(0, 1, 2), key(0, 2, 1)];
        let names: std::collections::HashSet<&String> = beginnings.iter().collect();
        assert_eq!(names.len(), beginnings.len(), "a run that was brought back is not answered with an earlier result");
    }
}
