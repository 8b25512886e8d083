//! `executor-worker mcp-demo`: a small MCP server over stdio for `dev`, of protocol version 2025-11-25. Its tools are
//! there to show something: an answer, a delay, a failure that a retry cures, and how often a side effect happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use jsonrpsee::core::RpcResult;
use jsonrpsee::types::error::{INTERNAL_ERROR_CODE, INVALID_PARAMS_CODE};
use jsonrpsee::types::{ErrorObjectOwned, Params};
use jsonrpsee::{Methods, RpcModule};
use schemars::{JsonSchema, schema_for};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

/// The versions that are spoken, the newest first.
const VERSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// Bytes of one request.
const MAX_LINE: usize = 1024 * 1024;
/// Requests that are worked on at once; more wait in the pipe.
const MAX_RUNNING: usize = 256;
/// The longest delay of `slow_echo`.
const MAX_DELAY_MS: u64 = 30_000;
/// Keys that `flaky` and `count` keep in mind.
const MAX_KEYS: usize = 10_000;
/// Where the worker puts the idempotency key of a call.
const IDEMPOTENCY_KEY: &str = "da-node-executor/idempotencyKey";

/// Serves stdin and stdout until stdin ends.
pub async fn run() -> io::Result<()> {
    serve(tokio::io::stdin(), tokio::io::stdout()).await
}

async fn serve(input: impl AsyncRead + Unpin, mut output: impl AsyncWrite + Unpin) -> io::Result<()> {
    let module: Methods = module().into();
    let mut lines = FramedRead::new(input, LinesCodec::new_with_max_length(MAX_LINE));
    let mut running: JoinSet<(String, Box<RawValue>)> = JoinSet::new();
    let mut handles: HashMap<String, AbortHandle> = HashMap::new();
    // The framed reader says once that it is at its end after each error, and then goes on.
    let mut after_error = false;
    loop {
        let reply = tokio::select! {
            Some(done) = running.join_next() => match done {
                Ok((id, reply)) => {
                    handles.remove(&id);
                    reply.get().to_owned()
                }
                // It was cancelled, which is answered by silence, or it panicked, which must not end the others.
                Err(_) => continue,
            },
            line = lines.next(), if running.len() < MAX_RUNNING => match line {
                None if std::mem::take(&mut after_error) => continue,
                None => return Ok(()),
                Some(Ok(line)) => match Frame::read(&line) {
                    Some(Frame::Request { id }) => {
                        let (module, key) = (module.clone(), id.clone());
                        let handle = running.spawn(async move { (key, answer(&module, &line).await) });
                        handles.insert(id, handle);
                        continue;
                    }
                    Some(Frame::Cancelled { id }) => {
                        if let Some(handle) = handles.remove(&id) {
                            handle.abort();
                        }
                        continue;
                    }
                    Some(Frame::Other) => continue,
                    None => fault(-32700, "this is no JSON-RPC message"),
                },
                Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                    after_error = true;
                    fault(-32600, "the request is too long")
                }
                Some(Err(LinesCodecError::Io(error))) if error.kind() == io::ErrorKind::InvalidData => {
                    after_error = true;
                    fault(-32700, "the request is not UTF-8")
                }
                Some(Err(LinesCodecError::Io(error))) => return Err(error),
            },
        };
        output.write_all(reply.as_bytes()).await?;
        output.write_all(b"\n").await?;
        output.flush().await?;
    }
}

async fn answer(module: &Methods, line: &str) -> Box<RawValue> {
    match module.raw_json_request(line, 1).await {
        Ok((reply, _)) => reply,
        Err(_) => RawValue::from_string(fault(-32600, "this is no request")).expect("it is JSON"),
    }
}

fn fault(code: i32, message: &str) -> String {
    json!({"jsonrpc": "2.0", "id": null, "error": {"code": code, "message": message}}).to_string()
}

/// What a line is about.
enum Frame {
    /// To be answered.
    Request { id: String },
    /// A request is no longer of interest.
    Cancelled { id: String },
    /// Nothing to be done.
    Other,
}

impl Frame {
    fn read(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(borrow)]
            id: Option<&'a RawValue>,
            method: Option<String>,
            #[serde(borrow)]
            params: Option<&'a RawValue>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Which<'a> {
            #[serde(borrow)]
            request_id: &'a RawValue,
        }
        let head: Head<'_> = serde_json::from_str(line).ok()?;
        Some(match (head.id, head.method.as_deref()) {
            (Some(id), Some(_)) => Self::Request { id: id.get().to_owned() },
            (None, Some("notifications/cancelled")) => {
                let which: Option<Which<'_>> = head.params.and_then(|params| serde_json::from_str(params.get()).ok());
                which.map_or(Self::Other, |which| Self::Cancelled { id: which.request_id.get().to_owned() })
            }
            _ => Self::Other,
        })
    }
}

fn module() -> RpcModule<Demo> {
    let mut module = RpcModule::new(Demo::default());
    module.register_method("initialize", |params, _, _| initialize(&params)).expect("registered once");
    module.register_method("ping", |_, _, _| json!({})).expect("registered once");
    module.register_method("tools/list", |_, _, _| json!({"tools": tools()})).expect("registered once");
    module
        .register_async_method("tools/call", |params, demo, _| async move {
            let call: Call = params.parse()?;
            demo.call(call).await
        })
        .expect("registered once");
    module
}

fn initialize(params: &Params<'_>) -> Value {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        protocol_version: String,
    }
    let asked = params.parse::<Asked>().map(|asked| asked.protocol_version).unwrap_or_default();
    let version = VERSIONS.into_iter().find(|&version| version == asked).unwrap_or(VERSIONS[0]);
    json!({
        "protocolVersion": version,
        "capabilities": {"tools": {"listChanged": false}},
        "serverInfo": {"name": "da-node-executor-demo", "version": env!("CARGO_PKG_VERSION")},
        "instructions": "Tools of a demonstration: their data is made up.",
    })
}

/// Two numbers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Add {
    a: f64,
    b: f64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Weather {
    /// Name of a city.
    city: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SlowEcho {
    /// What comes back.
    text: String,
    /// After how many milliseconds, at most 30000.
    #[serde(default)]
    delay_ms: u64,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Flaky {
    /// Calls are counted for each key.
    key: String,
    /// How many calls fail before one succeeds.
    fail_times: u32,
    /// How they fail.
    #[serde(default)]
    how: Fails,
}

#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Fails {
    /// By an error of the server, which the worker tries again.
    #[default]
    RpcError,
    /// By a result that says so, which a model gets to read.
    ToolError,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Count {
    /// What is counted.
    key: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn tools() -> Value {
    let tool = |name: &str, description: &str, schema: Value, read_only: bool, idempotent: bool| {
        json!({
            "name": name, "description": description, "inputSchema": schema,
            "annotations": {
                "readOnlyHint": read_only, "idempotentHint": idempotent,
                "destructiveHint": false, "openWorldHint": false,
            },
        })
    };
    json!([
        tool("add", "Adds two numbers.", schema::<Add>(), true, true),
        tool("weather", "Tells the weather of a city, made up for a demonstration.", schema::<Weather>(), true, true),
        tool("slow_echo", "Gives a text back after a delay.", schema::<SlowEcho>(), true, true),
        tool("flaky", "Fails the first calls of a key, then succeeds.", schema::<Flaky>(), false, true),
        tool("count", "Counts one up for a key: a side effect that can be seen.", schema::<Count>(), false, false),
        tool("counts", "Tells what `count` has counted so far.", schema::<Nothing>(), true, true),
    ])
}

fn schema<T: JsonSchema>() -> Value {
    serde_json::to_value(schema_for!(T)).expect("a schema is JSON")
}

/// The parameters of `tools/call`.
#[derive(Deserialize)]
struct Call {
    name: String,
    #[serde(default)]
    arguments: Value,
    #[serde(default, rename = "_meta")]
    meta: Value,
}

/// What the tools keep in mind.
#[derive(Default)]
struct Demo {
    failures: Mutex<HashMap<String, u32>>,
    counters: Mutex<BTreeMap<String, Counter>>,
}

#[derive(Default, Serialize)]
struct Counter {
    /// Calls, repetitions included.
    calls: u64,
    /// Side effects: a repetition with the same idempotency key has none.
    effects: u64,
    #[serde(skip)]
    seen: HashSet<String>,
}

impl Demo {
    async fn call(&self, call: Call) -> RpcResult<Value> {
        let outcome = match call.name.as_str() {
            "add" => with(call.arguments, |Add { a, b }| Ok(json!({"sum": number(a + b)}))),
            "weather" => with(call.arguments, |Weather { city }| Ok(weather(&city))),
            "slow_echo" => match with(call.arguments, Ok) {
                Ok(SlowEcho { delay_ms, .. }) if delay_ms > MAX_DELAY_MS => {
                    Err(format!("delay_ms is at most {MAX_DELAY_MS}"))
                }
                Ok(SlowEcho { text, delay_ms }) => {
                    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                    Ok(json!({"text": text}))
                }
                Err(problem) => Err(problem),
            },
            "flaky" => match with(call.arguments, Ok) {
                Ok(flaky) => self.flaky(flaky)?,
                Err(problem) => Err(problem),
            },
            "count" => with(call.arguments, |Count { key }| self.count(key, &call.meta)),
            "counts" => with(call.arguments, |Nothing {}| Ok(json!({"counts": &*lock(&self.counters)}))),
            unknown => {
                let message = format!("there is no tool `{unknown}`");
                return Err(ErrorObjectOwned::owned(INVALID_PARAMS_CODE, message, None::<()>));
            }
        };
        Ok(match outcome {
            Ok(structured) => json!({
                "content": [{"type": "text", "text": structured.to_string()}],
                "structuredContent": structured,
                "isError": false,
            }),
            Err(problem) => json!({"content": [{"type": "text", "text": problem}], "isError": true}),
        })
    }

    fn flaky(&self, Flaky { key, fail_times, how }: Flaky) -> RpcResult<Result<Value, String>> {
        let mut failures = lock(&self.failures);
        if failures.len() >= MAX_KEYS && !failures.contains_key(&key) {
            return Ok(Err(String::from("there are too many keys")));
        }
        let failed = failures.entry(key).or_default();
        if *failed >= fail_times {
            return Ok(Ok(json!({"attempts": u64::from(*failed) + 1})));
        }
        *failed += 1;
        let message = format!("failure {failed} of {fail_times}, as asked for");
        match how {
            Fails::RpcError => Err(ErrorObjectOwned::owned(INTERNAL_ERROR_CODE, message, None::<()>)),
            Fails::ToolError => Ok(Err(message)),
        }
    }

    fn count(&self, key: String, meta: &Value) -> Result<Value, String> {
        let mut counters = lock(&self.counters);
        if counters.len() >= MAX_KEYS && !counters.contains_key(&key) {
            return Err(String::from("there are too many keys"));
        }
        let counter = counters.entry(key).or_default();
        counter.calls += 1;
        let repeated = match meta.get(IDEMPOTENCY_KEY).and_then(Value::as_str) {
            Some(key) if counter.seen.len() < MAX_KEYS => !counter.seen.insert(key.to_owned()),
            Some(key) => counter.seen.contains(key),
            None => false,
        };
        counter.effects += u64::from(!repeated);
        Ok(json!({"calls": counter.calls, "effects": counter.effects, "repeated": repeated}))
    }
}

/// Arguments that do not fit are told in the result, so that a model can do better.
fn with<A: DeserializeOwned, R>(arguments: Value, run: impl FnOnce(A) -> Result<R, String>) -> Result<R, String> {
    let arguments = if arguments.is_null() { json!({}) } else { arguments };
    run(serde_json::from_value(arguments).map_err(|error| format!("the arguments do not fit: {error}"))?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A whole number without a fraction where that loses nothing.
fn number(value: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT { json!(value as i64) } else { json!(value) }
}

/// The same weather for the same city, always.
fn weather(city: &str) -> Value {
    const CONDITIONS: [&str; 5] = ["sunny", "cloudy", "rain", "wind", "fog"];
    let name = city.trim().to_lowercase();
    let mixed = name.bytes().fold(17_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    json!({
        "city": city.trim(),
        "temperature_c": i64::from(mixed % 40) - 8,
        "condition": CONDITIONS[(mixed / 40) as usize % CONDITIONS.len()],
        "source": "made up by the demo server",
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf};

    use super::*;

    struct Peer {
        lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
        to: WriteHalf<DuplexStream>,
    }

    impl Peer {
        fn start() -> Self {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let (input, output) = tokio::io::split(theirs);
            tokio::spawn(serve(input, output));
            let (from, to) = tokio::io::split(ours);
            Self { lines: BufReader::new(from).lines(), to }
        }

        async fn send(&mut self, message: Value) {
            self.raw(&message.to_string()).await;
        }

        async fn raw(&mut self, line: &str) {
            self.to.write_all(format!("{line}\n").as_bytes()).await.expect("it reads");
        }

        async fn next(&mut self) -> Value {
            let line = tokio::time::timeout(Duration::from_secs(60), self.lines.next_line()).await.expect("in time");
            serde_json::from_str(&line.expect("a line").expect("not the end")).expect("JSON")
        }

        async fn ask(&mut self, method: &str, params: Value) -> Value {
            self.send(json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})).await;
            self.next().await
        }

        async fn call(&mut self, tool: &str, arguments: Value) -> Value {
            self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await
        }
    }

    #[tokio::test]
    async fn a_session_opens_with_the_version_that_was_asked_for() {
        let mut peer = Peer::start();
        let opened = peer.ask("initialize", json!({"protocolVersion": "2025-06-18"})).await;
        assert_eq!(opened["result"]["protocolVersion"], "2025-06-18");
        let opened = peer.ask("initialize", json!({"protocolVersion": "2099-01-01"})).await;
        assert_eq!(opened["result"]["protocolVersion"], "2025-11-25");
        peer.send(json!({"jsonrpc": "2.0", "method": "notifications/initialized", "params": {}})).await;
        assert_eq!(peer.ask("ping", json!({})).await["result"], json!({}), "the notification got no answer");
        assert_eq!(peer.ask("resources/list", json!({})).await["error"]["code"], -32601);
    }

    #[tokio::test]
    async fn every_listed_tool_can_be_called_and_says_what_is_wrong_with_its_arguments() {
        let mut peer = Peer::start();
        let tools = peer.ask("tools/list", json!({})).await["result"]["tools"].clone();
        let names: Vec<&str> =
            tools.as_array().expect("a list").iter().filter_map(|tool| tool["name"].as_str()).collect();
        assert_eq!(names, ["add", "weather", "slow_echo", "flaky", "count", "counts"]);
        for name in names {
            let wrong = peer.call(name, json!({"surplus": 1})).await;
            assert_eq!(wrong["result"]["isError"], true, "{name}: {wrong}");
        }
        assert_eq!(peer.call("none", json!({})).await["error"]["code"], -32602);
        assert_eq!(peer.call("add", json!({"a": 2, "b": 3})).await["result"]["structuredContent"], json!({"sum": 5}));
        let weather = peer.call("weather", json!({"city": "Oslo"})).await;
        assert_eq!(weather, peer.call("weather", json!({"city": "Oslo"})).await);
        assert!(weather["result"]["content"][0]["text"].as_str().expect("text").contains("made up"));
    }

    #[tokio::test]
    async fn a_flaky_tool_fails_as_often_as_asked_in_either_way() {
        let mut peer = Peer::start();
        for expected in [-32603, -32603] {
            let failed = peer.call("flaky", json!({"key": "a", "fail_times": 2})).await;
            assert_eq!(failed["error"]["code"], expected);
        }
        let done = peer.call("flaky", json!({"key": "a", "fail_times": 2})).await;
        assert_eq!(done["result"]["structuredContent"], json!({"attempts": 3}));
        let failed = peer.call("flaky", json!({"key": "b", "fail_times": 1, "how": "tool_error"})).await;
        assert_eq!(failed["result"]["isError"], true);
    }

    #[tokio::test]
    async fn a_repetition_with_the_same_idempotency_key_has_no_second_effect() {
        let mut peer = Peer::start();
        for key in ["k-1", "k-1", "k-2"] {
            let params = json!({"name": "count", "arguments": {"key": "mail"}, "_meta": {IDEMPOTENCY_KEY: key}});
            peer.ask("tools/call", params).await;
        }
        let counts = peer.call("counts", json!({})).await;
        assert_eq!(counts["result"]["structuredContent"]["counts"], json!({"mail": {"calls": 3, "effects": 2}}));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_holds_nobody_up_and_can_be_cancelled() {
        let mut peer = Peer::start();
        for (id, delay) in [(10, 20_000), (11, 10_000)] {
            let params = json!({"name": "slow_echo", "arguments": {"text": "x", "delay_ms": delay}});
            peer.send(json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})).await;
        }
        assert_eq!(peer.ask("ping", json!({})).await["id"], 1);
        let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 11}});
        peer.send(cancelled).await;
        assert_eq!(peer.next().await["id"], 10, "the cancelled one would have come first");
        let long = peer.call("slow_echo", json!({"text": "x", "delay_ms": MAX_DELAY_MS + 1})).await;
        assert_eq!(long["result"]["isError"], true);
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused_and_the_next_one_is_answered() {
        let mut peer = Peer::start();
        peer.raw("hello").await;
        assert_eq!(peer.next().await["error"]["code"], -32700);
        peer.raw(&"x".repeat(MAX_LINE + 1)).await;
        assert_eq!(peer.next().await["error"]["code"], -32600);
        assert_eq!(peer.ask("ping", json!({})).await["result"], json!({}));
    }
}
