//! Who authorises the client under test in the scenarios `auth/*` of the conformance suite: the library itself where
//! the client acts for itself, and one that follows redirects where the suite plays the person who logs in.

use std::sync::Arc;

use anyhow::Context as _;
use da_node_executor::clients::mcp::Endpoint;
use da_node_executor::clients::mcp::auth::OAuth;
use da_node_executor::config::{McpAuthConfig, McpServerConfig};
use reqwest::Url;
use serde_json::Value;

use super::code_grant::CodeGrant;

/// The server of a scenario, with the credentials that the suite has handed out for it.
pub fn endpoint(scenario: &str, context: &Value, mut config: McpServerConfig) -> anyhow::Result<Endpoint> {
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
