//! An HTTP server that does nothing but wait: every request is answered after the same time. It has a thread of its
//! own, keeps connections open, and counts the most requests that waited at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"ok\":true}";
const LONGEST_REQUEST: usize = 16 * 1024;
/// Connections that may wait to be accepted. With the usual 128 a thousand at once lose packets, which are sent again
/// only after 200 ms.
const BACKLOG: u32 = 4096;

/// The running server; it ends with the process.
pub struct DelayServer {
    port: u16,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    waiting: AtomicUsize,
    most: AtomicUsize,
}

impl DelayServer {
    /// A server that answers after `delay`.
    pub fn start(delay: Duration) -> Self {
        let (listening, port) = std::sync::mpsc::channel();
        let counts = Arc::new(Counts::default());
        let of_thread = Arc::clone(&counts);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime on this thread can always be made").block_on(async {
                let socket = TcpSocket::new_v4().expect("a socket");
                socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
                let listener = socket.listen(BACKLOG).expect("a bound socket can listen");
                listening.send(listener.local_addr().expect("an address").port()).expect("somebody waits for it");
                serve(listener, delay, of_thread).await;
            });
        });
        Self { port: port.recv().expect("the server started"), counts }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The most requests that waited at once, and the connections made.
    pub fn counts(&self) -> (usize, usize) {
        (self.counts.most.load(Ordering::Relaxed), self.counts.connections.load(Ordering::Relaxed))
    }
}

async fn serve(listener: TcpListener, delay: Duration, counts: Arc<Counts>) {
    while let Ok((stream, _)) = listener.accept().await {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let counts = Arc::clone(&counts);
        // A client that goes away ends its connection and nothing else.
        tokio::spawn(async move { answer(stream, delay, &counts).await });
    }
}

async fn answer(mut stream: TcpStream, delay: Duration, counts: &Counts) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::with_capacity(1024);
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut request).await? == 0 || request.len() > LONGEST_REQUEST {
                return Ok(());
            }
        }
        let waiting = counts.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        counts.most.fetch_max(waiting, Ordering::Relaxed);
        tokio::time::sleep(delay).await;
        counts.waiting.fetch_sub(1, Ordering::Relaxed);
        stream.write_all(ANSWER).await?;
    }
}
