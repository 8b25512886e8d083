//! What is wrong with a configuration: every problem at once, each with the key as its author wrote it, where it
//! came from and the remedy. Values never get in here unless they are numbers, durations or names known in advance.

use std::fmt;

use crate::config::source::Source;

/// A configuration that the worker refuses to start with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// What is wrong, in the order of file, environment, flags and meaning; never empty.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// The exit code of a process that ends for this: starting it again is no use.
    pub const EXIT_CODE: u8 = 78;
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [only] => write!(out, "the configuration is refused: {only}"),
            all => {
                write!(out, "the configuration is refused for {} reasons:", all.len())?;
                all.iter().try_for_each(|problem| write!(out, "\n  - {problem}"))
            }
        }
    }
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The dotted path of the key, or the name of what is no key.
    pub key: String,
    /// Where the value came from, or nothing where a value is missing.
    pub source: Option<Source>,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl Problem {
    /// A value that cannot stand.
    pub fn new(key: impl Into<String>, source: Source, message: impl Into<String>) -> Self {
        Self { key: key.into(), source: Some(source), message: message.into() }
    }

    /// A value that is not there.
    pub fn missing(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), source: None, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, source, message } = self;
        match source {
            Some(Source::Environment(variable)) => write!(out, "{variable} (environment): {message}"),
            Some(Source::Flag(name)) => write!(out, "{name} (command line): {message}"),
            Some(source @ Source::File { path, .. }) if *key == path.display().to_string() => {
                write!(out, "{source}: {message}")
            }
            Some(source) => write!(out, "{key} ({source}): {message}"),
            None => write!(out, "{key} (not set): {message}"),
        }
    }
}
