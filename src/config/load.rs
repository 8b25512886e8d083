//! Puts defaults, file, environment and flags together and refuses what cannot be meant: compiled defaults, then the
//! file, then the environment, then flags, the later over the earlier. What values mean together is [`validate`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Value};

use crate::config::env::{CONFIG_FILE, Environment, MCP_SERVERS};
use crate::config::error::{ConfigError, Problem};
use crate::config::expand::{Variable, expand};
use crate::config::layer::{Layer, get, insert};
use crate::config::schema::{self, KEYS, PROVIDER_KINDS};
use crate::config::show::{self, Entry};
use crate::config::source::{Source, dotted};
use crate::config::{Config, DEFAULT_TOML, file, mcp_json, presets, redis_addr, validate};
use crate::domain::node::nearest;

/// What a configuration is read from. There is no `Debug`: the environment holds secrets.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// The file of `--config`; without it the one that `EXECUTOR_CONFIG` names, else none.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<OsString, OsString>,
    /// What flags set, as dotted key and text; they win over everything.
    pub flags: Vec<(String, String)>,
    /// Functions of the program's own, beside the built-in ones.
    pub functions: Vec<String>,
    /// Whether variables that values of servers name may be absent, because a file is judged elsewhere than where it
    /// will be used.
    pub without_variables: bool,
}

/// A configuration with its origin.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Where each value came from, by dotted path; what is absent is a default.
    pub sources: BTreeMap<String, Source>,
    /// What was seen and is no error: to be logged once at the start.
    pub warnings: Vec<String>,
    /// Every key in order with its value fit to be shown.
    pub entries: Vec<Entry>,
}

impl Loaded {
    /// Where the value of a key came from.
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }
}

/// The compiled-in defaults alone.
pub fn defaults() -> Config {
    Figment::from(Toml::string(DEFAULT_TOML)).extract().expect("config/default.toml is complete; a test holds it")
}

/// Reads the configuration, or says everything that is wrong with it.
pub fn load(options: &LoadOptions) -> Result<Loaded, ConfigError> {
    load_named(options, Some(Source::Flag(String::from("--config"))))
}

/// The same where something else may have named the file of the options; see [`file::read`].
fn load_named(options: &LoadOptions, named: Option<Source>) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let environment = Environment::read(&options.env, &mut problems);
    let mut warnings = Vec::new();
    let (path, named) = match options.file.clone().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => (Some(path), named),
        None => (environment.file.clone(), Some(Source::Environment(CONFIG_FILE.to_owned()))),
    };
    let mut from_file = match path.as_deref().map(|path| file::read(path, named.as_ref(), &mut problems)) {
        Some(Some(layer)) => layer,
        // Without the file most of what follows would be blamed for what stands in it.
        Some(None) => return Err(ConfigError { problems }),
        None => Layer::default(),
    };
    let from_flags = flags(&options.flags, &mut problems);
    if let Some((list, named)) = list_of_servers(&from_flags, &environment, &from_file) {
        match mcp_json::read(&list, named, &mut problems, &mut warnings) {
            Some(servers) => add_servers(&mut from_file, servers, &mut problems),
            // As with the file: what it lacks would be blamed on others.
            None => return Err(ConfigError { problems }),
        }
    }
    let from_env = settle_environment(&environment, &from_file, &from_flags, &mut problems);

    let figment = Figment::from(Toml::string(DEFAULT_TOML)).merge(&from_file).merge(&from_env).merge(&from_flags);
    let merged: Dict = figment.extract().map_err(|error| unexpected(&error))?;
    let mut sources = from_file.sources.clone();
    sources.extend(from_env.sources.clone());
    sources.extend(from_flags.sources.clone());

    let derived = derive(&merged, &sources, &mut problems);
    let beneath = beneath(&merged, &environment);
    for (key, source) in &beneath.sources {
        sources.entry(key.clone()).or_insert_with(|| source.clone());
    }
    sources.extend(derived.sources.clone());
    let figment = figment.merge(&derived).join(&beneath);
    let merged: Dict = figment.extract().map_err(|error| unexpected(&error))?;
    // What is shown later is the text as it was written: a variable may hold a secret, and its name tells more.
    let expanded = Layer { values: expanded(&merged, &sources, options, &mut problems), ..Layer::default() };
    let config: Config = Figment::from(&expanded).extract().map_err(|error| unexpected(&error))?;

    validate::validate(&config, &options.functions, &sources, &mut problems);
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    warnings.extend(environment.warnings);
    warnings.extend(validate::warnings(&config, &sources));
    let entries = show::entries(&config, &merged, &sources);
    Ok(Loaded { config, file: path, sources, warnings, entries })
}

/// Values of the command line, given their types.
fn flags(flags: &[(String, String)], problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    for (key, value) in flags {
        let source = Source::Flag(format!("--set {key}"));
        let path: Vec<&str> = key.split('.').collect();
        match schema::find(&path).map(|key| key.kind.parse(value)) {
            Some(Ok(value)) => layer.insert(&path, value, source),
            Some(Err(message)) => problems.push(Problem::new(key, source, message)),
            None => problems.push(Problem::new(key, source, file::unknown(&path))),
        }
    }
    layer
}

/// The environment as a layer: `LLM_*` go to the provider that is the default after all, `MCP_SERVERS` to the servers.
fn settle_environment(
    environment: &Environment,
    from_file: &Layer,
    from_flags: &Layer,
    problems: &mut Vec<Problem>,
) -> Layer {
    let mut layer = Layer::default();
    for setting in environment.settings.iter().filter(|setting| !setting.key.is_free()) {
        let path: Vec<&str> = setting.key.path.split('.').collect();
        layer.insert(&path, setting.value.clone(), setting.source.clone());
    }
    list_servers(environment, from_file, &mut layer, problems);

    let compiled = defaults_layer();
    let default = |layer: &Layer| layer.get(&["llm", "default"]).and_then(Value::as_str).map(str::to_owned);
    let layers = [from_flags, &layer, from_file, &compiled];
    let Some((name, source)) = layers.iter().find_map(|layer| {
        let source = layer.sources.get("llm.default").cloned().unwrap_or(Source::Default);
        Some((default(layer)?, source))
    }) else {
        return layer;
    };
    let configured: BTreeSet<String> =
        layers.iter().flat_map(|layer| names(&layer.values, "llm", "providers")).collect();
    if !configured.contains(&name) {
        let Some(kind) = PROVIDER_KINDS.iter().find(|kind| **kind == name) else {
            let known: BTreeSet<&str> =
                configured.iter().map(String::as_str).chain(PROVIDER_KINDS.iter().copied()).collect();
            let hint = nearest(&name, known.iter().copied()).map(|near| format!("; did you mean {near}?"));
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            let hint = hint.unwrap_or_default();
            problems.push(Problem::new("llm.default", source, format!("names no provider; known are {known}{hint}")));
            return layer;
        };
        layer.insert(&["llm", "providers", &name, "kind"], Value::from(*kind), source);
    }
    let fallback = |layer: &Layer| -> Option<Vec<String>> {
        let names = layer.get(&["llm", "fallback"]).and_then(Value::as_array)?;
        Some(names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let named = [from_flags, &layer, from_file].iter().find_map(|layer| {
        let source = layer.sources.get("llm.fallback").cloned().unwrap_or(Source::Default);
        Some((fallback(layer)?, source))
    });
    // A known kind is a provider of its name here too; any other name is told as unknown later.
    for (other, source) in
        named.into_iter().flat_map(|(names, source)| names.into_iter().map(move |n| (n, source.clone())))
    {
        if !configured.contains(&other) && other != name && PROVIDER_KINDS.contains(&other.as_str()) {
            layer.insert(&["llm", "providers", &other, "kind"], Value::from(other.as_str()), source);
        }
    }
    for setting in environment.settings.iter().filter(|setting| setting.key.is_free()) {
        let member = setting.key.path.rsplit('.').next().unwrap_or_default();
        layer.insert(&["llm", "providers", &name, member], setting.value.clone(), setting.source.clone());
    }
    layer
}

/// The file that `mcp.config` names and who names it, the most important source first.
fn list_of_servers(flags: &Layer, environment: &Environment, file: &Layer) -> Option<(PathBuf, Source)> {
    let of_layer = |layer: &Layer| {
        let source = layer.sources.get("mcp.config")?.clone();
        Some((layer.get(&["mcp", "config"])?.clone(), source))
    };
    let in_env = || environment.settings.iter().find(|setting| setting.key.path == "mcp.config");
    let in_env = || in_env().map(|setting| (setting.value.clone(), setting.source.clone()));
    let (value, source) = of_layer(flags).or_else(in_env).or_else(|| of_layer(file))?;
    let path = value.as_str().filter(|text| !text.is_empty())?;
    Some((PathBuf::from(path), source))
}

/// Adds the servers of a list to those of the configuration file; a name may stand in one of the two.
fn add_servers(file: &mut Layer, list: Layer, problems: &mut Vec<Problem>) {
    for name in names(&list.values, "mcp", "servers") {
        let path = ["mcp", "servers", &name];
        if file.get(&path).is_none() {
            continue;
        }
        let message = format!("server `{name}` stands in {} too; rename or remove one of the two", place(file, &name));
        let source = first_source(&list, &name).cloned();
        problems.push(Problem { key: dotted(&path), source, message });
    }
    let Layer { values, sources } = list;
    file.join(Layer { values, sources });
}

/// Where a server stands, in words.
fn place(layer: &Layer, server: &str) -> String {
    first_source(layer, server).map_or_else(|| String::from("the file"), ToString::to_string)
}

/// The source of the member of a server that stands first.
fn first_source<'a>(layer: &'a Layer, server: &str) -> Option<&'a Source> {
    let prefix = format!("{}.", dotted(&["mcp", "servers", server]));
    let sources = layer.sources.iter().filter(|(key, _)| key.starts_with(&prefix)).map(|(_, source)| source);
    sources.min_by_key(|source| match source {
        Source::File { line, .. } => *line,
        Source::Default | Source::Host | Source::Environment(_) | Source::Flag(_) => None,
    })
}

/// The values with the variables put in that those of servers in a file name.
fn expanded(
    merged: &Dict,
    sources: &BTreeMap<String, Source>,
    options: &LoadOptions,
    problems: &mut Vec<Problem>,
) -> Dict {
    let mut values = merged.clone();
    for name in names(merged, "mcp", "servers") {
        let mut path = ["mcp", "servers", &name].map(str::to_owned).to_vec();
        let Some(server) = get(merged, &path).and_then(Value::as_dict) else { continue };
        expand_members(server, &mut path, &mut values, sources, options, problems);
    }
    values
}

fn expand_members(
    members: &Dict,
    path: &mut Vec<String>,
    values: &mut Dict,
    sources: &BTreeMap<String, Source>,
    options: &LoadOptions,
    problems: &mut Vec<Problem>,
) {
    for (name, value) in members {
        path.push(name.clone());
        let source = sources.get(&dotted(path)).filter(|source| matches!(source, Source::File { .. }));
        let mut put = |text: &str| {
            let source = source?;
            let of_url = schema::find(path).is_some_and(|key| key.kind == schema::Kind::Url);
            match expand(text, |variable| lookup(options, variable, of_url && text.starts_with("${"))) {
                Ok(expanded) => Some(expanded.into_owned()),
                Err(error) => {
                    problems.push(Problem::new(dotted(path), source.clone(), error.to_string()));
                    None
                }
            }
        };
        let new = match value {
            Value::String(_, text) => put(text).map(Value::from),
            Value::Array(_, items) => {
                let texts: Option<Vec<String>> = items.iter().map(|item| put(item.as_str()?)).collect();
                texts.map(Value::from)
            }
            _ => None,
        };
        if let Some(new) = new {
            insert(values, path, new);
        }
        if let Value::Dict(_, inner) = value {
            expand_members(inner, path, values, sources, options, problems);
        }
        path.pop();
    }
}

/// What a variable holds; where it may be absent, something that a value can be judged with.
fn lookup(options: &LoadOptions, name: &str, begins_address: bool) -> Variable {
    match options.env.get(OsStr::new(name)).filter(|value| !value.is_empty()).map(|value| value.to_str()) {
        Some(Some(text)) => Variable::Text(text.to_owned()),
        Some(None) => Variable::NotText,
        None if options.without_variables && begins_address => Variable::Text(String::from("http://variable")),
        None if options.without_variables => Variable::Text(String::from("1")),
        None => Variable::Unset,
    }
}

/// Puts the servers of `MCP_SERVERS` before those of the file.
fn list_servers(environment: &Environment, from_file: &Layer, layer: &mut Layer, problems: &mut Vec<Problem>) {
    if environment.servers.is_empty() {
        return;
    }
    let source = Source::Environment(MCP_SERVERS.to_owned());
    for server in &environment.servers {
        let path = ["mcp", "servers", &server.name];
        let in_file = get(&from_file.values, &path).and_then(Value::as_dict);
        let same = in_file.and_then(|server| server.get("url")).and_then(Value::as_str) == Some(&server.url);
        if in_file.is_some() && !same {
            let message = format!(
                "server `{}` stands in the file too ({}), with another address; give one of the two another name",
                server.name,
                place(from_file, &server.name)
            );
            problems.push(Problem::new("mcp.servers", source.clone(), message));
            continue;
        }
        layer.insert(&["mcp", "servers", &server.name, "url"], Value::from(server.url.as_str()), source.clone());
    }
    let listed: Vec<String> = environment.servers.iter().map(|server| server.name.clone()).collect();
    let order = |layer: &Layer| -> Vec<String> {
        let order = layer.get(&["mcp", "order"]).and_then(Value::as_array).unwrap_or_default();
        order.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    // An order that the environment gives is the operator's last word; one in the file did not know of these servers.
    let (own, source) = match layer.sources.get("mcp.order") {
        Some(source) => ([order(layer), listed].concat(), source.clone()),
        None => ([listed, order(from_file)].concat(), source),
    };
    let mut seen = BTreeSet::new();
    let order: Vec<String> = own.into_iter().filter(|name| seen.insert(name.clone())).collect();
    layer.insert(&["mcp", "order"], Value::from(order), source);
}

/// What follows from other values: the name of the host, and an address without its password.
fn derive(merged: &Dict, sources: &BTreeMap<String, Source>, problems: &mut Vec<Problem>) -> Layer {
    let mut layer = Layer::default();
    let text = |path: &[&str]| get(merged, path).and_then(Value::as_str);
    if text(&["worker", "id"]).is_none_or(str::is_empty) {
        match nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).filter(|name| !name.is_empty()) {
            Some(name) => layer.insert(&["worker", "id"], Value::from(name), Source::Host),
            None => problems.push(Problem::missing("worker.id", "the host has no name to take; set WORKER_ID")),
        }
    }
    let source = sources.get("redis.url").cloned().unwrap_or(Source::Default);
    match redis_addr::parse(text(&["redis", "url"]).unwrap_or_default()) {
        Ok(address) => {
            if let Some(password) = address.password {
                if text(&["redis", "password"]).is_some_and(|other| other != password) {
                    let message = "has another password in it than redis.password says; take it out of the address";
                    problems.push(Problem::new("redis.url", source.clone(), message));
                }
                layer.insert(&["redis", "password"], Value::from(password), source.clone());
            }
            layer.insert(&["redis", "url"], Value::from(address.url), source);
        }
        Err(message) => problems.push(Problem::new("redis.url", source, message)),
    }
    layer
}

/// What lies beneath everything else: members that servers and providers leave out, and the fallback keys.
fn beneath(merged: &Dict, environment: &Environment) -> Layer {
    let mut layer = Layer::default();
    for (section, group) in [("llm", "providers"), ("mcp", "servers")] {
        for name in names(merged, section, group) {
            let kind = kind_of(merged, &name);
            for key in KEYS.iter().filter(|key| key.path.starts_with(&format!("{section}.{group}.*."))) {
                let member = key.path.rsplit('.').next().unwrap_or_default();
                let default = match (section, member) {
                    ("llm", "kind") => Some(kind),
                    ("llm", _) => presets::preset(kind, member).or(key.default),
                    _ => key.default,
                };
                if let Some(Ok(value)) = default.map(|default| key.kind.parse(default)) {
                    insert(&mut layer.values, &[section, group, &name, member], value);
                }
            }
        }
    }
    for name in names(merged, "llm", "providers") {
        let vendor = presets::vendor(kind_of(merged, &name));
        if let Some((_, key, source)) = environment.fallback_keys.iter().find(|(of, _, _)| vendor == Some(*of)) {
            layer.insert(&["llm", "providers", &name, "api_key"], key.clone(), source.clone());
        }
    }
    layer
}

/// The kind of a provider: as it says, else the one that it is called by.
fn kind_of(merged: &Dict, name: &str) -> &'static str {
    let said = get(merged, &["llm", "providers", name, "kind"]).and_then(Value::as_str);
    let known = |text: &str| PROVIDER_KINDS.iter().copied().find(|kind| *kind == text);
    said.and_then(known).or_else(|| known(name)).unwrap_or("anthropic")
}

fn defaults_layer() -> Layer {
    let values = Toml::from_str(DEFAULT_TOML).expect("config/default.toml is TOML; a test holds it");
    Layer { values, sources: BTreeMap::new() }
}

/// The names in a table of servers or providers.
fn names(values: &Dict, section: &str, group: &str) -> Vec<String> {
    let table = get(values, &[section, group]).and_then(Value::as_dict);
    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

/// An error of figment, which would print the value: its key alone is told.
fn unexpected(error: &figment::Error) -> ConfigError {
    let key = if error.path.is_empty() { String::from("configuration") } else { error.path.join(".") };
    ConfigError::from(Problem::missing(key, "has a value that cannot be used"))
}

/// Reads one file alone, with no environment and no flags; variables that its values name need not be there.
pub fn load_file(path: &Path) -> Result<Loaded, ConfigError> {
    let options = LoadOptions { file: Some(path.to_owned()), without_variables: true, ..LoadOptions::default() };
    load_named(&options, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiled_in_defaults_are_complete() {
        assert_eq!(defaults().pool.size.get(), 64);
    }
}
