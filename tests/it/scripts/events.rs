//! Progress, trimming and reading along; the registry; facts about the server.

use std::time::Duration;

use da_node_executor::clients::redis::{
    EventLog, EventTail, Link, RedisError, StreamStats, WorkerRegistry, preflight, stream_stats, submit,
};
use da_node_executor::domain::event::EventType;

use super::{GROUP, ITEM, World};

fn link(world: &World) -> Link {
    Link::new(&world.redis).expect("an address")
}

#[tokio::test]
async fn progress_goes_out_in_order_and_its_streams_stay_short() {
    let world = World::new().await;
    let log = EventLog::new(link(&world), world.keys.clone(), 100);
    let batch: Vec<_> = (0..1000).map(|step| (EventType::NodeProgress, format!(r#"{{"step":{step}}}"#))).collect();
    log.progress(&batch).await.expect("the events go out");
    log.progress(&[]).await.expect("nothing to tell is fine");
    let stream = world.keys.events(EventType::NodeProgress);
    assert!((100..400).contains(&world.length(&stream).await));
    let last: Vec<(String, Vec<String>)> = world.redis(&["XREVRANGE", &stream, "+", "-", "COUNT", "1"]).await;
    assert_eq!(last[0].1, ["data", r#"{"step":999}"#]);

    world.spoil(&world.keys.events(EventType::NodeStarted)).await;
    let batch = [(EventType::NodeStarted, String::from("{}")), (EventType::ToolExecuted, String::from("{}"))];
    let error = log.progress(&batch).await.expect_err("a list is no stream");
    assert!(matches!(error, RedisError::WrongType { .. }), "{error}");
    assert_eq!(world.length(&world.keys.events(EventType::ToolExecuted)).await, 1, "the others go out");
}

#[tokio::test]
async fn terminal_events_are_trimmed_only_behind_what_every_group_has_read() {
    let world = World::new().await;
    let log = EventLog::new(link(&world), world.keys.clone(), 100);
    let stream = world.keys.events(EventType::NodeCompleted);
    let mut ids = Vec::new();
    for number in 0..1000 {
        ids.push(world.redis::<String>(&["XADD", &stream, "*", "data", &number.to_string()]).await);
    }
    world.spoil(&world.keys.events(EventType::NodeFailed)).await;
    for (group, read) in [("fast", 900), ("slow", 500)] {
        world.redis::<()>(&["XGROUP", "CREATE", &stream, group, "0"]).await;
        let read = read.to_string();
        let words = ["XREADGROUP", "GROUP", group, "c", "COUNT", &read, "STREAMS", &stream, ">"];
        world.redis::<redis::Value>(&words).await;
    }
    let acknowledge = |group: &'static str, ids: &[String]| {
        let mut words = vec!["XACK", &stream, group].into_iter().map(String::from).collect::<Vec<_>>();
        words.extend_from_slice(ids);
        words
    };
    // The slow group has read 500 and acknowledged the first 300.
    for words in [acknowledge("fast", &ids[..900]), acknowledge("slow", &ids[..300])] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        world.redis::<()>(&words).await;
    }
    assert_eq!(log.trim_unread(10).await.expect("an answer"), 300);
    assert_eq!(world.length(&stream).await, 700);

    for group in ["fast", "slow"] {
        world.redis::<()>(&["XGROUP", "DESTROY", &stream, group]).await;
    }
    log.trim_unread(10).await.expect("an answer");
    assert!((10..210).contains(&world.length(&stream).await), "no group reads: only the newest stay");
}

#[tokio::test]
async fn a_tail_begins_now_and_misses_nothing() {
    let world = World::new().await;
    let completed = world.keys.events(EventType::NodeCompleted);
    let started = world.keys.events(EventType::NodeStarted);
    world.redis::<()>(&["XADD", &completed, "*", "data", "before"]).await;
    let kinds = [EventType::NodeCompleted, EventType::NodeStarted];
    let mut tail = EventTail::begin(&world.redis, &world.keys, &kinds).await.expect("the streams can be read");
    world.redis::<()>(&["XADD", &started, "*", "data", "one"]).await;
    world.redis::<()>(&["XADD", &completed, "*", "data", "two"]).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(tail.next(Duration::from_secs(5)).await.expect("an answer"));
    }
    let mut seen: Vec<_> = seen.into_iter().map(|event| (event.kind.as_str(), event.data)).collect();
    seen.sort();
    assert_eq!(seen, [("node.completed", String::from("two")), ("node.started", String::from("one"))]);
    assert!(tail.next(Duration::from_millis(5)).await.expect("an answer").is_empty());
}

#[tokio::test]
async fn a_worker_withdraws_only_its_own_announcement() {
    let world = World::new().await;
    let registry = WorkerRegistry::new(link(&world), &world.keys, "w");
    let key = world.keys.worker("w");
    registry.announce(r#"{"metadata":{"instance":"new.one"}}"#).await.expect("an answer");
    assert!((1..=30_000).contains(&world.ttl(&key).await));
    registry.withdraw("older").await.expect("an answer");
    registry.withdraw("new-one").await.expect("an answer");
    registry.withdraw("n%w").await.expect("an answer");
    assert!(world.redis::<bool>(&["EXISTS", &key]).await, "a successor's announcement stays");
    registry.withdraw("new.one").await.expect("an answer");
    assert!(!world.redis::<bool>(&["EXISTS", &key]).await);
    world.spoil(&key).await;
    registry.withdraw("not").await.expect("what is not ours is left alone");
    assert!(world.redis::<bool>(&["EXISTS", &key]).await);
}

#[tokio::test]
async fn the_server_and_its_streams_can_be_asked_about() {
    let world = World::new().await;
    let link = link(&world);
    let facts = preflight(&link).await.expect("the server tells about itself");
    assert_eq!(facts.version.as_deref().and_then(|version| version.split_once('.')).map(|(_, _)| ()), Some(()));
    assert_eq!((facts.maxmemory_policy.as_deref(), facts.evicts()), (Some("noeviction"), false));
    assert_eq!((facts.aof, facts.primary), (Some(false), Some(true)));
    assert!(facts.run_id.is_some() && facts.replication_id.is_some());

    let stats = stream_stats(&link, &world.key("nowhere"), GROUP).await.expect("an answer");
    assert_eq!(stats, StreamStats::default());
    let entry = submit(&link, &world.stream, ITEM.as_bytes()).await.expect("the item can be added");
    submit(&link, &world.stream, ITEM.as_bytes()).await.expect("the item can be added");
    let read = world.worker("w:1").streams.read(1).await.expect("an answer");
    assert_eq!(read[0].entry, entry);
    let stats = stream_stats(&link, &world.stream, GROUP).await.expect("an answer");
    assert_eq!(stats, StreamStats { length: 2, lag: Some(1), pending: 1 });
    let stats = stream_stats(&link, &world.stream, "nobody").await.expect("an answer");
    assert_eq!(stats, StreamStats { length: 2, lag: None, pending: 0 });
}
