//! The scripted model over HTTP in the wire format of the Anthropic Messages API, and beside it in those of OpenAI, so
//! that demos and tests run the real clients. `GET /_calls` tells what was asked, for counting completions.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::dev::Server;
pub use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes, Data, PayloadConfig, ServiceConfig};
use actix_web::{App, HttpRequest, HttpResponse, HttpResponseBuilder, HttpServer};
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::clients::llm::script::{ApiError, Pending, ScriptedModel};
use crate::http::scripted_openai;

/// Bytes of a request, as the real service takes.
const MAX_REQUEST: usize = 32 * 1024 * 1024;
/// Seconds that open requests have when the server stops.
const STOP_SECONDS: u64 = 1;

/// A server that listens.
pub struct Listening {
    /// Where: with port 0 asked for, the port that was free.
    pub address: SocketAddr,
    /// Runs until it is stopped; it must be awaited or spawned to serve at all.
    pub server: Server,
}

impl Listening {
    /// A handle that stops the server from elsewhere.
    pub fn handle(&self) -> ServerHandle {
        self.server.handle()
    }

    /// The base URL for a provider's configuration.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Serves `model` at `address` with one thread of its own. Signals stay with the caller.
pub fn serve(model: Arc<ScriptedModel>, address: impl ToSocketAddrs) -> io::Result<Listening> {
    let state = Data::new(Service { model, served: AtomicU64::new(0) });
    let server = HttpServer::new(move || App::new().configure(|config| routes(config, state.clone())))
        .workers(1)
        // A client that goes away has cancelled its call: its completion must not count.
        .h1_allow_half_closed(false)
        .disable_signals()
        .shutdown_timeout(STOP_SECONDS)
        .bind(address)?;
    let address = server.addrs().first().copied().ok_or_else(|| io::Error::other("no address was bound"))?;
    Ok(Listening { address, server: server.run() })
}

/// Adds the routes to an application of the caller's own.
pub fn configure(config: &mut ServiceConfig, model: Arc<ScriptedModel>) {
    routes(config, Data::new(Service { model, served: AtomicU64::new(0) }));
}

pub(super) struct Service {
    pub model: Arc<ScriptedModel>,
    served: AtomicU64,
}

impl Service {
    /// An id for the next answer.
    pub fn request_id(&self) -> String {
        format!("req_scripted_{:06}", self.served.fetch_add(1, Ordering::Relaxed))
    }
}

fn routes(config: &mut ServiceConfig, state: Data<Service>) {
    config
        .app_data(state)
        .app_data(PayloadConfig::new(MAX_REQUEST))
        .route("/v1/messages", web::post().to(messages))
        .configure(scripted_openai::routes)
        .route("/_calls", web::get().to(calls));
}

async fn messages(request: HttpRequest, body: Bytes, service: Data<Service>) -> HttpResponse {
    let (request_id, mut headers) = (service.request_id(), BTreeMap::new());
    let answer = match accept(&request, &body) {
        Ok((version, body)) => {
            let pending = service.model.answer(&body, version);
            tokio::time::sleep(pending.delay).await;
            headers.clone_from(&pending.headers);
            match pending.events() {
                Some(events) if body["stream"] == true => return streamed(events, pending, service, request_id),
                _ => service.model.finish(pending),
            }
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(message) => with(&headers, HttpResponse::Ok()).insert_header(("request-id", request_id)).json(message),
        Err(error) => with(&headers, refused(&error, "request-id", &request_id)).json(error.body(&request_id)),
    }
}

/// An answer with the headers of its reply.
pub(super) fn with(headers: &BTreeMap<String, String>, mut response: HttpResponseBuilder) -> HttpResponseBuilder {
    for (name, value) in headers {
        response.insert_header((name.as_str(), value.as_str()));
    }
    response
}

/// An answer with the status and the wait of an error, whose body is still to be written.
pub(super) fn refused(error: &ApiError, id_header: &str, request_id: &str) -> HttpResponseBuilder {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    response.insert_header((id_header, request_id));
    if let Some(wait) = error.retry_after {
        response.insert_header(("retry-after", seconds(wait)));
        response.insert_header(("retry-after-ms", wait.as_millis().to_string()));
    }
    response
}

fn streamed(events: Vec<Value>, pending: Pending, service: Data<Service>, request_id: String) -> HttpResponse {
    let events = events.into_iter().map(|event| {
        let kind = event["type"].as_str().unwrap_or_default();
        Bytes::from(format!("event: {kind}\ndata: {event}\n\n"))
    });
    stream_out(events.collect(), pending, service, ("request-id", request_id))
}

/// The answer as events, one after the other. It counts once its last event is asked for: a client that went away
/// before has not got it.
pub(super) fn stream_out(
    events: Vec<Bytes>,
    pending: Pending,
    service: Data<Service>,
    id: (&str, String),
) -> HttpResponse {
    let (pace, headers) = (pending.pace, pending.headers.clone());
    let mut pending = Some(pending);
    let last = events.len().saturating_sub(1);
    let events = stream::iter(events.into_iter().enumerate()).then(move |(at, event)| {
        if let Some(pending) = pending.take_if(|_| at == last) {
            // It was ready when it was asked for, so there is no error to tell.
            let _ = service.model.finish(pending);
        }
        async move {
            if at > 0 {
                tokio::time::sleep(pace).await;
            }
            Ok::<_, std::convert::Infallible>(event)
        }
    });
    with(&headers, HttpResponse::Ok()).insert_header(id).content_type("text/event-stream").streaming(events)
}

/// Checks what the real service checks before it reads the body.
fn accept<'a>(request: &'a HttpRequest, body: &Bytes) -> Result<(&'a str, Value), ApiError> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let unauthorised = |message: &str| ApiError {
        status: 401,
        kind: String::from("authentication_error"),
        message: message.to_owned(),
        retry_after: None,
    };
    let key = header("x-api-key").filter(|key| !key.is_empty());
    let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer ")).filter(|key| !key.is_empty());
    match (key, bearer) {
        (None, None) => return Err(unauthorised("x-api-key header is required")),
        (Some(_), Some(_)) => return Err(unauthorised("both x-api-key and authorization are present; send one")),
        _ => {}
    }
    let version = header("anthropic-version").filter(|version| !version.is_empty());
    let version = version.ok_or_else(|| ApiError::invalid("anthropic-version: header is required"))?;
    let body = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the request body is not valid JSON: {error}")))?;
    Ok((version, body))
}

async fn calls(service: Data<Service>) -> HttpResponse {
    HttpResponse::Ok().json(service.model.log())
}

/// Whole seconds, rounded up, as the header wants them.
fn seconds(wait: Duration) -> String {
    wait.as_millis().div_ceil(1000).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::clients::llm::fixture::{assistant, go_on, provider, request, with_settings, with_tools};
    use crate::clients::llm::{LlmClient, LlmError};
    use crate::config::{ProviderConfig, When};
    use crate::domain::delta::{Deltas, Piece};
    use crate::domain::message::{StopReason, Turn};
    use crate::domain::outcome::Failure;

    const SCRIPT: &str = r#"
rules:
  - match: {prompt: weather, tools_allowed: false}
    reply: {text: "No more tools, so: {{ tool_results | join(', ') }}"}
  - match: {prompt: weather}
    replies:
      - thinking: two cities
        content:
          - {type: hologram, shape: {b: 1, a: [1.50, null]}}
        text: Let me see.
        tool_calls:
          - {name: get_weather, input: {city: Rome}}
          - {name: get_weather, input: {city: Oslo}}
      - text: "{{ tool_results | join(', ') }}"
        usage: {input_tokens: 100, output_tokens: 5, cache_read_tokens: 80, cache_write_tokens: 15}
  - match: {prompt: limited}
    reply: {text: at last, fail_first: {times: 1, status: 429, retry_after: 1.5}}
  - match: {prompt: busy}
    reply: {error: {status: 529, message: come back later}}
  - match: {prompt: reason max_tokens}
    reply: {text: cut, tool_calls: [{name: get_weather}], stop_reason: max_tokens}
  - match: {prompt: reason stop_sequence}
    reply: {text: a, stop_reason: stop_sequence, stop_sequence: END}
  - match: {prompt: reason pause_turn}
    reply: {text: a, stop_reason: pause_turn}
  - match: {prompt: reason model_context_window_exceeded}
    reply: {text: a, stop_reason: model_context_window_exceeded}
  - match: {prompt: reason new_reason}
    reply: {text: a, stop_reason: new_reason}
  - match: {prompt: reason refusal}
    reply: {stop_reason: refusal, stop_details: {type: refusal, category: cyber, explanation: "no"}}
  - match: {prompt: json}
    reply: {json: {n: 1}}
  - match: {prompt: slow}
    reply: {text: late, delay: 400ms}
  - match: {prompt: paced}
    reply: {text: one piece after the other and then the last, pace: 40ms}
"#;

    struct Running {
        base_url: String,
        handle: ServerHandle,
        model: Arc<ScriptedModel>,
    }

    fn start() -> Running {
        let model = Arc::new(ScriptedModel::parse(SCRIPT, "test").expect("a valid script"));
        let listening = serve(Arc::clone(&model), "127.0.0.1:0").expect("a free port");
        let (base_url, handle) = (listening.base_url(), listening.handle());
        actix_web::rt::spawn(listening.server);
        Running { base_url, handle, model }
    }

    impl Running {
        fn client(&self) -> LlmClient {
            LlmClient::new("main", &provider(&self.base_url)).expect("a valid provider")
        }
    }

    #[actix_web::test]
    async fn a_tool_loop_runs_over_http_and_keeps_every_byte() {
        let running = start();
        let client = running.client();
        let mut call = with_tools(request("weather please"), &["get_weather"]);
        call.system = Some(String::from("be brief"));
        let first = client.complete(&call).await.expect("the first turn");
        assert_eq!(first.stop_reason, StopReason::ToolUse);
        assert_eq!(first.turn.text, "Let me see.");
        let cities: Vec<_> = first.turn.tool_uses.iter().map(|tool| tool.input["city"].clone()).collect();
        assert_eq!(cities, ["Rome", "Oslo"]);
        assert!(first.turn.raw.get().contains(r#"{"type":"hologram","shape":{"b":1,"a":[1.5,null]}}"#));
        assert!(first.request_id.as_deref().is_some_and(|id| id.starts_with("req_scripted_")));
        assert!(first.usage.input_tokens > 0 && first.usage.output_tokens > 0);

        // The server refuses thinking whose words or signature changed and results that do not fit their uses.
        go_on(&mut call, &first, "sunny in");
        let last = client.complete(&call).await.expect("the second turn");
        assert_eq!(last.turn.text, r#"sunny in "Rome", sunny in "Oslo""#);
        assert_eq!(last.stop_reason, StopReason::EndTurn);
        assert_eq!(
            (last.usage.input_tokens, last.usage.cache_read_tokens, last.usage.cache_write_tokens),
            (100, 80, 15)
        );

        // Another client, as after a takeover, is given the same turn: and the log shows that it was paid for twice.
        let again = running.client().complete(&call).await.expect("the same turn");
        assert_eq!(again.turn.raw.get(), last.turn.raw.get());
        let log = running.model.log();
        assert_eq!((log.requests, log.completions, log.repeated, log.conversations.len()), (3, 3, 1, 1));

        call.tools_allowed = false;
        let forced = client.complete(&call).await.expect("a turn without tools");
        assert!(forced.turn.text.starts_with("No more tools"), "{}", forced.turn.text);
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn a_thinking_block_that_was_changed_is_refused() {
        let running = start();
        let mut call = with_tools(request("weather please"), &["get_weather"]);
        let first = running.client().complete(&call).await.expect("the first turn");
        go_on(&mut call, &first, "sunny in");
        call.turns[1] = assistant(&first.turn.raw.get().replace("two cities", "three cities"));
        let failure = Failure::from(running.client().complete(&call).await.expect_err("a changed block"));
        assert_eq!(failure.code, "invalid_request");
        assert!(failure.message.contains("Invalid `signature`"), "{}", failure.message);
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn a_streamed_answer_is_the_answer_that_would_have_come_as_a_whole() {
        let running = start();
        let streaming = ProviderConfig { stream: When::Always, ..provider(&running.base_url) };
        let streaming = LlmClient::new("main", &streaming).expect("a valid provider");
        let prompts = ["weather please", "json", "reason pause_turn", "reason refusal", "reason stop_sequence"];
        for prompt in prompts {
            let mut call = with_tools(request(prompt), &["get_weather"]);
            let whole = running.client().complete(&call).await.expect("a whole answer");
            let deltas = Deltas::default();
            call.deltas = Some(deltas.clone());
            let streamed = streaming.complete(&call).await.expect("a streamed answer");
            assert_eq!(streamed.turn.raw.get(), whole.turn.raw.get(), "{prompt}");
            assert_eq!((&streamed.stop_reason, &streamed.usage), (&whole.stop_reason, &whole.usage), "{prompt}");
            assert_eq!(streamed.turn.tool_uses, whole.turn.tool_uses);
            let told = deltas.fetch();
            assert_eq!(told[0], Piece::Begin);
            let text = told
                .iter()
                .filter_map(|piece| if let Piece::Text { text } = piece { Some(text.as_str()) } else { None });
            assert_eq!(text.collect::<String>(), whole.turn.text, "{prompt}");
        }
        let log = running.model.log();
        assert_eq!((log.requests, log.completions), (10, 10));
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn the_pieces_of_an_answer_are_there_before_its_end() {
        let running = start();
        let deltas = Deltas::default();
        let mut call = request("paced");
        call.deltas = Some(deltas.clone());
        let client = running.client();
        let answer = client.complete(&call);
        tokio::pin!(answer);
        let mut early = Vec::new();
        let completion = loop {
            tokio::select! {
                completion = &mut answer => break completion.expect("an answer"),
                () = tokio::time::sleep(Duration::from_millis(5)) => early.extend(deltas.fetch()),
            }
        };
        let texts = early.iter().filter(|piece| matches!(piece, Piece::Text { .. })).count();
        assert!(texts >= 3, "{early:?}");
        assert_eq!(completion.turn.text, "one piece after the other and then the last");
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn every_stop_reason_arrives() {
        let running = start();
        let refusal =
            StopReason::Refusal { category: Some(String::from("cyber")), explanation: Some(String::from("no")) };
        for (prompt, reason) in [
            ("reason max_tokens", StopReason::MaxTokens),
            ("reason stop_sequence", StopReason::StopSequence),
            ("reason pause_turn", StopReason::PauseTurn),
            ("reason model_context_window_exceeded", StopReason::ContextExceeded),
            ("reason new_reason", StopReason::Other(String::from("new_reason"))),
            ("reason refusal", refusal),
        ] {
            let call = with_tools(request(prompt), &["get_weather"]);
            let completion = running.client().complete(&call).await.expect(prompt);
            assert_eq!(completion.stop_reason, reason);
            assert!(completion.turn.tool_uses.is_empty(), "{prompt}: a use that was cut off is not asked for");
        }
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn errors_arrive_with_their_wait_and_are_counted() {
        let running = start();
        let client = running.client();
        let limited = client.complete(&request("limited")).await.expect_err("the first call");
        let LlmError::Status(error) = &limited else { panic!("an error of the API, not {limited}") };
        assert_eq!((error.status, error.kind.as_deref()), (429, Some("rate_limit_error")));
        assert_eq!(error.retry_after, Some(Duration::from_millis(1500)));
        assert_eq!(client.complete(&request("limited")).await.expect("the second call").turn.text, "at last");
        let busy = Failure::from(client.complete(&request("busy")).await.expect_err("always"));
        assert_eq!(busy.code, "overloaded");
        assert!(busy.message.contains("come back later"), "{}", busy.message);
        let log = running.model.log();
        assert_eq!((log.requests, log.completions, log.errors, log.repeated), (3, 1, 2, 0));
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn a_call_that_the_client_gave_up_is_not_counted_as_a_completion() {
        let running = start();
        let config = ProviderConfig { timeout: Duration::from_millis(100), ..provider(&running.base_url) };
        let client = LlmClient::new("main", &config).expect("a valid provider");
        assert!(matches!(client.complete(&request("slow")).await, Err(LlmError::TimedOut { .. })));
        // The second call is answered after the first would have been.
        running.client().complete(&request("slow")).await.expect("an answer");
        let log = running.model.log();
        assert_eq!((log.requests, log.completions), (2, 1));
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn what_the_client_sends_by_itself_obeys_the_api() {
        let running = start();
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "oneOf": [{}]});
        let settings = json!({"temperature": 0.3, "top_p": 0.9, "effort": "low", "stop": ["END"],
            "thinking": {"type": "adaptive"}});
        let mut call = with_settings(with_tools(request("json"), &["get_weather"]), settings);
        call.output_schema = Some(Arc::new(schema));
        call.turns.push(Arc::new(Turn::User(String::from("once more"))));
        let completion = running.client().complete(&call).await.expect("a valid request");
        assert_eq!(completion.turn.text, r#"{"n":1}"#);
        assert_eq!(completion.warnings.len(), 1, "{:?}", completion.warnings);
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn the_endpoint_checks_headers_and_json_and_tells_its_calls() {
        use actix_web::test::{TestRequest, call_and_read_body_json, call_service, init_service};
        let model = Arc::new(ScriptedModel::parse(SCRIPT, "test").expect("a valid script"));
        let app = init_service(App::new().configure(|config| configure(config, model))).await;
        let post = || TestRequest::post().uri("/v1/messages");
        let body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "json"}]});
        let hot = json!({"model": "m", "max_tokens": 9, "temperature": 1.0, "messages": body["messages"]});
        let key = ("x-api-key", "k");
        let version = ("anthropic-version", "2026-10-21");
        for (request, status, words) in [
            (post().insert_header(version).set_json(&body), 401, "x-api-key"),
            (post().insert_header(key).insert_header(version).insert_header(("authorization", "Bearer k")), 401, "one"),
            (post().insert_header(key).set_json(&body), 400, "anthropic-version"),
            (post().insert_header(key).insert_header(version).set_payload("{"), 400, "not valid JSON"),
            (post().insert_header(key).insert_header(version).set_json(&hot), 400, "temperature"),
        ] {
            let response = call_service(&app, request.to_request()).await;
            assert_eq!(response.status().as_u16(), status, "{words}");
            let id = response.headers().get("request-id").expect("an id").to_str().expect("text").to_owned();
            let answer: Value = actix_web::test::read_body_json(response).await;
            assert_eq!((&answer["type"], &answer["request_id"]), (&json!("error"), &json!(id)));
            assert!(answer["error"]["message"].as_str().is_some_and(|text| text.contains(words)), "{answer}");
        }
        let bearer = post().insert_header(("authorization", "Bearer k")).insert_header(version).set_json(&body);
        let answer: Value = call_and_read_body_json(&app, bearer.to_request()).await;
        assert_eq!(answer["content"], json!([{"type": "text", "text": "{\"n\":1}"}]));
        let older = post().insert_header(key).insert_header(("anthropic-version", "2023-06-01")).set_json(&hot);
        assert!(call_service(&app, older.to_request()).await.status().is_success());
        let calls: Value = call_and_read_body_json(&app, TestRequest::get().uri("/_calls").to_request()).await;
        assert_eq!((&calls["requests"], &calls["completions"], &calls["errors"]), (&json!(3), &json!(2), &json!(1)));
        let conversation = calls["conversations"].as_object().expect("by key").values().next().expect("one");
        assert_eq!((&conversation["prompt"], &conversation["turns"]["0"]), (&json!("json"), &json!(2)));
    }
}
