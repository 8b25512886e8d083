//! The keys of the configuration: the type each value must have and the names it goes by in the environment.
//! Defaults are not here but in `config/default.toml`, except those of servers, which have no section there.

use std::collections::BTreeSet;
use std::time::Duration;

use figment::value::Value;

use crate::domain::node::nearest;

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A text that may bear credentials in its user part or its query.
    Url,
    /// A text that is never shown.
    Secret,
    /// True or false.
    Bool,
    /// A whole number.
    Integer {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A number that is not negative.
    Number {
        /// What is counted.
        unit: &'static str,
    },
    /// A duration of at least this, at most ten years.
    Duration {
        /// The shortest.
        min: Duration,
    },
    /// Texts.
    List,
    /// One of these texts.
    OneOf(&'static [&'static str]),
}

/// The longest duration that can be set; longer ones overflow clocks.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 3600);

impl Kind {
    /// A text of the environment or of a flag as a value of this type. The answer never repeats the text.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        let value = match self {
            Self::Text | Self::Secret => Value::from(text),
            Self::Url | Self::Duration { .. } => Value::from(text.trim()),
            Self::OneOf(_) => Value::from(text.trim().to_lowercase()),
            Self::Bool => match text.trim().to_lowercase().as_str() {
                "true" | "1" => Value::from(true),
                "false" | "0" => Value::from(false),
                _ => return Err(self.expected()),
            },
            Self::Number { .. } => Value::from(text.trim().parse::<f64>().map_err(|_| self.expected())?),
            Self::Integer { .. } => Value::from(text.trim().parse::<i64>().map_err(|_| self.expected())?),
            Self::List if text.trim_start().starts_with('[') => {
                Value::from(serde_json::from_str::<Vec<String>>(text).map_err(|_| {
                    String::from("begins with `[`, so it must be a JSON list of strings, such as [\"a\",\"b\"]")
                })?)
            }
            Self::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::from(items.map(str::to_owned).collect::<Vec<_>>())
            }
        };
        self.check(&value).map(|()| value)
    }

    /// Whether a value is of this type. The answer never repeats the value.
    pub fn check(self, value: &Value) -> Result<(), String> {
        let fits = match self {
            Self::Text | Self::Url | Self::Secret => value.as_str().is_some(),
            Self::Bool => value.to_bool().is_some() && value.as_str().is_none(),
            Self::Integer { min, max, .. } => {
                let number = value.to_i128().filter(|_| matches!(value, Value::Num(..)));
                number.is_some_and(|number| (i128::from(min)..=i128::from(max)).contains(&number))
            }
            Self::Number { .. } => {
                let number = match value {
                    Value::Num(_, number) => number.to_f64().or_else(|| number.to_i128().map(|whole| whole as f64)),
                    _ => None,
                };
                number.is_some_and(|number| number.is_finite() && number >= 0.0)
            }
            Self::Duration { min } => {
                let duration = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
                match duration {
                    Some(duration) if duration < min => {
                        return Err(format!("is too short; the shortest is {}", humantime::format_duration(min)));
                    }
                    Some(duration) if duration > LONGEST => return Err(String::from("is longer than ten years")),
                    duration => duration.is_some(),
                }
            }
            Self::List => value.as_array().is_some_and(|items| items.iter().all(|item| item.as_str().is_some())),
            Self::OneOf(known) => match value.as_str() {
                Some(text) if known.contains(&text) => true,
                Some(text) => {
                    let hint = nearest(text, known.iter().copied()).map(|near| format!("; did you mean {near}?"));
                    return Err(self.expected() + &hint.unwrap_or_default());
                }
                None => false,
            },
        };
        if fits { Ok(()) } else { Err(self.expected()) }
    }

    /// What a person is told who wrote something else.
    fn expected(self) -> String {
        match self {
            Self::Text | Self::Url | Self::Secret => String::from("must be a text in quotes"),
            Self::Bool => String::from("must be true or false"),
            Self::Integer { min, max, unit } => format!("must be a whole number from {min} to {max} ({unit})"),
            Self::Number { unit } => format!("must be a number from 0 ({unit})"),
            Self::Duration { .. } => String::from("must be a duration with its unit, such as \"30s\" or \"1m 30s\""),
            Self::List => String::from("must be a list of texts, such as [\"a\", \"b\"]"),
            Self::OneOf(known) => format!("must be one of {}", known.join(", ")),
        }
    }
}

/// One key; a segment `*` stands for a name that the operator chooses.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The dotted path.
    pub path: &'static str,
    /// What its value must be.
    pub kind: Kind,
    /// For a member of a named server or provider: the default, written as the environment would write it.
    pub default: Option<&'static str>,
}

impl Key {
    /// Whether operators choose a part of its path: such keys stand only in a file.
    pub fn is_free(&self) -> bool {
        self.path.split('.').any(|segment| segment == "*")
    }

    /// Its long name in the environment, if it has one.
    pub fn variable(&self) -> Option<String> {
        (!self.is_free()).then(|| format!("{LONG_PREFIX}{}", self.path.to_uppercase().replace('.', "__")))
    }

    /// Its short names in the environment.
    pub fn short_names(&self) -> impl Iterator<Item = &'static str> {
        SHORT_NAMES.iter().filter(|(_, path)| *path == self.path).map(|(name, _)| *name)
    }

    fn matches<S: AsRef<str>>(&self, path: &[S]) -> bool {
        let pattern = self.path.split('.');
        pattern.clone().count() == path.len()
            && pattern.zip(path).all(|(pattern, segment)| pattern == "*" || pattern == segment.as_ref())
    }
}

/// What long names in the environment begin with.
pub const LONG_PREFIX: &str = "EXECUTOR__";

pub use crate::config::presets::PROVIDER_KINDS;

/// The short names. Those of a provider's members fill the provider that is the default.
pub const SHORT_NAMES: &[(&str, &str)] = &[
    ("WORKER_ID", "worker.id"),
    ("REDIS_ADDR", "redis.url"),
    ("REDIS_PASS", "redis.password"),
    ("REDIS_DB", "redis.db"),
    ("LLM_PROVIDER", "llm.default"),
    ("LLM_API_KEY", "llm.providers.*.api_key"),
    ("LLM_MODEL", "llm.providers.*.model"),
    ("LLM_BASE_URL", "llm.providers.*.base_url"),
    ("MAX_ITERATIONS", "agent.max_iterations"),
    ("LOG_LEVEL", "log.level"),
    ("HEALTH_PORT", "http.port"),
];

/// Keys of providers that have none of their own: the variable, and the vendor it is for.
pub const FALLBACK_KEYS: &[(&str, &str)] = &[
    ("ANTHROPIC_API_KEY", "anthropic"),
    ("OPENAI_API_KEY", "openai"),
    ("OPENROUTER_API_KEY", "openrouter"),
    ("GEMINI_API_KEY", "gemini"),
];

/// What may follow when nobody knows whether a tool call took effect.
const UNKNOWN_OUTCOME: Kind = Kind::OneOf(&["ask_model", "fail", "retry"]);

/// What a model costs.
const PRICE: Kind = Kind::Number { unit: "US dollars for a million tokens" };

/// Requests in a minute.
const RATE: Kind = count(1, u32::MAX as u64, "requests a minute");

/// Tokens in a minute.
const TOKENS: Kind = count(1, 1_000_000_000_000, "tokens a minute");

/// When something is done that depends on the call.
const WHEN: Kind = Kind::OneOf(&["auto", "always", "never"]);

/// How a client may authenticate at a token endpoint.
const AUTH_METHODS: &[&str] = &["client_secret_basic", "client_secret_post", "private_key_jwt", "none"];

/// Every key there is, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    key("worker.id", Kind::Text),
    key("redis.url", Kind::Url),
    key("redis.password", Kind::Secret),
    key("redis.db", count(0, i32::MAX as u64, "database number")),
    key("redis.connect_timeout", time(1)),
    key("redis.command_timeout", time(1)),
    key("work.streams", Kind::List),
    key("work.group", Kind::Text),
    key("work.block", time(1)),
    key("work.strict", Kind::Bool),
    key("work.max_crashes", count(1, 1_000_000, "crashes")),
    key("work.reap_after", time(1)),
    key("lease.duration", time(100)),
    key("lease.renew", time(1)),
    key("lease.sweep", time(1)),
    key("pool.size", count(1, 100_000, "nodes")),
    key("pool.arbiters", count(1, 1024, "threads")),
    key("state.prefix", Kind::Text),
    key("state.ttl", time(1000)),
    key("state.layout", Kind::OneOf(&["hash", "string"])),
    key("events.maxlen", count(1, u32::MAX as u64, "entries")),
    key("events.hard_cap", count(1, u32::MAX as u64, "entries")),
    key("events.progress", Kind::List),
    key("llm.default", Kind::Text),
    key("llm.fallback", Kind::List),
    key("llm.providers.*.kind", Kind::OneOf(PROVIDER_KINDS)).or("anthropic"),
    key("llm.providers.*.base_url", Kind::Url).or("https://api.anthropic.com"),
    key("llm.providers.*.api_key", Kind::Secret),
    key("llm.providers.*.auth", Kind::OneOf(&["x-api-key", "bearer"])).or("x-api-key"),
    key("llm.providers.*.model", Kind::Text).or("claude-sonnet-5-5"),
    key("llm.providers.*.version", Kind::Text).or("2026-10-21"),
    key("llm.providers.*.betas", Kind::List).or("[]"),
    key("llm.providers.*.max_tokens", count(1, u32::MAX as u64, "tokens")).or("16000"),
    key("llm.providers.*.stream", WHEN).or("auto"),
    key("llm.providers.*.cache", WHEN).or("auto"),
    key("llm.providers.*.timeout", time(1)).or("10m"),
    key("llm.providers.*.stall_timeout", time(1)).or("2m"),
    key("llm.providers.*.connect_timeout", time(1)).or("5s"),
    key("llm.providers.*.concurrency", count(1, 100_000, "calls")).or("256"),
    key("llm.providers.*.requests_per_minute", RATE),
    key("llm.providers.*.tokens_per_minute", TOKENS),
    key("llm.providers.*.burst", time(0)).or("10s"),
    key("llm.providers.*.rate_headers", WHEN).or("auto"),
    key("llm.providers.*.breaker_failures", count(0, u32::MAX as u64, "failures")).or("10"),
    key("llm.providers.*.breaker_pause", time(100)).or("5s"),
    key("llm.providers.*.breaker_max_pause", time(100)).or("1m"),
    key("llm.providers.*.api", Kind::OneOf(&["auto", "chat", "responses"])).or("auto"),
    key("llm.providers.*.max_tokens_as", Kind::OneOf(&["auto", "max_tokens", "max_completion_tokens"])).or("auto"),
    key("llm.providers.*.structured_output", Kind::OneOf(&["json_schema", "json_object", "prompt"])).or("json_schema"),
    key("llm.providers.*.reasoning_history", Kind::Bool).or("true"),
    key("llm.providers.*.images", Kind::Bool).or("true"),
    key("llm.providers.*.script", Kind::Text),
    key("llm.providers.*.limits.*.requests_per_minute", RATE),
    key("llm.providers.*.limits.*.tokens_per_minute", TOKENS),
    key("llm.providers.*.prices.*.input", PRICE),
    key("llm.providers.*.prices.*.output", PRICE),
    key("llm.providers.*.prices.*.cache_read", PRICE),
    key("llm.providers.*.prices.*.cache_write", PRICE),
    key("llm.prices.*.input", PRICE),
    key("llm.prices.*.output", PRICE),
    key("llm.prices.*.cache_read", PRICE),
    key("llm.prices.*.cache_write", PRICE),
    key("mcp.order", Kind::List),
    key("mcp.config", Kind::Text),
    key("mcp.servers.*.url", Kind::Url),
    key("mcp.servers.*.command", Kind::Text),
    key("mcp.servers.*.args", Kind::List).or("[]"),
    key("mcp.servers.*.env.*", Kind::Secret),
    key("mcp.servers.*.cwd", Kind::Text),
    key("mcp.servers.*.headers.*", Kind::Secret),
    key("mcp.servers.*.auth.token", Kind::Secret),
    key("mcp.servers.*.auth.token_file", Kind::Text),
    key("mcp.servers.*.auth.client_id", Kind::Text),
    key("mcp.servers.*.auth.client_secret", Kind::Secret),
    key("mcp.servers.*.auth.client_secret_file", Kind::Text),
    key("mcp.servers.*.auth.private_key", Kind::Secret),
    key("mcp.servers.*.auth.private_key_file", Kind::Text),
    key("mcp.servers.*.auth.assertion", Kind::Secret),
    key("mcp.servers.*.auth.assertion_file", Kind::Text),
    key("mcp.servers.*.auth.key_id", Kind::Text),
    key("mcp.servers.*.auth.scopes", Kind::List),
    key("mcp.servers.*.auth.issuer", Kind::Url),
    key("mcp.servers.*.auth.token_endpoint", Kind::Url),
    key("mcp.servers.*.auth.token_endpoint_auth_method", Kind::OneOf(AUTH_METHODS)),
    key("mcp.servers.*.auth.resource", Kind::Url),
    key("mcp.servers.*.auth.allow_http", Kind::Bool),
    key("mcp.servers.*.allow", Kind::List).or("[]"),
    key("mcp.servers.*.deny", Kind::List).or("[]"),
    key("mcp.servers.*.pin", Kind::Text),
    key("mcp.servers.*.timeout", time(1)).or("60s"),
    key("mcp.servers.*.tool_timeouts.*", time(1)),
    key("mcp.servers.*.max_timeout", time(1)).or("10m"),
    key("mcp.servers.*.connect_timeout", time(1)).or("10s"),
    key("mcp.servers.*.concurrency", count(1, 100_000, "calls")).or("32"),
    key("mcp.servers.*.required", Kind::Bool).or("false"),
    key("mcp.servers.*.elicitation", Kind::OneOf(&["decline", "wait"])).or("decline"),
    key("tools.disable", Kind::List),
    key("tools.on_unknown_outcome", UNKNOWN_OUTCOME),
    key("tools.unknown_outcome.*", UNKNOWN_OUTCOME),
    key("tools.approve.*", Kind::Text),
    key("tools.http_request.allow", Kind::List),
    key("tools.http_request.timeout", time(1)),
    key("tools.http_request.max_bytes", count(1, 1 << 30, "bytes")),
    key("agent.max_iterations", count(1, 10_000, "turns")),
    key("agent.max_tool_calls", count(0, u32::MAX as u64, "calls")),
    key("agent.parallel_tools", count(1, 10_000, "calls")),
    key("agent.finalize", Kind::Bool),
    key("wait.timeout", time(1000)),
    key("wait.on_expiry", Kind::OneOf(&["fail", "reject", "accept"])),
    key("wait.audit_maxlen", count(1, u32::MAX as u64, "decisions")),
    key("retry.max_attempts", count(1, 1000, "attempts")),
    key("retry.initial", time(0)),
    key("retry.max", time(0)),
    key("retry.park_after", time(100)),
    key("limits.item", count(1, 512 << 20, "bytes")),
    key("limits.output", count(1, 512 << 20, "bytes")),
    key("limits.inline_output", count(1, 512 << 20, "bytes")),
    key("limits.node_timeout", time(1)),
    key("limits.attempt_timeout", time(1)),
    key("limits.queue_age", time(1)),
    key("limits.tool_result_chars", count(1, 512 << 20, "characters")),
    key("limits.stored_tool_result", count(0, 512 << 20, "bytes")),
    key("http.bind", Kind::Text),
    key("http.port", count(0, u16::MAX as u64, "port")),
    key("http.admin_token", Kind::Secret),
    key("log.level", Kind::Text),
    key("log.format", Kind::OneOf(&["auto", "pretty", "json"])),
    key("shutdown.grace", time(0)),
];

const fn key(path: &'static str, kind: Kind) -> Key {
    Key { path, kind, default: None }
}

impl Key {
    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }
}

const fn count(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Integer { min, max, unit }
}

/// A duration of at least so many milliseconds: Redis counts in them, and less would mean "for ever" to it.
const fn time(min: u32) -> Kind {
    Kind::Duration { min: Duration::from_millis(min as u64) }
}

/// The key at a path.
pub fn find<S: AsRef<str>>(path: &[S]) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.matches(path))
}

/// What may stand under a path that is a section: names, or `*` alone; empty where the path is no section.
pub fn members<S: AsRef<str>>(path: &[S]) -> BTreeSet<&'static str> {
    let member_of = |key: &Key| {
        let mut pattern = key.path.split('.');
        let above = path.iter().all(|segment| pattern.next().is_some_and(|p| p == "*" || p == segment.as_ref()));
        if above { pattern.next() } else { None }
    };
    KEYS.iter().filter_map(member_of).collect()
}
