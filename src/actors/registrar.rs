//! Registrar: tells the worker registry every few seconds that this worker lives and what it does.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::actors::custody::InFlight;
use crate::clients::redis::WorkerRegistry;
use crate::health::Health;

/// How often; the registry forgets a worker after 30 s.
const EVERY: Duration = Duration::from_secs(10);

/// What the registry says about this worker.
pub struct Registrar {
    /// The registry.
    pub registry: WorkerRegistry,
    /// The worker's name.
    pub worker_id: String,
    /// The nonce of this process's start.
    pub instance: String,
    /// Nodes that may run at once.
    pub pool_size: usize,
    /// Where HTTP listens.
    pub address: String,
    /// Configured tool servers and built-in tools.
    pub tools: Vec<String>,
    /// Configured models.
    pub models: Vec<String>,
    /// The entries held.
    pub in_flight: InFlight,
    /// What the worker knows about itself.
    pub health: Arc<Health>,
}

impl Registrar {
    /// Announces until the worker stops, then withdraws.
    pub async fn announce_until(self, stop: CancellationToken) {
        let registered_at = Timestamp::now();
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {
                    // The registry is for people and dashboards: a failure only makes the entry expire.
                    if let Err(error) = self.registry.announce(&self.describe(registered_at)).await {
                        tracing::debug!(%error, "the worker registry was not updated");
                    }
                }
            }
        }
        if let Err(error) = self.registry.withdraw(&self.instance).await {
            tracing::debug!(%error, "the worker registry was not told of the stop");
        }
    }

    fn describe(&self, registered_at: Timestamp) -> String {
        let in_flight = self.in_flight.len();
        let status = match (self.health.draining(), self.health.live(), in_flight) {
            (true, ..) => "stopped",
            (_, false, _) => "unhealthy",
            (_, _, 0) => "idle",
            _ => "busy",
        };
        json!({
            "id": self.worker_id,
            "type": "executor",
            "status": status,
            "registered_at": registered_at,
            "last_heartbeat": Timestamp::now(),
            "current_task": if in_flight > 0 { self.health.current() } else { None },
            "pending_tasks": in_flight,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {
                "instance": self.instance,
                "pool_size": self.pool_size,
                "in_flight": in_flight,
                "address": self.address,
                "tools": self.tools,
                "models": self.models,
            },
        })
        .to_string()
    }
}
