//! Reading work: groups, permits, and reads that are abandoned.

use std::time::Duration;

use da_node_executor::clients::redis::RedisError;
use da_node_executor::config::RedisConfig;

use super::{GROUP, ITEM, World};
use crate::harness::eventually;
use crate::harness::proxy::Proxy;
use crate::harness::redis::{RedisServer, shared};

#[tokio::test]
async fn a_group_begins_at_the_first_entry_and_is_made_again_there() {
    let world = World::new().await;
    let first = world.submit(ITEM).await;
    let mut worker = world.worker("w:1");
    assert_eq!(worker.streams.read(5).await.expect("an answer").len(), 1);
    world.redis::<()>(&["XGROUP", "DESTROY", &world.stream, GROUP]).await;
    let error = worker.streams.read(5).await.expect_err("the group is gone");
    assert!(matches!(error, RedisError::NoGroup), "{error}");
    worker.streams.ensure_groups().await.expect("the group can be made");
    worker.streams.ensure_groups().await.expect("a group that exists is fine");
    let entries = worker.streams.read(5).await.expect("an answer");
    assert_eq!(entries[0].entry, first, "the entry is delivered again, for nobody settled it");
    assert_eq!(worker.streams.connects(), 1, "an error reply is no reason for another connection");
}

#[tokio::test]
async fn a_stream_of_another_type_is_named() {
    let mut world = World::new().await;
    let key = world.key("second");
    world.spoil(&key).await;
    world.work.streams.push(key.clone());
    let error = world.worker("w:1").streams.ensure_groups().await.expect_err("a list is no stream");
    assert!(matches!(&error, RedisError::WrongType { key: Some(named) } if *named == key), "{error}");
}

#[tokio::test]
async fn never_more_entries_than_permits_and_no_stream_is_forgotten() {
    let mut world = World::new().await;
    for name in ["second", "third"] {
        let key = world.key(name);
        world.work.streams.push(key);
    }
    world.work.block = Duration::from_millis(20);
    let mut worker = world.worker("w:1");
    worker.streams.ensure_groups().await.expect("the groups can be made");
    for stream in &world.work.streams {
        for _ in 0..10 {
            world.submit_to(stream, ITEM).await;
        }
    }
    let mut read = 0;
    let mut seen = std::collections::BTreeSet::new();
    for permits in [0, 1, 2, 4, 7, 30, 30, 30, 30] {
        let entries = worker.streams.read(permits).await.expect("an answer");
        assert!(entries.len() <= permits, "{} entries for {permits} permits", entries.len());
        assert_eq!(entries.is_empty(), permits == 0 || read == 30);
        read += entries.len();
        seen.extend(entries.into_iter().map(|entry| entry.stream));
    }
    assert_eq!((read, seen.len()), (30, 3));

    // One permit, and work that comes while a read waits: each stream has its turn.
    for stream in world.work.streams.clone() {
        let waiting = eventually("the entry is read", async || worker.streams.read(1).await.expect("an answer").pop());
        let (entry, ()) = tokio::join!(waiting, async {
            world.submit_to(&stream, ITEM).await;
        });
        assert_eq!(*entry.stream, *stream);
    }
}

#[tokio::test]
async fn an_entry_is_read_as_it_is() {
    let world = World::new().await;
    let words = ["XADD", &world.stream, "*", "other", "x", "data", "1", "meta", "{}", "data", "2"];
    let first: String = world.redis(&words).await;
    world.redis::<()>(&["XADD", &world.stream, "*", "payload", "x"]).await;
    let entries = world.worker("w:1").streams.read(5).await.expect("an answer");
    assert_eq!((entries[0].entry.as_str(), &*entries[0].stream), (first.as_str(), &*world.stream));
    assert_eq!(entries[0].data.as_deref(), Some(&b"1"[..]), "the first of two fields counts");
    assert_eq!(entries[0].meta.as_deref(), Some(&b"{}"[..]));
    assert_eq!((&*entries[0].token.consumer, entries[0].token.deliveries), ("w:1", 1));
    assert_eq!(entries[1].data, None);
}

#[tokio::test]
async fn an_abandoned_read_closes_its_connection_and_swallows_nothing() {
    let server = RedisServer::start();
    let mut world = World::on(server.config(), server.connect().await).await;
    world.work.block = Duration::from_secs(30);
    let mut worker = world.worker("w:1");
    let blocked = || async {
        let clients: String = world.redis(&["INFO", "clients"]).await;
        let line = clients.lines().find_map(|line| line.strip_prefix("blocked_clients:"));
        line.and_then(|count| count.trim().parse::<u64>().ok()).expect("the server counts blocked clients")
    };
    {
        let reading = worker.streams.read(1);
        tokio::pin!(reading);
        tokio::select! {
            answer = &mut reading => panic!("there is nothing to read: {answer:?}"),
            () = eventually("the read blocks", || async { (blocked().await == 1).then_some(()) }) => {}
        }
    }
    eventually("the connection is closed", || async { (blocked().await == 0).then_some(()) }).await;
    let entry = world.submit(ITEM).await;
    assert_eq!(world.pending().await, 0, "nobody swallowed the entry");
    let entries = worker.streams.read(1).await.expect("an answer");
    assert_eq!((&entries[0].entry, worker.streams.connects()), (&entry, 2));
}

#[tokio::test]
async fn a_read_that_is_never_answered_ends_and_its_entry_is_found_again() {
    let mut world = World::new().await;
    world.work.block = Duration::from_millis(20);
    let proxy = Proxy::to(shared().port()).await;
    let direct = world.redis.clone();
    world.redis = RedisConfig { url: proxy.url(), command_timeout: Duration::from_millis(200), ..direct.clone() };
    let mut worker = world.worker("w:1");
    assert!(worker.streams.read(1).await.expect("everything passes").is_empty());

    proxy.swallow_answers();
    let entry = world.submit(ITEM).await;
    let error = worker.streams.read(1).await.expect_err("no answer comes");
    assert!(matches!(error, RedisError::TimedOut { .. }), "{error:?}");
    proxy.heal();
    assert!(worker.streams.read(1).await.expect("an answer").is_empty(), "the entry was delivered to us, unseen");
    assert_eq!(worker.streams.connects(), 2, "the silent connection was left");
    world.redis = direct;
    let found = world.worker("w:1").leases.stranded(&world.stream, &[], 5).await.expect("an answer");
    assert_eq!(found.iter().map(|found| &found.entry).collect::<Vec<_>>(), [&entry]);
}
