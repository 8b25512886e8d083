//! Nothing secret is told: not in errors, not in logs at any level, not by `Debug`, whatever the other side says.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use da_node_executor::clients::mcp::Endpoint;
use da_node_executor::config::{McpAuthConfig, McpServerConfig};
use da_node_executor::domain::outcome::{Category, Failure};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use wiremock::ResponseTemplate;

use crate::world::*;

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

/// Everything of all targets, of this thread.
fn listen() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false).with_writer(log.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

/// The forms in which what must not be told would be told.
fn forms(secret: &str) -> Vec<String> {
    let encoded = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect::<String>();
    let basic = BASE64_STANDARD.encode(format!("me:{encoded}"));
    vec![secret.to_owned(), encoded, BASE64_STANDARD.encode(secret), basic]
}

fn assert_hidden(text: &str, where_: &str) {
    for form in forms(SECRET).into_iter().chain(["t0k3n-", "r3fr3sh-", "eyJ"].map(String::from)) {
        assert!(!text.contains(&form), "{form} is told in {where_}: {text}");
    }
}

#[tokio::test]
async fn logs_of_every_level_have_no_secret_in_them() {
    let (log, _guard) = listen();
    let world = World::start().await;
    world.wants().tools = needs(&[("write", "write")]);
    world.id.rules().refresh = true;
    let session = world.session().await;
    answer(&session, "write").await;
    world.id.revoke();
    answer(&session, "any").await;
    world.id.revoke();
    world.id.rules().instead = Some(ResponseTemplate::new(500));
    failure(&session, "any").await;
    session.close().await;
    let text = log.text();
    // The parties of this test run in the same process and may log what they see; only our side counts.
    let ours: Vec<&str> =
        text.lines().filter(|line| !line.contains("wiremock") && !line.contains("hyper::server")).collect();
    assert!(ours.iter().any(|line| line.contains("token obtained")), "the log was kept: {text}");
    assert!(ours.iter().any(|line| line.contains("for this authorization server alone")), "{text}");
    assert_hidden(&ours.join("\n"), "the log");
}

#[tokio::test]
async fn logs_have_no_other_kind_of_credential_in_them_either() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "f1le-t0k3n").expect("it is written");
    let generated =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("a key");
    let key = BASE64_STANDARD.encode(generated.as_ref());
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
    let (client_id, auth) = (Some(String::from("me")), McpAuthConfig::default);
    for (auth, secret) in [
        (McpAuthConfig { token: Some("st4tic-t0k3n".into()), ..auth() }, "st4tic-t0k3n"),
        (McpAuthConfig { token_file: Some(file), ..auth() }, "f1le-t0k3n"),
        (McpAuthConfig { client_id, private_key: Some(pem.into()), ..auth() }, &*key),
        (McpAuthConfig { assertion: Some("eyJ.a.s3cr3t".into()), ..auth() }, "a.s3cr3t"),
    ] {
        let (log, _guard) = listen();
        let world = World::start().await;
        for token in ["st4tic-t0k3n", "f1le-t0k3n"] {
            world.id.rules().good.insert(token.to_owned(), Default::default());
        }
        let headers = [(String::from("x-key"), "h3ad3r-k3y".into())].into();
        let config = McpServerConfig { url: Some(world.url()), headers, auth: Some(auth), ..Default::default() };
        let session = open(&Endpoint::new("crm", config)).await;
        answer(&session, "any").await;
        let served = world.served().await;
        assert!(served.iter().all(|request| request.headers["x-key"] == "h3ad3r-k3y"));
        world.id.revoke();
        world.id.rules().instead = Some(ResponseTemplate::new(400).set_body_json(json!({"error": "invalid_client"})));
        let refused = failure(&session, "any").await;
        session.close().await;
        let text = log.text();
        assert!(text.contains("session opened"), "the log was kept: {text}");
        let ours: Vec<&str> =
            text.lines().filter(|line| !line.contains("wiremock") && !line.contains("hyper::server")).collect();
        for hidden in [secret, "h3ad3r-k3y", "t0k3n-", "eyJ"] {
            let told = ours.iter().find(|line| line.contains(hidden));
            assert_eq!(told, None, "{hidden} is told in the log");
            assert!(!refused.message.contains(hidden), "{refused}");
        }
    }
}

#[tokio::test]
async fn a_server_that_repeats_what_it_was_sent_does_not_get_it_into_an_error() {
    let words = forms(SECRET).join(" ");
    for (status, body) in [
        (401, json!({"error": "invalid_client", "error_description": format!("not me: {words}")})),
        (400, json!({"error": words, "error_description": "x"})),
        (400, json!({"error": "invalid_request", "error_uri": words})),
        (400, json!(words)),
        (500, json!({"error": words})),
        (200, json!({"access_token": format!("{words}\n"), "token_type": "Bearer"})),
        (200, json!({"token_type": words, "access_token": "t0k3n-1"})),
    ] {
        let (log, _guard) = listen();
        let world = World::start().await;
        world.id.rules().instead = Some(ResponseTemplate::new(status).set_body_json(&body));
        let Err(error) = world.endpoint(world.auth()).connect().await else { panic!("{body} was taken") };
        assert_hidden(&format!("{error} {error:?}"), "the error");
        let failure = Failure::from(error);
        assert_hidden(&serde_json::to_string(&failure).expect("it is told in events"), "the failure");
        let text = log.text();
        let ours: Vec<&str> = text.lines().filter(|line| line.contains("da_node_executor")).collect();
        assert_hidden(&ours.join("\n"), "the log");
    }
}

#[tokio::test]
async fn what_an_authorization_server_says_reaches_the_operator_without_the_secret() {
    let world = World::start().await;
    let body = json!({"error": "invalid_client", "error_description": format!("key 7 is revoked, not {SECRET}")});
    world.id.rules().instead = Some(ResponseTemplate::new(401).set_body_json(body));
    let refused = refusal(&world.endpoint(world.auth())).await;
    assert_eq!((refused.category, &*refused.code), (Category::Configuration, "mcp_auth_refused"));
    assert!(refused.message.contains("key 7 is revoked, not ***"), "{refused}");
    assert!(
        refused.message.contains("check client_id and the secret or the key in `mcp.servers.crm.auth`"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_busy_authorization_server_is_waited_for() {
    let world = World::start().await;
    for (status, after) in [(429, Some(9)), (503, None), (500, None)] {
        let mut answer = ResponseTemplate::new(status);
        if let Some(seconds) = after {
            answer = answer.insert_header("retry-after", seconds.to_string().as_str());
        }
        world.id.rules().instead = Some(answer);
        let refused = refusal(&world.endpoint(world.auth())).await;
        assert_eq!((refused.category, &*refused.code), (Category::Retriable, "mcp_auth_unavailable"), "{refused}");
        assert_eq!(refused.retry_after.map(|wait| wait.as_secs()), after);
    }
}

#[test]
fn the_configuration_shows_no_secret_by_debug() {
    let auth = McpAuthConfig {
        token: Some(SECRET.into()),
        client_secret: Some(SECRET.into()),
        private_key: Some(SECRET.into()),
        issuer: Some(format!("https://me:{}@id/?key=s3cr3t/of", "s3cr3t")),
        ..McpAuthConfig::default()
    };
    let shown = format!("{auth:?}");
    assert!(!shown.contains("s3cr3t"), "{shown}");
}
