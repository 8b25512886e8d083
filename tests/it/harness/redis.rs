//! A real redis-server as a child on a free port in a folder of its own. It ends with its owner, and with this
//! process even if that is killed.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use da_node_executor::config::{Config, RedisConfig};
use redis::aio::MultiplexedConnection;

/// Runs the server until the pipe to us closes, which the system does for us whatever our end is.
const KEEPER: &str = r#"dir=$1; shift
redis-server "$@" >/dev/null 2>&1 & server=$!
cat >/dev/null
kill -9 "$server" 2>/dev/null; wait "$server" 2>/dev/null
test -e "$dir/keep" || rm -rf "$dir""#;

/// How long a server may take to start before another port is tried.
const START: Duration = Duration::from_secs(5);
/// How long it may take to start again, with all that it has to read.
const START_AGAIN: Duration = Duration::from_secs(60);
const PORTS: usize = 5;

/// A private server.
pub struct RedisServer {
    keeper: Option<(Child, ChildStdin)>,
    dir: PathBuf,
    port: u16,
    options: Vec<String>,
}

impl RedisServer {
    /// A server that keeps nothing on disk.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with further options, such as `--appendonly yes`.
    pub fn start_with(options: &[&str]) -> Self {
        match Command::new("redis-server").arg("--version").output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("these tests need a real redis-server, and there is none in PATH: run scripts/setup")
            }
            Err(error) => panic!("redis-server cannot be run: {error}"),
            Ok(_) => {}
        }
        let dir = tempfile::Builder::new().prefix("executor-redis-").tempdir().expect("a folder").keep();
        let options = options.iter().map(|option| String::from(*option)).collect();
        let mut server = Self { keeper: None, dir, port: 0, options };
        for _ in 0..PORTS {
            // Another process may take the port between our look and the server's start; then we take another.
            let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
            server.port = probe.local_addr().expect("an address").port();
            drop(probe);
            if server.launch(START) {
                return server;
            }
            server.end(true);
        }
        panic!("redis-server did not start on {PORTS} ports; its log: {}", server.log());
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The worker's settings for it.
    pub fn config(&self) -> RedisConfig {
        RedisConfig { url: self.url(), password: None, db: None, ..Config::default().redis }
    }

    /// A plain connection that waits long.
    pub async fn connect(&self) -> MultiplexedConnection {
        connect(&self.url()).await
    }

    /// Kills the server as a power cut would; what it had written to disk stays.
    pub fn kill(&mut self) {
        self.end(true);
    }

    /// Starts it again on the same port and folder after [`Self::kill`].
    pub fn start_again(&mut self) {
        assert!(self.launch(START_AGAIN), "redis-server did not start again; its log: {}", self.log());
    }

    fn launch(&mut self, within: Duration) -> bool {
        let mut command = Command::new("sh");
        command.arg("-c").arg(KEEPER).arg("redis-keeper").arg(&self.dir);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]);
        command.arg(&self.dir).args(["--logfile", "redis.log", "--daemonize", "no"]).args(&self.options);
        // In a group of its own, so that Ctrl-C reaches the tests first.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut keeper = command.spawn().expect("sh can be run");
        let pipe = keeper.stdin.take().expect("the pipe was asked for");
        self.keeper = Some((keeper, pipe));
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if self.answers() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Whether the server on the port is ours and ready.
    fn answers(&self) -> bool {
        let ask = || -> redis::RedisResult<Vec<String>> {
            let client = redis::Client::open(self.url())?;
            let mut connection = client.get_connection_with_timeout(Duration::from_millis(500))?;
            redis::cmd("PING").exec(&mut connection)?;
            redis::cmd("CONFIG").arg("GET").arg("dir").query(&mut connection)
        };
        let dir = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        ask().is_ok_and(|answer| answer.get(1).is_some_and(|found| dir.as_os_str() == found.as_str()))
    }

    /// Ends the server. The keeper removes the folder, unless told not to, for nobody drops the shared server.
    fn end(&mut self, keep: bool) {
        let mark = self.dir.join("keep");
        if keep {
            std::fs::write(&mark, "").expect("the folder is ours");
        }
        if let Some((mut keeper, pipe)) = self.keeper.take() {
            drop(pipe);
            let _ = keeper.wait();
        }
        let _ = std::fs::remove_file(&mark);
        if !keep {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("redis.log")).unwrap_or_default()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// The server that the tests of this process share, each under names of its own.
pub fn shared() -> &'static RedisServer {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    SERVER.get_or_init(RedisServer::start)
}

/// A plain connection that waits long.
pub async fn connect(url: &str) -> MultiplexedConnection {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(super::PATIENCE))
        .set_response_timeout(Some(super::PATIENCE));
    let client = redis::Client::open(url).expect("an address");
    client.get_multiplexed_async_connection_with_config(&config).await.expect("the server answers")
}
