//! Why a token could not be had, and what a person can do about it. Nothing in here is ever secret: what an
//! authorization server says passes through [`Redact`] first.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};

use crate::clients::mcp::error::excerpt;
use crate::config::show::MASK;
use crate::domain::outcome::Category;
use crate::retry::Retry;

/// Why a request to an MCP server could not be authorised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A key of the configuration cannot be used.
    #[error("`mcp.servers.{server}.auth.{key}` {problem}")]
    Setting {
        /// The server.
        server: Arc<str>,
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Where tokens come from is not known.
    #[error(
        "the MCP server `{server}` wants a token and does not tell where from: {problem}; \
         if you know, set `mcp.servers.{server}.auth.issuer` or `token_endpoint`"
    )]
    Undiscovered {
        /// The server.
        server: Arc<str>,
        /// What was found instead.
        problem: String,
    },
    /// What was discovered must not be used.
    #[error("the MCP server `{server}` leads to an authorization server that cannot be trusted: {problem}")]
    Untrusted {
        /// The server.
        server: Arc<str>,
        /// What does not fit.
        problem: String,
    },
    /// The credentials belong to another authorization server.
    #[error(
        "the MCP server `{server}` now names the authorization server {offered}, but its credentials belong to {bound} \
         and are sent nowhere else; if the change is meant, set `mcp.servers.{server}.auth.issuer` and start again"
    )]
    IssuerChanged {
        /// The server.
        server: Arc<str>,
        /// Whose credentials they are.
        bound: String,
        /// Who is named now.
        offered: String,
    },
    /// The authorization server said no.
    #[error(
        "{issuer} gives no token for the MCP server `{server}`: {error}{}; {}",
        detail(.description), remedy(.error, .server)
    )]
    Refused {
        /// The server.
        server: Arc<str>,
        /// The authorization server.
        issuer: String,
        /// The OAuth error code.
        error: String,
        /// What it said beside that, shortened and without secrets.
        description: String,
    },
    /// A party does not answer now.
    #[error("{what} of the MCP server `{server}` cannot be had now: {cause}")]
    Unavailable {
        /// The server.
        server: Arc<str>,
        /// What was asked for, and of whom.
        what: String,
        /// Why not.
        cause: String,
        /// How long we were asked to wait.
        retry_after: Option<Duration>,
    },
    /// An answer that cannot be used.
    #[error("{what} of the MCP server `{server}` cannot be used: {problem}")]
    Malformed {
        /// The server.
        server: Arc<str>,
        /// What was asked for, and of whom.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The MCP server does not want the token.
    #[error("the MCP server `{server}` refuses the token: {remedy}")]
    TokenRefused {
        /// The server.
        server: Arc<str>,
        /// What to look at.
        remedy: String,
    },
    /// The token lacks scopes that cannot be had.
    #[error(
        "the MCP server `{server}` wants more than the token allows{}; let the client have it at the authorization server{}",
        detail(.wanted), detail(.problem)
    )]
    InsufficientScope {
        /// The server.
        server: Arc<str>,
        /// The scopes that the server named.
        wanted: String,
        /// Why they were not got.
        problem: String,
    },
}

impl AuthError {
    /// Whether the same request may be made again. None was carried out.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { retry_after, .. } => Retry::After(*retry_after),
            Self::Setting { .. }
            | Self::Undiscovered { .. }
            | Self::Untrusted { .. }
            | Self::IssuerChanged { .. }
            | Self::Refused { .. }
            | Self::Malformed { .. }
            | Self::TokenRefused { .. }
            | Self::InsufficientScope { .. } => Retry::Never,
        }
    }

    /// The same some time later: of a wait that was asked for, this much is left.
    pub(super) fn waiting(mut self, left: Duration) -> Self {
        if let Self::Unavailable { retry_after: Some(wait), .. } = &mut self {
            *wait = left;
        }
        self
    }

    /// The stable name of the cause.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Setting { .. } => "mcp_auth_misconfigured",
            Self::Undiscovered { .. } => "mcp_auth_undiscovered",
            Self::Untrusted { .. } => "mcp_auth_untrusted",
            Self::IssuerChanged { .. } => "mcp_auth_issuer_changed",
            Self::Refused { .. } => "mcp_auth_refused",
            Self::Unavailable { .. } => "mcp_auth_unavailable",
            Self::Malformed { .. } => "mcp_auth_malformed",
            Self::TokenRefused { .. } => "mcp_unauthorized",
            Self::InsufficientScope { .. } => "mcp_insufficient_scope",
        }
    }

    /// The category of a failure that is not tried again.
    pub(in crate::clients::mcp) fn lasting_category(&self) -> Category {
        match self {
            Self::Setting { .. }
            | Self::Undiscovered { .. }
            | Self::Untrusted { .. }
            | Self::IssuerChanged { .. }
            | Self::Refused { .. }
            | Self::TokenRefused { .. }
            | Self::InsufficientScope { .. } => Category::Configuration,
            Self::Malformed { .. } | Self::Unavailable { .. } => Category::Permanent,
        }
    }
}

fn detail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// What a person can do about an OAuth error: RFC 6749 §5.2, RFC 8707 §2.
fn remedy(error: &str, server: &str) -> String {
    let keys = format!("`mcp.servers.{server}.auth`");
    match error {
        "invalid_client" => format!("check client_id and the secret or the key in {keys}"),
        "unauthorized_client" | "unsupported_grant_type" => {
            String::from("let the client use this grant there: `client_credentials`, or `jwt-bearer` for an assertion")
        }
        "invalid_scope" => format!("check `scopes` in {keys}, or let the client have them there"),
        "invalid_target" => format!("check `resource` in {keys}, or make the MCP server known there"),
        "invalid_grant" => format!("check the clock of this machine, and the key or the assertion in {keys}"),
        _ => format!("check {keys}"),
    }
}

/// Takes secrets out of texts that others wrote.
#[derive(Default)]
pub(super) struct Redact(Vec<String>);

impl Redact {
    /// Also in the forms in which a secret travels: percent-encoded and in base64.
    pub(super) fn also(mut self, secret: &SecretString) -> Self {
        let text = secret.expose_secret();
        // A secret of a few characters would take whole words with it.
        if text.len() >= 4 {
            self.0.push(url::form_urlencoded::byte_serialize(text.as_bytes()).collect());
            self.0.push(BASE64_STANDARD.encode(text));
            self.0.push(text.to_owned());
        }
        self
    }

    /// One short line with the secrets masked. Masked before it is cut, so that no part of a secret is left at the end.
    pub(super) fn excerpt(&self, text: &str) -> String {
        let clean = self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret, MASK));
        excerpt(&clean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_comes_back_is_masked_in_every_form_in_which_it_was_sent() {
        let redact = Redact::default().also(&SecretString::from("pa ss/word=1"));
        let said = "no: pa ss/word=1, pa+ss%2Fword%3D1, cGEgc3Mvd29yZD0x";
        assert_eq!(redact.excerpt(said), "no: ***, ***, ***");
        let cut = format!("{}pa ss/word=1", "x".repeat(295));
        assert!(!redact.excerpt(&cut).contains("pa"), "a part of it is as bad");
    }

    #[test]
    fn every_error_says_what_to_do_and_only_an_outage_is_tried_again() {
        let server: Arc<str> = Arc::from("crm");
        let refused = AuthError::Refused {
            server: Arc::clone(&server),
            issuer: String::from("https://id"),
            error: String::from("invalid_client"),
            description: String::new(),
        };
        assert_eq!(
            refused.to_string(),
            "https://id gives no token for the MCP server `crm`: invalid_client; \
             check client_id and the secret or the key in `mcp.servers.crm.auth`"
        );
        assert_eq!((refused.retry(), refused.lasting_category()), (Retry::Never, Category::Configuration));
        let wait = Some(Duration::from_secs(3));
        let away = AuthError::Unavailable {
            server,
            what: String::from("a token"),
            cause: String::from("HTTP status 503"),
            retry_after: wait,
        };
        assert_eq!(away.retry(), Retry::After(wait));
    }
}
