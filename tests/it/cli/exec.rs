//! `exec`: one node with no Redis anywhere, from a file or stdin, as text or as JSON.

use serde_json::{Value, json};

use super::{Ended, Files, ended, typed};
use crate::harness::model::Model;
use crate::harness::worker::Spec;

/// With an address at which nothing can listen, so that a command that wants Redis fails.
fn alone() -> Spec {
    Spec::bare().env("REDIS_ADDR", "127.0.0.1:1").env("LOG_LEVEL", "warn")
}

async fn exec(config: &Value, arguments: &[&str]) -> Ended {
    ended(typed(alone(), &[&["exec", "-"], arguments].concat()).input(config.to_string())).await
}

fn product(expression: &str) -> Value {
    json!({"graph_id": "g", "node_id": "n", "inputs": {"price": 21},
        "config": {"tool_name": "calculate", "tool_params": {"expression": expression}}})
}

#[tokio::test]
async fn a_node_runs_without_redis_and_its_output_alone_is_on_stdout() {
    let files = Files::new();
    let file = files.put("item.json", product("{{ price }} * 2").to_string());
    let from_file = ended(typed(alone(), &["exec", &file])).await;
    let from_stdin = exec(&product("{{ price }} * 2"), &[]).await;
    for said in [&from_file, &from_stdin] {
        said.expect("a good node", 0, &[]);
        assert_eq!(said.document(), 42);
        assert_eq!(said.text, said.printed, "nothing is told beside it");
    }
}

#[tokio::test]
async fn a_node_that_fails_ends_with_1_and_says_why_on_stderr() {
    let said = exec(&product("{{ prise }} * 2"), &[]).await;
    said.expect("a typing slip", 1, &["failed validation (", "prise", "price"]);
    assert_eq!(said.printed, "");
}

#[tokio::test]
async fn as_json_the_whole_outcome_is_printed_whatever_it_is() {
    let said = exec(&product("{{ price }} * 2"), &["--json"]).await;
    said.expect("a good node", 0, &[]);
    let outcome = said.document();
    assert_eq!((&outcome["status"], &outcome["mode"]), (&json!("completed"), &json!("tool")));
    assert_eq!((&outcome["output"], &outcome["tool_calls"]), (&json!(42), &json!(1)));
    // No model was asked.
    assert!(outcome.get("usage").is_some_and(Value::is_null) && outcome["warnings"].is_array(), "{outcome}");

    let said = exec(&product("{{ prise }} * 2"), &["--json"]).await;
    said.expect("a typing slip", 1, &[]);
    let outcome = said.document();
    assert_eq!((&outcome["status"], &outcome["error_details"]["category"]), (&json!("failed"), &json!("validation")));
    assert!(outcome["error"].as_str().is_some_and(|error| error.contains("prise")), "{outcome}");
    assert!(outcome["error_details"]["code"].is_string() && outcome.get("output").is_none(), "{outcome}");
}

#[tokio::test]
async fn a_bare_configuration_reads_the_state_of_a_file() {
    let files = Files::new();
    let state = files.put(
        "state.json",
        json!({"inputs": {"price": 4}, "node_states": {"m": {"status": "completed", "output": {"n": 5}}}}).to_string(),
    );
    let config =
        json!({"tool_name": "calculate", "tool_params": {"expression": "{{ price }} * {{ nodes.m.output.n }}"}});
    let said = exec(&config, &["--state", &state]).await;
    said.expect("a configuration", 0, &[]);
    assert_eq!(said.document(), 20);
    exec(&config, &[]).await.expect("without the state", 1, &["price"]);
    exec(&config, &["--state", "missing.json"]).await.expect("no such state", 1, &["missing.json"]);
}

#[tokio::test]
async fn a_model_and_tools_serve_an_agent_and_each_step_can_be_told() {
    const SCRIPT: &str = r#"
rules:
  - match: {prompt: warmer}
    replies:
      - tool_calls: [{name: weather, input: {city: Oslo}}, {name: weather, input: {city: Lisbon}}]
      - {text: Lisbon is warmer}
"#;
    let model = Model::start(SCRIPT);
    let program = json!(env!("CARGO_BIN_EXE_executor-worker"));
    let item = json!({"task": "What is warmer?", "tools": ["demo/weather"], "llm_config": {}});
    let spec = alone()
        .env("LLM_API_KEY", "a key of the test")
        .env("LLM_BASE_URL", model.base_url())
        .file(&format!("[mcp.servers.demo]\ncommand = {program}\nargs = [\"mcp-demo\"]"));
    let said = ended(typed(spec, &["exec", "-", "--verbose"]).input(item.to_string())).await;
    said.expect("an agent", 0, &["tool.executed"]);
    let output = said.document();
    assert_eq!((&output["result"], &output["tool_calls"]), (&json!("Lisbon is warmer"), &json!(2)));
    assert!(!said.text.contains("a key of the test"), "{}", said.text);
}

#[tokio::test]
async fn a_tool_that_the_configuration_keeps_away_is_not_called_unknown() {
    let program = json!(env!("CARGO_BIN_EXE_executor-worker"));
    let demo = format!("[mcp.servers.demo]\ncommand = {program}\nargs = [\"mcp-demo\"]\ndeny = [\"weath*\"]");
    let off = "`http_request` is off until `tools.http_request.allow` names a host";
    let disabled = "`calculate` is switched off by `tools.disable`";
    let hidden = "`demo/weather` is hidden by `mcp.servers.demo.allow` or `deny`";
    for (tool, why) in [
        ("http_request", off),
        ("calculate", disabled),
        ("demo/weather", hidden),
        ("weather", hidden),
        ("demo/wether", "no tool is named `demo/wether`"),
        ("demo/http_request", "no tool is named `demo/http_request`"),
    ] {
        let spec = alone().set("tools.disable", "calculate").file(&demo);
        let item = json!({"tool_name": tool, "tool_params": {}});
        let said = ended(typed(spec, &["exec", "-", "--json"]).input(item.to_string())).await;
        said.expect(tool, 1, &[]);
        let outcome = said.document();
        let details = &outcome["error_details"];
        assert_eq!(
            (&details["category"], &details["code"]),
            (&json!("configuration"), &json!("unknown_tool")),
            "{tool}"
        );
        assert!(outcome["error"].as_str().is_some_and(|error| error.contains(why)), "{tool}: {outcome}");
    }
}

#[tokio::test]
async fn what_is_no_node_is_refused_by_the_name_of_its_file() {
    let files = Files::new();
    for (text, words) in [("nope", "item.json is not JSON"), ("[]", "item.json is JSON, but no object")] {
        let file = files.put("item.json", text);
        ended(typed(alone(), &["exec", &file])).await.expect(text, 1, &[words]);
    }
    ended(typed(alone(), &["exec", "missing.json"])).await.expect("no file", 1, &["cannot read missing.json"]);
    let wrong = exec(&json!({"tool_name": "current_time", "llm_config": {}}), &[]).await;
    wrong.expect("two modes at once", 1, &["failed configuration (", "llm_config"]);
}
