//! What is left behind by processes that are gone and by people who delete things, and how it is cleaned up.

use std::time::{Duration, Instant};

use da_node_executor::clients::redis::{EventLog, Link, Mended, RELEASED, Settled, Takeover};
use da_node_executor::domain::event::EventType;
use da_node_executor::domain::work::Meta;

use super::{GROUP, ITEM, World};
use crate::harness::eventually;

async fn consumers(world: &World) -> Vec<String> {
    let consumers: Vec<std::collections::HashMap<String, redis::Value>> =
        world.redis(&["XINFO", "CONSUMERS", &world.stream, GROUP]).await;
    let mut names: Vec<String> =
        consumers.iter().map(|facts| redis::from_redis_value(facts["name"].clone()).expect("a name")).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn silent_consumers_that_hold_nothing_are_removed_and_no_others() {
    let world = World::new().await;
    for name in ["gone:1", "gone:2", "own:1", RELEASED] {
        world.redis::<()>(&["XGROUP", "CREATECONSUMER", &world.stream, GROUP, name]).await;
    }
    let (dead, held) = world.worker_with("dead:1", ITEM).await;
    let (giver, given) = world.worker_with("giver:1", r#"{"graph_id":"g","node_id":"m","run_id":"r"}"#).await;
    let entry = given.entry.clone();
    let given = da_node_executor::clients::redis::Held { stream: world.stream.clone(), entry, deliveries: 1 };
    giver.leases.hand_back(&[given]).await.expect("an answer");
    let own = world.worker("own:1");
    let none = own.upkeep.reap(&world.stream, Duration::from_secs(3600)).await.expect("an answer");
    assert_eq!(none, [""; 0], "nobody was silent for an hour");
    let gone = eventually("everybody was silent for a moment", async || {
        let gone = own.upkeep.reap(&world.stream, Duration::from_millis(20)).await.expect("an answer");
        (!gone.is_empty()).then_some(gone)
    })
    .await;
    for name in &gone {
        assert!(["gone:1", "gone:2", "giver:1"].contains(&name.as_str()), "{name}");
    }
    eventually("those that hold nothing are gone", async || {
        own.upkeep.reap(&world.stream, Duration::from_millis(20)).await.expect("an answer");
        (consumers(&world).await == ["dead:1", "own:1", RELEASED]).then_some(())
    })
    .await;
    assert_eq!(world.pending().await, 2, "what was held is still there");
    assert_eq!(dead.settle(&held).await.expect("an answer"), Settled::DoneStateGone);
    let back = own.leases.claim(&world.stream, &[], 9, Takeover::Released).await.expect("an answer");
    assert_eq!(back.len(), 1, "what was handed back as well");
}

#[tokio::test]
async fn a_stream_without_a_group_has_no_consumers_to_remove() {
    let world = World::new().await;
    let worker = world.worker("w:1");
    let missing = world.key("missing");
    assert_eq!(worker.upkeep.reap(&missing, Duration::ZERO).await.expect("an answer"), [""; 0]);
    world.spoil(&missing).await;
    assert_eq!(worker.upkeep.reap(&missing, Duration::ZERO).await.expect("an answer"), [""; 0]);
}

#[tokio::test]
async fn the_halves_of_parked_work_are_put_together_again() {
    let world = World::new().await;
    let (parked, bodies) = (world.keys.parked(&world.stream), world.keys.parked_bodies(&world.stream));
    let mut worker = world.worker("w:1");
    let mut first = Vec::new();
    for node in ["whole", "timeless", "bodiless", "emptied"] {
        world.submit(&format!(r#"{{"graph_id":"g","node_id":"{node}","run_id":"r"}}"#)).await;
        let ours = worker.read_one().await;
        let meta = Meta { origin: Some(ours.entry.to_string()), ..Meta::default() };
        let later = Instant::now() + Duration::from_secs(3600);
        assert_eq!(worker.parking.park(&ours, &meta, later).await.expect("an answer"), Settled::Done);
        first.push(ours.entry.to_string());
    }
    assert_eq!(worker.upkeep.mend(&world.stream).await.expect("an answer"), Mended::default());
    world.redis::<()>(&["ZREM", &parked, &first[1]]).await;
    for at in [2, 3] {
        world.redis::<()>(&["HDEL", &bodies, &first[at]]).await;
    }
    world.redis::<()>(&["HDEL", &bodies, &format!("{}:run", first[3]), &format!("{}:meta", first[3])]).await;
    let mended = worker.upkeep.mend(&world.stream).await.expect("an answer");
    assert_eq!(mended, Mended { again: 1, lost: 2 });
    assert_eq!(worker.upkeep.mend(&world.stream).await.expect("an answer"), Mended::default());
    let moved = worker.parking.bring_back(&world.stream, 9).await.expect("an answer");
    assert_eq!((moved.waiting, moved.returned), (2, 1));
    assert_eq!(worker.read_one().await.item.node_id.as_str(), "timeless");
    let fields: u64 = world.redis(&["HLEN", &bodies]).await;
    assert_eq!(fields, 3, "the whole one waits on");
}

#[tokio::test]
async fn crashes_of_entries_that_are_gone_are_forgotten() {
    let world = World::new().await;
    let (worker, ours) = world.worker_with("w:1", ITEM).await;
    let crashes = world.keys.crashes(&world.stream);
    world.redis::<()>(&["HSET", &crashes, ours.entry.as_str(), "2", "1-0", "1", "2-0", "1", "no id", "1"]).await;
    assert_eq!(worker.upkeep.uncount(&world.stream).await.expect("an answer"), 2);
    let mut left: Vec<String> = world.redis(&["HKEYS", &crashes]).await;
    left.sort_unstable();
    assert_eq!(left, [ours.entry.as_str(), "no id"]);
    assert_eq!(worker.upkeep.uncount(&world.key("missing")).await.expect("an answer"), 0);
}

#[tokio::test]
async fn the_longest_terminal_stream_is_measured() {
    let world = World::new().await;
    let log = EventLog::new(Link::new(&world.redis).expect("an address"), world.keys.clone(), 100);
    assert_eq!(log.longest().await.expect("an answer"), 0);
    for (kind, entries) in [(EventType::NodeCompleted, 2), (EventType::NodeFailed, 5), (EventType::NodeStarted, 9)] {
        for _ in 0..entries {
            world.redis::<()>(&["XADD", &world.keys.events(kind), "*", "data", "{}"]).await;
        }
    }
    assert_eq!(log.longest().await.expect("an answer"), 5);
}
