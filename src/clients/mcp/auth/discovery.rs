//! Finds out who gives tokens for an MCP server: its own metadata, then that of the authorization server it names.
//! Whether our credentials may be sent there is decided by who holds them.

use std::sync::Arc;
use std::time::Instant;

use reqwest::Url;
use serde::de::DeserializeOwned;
use serde_json::Map;

use super::challenge::BearerChallenge;
use super::documents::{
    ResourceMetadata, ServerMetadata, canonical_resource, covers, resource_metadata_places, same_issuer,
    server_metadata_places,
};
use super::error::AuthError;
use super::fetch::{Fetch, place};
use super::scopes::Scopes;
use crate::clients::mcp::error::excerpt;
use crate::config::McpAuthConfig;

/// Where tokens for a server come from.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Who gives them.
    pub(super) server: ServerMetadata,
    /// What they are for.
    pub(super) resource: String,
    /// The scopes that the resource knows.
    pub(super) scopes: Option<Scopes>,
}

/// How one server's authorization server is found.
pub(super) struct Discovery<'a> {
    /// The MCP server.
    pub(super) name: &'a Arc<str>,
    /// Its address.
    pub(super) url: &'a Url,
    /// What is configured.
    pub(super) config: &'a McpAuthConfig,
    /// How others are asked.
    pub(super) fetch: &'a Fetch,
    /// Until when.
    pub(super) deadline: Instant,
}

/// Where tokens come from if the operator has said so: nobody needs to be asked.
pub(super) fn configured(url: &Url, config: &McpAuthConfig) -> Option<Place> {
    let token_endpoint = config.token_endpoint.clone()?;
    // An assertion is meant for the issuer; whoever goes by the endpoint alone is meant by that.
    let issuer = config.issuer.clone().unwrap_or_else(|| token_endpoint.clone());
    let server = ServerMetadata {
        issuer,
        token_endpoint,
        token_endpoint_auth_methods_supported: None,
        token_endpoint_auth_signing_alg_values_supported: None,
        others: Map::new(),
    };
    let resource = config.resource.clone().unwrap_or_else(|| canonical_resource(url));
    Some(Place { server, resource, scopes: None })
}

impl Discovery<'_> {
    /// Asks the server, then whom it names.
    pub(super) async fn find(&self, challenge: &BearerChallenge) -> Result<Place, AuthError> {
        if let Some(place) = configured(self.url, self.config) {
            return Ok(place);
        }
        let metadata = self.resource_metadata(challenge).await?;
        let (issuer, resource, scopes) = match metadata {
            Some(metadata) => {
                let resource = self.resource(&metadata)?;
                let scopes = metadata.scopes_supported.as_deref();
                let scopes = scopes.map(|scopes| scopes.iter().map(String::as_str).collect());
                (self.issuer(&metadata)?, resource, scopes)
            }
            // Servers of 2025-03-26 had no metadata of their own: they gave their tokens themselves.
            None => {
                let own = || self.url.origin().ascii_serialization();
                let resource = self.config.resource.clone().unwrap_or_else(|| canonical_resource(self.url));
                (self.config.issuer.clone().unwrap_or_else(own), resource, None)
            }
        };
        let server = self.server_metadata(&issuer).await?;
        self.fetch.named("token endpoint", &server.token_endpoint)?;
        tracing::debug!(mcp.server = %self.name, issuer = server.issuer, resource, "authorization server found");
        Ok(Place { server, resource, scopes })
    }

    async fn resource_metadata(&self, challenge: &BearerChallenge) -> Result<Option<ResourceMetadata>, AuthError> {
        let places = match &challenge.resource_metadata {
            Some(named) => vec![self.fetch.named("`resource_metadata`", named)?],
            None => resource_metadata_places(self.url),
        };
        let mut problems = Vec::new();
        let found = self.first("metadata of the resource", places, &mut problems).await?;
        // What the server points to has to be there; without a pointer there may be nothing.
        if found.is_none() && (challenge.resource_metadata.is_some() || problems.iter().any(|(_, lasting)| *lasting)) {
            return Err(self.undiscovered(&problems));
        }
        Ok(found)
    }

    /// What the token is for. A server that calls itself by somebody else's name would get that one's tokens.
    fn resource(&self, metadata: &ResourceMetadata) -> Result<String, AuthError> {
        let wanted = self.config.resource.as_ref();
        if covers(&metadata.resource, self.url) || wanted.is_some_and(|wanted| same_issuer(wanted, &metadata.resource))
        {
            return Ok(wanted.unwrap_or(&metadata.resource).clone());
        }
        Err(self.untrusted(format!(
            "it calls itself `{}`, which is not where it was asked; if that is right, set `mcp.servers.{}.auth.resource` to it",
            excerpt(&metadata.resource),
            self.name
        )))
    }

    fn issuer(&self, metadata: &ResourceMetadata) -> Result<String, AuthError> {
        let named = &metadata.authorization_servers;
        match &self.config.issuer {
            Some(pinned) if named.is_empty() || named.iter().any(|named| same_issuer(named, pinned)) => {
                Ok(pinned.clone())
            }
            Some(pinned) => Err(AuthError::IssuerChanged {
                server: Arc::clone(self.name),
                bound: pinned.clone(),
                offered: excerpt(&named.join(", ")),
            }),
            None => named.first().cloned().ok_or_else(|| {
                self.undiscovered(&[(String::from("its metadata names no authorization server"), true)])
            }),
        }
    }

    async fn server_metadata(&self, issuer: &str) -> Result<ServerMetadata, AuthError> {
        let url = match &self.config.issuer {
            Some(pinned) if pinned == issuer => {
                Url::parse(issuer).map_err(|_| self.untrusted(String::from("`issuer` is no address")))?
            }
            _ => self.fetch.named("authorization server", issuer)?,
        };
        let mut problems = Vec::new();
        let what = "metadata of the authorization server";
        let Some(found) = self.first::<ServerMetadata>(what, server_metadata_places(&url), &mut problems).await? else {
            return Err(self.undiscovered(&problems));
        };
        if found.issuer != issuer {
            return Err(self.untrusted(format!(
                "what is at `{}` says that it is `{}`; if that is right, set `mcp.servers.{}.auth.issuer` to the latter",
                excerpt(issuer),
                excerpt(&found.issuer),
                self.name
            )));
        }
        Ok(found)
    }

    /// The first of the places that has such a document. Where none has, an outage goes before everything else, because
    /// it may be the reason; the other findings are noted, with whether they are more than "not here".
    async fn first<T: DeserializeOwned>(
        &self,
        what: &str,
        places: Vec<Url>,
        problems: &mut Vec<(String, bool)>,
    ) -> Result<Option<T>, AuthError> {
        let mut outage = None;
        for url in places {
            let reply = self.fetch.get(what, &url, self.deadline).await?;
            let at = place(&url);
            if reply.status.is_server_error() || matches!(reply.status.as_u16(), 408 | 429) {
                outage.get_or_insert(AuthError::Unavailable {
                    server: Arc::clone(self.name),
                    what: format!("the {what} at {at}"),
                    cause: format!("HTTP status {}", reply.status.as_u16()),
                    retry_after: reply.retry_after,
                });
            } else if reply.status.is_success() {
                // Many web applications answer every path with their first page: no document, but no fault either.
                match serde_json::from_slice(&reply.body) {
                    Ok(document) => return Ok(Some(document)),
                    Err(error) => {
                        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&reply.body).is_ok();
                        problems.push((format!("what is at {at} is no {what}: {}", why(&error)), is_json));
                    }
                }
            } else {
                problems.push((format!("HTTP status {} at {at}", reply.status.as_u16()), false));
            }
        }
        match outage {
            Some(outage) => Err(outage),
            None => Ok(None),
        }
    }

    fn undiscovered(&self, problems: &[(String, bool)]) -> AuthError {
        let problems: Vec<&str> = problems.iter().map(|(problem, _)| problem.as_str()).collect();
        AuthError::Undiscovered { server: Arc::clone(self.name), problem: problems.join("; ") }
    }

    fn untrusted(&self, problem: String) -> AuthError {
        AuthError::Untrusted { server: Arc::clone(self.name), problem }
    }
}

/// Why a document cannot be read, without a piece of it.
pub(super) fn why(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Data => "a member is missing or of another type",
        serde_json::error::Category::Io | serde_json::error::Category::Syntax | serde_json::error::Category::Eof => {
            "no JSON"
        }
    }
}
