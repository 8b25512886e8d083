//! How many connections calls take, counted by servers that answer by event streams and end them when they please.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::*;

/// How long after its last event the stream ends.
const LATER: Duration = Duration::from_millis(30);
/// How many call at once, and how often each of them.
const CALLERS: usize = 30;
const EACH: usize = 10;

/// The body of the next request on a connection; none at its end.
async fn next_request(stream: &mut TcpStream) -> std::io::Result<Option<Value>> {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Ok(Some(serde_json::from_str(body).unwrap_or_default()));
            }
        }
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(None);
        }
    }
}

/// Begins an event stream with the answer to a request, and does not end it.
async fn answer(stream: &mut TcpStream, message: &Value) -> std::io::Result<()> {
    let result = match message["method"].as_str() {
        Some("server/discover") => {
            json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})
        }
        _ => json!({"resultType": "complete", "content": [{"type": "text", "text": "done"}]}),
    };
    let event = format!("data: {}\n\n", json!({"jsonrpc": "2.0", "id": message["id"], "result": result}));
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(format!("{head}{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
}

/// Ends an event stream.
async fn end(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"0\r\n\r\n").await
}

/// Serves one connection, and ends each stream so much later than its answer.
async fn serve(mut stream: TcpStream, later: Duration, ended: Arc<AtomicUsize>) -> std::io::Result<()> {
    while let Some(message) = next_request(&mut stream).await? {
        answer(&mut stream, &message).await?;
        tokio::time::sleep(later).await;
        end(&mut stream).await?;
        ended.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

#[tokio::test]
async fn calls_that_are_answered_by_event_streams_share_a_connection() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
    let url = format!("http://{}/mcp", listener.local_addr().expect("it is bound"));
    let (connections, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (made, ends) = (Arc::clone(&connections), Arc::clone(&ended));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            made.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream, LATER, Arc::clone(&ends)));
        }
    });
    let session = connect(&at(url)).await;
    let deadline = Instant::now() + PATIENCE;
    // A call right after the end of a stream may be quicker than the reading of that end; three in a row are not.
    let (mut calls, mut shared) = (0, 0);
    while shared < 3 {
        assert!(Instant::now() < deadline, "a stream that is dropped early takes its connection with it");
        let before = connections.load(Ordering::SeqCst);
        assert_eq!(call(&session, "x", json!({})).await.expect("an answer").text(), "done");
        calls += 1;
        until("the stream has ended", || ended.load(Ordering::SeqCst) > calls).await;
        shared = if connections.load(Ordering::SeqCst) == before { shared + 1 } else { 0 };
    }
    session.close().await;
}

#[tokio::test]
async fn a_server_that_does_not_end_its_streams_holds_up_one_call_and_not_each() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
    let url = format!("http://{}/mcp", listener.local_addr().expect("it is bound"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, PATIENCE, Arc::default()));
        }
    });
    let session = connect(&at(url)).await;
    let started = Instant::now();
    for _ in 0..40 {
        assert_eq!(call(&session, "x", json!({})).await.expect("an answer").text(), "done");
    }
    // Half a second each would be twenty.
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    session.close().await;
}

/// What a server sees of callers who all call at once, again and again.
struct Crowd {
    /// Connections so far.
    connections: AtomicUsize,
    /// Calls that came in, and answers that the callers have.
    asked: watch::Sender<usize>,
    answered: watch::Sender<usize>,
}

impl Crowd {
    /// Serves one connection: answers no call before everybody has called, and ends no stream before everybody has the
    /// answer and is at the next call.
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        self.connections.fetch_add(1, Ordering::SeqCst);
        while let Some(message) = next_request(&mut stream).await? {
            if message["method"] == "tools/call" {
                let mut round = 0;
                self.asked.send_modify(|asked| {
                    *asked += 1;
                    round = asked.div_ceil(CALLERS);
                });
                reached(&self.asked, round * CALLERS).await;
                answer(&mut stream, &message).await?;
                reached(&self.answered, round * CALLERS).await;
            } else {
                answer(&mut stream, &message).await?;
            }
            end(&mut stream).await?;
        }
        Ok(())
    }
}

async fn reached(count: &watch::Sender<usize>, target: usize) {
    let _ = count.subscribe().wait_for(|count| *count >= target).await;
}

#[tokio::test(start_paused = true)]
async fn many_callers_take_a_connection_each_and_not_two() {
    // However long the machine takes: only what happens counts, and no time passes for who waits.
    let _still = Still::hold();
    let (asked, answered) = (watch::Sender::new(0), watch::Sender::new(0));
    let crowd = Arc::new(Crowd { connections: AtomicUsize::new(0), asked, answered });
    let (tell, told) = tokio::sync::oneshot::channel();
    let seen = Arc::clone(&crowd);
    // In a thread of its own, as a server is elsewhere: who calls has only its own turns to wait for.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
            tell.send(listener.local_addr().expect("it is bound")).expect("the test waits for it");
            while let Ok((stream, _)) = listener.accept().await {
                let crowd = Arc::clone(&seen);
                tokio::spawn(async move { crowd.serve(stream).await });
            }
        });
    });
    let session = Arc::new(connect(&at(format!("http://{}/mcp", told.await.expect("it listens")))).await);
    let callers = (0..CALLERS).map(|_| {
        let (session, crowd) = (Arc::clone(&session), Arc::clone(&crowd));
        tokio::spawn(async move {
            for _ in 0..EACH {
                assert_eq!(call(&session, "x", json!({})).await.expect("an answer").text(), "done");
                // In the same breath as the next call: when the last one says so, all others are at it.
                crowd.answered.send_modify(|answered| *answered += 1);
            }
        })
    });
    for caller in join_all(callers.collect::<Vec<_>>()).await {
        caller.expect("every call is answered");
    }
    let connections = crowd.connections.load(Ordering::SeqCst);
    // Who does not wait for the end of a stream takes a second connection for each caller.
    assert!((CALLERS..=CALLERS + 1).contains(&connections), "{CALLERS} callers took {connections} connections");
    assert_eq!(*crowd.asked.borrow(), CALLERS * EACH);
    session.close().await;
}
