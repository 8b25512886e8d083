//! Who authorises the client under test in the scenarios `auth/*` of the conformance suite: the library itself where
//! the client acts for itself, and one that follows redirects where the suite plays the person who logs in.

use std::sync::Arc;

use anyhow::Context as _;
use da_node_executor::clients::mcp::Endpoint;
use da_node_executor::clients::mcp::auth::OAuth;
use da_node_executor::config::{McpAuthConfig, McpServerConfig};
use reqwest::{Client, Url};
use serde_json::Value;

use super::code_grant::CodeGrant;

/// The server of a scenario, with the credentials that the suite has handed out for it.
pub async fn endpoint(scenario: &str, context: &Value, mut config: McpServerConfig) -> anyhow::Result<Endpoint> {
    let text = |name: &str| context[name].as_str().map(str::to_owned);
    if !scenario.starts_with("auth/") {
        return Ok(Endpoint::new("conformance", config));
    }
    if scenario.starts_with("auth/client-credentials") {
        config.auth = Some(McpAuthConfig {
            client_id: text("client_id"),
            client_secret: text("client_secret").map(Into::into),
            private_key: text("private_key_pem").map(Into::into),
            ..McpAuthConfig::default()
        });
        return Ok(Endpoint::new("conformance", config));
    }
    if scenario == "auth/wif-jwt-bearer" {
        let assertion = text("valid_jwt").map(Into::into);
        config.auth = Some(McpAuthConfig { client_id: text("client_id"), assertion, ..McpAuthConfig::default() });
        return Ok(Endpoint::new("conformance", config));
    }
    if scenario == "auth/enterprise-managed-authorization" {
        config.auth = Some(McpAuthConfig {
            client_id: text("client_id"),
            client_secret: text("client_secret").map(Into::into),
            assertion: Some(vouched_for(context, &config).await?.into()),
            ..McpAuthConfig::default()
        });
        return Ok(Endpoint::new("conformance", config));
    }
    let mut auth = McpAuthConfig::default();
    if scenario == "auth/2025-03-26-oauth-endpoint-fallback" {
        // A server without any metadata: an operator would write down what the revision of that day took for granted.
        let url = Url::parse(config.url.as_deref().unwrap_or_default()).context("the server's URL")?;
        auth.token_endpoint = Some(url.join("/token")?.into());
    }
    let with_auth = McpServerConfig { auth: Some(auth), ..config.clone() };
    let oauth = OAuth::with_grant("conformance", &with_auth, Arc::new(CodeGrant::new(context)?));
    Ok(Endpoint::new("conformance", config).authorized(Arc::new(oauth)))
}

/// What the platform of an enterprise does beside a worker: it exchanges the identity of whoever logged in for a token by
/// which it vouches at the server's authorization server (RFC 8693).
async fn vouched_for(context: &Value, config: &McpServerConfig) -> anyhow::Result<String> {
    // Where this is used alone, building a client would panic without one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = Client::builder().no_proxy().build()?;
    let server = Url::parse(config.url.as_deref().unwrap_or_default()).context("the server's URL")?;
    let metadata = server.join("/.well-known/oauth-protected-resource/mcp")?;
    let metadata: Value = http.get(metadata).send().await?.json().await?;
    let given = |name: &str| context[name].as_str().with_context(|| format!("the context has no `{name}`"));
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:id-jag"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:id_token"),
        ("subject_token", given("idp_id_token")?),
        ("client_id", given("idp_client_id")?),
        ("audience", metadata["authorization_servers"][0].as_str().context("nobody gives tokens")?),
        ("resource", metadata["resource"].as_str().context("the resource has no name")?),
    ];
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = http.post(given("idp_token_endpoint")?).body(body);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let answer: Value = request.send().await?.error_for_status()?.json().await?;
    answer["access_token"].as_str().map(str::to_owned).context("no token was given")
}
