//! Server-sent events with a bound, of MCP servers and of models alike: ids and waiting times are seen in blocks without
//! data too, work is linear in the bytes, and an event over its limit is refused before it is held. What the events mean,
//! and how long a stream may be silent, is for those who read them.

use std::borrow::Cow;
use std::time::Duration;

use memchr::memchr2;

/// One event with data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// What kind of event it is; none is a message.
    pub(super) kind: Option<String>,
    /// Its data; lines joined by a line feed.
    pub(super) data: String,
    /// Whether all of the data was UTF-8; what was not has been replaced.
    pub(super) is_text: bool,
}

/// Characters of the kind of an event that are kept.
const MAX_KIND: usize = 64;

/// An event is larger than the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EventTooLarge;

/// Takes bytes, gives events.
pub(super) struct SseDecoder {
    limit: usize,
    /// The beginning of a line whose end has not come yet.
    buffer: Vec<u8>,
    /// A line ended with CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The first line is still to come: a byte order mark before it means nothing.
    at_start: bool,
    event: Half,
    last_id: Option<String>,
    retry: Option<Duration>,
}

/// An event as far as it has come.
struct Half {
    /// Its data; none before its first `data` line.
    data: Option<String>,
    kind: Option<String>,
    is_text: bool,
}

impl SseDecoder {
    /// For events of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            buffer: Vec::new(),
            after_cr: false,
            at_start: true,
            event: Half::default(),
            last_id: None,
            retry: None,
        }
    }

    /// More bytes came; calls `on_event` for each event that is now complete.
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event)) -> Result<(), EventTooLarge> {
        let mut rest = bytes;
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(at) = memchr2(b'\n', b'\r', rest) {
            let (line, end) = rest.split_at(at);
            rest = &end[1..];
            if end[0] == b'\r' {
                self.after_cr = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
            let event = if self.buffer.is_empty() {
                self.line(line)
            } else {
                let mut whole = std::mem::take(&mut self.buffer);
                whole.extend_from_slice(line);
                self.line(&whole)
            };
            if self.held() > self.limit {
                return Err(EventTooLarge);
            }
            if let Some(event) = event {
                on_event(event);
            }
        }
        self.buffer.extend_from_slice(rest);
        if self.held() > self.limit { Err(EventTooLarge) } else { Ok(()) }
    }

    /// Bytes of the event that is not complete yet.
    fn held(&self) -> usize {
        self.buffer.len() + self.event.data.as_ref().map_or(0, String::len)
    }

    /// The stream broke and another follows: what is half read is dropped, id and waiting time stay.
    pub(super) fn restart(&mut self) {
        let (last_id, retry) = (self.last_id.take(), self.retry.take());
        *self = Self { last_id, retry, ..Self::new(self.limit) };
    }

    /// The id to resume after, if the server gave one.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref().filter(|id| !id.is_empty())
    }

    /// How long the server wants us to wait before we come back.
    pub(super) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    fn line(&mut self, bytes: &[u8]) -> Option<Event> {
        let line = String::from_utf8_lossy(bytes);
        let is_text = matches!(line, Cow::Borrowed(_));
        let line = match std::mem::take(&mut self.at_start) {
            true => line.strip_prefix('\u{feff}').unwrap_or(&line),
            false => &line,
        };
        if line.is_empty() {
            let Half { data, kind, is_text } = std::mem::take(&mut self.event);
            return data.filter(|data| !data.is_empty()).map(|data| Event { kind, data, is_text });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                self.event.is_text &= is_text;
                match &mut self.event.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => self.event.data = Some(value.to_owned()),
                }
            }
            "event" => self.event.kind = Some(value.chars().take(MAX_KIND).collect()),
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok().map(Duration::from_millis).or(self.retry);
            }
            // Comments keep the connection alive; other fields mean nothing here.
            _ => {}
        }
        None
    }
}

impl Default for Half {
    fn default() -> Self {
        Self { data: None, kind: None, is_text: true }
    }
}

/// A stream that comes in two pieces; what is read of it must not depend on where it was cut. Gives the events.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) -> Vec<Event> {
    let Some((&cut, bytes)) = bytes.split_first() else { return Vec::new() };
    let read = |pieces: &[&[u8]]| {
        let mut events = Vec::new();
        let mut decoder = SseDecoder::new(1 << 20);
        for piece in pieces {
            decoder.feed(piece, |event| events.push(event)).expect("less than the limit");
        }
        (events, decoder.last_id, decoder.retry)
    };
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let whole = read(&[bytes]);
    assert_eq!(whole, read(&[first, second]));
    whole.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(decoder: &mut SseDecoder, chunks: &[&str]) -> Vec<String> {
        let mut events = Vec::new();
        for chunk in chunks {
            decoder.feed(chunk.as_bytes(), |event| events.push(event.data)).expect("within the limit");
        }
        events
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line_wherever_the_bytes_are_cut() {
        for text in [
            "data: a\ndata:b\n\ndata: c\n\n",
            "data: a\r\ndata:b\r\n\r\ndata: c\r\n\r\n",
            "data: a\rdata:b\r\rdata: c\r\r",
        ] {
            for cut in 0..text.len() {
                let mut decoder = SseDecoder::new(100);
                assert_eq!(events(&mut decoder, &[&text[..cut], &text[cut..]]), ["a\nb", "c"], "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_character_that_is_cut_in_two_stays_whole() {
        let mut decoder = SseDecoder::new(100);
        let bytes = "data: é\n\n".as_bytes();
        let mut found = Vec::new();
        for byte in bytes {
            decoder.feed(&[*byte], |event| found.push(event.data)).expect("within the limit");
        }
        assert_eq!(found, ["é"]);
    }

    #[test]
    fn a_byte_order_mark_means_nothing_at_the_start_and_is_no_harm_later() {
        let mut decoder = SseDecoder::new(100);
        assert_eq!(
            events(&mut decoder, &["\u{feff}data: a\n\n", "\u{feff}data: b\n\ndata: \u{feff}c\n\n"]),
            ["a", "\u{feff}c"]
        );
    }

    #[test]
    fn data_that_is_no_text_is_told_of_its_event_alone() {
        let mut decoder = SseDecoder::new(100);
        let mut found = Vec::new();
        decoder.feed(b": \xff\ndata: a\ndata: \xff\n\ndata: b\n\n", |event| found.push(event)).expect("short");
        let found: Vec<_> = found.iter().map(|event| (event.data.as_str(), event.is_text)).collect();
        assert_eq!(found, [("a\n\u{fffd}", false), ("b", true)]);
    }

    #[test]
    fn a_long_line_in_many_pieces_costs_what_its_bytes_cost() {
        // A reader that looks at everything again with each piece would take hours.
        let mut decoder = SseDecoder::new(64 << 20);
        let piece = [b'x'; 64];
        let started = std::time::Instant::now();
        decoder.feed(b"data: ", |_| {}).expect("short");
        for _ in 0..500_000 {
            decoder.feed(&piece, |_| panic!("no event is complete")).expect("within the limit");
        }
        let mut length = 0;
        decoder.feed(b"\n\n", |event| length = event.data.len()).expect("within the limit");
        assert_eq!(length, 64 * 500_000);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn ids_and_waits_count_in_blocks_without_data() {
        let mut decoder = SseDecoder::new(100);
        assert!(events(&mut decoder, &["id: 7\nretry: 250\ndata:\n\n", ": alive\n\n"]).is_empty());
        assert_eq!((decoder.last_id(), decoder.retry()), (Some("7"), Some(Duration::from_millis(250))));
        assert!(events(&mut decoder, &["id: 8\nretry: soon\n\n", "data: half"]).is_empty());
        decoder.restart();
        assert_eq!((decoder.last_id(), decoder.retry()), (Some("8"), Some(Duration::from_millis(250))));
        assert_eq!(events(&mut decoder, &["data: new\n\n"]), ["new"]);
    }

    #[test]
    fn an_event_over_the_limit_is_refused_while_it_comes_in() {
        let mut decoder = SseDecoder::new(10);
        assert_eq!(decoder.feed(b"data: 0123456789", |_| {}), Err(EventTooLarge));
        let mut decoder = SseDecoder::new(10);
        decoder.feed(b"data: 0123\n", |_| {}).expect("four bytes");
        assert_eq!(decoder.feed(b"data: 456789\n", |_| {}), Err(EventTooLarge), "lines of one event add up");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_within_the_limit_and_alike_however_they_are_cut(
            lines in proptest::collection::vec("(data|id|event|retry|)?(: ?)?[a-z0-9\u{0}é\r]{0,9}(\r|\n|\r\n|\n\n)?", 0..30),
            cuts in proptest::collection::vec(1_usize..9, 1..9),
        ) {
            let bytes = lines.concat().into_bytes();
            let mut whole = Vec::new();
            let mut at_once = SseDecoder::new(64);
            let taken = at_once.feed(&bytes, |event| whole.push(event));
            let mut pieces = Vec::new();
            let mut in_pieces = SseDecoder::new(64);
            let mut rest = &bytes[..];
            let mut refused = false;
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, others) = rest.split_at((*cut).min(rest.len()));
                if in_pieces.feed(piece, |event| pieces.push(event)).is_err() {
                    refused = true;
                    break;
                }
                rest = others;
            }
            if !refused && taken.is_ok() {
                proptest::prop_assert_eq!(whole, pieces);
                proptest::prop_assert_eq!(at_once.last_id(), in_pieces.last_id());
                proptest::prop_assert_eq!(at_once.retry(), in_pieces.retry());
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(chunks in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..40), 0..20)) {
            let mut decoder = SseDecoder::new(50);
            for chunk in chunks {
                if decoder.feed(&chunk, |_| {}).is_err() {
                    break;
                }
                proptest::prop_assert!(decoder.held() <= 50);
            }
        }
    }
}
