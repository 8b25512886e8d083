//! The two eras of the protocol: a handshake and a session until 2025-11-25, metadata with every request since
//! 2026-07-28; and what may be concluded from how a server answers who does not know its era yet.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::error::McpError;

/// The newest version of the era without a handshake that we speak.
pub(super) const MODERN: &str = "2026-07-28";
/// The newest version with a handshake that we speak.
pub(super) const LEGACY: &str = "2025-11-25";
/// Every version of the era without a handshake that we speak, the newest first.
const MODERN_VERSIONS: [&str; 1] = [MODERN];
/// Every version with a handshake that we speak, the newest first.
const LEGACY_VERSIONS: [&str; 4] = [LEGACY, "2025-06-18", "2025-03-26", "2024-11-05"];

/// The headers of a request do not fit its body.
pub(super) const HEADER_MISMATCH: i64 = -32020;
/// The server needs a capability that we do not have.
pub(super) const MISSING_CAPABILITY: i64 = -32021;
/// The server does not speak the version of the request.
pub(super) const UNSUPPORTED_VERSION: i64 = -32022;

/// How a protocol version opens a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Era {
    /// By a handshake, in a session.
    Legacy,
    /// Not at all: each request says what there is to know.
    Modern,
}

impl Era {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Modern => "modern",
        }
    }
}

/// How one request is made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Within what the handshake agreed on.
    Legacy,
    /// With this version in its metadata.
    Modern(&'static str),
}

impl Dialect {
    /// The era it belongs to.
    pub(super) fn era(self) -> Era {
        match self {
            Self::Legacy => Era::Legacy,
            Self::Modern(_) => Era::Modern,
        }
    }

    /// What every request says of us in `_meta`; nothing in the legacy era.
    pub(super) fn meta(self, capabilities: &Value) -> Map<String, Value> {
        let mut meta = Map::new();
        if let Self::Modern(version) = self {
            meta.insert(String::from("io.modelcontextprotocol/protocolVersion"), Value::from(version));
            meta.insert(String::from("io.modelcontextprotocol/clientInfo"), client_info());
            meta.insert(String::from("io.modelcontextprotocol/clientCapabilities"), capabilities.clone());
        }
        meta
    }
}

/// Who we are.
pub(super) fn client_info() -> Value {
    json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")})
}

/// The version with a handshake of this name, if we speak it.
pub(super) fn legacy(version: &str) -> Option<&'static str> {
    LEGACY_VERSIONS.into_iter().find(|known| *known == version)
}

/// How to go on with a server that names its versions; none if we speak none of them.
pub(super) fn choose(supported: &[String]) -> Option<Choice> {
    let first = |ours: &[&'static str]| ours.iter().copied().find(|ours| supported.iter().any(|theirs| theirs == ours));
    first(&MODERN_VERSIONS).map(Choice::Modern).or_else(|| first(&LEGACY_VERSIONS).map(Choice::Legacy))
}

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// In this version, without a handshake.
    Modern(&'static str),
    /// By a handshake for this version.
    Legacy(&'static str),
}

/// What the refusal of the first modern request says of its server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It knows the modern era, in one of these versions.
    Supports(Vec<String>),
    /// It knows the modern era, but not this request.
    Modern,
    /// It does not know what we were talking about.
    Legacy,
    /// It is not there any more: a child may end at a first message that it does not expect.
    Gone,
    /// Nothing: whatever it speaks, it would not answer now.
    Unclear,
}

impl Verdict {
    /// Reads a refusal. The one thing that tells eras apart for sure is an error that only the modern one has; no
    /// single code of an old server can be relied on.
    pub(super) fn of(error: &McpError) -> Self {
        match error {
            McpError::VersionRefused { supported, .. } => Self::Supports(supported.clone()),
            McpError::Rpc { code: HEADER_MISMATCH | MISSING_CAPABILITY, .. } => Self::Unclear,
            McpError::Rpc { code: -32601, status: Some(404), .. } => Self::Modern,
            McpError::Rpc { .. } | McpError::Protocol { .. } | McpError::TimedOut { .. } => Self::Legacy,
            McpError::Http { status: 401 | 403 | 408 | 429, .. } => Self::Unclear,
            McpError::Http { status: 400..=499, .. } => Self::Legacy,
            McpError::Closed { .. } => Self::Gone,
            McpError::Http { .. }
            | McpError::Connect { .. }
            | McpError::Misconfigured { .. }
            | McpError::Spawn { .. }
            | McpError::SessionLost { .. }
            | McpError::UnsupportedVersion { .. }
            | McpError::InputRequired { .. }
            | McpError::TaskLost { .. }
            | McpError::TaskCancelled { .. }
            | McpError::TooLarge { .. }
            | McpError::Auth(_) => Self::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_newest_version_that_both_speak_is_chosen_and_the_modern_era_first() {
        assert_eq!(choose(&names(&["2025-06-18", MODERN, "2099-01-01"])), Some(Choice::Modern(MODERN)));
        assert_eq!(choose(&names(&["2024-11-05", "2025-06-18"])), Some(Choice::Legacy("2025-06-18")));
        assert_eq!(choose(&names(&["2099-01-01"])), None);
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn a_refusal_is_read_for_what_it_says_of_the_era() {
        let server = || Arc::<str>::from("s");
        let rpc = |code, status| McpError::Rpc { server: server(), code, message: String::new(), status };
        let http = |status| McpError::Http {
            server: server(),
            status,
            message: String::new(),
            retry_after: None,
            may_have_run: false,
        };
        assert_eq!(Verdict::of(&rpc(-32601, Some(404))), Verdict::Modern, "an unknown method of a modern server");
        for old in [rpc(-32601, None), rpc(-32600, Some(400)), rpc(-32000, Some(400)), http(404), http(405)] {
            assert_eq!(Verdict::of(&old), Verdict::Legacy, "{old:?}");
        }
        for unclear in
            [http(401), http(403), http(408), http(429), http(503), http(307), rpc(HEADER_MISMATCH, Some(400))]
        {
            assert_eq!(Verdict::of(&unclear), Verdict::Unclear, "{unclear:?}");
        }
        let silent =
            McpError::TimedOut { server: server(), what: String::new(), limit: Duration::ZERO, may_have_run: false };
        assert_eq!(Verdict::of(&silent), Verdict::Legacy);
        let supported = names(&["2025-11-25"]);
        let refused = McpError::VersionRefused { server: server(), supported: supported.clone() };
        assert_eq!(Verdict::of(&refused), Verdict::Supports(supported));
    }

    #[test]
    fn a_modern_request_says_who_asks_and_a_legacy_one_says_nothing() {
        let meta = Dialect::Modern(MODERN).meta(&json!({}));
        assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], MODERN);
        assert_eq!(meta["io.modelcontextprotocol/clientCapabilities"], json!({}));
        assert_eq!(meta["io.modelcontextprotocol/clientInfo"]["name"], env!("CARGO_PKG_NAME"));
        assert!(Dialect::Legacy.meta(&json!({})).is_empty());
    }
}
