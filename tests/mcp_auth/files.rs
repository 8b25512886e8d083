//! Tokens that somebody else keeps fresh.

use std::path::Path;
use std::time::Instant;

use da_node_executor::config::McpAuthConfig;
use da_node_executor::domain::outcome::Category;

use crate::world::*;

/// Makes a token good at the server, as if it had been given by other means.
fn accept(world: &World, token: &str) {
    world.id.revoke();
    world.id.rules().good.insert(token.to_owned(), Default::default());
}

fn put(file: &Path, token: &str) {
    std::fs::write(file, format!("{token}\n")).expect("it is written");
}

#[tokio::test]
async fn a_token_of_the_configuration_is_sent_from_the_first_request_on() {
    let world = World::start().await;
    accept(&world, "st4tic");
    let session = open(&world.endpoint(McpAuthConfig { token: Some("st4tic".into()), ..Default::default() })).await;
    answer(&session, "any").await;
    assert!(world.served().await.iter().all(|request| request.headers["authorization"] == "Bearer st4tic"));
    assert!(world.id.asked().is_empty());
}

#[tokio::test]
async fn a_refused_token_is_read_again_and_used_if_it_has_changed() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    put(&file, "one");
    accept(&world, "one");
    let token_file = Some(file.clone());
    let session = open(&world.endpoint(McpAuthConfig { token_file, ..Default::default() })).await;
    answer(&session, "any").await;

    accept(&world, "two");
    let refused = failure(&session, "any").await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_unauthorized"), "{refused}");
    assert!(refused.message.contains("mcp.servers.crm.auth.token_file"), "{refused}");
    // Of the same length, and maybe in the same instant of the file system's clock.
    put(&file, "two");
    answer(&session, "any").await;
}

#[tokio::test]
async fn a_changed_file_is_noticed_without_a_refusal() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    put(&file, "one");
    accept(&world, "one");
    world.id.rules().good.insert(String::from("another"), Default::default());
    let token_file = Some(file.clone());
    let session = open(&world.endpoint(McpAuthConfig { token_file, ..Default::default() })).await;
    put(&file, "another");
    let deadline = Instant::now() + PATIENCE;
    loop {
        answer(&session, "any").await;
        let served = world.served().await;
        if served.last().expect("one").headers["authorization"] == "Bearer another" {
            break;
        }
        assert!(Instant::now() < deadline, "the new token is never used");
        tokio::task::yield_now().await;
    }
    // While it is being replaced there may be nothing in it: the token at hand serves on.
    put(&file, "");
    let deadline = Instant::now() + std::time::Duration::from_millis(1500);
    while Instant::now() < deadline {
        answer(&session, "any").await;
    }
}
