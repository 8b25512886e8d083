//! Keeping our keys clean: consumers of processes that are gone, parked work that lost one of its halves, counts of
//! entries that do not exist. When it is done is the janitor's; blobs and events look after themselves elsewhere.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Pipeline;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::lease;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;

static REAP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/reap.lua")));
static MEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/mend.lua")));
static UNCOUNT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/uncount.lua")));

/// Names that one look takes; what it misses, a later one finds.
const SAMPLE: usize = 1000;
/// Names of one script call.
const BATCH: usize = 100;
/// Fields of one piece of parked work in the hash of bodies.
const FIELDS: u64 = 3;

/// What mending parked work came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mended {
    /// Bodies that nothing waited for; they are due now.
    pub again: u64,
    /// Work that waited without a body; it is lost.
    pub lost: u64,
}

/// Cleans up behind one group.
#[derive(Debug, Clone)]
pub struct Upkeep {
    link: Link,
    keys: Keys,
    group: Arc<str>,
    consumer: Arc<str>,
}

impl Upkeep {
    /// Cleans up behind `group`, as `consumer`.
    pub fn new(link: Link, keys: Keys, group: &str, consumer: Arc<str>) -> Self {
        Self { link, keys, group: Arc::from(group), consumer }
    }

    /// Removes consumers other than ours that hold nothing and were silent for `silence`. Gives their names.
    pub async fn reap(&self, stream: &str, silence: Duration) -> Result<Vec<String>, RedisError> {
        let mut call = REAP.call(1, 128);
        call.arg(stream).arg(&*self.group).arg(&*self.consumer).arg(lease::millis(silence));
        let gone = reply::list(self.link.eval(&REAP, &call).await?, "removing consumers")?;
        Ok(gone.into_iter().filter_map(reply::text).collect())
    }

    /// Puts the two halves of parked work together again, where people or a broken disk separated them.
    pub async fn mend(&self, stream: &str) -> Result<Mended, RedisError> {
        let what = "a look through parked work";
        let (parked, bodies) = (self.keys.parked(stream), self.keys.parked_bodies(stream));
        let mut counts = Pipeline::with_capacity(2);
        counts.cmd("ZCARD").arg(&parked).cmd("HLEN").arg(&bodies);
        let counts = self.pair(&counts, what).await?;
        let [waiting, fields] = counts.map(|count| reply::number(&count).unwrap_or_default());
        if fields == waiting * FIELDS {
            return Ok(Mended::default());
        }
        let mut sample = Pipeline::with_capacity(2);
        sample.cmd("ZRANDMEMBER").arg(&parked).arg(SAMPLE).cmd("HRANDFIELD").arg(&bodies).arg(SAMPLE);
        let mut names = BTreeSet::new();
        for found in self.pair(&sample, what).await? {
            for name in reply::list(found, what)?.into_iter().filter_map(reply::text) {
                let first = name.strip_suffix(":meta").or_else(|| name.strip_suffix(":run")).unwrap_or(&name);
                names.insert(String::from(first));
            }
        }
        let mut mended = Mended::default();
        for batch in names.into_iter().collect::<Vec<_>>().chunks(BATCH) {
            let mut call = MEND.call(2, 64 * (batch.len() + 2));
            call.arg(&parked).arg(&bodies).arg(batch);
            let [again, lost] = reply::tuple::<2>(self.link.eval(&MEND, &call).await?, what)?;
            mended.again += reply::number(&again).unwrap_or_default();
            mended.lost += reply::number(&lost).unwrap_or_default();
        }
        Ok(mended)
    }

    /// Forgets the crashes of entries that do not exist any more. Gives their number.
    pub async fn uncount(&self, stream: &str) -> Result<u64, RedisError> {
        let crashes = self.keys.crashes(stream);
        let mut sample = redis::cmd("HRANDFIELD");
        sample.arg(&crashes).arg(SAMPLE);
        let names = reply::list(self.link.query(&sample).await?, "a look through the crashes")?;
        let names: Vec<String> = names.into_iter().filter_map(reply::text).collect();
        let mut gone = 0;
        for batch in names.chunks(BATCH) {
            let mut call = UNCOUNT.call(2, 64 * (batch.len() + 2));
            call.arg(stream).arg(&crashes).arg(batch);
            gone += reply::number(&self.link.eval(&UNCOUNT, &call).await?).unwrap_or_default();
        }
        Ok(gone)
    }

    async fn pair(&self, commands: &Pipeline, what: &'static str) -> Result<[redis::Value; 2], RedisError> {
        let answers: Result<Vec<_>, _> = self.link.pipeline(commands).await?.into_iter().collect();
        answers?.try_into().map_err(|_| RedisError::Unexpected { what })
    }
}
