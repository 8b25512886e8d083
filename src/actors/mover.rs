//! Mover: brings nodes back whose wait outside of the stream is over. Every worker has one, and any number of them may
//! look at once: the script gives each piece of work to one of them. Nodes that somebody ordered to stop need not wait:
//! they are brought back at once, and end when they are opened.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use actix::fut::ActorFutureExt as _;
use actix::{Actor, ActorContext as _, AsyncContext as _, Context, WrapFuture as _};
use tokio_util::sync::CancellationToken;

use crate::actors::supervise::DeathWatch;
use crate::clients::redis::{CancelWatch, Keys, Link, Moved, ParkingLot, RedisError, Waiting, WaitingRoom};
use crate::metrics::Metrics;

/// Work that one look brings back; more is brought back by the next, which follows at once.
const LIMIT: usize = 200;
/// Looks for orders to stop in which all waiting nodes of a stream are asked about, if they are not too many for that.
const LOOKS: u64 = 6;
/// Waiting nodes that one such look asks about, at the least and at the most: what it costs Redis is bounded.
const ASKED: u64 = 500;
const MOST_ASKED: u64 = 5000;
/// Bounds of the pause between two looks.
const SHORTEST_ROUND: Duration = Duration::from_millis(50);
const LONGEST_ROUND: Duration = Duration::from_secs(1);

/// What moving needs.
pub struct MoverDeps {
    /// Where nodes wait.
    pub parking: ParkingLot,
    /// What others are asked.
    pub waiting: WaitingRoom,
    /// Their streams.
    pub streams: Vec<Arc<str>>,
    /// The shortest wait outside: there is no need to look much more often.
    pub park_after: Duration,
    /// How often it is looked for orders to stop, as for nodes that run.
    pub heartbeat: Duration,
    /// Where such orders are.
    pub link: Link,
    /// The names of our keys.
    pub keys: Keys,
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

impl MoverDeps {
    fn watch(&self) -> CancelWatch {
        CancelWatch::new(self.link.clone(), self.keys.clone())
    }
}

async fn move_until_stopped(deps: &MoverDeps) {
    let round = (deps.park_after / 2).clamp(SHORTEST_ROUND, LONGEST_ROUND);
    let mut orders = Orders::new(deps);
    let mut failing = false;
    loop {
        // A fleet should not look in one instant.
        tokio::select! {
            () = deps.stop.cancelled() => return,
            () = tokio::time::sleep(round.mul_f64(0.75 + fastrand::f64() * 0.25)) => {}
        }
        let looked = match orders.look(deps).await {
            Ok(()) => look(deps).await,
            error => error,
        };
        match looked {
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

/// Looks for orders to stop that are for waiting nodes, a part of them at a time.
struct Orders {
    next: Instant,
    /// One a stream.
    rounds: Vec<Round>,
}

/// The way through the waiting nodes of one stream.
struct Round {
    /// Where the next part begins.
    from: u64,
    watch: CancelWatch,
}

impl Orders {
    fn new(deps: &MoverDeps) -> Self {
        let begin = |_| Round { from: 0, watch: deps.watch() };
        Self { next: Instant::now(), rounds: deps.streams.iter().map(begin).collect() }
    }

    async fn look(&mut self, deps: &MoverDeps) -> Result<(), RedisError> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + deps.heartbeat;
        for (stream, round) in deps.streams.iter().zip(&mut self.rounds) {
            round.look(deps, stream).await?;
        }
        Ok(())
    }
}

impl Round {
    /// Asks about one part, and begins anew behind the last.
    async fn look(&mut self, deps: &MoverDeps, stream: &str) -> Result<(), RedisError> {
        let all = deps.parking.count(stream).await?;
        let mut left = all.div_ceil(LOOKS).clamp(ASKED, MOST_ASKED);
        while left > 0 {
            let (next, waiting) = deps.parking.waiting(stream, self.from, left.min(ASKED)).await?;
            left = left.saturating_sub(waiting.len().max(1) as u64);
            let known: Vec<&Waiting> = waiting.iter().filter(|waiting| waiting.node.is_some()).collect();
            let nodes: Vec<_> = known.iter().filter_map(|waiting| waiting.node.clone()).collect();
            let orders = self.watch.look_at_some(&nodes).await?;
            let stopped: Vec<_> =
                known.into_iter().zip(orders).filter_map(|(node, order)| order.and(Some(node))).collect();
            let hastened = deps.parking.hasten(stream, &stopped).await?;
            if hastened > 0 {
                tracing::info!(stream = %stream, nodes = hastened, "nodes that waited are cancelled");
            }
            self.from = next;
            if next == 0 {
                self.watch.forget_others();
                return Ok(());
            }
        }
        Ok(())
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
    deps.metrics.waits_open.set(i64::try_from(deps.waiting.count().await?).unwrap_or(i64::MAX));
    Ok(())
}
