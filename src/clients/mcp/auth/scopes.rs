//! A set of OAuth scopes. Which scopes are asked for is not decided here.

use std::collections::BTreeSet;
use std::fmt;

/// Scopes of one request for a token; a server that names more asks for too much.
const MAX_SCOPES: usize = 256;
/// Bytes of one scope.
const MAX_SCOPE: usize = 512;

/// Scopes, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scopes(BTreeSet<String>);

impl Scopes {
    /// From a list with blanks in between, as OAuth writes it.
    pub fn parse(text: &str) -> Self {
        text.split_ascii_whitespace().collect()
    }

    /// These and those.
    pub fn union(&self, other: &Self) -> Self {
        self.0.iter().chain(&other.0).map(String::as_str).collect()
    }

    /// Whether all of `other` are among these.
    pub fn contain(&self, other: &Self) -> bool {
        other.0.is_subset(&self.0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a text may be a scope: RFC 6749 §3.3.
pub fn is_scope(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_SCOPE
        && text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

impl<'a> FromIterator<&'a str> for Scopes {
    /// Leaves out what can be none, and what is too much.
    fn from_iter<I: IntoIterator<Item = &'a str>>(scopes: I) -> Self {
        let mut set = BTreeSet::new();
        for scope in scopes.into_iter().filter(|scope| is_scope(scope)) {
            if set.len() < MAX_SCOPES {
                set.insert(scope.to_owned());
            }
        }
        Self(set)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.0.iter().enumerate() {
            let gap = if at == 0 { "" } else { " " };
            write!(out, "{gap}{scope}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_a_set_that_grows_by_union() {
        let (one, two) = (Scopes::parse("b a  a"), Scopes::parse("c b"));
        assert_eq!(one.to_string(), "a b");
        assert_eq!(one.union(&two).to_string(), "a b c");
        assert!(one.union(&two).contain(&two) && !one.contain(&two));
        assert!(one.contain(&Scopes::default()) && Scopes::parse(" ").is_empty());
    }

    #[test]
    fn what_is_no_scope_and_what_is_too_much_is_left_out() {
        assert_eq!(Scopes::parse("ok no\"quote b\\c ünicode").to_string(), "ok");
        let many: String = (0..1000).map(|n| format!("s{n} ")).collect();
        assert_eq!(Scopes::parse(&many).0.len(), MAX_SCOPES);
    }
}
