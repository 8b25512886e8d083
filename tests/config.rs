//! The configuration from outside: names, precedence, refusals, and what may never be printed. Every environment here
//! is made up; none of these tests reads or writes the one of the process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use da_node_executor::cli::config as cli;
use da_node_executor::config::error::ConfigError;
use da_node_executor::config::load::{LoadOptions, Loaded, load, load_file};
use da_node_executor::config::schema::{FALLBACK_KEYS, KEYS, Key, Kind, SHORT_NAMES};
use da_node_executor::config::source::Source;
use da_node_executor::config::{Config, DEFAULT_TOML, McpServerConfig, ProviderConfig, ProviderKind, UnknownOutcome};
use proptest::prelude::*;
use secrecy::ExposeSecret;
use tempfile::TempDir;

/// A configuration being put together; the file lives as long as it does.
#[derive(Default)]
struct Given {
    folder: Option<TempDir>,
    options: LoadOptions,
}

impl Given {
    fn env(variables: &[(&str, &str)]) -> Self {
        Self::default().and_env(variables)
    }

    fn file(text: &str) -> Self {
        Self::default().and_file(text)
    }

    fn and_env(mut self, variables: &[(&str, &str)]) -> Self {
        self.options.env.extend(variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))));
        self
    }

    fn and_file(mut self, text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("worker.toml");
        fs::write(&path, text).expect("a file in it");
        self.options.file = Some(path);
        self.folder = Some(folder);
        self
    }

    fn and_flag(mut self, key: &str, value: &str) -> Self {
        self.options.flags.push((key.to_owned(), value.to_owned()));
        self
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.options)
    }

    fn good(&self) -> Loaded {
        self.load().unwrap_or_else(|error| panic!("should be good, but {error}"))
    }

    fn config(&self) -> Config {
        self.good().config
    }

    /// The message of the refusal.
    fn refusal(&self) -> String {
        self.load().expect_err("should be refused").to_string()
    }
}

/// A secret in a file of its own.
fn secret_file(content: &[u8]) -> (TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("secret");
    fs::write(&path, content).expect("a file in it");
    let path = path.to_str().expect("a plain path").to_owned();
    (folder, path)
}

fn environment(name: &str) -> Source {
    Source::Environment(name.to_owned())
}

// --- precedence -------------------------------------------------------------------------------------------------

#[test]
fn flags_win_over_the_environment_over_the_file_over_the_defaults() {
    let file = "[pool]\nsize = 2\n";
    let env: &[(&str, &str)] = &[("EXECUTOR__POOL__SIZE", "3")];
    let size = |given: &Given| {
        let loaded = given.good();
        (loaded.config.pool.size.get(), loaded.source("pool.size").kind())
    };
    assert_eq!(size(&Given::default()), (64, "default"));
    assert_eq!(size(&Given::file(file)), (2, "file"));
    assert_eq!(size(&Given::file(file).and_env(env)), (3, "environment"));
    assert_eq!(size(&Given::file(file).and_env(env).and_flag("pool.size", "4")), (4, "flag"));
    assert_eq!(size(&Given::env(env)), (3, "environment"));
    assert_eq!(size(&Given::file(file).and_flag("pool.size", "4")), (4, "flag"));
}

#[test]
fn a_value_of_the_file_knows_its_line() {
    let given = Given::file("[worker]\nid = \"w\"\n\n[pool]\n# Few.\nsize = 2\n");
    let Source::File { path, line } = given.good().source("pool.size") else { panic!("it stands in the file") };
    assert_eq!((Some(path), line), (given.options.file.clone(), Some(6)));
}

#[test]
fn the_address_of_redis_is_written_alike_wherever_it_stands() {
    for given in [
        Given::env(&[("REDIS_ADDR", "cache:6380")]),
        Given::env(&[("EXECUTOR__REDIS__URL", "cache:6380")]),
        Given::file("[redis]\nurl = \"cache:6380\"\n"),
        Given::default().and_flag("redis.url", "cache:6380"),
    ] {
        assert_eq!(given.config().redis.url, "redis://cache:6380");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused_by_who_named_it() {
    let refusal = Given::env(&[("EXECUTOR_CONFIG", "/nowhere/worker.toml")]).refusal();
    let begin = "the configuration is refused: EXECUTOR_CONFIG (environment): /nowhere/worker.toml cannot be read: ";
    assert!(refusal.starts_with(begin), "{refusal}");
    let mut given = Given::default();
    given.options.file = Some("/nowhere/worker.toml".into());
    let refusal = given.refusal();
    let begin = "the configuration is refused: --config (command line): /nowhere/worker.toml cannot be read: ";
    assert!(refusal.starts_with(begin), "{refusal}");
    let error = load_file("/nowhere/worker.toml".as_ref()).expect_err("it is not there").to_string();
    assert!(error.starts_with("the configuration is refused: /nowhere/worker.toml: cannot be read: "), "{error}");
}

#[test]
fn a_flag_names_the_file_before_the_environment_does() {
    let other = Given::file("[pool]\nsize = 5\n");
    let path = other.options.file.clone().expect("a file").to_str().expect("a plain path").to_owned();
    assert_eq!(Given::env(&[("EXECUTOR_CONFIG", &path)]).config().pool.size.get(), 5);
    let both = Given::file("[pool]\nsize = 6\n").and_env(&[("EXECUTOR_CONFIG", &path)]);
    assert_eq!(both.config().pool.size.get(), 6);
}

#[test]
fn only_a_named_file_is_read() {
    assert_eq!(Given::default().good().file, None);
    assert_eq!(Given::env(&[("EXECUTOR_CONFIG", "")]).good().file, None);
}

#[test]
fn lists_are_replaced_and_not_joined() {
    let given = Given::file("[work]\nstreams = [\"a\", \"b\"]\n").and_env(&[("EXECUTOR__WORK__STREAMS", "c")]);
    assert_eq!(given.config().work.streams, ["c"]);
}

// --- names ------------------------------------------------------------------------------------------------------

#[test]
fn every_short_name_sets_its_key() {
    let given = Given::env(&[
        ("WORKER_ID", "worker-7"),
        ("REDIS_ADDR", "cache:6380"),
        ("REDIS_PASS", "p"),
        ("REDIS_DB", "4"),
        ("LLM_PROVIDER", "anthropic"),
        ("LLM_API_KEY", "k"),
        ("LLM_MODEL", "claude-x"),
        ("LLM_BASE_URL", "http://127.0.0.1:9"),
        ("MCP_SERVERS", "http://tools-server:8080,http://search-server:8081"),
        ("MAX_ITERATIONS", "3"),
        ("LOG_LEVEL", "debug"),
        ("HEALTH_PORT", "9000"),
    ]);
    let loaded = given.good();
    let config = &loaded.config;
    assert_eq!(config.worker.id, "worker-7");
    assert_eq!(config.redis.url, "redis://cache:6380");
    assert_eq!(config.redis.password.as_ref().map(|secret| secret.expose_secret()), Some("p"));
    assert_eq!(config.redis.db, Some(4));
    let provider = &config.llm.providers["anthropic"];
    assert_eq!(provider.api_key.as_ref().map(|secret| secret.expose_secret()), Some("k"));
    assert_eq!((provider.model.as_str(), provider.base_url.as_str()), ("claude-x", "http://127.0.0.1:9"));
    assert_eq!(config.mcp.order, ["tools-server", "search-server"]);
    assert_eq!(config.mcp.servers["search-server"].url.as_deref(), Some("http://search-server:8081"));
    assert_eq!(config.agent.max_iterations.get(), 3);
    assert_eq!((config.log.level.as_str(), config.http.port), ("debug", 9000));
    for (name, path) in SHORT_NAMES {
        assert_eq!(loaded.source(&path.replace('*', "anthropic")), environment(name));
    }
    assert_eq!(loaded.source("mcp.servers.tools-server.url"), environment("MCP_SERVERS"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

/// A good value for a key, as the environment would write it.
fn sample(key: &Key) -> String {
    match (key.path, key.kind) {
        ("redis.url", _) => String::from("redis://h:1"),
        ("llm.default" | "llm.fallback", _) => String::from("anthropic"),
        ("lease.renew" | "retry.initial", _) => String::from("1s"),
        ("lease.duration", _) => String::from("61s"),
        ("retry.max", _) => String::from("31s"),
        (path, _) if path.ends_with("breaker_max_pause") => String::from("61s"),
        ("events.hard_cap", _) => String::from("200000"),
        ("events.progress", _) => String::from("node.started"),
        ("tools.disable", _) => String::from("template"),
        ("tools.http_request.allow", _) => String::from("*.example.com,h:80"),
        ("tools.approve.*", _) => String::from("args.amount > 100"),
        ("mcp.order", _) => String::from("s"),
        ("mcp.config", _) => String::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/mcp.json")),
        ("http.admin_token", _) => String::from("sixteen-or-longer"),
        ("http.bind", _) => String::from("::1"),
        ("log.level", _) => String::from("WARN"),
        (path, _) if [".issuer", ".token_endpoint", ".resource"].iter().any(|end| path.ends_with(end)) => {
            String::from("https://h/")
        }
        (path, _) if path.ends_with(".base_url") || path.ends_with(".url") => String::from("http://h/"),
        (_, Kind::Text | Kind::Secret | Kind::Url) => String::from("some-text"),
        (_, Kind::Bool) => String::from("true"),
        (_, Kind::Integer { max, .. }) => max.min(7).to_string(),
        (_, Kind::Number { .. }) => String::from("1.5"),
        (_, Kind::Duration { .. }) => String::from("1500ms"),
        (_, Kind::List) => String::from("a,b"),
        (_, Kind::OneOf(known)) => known[known.len() - 1].to_owned(),
    }
}

#[test]
fn every_key_can_be_set_by_its_long_name_and_by_a_flag() {
    for key in KEYS.iter().filter(|key| !key.is_free()) {
        let name = key.variable().expect("keys without free names have one");
        let given = || Given::file("[mcp.servers.s]\ncommand = \"true\"\n");
        let value = sample(key);
        assert_eq!(given().and_env(&[(&name, &value)]).good().source(key.path), environment(&name));
        assert_eq!(given().and_flag(key.path, &value).good().source(key.path).kind(), "flag", "{}", key.path);
    }
}

/// What a member of a server's authentication cannot do without.
fn beside_auth(member: &str) -> &'static str {
    match member {
        "token" | "token_file" | "assertion" | "assertion_file" => "mcp.servers.s.url = \"https://h/\"\n",
        "client_id" => "mcp.servers.s.url = \"https://h/\"\nmcp.servers.s.auth.client_secret = \"x\"\n",
        "client_secret" | "client_secret_file" | "private_key" | "private_key_file" | "token_endpoint_auth_method" => {
            "mcp.servers.s.url = \"https://h/\"\nmcp.servers.s.auth.client_id = \"x\"\n"
        }
        "key_id" => {
            "mcp.servers.s.url = \"https://h/\"\nmcp.servers.s.auth.client_id = \"x\"\nmcp.servers.s.auth.private_key = \"x\"\n"
        }
        _ => {
            "mcp.servers.s.url = \"https://h/\"\nmcp.servers.s.auth.client_id = \"x\"\nmcp.servers.s.auth.client_secret = \"x\"\n"
        }
    }
}

#[test]
fn every_key_can_be_set_in_a_file() {
    for key in KEYS {
        let (path, value) = (key.path, sample(key));
        let value = match key.kind {
            Kind::Bool | Kind::Integer { .. } | Kind::Number { .. } => value,
            Kind::List => format!("{:?}", value.split(',').collect::<Vec<_>>()),
            _ => format!("{value:?}"),
        };
        // Rules are for tools that exist.
        let path =
            path.replace("unknown_outcome.*", "unknown_outcome.calculate").replace("approve.*", "approve.calculate");
        let path = path.replacen('*', "s", 1).replacen('*', "X", 1);
        // What a server or a provider cannot do without.
        let beside = match path.as_str() {
            "llm.prices.s.output" => "llm.prices.s.input = 1\n",
            "llm.prices.s.input" => "llm.prices.s.output = 1\n",
            path if path.starts_with("llm.prices.s.") => "llm.prices.s.input = 1\nllm.prices.s.output = 2.5\n",
            "llm.providers.s.prices.X.output" => "llm.providers.s.prices.X.input = 0\n",
            "llm.providers.s.prices.X.input" => "llm.providers.s.prices.X.output = 0\n",
            path if path.starts_with("llm.providers.s.prices") => {
                "llm.providers.s.prices.X.input = 1\nllm.providers.s.prices.X.output = 1\n"
            }
            "mcp.servers.s.url" | "mcp.servers.s.command" => "",
            path if path.ends_with("headers.X") => "mcp.servers.s.url = \"http://h/\"\n",
            path if path.contains(".auth.") => beside_auth(path.rsplit('.').next().unwrap_or_default()),
            "llm.providers.s.kind" => "llm.providers.s.script = \"turns.yaml\"\nmcp.servers.s.command = \"true\"\n",
            _ => "mcp.servers.s.command = \"true\"\n",
        };
        let given = Given::file(&format!("{beside}{path} = {value}\n"));
        assert_eq!(given.good().source(&path).kind(), "file", "{path}");
    }
}

#[test]
fn a_price_is_complete_and_no_number_less_than_nothing() {
    let given = Given::file("[llm.prices.\"vendor/model.v2\"]\ninput = 1\noutput = 2.5\n");
    let config = given.config();
    let price = config.llm.prices["vendor/model.v2"].price().expect("a price");
    assert_eq!((price.input, price.output, price.cache_read), (1.0, 2.5, 1.0));
    let half = Given::file("[llm.prices.\"vendor/model.v2\"]\ninput = 1\n").refusal();
    assert!(half.contains("llm.prices.\"vendor/model.v2\".output") && half.contains("`input` and `output`"), "{half}");
    for wrong in ["-1", "\"1\"", "nan", "inf", "true"] {
        let refusal = Given::file(&format!("[llm.prices.m]\noutput = 1\ninput = {wrong}\n")).refusal();
        assert!(refusal.contains("llm.prices.m.input") && refusal.contains("US dollars"), "{wrong}: {refusal}");
    }
}

#[test]
fn a_rule_for_a_tool_that_cannot_exist_is_refused_with_the_nearest_name() {
    let rules = |rules: &str| {
        let servers = "mcp.servers.shop.command = \"true\"\n";
        Given::file(&format!("{servers}[tools.unknown_outcome]\n{rules}"))
    };
    let given = rules("\"shop/order.v2/x\" = \"fail\"\n\"shop/*\" = \"retry\"\nhttp_request = \"ask_model\"");
    let known = given.config().tools.unknown_outcome;
    assert_eq!(known["shop/order.v2/x"], UnknownOutcome::Fail, "tools may have any name");
    assert_eq!((known["shop/*"], known["http_request"]), (UnknownOutcome::Retry, UnknownOutcome::AskModel));
    for (rule, hint) in [("\"shpo/order\"", "did you mean shop?"), ("http_requst", "did you mean http_request?")] {
        let refusal = rules(&format!("{rule} = \"retry\"")).refusal();
        assert!(refusal.contains("tools.unknown_outcome") && refusal.contains(hint), "{refusal}");
    }
    assert!(rules("\"shop/\" = \"retry\"").refusal().contains("names no tool"));
    assert!(rules("calculate = \"again\"").refusal().contains("ask_model, fail, retry"));
}

#[test]
fn segments_of_long_names_are_lower_cased() {
    assert_eq!(Given::env(&[("EXECUTOR__pool__Size", "3")]).config().pool.size.get(), 3);
}

#[test]
fn an_empty_value_is_unset() {
    let names: Vec<String> = KEYS.iter().filter_map(Key::variable).collect();
    let short = SHORT_NAMES.iter().map(|(name, _)| *name).chain(["MCP_SERVERS", "RUST_LOG", "REDIS_PASS_FILE"]);
    let all: Vec<(&str, &str)> = names.iter().map(String::as_str).chain(short).map(|name| (name, "")).collect();
    let loaded = Given::env(&all).good();
    assert!(loaded.sources.values().all(Source::is_default));
}

#[test]
fn names_with_one_underscore_and_of_others_are_not_ours() {
    Given::env(&[("EXECUTOR_POOL_SIZE", "x"), ("EXECUTOR", "x"), ("executor__pool__size", "x"), ("LLM_FOO", "x")])
        .good();
}

#[test]
fn a_texts_digits_stay_digits() {
    let given = Given::env(&[
        ("EXECUTOR__WORK__GROUP", "0123"),
        ("WORKER_ID", "1e5"),
        ("REDIS_PASS", "007"),
        ("LLM_MODEL", "true"),
        ("LLM_API_KEY", "[1]"),
        ("EXECUTOR__WORK__STREAMS", "01,true"),
    ]);
    let config = given.config();
    assert_eq!((config.work.group.as_str(), config.worker.id.as_str()), ("0123", "1e5"));
    assert_eq!(config.redis.password.expect("set").expose_secret(), "007");
    assert_eq!(config.llm.providers["anthropic"].model, "true");
    assert_eq!(config.llm.providers["anthropic"].api_key.as_ref().expect("set").expose_secret(), "[1]");
    assert_eq!(config.work.streams, ["01", "true"]);
}

#[test]
fn lists_are_cut_at_commas_or_read_as_json() {
    let streams = |text: &str| Given::env(&[("EXECUTOR__WORK__STREAMS", text)]).config().work.streams;
    assert_eq!(streams("a, b ,c,"), ["a", "b", "c"]);
    assert_eq!(streams(r#" ["a,b", " c"]"#), ["a,b", " c"]);
    assert!(Given::env(&[("EXECUTOR__EVENTS__PROGRESS", "[]")]).config().events.progress.is_empty());
    let refusal = Given::env(&[("EXECUTOR__WORK__STREAMS", "[a]")]).refusal();
    assert!(refusal.contains("EXECUTOR__WORK__STREAMS (environment): begins with `[`"), "{refusal}");
}

#[test]
fn the_workers_name_is_the_hosts_by_default() {
    let loaded = Given::default().good();
    assert!(!loaded.config.worker.id.is_empty());
    assert_eq!(loaded.source("worker.id"), Source::Host);
}

#[test]
fn rust_log_wins_over_every_other_level() {
    let given =
        Given::env(&[("RUST_LOG", "info,hyper=off"), ("LOG_LEVEL", "debug")]).and_file("[log]\nlevel = \"warn\"\n");
    let loaded = given.good();
    assert_eq!(
        (loaded.config.log.level.as_str(), loaded.source("log.level")),
        ("info,hyper=off", environment("RUST_LOG"))
    );
    Given::env(&[("RUST_LOG", "da_node_executor")]).good();
    assert!(Given::env(&[("RUST_LOG", "a=b=c")]).refusal().contains("RUST_LOG (environment)"));
}

// --- secrets out of files ---------------------------------------------------------------------------------------

#[test]
fn a_secret_is_read_from_a_file_without_one_newline_at_its_end() {
    for (content, secret) in [("a b", "a b"), ("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), (" y ", " y ")] {
        let (_folder, path) = secret_file(content.as_bytes());
        for name in ["REDIS_PASS_FILE", "EXECUTOR__REDIS__PASSWORD_FILE", "EXECUTOR__redis__password_file"] {
            let loaded = Given::env(&[(name, &path)]).good();
            assert_eq!(loaded.config.redis.password.as_ref().expect("set").expose_secret(), secret);
            assert_eq!(loaded.source("redis.password"), environment(name));
        }
    }
    let (_folder, path) = secret_file(b"k\n");
    for name in ["LLM_API_KEY_FILE", "ANTHROPIC_API_KEY_FILE"] {
        let config = Given::env(&[(name, &path)]).config();
        assert_eq!(config.llm.providers["anthropic"].api_key.as_ref().expect("set").expose_secret(), "k");
    }
}

#[test]
fn a_file_that_gives_no_secret_is_refused_by_variable_and_path() {
    let (folder, path) = secret_file(b"x");
    let folder_path = folder.path().to_str().expect("a plain path");
    let missing = format!("{path}.not");
    for name in ["REDIS_PASS_FILE", "LLM_API_KEY_FILE", "ANTHROPIC_API_KEY_FILE", "EXECUTOR__REDIS__PASSWORD_FILE"] {
        for path in [missing.as_str(), folder_path] {
            let refusal = Given::env(&[(name, path)]).refusal();
            assert!(refusal.contains(&format!("{name} (environment): cannot read the file {path}: ")), "{refusal}");
        }
    }
    let (_folder, path) = secret_file(b"\xff\xfe");
    assert!(Given::env(&[("REDIS_PASS_FILE", &path)]).refusal().contains("is not UTF-8"));
    let (_folder, path) = secret_file(&[b'x'; 70_000]);
    assert!(Given::env(&[("REDIS_PASS_FILE", &path)]).refusal().contains("is longer than 65536 bytes"));
}

#[test]
fn an_empty_file_is_no_secret_and_is_told() {
    let (_folder, path) = secret_file(b"\n");
    let loaded = Given::env(&[("LLM_API_KEY_FILE", &path)]).good();
    assert!(loaded.config.llm.providers["anthropic"].api_key.is_none());
    assert!(loaded.warnings.iter().any(|warning| warning.contains("LLM_API_KEY_FILE") && warning.contains("is empty")));
}

#[test]
fn a_value_and_its_file_are_refused_even_if_they_agree() {
    let (_folder, path) = secret_file(b"same");
    for name in ["REDIS_PASS", "LLM_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "EXECUTOR__REDIS__PASSWORD"] {
        let file = format!("{name}_FILE");
        let refusal = Given::env(&[(name, "same"), (&file, &path)]).refusal();
        assert!(refusal.contains(&format!("{name} (environment): is set together with {file}")), "{refusal}");
    }
}

#[test]
fn only_secrets_are_read_from_files() {
    let refusal = Given::env(&[("EXECUTOR__POOL__SIZE_FILE", "/x")]).refusal();
    assert!(refusal.contains("EXECUTOR__POOL__SIZE_FILE (environment): only secrets"), "{refusal}");
    Given::env(&[("WORKER_ID_FILE", "/x"), ("LLM_MODEL_FILE", "/x")]).good();
}

// --- short and long names ---------------------------------------------------------------------------------------

#[test]
fn a_short_and_a_long_name_may_agree_and_must_not_differ() {
    let pairs = SHORT_NAMES.iter().filter_map(|(short, path)| {
        let key = KEYS.iter().find(|key| key.path == *path).expect("short names are of keys");
        key.variable().map(|long| (*short, long, key))
    });
    for (short, long, key) in pairs {
        let one = sample(key);
        let other = match key.kind {
            Kind::Integer { .. } => String::from("6"),
            Kind::Url => String::from("redis://h:2"),
            _ => format!("{one}-2"),
        };
        Given::env(&[(short, &one), (&long, &one)]).good();
        let refusal = Given::env(&[(short, &one), (&long, &other)]).refusal();
        assert!(refusal.contains(short) && refusal.contains(&long) && refusal.contains("keep one"), "{refusal}");
        assert!(!refusal.contains(&other) || key.kind != Kind::Secret);
    }
    Given::env(&[("REDIS_ADDR", "h:1"), ("EXECUTOR__REDIS__URL", "redis://h:1")]).good();
    Given::env(&[("REDIS_ADDR", "redis://h:1"), ("EXECUTOR__REDIS__URL", "h:1")]).good();
    Given::env(&[("EXECUTOR__LEASE__DURATION", "60s"), ("EXECUTOR__lease__duration", "60s")]).good();
}

#[test]
fn the_file_of_a_short_name_and_the_long_name_must_not_differ() {
    let (_folder, path) = secret_file(b"one");
    Given::env(&[("REDIS_PASS_FILE", &path), ("EXECUTOR__REDIS__PASSWORD", "one")]).good();
    let refusal = Given::env(&[("REDIS_PASS_FILE", &path), ("EXECUTOR__REDIS__PASSWORD", "two")]).refusal();
    assert!(refusal.contains("REDIS_PASS_FILE") && refusal.contains("EXECUTOR__REDIS__PASSWORD"), "{refusal}");
}

// --- models -----------------------------------------------------------------------------------------------------

fn key_of(config: &Config, provider: &str) -> Option<String> {
    config.llm.providers[provider].api_key.as_ref().map(|secret| secret.expose_secret().to_owned())
}

#[test]
fn the_llm_names_fill_the_provider_that_is_the_default_after_all() {
    let file = "[llm]\ndefault = \"mine\"\n[llm.providers.mine]\nbase_url = \"http://m/\"\nmodel = \"m1\"\n";
    let config = Given::file(file).and_env(&[("LLM_MODEL", "m2"), ("LLM_API_KEY", "k")]).config();
    assert_eq!((config.llm.default.as_str(), config.llm.providers["mine"].model.as_str()), ("mine", "m2"));
    assert_eq!((key_of(&config, "mine").as_deref(), key_of(&config, "anthropic")), (Some("k"), None));

    let given = Given::file(file).and_env(&[("LLM_MODEL", "m2"), ("LLM_PROVIDER", "anthropic")]);
    assert_eq!(given.config().llm.providers["anthropic"].model, "m2");
    assert_eq!(given.config().llm.providers["mine"].model, "m1");

    let config = given.and_flag("llm.default", "mine").config();
    assert_eq!(config.llm.providers["mine"].model, "m2");
}

#[test]
fn a_known_kind_becomes_a_provider_of_its_name() {
    let config =
        Given::env(&[("LLM_PROVIDER", "scripted")]).and_flag("llm.providers.scripted.script", "turns.yaml").config();
    let provider = &config.llm.providers["scripted"];
    assert_eq!((provider.kind, provider.script.clone()), (ProviderKind::Scripted, Some(PathBuf::from("turns.yaml"))));
    assert_eq!(provider.concurrency, ProviderConfig::default().concurrency);
    let refusal = Given::env(&[("LLM_PROVIDER", "scripted")]).refusal();
    assert!(refusal.contains("llm.providers.scripted.script (not set): a scripted provider needs"), "{refusal}");
}

#[test]
fn a_provider_that_is_unknown_is_refused_with_the_known_ones() {
    let file = "[llm.providers.mine]\nmodel = \"m\"\n";
    let refusal = Given::file(file).and_env(&[("LLM_PROVIDER", "anthropc"), ("LLM_API_KEY", "k")]).refusal();
    assert!(
        refusal.contains("LLM_PROVIDER (environment): names no provider; known are anthropic, gemini, llama-cpp, mine, ollama, openai, \
             openai-responses, openrouter, scripted, vllm"),
        "{refusal}"
    );
    assert!(refusal.contains("did you mean anthropic?"), "{refusal}");
    let refusal = Given::file("[llm]\n\ndefault = \"x\"\n").refusal();
    assert!(refusal.contains("llm.default (") && refusal.contains("worker.toml:3): names no provider"), "{refusal}");
}

#[test]
fn the_vendors_key_serves_providers_of_its_kind_that_have_none() {
    let file = "[llm.providers.own]\napi_key = \"own\"\n[llm.providers.bare]\nmodel = \"m\"\n\
                [llm.providers.script]\nkind = \"scripted\"\nscript = \"s.yaml\"\n";
    let given = Given::file(file).and_env(&[("ANTHROPIC_API_KEY", "vendor"), ("OPENAI_API_KEY", "other")]);
    let loaded = given.good();
    let key = |name: &str| key_of(&loaded.config, name);
    assert_eq!((key("own").as_deref(), key("bare").as_deref(), key("script")), (Some("own"), Some("vendor"), None));
    assert_eq!(key("anthropic").as_deref(), Some("vendor"));
    assert_eq!(loaded.source("llm.providers.bare.api_key"), environment("ANTHROPIC_API_KEY"));
    assert_eq!(loaded.source("llm.providers.own.api_key").kind(), "file");
    let config = given.and_env(&[("LLM_API_KEY", "ours")]).config();
    assert_eq!(key_of(&config, "anthropic").as_deref(), Some("ours"));
}

#[test]
fn a_worker_with_no_key_starts_with_a_warning() {
    let warnings = Given::default().good().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("LLM_API_KEY") && warnings[0].contains("anthropic"),
        "{warnings:?}"
    );
    assert!(Given::env(&[("ANTHROPIC_API_KEY", "k")]).good().warnings.is_empty());
    let scripted = "[llm]\ndefault = \"s\"\n[llm.providers.s]\nkind = \"scripted\"\nscript = \"s.yaml\"\n";
    assert!(Given::file(scripted).good().warnings.is_empty());
}

// --- tool servers -----------------------------------------------------------------------------------------------

#[test]
fn listed_servers_stand_before_those_of_the_file() {
    let file =
        "[mcp]\norder = [\"disk\"]\n[mcp.servers.disk]\ncommand = \"disk-server\"\n[mcp.servers.a]\ncommand = \"a\"\n";
    let given =
        Given::file(file).and_env(&[("MCP_SERVERS", "z=http://one/mcp?a=1,2&b=x=y, http://two.example.com:81/")]);
    let config = given.config();
    let names: Vec<&str> = config.mcp.ordered().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["z", "two", "disk", "a"]);
    assert_eq!(config.mcp.servers["z"].url.as_deref(), Some("http://one/mcp?a=1,2&b=x=y"));
    let order = given.and_env(&[("EXECUTOR__MCP__ORDER", "a,two")]).config().mcp.order;
    assert_eq!(order, ["a", "two", "z"]);
}

#[test]
fn servers_of_one_name_are_refused() {
    let refusal = Given::env(&[("MCP_SERVERS", "http://a.one/,http://a.two/")]).refusal();
    assert!(refusal.contains("MCP_SERVERS (environment): servers 1 and 2 are both called `a`"), "{refusal}");
    let file = |url: &str| Given::file(&format!("[mcp.servers.a]\nurl = \"{url}\"\nheaders = {{ x = \"y\" }}\n"));
    let list: &[(&str, &str)] = &[("MCP_SERVERS", "http://a/mcp")];
    let refusal = file("http://b/mcp").and_env(list).refusal();
    assert!(refusal.contains("MCP_SERVERS (environment): server `a` stands in the file too"), "{refusal}");
    assert_eq!(file("http://a/mcp").and_env(list).config().mcp.servers["a"].headers.len(), 1);
}

#[test]
fn a_server_takes_what_it_leaves_out_from_the_defaults() {
    let members = |server: &McpServerConfig| {
        let McpServerConfig { args, allow, deny, timeout, connect_timeout, concurrency, required, .. } = server.clone();
        (args, allow, deny, timeout, connect_timeout, concurrency, required)
    };
    let config = Given::file("[mcp.servers.a]\ncommand = \"a\"\n").config();
    assert_eq!(members(&config.mcp.servers["a"]), members(&McpServerConfig::default()));
}

#[test]
fn a_provider_takes_what_it_leaves_out_from_the_defaults() {
    let members = |provider: &ProviderConfig| {
        let ProviderConfig { kind, base_url, auth, model, version, betas, max_tokens, timeout, .. } = provider.clone();
        let (connect, concurrency) = (provider.connect_timeout, provider.concurrency);
        (kind, base_url, auth, model, version, betas, max_tokens, timeout, connect, concurrency)
    };
    let config = Given::file("[llm.providers.a]\nscript = \"x\"\n").config();
    assert_eq!(members(&config.llm.providers["a"]), members(&ProviderConfig::default()));
    assert_eq!(members(&config.llm.providers["anthropic"]), members(&ProviderConfig::default()));
}

/// A file with servers as desktop clients have it, beside a configuration that names it.
fn desktop(json: &str, toml: &str) -> Given {
    let mut given = Given::file("");
    let folder = given.folder.as_ref().expect("a folder").path().to_owned();
    let list = folder.join("mcp.json");
    fs::write(&list, json).expect("a file");
    let toml = format!("[mcp]\nconfig = {:?}\n{toml}", list.display().to_string());
    fs::write(given.options.file.as_ref().expect("a file"), toml).expect("a file");
    given.options.env.insert(OsString::from("TOKEN"), OsString::from("hunter2"));
    given
}

#[test]
fn the_file_of_a_desktop_client_lists_servers() {
    let json = r#"{
        "globalShortcut": "Ctrl+Space",
        "mcpServers": {
            "files": {
                "command": "npx", "args": ["-y", "server-filesystem", "${HOME_DIR:-/srv}"],
                "env": {"KEY": "Bearer ${TOKEN}", "PORT": 3000, "DEBUG": true, "NONE": null}, "cwd": "/tmp"
            },
            "search": {"type": "streamableHttp", "url": "https://search.example.com/mcp", "headers": {"x-key": "k"}},
            "old": {"transport": "sse", "serverUrl": "http://old:1/sse", "timeout": "5s", "allow": ["a_*"], "required": true},
            "off": {"command": "gone", "disabled": true}
        }
    }"#;
    let given = desktop(json, "[mcp.servers.own]\nurl = \"http://own/\"\n");
    let mcp = given.config().mcp;
    assert_eq!(mcp.servers.keys().collect::<Vec<_>>(), ["files", "old", "own", "search"]);
    let files = &mcp.servers["files"];
    assert_eq!((files.command.as_deref(), files.args.last().map(String::as_str)), (Some("npx"), Some("/srv")));
    let env: Vec<(&str, &str)> = files.env.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
    assert_eq!(env, [("DEBUG", "true"), ("KEY", "Bearer hunter2"), ("PORT", "3000")]);
    assert_eq!(files.cwd.as_deref(), Some(std::path::Path::new("/tmp")));
    assert_eq!(mcp.servers["search"].headers["x-key"].expose_secret(), "k");
    let old = &mcp.servers["old"];
    assert_eq!((old.url.as_deref(), old.timeout.as_secs(), old.required), (Some("http://old:1/sse"), 5, true));
    assert_eq!(old.allow, ["a_*"]);
    assert!(given.good().warnings.iter().all(|warning| !warning.contains("mcp.json")), "{:?}", given.good().warnings);
    let Source::File { path, line } = given.good().source("mcp.servers.search.url") else {
        panic!("it is in the file")
    };
    assert!(path.ends_with("mcp.json") && line == Some(8), "{path:?} {line:?}");
}

#[test]
fn the_list_of_servers_may_be_named_by_the_environment_and_have_the_shape_of_an_editors() {
    let given = desktop(r#"{"inputs": [], "servers": {"a": {"type": "http", "url": "http://a/${env:TOKEN}"}}}"#, "");
    let list = given.config().mcp.config.expect("named");
    let given = Given::env(&[("EXECUTOR__MCP__CONFIG", list.to_str().expect("a plain path")), ("TOKEN", "t")]);
    assert_eq!(given.config().mcp.servers["a"].url.as_deref(), Some("http://a/t"));
}

#[test]
fn an_editors_file_may_have_comments_and_a_last_comma() {
    let json = "{\n  // ours\n  \"servers\": {\n    \"a\": {\"url\": \"http://a//b\",}, /* off:\n    \"c\": {} */\n    \"b\": {\"url\": 5},\n  },\n}\n";
    let refusal = desktop(json, "").refusal();
    assert!(refusal.contains("mcp.json:6)") && refusal.contains("servers.b.url"), "lines are as written: {refusal}");
    let given = desktop(&json.replace("5", "\"http://b\""), "");
    assert_eq!(given.config().mcp.servers["a"].url.as_deref(), Some("http://a//b"));
    assert_eq!(given.config().mcp.servers.keys().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn tools_that_a_desktop_client_may_not_use_a_worker_may_not_either() {
    let json = r#"{"mcpServers": {"a": {"command": "x", "includeTools": ["read_*"], "excludeTools": ["read_key"]},
        "b": {"command": "x", "disabledTools": ["rm"]}}}"#;
    let servers = desktop(json, "").config().mcp.servers;
    assert_eq!(
        (&*servers["a"].allow, &*servers["a"].deny),
        (&[String::from("read_*")][..], &[String::from("read_key")][..])
    );
    assert_eq!(servers["b"].deny, ["rm"]);
    let refusal = desktop(r#"{"mcpServers": {"a": {"command": "x", "includeTools": "hunter2"}}}"#, "").refusal();
    assert!(
        refusal.contains("mcpServers.a.includeTools (") && refusal.contains("must be a list of texts"),
        "{refusal}"
    );
}

#[test]
fn what_only_a_desktop_client_understands_is_told_and_left_out() {
    let json = r#"{"mcpServers": {"a": {"command": "x", "autoApprove": ["y"],
        "timeout": 60}}}"#;
    let warnings = desktop(json, "").good().warnings.join("\n");
    assert!(
        warnings.contains("mcpServers.a.autoApprove (") && warnings.contains("mcp.json:1): is not used"),
        "{warnings}"
    );
    assert!(
        warnings.contains("mcpServers.a.timeout (") && warnings.contains("mcp.json:2): a number without a unit"),
        "{warnings}"
    );
}

#[test]
fn a_list_of_servers_that_cannot_be_meant_is_refused_by_file_and_member() {
    for (json, message) in [
        ("{", "mcp.json:1: is no JSON"),
        ("[1]", "mcp.json:1: is JSON, but no object"),
        ("{\"servrs\": {}}", "mcp.json: has no object `mcpServers`"),
        ("{\"mcpServers\": [\"hunter2\"]}", "mcpServers ("),
        ("{\"mcpServers\": {\"a\": \"hunter2\"}}", "mcp.json:1): must be an object"),
        (
            "{\"mcpServers\":\n{\"a\": {\"command\":\n\"x\"},\n\"a\": {\"command\": \"y\"}}}",
            "mcp.json:4): is given twice, here and at",
        ),
        (
            "{\"mcpServers\": {\"a\": {\"command\": \"x\"}}, \"servers\": {\"a\": {\"url\": \"http://a\"}}}",
            "is given twice",
        ),
        ("{\"mcpServers\": {\"a\": {\"url\": \"http://a\", \"httpUrl\": \"http://b\"}}}", "gives `url` a second time"),
        ("{\"mcpServers\": {\"a\": {\"command\": [\"hunter2\"]}}}", "mcp.servers.a.command ("),
        ("{\"mcpServers\": {\"a\": {\"command\": \"x\", \"args\": \"hunter2\"}}}", "mcp.servers.a.args ("),
        ("{\"mcpServers\": {\"a\": {\"command\": \"x\", \"env\": {\"K\": [\"hunter2\"]}}}}", "`K` must be a text"),
        ("{\"mcpServers\": {\"a\": {\"type\": \"htp\", \"url\": \"http://a\"}}}", "did you mean `http`?"),
        (
            "{\"mcpServers\": {\"a\": {\"type\": \"stdio\", \"url\": \"http://a\"}}}",
            "does not go with the server's `url`",
        ),
        ("{\"mcpServers\": {\"a\": {\"disabled\": \"hunter2\"}}}", "mcpServers.a.disabled ("),
        ("{\"mcpServers\": {\"a b\": {\"command\": \"x\"}}}", "the name of a server is of letters"),
        ("{\"mcpServers\": {\"a\": {}}}", "a server needs `url`"),
    ] {
        let refusal = desktop(json, "").refusal();
        assert!(refusal.contains(message), "{json}: {refusal}");
        assert!(!refusal.contains("hunter2"), "{refusal}");
    }
    let missing = Given::env(&[("EXECUTOR__MCP__CONFIG", "/nowhere/mcp.json")]).refusal();
    assert!(
        missing.contains("EXECUTOR__MCP__CONFIG (environment): the file /nowhere/mcp.json cannot be read"),
        "{missing}"
    );
}

#[test]
fn a_server_in_two_places_is_refused_with_both() {
    let json = "{\"mcpServers\": {\n\"a\": {\"url\": \"http://b/\"}}}";
    let refusal = desktop(json, "[mcp.servers.a]\nurl = \"http://a/\"\n").refusal();
    assert!(
        refusal.contains("mcp.json:2): server `a` stands in ") && refusal.contains("worker.toml:4 too"),
        "{refusal}"
    );
    let refusal = desktop(json, "").and_env(&[("MCP_SERVERS", "http://a/")]).refusal();
    assert!(refusal.contains("server `a` stands in the file too (") && refusal.contains("mcp.json:2)"), "{refusal}");
}

#[test]
fn variables_are_put_into_the_values_of_servers_and_never_shown() {
    let file = "[mcp.servers.a]\nurl = \"https://${HOST:-a.example}/mcp\"\n\
                headers = { authorization = \"Bearer ${TOKEN}\", plain = \"$${TOKEN} pa$$ $x\" }\n\
                [mcp.servers.b]\ncommand = \"${CMD}\"\nargs = [\"--at\", \"${TOKEN}\"]\nenv = { K = \"${TOKEN}\" }\n";
    let given = Given::file(file).and_env(&[("TOKEN", "hunter2"), ("CMD", "serve"), ("HOST", "")]);
    let servers = given.config().mcp.servers;
    assert_eq!(servers["a"].url.as_deref(), Some("https://a.example/mcp"));
    assert_eq!(servers["a"].headers["authorization"].expose_secret(), "Bearer hunter2");
    assert_eq!(servers["a"].headers["plain"].expose_secret(), "${TOKEN} pa$$ $x");
    assert_eq!((servers["b"].command.as_deref(), &*servers["b"].args[1]), (Some("serve"), "hunter2"));
    let printed = everything_printed(&given);
    assert!(!printed.contains("hunter2") && printed.contains("${TOKEN}"), "{printed}");
    // What the environment and flags say is meant as it stands.
    let given = Given::env(&[("MCP_SERVERS", "a=http://a/?x=${TOKEN}")]);
    assert_eq!(given.config().mcp.servers["a"].url.as_deref(), Some("http://a/?x=${TOKEN}"));
}

#[test]
fn a_variable_that_is_not_set_refuses_the_start_by_its_name() {
    let file = "[mcp.servers.a]\nurl = \"http://a/\"\nheaders = { k = \"hunter2 ${TOKEN}\" }\n";
    let refusal = Given::file(file).refusal();
    assert!(refusal.contains("mcp.servers.a.headers.k (") && refusal.contains("worker.toml:3)"), "{refusal}");
    assert!(refusal.contains("the variable TOKEN, which is not set") && !refusal.contains("hunter2"), "{refusal}");
    assert!(Given::file(file).and_env(&[("TOKEN", "")]).refusal().contains("TOKEN"), "empty is the same as none");
    let path = Given::file(file);
    let path = path.options.file.as_deref().expect("a file");
    cli::check(path).expect("the variable may be there where the file is used");
}

#[test]
fn a_token_that_can_be_guessed_is_refused() {
    let refusal = Given::env(&[("EXECUTOR__HTTP__ADMIN_TOKEN", "hunter2")]).refusal();
    assert!(refusal.contains("at least 16 visible") && !refusal.contains("hunter2"), "{refusal}");
    let (_folder, path) = secret_file(b"0123456789abcdef\n");
    let token = Given::env(&[("EXECUTOR__HTTP__ADMIN_TOKEN_FILE", &path)]).config().http.admin_token;
    assert_eq!(token.expect("set").expose_secret(), "0123456789abcdef");
}

// --- refusals ---------------------------------------------------------------------------------------------------

#[test]
fn impossible_variables_are_refused_by_their_own_name() {
    for (name, value, says) in [
        ("EXECUTOR__POOL__SIZE", "0", "must be a whole number from 1 to 100000 (nodes)"),
        ("EXECUTOR__POOL__SIZE", "many", "must be a whole number"),
        ("EXECUTOR__POOL__SIZE", "1.5", "must be a whole number"),
        ("EXECUTOR__POOL__SIZE", "1000000", "must be a whole number"),
        ("EXECUTOR__POOL__SIZE", "99999999999999999999", "must be a whole number"),
        ("REDIS_DB", "-1", "must be a whole number from 0"),
        ("HEALTH_PORT", "65536", "must be a whole number from 0 to 65535 (port)"),
        ("MAX_ITERATIONS", "0", "must be a whole number from 1"),
        ("EXECUTOR__WORK__STRICT", "perhaps", "must be true or false"),
        ("EXECUTOR__LEASE__DURATION", "60", "must be a duration with its unit, such as \"30s\""),
        ("EXECUTOR__LEASE__DURATION", "1ms", "is too short"),
        ("EXECUTOR__LEASE__DURATION", "100years", "is longer than ten years"),
        ("EXECUTOR__LEASE__RENEW", "0s", "is too short"),
        ("EXECUTOR__LEASE__SWEEP", "0s", "is too short"),
        (
            "EXECUTOR__LEASE__RENEW",
            "21s",
            "renewing every 21s is too seldom for a lease of 1m; lease.renew must be at most a third",
        ),
        ("EXECUTOR__WORK__BLOCK", "0s", "is too short"),
        ("EXECUTOR__WORK__BLOCK", "60s", "work.block must be shorter than lease.duration"),
        ("EXECUTOR__LEASE__DURATION", "2s", "work.block must be shorter than lease.duration"),
        ("EXECUTOR__WORK__STREAMS", "[]", "must name at least one stream"),
        ("EXECUTOR__WORK__STREAMS", "a,b,a", "names the same stream twice, at 1 and 3"),
        ("EXECUTOR__WORK__STREAMS", "[\"a\\u0007\"]", "has a control character"),
        ("EXECUTOR__WORK__STREAMS", "[\"\"]", "must have 1 to 256 bytes"),
        ("EXECUTOR__WORK__STREAMS", "a,a:dead", "dead letters of stream 1 as stream 2"),
        ("EXECUTOR__WORK__GROUP", "a\nb", "has a control character"),
        ("WORKER_ID", "a\tb", "has a control character"),
        ("EXECUTOR__STATE__PREFIX", "a\nb", "no control characters"),
        ("EXECUTOR__STATE__LAYOUT", "hsh", "must be one of hash, string; did you mean hash?"),
        ("EXECUTOR__EVENTS__PROGRESS", "node.started,node.progres", "place 2 is none of"),
        ("EXECUTOR__TOOLS__DISABLE", "calculator", "did you mean calculate?"),
        ("EXECUTOR__TOOLS__HTTP_REQUEST__ALLOW", "a,http://b/", "place 2 must be `host`"),
        ("EXECUTOR__RETRY__INITIAL", "31s", "retry.initial must be at most retry.max"),
        ("EXECUTOR__RETRY__MAX", "1ms", "retry.initial must be at most retry.max"),
        ("EXECUTOR__EVENTS__HARD_CAP", "100000", "events.hard_cap must be above events.maxlen"),
        ("EXECUTOR__SHUTDOWN__GRACE", "soon", "must be a duration"),
        ("EXECUTOR__HTTP__BIND", "localhost", "must be an IP address"),
        ("EXECUTOR__MCP__ORDER", "nobody", "place 1 names no server"),
        ("LOG_LEVEL", "loud", "must be error, warn, info, debug or trace"),
        ("LOG_LEVEL", "info,x=loud", "must be error, warn, info, debug or trace"),
        ("LLM_BASE_URL", "api.example.com", "must be an address such as http"),
        ("LLM_API_KEY", "a\nb", "one line of ASCII"),
        ("REDIS_ADDR", "cache", "must be the address of one server: host:port"),
        ("REDIS_ADDR", "redis+cluster://a:1,b:2", "redis+cluster:// is a Redis cluster, which is not supported yet"),
        ("REDIS_ADDR", "redis+sentinel://a:1/main", "redis+sentinel:// is Redis Sentinel, which is not supported yet"),
        ("REDIS_ADDR", "http://a:1", "must be the address of one server"),
        ("MCP_SERVERS", "tools:8080", "server 1: must be `http(s)://…` or `name=http(s)://…`"),
        ("EXECUTOR__POOL_SIZE", "3", "there is no such key; the nearest is EXECUTOR__POOL__SIZE"),
        ("EXECUTOR__REDIS__PASWORD", "3", "the nearest is EXECUTOR__REDIS__PASSWORD"),
        ("EXECUTOR__LLM__PROVIDERS__ANTHROPIC__MODEL", "m", "stand only in the file"),
        ("EXECUTOR__MCP__SERVERS__A__URL", "http://a/", "stand only in the file"),
        ("EXECUTOR__POOL", "3", "there is no such key"),
        ("EXECUTOR__", "3", "there is no such key"),
    ] {
        let refusal = Given::env(&[(name, value)]).refusal();
        assert!(refusal.starts_with(&format!("the configuration is refused: {name} (environment): ")), "{refusal}");
        assert!(refusal.contains(says), "{name}={value}: {refusal}");
    }
}

#[test]
fn impossible_files_are_refused_by_key_and_line() {
    for (text, key, line, says) in [
        ("[pool]\nsize = 0", "pool.size", 2, "must be a whole number from 1"),
        ("[pool]\nsize = \"8\"", "pool.size", 2, "must be a whole number"),
        ("[pool]\nsize = true", "pool.size", 2, "must be a whole number"),
        ("[work]\nstrict = 1", "work.strict", 2, "must be true or false"),
        ("[work]\nstrict = \"true\"", "work.strict", 2, "must be true or false"),
        ("[work]\nstreams = \"a\"", "work.streams", 2, "must be a list of texts"),
        ("[work]\nstreams = [1]", "work.streams", 2, "must be a list of texts"),
        ("[lease]\nduration = 60", "lease.duration", 2, "must be a duration with its unit"),
        ("[worker]\nid = 7", "worker.id", 2, "must be a text in quotes"),
        ("[lease]\n\nrenew = \"30s\"", "lease.renew", 3, "at most a third"),
        ("[pool]\nsizes = 8", "pool.sizes", 2, "did you mean `size`?"),
        ("[lease]\nstreams = [\"a\"]", "lease.streams", 2, "did you mean `work.streams`?"),
        ("[pol]\nsize = 8", "pol", 1, "did you mean `pool`?"),
        ("size = 8", "size", 1, "did you mean `pool.size`?"),
        ("pool = 8", "pool", 1, "is a section: write [pool]"),
        ("[redis.tls]\na = 1", "redis.tls", 1, "there is no such key"),
        ("[llm.providers.a]\nkind = \"antropic\"", "llm.providers.a.kind", 2, "did you mean anthropic?"),
        ("[llm.providers.a]\nbase_url = \"h\"", "llm.providers.a.base_url", 2, "must be an address"),
        ("[llm.providers.a]\nmodel = \"\"", "llm.providers.a.model", 2, "must name a model"),
        ("[llm.providers.a]\nversion = \"a\\nb\"", "llm.providers.a.version", 2, "visible ASCII"),
        ("[llm.providers.a]\napi_key = \"a\\nb\"", "llm.providers.a.api_key", 2, "one line"),
        ("[llm.providers.\"a b\"]\nkind = \"anthropic\"", "llm.providers.\"a b\".kind", 2, "of letters, digits"),
        ("[mcp.servers.a]\nurl = \"ftp://a/\"", "mcp.servers.a.url", 2, "must be an address such as http"),
        ("[mcp.servers.a]\nurl = \"http://a/\"\ncommand = \"a\"", "mcp.servers.a.url", 2, "either `url` or `command`"),
        ("[mcp.servers.a]\ncommand = \" \"", "mcp.servers.a.command", 2, "must name a program"),
        ("[mcp.servers.a]\nurl = \"http://a/\"\nargs = [\"b\"]", "mcp.servers.a.args", 3, "with `command`"),
        (
            "[mcp.servers.a]\nurl = \"http://a/\"\nheaders = { \"a b\" = \"c\" }",
            "mcp.servers.a.headers.\"a b\"",
            3,
            "no name of a header",
        ),
        (
            "[mcp.servers.a]\nurl = \"http://a/\"\n[mcp.servers.a.headers]\nx = \"c\\nd\"",
            "mcp.servers.a.headers.x",
            4,
            "one line",
        ),
        (
            "[mcp.servers.a]\ncommand = \"a\"\nenv = { \"A=B\" = \"c\" }",
            "mcp.servers.a.env.A=B",
            3,
            "cannot be a variable",
        ),
        ("[mcp.servers.\"a b\"]\ncommand = \"a\"", "mcp.servers.\"a b\".command", 2, "of letters, digits"),
        ("[mcp.servers.a]\ncommand = \"a\"\nurls = \"b\"", "mcp.servers.a.urls", 3, "did you mean `url`?"),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\nauth = { token = \"s3cr3t\", token_file = \"b\" }",
            "mcp.servers.a.auth.token",
            3,
            "only one of `token`, `token_file`",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\nauth = { token = \"s3cr3t\", client_id = \"b\" }",
            "mcp.servers.a.auth.client_id",
            3,
            "remove `token` or `client_id`",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\nauth = { token = \"s3cr3t x\" }",
            "mcp.servers.a.auth.token",
            3,
            "visible ASCII characters, without `Bearer`",
        ),
        (
            "[mcp.servers.a]\ncommand = \"a\"\n[mcp.servers.a.auth]\ntoken = \"s3cr3t\"",
            "mcp.servers.a.auth.token",
            4,
            "only for a server with `url`",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\nheaders = { Authorization = \"x\" }\nauth = { token = \"s3cr3t\" }",
            "mcp.servers.a.headers.Authorization",
            3,
            "is sent by mcp.servers.a.auth too",
        ),
        (
            "[mcp.servers.a]\nurl = \"http://a/\"\nauth = { token = \"s3cr3t\" }",
            "mcp.servers.a.url",
            2,
            "unencrypted; use https, or set `allow_http`",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\n[mcp.servers.a.auth]\nclient_id = \"x\"\nclient_secret = \"s3cr3t\"\nprivate_key_file = \"k\"",
            "mcp.servers.a.auth.client_secret",
            5,
            "only one of `client_secret`, `private_key_file`",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\n[mcp.servers.a.auth]\nclient_id = \"x\"\nclient_secret = \"s3cr3t\"\nkey_id = \"k\"",
            "mcp.servers.a.auth.key_id",
            6,
            "set `private_key_file`",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\n[mcp.servers.a.auth]\nclient_id = \"x\"\nclient_secret = \"s3cr3t\"\ntoken_endpoint_auth_method = \"private_key_jwt\"",
            "mcp.servers.a.auth.token_endpoint_auth_method",
            6,
            "private_key_jwt needs `private_key_file`",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\n[mcp.servers.a.auth]\nclient_id = \"x\"\nclient_secret = \"s3cr3t\"\ntoken_endpoint_auth_method = \"none\"",
            "mcp.servers.a.auth.token_endpoint_auth_method",
            6,
            "remove it or `client_secret`",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\n[mcp.servers.a.auth]\nclient_id = \"x\"\nclient_secret = \"s3cr3t\"\nissuer = \"http://id/\"",
            "mcp.servers.a.auth.issuer",
            6,
            "must be https",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\n[mcp.servers.a.auth]\nclient_id = \"x\"\nclient_secret = \"s3cr3t\"\ntoken_endpoint = \"https://u:s3cr3t@id/\"",
            "mcp.servers.a.auth.token_endpoint",
            6,
            "no user, no password",
        ),
        (
            "[mcp.servers.a]\nurl = \"https://a/\"\n[mcp.servers.a.auth]\nclient_id = \"x\"\nclient_secret = \"s3cr3t\"\nscopes = [\"a\", \"b c\"]",
            "mcp.servers.a.auth.scopes",
            6,
            "place 2 is no scope",
        ),
        ("[redis]\nurl = \"h\"", "redis.url", 2, "must be the address of one server: host:port"),
        ("[redis]\nurl = \"me:secret@h:1\"", "redis.url", 2, "must be the address of one server"),
        ("[redis]\nurl = \"redis://:a@h:1\"\npassword = \"b\"", "redis.url", 2, "another password"),
    ] {
        let given = Given::file(text);
        let path = given.options.file.clone().expect("a file");
        let refusal = given.refusal();
        let begin = format!("the configuration is refused: {key} ({}:{line}): ", path.display());
        let alike = refusal.starts_with(&begin) || refusal.starts_with(&begin.replace("A=B", "\"A=B\""));
        assert!(alike && refusal.contains(says), "{text:?}: {refusal}");
        assert!(!refusal.contains("s3cr3t"), "{text:?}: {refusal}");
    }
    for (auth, key) in [
        ("client_id = \"x\"", "client_secret_file (not set): a client needs"),
        ("client_secret = \"x\"", "client_id (not set): OAuth needs the id"),
        ("client_secret = \"x\", assertion = \"x\"", "client_id (not set): OAuth needs the id"),
        ("allow_http = true", "client_id (not set): nothing says how to authenticate"),
    ] {
        let refusal = Given::file(&format!("[mcp.servers.a]\nurl = \"https://a/\"\nauth = {{ {auth} }}")).refusal();
        assert!(refusal.contains(&format!("mcp.servers.a.auth.{key}")), "{refusal}");
    }
    let refusal = Given::file("[mcp.servers.a]\nrequired = true").refusal();
    assert!(refusal.contains("mcp.servers.a.url (not set): a server needs `url`"), "{refusal}");
    let refusal = Given::file("[mcp.servers.a]").refusal();
    assert!(refusal.contains("mcp.servers.a.url (not set)"), "{refusal}");
}

#[test]
fn a_file_that_is_no_toml_is_refused_by_line_without_its_text() {
    let refusal = Given::file("[redis]\nurl = \"redis://h:1\"\npassword = hunter2\n").refusal();
    assert!(refusal.contains("worker.toml:3: is no TOML") && !refusal.contains("hunter2"), "{refusal}");
}

#[test]
fn flags_are_refused_by_the_key_they_set() {
    let refusal = Given::default().and_flag("pool.size", "x").and_flag("pool.sise", "1").and_flag("nix", "1").refusal();
    assert!(refusal.contains("--set pool.size (command line): must be a whole number"), "{refusal}");
    assert!(
        refusal.contains("--set pool.sise (command line): there is no such key; did you mean `size`?"),
        "{refusal}"
    );
    assert!(refusal.contains("--set nix (command line): there is no such key"), "{refusal}");
}

#[test]
fn all_problems_are_told_at_once_and_none_twice() {
    let given = Given::file("[pool]\nsize = 0\n[http]\nbind = \"x\"\n")
        .and_env(&[("EXECUTOR__LEASE__DURATION", "x"), ("EXECUTOR__NOPE", "1"), ("LOG_LEVEL", "loud")])
        .and_flag("work.block", "10m");
    let error = given.load().expect_err("much is wrong");
    let keys: Vec<&str> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
    // work.block cannot be judged while lease.duration is unknown.
    assert_eq!(keys.len(), 5, "{keys:?}");
    for key in ["pool.size", "http.bind", "lease.duration", "EXECUTOR__NOPE", "log.level"] {
        assert!(keys.contains(&key), "{keys:?}");
    }
    let text = error.to_string();
    assert!(text.starts_with("the configuration is refused for 5 reasons:\n  - "), "{text}");
    assert_eq!(ConfigError::EXIT_CODE, 78);
}

#[cfg(unix)]
#[test]
fn what_is_not_utf8_is_refused_where_it_is_ours() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = || OsString::from_vec(vec![b'a', 0xff]);
    for name in ["WORKER_ID", "MCP_SERVERS", "RUST_LOG", "EXECUTOR__WORK__GROUP"] {
        let env =
            BTreeMap::from([(OsString::from(name), bytes()), (OsString::from("OTHER"), bytes()), (bytes(), bytes())]);
        let error = load(&LoadOptions { env, ..LoadOptions::default() }).expect_err("it is not UTF-8");
        assert!(error.to_string().contains(&format!("{name} (environment): is not UTF-8")), "{error}");
    }
}

// --- nothing secret is ever printed -----------------------------------------------------------------------------

/// Whatever can be printed of an attempt to load.
fn everything_printed(given: &Given) -> String {
    match given.load() {
        Ok(loaded) => {
            let warnings = loaded.warnings.join("\n");
            format!(
                "{loaded:?}\n{:#?}\n{warnings}\n{}\n{}",
                loaded.config,
                cli::show(&loaded, false),
                cli::show(&loaded, true)
            )
        }
        Err(error) => format!("{error}\n{error:?}\n{error:#?}"),
    }
}

/// Every variable that is ours, and whether its value may be shown when it is good.
fn variables() -> Vec<(String, bool)> {
    let keys = KEYS.iter().flat_map(|key| {
        let names = key.short_names().map(str::to_owned).chain(key.variable());
        names.map(|name| (name, key.kind != Kind::Secret))
    });
    let fallback = FALLBACK_KEYS.iter().map(|(name, _)| (name.to_string(), false));
    let files = ["REDIS_PASS_FILE", "LLM_API_KEY_FILE", "ANTHROPIC_API_KEY_FILE", "EXECUTOR__REDIS__PASSWORD_FILE"];
    let others = ["MCP_SERVERS", "EXECUTOR__NOPE", "EXECUTOR__LLM__PROVIDERS__X__API_KEY", "EXECUTOR__POOL__SIZE_FILE"];
    let refused = files.iter().chain(&others).map(|name| (name.to_string(), false));
    keys.chain(fallback).chain(refused).chain([(String::from("RUST_LOG"), true)]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_secret_in_any_variable_is_never_printed(secret in "zq[a-zA-Z0-9]{6}[a-zA-Z0-9,=:@%. {}\"'\\[-]{4,20}zq") {
        for (name, may_show) in variables() {
            let given = Given::env(&[(&name, &secret)]);
            if may_show && given.load().is_ok() {
                continue;
            }
            let printed = everything_printed(&given);
            prop_assert!(!printed.contains(&secret), "{name}: {printed}");
            prop_assert!(!printed.contains(&secret[..8]), "{name}: {printed}");
        }
    }

    #[test]
    fn a_secret_in_any_key_of_a_file_is_never_printed(secret in "zq[a-zA-Z0-9]{6}[a-zA-Z0-9,=:@%. $\\{}'\\[-]{4,20}zq") {
        for key in KEYS {
            let path = key.path.replacen('*', "s", 1).replacen('*', "X", 1);
            let need = if path.contains(".auth.") { beside_auth(path.rsplit('.').next().unwrap_or_default()) }
                else if path.contains("headers") { "mcp.servers.s.url = \"http://h/\"\n" }
                else if path.contains(".env") { "mcp.servers.s.command = \"c\"\n" } else { "" };
            for text in [format!("{need}{path} = \"{secret}\"\n"), format!("{need}{path} = {secret}\n"), format!("{need}{path} = [\"{secret}\"]\n")] {
                let given = Given::file(&text);
                if key.kind != Kind::Secret && given.load().is_ok() {
                    continue;
                }
                let printed = everything_printed(&given);
                prop_assert!(!printed.contains(&secret[..8]), "{text}: {printed}");
            }
        }
    }
}

#[test]
fn a_secret_inside_an_address_is_never_printed() {
    for (name, value) in [
        ("REDIS_ADDR", "redis://:hunter2@h:6379"),
        ("REDIS_ADDR", "rediss://me:hunter2@h:6379/1"),
        ("REDIS_ADDR", "redis://:hunter2@h:6379/x"),
        ("REDIS_ADDR", "me:hunter2@h:6379"),
        ("REDIS_ADDR", "redis+cluster://:hunter2@h:6379"),
        ("EXECUTOR__REDIS__URL", "redis://:hunter2@h:6379"),
        ("LLM_BASE_URL", "https://me:hunter2@h/"),
        ("LLM_BASE_URL", "https://h/?key=hunter2"),
        ("MCP_SERVERS", "http://me:hunter2@h/mcp"),
        ("MCP_SERVERS", "http://h/mcp?key=hunter2,x"),
        ("MCP_SERVERS", "http://h/mcp?key=hunter2,http://h/mcp"),
        ("MCP_SERVERS", "http://h:x/mcp?key=hunter2"),
    ] {
        let printed = everything_printed(&Given::env(&[(name, value)]));
        assert!(!printed.contains("hunter2"), "{name}={value}: {printed}");
    }
    let config = Given::env(&[("REDIS_ADDR", "redis://me:hunter2@h:6379")]).config();
    assert_eq!(config.redis.url, "redis://me@h:6379");
    assert_eq!(config.redis.password.expect("taken out of the address").expose_secret(), "hunter2");
}

#[test]
fn what_is_left_to_trust_and_files_that_are_not_there_are_warned_of() {
    let auth = |keys: &str| {
        let given = Given::file(&format!(
            "[mcp.servers.a]\nurl = \"https://a/\"\n[mcp.servers.a.auth]\nclient_id = \"x\"\n{keys}"
        ));
        given.good().warnings.join("\n")
    };
    let warnings = auth("client_secret_file = \"/nonexistent/secret\"");
    assert!(
        warnings.contains("mcp.servers.a.auth.client_secret_file: the file /nonexistent/secret is not there yet"),
        "{warnings}"
    );
    assert!(warnings.contains("set mcp.servers.a.auth.issuer to fix it"), "{warnings}");
    let pinned = auth("client_secret = \"x\"\nissuer = \"https://id\"");
    assert!(!pinned.contains("mcp.servers.a"), "{pinned}");
    let signed = auth("private_key = \"x\"");
    assert!(!signed.contains("mcp.servers.a"), "a signature for one server is of no use to another: {signed}");
    let vouched = auth("assertion = \"x\"");
    assert!(vouched.contains("set mcp.servers.a.auth.issuer to fix it"), "it is good elsewhere: {vouched}");
    let mistaken = auth("client_secret_file = \"hunter2\"");
    assert!(!mistaken.contains("hunter2"), "{mistaken}");
}

// --- show and check ---------------------------------------------------------------------------------------------

const FULL: &str = r#"
[llm.providers.mine]
api_key = "hunter2"
betas = ["b"]

[mcp.servers.disk]
command = "disk-server"
args = ["--root", "/data", "--token=hunter2"]
env = { SECRET = "hunter2" }

[mcp.servers.web]
url = "http://web/mcp"
headers = { authorization = "Bearer hunter2" }

[mcp.servers.crm]
url = "https://crm/mcp"

[mcp.servers.crm.auth]
client_id = "me"
client_secret = "hunter2"
issuer = "https://id/tenant?key=hunter2"
"#;

#[test]
fn show_prints_every_value_with_its_source_and_masks_secrets() {
    let given =
        Given::file(FULL).and_env(&[("REDIS_PASS", "hunter2"), ("HEALTH_PORT", "9000")]).and_flag("pool.size", "3");
    let shown = cli::show(&given.good(), false);
    let path = given.options.file.clone().expect("a file");
    let line = |begin: &str| {
        let line = shown.lines().find(|line| line.starts_with(begin));
        let words = line.unwrap_or_else(|| panic!("no line {begin:?} in\n{shown}")).split_whitespace();
        words.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("password "), "password = \"***\" # environment REDIS_PASS");
    assert_eq!(line("port "), "port = 9000 # environment HEALTH_PORT");
    assert_eq!(line("size "), "size = 3 # flag --set pool.size");
    assert_eq!(line("renew "), "renew = \"10s\" # default");
    assert_eq!(line("command "), format!("command = \"disk-server\" # {}:7", path.display()));
    assert_eq!(line("SECRET "), format!("SECRET = \"***\" # {}:9", path.display()));
    assert_eq!(line("# db "), "# db # not set");
    assert!(!shown.contains("hunter2"));
    for section in ["[redis]", "[llm.providers.mine]", "[mcp.servers.web.headers]", "[shutdown]"] {
        assert_eq!(shown.lines().filter(|line| *line == section).count(), 1, "{section}");
    }
}

#[test]
fn what_show_prints_is_a_good_file_of_the_same_values() {
    let values = |loaded: &Loaded| -> BTreeMap<String, Option<serde_json::Value>> {
        loaded.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect()
    };
    let loaded = Given::file(FULL).and_env(&[("WORKER_ID", "w"), ("EXECUTOR__POOL__ARBITERS", "2")]).good();
    let again = Given::file(&cli::show(&loaded, false)).good();
    assert_eq!(values(&again), values(&loaded));
}

#[test]
fn show_as_json_tells_source_file_and_line() {
    let given = Given::file("[pool]\nsize = 3\n").and_env(&[("LLM_API_KEY", "hunter2")]);
    let shown: serde_json::Value = serde_json::from_str(&cli::show(&given.good(), true)).expect("it is JSON");
    let size = &shown["config"]["pool.size"];
    assert_eq!((&size["value"], &size["source"], &size["line"]), (&3.into(), &"file".into(), &2.into()));
    let key = &shown["config"]["llm.providers.anthropic.api_key"];
    assert_eq!(
        (&key["value"], &key["source"], &key["name"]),
        (&"***".into(), &"environment".into(), &"LLM_API_KEY".into())
    );
}

#[test]
fn check_judges_a_file_by_itself() {
    let good = Given::file("[pool]\nsize = 3\n[llm.providers.anthropic]\napi_key = \"k\"\n");
    let verdict = cli::check(good.options.file.as_deref().expect("a file")).expect("it is good");
    assert!(verdict.contains("worker.toml is good: 2 of ") && verdict.lines().count() == 1, "{verdict}");
    let bad = Given::file("[pool]\nsize = -3\n");
    assert!(cli::check(bad.options.file.as_deref().expect("a file")).is_err());
    assert!(cli::check(&PathBuf::from("/nowhere.toml")).is_err());
}

#[test]
fn every_file_that_is_shipped_is_good() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config");
    let files = fs::read_dir(folder).expect("the folder is there").map(|file| file.expect("readable").path());
    for file in files.filter(|file| file.extension().is_some_and(|extension| extension == "toml")) {
        cli::check(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

// --- the table of keys, the defaults and the page about them ----------------------------------------------------

/// One key as `config/default.toml` documents it.
struct Documented {
    key: &'static Key,
    default: Option<String>,
    meaning: String,
    variables: Vec<String>,
}

/// The keys of `config/default.toml`, those that stand there as a comment included.
fn documented() -> Vec<Documented> {
    let mut found = Vec::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in DEFAULT_TOML.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let is_comment = line.starts_with('#');
        if let Some(name) = bare.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = name
                .replace("providers.anthropic", "providers.*")
                .replace("servers.search", "servers.*")
                .replace("limits.some-model", "limits.*")
                .replace("prices.some-model", "prices.*")
                .replace("prices.claude-sonnet-5-5", "prices.*");
            comment.clear();
            continue;
        }
        let assignment =
            bare.split_once(" = ").filter(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let known = assignment.and_then(|(name, value)| {
            let path = format!("{section}.{name}");
            let members = [path.clone(), format!("{path}.*")];
            KEYS.iter().find(|key| members.contains(&key.path.to_owned())).map(|key| (key, value))
        });
        match known {
            Some((key, value)) if is_comment => {
                let text = value.split_once("   ").map(|(_, text)| text.trim()).unwrap_or_default();
                found.push(document(key, key.default.map(str::to_owned), text));
            }
            Some((key, value)) => found.push(document(key, Some(value.to_owned()), &std::mem::take(&mut comment))),
            None if is_comment => comment = format!("{comment} {bare}").trim().to_owned(),
            None => {
                assert!(assignment.is_none(), "{section}: {line} is not in the table of keys");
                comment.clear();
            }
        }
    }
    found
}

fn document(key: &'static Key, default: Option<String>, text: &str) -> Documented {
    let (meaning, variables) = text.split_once("Environment: ").unwrap_or((text, ""));
    let variables = variables.split(", ").map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    Documented {
        key,
        default,
        meaning: meaning.trim().trim_end_matches('.').to_owned(),
        variables: variables.collect(),
    }
}

#[test]
fn every_key_is_documented_once_in_the_defaults_with_its_names() {
    let documented = documented();
    for key in KEYS {
        let entries: Vec<_> = documented.iter().filter(|entry| entry.key.path == key.path).collect();
        assert_eq!(entries.len(), 1, "{} must stand once in config/default.toml", key.path);
        assert!(!entries[0].meaning.is_empty(), "{} has no comment", key.path);
        let told: Vec<&str> = entries[0].variables.iter().map(String::as_str).collect();
        let mut names: Vec<String> = key.short_names().map(str::to_owned).collect();
        if key.kind == Kind::Secret && !names.is_empty() {
            names = names.iter().flat_map(|name| [name.clone(), format!("{name}_FILE")]).collect();
        }
        if key.path == "llm.providers.*.api_key" {
            names.extend(FALLBACK_KEYS.iter().map(|(variable, _)| String::from(*variable)));
        }
        assert_eq!(told, names, "{}", key.path);
        if let (Some(default), Some(written)) =
            (key.default.filter(|_| key.path.starts_with("llm.")), &entries[0].default)
        {
            assert_eq!(written.trim_matches('"'), default, "{}", key.path);
        }
    }
}

fn table() -> String {
    let mut table = String::from("| Key | Environment | Default | Unit | Meaning |\n|---|---|---|---|---|\n");
    for Documented { key, default, meaning, variables } in documented() {
        let mut names: Vec<String> = variables.iter().map(|name| format!("`{name}`")).collect();
        names.extend(key.variable().map(|name| format!("`{name}`")));
        if key.kind == Kind::Secret && !key.is_free() {
            names.extend(key.variable().map(|name| format!("`{name}_FILE`")));
        }
        let names = if names.is_empty() { String::from("file only") } else { names.join("<br>") };
        let default = default
            .filter(|text| text != "\"\"")
            .map_or(String::from("–"), |text| format!("`{}`", text.trim_matches('"')));
        let unit = match key.kind {
            Kind::Text => String::from("text"),
            Kind::Url => String::from("address"),
            Kind::Secret => String::from("secret"),
            Kind::Bool => String::from("`true`, `false`"),
            Kind::Integer { unit, .. } | Kind::Number { unit } => unit.to_owned(),
            Kind::Duration { .. } => String::from("duration"),
            Kind::List => String::from("list of texts"),
            Kind::OneOf(known) => known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        };
        let path = key
            .path
            .replace("servers.*", "servers.NAME")
            .replace("providers.*", "providers.NAME")
            .replace("limits.*", "limits.MODEL")
            .replace("prices.*", "prices.MODEL")
            .replace(".*", ".KEY");
        let meaning = meaning.replace('|', "\\|");
        table.push_str(&format!("| `{path}` | {names} | {default} | {unit} | {meaning} |\n"));
    }
    table
}

/// With `UPDATE_DOCS=1` in the environment the page is written anew instead.
#[test]
fn the_page_about_the_configuration_lists_every_key_as_it_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = fs::read_to_string(&path).expect("the page is there");
    let (begin, end) = ("<!-- keys: written by tests/config.rs -->\n", "<!-- end of keys -->");
    let (before, rest) = page.split_once(begin).expect("the table has a beginning");
    let (inside, after) = rest.split_once(end).expect("the table has an end");
    let table = table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{begin}{table}{end}{after}")).expect("the page can be written");
        return;
    }
    assert!(inside == table, "docs/configuration.md is out of date; run UPDATE_DOCS=1 cargo test --test config");
}
