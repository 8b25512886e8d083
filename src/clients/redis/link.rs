//! One connection for commands that is made anew after it broke. It never tries a command twice: what failed, and
//! whether it may have been applied, is the caller's to judge. Blocking reads have connections of their own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, IntoConnectionInfo, Pipeline, Value};
use secrecy::ExposeSecret;
use tokio::runtime::Handle;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::script::Script;
use crate::config::RedisConfig;

/// Commands that may queue for the socket; beyond that callers wait, within the command's own time.
const QUEUE: usize = 1024;
/// Bytes that are gathered into one write to the socket.
const WRITE_BUFFER: usize = 64 * 1024;

/// Where the server is and how to get in.
#[derive(Clone)]
pub(super) struct Address {
    client: Client,
    connect_timeout: Duration,
}

impl Address {
    /// Reads the address; password and database of the configuration win over those in the URL.
    pub(super) fn new(config: &RedisConfig) -> Result<Self, RedisError> {
        let invalid = |error: redis::RedisError| RedisError::Address { reason: error.category().to_owned() };
        let info = config.url.as_str().into_connection_info().map_err(invalid)?;
        let mut settings = info.redis_settings().clone();
        if let Some(password) = &config.password {
            settings = settings.set_password(password.expose_secret());
        }
        if let Some(db) = config.db {
            settings = settings.set_db(db);
        }
        // Replies are taken apart by their shape in version 2 of the protocol, whatever the URL asks for.
        let settings = settings.set_protocol(redis::ProtocolVersion::RESP2);
        // The library leaves Nagle's algorithm on, which holds small commands back while an answer is outstanding.
        let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self { client: Client::open(info).map_err(invalid)?, connect_timeout: config.connect_timeout })
    }

    /// One attempt. The connection's driver lives on the runtime that polls this.
    pub(super) async fn connect(
        &self,
        response_timeout: Option<Duration>,
    ) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(response_timeout)
            .set_pipeline_buffer_size(QUEUE)
            .set_write_backpressure_boundary(WRITE_BUFFER);
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| RedisError::from_connect(error, self.connect_timeout))
    }
}

/// The connection in use, if any, and how many were made before it.
#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    generation: u64,
}

/// How attempts to connect went, so that those who waited for one share its end.
#[derive(Default)]
struct Attempts {
    last_error: Option<RedisError>,
}

struct Shared {
    address: Address,
    command_timeout: Duration,
    runtime: Option<Handle>,
    current: Mutex<Current>,
    /// Number of finished attempts; read without the lock to tell whether one ended while we waited.
    finished: std::sync::atomic::AtomicU64,
    connecting: tokio::sync::Mutex<Attempts>,
}

/// A connection for commands, shared by everybody who holds a clone. Usable from any runtime.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// A link that connects with its first command, on the runtime that sends it.
    pub fn new(config: &RedisConfig) -> Result<Self, RedisError> {
        Self::build(config, None)
    }

    /// A link whose connections live on `runtime`, whoever sends the command that needs one: a connection ends with
    /// its runtime, and is as slow as the runtime is busy.
    pub fn on(config: &RedisConfig, runtime: Handle) -> Result<Self, RedisError> {
        Self::build(config, Some(runtime))
    }

    fn build(config: &RedisConfig, runtime: Option<Handle>) -> Result<Self, RedisError> {
        Ok(Self {
            shared: Arc::new(Shared {
                address: Address::new(config)?,
                command_timeout: config.command_timeout,
                runtime,
                current: Mutex::default(),
                finished: std::sync::atomic::AtomicU64::new(0),
                connecting: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// Asks whether the server answers.
    pub async fn ping(&self) -> Result<(), RedisError> {
        self.query(&redis::cmd("PING")).await.map(drop)
    }

    /// How long one command may take.
    pub(super) fn command_timeout(&self) -> Duration {
        self.shared.command_timeout
    }

    /// Sends one command and gives its answer; an error reply is an error.
    pub(super) async fn query(&self, command: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, generation) = self.connection().await?;
        match connection.send_packed_command(command).await {
            Ok(Value::ServerError(error)) => Err(self.classify(error.into(), generation)),
            Ok(value) => Ok(value),
            Err(error) => Err(self.classify(error, generation)),
        }
    }

    /// Sends commands in one go and gives each its answer; an error reply stays where it belongs.
    pub(super) async fn pipeline(&self, commands: &Pipeline) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
        let (mut connection, generation) = self.connection().await?;
        let answers = connection
            .send_packed_commands(commands, 0, commands.len())
            .await
            .map_err(|error| self.classify(error, generation))?;
        let each = |answer| match answer {
            Value::ServerError(error) => Err(self.classify(error.into(), generation)),
            value => Ok(value),
        };
        Ok(answers.into_iter().map(each).collect())
    }

    /// Runs a script that [`Script::call`] began and the caller completed: one round trip, two more only when the
    /// server does not know the script.
    pub(super) async fn eval(&self, script: &Script, call: &Cmd) -> Result<Value, RedisError> {
        match self.query(call).await {
            Err(RedisError::NoScript) => {
                self.query(&script.load()).await?;
                self.query(call).await
            }
            answer => answer,
        }
    }

    fn classify(&self, error: redis::RedisError, generation: u64) -> RedisError {
        let error = RedisError::from_command(error, self.shared.command_timeout);
        if error.ends_connection() {
            let mut current = self.current();
            if current.generation == generation {
                current.connection = None;
            }
        }
        error
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> Option<(MultiplexedConnection, u64)> {
        let current = self.current();
        current.connection.clone().map(|connection| (connection, current.generation))
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), RedisError> {
        use std::sync::atomic::Ordering;
        if let Some(live) = self.live() {
            return Ok(live);
        }
        let seen = self.shared.finished.load(Ordering::Acquire);
        let mut attempts = self.shared.connecting.lock().await;
        if let Some(live) = self.live() {
            return Ok(live);
        }
        if self.shared.finished.load(Ordering::Acquire) != seen
            && let Some(error) = &attempts.last_error
        {
            return Err(error.clone());
        }
        let result = self.connect().await;
        attempts.last_error = result.as_ref().err().cloned();
        let answer = result.map(|connection| {
            let mut current = self.current();
            current.generation += 1;
            current.connection = Some(connection.clone());
            (connection, current.generation)
        });
        self.shared.finished.fetch_add(1, Ordering::Release);
        answer
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let timeout = Some(self.shared.command_timeout);
        let Some(runtime) = &self.shared.runtime else {
            return self.shared.address.connect(timeout).await;
        };
        let address = self.shared.address.clone();
        let attempt = runtime.spawn(async move { address.connect(timeout).await });
        attempt.await.unwrap_or_else(|error| {
            Err(RedisError::Unavailable {
                reason: format!("the thread of the connection is gone: {error}"),
                source: None,
            })
        })
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(url: &str) -> RedisConfig {
        RedisConfig { url: String::from(url), ..Config::default().redis }
    }

    #[test]
    fn an_address_that_cannot_be_used_is_not_repeated() {
        let error = Link::new(&config("http://:secret@host")).expect_err("not an address of Redis");
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[tokio::test]
    async fn callers_that_wait_for_one_attempt_share_its_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let link = Link::new(&config(&format!("redis://127.0.0.1:{port}"))).expect("an address");
        // The listener takes the one connection and drops it, which fails the attempt for all three.
        let server = async {
            let (socket, _) = listener.accept().await.expect("a connection");
            drop(socket);
        };
        let (first, second, third, ()) = tokio::join!(link.ping(), link.ping(), link.ping(), server);
        for answer in [first, second, third] {
            assert!(matches!(answer, Err(RedisError::Unavailable { .. })), "{answer:?}");
        }
        let another = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(another.is_err(), "three callers made more than one attempt");
    }
}
