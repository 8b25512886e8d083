//! A configuration file as a layer: every value with its line, unknown keys and values of the wrong type told and
//! left out. What the parser says about a text is told without the text.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::Dict;

use crate::config::error::Problem;
use crate::config::layer::Layer;
use crate::config::schema::{self, KEYS};
use crate::config::source::{self, Source, dotted};
use crate::domain::node::nearest;

/// The longest file that is read.
const MAX_BYTES: u64 = 1024 * 1024;

/// Reads a file; nothing if it cannot be read or is no TOML. Every problem is added to `problems`. `named` is what
/// named the file, which is to blame if that cannot be read.
pub fn read(path: &Path, named: Option<&Source>, problems: &mut Vec<Problem>) -> Option<Layer> {
    let whole = |line, message: String| {
        Problem::new(path.display().to_string(), Source::File { path: path.to_owned(), line }, message)
    };
    let text = match text(path) {
        Ok(text) => text,
        Err(message) => {
            let key = path.display().to_string();
            problems.push(match named {
                Some(named) => Problem::new(&key, named.clone(), format!("{key} {message}")),
                None => whole(None, message),
            });
            return None;
        }
    };
    match Toml::from_str::<Dict>(&text) {
        Ok(values) => {
            let lines = source::lines(&text);
            let mut reading = Reading { path, lines, layer: Layer::default(), problems };
            reading.walk(&values, &mut Vec::new());
            Some(reading.layer)
        }
        Err(error) => {
            let line = error.span().map(|span| source::line_at(&text, span.start));
            let message = error.message().lines().next().unwrap_or_default();
            problems.push(whole(line, format!("is no TOML: {message}")));
            None
        }
    }
}

/// The text of a file, if it is not too long.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let mut content = Vec::new();
    File::open(path).map_err(cannot)?.take(MAX_BYTES + 1).read_to_end(&mut content).map_err(cannot)?;
    if content.len() as u64 > MAX_BYTES {
        return Err(format!("is longer than {MAX_BYTES} bytes, so it is no configuration"));
    }
    String::from_utf8(content).map_err(|_| String::from("is not UTF-8"))
}

/// A file on its way into a layer.
pub(super) struct Reading<'a> {
    /// The file.
    pub(super) path: &'a Path,
    /// The line of each key, by dotted path.
    pub(super) lines: BTreeMap<String, usize>,
    /// What was good so far.
    pub(super) layer: Layer,
    /// What was not.
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Reading<'_> {
    /// Takes in the values under a path.
    pub(super) fn walk(&mut self, values: &Dict, path: &mut Vec<String>) {
        for (name, value) in values {
            path.push(name.clone());
            let key = dotted(path);
            let source = Source::File { path: self.path.to_owned(), line: self.lines.get(&key).copied() };
            match (schema::find(path), value.as_dict()) {
                (Some(known), _) => match known.kind.check(value) {
                    Ok(()) => self.layer.insert(path, value.clone(), source),
                    Err(message) => self.problems.push(Problem::new(key, source, message)),
                },
                (None, Some(inner)) if !schema::members(path).is_empty() => {
                    // A section that sets nothing is still there: a server of defaults alone, an empty list of headers.
                    self.layer.ensure(path);
                    self.walk(inner, path);
                }
                (None, None) if !schema::members(path).is_empty() => {
                    self.problems.push(Problem::new(&key, source, format!("is a section: write [{key}]")));
                }
                (None, _) => {
                    let message = unknown(path);
                    self.problems.push(Problem::new(key, source, message));
                }
            }
            path.pop();
        }
    }
}

/// Why a key is refused, with the one that was probably meant.
pub fn unknown<S: AsRef<str>>(path: &[S]) -> String {
    let Some((name, above)) = path.split_last() else { return String::from("there is no such key") };
    let name = name.as_ref();
    let siblings = schema::members(above);
    if let Some(near) = nearest(name, siblings.iter().copied()) {
        return format!("there is no such key; did you mean `{near}`?");
    }
    // The right name in the wrong section.
    if let Some(elsewhere) = KEYS.iter().find(|key| !key.is_free() && key.path.ends_with(&format!(".{name}"))) {
        return format!("there is no such key; did you mean `{}`?", elsewhere.path);
    }
    if siblings.is_empty() {
        return String::from("there is no such section; `executor-worker config show` lists every key");
    }
    format!("there is no such key; known here are {}", siblings.into_iter().collect::<Vec<_>>().join(", "))
}
