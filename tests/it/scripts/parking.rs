//! The scripts of parking: an entry that leaves its stream to wait, and movers that bring it back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use da_node_executor::clients::redis::{Moved, RedisError, Settled};
use da_node_executor::domain::work::{Delivery, Meta};
use da_node_executor::ports::{Opened, Wanted};

use super::{GROUP, ITEM, Worker, World};
use crate::harness::eventually;

/// A time that no test comes to.
const LATER: Duration = Duration::from_secs(3600);

fn meta(delivery: &Delivery, attempt: u32) -> Meta {
    let origin = delivery.meta.origin.clone().unwrap_or_else(|| delivery.entry.to_string());
    Meta {
        origin: Some(origin),
        attempt,
        crashes: delivery.crashes,
        redriven: delivery.meta.redriven,
        waits: std::collections::BTreeMap::from([(String::from("turn 1"), 2)]),
        since: Some("2026-01-02T03:04:05Z".parse().expect("a time")),
        ..Meta::default()
    }
}

async fn park(worker: &Worker, delivery: &Delivery, wait: Duration) -> Settled {
    worker.parking.park(delivery, &meta(delivery, 2), Instant::now() + wait).await.expect("an answer")
}

async fn opened(worker: &Worker, delivery: &Arc<Delivery>) -> Opened {
    worker.store.open(delivery, &Wanted::default()).await.expect("an answer").0
}

/// A worker with an item whose run it has opened; the state expires.
async fn running(world: &World) -> (Worker, Arc<Delivery>) {
    world.redis::<()>(&["HSET", &world.key("state:g"), "status", "running"]).await;
    world.redis::<()>(&["PEXPIRE", &world.key("state:g"), "172800000"]).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    assert!(matches!(opened(&worker, &delivery).await, Opened::Ready { .. }));
    (worker, delivery)
}

async fn record(world: &World) -> Option<String> {
    world.redis(&["HGET", &world.key("done:g"), "n\nr"]).await
}

async fn bring_back(world: &World, worker: &Worker) -> Moved {
    worker.parking.bring_back(&world.stream, 100).await.expect("an answer")
}

#[tokio::test]
async fn parked_work_leaves_the_stream_and_comes_back_under_its_first_id_when_it_is_due() {
    let world = World::new().await;
    let (mut worker, ours) = running(&world).await;
    let (parked, bodies) = (world.keys.parked(&world.stream), world.keys.parked_bodies(&world.stream));
    world.redis::<()>(&["HSET", &world.key("journal:g:n:r"), "header", "x"]).await;
    world.redis::<()>(&["PEXPIRE", &world.key("journal:g:n:r"), "1000000"]).await;
    world.redis::<()>(&["HSET", &world.keys.crashes(&world.stream), ours.entry.as_str(), "1"]).await;
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Done);
    assert_eq!((world.pending().await, world.length(&world.stream).await), (0, 0));
    assert!(!world.redis::<bool>(&["EXISTS", &world.keys.crashes(&world.stream)]).await);
    let due: f64 = world.redis(&["ZSCORE", &parked, ours.entry.as_str()]).await;
    let (seconds, _): (f64, u64) = world.redis(&["TIME"]).await;
    assert!((due / 1000.0 - seconds - 3600.0).abs() < 60.0, "{due} is in an hour by the server's clock");
    assert_eq!(record(&world).await, Some(format!("p\n{}\nw:1\n1", ours.work_id)));
    for key in ["state:g", "done:g", "journal:g:n:r"] {
        assert_eq!(world.ttl(&world.key(key)).await, -1, "{key} does not expire while the node waits");
    }
    assert_eq!(bring_back(&world, &worker).await, Moved { waiting: 1, ..Moved::default() }, "it is not due");

    world.redis::<()>(&["ZADD", &parked, "1", ours.entry.as_str()]).await;
    assert_eq!(bring_back(&world, &worker).await, Moved { waiting: 1, found: 1, returned: 1, bodiless: 0 });
    assert_eq!(bring_back(&world, &worker).await, Moved::default());
    let again = worker.read_one().await;
    assert_eq!((again.work_id.clone(), &again.meta), (ours.work_id.clone(), &meta(&ours, 2)));
    assert_ne!(again.entry, ours.entry);
    assert_eq!(record(&world).await, Some(format!("r\n{}\n{}\n{}", ours.work_id, world.stream, again.entry)));
    assert!(!world.redis::<bool>(&["EXISTS", &parked, &bodies]).await, "nothing is left behind");
    // The state had two days to live, which is more than it would be given now.
    assert!(world.ttl(&world.key("state:g")).await > 172_000_000);
    assert!(world.ttl(&world.key("done:g")).await > 0 && world.ttl(&world.key("journal:g:n:r")).await > 0);
    assert!(matches!(opened(&worker, &again).await, Opened::Ready { .. }));
    assert_eq!(worker.settle(&again).await.expect("an answer"), Settled::Done);
    let fields: HashSet<String> = world.redis(&["HKEYS", &world.key("done:g")]).await;
    assert_eq!(fields, HashSet::from(["n\nr".into(), "seq".into()]));
}

#[tokio::test]
async fn a_look_through_what_waits_passes_nothing_over_whatever_comes_and_goes() {
    const STAY: usize = 2000;
    let world = World::new().await;
    let worker = world.worker("w:1");
    let (parked, bodies) = (world.keys.parked(&world.stream), world.keys.parked_bodies(&world.stream));
    let mut put = redis::pipe();
    for at in 0..STAY {
        // Many are due at one moment, as the nodes of a graph with a deadline are.
        put.cmd("ZADD").arg(&parked).arg(at / 900).arg(format!("{at}-0")).ignore();
        put.cmd("HSET").arg(&bodies).arg(format!("{at}-0:run")).arg(format!("g\nn{at}\nr")).ignore();
    }
    put.exec_async(&mut world.raw.clone()).await.expect("the server takes it");
    let (mut from, mut seen, mut looks) = (0, HashSet::new(), 0);
    loop {
        let (next, page) = worker.parking.waiting(&world.stream, from, 100).await.expect("an answer");
        seen.extend(page.iter().filter_map(|waiting| waiting.node.clone()).map(|(_, node)| node.to_string()));
        looks += 1;
        // What is due first comes and goes, before and behind the place of the look.
        let mut change = redis::pipe();
        for at in 0..50 {
            change.cmd("ZADD").arg(&parked).arg(0).arg(format!("{looks}-{}", at + 1)).ignore();
            change.cmd("ZREM").arg(&parked).arg(format!("{}-{}", looks - 1, at + 1)).ignore();
        }
        change.exec_async(&mut world.raw.clone()).await.expect("the server takes it");
        from = next;
        if from == 0 {
            break;
        }
    }
    assert_eq!((seen.len(), looks > 5), (STAY, true), "{looks} looks");
    assert!(worker.parking.count(&world.stream).await.expect("an answer") >= STAY as u64);
}

#[tokio::test]
async fn work_may_wait_again_and_again_under_one_id() {
    let world = World::new().await;
    let (mut worker, first) = running(&world).await;
    let mut ours = Arc::clone(&first);
    for _ in 0..3 {
        assert_eq!(park(&worker, &ours, Duration::ZERO).await, Settled::Done);
        assert_eq!(bring_back(&world, &worker).await.returned, 1);
        ours = worker.read_one().await;
        assert_eq!((&ours.work_id, &ours.item.run_id), (&first.work_id, &first.item.run_id));
        assert!(matches!(opened(&worker, &ours).await, Opened::Ready { .. }));
    }
    // A look that found it earlier does not bring it back before its new time.
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Done);
    assert_eq!(bring_back(&world, &worker).await.returned, 0);
}

#[tokio::test]
async fn parking_again_after_a_lost_answer_says_so_and_changes_nothing() {
    let world = World::new().await;
    let (mut worker, ours) = running(&world).await;
    assert_eq!(park(&worker, &ours, Duration::ZERO).await, Settled::Done);
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Again);
    let held: String = world.redis(&["HGET", &world.key("done:g"), "held"]).await;
    assert_eq!(held, "1");
    assert_eq!(bring_back(&world, &worker).await.returned, 1, "the second asking did not move the moment");
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Lost, "by now it runs again");
    worker.read_one().await;
}

#[tokio::test]
async fn what_is_not_ours_is_not_parked() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    world.steal(&ours, "w:2").await;
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Lost);
    assert_eq!(world.length(&world.stream).await, 1);
    assert!(!world.redis::<bool>(&["EXISTS", &world.keys.parked(&world.stream)]).await);

    // The new owner parks it: that is no repetition of ours.
    let mut theirs = Delivery::clone(&ours);
    theirs.token.consumer = Arc::from("w:2");
    theirs.token.deliveries = 2;
    assert_eq!(park(&world.worker("w:2"), &theirs, LATER).await, Settled::Done);
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Lost);
}

#[tokio::test]
async fn an_entry_that_somebody_deleted_has_nothing_to_come_back_to() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    world.redis::<()>(&["XDEL", &world.stream, ours.entry.as_str()]).await;
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Lost);
    assert!(!world.redis::<bool>(&["EXISTS", &world.keys.parked(&world.stream)]).await);
}

#[tokio::test]
async fn a_run_that_another_entry_has_is_dropped_instead_of_parked() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    let other = world.submit(ITEM).await;
    let theirs = format!("r\n{0}/{other}\n{0}\n{other}", world.stream);
    world.redis::<()>(&["HSET", &world.key("done:g"), "n\nr", &theirs]).await;
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Duplicate);
    assert_eq!((world.pending().await, world.length(&world.stream).await), (0, 1));
    assert_eq!(record(&world).await, Some(theirs));
    assert!(!world.redis::<bool>(&["EXISTS", &world.keys.parked(&world.stream)]).await);
}

#[tokio::test]
async fn duplicates_of_parked_work_are_dropped() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    assert_eq!(park(&worker, &ours, LATER).await, Settled::Done);
    let (other, copy) = world.worker_with("w:2", ITEM).await;
    assert!(matches!(opened(&other, &copy).await, Opened::Duplicate));
    assert_eq!(world.length(&world.stream).await, 0);
    world.redis::<()>(&["ZADD", &world.keys.parked(&world.stream), "1", ours.entry.as_str()]).await;
    assert_eq!(bring_back(&world, &worker).await.returned, 1);
    world.submit(ITEM).await;
    let mut third = world.worker("w:3");
    let (back, copy) = (third.read_one().await, third.read_one().await);
    assert!(matches!(opened(&third, &copy).await, Opened::Duplicate), "the one that is back has the run");
    assert!(matches!(opened(&third, &back).await, Opened::Ready { .. }));
}

#[tokio::test]
async fn a_key_of_another_type_is_named_before_anything_is_written() {
    for name in ["done", "parked", "parked-bodies"] {
        let world = World::new().await;
        let (worker, ours) = running(&world).await;
        let of = if name == "done" { "g" } else { &world.stream };
        let key = world.key(&format!("{name}:{of}"));
        world.spoil(&key).await;
        assert_eq!(park(&worker, &ours, LATER).await, Settled::WrongType { key: key.clone() });
        world.assert_untouched(&ours).await;
        if name != "done" {
            let error = worker.parking.bring_back(&world.stream, 1).await.expect_err("it is a list");
            assert!(matches!(&error, RedisError::WrongType { key: Some(found) } if *found == key), "{error}");
        }
    }
    // The stream itself is looked at when there is something to bring back.
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    assert_eq!(park(&worker, &ours, Duration::ZERO).await, Settled::Done);
    world.spoil(&world.stream).await;
    let error = worker.parking.bring_back(&world.stream, 1).await.expect_err("it is a list");
    assert!(matches!(&error, RedisError::WrongType { key: Some(found) } if *found == *world.stream), "{error}");
    assert_eq!(world.redis::<u64>(&["ZCARD", &world.keys.parked(&world.stream)]).await, 1, "it waits on");
}

#[tokio::test]
async fn work_comes_back_although_its_records_or_its_group_are_gone() {
    let world = World::new().await;
    let (mut worker, ours) = running(&world).await;
    assert_eq!(park(&worker, &ours, Duration::ZERO).await, Settled::Done);
    world.spoil(&world.key("done:g")).await;
    world.redis::<()>(&["DEL", &world.stream]).await;
    assert_eq!(bring_back(&world, &worker).await.returned, 1);
    world.redis::<()>(&["DEL", &world.key("done:g")]).await;
    worker.streams.ensure_groups().await.expect("the groups can be made");
    let again = worker.read_one().await;
    assert!(matches!(opened(&worker, &again).await, Opened::Ready { .. }));
}

#[tokio::test]
async fn work_without_a_body_is_told_and_holds_nothing_up() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    let bodies = world.keys.parked_bodies(&world.stream);
    let first = ours.entry.as_str();
    assert_eq!(park(&worker, &ours, Duration::ZERO).await, Settled::Done);
    world.redis::<()>(&["HDEL", &bodies, first]).await;
    world.redis::<()>(&["ZADD", &world.keys.parked(&world.stream), "1", "7-0"]).await;
    assert_eq!(bring_back(&world, &worker).await, Moved { waiting: 2, found: 2, returned: 0, bodiless: 2 });
    assert_eq!(world.length(&world.stream).await, 0);
    assert!(world.ttl(&world.key("state:g")).await > 0, "the state expires again");
    let (other, copy) = world.worker_with("w:2", ITEM).await;
    assert!(matches!(opened(&other, &copy).await, Opened::Ready { .. }), "the identity can be run anew");
}

#[tokio::test]
async fn a_state_expires_again_only_after_the_last_of_its_parked_nodes_is_back() {
    let world = World::new().await;
    let state = world.key("state:g");
    let (worker, ours) = running(&world).await;
    let (second, theirs) = world.worker_with("w:2", r#"{"graph_id":"g","node_id":"m","run_id":"r"}"#).await;
    assert!(matches!(opened(&second, &theirs).await, Opened::Ready { .. }));
    assert_eq!(park(&worker, &ours, Duration::ZERO).await, Settled::Done);
    assert_eq!(park(&second, &theirs, LATER).await, Settled::Done);
    assert_eq!(bring_back(&world, &worker).await.returned, 1);
    assert_eq!((world.ttl(&state).await, world.ttl(&world.key("done:g")).await), (-1, -1), "the other still waits");
    world.redis::<()>(&["ZADD", &world.keys.parked(&world.stream), "1", theirs.entry.as_str()]).await;
    assert_eq!(bring_back(&world, &worker).await.returned, 1);
    assert!(world.ttl(&state).await > 0 && world.ttl(&world.key("done:g")).await > 0);
}

#[tokio::test]
async fn a_state_that_never_expires_goes_on_so() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    world.redis::<()>(&["PERSIST", &world.key("state:g")]).await;
    assert_eq!(park(&worker, &ours, Duration::ZERO).await, Settled::Done);
    assert_eq!(bring_back(&world, &worker).await.returned, 1);
    assert_eq!(world.ttl(&world.key("state:g")).await, -1);
}

#[tokio::test]
async fn eight_movers_bring_each_of_five_hundred_pieces_of_work_back_once() {
    const ITEMS: usize = 500;
    let world = World::new().await;
    let mut worker = world.worker("w:1");
    for node in 0..ITEMS {
        world.submit(&format!(r#"{{"graph_id":"g{}","node_id":"n{node}","run_id":"r"}}"#, node % 7)).await;
    }
    let mut first = HashSet::new();
    while first.len() < ITEMS {
        for raw in worker.streams.read(100).await.expect("the stream can be read") {
            let ours = super::delivery(raw);
            // They become due while the movers already look.
            let wait = Duration::from_millis(fastrand::u64(0..300));
            assert_eq!(park(&worker, &ours, wait).await, Settled::Done);
            first.insert(ours.work_id.to_string());
        }
    }
    let movers = (0..8).map(|number| {
        let parking = world.worker(&format!("m:{number}")).parking;
        let stream = Arc::clone(&world.stream);
        async move {
            let mut returned = 0;
            eventually("nothing waits any more", async || {
                let moved = parking.bring_back(&stream, 40).await.expect("an answer");
                assert_eq!(moved.bodiless, 0);
                returned += moved.returned;
                (moved.waiting == 0).then_some(())
            })
            .await;
            returned
        }
    });
    let returned: u64 = futures_util::future::join_all(movers).await.into_iter().sum();
    assert_eq!(returned, ITEMS as u64);
    let mut back: HashMap<String, usize> = HashMap::new();
    while back.values().sum::<usize>() < ITEMS {
        let entries = worker.streams.read(100).await.expect("the stream can be read");
        assert!(!entries.is_empty(), "some did not come back: {} of {ITEMS}", back.len());
        for raw in entries {
            *back.entry(super::delivery(raw).work_id.to_string()).or_default() += 1;
        }
    }
    assert_eq!(world.length(&world.stream).await, ITEMS as u64, "each once");
    assert_eq!(back.keys().cloned().collect::<HashSet<_>>(), first);
    assert!(!world.redis::<bool>(&["EXISTS", &world.keys.parked_bodies(&world.stream)]).await);
    let pending: Vec<redis::Value> = world.redis(&["XPENDING", &world.stream, GROUP, "-", "+", "1000"]).await;
    assert_eq!(pending.len(), ITEMS);
}
