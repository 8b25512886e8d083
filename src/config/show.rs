//! Prints the effective configuration with the source of each value. Secrets are masked before anything is kept.

use std::collections::BTreeMap;
use std::fmt::Write;

use figment::value::{Dict, Value};
use indexmap::IndexMap;
use serde_json::{Value as Json, json};
use url::Url;

use crate::config::Config;
use crate::config::layer::get;
use crate::config::load::Loaded;
use crate::config::schema::{KEYS, Kind};
use crate::config::source::{Source, dotted};

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// One key, fit to be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The dotted path of its section.
    pub section: String,
    /// The dotted path of the key.
    pub key: String,
    /// The last segment of that, quoted where TOML wants it.
    pub name: String,
    /// The value, masked; nothing if the key is not set.
    pub value: Option<Json>,
    /// Where it came from.
    pub source: Source,
}

/// Every key of the table with its value, `*` replaced by the names there are.
pub fn entries(config: &Config, merged: &Dict, sources: &BTreeMap<String, Source>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for key in KEYS {
        let pattern: Vec<&str> = key.path.split('.').collect();
        for path in expand(&pattern, merged) {
            let Some((name, section)) = path.split_last() else { continue };
            // Most servers need no authentication: its keys are shown where there is a section of them.
            if section.last().is_some_and(|name| name == "auth") && get(merged, section).is_none() {
                continue;
            }
            let value = match get(merged, &path) {
                Some(value) if key.path.ends_with(".args") => Some(json!(masked_arguments(value))),
                Some(value) => Some(shown(key.kind, value)),
                None => derived(key.path, config),
            };
            let key = dotted(&path);
            let source = sources.get(&key).cloned().unwrap_or(Source::Default);
            entries.push(Entry { section: dotted(section), key, name: dotted(&[name]), value, source });
        }
    }
    entries
}

/// The paths that a pattern stands for.
fn expand(pattern: &[&str], merged: &Dict) -> Vec<Vec<String>> {
    let mut paths: Vec<Vec<String>> = vec![Vec::new()];
    for segment in pattern {
        let longer = |path: Vec<String>| -> Vec<Vec<String>> {
            let names = match *segment {
                "*" => {
                    let table = get(merged, &path).and_then(Value::as_dict);
                    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
                }
                name => vec![name.to_owned()],
            };
            names.into_iter().map(|name| [path.clone(), vec![name]].concat()).collect()
        };
        paths = paths.into_iter().flat_map(longer).collect();
    }
    paths
}

/// Values that follow from others where they are not set.
fn derived(path: &str, config: &Config) -> Option<Json> {
    match path {
        "lease.renew" => Some(json!(humantime::format_duration(config.lease.renew()).to_string())),
        "lease.sweep" => Some(json!(humantime::format_duration(config.lease.sweep()).to_string())),
        "pool.arbiters" => Some(json!(config.pool.arbiters())),
        _ => None,
    }
}

fn shown(kind: Kind, value: &Value) -> Json {
    match (kind, value.as_str()) {
        (Kind::Secret, _) => json!(MASK),
        (Kind::Url, Some(text)) => json!(masked_url(text)),
        _ => serde_json::to_value(value).unwrap_or(Json::Null),
    }
}

/// Arguments of a program, with those masked that go by the name of a secret: `--token=…` and what follows `--token`.
fn masked_arguments(value: &Value) -> Vec<String> {
    let mut secret_follows = false;
    let mask = |argument: &str| {
        let (name, value) = argument.split_once('=').map_or((argument, None), |(name, value)| (name, Some(value)));
        let lower = name.to_lowercase();
        let secret = ["token", "key", "secret", "password", "auth"].iter().any(|word| lower.contains(word));
        let follows = std::mem::replace(&mut secret_follows, secret && value.is_none() && name.starts_with('-'));
        match value {
            _ if follows => MASK.to_owned(),
            Some(_) if secret => format!("{name}={MASK}"),
            _ if argument.contains("://") => masked_url(argument),
            _ => argument.to_owned(),
        }
    };
    value.as_array().unwrap_or_default().iter().filter_map(Value::as_str).map(mask).collect()
}

/// An address without what may be a credential: the user part (the name of a Redis user stays) and the values of the
/// query. What is no address is masked whole.
pub fn masked_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return MASK.to_owned() };
    let redis = url.scheme().starts_with("redis");
    let user = !url.username().is_empty() && !redis;
    if !user && url.password().is_none() && url.query().is_none() {
        return text.to_owned();
    }
    let masked =
        (!user || url.set_username(MASK).is_ok()) && (url.password().is_none() || url.set_password(Some(MASK)).is_ok());
    if !masked {
        return MASK.to_owned();
    }
    if url.query().is_some() {
        let names: Vec<String> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
        url.query_pairs_mut().clear().extend_pairs(names.iter().map(|name| (name, MASK)));
    }
    url.into()
}

/// The configuration as TOML, each value with its source.
pub fn text(loaded: &Loaded) -> String {
    let mut sections: IndexMap<&str, Vec<&Entry>> = IndexMap::new();
    for entry in &loaded.entries {
        sections.entry(&entry.section).or_default().push(entry);
    }
    let mut out = String::new();
    for (section, entries) in sections {
        let lines: Vec<(String, String)> = entries.iter().map(|entry| line(entry)).collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= 60).max().unwrap_or(0);
        let gap = if out.is_empty() { "" } else { "\n" };
        let _ = writeln!(out, "{gap}[{section}]");
        for (line, source) in lines {
            let _ = writeln!(out, "{line:width$}  # {source}");
        }
    }
    out
}

fn line(entry: &Entry) -> (String, String) {
    match &entry.value {
        // JSON's texts, numbers, booleans and lists of texts are TOML's as well.
        Some(value) => (format!("{} = {value}", entry.name), entry.source.to_string()),
        None => (format!("# {}", entry.name), String::from("not set")),
    }
}

/// The configuration as one JSON object: each key with its value and its source, and the warnings.
pub fn json(loaded: &Loaded) -> String {
    let mut config = serde_json::Map::new();
    for entry in &loaded.entries {
        let mut shown = json!({"value": entry.value, "source": entry.source.kind()});
        match &entry.source {
            Source::Default | Source::Host => {}
            Source::File { path, line } => {
                shown["file"] = json!(path.display().to_string());
                shown["line"] = json!(line);
            }
            Source::Environment(name) | Source::Flag(name) => shown["name"] = json!(name),
        }
        config.insert(entry.key.clone(), shown);
    }
    format!("{:#}", json!({"config": config, "warnings": loaded.warnings}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_credential_in_an_address_is_masked() {
        for (address, masked) in [
            ("http://search:8080/mcp", "http://search:8080/mcp"),
            ("https://token@host/mcp", "https://***@host/mcp"),
            ("https://me:pass@host/mcp", "https://***:***@host/mcp"),
            ("http://host/mcp?key=s3cret&b=2,3#f", "http://host/mcp?key=***&b=***#f"),
            ("redis://me@host:6379/1", "redis://me@host:6379/1"),
            ("redis://me:pass@host:6379/1", "redis://me:***@host:6379/1"),
            ("hunter2", "***"),
        ] {
            assert_eq!(masked_url(address), masked);
        }
    }

    #[test]
    fn arguments_that_are_called_secret_are_masked() {
        let arguments =
            ["-y", "server", "--token", "hunter2", "--api-key=hunter2", "http://u:hunter2@h/", "--port", "1"];
        assert_eq!(
            masked_arguments(&Value::from(arguments.map(String::from).to_vec())),
            ["-y", "server", "--token", "***", "--api-key=***", "http://***:***@h/", "--port", "1"]
        );
    }
}
