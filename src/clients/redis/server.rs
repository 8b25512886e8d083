//! Facts about the server and its streams, for the start, for metrics and for the command line.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use redis::{Pipeline, Value};

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;
use crate::domain::event::EventType;
use crate::domain::ids::{EntryId, GraphId, NodeId, RunId};

static PERMITTED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/permitted.lua")));

/// The first version of Redis whose commands are enough: `PEXPIRE … GT`, reasons in `XINFO`, `redis.acl_check_cmd`.
const OLDEST: u32 = 7;

/// What a server says about itself; `None` is what it does not say, or not to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// The version, such as `7.0.15`; forks name the version whose commands they have.
    pub version: Option<String>,
    /// What happens at `maxmemory`, such as `noeviction`.
    pub maxmemory_policy: Option<String>,
    /// Whether every write goes to the append-only file. A server that loads its data cannot say: it switches the file
    /// off meanwhile.
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

    /// The version, if it lacks what the scripts need. A script that meets an unknown command halfway is not rolled
    /// back, so such a server loses results. What is not known is not held against the server.
    pub fn too_old(&self) -> Option<&str> {
        let version = self.version.as_deref()?;
        let major: u32 = version.split('.').next()?.parse().ok()?;
        (major < OLDEST).then_some(version)
    }

    fn of(info: &str) -> Self {
        let facts: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
        let text = |name: &str| facts.get(name).map(|value| String::from(*value));
        let loading = facts.get("loading") == Some(&"1");
        Self {
            version: text("redis_version"),
            maxmemory_policy: text("maxmemory_policy"),
            aof: facts.get("aof_enabled").filter(|_| !loading).map(|value| *value == "1"),
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

/// What the server would refuse our user while a script runs, as commands and keys: nothing, if all is well. A script
/// that is refused a command halfway is not rolled back, and what it had acknowledged by then is gone.
#[derive(Debug, Clone)]
pub struct Permissions {
    link: Link,
    keys: Keys,
    streams: Vec<Arc<str>>,
}

impl Permissions {
    /// Permissions for the scripts of these work streams.
    pub fn new(link: Link, keys: Keys, streams: Vec<Arc<str>>) -> Self {
        Self { link, keys, streams }
    }

    /// Asks the server, which runs nothing of it.
    pub async fn missing(&self) -> Result<Vec<String>, RedisError> {
        let what = "a look at permissions";
        let names = (GraphId::new("permissions"), NodeId::new("-"), RunId::new("-"));
        let (Ok(graph), Ok(node), Ok(run)) = names else { return Err(RedisError::Unexpected { what }) };
        let mut missing = Vec::new();
        for stream in &self.streams {
            for kind in KINDS {
                let mut call = PERMITTED.call(11, 512);
                call.arg(&**stream)
                    .arg(self.keys.state(&graph))
                    .arg(self.keys.done(&graph))
                    .arg(self.keys.journal(&graph, &node, &run))
                    .arg(self.keys.events(kind))
                    .arg(self.keys.dead(stream))
                    .arg(self.keys.parked(stream))
                    .arg(self.keys.blob(&graph, &node, &run))
                    .arg(self.keys.waits())
                    .arg(self.keys.audit())
                    .arg(self.keys.tool_result(&graph, &node, &run, "-"));
                match self.link.eval(&PERMITTED, &call).await {
                    Ok(answer) => missing.extend(reply::list(answer, what)?.into_iter().filter_map(reply::text)),
                    Err(RedisError::Auth { code }) if code == "NOPERM" => {
                        missing.push(format!("EVALSHA with the keys of {stream}"));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        missing.sort();
        missing.dedup();
        Ok(missing)
    }
}

/// The events that scripts write.
const KINDS: [EventType; 4] =
    [EventType::NodeCompleted, EventType::NodeFailed, EventType::NodeInputRequired, EventType::NodeDecision];

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
        let loading = ServerFacts::of("loading:1\r\naof_enabled:0\r\n");
        assert_eq!(loading.aof, None, "the file is only switched off until it is read");
        assert_eq!(ServerFacts::of("loading:0\r\naof_enabled:0\r\n").aof, Some(false));
        assert!(!ServerFacts::default().evicts(), "what is not known is not held against the server");
    }

    #[test]
    fn a_server_whose_commands_are_too_old_is_known_by_its_version() {
        let version = |line: &str| ServerFacts::of(line).too_old().map(String::from);
        assert_eq!(version("redis_version:6.2.14\r\n").as_deref(), Some("6.2.14"));
        assert_eq!(version("redis_version:7.0.0\r\n"), None);
        assert_eq!(version("redis_version:8.2.1\r\n"), None);
        assert_eq!(version("redis_version:255.255.255\r\n"), None, "a build of the developers");
        assert_eq!(ServerFacts::default().too_old(), None);
    }

    /// The names of the commands that these texts run.
    fn commands(texts: &str, call: &str) -> std::collections::BTreeSet<String> {
        let found = texts.split(call).skip(1).filter_map(|rest| rest.split('\'').next());
        found.map(String::from).collect()
    }

    #[test]
    fn every_command_of_every_script_is_asked_for() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clients/redis/scripts");
        let mut scripts = String::new();
        for file in std::fs::read_dir(folder).expect("the folder of the scripts") {
            scripts += &std::fs::read_to_string(file.expect("an entry").path()).expect("a script");
        }
        let mut run = commands(&scripts, "redis.call('");
        run.extend(commands(&scripts, "redis.pcall('"));
        assert!(run.len() > 30, "{run:?}");
        let asked = commands(include_str!("scripts/permitted.lua"), "try('");
        assert!(run.is_subset(&asked), "not asked for: {:?}", run.difference(&asked));
    }
}
