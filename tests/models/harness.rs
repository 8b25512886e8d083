//! Runs nodes with the program, and finds what `scripts/setup` has put into the cache.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The most that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program of the virtual environment with the vendor's SDK.
pub fn program(name: &str) -> PathBuf {
    let cache = std::env::var_os("EXECUTOR_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"), PathBuf::from);
    let file = cache.join("llm/venv/bin").join(name);
    assert!(file.exists(), "{} is missing: run scripts/setup", file.display());
    file
}

/// A configuration whose provider speaks the Messages API at this address; `more` are further members of it.
pub fn provider(base_url: &str, more: &str) -> String {
    with_provider(base_url, &format!("kind = \"anthropic\"\nmodel = \"claude-sonnet-5-5\"\n{more}"))
}

/// A configuration whose provider is at this address and has these members.
pub fn with_provider(base_url: &str, members: &str) -> String {
    format!(
        "[llm]\ndefault = \"model\"\n[llm.providers.model]\nbase_url = \"{base_url}\"\napi_key = \"sk-test\"\n\
         {members}\n[log]\nlevel = \"error\"\n"
    )
}

/// Runs a node and gives its whole outcome.
pub async fn run(config: &str, node: &Value) -> Value {
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a temporary file");
    std::fs::write(file.path(), config).expect("written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_executor-worker"))
        .arg("--config")
        .arg(file.path())
        .args(["exec", "--json", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(node.to_string().as_bytes()).await.expect("the program reads");
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("in time").expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{said}", String::from_utf8_lossy(&output.stdout)))
}
