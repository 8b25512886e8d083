//! Real MCP servers, as `scripts/setup` has put them into the cache: the reference server of the TypeScript SDK and a
//! FastMCP server of the Python SDK.

#[path = "../../mcp/servers.rs"]
mod servers;

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

pub use self::servers::everything;
use super::PATIENCE;

/// The command of the FastMCP server; it wants `stdio` or `http PORT` behind it.
pub fn fastmcp() -> Vec<String> {
    servers::python("it/servers/fastmcp.py")
}

/// The mock of model providers, with the turns of `servers/aimock.json`; it wants `-p PORT` behind it.
fn aimock() -> Vec<String> {
    let text = |path: std::path::PathBuf| path.into_os_string().into_string().expect("paths are UTF-8");
    let turns = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers/aimock.json");
    let program = servers::cached("../models/node_modules/@copilotkit/aimock/dist/cli.js");
    vec![String::from("node"), text(program), String::from("-f"), text(turns)]
}

/// The lines of a configuration file for a server over stdio.
pub fn stdio(name: &str, command: &[String], arguments: &[&str]) -> String {
    let (program, before) = command.split_first().expect("a program");
    let arguments: Vec<&str> = before.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
    // JSON and TOML write texts and lists of texts alike.
    let (program, arguments) = (serde_json::json!(program), serde_json::json!(arguments));
    format!("[mcp.servers.{name}]\ncommand = {program}\nargs = {arguments}\nconnect_timeout = \"20s\"\n")
}

/// The lines of a configuration file for a server over Streamable HTTP.
pub fn http(name: &str, server: &HttpServer) -> String {
    format!("[mcp.servers.{name}]\nurl = \"{}\"\nconnect_timeout = \"20s\"\n", server.url())
}

/// A server over Streamable HTTP, killed with its owner.
pub struct HttpServer {
    command: Vec<String>,
    child: Child,
    port: u16,
}

impl HttpServer {
    /// The reference server.
    pub fn everything() -> Self {
        Self::start(everything(), |_| vec![String::from("streamableHttp")])
    }

    /// The FastMCP server.
    pub fn fastmcp() -> Self {
        Self::start(fastmcp(), |port| vec![String::from("http"), port.to_string()])
    }

    /// The server of [`slow`].
    pub fn slow() -> Self {
        Self::start(slow(), |port| vec![String::from("http"), port.to_string()])
    }

    /// A server of the era without a handshake, with the same slow tool.
    pub fn modern() -> Self {
        Self::start(servers::python2("mcp/mcpserver_server.py"), |port| vec![String::from("http"), port.to_string()])
    }

    /// The mock of model providers, which is no MCP server.
    pub fn aimock() -> Self {
        Self::start(aimock(), |port| vec![String::from("-p"), port.to_string()])
    }

    fn start(mut command: Vec<String>, arguments: impl Fn(u16) -> Vec<String>) -> Self {
        let probe = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = probe.local_addr().expect("an address").port();
        drop(probe);
        command.extend(arguments(port));
        let child = launch(&command, port);
        Self { command, child, port }
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("{}/mcp", self.base_url())
    }

    /// Its address.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Kills it, if it still runs, and starts another one in its place.
    pub fn restart(&mut self) {
        self.kill();
        self.child = launch(&self.command, self.port);
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(command: &[String], port: u16) -> Child {
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).env("PORT", port.to_string());
    process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = process.spawn().expect("the server can be started");
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let ended = child.try_wait().expect("the child is ours");
        assert!(ended.is_none() && Instant::now() < deadline, "the server does not listen: {ended:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child
}

/// A FastMCP server whose tool `wait` takes its time and tells how far it has come; it wants `stdio` or `http PORT`.
pub fn slow() -> Vec<String> {
    servers::python("mcp/fastmcp_server.py")
}

/// A server over stdio that breaks the protocol in the way that its argument names.
pub fn hostile() -> Vec<String> {
    servers::python("mcp/hostile_server.py")
}
