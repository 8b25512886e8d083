//! Turns that a model wrote, in the form of the protocol that it was asked by. A turn goes back to the same protocol
//! byte for byte; to another one goes what all of them understand: its text and the tools it asked for.

use std::borrow::Cow;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::domain::message::{AssistantTurn, text_block};

/// In which form a turn is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The `content` array of the Messages API.
    Messages,
    /// The message object of chat completions.
    Chat,
    /// The items of a response.
    Responses,
}

/// How a turn goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all: nothing was said.
    Nowhere,
    /// As it came.
    AsIs,
    /// What every model understands of it.
    InWords,
}

/// How a turn goes to `reader`, who takes turns in the form `native`.
pub(super) fn way(turn: &AssistantTurn, native: Form, reader: &str) -> Way {
    match form(&turn.raw) {
        None => Way::Nowhere,
        Some(form) if form == native && is_readable(turn, reader) => Way::AsIs,
        Some(_) if turn.text.trim().is_empty() && turn.tool_uses.is_empty() => Way::Nowhere,
        Some(_) => Way::InWords,
    }
}

/// Whether the reader understands all of a turn. Another model, or another account, could not read what is signed or
/// encrypted, and thinking that is signed holds only behind the system prompt and the tools that it came from.
fn is_readable(turn: &AssistantTurn, reader: &str) -> bool {
    let Some(author) = turn.author.as_deref() else { return true };
    let ((author, then), (reader, now)) = (parts(author), parts(reader));
    let same_frame = then.is_none() || now.is_none() || then == now;
    author == reader && (same_frame || !turn.is_signed())
}

/// Who wrote or reads, and the name of what stands before the conversation, where it is known.
fn parts(name: &str) -> (&str, Option<&str>) {
    name.rsplit_once('#').map_or((name, None), |(who, frame)| (who, Some(frame)))
}

/// What the raw text of a response begins with; the form of chat completions begins with its role.
const RESPONSES: &str = "{\"output\":";

/// The form of a turn; none where nothing was said.
fn form(raw: &RawValue) -> Option<Form> {
    let text = raw.get().trim_start();
    match text.strip_prefix('[') {
        Some(rest) if rest.trim() == "]" => None,
        Some(_) => Some(Form::Messages),
        None if text.starts_with(RESPONSES) => Some(Form::Responses),
        None => Some(Form::Chat),
    }
}

/// A turn in the form of responses.
pub(super) fn responses(output: &str) -> String {
    format!("{RESPONSES}{output}}}")
}

/// A turn as content of the Messages API. What a vendor signed or encrypted means nothing elsewhere, so thinking is
/// left out.
pub(super) fn content_blocks(turn: &AssistantTurn) -> Vec<Value> {
    let text = (!turn.text.trim().is_empty()).then(|| text_block(&turn.text));
    let uses = turn
        .tool_uses
        .iter()
        .map(|tool| json!({"type": "tool_use", "id": tool_id(&tool.id), "name": tool.name, "input": tool.input}));
    text.into_iter().chain(uses).collect()
}

/// An id as the Messages API takes it: of letters, digits, `_` and `-`. Others are written out, so that different ids
/// stay different.
pub(super) fn tool_id(id: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !id.is_empty() && id.chars().all(plain) {
        return Cow::Borrowed(id);
    }
    let written = id.chars().fold(String::from("call_"), |mut written, c| {
        if plain(c) {
            written.push(c);
        } else {
            written.push_str(&format!("_{:x}_", u32::from(c)));
        }
        written
    });
    Cow::Owned(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::message::ToolUse;

    fn raw(text: &str) -> Box<RawValue> {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn the_form_of_a_turn_is_told_by_how_it_begins() {
        for (text, expected) in [
            ("[ ]", None),
            (r#"[{"type":"text","text":"a"}]"#, Some(Form::Messages)),
            (r#"{"role":"assistant","content":"a","output":1}"#, Some(Form::Chat)),
            (&responses("[]"), Some(Form::Responses)),
        ] {
            assert_eq!(form(&raw(text)), expected, "{text}");
        }
    }

    #[test]
    fn only_its_author_gets_a_turn_as_it_came() {
        let mut turn = AssistantTurn {
            raw: raw(r#"[{"type":"thinking","thinking":"t","signature":"s"}]"#),
            text: String::from("a"),
            tool_uses: Vec::new(),
            author: Some(String::from("one/m")),
        };
        assert_eq!(way(&turn, Form::Messages, "one/m"), Way::AsIs);
        assert_eq!(way(&turn, Form::Messages, "other/m"), Way::InWords);
        assert_eq!(way(&turn, Form::Chat, "one/m"), Way::InWords);
        turn.author = None;
        assert_eq!(way(&turn, Form::Messages, "one/m"), Way::AsIs);
        turn.text.clear();
        assert_eq!(way(&turn, Form::Chat, "one/m"), Way::Nowhere, "thinking alone says nothing to another");
    }

    #[test]
    fn signed_thinking_goes_back_only_behind_what_it_came_from() {
        let said = |content: &str, author: &str| AssistantTurn {
            raw: raw(content),
            text: String::from("a"),
            tool_uses: Vec::new(),
            author: Some(author.to_owned()),
        };
        let signed = r#"[{"type":"thinking","thinking":"t","signature":"s"},{"type":"text","text":"a"}]"#;
        let plain = r#"[{"type":"text","text":"a","citations":null}]"#;
        for (content, author, reader, expected) in [
            (signed, "p/m#1", "p/m#1", Way::AsIs),
            (signed, "p/m#1", "p/m#2", Way::InWords),
            (plain, "p/m#1", "p/m#2", Way::AsIs),
            (plain, "p/m#1", "p/n#1", Way::InWords),
            // Records of earlier versions do not say what stood before them.
            (signed, "p/m", "p/m#2", Way::AsIs),
        ] {
            assert_eq!(way(&said(content, author), Form::Messages, reader), expected, "{content} {author} {reader}");
        }
    }

    #[test]
    fn a_foreign_turn_keeps_its_text_and_its_tools_and_loses_its_thinking() {
        let tool = |id: &str| ToolUse {
            id: id.to_owned(),
            name: String::from("add"),
            input: json!({"b": 1, "a": 2}).as_object().expect("an object").clone(),
            problem: None,
        };
        let turn = AssistantTurn {
            raw: raw(r#"{"role":"assistant","content":"a","reasoning":"secret"}"#),
            text: String::from("a"),
            tool_uses: vec![tool("call_1"), tool("fn:1")],
            author: None,
        };
        let blocks = json!(content_blocks(&turn)).to_string();
        assert!(!blocks.contains("secret"), "{blocks}");
        assert_eq!(
            blocks,
            r#"[{"type":"text","text":"a"},{"type":"tool_use","id":"call_1","name":"add","input":{"b":1,"a":2}},{"type":"tool_use","id":"call_fn_3a_1","name":"add","input":{"b":1,"a":2}}]"#
        );
    }

    #[test]
    fn ids_that_differ_stay_different() {
        assert_ne!(tool_id("a:b"), tool_id("a.b"));
        assert_ne!(tool_id(""), tool_id("x"));
        assert_eq!(tool_id("toolu_01-A"), "toolu_01-A");
    }
}
