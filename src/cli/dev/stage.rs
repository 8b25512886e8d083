//! What the demo runs on: a Redis, a model, a tool server and the configuration that ties workers to them.

use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret as _, SecretString};
use tempfile::TempDir;

use crate::cli::dev::redis_server::RedisServer;
use crate::cli::dev::workers::{WorkerPlan, Workers};
use crate::cli::dev::{DevArgs, Trouble, scenario};
use crate::cli::{FAILED, Settings, UNAVAILABLE, WRONG_CONFIG, complain};
use crate::clients::llm::script::ScriptedModel;
use crate::clients::redis::{Keys, Link, RedisError, forget};
use crate::config::show::Entry;
use crate::config::source::dotted;
use crate::config::{Config, ProviderConfig};
use crate::http::scripted_model::{self, ServerHandle};

/// Workers at any time.
const WORKERS: usize = 2;
/// How long workers may take until they are ready.
const READY: Duration = Duration::from_secs(20);
/// The workers' configuration file.
const FILE: &str = "worker.toml";
/// How long a lease lasts: short, so that a takeover is worth watching, and long enough for a busy machine.
const LEASE: &str = "1s";

/// Everything that runs beside the executions themselves.
pub struct Stage {
    // In the order in which they end when nothing else ends them: workers before what they need.
    /// The workers.
    pub workers: Workers,
    /// Commands to Redis.
    pub link: Link,
    /// The workers' configuration, as far as it is read here.
    pub config: Config,
    /// Names of keys.
    pub keys: Keys,
    model: Option<Served>,
    provider: Option<String>,
    private: Option<RedisServer>,
    shown_redis: String,
    folder: TempDir,
}

impl Stage {
    /// Starts everything and waits until the workers are ready.
    pub async fn set_up(settings: &Settings, args: &DevArgs) -> Result<Self, Trouble> {
        let program = std::env::current_exe().map_err(|error| Trouble::new(FAILED, format!("no program: {error}")))?;
        let real = args.provider.as_deref().map(|name| real_provider(settings, name)).transpose()?;
        let folder = tempfile::Builder::new().prefix("executor-dev-").tempdir();
        let folder = folder.map_err(|error| Trouble::new(FAILED, format!("no temporary folder: {error}")))?;

        let mut config = Config::default();
        let private = match &args.redis {
            Some(address) => {
                config.redis.url = url_of(address);
                // Everything of ours begins with this, so that nothing of anybody else is met, and all of it found again.
                config.state.prefix = format!("dago:dev:{}:", uuid::Uuid::now_v7().simple());
                config.work.streams = vec![format!("{}work", config.state.prefix)];
                None
            }
            None => {
                let server = RedisServer::start(&program).map_err(|error| Trouble::new(UNAVAILABLE, error))?;
                config.redis.url = server.url();
                Some(server)
            }
        };
        let link = Link::new(&config.redis).map_err(|error| Trouble::new(WRONG_CONFIG, error))?;
        let shown_redis = shown(&config.redis.url);
        link.ping().await.map_err(|error| Trouble::new(UNAVAILABLE, format!("{shown_redis}: {error}")))?;

        let model = match &real {
            Some(_) => None,
            None => Some(serve_script()?),
        };
        let mut secrets: Vec<(&'static str, OsString)> = Vec::new();
        let provider = match (&real, &model) {
            (Some(real), _) => {
                if let Some(key) = &real.api_key {
                    secrets.push(("LLM_PROVIDER", OsString::from(PROVIDER)));
                    secrets.push(("LLM_API_KEY", OsString::from(key.expose_secret())));
                }
                real.section.clone()
            }
            (None, Some(served)) => scripted_section(&served.url),
            (None, None) => String::new(),
        };
        let file = folder.path().join(FILE);
        let text = worker_file(&config, &program, &provider);
        std::fs::write(&file, text).map_err(|error| Trouble::new(FAILED, format!("{}: {error}", file.display())))?;
        let plan =
            WorkerPlan { program, config: file, folder: folder.path().to_owned(), set: settings.set.clone(), secrets };
        let keys = Keys::new(&config.state.prefix);
        let workers = Workers::new(plan);
        let mut stage =
            Self { workers, link, config, keys, model, provider: args.provider.clone(), private, shown_redis, folder };
        match stage.start_workers().await {
            Ok(()) => Ok(stage),
            Err(trouble) => {
                // What the logs say stands in the error.
                stage.close(false).await;
                Err(trouble)
            }
        }
    }

    async fn start_workers(&mut self) -> Result<(), Trouble> {
        for _ in 0..WORKERS {
            let started = self.workers.start_one();
            started.map_err(|error| Trouble::new(FAILED, format!("a worker cannot be started: {error}")))?;
        }
        let ready = self.workers.ready_by(Instant::now() + READY).await;
        ready.map_err(|error| Trouble::new(FAILED, error))
    }

    /// The work stream.
    pub fn stream(&self) -> &str {
        self.config.work.streams.first().map_or("", String::as_str)
    }

    /// Whether a script answers, so that every word of an outcome is known.
    pub fn scripted(&self) -> bool {
        self.model.is_some()
    }

    /// Turns that the scripted model gave although it had given them before: a real one would be paid for them twice.
    pub fn paid_twice(&self) -> Option<u64> {
        self.model.as_ref().map(|served| served.model.log().repeated)
    }

    /// Where everything is, line by line.
    pub fn addresses(&self) -> Vec<(&'static str, String)> {
        let redis = match &self.private {
            Some(server) => format!("{}  private, version {}, gone when this ends", self.shown_redis, server.version()),
            None => format!("{}  keys under {}, removed when this ends", self.shown_redis, self.config.state.prefix),
        };
        let model = match (&self.model, &self.provider) {
            (Some(served), _) => format!("{}  scripted by examples/model.yaml", served.url),
            (None, provider) => format!("the real provider {}", provider.as_deref().unwrap_or_default()),
        };
        let mut lines =
            vec![("redis", redis), ("model", model), ("tools", String::from("executor-worker mcp-demo, over stdio"))];
        lines.extend(
            self.workers.addresses().map(|(name, address)| ("worker", format!("{name}  http://{address}/health"))),
        );
        lines.push(("logs", format!("{}", self.folder.path().display())));
        lines
    }

    /// Commands for another terminal: one that submits an example to these workers, one that shows the dead letters.
    pub fn commands(&self) -> Vec<String> {
        let program = std::env::args_os().next().unwrap_or_else(|| OsString::from("executor-worker"));
        suggestions(
            Path::new(&program),
            self.private.as_ref().map(RedisServer::address),
            &self.folder.path().join(FILE),
        )
    }

    /// Ends everything in order. The folder stays if its logs are still of use; its path is then the answer.
    pub async fn close(self, keep: bool) -> Option<PathBuf> {
        let Self { workers, link, config, model, private, folder, .. } = self;
        workers.stop();
        if private.is_none()
            && let Err(error) = forget(&link, &config.state.prefix).await
        {
            complain(format_args!("keys under {} could not be removed: {error}", config.state.prefix));
        }
        if let Some(served) = model {
            served.handle.stop(false).await;
        }
        drop(private);
        keep.then(|| {
            // The address of a Redis may bear its password.
            let _ = std::fs::remove_file(folder.path().join(FILE));
            folder.keep()
        })
    }
}

/// What to try while it is up, at the private Redis or else by the workers' file. Nothing but this program is sure to
/// be there: a server may come without a client of its own.
fn suggestions(program: &Path, private: Option<impl Display>, file: &Path) -> Vec<String> {
    let (program, file) = (program.display(), file.display());
    let begin = match private {
        Some(address) => format!("REDIS_ADDR={address} {program}"),
        None => format!("{program} --config {file}"),
    };
    ["submit --wait examples/agent.json", "dead-letters list"].map(|command| format!("{begin} {command}")).into()
}

/// The provider of the workers' file.
const PROVIDER: &str = "dev";

/// The scripted model at work.
struct Served {
    model: Arc<ScriptedModel>,
    url: String,
    handle: ServerHandle,
}

fn serve_script() -> Result<Served, Trouble> {
    let model =
        ScriptedModel::parse(scenario::MODEL, "examples/model.yaml").map_err(|error| Trouble::new(FAILED, error))?;
    let model = Arc::new(model);
    let listening = scripted_model::serve(Arc::clone(&model), (Ipv4Addr::LOCALHOST, 0))
        .map_err(|error| Trouble::new(FAILED, format!("the scripted model cannot be served: {error}")))?;
    let served = Served { model, url: listening.base_url(), handle: listening.handle() };
    actix_rt::spawn(listening.server);
    Ok(served)
}

/// A provider of the user's own configuration.
struct Real {
    section: String,
    api_key: Option<SecretString>,
}

/// Looks it up.
fn real_provider(settings: &Settings, name: &str) -> Result<Real, Trouble> {
    let loaded =
        settings.load().map_err(|code| Trouble::new(code, "--provider takes a model from your configuration"))?;
    let providers = &loaded.config.llm.providers;
    let known = providers.keys().cloned().collect::<Vec<_>>().join(", ");
    let provider = providers.get(name).ok_or_else(|| {
        Trouble::new(WRONG_CONFIG, format!("--provider {name}: your configuration has no such provider, only {known}"))
    })?;
    if provider.api_key.is_none() && provider.needs_key() {
        let remedy = "set LLM_API_KEY or LLM_API_KEY_FILE, or leave --provider out for the scripted model";
        return Err(Trouble::new(WRONG_CONFIG, format!("--provider {name} has no key; {remedy}")));
    }
    let section = provider_section(name, provider, &loaded.entries);
    Ok(Real { section, api_key: provider.api_key.clone() })
}

fn url_of(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("redis://{address}") }
}

/// The address without what may be secret in it.
fn shown(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(url) => match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            _ => String::from("redis"),
        },
        Err(_) => String::from("redis"),
    }
}

/// The workers' file: defaults but for short leases and the places of this demo.
fn worker_file(config: &Config, program: &Path, provider: &str) -> String {
    format!(
        "# Written by `executor-worker dev`; removed when it ends.\n\
         [redis]\nurl = {url}\n\n\
         [work]\nstreams = [{stream}]\nblock = \"500ms\"\n\n\
         [lease]\nduration = \"{LEASE}\"\nrenew = \"150ms\"\nsweep = \"200ms\"\n\n\
         [pool]\nsize = 16\n\n\
         [state]\nprefix = {prefix}\n\n\
         [retry]\ninitial = \"250ms\"\nmax = \"2s\"\n\n\
         [llm]\ndefault = \"{PROVIDER}\"\n\n\
         {provider}\n\
         [mcp.servers.demo]\ncommand = {program}\nargs = [\"mcp-demo\"]\n\n\
         [log]\nformat = \"json\"\n\n\
         [shutdown]\ngrace = \"3s\"\n",
        url = quoted(&config.redis.url),
        stream = config.work.streams.iter().map(|stream| quoted(stream)).collect::<Vec<_>>().join(", "),
        prefix = quoted(&config.state.prefix),
        program = quoted(&program.display().to_string()),
    )
}

fn scripted_section(url: &str) -> String {
    // The server wants a key, as the real one does; any will do.
    format!(
        "[llm.providers.{PROVIDER}]\nkind = \"anthropic\"\nbase_url = {}\napi_key = \"any\"\nmodel = \"scripted\"\n",
        quoted(url)
    )
}

/// The user's provider with all that is said of it but its key, which workers get by their environment.
fn provider_section(name: &str, provider: &ProviderConfig, entries: &[Entry]) -> String {
    let mut text = format!("[llm.providers.{PROVIDER}]\nbase_url = {}\n", quoted(&provider.base_url));
    if let Some(script) = &provider.script {
        let script = std::path::absolute(script).unwrap_or_else(|_| script.clone());
        let _ = writeln!(text, "script = {}", quoted(&script.display().to_string()));
    }
    let section = dotted(&["llm", "providers", name]) + ".";
    for entry in entries {
        let Some(member) = entry.key.strip_prefix(&section) else { continue };
        // Entries are fit to be shown: the key is masked, and an address may be.
        if let (Some(value), false) = (&entry.value, matches!(member, "api_key" | "base_url" | "script")) {
            let _ = writeln!(text, "{member} = {value}");
        }
    }
    text
}

/// A text as TOML writes it; JSON's escapes are among TOML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        Self::new(UNAVAILABLE, error)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;
    use crate::config::load::{LoadOptions, Loaded, load};

    #[test]
    fn an_address_is_shown_without_its_password() {
        assert_eq!(shown("redis://:secret@host:6380/2"), "host:6380");
        assert_eq!(shown(&url_of("host:6379")), "host:6379");
    }

    #[test]
    fn what_is_proposed_needs_nothing_but_this_program() {
        let (program, file) = (Path::new("executor-worker"), Path::new("worker.toml"));
        let private = suggestions(program, Some("127.0.0.1:7"), file);
        let elsewhere = suggestions(program, None::<&str>, file);
        assert!(private.iter().all(|line| line.starts_with("REDIS_ADDR=127.0.0.1:7 executor-worker ")), "{private:?}");
        assert!(elsewhere.iter().all(|line| line.contains("--config worker.toml")), "{elsewhere:?}");
        for line in private.iter().chain(&elsewhere) {
            let words = line.split(' ').skip_while(|word| word.contains('='));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    /// A provider of which everything is said otherwise than by default.
    const MINE: &str = r#"
        [llm.providers.mine]
        kind = "openai"
        base_url = "https://models.example/v1"
        api_key = "s3cr3t"
        auth = "bearer"
        model = "m"
        betas = ["one", "two"]
        stream = "always"
        stall_timeout = "7s"
        requests_per_minute = 60
        breaker_failures = 0
        images = false
        limits."m.1" = { tokens_per_minute = 1000 }
        prices."m.1" = { input = 1.5, output = 2.0 }
    "#;

    #[test]
    fn the_workers_file_is_a_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = Config::default();
        config.state.prefix = String::from("a \"quoted\" prefix:");
        let loaded = |text: &str| {
            let file = folder.path().join(FILE);
            std::fs::write(&file, text).expect("it can be written");
            let environment =
                [("WORKER_ID", "w"), ("HEALTH_PORT", "1")].map(|(name, value)| (name.into(), value.into()));
            let options = LoadOptions { file: Some(file), env: environment.into(), ..LoadOptions::default() };
            load(&options).expect("it is valid")
        };
        let mine = loaded(MINE);
        let real = provider_section("mine", &mine.config.llm.providers["mine"], &mine.entries);
        assert!(!real.contains("s3cr3t"), "{real}");
        for section in [scripted_section("http://127.0.0.1:1"), real.clone()] {
            let loaded = loaded(&worker_file(&config, Path::new("/a b/worker"), &section));
            assert_eq!(loaded.config.state.prefix, config.state.prefix);
            assert_eq!(loaded.config.llm.default, PROVIDER);
            assert_eq!(loaded.config.lease.renew(), Duration::from_millis(150));
            assert_eq!(loaded.config.mcp.servers["demo"].command.as_deref(), Some("/a b/worker"));
        }
        // What the account is limited to and what it costs holds in the demo as well.
        let members = |loaded: &Loaded, name: &str| {
            let section = dotted(&["llm", "providers", name]) + ".";
            let members = loaded.entries.iter().filter_map(|entry| Some((entry.key.strip_prefix(&section)?, entry)));
            let kept = members.filter(|(member, _)| *member != "api_key");
            kept.map(|(member, entry)| (member.to_owned(), entry.value.clone())).collect::<BTreeMap<_, _>>()
        };
        let theirs = loaded(&worker_file(&config, Path::new("/a b/worker"), &real));
        assert_eq!(members(&theirs, PROVIDER), members(&mine, "mine"));
    }
}
