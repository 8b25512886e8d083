//! What values mean together: combinations that cannot be meant are problems, ones that will disappoint are warnings.
//! The type and the range of a single value are checked where it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use humantime::format_duration;
use secrecy::{ExposeSecret, SecretString};
use tracing_subscriber::EnvFilter;
use url::Url;

use crate::config::env::shown;
use crate::config::error::Problem;
use crate::config::mcp_servers::is_name;
use crate::config::source::{Source, dotted};
use crate::config::{Config, LeaseConfig, McpAuthConfig, McpServerConfig, PriceConfig, ProviderConfig, ProviderKind};
use crate::domain::approve::Rule;
use crate::domain::node::nearest;

/// Names that `tools.disable` may hold.
pub const BUILT_IN_TOOLS: &[&str] = &["calculate", "current_time", "http_request", "json_query", "template"];
/// Names that `events.progress` may hold.
pub const PROGRESS_EVENTS: &[&str] = &["node.started", "node.progress", "tool.executed", "llm.delta"];

/// The longest name of a worker, a stream or a group.
const MAX_NAME: usize = 256;

/// The shortest token that opens the API: a shorter one can be guessed.
const MIN_TOKEN: usize = 16;

/// Adds what is wrong to `problems`. A key that has a problem already is not blamed again. `functions` are those that
/// the program has beside the built-in ones.
pub fn validate(
    config: &Config,
    functions: &[String],
    sources: &BTreeMap<String, Source>,
    problems: &mut Vec<Problem>,
) {
    let refused = problems.iter().map(|problem| problem.key.clone()).collect();
    let mut check = Check { functions, sources, refused, problems };
    check.worker_and_work(config);
    check.lease(&config.lease, config.work.block);
    check.models(config);
    check.servers(config);
    check.the_rest(config);
}

/// What will disappoint and is no error.
pub fn warnings(config: &Config, sources: &BTreeMap<String, Source>) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, provider) in &config.llm.providers {
        let prefix = format!("{}.", dotted(&["llm", "providers", name]));
        // The compiled-in provider is there whether anyone wants it or not.
        let wanted = *name == config.llm.default || sources.keys().any(|key| key.starts_with(&prefix));
        let key = dotted(&["llm", "providers", name, "api_key"]);
        if provider.needs_key() && provider.api_key.is_none() && wanted {
            let vendors_own = provider.key_variable().map(|variable| format!(" {variable},")).unwrap_or_default();
            warnings.push(format!(
                "provider {name} has no key, so nodes that use it fail; set LLM_API_KEY or LLM_API_KEY_FILE,\
                 {vendors_own} or {key} in the file"
            ));
        }
        if let Some(tokens) = provider.tokens_per_minute
            && tokens.get() < u64::from(provider.max_tokens.get())
        {
            let (limit, written) = (dotted(&["llm", "providers", name, "tokens_per_minute"]), provider.max_tokens);
            warnings.push(format!(
                "{limit} is less than the {written} tokens that one call may write, so calls go one at a time; \
                 lower max_tokens of the provider or of the nodes"
            ));
        }
        if provider.kind == ProviderKind::Scripted && provider.api_key.is_some() {
            warnings.push(format!("provider {name} is scripted, so its key is not used"));
        }
    }
    for (name, server) in &config.mcp.servers {
        let Some(auth) = &server.auth else { continue };
        let key = |member: &str| dotted(&["mcp", "servers", name, "auth", member]);
        for (member, path) in auth.absent_files() {
            warnings.push(format!("{}: {} is not there yet", key(member), shown(path.as_os_str())));
        }
        if auth.trusts_the_server() {
            warnings.push(format!(
                "the secret of the MCP server {name} goes to the authorization server that {name} names first; set {} to fix it",
                key("issuer")
            ));
        }
    }
    warnings
}

struct Check<'a> {
    functions: &'a [String],
    sources: &'a BTreeMap<String, Source>,
    refused: BTreeSet<String>,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    /// Blames the first of the keys that somebody chose; silent if one of them is refused already.
    fn blame(&mut self, keys: &[&str], message: impl Into<String>) {
        if keys.iter().any(|key| self.refused.contains(*key)) {
            return;
        }
        let chosen = |key: &&&str| self.sources.get(**key).is_some_and(|source| !source.is_default());
        let key = keys.iter().find(chosen).or(keys.first()).copied().unwrap_or_default();
        let source = self.sources.get(key).cloned().unwrap_or(Source::Default);
        self.problems.push(Problem::new(key, source, message));
    }

    /// Tells of a key that nobody set.
    fn lacking(&mut self, key: String, message: &str) {
        if !self.refused.contains(&key) {
            self.problems.push(Problem::missing(key, message));
        }
    }

    fn name(&mut self, key: &str, text: &str) {
        if text.is_empty() || text.len() > MAX_NAME {
            self.blame(&[key], format!("must have 1 to {MAX_NAME} bytes"));
        } else if text.chars().any(char::is_control) {
            self.blame(&[key], "has a control character in it");
        }
    }

    fn worker_and_work(&mut self, config: &Config) {
        self.name("worker.id", &config.worker.id);
        self.name("work.group", &config.work.group);
        let streams = &config.work.streams;
        if streams.is_empty() {
            self.blame(&["work.streams"], "must name at least one stream");
        }
        for (at, stream) in streams.iter().enumerate() {
            self.name("work.streams", stream);
            if let Some(earlier) = streams[..at].iter().position(|other| other == stream) {
                self.blame(
                    &["work.streams"],
                    format!("names the same stream twice, at {} and {}", earlier + 1, at + 1),
                );
            }
            if let Some(of) = streams.iter().position(|other| stream.strip_suffix(":dead") == Some(other)) {
                self.blame(
                    &["work.streams"],
                    format!(
                        "has the dead letters of stream {} as stream {}; they would run again for ever",
                        of + 1,
                        at + 1
                    ),
                );
            }
        }
        if config.state.prefix.chars().any(char::is_control) || config.state.prefix.len() > MAX_NAME {
            self.blame(&["state.prefix"], format!("must have no control characters and at most {MAX_NAME} bytes"));
        }
    }

    fn lease(&mut self, lease: &LeaseConfig, block: Duration) {
        let (duration, renew) = (lease.duration, lease.renew());
        if renew > duration / 3 {
            self.blame(
                &["lease.renew", "lease.duration"],
                format!(
                    "renewing every {} is too seldom for a lease of {}; lease.renew must be at most a third of \
                     lease.duration ({})",
                    format_duration(renew),
                    format_duration(duration),
                    format_duration(duration / 3)
                ),
            );
        }
        if block >= duration {
            self.blame(
                &["work.block", "lease.duration"],
                format!(
                    "a read that waits {} outlasts a lease of {}; work.block must be shorter than lease.duration",
                    format_duration(block),
                    format_duration(duration)
                ),
            );
        }
    }

    fn models(&mut self, config: &Config) {
        let known = || config.llm.providers.keys().map(String::as_str);
        if !config.llm.providers.contains_key(&config.llm.default) {
            let list = known().collect::<Vec<_>>().join(", ");
            self.blame(&["llm.default"], format!("names no provider; known are {list}"));
        }
        for (at, name) in config.llm.fallback.iter().enumerate() {
            if !config.llm.providers.contains_key(name) {
                let list = known().collect::<Vec<_>>().join(", ");
                self.blame(&["llm.fallback"], format!("place {} names no provider; known are {list}", at + 1));
            }
        }
        for (name, provider) in &config.llm.providers {
            let key = |member: &str| dotted(&["llm", "providers", name, member]);
            if !is_name(name) {
                self.blame(&[&key("kind"), &key("model")], "the name of a provider is of letters, digits, `_` and `-`");
            }
            self.provider(provider, &key);
            self.prices(&provider.prices, &["llm", "providers", name, "prices"]);
        }
        self.prices(&config.llm.prices, &["llm", "prices"]);
    }

    fn prices(&mut self, prices: &BTreeMap<String, PriceConfig>, path: &[&str]) {
        for (model, price) in prices {
            for (member, value) in [("input", price.input), ("output", price.output)] {
                if value.is_none() {
                    let key = dotted(&[path, &[model, member]].concat());
                    self.lacking(key, "a price needs `input` and `output`, in US dollars for a million tokens");
                }
            }
        }
    }

    fn provider(&mut self, provider: &ProviderConfig, key: &dyn Fn(&str) -> String) {
        match provider.kind {
            ProviderKind::Scripted => {
                if provider.script.as_ref().is_none_or(|script| script.as_os_str().is_empty()) {
                    self.lacking(key("script"), "a scripted provider needs the file with its turns");
                }
            }
            _ => {
                self.http_url(&key("base_url"), &provider.base_url);
                if provider.model.trim().is_empty() {
                    self.blame(&[&key("model")], "must name a model, here or by LLM_MODEL");
                }
                let texts = provider.betas.iter().map(|beta| ("betas", beta));
                for (member, text) in texts.chain([("version", &provider.version)]) {
                    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                        self.blame(&[&key(member)], "is sent as a header, so it must be of visible ASCII characters");
                    }
                }
            }
        }
        let (pause, longest) = (provider.breaker_pause, provider.breaker_max_pause);
        if pause > longest {
            self.blame(
                &[&key("breaker_pause"), &key("breaker_max_pause")],
                format!(
                    "a first pause of {} is longer than the longest of {}; breaker_pause must be at most breaker_max_pause",
                    format_duration(pause),
                    format_duration(longest)
                ),
            );
        }
        if let Some(secret) = &provider.api_key {
            self.secret_header(&key("api_key"), secret);
        }
    }

    fn servers(&mut self, config: &Config) {
        for (at, name) in config.mcp.order.iter().enumerate() {
            if !config.mcp.servers.contains_key(name) {
                let near = nearest(name, config.mcp.servers.keys().map(String::as_str));
                let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                self.blame(&["mcp.order"], format!("place {} names no server{hint}", at + 1));
            }
        }
        for (name, server) in &config.mcp.servers {
            let key = |member: &str| dotted(&["mcp", "servers", name, member]);
            if !is_name(name) {
                self.blame(&[&key("url"), &key("command")], "the name of a server is of letters, digits, `_` and `-`");
            }
            self.server(server, &key);
        }
    }

    fn server(&mut self, server: &McpServerConfig, key: &dyn Fn(&str) -> String) {
        match (&server.url, &server.command) {
            (Some(url), None) => self.http_url(&key("url"), url),
            (None, Some(command)) if command.trim().is_empty() => self.blame(&[&key("command")], "must name a program"),
            (None, Some(_)) => {}
            (Some(_), Some(_)) => {
                self.blame(
                    &[&key("url"), &key("command")],
                    "a server has either `url` or `command`; remove one of them",
                );
            }
            (None, None) => {
                self.lacking(key("url"), "a server needs `url` (over HTTP) or `command` (a child process)");
            }
        }
        let idle: &[(&str, bool)] = if server.command.is_some() {
            &[("headers", server.headers.is_empty())]
        } else {
            &[("args", server.args.is_empty()), ("env", server.env.is_empty()), ("cwd", server.cwd.is_none())]
        };
        for (member, _) in idle.iter().filter(|(_, absent)| !absent) {
            let whose = if server.command.is_some() { "`url`" } else { "`command`" };
            self.blame(&[&key(member)], format!("means something only for a server with {whose}"));
        }
        for (member, path) in [("cwd", &server.cwd), ("pin", &server.pin)] {
            if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
                self.blame(&[&key(member)], "must not be empty; leave it away instead");
            }
        }
        for (name, value) in &server.headers {
            let header = format!("{}.{}", key("headers"), dotted(&[name]));
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if name.is_empty() || !name.bytes().all(token) {
                self.blame(&[&header], "is no name of a header");
            }
            self.secret_header(&header, value);
        }
        if let Some(auth) = &server.auth {
            self.auth(server, auth, key);
        }
        for (name, value) in &server.env {
            let variable = format!("{}.{}", key("env"), dotted(&[name]));
            if name.is_empty() || name.contains(['=', '\0']) || value.expose_secret().contains('\0') {
                self.blame(&[&variable], "cannot be a variable of a process");
            }
        }
    }

    fn auth(&mut self, server: &McpServerConfig, auth: &McpAuthConfig, key: &dyn Fn(&str) -> String) {
        let of = |member: &str| format!("{}.{member}", key("auth"));
        if server.command.is_some() {
            let first = auth.set().first().copied().unwrap_or("client_id");
            return self
                .blame(&[&of(first)], "means something only for a server with `url`; a child process has `env`");
        }
        if let Some(name) = server.headers.keys().find(|name| name.eq_ignore_ascii_case("authorization")) {
            let header = format!("{}.{}", key("headers"), dotted(&[name]));
            self.blame(&[&header], format!("is sent by {} too; remove one of them", key("auth")));
        }
        for finding in auth.findings(server.url.as_deref()) {
            let keys: Vec<String> = finding.keys.iter().map(|member| of(member)).collect();
            match keys.first() {
                Some(first) if finding.missing => self.lacking(first.clone(), &finding.message),
                Some(_) => self.blame(&keys.iter().map(String::as_str).collect::<Vec<_>>(), finding.message),
                None => self.blame(&[&key("url")], finding.message),
            }
        }
    }

    fn http_url(&mut self, key: &str, text: &str) {
        let good = Url::parse(text).is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        if !good {
            self.blame(&[key], "must be an address such as http://host:8080/path or https://host");
        }
    }

    /// A secret that is sent as a header; a line break would otherwise fail the first request.
    fn secret_header(&mut self, key: &str, secret: &SecretString) {
        let text = secret.expose_secret();
        if text.chars().any(|c| !c.is_ascii() || c.is_ascii_control()) {
            self.blame(&[key], "is sent as a header, so it must be one line of ASCII characters");
        }
    }

    fn known(&mut self, key: &str, texts: &[String], known: &[&str]) {
        for (at, text) in texts.iter().enumerate().filter(|(_, text)| !known.contains(&text.as_str())) {
            let hint = nearest(text, known.iter().copied()).map(|near| format!("; did you mean {near}?"));
            let (list, hint) = (known.join(", "), hint.unwrap_or_default());
            self.blame(&[key], format!("place {} is none of {list}{hint}", at + 1));
        }
    }

    /// A rule for a tool that does not exist would protect nothing. The tools of a server are known only to itself.
    fn tool_names(&mut self, config: &Config) {
        for (name, when) in &config.tools.approve {
            let key = dotted(&["tools", "approve", name]);
            if Rule::new(name, Some(when)).is_err() {
                // Why not may quote it, and nothing of a configuration is repeated.
                self.blame(&[&key], "must be `always` or a condition over `args`, such as \"args.amount > 100\"");
            }
        }
        let outcomes = config.tools.unknown_outcome.keys().map(|name| ("unknown_outcome", name));
        let approvals = config.tools.approve.keys().filter(|name| *name != "*").map(|name| ("approve", name));
        for (section, name) in outcomes.chain(approvals) {
            let servers = || config.mcp.servers.keys().map(String::as_str);
            let (known, whose, near) = match name.split_once('/') {
                Some((server, tool)) => {
                    let known = config.mcp.servers.contains_key(server) && !tool.is_empty();
                    (known, "names no tool of an MCP server", nearest(server, servers()))
                }
                None => {
                    let known = BUILT_IN_TOOLS.contains(&name.as_str()) || self.functions.contains(name);
                    let own = self.functions.iter().map(String::as_str);
                    let near = nearest(name, BUILT_IN_TOOLS.iter().copied().chain(own));
                    (known, "names no built-in tool, and those of a server are `server/tool`", near)
                }
            };
            if !known {
                let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                self.blame(&[&dotted(&["tools", section, name])], format!("{whose}{hint}"));
            }
        }
    }

    fn the_rest(&mut self, config: &Config) {
        self.known("events.progress", &config.events.progress, PROGRESS_EVENTS);
        self.known("tools.disable", &config.tools.disable, BUILT_IN_TOOLS);
        self.tool_names(config);
        for (at, host) in config.tools.http_request.allow.iter().enumerate() {
            if !is_host_pattern(host) {
                self.blame(
                    &["tools.http_request.allow"],
                    format!(
                        "place {} must be `host`, `host:port`, `*.domain` or `*`, with no scheme and no path",
                        at + 1
                    ),
                );
            }
        }
        let (initial, max) = (config.retry.initial, config.retry.max);
        if initial > max {
            self.blame(
                &["retry.initial", "retry.max"],
                format!(
                    "a first wait of {} is longer than the longest of {}; retry.initial must be at most retry.max",
                    format_duration(initial),
                    format_duration(max)
                ),
            );
        }
        let (maxlen, hard_cap) = (config.events.maxlen.get(), config.events.hard_cap());
        if hard_cap <= maxlen {
            self.blame(
                &["events.hard_cap", "events.maxlen"],
                format!("fetching stops at {hard_cap} entries, but streams are kept at {maxlen}; events.hard_cap must be above events.maxlen"),
            );
        }
        if let Some(token) = &config.http.admin_token {
            let token = token.expose_secret();
            if token.len() < MIN_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                self.blame(
                    &["http.admin_token"],
                    format!("must have at least {MIN_TOKEN} visible ASCII characters and no spaces"),
                );
            }
        }
        if config.http.bind.parse::<IpAddr>().is_err() {
            self.blame(&["http.bind"], "must be an IP address, such as 127.0.0.1, 0.0.0.0 or ::");
        }
        let lone_words = self.sources.get("log.level") == Some(&Source::Environment(String::from("RUST_LOG")));
        if !are_directives(&config.log.level, lone_words) {
            self.blame(
                &["log.level"],
                "must be error, warn, info, debug or trace, or directives such as info,da_node_executor=debug",
            );
        }
    }
}

fn is_host_pattern(text: &str) -> bool {
    let host = text.strip_prefix("*.").unwrap_or(text);
    text == "*"
        || !host.is_empty()
            && !host.contains(['/', '?', '#', '@', '*', '\\'])
            && !host.contains(char::is_whitespace)
            && Url::parse(&format!("http://{host}/")).is_ok()
}

/// Whether a text is a level or a list of directives. A lone word that is no level would silently log everything of a
/// target of that name and nothing else: only `RUST_LOG`, where that is the custom, may say so.
fn are_directives(text: &str, lone_words: bool) -> bool {
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    let lone_word = |part: &str| !part.contains(['=', '[', ':']) && !is_level(part.trim());
    !text.trim().is_empty()
        && EnvFilter::builder().parse(text).is_ok()
        && (lone_words || text.contains('{') || !text.split(',').any(lone_word))
}
