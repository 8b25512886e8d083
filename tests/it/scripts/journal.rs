//! The journal script: entries for the owner alone, the lease renewed with each, and what opening and settling make of
//! them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use da_node_executor::clients::redis::{Held, JournalWriter, Link, RedisError, Settled, StateError, Takeover};
use da_node_executor::domain::journal::JournalEntry;
use da_node_executor::domain::outcome::Failure;
use da_node_executor::domain::work::Delivery;
use da_node_executor::ports::{Appended, Opened, Wanted};

use super::{ITEM, Worker, World};
use crate::harness::redis::RedisServer;

fn entry(field: &str, value: &str) -> JournalEntry {
    JournalEntry {
        header: format!("header of {field}"),
        field: String::from(field),
        value: String::from(value),
        restart: false,
        progress: true,
        whole: None,
    }
}

async fn append(worker: &Worker, delivery: &Delivery, entry: &JournalEntry) -> Result<Appended, RedisError> {
    worker.journal.append(delivery, &delivery.token, entry).await
}

async fn written(world: &World) -> HashMap<String, String> {
    world.redis(&["HGETALL", &world.key("journal:g:n:r")]).await
}

async fn opened(worker: &Worker, delivery: &Delivery) -> Vec<(String, Vec<u8>)> {
    match worker.store.open(delivery, &Wanted::default()).await.expect("an answer").0 {
        Opened::Ready { mut journal, .. } => {
            journal.sort();
            journal
        }
        other => panic!("the run is not ours: {other:?}"),
    }
}

async fn with_state(world: &World) {
    world.redis::<()>(&["HSET", &world.key("state:g"), "status", "running"]).await;
}

async fn idle(world: &World, delivery: &Delivery) -> u64 {
    let id = delivery.entry.as_str();
    let lines: Vec<(String, String, u64, u64)> =
        world.redis(&["XPENDING", &world.stream, super::GROUP, id, id, "1"]).await;
    lines[0].2
}

async fn taken_over(world: &World, from: &Delivery, by: &str) -> (Worker, Arc<Delivery>) {
    world.silence(&from.entry, &from.token.consumer).await;
    let worker = world.worker(by);
    let taken = worker
        .leases
        .claim(&world.stream, &[], 1, Takeover::Expired { suspects: 1 })
        .await
        .expect("an answer")
        .pop()
        .expect("an entry");
    (worker, super::delivery(taken))
}

#[tokio::test]
async fn an_entry_is_written_byte_for_byte_with_its_header_and_the_lease_begins_anew() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.silence(&delivery.entry, "w:1").await;
    let value = "{\"raw\":\"a\\u0000b\", \"n\" : 1.0e2,\n\"é\":\"\u{1F980}\"}";
    assert_eq!(append(&worker, &delivery, &entry("t1:llm", value)).await.expect("an answer"), Appended::Done);
    let expected = [("hdr", "header of t1:llm"), ("t1:llm", value)];
    assert_eq!(written(&world).await, expected.map(|(name, value)| (name.into(), value.into())).into());
    assert!(idle(&world, &delivery).await < 60_000, "the lease begins anew");
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from("w:1"), 1)), "the token stays");
    let ttl = world.ttl(&world.key("journal:g:n:r")).await;
    assert!(ttl > 23 * 3_600_000, "a journal that nobody settles goes by itself, after {ttl} ms");
    // Its answer was lost: the same once more does no harm.
    assert_eq!(append(&worker, &delivery, &entry("t1:llm", value)).await.expect("an answer"), Appended::Done);
    assert_eq!(written(&world).await.len(), 2);
}

#[tokio::test]
async fn each_entry_prolongs_the_journal_and_the_record_that_leads_to_it() {
    let world = World::new().await;
    with_state(&world).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    opened(&worker, &delivery).await;
    append(&worker, &delivery, &entry("t1:llm", "1")).await.expect("an answer");
    for key in ["journal:g:n:r", "done:g"] {
        world.redis::<()>(&["PEXPIRE", &world.key(key), "60000"]).await;
    }
    append(&worker, &delivery, &entry("t2:llm", "2")).await.expect("an answer");
    for key in ["journal:g:n:r", "done:g"] {
        assert!(world.ttl(&world.key(key)).await > 23 * 3_600_000, "{key}");
    }
    world.redis::<()>(&["PERSIST", &world.key("done:g")]).await;
    append(&worker, &delivery, &entry("t3:llm", "3")).await.expect("an answer");
    assert_eq!(world.ttl(&world.key("done:g")).await, -1, "what never expires stays so");
}

#[tokio::test]
async fn who_lost_the_entry_writes_nothing_and_steals_nothing() {
    let world = World::new().await;
    let (first, delivery) = world.worker_with("w:1", ITEM).await;
    append(&first, &delivery, &entry("t1:llm", "1")).await.expect("an answer");
    let before = written(&world).await;
    let (second, ours) = taken_over(&world, &delivery, "w:2").await;
    let restart = JournalEntry { restart: true, ..entry("t2:llm", "of a former owner") };
    assert_eq!(append(&first, &delivery, &restart).await.expect("an answer"), Appended::Lost);
    assert_eq!(written(&world).await, before);
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from("w:2"), 2)));
    // The name of the consumer alone proves nothing: the count must be the present one.
    let older = Delivery { token: delivery.token.clone(), ..Delivery::clone(&ours) };
    assert_eq!(append(&second, &older, &entry("t2:llm", "2")).await.expect("an answer"), Appended::Lost);
    assert_eq!(append(&second, &ours, &entry("t2:llm", "2")).await.expect("an answer"), Appended::Done);

    world.redis::<()>(&["XDEL", &world.stream, ours.entry.as_str()]).await;
    assert_eq!(append(&second, &ours, &entry("t3:llm", "3")).await.expect("an answer"), Appended::Lost);
    world.redis::<()>(&["XGROUP", "DESTROY", &world.stream, super::GROUP]).await;
    assert_eq!(append(&second, &ours, &entry("t3:llm", "3")).await.expect("an answer"), Appended::Lost);
    assert!(!written(&world).await.contains_key("t3:llm"));
}

#[tokio::test]
async fn a_key_of_another_type_is_named_and_left_alone() {
    let world = World::new().await;
    with_state(&world).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    opened(&worker, &delivery).await;
    let key = world.key("journal:g:n:r");
    world.spoil(&key).await;
    let error = append(&worker, &delivery, &entry("t1:llm", "1")).await.expect_err("a list is no journal");
    assert!(matches!(&error, RedisError::WrongType { key: Some(named) } if *named == key), "{error}");
    let error = worker.store.open(&delivery, &Wanted::default()).await.expect_err("a list is no journal");
    assert!(matches!(&error, StateError::NoJournal { key: named } if *named == key), "{error}");
    assert_eq!(Failure::from(error).code, "journal_wrong_type");
    world.assert_untouched(&delivery).await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done, "its failure can be written");
    assert!(!world.redis::<bool>(&["EXISTS", &key]).await);
}

#[tokio::test]
async fn a_new_epoch_drops_what_was_there_in_the_same_step() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    for field in ["t1:llm", "t1:c0:start", "t1:c0:end"] {
        append(&worker, &delivery, &entry(field, "old")).await.expect("an answer");
    }
    let restart = JournalEntry { restart: true, ..entry("t1:llm", "new") };
    append(&worker, &delivery, &restart).await.expect("an answer");
    let expected = [("hdr", "header of t1:llm"), ("t1:llm", "new")];
    assert_eq!(written(&world).await, expected.map(|(name, value)| (name.into(), value.into())).into());
    assert!(world.ttl(&world.key("journal:g:n:r")).await > 0);
}

#[tokio::test]
async fn progress_clears_the_count_of_crashes_and_nothing_else_does() {
    let world = World::new().await;
    let (_, delivery) = world.worker_with("w:1", ITEM).await;
    let (worker, ours) = taken_over(&world, &delivery, "w:2").await;
    let crashes = async || -> Option<u32> {
        world.redis(&["HGET", &world.key(&format!("crashes:{}", world.stream)), ours.entry.as_str()]).await
    };
    assert_eq!((ours.crashes, crashes().await), (1, Some(1)));
    let start = JournalEntry { progress: false, ..entry("t1:c0:start", "1") };
    append(&worker, &ours, &start).await.expect("an answer");
    assert_eq!(crashes().await, Some(1));
    append(&worker, &ours, &entry("t1:c0:start", "again")).await.expect("an answer");
    assert_eq!(crashes().await, Some(1), "what was there before is no progress");
    append(&worker, &ours, &entry("t1:c0:end", "1")).await.expect("an answer");
    assert_eq!(crashes().await, None);
}

#[tokio::test]
async fn progress_also_outweighs_the_crashes_before_an_entry_was_added_again() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let mut delivery = Delivery::clone(&delivery);
    delivery.meta.crashes = 2;
    append(&worker, &delivery, &entry("t1:llm", "1")).await.expect("an answer");
    let (_, ours) = taken_over(&world, &delivery, "w:2").await;
    assert_eq!(ours.crashes, 0, "one more, less the two that stand beside the item");
    let key = world.key(&format!("crashes:{}", world.stream));
    assert_eq!(world.redis::<Option<i64>>(&["HGET", &key, ours.entry.as_str()]).await, Some(-1));
    assert!(world.ttl(&key).await > 0);
}

#[tokio::test]
async fn the_next_owner_finds_the_journal_when_it_opens_the_run() {
    let world = World::new().await;
    with_state(&world).await;
    let (first, delivery) = world.worker_with("w:1", ITEM).await;
    assert!(opened(&first, &delivery).await.is_empty());
    append(&first, &delivery, &entry("t1:llm", "\u{1F980} \0")).await.expect("an answer");
    let expected = vec![
        (String::from("hdr"), b"header of t1:llm".to_vec()),
        (String::from("t1:llm"), "\u{1F980} \0".as_bytes().to_vec()),
    ];
    // The same worker again, after an answer that was lost.
    assert_eq!(opened(&first, &delivery).await, expected);
    let (second, ours) = taken_over(&world, &delivery, "w:2").await;
    assert_eq!(opened(&second, &ours).await, expected);
    // Handing it back keeps the journal; ending the run deletes it.
    let held = Held { stream: Arc::clone(&ours.stream), entry: ours.entry.clone(), deliveries: ours.token.deliveries };
    second.leases.hand_back(&[held]).await.expect("an answer");
    let third = world.worker("w:3");
    let taken = third
        .leases
        .claim(&world.stream, &[], 1, Takeover::Released)
        .await
        .expect("an answer")
        .pop()
        .expect("an entry");
    let ours = super::delivery(taken);
    assert_eq!(opened(&third, &ours).await, expected);
    assert_eq!(third.settle(&ours).await.expect("an answer"), Settled::Done);
    assert!(written(&world).await.is_empty());
}

#[tokio::test]
async fn a_journal_is_found_by_a_first_delivery_too_if_the_run_was_opened_before() {
    let world = World::new().await;
    with_state(&world).await;
    let (first, delivery) = world.worker_with("w:1", ITEM).await;
    opened(&first, &delivery).await;
    append(&first, &delivery, &entry("t1:llm", "1")).await.expect("an answer");
    // The group was lost and made anew, so its deliveries are counted from one again.
    world.redis::<()>(&["XGROUP", "DESTROY", &world.stream, super::GROUP]).await;
    let mut second = world.worker("w:2");
    second.streams.ensure_groups().await.expect("the groups can be made");
    let again = second.read_one().await;
    assert_eq!((&again.entry, again.token.deliveries), (&delivery.entry, 1));
    assert_eq!(opened(&second, &again).await.len(), 2);
}

#[tokio::test]
async fn entries_are_taken_at_maxmemory_too() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]);
    let world = World::on(server.config(), server.connect().await).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    // The scripts are known before the memory is used up.
    append(&worker, &delivery, &entry("t1:llm", "1")).await.expect("an answer");
    world.redis::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = world.try_redis::<()>(&["SET", &world.key("more"), "x"]).await.expect_err("the memory is used up");
    assert_eq!(full.code(), Some("OOM"));
    assert_eq!(append(&worker, &delivery, &entry("t2:llm", "2")).await.expect("an answer"), Appended::Done);
    assert!(written(&world).await.contains_key("t2:llm"));
}

#[tokio::test]
async fn an_answer_as_old_as_half_a_lease_does_not_count() {
    let server = RedisServer::start();
    let world = World::on(server.config(), server.connect().await).await;
    let (worker, delivery) = world.worker_with("w1", ITEM).await;
    let lease = Duration::from_millis(400);
    let link = Link::new(&world.redis).expect("an address");
    let journal = JournalWriter::new(link, world.keys.clone(), &world.state, super::GROUP, lease);
    let begun = entry("t1:c0:start", "begun");
    let append = || journal.append(&delivery, &delivery.token, &begun);
    assert_eq!(append().await.expect("an answer"), Appended::Done);
    world.redis::<()>(&["CLIENT", "PAUSE", "250", "ALL"]).await;
    let late = append().await;
    assert!(matches!(late, Err(RedisError::TimedOut { limit }) if limit == lease / 2), "{late:?}");
    assert_eq!(append().await.expect("an answer"), Appended::Done, "it is still ours");
    world.redis::<()>(&["CLIENT", "PAUSE", "250", "ALL"]).await;
    assert_eq!(worker.journal.append(&delivery, &delivery.token, &begun).await.expect("an answer"), Appended::Done);
}
