//! The redrive script: the work of a dead letter back into its stream, once, or a reason why not.

use da_node_executor::clients::redis::{
    DeadLetter, DeadLetters, Link, RedisError, Redriven, Settled, Settlement, Span, StateError,
};
use da_node_executor::domain::event::{EventType, terminal_event_id};
use da_node_executor::ports::Wanted;
use redis::Value;

use super::{ITEM, World, letter, settlement};

fn letters(world: &World) -> DeadLetters {
    DeadLetters::new(Link::new(&world.redis).expect("an address"), world.keys.clone())
}

/// An item that was settled as poison, and its letter.
async fn poisoned(world: &World) -> DeadLetter {
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let mut poison = letter(ITEM.as_bytes().to_vec());
    poison.work_id = delivery.work_id.to_string();
    poison.ids = Some(delivery.item.known_ids());
    let settlement = Settlement { letter: Some(poison), ..settlement(&delivery) };
    let settled = worker.settler.settle(&settlement).await.expect("an answer");
    assert_eq!(settled, Settled::DoneStateGone);
    only(world).await
}

async fn only(world: &World) -> DeadLetter {
    let mut found = letters(world).read(&world.stream, Span::all()).await.expect("a walk");
    let mut page = found.next().await.expect("a page");
    assert_eq!(page.len(), 1);
    assert!(found.next().await.expect("a page").is_empty());
    page.remove(0)
}

async fn record(world: &World) -> Option<String> {
    world.redis(&["HGET", &world.key("done:g"), "n\nr"]).await
}

async fn put_record(world: &World, record: &str) {
    world.redis::<()>(&["HSET", &world.key("done:g"), "n\nr", record]).await;
}

#[tokio::test]
async fn retried_work_runs_again_under_its_name_and_ends_under_another_id() {
    let world = World::new().await;
    let dead = poisoned(&world).await;
    assert_eq!((dead.graph_id.as_deref(), dead.run_id.as_deref()), (Some("g"), Some("r")));
    assert!(record(&world).await.is_some_and(|record| record.starts_with("d\n")));
    let answer = letters(&world).retry(&dead).await.expect("an answer");
    let Redriven::Added(entry) = answer else { panic!("it was not added: {answer:?}") };
    assert_eq!((record(&world).await, world.length(&world.key_of_letters()).await), (None, 0));

    let mut worker = world.worker("w:2");
    let delivery = worker.read_one().await;
    assert_eq!((&delivery.entry, delivery.work_id.as_str()), (&entry, dead.work_id.as_str()));
    assert_eq!((delivery.crashes, delivery.meta.redriven), (0, 1));
    let error = worker.store.open(&delivery, &Wanted::default()).await.expect_err("there is no state");
    assert!(matches!(error, StateError::Missing { .. }), "the run is ours, only the state is missing: {error}");
    let settled = worker.settle(&delivery).await.expect("an answer");
    assert_eq!(settled, Settled::DoneStateGone, "an earlier end does not count any more");
    let ends = world.events(EventType::NodeCompleted).await;
    let ids: Vec<&str> = ends.iter().map(|(event, _)| event.as_str()).collect();
    let id = |redriven| format!(r#"{{"id":"{}"}}"#, terminal_event_id(&delivery.work_id, redriven));
    assert_eq!(ids, [id(0), id(1)]);
    assert_eq!((ends[0].1.as_str(), ends[1].1.as_str()), ("1", "2"));
}

#[tokio::test]
async fn many_people_who_retry_at_once_add_the_work_once() {
    let world = World::new().await;
    let dead = poisoned(&world).await;
    let letters = letters(&world);
    let answers = futures_util::future::join_all((0..20).map(|_| letters.retry(&dead))).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("an answer")).collect();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Redriven::Added(_))).count(), 1);
    assert_eq!(answers.iter().filter(|answer| **answer == Redriven::Gone).count(), 19);
    assert_eq!(world.length(&world.stream).await, 1);
}

#[tokio::test]
async fn each_return_is_counted() {
    let world = World::new().await;
    for redriven in 1..=2 {
        let dead = if redriven == 1 { poisoned(&world).await } else { only(&world).await };
        letters(&world).retry(&dead).await.expect("an answer");
        let mut worker = world.worker(&format!("w:r{redriven}"));
        let delivery = worker.read_one().await;
        assert_eq!(delivery.meta.redriven, redriven);
        let mut again = letter(ITEM.as_bytes().to_vec());
        again.work_id = delivery.work_id.to_string();
        again.meta = Some(serde_json::to_vec(&delivery.meta).expect("meta is JSON"));
        let settlement = Settlement { letter: Some(again), ..settlement(&delivery) };
        worker.settler.settle(&settlement).await.expect("an answer");
    }
}

#[tokio::test]
async fn what_was_cut_or_empty_or_is_gone_is_not_retried() {
    let world = World::new().await;
    let letters = letters(&world);
    for (data, expected) in [(vec![b'x'; 70_000], Redriven::Cut), (Vec::new(), Redriven::Empty)] {
        world.submit("").await;
        let mut worker = world.worker("w:1");
        let entry = worker.streams.read(1).await.expect("the stream can be read").pop().expect("an entry");
        let settled = worker.settler.dead_letter(&entry, &letter(data)).await.expect("an answer");
        assert_eq!(settled, Settled::Done);
        let dead = only(&world).await;
        assert_eq!(letters.retry(&dead).await.expect("an answer"), expected);
        assert_eq!(only(&world).await, dead, "the letter stays");
        assert_eq!(letters.delete(&world.stream, [dead.id.as_str()]).await.expect("an answer"), 1);
        assert_eq!(letters.retry(&dead).await.expect("an answer"), Redriven::Gone);
        assert_eq!(letters.delete(&world.stream, [dead.id.as_str()]).await.expect("an answer"), 0);
    }
    assert_eq!(letters.delete(&world.stream, []).await.expect("an answer"), 0);
    assert_eq!(world.length(&world.stream).await, 0);
}

#[tokio::test]
async fn a_run_that_another_execution_has_is_left_to_it() {
    let world = World::new().await;
    let dead = poisoned(&world).await;
    let alive = world.submit(ITEM).await;
    let taken = [
        format!("d\n{}/9-9\nw:3\n1\nevt", world.stream),
        format!("r\n{}/{alive}\n{}\n{alive}", world.stream, world.stream),
        format!("r\n{}\n{}\n{alive}", dead.work_id, world.stream),
        String::from("r\nother/1-0\nother\n1-0"),
        format!("p\n{}", dead.work_id),
        String::from("something else"),
    ];
    for record in taken {
        put_record(&world, &record).await;
        let answer = letters(&world).retry(&dead).await.expect("an answer");
        let by = record.lines().nth(1).unwrap_or_default();
        assert_eq!(answer, Redriven::Taken { by: String::from(by) }, "{record:?}");
        assert_eq!(self::record(&world).await, Some(record));
    }
    assert_eq!(world.length(&world.stream).await, 1);
    // A run whose entry is gone was nobody's.
    put_record(&world, &format!("r\n{}/1-1\n{}\n1-1", world.stream, world.stream)).await;
    let answer = letters(&world).retry(&dead).await.expect("an answer");
    assert!(matches!(answer, Redriven::Added(_)), "{answer:?}");
}

#[tokio::test]
async fn a_wrong_type_is_named_and_the_letter_stays() {
    let world = World::new().await;
    let dead = poisoned(&world).await;
    let letters = letters(&world);
    let named = async |key: &str| match letters.retry(&dead).await {
        Err(RedisError::WrongType { key: Some(named) }) => assert_eq!(named, key),
        answer => panic!("{key}: {answer:?}"),
    };
    world.spoil(&world.key("done:g")).await;
    named(&world.key("done:g")).await;
    world.redis::<()>(&["DEL", &world.key("done:g")]).await;
    world.spoil(&world.stream).await;
    named(&world.stream).await;
    assert_eq!(only(&world).await, dead);
    world.spoil(&world.key_of_letters()).await;
    world.redis::<()>(&["DEL", &world.stream]).await;
    named(&world.key_of_letters()).await;
    for answer in [
        letters.count(&world.stream).await.map(drop),
        letters.read(&world.stream, Span::all()).await.map(drop),
        letters.get(&world.stream, "1-0").await.map(drop),
    ] {
        assert!(matches!(answer, Err(RedisError::WrongType { key: Some(_) })), "{answer:?}");
    }
}

#[tokio::test]
async fn a_walk_meets_every_letter_once_and_none_that_came_later() {
    let world = World::new().await;
    let mut pipeline = redis::pipe();
    for at in 1..=150 {
        pipeline.cmd("XADD").arg(world.key_of_letters()).arg(format!("{at}-1")).arg("reason").arg("r").ignore();
    }
    pipeline.exec_async(&mut world.raw.clone()).await.expect("redis takes them");
    let letters = letters(&world);
    let walk = async |from: &str, to: &str| {
        let span = Span { from: String::from(from), to: String::from(to) };
        let mut pages = letters.read(&world.stream, span).await.expect("a walk");
        // Somebody writes one more while we read.
        let late = ["XADD", &world.key_of_letters(), "*", "reason", "late"];
        let late: String = world.redis(&late).await;
        let mut ids = Vec::new();
        loop {
            let page = pages.next().await.expect("a page");
            assert!(page.len() <= 64, "memory is bounded");
            if page.is_empty() {
                world.redis::<Value>(&["XDEL", &world.key_of_letters(), &late]).await;
                return ids;
            }
            ids.extend(page.into_iter().map(|letter| letter.millis()));
        }
    };
    assert_eq!(walk("-", "+").await, (1..=150).collect::<Vec<_>>());
    assert_eq!(walk("20", "147").await, (20..=147).collect::<Vec<_>>(), "two full pages");
    assert!(walk("151", "+").await.is_empty());
    assert!(walk("-", "0").await.is_empty());
    assert_eq!(letters.count(&world.stream).await.expect("an answer"), 150);
    assert_eq!(letters.get(&world.stream, "7-1").await.expect("an answer").map(|letter| letter.millis()), Some(7));
    assert_eq!(letters.get(&world.stream, "7-2").await.expect("an answer"), None);
}
