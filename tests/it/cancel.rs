//! Orders to stop, given on the command line or by the graph's status, and what they do to nodes that run, that wait
//! in the stream, and that come later.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::harness::bed::{Bed, Event, Layout};
use crate::harness::gate::Gate;
use crate::harness::model::Model;
use crate::harness::worker::{Spec, Worker};
use crate::harness::{PATIENCE, eventually};

fn item(graph: &str, node: &str, config: Value) -> Value {
    json!({"graph_id": graph, "node_id": node, "config": config, "inputs": {}})
}

fn with_gate(bed: &Bed, gate: &Gate) -> Spec {
    bed.worker("w1").set("tools.http_request.allow", gate.host())
}

/// Runs `executor-worker cancel`; gives the exit code and what it said.
async fn cancel(bed: &Bed, arguments: &[&str]) -> (Option<i32>, String) {
    let command = bed.worker("cli").argument("cancel");
    arguments.iter().fold(command, |command, argument| command.argument(*argument)).start().ends().await
}

fn by_node(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by_key(|event| event["node_id"].to_string());
    events
}

/// Waits until the client goes away.
async fn hung_up(listener: TcpListener, begun: tokio::sync::oneshot::Sender<()>) {
    let (mut client, _) = listener.accept().await.expect("the node calls");
    let mut buffer = [0; 4096];
    assert!(client.read(&mut buffer).await.expect("a request") > 0);
    begun.send(()).expect("the test waits");
    while client.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}

/// A node of every mode in the middle of a call that would take long, with everything that can tell what became of it.
struct Busy {
    bed: Bed,
    model: Model,
    worker: Worker,
    /// Everything that was said to the tool server.
    said: PathBuf,
    _dir: tempfile::TempDir,
    http_call: JoinHandle<()>,
}

impl Busy {
    /// How often the worker asks for orders; a lease is much longer, so that nothing but this can explain a quick end.
    const HEARTBEAT: Duration = Duration::from_secs(2);

    async fn start() -> Self {
        const SCRIPT: &str = r#"
rules:
  - match: {prompt: think long}
    reply: {text: too late, delay: 60s}
  - match: {prompt: use the tool}
    replies:
      - tool_calls: [{name: slow_echo, input: {text: too late, delay_ms: 30000}}]
      - {text: too late}
"#;
        let (bed, model) = (Bed::new().await, Model::start(SCRIPT));
        bed.put_state(Layout::Hash, "g", &json!({"status": "running"})).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let host = listener.local_addr().expect("an address").to_string();
        let dir = tempfile::tempdir().expect("a folder");
        let said = dir.path().join("said");
        let server =
            json!(["-c", format!("tee '{}' | '{}' mcp-demo", said.display(), env!("CARGO_BIN_EXE_executor-worker"))]);
        let worker = bed
            .worker_with_model("w1", &model)
            .set("tools.http_request.allow", &host)
            .set("lease.duration", "12s")
            .set("lease.renew", format!("{}s", Self::HEARTBEAT.as_secs()))
            .file(&format!("[mcp.servers.demo]\ncommand = \"sh\"\nargs = {server}\n"))
            .start()
            .ready()
            .await;
        let slow = json!({"tool_name": "demo/slow_echo", "tool_params": {"text": "too late", "delay_ms": 30000}});
        let agent = json!({"task": "use the tool", "tools": ["demo/slow_echo"], "llm_config": {}});
        let fetch = json!({"tool_name": "http_request", "tool_params": {"url": format!("http://{host}/")}});
        for (node, config) in [
            ("agent", agent),
            ("llm", json!({"llm_config": {"prompt": "think long"}})),
            ("tool over http", fetch),
            ("tool over mcp", slow),
        ] {
            bed.submit(&item("g", node, config)).await;
        }
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let http_call = tokio::spawn(hung_up(listener, begun));
        has_begun.await.expect("the call over HTTP has begun");
        let busy = Self { bed, model, worker, said, _dir: dir, http_call };
        eventually("all calls have begun", async || {
            (busy.heard("\"tools/call\"") == 2 && busy.model.calls().requests == 2).then_some(())
        })
        .await;
        busy
    }

    fn heard(&self, words: &str) -> usize {
        std::fs::read_to_string(&self.said).unwrap_or_default().matches(words).count()
    }

    /// All four have ended within a heartbeat of `since`, by this order, and let go of their calls.
    async fn stops(self, since: Instant, error: &str) {
        let bed = &self.bed;
        eventually("four nodes have ended", async || (bed.count().await == 4).then_some(())).await;
        let took = since.elapsed();
        assert!(took < Self::HEARTBEAT + Duration::from_secs(1), "it took {took:?}, longer than one heartbeat");
        let events = by_node(bed.ended(4).await);
        for event in &events {
            assert_eq!(event.failure(), ("cancelled", "graph_cancelled"));
            assert_eq!(event.error(), error);
            let node = event["node_id"].as_str().expect("an id");
            let state = bed.node_state("g", node).await.expect("the node has a state");
            assert_eq!((&state["status"], &state["error"]), (&json!("cancelled"), &event["data"]["error"]));
        }
        let modes: Vec<_> = events.iter().map(|event| event["metadata"]["mode"].as_str().expect("a mode")).collect();
        assert_eq!(modes, ["agent", "llm", "tool", "tool"]);
        let told = async || (self.heard("notifications/cancelled") == 2).then_some(());
        eventually("the tool server is told twice", told).await;
        tokio::time::timeout(PATIENCE, self.http_call).await.expect("the client hung up").expect("no panic");
        assert_eq!(self.model.calls().completions, 1, "only the agent's first turn was given");
        assert_eq!(self.worker.metric("executor_errors_total", &["category=\"cancelled\""]).await, 4.0);
    }
}

#[tokio::test]
async fn an_order_ends_what_runs_in_every_mode_within_one_heartbeat_and_lets_go_of_every_call() {
    let busy = Busy::start().await;
    let since = Instant::now();
    let (code, said) = cancel(&busy.bed, &["g", "--by", "ann", "--note", "enough"]).await;
    assert_eq!(code, Some(0), "{said}");
    busy.stops(since, "the graph `g` is cancelled by ann: enough").await;
}

#[tokio::test]
async fn the_graphs_status_ends_what_runs_in_every_mode_within_one_heartbeat_and_lets_go_of_every_call() {
    let busy = Busy::start().await;
    let since = Instant::now();
    busy.bed.ask::<()>(&["HSET", &busy.bed.key("state:g"), "status", "cancelled"]).await;
    busy.stops(since, "the graph `g` is cancelled").await;
}

#[tokio::test]
async fn one_node_can_be_cancelled_and_its_neighbour_goes_on() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let _worker = with_gate(&bed, &gate).start().ready().await;
    for node in ["a", "b"] {
        bed.submit(&item("g", node, gate.node(node))).await;
        gate.arrived(node, 1).await;
    }
    bed.submit(&item("h", "a", gate.node("other"))).await;
    gate.arrived("other", 1).await;
    assert_eq!(cancel(&bed, &["g", "a"]).await.0, Some(0));
    let events = bed.ended_so_far(1).await;
    assert_eq!(events[0].failure(), ("cancelled", "cancelled"));
    assert_eq!((&events[0]["graph_id"], &events[0]["node_id"]), (&json!("g"), &json!("a")));
    gate.open_all();
    let events = bed.ended(3).await;
    assert_eq!(events.iter().filter(|event| event["type"] == "node.completed").count(), 2);
}

#[tokio::test]
async fn a_graph_whose_status_becomes_cancelled_stops_in_both_layouts() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let _worker = with_gate(&bed, &gate).start().ready().await;
    for (at, layout) in Layout::BOTH.into_iter().enumerate() {
        let graph = format!("{layout:?}");
        bed.put_state(layout, &graph, &json!({"status": "running"})).await;
        bed.submit(&item(&graph, "n", gate.node(&graph))).await;
        gate.arrived(&graph, 1).await;
        bed.put_state(layout, &graph, &json!({"status": "cancelled"})).await;
        let events = bed.ended(at + 1).await;
        let event = events.iter().find(|event| event["graph_id"] == graph.as_str()).expect("an event of this graph");
        assert_eq!(event.failure(), ("cancelled", "graph_cancelled"));
        assert_eq!(bed.node_state(&graph, "n").await.expect("a state")["status"], "cancelled");
    }
}

#[tokio::test]
async fn what_comes_after_an_order_never_begins_until_it_is_taken_back() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    gate.open_all();
    let (code, said) = cancel(&bed, &["g"]).await;
    assert_eq!(code, Some(0));
    assert!(said.contains("no state of this graph is known"), "a slip in the name would be noticed: {said}");
    bed.submit(&item("g", "waiting", gate.node("body"))).await;
    let _worker = with_gate(&bed, &gate).start().ready().await;
    assert_eq!(bed.ended(1).await[0].failure(), ("cancelled", "graph_cancelled"));
    bed.submit(&item("g", "later", gate.node("body"))).await;
    bed.ended(2).await;
    assert_eq!(gate.arrivals("body"), 0);

    assert_eq!(cancel(&bed, &["g", "--undo"]).await.0, Some(0));
    assert_eq!(cancel(&bed, &["g", "--undo"]).await.0, Some(1), "there is no order any more");
    let event = bed.run(&item("g", "again", gate.node("body"))).await;
    assert_eq!(event.output()["status"], 200);
}

#[tokio::test]
async fn an_order_for_a_node_that_is_not_there_is_given_and_doubted() {
    let bed = Bed::new().await;
    bed.put_state(Layout::Hash, "g", &json!({"graph": {"nodes": {"summary": {}}}})).await;
    let (code, said) = cancel(&bed, &["g", "sumary"]).await;
    assert_eq!(code, Some(0));
    assert!(said.contains("did you mean summary?"), "{said}");
    let order: Option<String> = bed.ask(&["HGET", &bed.key("cancel:g"), "sumary"]).await;
    let order: Value = serde_json::from_str(&order.expect("the order stands")).expect("JSON");
    assert!(order["at"].as_str().is_some_and(|at| at.parse::<jiff::Timestamp>().is_ok()), "{order}");
    assert_eq!(cancel(&bed, &["g\n"]).await.0, Some(2), "no such id can exist");
}
