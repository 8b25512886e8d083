//! Layers between the typed client and a transport: the limits of a request, and telling the server that we gave up.

use std::future::{Future, ready};
use std::sync::Arc;
use std::time::Duration;

use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceT};
use jsonrpsee::types::{Id, Request};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::error::McpError;
use super::service::{Flight, McpService, NoBatches};
use super::wire;

/// How long telling a server that we gave up may take.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// Ends a request at its limits by dropping it.
#[derive(Clone)]
pub(super) struct Deadline<S> {
    service: S,
    server: Arc<str>,
}

impl<S> Deadline<S> {
    /// Around `service` of `server`.
    pub(super) fn new(service: S, server: Arc<str>) -> Self {
        Self { service, server }
    }
}

impl<S: McpService> RpcServiceT for Deadline<S> {
    type MethodResponse = Result<Box<RawValue>, McpError>;
    type NotificationResponse = Result<(), McpError>;
    type BatchResponse = NoBatches;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        let flight = Flight::of(&request);
        let server = Arc::clone(&self.server);
        let call = self.service.call(request);
        async move {
            tokio::select! {
                biased;
                answer = call => answer,
                limit = flight.out_of_time() => Err(McpError::TimedOut {
                    server,
                    what: flight.plan().what.clone(),
                    limit,
                    may_have_run: flight.may_have_run(),
                }),
            }
        }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        ready(NoBatches)
    }

    fn notification<'a>(&self, n: Notification<'a>) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        self.service.notification(n)
    }
}

/// Sends `notifications/cancelled` when a request is dropped before its answer: nothing else would tell the server.
#[derive(Clone)]
pub(super) struct CancelOnDrop<S> {
    service: S,
}

impl<S> CancelOnDrop<S> {
    /// Around `service`.
    pub(super) fn new(service: S) -> Self {
        Self { service }
    }
}

impl<S: McpService> RpcServiceT for CancelOnDrop<S> {
    type MethodResponse = Result<Box<RawValue>, McpError>;
    type NotificationResponse = Result<(), McpError>;
    type BatchResponse = NoBatches;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        let flight = Flight::of(&request);
        let id = match &request.id {
            Id::Number(id) if flight.plan().cancellable => Some(*id),
            _ => None,
        };
        let pending = Pending { service: self.service.clone(), id, flight };
        let call = self.service.call(request);
        async move {
            // As a whole: a closure over one field would leave the guard behind.
            let mut pending = pending;
            let answer = call.await;
            pending.id = None;
            answer
        }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        ready(NoBatches)
    }

    fn notification<'a>(&self, n: Notification<'a>) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        self.service.notification(n)
    }
}

/// A request under way.
struct Pending<S: McpService> {
    service: S,
    id: Option<u64>,
    flight: Flight,
}

impl<S: McpService> Drop for Pending<S> {
    fn drop(&mut self) {
        let Some(id) = self.id.filter(|_| self.flight.has_left()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let service = self.service.clone();
        runtime.spawn(async move {
            let told = timeout(CANCEL_LIMIT, service.notification(wire::cancelled(id))).await;
            tracing::debug!(request = id, told = matches!(told, Ok(Ok(()))), "request cancelled");
        });
    }
}
