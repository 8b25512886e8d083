//! A bearer token that somebody else keeps fresh: in the configuration, or in a file that is read again when it changes.

use std::fs::Metadata;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use tokio::sync::Mutex;

use super::error::AuthError;
use super::secret::Secret;
use super::token::bearer;
use super::{Authorize, Challenge};
use crate::clients::mcp::error::McpError;

/// How long a file is taken for unchanged after a look at it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A token as it is.
pub(super) struct FileToken {
    server: Arc<str>,
    key: &'static str,
    secret: Secret,
    limit: Duration,
    held: Mutex<Option<Held>>,
}

struct Held {
    header: HeaderValue,
    looked: Instant,
    /// What the file was like when it was read.
    mark: Option<Mark>,
}

/// What differs between a file and the one that took its place.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Mark {
    modified: Option<SystemTime>,
    length: u64,
    file: u64,
}

impl FileToken {
    /// From the place where the token is.
    pub(super) fn new(server: Arc<str>, secret: Secret, limit: Duration) -> Self {
        let key = if matches!(secret, Secret::File(_)) { "token_file" } else { "token" };
        Self { server, key, secret, limit, held: Mutex::new(None) }
    }

    async fn current(&self, look: bool) -> Result<HeaderValue, AuthError> {
        let mut held = self.held.lock().await;
        if let Some(held) = &mut *held {
            let due = held.looked.elapsed() >= LOOK_EVERY;
            let unchanged = match &self.secret {
                Secret::Given(_) => true,
                // After a refusal the content counts: clocks of file systems are coarse.
                Secret::File(_) if look => false,
                Secret::File(_) if !due => true,
                Secret::File(path) => held.mark.is_some() && mark(path).await == held.mark,
            };
            if unchanged {
                held.looked = if due { Instant::now() } else { held.looked };
                return Ok(held.header.clone());
            }
        }
        let setting = |problem: String| AuthError::Setting { server: Arc::clone(&self.server), key: self.key, problem };
        // Marked before it is read: a change in between is then seen at the next look.
        let mark = match &self.secret {
            Secret::Given(_) => None,
            Secret::File(path) => mark(path).await,
        };
        let token = self.secret.read(Instant::now() + self.limit).await;
        let token = token
            .and_then(|token| bearer(&token).ok_or_else(|| String::from("holds no token of visible ASCII characters")));
        let header = match (token, &mut *held) {
            (Ok(header), _) => header,
            // Somebody may be writing it just now; whether the old token is still good is the server's to say.
            (Err(problem), Some(held)) if !look => {
                tracing::warn!(mcp.server = %self.server, problem, "the file of a token cannot be read again, the old token is used");
                held.looked = Instant::now();
                return Ok(held.header.clone());
            }
            (Err(problem), _) => return Err(setting(problem)),
        };
        *held = Some(Held { header: header.clone(), looked: Instant::now(), mark });
        Ok(header)
    }
}

impl Authorize for FileToken {
    fn header(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, McpError>> {
        async { Ok(Some(self.current(false).await?)) }.boxed()
    }

    fn challenged<'a>(&'a self, challenge: Challenge<'a>) -> BoxFuture<'a, Result<bool, McpError>> {
        async move {
            let now = self.current(true).await?;
            if challenge.sent != Some(&now) {
                return Ok(true);
            }
            if challenge.status != 401 {
                return Ok(false);
            }
            let remedy = format!("put a new one into `mcp.servers.{}.auth.{}`", self.server, self.key);
            Err(AuthError::TokenRefused { server: Arc::clone(&self.server), remedy }.into())
        }
        .boxed()
    }
}

async fn mark(path: &Path) -> Option<Mark> {
    let of = |metadata: Metadata| {
        use std::os::unix::fs::MetadataExt as _;
        Mark { modified: metadata.modified().ok(), length: metadata.len(), file: metadata.ino() }
    };
    tokio::fs::metadata(path).await.ok().map(of)
}
