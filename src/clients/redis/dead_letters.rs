//! Dead letters as people deal with them: reading, retrying, deleting. How one is written is [`super::letter`]'s.

use std::sync::LazyLock;

use redis::Value;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::script::Script;
use crate::clients::redis::{record, reply};
use crate::domain::ids::{EntryId, GraphId, NodeId, RunId, WorkId};
use crate::domain::work::{KnownIds, Meta, WorkItem};

static REDRIVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/redrive.lua")));

const WHAT: &str = "a dead letter";
/// Letters of one look; each has up to 64 KiB of data.
const PAGE: usize = 64;

/// What a dead letter says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// The work stream that it comes from.
    pub stream: String,
    /// Its place among the dead letters.
    pub id: String,
    /// The name of the work.
    pub work_id: String,
    /// The cause by its stable name.
    pub reason: String,
    /// The cause in words.
    pub error: String,
    /// How often the entry was delivered.
    pub deliveries: u64,
    /// How many processes died with it.
    pub crashes: u32,
    /// The worker that gave up.
    pub worker_id: String,
    /// When, in RFC 3339.
    pub at: String,
    /// The field `data` of the work entry; of larger data its beginning.
    pub data: Vec<u8>,
    /// How long the data was, where only its beginning is here.
    pub length: Option<u64>,
    /// The digest of all of such data.
    pub sha256: Option<String>,
    /// What the worker had written beside the data.
    pub meta: Option<String>,
    /// The graph, if it could be read.
    pub graph_id: Option<String>,
    /// The node, if it could be read.
    pub node_id: Option<String>,
    /// The identity, if it could be read.
    pub run_id: Option<String>,
}

/// Which letters of a stream are looked at: by their ids, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The first; `-` for the oldest.
    pub from: String,
    /// The last; `+` for the newest.
    pub to: String,
}

impl Span {
    /// From the oldest to the newest.
    pub fn all() -> Self {
        Self { from: String::from("-"), to: String::from("+") }
    }
}

/// What became of a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redriven {
    /// The work stands in its stream again as this entry, and the letter is gone.
    Added(EntryId),
    /// The letter is gone: somebody else retried or deleted it.
    Gone,
    /// Only the beginning of the data was kept.
    Cut,
    /// There is no data.
    Empty,
    /// Another execution has the run or ended it since.
    Taken {
        /// The name of that work.
        by: String,
    },
}

/// The dead letters of all work streams.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    link: Link,
    keys: Keys,
}

impl DeadLetters {
    /// The dead letters beside the work streams of this server.
    pub fn new(link: Link, keys: Keys) -> Self {
        Self { link, keys }
    }

    /// How many there are of a work stream.
    pub async fn count(&self, stream: &str) -> Result<u64, RedisError> {
        let key = self.keys.dead(stream);
        let mut command = redis::cmd("XLEN");
        command.arg(&key);
        match self.link.query(&command).await {
            Ok(length) => reply::number(&length).ok_or(RedisError::Unexpected { what: WHAT }),
            Err(RedisError::WrongType { .. }) => Err(RedisError::WrongType { key: Some(key) }),
            Err(error) => Err(error),
        }
    }

    /// The letters of a span, page by page, without those that are written while one reads.
    pub async fn read(&self, stream: &str, span: Span) -> Result<Pages, RedisError> {
        let newest = self.range("XREVRANGE", stream, "+", "-", 1).await?.pop();
        let to = match newest {
            None => None,
            Some(newest) if span.to == "+" || before(&newest.id, &span.to) => Some(newest.id),
            Some(_) => Some(span.to),
        };
        Ok(Pages { letters: self.clone(), stream: String::from(stream), from: span.from, to })
    }

    /// One letter.
    pub async fn get(&self, stream: &str, id: &str) -> Result<Option<DeadLetter>, RedisError> {
        Ok(self.range("XRANGE", stream, id, id, 1).await?.pop())
    }

    /// Puts the work of a letter into its stream again and takes the letter away, both or neither. The run begins
    /// anew, with no crash on its account; its terminal event is told from the earlier one by its id.
    pub async fn retry(&self, letter: &DeadLetter) -> Result<Redriven, RedisError> {
        let before: Meta = letter.meta.as_deref().and_then(|meta| serde_json::from_str(meta).ok()).unwrap_or_default();
        let origin = letter.origin();
        let meta = Meta {
            origin: origin.as_ref().map(ToString::to_string),
            attempt: before.attempt,
            redriven: before.redriven.saturating_add(1),
            ..Meta::default()
        };
        let meta = serde_json::to_string(&meta).expect("meta has string keys");
        let work_id = origin.map(|origin| WorkId::new(&letter.stream, &origin));
        let ids = letter.ids();
        let mut call = REDRIVE.call(if ids.is_some() { 3 } else { 2 }, 512);
        call.arg(&letter.stream).arg(self.keys.dead(&letter.stream));
        if let Some(ids) = &ids {
            call.arg(self.keys.done(&ids.graph_id));
        }
        call.arg(&letter.id).arg(work_id.as_ref().map_or("", |id| id.as_str()).replace('\n', " ")).arg(meta);
        if let Some(ids) = &ids {
            call.arg(record::field(&ids.node_id, &ids.run_id));
        }
        redriven(self.link.eval(&REDRIVE, &call).await?)
    }

    /// Deletes letters for good. Gives the number of those that were there.
    pub async fn delete<'a>(
        &self,
        stream: &str,
        ids: impl IntoIterator<Item = &'a str> + Clone,
    ) -> Result<u64, RedisError> {
        if ids.clone().into_iter().next().is_none() {
            return Ok(0);
        }
        let mut command = redis::cmd("XDEL");
        command.arg(self.keys.dead(stream));
        for id in ids {
            command.arg(id);
        }
        reply::number(&self.link.query(&command).await?).ok_or(RedisError::Unexpected { what: WHAT })
    }

    async fn range(
        &self,
        command: &str,
        stream: &str,
        from: &str,
        to: &str,
        count: usize,
    ) -> Result<Vec<DeadLetter>, RedisError> {
        let key = self.keys.dead(stream);
        let mut command = redis::cmd(command);
        command.arg(&key).arg(from).arg(to).arg("COUNT").arg(count);
        match self.link.query(&command).await {
            Ok(entries) => reply::list(entries, WHAT)?.into_iter().map(|entry| letter(stream, entry)).collect(),
            Err(RedisError::WrongType { .. }) => Err(RedisError::WrongType { key: Some(key) }),
            Err(error) => Err(error),
        }
    }
}

/// A walk through the letters of one stream, the oldest first, in bounded memory.
#[derive(Debug, Clone)]
pub struct Pages {
    letters: DeadLetters,
    stream: String,
    from: String,
    /// The last one to be read; none once all were.
    to: Option<String>,
}

impl Pages {
    /// The next letters; none after the last.
    pub async fn next(&mut self) -> Result<Vec<DeadLetter>, RedisError> {
        let Some(to) = &self.to else { return Ok(Vec::new()) };
        let page = self.letters.range("XRANGE", &self.stream, &self.from, to, PAGE).await?;
        match page.last() {
            Some(last) if page.len() == PAGE => self.from = format!("({}", last.id),
            _ => self.to = None,
        }
        Ok(page)
    }
}

impl DeadLetter {
    /// The entry id under which the work first entered its stream.
    pub fn origin(&self) -> Option<EntryId> {
        let origin = self.work_id.strip_prefix(&self.stream)?.strip_prefix('/')?;
        (!origin.is_empty()).then(|| EntryId::new(origin))
    }

    /// When it was written, in milliseconds since 1970 by the server's clock.
    pub fn millis(&self) -> u64 {
        EntryId::new(self.id.as_str()).millis().unwrap_or_default()
    }

    /// The ids of the run, if they could be read.
    fn ids(&self) -> Option<KnownIds> {
        Some(KnownIds {
            graph_id: GraphId::new(self.graph_id.as_deref()?).ok()?,
            node_id: NodeId::new(self.node_id.as_deref()?).ok()?,
            run_id: RunId::new(self.run_id.as_deref()?).ok()?,
        })
    }

    /// Fills the ids in from the data where the letter itself does not name them.
    fn read_ids(&mut self) {
        if self.graph_id.is_some() || self.length.is_some() {
            return;
        }
        let origin = self.origin().unwrap_or_else(|| EntryId::new(self.id.as_str()));
        let ids = match WorkItem::parse(&self.data, &self.stream, &origin) {
            Ok(item) => Some(item.known_ids()),
            Err(malformed) => malformed.ids,
        };
        if let Some(ids) = ids {
            self.graph_id = Some(ids.graph_id.into());
            self.node_id = Some(ids.node_id.into());
            self.run_id = Some(ids.run_id.into());
        }
    }
}

/// Whether one entry id is before another.
fn before(a: &str, b: &str) -> bool {
    let parts = |id: &str| {
        let (millis, number) = id.split_once('-').unwrap_or((id, ""));
        (millis.parse::<u64>().unwrap_or_default(), number.parse::<u64>().unwrap_or(u64::MAX))
    };
    parts(a) < parts(b)
}

fn letter(stream: &str, entry: Value) -> Result<DeadLetter, RedisError> {
    let [id, fields] = reply::tuple::<2>(entry, WHAT)?;
    let id = reply::text(id).ok_or(RedisError::Unexpected { what: WHAT })?;
    let mut letter = DeadLetter { stream: String::from(stream), id, ..DeadLetter::default() };
    let mut values = reply::list(fields, WHAT)?.into_iter();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        let number = || reply::number(&value);
        match reply::as_bytes(&name) {
            Some(b"deliveries") => letter.deliveries = number().unwrap_or_default(),
            Some(b"crashes") => letter.crashes = number().and_then(|n| u32::try_from(n).ok()).unwrap_or_default(),
            Some(b"length") => letter.length = number(),
            Some(b"data") => letter.data = reply::bytes(value).unwrap_or_default(),
            Some(b"work_id") => letter.work_id = text(value),
            Some(b"reason") => letter.reason = text(value),
            Some(b"error") => letter.error = text(value),
            Some(b"worker_id") => letter.worker_id = text(value),
            Some(b"at") => letter.at = text(value),
            Some(b"sha256") => letter.sha256 = Some(text(value)),
            Some(b"meta") => letter.meta = Some(text(value)),
            Some(b"graph_id") => letter.graph_id = Some(text(value)),
            Some(b"node_id") => letter.node_id = Some(text(value)),
            Some(b"run_id") => letter.run_id = Some(text(value)),
            _ => {}
        }
    }
    letter.read_ids();
    Ok(letter)
}

fn text(value: Value) -> String {
    reply::bytes(value).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn redriven(answer: Value) -> Result<Redriven, RedisError> {
    let what = "retrying a dead letter";
    let (word, rest) = match answer {
        Value::Array(parts) => {
            let mut parts = parts.into_iter();
            (parts.next().and_then(reply::text), parts.next().map(text).unwrap_or_default())
        }
        single => (reply::text(single), String::new()),
    };
    match word.as_deref() {
        Some("ok") => Ok(Redriven::Added(EntryId::new(rest))),
        Some("gone") => Ok(Redriven::Gone),
        Some("cut") => Ok(Redriven::Cut),
        Some("empty") => Ok(Redriven::Empty),
        Some("taken") => Ok(Redriven::Taken { by: rest }),
        Some("wrongtype") => Err(RedisError::WrongType { key: Some(rest) }),
        _ => Err(RedisError::Unexpected { what }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn read(fields: &[&str]) -> DeadLetter {
        let fields = fields.iter().map(|field| bulk(field)).collect();
        letter("s", Value::Array(vec![bulk("9-0"), Value::Array(fields)])).expect("a letter")
    }

    #[test]
    fn a_letter_is_read_whatever_else_it_says() {
        let letter = read(&["data", "{}", "reason", "poison", "more", "x", "work_id", "s/1-0", "crashes", "3"]);
        assert_eq!((letter.reason.as_str(), letter.work_id.as_str(), letter.crashes), ("poison", "s/1-0", 3));
        assert_eq!((letter.millis(), letter.origin()), (9, Some(EntryId::new("1-0"))));
    }

    #[test]
    fn a_letter_that_names_no_run_is_asked_through_its_data() {
        let data = r#"{"graph_id":"g","node_id":"n","v":2}"#;
        let letter = read(&["data", data, "work_id", "s/1-0"]);
        assert_eq!((letter.graph_id.as_deref(), letter.run_id.as_deref()), (Some("g"), Some("s/1-0")));
        let cut = read(&["data", data, "work_id", "s/1-0", "length", "70000"]);
        assert_eq!(cut.graph_id, None, "the beginning of an item is none");
        let named = read(&["data", data, "graph_id", "h", "node_id", "n", "run_id", "r"]);
        assert_eq!(named.graph_id.as_deref(), Some("h"));
    }

    #[test]
    fn entry_ids_are_compared_as_numbers() {
        assert!(before("9-1", "10-0") && before("9-1", "9-10") && before("9-1", "9"));
        assert!(!before("9-1", "9-1") && !before("10-0", "9"));
    }
}
