//! Who settled a run, for a person who waits for it. What the record looks like is `record`'s.

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::{record, reply};
use crate::domain::ids::{GraphId, NodeId, RunId};

/// The id of the work that ended this run; `None` while it has not ended, or if the record has expired.
pub async fn settled_by(
    link: &Link,
    keys: &Keys,
    graph: &GraphId,
    node: &NodeId,
    run: &RunId,
) -> Result<Option<String>, RedisError> {
    let mut command = redis::cmd("HGET");
    command.arg(keys.done(graph)).arg(record::field(node, run));
    let value = reply::text(link.query(&command).await?);
    Ok(value.as_deref().and_then(record::settled_by).map(String::from))
}
