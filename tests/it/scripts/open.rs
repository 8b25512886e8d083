//! The open script: one entry a run, and the state as the node's templates name it.

use std::sync::Arc;

use da_node_executor::clients::redis::{Settled, StateError, StateForm};
use da_node_executor::config::Layout;
use da_node_executor::domain::outcome::{Category, Failure};
use da_node_executor::domain::state::{NodeStatus, Snapshot};
use da_node_executor::ports::{Opened, Wanted};
use serde_json::Value;

use super::{ALL, ITEM, Worker, World};

fn wanted() -> Wanted {
    Wanted {
        inputs: true,
        nodes: vec![String::from("m"), String::from("absent")],
        all_nodes: false,
        config: true,
        session: None,
    }
}

fn ready(opened: Opened) -> (Snapshot, Option<String>, Option<String>) {
    match opened {
        Opened::Ready { snapshot, config, status, .. } => (snapshot, config, status),
        other => panic!("the run is not ours: {other:?}"),
    }
}

fn is_duplicate(answer: Result<(Opened, Option<StateForm>), StateError>) -> bool {
    matches!(answer, Ok((Opened::Duplicate, None)))
}

async fn with_hash_state(world: &World) {
    let key = world.key("state:g");
    let graph = r#"{"nodes":{"n":{"id":"n","config":{"tool_name":"t"}}}}"#;
    let words = ["HSET", &key, "status", "running", "inputs", r#"{"a":1}"#, "graph", graph];
    world.redis::<()>(&words).await;
    world.redis::<()>(&["HSET", &key, "node:m", r#"{"status":"completed","output":[2]}"#, "node:broken", "{"]).await;
}

fn assert_read(opened: Opened) {
    let (snapshot, config, status) = ready(opened);
    assert_eq!(snapshot.inputs["a"], 1);
    assert_eq!(snapshot.nodes["m"].status(), NodeStatus::Completed);
    assert_eq!(snapshot.nodes["m"].output.as_ref().map(|output| output.get()), Some("[2]"));
    assert_eq!(snapshot.nodes.len(), 1);
    assert_eq!(config.as_deref(), Some(r#"{"tool_name":"t"}"#));
    assert_eq!(status.as_deref(), Some("running"));
}

#[tokio::test]
async fn a_run_is_recorded_and_the_wanted_part_of_a_hash_is_read() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let (opened, form) = worker.store.open(&delivery, &wanted()).await.expect("an answer");
    assert_read(opened);
    assert_eq!(form, Some(StateForm::Hash));
    let record: String = world.redis(&["HGET", &world.key("done:g"), "n\nr"]).await;
    let (stream, entry) = (&world.stream, &delivery.entry);
    assert_eq!(record, format!("r\n{stream}/{entry}\n{stream}\n{entry}"));
    assert!(world.ttl(&world.key("done:g")).await > 0, "a record that nobody ends goes by itself");
}

#[tokio::test]
async fn a_document_is_read_whichever_layout_was_met_before() {
    let world = World::new().await;
    let document = r#"{"status":"running","inputs":{"a":1},"graph":{"nodes":[{"id":"n","config":{"tool_name":"t"}}]},
        "node_states":{"m":{"status":"completed","output":[2]},"broken":7}}"#;
    world.redis::<()>(&["SET", &world.key("state:g"), document]).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    for _ in 0..2 {
        let (opened, form) = worker.store.open(&delivery, &wanted()).await.expect("an answer");
        assert_read(opened);
        assert_eq!(form, Some(StateForm::String));
    }
    world.redis::<()>(&["DEL", &world.key("state:g")]).await;
    with_hash_state(&world).await;
    let (opened, form) = worker.store.open(&delivery, &wanted()).await.expect("an answer");
    assert_read(opened);
    assert_eq!(form, Some(StateForm::Hash));
}

#[tokio::test]
async fn more_can_be_read_and_the_nodes_be_named() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let graph = &delivery.item.graph_id;
    let all = Wanted { all_nodes: true, inputs: true, ..Wanted::default() };
    let empty = worker.store.read(graph, &all).await.expect("a state that is gone reads as empty");
    assert!(empty.inputs.is_empty() && empty.nodes.is_empty());

    with_hash_state(&world).await;
    let snapshot = worker.store.read(graph, &wanted()).await.expect("an answer");
    assert_eq!((snapshot.inputs.len(), snapshot.nodes.len()), (1, 1));
    assert_eq!(worker.store.node_ids(graph).await.expect("an answer"), ["broken", "m", "n"]);
    let error = worker.store.read(graph, &all).await.expect_err("one node is broken");
    assert!(matches!(&error, StateError::Corrupt { field, .. } if field == "node:broken"), "{error}");

    world.redis::<()>(&["DEL", &world.key("state:g")]).await;
    let document = r#"{"node_states":{"m":{"output":1}},"graph":{"nodes":{"n":{}}}}"#;
    world.redis::<()>(&["SET", &world.key("state:g"), document]).await;
    let read = worker.store.read(graph, &all).await.expect("an answer");
    assert_eq!(read.nodes["m"].output.as_ref().map(|output| output.get()), Some("1"));
    assert_eq!(worker.store.node_ids(graph).await.expect("an answer"), ["m", "n"]);

    world.spoil(&world.key("state:g")).await;
    let error = worker.store.read(graph, &all).await.expect_err("a list is no state");
    assert!(matches!(error, StateError::WrongType { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_state_is_the_items_failure_and_the_run_stays_ours() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let error = worker.store.open(&delivery, &wanted()).await.expect_err("there is no state");
    let failure = Failure::from(error);
    assert_eq!((failure.category, failure.code.as_ref()), (Category::Validation, "state_missing"));
    assert!(failure.message.contains(&world.key("state:g")), "{failure}");
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::DoneStateGone);
}

#[tokio::test]
async fn an_item_with_config_and_inputs_brings_its_state_along() {
    let item = r#"{"id":"e1","type":"node.work","timestamp":"2026-01-02T03:04:05.123456789Z","execution_id":"g",
        "data":{"node_id":"n","config":{"tool_name":"t"},"state":{"a":1},
        "node_state":{"m":{"status":"completed","output":[2]}}}}"#;
    for layout in [Layout::Hash, Layout::String] {
        let mut world = World::new().await;
        world.state.layout = layout;
        let (worker, delivery) = world.worker_with("w:1", item).await;
        let (opened, form) = worker.store.open(&delivery, &wanted()).await.expect("an answer");
        let (snapshot, config, status) = ready(opened);
        assert_eq!(form, Some(if layout == Layout::Hash { StateForm::Hash } else { StateForm::String }));
        assert_eq!((&snapshot.inputs["a"], status), (&Value::from(1), None), "the status is the orchestrator's");
        assert_eq!(snapshot.nodes["m"].output.as_ref().map(|output| output.get()), Some("[2]"));
        assert_eq!(config.as_deref(), Some(r#"{"tool_name":"t"}"#));
        assert!(world.ttl(&world.key("state:g")).await > 0);
        assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);
    }
}

#[tokio::test]
async fn a_state_that_exists_is_not_made_anew_by_an_item() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let item = r#"{"graph_id":"g","node_id":"n","run_id":"r","config":{"tool_name":"other"},"inputs":{"a":2}}"#;
    let (worker, delivery) = world.worker_with("w:1", item).await;
    assert_read(worker.store.open(&delivery, &wanted()).await.expect("an answer").0);
}

#[tokio::test]
async fn the_second_entry_of_an_identity_is_settled_away_while_the_first_lives() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let (first, ours) = world.worker_with("w:1", ITEM).await;
    ready(first.store.open(&ours, &wanted()).await.expect("an answer").0);
    let (second, copy) = world.worker_with("w:2", ITEM).await;
    assert!(is_duplicate(second.store.open(&copy, &wanted()).await));
    assert_eq!(world.owner(&copy.entry).await, None);
    assert_eq!(world.length(&world.stream).await, 1, "only the first is left");
    // The answer was lost: asked again, there is nothing left to do.
    let again = second.store.open(&copy, &wanted()).await.expect("an answer").0;
    assert!(matches!(again, Opened::Lost), "{again:?}");

    first.settle(&ours).await.expect("an answer");
    let (third, copy) = world.worker_with("w:3", ITEM).await;
    assert!(is_duplicate(third.store.open(&copy, &wanted()).await), "the identity is done");
}

#[tokio::test]
async fn a_run_whose_entry_is_gone_without_a_record_is_taken_over() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let (first, ours) = world.worker_with("w:1", ITEM).await;
    ready(first.store.open(&ours, &wanted()).await.expect("an answer").0);
    world.redis::<()>(&["XDEL", &world.stream, ours.entry.as_str()]).await;
    let (second, copy) = world.worker_with("w:2", ITEM).await;
    ready(second.store.open(&copy, &wanted()).await.expect("an answer").0);
    assert_eq!(second.settle(&copy).await.expect("an answer"), Settled::Done);
}

#[tokio::test]
async fn the_same_work_opens_its_run_again_after_a_takeover() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let (first, ours) = world.worker_with("w:1", ITEM).await;
    ready(first.store.open(&ours, &wanted()).await.expect("an answer").0);
    world.silence(&ours.entry, "w:1").await;
    let second = world.worker("w:2");
    let taken = second.leases.claim(&world.stream, &[], 1, ALL).await.expect("an answer").pop().expect("an entry");
    let ours_now = super::delivery(taken);
    ready(second.store.open(&ours_now, &wanted()).await.expect("an answer").0);
    let before = first.store.open(&ours, &wanted()).await.expect("an answer").0;
    assert!(matches!(before, Opened::Lost), "{before:?}");
}

#[tokio::test]
async fn records_of_other_streams_and_of_parked_work_count_as_alive() {
    let mut world = World::new().await;
    with_hash_state(&world).await;
    let done = world.key("done:g");
    for record in ["r\nelsewhere/1-0\nelsewhere\n1-0", "p\nelsewhere/1-0", "z\nof a later version"] {
        world.redis::<()>(&["HSET", &done, "n\nr", record]).await;
        let (worker, delivery) = world.worker_with("w:1", ITEM).await;
        assert!(is_duplicate(worker.store.open(&delivery, &wanted()).await), "{record}");
    }
    // A stream that is ours can be looked into, and the entry is not there.
    let second = world.key("second");
    world.work.streams.push(second.clone());
    world.worker("maker").streams.ensure_groups().await.expect("the groups can be made");
    let record = format!("r\n{second}/1-0\n{second}\n1-0");
    world.redis::<()>(&["HSET", &done, "n\nr", &record]).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    ready(worker.store.open(&delivery, &wanted()).await.expect("an answer").0);
}

#[tokio::test]
async fn work_that_is_added_again_after_its_end_is_a_duplicate_of_itself() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);
    let meta = format!(r#"{{"origin":"{}","attempt":1}}"#, delivery.entry);
    world.redis::<()>(&["XADD", &world.stream, "*", "data", ITEM, "meta", &meta]).await;
    let mut worker = world.worker("w:2");
    let again = worker.read_one().await;
    assert_eq!(again.work_id, delivery.work_id);
    assert!(is_duplicate(worker.store.open(&again, &wanted()).await));
}

#[tokio::test]
async fn what_is_no_record_holds_nobody_up() {
    let world = World::new().await;
    with_hash_state(&world).await;
    world.redis::<()>(&["HSET", &world.key("done:g"), "n\nr", "nonsense"]).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    ready(worker.store.open(&delivery, &wanted()).await.expect("an answer").0);
}

#[tokio::test]
async fn a_lost_entry_opens_nothing() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.steal(&delivery, "w:2").await;
    let (opened, form) = worker.store.open(&delivery, &wanted()).await.expect("an answer");
    assert!(matches!(opened, Opened::Lost) && form.is_none());
    assert!(!world.redis::<bool>(&["EXISTS", &world.key("done:g")]).await);
}

#[tokio::test]
async fn a_wrong_key_type_is_named() {
    for name in ["state:g", "done:g"] {
        let world = World::new().await;
        with_hash_state(&world).await;
        world.spoil(&world.key(name)).await;
        let (worker, delivery) = world.worker_with("w:1", ITEM).await;
        let error = worker.store.open(&delivery, &wanted()).await.expect_err("a list is neither");
        assert!(matches!(&error, StateError::WrongType { key } if *key == world.key(name)), "{error}");
        let failure = Failure::from(error);
        assert_eq!((failure.category, failure.code.as_ref()), (Category::Validation, "state_wrong_type"));
        world.assert_untouched(&delivery).await;
    }
}

#[tokio::test]
async fn a_corrupt_field_is_named() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let broken = Wanted { nodes: vec![String::from("broken")], ..Wanted::default() };
    let failure = Failure::from(worker.store.open(&delivery, &broken).await.expect_err("the node is broken"));
    assert_eq!((failure.category, failure.code.as_ref()), (Category::Validation, "state_corrupt"));
    assert!(failure.message.contains("node:broken") && failure.message.contains("state:g"), "{failure}");
}

#[tokio::test]
async fn one_identity_submitted_twenty_times_at_once_is_opened_once() {
    let world = World::new().await;
    with_hash_state(&world).await;
    for _ in 0..20 {
        world.submit(ITEM).await;
    }
    let workers: Vec<Worker> = (0..20).map(|number| world.worker(&format!("w:{number}"))).collect();
    let opening = workers.into_iter().map(|mut worker| async move {
        let delivery: Arc<_> = worker.read_one().await;
        worker.store.open(&delivery, &wanted()).await.expect("an answer").0
    });
    let opened = futures_util::future::join_all(opening).await;
    assert_eq!(opened.iter().filter(|opened| matches!(opened, Opened::Ready { .. })).count(), 1);
    assert_eq!(opened.iter().filter(|opened| matches!(opened, Opened::Duplicate)).count(), 19);
}
