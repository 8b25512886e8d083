//! The seam between knowing where tokens come from and getting one: who implements it holds the credentials.

use std::time::Instant;

use futures_util::future::BoxFuture;
use secrecy::SecretString;

use super::documents::ServerMetadata;
use super::error::AuthError;
use super::scopes::Scopes;
use super::token::Granted;

/// Gets tokens from an authorization server. One request is under way at a time.
pub trait Grant: Send + Sync {
    /// A new token. Whether the credentials belong to that server is for the implementation to check.
    fn obtain<'a>(&'a self, ask: Ask<'a>) -> BoxFuture<'a, Result<Granted, AuthError>>;

    /// A new token for a refresh token. A refusal is followed by [`Self::obtain`].
    fn refresh<'a>(&'a self, ask: Ask<'a>, token: &'a SecretString) -> BoxFuture<'a, Result<Granted, AuthError>>;
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Of whom; its metadata names the issuer that it was asked as.
    pub server: &'a ServerMetadata,
    /// For which resource.
    pub resource: &'a str,
    /// With which scopes; none leaves the choice to the server.
    pub scopes: &'a Scopes,
    /// Until when.
    pub deadline: Instant,
}
