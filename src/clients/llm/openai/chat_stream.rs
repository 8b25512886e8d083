//! A chat completion that comes in pieces, put together to what it would have been as a whole.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::error::{self, Told};

/// What a stream ends with.
const DONE: &str = "[DONE]";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Chunk {
    model: Option<String>,
    choices: Option<Vec<Choice>>,
    usage: Option<Box<RawValue>>,
    error: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Choice {
    index: u64,
    delta: Option<Map<String, Value>>,
    finish_reason: Option<String>,
    stop_reason: Option<Value>,
    error: Option<Value>,
}

/// What a piece brought.
#[derive(Debug)]
pub(super) enum Step {
    /// More of the answer, and what people who watch want to see of it.
    More(Vec<More>),
    /// The end.
    Done,
    /// An error in the place of the rest.
    Error(Told),
}

/// What of a piece people want to see.
#[derive(Debug, PartialEq)]
pub(super) enum More {
    /// Text of the answer.
    Text(String),
    /// What the model thinks.
    Thinking(String),
    /// The model begins to ask for a tool.
    Tool {
        /// The server's id of the call.
        id: String,
        /// The tool.
        name: String,
    },
}

/// Members of a piece in which servers show what the model thinks.
const THINKING: &[&str] = &["reasoning_content", "reasoning"];

/// A completion that is being put together.
#[derive(Default)]
pub(super) struct Assembly {
    model: Option<String>,
    message: Map<String, Value>,
    calls: Vec<Map<String, Value>>,
    /// The index by which the server knows each of `calls`.
    indices: Vec<u64>,
    finish_reason: Option<String>,
    stop_reason: Option<Value>,
    usage: Option<Box<RawValue>>,
}

impl Assembly {
    /// Takes the data of one event.
    pub fn take(&mut self, data: &str) -> Result<Step, String> {
        if data.trim() == DONE {
            return Ok(Step::Done);
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| format!("an event is no chunk: {error}"))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Ok(Step::Error(error::of_error(&error)));
        }
        self.model = chunk.model.filter(|model| !model.is_empty()).or(self.model.take());
        self.usage = chunk.usage.filter(|usage| usage.get() != "null").or(self.usage.take());
        let mut more = Vec::new();
        // More than one answer was not asked for.
        for choice in chunk.choices.into_iter().flatten().filter(|choice| choice.index == 0) {
            if let Some(error) = choice.error.filter(|error| !error.is_null()) {
                return Ok(Step::Error(error::of_error(&error)));
            }
            if let Some(delta) = choice.delta {
                let text = |name: &str| {
                    delta.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
                };
                more.extend(THINKING.iter().find_map(|name| text(name)).map(More::Thinking));
                more.extend(text("content").map(More::Text));
                let known = self.calls.len();
                self.add(delta);
                more.extend(self.calls[known..].iter().map(|call| More::Tool {
                    id: call.get("id").and_then(Value::as_str).unwrap_or_default().to_owned(),
                    name: call.get("function").and_then(|f| f["name"].as_str()).unwrap_or_default().to_owned(),
                }));
            }
            self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
            self.stop_reason = choice.stop_reason.or(self.stop_reason.take());
        }
        Ok(Step::More(more))
    }

    /// The body that the server would have sent as a whole; nothing if the answer did not come to its end.
    pub fn whole(self) -> Option<Vec<u8>> {
        let reason = self.finish_reason?;
        let mut message = self.message;
        if !self.calls.is_empty() {
            message.insert(String::from("tool_calls"), json!(self.calls));
        }
        let choice = json!({"message": message, "finish_reason": reason, "stop_reason": self.stop_reason});
        let mut body = json!({"model": self.model, "choices": [choice]});
        if let Some(usage) = self.usage {
            body["usage"] = serde_json::from_str(usage.get()).unwrap_or_default();
        }
        Some(body.to_string().into_bytes())
    }

    fn add(&mut self, delta: Map<String, Value>) {
        for (name, value) in delta {
            match (name.as_str(), value) {
                (_, Value::Null) => {}
                ("role", _) => {}
                ("tool_calls", Value::Array(calls)) => calls.into_iter().for_each(|call| self.add_call(call)),
                (_, value) => match self.message.get_mut(&name) {
                    Some(known) => merge(known, value),
                    None => {
                        self.message.insert(name, value);
                    }
                },
            }
        }
    }

    /// Adds a piece of a call. Some servers give every call the same index: an id of its own begins a new one.
    fn add_call(&mut self, piece: Value) {
        let Value::Object(mut piece) = piece else { return };
        let index = piece.shift_remove("index").and_then(|index| index.as_u64());
        let id = piece.get("id").and_then(Value::as_str).unwrap_or_default();
        let known = match index {
            Some(index) => self.indices.iter().rposition(|known| *known == index),
            None if id.is_empty() => self.calls.len().checked_sub(1),
            None => None,
        };
        let known = known.filter(|at| {
            let of_known = self.calls[*at].get("id").and_then(Value::as_str).unwrap_or_default();
            id.is_empty() || of_known.is_empty() || of_known == id
        });
        let Some(at) = known else {
            self.indices.push(index.unwrap_or(u64::MAX));
            piece.retain(|_, value| !value.is_null());
            self.calls.push(piece);
            return;
        };
        let call = &mut self.calls[at];
        for (name, value) in piece {
            match (name.as_str(), value, call.get_mut(&name)) {
                (_, Value::Null, _) => {}
                ("function", Value::Object(more), Some(Value::Object(function))) => add_function(function, more),
                ("id" | "type", Value::String(text), Some(_)) if text.is_empty() => {}
                (_, value, _) => {
                    call.insert(name, value);
                }
            }
        }
    }
}

/// Adds a piece of a function: its arguments grow, while its name may be said again with every piece.
fn add_function(function: &mut Map<String, Value>, more: Map<String, Value>) {
    for (name, value) in more {
        match (name.as_str(), value, function.get_mut(&name)) {
            (_, Value::Null, _) => {}
            ("arguments", Value::String(piece), Some(Value::String(known))) => known.push_str(&piece),
            ("name", Value::String(piece), Some(Value::String(known))) => {
                if known.is_empty() {
                    *known = piece;
                }
            }
            (_, value, _) => {
                function.insert(name, value);
            }
        }
    }
}

/// Adds a piece to a member that nobody knows: texts and lists grow, members of an object likewise.
fn merge(known: &mut Value, piece: Value) {
    match (known, piece) {
        (Value::String(known), Value::String(piece)) => known.push_str(&piece),
        (Value::Array(known), Value::Array(pieces)) => pieces.into_iter().for_each(|piece| merge_item(known, piece)),
        (Value::Object(known), Value::Object(pieces)) => {
            for (name, piece) in pieces {
                match known.get_mut(&name) {
                    // These name the thing and do not grow.
                    Some(_) if ["id", "type", "index", "format"].contains(&name.as_str()) => {}
                    Some(known) => merge(known, piece),
                    None => {
                        known.insert(name, piece);
                    }
                }
            }
        }
        (_, Value::Null) => {}
        (known, piece) => *known = piece,
    }
}

/// An item of a list belongs to the last one of the same index and type, if it has an index.
fn merge_item(known: &mut Vec<Value>, piece: Value) {
    let same =
        |item: &Value| piece["index"].is_u64() && item["index"] == piece["index"] && item["type"] == piece["type"];
    match known.iter().rposition(same) {
        Some(at) => merge(&mut known[at], piece),
        None => known.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(chunks: &[Value]) -> (Vec<More>, Option<Value>) {
        let mut assembly = Assembly::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            match assembly.take(&chunk.to_string()).expect("a chunk") {
                Step::More(more) => seen.extend(more),
                other => panic!("no {other:?} was sent"),
            }
        }
        (seen, assembly.whole().map(|body| serde_json::from_slice(&body).expect("JSON")))
    }

    fn delta(delta: Value) -> Value {
        json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
    }

    fn end(reason: &str) -> Value {
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    }

    #[test]
    fn pieces_become_the_message_that_they_were_cut_from() {
        let (seen, body) = whole(&[
            json!({"model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": null}),
            delta(json!({"reasoning_content": "I "})),
            delta(json!({"reasoning_content": "think", "content": null})),
            delta(json!({"content": "Let me "})),
            delta(json!({"content": "see."})),
            delta(
                json!({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}]}),
            ),
            delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\":"}}]})),
            delta(
                json!({"tool_calls": [{"index": 1, "id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}}]}),
            ),
            delta(json!({"tool_calls": [{"index": 0, "id": "", "function": {"name": null, "arguments": "1}"}}]})),
            end("tool_calls"),
            json!({"model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
        ]);
        let tool = |id: &str, name: &str| More::Tool { id: id.to_owned(), name: name.to_owned() };
        let expected = [
            More::Thinking(String::from("I ")),
            More::Thinking(String::from("think")),
            More::Text(String::from("Let me ")),
            More::Text(String::from("see.")),
            tool("c1", "add"),
            tool("c2", "sub"),
        ];
        assert_eq!(seen, expected);
        assert_eq!(
            body.expect("a whole body"),
            json!({"model": "m", "choices": [{"message": {
                "content": "Let me see.",
                "reasoning_content": "I think",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{\"x\":1}"}},
                    {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
                ],
            }, "finish_reason": "tool_calls", "stop_reason": null}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
        );
    }

    #[test]
    fn calls_are_told_apart_by_their_ids_where_their_indices_are_of_no_use() {
        let call = |index: Value, id: &str| {
            let mut call = json!({"id": id, "type": "function", "function": {"name": "add", "arguments": "{}"}});
            if !index.is_null() {
                call["index"] = index;
            }
            delta(json!({"tool_calls": [call]}))
        };
        for chunks in [[call(json!(0), "a"), call(json!(0), "b")], [call(Value::Null, "a"), call(Value::Null, "b")]] {
            let (_, body) = whole(&[chunks[0].clone(), chunks[1].clone(), end("stop")]);
            let calls = &body.expect("a whole body")["choices"][0]["message"]["tool_calls"];
            assert_eq!((&calls[0]["id"], &calls[1]["id"]), (&json!("a"), &json!("b")));
        }
        let (_, body) = whole(&[call(json!(0), "a"), call(json!(0), "a"), end("stop")]);
        let calls = &body.expect("a whole body")["choices"][0]["message"]["tool_calls"];
        assert_eq!(calls[0]["function"], json!({"name": "add", "arguments": "{}{}"}), "a name that is repeated is one");
    }

    #[test]
    fn lists_of_details_are_put_together_by_their_index() {
        let (_, body) = whole(&[
            delta(json!({"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "a", "format": "f"}]})),
            delta(json!({"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "b", "format": "f"}]})),
            delta(json!({"reasoning_details": [{"type": "reasoning.encrypted", "index": 1, "data": "x"}]})),
            end("stop"),
        ]);
        assert_eq!(
            body.expect("a whole body")["choices"][0]["message"]["reasoning_details"],
            json!([
                {"type": "reasoning.text", "index": 0, "text": "ab", "format": "f"},
                {"type": "reasoning.encrypted", "index": 1, "data": "x"},
            ])
        );
    }

    #[test]
    fn an_answer_without_its_end_is_no_answer() {
        assert_eq!(whole(&[delta(json!({"content": "half"}))]).1, None);
        assert_eq!(whole(&[]).1, None);
    }

    #[test]
    fn errors_and_the_end_are_told_from_pieces() {
        let mut assembly = Assembly::default();
        assert!(matches!(assembly.take("[DONE]"), Ok(Step::Done)));
        for chunk in [
            r#"{"error":{"code":502,"message":"away"},"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"error":{"code":502,"message":"away"}}]}"#,
            r#"{"error":{"code":502,"message":"away"},"choices":null}"#,
        ] {
            let Ok(Step::Error(told)) = assembly.take(chunk) else { panic!("an error: {chunk}") };
            assert_eq!((told.status, told.text.message.as_deref()), (Some(502), Some("away")));
        }
        assert!(assembly.take("{").is_err());
    }
}
