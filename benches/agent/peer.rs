//! The same conversations by another framework, in a Python process of its own that `peer.py` describes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::conversation::{Conversation, MAX_TOKENS, MODEL};
use crate::rounds::Cost;

/// A running Python process. It is killed with its owner.
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// What it runs: packages and their versions.
    pub versions: String,
}

#[derive(Deserialize)]
struct Hello {
    versions: Vec<String>,
}

#[derive(Deserialize)]
struct Done {
    answers: Vec<String>,
    cpu: f64,
    wall: f64,
}

impl Peer {
    /// Starts a framework by the name that `peer.py` knows it by.
    pub fn start(framework: &str, base_url: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(".cache/bench/venv/bin/python");
        assert!(python.exists(), "{} is missing: run scripts/setup bench", python.display());
        let mut command = Command::new(python);
        // The environment may switch tracing on or name a proxy.
        command.env_clear().arg("-I").arg(root.join("benches/agent/peer.py")).arg(framework);
        command.args(["--base-url", base_url, "--model", MODEL, "--max-tokens", &MAX_TOKENS.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python can be run");
        let stdin = child.stdin.take().expect("the pipe was asked for");
        let stdout = BufReader::new(child.stdout.take().expect("the pipe was asked for"));
        let mut peer = Self { child, stdin, stdout, versions: String::new() };
        let hello: Hello = peer.read();
        peer.versions = hello.versions.join(", ");
        peer
    }

    /// All conversations, so many at once.
    pub fn round(&mut self, conversations: usize, turns: usize, at_once: usize) -> Cost {
        let prompts: Vec<String> = (0..conversations).map(|number| Conversation(number).prompt()).collect();
        writeln!(self.stdin, "{}", json!({"prompts": prompts, "at_once": at_once})).expect("the process reads orders");
        let done: Done = self.read();
        let expected: Vec<String> = (0..conversations).map(|number| Conversation(number).answer(turns)).collect();
        assert_eq!(done.answers, expected);
        Cost {
            turns: conversations * turns,
            cpu: Duration::from_secs_f64(done.cpu),
            redis_cpu: Duration::ZERO,
            wall: Duration::from_secs_f64(done.wall),
        }
    }

    fn read<T: for<'a> Deserialize<'a>>(&mut self) -> T {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("text");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("the peer ended or said {line:?}: {error}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
