//! The hold and take scripts: renewing, handing back, taking over.

use std::sync::Arc;
use std::time::Duration;

use da_node_executor::clients::redis::{
    Held, Leases, Link, RELEASED, RawEntry, RedisError, Renewal, Settled, Takeover,
};
use da_node_executor::config::RedisConfig;
use da_node_executor::domain::ids::EntryId;
use da_node_executor::domain::work::Delivery;

use super::{ALL, GROUP, ITEM, World};
use crate::harness::proxy::Proxy;
use crate::harness::redis::shared;

fn held(delivery: &Delivery) -> Held {
    Held { stream: Arc::clone(&delivery.stream), entry: delivery.entry.clone(), deliveries: delivery.token.deliveries }
}

/// How long the owner has been silent.
async fn idle(world: &World, entry: &EntryId) -> u64 {
    let words = ["XPENDING", &world.stream, GROUP, entry.as_str(), entry.as_str(), "1"];
    let lines: Vec<(String, String, u64, u64)> = world.redis(&words).await;
    lines[0].2
}

#[tokio::test]
async fn a_renewed_lease_begins_anew_and_the_count_stays() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.silence(&delivery.entry, "w:1").await;
    assert!(idle(&world, &delivery.entry).await >= 3_600_000);
    assert_eq!(worker.leases.renew(&[held(&delivery)]).await.expect("an answer"), [Renewal::Kept]);
    assert!(idle(&world, &delivery.entry).await < 60_000);
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from("w:1"), 1)));
}

#[tokio::test]
async fn a_renewal_tells_each_entry_apart_and_steals_nothing() {
    let world = World::new().await;
    for _ in 0..120 {
        world.submit(r#"{"graph_id":"g","node_id":"n"}"#).await;
    }
    let mut worker = world.worker("w:1");
    let entries = worker.streams.read(120).await.expect("the stream can be read");
    let deliveries: Vec<_> = entries.into_iter().map(super::delivery).collect();
    let all: Vec<Held> = deliveries.iter().map(|delivery| held(delivery)).collect();
    world.steal(&deliveries[3], "w:2").await;
    world.redis::<()>(&["XDEL", &world.stream, all[70].entry.as_str()]).await;
    world.redis::<()>(&["XACK", &world.stream, GROUP, all[119].entry.as_str()]).await;
    let answers = worker.leases.renew(&all).await.expect("an answer");
    let lost: Vec<usize> = (0..120).filter(|&at| answers[at] == Renewal::Lost).collect();
    assert_eq!(lost, [3, 70, 119]);
    assert_eq!(world.owner(&all[3].entry).await, Some((String::from("w:2"), 2)));
}

#[tokio::test]
async fn without_a_group_every_lease_is_lost() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.redis::<()>(&["XGROUP", "DESTROY", &world.stream, GROUP]).await;
    assert_eq!(worker.leases.renew(&[held(&delivery)]).await.expect("an answer"), [Renewal::Lost]);
    world.redis::<()>(&["DEL", &world.stream]).await;
    assert_eq!(worker.leases.renew(&[held(&delivery)]).await.expect("an answer"), [Renewal::Lost]);
    assert!(worker.leases.renew(&[]).await.expect("an answer").is_empty());
}

#[tokio::test]
async fn what_is_handed_back_is_taken_at_once_and_counts_no_crash() {
    let world = World::new().await;
    let (first, delivery) = world.worker_with("w:1", ITEM).await;
    assert_eq!(first.leases.hand_back(&[held(&delivery)]).await.expect("an answer"), [Renewal::Kept]);
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from(RELEASED), 1)));
    assert!(idle(&world, &delivery.entry).await >= 60_000, "it looks expired to whoever goes by that alone");
    assert_eq!(first.leases.hand_back(&[held(&delivery)]).await.expect("an answer"), [Renewal::Lost]);

    let second = world.worker("w:2");
    let taken = second.leases.claim(&world.stream, &[], 10, Takeover::Released).await.expect("an answer");
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].token.deliveries, taken[0].crashes), (2, 0));
    assert_eq!(taken[0].data.as_deref(), Some(ITEM.as_bytes()));
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from("w:2"), 2)));
    assert_eq!(first.settle(&delivery).await.expect("an answer"), Settled::Lost);
}

#[tokio::test]
async fn a_dead_consumers_work_is_claimed_once_and_counts_a_crash() {
    let world = World::new().await;
    let (_dead, delivery) = world.worker_with("w:1", ITEM).await;
    world.silence(&delivery.entry, "w:1").await;
    let (second, third) = (world.worker("w:2"), world.worker("w:3"));
    let early = second.leases.claim(&world.stream, &[], 10, Takeover::Released).await.expect("an answer");
    assert!(early.is_empty(), "expired leases were not asked for");

    let claim = |worker: &super::Worker| {
        let (leases, stream) = (worker.leases.clone(), Arc::clone(&world.stream));
        async move { leases.claim(&stream, &[], 10, ALL).await.expect("an answer") }
    };
    let (by_second, by_third) = tokio::join!(claim(&second), claim(&third));
    assert_eq!(by_second.len() + by_third.len(), 1, "exactly one has it");
    let taken = by_second.into_iter().chain(by_third).next().expect("one has it");
    assert_eq!((taken.crashes, taken.token.deliveries), (1, 2));

    // The next owner dies as well.
    world.silence(&delivery.entry, &taken.token.consumer).await;
    let fourth = world.worker("w:4");
    let again = claim(&fourth).await.pop().expect("it expired again");
    assert_eq!((again.crashes, again.token.deliveries), (2, 3));
    let crashes = world.keys.crashes(&world.stream);
    assert!(world.ttl(&crashes).await > 0, "counts of entries that others delete go by themselves");
    let settled = fourth.settle(&super::delivery(again)).await.expect("an answer");
    assert_eq!(settled, Settled::DoneStateGone);
    assert!(!world.redis::<bool>(&["EXISTS", &crashes]).await, "the count has served");
}

#[tokio::test]
async fn a_live_lease_is_left_alone() {
    let world = World::new().await;
    let (_owner, delivery) = world.worker_with("w:1", ITEM).await;
    let taken = world.worker("w:2").leases.claim(&world.stream, &[], 10, ALL).await.expect("an answer");
    assert!(taken.is_empty());
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from("w:1"), 1)));
}

#[tokio::test]
async fn suspects_are_taken_one_at_a_time_and_first_timers_all_at_once() {
    let world = World::new().await;
    for _ in 0..6 {
        world.submit(ITEM).await;
    }
    let entries = world.worker("w:1").streams.read(6).await.expect("the stream can be read");
    let crashes = world.keys.crashes(&world.stream);
    for (at, entry) in entries.iter().enumerate() {
        world.silence(&entry.entry, "w:1").await;
        if at % 2 == 0 {
            world.redis::<()>(&["HSET", &crashes, entry.entry.as_str(), "1"]).await;
        }
    }
    let worker = world.worker("w:2");
    let taken = async |suspects: usize, limit: usize| {
        let takeover = Takeover::Expired { suspects };
        let taken = worker.leases.claim(&world.stream, &[], limit, takeover).await.expect("an answer");
        let at = |taken: &RawEntry| entries.iter().position(|entry| entry.entry == taken.entry).expect("one of ours");
        taken.iter().map(at).collect::<Vec<_>>()
    };
    assert_eq!(taken(0, 2).await, [1, 3], "suspects take nobody's place");
    assert_eq!(taken(1, 10).await, [0, 5]);
    assert_eq!(taken(0, 10).await, [0; 0]);
    assert_eq!(taken(usize::MAX, 10).await, [2, 4]);
}

#[tokio::test]
async fn what_runs_here_is_passed_over_however_much_it_is() {
    let world = World::new().await;
    for _ in 0..300 {
        world.submit(ITEM).await;
    }
    let entries = world.worker("w:1").streams.read(300).await.expect("the stream can be read");
    let entries: Vec<EntryId> = entries.into_iter().map(|entry| entry.entry).collect();
    assert_eq!(entries.len(), 300);
    for entry in &entries {
        world.silence(entry, "w:1").await;
    }
    let worker = world.worker("w:2");
    let taken = worker.leases.claim(&world.stream, &entries[..290], 4, ALL).await.expect("an answer");
    let taken: Vec<_> = taken.into_iter().map(|entry| entry.entry).collect();
    assert_eq!(taken, entries[290..294]);
}

#[tokio::test]
async fn places_of_deleted_entries_are_cleared_away() {
    let world = World::new().await;
    let (_dead, delivery) = world.worker_with("w:1", ITEM).await;
    world.silence(&delivery.entry, "w:1").await;
    let crashes = world.keys.crashes(&world.stream);
    world.redis::<()>(&["HSET", &crashes, delivery.entry.as_str(), "1"]).await;
    world.redis::<()>(&["XDEL", &world.stream, delivery.entry.as_str()]).await;
    assert_eq!(world.pending().await, 1);
    let taken = world.worker("w:2").leases.claim(&world.stream, &[], 10, ALL).await.expect("an answer");
    assert!(taken.is_empty());
    assert_eq!(world.pending().await, 0);
    assert!(!world.redis::<bool>(&["EXISTS", &crashes]).await, "its crashes are forgotten");
}

/// Leases of `consumer` behind a proxy where `words` are done before each answer but the first `spared` ones arrives.
async fn overtaken(world: &World, consumer: &str, spared: usize, words: &[&str]) -> (Leases, Proxy) {
    let proxy = Proxy::to(shared().port()).await;
    let through = RedisConfig { url: proxy.url(), ..world.redis.clone() };
    let link = Link::new(&through).expect("an address");
    link.ping().await.expect("everything passes");
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    proxy.overtake_answers(spared, world.raw.clone(), command);
    (world.worker_by(consumer, &link).leases, proxy)
}

#[tokio::test]
async fn a_lease_that_is_renewed_in_the_last_moment_is_left_alone() {
    let world = World::new().await;
    let (_owner, delivery) = world.worker_with("w:1", ITEM).await;
    let entry = delivery.entry.as_str();
    world.silence(&delivery.entry, "w:1").await;
    // The look for entries handed back has its answer, the look for expired leases is overtaken.
    let renew = ["XCLAIM", &world.stream, GROUP, "w:1", "0", entry, "JUSTID"];
    let (leases, _proxy) = overtaken(&world, "w:2", 1, &renew).await;
    let taken = leases.claim(&world.stream, &[], 1, ALL).await.expect("an answer");
    assert!(taken.is_empty());
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from("w:1"), 1)));
}

#[tokio::test]
async fn an_entry_that_is_handed_back_in_the_last_moment_counts_no_crash() {
    let world = World::new().await;
    let (_owner, delivery) = world.worker_with("w:1", ITEM).await;
    world.silence(&delivery.entry, "w:1").await;
    let entry = delivery.entry.as_str();
    let release = ["XCLAIM", &world.stream, GROUP, RELEASED, "0", entry, "IDLE", "3600000", "JUSTID"];
    let (leases, _proxy) = overtaken(&world, "w:2", 0, &release).await;
    let taken = leases.claim(&world.stream, &[], 1, ALL).await.expect("an answer");
    assert!(taken.is_empty(), "the next sweep takes it as handed back");
    let taken = leases.claim(&world.stream, &[], 1, ALL).await.expect("an answer");
    assert_eq!(taken.iter().map(|entry| entry.crashes).collect::<Vec<_>>(), [0]);
}

#[tokio::test]
async fn what_is_ours_no_more_is_not_stranded() {
    let world = World::new().await;
    let (_owner, delivery) = world.worker_with("w:1", ITEM).await;
    let entry = delivery.entry.as_str();
    let release = ["XCLAIM", &world.stream, GROUP, RELEASED, "0", entry, "JUSTID"];
    let (leases, _proxy) = overtaken(&world, "w:1", 0, &release).await;
    let found = leases.stranded(&world.stream, &[], 1).await.expect("an answer");
    assert!(found.is_empty());
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from(RELEASED), 1)));
}

#[tokio::test]
async fn our_own_expired_lease_is_no_crash_of_another() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.silence(&delivery.entry, "w:1").await;
    let taken = worker.leases.claim(&world.stream, &[], 1, ALL).await.expect("an answer");
    assert!(taken.is_empty(), "it is found as stranded, if it does not run here");
}

#[tokio::test]
async fn entries_whose_delivery_was_lost_are_found_and_count_no_crash() {
    let world = World::new().await;
    let (worker, running) = world.worker_with("w:1", ITEM).await;
    let stranded = world.submit(ITEM).await;
    // Somebody read under our name, and the answer never came here.
    let read = ["XREADGROUP", "GROUP", GROUP, "w:1", "COUNT", "1", "STREAMS", &world.stream, ">"];
    world.redis::<redis::Value>(&read).await;
    let running = [running.entry.clone()];
    let found = worker.leases.stranded(&world.stream, &running, 10).await.expect("an answer");
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].entry, found[0].token.deliveries, found[0].crashes), (&stranded, 2, 0));
    assert_eq!(world.owner(&running[0]).await, Some((String::from("w:1"), 1)), "what runs was not touched");
}

#[tokio::test]
async fn a_wrong_type_of_the_crash_counts_is_named_and_nothing_is_taken() {
    let world = World::new().await;
    let (_dead, delivery) = world.worker_with("w:1", ITEM).await;
    world.silence(&delivery.entry, "w:1").await;
    let crashes = world.keys.crashes(&world.stream);
    world.spoil(&crashes).await;
    let error = world.worker("w:2").leases.claim(&world.stream, &[], 10, ALL).await.expect_err("a list is no hash");
    assert!(matches!(&error, RedisError::WrongType { key: Some(key) } if *key == crashes), "{error}");
    assert_eq!(world.owner(&delivery.entry).await, Some((String::from("w:1"), 1)));
}

#[tokio::test]
async fn a_crash_count_that_is_no_number_begins_anew_and_the_takeover_goes_on() {
    let world = World::new().await;
    let (_dead, first) = world.worker_with("w:1", ITEM).await;
    let second = world.worker_with("w:1", ITEM).await.1;
    for delivery in [&first, &second] {
        world.silence(&delivery.entry, "w:1").await;
    }
    let crashes = world.keys.crashes(&world.stream);
    world.redis::<()>(&["HSET", &crashes, first.entry.as_str(), "many"]).await;
    let taken = world.worker("w:2").leases.claim(&world.stream, &[], 10, ALL).await.expect("an answer");
    let counts: Vec<_> = taken.iter().map(|entry| (&entry.entry, entry.crashes)).collect();
    assert_eq!(counts, [(&first.entry, 1), (&second.entry, 1)]);
    assert_eq!(world.redis::<String>(&["HGET", &crashes, first.entry.as_str()]).await, "1");
}

#[tokio::test]
async fn a_work_stream_of_another_type_has_no_leases_and_is_named() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    world.spoil(&world.stream).await;
    assert_eq!(worker.leases.renew(&[held(&delivery)]).await.expect("an answer"), [Renewal::Lost]);
    assert_eq!(worker.leases.hand_back(&[held(&delivery)]).await.expect("an answer"), [Renewal::Lost]);
    for answer in
        [worker.leases.claim(&world.stream, &[], 1, ALL).await, worker.leases.stranded(&world.stream, &[], 1).await]
    {
        assert!(matches!(answer, Err(RedisError::WrongType { .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn a_takeover_without_a_group_says_so() {
    let world = World::new().await;
    world.redis::<()>(&["XGROUP", "DESTROY", &world.stream, GROUP]).await;
    let worker = world.worker("w:1");
    for answer in
        [worker.leases.claim(&world.stream, &[], 1, ALL).await, worker.leases.stranded(&world.stream, &[], 1).await]
    {
        assert!(matches!(answer, Err(RedisError::NoGroup)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_short_lease_runs_out_by_the_servers_clock() {
    let world = World::new().await;
    let (_dead, delivery) = world.worker_with("w:1", ITEM).await;
    let link = Link::new(&world.redis).expect("an address");
    let lease = Duration::from_millis(30);
    let leases = Leases::new(link, world.keys.clone(), GROUP, Arc::from("w:2"), lease, [Arc::clone(&world.stream)]);
    let taken = crate::harness::eventually("the lease runs out", || async {
        leases.claim(&world.stream, &[], 1, ALL).await.expect("an answer").pop()
    })
    .await;
    assert_eq!(taken.entry, delivery.entry);
}
