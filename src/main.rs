//! The `executor-worker` binary.

fn main() {}
