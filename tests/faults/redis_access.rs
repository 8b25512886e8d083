//! The suite's own eyes in Redis: a direct connection that is made anew whenever the server was away.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use da_node_executor::domain::blob::BlobRef;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, Pipeline, RedisResult};
use serde_json::Value;

use super::charges::Pending;
use super::evidence::{Ending, Letter, Member, NodeState, Stored};
use super::items::{Entry, How, Stop};

/// The group that workers read in.
pub const GROUP: &str = "executor-workers";
/// The work stream.
pub const STREAM: &str = "executor.work";
/// What the keys begin with.
pub const PREFIX: &str = "dago:";
/// The longest that the server may be away before a run fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Entries of one page.
const PAGE: usize = 2000;
/// How long an order to stop lasts.
const ORDER_MS: &str = "86400000";

/// Entries of a stream: id and fields.
type Page = Vec<(String, HashMap<String, Vec<u8>>)>;

/// Fields of a state by their names.
type Fields = Vec<(String, Value)>;

/// A connection that comes back.
pub struct Eyes {
    client: redis::Client,
    connection: Option<MultiplexedConnection>,
}

impl Eyes {
    /// Looks at the server at `url`.
    pub fn at(url: &str) -> Self {
        Self { client: redis::Client::open(url).expect("an address"), connection: None }
    }

    /// One try.
    pub async fn try_ask<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        let mut connection = self.connect().await?;
        let answer = command.query_async(&mut connection).await;
        self.connection = answer.is_ok().then_some(connection);
        answer
    }

    async fn connect(&mut self) -> RedisResult<MultiplexedConnection> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => {
                let config = redis::AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(Duration::from_secs(2)))
                    .set_response_timeout(Some(Duration::from_secs(5)));
                self.client.get_multiplexed_async_connection_with_config(&config).await
            }
        }
    }

    /// Asks until the server answers.
    pub async fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_ask(&command).await {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < deadline, "{words:?}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Adds entries to the work stream in one go. The caller sees to it that the server is there.
    pub async fn submit(&mut self, entries: &[Entry]) {
        let mut pipeline = Pipeline::new();
        for entry in entries {
            pipeline.cmd("XADD").arg(STREAM).arg("*").arg("data").arg(&entry.data).ignore();
        }
        let mut connection = self.connect().await.expect("the server is there");
        pipeline.exec_async(&mut connection).await.expect("the server takes work");
        self.connection = Some(connection);
    }

    /// How many entries each consumer has pending; nothing if the server is away.
    pub async fn pending(&mut self) -> Option<Pending> {
        let mut command = redis::cmd("XPENDING");
        command.arg(STREAM).arg(GROUP);
        type Summary = (usize, Option<String>, Option<String>, Option<Vec<(String, usize)>>);
        let (.., consumers): Summary = self.try_ask(&command).await.ok()?;
        Some(consumers.unwrap_or_default().into_iter().collect())
    }

    /// Items in the work stream and outside of it, and terminal events so far, all of one moment; nothing if the
    /// server is away.
    pub async fn progress(&mut self) -> Option<(usize, usize)> {
        let mut counts = Pipeline::new();
        counts.atomic().cmd("XLEN").arg(STREAM).cmd("ZCARD").arg(format!("{PREFIX}parked:{STREAM}"));
        for kind in ["completed", "failed"] {
            counts.cmd("XLEN").arg(format!("{PREFIX}events:node.{kind}"));
        }
        let mut connection = self.connect().await.ok()?;
        let [entries, parked, completed, failed]: [usize; 4] = counts.query_async(&mut connection).await.ok()?;
        self.connection = Some(connection);
        Some((entries + parked, completed + failed))
    }

    /// Gives an order to stop.
    pub async fn stop(&mut self, Stop { graph, how, .. }: &Stop) {
        let field = match how {
            How::Status => return self.ask(&["HSET", &format!("{PREFIX}state:{graph}"), "status", "cancelled"]).await,
            How::Node(node) => node.as_str(),
            How::WholeGraph => "*",
        };
        let key = format!("{PREFIX}cancel:{graph}");
        self.ask::<()>(&["HSET", &key, field, r#"{"by":"the suite"}"#]).await;
        self.ask::<()>(&["PEXPIRE", &key, ORDER_MS]).await;
    }

    /// Agreement to every question after `from`, which moves on; nothing if the server is away. Every third is given twice.
    pub async fn agree(&mut self, from: &mut String) -> Vec<Entry> {
        let mut command = redis::cmd("XRANGE");
        command.arg(format!("{PREFIX}events:node.input_required")).arg(format!("({from}")).arg("+");
        let page: RedisResult<Page> = self.try_ask(&command).await;
        let mut entries = Vec::new();
        for (id, fields) in page.unwrap_or_default() {
            let event: Value = serde_json::from_slice(&fields["data"]).expect("an event is JSON");
            let decision = serde_json::json!({
                "graph_id": event["graph_id"], "node_id": event["node_id"], "run_id": event["run_id"],
                "decision": {"wait_id": event["data"]["wait_id"], "action": "accept", "by": "the suite"},
            });
            let entry = Entry { data: decision.to_string().into_bytes(), stop: None };
            entries.push(entry.clone());
            if id.as_bytes().iter().map(|byte| u32::from(*byte)).sum::<u32>() % 3 == 0 {
                entries.push(entry);
            }
            *from = id;
        }
        entries
    }

    /// For how many milliseconds each of these keys lives on: -1 for good, -2 if it is not there.
    pub async fn lives(&mut self, keys: &[String]) -> Vec<i64> {
        let mut lives = Pipeline::new();
        for key in keys {
            lives.cmd("PTTL").arg(key);
        }
        let mut connection = self.connect().await.expect("the server is there");
        let answer = lives.query_async(&mut connection).await.expect("the server answers");
        self.connection = Some(connection);
        answer
    }

    /// The entries of a stream, each as its fields.
    async fn stream(&mut self, key: &str) -> Vec<HashMap<String, Vec<u8>>> {
        let mut all = Vec::new();
        let mut from = String::from("-");
        loop {
            let page: Vec<(String, HashMap<String, Vec<u8>>)> =
                self.ask(&["XRANGE", key, &from, "+", "COUNT", &PAGE.to_string()]).await;
            let full = page.len() == PAGE;
            if let Some((last, _)) = page.last() {
                from = format!("({last}");
            }
            all.extend(page.into_iter().map(|(_, fields)| fields));
            if !full {
                return all;
            }
        }
    }

    /// All terminal events.
    pub async fn endings(&mut self) -> Vec<Ending> {
        let mut endings = Vec::new();
        for kind in ["node.completed", "node.failed"] {
            for fields in self.stream(&format!("{PREFIX}events:{kind}")).await {
                let event: Value = serde_json::from_slice(&fields["data"]).expect("an event is JSON");
                let text = |name: &str| String::from(event[name].as_str().unwrap_or_default());
                assert_eq!(event["type"], kind);
                let completed = kind == "node.completed";
                let result = event["data"][if completed { "output" } else { "error" }].clone();
                let detail = |name: &str| event["data"]["error_details"][name].as_str().map(String::from);
                endings.push(Ending {
                    stored: self.stored(&result).await,
                    event_id: text("id"),
                    completed,
                    graph: text("graph_id"),
                    node: text("node_id"),
                    run: text("run_id"),
                    seq: std::str::from_utf8(&fields["seq"]).ok().and_then(|seq| seq.parse().ok()).expect("a count"),
                    result,
                    category: detail("category"),
                    code: detail("code"),
                    work_id: String::from(event["metadata"]["work_id"].as_str().unwrap_or_default()),
                });
            }
        }
        endings
    }

    /// What an output refers to, if it is a reference.
    async fn stored(&mut self, output: &Value) -> Option<Stored> {
        let blob = BlobRef::of(output)?;
        let found: Option<Vec<u8>> = self.ask(&["GET", &blob.key]).await;
        Some(match found {
            None => Stored::Missing,
            Some(bytes) if blob.fits(&bytes) => Stored::Whole(String::from_utf8_lossy(&bytes).into_owned()),
            Some(_) => Stored::Changed,
        })
    }

    /// Who began what, by the live progress: identity and the pair of worker and delivery.
    pub async fn begun(&mut self) -> Vec<(String, String)> {
        let events = self.stream(&format!("{PREFIX}events:node.started")).await;
        let event = |fields: HashMap<String, Vec<u8>>| {
            let event: Value = serde_json::from_slice(&fields["data"]).expect("an event is JSON");
            let by = format!("{} {}", event["metadata"]["worker_id"], event["metadata"]["delivery"]);
            (String::from(event["run_id"].as_str().unwrap_or_default()), by)
        };
        events.into_iter().map(event).collect()
    }

    /// The dead letters.
    pub async fn letters(&mut self) -> Vec<Letter> {
        let text = |fields: &HashMap<String, Vec<u8>>, name: &str| {
            fields.get(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
        };
        let letters = self.stream(&format!("{STREAM}:dead")).await;
        let letter = |fields: &HashMap<String, Vec<u8>>| Letter {
            work_id: text(fields, "work_id"),
            reason: text(fields, "reason"),
            data: text(fields, "data"),
        };
        letters.iter().map(letter).collect()
    }

    /// The states of these graphs, whatever their layout: their nodes, and what else stands in them.
    pub async fn states(&mut self, graphs: impl IntoIterator<Item = &str>) -> (Vec<NodeState>, Vec<Member>) {
        let (mut states, mut others) = (Vec::new(), Vec::new());
        for graph in graphs {
            let key = format!("{PREFIX}state:{graph}");
            let (nodes, members): (Fields, Fields) = match self.ask::<String>(&["TYPE", &key]).await.as_str() {
                "hash" => {
                    let fields: HashMap<String, String> = self.ask(&["HGETALL", &key]).await;
                    let (nodes, members): (Vec<_>, Vec<_>) =
                        fields.into_iter().partition(|(field, _)| field.starts_with("node:"));
                    let node = |(field, state): (String, String)| {
                        Some((String::from(field.strip_prefix("node:")?), serde_json::from_str(&state).ok()?))
                    };
                    let nodes = nodes.into_iter().filter_map(node).collect();
                    (nodes, members.into_iter().map(|(field, text)| (field, Value::from(text))).collect())
                }
                "string" => {
                    let document: String = self.ask(&["GET", &key]).await;
                    let document: Value = serde_json::from_str(&document).expect("a state is JSON");
                    let Value::Object(mut members) = document else { panic!("a state is an object: {document}") };
                    let nodes = match members.remove("node_states") {
                        Some(Value::Object(nodes)) => nodes.into_iter().collect(),
                        _ => Vec::new(),
                    };
                    (nodes, members.into_iter().collect())
                }
                _ => (Vec::new(), Vec::new()),
            };
            for (node, state) in nodes {
                let result = if state["status"] == "completed" { "output" } else { "error" };
                states.push(NodeState {
                    graph: String::from(graph),
                    node,
                    run: String::from(state["run_id"].as_str().unwrap_or_default()),
                    result: state[result].clone(),
                });
            }
            others.extend(members.into_iter().map(|(name, value)| Member { graph: String::from(graph), name, value }));
        }
        (states, others)
    }
}
