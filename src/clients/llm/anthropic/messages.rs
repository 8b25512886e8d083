//! The turns of a conversation as messages of the API. What a model wrote goes back byte for byte as it came, and a
//! conversation that grew begins with the bytes it had before: signatures and caches depend on both.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::content;
use crate::clients::llm::history::{self, Form, Way};
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
    tool_use_id: Cow<'a, str>,
    content: Vec<Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_error: bool,
}

impl<'a> ResultBlock<'a> {
    fn of(result: &'a ToolResult) -> Self {
        Self {
            r#type: "tool_result",
            tool_use_id: history::tool_id(&result.tool_use_id),
            content: content::blocks(&result.content),
            is_error: result.is_error,
        }
    }
}

/// The message of a turn for the one who is asked; none where there is nothing that the API takes.
pub(super) fn message<'a>(turn: &'a Turn, author: &str) -> Option<Message<'a>> {
    match turn {
        Turn::User(text) => Some(Message { role: "user", content: Content::Text(text) }),
        Turn::Content(blocks) => Some(Message { role: "user", content: Content::Blocks(content::some_blocks(blocks)) }),
        Turn::Assistant(turn) => {
            let content = match history::way(turn, Form::Messages, author) {
                // The API itself may answer with no content at all, but it does not take that back.
                Way::Nowhere => return None,
                Way::AsIs => Content::Raw(&turn.raw),
                Way::InWords => Content::Blocks(history::content_blocks(turn)),
            };
            Some(Message { role: "assistant", content })
        }
        Turn::ToolResults(results) => {
            Some(Message { role: "user", content: Content::Results(results.iter().map(ResultBlock::of).collect()) })
        }
    }
}
