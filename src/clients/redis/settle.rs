//! Ending a run: one script acknowledges the entry, writes the node state and the record, and tells the terminal
//! event, or does nothing of it. Also the way of entries that cannot be understood to the dead letters.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Cmd;
use tokio::sync::Mutex;

use crate::clients::redis::blob::{Blobs, LargeOutput};
use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::letter::Letter;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply::{self, Word};
use crate::clients::redis::script::Script;
use crate::clients::redis::stream::RawEntry;
use crate::clients::redis::{layout, lease, record};
use crate::config::StateConfig;
use crate::domain::event::EventType;
use crate::domain::ids::GraphId;
use crate::domain::session::Session;
use crate::domain::work::{Delivery, WorkItem};
use crate::retry::backoff;

static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("scripts/owned.lua"),
        include_str!("scripts/run.lua"),
        include_str!("scripts/settle.lua")
    ))
});
static SETTLE_UNCLAIMED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("scripts/owned.lua"),
        include_str!("scripts/unclaimed.lua"),
        include_str!("scripts/run.lua"),
        include_str!("scripts/settle.lua")
    ))
});
static DEAD_LETTER: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("scripts/owned.lua"), include_str!("scripts/dead_letter.lua"))));

/// Compares with a document before the caller is asked to judge whether it goes on.
const COMPARES: u32 = 16;
/// Upper bounds of the waits between two compares.
const FIRST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// Nodes of one graph in one process write its document in turn; graphs share this many turns.
const TURNS: usize = 64;

/// Everything that the end of a run writes.
#[derive(Debug)]
pub struct Settlement {
    /// Whose end it is.
    pub delivery: Arc<Delivery>,
    /// The terminal event's type.
    pub event: EventType,
    /// The terminal event's id.
    pub event_id: String,
    /// The terminal event.
    pub event_json: String,
    /// The node state.
    pub node_state_json: String,
    /// Whether the state is written where it exists.
    pub write_state: bool,
    /// A dead letter that goes with it.
    pub letter: Option<Letter>,
    /// The output that the texts only refer to; where it will stand is [`super::Blobs::key`].
    pub blob: Option<LargeOutput>,
    /// The conversation that goes into the graph's state with it.
    pub session: Option<Session>,
}

/// What a settlement came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// All of it is done.
    Done,
    /// All of it is done but the node state: the graph's state is gone and was not made anew.
    DoneStateGone,
    /// It was done before; only its answer had been lost.
    Again,
    /// The run is another entry's or ended before: ours is acknowledged, no event went out.
    Duplicate,
    /// The entry is not ours any more: nothing was written.
    Lost,
    /// Others keep changing the graph's document: nothing was written, try again while the lease holds.
    Conflict,
    /// A key has a type that does not belong there, or holds a document that cannot be read: nothing was written.
    WrongType {
        /// The key.
        key: String,
    },
}

/// Ends runs of one group.
#[derive(Debug, Clone)]
pub struct Settler {
    link: Link,
    keys: Keys,
    group: Arc<str>,
    ttl_ms: u64,
    streams: Arc<[Arc<str>]>,
    blobs: Blobs,
    turns: Turns,
}

/// A script that writes a node's state beside what else it does.
pub(super) trait WriteNode: Sync {
    /// Runs it once, with a document that was read and the one that replaces it where the graph's state is a document.
    fn once(&self, replace: Option<(&str, &str)>) -> impl Future<Output = Result<Answer, RedisError>> + Send;
}

/// The end of a run.
struct End<'a> {
    settler: &'a Settler,
    script: &'a Script,
    settlement: &'a Settlement,
}

impl WriteNode for End<'_> {
    async fn once(&self, replace: Option<(&str, &str)>) -> Result<Answer, RedisError> {
        self.settler.settle_once(self.script, self.settlement, replace).await
    }
}

/// Writes node states into documents, one at a time for each graph.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    locks: Arc<[Mutex<()>]>,
    timeout: Duration,
}

impl Turns {
    /// Turns that are waited for no longer than a command may take.
    pub(super) fn new(link: &Link) -> Self {
        Self { locks: (0..TURNS).map(|_| Mutex::new(())).collect(), timeout: link.command_timeout() }
    }

    /// Asks `write` to write a node's state, with a document and its replacement where the graph's state is one, until
    /// the document that it was given is the present one.
    pub(super) async fn write(
        &self,
        keys: &Keys,
        item: &WorkItem,
        node_state: &str,
        session: Option<&Session>,
        write: &impl WriteNode,
    ) -> Result<Answer, RedisError> {
        let mut answer = write.once(None).await?;
        if !matches!(answer, Answer::Document(_)) {
            return Ok(answer);
        }
        // The state is one document. Without turns, n nodes of a graph that end together compare about n²/2 times.
        let turn = self.locks[turn_of(&item.graph_id)].lock();
        let _turn = tokio::time::timeout(self.timeout, turn).await;
        for compare in 1..=COMPARES {
            let Answer::Document(old) = answer else { return Ok(answer) };
            let unreadable = || Ok(Answer::Settled(Settled::WrongType { key: keys.state(&item.graph_id) }));
            let Ok(old) = std::str::from_utf8(&old) else { return unreadable() };
            let new = layout::replace_node_state(old, item.node_id.as_str(), node_state);
            let new = new.and_then(|new| match session {
                Some(session) => layout::replace_session(&new, &session.name, &session.json),
                None => Ok(new),
            });
            let Ok(new) = new else { return unreadable() };
            if compare > 1 {
                tokio::time::sleep(backoff(FIRST_WAIT, LONGEST_WAIT, compare - 1, fastrand::f64())).await;
            }
            answer = write.once(Some((old, &new))).await?;
        }
        Ok(answer)
    }
}

fn turn_of(graph: &GraphId) -> usize {
    let mut hasher = DefaultHasher::new();
    graph.hash(&mut hasher);
    usize::try_from(hasher.finish() % TURNS as u64).unwrap_or_default()
}

impl Settler {
    /// Ends runs of entries of `streams` in `group`.
    pub fn new(
        link: Link,
        keys: Keys,
        state: &StateConfig,
        streams: impl IntoIterator<Item = Arc<str>>,
        group: &str,
    ) -> Self {
        let turns = Turns::new(&link);
        let blobs = Blobs::new(link.clone(), keys.clone(), state);
        Self {
            link,
            keys,
            group: Arc::from(group),
            ttl_ms: lease::millis(state.ttl),
            streams: streams.into_iter().collect(),
            blobs,
            turns,
        }
    }

    /// Ends a run. After an error whose outcome is unknown the same settlement is simply sent again.
    ///
    /// An entry that is not ours may be nobody's, because Redis lost its last writes: then it is ended all the same.
    pub async fn settle(&self, settlement: &Settlement) -> Result<Settled, RedisError> {
        let Some(blob) = &settlement.blob else { return self.settle_staged(settlement).await.map(Answer::settled) };
        let was_staged = blob.is_staged();
        if !was_staged {
            self.blobs.stage(&settlement.delivery, blob).await?;
        }
        let mut answer = self.settle_staged(settlement).await?;
        if was_staged && matches!(answer, Answer::Unstaged) {
            // It stood there after an earlier try, and Redis has lost it since.
            self.blobs.stage(&settlement.delivery, blob).await?;
            answer = self.settle_staged(settlement).await?;
        }
        match &answer {
            Answer::Settled(Settled::Lost | Settled::Again) => {
                // Should this fail, what was staged goes by itself.
                let _ = self.blobs.unstage(&settlement.delivery, blob).await;
            }
            Answer::Settled(Settled::Done | Settled::DoneStateGone) | Answer::Unstaged => blob.is_gone(),
            Answer::Settled(Settled::Duplicate | Settled::Conflict | Settled::WrongType { .. })
            | Answer::Document(_) => {}
        }
        Ok(answer.settled())
    }

    async fn settle_staged(&self, settlement: &Settlement) -> Result<Answer, RedisError> {
        match self.settle_by(&SETTLE, settlement).await? {
            Answer::Settled(Settled::Lost) => self.settle_by(&SETTLE_UNCLAIMED, settlement).await,
            answer => Ok(answer),
        }
    }

    async fn settle_by(&self, script: &Script, settlement: &Settlement) -> Result<Answer, RedisError> {
        let Settlement { delivery, node_state_json, session, .. } = settlement;
        let end = End { settler: self, script, settlement };
        self.turns.write(&self.keys, &delivery.item, node_state_json, session.as_ref(), &end).await
    }

    /// Moves an entry that cannot be understood to the dead letters.
    pub async fn dead_letter(&self, entry: &RawEntry, letter: &Letter) -> Result<Settled, RedisError> {
        let mut call = DEAD_LETTER.call(3, letter.data.len() + 512);
        call.arg(&*entry.stream)
            .arg(self.keys.dead(&entry.stream))
            .arg(self.keys.crashes(&entry.stream))
            .arg(&*self.group)
            .arg(entry.entry.as_str())
            .arg(&*entry.token.consumer)
            .arg(entry.token.deliveries);
        letter.write(&mut call);
        answer(self.link.eval(&DEAD_LETTER, &call).await?).map(Answer::settled)
    }

    async fn settle_once(
        &self,
        script: &Script,
        settlement: &Settlement,
        replace: Option<(&str, &str)>,
    ) -> Result<Answer, RedisError> {
        let call = self.call(script, settlement, replace);
        answer(self.link.eval(script, &call).await?)
    }

    fn call(&self, script: &Script, settlement: &Settlement, replace: Option<(&str, &str)>) -> Cmd {
        let delivery = &*settlement.delivery;
        let item = &delivery.item;
        let others = || self.streams.iter().filter(|stream| **stream != delivery.stream);
        let (old, new) = replace.unwrap_or_default();
        let bytes = settlement.event_json.len()
            + settlement.node_state_json.len()
            + old.len()
            + new.len()
            + 1024
            + settlement.session.as_ref().map_or(0, |session| session.json.len());
        let mut call = script.call(9 + others().count(), bytes);
        call.arg(&*delivery.stream)
            .arg(self.keys.state(&item.graph_id))
            .arg(self.keys.done(&item.graph_id))
            .arg(self.keys.journal(&item.graph_id, &item.node_id, &item.run_id))
            .arg(self.keys.events(settlement.event))
            .arg(self.keys.crashes(&delivery.stream))
            .arg(self.keys.dead(&delivery.stream))
            .arg(self.keys.staged(delivery))
            .arg(self.blobs.key(delivery));
        for stream in others() {
            call.arg(&**stream);
        }
        call.arg(&*self.group)
            .arg(delivery.entry.as_str())
            .arg(&*delivery.token.consumer)
            .arg(delivery.token.deliveries)
            .arg(record::field(&item.node_id, &item.run_id))
            .arg(record::done(&delivery.work_id, &delivery.token, &settlement.event_id))
            .arg(&*record::line(&delivery.work_id))
            .arg(self.ttl_ms)
            .arg(&settlement.event_json);
        if settlement.write_state {
            call.arg(format!("{}{}", layout::NODE, item.node_id)).arg(&settlement.node_state_json);
        } else {
            call.arg("").arg("");
        }
        call.arg(old).arg(new).arg(u8::from(settlement.blob.is_some()));
        match &settlement.session {
            Some(session) => call.arg(format!("{}{}", layout::SESSION, session.name)).arg(&session.json),
            None => call.arg("").arg(""),
        };
        if let Some(letter) = &settlement.letter {
            letter.write(&mut call);
        }
        call
    }
}

/// What the script said.
pub(super) enum Answer {
    /// What it came to.
    Settled(Settled),
    /// The graph's state is this document, and not the one that was compared.
    Document(Vec<u8>),
    /// The large output does not stand beside its place: nothing was written, so the same can be asked again.
    Unstaged,
}

impl Answer {
    /// What it came to; a document that keeps changing is a conflict.
    pub(super) fn settled(self) -> Settled {
        match self {
            Self::Settled(settled) => settled,
            Self::Document(_) | Self::Unstaged => Settled::Conflict,
        }
    }
}

/// What a script that ends or parks a run says.
pub(super) fn answer(value: redis::Value) -> Result<Answer, RedisError> {
    let what = "a settlement";
    let (word, rest) = reply::word(value, what)?;
    Ok(Answer::Settled(match word {
        Word::Ok => Settled::Done,
        Word::Gone => Settled::DoneStateGone,
        Word::Again => Settled::Again,
        Word::Duplicate => Settled::Duplicate,
        Word::Lost => Settled::Lost,
        Word::Conflict => return rest.map(Answer::Document).ok_or(RedisError::Unexpected { what }),
        Word::WrongType => Settled::WrongType { key: reply::key(rest) },
        Word::Unstaged => return Ok(Answer::Unstaged),
        Word::Hash | Word::Text | Word::Missing => return Err(RedisError::Unexpected { what }),
    }))
}
