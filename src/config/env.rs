//! The environment: which of its variables are ours, secrets out of the files that `…_FILE` names, and every text
//! as a value of its key's type. The provider that `LLM_*` fill is not chosen here.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use figment::value::Value;

use crate::config::error::Problem;
use crate::config::mcp_servers::{self, Listed};
use crate::config::redis_addr;
use crate::config::schema::{self, FALLBACK_KEYS, KEYS, Key, Kind, LONG_PREFIX, SHORT_NAMES};
use crate::config::source::Source;

/// The list of tool servers.
pub const MCP_SERVERS: &str = "MCP_SERVERS";
/// Names the configuration file where no flag does.
pub const CONFIG_FILE: &str = "EXECUTOR_CONFIG";
/// The directives that the ecosystem knows; they win over the level of this configuration.
const RUST_LOG: &str = "RUST_LOG";
/// Its short and its long name may say the same as `host:port` and as a URL.
const REDIS_URL: &str = "redis.url";

/// The longest secret that is read from a file.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// What the environment sets. There is no `Debug`: the values may be secrets.
#[derive(Default)]
pub struct Environment {
    /// Values of keys, each key once; a key with `*` is a member of the default provider.
    pub settings: Vec<Setting>,
    /// Keys for providers that have none: the kind of provider, and the key.
    pub fallback_keys: Vec<(&'static str, Value, Source)>,
    /// Tool servers in the order in which they are listed.
    pub servers: Vec<Listed>,
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// What was seen and is no error.
    pub warnings: Vec<String>,
}

/// One value of one key.
pub struct Setting {
    /// The key.
    pub key: &'static Key,
    /// Its value.
    pub value: Value,
    /// The variable.
    pub source: Source,
}

/// What a variable is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// The key at this place of the table.
    Key(usize),
    /// The fallback key at this place of its table.
    Fallback(usize),
}

impl Target {
    fn kind(self) -> Kind {
        match self {
            Self::Key(at) => KEYS[at].kind,
            Self::Fallback(_) => Kind::Secret,
        }
    }

    /// The dotted path of the key, or the name of what is no key.
    fn path(self) -> &'static str {
        match self {
            Self::Key(at) => KEYS[at].path,
            Self::Fallback(at) => FALLBACK_KEYS[at].0,
        }
    }

    /// A problem of the key that `variable` is for.
    fn problem(self, variable: &str, message: impl Into<String>) -> Problem {
        Problem::new(self.path(), Source::Environment(variable.to_owned()), message)
    }
}

impl Environment {
    /// Reads what is ours. Every problem is added to `problems`; a value with a problem is left out.
    pub fn read(variables: &BTreeMap<OsString, OsString>, problems: &mut Vec<Problem>) -> Self {
        let mut environment = Self::default();
        let mut candidates: BTreeMap<Target, Vec<(&str, String)>> = BTreeMap::new();
        // An empty value means unset, so that `NAME=` in a compose file takes nothing away.
        for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
            let Some(name) = name.to_str() else { continue };
            if name == CONFIG_FILE {
                environment.file = Some(PathBuf::from(value));
                continue;
            }
            let (target, from_file) = match target(name) {
                Ok(Some(found)) => found,
                Ok(None) if [MCP_SERVERS, RUST_LOG].contains(&name) => {
                    match value.to_str() {
                        Some(text) if name == MCP_SERVERS => environment.list_servers(text, problems),
                        Some(_) => {}
                        None => problems.push(problem(name, "is not UTF-8")),
                    }
                    continue;
                }
                Ok(None) => continue,
                Err(message) => {
                    problems.push(problem(name, message));
                    continue;
                }
            };
            match if from_file { secret_from_file(value) } else { text(value) } {
                Ok(text) if text.is_empty() => {
                    environment.warnings.push(format!("{name}: {} is empty", shown(value)));
                }
                Ok(text) if target.path() == REDIS_URL => match redis_addr::to_url(&text) {
                    Ok(url) => candidates.entry(target).or_default().push((name, url)),
                    Err(message) => problems.push(target.problem(name, message)),
                },
                Ok(text) => candidates.entry(target).or_default().push((name, text)),
                Err(message) => problems.push(target.problem(name, message)),
            }
        }
        for (target, candidates) in candidates {
            if let Some((value, variable)) = settle(target, &candidates, problems) {
                let source = Source::Environment(variable.to_owned());
                match target {
                    Target::Key(at) => environment.settings.push(Setting { key: &KEYS[at], value, source }),
                    Target::Fallback(at) => environment.fallback_keys.push((FALLBACK_KEYS[at].1, value, source)),
                }
            }
        }
        environment.take_directives(variables);
        environment
    }

    fn list_servers(&mut self, text: &str, problems: &mut Vec<Problem>) {
        match mcp_servers::parse(text) {
            Ok(servers) => self.servers = servers,
            Err(messages) => problems.extend(messages.into_iter().map(|message| problem(MCP_SERVERS, message))),
        }
    }

    /// `RUST_LOG` in the place of the level, whatever else sets that.
    fn take_directives(&mut self, variables: &BTreeMap<OsString, OsString>) {
        let directives = variables.get(OsStr::new(RUST_LOG)).and_then(|value| value.to_str());
        let Some(directives) = directives.filter(|directives| !directives.is_empty()) else { return };
        let Some(key) = schema::find(&["log", "level"]) else { return };
        self.settings.retain(|setting| setting.key.path != key.path);
        let source = Source::Environment(RUST_LOG.to_owned());
        self.settings.push(Setting { key, value: Value::from(directives), source });
    }
}

/// What a variable is for, and whether it names a file with the value; nothing if it is not ours.
fn target(name: &str) -> Result<Option<(Target, bool)>, String> {
    if let Some(target) = exact(name) {
        return Ok(Some((target, false)));
    }
    let without_suffix = if name.starts_with(LONG_PREFIX) {
        name.len()
            .checked_sub(5)
            .filter(|at| name.is_char_boundary(*at) && name[*at..].eq_ignore_ascii_case("_FILE"))
            .map(|at| &name[..at])
    } else {
        name.strip_suffix("_FILE")
    };
    let of_file = without_suffix.and_then(exact);
    match of_file {
        Some(target) if target.kind() == Kind::Secret => return Ok(Some((target, true))),
        Some(_) if name.starts_with(LONG_PREFIX) => {
            return Err(String::from("only secrets can be read from a file; leave `_FILE` away"));
        }
        _ => {}
    }
    if name.starts_with(LONG_PREFIX) { Err(unknown(name)) } else { Ok(None) }
}

/// The target of a variable that bears the value itself.
fn exact(name: &str) -> Option<Target> {
    if let Some(at) = FALLBACK_KEYS.iter().position(|(variable, _)| *variable == name) {
        return Some(Target::Fallback(at));
    }
    let path = match name.strip_prefix(LONG_PREFIX) {
        Some(rest) if rest.contains('.') => return None,
        Some(rest) => rest.to_lowercase().replace("__", "."),
        None => SHORT_NAMES.iter().find(|(short, _)| *short == name)?.1.to_owned(),
    };
    let at = KEYS.iter().position(|key| key.path == path)?;
    // A `*` in a long name would be a name that the operator chose: those stand only in the file.
    (!name.starts_with(LONG_PREFIX) || !KEYS[at].is_free()).then_some(Target::Key(at))
}

/// Why a variable with our prefix is refused.
fn unknown(name: &str) -> String {
    let path = name[LONG_PREFIX.len()..].to_lowercase();
    if path.starts_with("llm__providers__") {
        return String::from(
            "providers have names of your own, so they stand only in the file, as [llm.providers.NAME]; LLM_PROVIDER, \
             LLM_API_KEY, LLM_MODEL and LLM_BASE_URL set up one of them",
        );
    }
    if path.starts_with("mcp__servers__") {
        return String::from(
            "tool servers have names of your own, so they stand only in the file, as [mcp.servers.NAME]; MCP_SERVERS \
             lists servers over HTTP",
        );
    }
    let near = KEYS.iter().filter_map(Key::variable).max_by(|one, other| {
        let likeness = |known: &str| strsim::jaro_winkler(&known[LONG_PREFIX.len()..].to_lowercase(), &path);
        likeness(one).total_cmp(&likeness(other))
    });
    format!("there is no such key; the nearest is {}", near.unwrap_or_default())
}

/// The one value of several variables for the same key.
fn settle<'a>(
    target: Target,
    candidates: &[(&'a str, String)],
    problems: &mut Vec<Problem>,
) -> Option<(Value, &'a str)> {
    for (variable, _) in candidates {
        let file = candidates.iter().map(|(other, _)| *other).find(|other| {
            other.len() == variable.len() + 5 && other.starts_with(variable) && other.to_uppercase().ends_with("_FILE")
        });
        if let Some(file) = file {
            problems.push(target.problem(variable, format!("is set together with {file}; keep one of the two")));
            return None;
        }
    }
    let mut parsed: Vec<(Value, &str)> = Vec::new();
    for (variable, text) in candidates {
        match target.kind().parse(text) {
            Ok(value) => parsed.push((value, variable)),
            Err(message) => problems.push(target.problem(variable, message)),
        }
    }
    let mut values = parsed.into_iter();
    let (value, first) = values.next()?;
    for (other, variable) in values {
        if other != value {
            problems.push(
                target.problem(variable, format!("is set differently by {first}; both name the same key, keep one")),
            );
            return None;
        }
    }
    Some((value, first))
}

fn text(value: &OsStr) -> Result<String, String> {
    value.to_str().map(str::to_owned).ok_or_else(|| String::from("is not UTF-8"))
}

/// The content of a file without one newline at its end.
fn secret_from_file(path: &OsStr) -> Result<String, String> {
    let shown = shown(path);
    let cannot = |error: std::io::Error| format!("cannot read {shown}: {error}");
    let mut content = Vec::new();
    File::open(path).map_err(cannot)?.take(MAX_SECRET_BYTES + 1).read_to_end(&mut content).map_err(cannot)?;
    if content.len() as u64 > MAX_SECRET_BYTES {
        return Err(format!("{shown} is longer than {MAX_SECRET_BYTES} bytes, so it is no secret"));
    }
    let content = String::from_utf8(content).map_err(|_| format!("{shown} is not UTF-8"))?;
    let line = content.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    Ok(line.unwrap_or(&content).to_owned())
}

/// A path in words. A secret that was put where its file's name belongs is no path, and is not repeated.
pub fn shown(path: &OsStr) -> String {
    let path = Path::new(path);
    let in_a_folder = path.parent().is_some_and(|folder| !folder.as_os_str().is_empty() && folder.is_dir());
    if path.is_absolute() || path.starts_with(".") || path.starts_with("..") || in_a_folder {
        format!("the file {}", path.display())
    } else {
        String::from("the file it names")
    }
}

fn problem(variable: &str, message: impl Into<String>) -> Problem {
    Problem::new(variable, Source::Environment(variable.to_owned()), message)
}
