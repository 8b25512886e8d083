//! Tool mode: one direct call. Where the node says so, a model first reads the arguments out of a text.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::domain::node::{LlmConfig, NodeConfig};
use crate::domain::outcome::Failure;
use crate::domain::tool::{Arguments, ToolSpec};
use crate::modes::execution::{CallSite, Execution};
use crate::modes::llm::{self, LlmTask};
use crate::modes::names::Names;
use crate::modes::schema::Schema;
use crate::modes::scope::Scope;
use crate::modes::template::{Template, TemplateError, ValueTemplate};
use crate::ports::Ports;

/// Characters of a tool's own error that the failure bears.
const ERROR_CHARS: usize = 2000;

/// A tool node as configured, its templates read.
#[derive(Debug)]
pub(super) struct ToolPlan {
    name: String,
    params: Vec<(String, ValueTemplate)>,
    extract: Option<Extract<Template>>,
}

/// A tool node with its values put in.
#[derive(Debug)]
pub(super) struct ToolTask {
    name: String,
    params: Arguments,
    extract: Option<Extract<String>>,
}

/// Where a model finds arguments.
#[derive(Debug)]
struct Extract<T> {
    from: T,
    system: Option<T>,
    settings: Arc<LlmConfig>,
}

impl ToolPlan {
    /// Reads the members of tool mode.
    pub fn compile(config: &NodeConfig) -> Result<Self, Failure> {
        let params = config.tool_params.as_ref().map(ValueTemplate::members).transpose();
        let extract = config.extract_params.as_ref().map(|extract| {
            let settings = extract.llm_config.as_ref().or(config.llm_config.as_ref()).cloned().unwrap_or_default();
            Ok(Extract {
                from: Template::compile(&extract.from)?,
                system: settings.system.as_deref().map(Template::compile).transpose()?,
                settings: Arc::new(settings),
            })
        });
        Ok(Self {
            name: config.tool_name.clone().unwrap_or_default(),
            params: params.map_err(TemplateError::alone)?.unwrap_or_default(),
            extract: extract.transpose().map_err(TemplateError::alone)?,
        })
    }

    /// Adds the names that the templates use.
    pub fn names(&self, names: &mut Names) {
        self.params.iter().for_each(|(_, value)| value.names(names));
        if let Some(extract) = &self.extract {
            extract.from.names(names);
            extract.system.iter().for_each(|system| system.names(names));
        }
    }

    /// Puts the values in.
    pub fn render(self, scope: &Scope) -> Result<ToolTask, TemplateError> {
        let extract = self.extract.map(|extract| {
            Ok(Extract {
                from: extract.from.text(scope)?,
                system: extract.system.map(|system| system.text(scope)).transpose()?,
                settings: extract.settings,
            })
        });
        Ok(ToolTask {
            params: ValueTemplate::object(&self.params, scope)?,
            extract: extract.transpose()?,
            name: self.name,
        })
    }
}

/// Runs the node to its output.
pub(super) async fn run<P: Ports>(execution: &Execution<'_, P>, task: ToolTask) -> Result<Value, Failure> {
    let ToolTask { name, params, extract } = task;
    let found = execution.find_tools(std::slice::from_ref(&name)).await?;
    let spec = found.first().ok_or_else(|| {
        Failure::configuration("unknown_tool", format!("no server and no built-in offers the tool `{name}`"))
    })?;
    let arguments = match extract {
        None => params,
        Some(extract) => extracted(execution, spec, extract, params).await?,
    };
    let output = execution.call_tool(spec, arguments, CallSite::Tool { turn: 0, index: 0 }).await?;
    if output.is_error {
        let text: String = output.text().chars().take(ERROR_CHARS).collect();
        let text = if text.is_empty() { String::from("it gave no reason") } else { text };
        return Err(Failure::permanent("tool_error", format!("the tool `{}` failed: {text}", spec.target)));
    }
    Ok(output.into_value())
}

/// Lets a model read the arguments that the node does not give out of the text; what the node gives wins.
async fn extracted<P: Ports>(
    execution: &Execution<'_, P>,
    spec: &ToolSpec,
    extract: Extract<String>,
    given: Arguments,
) -> Result<Arguments, Failure> {
    let Some(schema) = schema_without(&spec.input_schema, &given) else {
        return Ok(given);
    };
    let schema = Schema::compile(Arc::new(schema)).map_err(|error| {
        Failure::configuration(
            "invalid_tool_schema",
            format!("the input schema of the tool `{}` cannot be used for `extract_params`: {error}", spec.target),
        )
    })?;
    let system = extract.system.unwrap_or_else(|| {
        format!(
            "Read the arguments of the tool `{}`{} out of the user's text. Answer with nothing but a JSON object that satisfies the schema. Leave out what the text does not say.",
            spec.name,
            spec.description.as_ref().map(|words| format!(" ({words})")).unwrap_or_default()
        )
    });
    let task = LlmTask { prompt: extract.from, system: Some(system), settings: extract.settings, schema: Some(schema) };
    let answer = llm::complete(execution, task).await?;
    match answer.parsed {
        Some(Value::Object(mut arguments)) => {
            arguments.extend(given);
            Ok(arguments)
        }
        _ => Err(Failure::validation("output_invalid", "the model did not answer with an object of arguments")),
    }
}

/// The tool's schema for the arguments that are still missing; nothing if none is.
fn schema_without(schema: &Value, given: &Map<String, Value>) -> Option<Value> {
    let mut schema = schema.clone();
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        let had_some = !properties.is_empty();
        properties.retain(|name, _| !given.contains_key(name));
        if had_some && properties.is_empty() {
            return None;
        }
    }
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|name| name.as_str().is_none_or(|name| !given.contains_key(name)));
    }
    Some(schema)
}
