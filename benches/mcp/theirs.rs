//! The client of the official SDK.

use rmcp::model::{CallToolRequestParams, ProtocolVersion};
use rmcp::service::RunningService;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::{StreamableHttpClientTransport, TokioChildProcess};
use rmcp::{ClientLifecycleMode, ClientServiceExt as _, RoleClient};
use serde_json::{Map, json};

use crate::Era;
use crate::client::{Caller, Order, TOOL, Who};

/// An open session.
pub struct Theirs(RunningService<RoleClient, ()>);

/// Opens a session.
pub async fn connect(order: &Order) -> Theirs {
    rustls::crypto::ring::default_provider().install_default().expect("nobody else has chosen one");
    let lifecycle = match order.era {
        Era::Legacy => ClientLifecycleMode::Initialize,
        Era::Modern => ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] },
    };
    let opened = match &order.url {
        Some(url) => {
            let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str());
            let transport = match order.who {
                Who::SdkPooled => {
                    config.max_concurrent_requests = order.at_once;
                    StreamableHttpClientTransport::with_client(reqwest::Client::new(), config)
                }
                Who::Sdk | Who::Ours => StreamableHttpClientTransport::from_config(config),
            };
            ().serve_with_lifecycle(transport, lifecycle).await
        }
        None => {
            let mut command = tokio::process::Command::new(std::env::current_exe().expect("this program has a path"));
            command.args(["serve-stdio", order.era.word()]).arg(order.delay_ms.to_string());
            let transport = TokioChildProcess::new(command).expect("the server can be started");
            ().serve_with_lifecycle(transport, lifecycle).await
        }
    };
    Theirs(opened.unwrap_or_else(|error| panic!("{error}")))
}

impl Caller for Theirs {
    async fn call(&self, order: u64) -> String {
        let arguments = Map::from_iter([(String::from("order"), json!(order))]);
        let params = CallToolRequestParams::new(TOOL).with_arguments(arguments);
        let result = self.0.call_tool(params).await.unwrap_or_else(|error| panic!("{error}"));
        let block = result.content.into_iter().next().expect("one block");
        block.as_text().expect("a text").text.clone()
    }
}
