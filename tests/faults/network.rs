//! A wire that fails: everything between some workers and Redis goes through here and can be cut, frozen, slowed down,
//! or lose the answer of a settlement.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What stands in a settlement and in no other request.
const SETTLEMENT: &[u8] = b"\"type\":\"node.";

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

    /// The next `count` settlements are applied, but their answers do not arrive.
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
        self.set(Wire::Whole);
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
    let doomed = AtomicUsize::new(0);
    let requests = pass(from_client, to_server, &state, |piece| {
        if piece.windows(SETTLEMENT.len()).any(|part| part == SETTLEMENT) && take_one(&state.losses) {
            doomed.store(1, Ordering::SeqCst);
        }
        true
    });
    let answers = pass(from_server, to_client, &state, |_| {
        let lose = doomed.load(Ordering::SeqCst) == 1;
        if lose {
            state.lost.fetch_add(1, Ordering::SeqCst);
        }
        !lose
    });
    tokio::select! {
        () = requests => {}
        () = answers => {}
        _ = cuts.changed() => {}
    }
}

fn take_one(from: &AtomicUsize) -> bool {
    from.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

/// Hands pieces on until an end closes or `look` says that this one must not arrive.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, look: impl Fn(&[u8]) -> bool) {
    let mut wire = state.wire.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        let now = *wire.borrow_and_update();
        match now {
            Wire::Whole => {}
            Wire::Slow(pause) => tokio::time::sleep(pause).await,
            Wire::Frozen => {
                if wire.wait_for(|wire| *wire != Wire::Frozen).await.is_err() {
                    return;
                }
            }
        }
        if !look(&buffer[..length]) || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
