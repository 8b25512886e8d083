//! Tools as the worker sees them, whether an MCP server or a function of our own stands behind the name.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Where a tool lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ToolTarget {
    /// The MCP server by its configured name; none for the function registry.
    pub server: Option<String>,
    /// The tool's own name there.
    pub name: String,
}

impl std::fmt::Display for ToolTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.server {
            Some(server) => write!(f, "{server}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What a server says of its tool's effects; hints are not proofs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ToolHints {
    /// The tool changes nothing.
    pub read_only: bool,
    /// Calling it twice with the same arguments is the same as once.
    pub idempotent: bool,
}

impl ToolHints {
    /// Changes nothing, and so may be repeated.
    pub const READ_ONLY: Self = Self { read_only: true, idempotent: true };
}

/// A tool that can be called.
#[derive(Debug, Clone)]
pub struct ToolSpec {
    /// The name that a model sees: unique in its list, `[A-Za-z0-9_-]{1,64}`.
    pub name: String,
    /// Where the call goes.
    pub target: ToolTarget,
    /// What it is for.
    pub description: Option<String>,
    /// The JSON Schema of its arguments, as the server wrote it.
    pub input_schema: Arc<Value>,
    /// What is said of its effects.
    pub hints: ToolHints,
}

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ToolOutput {
    /// Content blocks as MCP defines them; unknown kinds are kept.
    pub content: Vec<Value>,
    /// The structured answer, where the tool has one.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub structured: Option<Value>,
    /// The tool says that it failed.
    pub is_error: bool,
}

impl ToolOutput {
    /// A structured answer of a function of our own.
    pub fn structured(value: Value) -> Self {
        Self { content: Vec::new(), structured: Some(value), is_error: false }
    }

    /// The same without the content that only says again what the structured answer says; what went wrong is told in
    /// the content.
    pub fn without_copies(mut self) -> Self {
        if self.structured.is_some() && !self.is_error {
            self.content.clear();
        }
        self
    }

    /// The output of a node in tool mode: the structured content; else the single text block, as JSON if it is an
    /// object or an array, else as a string; else the list of content blocks.
    pub fn into_value(self) -> Value {
        if let Some(structured) = self.structured {
            return structured;
        }
        if let [block] = self.content.as_slice()
            && let Some(text) = single_text(block)
        {
            return match serde_json::from_str::<Value>(text) {
                Ok(value @ (Value::Object(_) | Value::Array(_))) => value,
                _ => Value::String(text.to_owned()),
            };
        }
        Value::Array(self.content)
    }

    /// The blocks that a model sees: the content, or the structured answer as text where there is no content.
    pub fn into_blocks(self) -> Vec<Value> {
        if self.content.is_empty() {
            let text = match self.structured {
                Some(Value::String(text)) => text,
                Some(value) => value.to_string(),
                None => String::from("(no output)"),
            };
            return vec![crate::domain::message::text_block(text)];
        }
        self.content
    }

    /// All text of the answer, for an error message.
    pub fn text(&self) -> String {
        let texts: Vec<&str> = self.content.iter().filter_map(single_text).collect();
        match (texts.is_empty(), &self.structured) {
            (true, Some(structured)) => structured.to_string(),
            _ => texts.join("\n"),
        }
    }
}

impl From<Value> for ToolOutput {
    fn from(value: Value) -> Self {
        Self::structured(value)
    }
}

/// Tells an answer of `null` from none at all.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

fn single_text(block: &Value) -> Option<&str> {
    (block.get("type")?.as_str()? == "text").then(|| block.get("text")?.as_str())?
}

/// Whether a name fits a pattern in which `*` stands for any run of characters, also none.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    // The earliest place for each part leaves the most room for those that follow.
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// How far a call has come, as its tool tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Grows with each message.
    pub progress: f64,
    /// What it grows to, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<f64>,
    /// What is happening, shortened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a tool asks a person in the middle of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolQuestion {
    /// What is asked, in the words of the server.
    pub message: String,
    /// The JSON Schema of the values that are asked for; none where the person has to go somewhere instead.
    pub schema: Option<Value>,
    /// Where the person has to go.
    pub url: Option<String>,
    /// The server's name for the question, where that is of this question alone: the same words may be asked again.
    pub key: Option<String>,
}

/// The answer to a tool.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolReply {
    /// Yes; with the values that were asked for.
    Accept(Map<String, Value>),
    /// No.
    Decline,
    /// Nobody answers.
    Cancel,
}

/// The arguments of a call.
pub type Arguments = Map<String, Value>;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(text: &str) -> ToolOutput {
        ToolOutput { content: vec![json!({"type": "text", "text": text})], ..ToolOutput::default() }
    }

    #[test]
    fn structured_content_is_the_output() {
        let output = ToolOutput { structured: Some(json!(3)), ..text("three") };
        assert_eq!(output.into_value(), json!(3));
    }

    #[test]
    fn a_single_text_is_json_only_if_it_is_an_object_or_an_array() {
        assert_eq!(text(r#"{"a":1}"#).into_value(), json!({"a": 1}));
        assert_eq!(text("[1]").into_value(), json!([1]));
        assert_eq!(text("42").into_value(), json!("42"));
        assert_eq!(text("plain").into_value(), json!("plain"));
    }

    #[test]
    fn several_blocks_stay_a_list() {
        let blocks =
            vec![json!({"type": "text", "text": "a"}), json!({"type": "image", "data": "", "mimeType": "image/png"})];
        let output = ToolOutput { content: blocks.clone(), ..ToolOutput::default() };
        assert_eq!(output.into_value(), Value::Array(blocks));
    }

    #[test]
    fn a_model_sees_a_structured_answer_without_content_as_text() {
        let blocks = ToolOutput::structured(json!({"sum": 5})).into_blocks();
        assert_eq!(blocks, vec![json!({"type": "text", "text": r#"{"sum":5}"#})]);
    }
}
