//! A server that does as little as one can: it finds the method and the id of a message and writes an answer that it
//! has by heart. It uses neither of the two libraries.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use crate::client::{ANSWER, TOOL};
use crate::{Answers, Era};

/// Connections that may wait to be accepted: more than any client makes at once.
const BACKLOG: u32 = 4096;

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Cow<'a, str>,
}

/// What follows from a message.
#[derive(Default)]
struct Reply {
    /// The response; a notification has none.
    text: Option<String>,
    /// It is the answer of a tool.
    called: bool,
    /// It knows nothing of this, in whichever era it lives.
    unknown: bool,
}

fn reply(era: Era, body: &[u8]) -> Reply {
    let Ok(Message { id, method }) = serde_json::from_slice(body) else {
        let text = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no"}}"#;
        return Reply { text: Some(String::from(text)), unknown: true, called: false };
    };
    let Some(id) = id else { return Reply::default() };
    let capabilities = json!({"tools": {}});
    let who = json!({"name": "bench", "version": "1"});
    let result = match (&*method, era) {
        ("tools/call", Era::Legacy) => json!({"content": [{"type": "text", "text": ANSWER}], "isError": false}),
        ("tools/call", Era::Modern) => {
            json!({"resultType": "complete", "content": [{"type": "text", "text": ANSWER}], "isError": false})
        }
        ("tools/list", _) => json!({
            "resultType": "complete", "ttlMs": 0, "cacheScope": "private",
            "tools": [{"name": TOOL, "description": "Looks up an order.", "inputSchema": {"type": "object"}}],
        }),
        ("initialize", Era::Legacy) => {
            json!({"protocolVersion": era.version(), "capabilities": capabilities, "serverInfo": who})
        }
        ("server/discover", Era::Modern) => json!({
            "resultType": "complete", "supportedVersions": [era.version()], "capabilities": capabilities,
            "ttlMs": 0, "cacheScope": "private", "_meta": {"io.modelcontextprotocol/serverInfo": who},
        }),
        _ => {
            let error = json!({"code": -32601, "message": "Method not found"});
            let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#);
            return Reply { text: Some(text), unknown: true, called: false };
        }
    };
    let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#);
    Reply { text: Some(text), called: method == "tools/call", unknown: false }
}

/// Serves over stdin and stdout until stdin ends.
pub async fn over_stdio(era: Era, delay: Duration) {
    let mut lines = BufReader::with_capacity(64 * 1024, tokio::io::stdin()).split(b'\n');
    let (answers, mut ready) = mpsc::unbounded_channel::<String>();
    tokio::spawn(async move {
        let mut stdout = tokio::io::stdout();
        let mut batch = Vec::new();
        while ready.recv_many(&mut batch, 100).await > 0 {
            let written = stdout.write_all(batch.concat().as_bytes()).await;
            if written.is_err() || stdout.flush().await.is_err() {
                return;
            }
            batch.clear();
        }
    });
    while let Ok(Some(line)) = lines.next_segment().await {
        let Reply { text: Some(mut text), called, .. } = reply(era, &line) else { continue };
        text.push('\n');
        let answers = answers.clone();
        let answer = async move {
            wait(called, delay).await;
            // Whoever has gone needs no answer.
            let _ = answers.send(text);
        };
        if called { drop(tokio::spawn(answer)) } else { answer.await }
    }
}

/// A call takes its time, so that as many are under way as the client wants at once.
async fn wait(called: bool, delay: Duration) {
    if called && !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

/// Serves over HTTP until the process is killed.
pub async fn over_http(era: Era, answers: Answers, delay: Duration) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let listener = socket.listen(BACKLOG).expect("a bound socket can listen");
    println!("http://{}/mcp", listener.local_addr().expect("an address"));
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move { serve(stream, era, answers, delay).await });
    }
}

/// Serves one connection. A client that goes away ends its connection and nothing else.
async fn serve(mut stream: TcpStream, era: Era, answers: Answers, delay: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::with_capacity(4096);
    loop {
        let Some(head) = read_head(&mut stream, &mut received).await? else { return Ok(()) };
        let whole = head.end + head.length;
        while received.len() < whole {
            if stream.read_buf(&mut received).await? == 0 {
                return Ok(());
            }
        }
        let reply = if head.post { reply(era, &received[head.end..whole]) } else { Reply::default() };
        received.drain(..whole);
        wait(reply.called, delay).await;
        match (reply.text, answers) {
            (Some(body), _) if reply.unknown => {
                let length = body.len();
                let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: ";
                stream.write_all(format!("{head}{length}\r\n\r\n{body}").as_bytes()).await?;
            }
            (Some(body), Answers::Json) => {
                let length = body.len();
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
                stream.write_all(format!("{head}{length}\r\n\r\n{body}").as_bytes()).await?;
            }
            (Some(body), Answers::Sse) => {
                let event = format!("event: message\r\ndata: {body}\r\n\r\n");
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                let chunk = format!("{head}{:x}\r\n{event}\r\n", event.len());
                stream.write_all(chunk.as_bytes()).await?;
                // The end of a stream is another step of every server.
                tokio::task::yield_now().await;
                stream.write_all(b"0\r\n\r\n").await?;
            }
            (None, _) => {
                let status = if head.post { "202 Accepted" } else { "405 Method Not Allowed" };
                stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
            }
        }
    }
}

/// What has to be known of a request before its body.
struct Head {
    post: bool,
    /// Where the body begins.
    end: usize,
    /// Bytes of the body.
    length: usize,
}

async fn read_head(stream: &mut TcpStream, received: &mut Vec<u8>) -> std::io::Result<Option<Head>> {
    loop {
        if let Some(at) = memchr::memmem::find(received, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..at]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length = length.map_or(0, |length| length.trim().parse().expect("a length is a number"));
            return Ok(Some(Head { post: head.starts_with("post "), end: at + 4, length }));
        }
        if stream.read_buf(received).await? == 0 {
            return Ok(None);
        }
    }
}
