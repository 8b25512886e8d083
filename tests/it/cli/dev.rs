//! `dev` with a Redis or a model of somebody else, and what an early end leaves behind.

use crate::harness::bed::Bed;
use crate::harness::eventually;
use crate::harness::model::Model;
use crate::harness::worker::{Spec, Worker};

const SCRIPT: &str = include_str!("../../../examples/model.yaml");
/// Each of them has its own time.
const MILESTONES: [&str; 4] = ["approval   ✔", "taken over by", "takeover   ✔", "poison     ✘"];

fn dev(arguments: &[&str]) -> Spec {
    arguments.iter().fold(Spec::bare().argument("dev"), |spec, argument| spec.argument(*argument))
}

/// Waits for words on stdout.
async fn shows(demo: &Worker, words: &str) {
    eventually(words, async || demo.printed().contains(words).then_some(())).await;
}

async fn played(demo: &Worker) {
    for words in MILESTONES {
        shows(demo, words).await;
    }
    let (code, text) = demo.ends().await;
    assert_eq!(code, Some(0), "{text}");
}

/// What follows `name` in the line that begins with it.
fn address(demo: &Worker, name: &str) -> String {
    let printed = demo.printed();
    let line = printed.lines().find_map(|line| line.strip_prefix(name)).expect("the demo shows its addresses");
    String::from(line.split_whitespace().next().expect("an address"))
}

async fn keys(bed: &Bed) -> Vec<String> {
    let mut keys: Vec<String> = bed.ask(&["KEYS", "*"]).await;
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn on_a_redis_of_somebody_else_the_demo_touches_nothing_and_leaves_nothing() {
    let bed = Bed::with_own_redis(&[]).await;
    bed.ask::<()>(&["HSET", "dago:state:agent", "status", "mine"]).await;
    let entry: String = bed.ask(&["XADD", "executor.work", "*", "data", "{}"]).await;
    let before = keys(&bed).await;
    let demo = dev(&["--once", "--redis", &bed.server().url()]).start();
    played(&demo).await;
    assert_eq!(keys(&bed).await, before);
    assert_eq!(bed.ask::<String>(&["HGET", "dago:state:agent", "status"]).await, "mine");
    let entries = bed.entries("executor.work").await;
    assert_eq!(entries.len(), 1, "{entry} is nobody's here");
    assert_eq!(bed.ask::<Vec<redis::Value>>(&["XINFO", "GROUPS", "executor.work"]).await.len(), 0);
}

#[tokio::test]
async fn an_interrupted_demo_leaves_nothing_behind() {
    let bed = Bed::with_own_redis(&[]).await;
    for redis in [None, Some(bed.server().url())] {
        let private = redis.is_none();
        let arguments = redis.as_deref().map(|url| ["--redis", url]);
        let demo = dev(arguments.as_ref().map_or(&[], |arguments| arguments)).start();
        shows(&demo, "started by").await;
        let worker = address(&demo, "worker  worker-1  http://");
        let worker = worker.trim_end_matches("/health");
        tokio::net::TcpStream::connect(worker).await.expect("it is up");
        demo.interrupt();
        let (code, text) = demo.ends().await;
        assert_eq!(code, Some(130), "{text}");
        tokio::net::TcpStream::connect(worker).await.expect_err("no worker is left");
        if private {
            tokio::net::TcpStream::connect(address(&demo, "redis ")).await.expect_err("no server is left");
        }
        assert!(!std::path::Path::new(&address(&demo, "logs ")).exists(), "no folder is left");
        assert_eq!(keys(&bed).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn without_once_the_demo_stays_up_for_whoever_wants_to_try_more() {
    let demo = dev(&[]).start();
    for words in MILESTONES {
        shows(&demo, words).await;
    }
    shows(&demo, "submit --wait").await;
    let redis = format!("redis://{}", address(&demo, "redis "));
    let item = r#"{"graph_id": "mine", "node_id": "sum", "config": {"tool_name": "calculate", "tool_params": {"expression": "6 * 7"}}, "inputs": {}}"#;
    let more = Spec::bare().env("REDIS_ADDR", redis).argument("submit").argument("--wait").argument("-").input(item);
    let more = more.start();
    assert_eq!(more.ends().await.0, Some(0), "{}", more.log());
    assert!(more.printed().contains("42"), "{}", more.log());
    assert!(demo.poll().is_none(), "{}", demo.log());
    demo.interrupt();
    assert_eq!(demo.ends().await.0, Some(0), "every outcome was the expected one");
}

#[tokio::test]
async fn a_provider_of_ones_own_answers_the_demo() {
    let model = Model::start(SCRIPT);
    let provider = format!(
        "[llm.providers.house]\nkind = \"anthropic\"\nbase_url = \"{}\"\napi_key = \"a key\"\nmodel = \"house-1\"\n",
        model.base_url()
    );
    let demo = dev(&["--once", "--provider", "house"]).file(&provider).start();
    played(&demo).await;
    assert!(demo.printed().contains("the real provider house"), "{}", demo.printed());
    assert!(model.calls().completions > 8, "it answered every node: {:?}", model.calls().completions);

    let nobody = dev(&["--once", "--provider", "nobody"]).file(&provider).start();
    let (code, text) = nobody.ends().await;
    assert!(code == Some(78) && text.contains("no such provider"), "{code:?} {text}");
}
