//! The official conformance suite of the Model Context Protocol against the library's client, by way of
//! `examples/mcp_conformance.rs`: what passes, what is left out, and why. The two lists together are the suite's own.

#[path = "mcp/example.rs"]
mod example;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use example::example;

/// The versions that a scenario of an extension is played in: it has none of its own.
const EXTENSION: &[&str] = &["2026-07-28"];

/// Scenarios that pass, with every version they are listed for.
const PASSES: &[(&str, &[&str])] = &[
    ("initialize", &["2025-06-18", "2025-11-25"]),
    ("tools_call", &["2025-06-18", "2025-11-25", "2026-07-28"]),
    ("sse-retry", &["2025-11-25"]),
    ("elicitation-sep1034-client-defaults", &["2025-11-25"]),
    ("request-metadata", &["2026-07-28"]),
    ("http-standard-headers", &["2026-07-28"]),
    ("http-custom-headers", &["2026-07-28"]),
    ("http-invalid-tool-headers", &["2026-07-28"]),
    ("sep-2322-client-request-state", &["2026-07-28"]),
    ("json-schema-ref-no-deref", &["2026-07-28"]),
    ("json-schema-2020-12-preservation", &["2025-11-25", "2026-07-28"]),
    ("auth/client-credentials-basic", EXTENSION),
    ("auth/client-credentials-jwt", EXTENSION),
    ("auth/wif-jwt-bearer", EXTENSION),
    // What the enterprise's platform does for a person who has logged in, the client under test does itself; the token
    // by which it vouches is then used by the library.
    ("auth/enterprise-managed-authorization", EXTENSION),
    // The suite sends the browser back at once, so the client follows one redirect in place of a person; what comes
    // before and after, discovery, scopes, the binding to an issuer and the retries, is the library's.
    ("auth/metadata-default", &["2025-11-25", "2026-07-28"]),
    ("auth/metadata-var1", &["2025-11-25", "2026-07-28"]),
    ("auth/metadata-var2", &["2025-11-25", "2026-07-28"]),
    ("auth/metadata-var3", &["2025-11-25", "2026-07-28"]),
    ("auth/basic-cimd", &["2025-11-25", "2026-07-28"]),
    ("auth/scope-from-www-authenticate", &["2025-11-25", "2026-07-28"]),
    ("auth/scope-from-scopes-supported", &["2025-11-25", "2026-07-28"]),
    ("auth/scope-omitted-when-undefined", &["2025-11-25", "2026-07-28"]),
    ("auth/scope-step-up", &["2025-11-25", "2026-07-28"]),
    ("auth/scope-retry-limit", &["2025-11-25", "2026-07-28"]),
    ("auth/pre-registration", &["2025-11-25", "2026-07-28"]),
    ("auth/token-endpoint-auth-basic", &["2025-06-18", "2025-11-25", "2026-07-28"]),
    ("auth/token-endpoint-auth-post", &["2025-06-18", "2025-11-25", "2026-07-28"]),
    ("auth/token-endpoint-auth-none", &["2025-06-18", "2025-11-25", "2026-07-28"]),
    ("auth/2025-03-26-oauth-metadata-backcompat", &["2025-03-26"]),
    ("auth/2025-03-26-oauth-endpoint-fallback", &["2025-03-26"]),
    ("auth/resource-mismatch", &["2026-07-28"]),
    ("auth/offline-access-scope", &["2026-07-28"]),
    ("auth/offline-access-not-supported", &["2026-07-28"]),
    ("auth/authorization-server-migration", &["2026-07-28"]),
    ("auth/iss-supported", &["2026-07-28"]),
    ("auth/iss-not-advertised", &["2026-07-28"]),
    ("auth/iss-supported-missing", &["2026-07-28"]),
    ("auth/iss-wrong-issuer", &["2026-07-28"]),
    ("auth/iss-unexpected", &["2026-07-28"]),
    ("auth/iss-normalized", &["2026-07-28"]),
    ("auth/metadata-issuer-mismatch", &["2026-07-28"]),
];

const NO_SKILLS: &str = "skills are an extension that a worker of tools does not offer";
const NO_BOUND_TOKENS: &str =
    "a person logs in with a browser for a token that is bound to a key (DPoP, RFC 9449); a worker's are bearer tokens";

/// Scenarios that are left out, and why. A name that ends with `*` stands for all that begin like it.
const LEFT_OUT: &[(&str, &str)] =
    &[("auth/dpop", NO_BOUND_TOKENS), ("auth/dpop-nonce", NO_BOUND_TOKENS), ("sep-2640-client-*", NO_SKILLS)];

fn suite() -> Command {
    let cache = std::env::var_os("EXECUTOR_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"), PathBuf::from);
    let modules = cache.join("conformance/node_modules");
    let program = modules.join("@modelcontextprotocol/conformance/dist/index.js");
    assert!(program.exists(), "{} is missing: run scripts/setup", program.display());
    let mut command = Command::new(modules.join("node/bin/node"));
    command.arg(program);
    command
}

/// The suite's own list: scenarios and their versions.
fn listed() -> BTreeMap<String, Vec<String>> {
    let output = suite().args(["list", "--client"]).output().expect("the suite runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let entry = |line: &str| {
        let (name, versions) = line.trim().strip_prefix("- ")?.split_once(" [")?;
        let versions = versions.strip_suffix(']')?.split(',').map(str::to_owned).collect();
        Some((name.to_owned(), versions))
    };
    text.lines().filter_map(entry).collect()
}

fn fits(pattern: &str, scenario: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => scenario.starts_with(beginning),
        None => scenario == pattern,
    }
}

fn left_out(scenario: &str) -> Option<&'static str> {
    LEFT_OUT.iter().find(|(pattern, _)| fits(pattern, scenario)).map(|(_, reason)| *reason)
}

#[test]
fn every_scenario_of_the_suite_passes_or_is_left_out_for_a_reason() {
    let listed = listed();
    assert!(listed.len() > 40, "{listed:?}");
    for (scenario, versions) in PASSES {
        let theirs = listed.get(*scenario).unwrap_or_else(|| panic!("the suite has no `{scenario}` any more"));
        if theirs == &["extension"] {
            assert_eq!(*versions, EXTENSION, "{scenario}");
        } else {
            assert_eq!(versions, theirs, "{scenario}");
        }
    }
    for scenario in listed.keys() {
        let passes = PASSES.iter().filter(|(name, _)| name == scenario).count();
        match left_out(scenario) {
            None => assert_eq!(passes, 1, "`{scenario}` is new, or named twice: play it once, or say why not"),
            Some(reason) => assert_eq!(passes, 0, "`{scenario}` is played, so it is not left out because {reason}"),
        }
    }
    for (pattern, _) in LEFT_OUT {
        assert!(listed.keys().any(|scenario| fits(pattern, scenario)), "the suite has no `{pattern}` any more");
    }
}

#[test]
fn the_client_passes_the_suite() {
    passes(|scenario, _| !scenario.starts_with("auth/"));
}

#[test]
fn the_client_authenticates_as_the_suite_wants_in_the_modern_era() {
    passes(|scenario, version| scenario.starts_with("auth/") && version == "2026-07-28");
}

#[test]
fn the_client_authenticates_as_the_suite_wants_in_the_years_before() {
    passes(|scenario, version| scenario.starts_with("auth/") && version != "2026-07-28");
}

/// Plays the chosen scenarios.
fn passes(chosen: impl Fn(&str, &str) -> bool) {
    let client = example("mcp_conformance");
    let folder = tempfile::tempdir().expect("a folder");
    let rounds: Vec<(&str, &str)> = PASSES
        .iter()
        .flat_map(|(scenario, versions)| versions.iter().map(move |version| (*scenario, *version)))
        .filter(|(scenario, version)| chosen(scenario, version))
        .collect();
    let next = Mutex::new(rounds.iter());
    let failures = Mutex::new(Vec::new());
    // Each is mostly the start of a process; some measure times, so they are not all played at once.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((scenario, version)) = next.lock().expect("nobody panics with it").next() else { return };
                    if let Err(report) = play(&client, scenario, version, folder.path()) {
                        failures.lock().expect("nobody panics with it").push(report);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("nobody panics with it");
    assert!(failures.is_empty(), "{} of {} failed\n{}", failures.len(), rounds.len(), failures.join("\n"));
}

fn play(client: &Path, scenario: &str, version: &str, folder: &Path) -> Result<(), String> {
    let output = suite()
        // An extension is on no version's list: without force it would be skipped, and that looks like success.
        .args(["client", "--force", "--scenario", scenario, "--spec-version", version, "--command"])
        .arg(client)
        .arg("--output-dir")
        .arg(folder)
        .output()
        .expect("the suite runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // A run in which nothing was looked at is no success either.
    match output.status.success() && said.contains("Passed: ") && !said.contains("Passed: 0/0") {
        true => Ok(()),
        false => {
            let tail: Vec<&str> = said.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            Err(format!("--- {scenario} {version}: {}\n{}", output.status, tail.join("\n")))
        }
    }
}
