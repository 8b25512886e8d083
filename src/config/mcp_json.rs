//! The `mcpServers` file of desktop clients as a layer: the members that name the same thing as ours take our names,
//! members that only a desktop has are left out with a warning. Every value knows its line.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use figment::value::{Dict, Value};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::config::error::Problem;
use crate::config::layer::Layer;
use crate::config::schema;
use crate::config::source::{self, Source, dotted};
use crate::config::{env, file, jsonc};
use crate::domain::node::nearest;

/// What the object with the servers is called, by desktop clients and by editors.
const TABLES: [&str; 2] = ["mcpServers", "servers"];
/// Ways to write a transport, and whether it is a child process.
const TRANSPORTS: [(&str, bool); 6] = [
    ("stdio", true),
    ("http", false),
    ("sse", false),
    ("streamable-http", false),
    ("streamableHttp", false),
    ("streamable_http", false),
];

/// Reads the file that `named` speaks of; nothing if it cannot be read or is no such file. Problems and warnings are
/// added to theirs.
pub fn read(path: &Path, named: Source, problems: &mut Vec<Problem>, warnings: &mut Vec<String>) -> Option<Layer> {
    let whole = |line, message: String| {
        Problem::new(path.display().to_string(), Source::File { path: path.to_owned(), line }, message)
    };
    let text = match file::text(path) {
        Ok(text) => text,
        Err(message) => {
            let message = format!("{} {message}", env::shown(path.as_os_str()));
            problems.push(Problem::new("mcp.config", named, message));
            return None;
        }
    };
    // A byte order mark, as some editors leave it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let text = &*jsonc::plain(text);
    let top = match serde_json::from_str::<Members<'_>>(text) {
        Ok(top) => top,
        Err(error) => {
            problems.push(whole(Some(error.line()), unreadable(&error)));
            return None;
        }
    };
    let mut reading = Reading { path, text, layer: Layer::default(), problems, warnings, seen: BTreeMap::new() };
    let tables: Vec<_> = top.0.iter().filter(|(name, _)| TABLES.contains(&name.as_str())).collect();
    if tables.is_empty() {
        let message = "has no object `mcpServers` (or `servers`), so it lists no tool servers";
        reading.problems.push(whole(None, message.to_owned()));
    }
    for (name, table) in tables {
        match serde_json::from_str::<Members<'_>>(table.get()) {
            Ok(servers) => servers.0.into_iter().for_each(|(server, members)| reading.server(name, &server, members)),
            Err(_) => reading.refuse(name, table, "must be an object with a member for each server"),
        }
    }
    Some(reading.layer)
}

/// Words about a text that is no JSON object, without the text.
fn unreadable(error: &serde_json::Error) -> String {
    match error.classify() {
        Category::Syntax | Category::Eof => format!("is no JSON: {error}"),
        Category::Data | Category::Io => String::from("is JSON, but no object"),
    }
}

/// The members of an object in their order, one that stands twice included, each as its author wrote it.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Objects;
        impl<'de> Visitor<'de> for Objects {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Objects).map(Self)
    }
}

struct Reading<'a> {
    path: &'a Path,
    text: &'a str,
    layer: Layer,
    problems: &'a mut Vec<Problem>,
    warnings: &'a mut Vec<String>,
    /// The line of each server.
    seen: BTreeMap<String, usize>,
}

impl Reading<'_> {
    fn source(&self, value: &RawValue) -> Source {
        Source::File { path: self.path.to_owned(), line: Some(self.line(value)) }
    }

    /// The line in which a value begins: it is a part of the text.
    fn line(&self, value: &RawValue) -> usize {
        let offset = (value.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        source::line_at(self.text, offset)
    }

    fn refuse(&mut self, key: &str, value: &RawValue, message: impl Into<String>) {
        self.problems.push(Problem::new(key, self.source(value), message));
    }

    fn server(&mut self, table: &str, name: &str, members: &RawValue) {
        let key = dotted(&[table, name]);
        let line = self.line(members);
        if let Some(first) = self.seen.insert(name.to_owned(), line) {
            let place = self.path.display();
            self.refuse(&key, members, format!("is given twice, here and at {place}:{first}; rename or remove one"));
            return;
        }
        let Ok(Members(members)) = serde_json::from_str::<Members<'_>>(members.get()) else {
            self.refuse(&key, members, "must be an object");
            return;
        };
        let mut server = Server::default();
        for (member, raw) in members {
            let full = format!("{key}.{}", dotted(&[&member]));
            if let Err(message) = self.member(&mut server, &full, &member, raw) {
                self.refuse(&full, raw, message);
            }
        }
        if server.disabled {
            return;
        }
        if let Some((written, child, source)) = &server.transport {
            let other = if *child { "url" } else { "command" };
            if server.values.contains_key(other) {
                let message = format!("is `{written}`, which does not go with the server's `{other}`");
                self.problems.push(Problem::new(format!("{key}.type"), source.clone(), message));
                return;
            }
        }
        let path = ["mcp", "servers", name];
        self.layer.ensure(&path);
        let lines = server.lines.into_iter().map(|(member, line)| (format!("{}.{member}", dotted(&path)), line));
        let mut path = path.map(str::to_owned).to_vec();
        let mut reading =
            file::Reading { path: self.path, lines: lines.collect(), layer: Layer::default(), problems: self.problems };
        reading.walk(&server.values, &mut path);
        let Layer { values, sources } = reading.layer;
        self.layer.join(Layer { values, sources });
    }

    fn member(&mut self, server: &mut Server, full: &str, member: &str, raw: &RawValue) -> Result<(), String> {
        let value: serde_json::Value =
            serde_json::from_str(raw.get()).map_err(|_| String::from("cannot be read; is it nested too deeply?"))?;
        let line = self.line(raw);
        match member {
            "type" | "transport" => {
                let known = || TRANSPORTS.iter().map(|(name, _)| *name);
                let text = value.as_str().ok_or("must be a text in quotes")?;
                let Some((name, child)) = TRANSPORTS.into_iter().find(|(name, _)| *name == text) else {
                    let near = nearest(text, known()).map(|near| format!("; did you mean `{near}`?"));
                    return Err(format!("must be one of stdio, http, sse{}", near.unwrap_or_default()));
                };
                server.transport = Some((name, child, self.source(raw)));
            }
            "disabled" => server.disabled |= value.as_bool().ok_or("must be true or false")?,
            "enabled" => server.disabled |= !value.as_bool().ok_or("must be true or false")?,
            "url" | "serverUrl" | "httpUrl" => server.put("url", Value::from(text(&value)?), line)?,
            "env" | "headers" => {
                let texts = value.as_object().ok_or("must be an object of texts")?;
                let mut values = Dict::new();
                for (name, value) in texts.iter().filter(|(_, value)| !value.is_null()) {
                    let text = match value {
                        serde_json::Value::Number(number) => number.to_string(),
                        serde_json::Value::Bool(value) => value.to_string(),
                        value => text(value).map_err(|why| format!("`{name}` {why}"))?.to_owned(),
                    };
                    server.lines.insert(format!("{member}.{}", dotted(&[name])), line);
                    values.insert(name.clone(), Value::from(text));
                }
                server.put(member, Value::from(values), line)?;
            }
            // What a desktop may not use, a worker may not either.
            "includeTools" => server.put("allow", list(&value)?, line)?,
            "excludeTools" | "disabledTools" => server.put("deny", list(&value)?, line)?,
            // Desktop clients count in seconds or in milliseconds, and do not say which.
            "timeout" if value.is_number() => self.warnings.push(format!(
                "{} ({}): a number without a unit is not used; write \"60s\"",
                full,
                self.source(raw)
            )),
            _ => {
                let path = ["mcp", "servers", "*", member];
                if schema::find(&path).is_none() && schema::members(&path).is_empty() {
                    self.warnings.push(format!("{} ({}): is not used by a worker", full, self.source(raw)));
                    return Ok(());
                }
                let value = Value::serialize(&value).map_err(|_| "cannot be read")?;
                server.put(member, value, line)?;
            }
        }
        Ok(())
    }
}

/// The members of one server so far, under our names.
#[derive(Default)]
struct Server {
    values: Dict,
    lines: BTreeMap<String, usize>,
    transport: Option<(&'static str, bool, Source)>,
    disabled: bool,
}

impl Server {
    fn put(&mut self, member: &str, value: Value, line: usize) -> Result<(), String> {
        self.lines.insert(member.to_owned(), line);
        match self.values.insert(member.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(format!("gives `{member}` a second time")),
        }
    }
}

fn list(value: &serde_json::Value) -> Result<Value, String> {
    let texts =
        value.as_array().and_then(|texts| texts.iter().map(serde_json::Value::as_str).collect::<Option<Vec<_>>>());
    Ok(Value::from(texts.ok_or_else(|| String::from("must be a list of texts"))?))
}

fn text(value: &serde_json::Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| String::from("must be a text in quotes"))
}
