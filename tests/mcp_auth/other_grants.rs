//! Other ways to get a token than the library's own, plugged in where it ends: here the authorization code flow of the
//! conformance suite's client.

use std::sync::Arc;

use da_node_executor::clients::mcp::Endpoint;
use da_node_executor::clients::mcp::auth::OAuth;
use da_node_executor::config::McpServerConfig;
use serde_json::Value;

use crate::code_grant::CodeGrant;
use crate::world::*;

#[tokio::test]
async fn a_grant_that_registers_by_itself_does_so_anew_when_the_server_moves() {
    let (world, other) = (World::start().await, Id::start().await);
    world.id.rules().refresh = true;
    let config = McpServerConfig { url: Some(world.url()), connect_timeout: PATIENCE, ..McpServerConfig::default() };
    let grant = Arc::new(CodeGrant::new(&Value::Null).expect("a client"));
    let oauth = Arc::new(OAuth::with_grant("crm", &config, grant));
    let session = open(&Endpoint::new("crm", config).authorized(oauth)).await;
    answer(&session, "any").await;
    let asked = world.id.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (asked[0].form["grant_type"].as_str(), asked[0].form["resource"].as_str()),
        ("authorization_code", &*world.url())
    );

    world.move_to(&other);
    answer(&session, "any").await;
    assert_eq!(world.id.asked().len(), 1, "the old one is done with");
    let (before, after) = (&asked[0].authorization, &other.asked()[0].authorization);
    assert_eq!(other.asked()[0].form["grant_type"], "authorization_code", "a refresh token belongs to who gave it");
    assert!(before.is_some() && after.is_some() && before != after, "credentials of one issuer are nothing to another");
}
