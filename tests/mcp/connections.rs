//! How many connections calls take, counted by a server that answers by an event stream and ends it a moment later.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::*;

/// How long after its last event the stream ends.
const LATER: Duration = Duration::from_millis(30);

async fn serve(mut stream: TcpStream, ended: Arc<AtomicUsize>) -> std::io::Result<()> {
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
        let event = format!("data: {}\n\n", json!({"jsonrpc": "2.0", "id": message["id"], "result": result}));
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
        tokio::time::sleep(LATER).await;
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
            tokio::spawn(serve(stream, Arc::clone(&ends)));
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
