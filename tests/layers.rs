//! Holds the architecture: which layer may name which, which crate belongs to which layer, and that every file says
//! what lives in it. It reads the sources as text, so it sees every path: tests, macros and attributes included.

#[path = "layers/paths.rs"]
mod paths;

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use self::paths::{paths, tokens};

/// Everything above the ports and below the program.
const LOWER: &[&str] =
    &["domain", "retry", "failpoint", "config", "ports", "clients", "tools", "modes", "health", "metrics", "telemetry"];

/// The layers, and what each may name beside itself; `clients::http` is that part of a layer alone.
const LAYERS: &[(&str, &[&[&str]])] = &[
    ("domain", &[&["retry"]]),
    ("retry", &[&["domain"]]),
    ("failpoint", &[]),
    ("config", &[&["domain", "retry"]]),
    ("ports", &[&["domain", "retry"]]),
    ("clients", &[&["config", "domain", "retry", "failpoint", "ports"]]),
    ("tools", &[&["config", "domain", "retry", "ports", "clients::http"]]),
    ("modes", &[&["config", "domain", "retry", "failpoint", "ports"]]),
    ("health", &[&["config", "domain"]]),
    ("metrics", &[&["config", "domain"]]),
    ("telemetry", &[&["config", "domain"]]),
    ("actors", &[LOWER]),
    ("http", &[&["config", "domain", "health", "metrics", "telemetry", "clients"]]),
    ("app", &[LOWER, &["actors", "http"]]),
    ("cli", &[LOWER, &["actors", "http", "app"]]),
    ("main", &[LOWER, &["actors", "http", "app", "cli"]]),
];

/// Crates that belong to some layers, or to parts of them, alone.
const CRATES: &[(&str, &[&str])] = &[
    ("actix", &["actors", "app", "main"]),
    // Subcommands such as `dev` and `exec` run a small system of their own.
    ("actix_rt", &["actors", "app", "cli", "main"]),
    ("actix_web", &["http", "app", "main"]),
    ("redis", &["clients::redis"]),
    ("reqwest", &["clients"]),
    ("anyhow", &["app", "cli", "main"]),
];

/// What the vocabulary and its rules must not name: they are values, without devices, threads and waiting.
const PURE: &[&str] = &["domain", "retry"];
const IMPURE: &[&str] = &[
    "tokio",
    "tokio_util",
    "futures_util",
    "jsonrpsee",
    "std::env",
    "std::fs",
    "std::future",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
];

#[test]
fn imports_point_down_only_and_every_file_says_what_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = sources(&root);
    assert!(files.len() > 10, "the sources are not at {}", root.display());
    let violations = files.iter().flat_map(|file| {
        let text = fs::read_to_string(file).expect("a source file can be read");
        check(file.strip_prefix(&root).expect("found below the root"), &text)
    });
    let shown: Vec<String> = violations.map(|violation| violation.to_string()).collect();
    assert!(shown.is_empty(), "\n{}\n", shown.join("\n"));
}

/// Something that a file must not do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Violation {
    file: PathBuf,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file.display(), self.line, self.rule)
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    paths.sort();
    let (folders, files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The module that a file is: `clients/http/hosts.rs` is `clients::http::hosts`, the crate's root is empty.
fn module_of(file: &Path) -> Vec<String> {
    let stem = file.with_extension("");
    let mut parts: Vec<String> = stem.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") || parts == ["lib"] {
        parts.pop();
    }
    parts
}

fn check(file: &Path, text: &str) -> Vec<Violation> {
    let module = module_of(file);
    let mut violations = Vec::new();
    let mut seen = HashSet::new();
    let mut report = |line: usize, rule: String| {
        if seen.insert((line, rule.clone())) {
            violations.push(Violation { file: file.to_owned(), line, rule });
        }
    };
    if !text.starts_with("//!") {
        report(1, String::from("the file does not open with `//!` that says what lives here"));
    }
    // The crate's root lists the modules and names nothing.
    let Some(layer) = module.first() else { return violations };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| name == layer) else {
        report(1, format!("`{layer}` is in no layer; give it a place in tests/layers.rs"));
        return violations;
    };
    let tokens = tokens(text);
    for path in paths(&tokens, &module) {
        let shown = path.parts.join("::");
        if path.own {
            let target = path.parts.first().map_or("*", String::as_str);
            let is_layer = LAYERS.iter().any(|(name, _)| *name == target);
            if target == "*" {
                report(path.line, String::from("name what is meant of the crate's root, not all of it"));
            } else if is_layer
                && target != layer
                && !allowed.iter().copied().flatten().any(|part| begins_with(&path.parts, part))
            {
                report(path.line, format!("`{layer}` may not name `{shown}`"));
            }
            continue;
        }
        if let Some((name, homes)) = CRATES.iter().find(|(name, _)| path.parts[0] == *name)
            && !homes.iter().any(|home| begins_with(&module, home))
        {
            report(path.line, format!("the crate `{name}` belongs in {} alone", homes.join(", ")));
        }
        if PURE.contains(&layer.as_str()) && IMPURE.iter().any(|part| begins_with(&path.parts, part)) {
            report(path.line, format!("`{layer}` has no I/O and does not wait, so it may not name `{shown}`"));
        }
    }
    let waiting = tokens.iter().filter(|token| matches!(token.text.as_str(), "async" | "await"));
    for token in waiting.filter(|_| PURE.contains(&layer.as_str())) {
        report(token.line, format!("`{layer}` has no I/O and does not wait, so it has no `{}`", token.text));
    }
    violations
}

/// Whether a path begins with all parts of another one, written with `::`.
fn begins_with(path: &[String], prefix: &str) -> bool {
    let mut parts = path.iter();
    prefix.split("::").all(|part| parts.next().is_some_and(|own| own == part))
}

/// The lines at which a file with this text breaks a rule, its first line aside.
fn lines(file: &str, text: &str) -> Vec<usize> {
    check(Path::new(file), &format!("//! A file.\n{text}")).into_iter().map(|violation| violation.line - 1).collect()
}

#[test]
fn a_planted_violation_is_found_with_file_line_and_rule() {
    let text = "//! A client.\n\nuse crate::domain::ids::NodeId;\nuse crate::actors::pool::Pool;\n";
    let found: Vec<String> = check(Path::new("clients/llm/mod.rs"), text).iter().map(Violation::to_string).collect();
    assert_eq!(found, ["src/clients/llm/mod.rs:4: `clients` may not name `actors::pool::Pool`"]);
}

#[test]
fn every_way_to_write_a_path_is_seen() {
    for planted in [
        "use crate::{domain::ids, actors};",
        "use crate::{\n domain::{ids, node}, actors::{self, pool::Pool as P},\n};",
        "use crate::actors as a;",
        "pub use da_node_executor::actors;",
        "fn f() -> crate::actors::Pool { todo!() }",
        "fn f() { let x = <crate::actors::Pool>::new(); }",
        "#[derive(crate::actors::Macro)] struct S;",
        "use super::super::actors;",
        "mod tests { use super::super::super::actors::Pool; }",
        "mod tests { mod deep { fn f() { super::super::super::super::actors::run() } } }",
        "use crate::*;",
        "use actix::Actor;",
        "use ::actix::prelude::*;",
        "use {actix, serde};",
        "extern crate actix;",
        "#[actix::test] async fn t() {}",
        "fn f() { actix::spawn(async {}); }",
        "use redis as r;",
        "fn f() -> anyhow::Result<()> { Ok(()) }",
    ] {
        assert!(!lines("clients/llm/mod.rs", planted).is_empty(), "{planted}");
    }
}

#[test]
fn what_only_looks_like_a_path_is_none() {
    for innocent in [
        "// use crate::actors;",
        "/* crate::actors /* nested */ crate::actors */",
        "/// See [`crate::actors`].\nfn f() {}",
        "const S: &str = \"crate::actors \\\" actix::spawn\";",
        "const S: &str = r#\"crate::actors \" actix::spawn\"#;",
        "const B: &[u8] = b\"crate::actors\"; const C: char = '\"'; const D: u8 = b'\\''; // crate::actors",
        "fn f<'actix>(x: &'actix str) -> impl Fn() + use<'actix> { move || drop(x) }",
        "use crate::clients::redis; fn f() { redis::connect() }",
        "mod redis; fn f() { self::redis::connect(); redis::connect() }",
        "use super::redis; use super::super::redis::Link; fn f() { redis::connect() }",
        "fn f() { crate::clients::redis::connect(); x.actix::<u8>(); actix.run(); wire::actix::x() }",
        "mod tests { use super::*; fn f() { super::super::redis::connect() } }",
        "use crate::macro_of_the_root;",
        "struct S { redis: u8 } fn f(s: S) { let r#async = s.redis; }",
    ] {
        let found = check(Path::new("clients/llm/mod.rs"), &format!("//! A file.\n{innocent}"));
        assert!(found.is_empty(), "{innocent}\n{found:?}");
    }
}

#[test]
fn lines_are_counted_through_comments_and_strings() {
    let text = "/* one\n two */\nconst S: &str = \"\n\n\";\nconst R: &str = r\"\n\";\nuse crate::cli::Cli;";
    assert_eq!(lines("modes/agent.rs", text), [8]);
}

#[test]
fn each_layer_has_its_own_rules() {
    let refused = |file: &str, text: &str| assert_eq!(lines(file, text), [1], "{file}: {text}");
    let fine = |file: &str, text: &str| assert_eq!(lines(file, text), [0; 0], "{file}: {text}");
    refused("domain/node.rs", "use crate::config::Config;");
    refused("domain/node.rs", "use std::{fmt, fs};");
    refused("domain/node.rs", "async fn f() {}");
    refused("retry.rs", "fn f() { std::thread::sleep(d) }");
    fine("domain/node.rs", "use crate::retry::Retry; use std::{fmt, time::Duration};");
    refused("tools/registry.rs", "use crate::clients::redis::Link;");
    refused("tools/registry.rs", "use crate::clients::{http, redis};");
    refused("tools/builtin/http_request.rs", "use reqwest::Client;");
    fine("tools/builtin/http_request.rs", "use crate::clients::http::{FetchClient, Method};");
    refused("clients/llm/mod.rs", "use redis::Client;");
    fine("clients/redis/state.rs", "use redis::{Client, aio};");
    fine("clients/http.rs", "use reqwest::header;");
    refused("modes/tool.rs", "use crate::clients::http;");
    refused("http/api.rs", "use crate::actors::pool;");
    fine("http/mod.rs", "use actix_web::web; use crate::health::Health; use crate::clients::llm;");
    refused("actors/pool.rs", "use crate::http::serve;");
    refused("actors/pool.rs", "use anyhow::Context;");
    fine("actors/pool.rs", "use actix::Actor; use crate::{modes, clients, tools};");
    refused("cli/run.rs", "use actix_web::web;");
    refused("cli/run.rs", "use actix::Addr;");
    fine("cli/run.rs", "use actix_rt::System; use crate::app; use anyhow::Result;");
    refused("app/mod.rs", "use crate::cli::Cli;");
    fine("main.rs", "use da_node_executor::cli; use da_node_executor::{app, config}; fn main() {}");
}

#[test]
fn a_module_without_a_layer_and_a_file_without_a_purpose_are_found() {
    let rule = |file: &str, text: &str| check(Path::new(file), text).remove(0).rule;
    assert!(rule("novelty.rs", "//! Something new.\n").starts_with("`novelty` is in no layer"));
    assert!(rule("domain/a.rs", "// A remark.\n").starts_with("the file does not open with `//!`"));
    assert!(rule("lib.rs", "pub mod domain;\n").starts_with("the file does not open with `//!`"));
}
