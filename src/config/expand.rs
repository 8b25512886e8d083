//! `${NAME}` and `${NAME:-default}` in the values of tool servers. Pure: what a variable holds is the caller's to say,
//! and no text comes back out of an error but the name of a variable.

use std::borrow::Cow;

/// Why a text cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// A variable without a default is not set.
    #[error("`${{{0}}}` wants the variable {0}, which is not set; set it, or write `${{{0}:-default}}`")]
    Missing(String),
    /// The variable is not UTF-8.
    #[error("`${{{0}}}` wants the variable {0}, which is not UTF-8")]
    NotText(String),
    /// An editor would ask a person here.
    #[error("`${{input:…}}` asks a person, and nobody sits at a worker; write `${{NAME}}` and set that variable")]
    Asks,
    /// What stands in the braces is no variable's name.
    #[error("has `${{…}}` with no name of a variable in it; write `$${{` where `${{` itself is meant")]
    NoName,
    /// The brace is not closed.
    #[error("has `${{` without `}}`; write `$${{` where `${{` itself is meant")]
    Open,
}

/// What a variable holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// It is not set, or empty, which is the same.
    Unset,
    /// A text.
    Text(String),
    /// It is set to something that is no text.
    NotText,
}

/// The text with every `${NAME}` replaced. `$${` is `${`; any other `$` stands for itself, so that secrets with
/// dollars in them stay what they are. What is put in is not expanded again.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Variable) -> Result<Cow<'_, str>, ExpandError> {
    if !text.contains("${") {
        return Ok(Cow::Borrowed(text));
    }
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        expanded.push_str(&rest[..at]);
        let (inside, behind) = rest[at + 2..].split_once('}').ok_or(ExpandError::Open)?;
        expanded.push_str(&value(inside, &lookup)?);
        rest = behind;
    }
    expanded.push_str(rest);
    Ok(Cow::Owned(expanded))
}

fn value(inside: &str, lookup: &impl Fn(&str) -> Variable) -> Result<String, ExpandError> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if name.starts_with("input:") {
        return Err(ExpandError::Asks);
    }
    // The way in which some editors write the same.
    let name = name.strip_prefix("env:").unwrap_or(name);
    if !is_variable(name) {
        return Err(ExpandError::NoName);
    }
    match (lookup(name), default) {
        (Variable::Text(text), _) => Ok(text),
        (Variable::NotText, _) => Err(ExpandError::NotText(name.to_owned())),
        (Variable::Unset, Some(default)) => Ok(default.to_owned()),
        (Variable::Unset, None) => Err(ExpandError::Missing(name.to_owned())),
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expanded(text: &str) -> Result<String, ExpandError> {
        let lookup = |name: &str| match name {
            "HOST" => Variable::Text(String::from("example.org")),
            "TRICK" => Variable::Text(String::from("${HOST}")),
            "BYTES" => Variable::NotText,
            _ => Variable::Unset,
        };
        expand(text, lookup).map(Cow::into_owned)
    }

    #[test]
    fn variables_and_defaults_are_put_in_once() {
        for (text, expected) in [
            ("https://${HOST}/mcp", "https://example.org/mcp"),
            ("${HOST}${HOST}", "example.orgexample.org"),
            ("${env:HOST}", "example.org"),
            ("${PORT:-8080}", "8080"),
            ("${PORT:-}", ""),
            ("${PORT:-a:-b$}", "a:-b$"),
            ("${HOST:-x}", "example.org"),
            ("${TRICK}", "${HOST}"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_doubled_dollar_keeps_the_braces_and_a_lone_one_means_itself() {
        for (text, expected) in [
            ("$${HOST}", "${HOST}"),
            ("a$${HOST}${HOST}", "a${HOST}example.org"),
            ("pa$$word$", "pa$$word$"),
            ("$HOST", "$HOST"),
            ("$${", "${"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_said_without_the_text() {
        assert_eq!(expanded("${PORT}"), Err(ExpandError::Missing(String::from("PORT"))));
        assert_eq!(expanded("${BYTES}"), Err(ExpandError::NotText(String::from("BYTES"))));
        assert_eq!(expanded("${input:token}"), Err(ExpandError::Asks));
        for text in ["${}", "${a b}", "${9A}", "${s3cret!}", "${:-x}"] {
            let error = expanded(text).expect_err(text);
            assert_eq!(error, ExpandError::NoName, "{text}");
            assert!(!error.to_string().contains("s3cret"));
        }
        assert_eq!(expanded("a${HOST"), Err(ExpandError::Open));
    }

    proptest! {
        #[test]
        fn a_text_without_braces_is_left_alone(text in "[^{]*") {
            prop_assert_eq!(expanded(&text), Ok(text));
        }

        #[test]
        fn doubling_the_dollars_before_braces_keeps_any_text(text in "[a-z$}]{0,4}(\\$?\\{[A-Z}]{0,4}){0,4}") {
            prop_assume!(!text.contains("$${"));
            prop_assert_eq!(expanded(&text.replace("${", "$${")), Ok(text));
        }
    }
}
