//! A dead letter: work that no worker will try again, with everything a person needs to understand and replay it.

use std::borrow::Cow;
use std::fmt::Write as _;

use jiff::Timestamp;
use redis::Cmd;
use sha2::{Digest, Sha256};

/// Bytes of `data` that a dead letter keeps; of larger data it keeps these, the length and the digest.
pub const LETTER_BYTES: usize = 64 * 1024;

/// One entry of a dead-letter stream.
#[derive(Debug, Clone)]
pub struct Letter {
    /// A stable snake_case name of the cause.
    pub reason: Cow<'static, str>,
    /// A sentence a person can act on.
    pub error: String,
    /// The field `data` of the work entry as it was; empty if it had none.
    pub data: Vec<u8>,
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
        if kept.len() < self.data.len() {
            command.arg("length").arg(self.data.len()).arg("sha256").arg(sha256(&self.data));
        }
    }
}

fn sha256(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
