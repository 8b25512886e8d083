//! The tools of a run, over MCP and plain HTTP, whose effects are counted. They live in the test's own process, beside
//! the model, and survive every fault.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::web::{self, Bytes, Data, Path};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::checker::NO_KEY;
use super::evidence::{Effect, Told};
use super::model::{self, Model};

/// Where a worker puts the idempotency key of a call.
const KEY: &str = "da-node-executor/idempotencyKey";
/// How long a call of `slow` takes: longer than a worker has after SIGTERM.
pub const SLOW: Duration = Duration::from_millis(700);
/// How long a call takes that nobody is meant to wait for.
const ENDLESS: Duration = Duration::from_secs(60);
/// Looks at a task that find it at work, and how long a worker has to wait for each: longer than a slot is held for.
const LOOKS: usize = 2;
const TASK_PAUSE_MS: u64 = 400;
/// Characters of a large output: more than a worker puts into state and event.
const LARGE: usize = 4096;

/// The tools and the model; they end with their owner.
pub struct World {
    counter: Data<Counter>,
    model: Data<Model>,
    port: u16,
    handle: actix_web::dev::ServerHandle,
}

/// Counts what happens.
pub struct Counter {
    seen: Mutex<Seen>,
    poisoned: mpsc::UnboundedSender<usize>,
}

#[derive(Default)]
struct Seen {
    effects: HashMap<String, Effect>,
    /// Effects of which a model was told that they happened.
    ended: HashSet<String>,
    /// Effects whose first request was put off.
    put_off: HashSet<String>,
    /// How often each task was looked at.
    looks: HashMap<String, usize>,
}

impl Counter {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The effect itself: it has happened, whoever is still alive to hear of it.
    fn happen(&self, name: &str, key: &str) {
        let mut seen = self.seen();
        let ended = seen.ended.contains(name);
        let effect = seen.effects.entry(String::from(name)).or_default();
        effect.times += 1;
        effect.after_end += u32::from(ended);
        effect.keys.insert(String::from(key));
    }

    /// A model was told that this effect has happened.
    pub fn ended(&self, name: &str) {
        self.seen().ended.insert(String::from(name));
    }

    /// Whether this is the first request for an effect, which is put off.
    fn put_off(&self, name: &str) -> bool {
        self.seen().put_off.insert(String::from(name))
    }
}

impl World {
    /// Starts both; the channel tells the slot of a worker that called the tool which kills.
    pub fn start() -> (Self, mpsc::UnboundedReceiver<usize>) {
        let (poisoned, kills) = mpsc::unbounded_channel();
        let counter = Data::new(Counter { seen: Mutex::default(), poisoned });
        let model = Data::new(Model::new());
        let (counted, asked) = (counter.clone(), model.clone());
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(counted.clone())
                        .app_data(asked.clone())
                        .route("/mcp/{slot}", web::post().to(mcp))
                        .route("/works", web::post().to(works))
                        .route("/effect/{name}", web::post().to(effect))
                        .route("/effect/{name}", web::put().to(effect))
                        .route("/slow/{name}", web::post().to(slow))
                        .route("/v1/messages", web::post().to(model::messages))
                })
                .workers(1)
                // A worker that was frozen must not find its connections closed: that would be another test.
                .keep_alive(Duration::from_secs(3600))
                // Nor one that a worker has made in store and not used yet.
                .client_request_timeout(Duration::ZERO)
                // A worker that was killed has cancelled its calls: nobody pays for what nobody was given.
                .h1_allow_half_closed(false)
                .disable_signals()
                .shutdown_timeout(0)
                .bind(("127.0.0.1", 0))
                .expect("a free port");
                let port = server.addrs()[0].port();
                let server = server.run();
                send.send((port, server.handle())).expect("the test waits");
                let _ = server.await;
            });
        });
        let (port, handle) = receive.recv().expect("the server listens");
        (Self { counter, model, port, handle }, kills)
    }

    /// The host as `tools.http_request.allow` wants it.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The MCP servers of the worker in a slot: the one whose address tells who calls, and the one whose calls become
    /// tasks.
    pub fn servers(&self, slot: usize) -> String {
        let host = self.host();
        format!("effects=http://{host}/mcp/{slot},works=http://{host}/works")
    }

    /// Where the model is.
    pub fn model_url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// What happened so far.
    pub fn effects(&self) -> HashMap<String, Effect> {
        self.counter.seen().effects.clone()
    }

    /// What models were told about it.
    pub fn told(&self) -> HashMap<String, Told> {
        self.model.told()
    }

    /// Completions of turns that had been given before.
    pub fn completions_repeated(&self) -> u64 {
        self.model.repeated()
    }

    /// How often a worker was told to come again later.
    pub fn put_off(&self) -> usize {
        self.counter.seen().put_off.len() + self.model.waits()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

fn header_key(request: &HttpRequest) -> String {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    String::from(key.unwrap_or(NO_KEY))
}

async fn effect(name: Path<String>, request: HttpRequest, counter: Data<Counter>) -> HttpResponse {
    counter.happen(&name, &header_key(&request));
    tokio::time::sleep(Duration::from_millis(1)).await;
    HttpResponse::Ok().json(json!({ "effect": *name }))
}

async fn slow(name: Path<String>, request: HttpRequest, counter: Data<Counter>) -> HttpResponse {
    counter.happen(&name, &header_key(&request));
    tokio::time::sleep(SLOW).await;
    HttpResponse::Ok().json(json!({ "effect": *name }))
}

/// A stateless MCP server that answers with plain JSON.
async fn mcp(slot: Path<usize>, body: Bytes, counter: Data<Counter>) -> HttpResponse {
    let Ok(message) = serde_json::from_slice::<Value>(&body) else { return HttpResponse::BadRequest().finish() };
    let Some(id) = message.get("id") else { return HttpResponse::Accepted().finish() };
    let params = &message["params"];
    let result = match message["method"].as_str() {
        Some("initialize") => json!({
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "effects", "version": "1"},
        }),
        Some("tools/list") => {
            let once = ["charge", "busy", "large"].map(|name| tool(name, false));
            let again = ["put", "hold", "poison"].map(|name| tool(name, true));
            let all: Vec<Value> = once.into_iter().chain(again).collect();
            json!({ "tools": all })
        }
        Some("tools/call") => match call(*slot, params, &counter).await {
            Some(result) => result,
            None => return HttpResponse::TooManyRequests().insert_header(("retry-after", "1")).finish(),
        },
        _ => json!({}),
    };
    HttpResponse::Ok().json(json!({"jsonrpc": "2.0", "id": id, "result": result}))
}

/// What a tool does; nothing if it wants to be asked again later.
async fn call(slot: usize, params: &Value, counter: &Counter) -> Option<Value> {
    let name = params["arguments"]["effect"].as_str().unwrap_or_default();
    if params["name"] == "busy" && counter.put_off(name) {
        return None;
    }
    counter.happen(name, params["_meta"][KEY].as_str().unwrap_or(NO_KEY));
    let mut output = json!({ "effect": name });
    match params["name"].as_str().unwrap_or_default() {
        "poison" => {
            let _ = counter.poisoned.send(slot);
            // Nobody will be there to hear the answer.
            tokio::time::sleep(ENDLESS).await;
        }
        "hold" => tokio::time::sleep(ENDLESS).await,
        "large" => output["filler"] = Value::from("x".repeat(LARGE)),
        _ => {}
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    Some(json!({"content": [{"type": "text", "text": name}], "structuredContent": output}))
}

/// A server of the modern era that works on its calls by itself.
async fn works(body: Bytes, counter: Data<Counter>) -> HttpResponse {
    let Ok(message) = serde_json::from_slice::<Value>(&body) else { return HttpResponse::BadRequest().finish() };
    let params = &message["params"];
    let state = |task: &Value, status: &str| {
        json!({"resultType": "complete", "taskId": task, "status": status, "ttlMs": null, "pollIntervalMs": TASK_PAUSE_MS,
            "createdAt": "2026-01-02T03:04:05Z", "lastUpdatedAt": "2026-01-02T03:04:05Z"})
    };
    let result = match message["method"].as_str() {
        Some("server/discover") => {
            json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})
        }
        Some("tools/list") => json!({"resultType": "complete", "tools": [tool("build", false)]}),
        Some("tools/call") => {
            let name = &params["arguments"]["effect"];
            counter.happen(name.as_str().unwrap_or_default(), params["_meta"][KEY].as_str().unwrap_or(NO_KEY));
            let mut task = state(name, "working");
            task["resultType"] = json!("task");
            task
        }
        Some("tasks/get") => {
            let (task, mut seen) = (&params["taskId"], counter.seen());
            let looks = seen.looks.entry(task.as_str().unwrap_or_default().to_owned()).or_default();
            *looks += 1;
            match *looks {
                0..=LOOKS => state(task, "working"),
                _ => {
                    let mut ended = state(task, "completed");
                    ended["result"] = json!({"content": [], "structuredContent": {"effect": task}});
                    ended
                }
            }
        }
        _ => json!({"resultType": "complete"}),
    };
    HttpResponse::Ok().json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
}

fn tool(name: &str, idempotent: bool) -> Value {
    json!({
        "name": name,
        "inputSchema": {"type": "object", "properties": {"effect": {"type": "string"}}, "required": ["effect"]},
        "annotations": {"readOnlyHint": false, "destructiveHint": true, "idempotentHint": idempotent},
    })
}
