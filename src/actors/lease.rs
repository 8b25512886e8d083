//! LeaseKeeper: renews what this process holds and takes over what dead workers held. It has a thread and a
//! connection of its own, so that neither a busy executor nor a slow command lets a lease expire.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::fut::ActorFutureExt as _;
use actix::{Actor, ActorContext as _, AsyncContext as _, Context, WrapFuture as _};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::actors::custody::InFlight;
use crate::actors::messages::TakenOver;
use crate::actors::reader::StreamReader;
use crate::actors::supervise::{DeathWatch, Post};
use crate::clients::redis::{Leases, RedisError, Renewal};
use crate::health::Health;
use crate::metrics::Metrics;

/// Entries taken over in one go at the most.
const BATCH: usize = 64;

/// What keeping leases needs.
pub struct LeaseDeps {
    /// Opens a connection of the keeper's own; called on its thread.
    pub connect: Box<dyn Fn() -> Leases + Send + Sync>,
    /// The entries held.
    pub in_flight: InFlight,
    /// One permit a node that may run.
    pub permits: Arc<Semaphore>,
    /// Held while entries change hands.
    pub claiming: Arc<Mutex<()>>,
    /// Who starts what is taken over.
    pub reader: Post<StreamReader>,
    /// The streams.
    pub streams: Vec<Arc<str>>,
    /// How long a lease lasts.
    pub duration: Duration,
    /// How often leases are renewed.
    pub renew: Duration,
    /// How often expired ones are looked for.
    pub sweep: Duration,
    /// What the worker knows about itself.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when nothing is taken over any more; renewing goes on.
    pub draining: CancellationToken,
    /// Cancelled when leases end.
    pub stop: CancellationToken,
}

/// Keeps leases.
pub struct LeaseKeeper {
    deps: Arc<LeaseDeps>,
    _watch: DeathWatch,
}

impl LeaseKeeper {
    /// A keeper that reports its death to `watch`.
    pub fn new(deps: Arc<LeaseDeps>, watch: DeathWatch) -> Self {
        Self { deps, _watch: watch }
    }
}

impl Actor for LeaseKeeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let deps = Arc::clone(&self.deps);
        let work = async move { keep_until_stopped(&deps).await };
        ctx.spawn(work.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

/// Since when Redis has answered without a gap.
#[derive(Debug, Default)]
struct Contact {
    since: Option<Instant>,
    failed: bool,
}

impl Contact {
    fn answered(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        if std::mem::take(&mut self.failed) {
            tracing::info!("leases are renewed again");
        }
    }

    fn broke(&mut self, error: &RedisError) {
        self.since = None;
        if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!(%error, "renewing leases failed, trying on");
        }
    }

    /// A worker that was away itself must not take its neighbours' work: their renewals may only be late for the
    /// same reason. One full lease of contact proves that they had their chance.
    fn proven(&self, now: Instant, lease: Duration) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) >= lease)
    }
}

async fn keep_until_stopped(deps: &LeaseDeps) {
    let leases = (deps.connect)();
    let mut contact = Contact::default();
    let mut next_sweep = Instant::now();
    // Short leases in tests and demos ask for short ticks.
    let mut ticks = tokio::time::interval(deps.renew.min(deps.sweep));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last_tick = Instant::now();
    loop {
        tokio::select! {
            () = deps.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now = Instant::now();
        if now.duration_since(last_tick) > deps.duration {
            // The process was stopped or starved for longer than a lease: its contact is not proven any more.
            contact.since = None;
        }
        last_tick = now;
        match renew(deps, &leases).await {
            Ok(()) => contact.answered(Instant::now()),
            Err(error) => {
                contact.broke(&error);
                continue;
            }
        }
        if Instant::now() >= next_sweep && !deps.draining.is_cancelled() {
            let proven = contact.proven(Instant::now(), deps.duration);
            if let Err(error) = sweep(deps, &leases, proven).await
                && !matches!(error, RedisError::NoGroup)
            {
                contact.broke(&error);
            }
            next_sweep = Instant::now() + deps.sweep.mul_f64(0.9 + fastrand::f64() * 0.2);
        }
    }
}

async fn renew(deps: &LeaseDeps, leases: &Leases) -> Result<(), RedisError> {
    let held = deps.in_flight.held();
    if held.is_empty() {
        return leases.ping().await;
    }
    for (held, renewal) in held.iter().zip(leases.renew(&held).await?) {
        if renewal == Renewal::Lost && deps.in_flight.lost(held) {
            tracing::warn!(stream = %held.stream, entry = %held.entry, "a lease is lost, its node is cancelled");
            deps.metrics.leases_lost.inc();
        }
    }
    Ok(())
}

async fn sweep(deps: &LeaseDeps, leases: &Leases, expired_too: bool) -> Result<(), RedisError> {
    for stream in &deps.streams {
        let _claiming = deps.claiming.lock().await;
        if deps.health.holds_results() || deps.draining.is_cancelled() {
            return Ok(());
        }
        let free = deps.permits.available_permits().min(BATCH);
        let Ok(mut permits) = Arc::clone(&deps.permits).try_acquire_many_owned(u32::try_from(free).unwrap_or(0)) else {
            continue;
        };
        if permits.num_permits() == 0 {
            continue;
        }
        let running = deps.in_flight.ids(stream);
        let entries = leases.claim(stream, &running, permits.num_permits(), expired_too).await?;
        if entries.is_empty() {
            continue;
        }
        tracing::info!(stream = %stream, entries = entries.len(), "taking work over");
        let entries = entries
            .into_iter()
            .map(|entry| (entry, permits.split(1).expect("no more entries than permits are asked for")))
            .collect();
        let Some(reader) = deps.reader.addr() else { continue };
        // Waiting for the reader to take them in keeps the pass over unheld entries out until they are held.
        if reader.send(TakenOver { entries }).await.is_err() {
            tracing::warn!("the reader is away, the entries stay for a later pass");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takeover_needs_one_full_lease_of_contact() {
        let (start, lease) = (Instant::now(), Duration::from_secs(60));
        let mut contact = Contact::default();
        assert!(!contact.proven(start + lease, lease), "no contact yet");
        contact.answered(start);
        contact.answered(start + lease / 2);
        assert!(!contact.proven(start + lease / 2, lease));
        assert!(contact.proven(start + lease, lease));
        contact.broke(&RedisError::TimedOut { limit: lease });
        assert!(!contact.proven(start + lease * 2, lease));
    }
}
