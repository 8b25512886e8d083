//! Child processes that never outlive this one. Each has a process group of its own, so that Ctrl-C in a terminal
//! reaches the parent alone, which then ends its children in the right order.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};

use crate::cli::fail;

/// The hidden subcommand that children are started through.
const DIE_WITH_PARENT: &str = "die-with-parent";
/// How often it is looked whether a child has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Arguments of `die-with-parent`.
#[derive(Debug, Args)]
pub struct DieWithParentArgs {
    /// The process that the program shall not outlive.
    parent: i32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Has the system kill this process when its parent dies, then becomes the program. The order survives becoming
/// another program, so the child has it from its first moment and needs no code of ours.
pub fn die_with_parent(args: &DieWithParentArgs) -> u8 {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return fail(anyhow!("the system does not tie processes together: {error}"));
    }
    // Whoever died before the order was given does not trigger it.
    if getppid().as_raw() != args.parent {
        return fail(anyhow!("the parent is gone already"));
    }
    let Some((program, rest)) = args.command.split_first() else { return fail(anyhow!("no program was named")) };
    let error = Command::new(program).args(rest).exec();
    fail(anyhow!("{} cannot be started: {error}", Path::new(program).display()))
}

/// A command that runs `program` tied to the thread that starts it. `guard` is the `executor-worker` binary.
pub fn tied(guard: &Path, program: &Path) -> Command {
    let mut command = Command::new(guard);
    command.arg(DIE_WITH_PARENT).arg(std::process::id().to_string()).arg("--").arg(program);
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// A running child; dropping it kills it.
#[derive(Debug)]
pub struct ChildProcess(Child);

impl ChildProcess {
    /// Starts it.
    pub fn start(mut command: Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// Ends it with SIGKILL, which it cannot notice.
    pub fn kill(&mut self) {
        // A child that has ended already is what was wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Asks it with SIGTERM to end.
    pub fn ask_to_stop(&mut self) {
        // Its id is not given to another process before it was waited for, which only `ended` and `kill` do.
        if self.ended().is_none()
            && let Ok(id) = i32::try_from(self.id())
        {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
    }

    /// Waits for its end until the deadline, then kills it.
    pub fn end_by(&mut self, deadline: Instant) {
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                return self.kill();
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> ChildProcess {
        let mut command = Command::new("sleep");
        command.arg("600").process_group(0);
        ChildProcess::start(command).expect("sleep is everywhere")
    }

    fn exists(id: u32) -> bool {
        kill(Pid::from_raw(i32::try_from(id).expect("an id")), None).is_ok()
    }

    #[test]
    fn a_child_ends_with_its_owner() {
        let child = sleeper();
        let id = child.id();
        assert!(exists(id));
        drop(child);
        assert!(!exists(id));
    }

    #[test]
    fn a_child_that_obeys_is_not_killed() {
        use std::os::unix::process::ExitStatusExt as _;
        let mut child = sleeper();
        child.ask_to_stop();
        child.end_by(Instant::now() + Duration::from_secs(30));
        let status = child.ended().expect("it ended");
        assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
    }

    #[test]
    fn a_child_that_does_not_obey_is_killed_at_the_deadline() {
        use std::os::unix::process::ExitStatusExt as _;
        let mut child = sleeper();
        child.end_by(Instant::now());
        let status = child.ended().expect("it ended");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    }
}
