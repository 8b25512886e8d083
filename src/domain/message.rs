//! A conversation with a model, neutral of the provider. What a model wrote is kept byte for byte, because
//! providers sign parts of it and cache its prefix; the parsed view stands beside it.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::domain::price::Cost;

/// Tokens of one or several completions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// All tokens read, cached ones included.
    pub input_tokens: u64,
    /// All tokens written.
    pub output_tokens: u64,
    /// Of the input: read from the provider's cache.
    pub cache_read_tokens: u64,
    /// Of the input: written to the provider's cache.
    pub cache_write_tokens: u64,
    /// What they cost, in US dollars; nothing where the model has no price.
    #[serde(default, rename = "cost_usd", skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.cache_read_tokens += other.cache_read_tokens;
        self.cache_write_tokens += other.cache_write_tokens;
        self.cost = match (self.cost, other.cost) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        };
    }
}

/// Why the model stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The answer is complete.
    EndTurn,
    /// The model asks for tools.
    ToolUse,
    /// The answer was cut at `max_tokens`.
    MaxTokens,
    /// One of `stop_sequences` was written.
    StopSequence,
    /// The provider paused a long turn; sending the turn back continues it.
    PauseTurn,
    /// The model declined.
    Refusal {
        /// The provider's category, if it gave one.
        category: Option<String>,
        /// The provider's words, if it gave any.
        explanation: Option<String>,
    },
    /// The answer was cut at the end of the model's context window.
    ContextExceeded,
    /// A reason this worker does not know.
    Other(String),
}

impl StopReason {
    /// The reason as outputs and events bear it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::EndTurn => "end_turn",
            Self::ToolUse => "tool_use",
            Self::MaxTokens => "max_tokens",
            Self::StopSequence => "stop_sequence",
            Self::PauseTurn => "pause_turn",
            Self::Refusal { .. } => "refusal",
            Self::ContextExceeded => "model_context_window_exceeded",
            Self::Other(reason) => reason,
        }
    }
}

/// A tool that the model wants called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolUse {
    /// The provider's id of this use; the result bears it.
    pub id: String,
    /// The name as the model knows it.
    pub name: String,
    /// The arguments.
    pub input: Map<String, Value>,
    /// Why the arguments could not be read, in words for the model; such a use is answered with them and never run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One turn that a model wrote.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AssistantTurn {
    /// What the provider sent and must get back unchanged: the `content` array of the Messages API, the message object
    /// of chat completions (`role` first), or `{"output": […]}` with the items of a response. `[]` says nothing at all.
    pub raw: Box<RawValue>,
    /// All text blocks, joined.
    pub text: String,
    /// The tools asked for, in order.
    pub tool_uses: Vec<ToolUse>,
    /// Who wrote it: `provider/model`, and `#` with a name of what stood before the conversation. Only they understand
    /// what is signed or encrypted in it. None in records of earlier versions, where everything of a node had one author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

impl AssistantTurn {
    /// Whether it has thinking that is bound to everything that stood before it.
    pub fn is_signed(&self) -> bool {
        #[derive(Deserialize)]
        struct Block<'a> {
            #[serde(borrow, rename = "type", default)]
            kind: Cow<'a, str>,
        }
        // Only the Messages API keeps its turns as a list, and only there are signatures bound.
        serde_json::from_str::<Vec<Block<'_>>>(self.raw.get())
            .is_ok_and(|blocks| blocks.iter().any(|block| matches!(&*block.kind, "thinking" | "redacted_thinking")))
    }
}

/// What a tool answered, for the model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ToolResult {
    /// The use that it answers.
    pub tool_use_id: String,
    /// MCP content blocks: `{"type": "text", "text": …}`, `image`, `audio`, `resource_link`, `resource`.
    pub content: Vec<Value>,
    /// Whether the call failed.
    pub is_error: bool,
}

impl ToolResult {
    /// A failed call, told to the model in words.
    pub fn error(tool_use_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { tool_use_id: tool_use_id.into(), content: vec![text_block(text)], is_error: true }
    }
}

/// A text block in the shape of MCP and of the Messages API.
pub fn text_block(text: impl Into<String>) -> Value {
    serde_json::json!({"type": "text", "text": text.into()})
}

/// One turn of a conversation; a conversation only ever grows at its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Turn {
    /// What we say.
    User(String),
    /// What we say with images or documents in it: content blocks as in [`ToolResult`], and `document` blocks with
    /// `data` and `mimeType`; an image or a document may have a `url` in their place.
    Content(Vec<Value>),
    /// What the model says.
    Assistant(AssistantTurn),
    /// What the tools of the turn before answered, in call order.
    ToolResults(Vec<ToolResult>),
}

/// A conversation; turns are shared, so that a copy for a request costs pointers.
pub type Conversation = Vec<Arc<Turn>>;

/// One completed call of a model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Completion {
    /// What the model wrote.
    pub turn: AssistantTurn,
    /// Why it stopped.
    pub stop_reason: StopReason,
    /// The model that answered, as the provider names it.
    pub model: String,
    /// The provider that answered, by its configured name; none in records of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Tokens of this call.
    pub usage: Usage,
    /// The provider's id of the request, for support.
    pub request_id: Option<String>,
    /// Remarks, such as settings that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// How often the conversation had been shortened when this was asked, because it did not fit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shortened: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
