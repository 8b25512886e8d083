//! Requests and providers for tests.

use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use serde_json::{Value, json};

use crate::config::ProviderConfig;
use crate::domain::ids::{EntryId, GraphId, NodeId, RunId, WorkId};
use crate::domain::message::{AssistantTurn, Completion, ToolResult, Turn, text_block};
use crate::domain::node::LlmConfig;
use crate::domain::tool::{ToolHints, ToolSpec, ToolTarget};
use crate::ports::{CallContext, LlmRequest};

/// A request with one user turn and a minute of time.
pub(crate) fn request(prompt: &str) -> LlmRequest {
    LlmRequest {
        settings: Arc::new(LlmConfig::default()),
        system: None,
        turns: vec![Arc::new(Turn::User(prompt.to_owned()))],
        tools: Arc::from([]),
        tools_allowed: true,
        earlier_tools: Arc::from([]),
        frame: Arc::from(""),
        output_schema: None,
        deltas: None,
        elsewhere: false,
        rate_word: None,
        context: CallContext {
            graph_id: GraphId::new("g").expect("an id"),
            node_id: NodeId::new("n").expect("an id"),
            run_id: RunId::new("r").expect("an id"),
            work_id: WorkId::new("executor.work", &EntryId::new("1-1")),
            traceparent: None,
            idempotency_key: String::from("r/0/0"),
            deadline: Instant::now() + Duration::from_secs(60),
        },
    }
}

/// The same with other settings.
pub(crate) fn with_settings(mut request: LlmRequest, settings: Value) -> LlmRequest {
    request.settings = Arc::new(serde_json::from_value(settings).expect("settings"));
    request
}

/// The same with tools of these names.
pub(crate) fn with_tools(mut request: LlmRequest, names: &[&str]) -> LlmRequest {
    request.tools = names
        .iter()
        .map(|name| ToolSpec {
            name: (*name).to_owned(),
            target: ToolTarget { server: None, name: (*name).to_owned() },
            description: Some(format!("Does {name}.")),
            input_schema: Arc::new(json!({"type": "object", "properties": {"x": {"type": "integer", "minimum": 0}}})),
            hints: ToolHints::default(),
        })
        .collect();
    request
}

/// What the model said, from the text of its content.
pub(crate) fn assistant(raw: &str) -> Arc<Turn> {
    Arc::new(Turn::Assistant(AssistantTurn {
        raw: serde_json::from_str(raw).expect("JSON"),
        text: String::new(),
        tool_uses: Vec::new(),
        author: None,
    }))
}

/// The conversation after a completion whose tools all answered `answer`.
pub(crate) fn go_on(request: &mut LlmRequest, completion: &Completion, answer: &str) {
    request.turns.push(Arc::new(Turn::Assistant(completion.turn.clone())));
    let results = completion
        .turn
        .tool_uses
        .iter()
        .map(|tool| ToolResult {
            tool_use_id: tool.id.clone(),
            content: vec![text_block(format!("{answer} {}", tool.input["city"]))],
            is_error: false,
        })
        .collect();
    request.turns.push(Arc::new(Turn::ToolResults(results)));
}

/// A provider at this address with a key.
pub(crate) fn provider(base_url: &str) -> ProviderConfig {
    static CRYPTO: Once = Once::new();
    CRYPTO.call_once(|| {
        // Another test may have installed it already, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    ProviderConfig {
        base_url: base_url.to_owned(),
        api_key: Some(SecretString::from("sk-test-0123456789")),
        ..ProviderConfig::default()
    }
}
