//! A server over HTTP that misbehaves at one method, byte by byte as a test wants it; it answers everything else.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Megabytes of an answer that nobody wants.
const MEGABYTES: usize = 1024;

/// What a raw server does with the requests of one method; everything else is answered as it should be.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "not every suite that includes this file uses every deed")]
pub enum Deed {
    /// Never answers.
    Hang,
    /// Begins an answer and never ends it.
    HalfAnswer,
    /// Streams notifications without an end.
    EndlessStream,
    /// Cuts the connection.
    Cut,
    /// Answers with a gigabyte of JSON.
    Gigabyte,
    /// The same in one event of a stream.
    GigabyteEvent,
    /// Sends the request to another host.
    Redirect,
    /// Answers somebody else's request.
    WrongId,
    /// Answers with no JSON.
    Garbage,
}

/// A server that misbehaves at one method.
pub async fn raw(method: &'static str, deed: Deed) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, method, deed));
        }
    });
    url
}

async fn serve(mut socket: TcpStream, misbehaves_at: &str, deed: Deed) {
    while let Some((get, body)) = request(&mut socket).await {
        let message: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        let (status, answer) = match method.as_str() {
            _ if get => ("405 No", String::new()),
            method if method == misbehaves_at => return misbehave(socket, deed).await,
            "server/discover" => ("400 No", json!({"error": {"code": -32000, "message": "no"}}).to_string()),
            "initialize" => {
                let opened = json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {}});
                ("200 OK", json!({"jsonrpc": "2.0", "id": message["id"], "result": opened}).to_string())
            }
            "tools/list" => {
                let tools = json!([{"name": "x", "inputSchema": {"type": "object"}}]);
                ("200 OK", json!({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": tools}}).to_string())
            }
            _ => ("202 Accepted", String::new()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        );
        if socket.write_all(head.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn misbehave(mut socket: TcpStream, deed: Deed) {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: ";
    match deed {
        Deed::Hang => std::future::pending().await,
        Deed::Cut => {}
        Deed::HalfAnswer => {
            let _ = socket.write_all(format!("{head}application/json\r\n\r\n4\r\n{{\"id\r\n").as_bytes()).await;
            std::future::pending().await
        }
        Deed::EndlessStream => {
            let event =
                "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}\n\n".repeat(200);
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            let _ = socket.write_all(format!("{head}text/event-stream\r\n\r\n").as_bytes()).await;
            while socket.write_all(chunk.as_bytes()).await.is_ok() {}
        }
        Deed::Gigabyte => {
            let _ = socket.write_all(format!("{head}application/json\r\n\r\n7\r\n{{\"id\":\"\r\n").as_bytes()).await;
            flood(socket).await;
        }
        Deed::GigabyteEvent => {
            let _ = socket.write_all(format!("{head}text/event-stream\r\n\r\n6\r\ndata: \r\n").as_bytes()).await;
            flood(socket).await;
        }
        Deed::Redirect => {
            // Reserved for documentation: nobody is there, and nobody may be asked.
            let place = "location: http://192.0.2.1/mcp\r\ncontent-length: 0";
            let _ = socket.write_all(format!("HTTP/1.1 307 There\r\n{place}\r\n\r\n").as_bytes()).await;
        }
        Deed::WrongId => {
            let body = r#"{"jsonrpc":"2.0","id":987654,"result":{"content":[]}}"#;
            let body = format!("{head}application/json\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            let _ = socket.write_all(body.as_bytes()).await;
        }
        Deed::Garbage => {
            let _ =
                socket.write_all(format!("{head}application/json\r\n\r\n3\r\n\x00ab\r\n0\r\n\r\n").as_bytes()).await;
        }
    }
}

/// Far more than anybody takes.
async fn flood(mut socket: TcpStream) {
    let piece = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    for _ in 0..MEGABYTES {
        if socket.write_all(piece.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// One request: whether it is no POST, and its body.
pub async fn request(socket: &mut TcpStream) -> Option<(bool, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.ok()?;
    Some((!head.starts_with("post"), body))
}
