//! The tools of the running worker as the API tells them.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::actors::handles::ToolHandle;
use crate::actors::mcp::Server;
use crate::app::wiring::Running;
use crate::domain::tool::ToolSpec;
use crate::http::api::{Refreshed, ToolCatalogue};
use crate::tools::approval::Withheld;

/// What the API asks, answered out of what the servers said last.
pub struct Catalogue {
    servers: Vec<Arc<Server>>,
    functions: Vec<ToolSpec>,
    tools: ToolHandle,
}

impl Catalogue {
    /// Of these tools.
    pub fn new(running: &Running) -> Self {
        Self { servers: running.servers.clone(), functions: running.builtin(), tools: running.tools.clone() }
    }
}

impl ToolCatalogue for Catalogue {
    fn tools(&self) -> Value {
        let mut tools = Vec::new();
        for server in &self.servers {
            let pinned = server.approval.is_pinned();
            let known = server.last_known_tools().unwrap_or_default();
            tools.extend(known.iter().map(|tool| described(tool, pinned, None)));
            let withheld = server.approval.withheld();
            tools.extend(withheld.iter().map(|held| described(&held.spec, pinned, Some(held))));
        }
        tools.extend(self.functions.iter().map(|tool| described(tool, false, None)));
        let servers = self.servers.iter().map(|server| {
            json!({
                "server": server.name,
                "pinned": server.approval.is_pinned(),
                "discovered": server.last_known_tools().is_some(),
            })
        });
        json!({"servers": servers.collect::<Vec<_>>(), "tools": tools})
    }

    fn refresh(&self, server: Option<String>) -> Refreshed {
        let (tools, servers) = (self.tools.clone(), self.servers.clone());
        Box::pin(async move {
            let wanted = |known: &&Arc<Server>| server.as_ref().is_none_or(|name| known.name == *name);
            let asked: Vec<&Arc<Server>> = servers.iter().filter(wanted).collect();
            if asked.is_empty() && server.is_some() {
                return None;
            }
            let answers = asked.into_iter().map(async |server| {
                let started = Instant::now();
                match tools.refresh(server).await {
                    Ok(tools) => json!({
                        "server": server.name,
                        "tools": tools.len(),
                        "withheld": server.approval.withheld().len(),
                        "took_ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                    }),
                    Err(failure) => {
                        json!({"server": server.name, "error": failure.message, "code": failure.code})
                    }
                }
            });
            Some(json!({"servers": futures_util::future::join_all(answers).await}))
        })
    }
}

fn described(tool: &ToolSpec, pinned: bool, held: Option<&Withheld>) -> Value {
    json!({
        "server": tool.target.server,
        "name": tool.target.name,
        "description": tool.description,
        "read_only": tool.hints.read_only,
        "idempotent": tool.hints.idempotent,
        "pinned": pinned && held.is_none(),
        "withheld": held.map(Withheld::code),
    })
}
