//! Answers the requests of a node, keeps their bodies, and holds them against the types of the vendors' SDKs.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use crate::harness::{PATIENCE, program, run, with_provider};

/// A small picture.
pub const PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// A request that was sent.
#[derive(Debug)]
pub struct Sent {
    /// What was tried.
    pub name: String,
    /// The endpoint.
    pub path: String,
    /// The body.
    pub body: Value,
}

/// Gives one answer after the other, the last one for ever.
pub struct Answers {
    left: Mutex<VecDeque<Value>>,
    streamed: fn(&Value) -> Option<Vec<Value>>,
}

impl Answers {
    /// Answers that come as a whole, be they asked for as a stream or not.
    pub fn whole(answers: impl IntoIterator<Item = Value>) -> Self {
        Self::streamed(answers, |_| None)
    }

    /// The same, which `events` turns into events where a stream is asked for.
    pub fn streamed(answers: impl IntoIterator<Item = Value>, events: fn(&Value) -> Option<Vec<Value>>) -> Self {
        Self { left: Mutex::new(answers.into_iter().collect()), streamed: events }
    }
}

impl Respond for Answers {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut left = self.left.lock().expect("nobody panics while holding it");
        let answer = if left.len() > 1 { left.pop_front() } else { left.front().cloned() };
        let answer = answer.expect("there is an answer");
        let body: Value = request.body_json().expect("a body");
        let events = if body["stream"] == true { (self.streamed)(&answer) } else { None };
        let Some(events) = events else { return ResponseTemplate::new(200).set_body_json(answer) };
        let text: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        ResponseTemplate::new(200).set_body_raw(text, "text/event-stream")
    }
}

/// The requests that a node makes to this endpoint of a provider with these members.
pub async fn bodies(name: &str, path: &str, members: &str, node: Value, answers: Answers) -> Vec<Sent> {
    let server = MockServer::start().await;
    Mock::given(wiremock::matchers::any()).respond_with(answers).mount(&server).await;
    let outcome = run(&with_provider(&server.uri(), members), &node).await;
    assert_eq!(outcome["status"], "completed", "{name}: {outcome}");
    let requests = server.received_requests().await.expect("they are recorded");
    assert!(!requests.is_empty(), "{name}");
    let sent = requests.iter().map(|request| {
        let keys = ["x-api-key", "authorization"].iter().filter(|name| request.headers.contains_key(**name)).count();
        assert_eq!((keys, request.url.path()), (1, path), "{name}");
        Sent { name: name.to_owned(), path: path.to_owned(), body: request.body_json().expect("a body") }
    });
    sent.collect()
}

/// What the types of the SDKs say against these requests.
pub async fn mistakes(sent: &[Sent]) -> Vec<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/request_types.py");
    let mut child = Command::new(program("python"))
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("Python starts");
    let line = |Sent { name, path, body }: &Sent| format!("{}\n", json!({"name": name, "path": path, "body": body}));
    let lines: String = sent.iter().map(line).collect();
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(lines.as_bytes()).await.expect("the script reads");
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("in time").expect("it ends");
    let found: Vec<String> = String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect();
    assert_eq!(output.status.success(), found.is_empty(), "the script itself failed");
    found
}
