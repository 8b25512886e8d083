//! A conversation that outlives its node: it stands in the graph's state under a name, and a later node that gives the
//! same name goes on with it. Where it is stored is the Redis client's.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::domain::ids::{NodeId, RunId};
use crate::domain::message::{Conversation, Turn};
use crate::domain::outcome::Failure;

/// The version of the format that is written.
const VERSION: u32 = 1;
/// Characters of a name at the most.
const LONGEST_NAME: usize = 128;

/// A conversation as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub name: String,
    /// The conversation, JSON.
    pub json: String,
}

#[derive(Serialize)]
struct Written<'a> {
    v: u32,
    node_id: &'a NodeId,
    run_id: &'a RunId,
    turns: Vec<&'a Turn>,
}

#[derive(Deserialize)]
struct Read {
    v: u32,
    turns: Vec<Turn>,
}

impl Session {
    /// A conversation as this run of a node leaves it.
    pub fn new(name: &str, node_id: &NodeId, run_id: &RunId, turns: &Conversation) -> Self {
        let json = Box::<str>::from(Self::write(node_id, run_id, turns)).into_string();
        Self { name: name.to_owned(), json }
    }

    /// What is kept of a conversation as this run of a node leaves it, under whatever name.
    pub fn write(node_id: &NodeId, run_id: &RunId, turns: &Conversation) -> Box<RawValue> {
        let turns = turns.iter().map(AsRef::as_ref).collect();
        let written = Written { v: VERSION, node_id, run_id, turns };
        to_raw_value(&written).expect("turns have string keys and finite numbers")
    }

    /// The turns of a session that was kept.
    pub fn turns(name: &str, kept: &RawValue) -> Result<Conversation, Failure> {
        let unreadable = |why: String| {
            let words =
                format!("session `{name}` of the graph cannot be gone on with: {why}; remove it, or give another name");
            Failure::validation("session_unreadable", words)
        };
        let read: Read = serde_json::from_str(kept.get()).map_err(|error| {
            unreadable(format!("it has an unexpected shape at line {} column {}", error.line(), error.column()))
        })?;
        if read.v != VERSION {
            return Err(unreadable(format!("its version is {}, and this worker reads {VERSION}", read.v)));
        }
        Ok(read.turns.into_iter().map(Arc::new).collect())
    }

    /// Whether a name can be one.
    pub fn check_name(name: &str) -> Result<(), Failure> {
        let wrong = |why: &str| Err(Failure::configuration("invalid_config", format!("`session` {why}")));
        match name {
            "" => wrong("is empty; give the conversation a name, or leave it out"),
            name if name.chars().count() > LONGEST_NAME => {
                wrong(&format!("has more than {LONGEST_NAME} characters; choose a shorter name"))
            }
            name if name.chars().any(char::is_control) => wrong("has control characters; choose another name"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::message::AssistantTurn;

    #[test]
    fn what_a_model_wrote_comes_back_byte_for_byte() {
        let raw: Box<RawValue> = serde_json::from_str(r#"[ {"type":"text",  "sig":1.0e2} ]"#).expect("JSON");
        let said = AssistantTurn { raw, text: String::from("hé"), tool_uses: Vec::new(), author: None };
        let turns = vec![Arc::new(Turn::User(String::from("p"))), Arc::new(Turn::Assistant(said))];
        let (node, run) = (NodeId::new("n").expect("an id"), RunId::new("r").expect("an id"));
        let session = Session::new("chat", &node, &run, &turns);
        let kept: Box<RawValue> = serde_json::from_str(&session.json).expect("JSON");
        let read = Session::turns("chat", &kept).expect("readable");
        let Turn::Assistant(said) = &*read[1] else { panic!("a turn of the model: {read:?}") };
        assert_eq!((said.raw.get(), read.len()), (r#"[ {"type":"text",  "sig":1.0e2} ]"#, 2));
    }

    #[test]
    fn a_session_that_cannot_be_read_is_told_without_its_content() {
        for (kept, words) in [
            (r#"{"v":2,"turns":[]}"#, "version is 2"),
            (r#"{"v":1,"turns":[{"secret":1}]}"#, "unexpected shape"),
            (r#""secret""#, "unexpected shape"),
        ] {
            let kept: Box<RawValue> = serde_json::from_str(kept).expect("JSON");
            let failure = Session::turns("chat", &kept).expect_err(words);
            assert_eq!(failure.code, "session_unreadable");
            assert!(failure.message.contains(words) && !failure.message.contains("secret"), "{}", failure.message);
        }
        assert!(to_raw_value(&1).is_ok_and(|kept| Session::turns("chat", &kept).is_err()));
    }

    #[test]
    fn a_name_is_short_and_printable() {
        assert!(Session::check_name("support chat 7").is_ok());
        for wrong in ["", "a\nb", &"x".repeat(129)] {
            assert!(Session::check_name(wrong).is_err_and(|failure| failure.message.contains("`session`")), "{wrong}");
        }
    }
}
