//! The commands that a person or a script types, as processes: what they print, where, and their exit codes. Those that
//! look after a queue (`status`, `cancel`, `dead-letters`, `reconcile`) have files of their own beside this one.

mod dev;
mod exec;
mod healthcheck;
mod submit;
mod tools;
mod waits;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::worker::Spec;

/// What a command came to.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    /// Its stdout.
    printed: String,
    /// Everything that it wrote.
    text: String,
    /// What of it is JSON in one line.
    records: Vec<Value>,
}

impl Ended {
    /// Its stdout as one document.
    fn document(&self) -> Value {
        serde_json::from_str(&self.printed).unwrap_or_else(|error| panic!("{error} in stdout of {}", self.text))
    }

    /// Fails unless the command ended like this and said all of that.
    fn expect(&self, what: &str, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{what}: {}", self.text);
        for word in words {
            assert!(self.text.contains(word), "{what}: {word:?} is not in: {}", self.text);
        }
        assert!(!self.text.contains("panicked"), "{what}: {}", self.text);
    }
}

/// Runs a command to its end.
async fn ended(spec: Spec) -> Ended {
    let command = spec.start();
    let (code, text) = command.ends().await;
    Ended { code, printed: command.printed(), text, records: command.records() }
}

fn typed(spec: Spec, arguments: &[&str]) -> Spec {
    arguments.iter().fold(spec, |spec, argument| spec.argument(*argument))
}

/// A folder for what commands are given.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text).expect("the folder is ours");
        shown(&path)
    }
}

fn shown(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}
