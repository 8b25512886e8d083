//! Starts the servers of the tests and waits for what they do.

#[path = "servers.rs"]
mod servers;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::{CallMeta, McpError, Session};
use da_node_executor::config::McpServerConfig;
use da_node_executor::domain::ids::{GraphId, NodeId, RunId};
use da_node_executor::domain::tool::{Arguments, ToolOutput};
use serde_json::Value;

pub use self::servers::{everything, reference};

/// The most that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A server by the Python SDK.
pub fn fastmcp() -> Vec<String> {
    servers::python("mcp/fastmcp_server.py")
}

/// A server by the Python SDK of the next generation, which speaks both eras.
pub fn mcpserver() -> Vec<String> {
    servers::python2("mcp/mcpserver_server.py")
}

/// A server of ours that breaks the protocol.
pub fn hostile() -> Vec<String> {
    servers::python("mcp/hostile_server.py")
}

/// The configuration of a server over stdio.
pub fn stdio(command: Vec<String>, args: &[&str]) -> McpServerConfig {
    let mut words = command.into_iter().chain(args.iter().map(|arg| (*arg).to_owned()));
    McpServerConfig {
        command: words.next(),
        args: words.collect(),
        connect_timeout: PATIENCE,
        ..McpServerConfig::default()
    }
}

/// The configuration of a server over Streamable HTTP.
pub fn at(url: impl Into<String>) -> McpServerConfig {
    McpServerConfig { url: Some(url.into()), connect_timeout: PATIENCE, ..McpServerConfig::default() }
}

/// A server over Streamable HTTP, killed when this is dropped.
pub struct HttpServer {
    child: Child,
    port: u16,
    path: &'static str,
}

impl HttpServer {
    /// server-everything.
    pub async fn everything(port: u16) -> Self {
        Self::start(everything(), &["streamableHttp"], port).await
    }

    /// server-everything over the transport of 2024-11-05.
    pub async fn everything_sse(port: u16) -> Self {
        let mut server = Self::start(everything(), &["sse"], port).await;
        server.path = "/sse";
        server
    }

    /// FastMCP, answering by server-sent events.
    pub async fn fastmcp(port: u16) -> Self {
        Self::start(fastmcp(), &["http", &port.to_string()], port).await
    }

    /// FastMCP, answering by plain JSON.
    pub async fn fastmcp_json(port: u16) -> Self {
        Self::start(fastmcp(), &["http", &port.to_string(), "json"], port).await
    }

    /// MCPServer of the next generation, answering by server-sent events.
    pub async fn mcpserver(port: u16) -> Self {
        Self::start(mcpserver(), &["http", &port.to_string()], port).await
    }

    /// The same, answering by plain JSON.
    pub async fn mcpserver_json(port: u16) -> Self {
        Self::start(mcpserver(), &["http", &port.to_string(), "json"], port).await
    }

    async fn start(command: Vec<String>, args: &[&str], port: u16) -> Self {
        let child = Command::new(&command[0])
            .args(&command[1..])
            .args(args)
            .env("PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let mut server = Self { child, port, path: "/mcp" };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().expect("the child can be asked");
            assert!(ended.is_none() && Instant::now() < deadline, "the server does not listen: {ended:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}{}", self.port, self.path)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// Opens a session, or fails the test.
pub async fn connect(config: &McpServerConfig) -> Session {
    Session::connect("under-test", config).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Why no session can be opened.
pub async fn refusal(config: &McpServerConfig) -> McpError {
    match Session::connect("under-test", config).await {
        Ok(session) => panic!("a session was opened: {:?}", session.info()),
        Err(error) => error,
    }
}

/// Somebody who calls, with much time.
pub fn meta() -> CallMeta {
    CallMeta {
        graph_id: GraphId::new("g-1").expect("an id"),
        node_id: NodeId::new("n-1").expect("an id"),
        run_id: RunId::new("r-1").expect("an id"),
        idempotency_key: String::from("r-1/0/1/0"),
        traceparent: Some(String::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
        deadline: Instant::now() + PATIENCE,
        progress: None,
        timeout: None,
    }
}

/// Arguments out of an object.
pub fn arguments(value: Value) -> Arguments {
    match value {
        Value::Object(arguments) => arguments,
        other => panic!("{other} is no object"),
    }
}

/// Calls a tool with much time.
pub async fn call(session: &Session, tool: &str, with: Value) -> Result<ToolOutput, McpError> {
    session.call_tool(tool, &arguments(with), meta()).await
}

/// Holds a paused clock where it is while something real goes on: beside a blocking task the clock does not run ahead
/// by itself. After [`PATIENCE`] it does, so that what hangs runs into its own limits.
pub struct Still {
    _end: mpsc::Sender<()>,
}

impl Still {
    pub fn hold() -> Self {
        let (end, ended) = mpsc::channel();
        tokio::task::spawn_blocking(move || ended.recv_timeout(PATIENCE));
        Self { _end: end }
    }
}

/// Waits for a condition.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a file says by now.
pub fn said(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
