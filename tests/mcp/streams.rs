//! A server of the legacy era that uses its own stream for more than news: answers to calls, and questions about them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::{AnswerInput, Endpoint, Mode, Question, Reply, Session};
use da_node_executor::config::McpServerConfig;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, pending, ready};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

use crate::harness::*;
use crate::raw_server::request;

/// Where the answer to a call goes.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Only on the server's own stream; that of the call stays open and silent.
    Own,
    /// On the server's own stream just when that of the call ends without an answer.
    OwnAsTheOtherEnds,
    /// On both, first on the server's own.
    Both,
    /// A question comes on the server's own stream, and once it is answered, the answer on that of the call.
    AfterAQuestion,
    /// A question and the answer both come on the server's own stream; the one does not wait for the other.
    BesideAQuestion,
}

struct Server {
    way: Way,
    /// Whether it speaks the HTTP+SSE of 2024-11-05: everything comes on the one stream.
    old: bool,
    /// What happened, in order.
    log: Mutex<Vec<String>>,
    /// What goes out on the server's own stream.
    news: Mutex<Option<mpsc::UnboundedSender<String>>>,
    called: Notify,
    replied: Notify,
}

/// How long the server lets the client wait for the head of its own stream, if no call comes before.
const SLOW_HEAD: Duration = Duration::from_millis(200);

const STREAM: &str = concat!(
    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n",
    "transfer-encoding: chunked\r\n\r\n"
);

fn chunk(message: &Value) -> String {
    let event = format!("data: {message}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len())
}

fn answer(id: &Value, text: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": text}]}})
}

fn question() -> Value {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    let params = json!({"message": "Who is it?", "requestedSchema": schema});
    json!({"jsonrpc": "2.0", "id": "q-1", "method": "elicitation/create", "params": params})
}

impl Server {
    async fn start(way: Way) -> (Arc<Self>, String) {
        Self::start_as(way, false).await
    }

    async fn start_as(way: Way, old: bool) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
        let (log, news) = (Mutex::default(), Mutex::default());
        let server = Arc::new(Self { way, old, log, news, called: Notify::new(), replied: Notify::new() });
        let this = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let this = Arc::clone(&this);
                tokio::spawn(async move { this.serve(socket).await });
            }
        });
        (server, url)
    }

    fn note(&self, what: impl Into<String>) {
        self.log.lock().expect("nobody panics with it").push(what.into());
    }

    fn noted(&self, what: &str) -> usize {
        self.log.lock().expect("nobody panics with it").iter().filter(|line| *line == what).count()
    }

    /// Sends on the server's own stream; what goes there while nobody listens is lost.
    fn tell(&self, message: &Value) {
        if let Some(news) = &*self.news.lock().expect("nobody panics with it") {
            let _ = news.send(chunk(message));
        }
    }

    async fn serve(self: Arc<Self>, mut socket: TcpStream) {
        while let Some((get, body)) = request(&mut socket).await {
            if get {
                return self.own_stream(socket).await;
            }
            let message: Value = serde_json::from_slice(&body).unwrap_or_default();
            let id = &message["id"];
            if self.old {
                self.take(&message);
                let status = if self.listens() { "202 Accepted" } else { "405 No" };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                match socket.write_all(head.as_bytes()).await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            let (status, answer) = match message["method"].as_str() {
                Some("server/discover") => {
                    ("400 No", json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "no"}}))
                }
                Some("initialize") => {
                    let opened =
                        json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {}});
                    ("200 OK", json!({"jsonrpc": "2.0", "id": id, "result": opened}))
                }
                Some("tools/call") => return self.call(socket, id.clone()).await,
                Some(_) => ("202 Accepted", Value::Null),
                None => {
                    self.note(format!("reply {}", message["result"]));
                    self.replied.notify_one();
                    ("202 Accepted", Value::Null)
                }
            };
            let answer = if answer.is_null() { String::new() } else { answer.to_string() };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            if socket.write_all((head + &answer).as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn listens(&self) -> bool {
        self.news.lock().expect("nobody panics with it").is_some()
    }

    /// As an old server: what a message leads to comes on the stream.
    fn take(&self, message: &Value) {
        let id = &message["id"];
        match message["method"].as_str() {
            Some("initialize") => {
                let opened = json!({"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {}});
                self.tell(&json!({"jsonrpc": "2.0", "id": id, "result": opened}));
            }
            Some("tools/call") => {
                self.tell(&question());
                self.tell(&answer(id, "own"));
            }
            Some(_) => {}
            None => self.note(format!("reply {}", message["result"])),
        }
    }

    /// The server's own stream. Its head is slow to come, unless a call comes first.
    async fn own_stream(&self, mut socket: TcpStream) {
        if !self.old && timeout(SLOW_HEAD, self.called.notified()).await.is_ok() {
            self.note("called before anybody listened");
        }
        let (sender, mut news) = mpsc::unbounded_channel();
        if self.old {
            let event = "event: endpoint\ndata: /mcp\n\n";
            let _ = sender.send(format!("{:x}\r\n{event}\r\n", event.len()));
        }
        *self.news.lock().expect("nobody panics with it") = Some(sender);
        let _ = socket.write_all(STREAM.as_bytes()).await;
        while let Some(news) = news.recv().await {
            if socket.write_all(news.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    async fn call(&self, mut socket: TcpStream, id: Value) {
        self.note("called");
        self.called.notify_one();
        let _ = socket.write_all(STREAM.as_bytes()).await;
        self.tell(&answer(&json!(4711), "nobody asked"));
        match self.way {
            Way::Own => self.tell(&answer(&id, "own")),
            Way::OwnAsTheOtherEnds => {
                let _ = socket.write_all(b"0\r\n\r\n").await;
                self.tell(&answer(&id, "own"));
            }
            Way::Both => {
                self.tell(&answer(&id, "own"));
                let _ = socket.write_all(chunk(&answer(&id, "its")).as_bytes()).await;
                self.tell(&answer(&id, "own again"));
            }
            Way::AfterAQuestion => {
                self.tell(&question());
                self.replied.notified().await;
                let _ = socket.write_all(chunk(&answer(&id, "its")).as_bytes()).await;
            }
            Way::BesideAQuestion => {
                self.tell(&question());
                self.tell(&answer(&id, "own"));
            }
        }
        // The client ends the stream of a call that was answered elsewhere.
        let _ = socket.read_u8().await;
        self.note("the stream of the call is closed");
    }
}

/// Somebody who is asked.
pub enum Person {
    /// Fills in the form.
    Answers,
    /// Fills in the form after a while.
    Hesitates(Duration),
    /// Never comes to an end.
    Thinks,
}

impl AnswerInput for Person {
    fn capabilities(&self) -> Value {
        json!({"elicitation": {"form": {}}})
    }

    fn answer<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<Reply>> {
        assert!(matches!(question.mode, Mode::Form { .. }) && question.message == "Who is it?", "{question:?}");
        let content = Map::from_iter([(String::from("name"), json!("Ada"))]);
        let reply = Some(Reply::Accept(content));
        match self {
            Self::Answers => ready(reply).boxed(),
            Self::Hesitates(time) => sleep(*time).map(|()| reply).boxed(),
            Self::Thinks => pending().boxed(),
        }
    }
}

async fn asked(url: &str, person: Person) -> Session {
    let endpoint = Endpoint::new("under-test", at(url)).answered(Arc::new(person));
    endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"))
}

/// Calls once; the answer has to come long before any limit.
async fn answered(session: &Session) -> String {
    let started = Instant::now();
    let text = call(session, "x", json!({})).await.expect("an answer").text();
    assert!(started.elapsed() < PATIENCE / 3, "{:?}", started.elapsed());
    text
}

#[tokio::test]
async fn an_answer_on_the_servers_own_stream_counts_and_the_stream_of_the_call_is_closed() {
    let (server, url) = Server::start(Way::Own).await;
    let session = connect(&at(url)).await;
    for calls in 1..=3 {
        assert_eq!(answered(&session).await, "own");
        until("the stream of the call is closed", || server.noted("the stream of the call is closed") == calls).await;
    }
    assert_eq!(server.noted("called"), 3);
}

#[tokio::test]
async fn an_answer_that_comes_twice_on_two_streams_counts_once() {
    let (server, url) = Server::start(Way::Both).await;
    let session = connect(&at(url)).await;
    for calls in 1..=20 {
        assert!(["own", "its"].contains(&&*answered(&session).await));
        assert_eq!(server.noted("called"), calls);
    }
    assert!(!session.is_closed());
}

#[tokio::test]
async fn an_answer_that_overtakes_the_end_of_its_calls_stream_is_waited_for() {
    let (_server, url) = Server::start(Way::OwnAsTheOtherEnds).await;
    let session = connect(&at(url)).await;
    for _ in 0..20 {
        assert_eq!(answered(&session).await, "own");
    }
}

#[tokio::test]
async fn nothing_is_called_before_somebody_listens_so_no_question_is_lost() {
    let (server, url) = Server::start(Way::AfterAQuestion).await;
    let session = asked(&url, Person::Answers).await;
    assert_eq!(answered(&session).await, "its");
    assert_eq!(server.noted("called before anybody listened"), 0);
    assert_eq!(server.noted(r#"reply {"action":"accept","content":{"name":"Ada"}}"#), 1);
}

#[tokio::test]
async fn a_question_that_takes_long_holds_up_no_answer_on_the_same_stream() {
    let (_server, url) = Server::start(Way::BesideAQuestion).await;
    let session = asked(&url, Person::Thinks).await;
    // More of them than may be open at once.
    for _ in 0..40 {
        assert_eq!(answered(&session).await, "own");
    }
}

#[tokio::test]
async fn a_question_that_takes_long_holds_up_no_answer_of_an_old_server() {
    let (_server, url) = Server::start_as(Way::BesideAQuestion, true).await;
    let session = asked(&url, Person::Thinks).await;
    assert_eq!(session.transport(), "sse");
    for _ in 0..40 {
        assert_eq!(answered(&session).await, "own");
    }
}

#[tokio::test]
async fn a_call_is_not_silent_while_somebody_here_thinks_about_its_question() {
    let (_server, url) = Server::start(Way::AfterAQuestion).await;
    let limit = Duration::from_millis(600);
    let config = McpServerConfig { timeout: limit, ..at(url) };
    let endpoint = Endpoint::new("under-test", config).answered(Arc::new(Person::Hesitates(limit * 2)));
    let session = endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(answered(&session).await, "its");
}
