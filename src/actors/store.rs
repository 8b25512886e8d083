//! StateStore: the doorway to the graph's state and to the journals. The scripts and layouts are the Redis client's.

use std::sync::Arc;

use actix::{Actor, Context, Handler, ResponseFuture};
use serde_json::value::RawValue;

use crate::actors::messages::{Append, FetchBlob, Lapse, NodeIds, Open, Read};
use crate::actors::supervise::DeathWatch;
use crate::clients::redis::{Blobs, JournalWriter, RedisError, StateStore as Client, WaitingRoom};
use crate::domain::outcome::Failure;
use crate::domain::state::Snapshot;
use crate::health::Health;
use crate::ports::{Appended, Opened};
use crate::retry::Retry;

/// Opens runs, reads state, writes journals.
pub struct StateStore {
    client: Client,
    journal: JournalWriter,
    waiting: WaitingRoom,
    blobs: Blobs,
    health: Arc<Health>,
    _watch: DeathWatch,
}

impl StateStore {
    /// A store over these clients, which tells `health` whether runs can begin.
    pub fn new(
        client: Client,
        journal: JournalWriter,
        waiting: WaitingRoom,
        blobs: Blobs,
        health: Arc<Health>,
        watch: DeathWatch,
    ) -> Self {
        Self { client, journal, waiting, blobs, health, _watch: watch }
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

impl Handler<FetchBlob> for StateStore {
    type Result = ResponseFuture<Result<Option<Box<RawValue>>, Failure>>;

    fn handle(&mut self, FetchBlob { graph_id, node_id, blob }: FetchBlob, _: &mut Self::Context) -> Self::Result {
        let blobs = self.blobs.clone();
        Box::pin(async move {
            let Some(bytes) = blobs.fetch(&graph_id, &node_id, &blob).await? else { return Ok(None) };
            let value = serde_json::from_slice(&bytes);
            value.map(Some).map_err(|error| {
                Failure::validation("blob_changed", format!("the stored output `{}` is not JSON: {error}", blob.key))
            })
        })
    }
}

impl Handler<NodeIds> for StateStore {
    type Result = ResponseFuture<Result<Vec<String>, Failure>>;

    fn handle(&mut self, NodeIds { graph_id }: NodeIds, _: &mut Self::Context) -> Self::Result {
        let client = self.client.clone();
        Box::pin(async move { client.node_ids(&graph_id).await.map_err(Failure::from) })
    }
}

impl Handler<Append> for StateStore {
    type Result = ResponseFuture<Result<Appended, Failure>>;

    fn handle(&mut self, Append { delivery, token, entry }: Append, _: &mut Self::Context) -> Self::Result {
        let journal = self.journal.clone();
        Box::pin(async move {
            journal.append(&delivery, &token, &entry).await.map_err(|error| match error {
                // Not the state's: the node's end can still be written there.
                RedisError::WrongType { .. } => Failure::validation("journal_wrong_type", error.to_string()),
                error => error.into(),
            })
        })
    }
}

impl Handler<Lapse> for StateStore {
    type Result = ResponseFuture<Result<(), Failure>>;

    fn handle(&mut self, Lapse { ask, said }: Lapse, _: &mut Self::Context) -> Self::Result {
        let waiting = self.waiting.clone();
        Box::pin(async move {
            waiting.lapse(&ask, &said).await.map_err(|error| match error {
                // As for the decisions of people: it goes on when somebody has mended it.
                RedisError::WrongType { .. } => Failure::retriable("audit_wrong_type", error.to_string()),
                error => error.into(),
            })
        })
    }
}
