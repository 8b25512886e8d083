//! How we authenticate to an MCP server over HTTP: `[mcp.servers.<name>.auth]`, and which of its keys can be meant
//! together. Getting tokens is not here.

use std::fmt;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::{Host, Url};

use crate::config::show;

/// How a client authenticates at a token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenEndpointAuthMethod {
    /// Id and secret in the `Authorization` header.
    ClientSecretBasic,
    /// Id and secret in the form.
    ClientSecretPost,
    /// A signed assertion.
    PrivateKeyJwt,
    /// The id alone.
    None,
}

impl TokenEndpointAuthMethod {
    /// The method as servers write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientSecretBasic => "client_secret_basic",
            Self::ClientSecretPost => "client_secret_post",
            Self::PrivateKeyJwt => "private_key_jwt",
            Self::None => "none",
        }
    }
}

/// How we authenticate to an MCP server: a bearer token, or OAuth 2.1 as a client or a workload.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct McpAuthConfig {
    /// The bearer token.
    pub token: Option<SecretString>,
    /// The file with the bearer token; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// Who we are at the authorization server.
    pub client_id: Option<String>,
    /// The secret of the client.
    pub client_secret: Option<SecretString>,
    /// The file with the secret; read for every token.
    pub client_secret_file: Option<PathBuf>,
    /// The private key that signs in place of a secret, in PEM.
    pub private_key: Option<SecretString>,
    /// The file with the private key; read for every token.
    pub private_key_file: Option<PathBuf>,
    /// The signed token (JWT) by which the platform vouches for this workload; exchanged for an access token.
    pub assertion: Option<SecretString>,
    /// The file with that token; read for every access token.
    pub assertion_file: Option<PathBuf>,
    /// The name of the key at the authorization server.
    pub key_id: Option<String>,
    /// Scopes of the first token; what the server asks for if there are none.
    pub scopes: Vec<String>,
    /// The authorization server, and no other gets the credentials; whom the MCP server names first by default.
    pub issuer: Option<String>,
    /// Where tokens are given; nothing is discovered then.
    pub token_endpoint: Option<String>,
    /// How we authenticate there; the best that both sides can by default.
    pub token_endpoint_auth_method: Option<TokenEndpointAuthMethod>,
    /// What tokens are for; what the MCP server calls itself by default. Empty leaves it out of the requests.
    pub resource: Option<String>,
    /// Whether tokens may go unencrypted to other machines.
    pub allow_http: bool,
}

impl fmt::Debug for McpAuthConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client_id, issuer, scopes, .. } = self;
        let issuer = issuer.as_deref().map(show::masked_url);
        out.debug_struct("McpAuthConfig")
            .field("client_id", client_id)
            .field("issuer", &issuer)
            .field("scopes", scopes)
            .finish_non_exhaustive()
    }
}

/// Keys that cannot be meant as they are.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The keys under `auth`, the one to blame first; none blames all of it.
    pub keys: Vec<&'static str>,
    /// Whether the first of them is missing.
    pub missing: bool,
    /// What is wrong.
    pub message: String,
}

impl McpAuthConfig {
    /// The keys that are set.
    pub fn set(&self) -> Vec<&'static str> {
        let keys = [
            ("token", self.token.is_some()),
            ("token_file", self.token_file.is_some()),
            ("client_id", self.client_id.is_some()),
            ("client_secret", self.client_secret.is_some()),
            ("client_secret_file", self.client_secret_file.is_some()),
            ("private_key", self.private_key.is_some()),
            ("private_key_file", self.private_key_file.is_some()),
            ("assertion", self.assertion.is_some()),
            ("assertion_file", self.assertion_file.is_some()),
            ("key_id", self.key_id.is_some()),
            ("scopes", !self.scopes.is_empty()),
            ("issuer", self.issuer.is_some()),
            ("token_endpoint", self.token_endpoint.is_some()),
            ("token_endpoint_auth_method", self.token_endpoint_auth_method.is_some()),
            ("resource", self.resource.is_some()),
        ];
        keys.into_iter().filter(|(_, set)| *set).map(|(key, _)| key).collect()
    }

    /// What cannot be meant, for a server at this address.
    pub fn findings(&self, server: Option<&str>) -> Vec<Finding> {
        let mut findings = Findings::default();
        let set = self.set();
        let token: Vec<_> = set.iter().copied().filter(|key| key.starts_with("token") && key.len() <= 10).collect();
        let client: Vec<_> = set.iter().copied().filter(|key| !token.contains(key)).collect();
        match (token.is_empty(), client.is_empty()) {
            (true, true) => findings.missing(
                "client_id",
                "nothing says how to authenticate; set `token_file`, `token`, `client_id` or `assertion_file`",
            ),
            (false, false) => findings.wrong(
                &[&client[..], &token[..]].concat(),
                format!(
                    "a server takes a token as it is or one that is got by OAuth; remove {} or {}",
                    list(&token),
                    list(&client)
                ),
            ),
            (false, true) => findings.at_most_one(&token),
            (true, false) => self.client(&set, &mut findings),
        }
        self.texts(&mut findings);
        let plain = server.and_then(|url| Url::parse(url).ok()).filter(|url| !self.may_carry(url));
        if plain.is_some() {
            findings.wrong(
                &[],
                "a token would go to this server unencrypted; use https, or set `allow_http` where the network encrypts".to_owned(),
            );
        }
        findings.0
    }

    fn client(&self, set: &[&'static str], findings: &mut Findings) {
        use TokenEndpointAuthMethod as Method;
        let of = |keys: &[&'static str]| set.iter().copied().filter(|key| keys.contains(key)).collect::<Vec<_>>();
        let secrets = of(&["client_secret", "client_secret_file"]);
        let keys = of(&["private_key", "private_key_file"]);
        let assertions = of(&["assertion", "assertion_file"]);
        let proofs = [&secrets[..], &keys[..]].concat();
        // Whom a platform vouches for stands in its token.
        let named = !assertions.is_empty() && proofs.is_empty() && self.client_id.is_none();
        if !named && self.client_id.as_ref().is_none_or(|id| id.trim().is_empty()) {
            findings.missing("client_id", "OAuth needs the id of the client");
        }
        findings.at_most_one(&proofs);
        findings.at_most_one(&assertions);
        if self.key_id.is_some() && keys.is_empty() {
            findings.wrong(&["key_id"], "names a key, but there is none; set `private_key_file`".to_owned());
        }
        match self.token_endpoint_auth_method {
            Some(Method::None) if !proofs.is_empty() => findings.wrong(
                &[&["token_endpoint_auth_method"], &proofs[..]].concat(),
                format!("says that the id is enough; remove it or {}", list(&proofs)),
            ),
            Some(Method::None) => {}
            Some(method @ (Method::ClientSecretBasic | Method::ClientSecretPost)) if secrets.is_empty() => {
                findings.wrong(
                    &["token_endpoint_auth_method"],
                    format!("{} needs `client_secret_file` or `client_secret`", method.as_str()),
                );
            }
            Some(Method::PrivateKeyJwt) if keys.is_empty() => {
                findings.wrong(
                    &["token_endpoint_auth_method"],
                    "private_key_jwt needs `private_key_file` or `private_key`".to_owned(),
                );
            }
            None if proofs.is_empty() && assertions.is_empty() => findings.missing(
                "client_secret_file",
                "a client needs `client_secret_file`, `client_secret`, `private_key_file` or `private_key`; if its id \
                 is enough, set `token_endpoint_auth_method = \"none\"`",
            ),
            Some(_) | None => {}
        }
    }

    fn texts(&self, findings: &mut Findings) {
        let visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if self.token.as_ref().is_some_and(|token| !visible(token.expose_secret())) {
            findings.wrong(&["token"], "must be of visible ASCII characters, without `Bearer`".to_owned());
        }
        let secrets = [
            ("client_secret", &self.client_secret),
            ("private_key", &self.private_key),
            ("assertion", &self.assertion),
        ];
        for (key, _) in
            secrets.iter().filter(|(_, secret)| secret.as_ref().is_some_and(|s| s.expose_secret().is_empty()))
        {
            findings.wrong(&[key], "is empty".to_owned());
        }
        let files = [
            ("token_file", &self.token_file),
            ("client_secret_file", &self.client_secret_file),
            ("private_key_file", &self.private_key_file),
            ("assertion_file", &self.assertion_file),
        ];
        for (key, _) in files.iter().filter(|(_, file)| file.as_ref().is_some_and(|file| file.as_os_str().is_empty())) {
            findings.wrong(&[key], "must name a file".to_owned());
        }
        let is_scope = |text: &String| visible(text) && !text.contains(['"', '\\']);
        if let Some(at) = self.scopes.iter().position(|scope| !is_scope(scope)) {
            findings
                .wrong(&["scopes"], format!("place {} is no scope; each stands for itself, without blanks", at + 1));
        }
        let addresses = [("issuer", &self.issuer), ("token_endpoint", &self.token_endpoint)];
        for (key, text) in addresses.iter().filter_map(|(key, text)| Some((*key, text.as_ref()?))) {
            match Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host()) {
                Some(url) if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() => {
                    findings.wrong(&[key], "must have no user, no password and no fragment".to_owned());
                }
                Some(url) if !self.may_carry(&url) => {
                    findings.wrong(&[key], "must be https, or set `allow_http` where the network encrypts".to_owned());
                }
                Some(_) => {}
                None => findings.wrong(&[key], "must be an address such as https://id.example.com/tenant".to_owned()),
            }
        }
        let absolute = |text: &String| text.is_empty() || Url::parse(text).is_ok_and(|url| url.fragment().is_none());
        if !self.resource.as_ref().is_none_or(absolute) {
            findings.wrong(
                &["resource"],
                "must be an absolute address without a fragment, or empty to send none".to_owned(),
            );
        }
    }

    /// Whether credentials may be sent to an address.
    fn may_carry(&self, url: &Url) -> bool {
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        url.scheme() != "http" || loopback || self.allow_http
    }

    /// Files that are named and not there, with their keys. They may come yet, so that is no error.
    pub fn absent_files(&self) -> Vec<(&'static str, &PathBuf)> {
        let files = [
            ("token_file", &self.token_file),
            ("client_secret_file", &self.client_secret_file),
            ("private_key_file", &self.private_key_file),
            ("assertion_file", &self.assertion_file),
        ];
        files
            .into_iter()
            .filter_map(|(key, file)| Some((key, file.as_ref()?)))
            .filter(|(_, file)| !file.exists())
            .collect()
    }

    /// Whether the platform vouches for this workload.
    pub fn is_vouched_for(&self) -> bool {
        self.assertion.is_some() || self.assertion_file.is_some()
    }

    /// Whether a secret goes to an authorization server that nobody but the MCP server has named.
    pub fn trusts_the_server(&self) -> bool {
        let secret = self.client_secret.is_some() || self.client_secret_file.is_some();
        // Meant for another, it would be as good there as here.
        (secret || self.is_vouched_for()) && self.issuer.is_none() && self.token_endpoint.is_none()
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn wrong(&mut self, keys: &[&'static str], message: String) {
        self.0.push(Finding { keys: keys.to_vec(), missing: false, message });
    }

    fn missing(&mut self, key: &'static str, message: &str) {
        self.0.push(Finding { keys: vec![key], missing: true, message: message.to_owned() });
    }

    fn at_most_one(&mut self, keys: &[&'static str]) {
        if keys.len() > 1 {
            self.wrong(keys, format!("only one of {} can be meant", list(keys)));
        }
    }
}

fn list(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}
