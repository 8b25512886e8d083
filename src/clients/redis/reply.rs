//! Taking replies apart without copying them.

use redis::Value;

use crate::clients::redis::error::RedisError;

/// The bytes of a string reply.
pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        Value::Okay => Some(b"OK".to_vec()),
        _ => None,
    }
}

/// A string reply that is UTF-8.
pub(super) fn text(value: Value) -> Option<String> {
    String::from_utf8(bytes(value)?).ok()
}

/// A string reply seen in place.
pub(super) fn as_bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        Value::Okay => Some(b"OK"),
        _ => None,
    }
}

/// The elements of a list reply; none for nil, which is how an empty read is answered.
pub(super) fn list(value: Value, what: &'static str) -> Result<Vec<Value>, RedisError> {
    match value {
        Value::Array(values) => Ok(values),
        Value::Nil => Ok(Vec::new()),
        _ => Err(RedisError::Unexpected { what }),
    }
}

/// A list of exactly `N` elements.
pub(super) fn tuple<const N: usize>(value: Value, what: &'static str) -> Result<[Value; N], RedisError> {
    list(value, what)?.try_into().map_err(|_| RedisError::Unexpected { what })
}

/// A number, also one that is written as text.
pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => std::str::from_utf8(as_bytes(other)?).ok()?.parse().ok(),
    }
}

/// A number that may be below nothing.
pub(super) fn signed(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        other => std::str::from_utf8(as_bytes(other)?).ok()?.parse().ok(),
    }
}

/// What a script says: one word, or a word and what belongs to it.
pub(super) fn word(value: Value, what: &'static str) -> Result<(Word, Option<Vec<u8>>), RedisError> {
    let unexpected = || RedisError::Unexpected { what };
    let (word, rest) = match value {
        Value::Array(values) => {
            let mut values = values.into_iter();
            (values.next().ok_or_else(unexpected)?, values.next().and_then(bytes))
        }
        single => (single, None),
    };
    let word = match as_bytes(&word).ok_or_else(unexpected)? {
        b"ok" => Word::Ok,
        b"gone" => Word::Gone,
        b"again" => Word::Again,
        b"dup" => Word::Duplicate,
        b"lost" => Word::Lost,
        b"conflict" => Word::Conflict,
        b"wrongtype" => Word::WrongType,
        b"hash" => Word::Hash,
        b"string" => Word::Text,
        b"none" => Word::Missing,
        b"unstaged" => Word::Unstaged,
        _ => return Err(unexpected()),
    };
    Ok((word, rest))
}

/// The words of our scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Done.
    Ok,
    /// Done, but the state was not there to be written.
    Gone,
    /// It was done before, by us.
    Again,
    /// Another piece of work has the run or ended it.
    Duplicate,
    /// The entry is not ours.
    Lost,
    /// The document is not the one that was read; the present one follows.
    Conflict,
    /// A key has another type; its name follows.
    WrongType,
    /// The state is a hash.
    Hash,
    /// The state is one document.
    Text,
    /// There is no state.
    Missing,
    /// The output that was to be moved is not there.
    Unstaged,
}

/// The key that a `wrongtype` answer names.
pub(super) fn key(rest: Option<Vec<u8>>) -> String {
    String::from_utf8_lossy(&rest.unwrap_or_default()).into_owned()
}
