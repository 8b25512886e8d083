//! `tools`: one place that fails takes nothing from the others, and is not passed over.

use serde_json::{Value, json};

use super::{ended, typed};
use crate::harness::worker::Spec;

#[tokio::test]
async fn a_server_that_fails_is_told_beside_what_the_others_offer() {
    let program = json!(env!("CARGO_BIN_EXE_executor-worker"));
    let good = format!("[mcp.servers.good]\ncommand = {program}\nargs = [\"mcp-demo\"]\n");
    let bad = "[mcp.servers.bad]\ncommand = \"no-such-program-anywhere\"\n";
    let said = ended(typed(Spec::bare().file(&good).file(bad).env("LOG_LEVEL", "error"), &["tools", "--json"])).await;
    said.expect("one of two", 1, &[]);
    let offers = said.document();
    let of = |server: &str| {
        let mut offers = offers.as_array().expect("a list").iter();
        offers.find(|offer| offer["server"] == server).unwrap_or_else(|| panic!("no {server} in {}", said.text))
    };
    let offered = |offer: &Value, name: &str| {
        offer["tools"].as_array().is_some_and(|tools| tools.iter().any(|tool| tool["name"] == name))
    };
    assert!(offered(of("good"), "weather") && offered(of("(built in)"), "calculate"), "{offers}");
    assert!(!offered(of("(built in)"), "http_request"), "it is off: {offers}");
    let error = of("bad")["error"].as_str().unwrap_or_default();
    assert!(error.contains("no-such-program-anywhere"), "{offers}");

    let said = ended(typed(Spec::bare().file(&good).file(bad).env("LOG_LEVEL", "error"), &["tools"])).await;
    said.expect("for people", 1, &["weather", "calculate", "no-such-program-anywhere"]);
    ended(typed(Spec::bare().file(&good), &["tools"])).await.expect("all answer", 0, &["weather", "calculate"]);
}
