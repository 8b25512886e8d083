//! How the client says who it is, and what it asks for.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use da_node_executor::config::{McpAuthConfig, TokenEndpointAuthMethod};
use da_node_executor::domain::outcome::Category;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use crate::world::*;

#[tokio::test]
async fn a_client_with_a_secret_gets_a_token_for_this_server_alone() {
    let world = World::start().await;
    let session = world.session().await;
    assert_eq!(answer(&session, "any").await, "read", "the scope of the challenge");
    let asked = world.id.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    let form = &asked[0].form;
    assert_eq!(form["grant_type"], "client_credentials");
    assert_eq!(form["resource"], world.url());
    assert_eq!(form["scope"], "read");
    assert!(!form.contains_key("client_secret"), "it is in the header");
    let basic = asked[0].authorization.as_deref().and_then(|value| value.strip_prefix("Basic ")).expect("basic");
    let pair = BASE64_STANDARD.decode(basic).expect("base64");
    assert_eq!(String::from_utf8_lossy(&pair), "me:s3cr3t%2Fof+the%2Bclient", "both are encoded: RFC 6749 2.3.1");
    let served = world.served().await;
    assert!(served.iter().all(|request| request.url.query().is_none()), "never in an address");
    let bare = served.iter().filter(|request| !request.headers.contains_key("authorization")).count();
    assert_eq!(bare, 1, "every request after the first has the token");
}

#[tokio::test]
async fn the_secret_goes_into_the_form_where_the_server_takes_nothing_else() {
    let world = World::start().await;
    world.id.rules().metadata = json!({"token_endpoint_auth_methods_supported": ["client_secret_post"]});
    world.session().await;
    let asked = world.id.asked();
    assert_eq!((asked[0].form["client_id"].as_str(), asked[0].form["client_secret"].as_str()), ("me", SECRET));
    assert_eq!(asked[0].authorization, None);
}

#[tokio::test]
async fn a_server_that_says_nothing_means_the_header() {
    let world = World::start().await;
    world.id.rules().metadata = json!({"token_endpoint_auth_methods_supported": null});
    world.session().await;
    assert!(world.id.asked()[0].authorization.is_some());
}

#[tokio::test]
async fn the_operator_knows_better_than_the_metadata() {
    let world = World::start().await;
    world.id.rules().metadata = json!({"token_endpoint_auth_methods_supported": ["tls_client_auth"]});
    let refused = refusal(&world.endpoint(world.auth())).await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_misconfigured"));
    assert!(refused.message.contains("takes only tls_client_auth"), "{refused}");
    assert!(world.id.asked().is_empty(), "the secret was not shown around");
    let method = Some(TokenEndpointAuthMethod::ClientSecretPost);
    open(&world.endpoint(McpAuthConfig { token_endpoint_auth_method: method, ..world.auth() })).await;
    assert_eq!(world.id.asked()[0].form["client_secret"], SECRET);
}

#[tokio::test]
async fn a_public_client_has_its_id_alone() {
    let world = World::start().await;
    open(&world.endpoint(McpAuthConfig {
        client_id: Some(String::from("public")),
        token_endpoint_auth_method: Some(TokenEndpointAuthMethod::None),
        ..McpAuthConfig::default()
    }))
    .await;
    assert_eq!(world.id.asked()[0].form["client_id"], "public");
}

/// A new key, as a file would hold it.
fn key() -> String {
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("a key");
    let text = BASE64_STANDARD.encode(key.as_ref());
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

/// A part of the assertion in a request: 0 is its header, 1 are its claims.
fn part(asked: &Asked, at: usize) -> Value {
    let part = asked.form["client_assertion"].split('.').nth(at).expect("three parts");
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("JSON")
}

#[tokio::test]
async fn a_client_with_a_key_signs_for_the_issuer_and_the_key_may_be_replaced() {
    let world = World::start().await;
    let issuer = world.id.http.uri();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key.pem");
    let write = || std::fs::write(&file, key()).expect("it is written");
    write();
    let session = open(&world.endpoint(McpAuthConfig {
        client_id: Some(String::from("me")),
        private_key_file: Some(file.clone()),
        key_id: Some(String::from("k-1")),
        ..McpAuthConfig::default()
    }))
    .await;
    write();
    world.id.revoke();
    answer(&session, "any").await;
    let asked = world.id.asked();
    assert_eq!(asked.len(), 2, "one for each token");
    let form = &asked[0].form;
    assert_eq!(form["client_assertion_type"], "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
    assert!(!form.contains_key("client_id") && !form.contains_key("client_secret"), "{form:?}");
    assert_eq!(part(&asked[0], 0), json!({"alg": "ES256", "typ": "JWT", "kid": "k-1"}));
    let claims = part(&asked[0], 1);
    assert_eq!((&claims["aud"], &claims["sub"]), (&json!(issuer), &json!("me")));
    assert_ne!(claims["jti"], part(&asked[1], 1)["jti"], "an assertion is used once");
}

#[tokio::test]
async fn a_key_that_signs_in_no_way_that_the_server_takes_is_not_shown_around() {
    let world = World::start().await;
    let auth = McpAuthConfig {
        client_id: Some(String::from("me")),
        private_key: Some(key().into()),
        ..McpAuthConfig::default()
    };
    world.id.rules().metadata = json!({"token_endpoint_auth_signing_alg_values_supported": ["ES384", "PS256"]});
    let refused = refusal(&world.endpoint(auth.clone())).await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_misconfigured"), "{refused}");
    assert!(refused.message.contains("auth.private_key`") && refused.message.contains("ES384, PS256"), "{refused}");
    assert!(world.id.asked().is_empty());
    world.id.rules().metadata = json!({"token_endpoint_auth_signing_alg_values_supported": ["RS256", "ES256"]});
    open(&world.endpoint(auth)).await;
    assert_eq!(part(&world.id.asked()[0], 0)["alg"], "ES256");
}

#[tokio::test]
async fn with_a_configured_token_endpoint_an_assertion_is_for_the_issuer_or_for_that() {
    let world = World::start().await;
    let token_endpoint = format!("{}/token", world.id.http.uri());
    for issuer in [None, Some(String::from("https://id.example.com/tenant"))] {
        let meant = issuer.clone().unwrap_or_else(|| token_endpoint.clone());
        open(&world.endpoint(McpAuthConfig {
            client_id: Some(String::from("me")),
            private_key: Some(key().into()),
            token_endpoint: Some(token_endpoint.clone()),
            issuer,
            ..McpAuthConfig::default()
        }))
        .await;
        assert_eq!(part(world.id.asked().last().expect("it was asked"), 1)["aud"], meant);
    }
}

#[tokio::test]
async fn credentials_that_cannot_be_read_name_their_key_and_are_no_outage() {
    let world = World::start().await;
    let broken = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(broken.path(), "s3cr3t but no key").expect("it is written");
    let absent = std::path::PathBuf::from("/nonexistent/secret");
    let client = McpAuthConfig { client_id: Some(String::from("me")), ..McpAuthConfig::default() };
    for (auth, key) in [
        (McpAuthConfig { client_secret_file: Some(absent.clone()), ..client.clone() }, "client_secret_file"),
        (McpAuthConfig { private_key_file: Some(absent.clone()), ..client.clone() }, "private_key_file"),
        (McpAuthConfig { private_key_file: Some(broken.path().to_owned()), ..client.clone() }, "private_key_file"),
        (McpAuthConfig { token_file: Some(absent), ..McpAuthConfig::default() }, "token_file"),
    ] {
        let refused = refusal(&world.endpoint(auth)).await;
        assert_eq!(
            (refused.category, &*refused.code),
            (Category::Configuration, "mcp_auth_misconfigured"),
            "{refused}"
        );
        assert!(refused.message.contains(&format!("mcp.servers.crm.auth.{key}")), "{refused}");
        assert!(!refused.message.contains("s3cr3t"), "{refused}");
    }
    assert!(world.id.asked().is_empty());
}

#[tokio::test]
async fn a_workload_shows_what_its_platform_says_of_it_and_reads_it_anew_for_every_token() {
    let world = World::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "eyJ.first.s3cr3t\n").expect("it can be written");
    let auth = McpAuthConfig { assertion_file: Some(file.clone()), ..McpAuthConfig::default() };
    let session = open(&world.endpoint(auth)).await;
    std::fs::write(&file, "eyJ.second.s3cr3t\n").expect("it can be written");
    world.id.revoke();
    answer(&session, "any").await;
    let asked = world.id.asked();
    let shown: Vec<&str> = asked.iter().map(|asked| asked.form["assertion"].as_str()).collect();
    assert_eq!(shown, ["eyJ.first.s3cr3t", "eyJ.second.s3cr3t"]);
    for asked in &asked {
        assert_eq!(asked.form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
        assert_eq!((asked.form["resource"].as_str(), asked.form["scope"].as_str()), (&*world.url(), "read"));
        assert!(asked.authorization.is_none() && !asked.form.contains_key("client_id"), "{asked:?}");
    }
}

#[tokio::test]
async fn a_workload_that_is_also_a_client_says_so_beside_it() {
    let world = World::start().await;
    let auth = McpAuthConfig { assertion: Some("eyJ.a.b".into()), ..world.auth() };
    open(&world.endpoint(auth)).await;
    assert!(world.id.asked()[0].authorization.as_deref().is_some_and(|sent| sent.starts_with("Basic ")));
    let world = World::start().await;
    let client_id = Some(String::from("executor"));
    let auth = McpAuthConfig { assertion: Some("eyJ.a.b".into()), client_id, ..McpAuthConfig::default() };
    open(&world.endpoint(auth)).await;
    let asked = world.id.asked();
    assert_eq!((asked[0].form["client_id"].as_str(), asked[0].authorization.as_ref()), ("executor", None));
}

#[tokio::test]
async fn an_assertion_that_is_refused_is_shown_once_and_told_to_nobody() {
    let world = World::start().await;
    let said = json!({"error": "invalid_grant", "error_description": "eyJ.a.s3cr3t has expired"});
    world.id.rules().instead = Some(wiremock::ResponseTemplate::new(400).set_body_json(said));
    let auth = McpAuthConfig { assertion: Some("eyJ.a.s3cr3t".into()), ..McpAuthConfig::default() };
    let endpoint = world.endpoint(auth);
    for _ in 0..3 {
        let refused = refusal(&endpoint).await;
        assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_refused"), "{refused}");
        assert!(refused.message.contains("*** has expired; check the clock"), "{refused}");
    }
    assert_eq!(world.id.asked().len(), 1, "no other grant is tried either");
}
