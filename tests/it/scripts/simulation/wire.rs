//! A wire between a worker and a real server that understands requests: it can keep a call of a script back until
//! other things have happened, and it can have another script run in the place of the one that was called.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Digests by the digests that they take the place of.
pub type Swaps = HashMap<String, String>;

/// A wire; it ends with its owner.
pub struct Wire {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    swaps: Swaps,
    armed: AtomicBool,
    scripts: Mutex<Vec<String>>,
    arrived: Notify,
    go: Notify,
}

impl Wire {
    /// A wire to `port` of this host.
    pub async fn to(port: u16, swaps: Swaps) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let state = Arc::new(State { swaps, ..State::default() });
        let of_wire = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                client.set_nodelay(true).expect("the socket is open");
                let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await;
                let server = server.expect("the server listens");
                server.set_nodelay(true).expect("the socket is open");
                tokio::spawn(forward(client, server, Arc::clone(&of_wire)));
            }
        });
        Self { port: own, state, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The next call of one of these scripts waits on the wire.
    pub fn keep_back(&self, digests: Vec<String>) {
        *self.state.scripts.lock().expect("nobody panics with the lock") = digests;
        self.state.armed.store(true, Ordering::SeqCst);
    }

    /// Waits until such a call is on the wire.
    pub async fn arrived(&self) {
        self.state.arrived.notified().await;
    }

    /// Lets the call go on.
    pub fn let_go(&self) {
        self.state.go.notify_one();
    }

    /// There was no such call, and none is waited for.
    pub fn disarm(&self) {
        self.state.armed.store(false, Ordering::SeqCst);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn keeps(&self, digest: &str) -> bool {
        self.armed.load(Ordering::SeqCst)
            && self.scripts.lock().expect("nobody panics with the lock").iter().any(|kept| kept == digest)
            && self.armed.swap(false, Ordering::SeqCst)
    }
}

async fn forward(client: TcpStream, server: TcpStream, state: Arc<State>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let mut buffer = Vec::new();
        loop {
            while let Some((length, digest)) = request(&buffer) {
                if let Some(digest) = digest {
                    let called = String::from_utf8_lossy(&buffer[digest.clone()]).into_owned();
                    if state.keeps(&called) {
                        state.arrived.notify_one();
                        state.go.notified().await;
                    }
                    if let Some(other) = state.swaps.get(&called) {
                        buffer[digest].copy_from_slice(other.as_bytes());
                    }
                }
                to_server.write_all(&buffer[..length]).await?;
                buffer.drain(..length);
            }
            if from_client.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    };
    let answers = async { tokio::io::copy(&mut from_server, &mut to_client).await.map(drop) };
    let _: Result<(), std::io::Error> = tokio::select! { end = requests => end, end = answers => end };
}

/// The length of the first complete request, and where the digest stands in it if it calls a script.
fn request(buffer: &[u8]) -> Option<(usize, Option<std::ops::Range<usize>>)> {
    let (parts, mut at) = number(buffer, 0, b'*')?;
    let (mut script, mut digest) = (false, None);
    for part in 0..parts {
        let (length, begin) = number(buffer, at, b'$')?;
        at = begin + length + 2;
        let word = buffer.get(begin..at)?;
        match part {
            0 => script = &word[..length] == b"EVALSHA",
            1 if script => digest = Some(begin..begin + length),
            _ => {}
        }
    }
    Some((at, digest))
}

/// A line of a mark and a number, and where it ends.
fn number(buffer: &[u8], at: usize, mark: u8) -> Option<(usize, usize)> {
    let line = buffer.get(at..)?;
    let end = line.windows(2).position(|two| two == b"\r\n")?;
    assert_eq!(line[0], mark, "a request is a list of strings");
    let text = std::str::from_utf8(&line[1..end]).expect("a number");
    Some((text.parse().expect("a number"), at + end + 2))
}
