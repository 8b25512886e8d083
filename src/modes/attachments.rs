//! Images and documents that go to a model beside the prompt: content blocks as tools give them, so that the output of
//! a tool node can be shown to a model as it is.

use serde_json::Value;

use crate::domain::node::{LlmConfig, NodeConfig};
use crate::domain::outcome::Failure;
use crate::modes::names::Names;
use crate::modes::scope::Scope;
use crate::modes::template::{TemplateError, ValueTemplate};

/// Kinds of blocks that a model can be shown.
const KINDS: &[&str] = &["text", "image", "document", "audio", "resource", "resource_link"];

/// Attachments as configured, their templates read.
#[derive(Debug)]
pub(super) struct AttachmentsPlan(Option<ValueTemplate>);

impl AttachmentsPlan {
    /// Those of the model's settings, else those of the node.
    pub fn compile(config: &NodeConfig, llm: &LlmConfig) -> Result<Self, TemplateError> {
        let source = llm.attachments.as_ref().or(config.attachments.as_ref());
        source.map(ValueTemplate::compile).transpose().map(Self)
    }

    /// Adds the names that the templates use.
    pub fn names(&self, names: &mut Names) {
        self.0.iter().for_each(|value| value.names(names));
    }

    /// Puts the values in.
    pub fn render(&self, scope: &Scope) -> Result<Attachments, TemplateError> {
        let value = self.0.as_ref().map(|value| value.value(scope)).transpose()?.unwrap_or_default();
        Ok(Attachments { text: if value.is_null() { String::new() } else { value.to_string() }, value })
    }
}

/// Attachments with their values put in.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    value: Value,
    text: String,
}

impl Attachments {
    /// Them as one text, empty where there are none; it tells whether they have changed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The blocks. Lists may stand in lists, because one template may give several.
    pub fn blocks(self) -> Result<Vec<Value>, Failure> {
        let mut blocks = Vec::new();
        flatten(self.value, &mut blocks)?;
        Ok(blocks)
    }
}

fn flatten(value: Value, blocks: &mut Vec<Value>) -> Result<(), Failure> {
    let wrong = |what: String| {
        Err(Failure::validation(
            "invalid_attachment",
            format!("`attachments` must be content blocks, each with a `type` ({}), but {what}", KINDS.join(", ")),
        ))
    };
    match value {
        Value::Null => Ok(()),
        Value::Array(items) => items.into_iter().try_for_each(|item| flatten(item, blocks)),
        Value::Object(block) => match block.get("type").and_then(Value::as_str) {
            Some(kind) if KINDS.contains(&kind) => {
                blocks.push(Value::Object(block));
                Ok(())
            }
            Some(kind) => wrong(format!("one has the type {kind:?}")),
            None => wrong(String::from("one has no type")),
        },
        Value::String(_) => wrong(String::from("one is a text; put texts into the prompt")),
        Value::Bool(_) | Value::Number(_) => wrong(format!("one is {value}")),
    }
}

/// The texts that were put together for a model: if one of them has changed, it is other work.
pub(super) struct Texts<'a>([&'a str; 3]);

impl<'a> Texts<'a> {
    /// Those of a conversation that begins so.
    pub fn new(prompt: &'a str, system: Option<&'a str>, attachments: &'a Attachments) -> Self {
        Self([prompt, system.unwrap_or_default(), attachments.text()])
    }
}

impl<'a> IntoIterator for Texts<'a> {
    type Item = &'a str;
    type IntoIter = std::iter::Take<std::array::IntoIter<&'a str, 3>>;

    fn into_iter(self) -> Self::IntoIter {
        // Without attachments there is no third text, as in journals that were written before there were any.
        let count = if self.0[2].is_empty() { 2 } else { 3 };
        self.0.into_iter().take(count)
    }
}
