//! Server-side scripts: their text is compiled in, their digest is computed once, and a call is one EVALSHA.

use redis::Cmd;

/// One script. Its text is never sent with a call.
pub(super) struct Script {
    code: &'static str,
    digest: String,
}

impl Script {
    /// A script of this text.
    pub(super) fn new(code: &'static str) -> Self {
        Self { code, digest: redis::Script::new(code).get_hash().to_owned() }
    }

    /// Begins a call with `keys` keys and about `bytes` bytes of keys and arguments; the caller adds them in order.
    pub(super) fn call(&self, keys: usize, bytes: usize) -> Cmd {
        let mut command = Cmd::with_capacity(24, bytes + 64);
        command.arg("EVALSHA").arg(self.digest.as_bytes()).arg(keys);
        command
    }

    /// The command that makes the server know this script.
    pub(super) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.code);
        command
    }
}
