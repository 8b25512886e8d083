//! How long a token is used, when it is replaced, and that nobody asks for one that another has just got.

use std::time::Duration;

use da_node_executor::clients::mcp::Era;
use da_node_executor::domain::outcome::Category;
use futures_util::future::join_all;
use wiremock::ResponseTemplate;

use crate::world::*;

#[tokio::test]
async fn a_token_outlives_the_session_that_it_was_got_for() {
    let world = World::start().await;
    let endpoint = world.endpoint(world.auth());
    open(&endpoint).await.close().await;
    open(&endpoint).await.close().await;
    assert_eq!(world.id.asked().len(), 1);
}

#[tokio::test]
async fn a_hundred_calls_without_a_good_token_make_one_request_for_one() {
    let world = World::start().await;
    let session = world.session().await;
    world.id.revoke();
    world.id.rules().delay = Duration::from_millis(200);
    let answers = join_all((0..100).map(|_| answer(&session, "any"))).await;
    assert_eq!(answers.len(), 100);
    assert_eq!(world.id.asked().len(), 2, "one for the session, one for all of them");
}

#[tokio::test]
async fn a_hundred_calls_share_one_refusal_too() {
    let world = World::start().await;
    let session = world.session().await;
    world.id.revoke();
    let body = serde_json::json!({"error": "temporarily_unavailable"});
    world.id.rules().instead = Some(ResponseTemplate::new(503).set_body_json(body));
    world.id.rules().delay = Duration::from_millis(200);
    let failures = join_all((0..100).map(|_| failure(&session, "any"))).await;
    for failure in failures {
        assert_eq!((failure.category, &*failure.code), (Category::Retriable, "mcp_auth_unavailable"), "{failure}");
    }
    assert_eq!(world.id.asked().len(), 2);
}

#[tokio::test]
async fn an_ended_token_is_replaced_before_it_is_sent() {
    let world = World::start().await;
    world.id.rules().expires_in = Some(0);
    let session = world.session().await;
    let before = world.id.asked().len();
    answer(&session, "any").await;
    assert!(world.id.asked().len() > before);
    let refused = world.served().await.iter().filter(|request| !request.headers.contains_key("authorization")).count();
    assert_eq!(refused, 1, "only the very first request went without");
}

#[tokio::test]
async fn a_refresh_token_is_used_and_given_up_when_it_is_refused() {
    let world = World::start().await;
    world.id.rules().refresh = true;
    let session = world.session().await;
    world.id.revoke();
    answer(&session, "any").await;
    let asked = world.id.asked();
    assert_eq!(
        (asked[1].form["grant_type"].as_str(), asked[1].form["refresh_token"].as_str()),
        ("refresh_token", "r3fr3sh-1")
    );
    assert_eq!(asked[1].form["resource"], world.url());
    assert!(asked[1].authorization.is_some(), "a refresh token alone is worth nothing");

    world.id.rules().refreshable = false;
    let session = world.session().await;
    world.id.revoke();
    answer(&session, "any").await;
    let grants: Vec<String> = world.id.asked().iter().skip(2).map(|asked| asked.form["grant_type"].clone()).collect();
    assert_eq!(grants, ["client_credentials", "refresh_token", "client_credentials"]);
}

#[tokio::test]
async fn a_refresh_token_that_is_not_replaced_serves_on() {
    let world = World::start().await;
    {
        let mut rules = world.id.rules();
        (rules.refresh, rules.expires_in) = (true, Some(0));
    }
    let session = world.session().await;
    answer(&session, "any").await;
    // From here on each token comes without another to get the next one.
    let (before, last) = (world.id.asked().len(), format!("r3fr3sh-{}", world.id.rules().given));
    world.id.rules().refresh = false;
    for _ in 0..3 {
        answer(&session, "any").await;
    }
    let asked = world.id.asked().split_off(before);
    assert!(asked.len() >= 3, "{asked:?}");
    for asked in asked {
        assert_eq!(asked.form.get("refresh_token"), Some(&last), "{asked:?}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_fresh_tokens_too_ends_in_an_error_and_no_storm() {
    let world = World::start().await;
    let session = world.session().await;
    // Nothing that the authorization server gives is good here from now on.
    world.id.revoke();
    let body = serde_json::json!({"access_token": "n0t-y0urs", "token_type": "Bearer", "expires_in": 3600});
    world.id.rules().instead = Some(ResponseTemplate::new(200).set_body_json(body));
    let refused = failure(&session, "any").await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_unauthorized"), "{refused}");
    assert!(refused.message.contains("audience"), "{refused}");
    let asked = world.id.asked().len();
    for refused in join_all((0..20).map(|_| failure(&session, "any"))).await {
        assert_eq!(&*refused.code, "mcp_unauthorized");
    }
    assert_eq!(world.id.asked().len(), asked, "more of the same would help nobody");
}

#[tokio::test]
async fn a_client_that_is_refused_is_not_tried_again_and_again() {
    let world = World::start().await;
    let endpoint =
        world.endpoint(da_node_executor::config::McpAuthConfig { client_secret: Some("wrong".into()), ..world.auth() });
    for _ in 0..5 {
        let refused = refusal(&endpoint).await;
        assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_refused"), "{refused}");
        assert!(refused.message.contains("invalid_client; check client_id"), "{refused}");
    }
    assert_eq!(world.id.asked().len(), 1, "over and over may lock the client out");
}

#[tokio::test]
async fn a_slow_authorization_server_says_nothing_of_the_era_of_the_server() {
    let world = World::start().await;
    world.wants().modern = true;
    // The first question may go unanswered for half of the time to connect.
    let limit = Duration::from_secs(2);
    world.id.rules().delay = limit.mul_f64(0.6);
    let session = open(&world.endpoint_with(world.auth(), limit)).await;
    assert_eq!(session.info().era, Era::Modern);
}
