//! The child process of a server over stdio: a process group of its own, a small environment, and a sure end.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use secrecy::ExposeSecret;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::error::{McpError, excerpt};
use crate::config::McpServerConfig;

/// What a child inherits. Everything else may hold secrets of the worker.
const INHERITED: [&str; 8] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME"];
/// How long a child may take to end after its stdin is closed, and again after SIGTERM.
const END_GRACE: Duration = Duration::from_secs(2);
/// Bytes of stderr that are kept for the error of a failed start.
const LAST_WORDS: usize = 2_000;
/// Bytes of stderr that are logged in all.
const STDERR_LOGGED: usize = 256 * 1024;

/// The most time that [`end`] takes.
pub(super) const END_LIMIT: Duration = Duration::from_secs(3 * END_GRACE.as_secs());

/// The processes of one server. Killed when this is dropped.
pub(super) struct Group {
    id: Pid,
    gone: AtomicBool,
}

impl Group {
    /// Sends a signal to all of them, unless they are known to be gone.
    fn signal(&self, signal: Signal) {
        if !self.gone.load(Ordering::Acquire) {
            // It fails only if nobody is left.
            let _ = killpg(self.id, signal);
        }
    }

    /// Kills what is left. Its id may belong to others afterwards, so nothing is sent to it again once the leader is
    /// reaped.
    pub(super) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Kills what the leader left behind, for the last time.
    fn finish(&self) {
        self.kill();
        self.gone.store(true, Ordering::Release);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A child and its pipes.
pub(super) struct Started {
    /// The process.
    pub(super) child: Child,
    /// Its group.
    pub(super) group: Arc<Group>,
    /// What it reads.
    pub(super) stdin: ChildStdin,
    /// What it answers.
    pub(super) stdout: ChildStdout,
    /// What it says beside.
    pub(super) stderr: ChildStderr,
}

/// Starts the program.
pub(super) fn start(server: &Arc<str>, program: &str, config: &McpServerConfig) -> Result<Started, McpError> {
    let failed = |source| McpError::Spawn { server: Arc::clone(server), program: program.to_owned(), source };
    let mut command = Command::new(program);
    command
        .args(&config.args)
        .env_clear()
        .envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .envs(config.env.iter().map(|(name, value)| (name, value.expose_secret())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(folder) = &config.cwd {
        command.current_dir(folder);
    }
    let mut child = command.spawn().map_err(failed)?;
    let id = child.id().expect("a child that was not waited for has an id");
    let group = Arc::new(Group {
        id: Pid::from_raw(i32::try_from(id).expect("process ids are small")),
        gone: AtomicBool::new(false),
    });
    Ok(Started {
        stdin: child.stdin.take().expect("stdin is piped"),
        stdout: child.stdout.take().expect("stdout is piped"),
        stderr: child.stderr.take().expect("stderr is piped"),
        group,
        child,
    })
}

/// Ends a child whose stdin is closed: waits, asks, kills, with its group. Returns what became of it, if that is known.
pub(super) async fn end(child: &mut Child, group: &Group) -> Option<ExitStatus> {
    let mut status = timeout(END_GRACE, child.wait()).await;
    if status.is_err() {
        group.signal(Signal::SIGTERM);
        status = timeout(END_GRACE, child.wait()).await;
    }
    if status.is_err() {
        group.signal(Signal::SIGKILL);
        status = timeout(END_GRACE, child.wait()).await;
    }
    group.finish();
    status.ok()?.ok()
}

/// The child ended by itself: its group goes with it.
pub(super) fn ended(group: &Group) {
    group.finish();
}

/// The last bytes that a child wrote to stderr.
#[derive(Default)]
pub(super) struct LastWords(Mutex<VecDeque<u8>>);

impl LastWords {
    /// The last line that says something, with the configured values of the environment taken out.
    pub(super) fn line(&self, config: &McpServerConfig) -> String {
        let bytes: Vec<u8> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned();
        for secret in config.env.values().map(ExposeSecret::expose_secret).filter(|secret| !secret.is_empty()) {
            line = line.replace(secret, "***");
        }
        excerpt(&line)
    }

    fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(LAST_WORDS);
        kept.drain(..surplus);
    }
}

/// Reads stderr to its end, so that the child never waits for it; a part is logged, the end is kept.
pub(super) async fn read_stderr(server: Arc<str>, mut stderr: ChildStderr, last_words: Arc<LastWords>) {
    let mut chunk = vec![0; 4096];
    let mut logged = 0;
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        let bytes = &chunk[..count];
        last_words.add(bytes);
        if logged < STDERR_LOGGED {
            logged += count;
            for line in String::from_utf8_lossy(bytes).lines().filter(|line| !line.trim().is_empty()) {
                tracing::debug!(mcp.server = %server, stderr = %excerpt(line), "server wrote to stderr");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_one_line_without_the_secrets_of_the_configuration() {
        let words = LastWords::default();
        words.add(&vec![b'x'; 10_000]);
        words.add(b"\nError: key s3cret is refused\n\n");
        let mut config = McpServerConfig::default();
        config.env.insert(String::from("KEY"), String::from("s3cret").into());
        assert_eq!(words.line(&config), "Error: key *** is refused");
        assert!(words.0.lock().expect("not poisoned").len() <= LAST_WORDS);
    }
}
