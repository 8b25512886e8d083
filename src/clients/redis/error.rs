//! What can go wrong with Redis, classified by the code of the reply and never by its text, because texts differ
//! between versions and forks.

use std::time::Duration;

use crate::domain::outcome::Failure;
use crate::retry::Retry;

/// Longest part of a server's own words that is kept.
const DETAIL_CHARS: usize = 200;

/// Why a command has no answer that can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisError {
    /// `redis.url` cannot be used. The text is not repeated, for it may hold a password.
    #[error("`redis.url` is not a redis:// or rediss:// address: {reason}")]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// No connection, or it broke. A command that was on its way may have been applied.
    #[error("Redis cannot be reached: {reason}")]
    Unavailable {
        /// The system's words.
        reason: String,
        /// What the client library said.
        #[source]
        source: Option<redis::RedisError>,
    },
    /// No answer in time. The command may have been applied.
    #[error("Redis did not answer within {}", humantime::format_duration(*limit))]
    TimedOut {
        /// How long we waited.
        limit: Duration,
    },
    /// The server is there and will answer later: it loads its data, runs a script, or has lost its primary.
    #[error("Redis is not ready ({code})")]
    NotReady {
        /// `LOADING`, `BUSY`, `MASTERDOWN`, `TRYAGAIN` or `CLUSTERDOWN`.
        code: String,
    },
    /// The server is at its `maxmemory` and refuses writes.
    #[error("Redis is out of memory (maxmemory reached)")]
    Oom,
    /// The server is a replica.
    #[error("this Redis is a read-only replica")]
    ReadOnly,
    /// The server cannot write to its disk and so refuses writes.
    #[error("Redis cannot persist its data and refuses writes (MISCONF)")]
    MisConf,
    /// The server misses the replicas that it was told to require.
    #[error("Redis misses the replicas it needs for a write (NOREPLICAS)")]
    NoReplicas,
    /// The stream or its consumer group is gone.
    #[error("the stream or its consumer group does not exist")]
    NoGroup,
    /// The script was unknown again right after it had been loaded.
    #[error("Redis forgot a script right after loading it")]
    NoScript,
    /// A key holds something of another type than ours.
    #[error("key {} has a type that does not belong there", key.as_deref().unwrap_or("(unnamed)"))]
    WrongType {
        /// The key, where it is known.
        key: Option<String>,
    },
    /// The server is there and takes no connection of ours: it has no such database, or no room for one more client.
    #[error(
        "Redis refuses the connection: {detail}; check the database number, REDIS_DB (`redis.db`), and the server's \
         `maxclients`"
    )]
    Refused {
        /// The server's words, shortened.
        detail: String,
    },
    /// The server wants another password, or does not allow the command.
    #[error("Redis refuses us ({code}); {}", remedy(code))]
    Auth {
        /// `NOAUTH`, `WRONGPASS`, `NOPERM` or the like.
        code: String,
    },
    /// An answer of a shape that the command does not have.
    #[error("Redis answered {what} in a shape that is not known")]
    Unexpected {
        /// Which answer.
        what: &'static str,
    },
    /// Any other error reply.
    #[error("Redis answered {code}: {detail}")]
    Other {
        /// The first word of the reply.
        code: String,
        /// The rest, shortened.
        detail: String,
    },
}

impl RedisError {
    /// Whether the server cannot be reached or does not serve, as opposed to refusing one command.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::TimedOut { .. }
            | Self::NotReady { .. }
            | Self::Refused { .. }
            | Self::Auth { .. } => true,
            Self::Address { .. }
            | Self::Oom
            | Self::ReadOnly
            | Self::MisConf
            | Self::NoReplicas
            | Self::NoGroup
            | Self::NoScript
            | Self::WrongType { .. }
            | Self::Unexpected { .. }
            | Self::Other { .. } => false,
        }
    }

    /// Whether the server ran a script and broke it off, so that a part of its writes may stand.
    pub fn may_be_half_done(&self) -> bool {
        matches!(self, Self::Auth { .. } | Self::WrongType { .. } | Self::Other { .. })
    }

    /// Classifies what a command met; `limit` is how long it was allowed to take.
    pub(super) fn from_command(error: redis::RedisError, limit: Duration) -> Self {
        if error.is_timeout() {
            return Self::TimedOut { limit };
        }
        match (error.kind(), error.code()) {
            (redis::ErrorKind::AuthenticationFailed, _) => Self::Auth { code: String::from("AUTH") },
            (_, Some(code)) => Self::from_code(code, error.detail()),
            (redis::ErrorKind::Parse | redis::ErrorKind::UnexpectedReturnType, None) => {
                Self::Unexpected { what: "a command" }
            }
            (_, None) => Self::Unavailable { reason: error.to_string(), source: Some(error) },
        }
    }

    /// Classifies what connecting met: there, every refusal but one of our password may pass.
    pub(super) fn from_connect(error: redis::RedisError, limit: Duration) -> Self {
        match Self::from_command(error.clone(), limit) {
            auth @ (Self::Auth { .. } | Self::NotReady { .. }) => auth,
            Self::TimedOut { .. } => Self::Unavailable {
                reason: format!("no connection within {}", humantime::format_duration(limit)),
                source: None,
            },
            Self::Other { detail, .. } => Self::Refused { detail },
            _ => Self::Unavailable { reason: error.to_string(), source: Some(error) },
        }
    }

    fn from_code(code: &str, detail: Option<&str>) -> Self {
        match code {
            "LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" => {
                Self::NotReady { code: String::from(code) }
            }
            "OOM" => Self::Oom,
            "READONLY" => Self::ReadOnly,
            "MISCONF" => Self::MisConf,
            "NOREPLICAS" | "NOGOODSLAVE" => Self::NoReplicas,
            "NOGROUP" => Self::NoGroup,
            "NOSCRIPT" => Self::NoScript,
            "WRONGTYPE" => Self::WrongType { key: None },
            "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => Self::Auth { code: String::from(code) },
            other => Self::Other {
                code: String::from(other),
                detail: detail.unwrap_or_default().chars().take(DETAIL_CHARS).collect(),
            },
        }
    }

    /// Whether the server is there and does not let us in, which only somebody who changes a setting can end.
    pub fn refuses_us(&self) -> bool {
        matches!(self, Self::Auth { .. } | Self::Refused { .. })
    }

    /// Whether trying the same again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unavailable { .. }
            | Self::TimedOut { .. }
            | Self::NotReady { .. }
            | Self::Refused { .. }
            | Self::Oom
            | Self::ReadOnly
            | Self::MisConf
            | Self::NoReplicas
            | Self::NoGroup
            | Self::NoScript => Retry::After(None),
            Self::Address { .. }
            | Self::WrongType { .. }
            | Self::Auth { .. }
            | Self::Unexpected { .. }
            | Self::Other { .. } => Retry::Never,
        }
    }

    /// Whether the command may have been applied all the same: its answer was lost on the way.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::TimedOut { .. } | Self::Unexpected { .. } => true,
            Self::Address { .. }
            | Self::NotReady { .. }
            | Self::Refused { .. }
            | Self::Oom
            | Self::ReadOnly
            | Self::MisConf
            | Self::NoReplicas
            | Self::NoGroup
            | Self::NoScript
            | Self::WrongType { .. }
            | Self::Auth { .. }
            | Self::Other { .. } => false,
        }
    }

    /// Whether the connection that met this is of no further use. A read-only replica is left too, for after a
    /// failover the same name leads elsewhere.
    pub(super) fn ends_connection(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::TimedOut { .. }
            | Self::ReadOnly
            | Self::Refused { .. }
            | Self::Auth { .. }
            | Self::Unexpected { .. } => true,
            Self::Address { .. }
            | Self::NotReady { .. }
            | Self::Oom
            | Self::MisConf
            | Self::NoReplicas
            | Self::NoGroup
            | Self::NoScript
            | Self::WrongType { .. }
            | Self::Other { .. } => false,
        }
    }

    /// A stable name of the class, for metrics and failures.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Address { .. } => "redis_address",
            Self::Unavailable { .. } => "redis_unavailable",
            Self::TimedOut { .. } => "redis_timeout",
            Self::NotReady { .. } => "redis_not_ready",
            Self::Refused { .. } => "redis_refused",
            Self::Oom => "redis_oom",
            Self::ReadOnly => "redis_read_only",
            Self::MisConf => "redis_misconf",
            Self::NoReplicas => "redis_no_replicas",
            Self::NoGroup => "redis_no_group",
            Self::NoScript => "redis_no_script",
            Self::WrongType { .. } => "state_wrong_type",
            Self::Auth { .. } => "redis_auth",
            Self::Unexpected { .. } => "redis_unexpected",
            Self::Other { .. } => "redis_error",
        }
    }
}

/// What to do about a refusal of who we are.
fn remedy(code: &str) -> &'static str {
    match code {
        "NOPERM" => "the user of REDIS_ADDR (`redis.url`) needs every command and key of the worker: check its ACL",
        "DENIED" => "the server is in protected mode: give it a password, or let it listen to its own host alone",
        _ => "check REDIS_PASS (`redis.password`) and the user in REDIS_ADDR (`redis.url`)",
    }
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        let (code, message) = (error.code(), error.to_string());
        match error {
            RedisError::Address { .. } | RedisError::Auth { .. } => Self::configuration(code, message),
            RedisError::WrongType { .. } => Self::validation(code, message),
            RedisError::Unexpected { .. } | RedisError::Other { .. } => Self::internal(code, message),
            RedisError::Unavailable { .. }
            | RedisError::TimedOut { .. }
            | RedisError::NotReady { .. }
            | RedisError::Refused { .. }
            | RedisError::Oom
            | RedisError::ReadOnly
            | RedisError::MisConf
            | RedisError::NoReplicas
            | RedisError::NoGroup
            | RedisError::NoScript => Self::retriable(code, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::Category;

    const LIMIT: Duration = Duration::from_secs(1);

    fn reply(code: &str) -> RedisError {
        let error = redis::make_extension_error(String::from(code), Some(String::from("words of the server")));
        RedisError::from_command(error, LIMIT)
    }

    #[test]
    fn a_reply_is_classified_by_its_code() {
        let pass = ["LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "OOM", "READONLY", "MISCONF"];
        for code in pass.into_iter().chain(["NOREPLICAS", "NOGOODSLAVE", "NOGROUP", "NOSCRIPT"]) {
            assert_eq!(reply(code).retry(), Retry::After(None), "{code}");
            // A node that meets it in the middle waits and does not end by it.
            assert_eq!(Failure::from(reply(code)).category, Category::Retriable, "{code}");
        }
        assert!(matches!(reply("NOGROUP"), RedisError::NoGroup));
        assert!(matches!(reply("NOREPLICAS"), RedisError::NoReplicas));
        for code in ["NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "ERR"] {
            assert_eq!(reply(code).retry(), Retry::Never, "{code}");
        }
        assert_eq!(Failure::from(reply("WRONGPASS")).category, Category::Configuration);
        assert_eq!(Failure::from(reply("OOM")).code, "redis_oom");
    }

    #[test]
    fn only_a_lost_answer_leaves_the_outcome_open() {
        let timeout = redis::RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let closed = redis::RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(RedisError::from_command(timeout, LIMIT).outcome_unknown());
        assert!(RedisError::from_command(closed, LIMIT).outcome_unknown());
        assert!(!reply("OOM").outcome_unknown());
    }

    #[test]
    fn a_refusal_while_connecting_may_pass_unless_it_is_the_password() {
        let full = redis::make_extension_error(String::from("ERR"), Some(String::from("max number of clients")));
        assert_eq!(RedisError::from_connect(full, LIMIT).retry(), Retry::After(None));
        let wrong = redis::make_extension_error(String::from("WRONGPASS"), None);
        assert_eq!(RedisError::from_connect(wrong, LIMIT).retry(), Retry::Never);
    }

    #[test]
    fn a_refusal_names_the_setting_that_is_to_blame() {
        assert!(reply("WRONGPASS").to_string().contains("REDIS_PASS (`redis.password`)"));
        assert!(reply("NOPERM").to_string().contains("ACL"), "the password is good");
        let database = redis::make_extension_error(String::from("ERR"), Some(String::from("DB index is out of range")));
        let refused = RedisError::from_connect(database, LIMIT);
        assert!(refused.is_outage() && !refused.outcome_unknown(), "nothing was sent");
        let words = refused.to_string();
        assert!(words.contains("DB index is out of range") && words.contains("REDIS_DB (`redis.db`)"), "{words}");
    }
}
