//! The client under test for the official conformance suite of the Model Context Protocol: a thin shell around the
//! library's MCP client. The suite gives the server's URL as the last argument and the scenario in the environment.

#[path = "conformance/authorization.rs"]
mod authorization;
#[path = "conformance/code_grant.rs"]
mod code_grant;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use da_node_executor::clients::mcp::{AnswerInput, CallMeta, Mode, Question, Reply, Session};
use da_node_executor::config::McpServerConfig;
use da_node_executor::domain::ids::{GraphId, NodeId, RunId};
use da_node_executor::domain::tool::Arguments;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use serde_json::{Value, json};

/// The most that anything may take.
const LIMIT: Duration = Duration::from_secs(20);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    if let Ok(level) = std::env::var("MCP_CONFORMANCE_LOG") {
        tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr).init();
    }
    let url = std::env::args().next_back().context("the server's URL is the last argument")?;
    let scenario = std::env::var("MCP_CONFORMANCE_SCENARIO").context("MCP_CONFORMANCE_SCENARIO")?;
    let context = match std::env::var("MCP_CONFORMANCE_CONTEXT") {
        Ok(context) => serde_json::from_str(&context).context("MCP_CONFORMANCE_CONTEXT")?,
        Err(_) => Value::Null,
    };
    let config = McpServerConfig { url: Some(url), connect_timeout: LIMIT, ..McpServerConfig::default() };
    let mut endpoint = authorization::endpoint(&scenario, &context, config).await?;
    if matches!(&*scenario, "sep-2322-client-request-state" | "elicitation-sep1034-client-defaults") {
        endpoint = endpoint.answered(Arc::new(Accept));
    }
    let session = endpoint.connect().await?;
    let played = play(&scenario, &context, &session).await;
    session.close().await;
    played
}

/// Does what a scenario wants to see.
async fn play(scenario: &str, context: &Value, session: &Session) -> anyhow::Result<()> {
    let tools = session.list_tools().await?.tools;
    match scenario {
        // These only look at what is asked for on the way to a list.
        "request-metadata" | "json-schema-ref-no-deref" => Ok(()),
        "json-schema-2020-12-preservation" => {
            let focal = tools.iter().find(|tool| tool.name == "json_schema_2020_12_tool");
            let schema = &focal.ok_or_else(|| anyhow!("the tool with the schema is missing"))?.input_schema;
            call(session, "json_schema_echo", json!({"schema": &**schema})).await
        }
        // Some scenarios say which calls they want to see.
        _ if context["toolCalls"].is_array() => {
            for wanted in context["toolCalls"].as_array().into_iter().flatten() {
                let name = wanted["name"].as_str().ok_or_else(|| anyhow!("a call without a name"))?;
                call(session, name, wanted["arguments"].clone()).await?;
            }
            Ok(())
        }
        // All the others want every tool called that the client was offered and did not refuse.
        _ => {
            for tool in &tools {
                call(session, &tool.name, json!({"a": 2, "b": 3})).await?;
            }
            Ok(())
        }
    }
}

async fn call(session: &Session, name: &str, arguments: Value) -> anyhow::Result<()> {
    let Value::Object(arguments) = arguments else { return Err(anyhow!("arguments are an object")) };
    let arguments: Arguments = arguments;
    let meta = CallMeta {
        graph_id: GraphId::new("conformance")?,
        node_id: NodeId::new("node")?,
        run_id: RunId::new("run")?,
        idempotency_key: format!("conformance/{name}"),
        traceparent: None,
        deadline: Instant::now() + LIMIT,
        progress: None,
        timeout: None,
    };
    let output = session.call_tool(name, &arguments, meta).await?;
    eprintln!("{name}: {}", output.text());
    Ok(())
}

/// Somebody who agrees to everything with the defaults of the form.
struct Accept;

impl AnswerInput for Accept {
    fn capabilities(&self) -> Value {
        json!({"elicitation": {"form": {"applyDefaults": true}}})
    }

    fn answer<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<Reply>> {
        let Mode::Form { schema } = &question.mode else { return ready(None).boxed() };
        let fields = schema["properties"].as_object().into_iter().flatten();
        let content = fields
            .map(|(name, field)| (name.clone(), field.get("default").cloned().unwrap_or(Value::Bool(true))))
            .collect();
        ready(Some(Reply::Accept(content))).boxed()
    }
}
