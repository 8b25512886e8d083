//! Work that waits outside of its stream: one script takes an entry out, another brings it back when its wait is
//! over. Who decides to wait, and who looks for what is due, is elsewhere.
//!
//! Sorted set `{prefix}parked:{stream}`: the moment in ms by the first entry's id. Hash
//! `{prefix}parked-bodies:{stream}`: for each first entry the fields `{entry}` (its data), `{entry}:meta` and
//! `{entry}:run` (graph, node and run, a line each).

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use crate::clients::redis::aside::{self, Place, Run};
use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;
use crate::clients::redis::settle::{self, Settled};
use crate::clients::redis::{lease, record};
use crate::config::StateConfig;
use crate::domain::ids::{EntryId, GraphId, NodeId, WorkId};
use crate::domain::work::{Delivery, Meta};

static PARK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("scripts/owned.lua"),
        include_str!("scripts/run.lua"),
        include_str!("scripts/aside.lua"),
        include_str!("scripts/park.lua")
    ))
});
static DUE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/due.lua")));
static RETURN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/return.lua")));

/// Pieces of work that one script call brings back.
const BATCH: usize = 50;

/// What one look for due work came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Work that was waiting when it was looked.
    pub waiting: u64,
    /// Work of it that was due, as far as it was looked.
    pub found: usize,
    /// Work that this look brought back.
    pub returned: u64,
    /// Work whose body somebody deleted: nothing can be brought back.
    pub bodiless: u64,
}

/// A piece of work that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    first: String,
    /// What it is for, if that is known.
    pub node: Option<(GraphId, NodeId)>,
}

/// The work that waits outside of the streams of one group.
#[derive(Debug, Clone)]
pub struct ParkingLot {
    link: Link,
    keys: Keys,
    group: Arc<str>,
    ttl_ms: u64,
    streams: Arc<[Arc<str>]>,
}

impl ParkingLot {
    /// The waiting work of `streams` in `group`.
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
            group: Arc::from(group),
            ttl_ms: lease::millis(state.ttl),
            streams: streams.into_iter().collect(),
        }
    }

    /// Takes an entry out of its stream until `until`. After an error whose outcome is unknown the same is simply
    /// asked again.
    pub async fn park(&self, delivery: &Delivery, meta: &Meta, until: Instant) -> Result<Settled, RedisError> {
        let place = Place { keys: &self.keys, group: &self.group, streams: &self.streams };
        let mut call = aside::call(&PARK, place, delivery, meta, &[], 0);
        call.arg(lease::millis(until.saturating_duration_since(Instant::now())));
        settle::answer(self.link.eval(&PARK, &call).await?).map(settle::Answer::settled)
    }

    /// Brings work of `stream` back whose wait is over, at most `limit` pieces of it.
    pub async fn bring_back(&self, stream: &Arc<str>, limit: usize) -> Result<Moved, RedisError> {
        let (waiting, due) = self.due(stream, limit).await?;
        let mut moved = Moved { waiting, found: due.len(), ..Moved::default() };
        for batch in due.chunks(BATCH) {
            let flags = self.return_all(stream, batch).await?;
            moved.returned += flags.iter().filter(|flag| **flag == b'1').count() as u64;
            moved.bodiless += flags.iter().filter(|flag| **flag == b'-').count() as u64;
        }
        Ok(moved)
    }

    /// Work of `stream` that waits, some at a time; `from` is 0 at first, and the answer's is 0 after the last. What waits
    /// from the first look to the last is met, whatever else comes and goes meanwhile; some of it perhaps twice.
    pub async fn waiting(&self, stream: &str, from: u64, about: u64) -> Result<(u64, Vec<Waiting>), RedisError> {
        let what = "a look at parked work";
        let (parked, bodies) = (self.keys.parked(stream), self.keys.parked_bodies(stream));
        let mut look = redis::cmd("ZSCAN");
        look.arg(&parked).arg(from).arg("COUNT").arg(about);
        let [next, found] = reply::tuple::<2>(self.ask(&look, &parked).await?, what)?;
        let next = reply::number(&next).ok_or(RedisError::Unexpected { what })?;
        // Each with its moment behind it.
        let firsts: Vec<String> = reply::list(found, what)?.into_iter().step_by(2).filter_map(reply::text).collect();
        if firsts.is_empty() {
            return Ok((next, Vec::new()));
        }
        let mut runs = redis::cmd("HMGET");
        runs.arg(&bodies);
        for first in &firsts {
            runs.arg(format!("{first}:run"));
        }
        let runs = reply::list(self.ask(&runs, &bodies).await?, what)?.into_iter();
        let runs = runs.map(|run| reply::text(run).as_deref().and_then(Run::parse).map(|run| (run.graph, run.node)));
        Ok((next, firsts.into_iter().zip(runs).map(|(first, node)| Waiting { first, node }).collect()))
    }

    /// How much work of `stream` waits.
    pub async fn count(&self, stream: &str) -> Result<u64, RedisError> {
        let parked = self.keys.parked(stream);
        let mut count = redis::cmd("ZCARD");
        count.arg(&parked);
        let count = self.ask(&count, &parked).await?;
        reply::number(&count).ok_or(RedisError::Unexpected { what: "the number of parked work" })
    }

    /// Lets work that still waits be due at once. Gives the number of those for which that is news.
    pub async fn hasten(&self, stream: &str, waiting: &[&Waiting]) -> Result<u64, RedisError> {
        if waiting.is_empty() {
            return Ok(0);
        }
        let parked = self.keys.parked(stream);
        let mut command = redis::cmd("ZADD");
        command.arg(&parked).arg("XX").arg("CH");
        for waiting in waiting {
            command.arg(0).arg(&waiting.first);
        }
        let changed = self.ask(&command, &parked).await?;
        reply::number(&changed).ok_or(RedisError::Unexpected { what: "letting work be due" })
    }

    async fn ask(&self, command: &redis::Cmd, key: &str) -> Result<redis::Value, RedisError> {
        match self.link.query(command).await {
            Err(RedisError::WrongType { .. }) => Err(RedisError::WrongType { key: Some(String::from(key)) }),
            answer => answer,
        }
    }

    async fn due(&self, stream: &Arc<str>, limit: usize) -> Result<(u64, Vec<Due>), RedisError> {
        let what = "a look for due work";
        let unexpected = || RedisError::Unexpected { what };
        let mut call = DUE.call(2, 128);
        call.arg(self.keys.parked(stream)).arg(self.keys.parked_bodies(stream)).arg(limit);
        let [waiting, found] = reply::tuple::<2>(self.link.eval(&DUE, &call).await?, what)?;
        if reply::as_bytes(&waiting) == Some(b"wrongtype") {
            return Err(RedisError::WrongType { key: reply::text(found) });
        }
        let mut found = reply::list(found, what)?.into_iter();
        let mut due = Vec::with_capacity(found.len() / 2);
        while let (Some(first), Some(run)) = (found.next(), found.next()) {
            let run = reply::text(run).as_deref().and_then(Run::parse);
            due.push(Due { first: reply::text(first).ok_or_else(unexpected)?, run });
        }
        Ok((reply::number(&waiting).ok_or_else(unexpected)?, due))
    }

    async fn return_all(&self, stream: &Arc<str>, batch: &[Due]) -> Result<Vec<u8>, RedisError> {
        let (parked, bodies) = (self.keys.parked(stream), self.keys.parked_bodies(stream));
        let mut call = RETURN.call(3 + 3 * batch.len(), 256 * (batch.len() + 1));
        call.arg(&**stream).arg(&parked).arg(&bodies);
        for due in batch {
            match &due.run {
                Some(Run { graph, node, run }) => {
                    call.arg(self.keys.state(graph)).arg(self.keys.done(graph));
                    call.arg(self.keys.journal(graph, node, run));
                }
                // Not looked at without a run.
                None => {
                    call.arg(&parked).arg(&parked).arg(&parked);
                }
            }
        }
        call.arg(self.ttl_ms);
        for due in batch {
            let field = due.run.as_ref().map(|Run { node, run, .. }| record::field(node, run)).unwrap_or_default();
            let work = WorkId::new(stream, &EntryId::new(due.first.as_str()));
            call.arg(&due.first).arg(field).arg(&*record::line(&work));
        }
        let answer = self.link.eval(&RETURN, &call).await?;
        if let redis::Value::Array(values) = answer {
            return Err(RedisError::WrongType { key: values.into_iter().nth(1).and_then(reply::text) });
        }
        let flags = reply::bytes(answer).unwrap_or_default();
        if flags.len() == batch.len() { Ok(flags) } else { Err(RedisError::Unexpected { what: "bringing work back" }) }
    }
}

/// A piece of work whose wait is over.
struct Due {
    first: String,
    run: Option<Run>,
}
