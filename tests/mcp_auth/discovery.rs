//! How the authorization server is found, and what is said when it is not.

use std::time::{Duration, Instant};

use da_node_executor::config::McpAuthConfig;
use da_node_executor::domain::outcome::Category;
use serde_json::json;
use wiremock::ResponseTemplate;

use crate::world::*;

/// Paths that were asked for at a server, without its endpoint.
async fn asked_for(server: &wiremock::MockServer) -> Vec<String> {
    let requests = server.received_requests().await.expect("they are kept");
    let paths = requests.iter().map(|request| request.url.path().to_owned());
    paths.filter(|path| path.starts_with("/.well-known") || path.contains("openid")).collect()
}

#[tokio::test]
async fn without_a_pointer_the_well_known_places_are_tried_in_order() {
    let world = World::start().await;
    world.wants().challenge = String::from("Bearer");
    world.wants().metadata_path = String::from("/.well-known/oauth-protected-resource");
    world.session().await;
    assert_eq!(
        asked_for(&world.mcp).await,
        ["/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"]
    );
}

#[tokio::test]
async fn the_pointer_of_a_refusal_is_followed_and_nothing_else() {
    let world = World::start().await;
    world.wants().challenge = String::from("Bearer resource_metadata=\"{base}/about/me\"");
    world.wants().metadata_path = String::from("/about/me");
    world.session().await;
    assert!(asked_for(&world.mcp).await.is_empty(), "no well-known place is tried");

    // What it points to has to be there, even if something else is elsewhere.
    let world = World::start().await;
    world.wants().challenge = String::from("Bearer resource_metadata=\"{base}/nowhere\"");
    let refused = refusal(&world.endpoint(world.auth())).await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_undiscovered"), "{refused}");
    assert!(refused.message.contains("HTTP status 404") && refused.message.contains("/nowhere"), "{refused}");
    assert!(asked_for(&world.mcp).await.is_empty() && world.id.asked().is_empty());
}

#[tokio::test]
async fn a_server_that_says_nothing_at_all_in_its_refusal_is_understood() {
    let world = World::start().await;
    world.wants().challenge = String::new();
    world.session().await;
}

#[tokio::test]
async fn every_place_of_the_metadata_of_an_issuer_is_tried() {
    for (issuer, path) in [
        ("/tenant", "/.well-known/oauth-authorization-server/tenant"),
        ("/tenant", "/.well-known/openid-configuration/tenant"),
        ("/tenant", "/tenant/.well-known/openid-configuration"),
        ("", "/.well-known/oauth-authorization-server"),
        ("", "/.well-known/openid-configuration"),
    ] {
        let world = World::start().await;
        let issuer = format!("{}{issuer}", world.id.http.uri());
        world.wants().issuers = vec![issuer.clone()];
        world.id.rules().metadata = json!({"issuer": issuer});
        world.id.rules().metadata_path = path.to_owned();
        world.session().await;
        assert_eq!(asked_for(&world.id.http).await.last().map(String::as_str), Some(path));
    }
}

#[tokio::test]
async fn a_server_of_the_first_kind_gives_its_tokens_itself() {
    let world = World::start().await;
    // No metadata of the resource anywhere, and the issuer is the server's own origin.
    world.wants().challenge = String::from("Bearer");
    world.wants().metadata_path = String::from("/nowhere");
    let refused = refusal(&world.endpoint(world.auth())).await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_undiscovered"), "{refused}");
    assert!(refused.message.contains("HTTP status 404") && refused.message.contains("auth.issuer"), "{refused}");
    assert!(asked_for(&world.mcp).await.contains(&String::from("/.well-known/oauth-authorization-server")));
}

#[tokio::test]
async fn the_operators_issuer_stands_in_for_missing_metadata() {
    let world = World::start().await;
    world.wants().challenge = String::from("Bearer scope=\"read\"");
    world.wants().metadata_path = String::from("/nowhere");
    let issuer = Some(world.id.http.uri());
    open(&world.endpoint(McpAuthConfig { issuer, ..world.auth() })).await;
    assert_eq!(world.id.asked()[0].form["resource"], world.url());
}

#[tokio::test]
async fn with_a_configured_token_endpoint_nobody_is_asked_and_the_first_request_has_a_token() {
    let world = World::start().await;
    let token_endpoint = Some(format!("{}/token", world.id.http.uri()));
    let resource = Some(String::from("urn:crm"));
    let session = open(&world.endpoint(McpAuthConfig { token_endpoint, resource, ..world.auth() })).await;
    answer(&session, "any").await;
    assert!(asked_for(&world.mcp).await.is_empty() && asked_for(&world.id.http).await.is_empty());
    assert!(world.served().await.iter().all(|request| request.headers.contains_key("authorization")));
    assert_eq!(world.id.asked()[0].form["resource"], "urn:crm");
}

#[tokio::test]
async fn metadata_that_is_none_ends_in_a_clear_error() {
    let page = || ResponseTemplate::new(200).set_body_raw("<html>welcome</html>", "text/html");
    let partial = || ResponseTemplate::new(200).set_body_json(json!({"resource": 5}));
    let huge = || ResponseTemplate::new(200).set_body_raw(vec![b' '; 3 << 20], "application/json");
    let deep = || ResponseTemplate::new(200).set_body_raw("[".repeat(200_000), "application/json");
    let elsewhere = || ResponseTemplate::new(302).insert_header("location", "https://example.com/");
    let empty = || ResponseTemplate::new(204);
    for (answer, word) in [
        (page(), "no JSON"),
        (partial(), "a member is missing"),
        (huge(), "more than 262144 bytes"),
        (deep(), "is no metadata"),
        (elsewhere(), "HTTP status 302"),
        (empty(), "no JSON"),
    ] {
        for whose in ["resource", "server"] {
            let world = World::start().await;
            match whose {
                "resource" => world.wants().metadata_instead = Some(answer.clone()),
                _ => world.id.rules().metadata_instead = Some(answer.clone()),
            }
            let refused = refusal(&world.endpoint(world.auth())).await;
            assert!(refused.message.contains(word), "{whose}: {refused}");
            assert!(!refused.message.contains("welcome"), "{whose}: {refused}");
            assert_ne!(refused.category, Category::Retriable, "{whose}: {refused}");
            assert!(world.id.asked().is_empty(), "{whose}");
        }
    }
}

#[tokio::test]
async fn an_outage_during_discovery_is_tried_again() {
    for whose in ["resource", "server"] {
        let world = World::start().await;
        let away = ResponseTemplate::new(503).insert_header("retry-after", "7");
        match whose {
            "resource" => world.wants().metadata_instead = Some(away),
            _ => world.id.rules().metadata_instead = Some(away),
        }
        let refused = refusal(&world.endpoint(world.auth())).await;
        assert_eq!((refused.category, &*refused.code), (Category::Retriable, "mcp_auth_unavailable"), "{refused}");
        assert_eq!(refused.retry_after, Some(Duration::from_secs(7)));
    }
}

/// Makes one of the parties hang.
fn hang(world: &World, whose: &str) {
    let hanging = ResponseTemplate::new(200).set_delay(Duration::from_secs(600));
    match whose {
        "resource" => world.wants().metadata_instead = Some(hanging),
        "server" => world.id.rules().metadata_instead = Some(hanging),
        _ => world.id.rules().delay = Duration::from_secs(600),
    }
}

#[tokio::test]
async fn whoever_hangs_is_named_and_does_not_hold_a_call_up() {
    for whose in ["resource", "server", "token"] {
        let world = World::start().await;
        let session = open(&world.endpoint_with(world.auth(), Duration::from_secs(4))).await;
        world.id.revoke();
        hang(&world, whose);
        let started = Instant::now();
        let refused = failure(&session, "any").await;
        assert!(started.elapsed() < Duration::from_secs(10), "{whose}: {:?}", started.elapsed());
        assert_eq!((refused.category, &*refused.code), (Category::Retriable, "mcp_auth_unavailable"), "{refused}");
        let who = if whose == "resource" { world.mcp.uri() } else { world.id.http.uri() };
        assert!(refused.message.contains(&who) && refused.message.contains("no answer in time"), "{refused}");
    }
}

#[tokio::test]
async fn whoever_hangs_does_not_hold_the_opening_of_a_session_up() {
    for whose in ["resource", "server", "token"] {
        let world = World::start().await;
        hang(&world, whose);
        let started = Instant::now();
        let refused = refusal(&world.endpoint_with(world.auth(), Duration::from_secs(2))).await;
        assert!(started.elapsed() < Duration::from_secs(10), "{whose}: {:?}", started.elapsed());
        assert_eq!(refused.category, Category::Retriable, "{refused}");
    }
}

#[tokio::test]
async fn an_authorization_server_that_is_not_there_is_an_outage() {
    let world = World::start().await;
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        format!("http://{}", listener.local_addr().expect("it is bound"))
    };
    world.wants().issuers = vec![gone.clone()];
    let refused = refusal(&world.endpoint(world.auth())).await;
    assert_eq!((refused.category, &*refused.code), (Category::Retriable, "mcp_auth_unavailable"), "{refused}");
    assert!(refused.message.contains(&gone), "{refused}");
}
