//! Tool calls as servers of OpenAI's protocols really send them: without ids or with the same one twice, with arguments
//! that are an object, a text, or no JSON at all. What goes back to the server is made valid where it was not.

use std::collections::HashSet;

use data_encoding::HEXLOWER;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::domain::message::{ToolUse, Turn};
use crate::ports::LlmRequest;

/// Ids of a conversation's tool calls: each once.
pub(super) struct Ids<'a> {
    used: HashSet<String>,
    /// The same in every attempt of this turn, and of no other turn.
    key: &'a str,
}

impl<'a> Ids<'a> {
    /// The ids that a conversation uses already.
    pub fn of(request: &'a LlmRequest) -> Self {
        let assistants = request.turns.iter().filter_map(|turn| match &**turn {
            Turn::Assistant(turn) => Some(turn),
            Turn::User(_) | Turn::Content(_) | Turn::ToolResults(_) => None,
        });
        let used = assistants.flat_map(|turn| turn.tool_uses.iter().map(|tool| tool.id.clone())).collect();
        Self { used, key: &request.context.idempotency_key }
    }

    /// The ids of a conversation that has none yet.
    #[cfg(fuzzing)]
    pub fn fresh() -> Self {
        Self { used: HashSet::new(), key: "" }
    }

    /// The id of the call at this place: the server's, unless it has none or has had it before.
    fn settle(&mut self, given: Option<&str>, index: usize) -> Settled<String> {
        let given = given.unwrap_or_default();
        if !given.is_empty() && self.used.insert(given.to_owned()) {
            return Settled::AsSent(given.to_owned());
        }
        let mut hash = Sha256::new();
        hash.update(self.key.as_bytes());
        hash.update(index.to_le_bytes());
        let own = format!("call_{}", HEXLOWER.encode(&hash.finalize()[..12]));
        self.used.insert(own.clone());
        Settled::Replaced(own)
    }
}

/// A value as it was sent, or what stands in its place.
enum Settled<T> {
    AsSent(T),
    Replaced(T),
}

impl<T> Settled<T> {
    fn into_parts(self) -> (T, bool) {
        match self {
            Self::AsSent(value) => (value, false),
            Self::Replaced(value) => (value, true),
        }
    }
}

/// One call that was read.
pub(super) struct Call {
    /// What the modes get to see.
    pub tool_use: ToolUse,
    /// The id to be written into the turn, where the server's is of no use.
    pub id: Option<String>,
    /// The arguments to be written into the turn, where the server's are no text of a JSON object.
    pub arguments: Option<String>,
}

/// Reads a call from its members.
pub(super) fn read(
    ids: &mut Ids<'_>,
    index: usize,
    id: Option<&str>,
    name: Option<String>,
    arguments: Option<&RawValue>,
) -> Result<Call, String> {
    let name = name.filter(|name| !name.is_empty()).ok_or("a tool call has no name")?;
    let (id, new_id) = ids.settle(id, index).into_parts();
    let Arguments { input, problem, instead } = Arguments::read(arguments);
    Ok(Call { id: new_id.then(|| id.clone()), arguments: instead, tool_use: ToolUse { id, name, input, problem } })
}

struct Arguments {
    input: Map<String, Value>,
    problem: Option<String>,
    instead: Option<String>,
}

impl Arguments {
    fn read(raw: Option<&RawValue>) -> Self {
        let sent = raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or(Value::Null);
        match sent {
            Value::String(text) => Self::of_text(&text),
            Value::Object(input) => {
                let instead = Some(Value::Object(input.clone()).to_string());
                Self { input, problem: None, instead }
            }
            Value::Null => Self { input: Map::new(), problem: None, instead: Some(String::from("{}")) },
            other => Self::unreadable(&other.to_string(), "they are no object"),
        }
    }

    fn of_text(text: &str) -> Self {
        if text.trim().is_empty() {
            return Self { input: Map::new(), problem: None, instead: Some(String::from("{}")) };
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(input)) => Self { input, problem: None, instead: None },
            // Some models write their arguments as a text inside of a text.
            Ok(Value::String(inner)) => match serde_json::from_str(&inner) {
                Ok(Value::Object(input)) => Self { input, problem: None, instead: Some(inner) },
                _ => Self::unreadable(text, "they are no object"),
            },
            Ok(Value::Null) => Self { input: Map::new(), problem: None, instead: Some(String::from("{}")) },
            Ok(_) => Self::unreadable(text, "they are no object"),
            Err(error) => Self::unreadable(text, &error.to_string()),
        }
    }

    /// Servers refuse a history whose arguments are no JSON, so what the model wrote stands there as a text.
    fn unreadable(text: &str, why: &str) -> Self {
        let input = json!({ "invalid_json": text });
        let instead = Some(input.to_string());
        let Value::Object(input) = input else { unreachable!("an object was written") };
        Self { input, problem: Some(format!("the arguments are not a JSON object: {why}")), instead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::llm::fixture::request;

    fn arguments(json: &str) -> (Value, Option<String>, Option<String>) {
        let raw: Box<RawValue> = serde_json::from_str(json).expect("JSON");
        let Arguments { input, problem, instead } = Arguments::read(Some(&raw));
        (Value::Object(input), problem, instead)
    }

    #[test]
    fn arguments_are_read_whatever_they_are_wrapped_in() {
        for (sent, read, back) in [
            (r#""{\"x\": 1}""#, json!({"x": 1}), None),
            (r#"{"x": 1}"#, json!({"x": 1}), Some(r#"{"x":1}"#)),
            (r#""""#, json!({}), Some("{}")),
            ("null", json!({}), Some("{}")),
            (r#""null""#, json!({}), Some("{}")),
            (r#""\"{\\\"x\\\":1}\"""#, json!({"x": 1}), Some(r#"{"x":1}"#)),
        ] {
            let (input, problem, instead) = arguments(sent);
            assert_eq!((input, problem, instead.as_deref()), (read, None, back), "{sent}");
        }
        let none = Arguments::read(None);
        assert_eq!((none.input.len(), none.problem, none.instead.as_deref()), (0, None, Some("{}")));
    }

    #[test]
    fn arguments_that_are_no_object_are_kept_as_a_text_with_the_reason() {
        for sent in [r#""{\"x\": ""#, "3", r#""[1]""#, r#""\"words\"""#] {
            let (input, problem, instead) = arguments(sent);
            assert!(problem.is_some_and(|why| why.contains("not a JSON object")), "{sent}");
            assert!(input["invalid_json"].is_string());
            assert_eq!(instead, Some(input.to_string()));
        }
    }

    #[test]
    fn every_call_of_a_conversation_has_an_id_of_its_own_and_attempts_agree_on_it() {
        let call = request("x");
        let settle = |given: &[Option<&str>]| -> Vec<String> {
            let mut ids = Ids::of(&call);
            given.iter().enumerate().map(|(index, id)| ids.settle(*id, index).into_parts().0).collect()
        };
        let ids = settle(&[Some("a"), Some("a"), None, Some(""), Some("b")]);
        assert_eq!((ids[0].as_str(), ids[4].as_str()), ("a", "b"));
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 5, "{ids:?}");
        assert_eq!(ids, settle(&[Some("a"), Some("a"), None, Some(""), Some("b")]));
    }
}
