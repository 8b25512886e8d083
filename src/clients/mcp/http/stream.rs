//! Event streams of a server over HTTP: the one that answers a request, and in the legacy era the server's own. A
//! stream that breaks off is taken up where it ended, if the server gave a place to do so.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

use super::super::MAX_MESSAGE;
use super::super::era::Era;
use super::super::error::McpError;
use super::super::service::{Flight, FlightPlan};
use super::super::wire::{self, Incoming};
use super::{Awaited, EVENT_STREAM, Inner, SIDE_LIMIT, media_type};
use crate::clients::sse::SseDecoder;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Bytes of all events that answer one request.
const MAX_STREAM: usize = 4 * MAX_MESSAGE;
/// Times in a row that a broken stream is taken up again and brings nothing new.
const MAX_RESUMES: u32 = 5;
/// How long we wait before we take up a stream: where the server says nothing, at least, and at most.
const RESUME_PAUSE: Duration = Duration::from_secs(1);
const RESUME_PAUSE_MIN: Duration = Duration::from_millis(20);
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long the first call waits for the server's own stream: some send its head with the first event alone.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

impl Inner {
    /// Reads an event stream to the answer, over as many connections as the server makes of it.
    pub(super) async fn follow(
        self: &Arc<Self>,
        first: Response,
        id: u64,
        flight: &Flight,
    ) -> Result<Box<RawValue>, McpError> {
        let mut decoder = SseDecoder::new(MAX_MESSAGE);
        // What is listened to without an end is bounded by its events alone.
        let limit = flight.ends().map(|_| MAX_STREAM);
        let mut total = 0;
        let mut fruitless = 0;
        let mut response = Some(first);
        loop {
            if let Some(stream) = response.take() {
                let before = (total, decoder.last_id().map(str::to_owned));
                if let Some(answer) = self.drain(stream, &mut decoder, &mut total, limit, Awaited::Answer(id)).await? {
                    return answer;
                }
                let news = before.1.as_deref() != decoder.last_id();
                fruitless = if news { 0 } else { fruitless + 1 };
            }
            // In the modern era nothing is taken up: the request is lost with its stream.
            let legacy = flight.plan().dialect.era() == Era::Legacy;
            let Some(last) = decoder.last_id().filter(|_| legacy).and_then(|last| HeaderValue::from_str(last).ok())
            else {
                return Err(self.link.closed("its event stream ended before the answer", flight.may_have_run()));
            };
            if fruitless > MAX_RESUMES {
                return Err(self.link.closed("its event stream broke off again and again", flight.may_have_run()));
            }
            sleep(decoder.retry().unwrap_or(RESUME_PAUSE).clamp(RESUME_PAUSE_MIN, RESUME_PAUSE_MAX)).await;
            decoder.restart();
            // What few calls need is not a part of every call's memory.
            match Box::pin(self.open_stream(Some(last))).await {
                Ok(stream) if stream.status().is_success() && media_type(&stream) == EVENT_STREAM => {
                    response = Some(stream);
                }
                Ok(refusal) => return Err(Box::pin(self.refused(refusal, flight, true)).await),
                Err(_) => fruitless += 1,
            }
        }
    }

    /// Reads one connection's events. None if it ends without what is awaited.
    async fn drain(
        self: &Arc<Self>,
        mut response: Response,
        decoder: &mut SseDecoder,
        total: &mut usize,
        limit: Option<usize>,
        awaited: Awaited,
    ) -> Result<Option<Result<Box<RawValue>, McpError>>, McpError> {
        // However it ends, by its length or by a fault, what counts is whether the answer came.
        while let Ok(Some(bytes)) = response.chunk().await {
            *total += bytes.len();
            if let Some(limit) = limit.filter(|limit| *total > *limit) {
                return Err(self.link.too_large("the event stream of an answer", limit));
            }
            let mut events = Vec::new();
            decoder
                .feed(&bytes, |event| events.push(event.data))
                .map_err(|_| self.link.too_large("an answer", MAX_MESSAGE))?;
            for data in events {
                let Some(messages) = wire::parse(&data) else {
                    self.inbox().noise("event that is no message");
                    continue;
                };
                for message in messages {
                    if let Some(answer) = self.take(message, awaited).await {
                        self.tails.read_out(response).await;
                        return Ok(Some(answer));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Handles one message; the answer that is awaited is handed back.
    pub(super) async fn take(
        self: &Arc<Self>,
        message: Incoming,
        awaited: Awaited,
    ) -> Option<Result<Box<RawValue>, McpError>> {
        match (message, awaited) {
            (Incoming::Answer { id: Some(id), outcome }, Awaited::Answer(ours)) if id == ours => {
                Some(outcome.map_err(|fault| self.link.rpc(&fault, None)))
            }
            // Servers that could not read a request do not know its id; the stream tells whose error it is.
            (Incoming::Answer { id: None, outcome: Err(fault) }, Awaited::Answer(_)) => {
                Some(Err(self.link.rpc(&fault, None)))
            }
            // Some servers answer on the stream that is open already, whichever it is.
            (Incoming::Answer { id, outcome }, _) => {
                let answer = outcome.map_err(|fault| self.link.rpc(&fault, None));
                if !id.is_some_and(|id| self.pending.answer(id, answer)) {
                    self.inbox().noise("answer to nothing that is pending");
                }
                None
            }
            (Incoming::Notification { method, progress }, _) => {
                self.inbox().notification(&method, progress);
                None
            }
            // Asked in the course of this request: answered before the next event is read, so that a flood of requests
            // waits for us, and with the request its questions end.
            (Incoming::Request { id, method, params }, Awaited::Answer(_)) => {
                Box::pin(self.reply(&id, &method, &params)).await;
                None
            }
            (Incoming::Request { id, method, params }, Awaited::News) => {
                let this = Arc::clone(self);
                Box::pin(self.inbox().beside(async move { this.reply(&id, &method, &params).await })).await;
                None
            }
        }
    }

    /// Answers a request of the server.
    async fn reply(&self, id: &RawValue, method: &str, params: &Value) {
        let answer = self.inbox().answer(id, method, params).await;
        let flight = FlightPlan::plain("the answer to the server", SIDE_LIMIT).start();
        let sent = timeout(SIDE_LIMIT, self.link.send(self.post(answer), &flight)).await;
        if !matches!(sent, Ok(Ok(_))) {
            self.inbox().noise("answer to the server that could not be sent");
        }
    }

    /// The server's own stream, taken up again when it breaks.
    pub(super) async fn listen(self: &Arc<Self>) {
        let mut decoder = SseDecoder::new(MAX_MESSAGE);
        let mut opened = false;
        let mut fruitless = 0;
        while fruitless <= MAX_RESUMES {
            let last = decoder.last_id().and_then(|last| HeaderValue::from_str(last).ok());
            let stream = self.open_stream(last).await;
            self.settled.cancel();
            match stream {
                Ok(stream) if stream.status().is_success() && media_type(&stream) == EVENT_STREAM => {
                    self.inbox().listens(true);
                    if opened && decoder.last_id().is_none() {
                        // Nobody told us what changed while the stream was broken.
                        self.inbox().change_tools();
                    }
                    opened = true;
                    let mut total = 0;
                    let drained = self.drain(stream, &mut decoder, &mut total, None, Awaited::News).await;
                    self.inbox().listens(false);
                    if drained.is_err() {
                        break;
                    }
                    fruitless = if total > 0 { 0 } else { fruitless + 1 };
                }
                // A stream that was there and is not any more: so is the session.
                Ok(refusal) if opened && refusal.status() == StatusCode::NOT_FOUND => {
                    return self.lose();
                }
                Ok(_) if !opened => break,
                Ok(_) | Err(_) => fruitless += 1,
            }
            let asked = decoder.retry().unwrap_or(RESUME_PAUSE).clamp(RESUME_PAUSE_MIN, RESUME_PAUSE_MAX);
            let pause = asked.saturating_mul(1 << fruitless.min(5)).min(RESUME_PAUSE_MAX);
            sleep(pause.mul_f64(0.75 + fastrand::f64() * 0.5)).await;
            decoder.restart();
        }
        tracing::debug!(mcp.server = %self.inbox().server(), "server offers no stream of its own, or no longer");
    }

    /// Waits until the server's own stream is open, or is not offered. What is asked or answered there while nobody
    /// listens is lost, with many servers for good.
    pub(super) async fn settle(&self) {
        if timeout(SETTLE_LIMIT, self.settled.cancelled()).await.is_err() {
            tracing::debug!(mcp.server = %self.inbox().server(), "calls do not wait for the server's own stream");
            self.settled.cancel();
        }
    }

    async fn open_stream(&self, last_event: Option<HeaderValue>) -> Result<Response, McpError> {
        let mut get = self.request(Method::GET).header(ACCEPT, EVENT_STREAM);
        if let Some(last_event) = last_event {
            get = get.header(LAST_EVENT_ID, last_event);
        }
        let flight = FlightPlan::plain("the stream of events", Duration::MAX).start();
        self.link.send(get, &flight).await
    }
}
