//! The graph's state as a node opens it: the run is given to the entry by a script, and what the node's templates
//! name is read in the same round trip. Writing node states is settling, see [`super::settle`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use redis::{Cmd, Pipeline, Value};

use crate::clients::redis::creation::Creation;
use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::layout::{self, Corrupt, Found};
use crate::clients::redis::link::Link;
use crate::clients::redis::reply::{self, Word};
use crate::clients::redis::resumption::Resumption;
use crate::clients::redis::script::Script;
use crate::clients::redis::{cancel, lease, record};
use crate::config::{Layout, StateConfig};
use crate::domain::cancel::CancelOrder;
use crate::domain::ids::GraphId;
use crate::domain::outcome::Failure;
use crate::domain::state::Snapshot;
use crate::domain::work::Delivery;
use crate::ports::{Opened, Wanted};
use crate::retry::Retry;

static OPEN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("scripts/owned.lua"),
        include_str!("scripts/run.lua"),
        include_str!("scripts/open.lua")
    ))
});

/// How a state is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateForm {
    /// One hash, a field a node.
    Hash,
    /// One JSON document.
    String,
}

/// Why a state cannot be opened or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// Redis did not do it.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// There is no state, and the item does not carry enough to create one.
    #[error("there is no state `{key}`; submit the graph before its nodes, or send `config` and `inputs` in the item")]
    Missing {
        /// The state's key.
        key: String,
    },
    /// A key is of another type than ours.
    #[error("key `{key}` has a type that does not belong there; delete or rename it")]
    WrongType {
        /// The key.
        key: String,
    },
    /// The key of the run's journal holds something else.
    #[error("key `{key}` has a type that does not belong there; delete or rename it")]
    NoJournal {
        /// The key.
        key: String,
    },
    /// The state cannot be read.
    #[error("`{field}` of state `{key}` {reason}")]
    Corrupt {
        /// The state's key.
        key: String,
        /// The field of the hash, or the member of the document.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl StateError {
    /// Whether trying the same again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Redis(error) => error.retry(),
            Self::Missing { .. } | Self::WrongType { .. } | Self::NoJournal { .. } | Self::Corrupt { .. } => {
                Retry::Never
            }
        }
    }

    fn corrupt(key: &str, corrupt: Corrupt) -> Self {
        Self::Corrupt { key: String::from(key), field: corrupt.field, reason: corrupt.reason }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let message = error.to_string();
        match error {
            StateError::Redis(error) => error.into(),
            StateError::Missing { .. } => Self::validation("state_missing", message),
            StateError::WrongType { .. } => Self::validation("state_wrong_type", message),
            StateError::NoJournal { .. } => Self::validation("journal_wrong_type", message),
            StateError::Corrupt { .. } => Self::validation("state_corrupt", message),
        }
    }
}

/// What the script said, what was read, and the answer about an order to stop.
type OpenedOnce = (Said, Fields, Result<Value, RedisError>, Result<Value, RedisError>);

/// The states of all graphs.
#[derive(Debug, Clone)]
pub struct StateStore {
    link: Link,
    keys: Keys,
    ttl_ms: u64,
    layout: Layout,
    streams: Arc<[Arc<str>]>,
    group: Arc<str>,
    /// The layout that was met last is read in the same round trip as the script; a wrong guess costs a second one.
    documents: Arc<AtomicBool>,
}

impl StateStore {
    /// States under `keys`, opened for entries of `streams` in `group`.
    pub fn new(
        link: Link,
        keys: Keys,
        state: &StateConfig,
        streams: impl IntoIterator<Item = Arc<str>>,
        group: &str,
    ) -> Self {
        Self {
            link,
            keys,
            ttl_ms: lease::millis(state.ttl),
            layout: state.layout,
            streams: streams.into_iter().collect(),
            group: Arc::from(group),
            documents: Arc::new(AtomicBool::new(state.layout == Layout::String)),
        }
    }

    /// Gives the run to this entry and reads what is wanted, and the journal if the run was opened before. The form is `None` where no state was looked at.
    ///
    /// A duplicate is acknowledged and deleted by the time this answers. A state that is missing is created if the
    /// item carries both `config` and `inputs`.
    pub async fn open(&self, delivery: &Delivery, wanted: &Wanted) -> Result<(Opened, Option<StateForm>), StateError> {
        let item = &delivery.item;
        let key = self.keys.state(&item.graph_id);
        let journal_key = self.keys.journal(&item.graph_id, &item.node_id, &item.run_id);
        let guess = self.guess();
        let mut call = self.open_call(delivery, &key, &journal_key);
        let resumption = Resumption::of(delivery);
        match &resumption {
            Some(resumption) => resumption.write(&mut call),
            None => drop(call.arg("")),
        }
        let (mut word, mut journal, mut read, mut order) = self.open_once(call, delivery, guess, wanted).await?;
        if let (Word::Missing, Some(creation)) = (word.0, Creation::of(delivery)) {
            let call = self.create_call(delivery, &key, &journal_key, creation);
            (word, journal, read, order) = self.open_once(call, delivery, guess, wanted).await?;
        }
        let form = match word {
            (Word::Hash, _) => StateForm::Hash,
            (Word::Text, _) => StateForm::String,
            (Word::Duplicate, _) => return Ok((Opened::Duplicate, None)),
            (Word::Lost, _) => return Ok((Opened::Lost, None)),
            (Word::Missing, _) => match self.order(delivery, order)? {
                Some(order) => return Ok((Opened::Cancelled { order, journal }, None)),
                None => return Err(StateError::Missing { key }),
            },
            (Word::WrongType, rest) => {
                let wrong = reply::key(rest);
                return Err(match wrong == journal_key {
                    true => StateError::NoJournal { key: wrong },
                    false => StateError::WrongType { key: wrong },
                });
            }
            (Word::Ok | Word::Gone | Word::Again | Word::Conflict | Word::Unstaged, _) => {
                return Err(RedisError::Unexpected { what: "opening a run" }.into());
            }
        };
        if let Some(order) = self.order(delivery, order)? {
            return Ok((Opened::Cancelled { order, journal }, Some(form)));
        }
        let value = if form == guess { read? } else { self.link.query(&read_command(&key, form, wanted)).await? };
        self.documents.store(form == StateForm::String, Ordering::Relaxed);
        if let (StateForm::String, Some(resumption), Some(document)) = (form, resumption, reply::as_bytes(&value)) {
            // On the heap: few nodes need room for it.
            Box::pin(resumption.into_document(&self.link, &self.group, &key, document)).await?;
        }
        let found = parse(value, form, wanted, delivery.item.node_id.as_str())
            .map_err(|corrupt| StateError::corrupt(&key, corrupt))?;
        let Found { snapshot, config, status } = found;
        let opened = Opened::Ready { snapshot, config, status, journal };
        Ok((opened, Some(form)))
    }

    /// Reads more of a state. One that is gone reads as empty.
    pub async fn read(&self, graph_id: &GraphId, wanted: &Wanted) -> Result<Snapshot, StateError> {
        let key = self.keys.state(graph_id);
        let wanted = Wanted { config: false, ..wanted.clone() };
        let (value, form) = self.query(&key, |form| read_command(&key, form, &wanted)).await?;
        let found = parse(value, form, &wanted, "").map_err(|corrupt| StateError::corrupt(&key, corrupt))?;
        Ok(found.snapshot)
    }

    /// The ids of all nodes that the state or its graph knows.
    pub async fn node_ids(&self, graph_id: &GraphId) -> Result<Vec<String>, StateError> {
        let key = self.keys.state(graph_id);
        let command = |form| match form {
            StateForm::Hash => {
                let mut command = redis::cmd("HKEYS");
                command.arg(&key);
                command
            }
            StateForm::String => read_command(&key, form, &Wanted::default()),
        };
        let corrupt = |corrupt| StateError::corrupt(&key, corrupt);
        let mut ids = match self.query(&key, command).await? {
            (value, StateForm::Hash) => {
                let names = reply::list(value, "the fields of a state")?.into_iter().filter_map(reply::text);
                let mut ids: Vec<_> =
                    names.filter_map(|name| name.strip_prefix(layout::NODE).map(String::from)).collect();
                let mut graph = redis::cmd("HGET");
                graph.arg(&key).arg("graph");
                if let Some(graph) = reply::text(self.link.query(&graph).await?) {
                    ids.extend(layout::graph_node_ids(&graph, "graph").map_err(corrupt)?);
                }
                ids
            }
            (value, StateForm::String) => match reply::bytes(value) {
                Some(document) => layout::document_node_ids(&document).map_err(corrupt)?,
                None => Vec::new(),
            },
        };
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    fn guess(&self) -> StateForm {
        if self.documents.load(Ordering::Relaxed) { StateForm::String } else { StateForm::Hash }
    }

    /// One read whose command depends on the layout: the layout met last first, then the other one.
    async fn query(&self, key: &str, command: impl Fn(StateForm) -> Cmd) -> Result<(Value, StateForm), StateError> {
        let guess = self.guess();
        let other = if guess == StateForm::Hash { StateForm::String } else { StateForm::Hash };
        for form in [guess, other] {
            match self.link.query(&command(form)).await {
                Ok(value) => return Ok((value, form)),
                Err(RedisError::WrongType { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StateError::WrongType { key: String::from(key) })
    }

    /// The order to stop, if the answer of an opening has one.
    fn order(&self, delivery: &Delivery, answer: Result<Value, RedisError>) -> Result<Option<CancelOrder>, StateError> {
        match answer {
            Ok(value) => Ok(cancel::answer(value, 1).pop().flatten()),
            Err(RedisError::WrongType { .. }) => {
                Err(StateError::WrongType { key: self.keys.cancel(&delivery.item.graph_id) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The script, the read and the question for an order to stop in one round trip, again if the server did not
    /// know the script.
    async fn open_once(
        &self,
        call: Cmd,
        delivery: &Delivery,
        form: StateForm,
        wanted: &Wanted,
    ) -> Result<OpenedOnce, StateError> {
        let (graph, node) = (&delivery.item.graph_id, &delivery.item.node_id);
        let mut pipeline = Pipeline::with_capacity(3);
        pipeline.add_command(call).add_command(read_command(&self.keys.state(graph), form, wanted));
        pipeline.add_command(cancel::ask(&self.keys, graph, [node]));
        let mut loaded = false;
        loop {
            let answers: Result<[_; 3], _> = self.link.pipeline(&pipeline).await?.try_into();
            let [opened, read, order] = answers.map_err(|_| RedisError::Unexpected { what: "opening a run" })?;
            match opened {
                Err(RedisError::NoScript) if !loaded => {
                    self.link.query(&OPEN.load()).await?;
                    loaded = true;
                }
                opened => {
                    let (said, journal) = said(opened?)?;
                    return Ok((said, journal, read, order));
                }
            }
        }
    }

    fn open_call(&self, delivery: &Delivery, state: &str, journal: &str) -> Cmd {
        let item = &delivery.item;
        let others = || self.streams.iter().filter(|stream| **stream != delivery.stream);
        let mut call = OPEN.call(5 + others().count(), 512);
        call.arg(&*delivery.stream).arg(state).arg(self.keys.done(&item.graph_id));
        call.arg(self.keys.crashes(&delivery.stream)).arg(journal);
        for stream in others() {
            call.arg(&**stream);
        }
        call.arg(&*self.group)
            .arg(delivery.entry.as_str())
            .arg(&*delivery.token.consumer)
            .arg(delivery.token.deliveries)
            .arg(record::field(&item.node_id, &item.run_id))
            .arg(record::running(delivery))
            .arg(&*record::line(&delivery.work_id))
            .arg(self.ttl_ms);
        call
    }

    fn create_call(&self, delivery: &Delivery, state: &str, journal: &str, creation: Creation) -> Cmd {
        let mut call = self.open_call(delivery, state, journal);
        match self.layout {
            Layout::Hash => {
                call.arg("hash");
                for (field, value) in creation.hash(delivery) {
                    call.arg(field).arg(value);
                }
            }
            Layout::String => {
                call.arg("string").arg(creation.document(delivery));
            }
        }
        call
    }
}

/// A word of the script, and the key where it names one.
type Said = (Word, Option<Vec<u8>>);
/// Names and values of a hash.
type Fields = Vec<(String, Vec<u8>)>;

/// Takes the script's answer apart: a word, or a layout and the fields of a journal.
fn said(answer: Value) -> Result<(Said, Fields), RedisError> {
    let what = "opening a run";
    let (word, fields) = match answer {
        Value::Array(mut parts) if matches!(parts.get(1), Some(Value::Array(_))) => {
            let fields = reply::list(parts.swap_remove(1), what)?;
            (parts.swap_remove(0), fields)
        }
        word => (word, Vec::new()),
    };
    let mut journal = Vec::with_capacity(fields.len() / 2);
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let name = reply::text(name).ok_or(RedisError::Unexpected { what })?;
        journal.push((name, reply::bytes(value).ok_or(RedisError::Unexpected { what })?));
    }
    Ok((reply::word(word, what)?, journal))
}

fn read_command(key: &str, form: StateForm, wanted: &Wanted) -> Cmd {
    let fields = match form {
        StateForm::Hash => layout::hash_fields(wanted),
        StateForm::String => None,
    };
    let mut command = match (form, &fields) {
        (StateForm::Hash, Some(_)) => redis::cmd("HMGET"),
        (StateForm::Hash, None) => redis::cmd("HGETALL"),
        (StateForm::String, _) => redis::cmd("GET"),
    };
    command.arg(key).arg(fields.unwrap_or_default());
    command
}

fn parse(value: Value, form: StateForm, wanted: &Wanted, node: &str) -> Result<Found, Corrupt> {
    match form {
        StateForm::String => match value {
            Value::BulkString(document) => layout::read_document(&document, wanted, node),
            _ => Ok(Found::default()),
        },
        StateForm::Hash => {
            let Value::Array(values) = value else { return Ok(Found::default()) };
            let present = |value| reply::as_bytes(value);
            match layout::hash_fields(wanted) {
                Some(names) => {
                    let fields = names.iter().zip(&values);
                    let fields = fields.filter_map(|(name, value)| Some((name.as_str(), present(value)?)));
                    layout::read_hash(fields, wanted, node)
                }
                None => {
                    let fields = values
                        .chunks_exact(2)
                        .filter_map(|pair| Some((std::str::from_utf8(present(&pair[0])?).ok()?, present(&pair[1])?)));
                    layout::read_hash(fields, wanted, node)
                }
            }
        }
    }
}
