//! A server that tells when its tools change: its list is believed for as long as that could be heard, and no longer.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex as AsyncMutex, mpsc as channel};
use tokio::time::advance;

use super::*;
use crate::clients::mcp::Session;

/// What is done with the stream on which changes are told.
enum Order {
    /// A change is told.
    Tell,
    /// It ends.
    End,
}

/// A server of the modern era that tells what it is ordered to.
struct Teller {
    lists: AtomicUsize,
    orders: AsyncMutex<channel::UnboundedReceiver<Order>>,
}

impl Teller {
    async fn serve(&self, mut socket: TcpStream) -> std::io::Result<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await?);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            socket.read_exact(&mut body).await?;
            let message: Value = serde_json::from_slice(&body).unwrap_or_default();
            let result = match message["method"].as_str() {
                Some("server/discover") => json!({
                    "resultType": "complete", "supportedVersions": ["2026-07-28"],
                    "capabilities": {"tools": {"listChanged": true}},
                }),
                Some("subscriptions/listen") => return self.tell(socket).await,
                _ => {
                    self.lists.fetch_add(1, Ordering::SeqCst);
                    json!({"resultType": "complete", "tools": [{"name": "t"}]})
                }
            };
            let answer = json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
            socket.write_all(format!("{head}: {}\r\n\r\n{answer}", answer.len()).as_bytes()).await?;
        }
    }

    async fn tell(&self, mut socket: TcpStream) -> std::io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        socket.write_all(head.as_bytes()).await?;
        let mut method = "notifications/subscriptions/acknowledged";
        loop {
            let event = format!("data: {}\n\n", json!({"jsonrpc": "2.0", "method": method, "params": {}}));
            socket.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
            method = match self.orders.lock().await.recv().await {
                Some(Order::Tell) => "notifications/tools/list_changed",
                Some(Order::End) | None => return socket.write_all(b"0\r\n\r\n").await,
            };
        }
    }
}

async fn until(what: &str, session: &Session, condition: impl Fn(&Session) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition(session) {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_is_believed_while_a_change_of_it_would_be_heard_and_no_longer() {
    let _still = Still::hold();
    let (order, orders) = channel::unbounded_channel();
    let teller = Arc::new(Teller { lists: AtomicUsize::new(0), orders: AsyncMutex::new(orders) });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
    let url = format!("http://{}/mcp", listener.local_addr().expect("it is bound"));
    let serving = Arc::clone(&teller);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let teller = Arc::clone(&serving);
            tokio::spawn(async move { teller.serve(socket).await });
        }
    });
    let lists = || teller.lists.load(Ordering::SeqCst);
    let server = server_of(McpServerConfig { url: Some(url), ..McpServerConfig::default() }, no_lock());
    let session = server.session().await.expect("a session");
    until("it listens", &session, Session::tells_changes).await;

    for _ in 0..5 {
        assert_eq!(server.offer(true).await.expect("a list").len(), 1);
        advance(Duration::from_secs(3600)).await;
    }
    assert_eq!(lists(), 1, "nobody asks while nothing is told");

    let before = session.tools_changed();
    order.send(Order::Tell).expect("it is there");
    until("the change is heard", &session, |session| session.tools_changed() > before).await;
    assert!(server.current_tools().is_none());
    for _ in 0..5 {
        server.offer(true).await.expect("the new list");
    }
    assert_eq!(lists(), 2, "once for each change");

    order.send(Order::End).expect("it is there");
    until("nothing is heard any more", &session, |session| !session.tells_changes()).await;
    assert!(server.current_tools().is_none(), "a change would not be heard");
    for _ in 0..5 {
        server.offer(true).await.expect("the list as it is now");
    }
    assert_eq!(lists(), 3, "and then as of a server that tells nothing");
}
