//! Holds the documents to the program: examples are read by the code that would read them at work, command lines by
//! the program's own parser, and what needs no Redis is typed as it stands. What the words claim is for readers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser as _;
use da_node_executor::cli::Cli;
use da_node_executor::config::load::{LoadOptions, load, load_file};
use da_node_executor::domain::ids::EntryId;
use da_node_executor::domain::node::{Mode, NodeConfig};
use da_node_executor::domain::work::WorkItem;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What people read first.
fn readme() -> PathBuf {
    root().join("README.md")
}

/// Every document.
fn documents() -> Vec<PathBuf> {
    let pages = fs::read_dir(root().join("docs")).expect("there is a folder of documents");
    let pages = pages.map(|page| page.expect("the folder can be read").path());
    let mut documents: Vec<PathBuf> = pages.filter(|page| page.extension().is_some_and(|end| end == "md")).collect();
    documents.extend([readme(), root().join("examples/README.md"), root().join("CHANGELOG.md")]);
    documents
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A fenced block.
struct Block {
    /// File and line, for messages.
    place: String,
    language: String,
    text: String,
}

fn blocks(document: &Path) -> Vec<Block> {
    let name = document.strip_prefix(root()).expect("a document of this project").display().to_string();
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in read(document).lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let place = format!("{name}:{}", number + 1);
                open = Some(Block { place, language: language.to_owned(), text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{name}: a block does not end");
    blocks
}

fn in_language(languages: &[&str]) -> Vec<Block> {
    let all = documents().into_iter().flat_map(|document| blocks(&document));
    all.filter(|block| languages.contains(&block.language.as_str())).collect()
}

/// Reads a work item with its configuration; the mode if the item brings one.
fn check_item(place: &str, text: &str) -> Option<Mode> {
    let item = WorkItem::parse(text.as_bytes(), "executor.work", &EntryId::new("1-0"))
        .unwrap_or_else(|malformed| panic!("{place}: {malformed}"));
    item.config.map(|config| check_config(place, config.get()))
}

fn check_config(place: &str, text: &str) -> Mode {
    let (config, warnings) = NodeConfig::parse(text).unwrap_or_else(|failure| panic!("{place}: {failure}"));
    assert!(warnings.is_empty(), "{place}: {warnings:?}");
    config.mode().unwrap_or_else(|failure| panic!("{place}: {failure}"))
}

#[test]
fn every_json_example_is_what_it_claims_to_be() {
    let mut seen = [0, 0];
    for Block { place, text, .. } in in_language(&["json"]) {
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{place}: {error}"));
        let has = |name: &str| value.get(name).is_some();
        if value["type"] == "node.work" || has("node_id") && has("config") {
            check_item(&place, &text);
            seen[0] += 1;
        } else if has("tool_name") || has("llm_config") {
            check_config(&place, &text);
            seen[1] += 1;
        }
    }
    assert!(seen[0] >= 2 && seen[1] >= 4, "items and configurations were not recognised: {seen:?}");
}

#[test]
fn the_readme_shows_each_mode_once() {
    let text = read(&readme());
    let modes = text.split("\n## ").find(|section| section.starts_with("Modes")).expect("a section about modes");
    let shown: Vec<Mode> = blocks(&readme())
        .iter()
        .filter(|block| block.language == "json" && modes.contains(&block.text))
        .map(|block| check_config(&block.place, &block.text))
        .collect();
    assert_eq!(shown, [Mode::Tool, Mode::Llm, Mode::Agent]);
}

#[test]
fn every_item_in_a_command_line_is_an_item() {
    let mut seen = 0;
    for Block { place, text, .. } in in_language(&["bash", "console"]) {
        for (at, _) in text.match_indices(" data '") {
            let item = text[at + 7..].split('\'').next().expect("a first part");
            check_item(&place, item).unwrap_or_else(|| panic!("{place}: the item has no configuration"));
            seen += 1;
        }
    }
    assert!(seen > 0, "no XADD was found");
}

#[test]
fn every_sample_node_can_be_read_and_stands_in_the_readmes_table() {
    let folder = fs::read_dir(root().join("examples")).expect("there are examples");
    let (mut modes, mut samples) = (BTreeSet::new(), BTreeSet::new());
    for path in folder.map(|entry| entry.expect("the folder can be read").path()) {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
        match name.rsplit_once('.') {
            Some(("mcp", "json")) => {
                let flags = vec![(String::from("mcp.config"), path.display().to_string())];
                let loaded = load(&LoadOptions { flags, ..LoadOptions::default() });
                assert!(loaded.unwrap_or_else(|error| panic!("{error}")).config.mcp.servers.contains_key("demo"));
            }
            Some((stem, "json")) if stem != "state" => {
                samples.insert(stem.to_owned());
                modes.extend(check_item(name, &read(&path)).map(Mode::as_str));
            }
            Some((_, "toml")) => drop(load_file(&path).unwrap_or_else(|error| panic!("{name}: {error}"))),
            _ => {}
        }
    }
    assert_eq!(modes.into_iter().collect::<Vec<_>>(), ["agent", "llm", "tool"]);
    let text = read(&readme());
    let rows = text.lines().skip_while(|line| !line.starts_with(" NODE ")).skip(1).take_while(|line| *line != "```");
    let shown: BTreeSet<String> = rows.filter_map(|row| row.split_whitespace().next()).map(String::from).collect();
    assert_eq!(shown, samples);
}

#[test]
fn every_piece_of_configuration_is_good() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let blocks = in_language(&["toml"]);
    assert!(!blocks.is_empty());
    for (number, Block { place, text, .. }) in blocks.into_iter().enumerate() {
        let path = folder.path().join(format!("{number}.toml"));
        fs::write(&path, text).expect("the folder can be written");
        load_file(&path).unwrap_or_else(|error| panic!("{place}: {error}"));
    }
}

/// A command line of ours, without what a shell takes for itself.
struct Line {
    place: String,
    words: Vec<String>,
}

/// Splits as a shell does, as far as these documents go: quotes, comments, and an end at `|`, `>`, `&` and `;`.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in line.chars() {
        let fresh = words.last().is_some_and(String::is_empty);
        match (quote, character) {
            (None, '#') if fresh => break,
            (None, '|' | '>' | '&' | ';') => break,
            (None, ' ') if fresh => {}
            (None, ' ') => words.push(String::new()),
            (None, '\'' | '"') => quote = Some(character),
            (Some(end), _) if end == character => quote = None,
            _ => words.last_mut().expect("there is always one").push(character),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn our_lines() -> Vec<Line> {
    let mut lines = Vec::new();
    for Block { place, text, .. } in in_language(&["bash", "console", "sh"]) {
        for line in text.replace("\\\n", " ").lines() {
            let mut words = words(line.strip_prefix("$ ").unwrap_or(line));
            let set = words.iter().take_while(|word| word.split_once('=').is_some_and(|(name, _)| is_variable(name)));
            words.drain(..set.count());
            if words.first().is_some_and(|program| program.rsplit('/').next() == Some("executor-worker")) {
                lines.push(Line { place: place.clone(), words });
            }
        }
    }
    // Commands in running text.
    for document in documents() {
        for (number, line) in read(&document).lines().enumerate() {
            for code in line.split('`').skip(1).step_by(2).filter(|code| code.starts_with("executor-worker ")) {
                lines.push(Line { place: format!("{}:{}", document.display(), number + 1), words: words(code) });
            }
        }
    }
    lines
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
}

#[test]
fn every_command_line_is_understood_by_the_program() {
    let lines = our_lines();
    assert!(lines.len() > 15, "only {} command lines were found", lines.len());
    for Line { place, words } in lines {
        if let Err(error) = Cli::try_parse_from(&words) {
            // `--help` and `--version` are answered in place of a command.
            assert!(!error.use_stderr(), "{place}: {words:?}: {error}");
        }
    }
}

#[test]
fn what_needs_no_redis_runs_as_it_stands() {
    let binary = Path::new(env!("CARGO_BIN_EXE_executor-worker"));
    let folder = binary.parent().expect("a program lies in a folder");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path)));
    let path = path.expect("folders without colons");
    let alone = ["exec", "tools", "completions", "--help"];
    let lines = blocks(&readme()).into_iter().chain(blocks(&root().join("examples/README.md")));
    let mut run = BTreeSet::new();
    for Block { place, text, .. } in lines.filter(|block| block.language == "bash") {
        for line in text.lines() {
            let words = words(line);
            let [program, subcommand, ..] = words.as_slice() else { continue };
            if program != "executor-worker" || !alone.contains(&subcommand.as_str()) {
                continue;
            }
            let answer = Command::new(binary)
                .args(&words[1..])
                .current_dir(root())
                .env_clear()
                .env("PATH", &path)
                .output()
                .expect("the program can be started");
            let told = String::from_utf8_lossy(&answer.stderr);
            assert!(answer.status.success(), "{place}: `{line}` ended with {}: {told}", answer.status);
            assert!(!answer.stdout.is_empty(), "{place}: `{line}` answers nothing");
            run.insert(subcommand.clone());
        }
    }
    assert!(run.contains("exec") && run.contains("tools"), "{run:?}");
}

#[test]
fn every_metric_is_documented_and_every_documented_one_exists() {
    let source = include_str!("../src/metrics.rs");
    let registered: BTreeSet<&str> = source
        .split("r.register")
        .skip(1)
        .filter_map(|call| call.split('"').nth(1))
        .filter(|name| name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'))
        .collect();
    assert!(registered.len() > 15, "{registered:?}");
    let contract = read(&root().join("docs/contract.md"));
    let documented = metrics_in(&contract);
    let missing: Vec<_> = registered.iter().filter(|name| !documented.contains(**name)).collect();
    assert!(missing.is_empty(), "docs/contract.md does not document the metrics {missing:?}");
    for document in documents() {
        for name in metrics_in(&read(&document)) {
            assert!(registered.contains(name.as_str()), "{}: there is no metric {name}", document.display());
        }
    }
}

/// The names of metrics in inline code, without prefix, unit and the ending of their kind.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let codes = text.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("executor_"));
    let names = codes.map(|code| code.split('{').next().expect("a first part"));
    names
        .map(|name| ["_total", "_seconds", "_info"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name))
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn every_link_to_a_file_leads_somewhere() {
    for document in documents() {
        let text = read(&document);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().expect("a first part");
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { document.clone() } else { document.with_file_name("").join(file) };
            assert!(path.exists(), "{}: there is no {target}", document.display());
            if !anchor.is_empty() {
                let headings = read(&path);
                let mut headings = headings.lines().filter(|line| line.starts_with('#')).map(anchor_of);
                assert!(headings.any(|heading| heading == anchor), "{}: no heading {target}", document.display());
            }
        }
    }
}

/// The anchor that a heading gets.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter))
        .collect::<String>()
        .replace(' ', "-")
}
