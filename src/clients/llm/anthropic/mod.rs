//! The Anthropic Messages API over HTTP: one request, one answer. How it travels is the transport's.

mod choice;
pub(super) mod content;
mod messages;
pub(super) mod request;
pub(super) mod response;
pub(super) mod stream;
#[cfg(test)]
mod tests;

use futures_util::FutureExt;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use crate::clients::llm::anthropic::stream::{Assembly, Step};
use crate::clients::llm::transport::{Events, Transport, endpoint};
use crate::clients::llm::{LlmError, StatusError};
use crate::config::{AuthHeader, ProviderConfig};
use crate::domain::delta::Deltas;
use crate::domain::message::Completion;
use crate::ports::LlmRequest;

/// The status of an answer that began well.
const OK: u16 = 200;

/// The client of one provider that speaks the Messages API.
#[derive(Debug)]
pub struct AnthropicClient {
    name: String,
    config: ProviderConfig,
    configured: bool,
    transport: Transport,
}

impl AnthropicClient {
    pub(super) fn new(name: &str, config: &ProviderConfig) -> Result<Self, LlmError> {
        let wrong = |problem: String| LlmError::Config { provider: name.to_owned(), problem };
        let endpoint =
            endpoint(&config.base_url, "/v1/messages").map_err(|problem| wrong(format!("`base_url` {problem}")))?;
        let mut headers = HeaderMap::new();
        let version = HeaderValue::from_str(&config.version)
            .map_err(|_| wrong(String::from("`version` has characters that a header cannot carry")))?;
        headers.insert("anthropic-version", version);
        if !config.betas.is_empty() {
            let betas = HeaderValue::from_str(&config.betas.join(","))
                .map_err(|_| wrong(String::from("`betas` has characters that a header cannot carry")))?;
            headers.insert("anthropic-beta", betas);
        }
        let key = key(config);
        if let Some(key) = key {
            let (header, value): (HeaderName, _) = match config.auth {
                AuthHeader::ApiKey => (HeaderName::from_static("x-api-key"), HeaderValue::from_str(key)),
                AuthHeader::Bearer => (AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}"))),
            };
            let mut value =
                value.map_err(|_| wrong(String::from("`api_key` has characters that a key cannot have")))?;
            value.set_sensitive(true);
            headers.insert(header, value);
        }
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            configured: key.is_some(),
            transport: Transport::new(name, endpoint, headers, config),
        })
    }

    pub(super) fn default_model(&self) -> &str {
        &self.config.model
    }

    pub(super) fn configured(&self) -> bool {
        self.configured
    }

    pub(super) async fn complete(&self, request: &LlmRequest) -> Result<Completion, LlmError> {
        if !self.configured {
            let variable = self.config.key_variable();
            return Err(LlmError::NotConfigured { provider: self.name.clone(), variable });
        }
        let prepared = request::prepare(request, &self.config);
        let model = request.settings.model.as_deref().unwrap_or(&self.config.model);
        let answer = self.transport.post(request, prepared.body).await?;
        let (ok, status, headers) = (answer.ok(), answer.status, answer.headers().clone());
        let request_id = answer.request_id.clone();
        let body = if ok && answer.streams() {
            self.put_together(answer.events(), &headers, request.deltas.as_ref()).await
        } else {
            answer.body().await
        };
        if !ok {
            // The status says enough even where its body does not arrive whole.
            return Err(self.refused(status, &headers, &body.unwrap_or_default()));
        }
        let body = body?;
        if response::is_error(&body) {
            return Err(self.refused(status, &headers, &body));
        }
        response::completion(&body, model, request_id.clone(), prepared.warnings)
            .map_err(|problem| LlmError::Malformed { provider: self.name.clone(), problem, request_id })
    }

    /// Reads a stream to the end of its message. One that ends before is no answer, however much it has said.
    async fn put_together(
        &self,
        mut events: Events<'_>,
        headers: &HeaderMap,
        deltas: Option<&Deltas>,
    ) -> Result<Vec<u8>, LlmError> {
        let mut assembly = Assembly::default();
        deltas.inspect(|deltas| deltas.begin());
        loop {
            let event = events.next().await?.ok_or_else(|| events.truncated())?;
            match assembly.take(&event.data, deltas).map_err(|problem| events.broken(problem))? {
                Step::More => {}
                Step::Message(body) => {
                    // The end of the body is usually there already; with it the connection can be used again.
                    let _ = events.next().now_or_never();
                    return Ok(body);
                }
                // The status was sent long ago; the type says what happened.
                Step::Failed => return Err(self.refused(OK, headers, event.data.as_bytes())),
            }
        }
    }

    fn refused(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> LlmError {
        let error = response::error(&self.name, status, headers, body, key(&self.config));
        LlmError::Status(Box::new(StatusError { endpoint: Some(self.transport.endpoint()), ..error }))
    }
}

/// Puts an answer together and reads it.
#[cfg(fuzzing)]
pub(super) fn fuzz(events: &[String]) {
    let (mut assembly, deltas) = (Assembly::default(), Deltas::default());
    deltas.begin();
    for data in events {
        match assembly.take(data, Some(&deltas)) {
            Ok(Step::More) => {}
            Ok(Step::Message(body)) => {
                let _ = response::completion(&body, "m", None, Vec::new());
                return;
            }
            Ok(Step::Failed) | Err(_) => return,
        }
    }
}

fn key(config: &ProviderConfig) -> Option<&str> {
    config.api_key.as_ref().map(SecretString::expose_secret).map(str::trim).filter(|key| !key.is_empty())
}
