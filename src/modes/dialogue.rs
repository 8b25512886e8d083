//! The course of a conversation with a model as a pure state machine: what was said goes in, the next move comes out.
//! Nothing here waits or calls, so a recorded conversation can be fed in again and ends in the same state.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::domain::message::{
    AssistantTurn, Completion, Conversation, StopReason, ToolResult, ToolUse, Turn, text_block,
};
use crate::domain::outcome::{Failure, Partial};
use crate::modes::schema::Schema;
use crate::modes::shorten::{self, size};
use serde_json::Value;

/// How often an answer that does not satisfy its schema is sent back.
const CORRECTIONS: u32 = 2;
/// How often in a row a provider may pause its own turn.
const PAUSES: u32 = 10;
/// Identical rounds of tool calls after which the model is told so.
const ROUNDS_NOTED: u32 = 3;
/// Identical rounds of tool calls after which the node fails.
const ROUNDS_STUCK: u32 = 5;

/// The code of a conversation that is too long for its model.
pub(super) const CONTEXT_OVERFLOW: &str = "context_overflow";

/// What a conversation is held to.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// The agent's limits; none for a single completion without tools.
    pub agent: Option<AgentRules>,
    /// What the answer must satisfy.
    pub schema: Option<Schema>,
    /// Whether what stands before signed thinking may be shortened; see [`shorten::may_unbind`].
    pub may_unbind: bool,
}

/// What an agent is held to.
#[derive(Debug, Clone, Copy)]
pub(super) struct AgentRules {
    /// Turns of the model; corrections of a finished answer come on top.
    pub max_iterations: u32,
    /// Tool calls that the model may ask for.
    pub max_tool_calls: u32,
    /// Tool calls that count although they were made before the node was started over.
    pub calls_before: u32,
    /// Whether a limit is followed by one last turn without tools.
    pub finalize: bool,
}

/// What has to happen next.
#[derive(Debug)]
pub(super) enum Move {
    /// The model has the next turn.
    Ask,
    /// These tools are wanted; their results have the next turn.
    CallTools(Vec<ToolUse>),
    /// The conversation has its answer.
    Finish(Answer),
    /// The conversation cannot go on.
    Fail(Failure),
}

/// The end of a conversation.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub text: String,
    /// The answer as JSON, where a schema was given.
    pub parsed: Option<Value>,
    pub model: String,
    /// The provider that gave it, by its configured name.
    pub provider: Option<String>,
    pub stop_reason: StopReason,
    pub warnings: Vec<String>,
}

/// A conversation and where it stands.
#[derive(Debug)]
pub(super) struct Dialogue {
    rules: Rules,
    turns: Conversation,
    iterations: u32,
    tokens: u64,
    tool_uses: u32,
    /// The tools that were wanted last.
    round: Vec<ToolUse>,
    last_round: Option<[u8; 32]>,
    identical_rounds: u32,
    /// A limit was reached: this is the last turn, and it has no tools.
    winding_up: bool,
    corrections: u32,
    pauses: u32,
    asked_for_text: bool,
    /// Text of turns that the provider paused.
    paused_text: String,
    last_text: String,
    /// The provider that had the last turn.
    provider: Option<String>,
    /// How often it was shortened.
    shortened: u32,
}

impl Dialogue {
    /// A conversation that goes on with what we say, after what was said before.
    pub fn new(before: Conversation, prompt: String, attachments: Vec<Value>, rules: Rules) -> Self {
        let tool_uses = rules.agent.map_or(0, |agent| agent.calls_before);
        let mut turns = before;
        turns.push(Arc::new(said(prompt, attachments)));
        Self {
            rules,
            turns,
            iterations: 0,
            tokens: 0,
            tool_uses,
            round: Vec::new(),
            last_round: None,
            identical_rounds: 0,
            winding_up: false,
            corrections: 0,
            pauses: 0,
            asked_for_text: false,
            paused_text: String::new(),
            last_text: String::new(),
            provider: None,
            shortened: 0,
        }
    }

    /// The conversation so far.
    pub fn turns(&self) -> &Conversation {
        &self.turns
    }

    /// The conversation, when it is over.
    pub fn into_turns(self) -> Conversation {
        closed(self.turns, NOT_RUN)
    }

    /// The provider that had the last turn, by its configured name.
    pub fn provider(&self) -> Option<&str> {
        self.provider.as_deref()
    }

    /// Finished turns of the model.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    /// Whether the model may use tools in its next turn.
    pub fn tools_allowed(&self) -> bool {
        self.rules.agent.is_some() && !self.winding_up
    }

    /// How far the conversation has come.
    pub fn partial(&self) -> Partial {
        Partial { text: self.last_text.clone(), iterations: self.iterations, conversation: None }
    }

    /// How often the conversation was shortened.
    pub fn shortened(&self) -> u32 {
        self.shortened
    }

    /// Leaves out what can be left out of a conversation that does not fit; gives the bytes. See [`shorten`].
    pub fn shorten(&mut self) -> usize {
        let left_out = shorten::shorten(&mut self.turns, self.rules.may_unbind);
        self.shortened += u32::from(left_out > 0);
        left_out
    }

    /// The end of a conversation that does not fit and of which nothing more can be left out.
    pub fn does_not_fit(&self, why: &str) -> Failure {
        let results = |turn: &&Arc<Turn>| matches!(&***turn, Turn::ToolResults(_));
        let bytes: usize = self.turns.iter().map(|turn| size(turn)).sum();
        let of_tools: usize = self.turns.iter().filter(results).map(|turn| size(turn)).sum();
        Failure::permanent(
            CONTEXT_OVERFLOW,
            format!(
                "{why}; the conversation has {} turns with {bytes} bytes, {of_tools} of them in the tools' results, and \
                 {} tokens were used so far",
                self.turns.len(),
                self.tokens
            ),
        )
    }

    /// The first move.
    pub fn begin(&self) -> Move {
        Move::Ask
    }

    /// The model has spoken.
    pub fn heard(&mut self, completion: Completion) -> Move {
        let Completion { turn, stop_reason, model, usage, provider, shortened, .. } = completion;
        // On record is what was said, and not what was left out for it.
        while self.shortened < shortened && self.shorten() > 0 {}
        self.provider = provider;
        self.iterations += 1;
        self.tokens += usage.input_tokens + usage.output_tokens;
        let text = std::mem::take(&mut self.paused_text) + &turn.text;
        if !text.is_empty() {
            self.last_text.clone_from(&text);
        }
        if stop_reason == StopReason::ContextExceeded {
            // The turn is cut somewhere: it is asked for again, after a shorter conversation.
            return match self.shorten() {
                0 => Move::Fail(self.does_not_fit("the model's context window ended within its answer: shorten the prompt, let the tools return less, or choose a model with a larger one")),
                _ => Move::Ask,
            };
        }
        let uses = turn.tool_uses.clone();
        self.keep(turn);
        match stop_reason {
            StopReason::Refusal { category, explanation } => Move::Fail(refused(category, explanation)),
            StopReason::MaxTokens => self.cut(text, model),
            reason if !uses.is_empty() && self.tools_allowed() => {
                // Some providers name another reason although tools are wanted; what is wanted counts.
                tracing::debug!(stop_reason = reason.as_str(), tools = uses.len(), "the model wants tools");
                self.wants_tools(uses)
            }
            reason if !uses.is_empty() && (text.trim().is_empty() || self.rules.schema.is_some()) => {
                tracing::debug!(stop_reason = reason.as_str(), "the model wants tools that it may not use");
                self.refuse_tools(&uses, "No tool can be used here. Answer with what you know.")
            }
            StopReason::PauseTurn => self.paused(text),
            reason @ (StopReason::EndTurn
            | StopReason::ToolUse
            | StopReason::StopSequence
            | StopReason::ContextExceeded
            | StopReason::Other(_)) => self.ended(text, reason, model),
        }
    }

    /// The tools have answered, in the order in which they were wanted.
    pub fn answered(&mut self, mut results: Vec<ToolResult>) -> Move {
        let round = std::mem::take(&mut self.round);
        let digest = digest_of_round(&round, &results);
        self.identical_rounds = if self.last_round == Some(digest) { self.identical_rounds + 1 } else { 1 };
        self.last_round = Some(digest);
        if self.identical_rounds == ROUNDS_NOTED
            && let Some(last) = results.last_mut()
        {
            last.content.push(text_block(format!(
                "Note: these calls and their results were the same {ROUNDS_NOTED} times in a row. Try something else or give your answer."
            )));
        }
        self.turns.push(Arc::new(Turn::ToolResults(results)));
        if self.identical_rounds >= ROUNDS_STUCK {
            return Move::Fail(Failure::permanent(
                "stuck_loop",
                format!("the agent made the same tool calls with the same results {ROUNDS_STUCK} times in a row"),
            ));
        }
        // The limit with no last turn was checked before the tools ran.
        self.winding_up |= self.at_iteration_limit();
        Move::Ask
    }

    /// Keeps the model's turn as it is; an empty one would be refused when it is sent back.
    fn keep(&mut self, turn: AssistantTurn) {
        if turn.raw.get().trim() != "[]" {
            self.turns.push(Arc::new(Turn::Assistant(turn)));
        }
    }

    fn say(&mut self, text: impl Into<String>) -> Move {
        self.turns.push(Arc::new(Turn::User(text.into())));
        Move::Ask
    }

    fn at_iteration_limit(&self) -> bool {
        self.rules.agent.is_some_and(|agent| self.iterations >= agent.max_iterations)
    }

    fn wants_tools(&mut self, uses: Vec<ToolUse>) -> Move {
        let Some(agent) = self.rules.agent else {
            return self.refuse_tools(&uses, "No tool can be used here.");
        };
        self.pauses = 0;
        self.tool_uses = self.tool_uses.saturating_add(u32::try_from(uses.len()).unwrap_or(u32::MAX));
        if self.tool_uses > agent.max_tool_calls {
            if !agent.finalize {
                return Move::Fail(Failure::permanent(
                    "tool_call_limit",
                    format!(
                        "the agent has asked for {} tool calls, of which {} may be made; raise `limits.max_tool_calls`",
                        self.tool_uses, agent.max_tool_calls
                    ),
                ));
            }
            self.winding_up = true;
            return self.refuse_tools(&uses, "Not run: no tool call is left. Answer with what you know.");
        }
        if self.at_iteration_limit() && !agent.finalize {
            // The results could not be shown to the model any more, so the tools are not run.
            return Move::Fail(self.iteration_limit());
        }
        self.round.clone_from(&uses);
        Move::CallTools(uses)
    }

    /// Answers tool uses that may not run, so that each has its result, and asks again.
    fn refuse_tools(&mut self, uses: &[ToolUse], why: &str) -> Move {
        self.corrections += 1;
        if self.corrections > CORRECTIONS {
            return Move::Fail(Failure::permanent(
                "unexpected_tool_use",
                "the model asked for tools again and again although it could not use any",
            ));
        }
        let results = uses.iter().map(|tool_use| ToolResult::error(&tool_use.id, why)).collect();
        self.turns.push(Arc::new(Turn::ToolResults(results)));
        Move::Ask
    }

    fn paused(&mut self, text: String) -> Move {
        self.pauses += 1;
        if self.at_iteration_limit() {
            return Move::Fail(self.iteration_limit());
        }
        if self.pauses > PAUSES {
            return Move::Fail(Failure::permanent(
                "pause_limit",
                format!("the provider paused the model's turn more than {PAUSES} times in a row"),
            ));
        }
        self.paused_text = text;
        Move::Ask
    }

    fn cut(&mut self, text: String, model: String) -> Move {
        let cut = "the answer was cut at the limit of tokens; raise `llm_config.max_tokens`";
        if self.rules.schema.is_some() && self.rules.agent.is_none() {
            return Move::Fail(Failure::validation("truncated", format!("{cut}, or ask for less")));
        }
        if self.rules.agent.is_some() || text.trim().is_empty() {
            return Move::Fail(Failure::permanent("max_tokens", cut));
        }
        let (provider, stop_reason) = (self.provider.clone(), StopReason::MaxTokens);
        Move::Finish(Answer { text, parsed: None, model, provider, stop_reason, warnings: Vec::new() })
    }

    fn ended(&mut self, text: String, stop_reason: StopReason, model: String) -> Move {
        let mut warnings = Vec::new();
        if let StopReason::Other(reason) = &stop_reason {
            warnings.push(format!("the model stopped for a reason that this worker does not know: {reason:?}"));
        }
        let parsed = match &self.rules.schema {
            None => None,
            Some(schema) => match schema.read(&text) {
                Ok(parsed) => Some(parsed),
                Err(why) => return self.correct(&why),
            },
        };
        if text.trim().is_empty() {
            if !self.asked_for_text {
                self.asked_for_text = true;
                return self.say("Your last turn has no text. Give your answer now.");
            }
            warnings.push(String::from("the model's answer is empty"));
        }
        Move::Finish(Answer { text, parsed, model, provider: self.provider.clone(), stop_reason, warnings })
    }

    fn correct(&mut self, why: &str) -> Move {
        self.corrections += 1;
        if self.corrections > CORRECTIONS {
            return Move::Fail(Failure::validation(
                "output_invalid",
                format!("the answer still does not satisfy `output_schema` after {CORRECTIONS} corrections: {why}"),
            ));
        }
        self.say(format!(
            "Your answer does not satisfy the required JSON Schema: {why}. Answer again, with nothing but JSON that satisfies it."
        ))
    }

    fn iteration_limit(&self) -> Failure {
        Failure::permanent(
            "iteration_limit",
            format!(
                "the agent was not done after {} of {} turns of the model; raise `max_iterations`",
                self.iterations,
                self.rules.agent.map_or(self.iterations, |agent| agent.max_iterations)
            ),
        )
    }
}

/// What is said of tools that were wanted last in a conversation that ended before they were called.
pub(super) const NOT_RUN: &str = "Not run.";
/// The same where it ended while they were being called: some may have done what they do.
pub(super) const CUT_OFF: &str = "The conversation ended before the result of this call was in it. The call may or may not have \
    taken effect. Check whether it did before you repeat it.";

/// A conversation that is over. Tools that were wanted last have an answer too, these words, or nobody could go on with it.
pub(super) fn closed(mut turns: Conversation, words: &str) -> Conversation {
    if let Some(Turn::Assistant(last)) = turns.last().map(AsRef::as_ref)
        && !last.tool_uses.is_empty()
    {
        let results = last.tool_uses.iter().map(|tool_use| ToolResult::error(&tool_use.id, words));
        let results = Turn::ToolResults(results.collect());
        turns.push(Arc::new(results));
    }
    turns
}

/// What we say first. Models read a question about an image better after the image.
fn said(prompt: String, mut attachments: Vec<Value>) -> Turn {
    if attachments.is_empty() {
        return Turn::User(prompt);
    }
    attachments.push(text_block(prompt));
    Turn::Content(attachments)
}

fn refused(category: Option<String>, explanation: Option<String>) -> Failure {
    let category = category.map(|category| format!(" (category `{category}`)")).unwrap_or_default();
    let explanation = explanation.map(|words| format!(": {words}")).unwrap_or_default();
    Failure::permanent("refusal", format!("the model declined to answer{category}{explanation}"))
}

/// What was called with which arguments and what came back; the order of an object's members does not matter.
fn digest_of_round(uses: &[ToolUse], results: &[ToolResult]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for tool_use in uses {
        hasher.update(tool_use.name.as_bytes());
        hasher.update([0]);
        let mut input = Value::Object(tool_use.input.clone());
        input.sort_all_objects();
        hasher.update(input.to_string().as_bytes());
        hasher.update([0]);
    }
    for result in results {
        hasher.update(Value::Array(result.content.clone()).to_string().as_bytes());
        hasher.update([u8::from(result.is_error)]);
    }
    hasher.finalize().into()
}
