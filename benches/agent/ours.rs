//! The worker in its default configuration, with a Redis of its own: each conversation is a node in agent mode.

use std::path::Path;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

use crate::PATIENCE;
use crate::conversation::{Conversation, MAX_TOKENS, MODEL, TOOL};
use crate::process::{Worker, cpu, server_pid};
use crate::redis_server::RedisServer;
use crate::rounds::Cost;

const STREAM: &str = "executor.work";
const COMPLETED: &str = "dago:events:node.completed";
const FAILED: &str = "dago:events:node.failed";
/// How often we look whether all is done: rarely enough that Redis has next to nothing to do for it.
const POLL: Duration = Duration::from_millis(20);

/// A worker and its Redis.
pub struct Ours {
    worker: Worker,
    redis: MultiplexedConnection,
    redis_pid: u32,
    rounds: usize,
    _server: RedisServer,
}

impl Ours {
    /// A worker that runs so many nodes at once.
    pub async fn start(program: &Path, base_url: &str, at_once: usize) -> Self {
        let server = RedisServer::start();
        let mut redis = server.connect().await;
        let redis_pid = server_pid(&mut redis).await;
        let settings = [
            format!("llm.providers.anthropic.base_url={base_url}"),
            String::from("llm.providers.anthropic.api_key=none"),
            format!("pool.size={at_once}"),
        ];
        let mut worker = Worker::start(program, &server.url(), &settings.each_ref().map(String::as_str));
        worker.ready();
        Self { worker, redis, redis_pid, rounds: 0, _server: server }
    }

    /// Submits all nodes at once and waits for the last; time runs from the first entry to the last event, by the
    /// server's clock.
    pub async fn round(&mut self, conversations: usize, turns: usize) -> Cost {
        self.rounds += 1;
        let graph = format!("round-{}", self.rounds);
        let state = format!("dago:state:{graph}");
        let mut prepare = redis::pipe();
        prepare.cmd("DEL").arg(COMPLETED).arg(FAILED).ignore();
        prepare.cmd("HSET").arg(&state).arg("inputs").arg("{}").ignore();
        prepare.exec_async(&mut self.redis).await.expect("the server is ours");

        let before = (cpu(self.worker.pid()), cpu(self.redis_pid));
        let mut pipe = redis::Pipeline::with_capacity(conversations);
        pipe.atomic();
        for number in 0..conversations {
            pipe.cmd("XADD")
                .arg(STREAM)
                .arg("*")
                .arg("data")
                .arg(item(&graph, Conversation(number), turns).to_string());
        }
        let entries: Vec<String> = pipe.query_async(&mut self.redis).await.expect("the work is well formed");
        let last = self.until_done(conversations).await;
        let after = (cpu(self.worker.pid()), cpu(self.redis_pid));

        self.check(&state, conversations, turns).await;
        Cost {
            turns: conversations * turns,
            cpu: after.0 - before.0,
            redis_cpu: after.1 - before.1,
            wall: Duration::from_millis(millis(&last) - millis(&entries[0])),
        }
    }

    /// Ends the worker.
    pub fn stop(self) {
        self.worker.stop();
    }

    /// The id of the last event.
    async fn until_done(&mut self, nodes: usize) -> String {
        let started = Instant::now();
        loop {
            let mut last = redis::cmd("XREVRANGE");
            last.arg(COMPLETED).arg("+").arg("-").arg("COUNT").arg(1);
            let mut pipe = redis::pipe();
            pipe.cmd("XLEN").arg(COMPLETED).add_command(last).cmd("XLEN").arg(FAILED);
            let (completed, last, failed): (usize, Vec<(String, redis::Value)>, usize) =
                pipe.query_async(&mut self.redis).await.expect("the server answers");
            assert_eq!(failed, 0, "nodes failed");
            if completed >= nodes {
                return last.into_iter().next().expect("there are events").0;
            }
            assert!(started.elapsed() < PATIENCE, "{completed} of {nodes} nodes are completed after {PATIENCE:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Fails unless every node ended once, with the answer to its own task.
    async fn check(&mut self, state: &str, nodes: usize, turns: usize) {
        let completed: usize = redis::cmd("XLEN").arg(COMPLETED).query_async(&mut self.redis).await.expect("a stream");
        assert_eq!(completed, nodes, "completed events");
        for number in 0..nodes {
            let mut get = redis::cmd("HGET");
            get.arg(state).arg(format!("node:{}", node_id(Conversation(number))));
            let node: String = get.query_async(&mut self.redis).await.expect("every node was written");
            let node: Value = serde_json::from_str(&node).expect("a node state is JSON");
            let output = &node["output"];
            assert_eq!(output["result"], Conversation(number).answer(turns));
            assert_eq!(
                (output["iterations"].as_u64(), output["tool_calls"].as_u64()),
                (Some(turns as u64), Some(turns as u64 - 1))
            );
        }
    }
}

fn node_id(conversation: Conversation) -> String {
    format!("agent-{}", conversation.0)
}

fn item(graph: &str, conversation: Conversation, turns: usize) -> Value {
    json!({"graph_id": graph, "node_id": node_id(conversation), "config": {
        "task": conversation.prompt(), "tools": [TOOL], "max_iterations": turns,
        "llm_config": {"model": MODEL, "max_tokens": MAX_TOKENS},
    }})
}

/// The milliseconds that the id of an entry begins with.
fn millis(id: &str) -> u64 {
    id.split('-').next().and_then(|millis| millis.parse().ok()).expect("an id begins with milliseconds")
}
