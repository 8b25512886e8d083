//! A model behind the Messages API that answers at once, in a thread of this process: in each turn a call of the tool,
//! in the last one a text. It refuses a conversation that is not complete and right, so nobody can save work by
//! leaving some of it out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memchr::memmem;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::conversation::{Conversation, TOOL};

const LARGEST_REQUEST: usize = 4 * 1024 * 1024;

/// The running endpoint; it ends with the process.
pub struct Endpoint {
    port: u16,
    answered: Arc<AtomicUsize>,
}

impl Endpoint {
    /// An endpoint whose conversations have so many turns.
    pub fn start(turns: usize) -> Self {
        let (listening, port) = std::sync::mpsc::channel();
        let answered = Arc::new(AtomicUsize::new(0));
        let of_thread = Arc::clone(&answered);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime on this thread can always be made").block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                listening.send(listener.local_addr().expect("an address").port()).expect("somebody waits for it");
                while let Ok((stream, _)) = listener.accept().await {
                    let answered = Arc::clone(&of_thread);
                    // A client that goes away ends its connection and nothing else.
                    tokio::spawn(async move { serve(stream, turns, &answered).await });
                }
            });
        });
        Self { port: port.recv().expect("the endpoint started"), answered }
    }

    /// Where it is, as clients of the Messages API want it.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Turns given so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }
}

async fn serve(mut stream: TcpStream, turns: usize, answered: &AtomicUsize) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::with_capacity(16 * 1024);
    while let Some(body) = body(&mut stream, &mut received).await? {
        let (status, answer) = match turn(&body, turns) {
            Ok(message) => {
                answered.fetch_add(1, Ordering::Relaxed);
                ("200 OK", message)
            }
            Err(wrong) => {
                eprintln!("  the endpoint refuses a request: {wrong}");
                let error = json!({"type": "invalid_request_error", "message": wrong});
                ("400 Bad Request", json!({"type": "error", "error": error}))
            }
        };
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nrequest-id: req_bench\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream.write_all((head + &answer).as_bytes()).await?;
    }
    Ok(())
}

/// The body of the next request on a connection; none when the client closed it.
async fn body(stream: &mut TcpStream, received: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(head) = memmem::find(received, b"\r\n\r\n") {
            let body_at = head + 4;
            let end = body_at + content_length(&received[..head])?;
            if received.len() >= end {
                let body = received[body_at..end].to_vec();
                received.drain(..end);
                return Ok(Some(body));
            }
        }
        if received.len() > LARGEST_REQUEST || stream.read_buf(received).await? == 0 {
            return Ok(None);
        }
    }
}

fn content_length(head: &[u8]) -> std::io::Result<usize> {
    let head = String::from_utf8_lossy(head);
    let lengths = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lengths.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = lengths.next().and_then(|(_, value)| value.trim().parse().ok());
    length.ok_or_else(|| std::io::Error::other("a request without content-length"))
}

/// The message that answers a request, or what is wrong with the request.
fn turn(body: &[u8], turns: usize) -> Result<Value, String> {
    let request: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if request["stream"] == true {
        return Err(String::from("nobody asks for a stream here"));
    }
    let tools = request["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
    if tools.len() != 1 || tools[0]["name"] != TOOL || !tools[0]["input_schema"].is_object() {
        return Err(format!("the tool is not offered: {}", request["tools"]));
    }
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [first, rounds @ ..] = messages else { return Err(String::from("no messages")) };
    let prompt = text(&first["content"]);
    let conversation = Conversation::of(&prompt).ok_or_else(|| format!("an unknown prompt: {prompt}"))?;
    let turn = rounds.len() / 2;
    if rounds.len() % 2 != 0 || turn >= turns {
        return Err(format!("{} messages in a conversation of {turns} turns", messages.len()));
    }
    for (turn, round) in rounds.chunks_exact(2).enumerate() {
        check(conversation, turn, &round[0], &round[1])?;
    }

    let last = turn + 1 == turns;
    let content = if last {
        json!({"type": "text", "text": conversation.answer(turns)})
    } else {
        let input = json!({"expression": conversation.expression(turn)});
        json!({"type": "tool_use", "id": call_id(conversation, turn), "name": TOOL, "input": input})
    };
    Ok(json!({
        "id": format!("msg_{}_{turn}", conversation.0), "type": "message", "role": "assistant",
        "model": request["model"], "content": [content],
        "stop_reason": if last { "end_turn" } else { "tool_use" }, "stop_sequence": null,
        "usage": {"input_tokens": body.len() / 4, "output_tokens": 20,
            "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
    }))
}

/// One round of the history: what the model said comes back as it was, with the right result.
fn check(conversation: Conversation, turn: usize, said: &Value, answered: &Value) -> Result<(), String> {
    let (call, result) = (&said["content"][0], &answered["content"][0]);
    let id = call_id(conversation, turn);
    let right = said["role"] == "assistant"
        && answered["role"] == "user"
        && call["id"] == id.as_str()
        && call["name"] == TOOL
        && call["input"]["expression"] == conversation.expression(turn)
        && result["tool_use_id"] == id.as_str()
        && result["is_error"] != true
        && text(&result["content"]) == conversation.product(turn);
    if right { Ok(()) } else { Err(format!("turn {turn} came back wrong: {said} {answered}")) }
}

fn call_id(conversation: Conversation, turn: usize) -> String {
    format!("toolu_{:06}_{turn:03}", conversation.0)
}

/// The text of a content that is a string or a list of blocks.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).collect(),
        _ => String::new(),
    }
}
