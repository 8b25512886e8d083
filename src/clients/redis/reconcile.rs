//! All node states of a graph as they are stored, a few at a time, and terminal events sent once more.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::Duration;

use redis::Value;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::script::Script;
use crate::clients::redis::state::StateError;
use crate::clients::redis::{layout, lease, reply};
use crate::domain::event::EventType;
use crate::domain::ids::GraphId;

static REPUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/republish.lua")));

/// Node states of one look into a hash.
const PAGE: usize = 16;

/// Reads what a graph has come to and tells it again.
#[derive(Debug, Clone)]
pub struct Reconciler {
    link: Link,
    keys: Keys,
    ttl: Duration,
}

/// The node states of one graph.
#[derive(Debug)]
pub struct NodeStates {
    link: Link,
    key: String,
    rest: Rest,
}

#[derive(Debug)]
enum Rest {
    /// The fields of a hash that were not read yet.
    Fields(VecDeque<String>),
    /// What a document had.
    States(VecDeque<(String, String)>),
}

impl Reconciler {
    /// For graphs whose counts of events live for `ttl`, as states do.
    pub fn new(link: Link, keys: Keys, ttl: Duration) -> Self {
        Self { link, keys, ttl }
    }

    /// The node states of a graph, in either layout.
    pub async fn nodes(&self, graph: &GraphId) -> Result<NodeStates, StateError> {
        let key = self.keys.state(graph);
        let mut kind = redis::cmd("TYPE");
        kind.arg(&key);
        let kind = reply::text(self.link.query(&kind).await?);
        let rest = match kind.as_deref() {
            Some("hash") => {
                let mut names = redis::cmd("HKEYS");
                names.arg(&key);
                let names = reply::list(self.link.query(&names).await?, "the fields of a state")?;
                let names = names.into_iter().filter_map(reply::text);
                Rest::Fields(names.filter(|name| name.starts_with(layout::NODE)).collect())
            }
            Some("string") => {
                let mut document = redis::cmd("GET");
                document.arg(&key);
                let document = reply::bytes(self.link.query(&document).await?).unwrap_or_default();
                let states = layout::document_node_states(&document).map_err(|corrupt| StateError::Corrupt {
                    key: key.clone(),
                    field: corrupt.field,
                    reason: corrupt.reason,
                })?;
                Rest::States(states.into())
            }
            Some("none") => return Err(StateError::Missing { key }),
            _ => return Err(StateError::WrongType { key }),
        };
        Ok(NodeStates { link: self.link.clone(), key, rest })
    }

    /// Sends a terminal event once more. Gives its count among the graph's terminal events.
    pub async fn publish(&self, graph: &GraphId, event: EventType, json: &str) -> Result<u64, RedisError> {
        let what = "sending an event again";
        let mut call = REPUBLISH.call(2, json.len() + 256);
        call.arg(self.keys.done(graph)).arg(self.keys.events(event)).arg(json).arg(lease::millis(self.ttl));
        let [word, rest] = reply::tuple::<2>(self.link.eval(&REPUBLISH, &call).await?, what)?;
        match reply::as_bytes(&word) {
            Some(b"ok") => reply::number(&rest).ok_or(RedisError::Unexpected { what }),
            Some(b"wrongtype") => Err(RedisError::WrongType { key: reply::text(rest) }),
            _ => Err(RedisError::Unexpected { what }),
        }
    }
}

impl NodeStates {
    /// Further node ids with their states, JSON; none after the last.
    pub async fn next(&mut self) -> Result<Vec<(String, String)>, StateError> {
        let fields = match &mut self.rest {
            Rest::States(states) => return Ok(states.drain(..states.len().min(PAGE)).collect()),
            Rest::Fields(fields) => fields,
        };
        // A look whose fields are all gone meanwhile is not the end.
        while !fields.is_empty() {
            let page: Vec<String> = fields.drain(..fields.len().min(PAGE)).collect();
            let mut command = redis::cmd("HMGET");
            command.arg(&self.key).arg(&page);
            let Value::Array(values) = self.link.query(&command).await? else {
                return Err(RedisError::Unexpected { what: "node states" }.into());
            };
            let id = |field: String| String::from(&field[layout::NODE.len()..]);
            let states = page.into_iter().zip(values);
            let states: Vec<_> = states.filter_map(|(field, state)| Some((id(field), reply::text(state)?))).collect();
            if !states.is_empty() {
                return Ok(states);
            }
        }
        Ok(Vec::new())
    }
}
