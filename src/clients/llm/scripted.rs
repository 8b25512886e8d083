//! The scripted model as a provider in this process: the request is written and the answer read exactly as over
//! HTTP, only nothing is sent.

use std::sync::Arc;

use serde_json::Value;

use super::anthropic::{request, response};
use super::error::LlmError;
use super::script::{ApiError, ScriptedModel};
use super::status::StatusError;
use super::transport::time_limit;
use crate::config::ProviderConfig;
use crate::domain::message::Completion;
use crate::ports::LlmRequest;

/// A provider whose answers stand in a file.
#[derive(Debug)]
pub struct ScriptedClient {
    name: String,
    config: ProviderConfig,
    script: Arc<ScriptedModel>,
}

impl ScriptedClient {
    pub(super) fn new(name: &str, config: &ProviderConfig) -> Result<Self, LlmError> {
        let wrong = |problem: String| LlmError::Config { provider: name.to_owned(), problem };
        let path = config
            .script
            .as_deref()
            .ok_or_else(|| wrong(String::from("`script` is missing; a scripted provider needs a file of turns")))?;
        let script = ScriptedModel::load(path).map_err(|error| wrong(format!("`script`: {error}")))?;
        Ok(Self { name: name.to_owned(), config: config.clone(), script: Arc::new(script) })
    }

    pub(super) fn default_model(&self) -> &str {
        &self.config.model
    }

    pub(super) async fn complete(&self, request: &LlmRequest) -> Result<Completion, LlmError> {
        let limit = time_limit(self.config.timeout, request);
        let prepared = request::prepare(request, &self.config);
        let body: Value = serde_json::from_slice(&prepared.body).expect("the body was just written as JSON");
        let pending = self.script.answer(&body, &self.config.version);
        if pending.delay > limit {
            tokio::time::sleep(limit).await;
            return Err(LlmError::TimedOut { provider: self.name.clone(), limit, request_id: None });
        }
        tokio::time::sleep(pending.delay).await;
        let message = self.script.finish(pending).map_err(|error| self.refused(error))?;
        let model = request.settings.model.as_deref().unwrap_or(&self.config.model);
        response::completion(message.to_string().as_bytes(), model, None, prepared.warnings)
            .map_err(|problem| LlmError::Malformed { provider: self.name.clone(), problem, request_id: None })
    }

    fn refused(&self, error: ApiError) -> LlmError {
        LlmError::Status(Box::new(StatusError {
            provider: self.name.clone(),
            status: error.status,
            kind: Some(error.kind),
            message: error.message,
            retry_after: error.retry_after,
            should_retry: None,
            request_id: None,
        }))
    }
}
