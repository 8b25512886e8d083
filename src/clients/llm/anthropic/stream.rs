//! The events of a streamed answer, put together to the message that would have come as a whole. Everything that is
//! not grown piece by piece is kept as the JSON text it came as, because providers sign parts of it.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::domain::delta::Deltas;

/// The members of an object, each as the JSON text it came as.
type Members = IndexMap<String, Box<RawValue>>;

/// Stop reasons after which the last block may be incomplete.
const CUT: &[&str] = &["max_tokens", "model_context_window_exceeded", "refusal"];

/// What follows an event.
#[derive(Debug, PartialEq)]
pub(in crate::clients::llm) enum Step {
    /// There is more to come.
    More,
    /// The message is complete; this is its JSON text.
    Message(Vec<u8>),
    /// The provider gave up; the event is an error of the API.
    Failed,
}

/// A message that is being put together.
#[derive(Default)]
pub(in crate::clients::llm) struct Assembly {
    message: Option<Members>,
    usage: Members,
    blocks: BTreeMap<u64, Block>,
}

/// A block that is being put together.
#[derive(Default)]
struct Block {
    members: Members,
    /// Texts that grow, by the member they belong to.
    texts: IndexMap<String, String>,
    citations: Vec<Box<RawValue>>,
    /// The JSON text of `input`.
    input: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: String,
    #[serde(default)]
    index: Option<u64>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content_block: Option<&'a RawValue>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

impl Assembly {
    /// Takes the data of one event. An error says in words what makes no sense. Events of an unknown type mean nothing.
    pub fn take(&mut self, data: &str, deltas: Option<&Deltas>) -> Result<Step, String> {
        let event: Event<'_> =
            serde_json::from_str(data).map_err(|error| format!("an event is no JSON object with a type: {error}"))?;
        match event.r#type.as_str() {
            "message_start" => {
                let mut message = members("message", event.message)?;
                if let Some(usage) = message.shift_remove("usage") {
                    self.usage = members("usage", Some(&usage)).unwrap_or_default();
                }
                self.message = Some(message);
            }
            "content_block_start" => {
                self.begun()?;
                let block = Block { members: members("content_block", event.content_block)?, ..Block::default() };
                if let Some(deltas) = deltas {
                    block.tell(deltas);
                }
                if self.blocks.insert(place(event.index)?, block).is_some() {
                    return Err(String::from("a block begins twice"));
                }
            }
            "content_block_delta" => {
                let delta = members("delta", event.delta)?;
                let block = self.blocks.get_mut(&place(event.index)?).ok_or("a block grows that has not begun")?;
                block.grow(delta, deltas)?;
            }
            "message_delta" => {
                self.begun()?.extend(members("delta", event.delta)?);
                if event.usage.is_some() {
                    // These counts are totals; what is left out or null stands as it was.
                    let usage = members("usage", event.usage)?;
                    self.usage.extend(usage.into_iter().filter(|(_, count)| count.get() != "null"));
                }
            }
            "message_stop" => return self.finish().map(Step::Message),
            "error" => return Ok(Step::Failed),
            _ => {}
        }
        Ok(Step::More)
    }

    fn begun(&mut self) -> Result<&mut Members, String> {
        self.message.as_mut().ok_or_else(|| String::from("its first event is not `message_start`"))
    }

    fn finish(&mut self) -> Result<Vec<u8>, String> {
        let blocks = std::mem::take(&mut self.blocks);
        let usage = raw(&std::mem::take(&mut self.usage));
        let message = self.begun()?;
        let cut = text_of(message, "stop_reason").is_some_and(|reason| CUT.contains(&reason.as_str()));
        let last = blocks.len().saturating_sub(1);
        let content = blocks
            .into_values()
            .enumerate()
            .map(|(at, block)| block.finish(cut && at == last))
            .collect::<Result<Vec<_>, _>>()?;
        message.insert(String::from("content"), raw(&content));
        message.insert(String::from("usage"), usage);
        Ok(raw(message).get().as_bytes().to_vec())
    }
}

impl Block {
    fn tell(&self, deltas: &Deltas) {
        let member = |name| text_of(&self.members, name).unwrap_or_default();
        match member("type").as_str() {
            "tool_use" => deltas.tool_use(&member("id"), &member("name")),
            "text" => deltas.text(&member("text")),
            _ => {}
        }
    }

    fn grow(&mut self, mut delta: Members, deltas: Option<&Deltas>) -> Result<(), String> {
        let kind = text_of(&delta, "type").ok_or("a delta has no type")?;
        delta.shift_remove("type");
        let text = |name: &str| text_of(&delta, name).ok_or_else(|| format!("a `{kind}` has no `{name}`"));
        match kind.as_str() {
            "text_delta" => {
                let more = text("text")?;
                deltas.inspect(|deltas| deltas.text(&more));
                self.append("text", &more);
            }
            "thinking_delta" => {
                let more = text("thinking")?;
                deltas.inspect(|deltas| deltas.thinking(&more));
                self.append("thinking", &more);
            }
            "input_json_delta" => self.input.push_str(&text("partial_json")?),
            "signature_delta" => self.members.extend(delta),
            "citations_delta" => {
                let citation = delta.shift_remove("citation").ok_or("a `citations_delta` has no `citation`")?;
                self.citations.push(citation);
            }
            // A kind that is not known yet: texts grow, and whatever else there is takes the place of what was there.
            _ => {
                for (name, value) in delta {
                    match serde_json::from_str::<String>(value.get()) {
                        Ok(more) => self.append(&name, &more),
                        Err(_) => drop(self.members.insert(name, value)),
                    }
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, name: &str, more: &str) {
        if let Some(text) = self.texts.get_mut(name) {
            return text.push_str(more);
        }
        let begun = text_of(&self.members, name).unwrap_or_default();
        self.texts.insert(name.to_owned(), begun + more);
    }

    /// The block. One that was cut off may have half of its `input`; nobody uses that.
    fn finish(self, cut: bool) -> Result<Members, String> {
        let Self { mut members, texts, citations, input } = self;
        for (name, text) in texts {
            members.insert(name, raw(&text));
        }
        if !citations.is_empty() {
            let begun: Option<Vec<Box<RawValue>>> =
                members.get("citations").and_then(|begun| serde_json::from_str(begun.get()).ok());
            let all: Vec<_> = begun.into_iter().flatten().chain(citations).collect();
            members.insert(String::from("citations"), raw(&all));
        }
        if !input.trim().is_empty() {
            match serde_json::from_str::<Box<RawValue>>(&input) {
                Ok(input) => drop(members.insert(String::from("input"), input)),
                Err(_) if cut => {}
                Err(error) => {
                    let name = text_of(&members, "name").unwrap_or_default();
                    return Err(format!("the arguments of tool {name:?} are no JSON: {error}"));
                }
            }
        }
        Ok(members)
    }
}

fn place(index: Option<u64>) -> Result<u64, String> {
    index.ok_or_else(|| String::from("an event of a block has no `index`"))
}

fn members(name: &str, value: Option<&RawValue>) -> Result<Members, String> {
    let value = value.ok_or_else(|| format!("an event has no `{name}`"))?;
    serde_json::from_str(value.get()).map_err(|error| format!("`{name}` of an event is no object: {error}"))
}

fn text_of(members: &Members, name: &str) -> Option<String> {
    serde_json::from_str(members.get(name)?.get()).ok()
}

fn raw(value: &impl serde::Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("texts and raw JSON serialise")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::delta::Piece;

    /// The message that events make, each given as its JSON text.
    fn assembled(events: &[String], deltas: Option<&Deltas>) -> Result<Value, String> {
        let mut assembly = Assembly::default();
        for event in events {
            match assembly.take(event, deltas)? {
                Step::More => {}
                Step::Message(body) => return Ok(serde_json::from_slice(&body).expect("a message is JSON")),
                Step::Failed => return Err(String::from("failed")),
            }
        }
        Err(String::from("unfinished"))
    }

    fn start() -> String {
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant",
            "model": "m", "content": [], "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": 9, "cache_read_input_tokens": 7, "output_tokens": 1}}})
        .to_string()
    }

    fn begin(index: u64, block: Value) -> String {
        json!({"type": "content_block_start", "index": index, "content_block": block}).to_string()
    }

    fn delta(index: u64, delta: Value) -> String {
        json!({"type": "content_block_delta", "index": index, "delta": delta}).to_string()
    }

    fn input(index: u64, part: &str) -> String {
        delta(index, json!({"type": "input_json_delta", "partial_json": part}))
    }

    fn end(reason: &str) -> [String; 2] {
        let delta = json!({"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": null},
            "usage": {"output_tokens": 42, "input_tokens": null}});
        [delta.to_string(), json!({"type": "message_stop"}).to_string()]
    }

    #[test]
    fn every_kind_of_block_is_what_it_would_have_been_as_a_whole() {
        let mut events = vec![start(), json!({"type": "ping"}).to_string()];
        events.push(begin(0, json!({"type": "thinking", "thinking": "", "signature": ""})));
        events.extend(["Let", " me"].map(|text| delta(0, json!({"type": "thinking_delta", "thinking": text}))));
        events.push(delta(0, json!({"type": "signature_delta", "signature": "Ab+/=="})));
        events.push(json!({"type": "content_block_stop", "index": 0}).to_string());
        events.push(begin(1, json!({"type": "text", "text": "", "citations": []})));
        events.extend(["He", "llo \"é\""].map(|text| delta(1, json!({"type": "text_delta", "text": text}))));
        events.push(delta(1, json!({"type": "citations_delta", "citation": {"cited_text": "c", "n": 1}})));
        events.push(json!({"type": "something_new", "index": 1, "delta": 3}).to_string());
        events.push(begin(2, json!({"type": "tool_use", "id": "t1", "name": "add", "input": {}})));
        events.extend(["", "{\"a\":", "1}"].map(|part| input(2, part)));
        events.push(begin(3, json!({"type": "hologram", "shape": {"z": 1}, "words": "a"})));
        events.push(delta(3, json!({"type": "hologram_delta", "words": "b", "shape": [2]})));
        events.push(begin(4, json!({"type": "tool_use", "id": "t2", "name": "now", "input": {}})));
        events.extend(end("tool_use"));
        let deltas = Deltas::default();
        let message = assembled(&events, Some(&deltas)).expect("a message");
        assert_eq!(
            message,
            json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m",
                "content": [
                    {"type": "thinking", "thinking": "Let me", "signature": "Ab+/=="},
                    {"type": "text", "text": "Hello \"é\"", "citations": [{"cited_text": "c", "n": 1}]},
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
                    {"type": "hologram", "shape": [2], "words": "ab"},
                    {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
                ],
                "stop_reason": "tool_use", "stop_sequence": null,
                "usage": {"input_tokens": 9, "cache_read_input_tokens": 7, "output_tokens": 42}})
        );
        let tool = |id: &str, name: &str| Piece::ToolUse { id: id.to_owned(), name: name.to_owned() };
        let thinking = Piece::Thinking { text: String::from("Let me") };
        let text = Piece::Text { text: String::from("Hello \"é\"") };
        assert_eq!(deltas.fetch(), [thinking, text, tool("t1", "add"), tool("t2", "now")]);
    }

    #[test]
    fn numbers_and_unknown_members_keep_their_very_text() {
        let events = [
            start(),
            String::from(
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","later":1.0e2,"input":{},"name":"n"}}"#,
            ),
            input(0, r#"{"n": 12345678901234567890123, "f":1.50"#),
            input(0, r#","z":{"b":1,"a":2}}"#),
        ];
        let mut assembly = Assembly::default();
        let mut message = Vec::new();
        for event in events.iter().chain(&end("tool_use")) {
            if let Step::Message(body) = assembly.take(event, None).expect("it makes sense") {
                message = body;
            }
        }
        let message = String::from_utf8(message).expect("text");
        let block = r#""content":[{"type":"tool_use","id":"t","later":1.0e2,"input":{"n": 12345678901234567890123, "f":1.50,"z":{"b":1,"a":2}},"name":"n"}]"#;
        assert!(message.contains(block), "{message}");
    }

    #[test]
    fn arguments_that_are_cut_off_are_left_out_and_broken_ones_are_an_error() {
        let tool = || begin(0, json!({"type": "tool_use", "id": "t", "name": "add", "input": {}}));
        for reason in CUT {
            let events: Vec<String> =
                [start(), tool(), input(0, "{\"a\": [1,")].into_iter().chain(end(reason)).collect();
            assert_eq!(assembled(&events, None).expect("a message")["content"][0]["input"], json!({}), "{reason}");
        }
        let events: Vec<String> =
            [start(), tool(), input(0, "{\"a\": [1,")].into_iter().chain(end("tool_use")).collect();
        let problem = assembled(&events, None).expect_err("broken");
        assert!(problem.contains("\"add\""), "{problem}");
        let before: Vec<String> = [start(), tool(), input(0, "{"), begin(1, json!({"type": "text", "text": ""}))]
            .into_iter()
            .chain(end("max_tokens"))
            .collect();
        assembled(&before, None).expect_err("only the last block can have been cut");
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let text = || begin(0, json!({"type": "text", "text": ""}));
        for (events, words) in [
            (vec![String::from("{broken")], "no JSON"),
            (vec![String::from("[]")], "no JSON"),
            (vec![text()], "message_start"),
            (vec![start(), delta(0, json!({"type": "text_delta", "text": "a"}))], "not begun"),
            (vec![start(), text(), text()], "twice"),
            (vec![start(), text(), delta(0, json!({"type": "text_delta"}))], "no `text`"),
            (vec![start(), text(), delta(0, json!(3))], "no object"),
            (vec![start(), json!({"type": "content_block_start", "content_block": {}}).to_string()], "no `index`"),
            (end("end_turn").to_vec(), "message_start"),
        ] {
            let problem = assembled(&events, None).expect_err(words);
            assert!(problem.contains(words), "{words}: {problem}");
        }
        let failed = json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}).to_string();
        assert_eq!(assembled(&[start(), failed], None), Err(String::from("failed")));
        assert_eq!(assembled(&[start(), text()], None), Err(String::from("unfinished")));
    }
}
