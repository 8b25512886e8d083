//! Llm mode: one completion, sent back for correction where it does not satisfy its schema.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::domain::message::{Conversation, Turn};
use crate::domain::node::{LlmConfig, NodeConfig};
use crate::domain::outcome::Failure;
use crate::domain::tool::{ToolHints, ToolSpec, ToolTarget};
use crate::modes::attachments::{Attachments, AttachmentsPlan, Texts};
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
    attachments: AttachmentsPlan,
    settings: Arc<LlmConfig>,
    schema: Option<Schema>,
}

/// An llm node with its values put in.
#[derive(Debug)]
pub(super) struct LlmTask {
    pub prompt: String,
    pub system: Option<String>,
    pub attachments: Attachments,
    pub settings: Arc<LlmConfig>,
    pub schema: Option<Schema>,
}

impl LlmTask {
    /// The texts that were put together for the model.
    pub fn texts(&self) -> Texts<'_> {
        Texts::new(&self.prompt, self.system.as_deref(), &self.attachments)
    }
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
            attachments: AttachmentsPlan::compile(config, &llm).map_err(TemplateError::alone)?,
            schema: output_schema(config, &llm)?,
            settings: Arc::new(llm),
        })
    }

    /// Adds the names that the templates use.
    pub fn names(&self, names: &mut Names) {
        self.prompt.names(names);
        self.system.iter().for_each(|system| system.names(names));
        self.attachments.names(names);
    }

    /// Puts the values in.
    pub fn render(self, scope: &Scope) -> Result<LlmTask, TemplateError> {
        Ok(LlmTask {
            prompt: self.prompt.text(scope)?,
            system: self.system.map(|system| system.text(scope)).transpose()?,
            attachments: self.attachments.render(scope)?,
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
    let (answer, said) = complete(execution, execution.before.clone(), task).await?;
    execution.ledger.said.replace(said);
    let mut output = json!({ "content": answer.text });
    if let Some(parsed) = answer.parsed {
        output["parsed"] = parsed;
    }
    output["model"] = Value::from(answer.model);
    if let Some(provider) = answer.provider {
        output["provider"] = Value::from(provider);
    }
    output["stop_reason"] = Value::from(answer.stop_reason.as_str());
    output["usage"] = json!(execution.usage());
    Ok(output)
}

/// Asks a model without tools until it has answered, after what was said `before`; gives the conversation as well.
pub(super) async fn complete<P: Ports>(
    execution: &Execution<'_, P>,
    before: Conversation,
    task: LlmTask,
) -> Result<(Answer, Conversation), Failure> {
    let output_schema = task.schema.as_ref().map(|schema| Arc::clone(&schema.source));
    let mut brief = Brief::new(task.settings, task.system, output_schema);
    brief.earlier_tools = used(&before);
    let rules = Rules { schema: task.schema, ..Rules::default() };
    let mut dialogue = Dialogue::new(before, task.prompt, task.attachments.blocks()?, rules);
    let mut next = dialogue.begin();
    loop {
        next = match next {
            Move::Ask => {
                let completion = match execution.recorded(&dialogue) {
                    Some(completion) => completion,
                    None => execution.ask(&brief, &mut dialogue).await?,
                };
                let next = dialogue.heard(completion);
                execution.ledger.reached(&dialogue);
                next
            }
            Move::CallTools(_) => unreachable!("a dialogue without an agent's rules asks for no tools"),
            Move::Finish(mut answer) => {
                execution.ledger.partial.replace(None);
                execution.ledger.warn(std::mem::take(&mut answer.warnings));
                return Ok((answer, dialogue.into_turns()));
            }
            Move::Fail(failure) => return Err(failure),
        }
    }
}

/// The tools that a conversation shows in use, as far as that shows what they are. A name that no tool can have is one
/// that a model made up.
fn used(before: &Conversation) -> Arc<[ToolSpec]> {
    let schema = Arc::new(json!({"type": "object"}));
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let can_be = |name: &str| (1..=64).contains(&name.len()) && name.chars().all(plain);
    let mut tools: Vec<ToolSpec> = Vec::new();
    let turns = before.iter().filter_map(|turn| match &**turn {
        Turn::Assistant(turn) => Some(turn),
        Turn::User(_) | Turn::Content(_) | Turn::ToolResults(_) => None,
    });
    for tool_use in turns.flat_map(|turn| &turn.tool_uses) {
        if can_be(&tool_use.name) && tools.iter().all(|tool| tool.name != tool_use.name) {
            tools.push(ToolSpec {
                name: tool_use.name.clone(),
                target: ToolTarget { server: None, name: tool_use.name.clone() },
                description: None,
                input_schema: Arc::clone(&schema),
                hints: ToolHints::default(),
            });
        }
    }
    tools.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::message::StopReason;
    use crate::domain::outcome::Outcome;
    use crate::domain::price::Cost;
    use crate::modes::scripted_ports::{LlmAct, Script, code, failure, output, says, turn};

    async fn run(config: Value, acts: impl IntoIterator<Item = LlmAct>) -> (crate::domain::outcome::Report, Script) {
        let script = Script::new().state(json!({"topic": "rust"}), json!({})).model(acts);
        let report = script.run(json!({"llm_config": config})).await;
        (report, script)
    }

    fn schema() -> Value {
        json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    }

    #[tokio::test(start_paused = true)]
    async fn the_output_has_content_model_stop_reason_and_usage() {
        let config = json!({"prompt": "On {{ topic }}", "system_prompt": "Like {{ topic | upper }}"});
        let (report, script) = run(config, [says("Fine.")]).await;
        let usage = json!({"input_tokens": 10, "output_tokens": 5, "cache_read_tokens": 2, "cache_write_tokens": 1});
        let expected = json!({"content": "Fine.", "model": "scripted-1", "provider": "scripted", "stop_reason": "end_turn", "usage": usage});
        assert_eq!(output(&report), expected);
        let requests = script.requests.borrow();
        assert!(matches!(&*requests[0].turns[0], Turn::User(text) if text == "On rust"));
        assert_eq!(requests[0].system.as_deref(), Some("Like RUST"));
    }

    #[tokio::test(start_paused = true)]
    async fn images_stand_before_the_prompt_and_may_come_from_another_node() {
        let image = json!({"type": "image", "data": "AAAA", "mimeType": "image/png"});
        let shot = json!({"status": "completed", "output": [{"type": "text", "text": "a shot"}, image]});
        let run = async |attachments: Value| {
            let script = Script::new().state(json!({"id": "x"}), json!({"shot": shot})).model([says("a cat")]);
            let config = json!({"prompt": "What is it?", "attachments": attachments});
            let report = script.run(json!({ "llm_config": config })).await;
            (report, script)
        };
        let (report, script) = run(json!(["{{ shot }}", {"type": "document", "url": "https://h/{{ id }}.pdf"}])).await;
        assert_eq!(output(&report)["content"], "a cat");
        let first = Arc::clone(&script.requests.borrow()[0].turns[0]);
        let Turn::Content(blocks) = &*first else { panic!("no blocks") };
        let document = json!({"type": "document", "url": "https://h/x.pdf"});
        let prompt = json!({"type": "text", "text": "What is it?"});
        assert_eq!(blocks, &[json!({"type": "text", "text": "a shot"}), image.clone(), document, prompt]);
        for (wrong, words) in [
            (json!("{{ id }}"), "is a text"),
            (json!([{"data": "AAAA"}]), "no type"),
            (json!({"type": "tool_use"}), "tool_use"),
            (json!([3]), "one is 3"),
        ] {
            let (report, script) = run(wrong).await;
            assert_eq!(code(&report), ("validation", "invalid_attachment"));
            assert!(failure(&report).message.contains(words), "{}", failure(&report).message);
            assert!(script.requests.borrow().is_empty());
        }
        let (report, script) = run(json!(null)).await;
        assert_eq!(output(&report)["content"], "a cat");
        assert!(matches!(&*script.requests.borrow()[0].turns[0], Turn::User(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_fit_is_sent_back_with_the_reason() {
        let answers = [says("one"), says(r#"{"n": "one"}"#), says("```json\n{\"n\": 1}\n```")];
        let (report, script) = run(json!({"prompt": "p", "output_schema": schema()}), answers).await;
        let output = output(&report);
        assert_eq!((&output["parsed"], &output["usage"]["output_tokens"]), (&json!({"n": 1}), &json!(15)));
        let requests = script.requests.borrow();
        assert_eq!(requests[2].turns.len(), 5, "the conversation only grows");
        assert!(matches!(&*requests[2].turns[4], Turn::User(text) if text.contains("`/n`")));
        assert_eq!(requests[0].output_schema.as_deref(), Some(&schema()));
    }

    #[tokio::test(start_paused = true)]
    async fn after_two_corrections_the_node_fails_and_keeps_the_last_text() {
        let (report, _) =
            run(json!({"prompt": "p", "output_schema": schema()}), [says("a"), says("b"), says("c")]).await;
        assert_eq!(code(&report), ("validation", "output_invalid"));
        let Outcome::Failed { partial: Some(partial), .. } = &report.outcome else { panic!("no partial") };
        assert_eq!((partial.text.as_str(), partial.iterations), ("c", 3));
        assert_eq!(report.spent.usage.expect("usage").output_tokens, 15);
    }

    #[tokio::test(start_paused = true)]
    async fn a_correction_is_a_call_that_has_to_fit_into_the_budget_and_a_crash_gives_nothing_back() {
        let wrong = || {
            let LlmAct::Says(mut completion) = says("one") else { unreachable!("it says") };
            completion.usage.cost = Some(Cost::usd(0.5));
            LlmAct::Says(completion)
        };
        for (limits, expected, calls) in [
            (json!({"max_tokens": 15}), "token_limit", 1),
            (json!({"max_cost_usd": 0.5}), "cost_limit", 1),
            // The call that goes beyond a limit is the last one.
            (json!({"max_tokens": 16, "max_cost_usd": 1.1}), "token_limit", 2),
        ] {
            let script = Script::new().model([wrong(), wrong(), wrong()]);
            for _ in 0..2 {
                let config = json!({"llm_config": {"prompt": "p", "output_schema": schema()}, "limits": limits});
                let report = script.run(config).await;
                assert_eq!((code(&report).1, script.requests.borrow().len()), (expected, calls), "{limits}");
                assert_eq!(report.spent.usage.expect("usage").output_tokens, 5 * calls as u64);
            }
        }
        // Reading the arguments of a tool is one of the node's calls as well.
        let script = Script::new().tool("add", |_| unreachable!("it is never called")).model([wrong(), wrong()]);
        let extract = json!({"tool_name": "add", "extract_params": {"from": "x"}, "limits": {"max_tokens": 15}});
        assert_eq!(code(&script.run(extract).await).1, "token_limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_answer_is_kept_as_text_but_not_as_data() {
        let (report, _) = run(json!({"prompt": "p"}), [turn("half", &[], StopReason::MaxTokens)]).await;
        assert_eq!(
            (&output(&report)["content"], &output(&report)["stop_reason"]),
            (&json!("half"), &json!("max_tokens"))
        );
        let cut = || [turn("{\"n\": 1", &[], StopReason::MaxTokens)];
        let (report, _) = run(json!({"prompt": "p", "output_schema": schema()}), cut()).await;
        assert_eq!(code(&report), ("validation", "truncated"));
        let (report, _) = run(json!({"prompt": "p"}), [turn("", &[], StopReason::MaxTokens)]).await;
        assert_eq!(code(&report), ("permanent", "max_tokens"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_and_an_overflow_are_permanent() {
        let refusal = StopReason::Refusal { category: Some("bio".into()), explanation: None };
        let (report, script) = run(json!({"prompt": "p"}), [turn("", &[], refusal)]).await;
        assert_eq!(code(&report), ("permanent", "refusal"));
        assert!(failure(&report).message.contains("`bio`"));
        assert_eq!(script.requests.borrow().len(), 1);
        let (report, _) = run(json!({"prompt": "p"}), [turn("x", &[], StopReason::ContextExceeded)]).await;
        assert_eq!(code(&report), ("permanent", "context_overflow"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_turn_is_continued_within_bounds() {
        let pause = |text| turn(text, &[], StopReason::PauseTurn);
        let (report, script) = run(json!({"prompt": "p"}), [pause("one "), says("two")]).await;
        assert_eq!(output(&report)["content"], "one two");
        assert!(matches!(&*script.requests.borrow()[1].turns[1], Turn::Assistant(_)));
        let (report, script) = run(json!({"prompt": "p"}), (0..11).map(|_| pause("x"))).await;
        assert_eq!((code(&report), script.requests.borrow().len()), (("permanent", "pause_limit"), 11));
    }

    #[tokio::test(start_paused = true)]
    async fn stop_sequences_and_unknown_reasons_end_the_turn() {
        let (report, _) = run(json!({"prompt": "p"}), [turn("a", &[], StopReason::StopSequence)]).await;
        assert_eq!((&output(&report)["stop_reason"], report.warnings.len()), (&json!("stop_sequence"), 0));
        let (report, _) = run(json!({"prompt": "p"}), [turn("a", &[], StopReason::Other("new".into()))]).await;
        assert_eq!(output(&report)["stop_reason"], "new");
        assert!(report.warnings[0].contains("new"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_answer_is_asked_for_once_more() {
        let (report, script) = run(json!({"prompt": "p"}), [says(""), says("here")]).await;
        assert_eq!(output(&report)["content"], "here");
        // An empty turn would be refused by the provider when it is sent back.
        assert!(script.requests.borrow()[1].turns.iter().all(|turn| matches!(&**turn, Turn::User(_))));
        let (report, _) = run(json!({"prompt": "p"}), [says(""), says("")]).await;
        assert_eq!((&output(&report)["content"], report.warnings.len()), (&json!(""), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_model_is_tried_again_and_its_asked_wait_counts_as_no_attempt() {
        let busy = |wait| LlmAct::Fails(Failure::retriable("overloaded", "busy").with_retry_after(wait));
        let wait = Some(std::time::Duration::from_secs(2));
        let (report, script) = run(json!({"prompt": "p"}), [busy(wait), busy(None), busy(wait), says("ok")]).await;
        assert_eq!((output(&report)["content"].as_str(), report.spent.attempts), (Some("ok"), 2));
        let requests = script.requests.borrow();
        assert!(requests.iter().all(|r| r.context.idempotency_key == requests[0].context.idempotency_key));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_with_the_configuration_costs_no_call() {
        for (config, expected) in [
            (json!({}), "missing_prompt"),
            (json!({"prompt": "{{ a"}), "template_syntax"),
            (json!({"prompt": "p", "output_schema": {"type": "nothing"}}), "invalid_output_schema"),
            (json!({"prompt": "p", "output_schema": {"$ref": "https://example.com/s"}}), "invalid_output_schema"),
        ] {
            let (report, script) = run(config, []).await;
            assert_eq!(code(&report), ("configuration", expected));
            assert!(script.requests.borrow().is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tools_that_nobody_offered_are_refused_and_the_text_counts() {
        let (report, _) = run(json!({"prompt": "p"}), [turn("done", &[("x", json!({}))], StopReason::ToolUse)]).await;
        assert_eq!(output(&report)["content"], "done");
        let (report, script) =
            run(json!({"prompt": "p"}), [turn("", &[("x", json!({}))], StopReason::ToolUse), says("done")]).await;
        assert_eq!(output(&report)["content"], "done");
        let requests = script.requests.borrow();
        assert!(matches!(&*requests[1].turns[2], Turn::ToolResults(results) if results[0].is_error));
    }
}
