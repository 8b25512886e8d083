//! Faults of a provider, made by a server that is not ours; its verdict on the client must be clean.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Instant;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::harness::{PATIENCE, program, provider, run};

/// The server, killed when this is dropped.
struct Llmock {
    _child: Child,
    http: Client,
    url: String,
}

impl Llmock {
    async fn start(arguments: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let child = Command::new(program("python"))
            .args(["-m", "llmock.cli", "serve", "--host", "127.0.0.1", "--log-level", "error", "--port"])
            .arg(port.to_string())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the server starts");
        let http = Client::builder().no_proxy().build().expect("a client");
        let server = Self { _child: child, http, url: format!("http://127.0.0.1:{port}") };
        let begun = Instant::now();
        while server.http.get(format!("{}/_llmock/scenario", server.url)).send().await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the server does not answer");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        server
    }

    fn provider(&self, more: &str) -> String {
        // Waits are long enough to be told from none, and short enough for a test.
        provider(&format!("{}/anthropic", self.url), &format!("{more}\n[retry]\ninitial = \"600ms\""))
    }

    /// Asks one question while these things happen; gives the outcome and how the server judges the client.
    async fn judged(&self, behaviours: Value, more: &str) -> (Value, Value) {
        self.http.post(format!("{}/_llmock/reset", self.url)).send().await.expect("the server resets");
        let scenario = self.http.post(format!("{}/_llmock/scenario", self.url));
        let queued = scenario.json(&json!({ "behaviors": behaviours })).send().await.expect("the server takes it");
        assert!(queued.status().is_success(), "{behaviours}");
        let outcome = run(&self.provider(more), &json!({"llm_config": {"prompt": "hello"}})).await;
        (outcome, self.verdict().await)
    }

    async fn verdict(&self) -> Value {
        let verdict = self.http.get(format!("{}/_llmock/verdict", self.url)).send().await.expect("a verdict");
        verdict.json().await.expect("it is JSON")
    }
}

const STREAMED: &str = "stream = \"always\"\nstall_timeout = \"1s\"";

#[tokio::test]
async fn the_verdict_on_what_follows_each_fault_is_clean() {
    let server = Llmock::start(&["--response-style", "varied"]).await;
    let fail = |status: u16| json!([{"type": "fail", "status": status}]);
    // An answer that is so long that the server sees the client go away in the middle of it, and not after its end.
    let long = "word ".repeat(40_000);
    let stream = |kind: &str| json!([{"type": "reply", "text": long}, {"type": "stream_fault", "kind": kind, "after_chunks": 2}]);
    for (name, behaviours, more, attempts) in [
        ("429 with waits", json!([{"type": "fail", "status": 429, "retry_after": 1, "times": 2}]), "", 3),
        ("429", fail(429), "", 2),
        ("500", fail(500), "", 2),
        ("503", fail(503), "", 2),
        ("529", fail(529), STREAMED, 2),
        ("408", fail(408), "", 2),
        ("409", fail(409), "", 2),
        ("a stream cut off", stream("truncate"), STREAMED, 2),
        ("a connection dropped", stream("disconnect"), STREAMED, 2),
        ("a broken event", stream("malformed"), STREAMED, 2),
        (
            "silence",
            json!([{"type": "stream_fault", "kind": "stall", "after_chunks": 2, "stall_seconds": 20}]),
            STREAMED,
            2,
        ),
        ("a slow first token", json!([{"type": "slow_first_token", "seconds": 2}]), STREAMED, 1),
        ("a slow answer", json!([{"type": "delay", "seconds": 2}]), "stall_timeout = \"1s\"", 1),
    ] {
        let (outcome, verdict) = server.judged(behaviours, more).await;
        assert_eq!(outcome["status"], "completed", "{name}: {outcome}");
        assert_eq!(verdict["findings"], json!([]), "{name}: {verdict:#}");
        assert_eq!((&verdict["calls"], &verdict["attempts"]), (&json!(1), &json!(attempts)), "{name}: {verdict:#}");
    }
}

#[tokio::test]
async fn what_cannot_succeed_is_asked_once_and_what_goes_on_failing_ends() {
    let server = Llmock::start(&[]).await;
    for (status, code) in [
        (400, "invalid_request"),
        (401, "authentication"),
        (402, "billing"),
        (403, "permission"),
        (404, "not_found"),
        (413, "request_too_large"),
    ] {
        let (outcome, verdict) = server.judged(json!([{"type": "fail", "status": status, "times": null}]), "").await;
        assert_eq!(outcome["error_details"]["code"], code, "{outcome}");
        assert_eq!((&verdict["attempts"], &verdict["findings"]), (&json!(1), &json!([])), "{status}: {verdict:#}");
    }
    let (outcome, verdict) = server.judged(json!([{"type": "fail", "status": 500, "times": null}]), "").await;
    assert_eq!((&outcome["error_details"]["code"], &outcome["attempts"]), (&json!("server_error"), &json!(3)));
    assert_eq!((&verdict["attempts"], &verdict["passed"]), (&json!(3), &json!(true)), "{verdict:#}");
}

#[tokio::test]
async fn a_quota_is_waited_out_for_as_long_as_the_provider_says() {
    let server = Llmock::start(&["--rpm", "20"]).await;
    let ask = || {
        server
            .http
            .post(format!("{}/anthropic/v1/messages", server.url))
            .header("x-api-key", "sk-test")
            .json(&json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}))
            .send()
    };
    let mut asked = 0;
    while ask().await.expect("an answer").status() != 429 {
        asked += 1;
        assert!(asked < 40, "there is a quota");
    }
    let forget = server.http.delete(format!("{}/_llmock/requests", server.url));
    assert!(forget.send().await.expect("the server forgets").status().is_success());
    let outcome = run(&server.provider(""), &json!({"llm_config": {"prompt": "hello"}})).await;
    assert_eq!(outcome["status"], "completed", "{outcome}");
    let verdict = server.verdict().await;
    assert_eq!(verdict["findings"], json!([]), "{verdict:#}");
    assert!(verdict["attempts"].as_u64() > Some(1), "the quota was used up: {verdict:#}");
}
