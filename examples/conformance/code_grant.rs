//! Gets tokens by the authorization code flow where nobody has to log in: the suite's authorization server sends the
//! browser back at once, so following one redirect stands in for the person. A worker has no person at hand, which is
//! why this lives with the example: what is under test of the library is all that comes before and after.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use da_node_executor::clients::mcp::auth::{Ask, AuthError, Grant, Granted};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::{Client, Url, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// What the suite knows this client by where documents stand in for registration.
const CLIENT_DOCUMENT: &str = "https://conformance-test.local/client-metadata.json";
const REDIRECT: &str = "http://localhost:3000/callback";

/// A client that follows one redirect.
pub struct CodeGrant {
    http: Client,
    /// What was registered beforehand, if anything was.
    registered: Option<Registration>,
    /// What was registered here, with whom: credentials of one issuer are nothing to another.
    clients: Mutex<HashMap<String, Registration>>,
}

#[derive(Clone)]
struct Registration {
    id: String,
    secret: Option<SecretString>,
    /// How it authenticates at the token endpoint, if that was agreed.
    method: Option<String>,
}

impl CodeGrant {
    /// Registered beforehand if the scenario says so.
    pub fn new(context: &Value) -> reqwest::Result<Self> {
        let text = |name: &str| context[name].as_str().map(str::to_owned);
        let secret = text("client_secret").map(SecretString::from);
        let registered = text("client_id").map(|id| Registration { id, secret, method: None });
        // Where this is used alone, building a client would panic without one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().redirect(redirect::Policy::none()).no_proxy().build()?;
        Ok(Self { http, registered, clients: Mutex::default() })
    }

    async fn client(&self, ask: Ask<'_>) -> Result<Registration, AuthError> {
        let others = &ask.server.others;
        if let Some(registered) = &self.registered {
            return Ok(registered.clone());
        }
        if others.get("client_id_metadata_document_supported") == Some(&Value::Bool(true)) {
            return Ok(Registration { id: CLIENT_DOCUMENT.to_owned(), secret: None, method: Some("none".to_owned()) });
        }
        let known = |grant: &Self| {
            grant.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&ask.server.issuer).cloned()
        };
        if let Some(client) = known(self) {
            return Ok(client);
        }
        let beside = || ask.server.token_endpoint.replace("/token", "/register");
        let endpoint = others.get("registration_endpoint").and_then(Value::as_str).map_or_else(beside, str::to_owned);
        let wanted = json!({
            "client_name": "da-node-executor",
            "redirect_uris": [REDIRECT],
            "application_type": "native",
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
        });
        let answer = self.http.post(&endpoint).json(&wanted).send().await.map_err(|error| broken(ask, &error))?;
        let answer: Value = answer.json().await.map_err(|error| broken(ask, &error))?;
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        let id = text("client_id").ok_or_else(|| refused(ask, "registration_failed", ""))?;
        let client = Registration {
            id,
            secret: text("client_secret").map(SecretString::from),
            method: text("token_endpoint_auth_method"),
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(clients.entry(ask.server.issuer.clone()).or_insert(client).clone())
    }

    async fn code(&self, ask: Ask<'_>, client: &Registration, challenge: &str) -> Result<String, AuthError> {
        let others = &ask.server.others;
        // A document that says nothing of PKCE belongs to a server without it; one that was never there says nothing.
        let methods = others.get("code_challenge_methods_supported").and_then(Value::as_array);
        let without = methods.is_none_or(|methods| !methods.contains(&json!("S256")));
        if without && !others.is_empty() {
            return Err(refused(ask, "unsupported", "it does not say that it supports PKCE with S256"));
        }
        let beside = || ask.server.token_endpoint.replace("/token", "/authorize");
        let endpoint = others.get("authorization_endpoint").and_then(Value::as_str).map_or_else(beside, str::to_owned);
        let mut url = Url::parse(&endpoint).map_err(|_| refused(ask, "unsupported", "it has nowhere to log in"))?;
        let state = Uuid::now_v7().to_string();
        let mut scopes = ask.scopes.to_string();
        let offers = |name: &str, value: &str| {
            others.get(name).and_then(Value::as_array).is_some_and(|values| values.contains(&json!(value)))
        };
        if offers("scopes_supported", "offline_access") {
            scopes = format!("{scopes} offline_access").trim().to_owned();
        }
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &client.id)
            .append_pair("redirect_uri", REDIRECT)
            .append_pair("state", &state)
            .append_pair("code_challenge", challenge)
            .append_pair("code_challenge_method", "S256")
            .append_pair("resource", ask.resource);
        if !scopes.is_empty() {
            url.query_pairs_mut().append_pair("scope", &scopes);
        }
        let answer = self.http.get(url).send().await.map_err(|error| broken(ask, &error))?;
        let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
        let back = location.and_then(|text| Url::parse(text).ok());
        let back = back.ok_or_else(|| refused(ask, "interaction_required", "it wants a person"))?;
        let member = |name: &str| back.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        // RFC 9207: to the letter, and before anything else in the answer is believed.
        let promised = others.get("authorization_response_iss_parameter_supported") == Some(&Value::Bool(true));
        match member("iss") {
            Some(issuer) if issuer != ask.server.issuer => {
                return Err(refused(ask, "wrong_issuer", "another server answered"));
            }
            None if promised => return Err(refused(ask, "wrong_issuer", "nobody says who answered")),
            Some(_) | None => {}
        }
        if member("state") != Some(state) {
            return Err(refused(ask, "wrong_state", "the answer belongs to another question"));
        }
        member("code").ok_or_else(|| refused(ask, &member("error").unwrap_or_default(), ""))
    }

    async fn exchange(
        &self,
        ask: Ask<'_>,
        client: &Registration,
        mut form: Vec<(&str, String)>,
    ) -> Result<Granted, AuthError> {
        form.push(("resource", ask.resource.to_owned()));
        let supported = ask.server.token_endpoint_auth_methods_supported.as_deref().unwrap_or_default();
        let takes = |method: &str| supported.iter().any(|other| other == method);
        let method = match (&client.method, &client.secret) {
            (_, None) => "none",
            (Some(agreed), Some(_)) => agreed,
            (None, Some(_)) if supported.is_empty() || takes("client_secret_basic") => "client_secret_basic",
            (None, Some(_)) if takes("client_secret_post") => "client_secret_post",
            (None, Some(_)) => "none",
        };
        let secret = client.secret.as_ref().map(|secret| secret.expose_secret()).unwrap_or_default();
        let mut request = self.http.post(&ask.server.token_endpoint);
        if method == "client_secret_basic" {
            let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let pair = BASE64_STANDARD.encode(format!("{}:{}", encode(&client.id), encode(secret)));
            request = request.header("authorization", format!("Basic {pair}"));
        } else {
            form.push(("client_id", client.id.clone()));
            if method == "client_secret_post" {
                form.push(("client_secret", secret.to_owned()));
            }
        }
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        let answer = request.send().await.map_err(|error| broken(ask, &error))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| broken(ask, &error))?;
        if !status.is_success() {
            return Err(refused(ask, &format!("HTTP status {}", status.as_u16()), ""));
        }
        Granted::read(&body).map_err(|problem| refused(ask, "malformed", problem))
    }
}

impl Grant for CodeGrant {
    fn obtain<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Granted, AuthError>> {
        async move {
            let client = self.client(ask).await?;
            let verifier = format!("{}{}", Uuid::now_v7().simple(), Uuid::now_v7().simple());
            let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
            let code = self.code(ask, &client, &challenge).await?;
            let form = vec![
                ("grant_type", String::from("authorization_code")),
                ("code", code),
                ("redirect_uri", String::from(REDIRECT)),
                ("code_verifier", verifier),
            ];
            self.exchange(ask, &client, form).await
        }
        .boxed()
    }

    fn refresh<'a>(&'a self, ask: Ask<'a>, token: &'a SecretString) -> BoxFuture<'a, Result<Granted, AuthError>> {
        async move {
            let client = self.client(ask).await?;
            let form = vec![
                ("grant_type", String::from("refresh_token")),
                ("refresh_token", token.expose_secret().to_owned()),
            ];
            self.exchange(ask, &client, form).await
        }
        .boxed()
    }
}

fn server() -> Arc<str> {
    Arc::from("conformance")
}

fn refused(ask: Ask<'_>, error: &str, description: &str) -> AuthError {
    let (error, description) = (error.to_owned(), description.to_owned());
    AuthError::Refused { server: server(), issuer: ask.server.issuer.clone(), error, description }
}

fn broken(ask: Ask<'_>, error: &reqwest::Error) -> AuthError {
    let what = format!("an answer of {}", ask.server.issuer);
    AuthError::Unavailable { server: server(), what, cause: error.to_string(), retry_after: None }
}
