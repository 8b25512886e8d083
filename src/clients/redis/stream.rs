//! Reading work. The blocking read has a connection of its own, which is closed whenever an answer could still come
//! that nobody waits for: an abandoned read would swallow an entry into our own pending list, unseen.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};

use crate::clients::redis::error::RedisError;
use crate::clients::redis::fields;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Address;
use crate::config::{RedisConfig, WorkConfig};
use crate::domain::ids::EntryId;
use crate::domain::work::Token;

/// The shortest wait on a part of the streams when there are fewer permits than streams.
const SHORTEST_BLOCK: Duration = Duration::from_millis(50);

/// An entry as it was delivered, not understood yet.
#[derive(Debug, Clone)]
pub struct RawEntry {
    /// The stream it was read from.
    pub stream: Arc<str>,
    /// Its id.
    pub entry: EntryId,
    /// Proof that it is ours.
    pub token: Token,
    /// Field `data`, if it has one.
    pub data: Option<Vec<u8>>,
    /// Field `meta`, if it has one.
    pub meta: Option<Vec<u8>>,
    /// Processes that died with this entry; those before it was added again stand in `meta`, and are taken off here
    /// once the node has come further.
    pub crashes: i64,
}

/// The work streams as one consumer of the group reads them.
pub struct WorkStreams {
    address: Address,
    streams: Vec<Arc<str>>,
    group: String,
    block: Duration,
    command_timeout: Duration,
    keys: Keys,
    consumer: Arc<str>,
    connection: Option<MultiplexedConnection>,
    connects: u64,
    next: usize,
}

impl WorkStreams {
    /// The streams of the configuration, read as `consumer`.
    pub fn new(redis: &RedisConfig, work: &WorkConfig, keys: Keys, consumer: Arc<str>) -> Result<Self, RedisError> {
        Ok(Self {
            address: Address::new(redis)?,
            streams: work.streams.iter().map(|stream| Arc::from(stream.as_str())).collect(),
            group: work.group.clone(),
            // A block of zero would wait for ever.
            block: work.block.max(Duration::from_millis(1)),
            command_timeout: redis.command_timeout,
            keys,
            consumer,
            connection: None,
            connects: 0,
            next: 0,
        })
    }

    /// The streams that are read.
    pub fn streams(&self) -> &[Arc<str>] {
        &self.streams
    }

    /// The names of our keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How often a connection was made. After each new one there may be entries that are pending for us and that
    /// nobody here has seen: [`super::Leases::stranded`] finds them.
    pub fn connects(&self) -> u64 {
        self.connects
    }

    /// Makes the group on every stream, from the first entry on, where it is missing.
    pub async fn ensure_groups(&mut self) -> Result<(), RedisError> {
        for stream in self.streams.clone() {
            let mut command = redis::cmd("XGROUP");
            command.arg("CREATE").arg(&*stream).arg(&self.group).arg("0").arg("MKSTREAM");
            match self.query(&command, self.command_timeout).await {
                Ok(_) => tracing::info!(stream = &*stream, group = self.group, "consumer group created"),
                Err(RedisError::Other { code, .. }) if code == "BUSYGROUP" => {}
                Err(RedisError::WrongType { .. }) => {
                    return Err(RedisError::WrongType { key: Some(stream.to_string()) });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits up to `work.block` for new work and takes at most `permits` entries.
    ///
    /// COUNT applies to each stream of a read. With fewer permits than streams, the streams are read a few at a time,
    /// in turn, so that a turn through all of them takes about one `work.block`.
    ///
    /// Dropping the future closes the connection; what was delivered to it meanwhile is found by
    /// [`super::Leases::stranded`].
    pub async fn read(&mut self, permits: usize) -> Result<Vec<RawEntry>, RedisError> {
        let all = self.streams.len();
        if permits == 0 || all == 0 {
            return Ok(Vec::new());
        }
        if permits >= all {
            let streams = self.streams.clone();
            return self.read_some(&streams, permits / all, self.block).await;
        }
        // First whatever is there already, in the configured order, then wait for a part of the streams.
        let mut found = Vec::new();
        for stream in self.streams.clone() {
            found.extend(self.read_some(&[stream], permits - found.len(), Duration::ZERO).await?);
            if found.len() >= permits {
                return Ok(found);
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let turns = u32::try_from(all.div_ceil(permits)).unwrap_or(u32::MAX);
        let part: Vec<_> = (0..permits).map(|step| Arc::clone(&self.streams[(self.next + step) % all])).collect();
        self.next = (self.next + permits) % all;
        self.read_some(&part, 1, (self.block / turns).max(SHORTEST_BLOCK)).await
    }

    /// One XREADGROUP; a `block` of zero does not wait.
    async fn read_some(
        &mut self,
        streams: &[Arc<str>],
        count: usize,
        block: Duration,
    ) -> Result<Vec<RawEntry>, RedisError> {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&self.group).arg(&*self.consumer).arg("COUNT").arg(count);
        if !block.is_zero() {
            command.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX));
        }
        command.arg("STREAMS");
        for stream in streams {
            command.arg(&**stream);
        }
        for _ in streams {
            command.arg(">");
        }
        let answer = self.query(&command, block.saturating_add(self.command_timeout)).await?;
        self.entries(answer)
    }

    fn entries(&self, answer: Value) -> Result<Vec<RawEntry>, RedisError> {
        let mut found = Vec::new();
        for (name, entries) in fields::streams(answer)? {
            let stream = self.streams.iter().find(|stream| ***stream == *name).unwrap_or(&name);
            for entry in entries {
                let (id, fields) = fields::entry(entry)?;
                found.push(RawEntry {
                    stream: Arc::clone(stream),
                    entry: id,
                    // The consumer's name is new with each start, so a first delivery is always number one.
                    token: Token { consumer: Arc::clone(&self.consumer), deliveries: 1 },
                    data: fields.data,
                    meta: fields.meta,
                    crashes: 0,
                });
            }
        }
        Ok(found)
    }

    /// The connection is back in its place only after an answer: an error, a timeout, or the end of this future on
    /// the way drops the only handle, and with it the socket.
    async fn query(&mut self, command: &Cmd, limit: Duration) -> Result<Value, RedisError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = self.address.connect(None).await?;
                self.connects += 1;
                connection
            }
        };
        let (answer, usable) = match tokio::time::timeout(limit, connection.send_packed_command(command)).await {
            Err(_) => (Err(RedisError::TimedOut { limit }), false),
            Ok(Ok(Value::ServerError(error))) => {
                let error = RedisError::from_command(error.into(), limit);
                let usable = !error.ends_connection();
                (Err(error), usable)
            }
            Ok(Ok(value)) => (Ok(value), true),
            Ok(Err(error)) => (Err(RedisError::from_command(error, limit)), false),
        };
        if usable {
            self.connection = Some(connection);
        }
        answer
    }
}
