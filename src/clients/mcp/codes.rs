//! The table of codes in the documents, held to the errors: that each code stands there, in its category, and that what
//! is said of trying again is what happens.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::auth::AuthError;
use super::error::McpError;
use crate::retry::Retry;

const PAGE: &str = include_str!("../../../docs/tools.md");
const SECTION: &str = "## When a server fails";
const SOURCES: [&str; 2] = [include_str!("error.rs"), include_str!("auth/error.rs")];

/// Errors of every code, and of every decision about it.
fn samples() -> Vec<McpError> {
    let server = || Arc::<str>::from("s");
    let text = String::new;
    let rpc = |code| McpError::Rpc { server: server(), code, message: text(), status: None };
    let spawn = |kind: io::ErrorKind| McpError::Spawn { server: server(), program: text(), source: kind.into() };
    let http = |status, may_have_run| McpError::Http {
        server: server(),
        status,
        message: text(),
        retry_after: None,
        may_have_run,
    };
    let mut samples = vec![
        McpError::Misconfigured { server: server(), problem: text() },
        spawn(io::ErrorKind::NotFound),
        spawn(io::ErrorKind::WouldBlock),
        McpError::Connect { server: server(), cause: text() },
        http(401, false),
        http(403, false),
        http(404, false),
        http(429, false),
        http(502, true),
        rpc(-32603),
        rpc(-32602),
        rpc(-32601),
        rpc(-32021),
        rpc(7),
        McpError::VersionRefused { server: server(), supported: Vec::new() },
        McpError::UnsupportedVersion { server: server(), version: text() },
        McpError::InputRequired { server: server(), what: text(), asked: text() },
        McpError::TaskLost { server: server(), what: text(), why: text() },
        McpError::TaskCancelled { server: server(), what: text(), message: text() },
        McpError::Protocol { server: server(), problem: text() },
        McpError::TooLarge { server: server(), what: "", limit: 0 },
    ];
    for may_have_run in [false, true] {
        samples.push(McpError::Closed { server: server(), cause: text(), may_have_run });
        samples.push(McpError::SessionLost { server: server(), may_have_run });
        samples.push(McpError::TimedOut { server: server(), what: text(), limit: Duration::ZERO, may_have_run });
    }
    let auth = [
        AuthError::Setting { server: server(), key: "", problem: text() },
        AuthError::Undiscovered { server: server(), problem: text() },
        AuthError::Untrusted { server: server(), problem: text() },
        AuthError::IssuerChanged { server: server(), bound: text(), offered: text() },
        AuthError::Refused { server: server(), issuer: text(), error: text(), description: text() },
        AuthError::Unavailable { server: server(), what: text(), cause: text(), retry_after: None },
        AuthError::Malformed { server: server(), what: text(), problem: text() },
        AuthError::TokenRefused { server: server(), remedy: text() },
        AuthError::InsufficientScope { server: server(), wanted: text(), problem: text() },
    ];
    samples.extend(auth.into_iter().map(McpError::from));
    samples
}

/// What the errors say of a code: its categories, and how often it is tried again.
fn truth() -> BTreeMap<String, (BTreeSet<String>, &'static str)> {
    let mut decisions: BTreeMap<String, (BTreeSet<String>, Vec<bool>)> = BTreeMap::new();
    for repeatable in [false, true] {
        for error in samples() {
            let retry = if repeatable { error.retry_if_repeatable() } else { error.retry() };
            let failure = error.into_failure(repeatable);
            let category = serde_json::to_value(failure.category).expect("categories serialise");
            let known = decisions.entry(failure.code.to_string()).or_default();
            known.0.insert(category.as_str().expect("by its name").to_owned());
            known.1.push(retry != Retry::Never);
        }
    }
    let often = |again: Vec<bool>| match (again.contains(&true), again.contains(&false)) {
        (true, false) => "yes",
        (false, _) => "no",
        (true, true) => "if safe",
    };
    decisions.into_iter().map(|(code, (categories, again))| (code, (categories, often(again)))).collect()
}

/// The rows of the table: code, category, whether it is tried again, when, what to do.
fn rows() -> Vec<Vec<&'static str>> {
    let section = PAGE.split(SECTION).nth(1).expect("the section is there").split("\n## ").next().expect("its text");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn the_table_says_of_every_code_what_is_done_about_it() {
    let mut told = BTreeMap::new();
    for row in rows() {
        let [code, categories, again, when, what_to_do] = row[..] else { panic!("{row:?}") };
        assert!(!when.is_empty() && !what_to_do.is_empty(), "{row:?}");
        let categories: BTreeSet<String> = categories.split(", ").map(str::to_owned).collect();
        let before = told.insert(code.trim_matches('`').to_owned(), (categories, again));
        assert_eq!(before, None, "{code} stands there twice");
    }
    assert_eq!(told, truth());
}

#[test]
fn every_code_that_is_written_down_has_an_error_here() {
    let mut written = BTreeSet::new();
    for source in SOURCES {
        let code = source.split("#[cfg(test)]").next().expect("the part that is not tests");
        written.extend(
            code.split("\"mcp_").skip(1).filter_map(|rest| rest.split_once('"')).map(|(rest, _)| format!("mcp_{rest}")),
        );
    }
    assert!(written.len() > 15, "{written:?}");
    assert_eq!(written, truth().into_keys().collect());
}
