//! How requests to a server over HTTP are authorised: the seam between the transport and whoever holds credentials, and
//! the two who do: a token that others keep fresh, and OAuth 2.1 for a client that acts for itself.
//!
//! ```text
//!  HttpService ─► Authorize ─► FileToken
//!                          └─► OAuth ─► Discovery (RFC 9728, RFC 8414) ─► Grant: ClientCredentials (RFC 6749, RFC 7523)
//! ```

mod assertion;
mod challenge;
mod client_credentials;
mod discovery;
mod documents;
mod error;
mod fetch;
mod file_token;
mod grant;
mod oauth;
mod scopes;
mod secret;
mod token;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;

pub use self::documents::ServerMetadata;
pub use self::error::AuthError;
use self::file_token::FileToken;
pub use self::grant::{Ask, Grant};
pub use self::oauth::OAuth;
pub use self::scopes::{Scopes, is_scope};
use self::secret::Secret;
pub use self::token::Granted;
use super::error::McpError;
use crate::config::McpServerConfig;

/// Gives the `Authorization` header of the requests to one server. Lives as long as the server is configured, so that
/// a token outlives a session; many requests ask at once.
pub trait Authorize: Send + Sync {
    /// The header of the request that is about to be sent; none sends none, or the configured one if there is one.
    /// Asked before every request, so it has to be quick where a good token is at hand.
    fn header(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, McpError>>;

    /// A request was refused with 401 or 403. True sends it once more, with the header that [`Self::header`] gives
    /// then; false hands the refusal on; an error ends the request with that error.
    fn challenged<'a>(&'a self, challenge: Challenge<'a>) -> BoxFuture<'a, Result<bool, McpError>>;
}

/// What a server said when it refused a request.
#[derive(Debug, Clone)]
pub struct Challenge<'a> {
    /// 401 or 403.
    pub status: u16,
    /// The values of `WWW-Authenticate`, in their order; there may be none.
    pub www_authenticate: Vec<&'a str>,
    /// What [`Authorize::header`] gave for the refused request: if it gives something else by now, somebody else has
    /// seen to it already.
    pub sent: Option<&'a HeaderValue>,
}

/// Who authorises requests to a server, as it is configured; nobody if it has no `auth`.
pub(super) fn configured(server: &Arc<str>, config: &McpServerConfig) -> Option<Arc<dyn Authorize>> {
    let auth = config.auth.as_ref()?;
    Some(match Secret::of(auth.token.as_ref(), auth.token_file.as_ref()) {
        Some(token) => Arc::new(FileToken::new(Arc::clone(server), token, config.connect_timeout)),
        None => Arc::new(OAuth::new(Arc::clone(server), config, auth)),
    })
}
