//! The reference of `throughput`: a client that does the worker's reads and its settle script for each item, and
//! nothing else. It neither understands the items nor runs anything; it waits for nobody but Redis.

use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use redis::{Cmd, Pipeline};

use crate::workload::{COMPLETED, GROUP, NODE, SOURCE, STREAM, graph_id, state_key};

/// Entries of one read, and of one pipeline: the worker's pool.
pub const PIPE: usize = 64;

const CONSUMER: &str = "bench:0000000000000000000000000000bare";
const TTL_MS: u64 = 86_400_000;

const OPEN: &str = concat!(
    include_str!("../../src/clients/redis/scripts/owned.lua"),
    include_str!("../../src/clients/redis/scripts/run.lua"),
    include_str!("../../src/clients/redis/scripts/open.lua")
);
const SETTLE: &str = concat!(
    include_str!("../../src/clients/redis/scripts/owned.lua"),
    include_str!("../../src/clients/redis/scripts/run.lua"),
    include_str!("../../src/clients/redis/scripts/settle.lua")
);

/// What a worker wrote for one item: the reference writes the same, with the graph's name changed.
pub struct Sample {
    graph: String,
    event: String,
    node_state: String,
}

impl Sample {
    /// Takes the texts of graph 0 from the server.
    pub async fn take(redis: &mut MultiplexedConnection) -> Self {
        let graph = graph_id(0);
        let events: Vec<(String, Vec<String>)> =
            redis::cmd("XRANGE").arg(COMPLETED).arg("-").arg("+").query_async(redis).await.expect("there are results");
        let event = events.into_iter().map(|(_, fields)| fields[1].clone()).find(|event| event.contains(&graph));
        let node_state = redis::cmd("HGET").arg(state_key(&graph)).arg(format!("node:{NODE}")).query_async(redis).await;
        Self {
            event: event.expect("graph 0 is done"),
            node_state: node_state.expect("graph 0 has a node state"),
            graph,
        }
    }
}

/// One piece of work in hand.
struct Taken {
    entry: String,
    graph: String,
}

impl Taken {
    fn work_id(&self) -> String {
        format!("{STREAM}/{}", self.entry)
    }

    fn field(&self) -> String {
        format!("{NODE}\nrun-{}", self.graph)
    }

    fn journal_key(&self) -> String {
        format!("dago:journal:{}:{NODE}:run-{}", self.graph, self.graph)
    }

    fn open(&self, digest: &str) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(digest).arg(5).arg(STREAM).arg(state_key(&self.graph)).arg(format!("dago:done:{}", self.graph));
        call.arg(format!("dago:crashes:{STREAM}")).arg(self.journal_key());
        call.arg(GROUP).arg(&self.entry).arg(CONSUMER).arg(1).arg(self.field());
        call.arg(format!("r\n{}\n{STREAM}\n{}", self.work_id(), self.entry));
        call.arg(self.work_id()).arg(TTL_MS).arg("");
        call
    }

    fn read(&self) -> Cmd {
        let mut read = redis::cmd("HMGET");
        read.arg(state_key(&self.graph)).arg("status").arg("inputs").arg(format!("node:{SOURCE}"));
        read
    }

    fn order_to_stop(&self) -> Cmd {
        let mut ask = redis::cmd("HMGET");
        ask.arg(format!("dago:cancel:{}", self.graph)).arg("*").arg(NODE);
        ask
    }

    fn settle(&self, digest: &str, sample: &Sample) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(digest).arg(9).arg(STREAM).arg(state_key(&self.graph)).arg(format!("dago:done:{}", self.graph));
        call.arg(self.journal_key()).arg(COMPLETED);
        call.arg(format!("dago:crashes:{STREAM}")).arg(format!("{STREAM}:dead"));
        // Where a large output and a conversation would go, if there were any.
        call.arg(format!("dago:staged:{STREAM}:{}", self.entry)).arg(format!("dago:blob:{}:{NODE}:r", self.graph));
        call.arg(GROUP).arg(&self.entry).arg(CONSUMER).arg(1).arg(self.field());
        call.arg(format!("d\n{}\n{CONSUMER}\n1\nevt_00000000000000000000000000000000", self.work_id()));
        call.arg(self.work_id()).arg(TTL_MS).arg(sample.event.replace(&sample.graph, &self.graph));
        call.arg(format!("node:{NODE}")).arg(sample.node_state.replace(&sample.graph, &self.graph));
        call.arg("").arg("").arg(0).arg("").arg("");
        call
    }
}

/// Takes and settles everything in the stream, a pipeline at a time on one connection.
pub async fn run(redis: &mut MultiplexedConnection, sample: &Sample) {
    let open = load(redis, OPEN).await;
    let settle = load(redis, SETTLE).await;
    loop {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg(CONSUMER).arg("COUNT").arg(PIPE).arg("STREAMS").arg(STREAM).arg(">");
        let reply: Option<StreamReadReply> = read.query_async(redis).await.expect("the group is there");
        let entries = reply.map(|reply| reply.keys).unwrap_or_default().into_iter().flat_map(|stream| stream.ids);
        let taken: Vec<Taken> = entries
            .map(|entry| {
                let data: String = entry.get("data").expect("an item has data");
                Taken { entry: entry.id, graph: graph_of(&data).to_owned() }
            })
            .collect();
        if taken.is_empty() {
            return;
        }
        let mut opening = Pipeline::with_capacity(3 * PIPE);
        for item in &taken {
            opening.add_command(item.open(&open)).add_command(item.read()).add_command(item.order_to_stop());
        }
        let opened: Vec<redis::Value> = opening.query_async(redis).await.expect("opening succeeds");
        for word in opened.iter().step_by(3) {
            assert_eq!(redis::from_redis_value_ref::<String>(word).expect("a word"), "hash");
        }
        let mut settling = Pipeline::with_capacity(PIPE);
        for item in &taken {
            settling.add_command(item.settle(&settle, sample));
        }
        let settled: Vec<String> = settling.query_async(redis).await.expect("settling succeeds");
        assert!(settled.iter().all(|word| word == "ok"), "{settled:?}");
    }
}

/// The graph's name out of an item, without reading its JSON.
fn graph_of(data: &str) -> &str {
    let start = data.find("graph-").expect("an item names its graph");
    &data[start..start + graph_id(0).len()]
}

async fn load(redis: &mut MultiplexedConnection, code: &str) -> String {
    redis::cmd("SCRIPT").arg("LOAD").arg(code).query_async(redis).await.expect("the script is sound")
}
