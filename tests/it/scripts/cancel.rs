//! Orders to stop: as the opening of a node sees them, and as the watch finds them while nodes run.

use da_node_executor::clients::redis::{CancelOrders, CancelWatch, Link, RedisError, StateError};
use da_node_executor::domain::cancel::{CancelOrder, CancelScope};
use da_node_executor::domain::ids::{GraphId, NodeId};
use da_node_executor::ports::{Opened, Wanted};

use super::{ITEM, World};

fn graph(id: &str) -> GraphId {
    GraphId::new(id).expect("an id")
}

fn node(id: &str) -> NodeId {
    NodeId::new(id).expect("an id")
}

fn orders(world: &World) -> CancelOrders {
    CancelOrders::new(Link::new(&world.redis).expect("an address"), world.keys.clone(), world.state.ttl)
}

fn watch(world: &World) -> CancelWatch {
    CancelWatch::new(Link::new(&world.redis).expect("an address"), world.keys.clone())
}

fn noted(scope: CancelScope) -> CancelOrder {
    CancelOrder { scope, by: Some(String::from("ann")), note: Some(String::from("enough")) }
}

async fn opened(world: &World) -> Result<Opened, StateError> {
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let opened = worker.store.open(&delivery, &Wanted::default()).await.map(|(opened, _)| opened);
    worker.settle(&delivery).await.expect("an answer");
    opened
}

#[tokio::test]
async fn an_order_is_seen_before_a_node_begins_and_can_be_taken_back() {
    let world = World::new().await;
    let (orders, g) = (orders(&world), graph("g"));
    orders.give(&g, Some(&node("n")), &noted(CancelScope::Node)).await.expect("an answer");
    // With or without a state, of either layout: what is cancelled needs none.
    let answer = opened(&world).await.expect("an answer");
    assert!(matches!(answer, Opened::Cancelled { order, .. } if order == noted(CancelScope::Node)));
    assert!(orders.take_back(&g, Some(&node("n"))).await.expect("an answer"));
    assert!(!orders.take_back(&g, Some(&node("n"))).await.expect("an answer"), "there was none any more");

    world.redis::<()>(&["DEL", &world.key("done:g")]).await;
    world.redis::<()>(&["HSET", &world.key("state:g"), "status", "running"]).await;
    assert!(matches!(opened(&world).await.expect("an answer"), Opened::Ready { .. }));
    world.redis::<()>(&["DEL", &world.key("done:g")]).await;
    orders.give(&g, None, &noted(CancelScope::Graph)).await.expect("an answer");
    let answer = opened(&world).await.expect("an answer");
    assert!(matches!(answer, Opened::Cancelled { order, .. } if order == noted(CancelScope::Graph)));
    let left = world.ttl(&world.key("cancel:g")).await;
    assert!(left > 0 && left <= 24 * 60 * 60 * 1000, "an order lapses with the state: {left}");
}

#[tokio::test]
async fn a_duplicate_stays_a_duplicate_though_its_graph_is_cancelled() {
    let world = World::new().await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    worker.settle(&delivery).await.expect("an answer");
    orders(&world).give(&graph("g"), None, &noted(CancelScope::Graph)).await.expect("an answer");
    let (worker, delivery) = world.worker_with("w:2", ITEM).await;
    let (answer, _) = worker.store.open(&delivery, &Wanted::default()).await.expect("an answer");
    assert!(matches!(answer, Opened::Duplicate), "{answer:?}");
}

#[tokio::test]
async fn the_watch_finds_the_orders_of_a_hundred_graphs_and_no_others() {
    let world = World::new().await;
    let orders = orders(&world);
    let mut nodes: Vec<_> = (0..120).map(|at| (graph(&format!("g{at}")), node("n"))).collect();
    nodes.extend((0..120).map(|at| (graph("wide"), node(&format!("n{at}")))));
    let mut watch = watch(&world);
    assert!(watch.look(&nodes).await.expect("an answer").iter().all(Option::is_none));
    orders.give(&graph("g7"), Some(&node("n")), &noted(CancelScope::Node)).await.expect("an answer");
    orders.give(&graph("g8"), Some(&node("m")), &noted(CancelScope::Node)).await.expect("an answer");
    orders.give(&graph("g119"), None, &noted(CancelScope::Graph)).await.expect("an answer");
    orders.give(&graph("wide"), Some(&node("n99")), &noted(CancelScope::Node)).await.expect("an answer");
    for _ in 0..2 {
        let found = watch.look(&nodes).await.expect("an answer");
        let found: Vec<_> = (0..nodes.len()).filter_map(|at| Some((at, found[at].clone()?.scope))).collect();
        assert_eq!(found, [(7, CancelScope::Node), (119, CancelScope::Graph), (219, CancelScope::Node)]);
    }
}

async fn status_found(world: &World, watch: &mut CancelWatch) -> bool {
    let nodes = [(graph("g"), node("n")), (graph("other"), node("n"))];
    let found = watch.look(&nodes).await.expect("an answer");
    assert_eq!(found[1], None, "another graph of {}", world.stream);
    assert!(found[0].as_ref().is_none_or(|order| *order == CancelOrder::bare(CancelScope::Graph)), "{found:?}");
    found[0].is_some()
}

#[tokio::test]
async fn a_graph_whose_status_becomes_cancelled_is_found_in_either_layout() {
    let world = World::new().await;
    let (mut watch, state) = (watch(&world), world.key("state:g"));
    assert!(!status_found(&world, &mut watch).await, "there is no state");
    world.redis::<()>(&["HSET", &state, "status", "running"]).await;
    assert!(!status_found(&world, &mut watch).await);
    world.redis::<()>(&["HSET", &state, "status", "cancelled"]).await;
    assert!(status_found(&world, &mut watch).await, "a hash that was seen before");
    assert!(status_found(&world, &mut self::watch(&world)).await, "a hash that was not");

    world.redis::<()>(&["DEL", &state]).await;
    world.redis::<()>(&["SET", &state, r#"{"status":"running"}"#]).await;
    // The watch took it for a hash; from the next look on it knows better.
    assert!(!status_found(&world, &mut watch).await);
    world.redis::<()>(&["SET", &state, r#"{"node_states":{"status":1},"status":"cancelled"}"#]).await;
    assert!(status_found(&world, &mut watch).await, "a document that was not seen before");
    world.redis::<()>(&["SET", &state, r#"{"status":"running"}"#]).await;
    assert!(!status_found(&world, &mut watch).await);
    world.redis::<()>(&["SET", &state, r#"{"status":"cancelled"}"#]).await;
    assert!(status_found(&world, &mut watch).await, "a document that was seen before");
    world.redis::<()>(&["SET", &state, "{\"status\""]).await;
    assert!(!status_found(&world, &mut watch).await, "nothing follows from a broken document");
}

#[tokio::test]
async fn a_large_document_is_read_more_rarely_and_still_found() {
    let world = World::new().await;
    let (mut watch, state) = (watch(&world), world.key("state:g"));
    let document = |status: &str| format!(r#"{{"padding":"{}","status":"{status}"}}"#, "x".repeat(200 * 1024));
    world.redis::<()>(&["SET", &state, &document("running")]).await;
    let nodes = [(graph("g"), node("n"))];
    watch.look(&nodes).await.expect("an answer");
    world.redis::<()>(&["SET", &state, &document("cancelled")]).await;
    let mut looks = 1;
    while watch.look(&nodes).await.expect("an answer")[0].is_none() {
        looks += 1;
        assert!(looks < 10, "a document of 200 KiB is read every fourth time");
    }
    assert_eq!(looks, 3, "met, left alone twice more, read");
}

#[tokio::test]
async fn a_document_that_is_looked_at_in_parts_is_not_met_anew_with_each() {
    let world = World::new().await;
    let (mut watch, state) = (watch(&world), world.key("state:g"));
    let document = format!(r#"{{"padding":"{}","status":"cancelled"}}"#, "x".repeat(200 * 1024));
    world.redis::<()>(&["SET", &state, &document]).await;
    let parts = [[(graph("g"), node("n"))], [(graph("other"), node("n"))]];
    let mut rounds = 0;
    'found: loop {
        rounds += 1;
        assert!(rounds < 10, "a document of 200 KiB is read every fourth time");
        for part in &parts {
            if watch.look_at_some(part).await.expect("an answer")[0].is_some() {
                break 'found;
            }
        }
        watch.forget_others();
    }
    // It is met anew after a round without it.
    assert_eq!(watch.look_at_some(&parts[1]).await.expect("an answer"), [None]);
    watch.forget_others();
    watch.look_at_some(&parts[1]).await.expect("an answer");
    watch.forget_others();
    assert_eq!(watch.look_at_some(&parts[0]).await.expect("an answer"), [None]);
}

#[tokio::test]
async fn something_else_under_the_name_of_the_orders_is_named() {
    let world = World::new().await;
    let key = world.key("cancel:g");
    world.spoil(&key).await;
    let error = orders(&world).give(&graph("g"), None, &noted(CancelScope::Graph)).await.expect_err("a list");
    assert!(matches!(&error, RedisError::WrongType { key: Some(named) } if *named == key), "{error}");
    let error = opened(&world).await.expect_err("a list");
    assert!(matches!(&error, StateError::WrongType { key: named } if *named == key), "{error}");
    let found = watch(&world).look(&[(graph("g"), node("n"))]).await.expect("an answer");
    assert_eq!(found, [None], "what runs already goes on");
}
