//! Whom the credentials may be sent to: one authorization server, over addresses that cannot be overheard, and only for
//! a server that goes by its own name.

use da_node_executor::config::McpAuthConfig;
use da_node_executor::domain::outcome::Category;
use serde_json::json;
use wiremock::ResponseTemplate;

use crate::world::*;

#[tokio::test]
async fn a_pinned_issuer_is_the_only_one_that_gets_the_credentials() {
    let (world, other) = (World::start().await, Id::start().await);
    let pinned = world.id.http.uri();
    world.move_to(&other);
    let refused = refusal(&world.endpoint(McpAuthConfig { issuer: Some(pinned.clone()), ..world.auth() })).await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_issuer_changed"), "{refused}");
    assert!(refused.message.contains(&pinned) && refused.message.contains(&other.http.uri()), "{refused}");
    assert!(other.asked().is_empty() && world.id.asked().is_empty());
}

#[tokio::test]
async fn of_several_issuers_the_pinned_one_is_taken_with_or_without_its_last_slash() {
    let (world, other) = (World::start().await, Id::start().await);
    world.wants().issuers = vec![other.http.uri(), format!("{}/", world.id.http.uri())];
    let issuer = Some(world.id.http.uri());
    open(&world.endpoint(McpAuthConfig { issuer, ..world.auth() })).await;
    assert!(other.asked().is_empty());
    assert_eq!(world.id.asked().len(), 1);
}

#[tokio::test]
async fn the_credentials_belong_to_the_first_issuer_that_got_them() {
    let (world, other) = (World::start().await, Id::start().await);
    let endpoint = world.endpoint(world.auth());
    let session = open(&endpoint).await;
    world.move_to(&other);
    let refused = failure(&session, "any").await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_issuer_changed"), "{refused}");
    assert!(refused.message.contains("auth.issuer"), "{refused}");
    assert!(other.asked().is_empty(), "another server got the secret");
    // A new session of the same server does not forget.
    assert_eq!(&*refusal(&endpoint).await.code, "mcp_auth_issuer_changed");
    assert!(other.asked().is_empty());
}

#[tokio::test]
async fn a_refresh_token_is_not_sent_to_another_issuer_either() {
    let (world, other) = (World::start().await, Id::start().await);
    world.id.rules().refresh = true;
    let session = world.session().await;
    world.move_to(&other);
    assert_eq!(&*failure(&session, "any").await.code, "mcp_auth_issuer_changed");
    assert!(other.asked().is_empty());
}

#[tokio::test]
async fn metadata_that_speaks_for_somebody_else_is_not_used() {
    let world = World::start().await;
    world.id.rules().metadata = json!({"issuer": "https://honest.example.com"});
    let refused = refusal(&world.endpoint(world.auth())).await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_untrusted"), "{refused}");
    assert!(refused.message.contains("says that it is `https://honest.example.com`"), "{refused}");
    // Not even by a slash: the comparison is to the letter.
    world.id.rules().metadata = json!({"issuer": format!("{}/", world.id.http.uri())});
    assert_eq!(&*refusal(&world.endpoint(world.auth())).await.code, "mcp_auth_untrusted");
    assert!(world.id.asked().is_empty());
}

#[tokio::test]
async fn a_server_that_calls_itself_by_another_name_gets_no_token() {
    let world = World::start().await;
    world.wants().metadata = json!({"resource": "https://bank.example.com/mcp"});
    let refused = refusal(&world.endpoint(world.auth())).await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_untrusted"), "{refused}");
    assert!(refused.message.contains("auth.resource"), "{refused}");
    assert!(world.id.asked().is_empty());
    let resource = Some(String::from("https://bank.example.com/mcp"));
    open(&world.endpoint(McpAuthConfig { resource, ..world.auth() })).await;
    assert_eq!(world.id.asked()[0].form["resource"], "https://bank.example.com/mcp", "the operator vouches for it");
}

#[tokio::test]
async fn a_resource_may_be_named_by_a_path_above_the_endpoint() {
    let world = World::start().await;
    world.wants().metadata = json!({"resource": format!("{}/", world.mcp.uri())});
    world.session().await;
    assert_eq!(world.id.asked()[0].form["resource"], format!("{}/", world.mcp.uri()), "as it calls itself");
}

#[tokio::test]
async fn addresses_that_could_be_overheard_or_are_none_are_not_asked() {
    for address in ["http://id.example.com", "ftp://id.example.com", "id.example.com", "http://169.254.169.254/", ""] {
        let world = World::start().await;
        world.wants().issuers = vec![address.to_owned()];
        let refused = refusal(&world.endpoint(world.auth())).await;
        assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_untrusted"), "{refused}");
        assert!(refused.message.contains("its authorization server "), "{refused}");

        world.wants().issuers = vec![world.id.http.uri()];
        world.id.rules().metadata = json!({"token_endpoint": address});
        let refused = refusal(&world.endpoint(world.auth())).await;
        assert_eq!(&*refused.code, "mcp_auth_untrusted", "{refused}");
        assert!(refused.message.contains("its token endpoint "), "{refused}");

        world.id.rules().metadata = json!({});
        world.wants().challenge = format!("Bearer resource_metadata=\"{address}\"");
        let refused = refusal(&world.endpoint(world.auth())).await;
        assert_eq!(&*refused.code, "mcp_auth_untrusted", "{refused}");
        assert!(refused.message.contains("its `resource_metadata` "), "{refused}");
        assert!(world.id.asked().is_empty());
    }
}

#[tokio::test]
async fn a_token_endpoint_that_redirects_does_not_get_the_credentials_carried_on() {
    for status in [302, 307, 308] {
        let (world, other) = (World::start().await, Id::start().await);
        let to = format!("{}/token", other.http.uri());
        world.id.rules().instead = Some(ResponseTemplate::new(status).insert_header("location", &*to));
        let refused = refusal(&world.endpoint(world.auth())).await;
        assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_refused"), "{refused}");
        assert!(refused.message.contains("redirects"), "{refused}");
        assert!(other.asked().is_empty());
    }
}
