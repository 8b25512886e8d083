//! Server-sent events of an answer that is written while it is read: bounded in bytes, and given up when it goes quiet.
//! What the events mean is each protocol's.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
pub(super) use eventsource_stream::Event;
use eventsource_stream::{EventStream, EventStreamError};
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, Sleep, sleep_until};

/// What one stream may take. The time it may take as a whole is the request's.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamLimits {
    /// Bytes of one event, and of what stands between two events.
    pub event: usize,
    /// Bytes of the whole stream.
    pub total: usize,
    /// How long it may say nothing after its first byte. A comment is a sign of life.
    pub quiet: Duration,
}

/// Why a stream gives no further event.
#[derive(Debug, PartialEq)]
pub(super) enum SseError<E> {
    /// It said nothing for this long.
    Quiet(Duration),
    /// It, or one event of it, has more bytes than this.
    TooLarge(usize),
    /// It is no text.
    NotText,
    /// The connection broke.
    Broken(E),
}

/// Reads the events of a stream of bytes.
pub(super) struct EventReader<S> {
    events: EventStream<Bounded<S>>,
    held: Arc<AtomicUsize>,
}

impl<S, E> EventReader<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// A reader of these bytes.
    pub fn new(bytes: S, limits: StreamLimits) -> Self {
        let held = Arc::new(AtomicUsize::new(0));
        let bounded = Bounded { bytes, limits, held: Arc::clone(&held), total: 0, quiet: None };
        Self { events: EventStream::new(bounded), held }
    }

    /// The next event that has data; none at the end of the stream. An event that was not ended is none.
    pub async fn next(&mut self) -> Result<Option<Event>, SseError<E>> {
        let next = self.events.next().await;
        self.held.store(0, Ordering::Relaxed);
        next.transpose().map_err(|error| match error {
            EventStreamError::Transport(error) => error,
            EventStreamError::Utf8(_) | EventStreamError::Parser(_) => SseError::NotText,
        })
    }
}

/// Counts and times the bytes on their way to the parser, which itself would hold any number of them.
struct Bounded<S> {
    bytes: S,
    limits: StreamLimits,
    /// Bytes since the last event.
    held: Arc<AtomicUsize>,
    total: usize,
    /// Rings when the stream has been quiet for too long; set by its first byte.
    quiet: Option<Pin<Box<Sleep>>>,
}

impl<S, E> Stream for Bounded<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    type Item = Result<Bytes, SseError<E>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let bytes = match this.bytes.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(bytes))) => bytes,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(SseError::Broken(error)))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {
                let rings = this.quiet.as_mut().is_some_and(|quiet| quiet.as_mut().poll(cx).is_ready());
                return if rings { Poll::Ready(Some(Err(SseError::Quiet(this.limits.quiet)))) } else { Poll::Pending };
            }
        };
        this.total += bytes.len();
        let held = this.held.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        for (count, limit) in [(held, this.limits.event), (this.total, this.limits.total)] {
            if count > limit {
                return Poll::Ready(Some(Err(SseError::TooLarge(limit))));
            }
        }
        let until = Instant::now() + this.limits.quiet;
        match &mut this.quiet {
            Some(quiet) => quiet.as_mut().reset(until),
            none => *none = Some(Box::pin(sleep_until(until))),
        }
        Poll::Ready(Some(Ok(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const LIMITS: StreamLimits = StreamLimits { event: 100, total: 1000, quiet: Duration::from_secs(10) };

    /// Reads pieces that come after these waits.
    async fn read(pieces: Vec<(u64, &'static str)>, limits: StreamLimits) -> (Vec<String>, Option<SseError<()>>) {
        let bytes = stream::iter(pieces).then(|(seconds, piece)| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            if piece == "BROKEN" { Err(()) } else { Ok(Bytes::from_static(piece.as_bytes())) }
        });
        let mut reader = EventReader::new(Box::pin(bytes), limits);
        let mut events = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(event)) => events.push(format!("{}={}", event.event, event.data)),
                Ok(None) => return (events, None),
                Err(error) => return (events, Some(error)),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_read_wherever_the_bytes_are_cut() {
        let pieces = vec![
            (0, "event: a\ndata: {\"x\":"),
            (1, "1}\n"),
            (1, "\n: alive\n\ndata: two\r\ndata: lines\r\n\r"),
            (1, "\nid: 7\n\ndata: not ended"),
        ];
        let (events, error) = read(pieces, LIMITS).await;
        assert_eq!((events, error), (vec![String::from("a={\"x\":1}"), String::from("message=two\nlines")], None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_quiet_only_after_its_first_byte_and_a_comment_is_a_sign_of_life() {
        let alive = (0..5).map(|_| (9, ": alive\n\n"));
        let pieces = [(60, "data: a\n\n")].into_iter().chain(alive).chain([(11, "data: late\n\n")]).collect();
        let (events, error) = read(pieces, LIMITS).await;
        assert_eq!((events.len(), error), (1, Some(SseError::Quiet(LIMITS.quiet))));
    }

    #[tokio::test(start_paused = true)]
    async fn no_event_and_no_stream_is_larger_than_its_limit() {
        let long: &'static str = Box::leak("x".repeat(60).into_boxed_str());
        let endless = (0..3).map(|_| (0, long)).collect();
        assert_eq!(read(endless, LIMITS).await.1, Some(SseError::TooLarge(100)));
        let many = (0..200).map(|_| (0, "data: a\n\n")).collect();
        let (events, error) = read(many, LIMITS).await;
        assert_eq!((events.len(), error), (111, Some(SseError::TooLarge(1000))));
        let fits = (0..100).map(|_| (0, "data: a\n\n")).collect();
        assert_eq!(read(fits, LIMITS).await.0.len(), 100, "what was read is not held");
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_a_break_is_given() {
        let (events, error) = read(vec![(0, "data: a\n\nda"), (0, "BROKEN")], LIMITS).await;
        assert_eq!((events.len(), error), (1, Some(SseError::Broken(()))));
    }
}
