//! The republish script: an event once more, counted like any other.

use da_node_executor::clients::redis::{Link, Reconciler, RedisError};
use da_node_executor::domain::event::EventType;
use da_node_executor::domain::ids::GraphId;

use super::{ITEM, World};

fn reconciler(world: &World) -> (Reconciler, GraphId) {
    let link = Link::new(&world.redis).expect("an address");
    (Reconciler::new(link, world.keys.clone(), world.state.ttl), GraphId::new("g").expect("an id"))
}

#[tokio::test]
async fn a_copy_goes_on_with_the_graphs_count() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    worker.settle(&delivery).await.expect("an answer");
    let (reconciler, graph) = reconciler(&world);
    assert_eq!(reconciler.publish(&graph, EventType::NodeCompleted, "copy").await.expect("an answer"), 2);
    let events = world.events(EventType::NodeCompleted).await;
    assert_eq!(events[1], (String::from("copy"), String::from("2")));
}

#[tokio::test]
async fn a_count_that_lapsed_begins_anew_and_lapses_again() {
    let world = World::new().await;
    let (reconciler, graph) = reconciler(&world);
    let done = world.key("done:g");
    for seq in 1..=2 {
        assert_eq!(reconciler.publish(&graph, EventType::NodeFailed, "copy").await.expect("an answer"), seq);
        let left = world.ttl(&done).await;
        assert!(left > 0 && left <= 24 * 60 * 60 * 1000, "{left}");
    }
    world.redis::<()>(&["PERSIST", &done]).await;
    reconciler.publish(&graph, EventType::NodeFailed, "copy").await.expect("an answer");
    assert_eq!(world.ttl(&done).await, -1, "what never expires stays so");
}

#[tokio::test]
async fn a_wrong_type_is_named_and_nothing_is_sent() {
    let world = World::new().await;
    let (reconciler, graph) = reconciler(&world);
    let named = async |key: &str| match reconciler.publish(&graph, EventType::NodeFailed, "copy").await {
        Err(RedisError::WrongType { key: Some(named) }) => assert_eq!(named, key),
        answer => panic!("{key}: {answer:?}"),
    };
    world.spoil(&world.key("done:g")).await;
    named(&world.key("done:g")).await;
    assert_eq!(world.length(&world.keys.events(EventType::NodeFailed)).await, 0);
    world.redis::<()>(&["DEL", &world.key("done:g")]).await;
    world.spoil(&world.keys.events(EventType::NodeFailed)).await;
    named(&world.keys.events(EventType::NodeFailed)).await;
    assert!(!world.redis::<bool>(&["EXISTS", &world.key("done:g")]).await, "nothing was counted");
}
