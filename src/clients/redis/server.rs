//! Facts about the server and its streams, for the start, for metrics and for the command line.

use std::collections::HashMap;

use redis::{Pipeline, Value};

use crate::clients::redis::error::RedisError;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;
use crate::domain::ids::EntryId;

/// What a server says about itself; `None` is what it does not say, or not to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// The version, such as `7.0.15`; forks name the version whose commands they have.
    pub version: Option<String>,
    /// What happens at `maxmemory`, such as `noeviction`.
    pub maxmemory_policy: Option<String>,
    /// Whether every write goes to the append-only file.
    pub aof: Option<bool>,
    /// Whether it is a primary.
    pub primary: Option<bool>,
    /// Drawn anew with each start of the server.
    pub run_id: Option<String>,
    /// Drawn anew with each history of writes: another one after a failover that lost some.
    pub replication_id: Option<String>,
}

impl ServerFacts {
    /// Whether the server deletes keys of ours when memory runs out. `volatile-*` does so too, for states expire.
    pub fn evicts(&self) -> bool {
        self.maxmemory_policy.as_deref().is_some_and(|policy| policy != "noeviction")
    }

    fn of(info: &str) -> Self {
        let facts: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
        let text = |name: &str| facts.get(name).map(|value| String::from(*value));
        Self {
            version: text("redis_version"),
            maxmemory_policy: text("maxmemory_policy"),
            aof: facts.get("aof_enabled").map(|value| *value == "1"),
            primary: facts.get("role").map(|value| *value == "master"),
            run_id: text("run_id"),
            replication_id: text("master_replid"),
        }
    }
}

/// Which server it is and which history of writes it has; see [`ServerFacts`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    run_id: Option<String>,
    replication_id: Option<String>,
}

impl ServerIdentity {
    /// Whether the server told.
    pub fn is_known(&self) -> bool {
        self.run_id.is_some() && self.replication_id.is_some()
    }
}

/// Asks which server it is: another answer than before means that writes of the last seconds may be lost.
pub async fn identity(link: &Link) -> Result<ServerIdentity, RedisError> {
    let ServerFacts { run_id, replication_id, .. } = preflight(link).await?;
    Ok(ServerIdentity { run_id, replication_id })
}

/// Asks the server about itself. A user who may not ask learns nothing, which is no error.
pub async fn preflight(link: &Link) -> Result<ServerFacts, RedisError> {
    match link.query(&redis::cmd("INFO")).await {
        Ok(info) => Ok(ServerFacts::of(&reply::text(info).unwrap_or_default())),
        Err(RedisError::Auth { code }) if code == "NOPERM" => Ok(ServerFacts::default()),
        Err(error) => Err(error),
    }
}

/// The server's clock, in milliseconds since 1970: the one that entry ids are made of.
pub async fn now_millis(link: &Link) -> Result<u64, RedisError> {
    let what = "the server's clock";
    let [seconds, micros] = reply::tuple::<2>(link.query(&redis::cmd("TIME")).await?, what)?;
    match (reply::number(&seconds), reply::number(&micros)) {
        (Some(seconds), Some(micros)) => Ok(seconds * 1000 + micros / 1000),
        _ => Err(RedisError::Unexpected { what }),
    }
}

/// How much waits in a work stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Entries in the stream.
    pub length: u64,
    /// Entries that were not delivered yet, where the server can tell.
    pub lag: Option<u64>,
    /// Entries that were delivered and are not settled.
    pub pending: u64,
}

/// Counts a stream and its group. A stream or group that does not exist counts nothing.
pub async fn stream_stats(link: &Link, stream: &str, group: &str) -> Result<StreamStats, RedisError> {
    let what = "the groups of a stream";
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.cmd("XLEN").arg(stream).cmd("XINFO").arg("GROUPS").arg(stream);
    let answers: Result<[_; 2], _> = link.pipeline(&pipeline).await?.try_into();
    let [length, groups] = answers.map_err(|_| RedisError::Unexpected { what })?;
    let mut stats = StreamStats { length: reply::number(&length?).unwrap_or_default(), ..StreamStats::default() };
    let groups = match groups {
        Ok(groups) => reply::list(groups, what)?,
        // "no such key" has no code of its own.
        Err(RedisError::Other { .. }) => return Ok(stats),
        Err(error) => return Err(error),
    };
    for facts in groups {
        let facts = reply::list(facts, what)?;
        let fact = |name: &str| {
            let pair = facts.chunks_exact(2).find(|pair| reply::as_bytes(&pair[0]) == Some(name.as_bytes()));
            pair.map(|pair| &pair[1])
        };
        if fact("name").and_then(reply::as_bytes) == Some(group.as_bytes()) {
            stats.pending = fact("pending").and_then(reply::number).unwrap_or_default();
            stats.lag = fact("lag").and_then(reply::number);
        }
    }
    Ok(stats)
}

/// Adds a work item to a stream. After an error whose outcome is unknown it may stand there.
pub async fn submit(link: &Link, stream: &str, data: &[u8]) -> Result<EntryId, RedisError> {
    let mut command = redis::cmd("XADD");
    command.arg(stream).arg("*").arg("data").arg(data);
    let answer: Value = link.query(&command).await?;
    reply::text(answer).map(EntryId::new).ok_or(RedisError::Unexpected { what: "adding an item" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_the_servers_own_words() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n# Memory\r\nmaxmemory_policy:allkeys-lru\r\n\
                    # Persistence\r\naof_enabled:1\r\n# Replication\r\nrole:master\r\nmaster_replid:def\r\n";
        let facts = ServerFacts::of(info);
        assert_eq!(facts.version.as_deref(), Some("7.0.15"));
        assert_eq!((facts.aof, facts.primary), (Some(true), Some(true)));
        assert_eq!((facts.run_id.as_deref(), facts.replication_id.as_deref()), (Some("abc"), Some("def")));
        assert!(facts.evicts());
        assert!(!ServerFacts::of("maxmemory_policy:noeviction\r\n").evicts());
        assert!(!ServerFacts::default().evicts(), "what is not known is not held against the server");
    }
}
