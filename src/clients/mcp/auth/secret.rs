//! A secret that stands in the configuration or in a file. A file is read whenever the secret is needed, so that it
//! may be replaced while the worker runs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use secrecy::SecretString;
use tokio::io::AsyncReadExt as _;

use super::fetch::within;
use crate::config::env::shown;

/// Bytes of a secret in a file.
const MAX_SECRET: u64 = 64 * 1024;

/// Where a secret is.
#[derive(Debug, Clone)]
pub(super) enum Secret {
    /// Here.
    Given(SecretString),
    /// In a file.
    File(PathBuf),
}

impl Secret {
    /// Of the two keys that can hold it, the one that does.
    pub(super) fn of(given: Option<&SecretString>, file: Option<&PathBuf>) -> Option<Self> {
        given.cloned().map(Self::Given).or_else(|| file.cloned().map(Self::File))
    }

    /// The secret, or what is wrong with its file.
    pub(super) async fn read(&self, deadline: Instant) -> Result<SecretString, String> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(path) => match within(deadline, read_file(path)).await {
                Some(secret) => secret,
                None => Err(format!("has no use: {} cannot be read in time", shown(path.as_os_str()))),
            },
        }
    }
}

async fn read_file(path: &Path) -> Result<SecretString, String> {
    let unreadable = |error: std::io::Error| format!("has no use: {} cannot be read: {error}", shown(path.as_os_str()));
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut content = String::new();
    file.take(MAX_SECRET + 1).read_to_string(&mut content).await.map_err(unreadable)?;
    let secret = content.trim_end_matches(['\r', '\n']);
    match secret.len() as u64 {
        0 => Err(format!("has no use: {} is empty", shown(path.as_os_str()))),
        1..=MAX_SECRET => Ok(SecretString::from(secret)),
        _ => Err(format!("has no use: {} has more than {MAX_SECRET} bytes", shown(path.as_os_str()))),
    }
}
