//! What waits, what is held by whom, and which workers there are, for a person who looks.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Pipeline, Value};

use crate::clients::redis::error::RedisError;
use crate::clients::redis::forget;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::lease::RELEASED;
use crate::clients::redis::link::Link;
use crate::clients::redis::{fields, reply};
use crate::domain::ids::EntryId;

/// Keys of one look through the registry.
const PAGE: usize = 1000;

/// A work stream and what belongs to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamOverview {
    /// Its name.
    pub stream: String,
    /// Whether the consumer group exists.
    pub group: bool,
    /// Entries in the stream: those that wait and those that are pending.
    pub length: u64,
    /// Entries that no worker has read yet.
    pub lag: u64,
    /// Entries that were read and are not settled.
    pub pending: u64,
    /// Those of them that a stopped worker gave back.
    pub handed_back: u64,
    /// How long the first entry that waits has waited.
    pub oldest_waiting: Option<Duration>,
    /// How long ago the first pending entry was added.
    pub oldest_pending: Option<Duration>,
    /// Work that waits outside of the stream for its time.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// Who holds pending entries.
    pub holders: Vec<Holder>,
}

/// A consumer with pending entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its name: worker id, `:`, and the nonce of the process's start.
    pub consumer: String,
    /// Entries it holds.
    pub pending: u64,
    /// How long ago it did anything.
    pub idle: Duration,
}

/// Looks at a stream. `now` is the server's clock, see [`super::now_millis`].
pub async fn overview(
    link: &Link,
    keys: &Keys,
    stream: &str,
    group: &str,
    now: u64,
) -> Result<StreamOverview, RedisError> {
    let what = "a look at a stream";
    let mut pipeline = Pipeline::with_capacity(6);
    pipeline.cmd("XLEN").arg(stream);
    pipeline.cmd("XINFO").arg("GROUPS").arg(stream);
    pipeline.cmd("XINFO").arg("CONSUMERS").arg(stream).arg(group);
    pipeline.cmd("XPENDING").arg(stream).arg(group);
    pipeline.cmd("XLEN").arg(keys.dead(stream));
    pipeline.cmd("ZCARD").arg(keys.parked(stream));
    let answers: Result<[_; 6], _> = link.pipeline(&pipeline).await?.try_into();
    let [length, groups, consumers, pending, dead, parked] = answers.map_err(|_| RedisError::Unexpected { what })?;
    let count = |answer: Value| reply::number(&answer).unwrap_or_default();
    let mut found = StreamOverview {
        stream: String::from(stream),
        length: count(length?),
        dead: count(dead?),
        parked: count(parked?),
        ..StreamOverview::default()
    };
    let facts = all_facts(or_missing(groups)?)?;
    let Some(facts) = facts.into_iter().find(|facts| facts.get("name").is_some_and(|name| text(name) == group)) else {
        // Nobody has read anything: all of it waits.
        found.lag = found.length;
        found.oldest_waiting = oldest(link, stream, "-", now).await?;
        return Ok(found);
    };
    found.group = true;
    found.pending = facts.get("pending").and_then(reply::number).unwrap_or_default();
    // The server cannot tell where entries were deleted unread. Settled ones are deleted, so the rest waits.
    let lag = facts.get("lag").and_then(reply::number);
    found.lag = lag.unwrap_or_else(|| found.length.saturating_sub(found.pending));
    if found.lag > 0 {
        let last = facts.get("last-delivered-id").map(text).unwrap_or_default();
        found.oldest_waiting = oldest(link, stream, &format!("({last}"), now).await?;
    }
    if let Value::Array(summary) = or_missing(pending)? {
        let first = summary.into_iter().nth(1).and_then(reply::text);
        found.oldest_pending = first.and_then(|first| age(&first, now));
    }
    for facts in all_facts(or_missing(consumers)?)? {
        let number = |name: &str| facts.get(name).and_then(reply::number).unwrap_or_default();
        let (consumer, pending) = (facts.get("name").map(text).unwrap_or_default(), number("pending"));
        if consumer == RELEASED {
            found.handed_back = pending;
        } else if pending > 0 {
            found.holders.push(Holder { consumer, pending, idle: Duration::from_millis(number("idle")) });
        }
    }
    Ok(found)
}

/// What the workers of the registry say about themselves, JSON, in no order.
pub async fn registered(link: &Link, keys: &Keys) -> Result<Vec<String>, RedisError> {
    let what = "a look through the registry";
    let pattern = forget::pattern(&keys.worker(""));
    let (mut cursor, mut found) = (String::from("0"), HashMap::new());
    loop {
        let mut look = redis::cmd("SCAN");
        look.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(PAGE);
        let [next, names] = reply::tuple::<2>(link.query(&look).await?, what)?;
        let names: Vec<String> = reply::list(names, what)?.into_iter().filter_map(reply::text).collect();
        if !names.is_empty() {
            let mut read = redis::cmd("MGET");
            read.arg(&names);
            let values = reply::list(link.query(&read).await?, what)?;
            // A look through all keys may meet one twice.
            found.extend(names.into_iter().zip(values).filter_map(|(name, value)| Some((name, reply::text(value)?))));
        }
        cursor = reply::text(next).ok_or(RedisError::Unexpected { what })?;
        if cursor == "0" {
            return Ok(found.into_values().collect());
        }
    }
}

/// The age of the first entry from here on.
async fn oldest(link: &Link, stream: &str, from: &str, now: u64) -> Result<Option<Duration>, RedisError> {
    let mut command = redis::cmd("XRANGE");
    command.arg(stream).arg(from).arg("+").arg("COUNT").arg(1);
    let entries = reply::list(link.query(&command).await?, "the oldest entry")?;
    let Some(entry) = entries.into_iter().next() else { return Ok(None) };
    Ok(age(fields::entry(entry)?.0.as_str(), now))
}

fn age(entry: &str, now: u64) -> Option<Duration> {
    Some(Duration::from_millis(now.saturating_sub(EntryId::new(entry).millis()?)))
}

/// A stream or group that is not there has nothing to tell; "no such key" has no code of its own.
fn or_missing(answer: Result<Value, RedisError>) -> Result<Value, RedisError> {
    match answer {
        Err(RedisError::NoGroup | RedisError::Other { .. }) => Ok(Value::Nil),
        answer => answer,
    }
}

/// Lists of names and values as XINFO gives them.
fn all_facts(value: Value) -> Result<Vec<HashMap<String, Value>>, RedisError> {
    let what = "facts about a stream";
    let one = |value| {
        let mut values = reply::list(value, what)?.into_iter();
        let mut facts = HashMap::new();
        while let (Some(name), Some(value)) = (values.next(), values.next()) {
            facts.insert(text(&name), value);
        }
        Ok(facts)
    };
    reply::list(value, what)?.into_iter().map(one).collect()
}

fn text(value: &Value) -> String {
    reply::as_bytes(value).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}
