//! The grants of a client that acts for itself: by credentials of its own (RFC 6749 §4.4), with the authentication that
//! the server supports, or by what its platform says of it (RFC 7523 §2.1). Both are for one authorization server alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::form_urlencoded;

use super::assertion::AssertionKey;
use super::documents::ServerMetadata;
use super::error::{AuthError, Redact};
use super::fetch::{Fetch, Reply, place};
use super::grant::{Ask, Grant};
use super::secret::Secret;
use super::token::Granted;
use crate::config::{McpAuthConfig, TokenEndpointAuthMethod};

/// The grant of a workload that its platform vouches for.
const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A client with credentials of its own.
pub(super) struct ClientCredentials {
    server: Arc<str>,
    config: McpAuthConfig,
    fetch: Arc<Fetch>,
    /// Whose credentials they are: as configured, or whoever got them first.
    issuer: Mutex<Option<String>>,
}

/// What authenticates one request.
#[derive(Default)]
struct Proof {
    header: Option<HeaderValue>,
    form: Vec<(&'static str, SecretString)>,
    redact: Redact,
}

impl ClientCredentials {
    /// A client as it is configured.
    pub(super) fn new(server: Arc<str>, config: McpAuthConfig, fetch: Arc<Fetch>) -> Self {
        let issuer = Mutex::new(config.issuer.clone());
        Self { server, config, fetch, issuer }
    }

    async fn request(&self, ask: Ask<'_>, mut form: Vec<(&str, SecretString)>) -> Result<Granted, AuthError> {
        self.bind(&ask.server.issuer)?;
        let proof = self.proof(ask.server, ask.deadline).await?;
        let sent = form.iter().filter(|(name, _)| matches!(*name, "refresh_token" | "assertion"));
        let redact = sent.fold(proof.redact, |redact, (_, token)| redact.also(token));
        if !ask.resource.is_empty() {
            form.push(("resource", SecretString::from(ask.resource)));
        }
        form.extend(proof.form);
        let pairs = form.iter().map(|(name, value)| (*name, value.expose_secret()));
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        let endpoint = match &self.config.token_endpoint {
            // The operator's word was checked when the configuration was read.
            Some(configured) if *configured == ask.server.token_endpoint => {
                configured.parse().map_err(|_| self.setting("token_endpoint", String::from("is no address")))?
            }
            Some(_) | None => self.fetch.named("token endpoint", &ask.server.token_endpoint)?,
        };
        let reply = self.fetch.post("a token", &endpoint, body, proof.header, ask.deadline).await?;
        let what = || format!("the token from {}", place(&endpoint));
        if !reply.status.is_success() {
            return Err(self.refused(&ask.server.issuer, what(), &reply, &redact));
        }
        Granted::read(&reply.body).map_err(|problem| AuthError::Malformed {
            server: Arc::clone(&self.server),
            what: what(),
            problem: String::from(problem),
        })
    }

    /// What a token is asked for with.
    async fn grant(&self, deadline: Instant) -> Result<Vec<(&'static str, SecretString)>, AuthError> {
        let config = &self.config;
        let Some(source) = Secret::of(config.assertion.as_ref(), config.assertion_file.as_ref()) else {
            return Ok(vec![("grant_type", SecretString::from("client_credentials"))]);
        };
        let key = if config.assertion.is_some() { "assertion" } else { "assertion_file" };
        // Platforms replace it long before it ends.
        let assertion = source.read(deadline).await.map_err(|problem| self.setting(key, problem))?;
        Ok(vec![("grant_type", SecretString::from(JWT_BEARER)), ("assertion", assertion)])
    }

    /// The credentials go to the first issuer that gets them, and never to another.
    fn bind(&self, issuer: &str) -> Result<(), AuthError> {
        let mut bound = self.issuer.lock().unwrap_or_else(PoisonError::into_inner);
        match &*bound {
            Some(bound) if bound == issuer => Ok(()),
            Some(bound) => Err(AuthError::IssuerChanged {
                server: Arc::clone(&self.server),
                bound: bound.clone(),
                offered: issuer.to_owned(),
            }),
            None => {
                tracing::info!(mcp.server = %self.server, issuer, "the credentials are for this authorization server alone from now on");
                *bound = Some(issuer.to_owned());
                Ok(())
            }
        }
    }

    async fn proof(&self, metadata: &ServerMetadata, deadline: Instant) -> Result<Proof, AuthError> {
        use TokenEndpointAuthMethod as Method;
        let config = &self.config;
        let client = config.client_id.clone().unwrap_or_default();
        let client_id = || ("client_id", SecretString::from(client.as_str()));
        let method = self.method(metadata)?;
        if method == Method::None {
            let form = if client.is_empty() { Vec::new() } else { vec![client_id()] };
            return Ok(Proof { form, ..Proof::default() });
        }
        if method == Method::PrivateKeyJwt {
            let (key, source) = match &config.private_key {
                Some(given) => ("private_key", Secret::Given(given.clone())),
                None => ("private_key_file", Secret::File(config.private_key_file.clone().unwrap_or_default())),
            };
            let pem = source.read(deadline).await.map_err(|problem| self.setting(key, problem))?;
            let signer = AssertionKey::from_pem(&pem).map_err(|problem| self.setting(key, String::from(problem)))?;
            let accepted = metadata.token_endpoint_auth_signing_alg_values_supported.as_deref();
            let assertion = signer
                .sign(&client, &metadata.issuer, config.key_id.as_deref(), accepted)
                .map_err(|problem| self.setting(key, problem))?;
            let redact = Redact::default().also(&assertion);
            let form =
                vec![("client_assertion_type", SecretString::from(ASSERTION_TYPE)), ("client_assertion", assertion)];
            return Ok(Proof { form, redact, ..Proof::default() });
        }
        let key = if config.client_secret.is_some() { "client_secret" } else { "client_secret_file" };
        let source = Secret::of(config.client_secret.as_ref(), config.client_secret_file.as_ref());
        let source = source.ok_or_else(|| self.setting("client_secret", String::from("is not set")))?;
        let secret = source.read(deadline).await.map_err(|problem| self.setting(key, problem))?;
        let redact = Redact::default().also(&secret);
        if method == Method::ClientSecretPost {
            return Ok(Proof { form: vec![client_id(), ("client_secret", secret)], redact, header: None });
        }
        // Both parts are encoded as in a form before they are joined: RFC 6749 §2.3.1.
        let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let pair = BASE64_STANDARD.encode(format!("{}:{}", encode(&client), encode(secret.expose_secret())));
        let header = HeaderValue::try_from(format!("Basic {pair}"))
            .map_err(|_| self.setting(key, String::from("cannot be sent in a header")))?;
        let redact = redact.also(&SecretString::from(pair));
        Ok(Proof { header: Some(header), form: Vec::new(), redact })
    }

    /// How we authenticate: as configured, else in the best way that the server and the credentials have in common.
    fn method(&self, metadata: &ServerMetadata) -> Result<TokenEndpointAuthMethod, AuthError> {
        use TokenEndpointAuthMethod as Method;
        let config = &self.config;
        if let Some(method) = config.token_endpoint_auth_method {
            return Ok(method);
        }
        let secret = config.client_secret.is_some() || config.client_secret_file.is_some();
        let key = config.private_key.is_some() || config.private_key_file.is_some();
        if config.is_vouched_for() && !secret && !key {
            return Ok(Method::None);
        }
        let supported = metadata.token_endpoint_auth_methods_supported.as_deref();
        let ours: &[Method] =
            if key { &[Method::PrivateKeyJwt] } else { &[Method::ClientSecretBasic, Method::ClientSecretPost] };
        // A server that says nothing means `client_secret_basic`; one that was never asked may mean anything.
        let Some(supported) = supported else { return Ok(ours[0]) };
        let common = ours.iter().find(|method| supported.iter().any(|other| other == method.as_str()));
        common.copied().ok_or_else(|| {
            let (ours, theirs) =
                (ours.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(" or "), supported.join(", "));
            self.setting(
                "client_id",
                format!(
                    "authenticates by {ours}, but {} takes only {theirs}; set other credentials, or \
                     `token_endpoint_auth_method` if it takes more than it says",
                    metadata.issuer
                ),
            )
        })
    }

    fn refused(&self, issuer: &str, what: String, reply: &Reply, redact: &Redact) -> AuthError {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Answer {
            error: String,
            error_description: String,
        }
        let server = Arc::clone(&self.server);
        let answer: Answer = serde_json::from_slice(&reply.body).unwrap_or_default();
        let (status, said) = (reply.status, redact.excerpt(&answer.error));
        let busy = status.is_server_error()
            || matches!(status.as_u16(), 408 | 429)
            || matches!(&*said, "temporarily_unavailable" | "server_error" | "slow_down");
        let cause = if said.is_empty() { format!("HTTP status {}", status.as_u16()) } else { said };
        if busy {
            return AuthError::Unavailable { server, what, cause, retry_after: reply.retry_after };
        }
        let description = if status.is_redirection() {
            String::from("it redirects, and credentials are not sent on")
        } else {
            redact.excerpt(&answer.error_description)
        };
        AuthError::Refused { server, issuer: issuer.to_owned(), error: cause, description }
    }

    fn setting(&self, key: &'static str, problem: String) -> AuthError {
        AuthError::Setting { server: Arc::clone(&self.server), key, problem }
    }
}

impl Grant for ClientCredentials {
    fn obtain<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Granted, AuthError>> {
        async move {
            let mut form = self.grant(ask.deadline).await?;
            if !ask.scopes.is_empty() {
                form.push(("scope", SecretString::from(ask.scopes.to_string())));
            }
            self.request(ask, form).await
        }
        .boxed()
    }

    fn refresh<'a>(&'a self, ask: Ask<'a>, token: &'a SecretString) -> BoxFuture<'a, Result<Granted, AuthError>> {
        let form = vec![("grant_type", SecretString::from("refresh_token")), ("refresh_token", token.clone())];
        self.request(ask, form).boxed()
    }
}
