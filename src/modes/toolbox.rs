//! The tools of one agent: the calls of one turn, checked before they run, run at once, answered in order. Nothing
//! that goes wrong with a tool ends the agent; the model is told instead.

use std::sync::Arc;

use futures_util::future::{join_all, try_join};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::config::UnknownOutcome;
use crate::domain::blob::BlobRef;
use crate::domain::journal::{CallId, CallRecord, Class, End};
use crate::domain::message::{ToolResult, ToolUse, text_block};
use crate::domain::node::nearest;
use crate::domain::outcome::Failure;
use crate::domain::tool::{Arguments, ToolOutput, ToolSpec, ToolTarget};
use crate::domain::wait::Ask;
use crate::modes::ModeSettings;
use crate::modes::approval::{Gate, Permission, WAIT_EXPIRED};
use crate::modes::execution::Execution;
use crate::modes::logbook::{digest_of, length_of};
use crate::modes::tasks::RunningCall;
use crate::modes::template::listed;
use crate::modes::tool_schema::{ToolSchema, ToolSchemas};
use crate::modes::unknown;
use crate::ports::{Journal, Ports};

/// Bytes of a record for its frame and for the words about where its whole result is: a key has three ids of up to 256
/// characters.
const ROOM_FOR_NOTE: usize = 16 * 1024;

/// The tools that an agent may use. They are looked for when they are first needed: an agent whose end is on record
/// needs none.
#[derive(Debug)]
pub(super) struct Toolbox {
    patterns: Vec<String>,
    offer: tokio::sync::OnceCell<Offer>,
}

/// The tools that were found.
#[derive(Debug)]
struct Offer {
    /// What a model sees, with schemas that its API takes.
    specs: Arc<[ToolSpec]>,
    /// What stands behind the schema of each of them, in the same order.
    schemas: Vec<Arc<ToolSchema>>,
}

impl Toolbox {
    /// The tools that the patterns name.
    pub fn new(patterns: Vec<String>) -> Self {
        Self { patterns, offer: tokio::sync::OnceCell::new() }
    }

    /// What the model is offered.
    pub async fn specs<P: Ports>(&self, execution: &Execution<'_, P>) -> Result<Arc<[ToolSpec]>, Failure> {
        Ok(Arc::clone(&self.offer(execution).await?.specs))
    }

    async fn offer<P: Ports>(&self, execution: &Execution<'_, P>) -> Result<&Offer, Failure> {
        let find = async || {
            let found = execution.find_tools(&self.patterns).await?;
            match execution.approvals.rules.idle(&found) {
                Some(name) => Err(idle_rule(name, &found)),
                None => Ok(Offer::new(found, &execution.settings.tool_schemas)),
            }
        };
        self.offer.get_or_try_init(find).await
    }

    /// Runs the calls of one turn at once, within bounds; the results are in the order of the calls. A failure is the
    /// node's: what goes wrong with a tool is a result.
    pub async fn call_all<P: Ports>(
        &self,
        execution: &Execution<'_, P>,
        turn: u32,
        uses: Vec<ToolUse>,
    ) -> Result<Vec<ToolResult>, Failure> {
        let known = |(index, _): (u32, &ToolUse)| execution.logbook.needs_no_tool(CallId { turn, index });
        if !(0..).zip(&uses).all(known) {
            // Before any call, for one that waits here for long would keep the others waiting for it.
            self.offer(execution).await?;
        }
        let (mut calls, mut asks) = (Vec::with_capacity(uses.len()), Vec::new());
        for (index, tool_use) in (0..).zip(uses) {
            match self.question(execution, CallId { turn, index }, &tool_use).await? {
                Some(ask) => asks.push(ask),
                None => calls.push((index, tool_use)),
            }
        }
        let calls = calls.into_iter().map(|(index, tool_use)| async move {
            let result = self.call(execution, CallId { turn, index }, tool_use).await;
            result.map(|result| (index, result))
        });
        // Unordered, so that a slow call does not keep the ones behind it from starting.
        let at_once = execution.settings.agent.parallel_tools.get();
        let all = stream::iter(calls).buffer_unordered(at_once).try_collect::<Vec<_>>();
        let mut results = if asks.is_empty() {
            all.await?
        } else {
            // The others run meanwhile, and the node is ended once nothing else of the turn is left.
            let asking = join_all(asks.into_iter().map(|ask| async move {
                let _busy = execution.ledger.waits.busy();
                execution.wait_for::<()>(ask).await;
            }));
            try_join(all, asking.map(Ok)).await?.0
        };
        results.sort_unstable_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// What has to be decided before a call can be made, if anything has.
    async fn question<P: Ports>(
        &self,
        execution: &Execution<'_, P>,
        call: CallId,
        tool_use: &ToolUse,
    ) -> Result<Option<Ask>, Failure> {
        if !execution.may_ask() || execution.logbook.knows(call) || tool_use.problem.is_some() {
            return Ok(None);
        }
        let offer = self.offer(execution).await?;
        let Ok((spec, input)) = offer.checked(&tool_use.name, tool_use.input.clone()) else { return Ok(None) };
        match execution.gate(call, spec, offer.schema(spec), &input, false)? {
            Gate::Ask(ask) => Ok(Some(*ask)),
            Gate::Open(_) | Gate::Refused(_) => Ok(None),
        }
    }

    /// One call, as far as an earlier attempt has not made it.
    async fn call<P: Ports>(
        &self,
        execution: &Execution<'_, P>,
        call: CallId,
        tool_use: ToolUse,
    ) -> Result<ToolResult, Failure> {
        let ToolUse { id, name, input, problem } = tool_use;
        // A node that has to wait for long is not ended before the other calls are on record.
        let _busy = execution.ledger.waits.busy();
        let (end, whole) = match execution.logbook.call(call)? {
            Some(CallRecord::Ended(end)) => return result(id, end),
            Some(CallRecord::Running(running)) => {
                let Permission { arguments, words } = execution.agreed(call);
                let shown = arguments.unwrap_or_else(|| match self.offer.get() {
                    Some(offer) => offer.restored(&name, input.clone()),
                    // Whoever is asked in its course is shown what the model wrote.
                    None => input.clone(),
                });
                let making = Making { target: running.start.target(), input: shown, class: running.start.class };
                // Calls that find this out at once do so each by itself: one that waited for the other would hold the slot.
                let arguments = async {
                    let found = execution.find_tools(&self.patterns).await?;
                    Ok(Offer::new(found, &execution.settings.tool_schemas).restored(&name, input))
                };
                let resumed = RunningCall { running, arguments: Box::pin(arguments) };
                noted(answer(execution, call, making, Some(resumed)).await, words)
            }
            Some(CallRecord::Begun(start)) => {
                let target = start.target();
                match execution.unknown_outcome(call, &start) {
                    UnknownOutcome::Retry => {
                        let Permission { arguments, words } = execution.agreed(call);
                        let input = match arguments {
                            Some(edited) => edited,
                            None => self.offer(execution).await?.restored(&name, input),
                        };
                        if digest_of(&input) == start.arguments {
                            let making = Making { target, input, class: start.class };
                            // On the heap: few calls are made again.
                            Box::pin(execution.begin_again(call, start)).await?;
                            noted(answer(execution, call, making, None).await, words)
                        } else {
                            // Its server is away, so what it was called with cannot be made out any more. The same key with
                            // other arguments would be answered with the result of the first, or do something else.
                            (End::Unknown(told(unknown::words(&target))), None)
                        }
                    }
                    UnknownOutcome::AskModel => (End::Unknown(told(unknown::words(&target))), None),
                    UnknownOutcome::Fail => return Err(unknown::failure(&target)),
                }
            }
            None if let Some(problem) = problem => (End::Answered(told(format!("Not run: {problem}."))), None),
            None => match self.offer(execution).await?.checked(&name, input) {
                Ok((spec, input)) => {
                    let offer = self.offer(execution).await?;
                    match execution.gate(call, spec, offer.schema(spec), &input, false)? {
                        Gate::Open(Permission { arguments, words }) => {
                            match arguments.map_or(Ok(input), |edited| offer.fitting(spec, edited)) {
                                Ok(input) => {
                                    let class = execution.class(spec, &input);
                                    execution.begin_call(call, &spec.target, &input, class).await?;
                                    let making = Making { target: spec.target.clone(), input, class };
                                    noted(answer(execution, call, making, None).await, words)
                                }
                                Err(words) => (End::Answered(told(words)), None),
                            }
                        }
                        Gate::Refused(refused) => (End::Answered(told(refused.words(&spec.target))), None),
                        Gate::Ask(ask) => execution.wait_for(*ask).await,
                    }
                }
                Err(words) => (End::Answered(told(words)), None),
            },
        };
        execution.logbook.ended(call, &end, whole).await?;
        execution.give_up_task(call).await;
        result(id, end)
    }
}

/// The answer, with what the model should know about the call before it.
fn noted((mut end, whole): Shaped, words: Option<String>) -> Shaped {
    if let (End::Answered(output), Some(words)) = (&mut end, words) {
        output.content.insert(0, text_block(words));
    }
    (end, whole)
}

/// A rule that no tool of the node heeds protects nothing.
fn idle_rule(name: &str, found: &[ToolSpec]) -> Failure {
    let names: Vec<String> = found.iter().map(|spec| spec.target.to_string()).collect();
    let hint = nearest(name, names.iter().map(String::as_str));
    let hint = hint.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Failure::configuration(
        "unknown_tool",
        format!("`approve` names `{name}`, which is none of the node's tools{hint} They are: {}", listed(&names)),
    )
}

/// A call as it is made.
struct Making {
    target: ToolTarget,
    input: Arguments,
    class: Class,
}

/// Makes the call, or goes on with it where its server works on it already, and shapes its answer for the model; with the
/// whole of it where the model is shown a part.
async fn answer<P: Ports>(
    execution: &Execution<'_, P>,
    call: CallId,
    making: Making,
    resumed: Option<RunningCall<'_>>,
) -> Shaped {
    let Making { target, input, class } = making;
    let target = &target;
    let called = execution.call_tool(call, target, input, class, resumed).await;
    let shown = match &called.answer {
        Ok(output) => {
            let place = || execution.ports.journal().place(execution.delivery, call);
            Shown::of(output, target, execution.settings, place)
        }
        Err(failure) if failure.code == WAIT_EXPIRED || execution.ends_node(target, class, failure) => {
            execution.tell_call(target, &called, None);
            return (End::Failed(failure.clone()), None);
        }
        Err(failure) => {
            tracing::debug!(tool = %target, code = failure.code.as_ref(), error = %failure, "tool call failed");
            let words = format!("The call failed ({}): {}", failure.code, failure.message);
            Shown { output: told(words), stored: None }
        }
    };
    let (stored, whole) = shown.stored.unzip();
    execution.tell_call(target, &called, stored.as_ref());
    (End::Answered(shown.output), whole)
}

/// How a call ended for the model, with the whole of its answer where that is only a part.
type Shaped = (End, Option<Box<RawValue>>);

/// What becomes of an answer.
struct Shown {
    /// What the model is shown and the record keeps.
    output: ToolOutput,
    /// Where the whole answer is stored, and the answer, JSON, if the model is shown a part of it.
    stored: Option<(BlobRef, Box<RawValue>)>,
}

impl Shown {
    /// The answer with the middle of long texts left out; or words about it where what is no text makes it too large
    /// for the record and for a model. `place` is where the whole of it would stand.
    fn of(
        output: &ToolOutput,
        target: &ToolTarget,
        settings: &ModeSettings,
        place: impl FnOnce() -> Option<String>,
    ) -> Self {
        let (content, complete) = shortened(output.clone().into_blocks(), settings.tool_result_chars);
        let mut part = ToolOutput { content, structured: None, is_error: output.is_error };
        let (bytes, limit) = (length_of(&part), settings.entry_limit().saturating_sub(ROOM_FOR_NOTE));
        if bytes > limit {
            part = told(format!(
                "The call of `{target}` was made, but its result was left out: it has {bytes} bytes, and at most \
                 {limit} can be taken. Ask for less."
            ));
        } else if complete {
            return Self { output: part, stored: None };
        }
        let stored = stored(output, settings.stored_tool_result, place);
        if let Some((blob, _)) = &stored {
            part.content.push(text_block(format!(
                "[The whole result is stored as `{}` ({} bytes, {}), where people find it.]",
                blob.key, blob.bytes, blob.media_type
            )));
        }
        Self { output: part, stored }
    }
}

/// The whole answer as JSON and a reference to it, if it may be stored and there is a place for it.
fn stored(
    output: &ToolOutput,
    limit: usize,
    place: impl FnOnce() -> Option<String>,
) -> Option<(BlobRef, Box<RawValue>)> {
    let whole = to_raw_value(output).expect("an answer has string keys and finite numbers");
    if whole.get().len() > limit {
        return None;
    }
    Some((BlobRef::new(place()?, &whole), whole))
}

/// Words for the model about a call that has no answer of its own.
fn told(words: String) -> ToolOutput {
    ToolOutput { content: vec![text_block(words)], structured: None, is_error: true }
}

fn result(tool_use_id: String, end: End) -> Result<ToolResult, Failure> {
    match end {
        End::Answered(ToolOutput { content, is_error, .. }) | End::Unknown(ToolOutput { content, is_error, .. }) => {
            Ok(ToolResult { tool_use_id, content, is_error })
        }
        End::Failed(failure) => Err(failure),
    }
}

impl Offer {
    fn new(mut specs: Vec<ToolSpec>, known: &ToolSchemas) -> Self {
        let schemas = specs.iter_mut().map(|spec| {
            let schema = known.of(&spec.input_schema);
            spec.input_schema = Arc::clone(&schema.portable.schema);
            schema
        });
        let schemas = schemas.collect();
        Self { specs: specs.into(), schemas }
    }

    /// The tool of this name and the arguments under the tool's own names, if they fit it; else what is wrong, in words
    /// for the model.
    fn checked(&self, name: &str, input: Arguments) -> Result<(&ToolSpec, Arguments), String> {
        let Some(at) = self.position(name) else {
            let names: Vec<String> = self.specs.iter().map(|spec| spec.name.clone()).collect();
            let hint = nearest(name, names.iter().map(String::as_str))
                .map(|near| format!(" Did you mean `{near}`?"))
                .unwrap_or_default();
            return Err(format!("There is no tool `{name}`.{hint} The tools are: {}.", listed(&names)));
        };
        let (spec, schema) = (&self.specs[at], &self.schemas[at]);
        self.fitting(spec, schema.portable.restore(input)).map(|input| (spec, input))
    }

    /// Arguments under the tool's own names, if they fit it.
    fn fitting(&self, spec: &ToolSpec, input: Arguments) -> Result<Arguments, String> {
        let Some(at) = self.position(&spec.name) else { return Ok(input) };
        let input = Value::Object(input);
        if let Some(schema) = self.schemas[at].compiled(&spec.target) {
            schema
                .check(&input)
                .map_err(|why| format!("Not run: the arguments do not fit the tool's schema: {why}."))?;
        }
        match input {
            Value::Object(input) => Ok(input),
            _ => unreachable!("it was made of an object"),
        }
    }

    /// The schema of a tool as its server wrote it.
    fn schema<'a>(&'a self, spec: &'a ToolSpec) -> &'a Value {
        self.position(&spec.name).map_or(&spec.input_schema, |at| &self.schemas[at].written)
    }

    /// Arguments that were checked before, under the tool's own names.
    fn restored(&self, name: &str, input: Arguments) -> Arguments {
        match self.position(name) {
            Some(at) => self.schemas[at].portable.restore(input),
            None => input,
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.specs.iter().position(|spec| spec.name == name)
    }
}

/// Leaves out the middle of all texts together, so that about `limit` characters are left, with a marker in its place;
/// with whether nothing was left out. Blocks of other kinds stay.
pub(super) fn shortened(mut blocks: Vec<Value>, limit: usize) -> (Vec<Value>, bool) {
    let total: usize = blocks.iter_mut().filter_map(text_of).map(|text| text.chars().count()).sum();
    if total <= limit {
        return (blocks, true);
    }
    // What is left out is one stretch from here to there, wherever blocks begin and end.
    let (from, until) = (limit - limit / 2, total - limit / 2);
    let mut at = 0;
    blocks.retain_mut(|block| {
        let Some(text) = text_of(block) else { return true };
        let (begin, end) = (at, at + text.chars().count());
        at = end;
        if end <= from || begin >= until {
            return true;
        }
        let head: String = text.chars().take(from.saturating_sub(begin)).collect();
        let tail: String = text.chars().skip(until.min(end) - begin).collect();
        // Of the block in which the stretch begins something stays, and the marker with it.
        let marker = match (begin..end).contains(&from) {
            true => format!("\n[… {} of {total} characters left out …]\n", until - from),
            false => String::new(),
        };
        *text = head + &marker + &tail;
        !text.is_empty() || block.get("type").is_none_or(|kind| kind != "text")
    });
    (blocks, false)
}

fn text_of(block: &mut Value) -> Option<&mut String> {
    let holder = match block.get("type")?.as_str()? {
        "text" => block,
        "resource" => block.get_mut("resource")?,
        _ => return None,
    };
    match holder.get_mut("text")? {
        Value::String(text) => Some(text),
        _ => None,
    }
}
