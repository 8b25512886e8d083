//! A dead letter: work that no worker will try again, with everything a person needs to understand and replay it.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use redis::Cmd;
use sha2::{Digest, Sha256};

use crate::domain::work::KnownIds;

/// Bytes of `data` that a dead letter keeps; of larger data it keeps these, the length and the digest.
pub const LETTER_BYTES: usize = 64 * 1024;

/// Bytes of `meta` that are kept.
const META_BYTES: usize = 4096;

/// One entry of a dead-letter stream.
#[derive(Debug, Clone)]
pub struct Letter {
    /// A stable snake_case name of the cause.
    pub reason: Cow<'static, str>,
    /// A sentence a person can act on.
    pub error: String,
    /// The field `data` of the work entry as it was; empty if it had none.
    pub data: Vec<u8>,
    /// Its field `meta`, if it had one.
    pub meta: Option<Vec<u8>>,
    /// The ids of the run, if they could be read.
    pub ids: Option<KnownIds>,
    /// The name of the work: stream and first entry id.
    pub work_id: String,
    /// How often the entry was delivered.
    pub deliveries: u64,
    /// How many processes died with it.
    pub crashes: u32,
    /// The worker that gave up.
    pub worker_id: String,
    /// When.
    pub at: Timestamp,
}

impl Letter {
    /// Adds the fields of the stream entry as arguments, names and values in turn.
    pub(super) fn write(&self, command: &mut Cmd) {
        let kept = &self.data[..self.data.len().min(LETTER_BYTES)];
        command
            .arg("data")
            .arg(kept)
            .arg("reason")
            .arg(self.reason.as_ref())
            .arg("error")
            .arg(&self.error)
            .arg("work_id")
            .arg(&self.work_id)
            .arg("deliveries")
            .arg(self.deliveries)
            .arg("crashes")
            .arg(self.crashes)
            .arg("worker_id")
            .arg(&self.worker_id)
            .arg("at")
            .arg(self.at.to_string());
        // What the worker itself wrote is short; anything else is not ours to keep.
        if let Some(meta) = self.meta.as_deref().filter(|meta| meta.len() <= META_BYTES) {
            command.arg("meta").arg(meta);
        }
        if let Some(ids) = &self.ids {
            command.arg("graph_id").arg(ids.graph_id.as_str());
            command.arg("node_id").arg(ids.node_id.as_str());
            command.arg("run_id").arg(ids.run_id.as_str());
        }
        if kept.len() < self.data.len() {
            command.arg("length").arg(self.data.len()).arg("sha256").arg(sha256(&self.data));
        }
    }
}

fn sha256(data: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(data))
}
