//! Clients of OpenAI's two protocols, chat completions and responses, as OpenAI itself and many other servers speak
//! them: one request, one answer. How servers differ is configuration.

mod calls;
mod chat_request;
mod chat_response;
mod chat_stream;
mod content;
mod error;
mod responses_request;
mod responses_response;
mod responses_stream;
mod settings;
#[cfg(test)]
mod tests;

use futures_util::FutureExt;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::error::LlmError;
use super::headers::status_error;
use super::status::StatusError;
use super::transport::{Answer, Transport, endpoint};
use calls::Ids;
use chat_stream::{More, Step};
use error::Told;

use crate::config::{AuthHeader, ProviderConfig, When};
use crate::domain::delta::Deltas;
use crate::domain::message::Completion;
use crate::ports::LlmRequest;

/// Tokens above which an answer is streamed: written without a pause it could take longer than ten minutes, and by then
/// something on the way has closed a connection that says nothing.
const STREAMED_ABOVE: u32 = 21_333;

/// A body with the remarks that belong to it.
struct Prepared {
    /// The JSON text.
    body: Vec<u8>,
    /// What was left out, and why.
    warnings: Vec<String>,
}

/// What an answer with a status of success turned out to be.
enum Read {
    Completion(Box<Completion>),
    Error(Told),
}

/// The client of one provider that speaks as OpenAI does.
#[derive(Debug)]
pub struct OpenAiClient {
    name: String,
    config: ProviderConfig,
    configured: bool,
    chat: Transport,
    responses: Transport,
}

impl OpenAiClient {
    pub(super) fn new(name: &str, config: &ProviderConfig) -> Result<Self, LlmError> {
        let wrong = |problem: String| LlmError::Config { provider: name.to_owned(), problem };
        let mut headers = HeaderMap::new();
        let key = config.api_key.as_ref().map(SecretString::expose_secret).map(str::trim).filter(|key| !key.is_empty());
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
        let way = |path: &str| {
            let url = address(&config.base_url, path).map_err(|problem| wrong(format!("`base_url` {problem}")))?;
            Ok(Transport::new(name, url, headers.clone(), config))
        };
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            configured: key.is_some() || !config.needs_key(),
            chat: way("/chat/completions")?,
            responses: way("/responses")?,
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
        let model = request.settings.model.as_deref().unwrap_or(&self.config.model);
        let stream = self.streams(request);
        let responses = settings::speaks_responses(&self.config, model);
        let (way, prepared) = if responses {
            (&self.responses, responses_request::prepare(request, &self.config, stream))
        } else {
            (&self.chat, chat_request::prepare(request, &self.config, stream))
        };
        let answer = way.post(request, prepared.body).await?;
        let (status, headers, request_id) = (answer.status, answer.headers().clone(), answer.request_id.clone());
        if !answer.ok() {
            // The status says enough even where its body does not arrive whole.
            let told = error::read(&answer.body().await.unwrap_or_default());
            return Err(self.refused(way, status, &headers, told));
        }
        let body = if answer.streams() {
            let assembled = if responses {
                let mut awaited = responses_stream::Awaited::default();
                read_events(answer, request.deltas.as_ref(), |data| awaited.take(data))
                    .await?
                    .map_or_else(|| Ok(awaited.whole()), Err)
            } else {
                let mut assembly = chat_stream::Assembly::default();
                read_events(answer, request.deltas.as_ref(), |data| assembly.take(data))
                    .await?
                    .map_or_else(|| Ok(assembly.whole()), Err)
            };
            match assembled {
                Ok(Some(body)) => body,
                Ok(None) => {
                    return Err(LlmError::Truncated { provider: self.name.clone(), request_id });
                }
                Err(told) => return Err(self.refused(way, status, &headers, told)),
            }
        } else {
            answer.body().await?
        };
        if let Some(told) = error::inside(&body) {
            return Err(self.refused(way, status, &headers, told));
        }
        let mut ids = Ids::of(request);
        let read = if responses {
            responses_response::completion(&body, model, &mut ids)
        } else {
            chat_response::completion(&body, model, &mut ids)
        };
        match read {
            Ok(Read::Completion(completion)) => {
                Ok(Completion { request_id, warnings: prepared.warnings, ..*completion })
            }
            Ok(Read::Error(told)) => Err(self.refused(way, status, &headers, told)),
            Err(problem) => Err(LlmError::Malformed { provider: self.name.clone(), problem, request_id }),
        }
    }

    /// Whether the answer is asked for in pieces: where somebody watches, or where a whole one could take so long that
    /// something on the way gives the quiet connection up.
    fn streams(&self, request: &LlmRequest) -> bool {
        match self.config.stream {
            When::Always => true,
            When::Never => false,
            When::Auto => {
                let limit = request.settings.max_tokens.unwrap_or(self.config.max_tokens).get();
                request.deltas.is_some() || limit > STREAMED_ABOVE
            }
        }
    }

    fn refused(&self, way: &Transport, status: u16, headers: &HeaderMap, told: Told) -> LlmError {
        let key = self.config.api_key.as_ref().map(SecretString::expose_secret).map(str::trim);
        // Inside of a success the error's own status is the one that counts.
        let status = if (200..300).contains(&status) { told.status.unwrap_or(status) } else { status };
        let error = status_error(&self.name, status, headers, told.text, key);
        LlmError::Status(Box::new(StatusError { endpoint: Some(way.endpoint()), ..error }))
    }
}

/// Reads events until the answer is whole, or until an error is told in its place.
async fn read_events(
    answer: Answer<'_>,
    deltas: Option<&Deltas>,
    mut take: impl FnMut(&str) -> Result<Step, String>,
) -> Result<Option<Told>, LlmError> {
    let mut events = answer.events();
    deltas.inspect(|deltas| deltas.begin());
    while let Some(event) = events.next().await? {
        match take(&event.data).map_err(|problem| events.broken(problem))? {
            Step::More(more) => {
                for piece in deltas.into_iter().flat_map(|deltas| more.iter().map(move |piece| (deltas, piece))) {
                    match piece {
                        (deltas, More::Text(text)) => deltas.text(text),
                        (deltas, More::Thinking(text)) => deltas.thinking(text),
                        (deltas, More::Tool { id, name }) => deltas.tool_use(id, name),
                    }
                }
            }
            Step::Done => {
                // The end of the body is usually there already; with it the connection can be used again.
                let _ = events.next().now_or_never();
                return Ok(None);
            }
            Step::Error(told) => return Ok(Some(told)),
        }
    }
    Ok(None)
}

/// Puts an answer together and reads it, in both protocols.
#[cfg(fuzzing)]
pub(super) fn fuzz(events: &[String]) {
    use chat_stream::Assembly;
    use responses_stream::Awaited;

    let mut chat = Assembly::default();
    if events.iter().all(|data| matches!(chat.take(data), Ok(Step::More(_) | Step::Done)))
        && let Some(body) = chat.whole()
    {
        let _ = chat_response::completion(&body, "m", &mut Ids::fresh());
    }
    let mut awaited = Awaited::default();
    if events.iter().all(|data| matches!(awaited.take(data), Ok(Step::More(_) | Step::Done)))
        && let Some(body) = awaited.whole()
    {
        let _ = responses_response::completion(&body, "m", &mut Ids::fresh());
    }
}

/// The address of an endpoint. A base URL with a path names the version as well; one without is completed.
fn address(base_url: &str, path: &str) -> Result<Url, String> {
    let bare = Url::parse(base_url.trim()).is_ok_and(|url| url.path() == "/");
    if bare { endpoint(base_url, &format!("/v1{path}")) } else { endpoint(base_url, path) }
}

/// The system prompt with the schema in words.
fn told(system: Option<&str>, schema: &Value) -> String {
    let rule = format!("Answer with one JSON value and nothing else. It must satisfy this JSON Schema:\n{schema}");
    match system {
        Some(system) => format!("{system}\n\n{rule}"),
        None => rule,
    }
}
