//! How many tokens a request may come to, before anybody has counted them: rather too many than too few, for what was
//! not used is given back.

use serde_json::Value;

use crate::domain::message::Turn;
use crate::ports::LlmRequest;

/// Bytes that make a token at the least: about four in English, three in scripts with three bytes a letter.
const BYTES_OF_TOKEN: u64 = 3;
/// Tokens of an image, whatever its size: larger ones are made smaller before they are read.
const IMAGE: u64 = 1_600;
/// Bytes of a document, as base64, that make a token: a page has about 50 kB and comes to 2,000 to 3,000.
const DOCUMENT_BYTES_OF_TOKEN: u64 = 20;
/// What stands around each turn and each tool.
const FRAME: u64 = 10;

/// Tokens that will be read.
pub fn input_tokens(request: &LlmRequest) -> u64 {
    let mut size = Size::default();
    size.bytes += request.system.as_ref().map_or(0, |system| system.len() as u64);
    for turn in &request.turns {
        size.tokens += FRAME;
        match &**turn {
            Turn::User(text) => size.bytes += text.len() as u64,
            Turn::Content(blocks) => blocks.iter().for_each(|block| size.add(block)),
            Turn::Assistant(turn) => size.bytes += turn.raw.get().len() as u64,
            Turn::ToolResults(results) => {
                results.iter().flat_map(|result| &result.content).for_each(|block| size.add(block));
            }
        }
    }
    for tool in &*request.tools {
        size.tokens += FRAME;
        size.bytes += (tool.name.len() + tool.description.as_ref().map_or(0, String::len)) as u64;
        size.add(&tool.input_schema);
    }
    if let Some(schema) = &request.output_schema {
        size.add(schema);
    }
    size.tokens + size.bytes.div_ceil(BYTES_OF_TOKEN)
}

#[derive(Default)]
struct Size {
    bytes: u64,
    tokens: u64,
}

impl Size {
    fn add(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.bytes += text.len() as u64 + 2,
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            Value::Object(members) => {
                let mime = members.get("mimeType").and_then(Value::as_str);
                for (name, member) in members {
                    self.bytes += name.len() as u64 + 3;
                    match (name.as_str(), member, mime) {
                        ("data" | "blob", Value::String(_), Some(mime)) if mime.starts_with("image/") => {
                            self.tokens += IMAGE;
                        }
                        ("data" | "blob", Value::String(data), Some(_)) => {
                            self.tokens += (data.len() as u64).div_ceil(DOCUMENT_BYTES_OF_TOKEN);
                        }
                        _ => self.add(member),
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => self.bytes += 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::clients::llm::fixture::{assistant, request, with_tools};
    use crate::domain::message::ToolResult;

    #[test]
    fn everything_that_is_sent_counts_and_a_picture_is_no_text() {
        let plain = input_tokens(&request(&"x".repeat(300)));
        assert_eq!(plain, 110);
        let mut call = with_tools(request(&"x".repeat(300)), &["get_weather"]);
        call.system = Some("y".repeat(300));
        call.turns.push(assistant(&format!(r#"[{{"type":"text","text":"{}"}}]"#, "z".repeat(300))));
        let longer = input_tokens(&call);
        assert!((320..420).contains(&longer), "{longer}");
        let picture = json!({"type": "image", "mimeType": "image/png", "data": "A".repeat(3_000_000)});
        let paper =
            json!({"type": "resource", "resource": {"mimeType": "application/pdf", "blob": "A".repeat(200_000)}});
        let result = ToolResult { tool_use_id: String::from("t"), content: vec![picture, paper], is_error: false };
        call.turns.push(Arc::new(Turn::ToolResults(vec![result])));
        let shown = input_tokens(&call) - longer;
        assert!((11_600..11_800).contains(&shown), "{shown}");
    }
}
