//! The model of a run: the scripted one over HTTP. Each completion is counted, and each word that a model is told about
//! an effect is noted, so that it can be held against what happened.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use da_node_executor::clients::llm::script::{ApiError, ScriptedModel};
use serde_json::Value;

use super::effects::Counter;
use super::evidence::Told;

/// The system prompt marks an agent, its task is the name that its effects bear. Whoever is patient meets servers that
/// ask for more time than a node may hold its slot for.
const SCRIPT: &str = r#"
rules:
  - match: {system: a patient agent}
    replies:
      - tool_calls: [{name: charge, input: {effect: "{{ prompt }}.0"}}]
        delay: 2ms
      - tool_calls:
          - {name: busy, input: {effect: "{{ prompt }}.1"}}
          - {name: put, input: {effect: "{{ prompt }}.2"}}
        delay: 2ms
      - text: "done with {{ prompt }}"
        fail_first: {times: 1, status: 429, retry_after: 0.7}
        delay: 2ms
  - match: {system: an agent}
    replies:
      - tool_calls: [{name: charge, input: {effect: "{{ prompt }}.0"}}]
        delay: 2ms
      - tool_calls:
          - {name: put, input: {effect: "{{ prompt }}.1"}}
          - {name: charge, input: {effect: "{{ prompt }}.2"}}
        delay: 2ms
      - text: "done with {{ prompt }}"
        delay: 2ms
  - match: {system: patient}
    reply:
      text: "You said: {{ prompt }}"
      fail_first: {times: 1, status: 429, retry_after: 0.7}
      delay: 2ms
  - reply: {text: "You said: {{ prompt }}", delay: 2ms}
"#;

/// What the worker says of a call whose outcome nobody knows.
const UNKNOWN: &str = "was interrupted and its result is lost";

/// The model.
pub struct Model {
    script: ScriptedModel,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Completions by what was asked and at which turn.
    given: HashMap<(String, usize), u64>,
    told: HashMap<String, Told>,
    waits: usize,
}

impl Model {
    pub fn new() -> Self {
        let script = ScriptedModel::parse(SCRIPT, "the suite's script").unwrap_or_else(|error| panic!("{error}"));
        Self { script, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completions of turns that had been given before.
    pub fn repeated(&self) -> u64 {
        self.counts().given.values().map(|times| times - 1).sum()
    }

    /// How often a wait was asked for.
    pub fn waits(&self) -> usize {
        self.counts().waits
    }

    /// What was told about each effect.
    pub fn told(&self) -> HashMap<String, Told> {
        self.counts().told.clone()
    }

    /// Notes what a request says about effects.
    fn read(&self, messages: &[Value], counter: &Counter) {
        let mut wanted: HashMap<&str, &str> = HashMap::new();
        let blocks = messages.iter().filter_map(|message| message["content"].as_array()).flatten();
        for block in blocks {
            let text = |name: &str| block[name].as_str().unwrap_or_default();
            match text("type") {
                "tool_use" => drop(wanted.insert(text("id"), block["input"]["effect"].as_str().unwrap_or_default())),
                "tool_result" => {
                    let effect = wanted.get(text("tool_use_id")).copied().unwrap_or("a call that nobody asked for");
                    let words = block["content"].to_string();
                    let failed = block["is_error"] == true;
                    let mut counts = self.counts();
                    let told = counts.told.entry(String::from(effect)).or_default();
                    if !failed && words.contains(effect) {
                        told.happened = true;
                        counter.ended(effect);
                    } else if failed && words.contains(UNKNOWN) {
                        told.unknown = true;
                    } else {
                        told.other = Some(words);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Answers a request of the Messages API.
pub async fn messages(request: HttpRequest, body: Bytes, model: Data<Model>, counter: Data<Counter>) -> HttpResponse {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else { return HttpResponse::BadRequest().finish() };
    let said = body["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    model.read(said, &counter);
    let turn = said.iter().filter(|message| message["role"] == "assistant").count();
    let version = request.headers().get("anthropic-version").and_then(|version| version.to_str().ok());
    let pending = model.script.answer(&body, version.unwrap_or_default());
    // Whoever dies meanwhile has gone away, and is given nothing.
    tokio::time::sleep(pending.delay).await;
    match model.script.finish(pending) {
        Ok(message) => {
            let asked = format!("{}{}", body["system"], said[0]["content"]);
            *model.counts().given.entry((asked, turn)).or_default() += 1;
            HttpResponse::Ok().json(message)
        }
        Err(error) => refusal(&model, &error),
    }
}

fn refusal(model: &Model, error: &ApiError) -> HttpResponse {
    let mut response = HttpResponse::build(StatusCode::from_u16(error.status).expect("a status"));
    if let Some(wait) = error.retry_after {
        model.counts().waits += 1;
        response.insert_header(("retry-after", wait.div_duration_f64(Duration::from_secs(1)).ceil().to_string()));
        response.insert_header(("retry-after-ms", wait.as_millis().to_string()));
    }
    response.json(error.body("req_suite"))
}
