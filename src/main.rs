//! The `executor-worker` binary: the allocator. Everything else is the library's.

use std::process::ExitCode;

use da_node_executor::Worker;

/// Nodes build and drop many small JSON values, often on different threads, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Worker::new().main()
}
