//! Holding entries, giving them back, and taking over those of processes that died. The delivery count goes up with
//! each change of hands and never down, for it is half of the ownership token.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Value;

use crate::clients::redis::cancel::CancelWatch;
use crate::clients::redis::error::RedisError;
use crate::clients::redis::fields;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;
use crate::clients::redis::stream::RawEntry;
use crate::domain::ids::EntryId;
use crate::domain::work::Token;

static HOLD: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("scripts/owned.lua"), include_str!("scripts/hold.lua"))));
static TAKE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/take.lua")));

/// The consumer that entries are handed back to. No process reads under this name.
pub const RELEASED: &str = "released";

/// Entries of one script call: a renewal of fifty costs the server about a quarter of a millisecond.
const BATCH: usize = 50;
/// Entries of one look into the pending list.
const PAGE: usize = 128;
/// How long crash counts outlive the last crash, for entries that are deleted by others than us.
const CRASHES_LIFE: Duration = Duration::from_secs(72 * 60 * 60);

/// An entry that this process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The stream.
    pub stream: Arc<str>,
    /// The entry.
    pub entry: EntryId,
    /// Its delivery count when it came to us.
    pub deliveries: u64,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It was ours until now.
    Kept,
    /// It is somebody else's, settled, or deleted.
    Lost,
}

/// Which entries of other processes are taken over, beside those that were handed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takeover {
    /// None.
    Released,
    /// Those whose lease ran out.
    Expired {
        /// Suspects among them at the most: entries with which a process died before the one that had them last.
        /// Whoever takes the entries of a dead process all at once dies with all of them if one is poison, and after
        /// a few rounds the innocent ones would be dead letters too.
        suspects: usize,
    },
}

/// Deaths before the present one from which on an entry is a suspect.
const SUSPECT: u64 = 1;

/// One line of the pending list.
#[derive(Debug)]
struct Pending {
    entry: EntryId,
    owner: String,
    deliveries: u64,
}

/// The leases of one consumer.
#[derive(Debug, Clone)]
pub struct Leases {
    link: Link,
    keys: Keys,
    group: Arc<str>,
    consumer: Arc<str>,
    lease: Duration,
    streams: Arc<[Arc<str>]>,
}

impl Leases {
    /// The leases of `consumer` in `group`, each of the length `lease`.
    pub fn new(
        link: Link,
        keys: Keys,
        group: &str,
        consumer: Arc<str>,
        lease: Duration,
        streams: impl IntoIterator<Item = Arc<str>>,
    ) -> Self {
        Self { link, keys, group: Arc::from(group), consumer, lease, streams: streams.into_iter().collect() }
    }

    /// The streams whose entries are held.
    pub fn streams(&self) -> &[Arc<str>] {
        &self.streams
    }

    /// A watch for orders to stop, on the same connection.
    pub fn cancel_watch(&self) -> CancelWatch {
        CancelWatch::new(self.link.clone(), self.keys.clone())
    }

    /// Asks the server for a sign of life.
    pub async fn ping(&self) -> Result<(), RedisError> {
        self.link.ping().await
    }

    /// Begins each lease anew. The answers are in the order of the entries.
    pub async fn renew(&self, held: &[Held]) -> Result<Vec<Renewal>, RedisError> {
        self.hold(held, &self.consumer, Duration::ZERO).await
    }

    /// Gives entries back, so that any worker can take them at once. The answers are in the order of the entries.
    pub async fn hand_back(&self, held: &[Held]) -> Result<Vec<Renewal>, RedisError> {
        self.hold(held, RELEASED, self.lease).await
    }

    /// Takes entries again that are pending for us but not running here: an answer was lost on its way to us. Nobody
    /// died, so no crash is counted.
    pub async fn stranded(
        &self,
        stream: &Arc<str>,
        running: &[EntryId],
        limit: usize,
    ) -> Result<Vec<RawEntry>, RedisError> {
        let running: HashSet<&EntryId> = running.iter().collect();
        let found = self.find(stream, &running, limit, Some(&self.consumer), Duration::ZERO, usize::MAX).await?;
        self.take(stream, &found, Duration::ZERO, false).await
    }

    /// Takes over entries that were handed back and, where `takeover` says so, those whose lease ran out, which counts
    /// a crash each. Entries that run here are left alone, and places of deleted entries are cleared away.
    pub async fn claim(
        &self,
        stream: &Arc<str>,
        running: &[EntryId],
        limit: usize,
        takeover: Takeover,
    ) -> Result<Vec<RawEntry>, RedisError> {
        let running: HashSet<&EntryId> = running.iter().collect();
        let released = self.find(stream, &running, limit, Some(RELEASED), Duration::ZERO, usize::MAX).await?;
        let mut taken = self.take(stream, &released, Duration::ZERO, false).await?;
        if let Takeover::Expired { suspects } = takeover
            && taken.len() < limit
        {
            let expired = self.find(stream, &running, limit - taken.len(), None, self.lease, suspects).await?;
            taken.extend(self.take(stream, &expired, self.lease, true).await?);
        }
        Ok(taken)
    }

    async fn hold(&self, held: &[Held], target: &str, idle: Duration) -> Result<Vec<Renewal>, RedisError> {
        let mut answers = vec![Renewal::Lost; held.len()];
        let mut streams: Vec<&Arc<str>> = held.iter().map(|held| &held.stream).collect();
        streams.sort_unstable();
        streams.dedup();
        for stream in streams {
            let of_stream: Vec<usize> = (0..held.len()).filter(|&at| held[at].stream == *stream).collect();
            for batch in of_stream.chunks(BATCH) {
                let mut call = HOLD.call(1, 64 * (batch.len() + 2));
                call.arg(&**stream).arg(&*self.group).arg(&*self.consumer).arg(target).arg(millis(idle));
                for &at in batch {
                    call.arg(held[at].entry.as_str()).arg(held[at].deliveries);
                }
                let flags = reply::bytes(self.link.eval(&HOLD, &call).await?).unwrap_or_default();
                if flags.len() != batch.len() {
                    return Err(RedisError::Unexpected { what: "a renewal" });
                }
                for (&at, flag) in batch.iter().zip(flags) {
                    answers[at] = if flag == b'1' { Renewal::Kept } else { Renewal::Lost };
                }
            }
        }
        Ok(answers)
    }

    /// Looks through the pending list, page by page, for up to `limit` entries that do not run here. Without an
    /// owner, entries of any process but ours.
    async fn find(
        &self,
        stream: &str,
        running: &HashSet<&EntryId>,
        limit: usize,
        owner: Option<&str>,
        idle: Duration,
        mut suspects: usize,
    ) -> Result<Vec<Pending>, RedisError> {
        let mut found = Vec::new();
        let mut from = String::from("-");
        while found.len() < limit {
            let mut command = redis::cmd("XPENDING");
            command.arg(stream).arg(&*self.group);
            if !idle.is_zero() {
                command.arg("IDLE").arg(millis(idle));
            }
            command.arg(&from).arg("+").arg(PAGE);
            if let Some(owner) = owner {
                command.arg(owner);
            }
            let page = reply::list(self.link.query(&command).await?, "a pending list")?;
            let full = page.len() == PAGE;
            let mut wanted = Vec::with_capacity(page.len());
            for line in page {
                let pending = pending(line)?;
                from = format!("({}", pending.entry);
                let others = owner.is_some() || (pending.owner != *self.consumer && pending.owner != RELEASED);
                if others && !running.contains(&pending.entry) {
                    wanted.push(pending);
                }
            }
            let crashes = if suspects < usize::MAX { self.crashes(stream, &wanted).await? } else { Vec::new() };
            for (at, pending) in wanted.into_iter().enumerate() {
                if found.len() == limit {
                    break;
                }
                if crashes.get(at).is_some_and(|crashes| *crashes >= SUSPECT) {
                    let Some(left) = suspects.checked_sub(1) else { continue };
                    suspects = left;
                }
                found.push(pending);
            }
            if !full {
                break;
            }
        }
        Ok(found)
    }

    /// How many processes died with each of these entries, as far as it is known yet.
    async fn crashes(&self, stream: &str, entries: &[Pending]) -> Result<Vec<u64>, RedisError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let key = self.keys.crashes(stream);
        let mut command = redis::cmd("HMGET");
        command.arg(&key);
        for pending in entries {
            command.arg(pending.entry.as_str());
        }
        let counts = match self.link.query(&command).await {
            Err(RedisError::WrongType { .. }) => return Err(RedisError::WrongType { key: Some(key) }),
            answer => reply::list(answer?, "crash counts")?,
        };
        Ok(counts.iter().map(|count| reply::number(count).unwrap_or_default()).collect())
    }

    async fn take(
        &self,
        stream: &Arc<str>,
        found: &[Pending],
        idle: Duration,
        crashed: bool,
    ) -> Result<Vec<RawEntry>, RedisError> {
        let mut taken = Vec::with_capacity(found.len());
        for batch in found.chunks(BATCH) {
            let mut call = TAKE.call(2, 128 * (batch.len() + 2));
            call.arg(&**stream).arg(self.keys.crashes(stream));
            call.arg(&*self.group).arg(&*self.consumer).arg(millis(idle)).arg(u8::from(crashed));
            call.arg(millis(CRASHES_LIFE));
            for pending in batch {
                call.arg(pending.entry.as_str()).arg(&pending.owner).arg(pending.deliveries);
            }
            let answer = reply::list(self.link.eval(&TAKE, &call).await?, "a takeover")?;
            if answer.first().and_then(reply::as_bytes) == Some(b"wrongtype") {
                let key = answer.into_iter().nth(1).and_then(reply::text);
                return Err(RedisError::WrongType { key });
            }
            for entry in answer {
                taken.push(self.taken(stream, entry)?);
            }
        }
        Ok(taken)
    }

    fn taken(&self, stream: &Arc<str>, value: Value) -> Result<RawEntry, RedisError> {
        let what = "a takeover";
        let unexpected = || RedisError::Unexpected { what };
        let [entry, deliveries, crashes, fields] = reply::tuple::<4>(value, what)?;
        let fields = fields::fields(fields)?;
        let crashes = reply::signed(&crashes).ok_or_else(unexpected)?;
        Ok(RawEntry {
            stream: Arc::clone(stream),
            entry: EntryId::new(reply::text(entry).ok_or_else(unexpected)?),
            token: Token {
                consumer: Arc::clone(&self.consumer),
                deliveries: reply::number(&deliveries).ok_or_else(unexpected)?,
            },
            data: fields.data,
            meta: fields.meta,
            crashes,
        })
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn pending(line: Value) -> Result<Pending, RedisError> {
    let what = "a pending list";
    let unexpected = || RedisError::Unexpected { what };
    let [entry, owner, _idle, deliveries] = reply::tuple::<4>(line, what)?;
    Ok(Pending {
        entry: EntryId::new(reply::text(entry).ok_or_else(unexpected)?),
        owner: reply::text(owner).ok_or_else(unexpected)?,
        deliveries: reply::number(&deliveries).ok_or_else(unexpected)?,
    })
}
