//! How the MCP servers of the tests are started. `scripts/setup` has put what they need into the cache.

use std::path::{Path, PathBuf};

/// A file that `scripts/setup` has put into the cache.
pub fn cached(path: &str) -> PathBuf {
    let cache = std::env::var_os("EXECUTOR_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"), PathBuf::from);
    let file = cache.join("mcp").join(path);
    assert!(file.exists(), "{} is missing: run scripts/setup", file.display());
    file
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().expect("paths of the repository are UTF-8")
}

/// The reference server of the protocol, by the TypeScript SDK; over stdio without arguments.
pub fn everything() -> Vec<String> {
    let script = cached("node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    vec![String::from("node"), text(script)]
}

/// A server of ours in Python, a file below `tests`, with the Python SDK at hand.
pub fn python(script: &str) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
    vec![text(cached("venv/bin/python")), text(script)]
}

/// The same, with the Python SDK of the next generation.
#[allow(dead_code, reason = "not every suite that includes this file uses every server")]
pub fn python2(script: &str) -> Vec<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
    vec![text(cached("venv2/bin/python")), text(script)]
}

/// Another reference server, by its name; over stdio.
#[allow(dead_code, reason = "not every suite that includes this file uses every server")]
pub fn reference(name: &str) -> Vec<String> {
    let script = cached(&format!("node_modules/@modelcontextprotocol/server-{name}/dist/index.js"));
    vec![String::from("node"), text(script)]
}
