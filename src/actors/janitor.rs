//! Janitor: a pass each minute that leaves nothing behind, and between them a look at whether there is a place for
//! results: how long the terminal streams are, and what Redis permits. Every worker has one; each step may be done by
//! several at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::fut::ActorFutureExt as _;
use actix::{Actor, ActorContext as _, AsyncContext as _, Context, WrapFuture as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::actors::supervise::DeathWatch;
use crate::clients::redis::{Blobs, EventLog, Mended, Permissions, RedisError, Upkeep, WaitingRoom};
use crate::health::Health;

/// How often everything is looked through.
const PASS: Duration = Duration::from_secs(60);
/// How often it is looked whether there is a place for results.
const LOOK: Duration = Duration::from_secs(5);
/// Within this time after its start a worker begins its first pass.
const FIRST: Duration = Duration::from_secs(1);

/// How long one pass lets large outputs live on; the next one goes on with those that have waited longest.
const PROLONGING: Duration = Duration::from_secs(10);

/// What cleaning up needs.
pub struct JanitorDeps {
    /// Consumers, parked work and counts.
    pub upkeep: Upkeep,
    /// What others are asked.
    pub waiting: WaitingRoom,
    /// How far the open questions were looked through.
    pub asked: AtomicU64,
    /// Large outputs.
    pub blobs: Blobs,
    /// Terminal streams.
    pub events: EventLog,
    /// What Redis lets our scripts do.
    pub permissions: Permissions,
    /// The work streams.
    pub streams: Vec<Arc<str>>,
    /// How long a consumer that holds nothing may be silent.
    pub reap_after: Duration,
    /// Entries that a terminal stream keeps while no group reads it.
    pub maxlen: usize,
    /// Entries of a terminal stream at which nothing more is fetched.
    pub hard_cap: u64,
    /// What the worker knows about itself.
    pub health: Arc<Health>,
    /// Cancelled when the worker stops.
    pub stop: CancellationToken,
}

/// Cleans up.
pub struct Janitor {
    deps: Arc<JanitorDeps>,
    _watch: DeathWatch,
}

impl Janitor {
    /// A janitor that reports its death to `watch`.
    pub fn new(deps: Arc<JanitorDeps>, watch: DeathWatch) -> Self {
        Self { deps, _watch: watch }
    }
}

impl Actor for Janitor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let deps = Arc::clone(&self.deps);
        let work = async move { clean_until_stopped(&deps).await };
        ctx.spawn(work.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

async fn clean_until_stopped(deps: &JanitorDeps) {
    let mut pass = Instant::now() + FIRST.mul_f64(fastrand::f64());
    loop {
        let look = Instant::now() + LOOK.mul_f64(0.8 + fastrand::f64() * 0.4);
        tokio::select! {
            () = deps.stop.cancelled() => return,
            () = tokio::time::sleep_until(look.min(pass)) => {}
        }
        if Instant::now() >= pass {
            // A fleet that was started together should not clean up in one instant.
            pass = Instant::now() + PASS.mul_f64(0.9 + fastrand::f64() * 0.2);
            deps.clean().await;
        }
        deps.watch_events().await;
        deps.watch_permissions().await;
    }
}

impl JanitorDeps {
    /// One pass. What fails is tried by the next one: nothing here is urgent.
    async fn clean(&self) {
        let told = |task: &'static str, error: RedisError| tracing::debug!(%error, task, "cleaning up failed");
        for stream in &self.streams {
            match self.upkeep.reap(stream, self.reap_after).await {
                Ok(gone) if gone.is_empty() => {}
                Ok(gone) => tracing::info!(stream = %stream, consumers = ?gone, "silent consumers were removed"),
                Err(error) => told("consumers", error),
            }
            match self.upkeep.mend(stream).await {
                Ok(Mended { again: 0, lost: 0 }) => {}
                Ok(Mended { again, lost }) => tracing::error!(stream = %stream, again, lost,
                    "parked work had lost its moment or its body; what has a body is brought back now"),
                Err(error) => told("parked work", error),
            }
            if let Err(error) = self.upkeep.uncount(stream).await {
                told("crashes", error);
            }
        }
        match self.waiting.mend(self.asked.load(Ordering::Relaxed)).await {
            Ok(next) => self.asked.store(next, Ordering::Relaxed),
            Err(error) => told("open questions", error),
        }
        if let Err(error) = self.blobs.prolong(PROLONGING).await {
            told("large outputs", error);
        }
        if let Err(error) = self.events.trim_unread(self.maxlen).await {
            told("terminal events", error);
        }
    }

    /// Stops and allows fetching by the length of the terminal streams. Without an answer it stays as it is.
    async fn watch_events(&self) {
        let Ok(mut longest) = self.events.longest().await else { return };
        if longest >= self.hard_cap && self.events.trim_unread(self.maxlen).await.is_ok() {
            longest = self.events.longest().await.unwrap_or(longest);
        }
        let full = longest >= self.hard_cap;
        if self.health.events_full(full) != full {
            if full {
                tracing::warn!(
                    entries = longest,
                    hard_cap = self.hard_cap,
                    "a terminal event stream is full, no more work is fetched until its consumer groups have caught up"
                );
            } else {
                tracing::info!(entries = longest, "the terminal event streams have room again");
            }
        }
    }

    /// Stops fetching while a script would be refused a command, for what it had acknowledged by then would be lost.
    async fn watch_permissions(&self) {
        let Ok(missing) = self.permissions.missing().await else { return };
        let forbidden = !missing.is_empty();
        if self.health.forbidden(forbidden) != forbidden {
            if forbidden {
                tracing::error!(
                    ?missing,
                    "redis would refuse what results need, no more work is fetched until the \
                    user of redis.url may run it"
                );
            } else {
                tracing::info!("redis permits what results need again");
            }
        }
    }
}
