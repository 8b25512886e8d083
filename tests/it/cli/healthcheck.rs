//! `healthcheck`: the exit code that a container's health rests on.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::{Ended, ended, typed};
use crate::harness::bed::Bed;
use crate::harness::worker::Spec;

async fn healthcheck(port: u16, arguments: &[&str]) -> Ended {
    let spec = Spec::bare().env("HEALTH_PORT", port.to_string()).argument("healthcheck");
    ended(typed(spec, arguments)).await
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("an address has a port")
}

#[tokio::test]
async fn a_worker_that_is_live_and_ready_is_answered_with_0_and_silence() {
    let bed = Bed::new().await;
    // As in a container: it listens everywhere, and the check asks from inside.
    let worker = bed.worker("w1").set("http.bind", "0.0.0.0").start();
    let port = port(&worker.address().await);
    worker.said("worker started").await;
    for arguments in [&[][..], &["--set", "http.bind=0.0.0.0"]] {
        let said = healthcheck(port, arguments).await;
        said.expect("a live worker", 0, &[]);
        assert_eq!(said.text, "");
    }
    let worker = worker.ready().await;
    healthcheck(port, &["--ready"]).await.expect("a ready worker", 0, &[]);
    worker.terminate();
    assert_eq!(worker.ends().await.0, Some(0));
    let nobody = healthcheck(port, &[]).await;
    nobody.expect("it has ended", 1, &[&format!("127.0.0.1:{port}"), "HEALTH_PORT", "/live"]);
}

#[tokio::test]
async fn without_redis_a_worker_is_live_and_not_ready() {
    let worker = Spec::bare().env("REDIS_ADDR", "127.0.0.1:1").set("http.port", "0").start();
    let port = port(&worker.address().await);
    healthcheck(port, &[]).await.expect("a restart would not help", 0, &[]);
    healthcheck(port, &["--ready"]).await.expect("no work can come", 1, &["/ready answered 503", "redis"]);
}

#[tokio::test]
async fn a_server_that_hangs_or_speaks_something_else_is_no_worker() {
    // It takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let begun = Instant::now();
    healthcheck(silent.local_addr().expect("an address").port(), &[]).await.expect(
        "silence",
        1,
        &["no worker answers"],
    );
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let bed = Bed::new().await;
    healthcheck(bed.server().port(), &[]).await.expect("Redis is no worker", 1, &["no worker answers"]);
}
