//! The turns of a conversation as messages of the API. What a model wrote goes back byte for byte as it came, and a
//! conversation that grew begins with the bytes it had before: signatures and caches depend on both.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::content;
use crate::domain::message::{ToolResult, Turn};

#[derive(Serialize)]
pub(super) struct Message<'a> {
    role: &'static str,
    content: Content<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Text(&'a str),
    Blocks(Vec<Value>),
    Raw(&'a RawValue),
    Results(Vec<ResultBlock<'a>>),
}

#[derive(Serialize)]
struct ResultBlock<'a> {
    r#type: &'static str,
    tool_use_id: &'a str,
    content: Vec<Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_error: bool,
}

impl<'a> ResultBlock<'a> {
    fn of(result: &'a ToolResult) -> Self {
        Self {
            r#type: "tool_result",
            tool_use_id: &result.tool_use_id,
            content: content::blocks(&result.content),
            is_error: result.is_error,
        }
    }
}

/// The message of a turn; none where there is nothing that the API takes.
pub(super) fn message(turn: &Turn) -> Option<Message<'_>> {
    match turn {
        Turn::User(text) => Some(Message { role: "user", content: Content::Text(text) }),
        Turn::Content(blocks) => Some(Message { role: "user", content: Content::Blocks(content::some_blocks(blocks)) }),
        // The API itself may answer with no content at all, but it does not take that back.
        Turn::Assistant(turn) if turn.raw.get().chars().filter(|c| !c.is_ascii_whitespace()).eq("[]".chars()) => None,
        Turn::Assistant(turn) => Some(Message { role: "assistant", content: Content::Raw(&turn.raw) }),
        Turn::ToolResults(results) => {
            Some(Message { role: "user", content: Content::Results(results.iter().map(ResultBlock::of).collect()) })
        }
    }
}
