//! How many connections calls take, counted by a server that answers by an event stream and ends it a moment later.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::harness::*;

/// How long after its last event the stream ends.
const LATER: Duration = Duration::from_millis(30);
/// How long a tool takes that many call at once.
const BUSY: Duration = Duration::from_millis(25);
/// How many call it at once, and how often each of them.
const CALLERS: usize = 30;
const EACH: usize = 10;

/// Serves one connection. The stream of an answer ends so much later; at once, and with a tool that takes its time, where
/// that is no time at all.
async fn serve(mut stream: TcpStream, later: Duration, ended: Arc<AtomicUsize>) -> std::io::Result<()> {
    loop {
        let mut request = Vec::new();
        let body = loop {
            let text = String::from_utf8_lossy(&request).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length =
                    head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    break body.to_owned();
                }
            }
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        };
        let message: Value = serde_json::from_str(&body).unwrap_or_default();
        let result = match message["method"].as_str() {
            Some("server/discover") => {
                json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})
            }
            _ => json!({"resultType": "complete", "content": [{"type": "text", "text": "done"}]}),
        };
        if later.is_zero() {
            tokio::time::sleep(BUSY).await;
        }
        let event = format!("data: {}\n\n", json!({"jsonrpc": "2.0", "id": message["id"], "result": result}));
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
        match later.is_zero() {
            // The end is another step of every server.
            true => tokio::task::yield_now().await,
            false => tokio::time::sleep(later).await,
        }
        stream.write_all(b"0\r\n\r\n").await?;
        ended.fetch_add(1, Ordering::SeqCst);
    }
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

/// How many connections it takes that many call at once, again and again.
async fn connections_of_many_callers() -> usize {
    let connections = Arc::new(AtomicUsize::new(0));
    let made = Arc::clone(&connections);
    let (tell, told) = tokio::sync::oneshot::channel();
    // In a thread of its own, as a server is elsewhere: who calls has only its own turns to wait for.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
            let listener = socket.listen(4096).expect("it is bound");
            tell.send(listener.local_addr().expect("it is bound")).expect("the test waits for it");
            while let Ok((stream, _)) = listener.accept().await {
                made.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, Duration::ZERO, Arc::default()));
            }
        });
    });
    let session = Arc::new(connect(&at(format!("http://{}/mcp", told.await.expect("it listens")))).await);
    let callers = (0..CALLERS).map(|_| {
        let session = Arc::clone(&session);
        tokio::spawn(async move {
            for _ in 0..EACH {
                assert_eq!(call(&session, "x", json!({})).await.expect("an answer").text(), "done");
            }
        })
    });
    for caller in join_all(callers.collect::<Vec<_>>()).await {
        caller.expect("every call is answered");
    }
    session.close().await;
    connections.load(Ordering::SeqCst)
}

#[tokio::test]
async fn many_callers_take_about_a_connection_each() {
    // Where a machine is busy elsewhere, the end of a stream takes so long that nobody waits for it: that is no rule, so
    // one of several rounds is enough.
    let mut rounds = Vec::new();
    while rounds.iter().all(|connections| *connections > CALLERS * 5 / 4) {
        assert!(rounds.len() < 8, "{CALLERS} callers took {rounds:?} connections");
        rounds.push(connections_of_many_callers().await);
    }
}
