//! Models: one client a configured provider, all with the same answer type. Nothing is retried here: an error says
//! whether it passes, and the mode that called decides.

mod anthropic;
mod error;
pub mod estimate;
#[cfg(test)]
pub(crate) mod fixture;
mod headers;
mod history;
mod openai;
mod prices;
mod rate_headers;
mod schema;
pub mod script;
mod scripted;
mod sse;
mod status;
#[cfg(test)]
mod tests;
mod transport;

pub use error::LlmError;
pub use prices::Prices;
pub use status::{ErrorClass, StatusError};

use crate::config::{ProviderConfig, ProviderKind};
use crate::domain::message::Completion;
use crate::ports::LlmRequest;

/// The client of one configured provider. Its connections live on the runtime that makes the calls.
#[derive(Debug)]
pub enum LlmClient {
    /// The Anthropic Messages API, or a server that speaks it.
    Anthropic(Box<anthropic::AnthropicClient>),
    /// Chat completions or responses of OpenAI, or a server that speaks them.
    OpenAi(Box<openai::OpenAiClient>),
    /// A script of turns, in this process.
    Scripted(Box<scripted::ScriptedClient>),
}

impl LlmClient {
    /// Checks the settings of the provider called `name`. A missing key is no error here but one of each call, so
    /// that a worker without one still runs nodes that need no model.
    pub fn new(name: &str, config: &ProviderConfig) -> Result<Self, LlmError> {
        match config.kind {
            ProviderKind::Anthropic => anthropic::AnthropicClient::new(name, config).map(Box::new).map(Self::Anthropic),
            ProviderKind::Scripted => scripted::ScriptedClient::new(name, config).map(Box::new).map(Self::Scripted),
            ProviderKind::Openai
            | ProviderKind::OpenaiResponses
            | ProviderKind::Ollama
            | ProviderKind::Vllm
            | ProviderKind::LlamaCpp
            | ProviderKind::Openrouter
            | ProviderKind::Gemini => openai::OpenAiClient::new(name, config).map(Box::new).map(Self::OpenAi),
        }
    }

    /// One completion, within the provider's timeout and the caller's deadline. Dropping the future cancels it.
    pub async fn complete(&self, request: &LlmRequest) -> Result<Completion, LlmError> {
        match self {
            Self::Anthropic(client) => client.complete(request).await,
            Self::OpenAi(client) => client.complete(request).await,
            Self::Scripted(client) => client.complete(request).await,
        }
    }

    /// The model that this request asks for.
    pub fn model<'a>(&'a self, request: &'a LlmRequest) -> &'a str {
        let default = match self {
            Self::Anthropic(client) => client.default_model(),
            Self::OpenAi(client) => client.default_model(),
            Self::Scripted(client) => client.default_model(),
        };
        request.settings.model.as_deref().unwrap_or(default)
    }

    /// Whether calls can work at all: the provider has a key or needs none.
    pub fn configured(&self) -> bool {
        match self {
            Self::Anthropic(client) => client.configured(),
            Self::OpenAi(client) => client.configured(),
            Self::Scripted(_) => true,
        }
    }
}

/// What a fuzzer reads with: the data of the events of one answer, in each protocol.
#[cfg(fuzzing)]
pub(super) fn fuzz(events: &[String]) {
    anthropic::fuzz(events);
    openai::fuzz(events);
}
