//! Servers that never come to an end, or stop half-way: everything about them takes bounded time and memory.

use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::{McpError, Session};
use da_node_executor::modes::schema::Schema;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::*;

/// What a raw server does with the requests of one method; everything else is answered as it should be.
#[derive(Clone, Copy)]
enum Deed {
    /// Never answers.
    Hang,
    /// Begins an answer and never ends it.
    HalfAnswer,
    /// Streams notifications without an end.
    EndlessStream,
    /// Cuts the connection.
    Cut,
}

/// A server that misbehaves at one method.
async fn raw(method: &'static str, deed: Deed) -> String {
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
                ("200 OK", json!({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": []}}).to_string())
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

/// Connects, lists, calls; the first error ends it.
async fn all_stages(url: String) -> Result<(), McpError> {
    let mut config = at(url);
    config.connect_timeout = Duration::from_millis(600);
    config.timeout = Duration::from_millis(600);
    let session = Session::connect("under-test", &config).await?;
    session.list_tools().await?;
    call(&session, "x", json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_limit_of_its_stage_wherever_it_hangs() {
    for method in ["initialize", "notifications/initialized", "tools/list", "tools/call"] {
        for deed in [Deed::Hang, Deed::HalfAnswer, Deed::EndlessStream] {
            if method == "notifications/initialized" && !matches!(deed, Deed::Hang) {
                // Nobody reads the answer to a notification.
                continue;
            }
            let url = raw(method, deed).await;
            let started = Instant::now();
            let error = all_stages(url).await.expect_err("it hangs");
            assert!(matches!(error, McpError::TimedOut { .. }), "{method}: {error:?}");
            assert_eq!(error.may_have_run(), method == "tools/call", "{method}");
            assert!(started.elapsed() < Duration::from_secs(10), "{method}: {:?}", started.elapsed());
        }
    }
    // Silence at the very first question is no refusal of the other era.
    all_stages(raw("server/discover", Deed::Hang).await).await.map_or_else(
        |error| assert!(matches!(error, McpError::Http { status: 202, .. } | McpError::Protocol { .. }), "{error:?}"),
        |()| panic!("the call is answered by nothing"),
    );
}

#[tokio::test]
async fn a_connection_that_is_cut_leaves_the_outcome_open_only_if_a_tool_was_called() {
    for method in ["server/discover", "initialize", "tools/list", "tools/call"] {
        let error = all_stages(raw(method, Deed::Cut).await).await.expect_err("it is cut");
        assert!(matches!(error, McpError::Closed { .. }), "{method}: {error:?}");
        assert_eq!(error.may_have_run(), method == "tools/call", "{method}");
    }
}

/// The most memory that this process has held, in MiB.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is listed");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") / 1024
}

#[tokio::test]
async fn a_gigabyte_of_output_fails_its_call_alone_and_is_never_held() {
    let session = connect(&stdio(hostile(), &["plain"])).await;
    let error = call(&session, "gigabyte", json!({})).await.expect_err("nobody wants that much");
    assert!(matches!(error, McpError::TooLarge { .. }), "{error:?}");
    assert_eq!(call(&session, "echo", json!({})).await.expect("the session lives").text(), "echo");
    assert!(peak_memory() < 400, "{} MiB", peak_memory());
    session.close().await;
}

#[tokio::test]
async fn ten_thousand_tools_in_a_circle_are_refused_quickly() {
    let session = connect(&stdio(hostile(), &["many"])).await;
    let started = Instant::now();
    let error = session.list_tools().await.expect_err("the list runs in a circle");
    assert!(matches!(error, McpError::Protocol { .. }), "{error:?}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    session.close().await;
}

#[tokio::test]
async fn schemas_that_refer_to_themselves_are_kept_and_never_run_away() {
    let session = connect(&stdio(hostile(), &["recursive"])).await;
    let tools = session.list_tools().await.expect("they are listed").tools;
    assert_eq!(tools.len(), 5);
    for tool in tools {
        assert_eq!(tool.output_schema.as_deref(), Some(&*tool.input_schema), "{}", tool.name);
        // The same check that arguments and structured answers go through: it may refuse the schema, it may not hang,
        // fetch anything or overflow the stack.
        if let Ok(schema) = Schema::compile(tool.input_schema.clone()) {
            let _ = schema.check(&json!({"left": {"left": {}, "right": 5}}));
        }
    }
    session.close().await;
}
