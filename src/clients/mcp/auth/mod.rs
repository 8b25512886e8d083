//! How requests to a server over HTTP are authorised: the seam between the transport and whoever holds credentials.
//! What a challenge means and where tokens come from is the authoriser's business, not the transport's.

use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;

use super::error::McpError;

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
