//! An MCP server by the official Rust SDK, in both eras: what the integration tests talk to.
//!
//! `rmcp_server stdio` or `rmcp_server http` (which prints its address), with `--legacy` to speak no version without a
//! handshake, and over HTTP with `--json` to answer by JSON where it can.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, ContentBlock, CreateTaskResult,
    ErrorData, GetTaskParams, GetTaskResult, Implementation, InputRequest, ListToolsResult, PaginatedRequestParams,
    ProgressNotificationParam, ProtocolVersion, ServerCapabilities, ServerConfig, SubscriptionFilter, Tool,
    ToolAnnotations, UpdateTaskParams,
};
use rmcp::service::{RequestContext, SubscriptionContext};
use rmcp::task_manager::{TaskContext, TaskExit, TaskManager, TaskOptions};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService, stdio};
use rmcp::{RoleServer, ServerHandler, ServiceExt as _};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// The server; all copies tell of the same changes.
#[derive(Clone)]
struct Server {
    legacy: bool,
    changes: watch::Sender<u64>,
    tasks: TaskManager,
}

fn object(value: Value) -> Arc<Map<String, Value>> {
    match value {
        Value::Object(members) => Arc::new(members),
        other => panic!("{other} is no object"),
    }
}

fn tools() -> Vec<Tool> {
    let number = json!({"type": "integer"});
    let two = json!({"type": "object", "properties": {"a": number, "b": number}, "required": ["a", "b"]});
    let sum = json!({"type": "object", "properties": {"sum": number}, "required": ["sum"]});
    let any = || object(json!({"type": "object"}));
    let read_only = ToolAnnotations::with_title("Adds").read_only(true).idempotent(true);
    vec![
        Tool::new("add", "Adds two numbers.", object(two))
            .with_raw_output_schema(object(sum))
            .with_annotations(read_only),
        Tool::new("fail", "Says that it failed.", any()),
        Tool::new("refuse", "Refuses the call.", any()),
        Tool::new("count", "Counts and tells how far it is.", any()),
        Tool::new("wait", "Waits until it is cancelled and writes that down.", any()),
        Tool::new("show", "Shows every kind of content.", any()),
        Tool::new("meta", "Gives back what came beside the arguments.", any()),
        Tool::new("change", "Says that the tools have changed.", any()),
        Tool::new("build", "Becomes a task, asks for a name if it shall, and writes down what it does.", any()),
    ]
}

/// Tools of one page of the list.
const PAGE: usize = 3;

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(
            ServerCapabilities::builder().enable_tools().enable_tool_list_changed().enable_tasks().build(),
        )
        .with_server_info(Implementation::new("rmcp-under-test", "1.0.0"))
        .with_instructions("Add numbers.")
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        let newest = if self.legacy { ProtocolVersion::V_2025_11_25 } else { ProtocolVersion::V_2026_07_28 };
        Cow::Borrowed(ProtocolVersion::known_up_to(&newest))
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.changes.subscribe();
        loop {
            tokio::select! {
                () = context.cancelled() => return Ok(()),
                changed = changes.changed() => {
                    if changed.is_err() || context.sink().notify_tool_list_changed().await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let cursor = request.and_then(|request| request.cursor).unwrap_or_else(|| String::from("0"));
        let from: usize = cursor.parse().map_err(|_| ErrorData::invalid_params("no such cursor", None))?;
        let all = tools();
        let until = all.len().min(from + PAGE);
        let mut page = ListToolsResult::with_all_items(all[from..until].to_vec());
        page.next_cursor = (until < all.len()).then(|| until.to_string());
        Ok(page)
    }

    async fn get_task(&self, task: GetTaskParams, _: RequestContext<RoleServer>) -> Result<GetTaskResult, ErrorData> {
        Ok(GetTaskResult::new(self.tasks.get_task(&task.task_id)?))
    }

    async fn update_task(&self, update: UpdateTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        self.tasks.update_task(&update.task_id, update.input_responses)
    }

    async fn cancel_task(&self, task: CancelTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        self.tasks.cancel_task(&task.task_id)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let number = |name: &str| arguments.get(name).and_then(Value::as_i64).unwrap_or_default();
        let text = |words: &str| vec![ContentBlock::text(words)];
        let result = match &*request.name {
            "add" => CallToolResult::structured(json!({"sum": number("a") + number("b")})),
            "fail" => CallToolResult::error(text("out of cheese")),
            "refuse" => return Err(ErrorData::invalid_params("not like this", None)),
            "count" => {
                let steps = number("steps");
                for step in 1..=steps {
                    tokio::time::sleep(Duration::from_millis(number("pause_ms").unsigned_abs())).await;
                    if let Some(token) = context.meta.get_progress_token() {
                        let progress = ProgressNotificationParam::new(token, step as f64)
                            .with_total(steps as f64)
                            .with_message(format!("step {step}"));
                        context
                            .peer
                            .notify_progress(progress)
                            .await
                            .map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
                    }
                }
                CallToolResult::success(text("counted"))
            }
            "wait" => {
                let log = arguments.get("log").and_then(Value::as_str).unwrap_or_default().to_owned();
                write(&log, "started\n");
                tokio::select! {
                    () = context.ct.cancelled() => write(&log, "started\ncancelled\n"),
                    () = tokio::time::sleep(Duration::from_secs(30)) => write(&log, "started\nfinished\n"),
                }
                CallToolResult::success(text("waited"))
            }
            "show" => CallToolResult::success(vec![
                ContentBlock::text("größe ☃"),
                ContentBlock::image("iVBORw0KGgo=", "image/png"),
                ContentBlock::audio("UklGRg==", "audio/wav"),
            ]),
            "meta" => CallToolResult::structured(json!(context.meta)),
            "change" => {
                self.changes.send_modify(|changes| *changes += 1);
                // Those who listen are told on their own stream; a client of the legacy era is told here.
                let _ = context.peer.notify_tool_list_changed().await;
                CallToolResult::success(text("changed"))
            }
            "build" => {
                let build = Build {
                    name: arguments.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
                    log: arguments.get("log").and_then(Value::as_str).unwrap_or_default().to_owned(),
                    takes: Duration::from_millis(number("ms").unsigned_abs()),
                    asks: arguments.get("asks").and_then(Value::as_bool).unwrap_or_default(),
                };
                build.note("called");
                if !context.client_capabilities().is_some_and(|client| client.supports_tasks()) {
                    return Ok(CallToolResult::success(text("built at once")).into());
                }
                let options = TaskOptions::new().with_poll_interval_ms(number("poll_ms").unsigned_abs());
                let options = match number("ttl_ms") {
                    0 => options,
                    ttl => options.with_ttl_ms(ttl.unsigned_abs()),
                };
                let task = self.tasks.spawn(options, move |task| Box::pin(build.run(task)));
                return Ok(CallToolResponse::Task(CreateTaskResult::new(task)));
            }
            other => {
                let mut words = String::from("there is no tool ");
                let _ = write!(words, "`{other}`");
                return Err(ErrorData::invalid_params(words, None));
            }
        };
        Ok(result.into())
    }
}

/// One run of the tool `build`.
struct Build {
    name: String,
    log: String,
    takes: Duration,
    asks: bool,
}

impl Build {
    async fn run(self, task: TaskContext) -> Result<CallToolResult, TaskExit> {
        task.set_status_message("laying bricks");
        let mut built = format!("built {}", self.name);
        if self.asks {
            let question = json!({"method": "elicitation/create", "params": {
                "mode": "form", "message": "For whom?",
                "requestedSchema": {"type": "object", "properties": {"whom": {"type": "string"}}},
            }});
            let question: InputRequest = serde_json::from_value(question).expect("a question");
            let answer = task.request_input("whom", question).await?;
            self.note("answered");
            built = format!("{built} {answer}");
        }
        tokio::select! {
            () = task.cancelled() => {
                self.note("cancelled");
                Err(TaskExit::Cancelled)
            }
            () = tokio::time::sleep(self.takes) => {
                self.note("built");
                Ok(CallToolResult::success(vec![ContentBlock::text(built)]))
            }
        }
    }

    /// Adds a line to the log.
    fn note(&self, words: &str) {
        if !self.log.is_empty() {
            let before = std::fs::read_to_string(&self.log).unwrap_or_default();
            write(&self.log, &format!("{before}{words} {}\n", self.name));
        }
    }
}

fn write(log: &str, words: &str) {
    std::fs::write(log, words).expect("the test has made a folder for it");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let said = |word: &str| words.iter().any(|said| said == word);
    let (changes, tasks) = (watch::Sender::new(0), TaskManager::new());
    let server = Server { legacy: said("--legacy"), changes, tasks };
    if said("stdio") {
        server.serve(stdio()).await?.waiting().await?;
        return Ok(());
    }
    let config = StreamableHttpServerConfig::default()
        .with_json_response(said("--json"))
        .with_legacy_session_mode(!said("--json"))
        // A stream whose reader is gone is noticed when something is written to it.
        .with_sse_keep_alive(Some(Duration::from_millis(100)));
    let service = StreamableHttpService::new(move || Ok(server.clone()), Arc::<LocalSessionManager>::default(), config);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("http://{}/mcp", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(service.clone()));
        // A client that goes away ends its connection and nothing else.
        tokio::spawn(connection);
    }
}
