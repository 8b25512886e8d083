//! Names of things: graphs, nodes, runs and stream entries, each a type of its own so that they cannot be swapped.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest id that is accepted, in characters.
pub const MAX_ID_CHARS: usize = 256;

/// Why a text cannot be an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// The text has more than [`MAX_ID_CHARS`] characters.
    #[error("has {0} characters, more than {MAX_ID_CHARS}")]
    TooLong(usize),
    /// The text has a control character, which would make keys and records ambiguous.
    #[error("contains a control character")]
    Control,
}

fn check(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    let chars = text.chars().count();
    if chars > MAX_ID_CHARS {
        return Err(InvalidId::TooLong(chars));
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidId::Control);
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the text: 1–256 characters, no control characters.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                check(&text)?;
                Ok(Self(text))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// One graph execution; the state key and the event's `execution_id` bear it.
    GraphId
);
id!(
    /// One node of a graph.
    NodeId
);
id!(
    /// One intended execution of a node: the identity that makes two deliveries the same work.
    RunId
);

/// The id of an entry in a Redis stream, `milliseconds-sequence`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(String);

impl EntryId {
    /// Takes the id as Redis wrote it.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When Redis added the entry: the milliseconds since 1970 that the id begins with.
    pub fn millis(&self) -> Option<u64> {
        self.0.split('-').next()?.parse().ok()
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One piece of work, the same through parking and takeover: stream, `/`, first entry id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct WorkId(String);

impl WorkId {
    /// Names the work that first entered `stream` as `origin`.
    pub fn new(stream: &str, origin: &EntryId) -> Self {
        Self(format!("{stream}/{origin}"))
    }

    /// Takes a name as it was written by [`Self::new`].
    pub fn from_text(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_to_256_characters_and_no_control_character() {
        assert_eq!(GraphId::new(""), Err(InvalidId::Empty));
        assert_eq!(GraphId::new("a\nb"), Err(InvalidId::Control));
        assert_eq!(GraphId::new("ä".repeat(257)), Err(InvalidId::TooLong(257)));
        assert!(GraphId::new("ä".repeat(256)).is_ok());
    }

    #[test]
    fn an_entry_id_tells_when_it_was_added() {
        assert_eq!(EntryId::new("1732345678901-3").millis(), Some(1_732_345_678_901));
        assert_eq!(EntryId::new("nonsense").millis(), None);
    }
}
