//! Llm mode: one completion, sent back for correction where it does not satisfy its schema.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::domain::node::{LlmConfig, NodeConfig};
use crate::domain::outcome::Failure;
use crate::modes::dialogue::{Answer, Dialogue, Move, Rules};
use crate::modes::execution::{Brief, Execution};
use crate::modes::names::Names;
use crate::modes::schema::Schema;
use crate::modes::scope::Scope;
use crate::modes::template::{Template, TemplateError};
use crate::ports::Ports;

/// An llm node as configured, its templates read.
#[derive(Debug)]
pub(super) struct LlmPlan {
    prompt: Template,
    system: Option<Template>,
    settings: Arc<LlmConfig>,
    schema: Option<Schema>,
}

/// An llm node with its values put in.
#[derive(Debug)]
pub(super) struct LlmTask {
    pub prompt: String,
    pub system: Option<String>,
    pub settings: Arc<LlmConfig>,
    pub schema: Option<Schema>,
}

impl LlmPlan {
    /// Reads the members of llm mode.
    pub fn compile(config: &NodeConfig) -> Result<Self, Failure> {
        let llm = config.llm_config.clone().unwrap_or_default();
        let prompt = llm.prompt.as_ref().or(config.task.as_ref()).ok_or_else(|| {
            Failure::configuration(
                "missing_prompt",
                "an llm node needs `llm_config.prompt`, the template of its prompt",
            )
        })?;
        let system = llm.system.as_ref().or(config.system.as_ref());
        Ok(Self {
            prompt: Template::compile(prompt).map_err(TemplateError::alone)?,
            system: system.map(|text| Template::compile(text)).transpose().map_err(TemplateError::alone)?,
            schema: output_schema(config, &llm)?,
            settings: Arc::new(llm),
        })
    }

    /// Adds the names that the templates use.
    pub fn names(&self, names: &mut Names) {
        self.prompt.names(names);
        self.system.iter().for_each(|system| system.names(names));
    }

    /// Puts the values in.
    pub fn render(self, scope: &Scope) -> Result<LlmTask, TemplateError> {
        Ok(LlmTask {
            prompt: self.prompt.text(scope)?,
            system: self.system.map(|system| system.text(scope)).transpose()?,
            settings: self.settings,
            schema: self.schema,
        })
    }
}

/// The schema of the answer, compiled: the model's own settings win over the node's.
pub(super) fn output_schema(config: &NodeConfig, llm: &LlmConfig) -> Result<Option<Schema>, Failure> {
    let Some(source) = llm.output_schema.as_ref().or(config.output_schema.as_ref()) else {
        return Ok(None);
    };
    Schema::compile(Arc::new(source.clone())).map(Some).map_err(|error| {
        Failure::configuration("invalid_output_schema", format!("`output_schema` is not a usable JSON Schema: {error}"))
    })
}

/// Runs the node to its output.
pub(super) async fn run<P: Ports>(execution: &Execution<'_, P>, task: LlmTask) -> Result<Value, Failure> {
    let answer = complete(execution, task).await?;
    let mut output = json!({ "content": answer.text });
    if let Some(parsed) = answer.parsed {
        output["parsed"] = parsed;
    }
    output["model"] = Value::from(answer.model);
    output["stop_reason"] = Value::from(answer.stop_reason.as_str());
    output["usage"] = json!(execution.usage());
    Ok(output)
}

/// Asks a model without tools until it has answered.
pub(super) async fn complete<P: Ports>(execution: &Execution<'_, P>, task: LlmTask) -> Result<Answer, Failure> {
    let brief = Brief {
        settings: task.settings,
        system: task.system,
        tools: Arc::from([]),
        output_schema: task.schema.as_ref().map(|schema| Arc::clone(&schema.source)),
    };
    let mut dialogue = Dialogue::new(task.prompt, Rules { agent: None, schema: task.schema });
    let mut next = dialogue.begin();
    loop {
        next = match next {
            Move::Ask => {
                let completion = execution.ask(&brief, &dialogue).await?;
                let next = dialogue.heard(completion);
                execution.ledger.partial.replace(Some(dialogue.partial()));
                next
            }
            Move::CallTools(_) => unreachable!("a dialogue without an agent's rules asks for no tools"),
            Move::Finish(mut answer) => {
                execution.ledger.partial.replace(None);
                execution.ledger.warn(std::mem::take(&mut answer.warnings));
                return Ok(answer);
            }
            Move::Fail(failure) => return Err(failure),
        }
    }
}
