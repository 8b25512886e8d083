//! A network that fails between a client and a real server: answers that are lost, that never come, or that are
//! overtaken by what somebody else does.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use redis::Cmd;
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const PASS: u8 = 0;
const CUT: u8 = 1;
const SWALLOW: u8 = 2;

/// What is done on the way of each answer.
#[derive(Default)]
struct Faults {
    mode: AtomicU8,
    /// Where new connections lead.
    target: AtomicU16,
    /// Connections of an earlier age are dead, and nobody has told either end.
    age: AtomicU64,
    overtaking: Mutex<Option<(usize, MultiplexedConnection, Cmd)>>,
}

impl Faults {
    /// What overtakes the answer that is about to pass.
    fn overtaking(&self) -> Option<(MultiplexedConnection, Cmd)> {
        let mut overtaking = self.overtaking.lock().expect("nobody panics with the lock");
        let (spared, connection, command) = overtaking.as_mut()?;
        if *spared > 0 {
            *spared -= 1;
            return None;
        }
        Some((connection.clone(), command.clone()))
    }
}

/// A proxy in front of a server; it ends with its owner.
pub struct Proxy {
    port: u16,
    faults: Arc<Faults>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy that passes everything on to `port` of this host.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let own = listener.local_addr().expect("an address").port();
        let faults = Arc::new(Faults { target: AtomicU16::new(port), ..Faults::default() });
        let of_proxy = Arc::clone(&faults);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let port = of_proxy.target.load(Ordering::SeqCst);
                let server = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await;
                if let Ok(server) = server {
                    tokio::spawn(forward(client, server, Arc::clone(&of_proxy)));
                }
            }
        });
        Self { port: own, faults, task }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Requests still reach the server; its next answer closes the connection instead of arriving.
    pub fn cut_answers(&self) {
        self.faults.mode.store(CUT, Ordering::SeqCst);
    }

    /// Requests still reach the server; its answers vanish while the connection stays open.
    pub fn swallow_answers(&self) {
        self.faults.mode.store(SWALLOW, Ordering::SeqCst);
    }

    /// The connections there are fall silent for good and stay open; new ones are well.
    pub fn deaden_connections(&self) {
        self.faults.age.fetch_add(1, Ordering::SeqCst);
    }

    /// New connections lead to this port of this host.
    pub fn lead_to(&self, port: u16) {
        self.faults.target.store(port, Ordering::SeqCst);
    }

    /// Each answer from now on, but for the first `spared` ones, arrives only after this command was done.
    pub fn overtake_answers(&self, spared: usize, connection: MultiplexedConnection, command: Cmd) {
        *self.faults.overtaking.lock().expect("nobody panics with the lock") = Some((spared, connection, command));
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.faults.mode.store(PASS, Ordering::SeqCst);
        *self.faults.overtaking.lock().expect("nobody panics with the lock") = None;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, faults: Arc<Faults>) {
    let age = faults.age.load(Ordering::SeqCst);
    let dead = || faults.age.load(Ordering::SeqCst) != age;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let requests = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = from_client.read(&mut buffer).await?;
            match length {
                0 => return Ok(()),
                _ if dead() => {}
                length => to_server.write_all(&buffer[..length]).await?,
            }
        }
    };
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = from_server.read(&mut buffer).await?;
            if let Some((mut connection, command)) = faults.overtaking() {
                command.exec_async(&mut connection).await.expect("the overtaking command is well formed");
            }
            match (length, faults.mode.load(Ordering::SeqCst)) {
                _ if dead() => {
                    // Nobody tells the client that the server has closed it either.
                    if length == 0 {
                        std::future::pending::<()>().await;
                    }
                }
                (0, _) | (_, CUT) => return Ok(()),
                (_, SWALLOW) => {}
                (length, _) => to_client.write_all(&buffer[..length]).await?,
            }
        }
    };
    let _: Result<(), std::io::Error> = tokio::select! { end = requests => end, end = answers => end };
}
