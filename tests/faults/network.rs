//! A wire that fails: everything between some workers and Redis goes through here and can be cut, frozen, slowed down,
//! or lose the answer of a settlement.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What stands in a settlement and in no other request: the type of the event that it writes. Live progress has types of
/// its own, goes the same way, and nobody waits for its answer.
const SETTLEMENTS: [&[u8]; 3] =
    [b"\"type\":\"node.completed\"", b"\"type\":\"node.failed\"", b"\"type\":\"node.input_required\""];
/// How long the wire counts as broken after it was healed: connections that came to nothing meanwhile are made anew
/// within the worker's limit for a connection, and then its leases are renewed.
const RECOVERY: Duration = Duration::from_millis(1500);

/// How the wire is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Whole,
    /// Nothing passes, nothing is closed: a half-open connection.
    Frozen,
    /// Each piece waits this long.
    Slow(Duration),
}

struct State {
    wire: watch::Sender<Wire>,
    /// Raised to close every connection of before.
    cuts: watch::Sender<u64>,
    /// Answers of settlements that will be lost together with their connection.
    losses: AtomicUsize,
    lost: AtomicUsize,
    healed: Mutex<Option<Instant>>,
}

/// A proxy in front of a server; it ends with its owner.
pub struct Network {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Network {
    /// A wire to `port` of this host.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let state = Arc::new(State {
            wire: watch::Sender::new(Wire::Whole),
            cuts: watch::Sender::new(0),
            losses: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            healed: Mutex::new(None),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(join(client, port, Arc::clone(&shared)));
            }
        });
        Self { port: own, state, task }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes how the wire is.
    pub fn set(&self, wire: Wire) {
        self.state.wire.send_replace(wire);
    }

    /// Closes every connection.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// The next `count` settlements are applied, but their answers do not arrive, and neither does anything behind them
    /// on their connections.
    pub fn lose_settlements(&self, count: usize) {
        self.state.losses.fetch_add(count, Ordering::SeqCst);
    }

    /// How many answers of settlements were lost.
    pub fn lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.state.losses.store(0, Ordering::SeqCst);
        if self.state.wire.send_replace(Wire::Whole) != Wire::Whole {
            *self.state.healed.lock().expect("nobody panics with the lock") = Some(Instant::now());
        }
    }

    /// Whether what passes takes longer than it should, or did until a moment ago, so that a lease may run out.
    pub fn troubled(&self) -> bool {
        let healed = *self.state.healed.lock().expect("nobody panics with the lock");
        *self.state.wire.borrow() != Wire::Whole || healed.is_some_and(|healed| healed.elapsed() < RECOVERY)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
        // The connections go with the wire.
        self.cut();
    }
}

async fn join(client: TcpStream, port: u16, state: Arc<State>) {
    let mut cuts = state.cuts.subscribe();
    let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let doomed = AtomicBool::new(false);
    let requests = ask(from_client, to_server, &state, &doomed);
    let answers = answer(from_server, to_client, &state, &doomed);
    let both = async {
        tokio::pin!(answers);
        tokio::select! {
            () = requests => {}
            () = &mut answers => return,
        }
        // The server takes what it was given, and closes when it has nobody to answer.
        if doomed.load(Ordering::SeqCst) {
            answers.await;
            state.lost.fetch_add(1, Ordering::SeqCst);
        }
    };
    tokio::select! {
        () = both => {}
        _ = cuts.changed() => {}
    }
}

fn take_one(from: &AtomicUsize) -> bool {
    from.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// Hands requests on, each as a whole, until an end closes or the answer of one must not arrive: that is the last one.
async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, doomed: &AtomicBool) {
    let mut wire = state.wire.subscribe();
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        let Ok(1..) = from.read_buf(&mut buffer).await else { return };
        if !passes(&mut wire).await {
            return;
        }
        while let Some(length) = request(&buffer) {
            let last = settles(&buffer[..length]) && take_one(&state.losses);
            if last {
                doomed.store(true, Ordering::SeqCst);
            }
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
            if last {
                let _ = to.shutdown().await;
                return;
            }
            buffer.drain(..length);
        }
    }
}

/// Hands answers on until an end closes, and none any more from the moment at which one is doomed.
async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, doomed: &AtomicBool) {
    let mut wire = state.wire.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        if !passes(&mut wire).await {
            return;
        }
        if !doomed.load(Ordering::SeqCst) && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// Waits as long as a piece has to; says whether the wire is still there.
async fn passes(wire: &mut watch::Receiver<Wire>) -> bool {
    let now = *wire.borrow_and_update();
    match now {
        Wire::Whole => {}
        Wire::Slow(pause) => tokio::time::sleep(pause).await,
        Wire::Frozen => return wire.wait_for(|wire| *wire != Wire::Frozen).await.is_ok(),
    }
    true
}

fn settles(request: &[u8]) -> bool {
    SETTLEMENTS.iter().any(|mark| memchr::memmem::find(request, mark).is_some())
}

/// The length of the first complete request, which is a list of strings.
fn request(buffer: &[u8]) -> Option<usize> {
    let (parts, mut at) = number(buffer, 0)?;
    for _ in 0..parts {
        let (length, begin) = number(buffer, at)?;
        at = begin + length + 2;
    }
    (at <= buffer.len()).then_some(at)
}

/// The number of a line behind its mark, and where the line ends.
fn number(buffer: &[u8], at: usize) -> Option<(usize, usize)> {
    let line = buffer.get(at..)?;
    let end = memchr::memmem::find(line, b"\r\n")?;
    let text = std::str::from_utf8(&line[1..end]).expect("a number");
    Some((text.parse().expect("a number"), at + end + 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::redis::{RedisServer, connect};

    #[tokio::test]
    async fn the_answer_of_a_settlement_is_lost_after_it_was_applied_and_no_other() {
        let server = RedisServer::start();
        let wire = Network::to(server.port()).await;
        let mut direct = server.connect().await;
        for (at, kind) in ["node.completed", "node.failed", "node.input_required"].into_iter().enumerate() {
            let mut through = connect(&format!("redis://127.0.0.1:{}", wire.port())).await;
            wire.lose_settlements(1);
            for other in ["node.started", "node.progress"] {
                let event = format!(r#"{{"id":"e","type":"{other}"}}"#);
                let _: () =
                    redis::cmd("RPUSH").arg("progress").arg(&event).query_async(&mut through).await.expect(other);
            }
            // Longer than what is read at once, so that it comes in pieces.
            let event = format!(r#"{{"id":"e","type":"{kind}","filler":"{}"}}"#, "x".repeat(200_000));
            let answer: redis::RedisResult<()> =
                redis::cmd("RPUSH").arg("ends").arg(&event).query_async(&mut through).await;
            assert!(answer.is_err(), "the answer to {kind} arrived");
            let applied: usize = redis::cmd("LLEN").arg("ends").query_async(&mut direct).await.expect("it is there");
            assert_eq!((applied, wire.lost()), (at + 1, at + 1), "{kind}");
        }
    }
}
