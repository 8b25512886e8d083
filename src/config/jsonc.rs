//! JSON as editors let people write it, with comments and with commas behind the last member. What is left is JSON, and
//! every value stands where it stood.

use std::borrow::Cow;

/// The text with blanks in the place of comments and of commas before a closing bracket. What is no JSON otherwise stays
/// none.
pub fn plain(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut plain = Cow::Borrowed(bytes);
    // The last byte that means something, and where a comma stands that may have been the last.
    let (mut last, mut comma) = (None, None);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let end = match byte {
            b'"' => string(bytes, at),
            b'/' => comment(bytes, at).inspect(|end| blank(plain.to_mut(), at..*end)).unwrap_or(at + 1),
            _ => at + 1,
        };
        let is_comment = byte == b'/' && end > at + 1;
        if !is_comment && !byte.is_ascii_whitespace() {
            match (byte, comma.take()) {
                (b'}' | b']', Some(comma)) => blank(plain.to_mut(), comma..comma + 1),
                (b',', None) if !matches!(last, None | Some(b'{' | b'[' | b':' | b',')) => comma = Some(at),
                _ => {}
            }
            last = Some(byte);
        }
        at = end;
    }
    match plain {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8(bytes).expect("whole characters were replaced")),
    }
}

/// Where the string ends that begins here.
fn string(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while let Some(byte) = bytes.get(end) {
        end += match byte {
            b'"' => return end + 1,
            b'\\' => 2,
            _ => 1,
        };
    }
    bytes.len()
}

/// Where the comment ends that begins here, if one does.
fn comment(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at + 1)? {
        b'/' => Some(memchr::memchr2(b'\n', b'\r', &bytes[at..]).map_or(bytes.len(), |length| at + length)),
        b'*' => memchr::memmem::find(&bytes[at + 2..], b"*/").map(|length| at + length + 4),
        _ => None,
    }
}

/// Lines keep their ends.
fn blank(bytes: &mut [u8], range: std::ops::Range<usize>) {
    bytes[range].iter_mut().filter(|byte| !matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn comments_and_last_commas_are_blanks() {
        let text = "// größe\n{\"a\": [1, 2, /* two\nlines */ ], // end\n \"b\": \"x // y /* z */ ,]\", }\n// last";
        let read = plain(text);
        assert_eq!(serde_json::from_str::<Value>(&read).expect("JSON"), json!({"a": [1, 2], "b": "x // y /* z */ ,]"}));
        assert_eq!((read.len(), read.lines().count()), (text.len(), text.lines().count()), "nothing moves");
        assert_eq!(plain("{\"a\": \"\\\"// no comment\"}"), "{\"a\": \"\\\"// no comment\"}");
    }

    #[test]
    fn what_is_no_json_stays_none() {
        for text in ["[,]", "{,}", "[1,,]", "[1 /", "[1 /* 2]", "{\"a\":,}", "[1] /", ",", "\"a", "\"a\\", ",]"] {
            assert!(serde_json::from_str::<Value>(&plain(text)).is_err(), "{text} became {}", plain(text));
        }
    }

    proptest! {
        #[test]
        fn any_text_keeps_its_length_and_its_lines(text in "([\\[\\]{},:/*\"\\\\ \n]|[a-z1é])*") {
            let read = plain(&text);
            prop_assert_eq!(read.len(), text.len());
            prop_assert_eq!(read.matches('\n').count(), text.matches('\n').count());
        }

        #[test]
        fn plain_json_is_as_it_was(texts in proptest::collection::vec("[\\[\\]{},:/*\"\\\\ \n]{0,8}", 0..5), number in any::<i32>()) {
            let text = json!({"a": texts, "b": [number, {"c": null}]}).to_string();
            prop_assert_eq!(plain(&text), &*text);
        }
    }
}
