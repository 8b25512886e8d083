//! The scripted model over HTTP in the wire formats of OpenAI: chat completions and responses, whole or streamed. A key
//! is not asked for, as local servers ask for none.

use actix_web::web::{self, Bytes, Data, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::Value;

use crate::clients::llm::script::ApiError;
use crate::clients::llm::script::openai::{self, Format};
use crate::http::scripted_model::{Service, refused, stream_out, with};

/// The header of the request's id.
const REQUEST_ID: &str = "x-request-id";

/// Adds the routes.
pub(super) fn routes(config: &mut ServiceConfig) {
    config.route("/v1/chat/completions", web::post().to(chat)).route("/v1/responses", web::post().to(responses));
}

async fn chat(request: HttpRequest, body: Bytes, service: Data<Service>) -> HttpResponse {
    answer(&request, &body, service, Format::Chat).await
}

async fn responses(request: HttpRequest, body: Bytes, service: Data<Service>) -> HttpResponse {
    answer(&request, &body, service, Format::Responses).await
}

async fn answer(request: &HttpRequest, body: &Bytes, service: Data<Service>, format: Format) -> HttpResponse {
    let request_id = service.request_id();
    let body: Value = match read(request, body) {
        Ok(body) => body,
        Err(error) => return refused(&error, REQUEST_ID, &request_id).json(openai::error(&error)),
    };
    let pending = service.model.answer_openai(&body, format);
    tokio::time::sleep(pending.delay).await;
    // What a format has no answer for is an error there, though the model has answered.
    let whole = pending.message().map(|message| openai::whole(message, format));
    if let (Some(Ok(_)), Some(message), true) = (&whole, pending.message(), body["stream"] == true) {
        let usage = body["stream_options"]["include_usage"] == true;
        let events = openai::events(message, format, usage).into_iter().map(|(name, data)| {
            let name = if name.is_empty() { name } else { format!("event: {name}\n") };
            Bytes::from(format!("{name}data: {data}\n\n"))
        });
        return stream_out(events.collect(), pending, service, (REQUEST_ID, request_id));
    }
    let headers = pending.headers.clone();
    match service.model.finish(pending).and_then(|_| whole.unwrap_or_else(|| Ok(Value::Null))) {
        Ok(body) => with(&headers, HttpResponse::Ok()).insert_header((REQUEST_ID, request_id)).json(body),
        Err(error) => with(&headers, refused(&error, REQUEST_ID, &request_id)).json(openai::error(&error)),
    }
}

/// Reads a body. A key is not asked for, but one that is there must be sent as these APIs take it.
fn read(request: &HttpRequest, body: &Bytes) -> Result<Value, ApiError> {
    if request.headers().contains_key("x-api-key") {
        let message = String::from("the key belongs into the header authorization");
        return Err(ApiError { status: 401, kind: String::from("authentication_error"), message, retry_after: None });
    }
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the request body is not valid JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::clients::llm::fixture::{assistant, go_on, provider, request, with_settings, with_tools};
    use crate::clients::llm::script::ScriptedModel;
    use crate::clients::llm::{LlmClient, LlmError};
    use crate::config::{Api, ProviderConfig, ProviderKind, When};
    use crate::domain::message::{StopReason, Usage};
    use crate::domain::outcome::Failure;
    use crate::http::scripted_model::{ServerHandle, serve};

    const SCRIPT: &str = r#"
rules:
  - match: {prompt: weather, tools_allowed: false}
    reply: {text: "No more tools, so: {{ tool_results | join(', ') }}"}
  - match: {prompt: weather, system: be brief}
    replies:
      - thinking: two cities are asked for
        text: Let me see.
        tool_calls:
          - {name: get_weather, input: {city: Rome}}
          - {name: get_weather, input: {city: Oslo}}
      - text: "{{ tool_results | join(', ') }}"
        usage: {input_tokens: 100, output_tokens: 5, cache_read_tokens: 80}
  - match: {prompt: limited}
    reply: {text: at last, fail_first: {times: 1, status: 429, retry_after: 1.5}}
  - match: {prompt: broke}
    reply: {error: {status: 429, type: insufficient_quota}}
  - match: {prompt: reason max_tokens}
    reply: {text: cut, tool_calls: [{name: get_weather}], stop_reason: max_tokens}
  - match: {prompt: reason refusal}
    reply: {stop_reason: refusal, stop_details: {type: refusal, explanation: "no"}}
  - match: {prompt: reason filter}
    reply: {stop_reason: refusal}
  - match: {prompt: reason context}
    reply: {text: a, stop_reason: model_context_window_exceeded}
  - match: {prompt: json}
    reply: {json: {n: 1}}
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

    /// Every way in which the formats can be spoken.
    const WAYS: [(Api, When); 4] = [
        (Api::Chat, When::Never),
        (Api::Chat, When::Always),
        (Api::Responses, When::Never),
        (Api::Responses, When::Always),
    ];

    impl Running {
        fn client(&self, (api, stream): (Api, When)) -> LlmClient {
            let base_url = provider(&self.base_url).base_url;
            let config = ProviderConfig::of(ProviderKind::Openai);
            LlmClient::new("main", &ProviderConfig { base_url, api, stream, ..config }).expect("a valid provider")
        }
    }

    #[actix_web::test]
    async fn a_tool_loop_runs_in_every_format_whole_and_streamed() {
        for way in WAYS {
            let running = start();
            let client = running.client(way);
            let mut call = with_tools(request("weather please"), &["get_weather"]);
            call.system = Some(String::from("be brief"));
            let first = client.complete(&call).await.unwrap_or_else(|error| panic!("{way:?}: {error}"));
            assert_eq!((first.stop_reason.clone(), first.turn.text.as_str()), (StopReason::ToolUse, "Let me see."));
            let cities: Vec<_> = first.turn.tool_uses.iter().map(|tool| tool.input["city"].clone()).collect();
            assert_eq!(cities, ["Rome", "Oslo"], "{way:?}");
            assert!(first.turn.raw.get().contains("two cities"), "{way:?}: {}", first.turn.raw);
            assert!(first.request_id.as_deref().is_some_and(|id| id.starts_with("req_scripted_")));

            // The server refuses thinking whose words or signature changed and results that do not fit their calls.
            go_on(&mut call, &first, "sunny in");
            let last = client.complete(&call).await.unwrap_or_else(|error| panic!("{way:?}: {error}"));
            assert_eq!(last.turn.text, r#"sunny in "Rome", sunny in "Oslo""#);
            assert_eq!(last.stop_reason, StopReason::EndTurn);
            let usage =
                Usage { input_tokens: 100, output_tokens: 5, cache_read_tokens: 80, cache_write_tokens: 0, cost: None };
            assert_eq!(last.usage, usage, "{way:?}");

            // Another client, as after a takeover, is given the same turn, byte for byte.
            let again = running.client(way).complete(&call).await.expect("the same turn");
            assert_eq!(again.turn.raw.get(), last.turn.raw.get());
            let log = running.model.log();
            assert_eq!((log.completions, log.repeated, log.conversations.len()), (3, 1, 1), "{way:?}");

            call.tools_allowed = false;
            let forced = client.complete(&call).await.expect("a turn without tools");
            assert!(forced.turn.text.starts_with("No more tools"), "{}", forced.turn.text);

            let changed = first.turn.raw.get().replace("two cities", "three cities");
            call.turns[1] = assistant(&changed);
            let failure = Failure::from(client.complete(&call).await.expect_err("a changed thought"));
            assert!(failure.message.contains("Invalid `signature`"), "{way:?}: {}", failure.message);
            running.handle.stop(false).await;
        }
    }

    #[actix_web::test]
    async fn a_conversation_goes_on_in_another_format_with_another_provider() {
        let running = start();
        let mut call = with_tools(request("weather please"), &["get_weather"]);
        call.system = Some(String::from("be brief"));
        let anthropic = LlmClient::new("main", &provider(&running.base_url)).expect("a valid provider");
        let [chat, responses] = [WAYS[0], WAYS[2]].map(|way| running.client(way));
        let clients = [&anthropic, &chat, &responses];
        for (wrote, reads) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
            let first = clients[wrote].complete(&call).await.expect("the first turn");
            let mut call = call.clone();
            go_on(&mut call, &first, "sunny in");
            let last =
                clients[reads].complete(&call).await.unwrap_or_else(|error| panic!("{wrote} to {reads}: {error}"));
            assert_eq!(last.turn.text, r#"sunny in "Rome", sunny in "Oslo""#, "{wrote} to {reads}");
        }
        assert_eq!(running.model.log().conversations.len(), 1);
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn every_end_arrives_in_every_format() {
        let running = start();
        for way in WAYS {
            let refusal = |category: Option<&str>, words: Option<&str>| StopReason::Refusal {
                category: category.map(str::to_owned),
                explanation: words.map(str::to_owned),
            };
            for (prompt, reason) in [
                ("reason max_tokens", StopReason::MaxTokens),
                ("reason refusal", refusal(None, Some("no"))),
                ("reason filter", refusal(Some("content_filter"), None)),
            ] {
                let call = with_tools(request(prompt), &["get_weather"]);
                let completion = running.client(way).complete(&call).await.expect(prompt);
                assert_eq!(completion.stop_reason, reason, "{way:?}");
                assert!(completion.turn.tool_uses.is_empty(), "{prompt}: a call that was cut off is not asked for");
            }
            let failure =
                Failure::from(running.client(way).complete(&request("reason context")).await.expect_err("full"));
            assert_eq!(failure.code, "context_overflow", "{way:?}");
        }
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn errors_arrive_with_their_wait() {
        for way in WAYS {
            let running = start();
            let client = running.client(way);
            let LlmError::Status(error) = client.complete(&request("limited")).await.expect_err("the first call")
            else {
                panic!("an error of the API")
            };
            assert_eq!((error.status, error.kind.as_deref()), (429, Some("rate_limit_exceeded")));
            assert_eq!(error.retry_after, Some(Duration::from_millis(1500)));
            assert_eq!(client.complete(&request("limited")).await.expect("the second call").turn.text, "at last");
            let broke = Failure::from(client.complete(&request("broke")).await.expect_err("always"));
            assert_eq!(broke.code, "billing", "{way:?}");
            running.handle.stop(false).await;
        }
    }

    #[actix_web::test]
    async fn what_the_client_sends_by_itself_obeys_the_api() {
        let running = start();
        let optional = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "oneOf": [{}]});
        let required = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]});
        let settings = json!({"temperature": 0.3, "top_p": 0.9, "effort": "low", "stop": ["END"], "model": "m"});
        for way in WAYS {
            for schema in [&optional, &required] {
                let mut call = with_settings(request("json"), settings.clone());
                call.output_schema = Some(Arc::new(schema.clone()));
                let completion = running.client(way).complete(&call).await;
                let completion = completion.unwrap_or_else(|error| panic!("{way:?} {schema}: {error}"));
                assert_eq!(completion.turn.text, r#"{"n":1}"#);
            }
        }
        running.handle.stop(false).await;
    }

    #[actix_web::test]
    async fn what_the_apis_refuse_is_refused() {
        let running = start();
        let model = &running.model;
        let refused = |body: Value, format: Format, words: &str| {
            let error = model.finish(model.answer_openai(&body, format)).expect_err(words);
            assert!(error.message.contains(words), "{words}: {}", error.message);
        };
        let user = json!({"role": "user", "content": "json"});
        let said = |call: Value| json!({"role": "assistant", "content": null, "tool_calls": [call]});
        let call =
            |arguments: &str| json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}});
        let open = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": false});
        let strict = json!({"name": "answer", "strict": true, "schema": open});
        for (body, words) in [
            (json!({"messages": [user], "model": "m", "unheard_of": 1}), "Unrecognized request argument"),
            (json!({"messages": [user, said(call("{"))], "model": "m"}), "not a text of a JSON object"),
            (json!({"messages": [user, said(call("{}"))], "model": "m", "tools": []}), "must end with a user message"),
            (
                json!({"messages": [user, {"role": "assistant", "content": "a", "tool_calls": []}], "model": "m"}),
                "at least one call",
            ),
            (json!({"messages": [user, {"role": "robot"}], "model": "m"}), "none of system"),
            (
                json!({"messages": [user], "model": "m", "response_format": {"type": "json_schema", "json_schema": strict}}),
                "missing 'n'",
            ),
            (
                json!({"messages": [user], "model": "m", "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}),
                "missing properties",
            ),
        ] {
            refused(body, Format::Chat, words);
        }
        let reasoning = json!({"type": "reasoning", "id": "rs_1", "summary": []});
        for (body, words) in [
            (json!({"input": [user, reasoning], "model": "m", "store": false}), "not stored"),
            (json!({"input": [user, {"type": "hologram"}], "model": "m"}), "is not known"),
            (
                json!({"input": "json", "model": "m", "tools": [{"type": "function", "name": "f", "parameters": open}]}),
                "missing 'n'",
            ),
        ] {
            refused(body, Format::Responses, words);
        }
        assert_eq!(model.log().completions, 0);
        running.handle.stop(false).await;
    }
}
