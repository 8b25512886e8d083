//! Which scopes are asked for, and how they grow.

use da_node_executor::config::McpAuthConfig;
use da_node_executor::domain::outcome::Category;
use futures_util::future::join_all;
use serde_json::json;

use crate::world::*;

#[tokio::test]
async fn the_first_scopes_are_the_operators_then_the_challenges_then_all_that_the_resource_knows() {
    let plain = "Bearer resource_metadata=\"{base}/.well-known/oauth-protected-resource/mcp\"";
    let scopes = ["write", "read"].map(String::from).to_vec();
    for (configured, challenge, supported, asked) in [
        (vec![String::from("mine")], None, json!(["all"]), Some("mine")),
        (vec![], None, json!(["all"]), Some("read")),
        (vec![], Some(plain), json!(scopes), Some("read write")),
        (vec![], Some(plain), json!(null), None),
    ] {
        let world = World::start().await;
        if let Some(challenge) = challenge {
            world.wants().challenge = challenge.to_owned();
        }
        world.wants().metadata = json!({"scopes_supported": supported});
        open(&world.endpoint(McpAuthConfig { scopes: configured, ..world.auth() })).await;
        assert_eq!(world.id.asked()[0].form.get("scope").map(String::as_str), asked);
    }
}

#[tokio::test]
async fn a_scope_that_a_tool_needs_is_added_to_those_there_are() {
    let world = World::start().await;
    world.wants().tools = needs(&[("write", "write"), ("both", "write admin")]);
    let session = world.session().await;
    assert_eq!(answer(&session, "any").await, "read");
    assert_eq!(answer(&session, "write").await, "read write");
    assert_eq!(answer(&session, "both").await, "admin read write");
    assert_eq!(world.id.asked().len(), 3);
    world.id.revoke();
    assert_eq!(answer(&session, "any").await, "admin read write", "nothing is lost when the token is replaced");
    assert_eq!(world.id.asked().len(), 4);
}

#[tokio::test]
async fn calls_that_lack_the_same_scope_share_one_token_with_it() {
    let world = World::start().await;
    world.wants().tools = needs(&[("write", "write")]);
    let session = world.session().await;
    world.id.rules().delay = std::time::Duration::from_millis(200);
    let answers = join_all((0..50).map(|_| answer(&session, "write"))).await;
    assert!(answers.iter().all(|scopes| scopes == "read write"), "{answers:?}");
    assert_eq!(world.id.asked().len(), 2, "one for the session, one for all of them");
}

#[tokio::test]
async fn a_refusal_that_names_more_scopes_adds_them_unless_the_operator_chose() {
    for (configured, expected) in [(vec![], "read write"), (vec![String::from("mine")], "mine")] {
        let world = World::start().await;
        let session = open(&world.endpoint(McpAuthConfig { scopes: configured, ..world.auth() })).await;
        let challenge = world.wants().challenge.replace("\"read\"", "\"write\"");
        world.wants().challenge = challenge;
        world.id.revoke();
        assert_eq!(answer(&session, "any").await, expected);
    }
}

#[tokio::test]
async fn a_refusal_for_another_reason_than_a_scope_gets_no_token() {
    let world = World::start().await;
    world.wants().forbidden = [String::from("secret")].into();
    let session = world.session().await;
    let refused = failure(&session, "secret").await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_unauthorized"), "{refused}");
    assert_eq!(world.id.asked().len(), 1);
    assert_eq!(answer(&session, "any").await, "read");
}

#[tokio::test]
async fn a_server_that_wants_one_more_scope_each_time_gets_so_many_and_no_more() {
    const MOST: usize = 32;
    let world = World::start().await;
    let names: Vec<String> = (0..=MOST).map(|number| format!("s{number}")).collect();
    world.wants().tools = names.iter().map(|name| (name.clone(), name.clone())).collect();
    let session = world.session().await;
    for name in &names[..MOST] {
        assert!(answer(&session, name).await.split(' ').any(|scope| scope == name));
    }
    let refused = failure(&session, &names[MOST]).await;
    assert_eq!(&*refused.code, "mcp_insufficient_scope", "{refused}");
    assert!(refused.message.contains("again and again"), "{refused}");
    assert_eq!(world.id.asked().len(), MOST + 1);
    answer(&session, &names[0]).await;
}

#[tokio::test]
async fn one_call_may_need_a_token_and_then_a_scope() {
    let world = World::start().await;
    world.wants().tools = needs(&[("write", "write")]);
    let session = world.session().await;
    world.id.revoke();
    assert_eq!(answer(&session, "write").await, "read write");
}

#[tokio::test]
async fn a_scope_that_is_not_given_fails_the_call_that_needs_it_and_no_other() {
    let world = World::start().await;
    world.wants().tools = needs(&[("admin", "admin")]);
    world.id.rules().withheld = [String::from("admin")].into();
    let session = world.session().await;
    for _ in 0..3 {
        let refused = failure(&session, "admin").await;
        assert_eq!(
            (refused.category, &*refused.code),
            (Category::Configuration, "mcp_insufficient_scope"),
            "{refused}"
        );
        assert!(refused.message.contains("admin") && refused.message.contains("invalid_scope"), "{refused}");
        assert_eq!(answer(&session, "any").await, "read");
    }
    assert_eq!(world.id.asked().len(), 2, "it was asked for once");
}

#[tokio::test]
async fn a_server_that_is_never_content_is_not_asked_for_ever() {
    let world = World::start().await;
    // The token has the scope, and the server wants it all the same.
    world.wants().tools = needs(&[("loop", "more")]);
    let session = world.session().await;
    let asked = |scopes: &str| scopes.split_whitespace().any(|scope| scope == "more");
    assert!(asked(&answer(&session, "loop").await));
    for token in world.id.rules().good.values_mut() {
        token.clear();
    }
    let before = world.id.asked().len();
    let refused = failure(&session, "loop").await;
    assert_eq!(&*refused.code, "mcp_insufficient_scope", "{refused}");
    assert!(refused.message.contains("asked for and not given"), "{refused}");
    assert_eq!(world.id.asked().len(), before);
}
