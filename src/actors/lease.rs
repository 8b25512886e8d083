//! LeaseKeeper: renews what this process holds, on a thread and a connection of its own, so that neither a busy
//! executor nor a slow command lets a lease expire. Its contact with Redis is the [`Gate`] of every takeover.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::fut::ActorFutureExt as _;
use actix::{Actor, ActorContext as _, AsyncContext as _, Context, WrapFuture as _};
use tokio_util::sync::CancellationToken;

use crate::actors::custody::InFlight;
use crate::actors::supervise::DeathWatch;
use crate::clients::redis::{CancelWatch, Leases, RedisError, Renewal};
use crate::health::Health;
use crate::metrics::Metrics;

/// Whether expired leases of others may be taken over.
///
/// A worker that was away itself must not take its neighbours' work: their renewals may only be late for the same
/// reason, be it a paused Redis, a cut network or a stopped machine. One full lease of unbroken contact proves that
/// they had their chance.
#[derive(Debug)]
pub struct Gate {
    lease: Duration,
    contact: Mutex<Option<Contact>>,
}

#[derive(Debug, Clone, Copy)]
struct Contact {
    since: Instant,
    last: Instant,
}

impl Gate {
    /// A gate for leases of this length; closed.
    pub fn new(lease: Duration) -> Self {
        Self { lease, contact: Mutex::new(None) }
    }

    fn answered(&self, now: Instant) {
        let mut contact = self.contact.lock().expect("nobody panics while holding the contact");
        let since = match *contact {
            Some(Contact { since, last }) if now.duration_since(last) < self.lease / 2 => since,
            // The first answer, or the first after a silence that others may have suffered too.
            _ => now,
        };
        *contact = Some(Contact { since, last: now });
    }

    fn broke(&self) {
        *self.contact.lock().expect("nobody panics while holding the contact") = None;
    }

    /// Whether contact has lasted for a full lease and is fresh.
    pub fn open(&self, now: Instant) -> bool {
        let contact = *self.contact.lock().expect("nobody panics while holding the contact");
        contact.is_some_and(|Contact { since, last }| {
            now.duration_since(since) >= self.lease && now.duration_since(last) < self.lease / 2
        })
    }
}

/// What keeping leases needs.
pub struct LeaseDeps {
    /// Opens a connection of the keeper's own; called on its thread.
    pub connect: Box<dyn Fn() -> Leases + Send + Sync>,
    /// The entries held.
    pub in_flight: InFlight,
    /// What the contact opens.
    pub gate: Arc<Gate>,
    /// How often leases are renewed.
    pub renew: Duration,
    /// What the worker knows about itself.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
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

async fn keep_until_stopped(deps: &LeaseDeps) {
    let leases = (deps.connect)();
    let mut orders = Orders { watch: leases.cancel_watch(), failed: false };
    let mut failing = false;
    let mut ticks = tokio::time::interval(deps.renew);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = deps.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match renew(deps, &leases).await {
            Ok(()) => {
                deps.gate.answered(Instant::now());
                if std::mem::take(&mut failing) {
                    deps.health.redis_answers(true);
                    tracing::info!("leases are renewed again");
                }
                // Renewing comes first: what takes long here must not cost a lease.
                orders.heed(deps).await;
            }
            Err(error) => {
                deps.gate.broke();
                // The reader does not ask while the pool is full.
                if error.is_outage() {
                    deps.health.redis_answers(false);
                }
                // One line an outage, not one a tick.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "renewing leases failed, trying on");
                }
            }
        }
    }
}

/// Orders to stop, heeded once a renewal.
struct Orders {
    watch: CancelWatch,
    failed: bool,
}

impl Orders {
    async fn heed(&mut self, deps: &LeaseDeps) {
        let running = deps.in_flight.running();
        let nodes: Vec<_> = running.iter().map(|running| running.node.clone()).collect();
        let looked = tokio::time::timeout(deps.renew / 2, self.watch.look(&nodes)).await;
        let problem = match looked {
            Ok(Ok(orders)) => {
                for (running, order) in running.iter().zip(orders) {
                    let Some(order) = order else { continue };
                    if deps.in_flight.request(running, order) {
                        let (graph, node) = &running.node;
                        tracing::info!(graph.id = %graph, node.id = %node, "a node is cancelled by an order");
                    }
                }
                self.failed = false;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => String::from("it took too long"),
        };
        if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!(problem, "looking for orders to stop failed, trying on");
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

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    #[test]
    fn takeover_needs_one_full_lease_of_contact() {
        let (gate, start) = (Gate::new(LEASE), Instant::now());
        assert!(!gate.open(start + LEASE), "no contact yet");
        for tenth in 0..=10 {
            gate.answered(start + LEASE * tenth / 10);
            assert_eq!(gate.open(start + LEASE * tenth / 10), tenth == 10);
        }
        gate.broke();
        assert!(!gate.open(start + LEASE));
    }

    #[test]
    fn a_silence_without_an_error_begins_the_contact_anew() {
        let (gate, start) = (Gate::new(LEASE), Instant::now());
        gate.answered(start);
        let woken = start + LEASE * 3;
        assert!(!gate.open(woken), "a stale contact proves nothing");
        gate.answered(woken);
        assert!(!gate.open(woken), "others may have slept as well");
    }
}
