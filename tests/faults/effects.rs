//! The world that nodes act on: tools whose effects are counted, over MCP and plain HTTP, and the scripted model. They
//! live in the test's own process and survive every fault.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::web::{self, Bytes, Data, Path};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use da_node_executor::clients::llm::script::{Calls, ScriptedModel};
use da_node_executor::http::scripted_model;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::checker::Effect;

/// Where a worker puts the idempotency key of a call.
const KEY: &str = "da-node-executor/idempotencyKey";
/// How long a call of `slow` takes: longer than a worker has after SIGTERM.
pub const SLOW: Duration = Duration::from_millis(700);

/// The agent's script: its system prompt marks it, its task is the name that its effects bear.
const SCRIPT: &str = r#"
rules:
  - match: {system: agent}
    replies:
      - tool_calls: [{name: charge, input: {effect: "{{ prompt }}.0"}}]
        delay: 2ms
      - tool_calls:
          - {name: put, input: {effect: "{{ prompt }}.1"}}
          - {name: charge, input: {effect: "{{ prompt }}.2"}}
        delay: 2ms
      - text: "done with {{ prompt }}"
        delay: 2ms
  - reply: {text: "You said: {{ prompt }}", delay: 2ms}
"#;

/// The tools and the model; they end with their owner.
pub struct World {
    counter: Arc<Counter>,
    model: Arc<ScriptedModel>,
    port: u16,
    model_url: String,
    handles: Vec<actix_web::dev::ServerHandle>,
}

struct Counter {
    effects: Mutex<HashMap<String, Effect>>,
    poisoned: mpsc::UnboundedSender<usize>,
}

impl Counter {
    fn effects(&self) -> MutexGuard<'_, HashMap<String, Effect>> {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The effect itself: it has happened, whoever is still alive to hear of it.
    fn happen(&self, name: &str, key: &str) {
        let mut effects = self.effects();
        let effect = effects.entry(String::from(name)).or_default();
        effect.times += 1;
        effect.keys.insert(String::from(key));
    }
}

impl World {
    /// Starts both; the channel tells the slot of a worker that called the tool which kills.
    pub fn start() -> (Self, mpsc::UnboundedReceiver<usize>) {
        let (poisoned, kills) = mpsc::unbounded_channel();
        let counter = Arc::new(Counter { effects: Mutex::default(), poisoned });
        let model = Arc::new(ScriptedModel::parse(SCRIPT, "the suite's script").unwrap_or_else(|e| panic!("{e}")));
        let (served, counted) = (Arc::clone(&model), Arc::clone(&counter));
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let listening = scripted_model::serve(served, ("127.0.0.1", 0)).expect("a free port");
                let counted = Data::new(counted);
                let tools = HttpServer::new(move || {
                    App::new()
                        .app_data(counted.clone())
                        .route("/mcp/{slot}", web::post().to(mcp))
                        .route("/effect/{name}", web::post().to(effect))
                        .route("/slow/{name}", web::post().to(slow))
                })
                .workers(1)
                // A worker that was frozen must not find its connections closed: that would be another test.
                .keep_alive(Duration::from_secs(3600))
                .disable_signals()
                .shutdown_timeout(0)
                .bind(("127.0.0.1", 0))
                .expect("a free port");
                let port = tools.addrs()[0].port();
                let tools = tools.run();
                let handles = vec![listening.handle(), tools.handle()];
                send.send((port, listening.base_url(), handles)).expect("the test waits");
                let _ = tokio::join!(listening.server, tools);
            });
        });
        let (port, model_url, handles) = receive.recv().expect("the servers listen");
        (Self { counter, model, port, model_url, handles }, kills)
    }

    /// The host as `tools.http_request.allow` wants it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The MCP endpoint of the worker in a slot: its address tells who calls.
    pub fn mcp(&self, slot: usize) -> String {
        format!("http://{}/mcp/{slot}", self.host())
    }

    /// Where the model is.
    pub fn model_url(&self) -> &str {
        &self.model_url
    }

    /// What happened so far.
    pub fn effects(&self) -> HashMap<String, Effect> {
        self.counter.effects().clone()
    }

    /// What the model was asked so far.
    pub fn calls(&self) -> Calls {
        self.model.log()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for handle in &self.handles {
            drop(handle.stop(false));
        }
    }
}

type Shared = Data<Arc<Counter>>;

fn header_key(request: &HttpRequest) -> String {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    String::from(key.unwrap_or("none"))
}

async fn effect(name: Path<String>, request: HttpRequest, counter: Shared) -> HttpResponse {
    counter.happen(&name, &header_key(&request));
    tokio::time::sleep(Duration::from_millis(1)).await;
    HttpResponse::Ok().json(json!({ "effect": *name }))
}

async fn slow(name: Path<String>, request: HttpRequest, counter: Shared) -> HttpResponse {
    counter.happen(&name, &header_key(&request));
    tokio::time::sleep(SLOW).await;
    HttpResponse::Ok().json(json!({ "effect": *name }))
}

/// A stateless MCP server that answers with plain JSON.
async fn mcp(slot: Path<usize>, body: Bytes, counter: Shared) -> HttpResponse {
    let Ok(message) = serde_json::from_slice::<Value>(&body) else { return HttpResponse::BadRequest().finish() };
    let Some(id) = message.get("id") else { return HttpResponse::Accepted().finish() };
    let params = &message["params"];
    let result = match message["method"].as_str() {
        Some("initialize") => json!({
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "effects", "version": "1"},
        }),
        Some("tools/list") => json!({"tools": [tool("charge", false), tool("put", true), tool("poison", true)]}),
        Some("tools/call") => {
            let name = params["arguments"]["effect"].as_str().unwrap_or_default();
            counter.happen(name, params["_meta"][KEY].as_str().unwrap_or("none"));
            if params["name"] == "poison" {
                let _ = counter.poisoned.send(*slot);
                // Nobody will be there to hear the answer.
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            json!({"content": [{"type": "text", "text": name}], "structuredContent": {"effect": name}})
        }
        _ => json!({}),
    };
    HttpResponse::Ok().json(json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

fn tool(name: &str, idempotent: bool) -> Value {
    json!({
        "name": name,
        "inputSchema": {"type": "object", "properties": {"effect": {"type": "string"}}, "required": ["effect"]},
        "annotations": {"readOnlyHint": false, "destructiveHint": true, "idempotentHint": idempotent},
    })
}
