//! The settle script and the one for dead letters: all or nothing, once, and only by the owner.

use std::collections::HashMap;
use std::sync::Arc;

use da_node_executor::clients::redis::{LETTER_BYTES, Letter, Settled, Settlement};
use da_node_executor::domain::event::{EventType, terminal_event_id};

use super::{GROUP, ITEM, World, letter, settlement};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

async fn with_hash_state(world: &World) {
    world.redis::<()>(&["HSET", &world.key("state:g"), "status", "running", "node:m", "{}"]).await;
}

#[tokio::test]
async fn a_settled_run_is_acknowledged_written_recorded_and_told() {
    let world = World::new().await;
    with_hash_state(&world).await;
    world.redis::<()>(&["HSET", &world.key("journal:g:n:r"), "hdr", "{}"]).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;

    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);

    assert_eq!((world.length(&world.stream).await, world.pending().await), (0, 0));
    let state: HashMap<String, String> = world.redis(&["HGETALL", &world.key("state:g")]).await;
    assert_eq!(state["node:n"], r#"{"node_id":"n","status":"completed","output":1}"#);
    assert_eq!((state["status"].as_str(), state.len()), ("running", 3));
    let event_id = terminal_event_id(&delivery.work_id, 0);
    assert_eq!(
        world.events(EventType::NodeCompleted).await,
        [(format!(r#"{{"id":"{event_id}"}}"#), String::from("1"))]
    );
    let done: HashMap<String, String> = world.redis(&["HGETALL", &world.key("done:g")]).await;
    assert_eq!(done["n\nr"], format!("d\n{}\nw:1\n1\n{event_id}", delivery.work_id));
    assert_eq!((done["seq"].as_str(), done.len()), ("1", 2));
    assert!(!world.redis::<bool>(&["EXISTS", &world.key("journal:g:n:r")]).await, "the journal has served");
}

#[tokio::test]
async fn a_settlement_whose_answer_was_lost_is_answered_again_and_tells_nothing_twice() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::DoneStateGone);
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Again);
    assert_eq!(world.events(EventType::NodeCompleted).await.len(), 1);
}

#[tokio::test]
async fn a_worker_that_lost_its_entry_writes_nothing() {
    let world = World::new().await;
    with_hash_state(&world).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.steal(&delivery, "w:2").await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Lost);
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from("w:2"), 2)));
    assert!(world.events(EventType::NodeCompleted).await.is_empty());
    assert!(!world.redis::<bool>(&["HEXISTS", &world.key("state:g"), "node:n"]).await);

    // The same consumer with an older count is no owner either.
    world.steal(&delivery, "w:1").await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Lost);
}

#[tokio::test]
async fn without_a_stream_nothing_is_ours() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.redis::<()>(&["DEL", &world.stream]).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Lost);
    world.spoil(&world.stream).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Lost);
    assert!(!world.redis::<bool>(&["EXISTS", &world.key("done:g")]).await);
}

/// What Redis looks like when it lost its last writes: the entry is there, and nobody has it.
#[tokio::test]
async fn an_entry_that_is_nobodys_is_ended_by_whoever_has_its_result_and_once() {
    for forgotten in [&["XGROUP", "DESTROY"][..], &["XGROUP", "SETID"]] {
        let world = World::new().await;
        let (worker, delivery) = world.worker_with("w:1", ITEM).await;
        match forgotten {
            [_, "DESTROY"] => world.redis::<()>(&["XGROUP", "DESTROY", &world.stream, GROUP]).await,
            _ => {
                // Not delivered yet, as far as the group knows.
                world.redis::<()>(&["XGROUP", "SETID", &world.stream, GROUP, "0"]).await;
                world.redis::<()>(&["XGROUP", "DELCONSUMER", &world.stream, GROUP, "w:1"]).await;
            }
        }
        assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::DoneStateGone, "{forgotten:?}");
        assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Again, "{forgotten:?}");
        assert_eq!((world.length(&world.stream).await, world.events(EventType::NodeCompleted).await.len()), (0, 1));
    }
}

#[tokio::test]
async fn an_entry_that_somebody_else_has_is_never_nobodys() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.redis::<()>(&["XGROUP", "DESTROY", &world.stream, GROUP]).await;
    world.redis::<()>(&["XGROUP", "CREATE", &world.stream, GROUP, "0"]).await;
    let (_other, theirs) = world.worker_with("w:2", ITEM).await;
    assert_ne!(theirs.token.consumer, delivery.token.consumer);
    assert_eq!(
        world.owner(&delivery.entry).await,
        Some((String::from("w:2"), 1)),
        "the group began at the first entry"
    );
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Lost);
    assert!(world.events(EventType::NodeCompleted).await.is_empty());
}

#[tokio::test]
async fn a_state_that_is_gone_is_not_made_anew_and_the_event_goes_out() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::DoneStateGone);
    assert!(!world.redis::<bool>(&["EXISTS", &world.key("state:g")]).await);
    assert_eq!(world.events(EventType::NodeCompleted).await.len(), 1);
    assert_eq!(world.pending().await, 0);
}

#[tokio::test]
async fn a_run_that_ended_or_runs_elsewhere_is_a_duplicate() {
    let world = World::new().await;
    let (first, ours) = world.worker_with("w:1", ITEM).await;
    first.store.open(&ours, &Default::default()).await.expect_err("there is no state");
    let (second, copy) = world.worker_with("w:2", ITEM).await;
    // The first has the run and its entry is there.
    assert_eq!(second.settle(&copy).await.expect("an answer"), Settled::Duplicate);
    assert_eq!(first.settle(&ours).await.expect("an answer"), Settled::DoneStateGone);
    // The first ended it.
    let (third, copy) = world.worker_with("w:3", ITEM).await;
    let with_letter = Settlement { letter: Some(letter(b"{}".to_vec())), ..settlement(&copy) };
    assert_eq!(third.settler.settle(&with_letter).await.expect("an answer"), Settled::Duplicate);
    assert_eq!(world.events(EventType::NodeCompleted).await.len(), 1);
    assert_eq!(world.length(&world.keys.dead(&world.stream)).await, 1, "a letter tells of the entry, not of the run");
    assert_eq!((world.length(&world.stream).await, world.pending().await), (0, 0));
}

#[tokio::test]
async fn a_wrong_key_type_is_named_before_anything_is_written() {
    for (key, with_letter) in
        [("state:g", false), ("done:g", false), ("events:node.completed", false), ("work:dead", true)]
    {
        let world = World::new().await;
        let (worker, delivery) = world.worker_with("w:1", ITEM).await;
        let key = world.key(key);
        world.spoil(&key).await;
        let letter = with_letter.then(|| letter(b"{}".to_vec()));
        let settlement = Settlement { letter, ..settlement(&delivery) };
        let answer = worker.settler.settle(&settlement).await.expect("an answer");
        assert_eq!(answer, Settled::WrongType { key: key.clone() });
        world.assert_untouched(&delivery).await;
        let list: Vec<String> = world.redis(&["LRANGE", &key, "0", "-1"]).await;
        assert_eq!(list, ["not", "ours"]);
    }
}

#[tokio::test]
async fn keys_that_do_not_decide_may_be_of_any_type() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    for key in ["state:g", "journal:g:n:r"] {
        world.spoil(&world.key(key)).await;
    }
    world.spoil(&world.keys.crashes(&world.stream)).await;
    let settlement = Settlement { write_state: false, ..settlement(&delivery) };
    assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::Done);
    assert_eq!(world.redis::<u64>(&["LLEN", &world.key("state:g")]).await, 2);
}

#[tokio::test]
async fn a_counter_that_is_no_number_is_a_wrong_type() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.redis::<()>(&["HSET", &world.key("done:g"), "seq", "many"]).await;
    let answer = worker.settle(&delivery).await.expect("an answer");
    assert_eq!(answer, Settled::WrongType { key: world.key("done:g") });
    world.assert_untouched(&delivery).await;
}

#[tokio::test]
async fn the_terminal_events_of_a_graph_are_counted() {
    let world = World::new().await;
    for node in ["a", "b", "c"] {
        let item = format!(r#"{{"graph_id":"g","node_id":"{node}"}}"#);
        let (worker, delivery) = world.worker_with("w:1", &item).await;
        worker.settle(&delivery).await.expect("an answer");
    }
    let seqs: Vec<String> = world.events(EventType::NodeCompleted).await.into_iter().map(|(_, seq)| seq).collect();
    assert_eq!(seqs, ["1", "2", "3"]);
}

#[tokio::test]
async fn expiry_is_prolonged_and_never_shortened_or_begun() {
    let world = World::new().await;
    let state = world.key("state:g");
    for (before, after) in [(Some(60_000), DAY_MS), (Some(2 * DAY_MS), 2 * DAY_MS), (None, -1)] {
        with_hash_state(&world).await;
        match before {
            Some(before) => world.redis::<()>(&["PEXPIRE", &state, &before.to_string()]).await,
            None => world.redis::<()>(&["PERSIST", &state]).await,
        }
        let (worker, delivery) = world.worker_with("w:1", r#"{"graph_id":"g","node_id":"n"}"#).await;
        assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);
        let left = world.ttl(&state).await;
        assert!(left <= after && left > after - 60_000, "{before:?} became {left}");
    }
    let records = world.ttl(&world.key("done:g")).await;
    assert!(records <= DAY_MS && records > DAY_MS - 60_000, "the records live for {records}");
    world.redis::<()>(&["PERSIST", &world.key("done:g")]).await;
    let (worker, delivery) = world.worker_with("w:1", r#"{"graph_id":"g","node_id":"n"}"#).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);
    assert_eq!(world.ttl(&world.key("done:g")).await, -1, "persistent records stay so");
}

#[tokio::test]
async fn a_node_state_in_a_document_replaces_only_itself() {
    let world = World::new().await;
    let state = world.key("state:g");
    let document = r#"{ "big" : 12345678901234567890.10, "node_states": {"m": {"status":"completed"} }, "x":"é" }"#;
    world.redis::<()>(&["SET", &state, document, "EX", "60"]).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);
    let expected = document.replace(
        r#"{"status":"completed"} }"#,
        r#"{"status":"completed"} ,"n":{"node_id":"n","status":"completed","output":1}}"#,
    );
    assert_eq!(world.redis::<String>(&["GET", &state]).await, expected);
    assert!(world.ttl(&state).await > 60_000, "the expiry was prolonged");
    world.redis::<()>(&["PERSIST", &state]).await;
    let (worker, delivery) = world.worker_with("w:1", r#"{"graph_id":"g","node_id":"n"}"#).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);
    assert_eq!(world.ttl(&state).await, -1, "a persistent state stays so");
}

#[tokio::test]
async fn a_document_that_cannot_be_read_is_not_written() {
    let world = World::new().await;
    let state = world.key("state:g");
    for document in ["", "{", r#"{"node_states":[]}"#] {
        world.redis::<()>(&["DEL", &world.stream]).await;
        world.worker("maker").streams.ensure_groups().await.expect("the group can be made");
        world.redis::<()>(&["SET", &state, document]).await;
        let (worker, delivery) = world.worker_with("w:1", ITEM).await;
        let answer = worker.settle(&delivery).await.expect("an answer");
        assert_eq!(answer, Settled::WrongType { key: state.clone() }, "{document}");
        world.assert_untouched(&delivery).await;
    }
}

#[tokio::test]
async fn fifty_nodes_of_one_document_end_at_once_and_none_is_lost() {
    let world = World::new().await;
    let state = world.key("state:g");
    world.redis::<()>(&["SET", &state, r#"{"node_states":{}}"#]).await;
    for node in 0..50 {
        world.submit(&format!(r#"{{"graph_id":"g","node_id":"n{node}"}}"#)).await;
    }
    // Two processes, each with its own connection.
    let (mut one, mut two) = (world.worker("w:1"), world.worker("w:2"));
    let mut all = Vec::new();
    for worker in [&mut one, &mut two] {
        let entries = worker.streams.read(25).await.expect("the stream can be read");
        let settler = &worker.settler;
        all.extend(entries.into_iter().map(super::delivery).map(|delivery| async move {
            for _ in 0..20 {
                let settled = settler.settle(&settlement(&delivery)).await.expect("an answer");
                if settled != Settled::Conflict {
                    return settled;
                }
            }
            Settled::Conflict
        }));
    }
    let answers = futures_util::future::join_all(all).await;
    assert_eq!(answers.len(), 50);
    assert!(answers.iter().all(|answer| *answer == Settled::Done), "{answers:?}");
    let document: serde_json::Value =
        serde_json::from_str(&world.redis::<String>(&["GET", &state]).await).expect("a document");
    assert_eq!(document["node_states"].as_object().expect("an object").len(), 50);
    assert_eq!(world.events(EventType::NodeCompleted).await.len(), 50);
}

#[tokio::test]
async fn a_dead_letter_goes_with_the_terminal_event() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let settlement = Settlement {
        event: EventType::NodeFailed,
        letter: Some(letter(ITEM.as_bytes().to_vec())),
        ..settlement(&delivery)
    };
    assert_eq!(worker.settler.settle(&settlement).await.expect("an answer"), Settled::DoneStateGone);
    assert_eq!(world.events(EventType::NodeFailed).await.len(), 1);
    let letters = letters(&world).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["data"], ITEM.as_bytes());
    assert_eq!(letters[0]["reason"], b"not_json");
    assert_eq!(letters[0]["error"], b"field `data` is not valid JSON");
    assert_eq!(letters[0]["work_id"], b"executor.work/1-0");
    assert_eq!((letters[0]["deliveries"].as_slice(), letters[0]["crashes"].as_slice()), (&b"2"[..], &b"1"[..]));
    assert_eq!(
        (letters[0]["worker_id"].as_slice(), letters[0]["at"].as_slice()),
        (&b"w"[..], &b"2026-01-02T03:04:05Z"[..])
    );
    assert_eq!(letters[0].len(), 8);
}

#[tokio::test]
async fn an_entry_that_cannot_be_understood_becomes_a_dead_letter_once() {
    let world = World::new().await;
    let data = vec![0xff; LETTER_BYTES + 1];
    let mut add = redis::cmd("XADD");
    add.arg(&*world.stream).arg("*").arg("data").arg(&data);
    add.exec_async(&mut world.raw.clone()).await.expect("the entry can be added");
    let mut worker = world.worker("w:1");
    let entry = worker.streams.read(1).await.expect("the stream can be read").pop().expect("an entry");

    let letter = Letter { data: entry.data.clone().expect("data"), ..letter(Vec::new()) };
    assert_eq!(worker.settler.dead_letter(&entry, &letter).await.expect("an answer"), Settled::Done);
    assert_eq!(worker.settler.dead_letter(&entry, &letter).await.expect("an answer"), Settled::Lost);

    assert_eq!((world.length(&world.stream).await, world.pending().await), (0, 0));
    let letters = letters(&world).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["data"], data[..LETTER_BYTES]);
    assert_eq!(letters[0]["length"], b"65537");
    assert_eq!(letters[0]["sha256"].len(), 64);
}

#[tokio::test]
async fn a_dead_letter_of_a_wrong_key_type_leaves_the_entry() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let dead = world.keys.dead(&world.stream);
    world.spoil(&dead).await;
    let entry = da_node_executor::clients::redis::RawEntry {
        stream: Arc::clone(&delivery.stream),
        entry: delivery.entry.clone(),
        token: delivery.token.clone(),
        data: None,
        meta: None,
        crashes: 0,
    };
    let answer = worker.settler.dead_letter(&entry, &letter(Vec::new())).await.expect("an answer");
    assert_eq!(answer, Settled::WrongType { key: dead });
    world.assert_untouched(&delivery).await;
}

async fn letters(world: &World) -> Vec<HashMap<String, Vec<u8>>> {
    let entries: Vec<(String, HashMap<String, Vec<u8>>)> =
        world.redis(&["XRANGE", &world.keys.dead(&world.stream), "-", "+"]).await;
    entries.into_iter().map(|(_, fields)| fields).collect()
}
