//! A place that nodes call in the middle of their work and that answers when the test says so: the test knows that a
//! node runs, and how often it ran, without waiting for time to pass.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::eventually;

#[derive(Debug, Default)]
struct Doors {
    arrivals: HashMap<String, usize>,
    open: HashSet<String>,
    all_open: bool,
}

/// An HTTP server with a door for each path; it ends with its owner.
pub struct Gate {
    port: u16,
    doors: Arc<watch::Sender<Doors>>,
    task: JoinHandle<()>,
}

impl Gate {
    /// A gate whose doors are closed.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let doors = Arc::new(watch::Sender::new(Doors::default()));
        let shared = Arc::clone(&doors);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&shared)));
            }
        });
        Self { port, doors, task }
    }

    /// The host as `tools.http_request.allow` wants it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The configuration of a node that goes through a door.
    pub fn node(&self, door: &str) -> Value {
        json!({"tool_name": "http_request", "tool_params": {"url": format!("http://{}/{door}", self.host())}})
    }

    /// The same by a call that may not be made twice.
    pub fn call(&self, door: &str) -> Value {
        let mut node = self.node(door);
        node["tool_params"]["method"] = json!("POST");
        node
    }

    /// How often somebody came to a door.
    pub fn arrivals(&self, door: &str) -> usize {
        self.doors.borrow().arrivals.get(door).copied().unwrap_or(0)
    }

    /// Waits until somebody has come to a door so often.
    pub async fn arrived(&self, door: &str, times: usize) {
        let what = format!("{times} arrivals at door {door:?}");
        eventually(&what, async || (self.arrivals(door) >= times).then_some(())).await;
    }

    /// Opens a door for good.
    pub fn open(&self, door: &str) {
        self.doors.send_modify(|doors| {
            doors.open.insert(String::from(door));
        });
    }

    /// Opens every door.
    pub fn open_all(&self) {
        self.doors.send_modify(|doors| doors.all_open = true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, doors: Arc<watch::Sender<Doors>>) -> std::io::Result<()> {
    let (reader, mut writer) = client.split();
    let mut lines = BufReader::new(reader).lines();
    // Requests come one after the other on one connection; none of them has a body.
    while let Some(line) = lines.next_line().await? {
        let door = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        while lines.next_line().await?.is_some_and(|header| !header.is_empty()) {}
        doors.send_modify(|doors| *doors.arrivals.entry(door.clone()).or_default() += 1);
        let mut changes = doors.subscribe();
        let opened = changes.wait_for(|doors| doors.all_open || doors.open.contains(&door));
        let _ = tokio::time::timeout(Duration::from_secs(120), opened).await;
        let body = json!({ "door": door }).to_string();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
        writer.write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    }
    Ok(())
}
