//! Agent mode: a model with tools, in a loop until it has its answer. When the loop goes on, ends or gives up is
//! [`Dialogue`]'s; how tools are called is [`Toolbox`]'s.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::domain::event::EventType;
use crate::domain::node::{LlmConfig, NodeConfig};
use crate::domain::outcome::Failure;
use crate::modes::ModeSettings;
use crate::modes::attachments::{Attachments, AttachmentsPlan, Texts};
use crate::modes::dialogue::{AgentRules, Answer, Dialogue, Move, Rules};
use crate::modes::execution::{Brief, Execution};
use crate::modes::llm::output_schema;
use crate::modes::names::Names;
use crate::modes::schema::Schema;
use crate::modes::scope::Scope;
use crate::modes::shorten::may_unbind;
use crate::modes::template::{Template, TemplateError};
use crate::modes::toolbox::Toolbox;
use crate::ports::Ports;

/// An agent node as configured, its templates read.
#[derive(Debug)]
pub(super) struct AgentPlan {
    task: Template,
    system: Option<Template>,
    attachments: AttachmentsPlan,
    tools: Vec<String>,
    settings: Arc<LlmConfig>,
    schema: Option<Schema>,
    rules: AgentRules,
}

/// An agent node with its values put in.
#[derive(Debug)]
pub(super) struct AgentTask {
    task: String,
    system: Option<String>,
    attachments: Attachments,
    tools: Vec<String>,
    settings: Arc<LlmConfig>,
    rules: Rules,
}

impl AgentTask {
    /// The texts that were put together for the model.
    pub fn texts(&self) -> Texts<'_> {
        Texts::new(&self.task, self.system.as_deref(), &self.attachments)
    }
}

impl AgentPlan {
    /// Reads the members of agent mode.
    pub fn compile(config: &NodeConfig, settings: &ModeSettings) -> Result<Self, Failure> {
        let llm = config.llm_config.clone().unwrap_or_default();
        let task = config.task.as_ref().or(llm.prompt.as_ref()).ok_or_else(|| {
            Failure::configuration("missing_task", "an agent needs `task`, the template of what it has to do")
        })?;
        let system = config.system.as_ref().or(llm.system.as_ref());
        Ok(Self {
            task: Template::compile(task).map_err(TemplateError::alone)?,
            system: system.map(|text| Template::compile(text)).transpose().map_err(TemplateError::alone)?,
            attachments: AttachmentsPlan::compile(config, &llm).map_err(TemplateError::alone)?,
            tools: config.tools.clone().unwrap_or_default(),
            schema: output_schema(config, &llm)?,
            settings: Arc::new(llm),
            rules: AgentRules {
                max_iterations: config.max_iterations.unwrap_or(settings.agent.max_iterations).get(),
                max_tool_calls: config.limits.max_tool_calls.unwrap_or(settings.agent.max_tool_calls),
                calls_before: 0,
                finalize: settings.agent.finalize,
            },
        })
    }

    /// Adds the names that the templates use.
    pub fn names(&self, names: &mut Names) {
        self.task.names(names);
        self.system.iter().for_each(|system| system.names(names));
        self.attachments.names(names);
    }

    /// Puts the values in.
    pub fn render(self, scope: &Scope) -> Result<AgentTask, TemplateError> {
        Ok(AgentTask {
            task: self.task.text(scope)?,
            system: self.system.map(|system| system.text(scope)).transpose()?,
            attachments: self.attachments.render(scope)?,
            tools: self.tools,
            rules: Rules { agent: Some(self.rules), schema: self.schema, may_unbind: may_unbind(&self.settings) },
            settings: self.settings,
        })
    }
}

/// Runs the agent to its output.
pub(super) async fn run<P: Ports>(execution: &Execution<'_, P>, task: AgentTask) -> Result<Value, Failure> {
    let AgentTask { task, system, attachments, tools, settings, mut rules } = task;
    if let Some(agent) = &mut rules.agent {
        agent.calls_before = execution.logbook.before().tool_calls;
    }
    let toolbox = Toolbox::new(tools);
    let output_schema = rules.schema.as_ref().map(|schema| Arc::clone(&schema.source));
    let mut brief = Brief::new(settings, system, output_schema);
    let mut dialogue = Dialogue::new(execution.before.clone(), task, attachments.blocks()?, rules);
    let mut next = dialogue.begin();
    loop {
        next = match next {
            Move::Ask => {
                let next = match execution.recorded(&dialogue) {
                    // It was told when it happened.
                    Some(completion) => dialogue.heard(completion),
                    None => {
                        brief.tools = toolbox.specs(execution).await?;
                        heard(execution, &mut dialogue, &brief).await?
                    }
                };
                execution.ledger.reached(&dialogue);
                next
            }
            Move::CallTools(uses) => {
                execution.ledger.calling.set(true);
                let results = toolbox.call_all(execution, dialogue.iterations(), uses).await?;
                let next = dialogue.answered(results);
                execution.ledger.reached(&dialogue);
                next
            }
            Move::Finish(answer) => {
                let output = output(execution, dialogue.iterations(), answer);
                execution.ledger.said.replace(dialogue.into_turns());
                return Ok(output);
            }
            Move::Fail(failure) => return Err(failure),
        }
    }
}

/// Asks the model, tells its turn, and gives what follows.
async fn heard<P: Ports>(
    execution: &Execution<'_, P>,
    dialogue: &mut Dialogue,
    brief: &Brief,
) -> Result<Move, Failure> {
    let completion = execution.ask(brief, dialogue).await?;
    let mut turn = json!({
        "stop_reason": completion.stop_reason.as_str(),
        "tool_calls": completion.turn.tool_uses.len(),
        "usage": completion.usage,
        "model": completion.model,
        "provider": completion.provider,
    });
    let next = dialogue.heard(completion);
    turn["iteration"] = Value::from(dialogue.iterations());
    execution.progress(EventType::NodeProgress, turn);
    Ok(next)
}

fn output<P: Ports>(execution: &Execution<'_, P>, iterations: u32, answer: Answer) -> Value {
    execution.ledger.warn(answer.warnings);
    let mut output = json!({ "result": answer.text });
    if let Some(parsed) = answer.parsed {
        output["parsed"] = parsed;
    }
    output["iterations"] = Value::from(iterations);
    output["tool_calls"] = Value::from(execution.ledger.spent.borrow().tool_calls);
    output["model"] = Value::from(answer.model);
    if let Some(provider) = answer.provider {
        output["provider"] = Value::from(provider);
    }
    output["stop_reason"] = Value::from(answer.stop_reason.as_str());
    output["usage"] = json!(execution.usage());
    output
}

#[cfg(test)]
mod tests;
