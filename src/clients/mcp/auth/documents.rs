//! The two documents of discovery, where they may be, and what must agree in them: RFC 9728, RFC 8414, OpenID Connect
//! Discovery. Pure; fetching them is not done here.

use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What a protected resource says of itself.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ResourceMetadata {
    /// What it calls itself.
    pub(super) resource: String,
    /// Who gives tokens for it.
    #[serde(default)]
    pub(super) authorization_servers: Vec<String>,
    /// The scopes that it knows.
    pub(super) scopes_supported: Option<Vec<String>>,
}

/// What an authorization server says of itself.
#[derive(Debug, Clone, Deserialize)]
pub struct ServerMetadata {
    /// Who it is.
    pub issuer: String,
    /// Where tokens are given.
    pub token_endpoint: String,
    /// How clients may authenticate there; `client_secret_basic` alone by default.
    pub token_endpoint_auth_methods_supported: Option<Vec<String>>,
    /// The algorithms that it takes signatures of clients in.
    pub token_endpoint_auth_signing_alg_values_supported: Option<Vec<String>>,
    /// Whatever else it says.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// The address of a server as tokens are bound to it: RFC 8707 §2, without a slash that says nothing.
pub(super) fn canonical_resource(url: &Url) -> String {
    let path = if url.path() == "/" { "" } else { url.path() };
    format!("{}{path}", url.origin().ascii_serialization())
}

/// Whether what a resource calls itself covers the address that we use: the same origin, and the same path or one
/// above it.
pub(super) fn covers(resource: &str, url: &Url) -> bool {
    let Ok(resource) = Url::parse(resource) else { return false };
    let above = resource.path().trim_end_matches('/');
    let below = url.path().strip_prefix(above);
    resource.origin() == url.origin()
        && resource.fragment().is_none()
        && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where the metadata of a resource is, the most particular place first. A query is left out: it may be a key.
pub(super) fn resource_metadata_places(url: &Url) -> Vec<Url> {
    well_known(url, &[("oauth-protected-resource", url.path()), ("oauth-protected-resource", "")])
}

/// Where the metadata of an issuer may be, in the order in which they are tried.
pub(super) fn server_metadata_places(issuer: &Url) -> Vec<Url> {
    let path = issuer.path().trim_end_matches('/');
    let mut places = well_known(issuer, &[("oauth-authorization-server", path), ("openid-configuration", path)]);
    if !path.is_empty() {
        let mut appended = bare(issuer);
        appended.set_path(&format!("{path}/.well-known/openid-configuration"));
        places.push(appended);
    }
    places
}

fn well_known(url: &Url, names: &[(&str, &str)]) -> Vec<Url> {
    let mut places: Vec<Url> = Vec::new();
    for (name, path) in names {
        let mut place = bare(url);
        place.set_path(&format!("/.well-known/{name}{}", path.trim_end_matches('/')));
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}

fn bare(url: &Url) -> Url {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url
}

/// Whether two names of an issuer differ in no more than one slash at their end. Enough to find the one that an operator
/// wrote in a list; what the issuer says of itself must be equal to the letter.
pub(super) fn same_issuer(one: &str, other: &str) -> bool {
    one.strip_suffix('/').unwrap_or(one) == other.strip_suffix('/').unwrap_or(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("an address")
    }

    fn texts(urls: Vec<Url>) -> Vec<String> {
        urls.into_iter().map(String::from).collect()
    }

    #[test]
    fn the_metadata_of_a_resource_is_looked_for_at_its_path_and_then_at_the_root() {
        assert_eq!(
            texts(resource_metadata_places(&url("https://h:8/public/mcp?key=secret"))),
            [
                "https://h:8/.well-known/oauth-protected-resource/public/mcp",
                "https://h:8/.well-known/oauth-protected-resource"
            ]
        );
        assert_eq!(
            texts(resource_metadata_places(&url("https://h/"))),
            ["https://h/.well-known/oauth-protected-resource"]
        );
    }

    #[test]
    fn the_metadata_of_an_issuer_is_looked_for_in_the_order_of_the_specification() {
        assert_eq!(
            texts(server_metadata_places(&url("https://id.example.com/tenant1"))),
            [
                "https://id.example.com/.well-known/oauth-authorization-server/tenant1",
                "https://id.example.com/.well-known/openid-configuration/tenant1",
                "https://id.example.com/tenant1/.well-known/openid-configuration",
            ]
        );
        assert_eq!(
            texts(server_metadata_places(&url("https://id.example.com/"))),
            [
                "https://id.example.com/.well-known/oauth-authorization-server",
                "https://id.example.com/.well-known/openid-configuration",
            ]
        );
    }

    #[test]
    fn a_resource_covers_its_own_paths_and_nobody_elses() {
        let server = url("https://h/tools/mcp");
        for resource in
            ["https://h/tools/mcp", "https://h/tools/mcp/", "https://H:443/tools", "https://h", "https://h/"]
        {
            assert!(covers(resource, &server), "{resource}");
        }
        for resource in [
            "https://h/tools/mc",
            "https://h/other",
            "https://h:8/tools/mcp",
            "http://h/tools/mcp",
            "https://evil/",
            "h",
            "",
        ] {
            assert!(!covers(resource, &server), "{resource}");
        }
    }

    #[test]
    fn a_server_goes_by_its_address_without_query_and_idle_slash() {
        assert_eq!(canonical_resource(&url("HTTPS://MCP.example.com:443/")), "https://mcp.example.com");
        assert_eq!(canonical_resource(&url("https://h:8443/a/mcp?x=y#z")), "https://h:8443/a/mcp");
    }
}
