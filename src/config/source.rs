//! Where a value came from: one [`Source`] for each key, and the line numbers of a TOML text.
//! Reading the values is not done here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use toml_edit::{ImDocument, TableLike};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Compiled in, or derived from another key's value.
    Default,
    /// The name of the host.
    Host,
    /// A configuration file.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line, counted from one.
        line: Option<usize>,
    },
    /// A variable of the environment; one that ends in `_FILE` names the file with the value.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl Source {
    /// Whether nobody chose the value.
    pub fn is_default(&self) -> bool {
        matches!(self, Self::Default | Self::Host)
    }

    /// The kind of source in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Host => "host",
            Self::File { .. } => "file",
            Self::Environment(_) => "environment",
            Self::Flag(_) => "flag",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(out, "default"),
            Self::Host => write!(out, "name of the host"),
            Self::File { path, line: Some(line) } => write!(out, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(out, "{}", path.display()),
            Self::Environment(variable) => write!(out, "environment {variable}"),
            Self::Flag(name) => write!(out, "flag {name}"),
        }
    }
}

/// A key path as it stands in a file: segments with dots between them, quoted where TOML wants it.
pub fn dotted<S: AsRef<str>>(path: &[S]) -> String {
    let bare =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let segments = path.iter().map(|segment| match segment.as_ref() {
        text if bare(text) => text.to_owned(),
        text => format!("{text:?}"),
    });
    segments.collect::<Vec<_>>().join(".")
}

/// The line of every key and table of a TOML text, by dotted path; nothing where the text is no TOML.
pub fn lines(text: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    if let Ok(document) = ImDocument::parse(text) {
        walk(document.as_table(), text, &mut Vec::new(), &mut found);
    }
    found
}

/// The line, counted from one, in which the byte at `offset` stands.
pub fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn walk(table: &dyn TableLike, text: &str, path: &mut Vec<String>, found: &mut BTreeMap<String, usize>) {
    for (name, item) in table.iter() {
        path.push(name.to_owned());
        let span = table.get_key_value(name).and_then(|(key, _)| key.span()).or_else(|| item.span());
        if let Some(span) = span {
            found.insert(dotted(path), line_at(text, span.start));
        }
        if let Some(inner) = item.as_table_like() {
            walk(inner, text, path, found);
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_key_has_its_line() {
        let found = lines("a = 1\n\n[b]\nc.d = \"\"\"\n\n\"\"\"\ne = { f = 2 }\n[b.\"g h\"]\ni = 3\n");
        let line = |key: &str| found.get(key).copied();
        assert_eq!(line("a"), Some(1));
        assert_eq!(line("b.c.d"), Some(4));
        assert_eq!(line("b.e.f"), Some(7));
        assert_eq!(line("b.\"g h\".i"), Some(9));
    }
}
