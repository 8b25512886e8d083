//! Server-sent events with a bound: ids and waiting times are seen in blocks without data too, work is linear in the
//! bytes, and an event over its limit is refused before it is held.

use std::time::Duration;

/// One event with data.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// What kind of event it is; none is a message.
    pub(super) kind: Option<String>,
    /// Its data; lines joined by a line feed.
    pub(super) data: String,
}

/// Characters of the kind of an event that are kept.
const MAX_KIND: usize = 64;

/// An event is larger than the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EventTooLarge;

/// Takes bytes, gives events.
pub(super) struct SseDecoder {
    limit: usize,
    /// Bytes that are not yet a whole line, and how many of them hold no line end.
    buffer: Vec<u8>,
    scanned: usize,
    /// A line ended with CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The data of the event so far; none before its first `data` line.
    data: Option<String>,
    kind: Option<String>,
    last_id: Option<String>,
    retry: Option<Duration>,
}

impl SseDecoder {
    /// For events of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            buffer: Vec::new(),
            scanned: 0,
            after_cr: false,
            data: None,
            kind: None,
            last_id: None,
            retry: None,
        }
    }

    /// More bytes came; calls `on_event` for each event that is now complete.
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(Event)) -> Result<(), EventTooLarge> {
        self.buffer.extend_from_slice(bytes);
        let mut start = 0;
        let mut at = self.scanned;
        while let Some(&byte) = self.buffer.get(at) {
            let continues = std::mem::take(&mut self.after_cr) && byte == b'\n';
            if continues {
                start = at + 1;
            } else if byte == b'\n' || byte == b'\r' {
                self.after_cr = byte == b'\r';
                let line = String::from_utf8_lossy(&self.buffer[start..at]).into_owned();
                start = at + 1;
                if let Some(event) = self.line(&line) {
                    on_event(event);
                }
            }
            at += 1;
        }
        self.buffer.drain(..start);
        self.scanned = self.buffer.len();
        let held = self.buffer.len() + self.data.as_ref().map_or(0, String::len);
        if held > self.limit { Err(EventTooLarge) } else { Ok(()) }
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

    fn line(&mut self, line: &str) -> Option<Event> {
        let line = line.strip_prefix('\u{feff}').unwrap_or(line);
        if line.is_empty() {
            let kind = self.kind.take();
            return self.data.take().filter(|data| !data.is_empty()).map(|data| Event { kind, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "event" => self.kind = Some(value.chars().take(MAX_KIND).collect()),
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
                proptest::prop_assert!(decoder.buffer.len() + decoder.data.as_ref().map_or(0, String::len) <= 50);
            }
        }
    }
}
