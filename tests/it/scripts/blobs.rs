//! Large outputs: moved to their place by settling alone, fetched by who may, alive as long as the state.

use std::sync::Arc;
use std::time::Duration;

use da_node_executor::clients::redis::{BlobError, LargeOutput, Link, Settled, Settlement};
use da_node_executor::config::{Layout, RedisConfig};
use da_node_executor::domain::blob::BlobRef;
use da_node_executor::domain::ids::GraphId;
use da_node_executor::domain::journal::{CallId, JournalEntry, WholeResult};
use da_node_executor::domain::outcome::{Category, Failure};
use da_node_executor::domain::work::Delivery;
use da_node_executor::ports::{Appended, Wanted};
use serde_json::value::{RawValue, to_raw_value};

use super::{ITEM, Worker, World, settlement};
use crate::harness::proxy::Proxy;
use crate::harness::redis::{RedisServer, shared};

/// Longer than any pass here takes.
const PASS: Duration = Duration::from_secs(10);

fn output(text: &str) -> Box<RawValue> {
    to_raw_value(text).expect("JSON")
}

/// A settlement whose output stands elsewhere, and the reference to it.
fn large(worker: &Worker, delivery: &Arc<Delivery>, text: &str) -> (Settlement, BlobRef) {
    let output = output(text);
    let reference = BlobRef::new(worker.blobs.key(delivery), &output);
    (Settlement { blob: Some(LargeOutput::new(output)), ..settlement(delivery) }, reference)
}

async fn keys(world: &World, pattern: &str) -> Vec<String> {
    world.redis(&["KEYS", &world.key(pattern)]).await
}

fn graph() -> GraphId {
    GraphId::new("g").expect("an id")
}

#[tokio::test]
async fn a_large_output_gets_to_its_place_with_the_settlement() {
    for layout in [Layout::Hash, Layout::String] {
        let mut world = World::new().await;
        world.state.layout = layout;
        let item = r#"{"graph_id":"g","node_id":"n","run_id":"r","config":{"tool_name":"t"},"inputs":{}}"#;
        let (worker, ours) = world.worker_with("w:1", item).await;
        worker.store.open(&ours, &Wanted::default()).await.expect("an answer");
        let (settlement, reference) = large(&worker, &ours, "wide");
        assert_eq!(reference.key, world.key("blob:g:n:r"));
        assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::Done);
        assert_eq!(world.redis::<String>(&["GET", &reference.key]).await, r#""wide""#);
        assert!(world.ttl(&reference.key).await > 80_000_000, "it lives as long as the state");
        assert!(keys(&world, "staged:*").await.is_empty());
        let fetched = worker.blobs.fetch(&graph(), "n", &reference).await.expect("an answer");
        assert_eq!(fetched.as_deref(), Some(br#""wide""#.as_slice()));
    }
}

#[tokio::test]
async fn who_lost_the_entry_does_not_change_what_its_successor_stored() {
    let world = World::new().await;
    let (first, ours) = world.worker_with("w:1", ITEM).await;
    world.steal(&ours, "w:2").await;
    let mut theirs = Delivery::clone(&ours);
    theirs.token.consumer = Arc::from("w:2");
    theirs.token.deliveries = 2;
    let second = world.worker("w:2");
    let (settlement, reference) = large(&second, &Arc::new(theirs), "second");
    assert_eq!(second.settler.settle(&settlement).await.expect("an answer"), Settled::DoneStateGone);
    let (settlement, _) = large(&first, &ours, "first");
    assert_eq!(first.settler.settle(&settlement).await.expect("an answer"), Settled::Lost);
    let fetched = first.blobs.fetch(&graph(), "n", &reference).await.expect("an answer");
    assert_eq!(fetched.as_deref(), Some(br#""second""#.as_slice()));
    assert!(keys(&world, "staged:*").await.is_empty(), "what is not used does not stay");
}

#[tokio::test]
async fn a_settlement_whose_answer_was_lost_leaves_nothing_staged() {
    let world = World::new().await;
    let (worker, ours) = world.worker_with("w:1", ITEM).await;
    let (settlement, reference) = large(&worker, &ours, "wide");
    assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::DoneStateGone);
    assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::Again);
    assert!(keys(&world, "staged:*").await.is_empty());
    assert!(worker.blobs.fetch(&graph(), "n", &reference).await.expect("an answer").is_some());
}

#[tokio::test]
async fn a_staged_output_that_went_before_it_was_settled_lets_nothing_be_written() {
    let world = World::new().await;
    let (worker, first) = world.worker_with("w:1", r#"{"graph_id":"other","node_id":"n"}"#).await;
    worker.settle(&first).await.expect("the server knows the script from here on");
    let (_, ours) = world.worker_with("w:1", ITEM).await;
    let proxy = Proxy::to(shared().port()).await;
    let through = RedisConfig { url: proxy.url(), ..world.redis.clone() };
    let worker = world.worker_by("w:1", &Link::new(&through).expect("an address"));
    let (settlement, reference) = large(&worker, &ours, "wide");
    // It is gone by the time that the worker hears that it is there.
    let mut remove = redis::cmd("DEL");
    remove.arg(world.keys.staged(&ours));
    proxy.overtake_answers(0, world.raw.clone(), remove);
    assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::Conflict);
    world.assert_untouched(&ours).await;
    assert!(world.redis::<Vec<String>>(&["HVALS", &world.key("done:g")]).await.is_empty(), "no record of the run");
    assert!(keys(&world, "blob:g:*").await.is_empty());
    // The same settlement, sent again, stages it again.
    proxy.heal();
    assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::DoneStateGone);
    assert_eq!(world.redis::<String>(&["GET", &reference.key]).await, r#""wide""#);
}

#[tokio::test]
async fn a_run_that_another_entry_has_takes_its_staged_output_with_it() {
    let world = World::new().await;
    let (worker, ours) = world.worker_with("w:1", ITEM).await;
    let other = world.submit(ITEM).await;
    let theirs = format!("r\n{0}/{other}\n{0}\n{other}", world.stream);
    world.redis::<()>(&["HSET", &world.key("done:g"), "n\nr", &theirs]).await;
    let (settlement, reference) = large(&worker, &ours, "wide");
    assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::Duplicate);
    assert!(keys(&world, "staged:*").await.is_empty() && keys(&world, "blob:*").await.is_empty());
    let error = worker.blobs.fetch(&graph(), "n", &reference).await.expect_err("nobody stored it");
    assert!(matches!(error, BlobError::Missing { .. }), "{error}");
}

fn with_result(text: &str) -> JournalEntry {
    JournalEntry {
        header: String::from("{}"),
        field: String::from("t1:c0:end"),
        value: String::from("a part"),
        restart: false,
        progress: true,
        whole: Some(WholeResult { call: CallId { turn: 1, index: 0 }, json: output(text) }),
    }
}

#[tokio::test]
async fn the_whole_result_of_a_tool_comes_with_its_record_and_from_its_owner_alone() {
    let world = World::new().await;
    let (first, ours) = world.worker_with("w:1", ITEM).await;
    let (key, member) = (world.key("result:g:n:r:t1:c0"), "g\nn\nr\nt1:c0");
    let appended = first.journal.append(&ours, &ours.token, &with_result("whole")).await.expect("an answer");
    assert_eq!(appended, Appended::Done);
    assert_eq!(world.redis::<String>(&["GET", &key]).await, r#""whole""#);
    assert_eq!(world.redis::<String>(&["HGET", &world.key("journal:g:n:r"), "t1:c0:end"]).await, "a part");
    let (journal, whole) = (world.ttl(&world.key("journal:g:n:r")).await, world.ttl(&key).await);
    assert!(whole > 80_000_000 && whole <= journal, "{whole} {journal}");
    assert!(world.redis::<Option<f64>>(&["ZSCORE", &world.keys.blobs(), member]).await.is_some());

    world.steal(&ours, "w:2").await;
    let late = first.journal.append(&ours, &ours.token, &with_result("late")).await.expect("an answer");
    assert_eq!(late, Appended::Lost);
    assert_eq!(world.redis::<String>(&["GET", &key]).await, r#""whole""#, "who lost the entry changes nothing");
}

#[tokio::test]
async fn a_whole_result_lives_on_while_its_state_does_and_outlives_an_index_that_is_none() {
    let world = World::new().await;
    let (worker, ours) = world.worker_with("w:1", ITEM).await;
    let key = world.key("result:g:n:r:t1:c0");
    world.redis::<()>(&["SET", &world.keys.blobs(), "somebody else's"]).await;
    let append = async || worker.journal.append(&ours, &ours.token, &with_result("whole")).await.expect("an answer");
    assert_eq!(append().await, Appended::Done, "a result that nobody prolongs is better than a node that fails");
    world.redis::<()>(&["DEL", &world.keys.blobs()]).await;
    append().await;

    world.redis::<()>(&["PEXPIRE", &key, "5000"]).await;
    world.redis::<()>(&["SET", &world.key("state:g"), "{}", "PX", "172800000"]).await;
    world.redis::<()>(&["ZADD", &world.keys.blobs(), "1", "g\nn\nr\nt1:c0"]).await;
    assert_eq!(worker.blobs.prolong(PASS).await.expect("an answer"), 1);
    assert!(world.ttl(&key).await > 172_000_000);
    worker.settle(&ours).await.expect("an answer");
    assert!(world.redis::<bool>(&["EXISTS", &key]).await, "the end of the node leaves it to people");
}

#[tokio::test]
async fn an_output_that_is_gone_or_another_is_a_validation_failure_that_names_the_key() {
    let world = World::new().await;
    let (worker, ours) = world.worker_with("w:1", ITEM).await;
    let (settlement, reference) = large(&worker, &ours, "wide");
    worker.settler.settle(&settlement).await.expect("an answer");
    world.redis::<()>(&["SET", &reference.key, r#""wild""#]).await;
    for code in ["blob_changed", "blob_missing"] {
        let error = worker.blobs.fetch(&graph(), "n", &reference).await.expect_err("it is not what was stored");
        let failure = Failure::from(error);
        assert_eq!((failure.category, failure.code.as_ref()), (Category::Validation, code));
        assert!(failure.message.contains(&reference.key) && failure.message.contains("`n`"), "{failure}");
        world.redis::<()>(&["DEL", &reference.key]).await;
    }
}

#[tokio::test]
async fn a_reference_leads_to_no_key_but_the_nodes_own_outputs() {
    let world = World::new().await;
    let worker = world.worker("w:1");
    let secret = world.key("state:other");
    world.redis::<()>(&["SET", &secret, r#""secret""#]).await;
    for key in [secret, world.key("blob:g:other:r"), world.key("blob:other:n:r")] {
        let reference = BlobRef::new(key, &output("secret"));
        assert_eq!(worker.blobs.fetch(&graph(), "n", &reference).await.expect("an answer"), None);
    }
}

#[tokio::test]
async fn outputs_live_on_while_their_state_does() {
    let world = World::new().await;
    let (worker, ours) = world.worker_with("w:1", ITEM).await;
    let (settlement, reference) = large(&worker, &ours, "wide");
    worker.settler.settle(&settlement).await.expect("an answer");
    let (state, index) = (world.key("state:g"), world.keys.blobs());
    let due = async || world.redis::<()>(&["ZADD", &index, "1", "g\nn\nr"]).await;
    assert_eq!(
        worker.blobs.prolong(PASS).await.expect("an answer"),
        0,
        "it is not looked at before half its life is over"
    );

    // The state was written long after the output was stored.
    world.redis::<()>(&["PEXPIRE", &reference.key, "5000"]).await;
    world.redis::<()>(&["SET", &state, "{}", "PX", "172800000"]).await;
    due().await;
    assert_eq!(worker.blobs.prolong(PASS).await.expect("an answer"), 1);
    assert!(world.ttl(&reference.key).await > 172_000_000);
    assert_eq!(worker.blobs.prolong(PASS).await.expect("an answer"), 0, "it has its time until the next look");

    // A state that never expires keeps its outputs, a look at a time.
    world.redis::<()>(&["PERSIST", &state]).await;
    world.redis::<()>(&["PEXPIRE", &reference.key, "5000"]).await;
    due().await;
    worker.blobs.prolong(PASS).await.expect("an answer");
    assert!(world.ttl(&reference.key).await > 86_000_000);

    // A state that is gone takes them with it, in their own time.
    world.redis::<()>(&["DEL", &state]).await;
    world.redis::<()>(&["PEXPIRE", &reference.key, "5000"]).await;
    due().await;
    world.redis::<()>(&["ZADD", &index, "1", "nonsense"]).await;
    assert_eq!(worker.blobs.prolong(PASS).await.expect("an answer"), 2);
    assert!((1..=5000).contains(&world.ttl(&reference.key).await));
    assert!(!world.redis::<bool>(&["EXISTS", &index]).await, "nothing is left to be looked at");
}

#[tokio::test]
async fn one_pass_looks_at_all_outputs_whose_time_has_come_unless_it_takes_too_long() {
    const OUTPUTS: usize = 450;
    let world = World::new().await;
    let (worker, _) = world.worker_with("w:1", ITEM).await;
    world.redis::<()>(&["SET", &world.key("state:g"), "{}", "PX", "172800000"]).await;
    let blob = |at: usize| world.key(&format!("blob:g:n:r{at}"));
    for at in 0..OUTPUTS {
        world.redis::<()>(&["SET", &blob(at), "1", "PX", "5000"]).await;
        world.redis::<()>(&["ZADD", &world.keys.blobs(), "1", &format!("g\nn\nr{at}")]).await;
    }
    let some = worker.blobs.prolong(Duration::ZERO).await.expect("an answer");
    assert!(some > 0 && some < OUTPUTS, "its time was over after {some}");
    assert_eq!(worker.blobs.prolong(PASS).await.expect("an answer"), OUTPUTS - some);
    for at in 0..OUTPUTS {
        assert!(world.ttl(&blob(at)).await > 172_000_000, "{at}");
    }
}

/// How often the server was sent an output.
async fn sent(world: &World) -> usize {
    let stats: String = world.redis(&["INFO", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_set:calls=")?.split(',').next()?.parse().ok());
    calls.unwrap_or_default()
}

#[tokio::test]
async fn an_output_is_sent_once_however_often_its_settlement_has_to_be_tried() {
    let server = RedisServer::start();
    let world = World::on(server.config(), server.connect().await).await;
    let (worker, ours) = world.worker_with("w:1", ITEM).await;
    let (settlement, reference) = large(&worker, &ours, "wide");
    let events = world.key("events:node.completed");
    world.redis::<()>(&["RPUSH", &events, "not a stream"]).await;
    let before = sent(&world).await;
    for _ in 0..3 {
        let settled = worker.settler.settle(&settlement).await.expect("an answer");
        assert!(matches!(&settled, Settled::WrongType { key } if *key == events), "{settled:?}");
    }
    assert_eq!(sent(&world).await - before, 1);
    // What is known to stand there may be lost all the same; then it is sent again, and in the same try.
    world.redis::<()>(&["DEL", &world.keys.staged(&ours), &events]).await;
    assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::DoneStateGone);
    assert_eq!(sent(&world).await - before, 2);
    assert_eq!(world.redis::<String>(&["GET", &reference.key]).await, r#""wide""#);
}
