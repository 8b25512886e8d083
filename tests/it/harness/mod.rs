//! What the tests stand on: servers that are real and private, and ways to disturb them.

pub mod bed;
pub mod gate;
pub mod mcp;
pub mod model;
pub mod proxy;
pub mod redis;
pub mod worker;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The longest that anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A name that no other test of this or another process uses.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until `condition` gives something, and fails with `what` after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
