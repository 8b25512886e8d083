//! The tools of one agent: the calls of one turn, checked before they run, run at once, answered in order. Nothing
//! that goes wrong with a tool ends the agent; the model is told instead.

use std::cell::OnceCell;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use crate::config::UnknownOutcome;
use crate::domain::journal::{CallId, CallRecord, Class, End};
use crate::domain::message::{ToolResult, ToolUse, text_block};
use crate::domain::node::nearest;
use crate::domain::outcome::Failure;
use crate::domain::tool::{Arguments, ToolOutput, ToolSpec, ToolTarget};
use crate::modes::execution::Execution;
use crate::modes::logbook::length_of;
use crate::modes::portable::Portable;
use crate::modes::schema::Schema;
use crate::modes::template::listed;
use crate::modes::unknown;
use crate::ports::Ports;

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
    /// What stands behind each of them, in the same order.
    tools: Vec<Tool>,
}

/// What a model does not see of a tool.
#[derive(Debug)]
struct Tool {
    /// The schema as the server wrote it.
    schema: Arc<Value>,
    portable: Portable,
    /// The compiled schema; none where it cannot be compiled.
    compiled: OnceCell<Option<Schema>>,
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
        let find = async || execution.find_tools(&self.patterns).await.map(Offer::new);
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
        let calls = (0..).zip(uses).map(|(index, tool_use)| async move {
            let result = self.call(execution, CallId { turn, index }, tool_use).await;
            result.map(|result| (index, result))
        });
        // Unordered, so that a slow call does not keep the ones behind it from starting.
        let at_once = execution.settings.agent.parallel_tools.get();
        let mut results: Vec<_> = stream::iter(calls).buffer_unordered(at_once).try_collect().await?;
        results.sort_unstable_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
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
        let end = match execution.logbook.call(call)? {
            Some(CallRecord::Ended(end)) => return result(id, end),
            Some(CallRecord::Begun(start)) => {
                let target = start.target();
                match execution.unknown_outcome(call, &start) {
                    UnknownOutcome::Retry => {
                        let input = self.offer(execution).await?.restored(&name, input);
                        answer(execution, call, &target, input, start.class).await
                    }
                    UnknownOutcome::AskModel => End::Unknown(told(unknown::words(&target))),
                    UnknownOutcome::Fail => return Err(unknown::failure(&target)),
                }
            }
            None if let Some(problem) = problem => End::Answered(told(format!("Not run: {problem}."))),
            None => match self.offer(execution).await?.checked(&name, input) {
                Ok((spec, input)) => {
                    let class = execution.class(spec, &input);
                    execution.begin_call(call, &spec.target, &input, class).await?;
                    answer(execution, call, &spec.target, input, class).await
                }
                Err(words) => End::Answered(told(words)),
            },
        };
        execution.logbook.ended(call, &end).await?;
        result(id, end)
    }
}

/// Makes the call and shapes its answer for the model.
async fn answer<P: Ports>(
    execution: &Execution<'_, P>,
    call: CallId,
    target: &ToolTarget,
    input: Arguments,
    class: Class,
) -> End {
    End::Answered(match execution.call_tool(call, target, input, class).await {
        Ok(output) => {
            let is_error = output.is_error;
            let content = shortened(output.into_blocks(), execution.settings.tool_result_chars);
            bounded(ToolOutput { content, structured: None, is_error }, target, execution.settings.entry_limit())
        }
        Err(failure) => {
            tracing::debug!(tool = %target, code = failure.code.as_ref(), error = %failure, "tool call failed");
            told(format!("The call failed ({}): {}", failure.code, failure.message))
        }
    })
}

/// The answer, or words about it where what is no text makes it too large for the record and for a model.
fn bounded(output: ToolOutput, target: &ToolTarget, limit: usize) -> ToolOutput {
    let end = End::Answered(output);
    let bytes = length_of(&end);
    match end {
        End::Answered(output) if bytes <= limit => output,
        _ => told(format!(
            "The call of `{target}` was made, but its result was left out: it has {bytes} bytes, and at most {limit} \
             can be taken. Ask for less."
        )),
    }
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
    fn new(mut specs: Vec<ToolSpec>) -> Self {
        let tools = specs.iter_mut().map(|spec| {
            let portable = Portable::of(&spec.input_schema);
            let schema = std::mem::replace(&mut spec.input_schema, Arc::clone(&portable.schema));
            Tool { schema, portable, compiled: OnceCell::new() }
        });
        let tools = tools.collect();
        Self { specs: specs.into(), tools }
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
        let (spec, tool) = (&self.specs[at], &self.tools[at]);
        let schema = tool.compiled.get_or_init(|| {
            Schema::compile(Arc::clone(&tool.schema))
                .inspect_err(|error| {
                    tracing::warn!(tool = %spec.target, %error, "the tool's input schema cannot be compiled, arguments go unchecked");
                })
                .ok()
        });
        let input = Value::Object(tool.portable.restore(input));
        if let Some(schema) = schema {
            schema
                .check(&input)
                .map_err(|why| format!("Not run: the arguments do not fit the tool's schema: {why}."))?;
        }
        match input {
            Value::Object(input) => Ok((spec, input)),
            _ => unreachable!("it was made of an object"),
        }
    }

    /// Arguments that were checked before, under the tool's own names.
    fn restored(&self, name: &str, input: Arguments) -> Arguments {
        match self.position(name) {
            Some(at) => self.tools[at].portable.restore(input),
            None => input,
        }
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.specs.iter().position(|spec| spec.name == name)
    }
}

/// Leaves out the middle of texts so that all of them together have about `limit` characters.
pub(super) fn shortened(mut blocks: Vec<Value>, limit: usize) -> Vec<Value> {
    let total: usize = blocks.iter_mut().filter_map(text_of).map(|text| text.chars().count()).sum();
    if total <= limit {
        return blocks;
    }
    for text in blocks.iter_mut().filter_map(text_of) {
        let length = text.chars().count();
        // In u128, so that no product of two sizes can overflow.
        let share = usize::try_from(length as u128 * limit as u128 / total as u128).unwrap_or(limit);
        *text = without_middle(text, length, share);
    }
    blocks
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

fn without_middle(text: &str, length: usize, keep: usize) -> String {
    if length <= keep {
        return text.to_owned();
    }
    let head: String = text.chars().take(keep - keep / 2).collect();
    let tail: String = text.chars().skip(length - keep / 2).collect();
    format!("{head}\n[… {} of {length} characters left out …]\n{tail}", length - keep)
}
