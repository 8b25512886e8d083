//! Outputs that are too large for state and event, each under a key of its own. An output is staged beside its place
//! and moved there by settling, so that a worker that lost its entry cannot change what its successor wrote. Whole
//! results of tools, of which a model saw a part, come with the record of the call: see [`super::journal`].
//!
//! Sorted set `{prefix}blobs`: graph, node and run (a line each; of a tool's result also the call) by the moment in ms
//! at which the blob is looked at again, for it lives as long as its state does.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Pipeline;
use serde_json::value::RawValue;

use crate::clients::redis::aside::Run;
use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::lease;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;
use crate::config::StateConfig;
use crate::domain::blob::BlobRef;
use crate::domain::ids::{GraphId, NodeId};
use crate::domain::journal::CallId;
use crate::domain::outcome::Failure;
use crate::domain::work::{Delivery, WorkItem};
use crate::retry::Retry;

static PROLONG: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/prolong.lua")));

/// Blobs that one call of the script looks at.
const LIMIT: usize = 200;

/// Why a stored output cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlobError {
    /// Redis did not do it.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// It is gone.
    #[error("the output of node `{node}` was stored as `{key}`, which is gone; run the node again")]
    Missing {
        /// Whose output it was.
        node: String,
        /// The key.
        key: String,
    },
    /// It is not what was stored.
    #[error("`{key}` is not the output that node `{node}` stored there; run the node again")]
    Changed {
        /// Whose output it was.
        node: String,
        /// The key.
        key: String,
    },
}

impl BlobError {
    /// Whether trying the same again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Redis(error) => error.retry(),
            Self::Missing { .. } | Self::Changed { .. } => Retry::Never,
        }
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        let message = error.to_string();
        match error {
            BlobError::Redis(error) => error.into(),
            BlobError::Missing { .. } => Self::validation("blob_missing", message),
            BlobError::Changed { .. } => Self::validation("blob_changed", message),
        }
    }
}

/// A large output on its way to its place.
#[derive(Debug)]
pub struct LargeOutput {
    json: Box<RawValue>,
    /// Whether it is known to stand beside its place, so that it need not be sent with each try to settle.
    staged: AtomicBool,
}

impl LargeOutput {
    /// An output, JSON, that is nowhere yet.
    pub fn new(json: Box<RawValue>) -> Self {
        Self { json, staged: AtomicBool::new(false) }
    }

    /// The output.
    pub fn get(&self) -> &str {
        self.json.get()
    }

    pub(super) fn is_staged(&self) -> bool {
        self.staged.load(Ordering::Relaxed)
    }

    /// It does not stand there any more: it was moved, taken back, or lost.
    pub(super) fn is_gone(&self) {
        self.staged.store(false, Ordering::Relaxed);
    }
}

/// The large outputs of all graphs.
#[derive(Debug, Clone)]
pub struct Blobs {
    link: Link,
    keys: Keys,
    ttl_ms: u64,
}

impl Blobs {
    /// Outputs that live as long as states do.
    pub fn new(link: Link, keys: Keys, state: &StateConfig) -> Self {
        Self { link, keys, ttl_ms: lease::millis(state.ttl) }
    }

    /// Where the output of this delivery will stand.
    pub fn key(&self, delivery: &Delivery) -> String {
        let item = &delivery.item;
        self.keys.blob(&item.graph_id, &item.node_id, &item.run_id)
    }

    /// Puts an output beside its place. Nobody refers to it there, and it goes by itself.
    pub(super) async fn stage(&self, delivery: &Delivery, output: &LargeOutput) -> Result<(), RedisError> {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("SET").arg(self.keys.staged(delivery)).arg(output.get()).arg("PX").arg(self.ttl_ms);
        pipeline.cmd("ZADD").arg(self.keys.blobs()).arg(self.next_look()).arg(member(&delivery.item, None));
        let failed = self.link.pipeline(&pipeline).await?.into_iter().find_map(Result::err);
        output.staged.store(failed.is_none(), Ordering::Relaxed);
        failed.map_or(Ok(()), Err)
    }

    /// Takes back what was staged and will not be settled.
    pub(super) async fn unstage(&self, delivery: &Delivery, output: &LargeOutput) -> Result<(), RedisError> {
        output.is_gone();
        let mut command = redis::cmd("UNLINK");
        command.arg(self.keys.staged(delivery));
        self.link.query(&command).await.map(drop)
    }

    /// The output that a node stored, JSON. None if the reference does not name a key of this node: then it is a
    /// value like any other, and nobody is led to other keys by it.
    pub async fn fetch(&self, graph: &GraphId, node: &str, blob: &BlobRef) -> Result<Option<Vec<u8>>, BlobError> {
        let own = NodeId::new(node).is_ok_and(|node| blob.key.starts_with(&self.keys.blobs_of(graph, &node)));
        if !own {
            return Ok(None);
        }
        let mut command = redis::cmd("GET");
        command.arg(&blob.key);
        let (node, key) = (String::from(node), blob.key.clone());
        match reply::bytes(self.link.query(&command).await?) {
            None => Err(BlobError::Missing { node, key }),
            Some(bytes) if blob.fits(&bytes) => Ok(Some(bytes)),
            Some(_) => Err(BlobError::Changed { node, key }),
        }
    }

    /// Lets all blobs live on whose states do, as far as it comes `within` this time; each is looked at again after half
    /// a state's life. Gives the number looked at.
    pub async fn prolong(&self, within: Duration) -> Result<usize, RedisError> {
        let begun = Instant::now();
        let mut looked_at = 0;
        loop {
            let few = self.prolong_some().await?;
            looked_at += few;
            if few < LIMIT || begun.elapsed() >= within {
                return Ok(looked_at);
            }
        }
    }

    /// Those first that were not looked at for longest.
    async fn prolong_some(&self) -> Result<usize, RedisError> {
        let what = "a look through the blobs";
        let index = self.keys.blobs();
        let mut look = redis::cmd("ZRANGEBYSCORE");
        look.arg(&index).arg("-inf").arg(now_ms()).arg("LIMIT").arg(0).arg(LIMIT);
        let members: Vec<String> =
            reply::list(self.link.query(&look).await?, what)?.into_iter().filter_map(reply::text).collect();
        if members.is_empty() {
            return Ok(0);
        }
        let mut call = PROLONG.call(1 + 2 * members.len(), 256 * (members.len() + 1));
        call.arg(&index);
        for member in &members {
            match Run::parse(member) {
                Some(Run { graph, node, run }) => {
                    let key = match member.split('\n').nth(3) {
                        Some(tool_call) => self.keys.tool_result(&graph, &node, &run, tool_call),
                        None => self.keys.blob(&graph, &node, &run),
                    };
                    call.arg(key).arg(self.keys.state(&graph));
                }
                // No blob has this name, so the member is removed.
                None => {
                    call.arg(format!("{index}:none")).arg(format!("{index}:none"));
                }
            }
        }
        call.arg(self.ttl_ms).arg(self.next_look());
        for member in &members {
            call.arg(member);
        }
        self.link.eval(&PROLONG, &call).await?;
        Ok(members.len())
    }

    fn next_look(&self) -> u64 {
        next_look(self.ttl_ms)
    }
}

/// The name of a blob in the index: a node's output, or a result of the call.
pub(super) fn member(item: &WorkItem, call: Option<CallId>) -> String {
    let run = Run::lines(item);
    match call {
        Some(call) => format!("{run}\n{call}"),
        None => run,
    }
}

/// When a blob that is stored now is looked at for the first time.
pub(super) fn next_look(ttl_ms: u64) -> u64 {
    now_ms().saturating_add(ttl_ms / 2)
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}
