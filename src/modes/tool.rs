//! Tool mode: one direct call. Where the node says so, a model first reads the arguments out of a text.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::config::UnknownOutcome;
use crate::domain::journal::{CallId, CallRecord, Class, End};
use crate::domain::node::{LlmConfig, NodeConfig};
use crate::domain::outcome::Failure;
use crate::domain::tool::{Arguments, ToolOutput, ToolSpec, ToolTarget};
use crate::modes::approval::Gate;
use crate::modes::attachments::{Attachments, AttachmentsPlan, Texts};
use crate::modes::execution::{Called, Execution};
use crate::modes::llm::{self, LlmTask};
use crate::modes::logbook::{digest_of, length_of, mismatch};
use crate::modes::names::Names;
use crate::modes::schema::Schema;
use crate::modes::scope::Scope;
use crate::modes::tasks::RunningCall;
use crate::modes::template::{Template, TemplateError, ValueTemplate};
use crate::modes::unknown;
use crate::ports::Ports;

/// Characters of a tool's own error that the failure bears.
const ERROR_CHARS: usize = 2000;

/// A tool node as configured, its templates read.
#[derive(Debug)]
pub(super) struct ToolPlan {
    name: String,
    params: Vec<(String, ValueTemplate)>,
    extract: Option<Extract<Template, AttachmentsPlan>>,
}

/// A tool node with its values put in.
#[derive(Debug)]
pub(super) struct ToolTask {
    name: String,
    params: Arguments,
    extract: Option<Extract<String, Attachments>>,
}

/// Where a model finds arguments.
#[derive(Debug)]
struct Extract<T, A> {
    from: T,
    system: Option<T>,
    attachments: A,
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
                attachments: AttachmentsPlan::compile(&NodeConfig::default(), &settings)?,
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
            extract.attachments.names(names);
        }
    }

    /// Puts the values in.
    pub fn render(self, scope: &Scope) -> Result<ToolTask, TemplateError> {
        let extract = self.extract.map(|extract| {
            Ok(Extract {
                from: extract.from.text(scope)?,
                system: extract.system.map(|system| system.text(scope)).transpose()?,
                attachments: extract.attachments.render(scope)?,
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

impl ToolTask {
    /// The texts that were put together for a model, where one is asked.
    pub fn texts(&self) -> Option<Texts<'_>> {
        let Extract { from, system, attachments, .. } = self.extract.as_ref()?;
        Some(Texts::new(from, system.as_deref(), attachments))
    }
}

/// The one call of a tool node.
const CALL: CallId = CallId { turn: 0, index: 0 };

/// Runs the node to its output.
pub(super) async fn run<P: Ports>(execution: &Execution<'_, P>, task: ToolTask) -> Result<Value, Failure> {
    let ToolTask { name, params, extract } = task;
    let begun = match execution.logbook.call(CALL)? {
        Some(CallRecord::Ended(End::Answered(output))) => return value(&name, output),
        Some(CallRecord::Ended(End::Failed(failure))) => return Err(failure),
        Some(CallRecord::Ended(End::Unknown(_))) => return Err(mismatch("it is the journal of an agent")),
        Some(CallRecord::Running(running)) => {
            let (target, class) = (running.start.target(), running.start.class);
            // What a model read out of a text is in the digest alone; who is asked in the call's course is not shown it.
            let shown = execution.agreed(CALL).arguments.unwrap_or_else(|| params.clone());
            let arguments = async {
                let spec = found(execution, &name).await?;
                read_out(execution, &spec, extract, params).await
            };
            let resumed = RunningCall { running, arguments: Box::pin(arguments) };
            let called = execution.call_tool(CALL, &target, shown, class, Some(resumed)).await;
            return concluded(execution, &target, called, true).await;
        }
        Some(CallRecord::Begun(start)) => match execution.unknown_outcome(CALL, &start) {
            UnknownOutcome::Retry => Some(start),
            // There is no model that could be asked.
            UnknownOutcome::AskModel | UnknownOutcome::Fail => return Err(unknown::failure(&start.target())),
        },
        None => None,
    };
    let spec = &found(execution, &name).await?;
    let arguments = read_out(execution, spec, extract, params).await?;
    let offered = &execution.approvals.rules;
    if let Some(name) = offered.idle(std::slice::from_ref(spec)) {
        return Err(Failure::configuration(
            "unknown_tool",
            format!("`approve` names `{name}`, which is not the tool of this node, `{}`", spec.target),
        ));
    }
    let arguments = match execution.gate(CALL, spec, &spec.input_schema, &arguments, begun.is_some())? {
        Gate::Open(permission) => permission.arguments.unwrap_or(arguments),
        Gate::Refused(refused) => return Err(refused.failure(&spec.target)),
        Gate::Ask(ask) => execution.wait_for(*ask).await,
    };
    let class = begun.as_ref().map_or_else(|| execution.class(spec, &arguments), |start| start.class);
    let journaled = match begun {
        // The same key with other arguments would be answered with the result of the first.
        Some(start) if start.arguments != digest_of(&arguments) || start.target() != spec.target => {
            return Err(mismatch("the tool or its arguments have changed since the call was begun"));
        }
        Some(start) => {
            // On the heap: few calls are made again.
            Box::pin(execution.begin_again(CALL, start)).await?;
            true
        }
        None => match class {
            // A call that may be made again needs no protection.
            Class::Safe => {
                execution.ledger.spent.borrow_mut().tool_calls += 1;
                false
            }
            Class::Unsafe => {
                execution.begin_call(CALL, &spec.target, &arguments, Class::Unsafe).await?;
                true
            }
        },
    };
    let called = execution.call_tool(CALL, &spec.target, arguments, class, None).await;
    concluded(execution, &spec.target, called, journaled).await
}

/// The tool of this name.
async fn found<P: Ports>(execution: &Execution<'_, P>, name: &String) -> Result<ToolSpec, Failure> {
    let found = execution.find_tools(std::slice::from_ref(name)).await?;
    found.into_iter().next().ok_or_else(|| {
        Failure::configuration("unknown_tool", format!("no server and no built-in offers the tool `{name}`"))
    })
}

/// The arguments of the call: what the node gives, and what a model reads out of its text where it is to.
async fn read_out<P: Ports>(
    execution: &Execution<'_, P>,
    spec: &ToolSpec,
    extract: Option<Extract<String, Attachments>>,
    given: Arguments,
) -> Result<Arguments, Failure> {
    match extract {
        None => Ok(given),
        // On the heap: it has a whole conversation in it, and few calls need one.
        Some(extract) => Box::pin(extracted(execution, spec, extract, given)).await,
    }
}

/// The end of the call, put on record where its beginning is.
async fn concluded<P: Ports>(
    execution: &Execution<'_, P>,
    target: &ToolTarget,
    called: Called,
    begun: bool,
) -> Result<Value, Failure> {
    execution.tell_call(target, &called, None);
    let mut answer = called.answer;
    if begun || execution.logbook.has_task(CALL) {
        let mut end = answer.clone().map_or_else(End::Failed, |output| End::Answered(output.without_copies()));
        // What an output may not have is refused later; this alone bounds the record.
        let (bytes, limit) = (length_of(&end), execution.settings.entry_limit());
        if bytes > limit {
            let failure = too_large(&target.to_string(), bytes, limit);
            answer = Err(failure.clone());
            end = End::Failed(failure);
        }
        execution.logbook.ended(CALL, &end, None).await?;
        execution.give_up_task(CALL).await;
    }
    value(&target.to_string(), answer?)
}

/// The tool has done its work, and its answer cannot be kept.
fn too_large(tool: &str, bytes: usize, limit: usize) -> Failure {
    Failure::validation(
        "output_too_large",
        format!(
            "the tool `{tool}` answered with {bytes} bytes, and at most {limit} can be put on record; `limits.output` sets that. The call was made and may have taken effect; let the tool return less"
        ),
    )
}

fn value(tool: &str, output: ToolOutput) -> Result<Value, Failure> {
    if output.is_error {
        let text: String = output.text().chars().take(ERROR_CHARS).collect();
        let text = if text.is_empty() { String::from("it gave no reason") } else { text };
        return Err(Failure::permanent("tool_error", format!("the tool `{tool}` failed: {text}")));
    }
    Ok(output.into_value())
}

/// Lets a model read the arguments that the node does not give out of the text; what the node gives wins.
async fn extracted<P: Ports>(
    execution: &Execution<'_, P>,
    spec: &ToolSpec,
    extract: Extract<String, Attachments>,
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
    let task = LlmTask {
        prompt: extract.from,
        system: Some(system),
        attachments: extract.attachments,
        settings: extract.settings,
        schema: Some(schema),
    };
    let (answer, _) = llm::complete(execution, Vec::new(), task).await?;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::event::EventType;
    use crate::modes::scripted_ports::{Script, code, failure, output, says, text_output};

    #[tokio::test(start_paused = true)]
    async fn a_tools_answer_is_the_output_and_its_params_are_rendered() {
        let script = Script::new()
            .state(json!({"n": 3}), json!({"a-1": {"status": "completed", "output": {"k": [1]}}}))
            .tool("add", |_| Ok(ToolOutput::structured(json!({"sum": 5}))));
        let params = json!({"n": "{{ n }}", "deep": [{"k": "{{ a-1 }}", "t": "n is {{ n }}"}]});
        let report = script.run(json!({"tool_name": "add", "tool_params": params})).await;
        assert_eq!(output(&report), json!({"sum": 5}));
        let arguments = Arc::clone(&script.calls.borrow()[0].arguments);
        assert_eq!(json!(*arguments), json!({"n": 3, "deep": [{"k": {"k": [1]}, "t": "n is 3"}]}));
        assert_eq!(script.told(EventType::ToolExecuted)[0]["tool"], "srv/add");
        assert_eq!((report.spent.tool_calls, report.spent.usage), (1, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tool_that_says_it_failed_fails_the_node_with_its_words() {
        let failing = |_: &Value| Ok(ToolOutput { is_error: true, ..text_output("disk is full") });
        let script = Script::new().tool("save", failing);
        let report = script.run(json!({"tool_name": "save"})).await;
        assert_eq!(code(&report), ("permanent", "tool_error"));
        assert!(failure(&report).message.contains("srv/save") && failure(&report).message.contains("disk is full"));
        assert_eq!(script.told(EventType::ToolExecuted)[0]["is_error"], true);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_may_be_repeated_is_and_every_try_bears_the_same_key() {
        let tries = std::cell::Cell::new(0);
        let script = Script::new().tool("fetch", move |_| {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err(Failure::retriable("unreachable", "no answer")) } else { Ok(text_output("[1]")) }
        });
        let report = script.run(json!({"tool_name": "fetch"})).await;
        assert_eq!((output(&report), report.spent.attempts), (json!([1]), 3));
        let calls = script.calls.borrow();
        assert_eq!(calls.len(), 3);
        assert!(calls.iter().all(|call| call.context.idempotency_key == calls[0].context.idempotency_key));
        assert_eq!(calls[0].context.idempotency_key.len(), 64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_keeps_failing_fails_the_node_with_its_attempts() {
        let script = Script::new().tool("fetch", |_| Err(Failure::retriable("unreachable", "no answer")));
        let report = script.run(json!({"tool_name": "fetch", "retry": {"max_attempts": 2}})).await;
        assert_eq!((code(&report), failure(&report).attempts), (("retriable", "unreachable"), 2));
        assert_eq!((script.calls.borrow().len(), report.spent.attempts, report.spent.tool_calls), (2, 2, 1));
    }

    fn ticket(answer: impl Fn(&Value) -> Result<ToolOutput, Failure> + 'static) -> Script {
        let schema = json!({
            "type": "object",
            "properties": {"title": {"type": "string"}, "queue": {"type": "string"}},
            "required": ["title", "queue"],
            "additionalProperties": false,
        });
        Script::new().tool_with("ticket", schema, std::time::Duration::ZERO, answer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_reads_the_missing_arguments_and_the_given_ones_win() {
        let script = ticket(|arguments| Ok(ToolOutput::structured(arguments.clone())))
            .state(json!({"mail": "The printer is broken"}), json!({}))
            .model([says(r#"{"titel": "typo"}"#), says(r#"{"title": "Printer"}"#)]);
        let config = json!({
            "tool_name": "ticket",
            "tool_params": {"queue": "office"},
            "extract_params": {"from": "Mail: {{ mail }}", "llm_config": {"model": "small"}},
        });
        let report = script.run(config).await;
        assert_eq!(output(&report), json!({"title": "Printer", "queue": "office"}));
        let requests = script.requests.borrow();
        assert_eq!(requests.len(), 2, "an answer that does not fit is sent back");
        let schema = requests[0].output_schema.as_ref().expect("the tool's schema");
        assert_eq!((&schema["required"], schema["properties"].get("queue")), (&json!(["title"]), None));
        assert_eq!(requests[0].settings.model.as_deref(), Some("small"));
        assert_eq!(report.spent.usage.expect("a model was called").input_tokens, 20);
    }

    #[tokio::test(start_paused = true)]
    async fn no_model_is_asked_when_every_argument_is_given() {
        let script = ticket(|arguments| Ok(ToolOutput::structured(arguments.clone())));
        let params = json!({"title": "t", "queue": "q"});
        let config = json!({"tool_name": "ticket", "tool_params": params, "extract_params": {"from": "x"}});
        assert_eq!(output(&script.run(config).await), params);
    }
}
