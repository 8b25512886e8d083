//! The tools of one agent: the calls of one turn, checked before they run, run at once, answered in order. Nothing
//! that goes wrong with a tool ends the agent; the model is told instead.

use std::cell::OnceCell;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::domain::message::{ToolResult, ToolUse};
use crate::domain::node::nearest;
use crate::domain::outcome::Failure;
use crate::domain::tool::ToolSpec;
use crate::modes::execution::{CallSite, Execution};
use crate::modes::schema::Schema;
use crate::modes::template::listed;
use crate::ports::Ports;

/// The tools that an agent may use.
#[derive(Debug)]
pub(super) struct Toolbox {
    specs: Arc<[ToolSpec]>,
    /// The compiled schemas, in the order of the specs; none where the server's schema cannot be compiled.
    schemas: Vec<OnceCell<Option<Schema>>>,
}

impl Toolbox {
    /// Finds the tools that the patterns name.
    pub async fn find<P: Ports>(execution: &Execution<'_, P>, patterns: &[String]) -> Result<Self, Failure> {
        let specs = execution.find_tools(patterns).await?;
        Ok(Self { schemas: specs.iter().map(|_| OnceCell::new()).collect(), specs: specs.into() })
    }

    /// What the model is offered.
    pub fn specs(&self) -> Arc<[ToolSpec]> {
        Arc::clone(&self.specs)
    }

    /// Runs the calls of one turn at once, within bounds; the results are in the order of the calls.
    pub async fn call_all<P: Ports>(
        &self,
        execution: &Execution<'_, P>,
        turn: u32,
        uses: Vec<ToolUse>,
    ) -> Vec<ToolResult> {
        let calls = uses
            .into_iter()
            .enumerate()
            .map(|(index, tool_use)| async move { (index, self.call(execution, turn, index, tool_use).await) });
        // Unordered, so that a slow call does not keep the ones behind it from starting.
        let at_once = execution.settings.agent.parallel_tools.get();
        let mut results: Vec<_> = stream::iter(calls).buffer_unordered(at_once).collect().await;
        results.sort_unstable_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }

    async fn call<P: Ports>(
        &self,
        execution: &Execution<'_, P>,
        turn: u32,
        index: usize,
        tool_use: ToolUse,
    ) -> ToolResult {
        let ToolUse { id, name, input } = tool_use;
        let spec = match self.checked(&name, &input) {
            Ok(spec) => spec,
            Err(words) => return ToolResult::error(id, words),
        };
        match execution.call_tool(spec, input, CallSite::Tool { turn, index }).await {
            Ok(output) => {
                let is_error = output.is_error;
                let content = shortened(output.into_blocks(), execution.settings.tool_result_chars);
                ToolResult { tool_use_id: id, content, is_error }
            }
            Err(failure) => {
                tracing::debug!(tool = name, code = failure.code.as_ref(), error = %failure, "tool call failed");
                ToolResult::error(id, format!("The call failed ({}): {}", failure.code, failure.message))
            }
        }
    }

    /// The tool of this name, if the arguments fit it; else what is wrong, in words for the model.
    fn checked(&self, name: &str, input: &serde_json::Map<String, Value>) -> Result<&ToolSpec, String> {
        let Some(at) = self.specs.iter().position(|spec| spec.name == name) else {
            let names: Vec<String> = self.specs.iter().map(|spec| spec.name.clone()).collect();
            let hint = nearest(name, names.iter().map(String::as_str))
                .map(|near| format!(" Did you mean `{near}`?"))
                .unwrap_or_default();
            return Err(format!("There is no tool `{name}`.{hint} The tools are: {}.", listed(&names)));
        };
        let spec = &self.specs[at];
        let schema = self.schemas[at].get_or_init(|| {
            Schema::compile(Arc::clone(&spec.input_schema))
                .inspect_err(|error| {
                    tracing::warn!(tool = %spec.target, %error, "the tool's input schema cannot be compiled, arguments go unchecked");
                })
                .ok()
        });
        if let Some(schema) = schema {
            // The arguments of a call are a few members; a copy costs less than a second way of checking.
            schema
                .check(&Value::Object(input.clone()))
                .map_err(|why| format!("Not run: the arguments do not fit the tool's schema: {why}."))?;
        }
        Ok(spec)
    }
}

/// Leaves out the middle of texts so that all of them together have about `limit` characters.
fn shortened(mut blocks: Vec<Value>, limit: usize) -> Vec<Value> {
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
