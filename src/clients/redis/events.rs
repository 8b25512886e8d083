//! Streams of events apart from the terminal event itself, which is a part of settling: live progress, trimming, and
//! reading along for a person who waits.

use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};

use crate::clients::redis::error::RedisError;
use crate::clients::redis::fields;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::{Address, Link};
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;
use crate::config::RedisConfig;
use crate::domain::event::EventType;
use crate::domain::ids::EntryId;

static TRIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/trim.lua")));

/// Entries of one stream that one look takes.
const PAGE: usize = 256;

/// The terminal types; each identity has exactly one event of one of them.
const TERMINAL: [EventType; 2] = [EventType::NodeCompleted, EventType::NodeFailed];

/// Writes progress and keeps the streams short.
#[derive(Debug, Clone)]
pub struct EventLog {
    link: Link,
    keys: Keys,
    maxlen: usize,
}

impl EventLog {
    /// A log whose progress streams keep approximately `maxlen` entries each.
    pub fn new(link: Link, keys: Keys, maxlen: usize) -> Self {
        Self { link, keys, maxlen }
    }

    /// Writes progress events in one round trip. All are tried; the first error is told.
    pub async fn progress(&self, batch: &[(EventType, String)]) -> Result<(), RedisError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for (kind, event) in batch {
            let mut command = redis::cmd("XADD");
            command
                .arg(self.keys.events(*kind))
                .arg("MAXLEN")
                .arg("~")
                .arg(self.maxlen)
                .arg("*")
                .arg("data")
                .arg(event);
            pipeline.add_command(command);
        }
        self.link.pipeline(&pipeline).await?.into_iter().find_map(Result::err).map_or(Ok(()), Err)
    }

    /// The length of the longest terminal stream.
    pub async fn longest(&self) -> Result<u64, RedisError> {
        let mut pipeline = Pipeline::with_capacity(TERMINAL.len());
        for kind in TERMINAL {
            pipeline.cmd("XLEN").arg(self.keys.events(kind));
        }
        let mut longest = 0;
        for length in self.link.pipeline(&pipeline).await? {
            longest = longest.max(reply::number(&length?).ok_or(RedisError::Unexpected { what: "a length" })?);
        }
        Ok(longest)
    }

    /// Trims terminal streams: behind what every consumer group has acknowledged, and to approximately `maxlen`
    /// entries where no group reads. Gives the number of entries that went.
    pub async fn trim_unread(&self, maxlen: usize) -> Result<u64, RedisError> {
        let mut gone = 0;
        for kind in TERMINAL {
            let mut call = TRIM.call(1, 64);
            call.arg(self.keys.events(kind)).arg(maxlen);
            let answer = self.link.eval(&TRIM, &call).await?;
            gone += reply::number(&answer).ok_or(RedisError::Unexpected { what: "trimming" })?;
        }
        Ok(gone)
    }
}

/// One event as it stands in its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailedEvent {
    /// Its type.
    pub kind: EventType,
    /// Its place.
    pub entry: EntryId,
    /// The event, JSON.
    pub data: String,
}

/// Reads streams of events along, from now on, on a connection of its own.
pub struct EventTail {
    address: Address,
    limit: Duration,
    connection: Option<MultiplexedConnection>,
    streams: Vec<(EventType, String, EntryId)>,
}

impl EventTail {
    /// Begins behind the last event that each stream has at this moment.
    pub async fn begin(redis: &RedisConfig, keys: &Keys, kinds: &[EventType]) -> Result<Self, RedisError> {
        let mut tail = Self {
            address: Address::new(redis)?,
            limit: redis.command_timeout,
            connection: None,
            streams: Vec::with_capacity(kinds.len()),
        };
        for &kind in kinds {
            let key = keys.events(kind);
            let mut command = redis::cmd("XREVRANGE");
            command.arg(&key).arg("+").arg("-").arg("COUNT").arg(1);
            let last = reply::list(tail.query(&command, tail.limit).await?, "the last event")?;
            let entry = match last.into_iter().next() {
                Some(entry) => fields::entry(entry)?.0,
                None => EntryId::new("0-0"),
            };
            tail.streams.push((kind, key, entry));
        }
        Ok(tail)
    }

    /// Waits up to `block` for further events and gives them in the order in which they were written, as far as two
    /// streams of one server can be ordered. After an error the same call goes on where the last answer ended.
    pub async fn next(&mut self, block: Duration) -> Result<Vec<TailedEvent>, RedisError> {
        let block = block.max(Duration::from_millis(1));
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(PAGE).arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        command.arg("STREAMS");
        for (_, key, _) in &self.streams {
            command.arg(key);
        }
        for (_, _, entry) in &self.streams {
            command.arg(entry.as_str());
        }
        let answer = self.query(&command, block.saturating_add(self.limit)).await?;
        let mut found = Vec::new();
        for (name, entries) in fields::streams(answer)? {
            let Some((kind, _, last)) = self.streams.iter_mut().find(|(_, key, _)| **key == *name) else { continue };
            for entry in entries {
                let (entry, fields) = fields::entry(entry)?;
                *last = entry.clone();
                let data = fields.data.unwrap_or_default();
                found.push(TailedEvent { kind: *kind, entry, data: String::from_utf8_lossy(&data).into_owned() });
            }
        }
        found.sort_by_key(|event| event.entry.millis());
        Ok(found)
    }

    async fn query(&mut self, command: &redis::Cmd, limit: Duration) -> Result<Value, RedisError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.address.connect(None).await?,
        };
        let answer = tokio::time::timeout(limit, connection.send_packed_command(command))
            .await
            .map_err(|_| RedisError::TimedOut { limit })?
            .map_err(|error| RedisError::from_command(error, limit))?;
        self.connection = Some(connection);
        match answer {
            Value::ServerError(error) => Err(RedisError::from_command(error.into(), limit)),
            value => Ok(value),
        }
    }
}
