//! What one test works in: names of its own on a real Redis, workers for them, and the questions that every test asks
//! about states, events and acknowledgements.

use std::collections::HashMap;
use std::ops::Index;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::model::Model;
use super::redis::{RedisServer, connect, shared};
use super::worker::Spec;
use super::{eventually, unique};

/// The group that workers read in.
pub const GROUP: &str = "executor-workers";
/// Nodes that a worker runs at once, unless a test wants it otherwise.
pub const POOL: usize = 16;

/// How a state is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A hash with a field a node.
    Hash,
    /// One JSON document.
    Document,
}

impl Layout {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Hash, Self::Document];
}

/// Names and values of a stream's entry.
pub type Fields = Vec<(String, Vec<u8>)>;

/// A line of the pending list: entry, consumer, idle milliseconds, delivery count.
pub type Pending = (String, String, u64, u64);

/// A test's own part of the world.
pub struct Bed {
    own: Option<RedisServer>,
    redis: MultiplexedConnection,
    /// What the test's keys begin with.
    pub prefix: String,
    /// The test's work stream.
    pub stream: String,
}

/// A terminal event as it stands in its stream.
#[derive(Debug, Clone)]
pub struct Event {
    /// The graph's count of terminal events.
    pub seq: u64,
    /// The names of the entry's fields.
    pub fields: Vec<String>,
    /// The event.
    pub body: Value,
}

impl Index<&str> for Event {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        &self.body[name]
    }
}

impl Event {
    /// Its output; the test fails if the node failed.
    pub fn output(&self) -> &Value {
        assert_eq!(self["type"], "node.completed", "{}", self.body);
        &self["data"]["output"]
    }

    /// Category and code of its error; the test fails if the node completed.
    pub fn failure(&self) -> (&str, &str) {
        assert_eq!(self["type"], "node.failed", "{}", self.body);
        let details = &self["data"]["error_details"];
        (details["category"].as_str().expect("a category"), details["code"].as_str().expect("a code"))
    }

    /// The words of its error.
    pub fn error(&self) -> &str {
        self["data"]["error"].as_str().unwrap_or_else(|| panic!("no error in {}", self.body))
    }

    /// The worker that wrote it.
    pub fn worker(&self) -> &str {
        self["metadata"]["worker_id"].as_str().expect("a worker")
    }
}

impl Bed {
    /// Names of its own on the server that all tests of this process share.
    pub async fn new() -> Self {
        let redis = shared().connect().await;
        Self::on(None, redis)
    }

    /// The same on a server of its own, which the test may kill or empty.
    pub async fn with_own_redis(options: &[&str]) -> Self {
        let server = RedisServer::start_with(options);
        let redis = server.connect().await;
        Self::on(Some(server), redis)
    }

    fn on(own: Option<RedisServer>, redis: MultiplexedConnection) -> Self {
        let name = unique("it");
        Self { own, redis, prefix: format!("{name}:"), stream: format!("{name}.work") }
    }

    /// The server.
    pub fn server(&self) -> &RedisServer {
        self.own.as_ref().unwrap_or_else(|| shared())
    }

    /// The server of its own.
    pub fn own_server(&mut self) -> &mut RedisServer {
        self.own.as_mut().expect("the test has a server of its own")
    }

    /// Another server takes the place of the one of its own, which ends.
    pub async fn move_to(&mut self, server: RedisServer) {
        self.own = Some(server);
        self.reconnect().await;
    }

    /// Connects again after the server was away.
    pub async fn reconnect(&mut self) {
        self.redis = connect(&self.server().url()).await;
    }

    /// Stops the server, which stays as it is, until the answer is dropped.
    pub async fn freeze_redis(&self) -> Frozen {
        let info: String = self.ask(&["INFO", "server"]).await;
        let pid =
            info.lines().find_map(|line| line.strip_prefix("process_id:")).and_then(|pid| pid.trim().parse().ok());
        let pid = Pid::from_raw(pid.expect("the server knows its pid"));
        assert!(self.own.is_some(), "other tests need the shared server");
        kill(pid, Signal::SIGSTOP).expect("the server is ours");
        Frozen(pid)
    }

    /// A worker for this test's names, with short times.
    pub fn worker(&self, id: &str) -> Spec {
        Spec::bare()
            .env("WORKER_ID", id)
            .env("REDIS_ADDR", format!("127.0.0.1:{}", self.server().port()))
            .set("work.streams", &self.stream)
            .set("work.group", GROUP)
            .set("work.block", "200ms")
            .set("state.prefix", &self.prefix)
            .set("lease.duration", "2s")
            .set("lease.renew", "250ms")
            .set("lease.sweep", "200ms")
            .set("pool.size", POOL.to_string())
            .set("retry.initial", "10ms")
            .set("retry.max", "100ms")
            .set("http.port", "0")
    }

    /// The same, with a model.
    pub fn worker_with_model(&self, id: &str, model: &Model) -> Spec {
        self.worker(id).env("LLM_API_KEY", "a key of the test").env("LLM_BASE_URL", model.base_url())
    }

    /// One command.
    pub async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_ask(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// One command that may fail.
    pub async fn try_ask<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut self.redis.clone()).await
    }

    /// One command whose arguments are bytes.
    pub async fn send<T: FromRedisValue>(&self, command: &redis::Cmd) -> T {
        command.query_async(&mut self.redis.clone()).await.expect("redis takes it")
    }

    /// Sends several commands at once.
    pub async fn pipeline(&self, pipeline: &redis::Pipeline) {
        pipeline.exec_async(&mut self.redis.clone()).await.expect("redis takes them");
    }

    /// A key of this test.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Puts an item into the stream; gives its entry id.
    pub async fn submit(&self, item: &Value) -> String {
        self.submit_raw(item.to_string().as_bytes()).await
    }

    /// Puts bytes into the stream as the field `data`.
    pub async fn submit_raw(&self, data: &[u8]) -> String {
        self.send(redis::cmd("XADD").arg(&self.stream).arg("*").arg("data").arg(data)).await
    }

    /// Puts many items into the stream in one go.
    pub async fn submit_all(&self, items: impl IntoIterator<Item = Value>) {
        let mut pipeline = redis::pipe();
        for item in items {
            pipeline.cmd("XADD").arg(&self.stream).arg("*").arg("data").arg(item.to_string()).ignore();
        }
        self.pipeline(&pipeline).await;
    }

    /// Writes the state of a graph; `state` has some of `graph`, `inputs`, `status`, `meta` and `node_states`.
    pub async fn put_state(&self, layout: Layout, graph: &str, state: &Value) {
        let key = self.key(&format!("state:{graph}"));
        let ttl = "86400";
        match layout {
            Layout::Document => {
                let mut document = json!({"graph_id": graph, "submitted_at": "2026-01-02T03:04:05Z"});
                for (name, value) in state.as_object().expect("a state is an object") {
                    document[name] = value.clone();
                }
                self.ask::<()>(&["SET", &key, &document.to_string(), "EX", ttl]).await;
            }
            Layout::Hash => {
                let mut words = vec![String::from("HSET"), key.clone(), String::from("graph_id"), String::from(graph)];
                for (name, value) in state.as_object().expect("a state is an object") {
                    match (name.as_str(), value) {
                        ("node_states", Value::Object(nodes)) => {
                            for (id, node) in nodes {
                                words.extend([format!("node:{id}"), node.to_string()]);
                            }
                        }
                        ("status", Value::String(status)) => words.extend([name.clone(), status.clone()]),
                        _ => words.extend([name.clone(), value.to_string()]),
                    }
                }
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                self.ask::<()>(&words).await;
                self.ask::<()>(&["EXPIRE", &key, ttl]).await;
            }
        }
    }

    /// The state of a node, whatever the layout.
    pub async fn node_state(&self, graph: &str, node: &str) -> Option<Value> {
        let key = self.key(&format!("state:{graph}"));
        let kind: String = self.ask(&["TYPE", &key]).await;
        match kind.as_str() {
            "hash" => {
                let state: Option<String> = self.ask(&["HGET", &key, &format!("node:{node}")]).await;
                state.map(|state| parse(&state))
            }
            "string" => {
                let document: String = self.ask(&["GET", &key]).await;
                // Members of others may hold numbers that no float can, so only the node's own are read.
                let document: HashMap<String, Box<RawValue>> = parse(&document);
                let nodes: HashMap<String, Box<RawValue>> = parse(document.get("node_states")?.get());
                nodes.get(node).map(|state| parse(state.get()))
            }
            _ => None,
        }
    }

    /// How many terminal events there are.
    pub async fn count(&self) -> usize {
        let mut count = 0;
        for kind in ["node.completed", "node.failed"] {
            count += self.ask::<usize>(&["XLEN", &self.key(&format!("events:{kind}"))]).await;
        }
        count
    }

    /// All terminal events, by graph and count.
    pub async fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for kind in ["node.completed", "node.failed"] {
            for fields in self.entries(&self.key(&format!("events:{kind}"))).await {
                let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value);
                let body = serde_json::from_slice(field("data").expect("a field data")).expect("an event is JSON");
                let seq = field("seq").and_then(|seq| std::str::from_utf8(seq).ok()?.parse().ok()).expect("a count");
                events.push(Event { seq, fields: fields.into_iter().map(|(name, _)| name).collect(), body });
            }
        }
        events.sort_by_key(|event| (event["graph_id"].to_string(), event.seq));
        events
    }

    /// The entries of a stream as fields and values.
    pub async fn entries(&self, stream: &str) -> Vec<Fields> {
        let entries: Vec<(String, Fields)> = self.ask(&["XRANGE", stream, "-", "+"]).await;
        entries.into_iter().map(|(_, fields)| fields).collect()
    }

    /// Where the dead letters are.
    pub fn letters(&self) -> String {
        format!("{}:dead", self.stream)
    }

    /// The dead letters, each as its fields.
    pub async fn dead_letters(&self) -> Vec<HashMap<String, Vec<u8>>> {
        let entries = self.entries(&self.letters()).await;
        entries.into_iter().map(|fields| fields.into_iter().collect()).collect()
    }

    /// Waits until there are so many terminal events, then until nothing is left of the work; there must not be more
    /// events than that.
    pub async fn ended(&self, count: usize) -> Vec<Event> {
        eventually(&format!("{count} terminal events"), async || (self.count().await >= count).then_some(())).await;
        self.settled().await;
        let events = self.events().await;
        assert_eq!(events.len(), count, "one terminal event an identity: {:#?}", kinds(&events));
        events
    }

    /// Waits until there are so many terminal events while other work goes on.
    pub async fn ended_so_far(&self, count: usize) -> Vec<Event> {
        eventually(&format!("{count} terminal events"), async || (self.count().await >= count).then_some(())).await;
        self.events().await
    }

    /// Submits one item and waits for its end.
    pub async fn run(&self, item: &Value) -> Event {
        let before = self.count().await;
        self.submit(item).await;
        let mut events = self.ended(before + 1).await;
        let named = |event: &Event| event["graph_id"] == item["graph_id"] && event["node_id"] == item["node_id"];
        events.retain(named);
        events.pop().expect("the new event is about this item")
    }

    /// Waits until the stream is empty and nothing is pending.
    pub async fn settled(&self) {
        eventually("the stream is empty and nothing is pending", async || {
            let length: usize = self.ask(&["XLEN", &self.stream]).await;
            (length == 0 && self.pending().await.is_empty()).then_some(())
        })
        .await;
    }

    /// Waits until so many items wait outside of the stream.
    pub async fn parked_is(&self, count: usize) {
        let key = self.key(&format!("parked:{}", self.stream));
        eventually(&format!("{count} nodes are parked"), async || {
            (self.ask::<usize>(&["ZCARD", &key]).await == count).then_some(())
        })
        .await;
    }

    /// Nothing is left of items that waited outside of the stream.
    pub async fn nothing_is_parked(&self) {
        for name in ["parked", "parked-bodies"] {
            let exists: bool = self.ask(&["EXISTS", &self.key(&format!("{name}:{}", self.stream))]).await;
            assert!(!exists, "{name} is left behind");
        }
    }

    /// What is pending.
    pub async fn pending(&self) -> Vec<Pending> {
        self.ask(&["XPENDING", &self.stream, GROUP, "-", "+", "1000"]).await
    }

    /// Waits until exactly so many entries are pending.
    pub async fn pending_is(&self, count: usize) -> Vec<Pending> {
        eventually(&format!("{count} entries are pending"), async || {
            let pending = self.try_ask(&["XPENDING", &self.stream, GROUP, "-", "+", "1000"]).await;
            pending.ok().filter(|pending: &Vec<Pending>| pending.len() == count)
        })
        .await
    }
}

/// A server that does nothing; it goes on when this is dropped.
pub struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

fn kinds(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| format!("{} {} {}", event["type"], event["node_id"], event["run_id"])).collect()
}
