//! Entries of streams as they come back from reads and claims.

use std::sync::Arc;

use redis::Value;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::reply;
use crate::domain::ids::EntryId;

/// The fields of an entry that mean something to us.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// Field `data`.
    pub(super) data: Option<Vec<u8>>,
    /// Field `meta`.
    pub(super) meta: Option<Vec<u8>>,
}

/// Takes `[id, [field, value, …]]` apart. The first of several fields of one name counts.
pub(super) fn entry(value: Value) -> Result<(EntryId, Fields), RedisError> {
    let unexpected = RedisError::Unexpected { what: "an entry of a stream" };
    let [id, fields] = reply::tuple::<2>(value, "an entry of a stream")?;
    let id = reply::text(id).ok_or(unexpected)?;
    Ok((EntryId::new(id), self::fields(fields)?))
}

/// Takes `[field, value, …]` apart.
pub(super) fn fields(value: Value) -> Result<Fields, RedisError> {
    let mut found = Fields::default();
    let mut values = reply::list(value, "the fields of an entry")?.into_iter();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        let slot = match reply::as_bytes(&name) {
            Some(b"data") => &mut found.data,
            Some(b"meta") => &mut found.meta,
            _ => continue,
        };
        if slot.is_none() {
            *slot = reply::bytes(value);
        }
    }
    Ok(found)
}

/// A stream and what was read of it, for [`entry`] to take apart.
pub(super) type ReadStream = (Arc<str>, Vec<Value>);

/// Takes a reply of XREAD or XREADGROUP apart: `[[stream, [entry, …]], …]`.
pub(super) fn streams(value: Value) -> Result<Vec<ReadStream>, RedisError> {
    let what = "a read of streams";
    let one = |stream| {
        let [name, entries] = reply::tuple::<2>(stream, what)?;
        let name = reply::text(name).ok_or(RedisError::Unexpected { what })?;
        Ok((Arc::from(name), reply::list(entries, what)?))
    };
    reply::list(value, what)?.into_iter().map(one).collect()
}
