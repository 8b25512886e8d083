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
        #[cfg(feature = "failpoints")]
        let code = if crate::failpoint::unguarded() { without_guards(code) } else { code };
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

/// The script as it would be if nobody had thought of zombies and duplicates.
#[cfg(feature = "failpoints")]
fn without_guards(code: &str) -> &'static str {
    let mut code = code.to_owned();
    for (guard, gone) in [
        (include_str!("scripts/owned.lua"), "owned = function() return true end\n"),
        (include_str!("scripts/run.lua"), "taken = function() return false end\n"),
    ] {
        code = code.replace(guard, &format!("{guard}{gone}"));
    }
    // A handful of scripts, once a process.
    code.leak()
}

#[cfg(all(test, feature = "failpoints"))]
mod tests {
    use super::*;

    #[test]
    fn a_script_without_guards_finds_every_entry_owned() {
        let guarded = concat!(include_str!("scripts/owned.lua"), include_str!("scripts/hold.lua"));
        let (owned, rest) = (include_str!("scripts/owned.lua"), include_str!("scripts/hold.lua"));
        assert_eq!(without_guards(guarded), format!("{owned}owned = function() return true end\n{rest}"));
    }
}
