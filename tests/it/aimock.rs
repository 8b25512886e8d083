//! Agents against a mock of model providers that others wrote: the same course through each wire format, so that our
//! reading of the formats is not only our own.

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::mcp::HttpServer;

fn item(graph: &str, config: Value) -> Value {
    json!({"graph_id": graph, "node_id": "n", "config": config, "inputs": {}})
}

/// The formats: the members of a provider.
const FORMATS: [&str; 3] = [
    "kind = \"anthropic\"\napi_key = \"any\"",
    "kind = \"openai\"\napi = \"chat\"\nmax_tokens_as = \"max_completion_tokens\"",
    "kind = \"openai\"\napi = \"responses\"",
];

#[tokio::test]
async fn an_agent_with_parallel_tools_and_a_rate_limit_comes_to_its_end_in_every_format() {
    let bed = Bed::new().await;
    for (at, (format, stream)) in FORMATS.iter().flat_map(|format| [(format, "never"), (format, "always")]).enumerate()
    {
        // A server of its own, because it counts how often it was asked.
        let server = HttpServer::aimock();
        let url = server.base_url();
        let file =
            format!("[llm.providers.mock]\n{format}\nbase_url = \"{url}\"\nmodel = \"m\"\nstream = \"{stream}\"\n");
        let _worker = bed.worker(&format!("w{at}")).file(&file).env("LLM_PROVIDER", "mock").start().ready().await;
        let agent = json!({"task": "two sums", "tools": ["calculate"], "llm_config": {}});
        let event = bed.run(&item(&format!("agent-{at}"), agent)).await;
        let output = event.output();
        let (result, calls) = (&output["result"], &output["tool_calls"]);
        assert_eq!((result, calls), (&json!("42 and 2"), &json!(2)), "{format} {stream}: {output}");
        let event = bed.run(&item(&format!("llm-{at}"), json!({"llm_config": {"prompt": "hello"}}))).await;
        assert_eq!(event.output()["content"], "hi there", "{format} {stream}");
        assert_eq!(event["type"], "node.completed");
    }
}
