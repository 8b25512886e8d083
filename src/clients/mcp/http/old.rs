//! A server over HTTP as it was in 2024-11-05: one event stream, opened by a GET, brings everything; its first event
//! says where requests are posted to. The stream cannot be taken up again: with it the session ends.

use std::future::{Future, ready};
use std::sync::Arc;

use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceT};
use jsonrpsee::types::{Id, Request};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, Response, Url};
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::super::MAX_MESSAGE;
use super::super::endpoint::Endpoint;
use super::super::error::McpError;
use super::super::inbox::Inbox;
use super::super::pending::Pending;
use super::super::service::{Flight, FlightPlan, NoBatches};
use super::super::wire::{self, Incoming};
use super::link::{HttpLink, media_type};
use super::{EVENT_STREAM, SIDE_LIMIT};
use crate::clients::sse::{Event, SseDecoder};

/// The transport.
#[derive(Clone)]
pub(in super::super) struct OldSseService {
    inner: Arc<Inner>,
}

struct Inner {
    link: HttpLink,
    /// Where requests are posted to.
    post_to: Url,
    pending: Arc<Pending>,
}

/// The event stream as far as it was read.
struct Stream {
    response: Response,
    decoder: SseDecoder,
    events: Vec<Event>,
}

impl OldSseService {
    /// Opens the event stream and waits for the place to post to.
    pub(in super::super) async fn open(url: &str, endpoint: &Endpoint, inbox: Arc<Inbox>) -> Result<Self, McpError> {
        let link = HttpLink::new(url, endpoint, Arc::clone(&inbox))?;
        let flight = FlightPlan::plain("the stream of events", endpoint.config.connect_timeout).start();
        let response = link.send(link.request(Method::GET).header(ACCEPT, EVENT_STREAM), &flight).await?;
        if !response.status().is_success() || media_type(&response) != EVENT_STREAM {
            return Err(link.protocol("it offers no stream of events"));
        }
        let mut stream = Stream { response, decoder: SseDecoder::new(MAX_MESSAGE), events: Vec::new() };
        let first = loop {
            if !stream.events.is_empty() {
                break stream.events.remove(0);
            }
            if !stream.read(&link).await? {
                return Err(link.closed("its stream of events ended before it began", false));
            }
        };
        let place = (first.kind.as_deref() == Some("endpoint")).then(|| link.url().join(&first.data).ok()).flatten();
        let post_to = place.ok_or_else(|| link.protocol("its stream of events does not begin with an endpoint"))?;
        if post_to.origin() != link.url().origin() {
            // The credentials would go there.
            return Err(link.protocol("it wants its requests sent to another host"));
        }
        let inner = Arc::new(Inner { link, post_to, pending: Pending::new(Arc::clone(&inbox)) });
        let reader = Arc::clone(&inner);
        tokio::spawn(async move { inbox.closed().run_until_cancelled(reader.read(stream)).await });
        Ok(Self { inner })
    }

    /// Nobody is told: the end of the stream is the end of the session.
    pub(in super::super) fn close(&self) {
        self.inner.pending.close("it was closed here");
    }
}

impl RpcServiceT for OldSseService {
    type MethodResponse = Result<Box<RawValue>, McpError>;
    type NotificationResponse = Result<(), McpError>;
    type BatchResponse = NoBatches;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = Self::MethodResponse> + Send + 'a {
        let inner = Arc::clone(&self.inner);
        async move {
            let flight = Flight::of(&request);
            let Id::Number(id) = request.id else { return Err(inner.link.protocol("a request without a number")) };
            let expected = inner.pending.expect(id, &flight)?;
            inner.post(serde_json::to_string(&request).expect("messages serialise"), &flight).await?;
            expected.answer().await
        }
    }

    fn batch<'a>(&self, _: Batch<'a>) -> impl Future<Output = Self::BatchResponse> + Send + 'a {
        ready(NoBatches)
    }

    fn notification<'a>(&self, n: Notification<'a>) -> impl Future<Output = Self::NotificationResponse> + Send + 'a {
        let inner = Arc::clone(&self.inner);
        async move {
            let flight = FlightPlan::plain(&n.method, SIDE_LIMIT).start();
            inner.post(serde_json::to_string(&n).expect("messages serialise"), &flight).await
        }
    }
}

impl Inner {
    /// Posts a message; what it leads to comes on the stream.
    async fn post(&self, body: String, flight: &Flight) -> Result<(), McpError> {
        let post = self.link.request_to(Method::POST, self.post_to.clone());
        let response = self.link.send(post.header(CONTENT_TYPE, "application/json").body(body), flight).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        Err(McpError::Http {
            server: Arc::clone(self.link.inbox().server()),
            status: status.as_u16(),
            message: self
                .link
                .remedy(status)
                .unwrap_or_else(|| status.canonical_reason().unwrap_or_default().to_owned()),
            retry_after: super::refusal::retry_after(response.headers()),
            may_have_run: flight.may_have_run() && status.is_server_error(),
        })
    }

    async fn read(self: &Arc<Self>, mut stream: Stream) {
        loop {
            for event in std::mem::take(&mut stream.events) {
                match wire::parse(&event.data) {
                    Some(messages) => {
                        for message in messages {
                            self.receive(message).await;
                        }
                    }
                    None => self.link.inbox().noise("event that is no message"),
                }
            }
            match stream.read(&self.link).await {
                Ok(true) => {}
                Ok(false) => return self.pending.close("its stream of events ended"),
                Err(error) => return self.pending.close(&error.to_string()),
            }
        }
    }

    async fn receive(self: &Arc<Self>, message: Incoming) {
        let inbox = self.link.inbox();
        match message {
            Incoming::Answer { id, outcome } => {
                let answer = outcome.map_err(|fault| self.link.rpc(&fault, None));
                if !id.is_some_and(|id| self.pending.answer(id, answer)) {
                    inbox.noise("answer to nothing that is pending");
                }
            }
            Incoming::Notification { method, progress } => inbox.notification(&method, progress),
            Incoming::Request { id, method, params } => {
                let this = Arc::clone(self);
                let reply = async move {
                    let inbox = this.link.inbox();
                    let answer = inbox.answer(&id, &method, &params).await;
                    let flight = FlightPlan::plain("the answer to the server", SIDE_LIMIT).start();
                    if !matches!(timeout(SIDE_LIMIT, this.post(answer, &flight)).await, Ok(Ok(()))) {
                        inbox.noise("answer to the server that could not be sent");
                    }
                };
                // All answers come by this one stream, so it is read on meanwhile.
                inbox.beside(reply).await;
            }
        }
    }
}

impl Stream {
    /// Reads on; false at the end.
    async fn read(&mut self, link: &HttpLink) -> Result<bool, McpError> {
        let Ok(Some(bytes)) = self.response.chunk().await else { return Ok(false) };
        let Self { decoder, events, .. } = self;
        decoder.feed(&bytes, |event| events.push(event)).map_err(|_| link.too_large("an event", MAX_MESSAGE))?;
        Ok(true)
    }
}
