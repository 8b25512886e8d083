//! Reading dead letters, for people.

use redis::Value;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;

/// What a dead letter says; see [`super::Letter`] for how it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// The name of the work.
    pub work_id: String,
    /// The cause by its stable name.
    pub reason: String,
    /// The cause in words.
    pub error: String,
    /// How many processes died with it.
    pub crashes: u32,
}

/// The first `limit` dead letters of a dead-letter stream, the oldest first.
pub async fn dead_letters(link: &Link, key: &str, limit: usize) -> Result<Vec<DeadLetter>, RedisError> {
    let mut command = redis::cmd("XRANGE");
    command.arg(key).arg("-").arg("+").arg("COUNT").arg(limit);
    reply::list(link.query(&command).await?, WHAT)?.into_iter().map(letter).collect()
}

const WHAT: &str = "a dead letter";

fn letter(entry: Value) -> Result<DeadLetter, RedisError> {
    let [_, fields] = reply::tuple::<2>(entry, WHAT)?;
    let mut letter = DeadLetter::default();
    let mut values = reply::list(fields, WHAT)?.into_iter();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        let text =
            |value| reply::bytes(value).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        match reply::as_bytes(&name) {
            Some(b"work_id") => letter.work_id = text(value),
            Some(b"reason") => letter.reason = text(value),
            Some(b"error") => letter.error = text(value),
            Some(b"crashes") => letter.crashes = reply::number(&value).and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            _ => {}
        }
    }
    Ok(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_letter_is_read_whatever_else_it_says() {
        let fields = ["data", "{}", "reason", "poison", "error", "why", "work_id", "s/1-0", "crashes", "3"];
        let entry = Value::Array(vec![bulk("9-0"), Value::Array(fields.map(bulk).to_vec())]);
        let letter = letter(entry).expect("a letter");
        assert_eq!((letter.reason.as_str(), letter.work_id.as_str(), letter.crashes), ("poison", "s/1-0", 3));
    }
}
