//! The scripted model as a provider in this process: the request is written and the answer read exactly as over
//! HTTP, only nothing is sent.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::anthropic::stream::{Assembly, Step};
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
        let told = async {
            tokio::time::sleep(pending.delay).await;
            match pending.events() {
                Some(events) if body["stream"] == true => {
                    self.put_together(events, pending.pace, request).await.map(Some)
                }
                _ => Ok(None),
            }
        };
        let told = tokio::time::timeout(limit, told).await;
        let told = told.map_err(|_| LlmError::TimedOut { provider: self.name.clone(), limit, request_id: None })??;
        let whole = self.script.finish(pending).map_err(|error| self.refused(error))?;
        let message = told.unwrap_or_else(|| whole.to_string().into_bytes());
        let model = request.settings.model.as_deref().unwrap_or(&self.config.model);
        response::completion(&message, model, None, prepared.warnings).map_err(|problem| LlmError::Malformed {
            provider: self.name.clone(),
            problem,
            request_id: None,
        })
    }

    async fn put_together(
        &self,
        events: Vec<Value>,
        pace: Duration,
        request: &LlmRequest,
    ) -> Result<Vec<u8>, LlmError> {
        let (deltas, provider) = (request.deltas.as_ref(), || self.name.clone());
        deltas.inspect(|deltas| deltas.begin());
        let mut assembly = Assembly::default();
        for event in events {
            tokio::time::sleep(pace).await;
            let step = assembly.take(&event.to_string(), deltas);
            let broken = |problem| LlmError::BrokenStream { provider: provider(), problem, request_id: None };
            if let Step::Message(body) = step.map_err(broken)? {
                return Ok(body);
            }
        }
        Err(LlmError::Truncated { provider: provider(), request_id: None })
    }

    fn refused(&self, error: ApiError) -> LlmError {
        LlmError::Status(Box::new(StatusError {
            provider: self.name.clone(),
            status: error.status,
            kind: Some(error.kind),
            message: error.message,
            retry_after: error.retry_after,
            should_retry: None,
            endpoint: None,
            request_id: None,
        }))
    }
}
