//! Room for the connections that nodes hold: how many files the process may open, and the kernel's table of them.

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::close;

/// Files beside those of the nodes: of Redis, HTTP, tool servers, connections kept for later.
const OTHERS: usize = 256;
/// A node in the pool holds one connection while it waits, and a tool beside it may hold another.
const OF_A_NODE: usize = 2;

/// Raises the limit of open files as far as it goes, and makes the table large enough for this many nodes at once.
pub fn make_room(nodes: usize) {
    let files = nodes.saturating_mul(OF_A_NODE).saturating_add(OTHERS);
    if let Err(error) = raise_limit().and_then(|limit| grow_table(files, limit)) {
        tracing::debug!(%error, files, "there is no room made for open files");
    }
}

/// The usual soft limit of 1024 open files ends a pool of a thousand. It is low for programs that use `select`, which this
/// one does not.
fn raise_limit() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
        return Ok(soft);
    }
    Ok(hard)
}

/// The kernel doubles the table of open files when it is full. In a process with threads whoever opens the file that needs it
/// waits for an RCU grace period meanwhile, with his whole thread (`expand_fdtable` in Linux's `fs/file.c`; 10 to 15 ms each
/// time were seen): a pool that fills up would stand still five times. A file of a high number makes the table large at
/// once, which takes no time before there are threads, and the table keeps its size when it is closed.
fn grow_table(files: usize, limit: u64) -> nix::Result<()> {
    let last = i32::try_from(limit).unwrap_or(i32::MAX).saturating_sub(1);
    let number = i32::try_from(files).unwrap_or(i32::MAX).min(last);
    close(fcntl(std::io::stderr(), FcntlArg::F_DUPFD_CLOEXEC(number))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files for which the table has room.
    fn room() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
        let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("Linux tells");
        line.trim().parse().expect("a number")
    }

    fn open() -> usize {
        std::fs::read_dir("/proc/self/fd").expect("Linux tells").count()
    }

    #[test]
    fn there_is_room_for_all_nodes_and_no_file_is_left_open() {
        let before = open();
        make_room(1000);
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("there is one");
        let wanted = (1000 * OF_A_NODE + OTHERS).min(usize::try_from(limit).unwrap_or(usize::MAX));
        assert!(room() >= wanted, "{}", room());
        assert_eq!(open(), before);
    }

    #[test]
    fn as_much_room_is_made_as_the_limit_allows() {
        assert_eq!(grow_table(1 << 30, 600), Ok(()));
        assert!(room() >= 600, "{}", room());
    }
}
