//! The registry of workers: one key a worker, which lapses unless it is renewed.

use std::sync::LazyLock;
use std::time::Duration;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::script::Script;

static WITHDRAW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/withdraw.lua")));

/// How long an announcement is good.
const LIFE: Duration = Duration::from_secs(30);

/// One worker's entry.
#[derive(Debug, Clone)]
pub struct WorkerRegistry {
    link: Link,
    key: String,
}

impl WorkerRegistry {
    /// The entry of worker `id`.
    pub fn new(link: Link, keys: &Keys, id: &str) -> Self {
        Self { link, key: keys.worker(id) }
    }

    /// Writes the entry; it lapses after 30 s.
    pub async fn announce(&self, json: &str) -> Result<(), RedisError> {
        let mut command = redis::cmd("SET");
        command.arg(&self.key).arg(json).arg("EX").arg(LIFE.as_secs());
        self.link.query(&command).await.map(drop)
    }

    /// Deletes the entry if it still bears `instance`: a successor of the same name may have written its own.
    pub async fn withdraw(&self, instance: &str) -> Result<(), RedisError> {
        let mut call = WITHDRAW.call(1, 256);
        call.arg(&self.key).arg(instance);
        self.link.eval(&WITHDRAW, &call).await.map(drop)
    }
}
