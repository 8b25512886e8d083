//! The worker's client, used as the worker uses it.

use std::time::Instant;

use da_node_executor::clients::mcp::{CallMeta, Era as Spoken, Session};
use da_node_executor::config::McpServerConfig;
use da_node_executor::domain::ids::{GraphId, NodeId, RunId};
use da_node_executor::domain::tool::Arguments;
use serde_json::{Value, json};

use crate::Era;
use crate::client::{Caller, Order, PATIENCE, TOOL};

/// An open session.
pub struct Ours(Session);

/// Opens a session.
pub async fn connect(order: &Order) -> Ours {
    let program = std::env::current_exe().expect("this program has a path");
    let config = match &order.url {
        Some(url) => McpServerConfig { url: Some(url.clone()), ..McpServerConfig::default() },
        None => McpServerConfig {
            command: Some(program.to_string_lossy().into_owned()),
            args: vec![String::from("serve-stdio"), order.era.word().to_owned(), order.delay_ms.to_string()],
            ..McpServerConfig::default()
        },
    };
    let session = Session::connect("bench", &config).await.unwrap_or_else(|error| panic!("{error}"));
    let expected = match order.era {
        Era::Legacy => Spoken::Legacy,
        Era::Modern => Spoken::Modern,
    };
    assert_eq!((session.info().era, session.info().protocol_version.as_str()), (expected, order.era.version()));
    Ours(session)
}

impl Caller for Ours {
    async fn call(&self, order: u64) -> String {
        let arguments = Arguments::from_iter([(String::from("order"), json!(order))]);
        let id = "order-17";
        let meta = CallMeta {
            graph_id: GraphId::new(id).expect("an id"),
            node_id: NodeId::new(id).expect("an id"),
            run_id: RunId::new(id).expect("an id"),
            idempotency_key: format!("{order:064}"),
            traceparent: None,
            deadline: Instant::now() + PATIENCE,
            progress: None,
            timeout: None,
        };
        let output = self.0.call_tool(TOOL, &arguments, meta).await.unwrap_or_else(|error| panic!("{error}"));
        match output.into_value() {
            Value::String(text) => text,
            other => panic!("a text was expected: {other}"),
        }
    }
}
