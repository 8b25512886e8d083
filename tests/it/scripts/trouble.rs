//! A server or a network that fails: lost answers, forgotten scripts, no memory, restarts, a wrong password.

use std::time::Duration;

use da_node_executor::clients::redis::{Held, Link, RedisError, Renewal, Settled, Settlement, preflight};
use da_node_executor::domain::event::EventType;
use da_node_executor::ports::{Opened, Wanted};
use da_node_executor::retry::Retry;

use super::{ALL, ITEM, World};
use crate::harness::proxy::Proxy;
use crate::harness::redis::{RedisServer, shared};

/// An item in the hands of a worker, on a server that knows the scripts: else the answer that gets lost is "unknown".
async fn item_in_hand(world: &World) -> std::sync::Arc<da_node_executor::domain::work::Delivery> {
    let other = r#"{"graph_id":"other","node_id":"n"}"#;
    let (worker, delivery) = world.worker_with("w:1", other).await;
    let failed = Settlement { event: EventType::NodeFailed, ..super::settlement(&delivery) };
    assert_eq!(worker.settler.settle(&failed).await.expect("an answer"), Settled::DoneStateGone);
    world.worker_with("w:1", ITEM).await.1
}

async fn settled_once(world: &World) {
    assert_eq!(world.events(EventType::NodeCompleted).await.len(), 1);
    assert_eq!((world.length(&world.stream).await, world.pending().await), (0, 0));
}

#[tokio::test]
async fn an_answer_that_the_network_loses_is_asked_for_again() {
    let world = World::new().await;
    world.redis::<()>(&["HSET", &world.key("state:g"), "status", "running"]).await;
    let delivery = item_in_hand(&world).await;
    let proxy = Proxy::to(shared().port()).await;
    let through = da_node_executor::config::RedisConfig { url: proxy.url(), ..world.redis.clone() };
    let link = Link::new(&through).expect("an address");
    let worker = world.worker_by("w:1", &link);
    link.ping().await.expect("everything passes");

    proxy.cut_answers();
    let error = worker.settle(&delivery).await.expect_err("the answer is lost");
    assert!(matches!(error, RedisError::Unavailable { .. }) && error.outcome_unknown(), "{error:?}");
    assert_eq!(error.retry(), Retry::After(None));
    settled_once(&world).await;
    proxy.heal();
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Again);
    settled_once(&world).await;
}

#[tokio::test]
async fn a_server_that_falls_silent_costs_one_timeout_and_then_another_connection() {
    let world = World::new().await;
    let delivery = item_in_hand(&world).await;
    let proxy = Proxy::to(shared().port()).await;
    let through = da_node_executor::config::RedisConfig {
        url: proxy.url(),
        command_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_millis(200),
        ..world.redis.clone()
    };
    let link = Link::new(&through).expect("an address");
    let worker = world.worker_by("w:1", &link);
    link.ping().await.expect("everything passes");

    proxy.swallow_answers();
    let error = worker.settle(&delivery).await.expect_err("no answer comes");
    assert!(matches!(error, RedisError::TimedOut { .. }) && error.outcome_unknown(), "{error:?}");
    let error = link.ping().await.expect_err("a new connection has no answer either");
    assert!(matches!(error, RedisError::Unavailable { .. }), "the silent connection was used again: {error:?}");
    proxy.heal();
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Again);
    settled_once(&world).await;
}

#[tokio::test]
async fn a_document_that_never_rests_is_a_conflict_and_nothing_is_written() {
    let world = World::new().await;
    let state = world.key("state:g");
    world.redis::<()>(&["SET", &state, "{}"]).await;
    let delivery = item_in_hand(&world).await;
    let proxy = Proxy::to(shared().port()).await;
    let through = da_node_executor::config::RedisConfig { url: proxy.url(), ..world.redis.clone() };
    let worker = world.worker_by("w:1", &Link::new(&through).expect("an address"));
    // Whichever document is read, there is another one by the time the answer arrives.
    let mut append = redis::cmd("APPEND");
    append.arg(&state).arg(" ");
    proxy.overtake_answers(0, world.raw.clone(), append);
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Conflict);
    world.assert_untouched(&delivery).await;
    proxy.heal();
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);
    settled_once(&world).await;
}

#[tokio::test]
async fn a_script_that_the_server_forgot_is_loaded_again() {
    let server = RedisServer::start();
    let world = World::on(server.config(), server.connect().await).await;
    world.redis::<()>(&["HSET", &world.key("state:g"), "status", "running"]).await;
    let forget = || async { world.redis::<()>(&["SCRIPT", "FLUSH"]).await };
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    for _ in 0..2 {
        forget().await;
        let (opened, _) = worker.store.open(&delivery, &Wanted::default()).await.expect("an answer");
        assert!(matches!(opened, Opened::Ready { .. }));
    }
    forget().await;
    let held = Held { stream: delivery.stream.clone(), entry: delivery.entry.clone(), deliveries: 1 };
    assert_eq!(worker.leases.renew(&[held]).await.expect("an answer"), [Renewal::Kept]);
    forget().await;
    assert!(worker.leases.claim(&world.stream, &[], 1, ALL).await.expect("an answer").is_empty());
    forget().await;
    assert_eq!(worker.settle(&delivery).await.expect("an answer"), Settled::Done);
}

#[tokio::test]
async fn a_server_without_memory_lets_runs_end_and_none_begin() {
    let server = RedisServer::start();
    let world = World::on(server.config(), server.connect().await).await;
    world.redis::<()>(&["HSET", &world.key("state:g"), "status", "running"]).await;
    let (worker, first) = world.worker_with("w:1", ITEM).await;
    let (_, second) = world.worker_with("w:1", r#"{"graph_id":"g","node_id":"m"}"#).await;
    world.redis::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = worker.store.open(&second, &Wanted::default()).await.expect_err("a record needs memory");
    assert!(error.to_string().contains("memory") && error.retry() == Retry::After(None), "{error}");
    assert_eq!(worker.settle(&first).await.expect("an answer"), Settled::Done);
    assert_eq!(world.events(EventType::NodeCompleted).await.len(), 1);
    assert!(world.redis::<bool>(&["HEXISTS", &world.key("state:g"), "node:n"]).await);
}

#[tokio::test]
async fn a_server_that_starts_again_is_used_again() {
    let mut server = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let link = Link::new(&server.config()).expect("an address");
    let before = preflight(&link).await.expect("the server tells about itself");
    server.kill();
    let mut errors = Vec::new();
    for _ in 0..3 {
        errors.push(link.ping().await.expect_err("there is no server"));
    }
    assert!(errors.iter().all(|error| error.retry() == Retry::After(None)), "{errors:?}");
    server.start_again();
    link.ping().await.expect("the server is there again");
    let after = preflight(&link).await.expect("the server tells about itself");
    assert_ne!(before.run_id, after.run_id);
    assert_eq!(after.aof, Some(true));
}

#[tokio::test]
async fn a_wrong_password_is_never_tried_twice_and_never_shown() {
    let server = RedisServer::start();
    let mut raw = server.connect().await;
    let set: redis::RedisResult<()> =
        redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("right").query_async(&mut raw).await;
    set.expect("the password can be set");
    let with = |password: Option<&str>| {
        let password = password.map(|password| secrecy::SecretString::from(String::from(password)));
        let config = da_node_executor::config::RedisConfig { password, ..server.config() };
        Link::new(&config).expect("an address")
    };
    for password in [Some("wrong-secret"), None] {
        let error = with(password).ping().await.expect_err("the password is wrong");
        assert!(matches!(error, RedisError::Auth { .. }), "{error:?}");
        assert_eq!(error.retry(), Retry::Never);
        assert!(!format!("{error} {error:?}").contains("wrong-secret"));
    }
    with(Some("right")).ping().await.expect("the password is right");
}

#[tokio::test]
async fn a_link_outlives_the_runtime_of_its_connection() {
    let link = Link::new(&shared().config()).expect("an address");
    let first = link.clone();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(first.ping()).expect("the server answers");
    });
    thread.join().expect("the thread ends well");
    // The first call may meet the dead connection; it fails fast and the next one makes another.
    let answers = [link.ping().await, link.ping().await];
    assert!(answers[1].is_ok(), "{answers:?}");
}
