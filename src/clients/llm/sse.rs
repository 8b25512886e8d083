//! Server-sent events of an answer that is written while it is read: bounded in bytes, and given up when it goes quiet.
//! What the events mean is each protocol's.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::time::timeout;

pub(super) use crate::clients::sse::Event;
use crate::clients::sse::{EventTooLarge, SseDecoder};

/// What one stream may take. The time it may take as a whole is the request's.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamLimits {
    /// Bytes of one event.
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
    bytes: S,
    limits: StreamLimits,
    decoder: SseDecoder,
    /// Events that came with the last bytes and were not asked for yet.
    ready: VecDeque<Event>,
    total: usize,
}

impl<S, E> EventReader<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    /// A reader of these bytes.
    pub fn new(bytes: S, limits: StreamLimits) -> Self {
        Self { bytes, limits, decoder: SseDecoder::new(limits.event), ready: VecDeque::new(), total: 0 }
    }

    /// The next event that has data; none at the end of the stream. An event that was not ended is none.
    pub async fn next(&mut self) -> Result<Option<Event>, SseError<E>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return if event.is_text { Ok(Some(event)) } else { Err(SseError::NotText) };
            }
            let Some(bytes) = self.more().await? else { return Ok(None) };
            self.total += bytes.len();
            let StreamLimits { event, total, .. } = self.limits;
            if self.total > total {
                return Err(SseError::TooLarge(total));
            }
            let ready = &mut self.ready;
            let fed = self.decoder.feed(&bytes, |event| ready.push_back(event));
            fed.map_err(|EventTooLarge| SseError::TooLarge(event))?;
        }
    }

    /// The next bytes. How long the first ones may take is the request's.
    async fn more(&mut self) -> Result<Option<Bytes>, SseError<E>> {
        let next = self.bytes.next();
        let bytes = match self.total {
            0 => next.await,
            _ => timeout(self.limits.quiet, next).await.map_err(|_| SseError::Quiet(self.limits.quiet))?,
        };
        bytes.transpose().map_err(SseError::Broken)
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
                Ok(Some(event)) => {
                    events.push(format!("{}={}", event.kind.as_deref().unwrap_or("message"), event.data))
                }
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
    async fn a_byte_order_mark_does_no_harm_wherever_it_stands() {
        let pieces = vec![(0, "\u{feff}data: a\n\n"), (0, "\u{feff}"), (0, "data: b\n\ndata: c\n\n")];
        let (events, error) = read(pieces, LIMITS).await;
        assert_eq!((events, error), (vec![String::from("message=a"), String::from("message=c")], None));
    }

    #[tokio::test(start_paused = true)]
    async fn data_that_is_no_text_ends_the_stream_after_what_came_before_it() {
        let bytes = stream::iter([Ok::<_, ()>(Bytes::from_static(b"data: a\n\ndata: \xff\n\ndata: b\n\n"))]);
        let mut reader = EventReader::new(bytes, LIMITS);
        assert_eq!(reader.next().await.expect("an event").map(|event| event.data).as_deref(), Some("a"));
        assert_eq!(reader.next().await, Err(SseError::NotText));
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_before_a_break_is_given() {
        let (events, error) = read(vec![(0, "data: a\n\nda"), (0, "BROKEN")], LIMITS).await;
        assert_eq!((events.len(), error), (1, Some(SseError::Broken(()))));
    }
}
