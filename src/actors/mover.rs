//! Mover: brings nodes back whose wait outside of the stream is over. Every worker has one, and any number of them may
//! look at once: the script gives each piece of work to one of them.

use std::sync::Arc;
use std::time::Duration;

use actix::fut::ActorFutureExt as _;
use actix::{Actor, ActorContext as _, AsyncContext as _, Context, WrapFuture as _};
use tokio_util::sync::CancellationToken;

use crate::actors::supervise::DeathWatch;
use crate::clients::redis::{Moved, ParkingLot, RedisError};
use crate::metrics::Metrics;

/// Work that one look brings back; more is brought back by the next, which follows at once.
const LIMIT: usize = 200;
/// Bounds of the pause between two looks.
const SHORTEST_ROUND: Duration = Duration::from_millis(50);
const LONGEST_ROUND: Duration = Duration::from_secs(1);

/// What moving needs.
pub struct MoverDeps {
    /// Where nodes wait.
    pub parking: ParkingLot,
    /// Their streams.
    pub streams: Vec<Arc<str>>,
    /// The shortest wait outside: there is no need to look much more often.
    pub park_after: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the worker stops.
    pub stop: CancellationToken,
}

/// Moves due work.
pub struct Mover {
    deps: Arc<MoverDeps>,
    _watch: DeathWatch,
}

impl Mover {
    /// A mover that reports its death to `watch`.
    pub fn new(deps: Arc<MoverDeps>, watch: DeathWatch) -> Self {
        Self { deps, _watch: watch }
    }
}

impl Actor for Mover {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let deps = Arc::clone(&self.deps);
        let work = async move { move_until_stopped(&deps).await };
        ctx.spawn(work.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

async fn move_until_stopped(deps: &MoverDeps) {
    let round = (deps.park_after / 2).clamp(SHORTEST_ROUND, LONGEST_ROUND);
    let mut failing = false;
    loop {
        // A fleet should not look in one instant.
        tokio::select! {
            () = deps.stop.cancelled() => return,
            () = tokio::time::sleep(round.mul_f64(0.75 + fastrand::f64() * 0.25)) => {}
        }
        match look(deps).await {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("waiting nodes are brought back again");
                }
            }
            Err(error) => {
                // One line an outage, not one a look.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "waiting nodes cannot be brought back, trying on");
                }
            }
        }
    }
}

async fn look(deps: &MoverDeps) -> Result<(), RedisError> {
    let mut waiting = 0;
    for stream in &deps.streams {
        loop {
            let moved = deps.parking.bring_back(stream, LIMIT).await?;
            let Moved { returned, bodiless, .. } = moved;
            if returned > 0 {
                tracing::info!(stream = %stream, nodes = returned, "nodes that waited are brought back");
            }
            if bodiless > 0 {
                tracing::error!(stream = %stream, nodes = bodiless, "nodes that waited have no body any more and are lost");
            }
            let rest = moved.waiting.saturating_sub(returned + bodiless);
            // Other movers may have been faster; a look that found nothing to do ends the round.
            if moved.found < LIMIT || returned + bodiless == 0 || deps.stop.is_cancelled() {
                waiting += rest;
                break;
            }
        }
    }
    deps.metrics.parked_now.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    Ok(())
}
