//! StateStore: the doorway to the graph's state. The scripts and layouts are the Redis client's.

use std::sync::Arc;

use actix::{Actor, Context, Handler, ResponseFuture};

use crate::actors::messages::{NodeIds, Open, Read};
use crate::actors::supervise::DeathWatch;
use crate::clients::redis::StateStore as Client;
use crate::domain::outcome::Failure;
use crate::domain::state::Snapshot;
use crate::health::Health;
use crate::ports::Opened;
use crate::retry::Retry;

/// Opens runs and reads state.
pub struct StateStore {
    client: Client,
    health: Arc<Health>,
    _watch: DeathWatch,
}

impl StateStore {
    /// A store over this client, which tells `health` whether runs can begin.
    pub fn new(client: Client, health: Arc<Health>, watch: DeathWatch) -> Self {
        Self { client, health, _watch: watch }
    }
}

impl Actor for StateStore {
    type Context = Context<Self>;
}

impl Handler<Open> for StateStore {
    type Result = ResponseFuture<Result<Opened, Failure>>;

    fn handle(&mut self, Open { delivery, wanted }: Open, _: &mut Self::Context) -> Self::Result {
        let (client, health) = (self.client.clone(), Arc::clone(&self.health));
        Box::pin(async move {
            let answer = client.open(&delivery, &wanted).await;
            // What may pass is no fault of this run: no other could begin either, so none should be fetched.
            health.refused(answer.as_ref().is_err_and(|error| error.retry() != Retry::Never));
            answer.map(|(opened, _)| opened).map_err(Failure::from)
        })
    }
}

impl Handler<Read> for StateStore {
    type Result = ResponseFuture<Result<Snapshot, Failure>>;

    fn handle(&mut self, Read { graph_id, wanted }: Read, _: &mut Self::Context) -> Self::Result {
        let client = self.client.clone();
        Box::pin(async move { client.read(&graph_id, &wanted).await.map_err(Failure::from) })
    }
}

impl Handler<NodeIds> for StateStore {
    type Result = ResponseFuture<Result<Vec<String>, Failure>>;

    fn handle(&mut self, NodeIds { graph_id }: NodeIds, _: &mut Self::Context) -> Self::Result {
        let client = self.client.clone();
        Box::pin(async move { client.node_ids(&graph_id).await.map_err(Failure::from) })
    }
}
