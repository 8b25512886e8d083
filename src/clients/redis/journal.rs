//! Writing the journal of a run: one script checks the ownership, writes the entry and renews the lease. It is read by
//! the script that opens the run, see [`super::state`], and deleted by the one that settles it.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::clients::redis::blob;
use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::lease;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply::{self, Word};
use crate::clients::redis::script::Script;
use crate::config::StateConfig;
use crate::domain::journal::{CallId, JournalEntry};
use crate::domain::work::{Delivery, Token};
use crate::ports::Appended;

static JOURNAL: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("scripts/owned.lua"), include_str!("scripts/journal.lua"))));

/// The journals of all runs.
#[derive(Debug, Clone)]
pub struct JournalWriter {
    link: Link,
    keys: Keys,
    ttl_ms: u64,
    group: Arc<str>,
    freshness: Duration,
}

impl JournalWriter {
    /// Journals under `keys` of entries that were read in `group` and are leased for so long.
    pub fn new(link: Link, keys: Keys, state: &StateConfig, group: &str, lease: Duration) -> Self {
        Self { link, keys, ttl_ms: lease::millis(state.ttl), group: Arc::from(group), freshness: lease / 2 }
    }

    /// Where the whole result of a call stands.
    fn place(&self, delivery: &Delivery, call: CallId) -> String {
        let item = &delivery.item;
        self.keys.tool_result(&item.graph_id, &item.node_id, &item.run_id, call)
    }

    /// Puts an entry on record, if `token` still owns the delivery's entry. After an error whose outcome is unknown the
    /// same is simply sent again.
    ///
    /// What follows from an entry, such as a call, follows under the lease that the entry renewed. An answer that took
    /// half a lease, because this process was stopped or the network held it back, counts as none: the entry may be
    /// another worker's by now, which asking once more will tell.
    pub async fn append(
        &self,
        delivery: &Delivery,
        token: &Token,
        entry: &JournalEntry,
    ) -> Result<Appended, RedisError> {
        let item = &delivery.item;
        let JournalEntry { header, field, value, restart, progress, whole } = entry;
        let keys = if whole.is_some() { 6 } else { 4 };
        let stored = whole.as_ref().map_or(0, |whole| whole.json.get().len());
        let mut call = JOURNAL.call(keys, header.len() + value.len() + stored + 512);
        call.arg(&*delivery.stream)
            .arg(self.keys.journal(&item.graph_id, &item.node_id, &item.run_id))
            .arg(self.keys.done(&item.graph_id))
            .arg(self.keys.crashes(&delivery.stream));
        if let Some(whole) = whole {
            call.arg(self.place(delivery, whole.call)).arg(self.keys.blobs());
        }
        call.arg(&*self.group)
            .arg(delivery.entry.as_str())
            .arg(&*token.consumer)
            .arg(token.deliveries)
            .arg(self.ttl_ms)
            .arg(u8::from(*restart))
            .arg(u8::from(*progress))
            .arg(header)
            .arg(field)
            .arg(value)
            .arg(delivery.meta.crashes);
        if let Some(whole) = whole {
            call.arg(whole.json.get()).arg(blob::member(item, Some(whole.call))).arg(blob::next_look(self.ttl_ms));
        }
        let what = "an entry of a journal";
        let sent = Instant::now();
        match reply::word(self.link.eval(&JOURNAL, &call).await?, what)? {
            (Word::Ok, _) if sent.elapsed() >= self.freshness => Err(RedisError::TimedOut { limit: self.freshness }),
            (Word::Ok, _) => Ok(Appended::Done),
            (Word::Lost, _) => Ok(Appended::Lost),
            (Word::WrongType, rest) => Err(RedisError::WrongType { key: Some(reply::key(rest)) }),
            (
                Word::Gone
                | Word::Again
                | Word::Duplicate
                | Word::Conflict
                | Word::Hash
                | Word::Text
                | Word::Missing
                | Word::Unstaged,
                _,
            ) => Err(RedisError::Unexpected { what }),
        }
    }
}
