//! Models and tools: the actors that every way of running a node needs, with Redis or without.

use std::collections::HashMap;
use std::sync::Arc;

use actix::{Actor, Addr, Context};
use actix_rt::Arbiter;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::actors::circuit::Circuits;
use crate::actors::handles::{LlmHandle, ToolHandle};
use crate::actors::llm::{LlmActor, Provider};
use crate::actors::mcp::{McpSessionActor, Server};
use crate::actors::pace::{Pace, Sharing};
use crate::actors::supervise::supervise;
use crate::app::Refused;
use crate::clients::llm::{LlmClient, Prices};
use crate::config::Config;
use crate::domain::tool::ToolSpec;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::tools::approval::Approval;
use crate::tools::registry::Registry;

/// Models and tools at work.
pub struct Running {
    /// Models.
    pub llm: LlmHandle,
    /// Tools.
    pub tools: ToolHandle,
    /// The tool servers in the order of resolution.
    pub servers: Vec<Arc<Server>>,
    registry: Arc<Registry>,
    // Owns the thread on which models and tool servers are spoken to: their connections live there.
    _arbiter: Arbiter,
}

impl Running {
    /// Starts an actor for each provider and each tool server, on a thread of their own; `functions` stand beside the
    /// built-in ones, and `sharing` says where the limits of models are kept.
    pub fn start(
        config: &Config,
        functions: &Registry,
        health: &Arc<Health>,
        metrics: &Arc<Metrics>,
        sharing: &Sharing,
        draining: &CancellationToken,
        end: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let arbiter = Arbiter::new();
        let mut providers = HashMap::new();
        let mut prices = HashMap::new();
        for (name, provider) in &config.llm.providers {
            let client = LlmClient::new(name, provider).map_err(|error| Refused(error.to_string()))?;
            let own = Prices::new(&config.llm, provider);
            prices.insert(name.clone(), own.clone());
            let protocol = provider.kind.protocol();
            let provider = Arc::new(Provider {
                name: name.clone(),
                client,
                prices: own,
                slots: Arc::new(Semaphore::new(provider.concurrency.get())),
                timeout: provider.timeout,
                pace: Pace::new(name, provider, sharing.clone(), Arc::clone(metrics)),
                circuits: Circuits::new(name, provider, Arc::clone(metrics)),
                metrics: Arc::clone(metrics),
            });
            let on = arbiter.handle();
            let post = supervise("model client", Arc::clone(metrics), draining.clone(), move |watch| {
                let provider = Arc::clone(&provider);
                LlmActor::start_in_arbiter(&on, move |_: &mut Context<LlmActor>| LlmActor::new(provider, watch))
            });
            providers.insert(name.clone(), (protocol, post));
        }
        let mut servers = Vec::new();
        let mut posts = Vec::new();
        for (name, server) in config.mcp.ordered() {
            let approval = Approval::new(name, server.pin.as_deref()).map_err(|error| Refused(error.to_string()))?;
            let server =
                Server::new(name, server.clone(), approval, Arc::clone(health), Arc::clone(metrics), end.clone());
            let (on, lived) = (arbiter.handle(), Arc::clone(&server));
            let post = supervise("tool client", Arc::clone(metrics), draining.clone(), move |watch| {
                let server = Arc::clone(&lived);
                McpSessionActor::start_in_arbiter(&on, move |_: &mut Context<McpSessionActor>| {
                    McpSessionActor::new(server, watch)
                })
            });
            posts.push((Arc::clone(&server), post));
            servers.push(server);
        }
        let mut registry = Registry::builtin(&config.tools)?;
        registry.extend(functions);
        let registry = Arc::new(registry);
        Ok(Self {
            llm: LlmHandle::new(
                providers,
                prices,
                [vec![config.llm.default.clone()], config.llm.fallback.clone()].concat(),
            ),
            tools: ToolHandle::new(posts, Arc::clone(&registry), Arc::clone(metrics)),
            servers,
            registry,
            _arbiter: arbiter,
        })
    }

    /// What is configured, for the worker registry: servers as `name/*`, functions by name.
    pub fn tool_names(&self) -> Vec<String> {
        let servers = self.servers.iter().map(|server| format!("{}/*", server.name));
        servers.chain(self.registry.specs().into_iter().map(|spec| spec.name)).collect()
    }

    /// The functions of the program itself.
    pub fn builtin(&self) -> Vec<ToolSpec> {
        self.registry.specs()
    }

    /// Ends every session, child processes included.
    pub async fn close(&self) {
        futures_util::future::join_all(self.servers.iter().map(|server| server.close())).await;
    }
}

/// Starts an actor on another thread.
pub fn start_on<A: Actor<Context = Context<A>>>(
    arbiter: &Arbiter,
    build: impl FnOnce() -> A + Send + 'static,
) -> Addr<A> {
    A::start_in_arbiter(&arbiter.handle(), move |_| build())
}
