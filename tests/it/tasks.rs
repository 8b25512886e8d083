//! Calls that a server works on by itself: each is made once, looked at at the server's pace without a slot, gone on with
//! by whatever worker comes next, and given up with its node.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::example::example;
use crate::harness::bed::{Bed, GROUP};
use crate::harness::eventually;
use crate::harness::model::Model;
use crate::harness::worker::Spec;

/// A task that its server takes some time to give up.
const SLOW_TO_STOP: &str = "tunnel";
const STOPPING: Duration = Duration::from_millis(1500);

/// What a server was asked.
#[derive(Default)]
struct Seen {
    calls: Vec<Value>,
    /// The looks at each task.
    looks: HashMap<String, Vec<Instant>>,
    updates: Vec<Value>,
    given_up: Vec<String>,
    last_given_up: Option<Instant>,
    /// Requests about tasks that proxies could not find the way for.
    astray: Vec<String>,
}

/// What a look at a task finds, by its name and how often it was looked at.
type Answers = Box<dyn Fn(&str, usize) -> Value + Send + Sync>;

/// A server of the modern era in this process: whatever worker comes, it is the same. Its tools are `build`, and `survey`
/// that only reads; a call of either becomes the task of its argument `name`.
struct Site {
    server: MockServer,
    seen: Arc<Mutex<Seen>>,
}

impl Site {
    async fn new(answers: Answers) -> Self {
        let (server, seen) = (MockServer::start().await, Arc::new(Mutex::new(Seen::default())));
        let noted = Arc::clone(&seen);
        let respond = move |request: &Request| {
            let message: Value = serde_json::from_slice(&request.body).expect("requests are JSON");
            let answer = respond(&mut noted.lock().expect("free"), &answers, request, &message);
            let mut body = json!({"jsonrpc": "2.0", "id": message["id"]});
            match answer {
                Ok(result) => body["result"] = result,
                Err(error) => body["error"] = error,
            }
            let slow = message["method"] == "tasks/cancel" && message["params"]["taskId"] == SLOW_TO_STOP;
            let pause = if slow { STOPPING } else { Duration::ZERO };
            ResponseTemplate::new(200).set_body_json(body).set_delay(pause)
        };
        Mock::given(method("POST")).respond_with(respond).mount(&server).await;
        Self { server, seen }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("free")
    }

    fn looks(&self, task: &str) -> Vec<Instant> {
        self.seen().looks.get(task).cloned().unwrap_or_default()
    }

    async fn looked_at(&self, task: &str, times: usize) {
        eventually(&format!("{task} is looked at {times} times"), async || {
            (self.looks(task).len() >= times).then_some(())
        })
        .await;
    }

    async fn gave_up(&self, tasks: &[&str]) {
        eventually(&format!("{tasks:?} are given up"), async || {
            let mut given_up = self.seen().given_up.clone();
            given_up.sort_unstable();
            (given_up == tasks).then_some(())
        })
        .await;
    }

    fn file(&self) -> String {
        format!("[mcp.servers.site]\nurl = \"{}\"\nconnect_timeout = \"20s\"\n", self.server.uri())
    }

    fn worker(&self, bed: &Bed, id: &str) -> Spec {
        bed.worker(id).set("retry.park_after", "300ms").file(&self.file())
    }
}

fn respond(seen: &mut Seen, answers: &Answers, request: &Request, message: &Value) -> Result<Value, Value> {
    let params = &message["params"];
    let method = message["method"].as_str().unwrap_or_default();
    let declared = &params["_meta"]["io.modelcontextprotocol/clientCapabilities"]["extensions"];
    if (method == "tools/call" || method.starts_with("tasks/")) && declared["io.modelcontextprotocol/tasks"].is_null() {
        return Err(json!({"code": -32021, "message": "Missing required client capability"}));
    }
    let task = params["taskId"].as_str().unwrap_or_default().to_owned();
    if method.starts_with("tasks/") && request.headers.get("mcp-name").is_none_or(|name| name != task.as_str()) {
        seen.astray.push(task.clone());
    }
    match method {
        "server/discover" => {
            Ok(json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}))
        }
        "tools/list" => Ok(json!({"resultType": "complete", "tools": [
            {"name": "build", "inputSchema": {"type": "object"}},
            {"name": "survey", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": true}},
        ]})),
        "tools/call" => {
            seen.calls.push(params.clone());
            let with = &params["arguments"];
            Ok(
                json!({"resultType": "task", "taskId": with["name"], "status": "working", "createdAt": "2026-01-02T03:04:05Z",
                "lastUpdatedAt": "2026-01-02T03:04:05Z", "ttlMs": with["ttl_ms"], "pollIntervalMs": with["poll_ms"]}),
            )
        }
        "tasks/get" => {
            let looks = seen.looks.entry(task.clone()).or_default();
            looks.push(Instant::now());
            let answer = answers(&task, looks.len());
            match answer.get("code") {
                Some(_) => Err(answer),
                None => Ok(answer),
            }
        }
        "tasks/update" => {
            seen.updates.push(params.clone());
            Ok(json!({"resultType": "complete"}))
        }
        "tasks/cancel" => {
            seen.given_up.push(task);
            seen.last_given_up = Some(Instant::now());
            Ok(json!({"resultType": "complete"}))
        }
        _ => Err(json!({"code": -32601, "message": "no such method"})),
    }
}

/// A task in a state, with the rest that belongs to it.
fn state(status: &str, poll_ms: u64, more: Value) -> Value {
    let mut state = json!({"resultType": "complete", "taskId": "x", "status": status, "createdAt": "2026-01-02T03:04:05Z",
        "lastUpdatedAt": "2026-01-02T03:04:05Z", "ttlMs": null, "pollIntervalMs": poll_ms});
    state.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    state
}

fn built(text: &str) -> Value {
    let result = json!({"content": [{"type": "text", "text": text}], "isError": false});
    state("completed", 1000, json!({ "result": result }))
}

fn item(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "run_id": format!("run-{node}"), "config": config, "inputs": {}})
}

fn build(name: &str, poll_ms: u64) -> Value {
    json!({"tool_name": "site/build", "tool_params": {"name": name, "poll_ms": poll_ms}})
}

/// Nothing is left of nodes that waited.
async fn assert_clean(bed: &Bed) {
    bed.nothing_is_parked().await;
    let journals: Vec<String> = bed.ask(&["KEYS", &bed.key("journal:*")]).await;
    assert!(journals.is_empty(), "{journals:?}");
}

#[tokio::test]
async fn a_node_whose_tool_works_by_itself_holds_no_slot_and_asks_at_the_servers_pace() {
    let (bed, site) = (
        Bed::new().await,
        Site::new(Box::new(|_, look| match look {
            1 | 2 => state("working", 900, json!({"statusMessage": format!("wall {look}")})),
            _ => built("a house"),
        }))
        .await,
    );
    let worker = site.worker(&bed, "w1").set("pool.size", "1").start().ready().await;
    bed.submit(&item("n", build("house", 900))).await;
    bed.parked_is(1).await;
    bed.settled().await;
    // The one slot is free.
    bed.submit(&item("other", json!({"tool_name": "calculate", "tool_params": {"expression": "1 + 1"}}))).await;
    let events = bed.ended(2).await;
    assert_eq!(events[0]["node_id"], "other");
    assert_eq!(events[1].output(), &json!("a house"));
    assert_eq!(events[1]["metadata"]["attempt"], 1, "no attempt was used up");
    assert_eq!(worker.metric("executor_items_parked_total", &[]).await, 3.0);
    let looks = site.looks("house");
    assert_eq!(looks.len(), 3);
    for pair in looks.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(890), "{:?}", pair[1] - pair[0]);
    }
    {
        let seen = site.seen();
        assert_eq!((seen.calls.len(), seen.given_up.len(), &seen.astray), (1, 0, &Vec::new()));
    }
    let progress = bed.entries(&bed.key("events:tool.executed")).await;
    let told: Vec<Value> = progress.iter().map(|fields| serde_json::from_slice(&fields[0].1).expect("JSON")).collect();
    let told: Vec<&Value> = told.iter().map(|event| &event["data"]["progress"]["message"]).collect();
    assert_eq!(
        told,
        [&Value::Null, &json!("wall 1"), &json!("wall 2"), &Value::Null],
        "the other node has an end, too"
    );
    assert_clean(&bed).await;
    assert_eq!(worker.metric("executor_tool_calls_total", &["server=\"site\"", "outcome=\"ok\""]).await, 1.0);
}

#[tokio::test]
async fn a_killed_workers_task_is_gone_on_with_by_the_next_and_the_call_is_made_once() {
    let done = Arc::new(Mutex::new(false));
    let stage = Arc::clone(&done);
    let answers = move |task: &str, _: usize| match *stage.lock().expect("free") {
        true => built(task),
        // In the slot, and outside of it.
        false => state("working", if task == "shed" { 150 } else { 1500 }, json!({})),
    };
    let (bed, site) = (Bed::new().await, Site::new(Box::new(answers)).await);
    let script = "rules:\n  - replies:\n      - tool_calls: [{name: build, input: {name: shed, poll_ms: 150}}, \
                  {name: survey, input: {name: lot, poll_ms: 150}}]\n      - {text: both are there}\n";
    let model = Model::start(script);
    let spec = |id| {
        let worker = bed.worker_with_model(id, &model).file(&site.file()).set("retry.park_after", "1s");
        worker.set("lease.duration", "1s").set("lease.renew", "200ms").set("lease.sweep", "200ms")
    };
    let doomed = spec("w1").start().ready().await;
    bed.submit(&item("agent", json!({"task": "Go on", "tools": ["site/*"], "llm_config": {}}))).await;
    bed.submit(&item("tool", build("tower", 1500))).await;
    site.looked_at("shed", 2).await;
    site.looked_at("tower", 1).await;
    bed.parked_is(1).await;
    let _next = spec("w2").start().ready().await;
    doomed.kill();
    let before = site.looks("shed").len();
    site.looked_at("shed", before + 3).await;
    *done.lock().expect("free") = true;
    let events = bed.ended(2).await;
    for event in &events {
        let output = if event["node_id"] == "agent" { json!("both are there") } else { json!("tower") };
        let found = if event["node_id"] == "agent" { &event.output()["result"] } else { event.output() };
        assert_eq!((found, event.worker()), (&output, "w2"), "{}", event.body);
    }
    let seen = site.seen();
    let mut names: Vec<&str> = seen.calls.iter().filter_map(|call| call["arguments"]["name"].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["lot", "shed", "tower"], "each once");
    assert!(seen.given_up.is_empty());
    let calls = model.calls();
    assert_eq!((calls.completions, calls.repeated), (2, 0));
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_leaves_its_tasks_to_the_next() {
    let (bed, site) = (
        Bed::new().await,
        Site::new(Box::new(|_, look| match look {
            0..10 => state("working", 250, json!({})),
            _ => built("a bridge"),
        }))
        .await,
    );
    let first = site.worker(&bed, "w1").set("shutdown.grace", "500ms").start().ready().await;
    bed.submit(&item("n", build("bridge", 250))).await;
    site.looked_at("bridge", 2).await;
    first.terminate();
    assert_eq!(first.ends().await.0, Some(0));
    let _second = site.worker(&bed, "w2").start().ready().await;
    let events = bed.ended(1).await;
    assert_eq!((events[0].output(), events[0].worker()), (&json!("a bridge"), "w2"));
    let seen = site.seen();
    assert_eq!((seen.calls.len(), seen.given_up.len()), (1, 0));
}

#[tokio::test]
async fn a_worker_that_stops_does_not_end_before_the_server_of_an_ended_node_is_told() {
    let (bed, site) = (Bed::new().await, Site::new(Box::new(|_, _| state("working", 250, json!({})))).await);
    let worker = site.worker(&bed, "w1").start().ready().await;
    let mut soon = build(SLOW_TO_STOP, 250);
    soon["timeout"] = json!("3s");
    bed.submit(&item("n", soon)).await;
    site.looked_at(SLOW_TO_STOP, 1).await;
    worker.terminate();
    assert_eq!(worker.ends().await.0, Some(0));
    assert_eq!(bed.ended(1).await[0].failure(), ("permanent", "timeout"));
    let told = site.seen().last_given_up.expect("the server is told");
    assert!(told.elapsed() >= STOPPING, "the worker ended {:?} after it began to tell", told.elapsed());
}

#[tokio::test]
async fn a_worker_that_was_away_leaves_its_task_to_whoever_has_the_node_now() {
    let done = Arc::new(Mutex::new(false));
    let stage = Arc::clone(&done);
    let answers = move |_: &str, _: usize| match *stage.lock().expect("free") {
        true => built("a mill"),
        false => state("working", 250, json!({})),
    };
    let (bed, site) = (Bed::new().await, Site::new(Box::new(answers)).await);
    let spec = |id| {
        let worker = site.worker(&bed, id).set("retry.park_after", "5s");
        worker.set("lease.duration", "1s").set("lease.renew", "200ms").set("lease.sweep", "200ms")
    };
    let away = spec("w1").start().ready().await;
    bed.submit(&item("n", build("mill", 250))).await;
    site.looked_at("mill", 2).await;
    let _next = spec("w2").start().ready().await;
    away.freeze();
    site.looked_at("mill", site.looks("mill").len() + 3).await;
    *done.lock().expect("free") = true;
    let event = bed.ended(1).await.remove(0);
    assert_eq!((event.output(), event.worker()), (&json!("a mill"), "w2"));
    away.thaw();
    eventually("the worker that was away sees that it lost the node", async || {
        (away.metric("executor_items_total", &["lost"]).await == 1.0).then_some(())
    })
    .await;
    bed.ended(1).await;
    let seen = site.seen();
    assert_eq!((seen.calls.len(), seen.given_up.len()), (1, 0));
}

#[tokio::test]
async fn a_worker_that_does_not_know_that_it_lost_its_node_leaves_the_task_alone() {
    let (bed, site) = (Bed::new().await, Site::new(Box::new(|_, _| state("working", 250, json!({})))).await);
    // No renewal tells it within the node's time.
    let worker = site.worker(&bed, "w1").set("lease.duration", "60s").set("lease.renew", "20s").start().ready().await;
    let mut soon = build("mill", 250);
    soon["timeout"] = json!("3s");
    bed.submit(&item("n", soon)).await;
    site.looked_at("mill", 1).await;
    let entry = bed.pending_is(1).await.remove(0).0;
    let taken: Vec<String> = bed.ask(&["XCLAIM", &bed.stream, GROUP, "w2:1", "0", &entry, "JUSTID"]).await;
    assert_eq!(taken, [entry]);
    eventually("the settlement tells it", async || {
        (worker.metric("executor_items_total", &["lost"]).await == 1.0).then_some(())
    })
    .await;
    // Whatever it had to say of that task is said by the time that another is looked at again.
    bed.submit(&item("next", build("barn", 250))).await;
    site.looked_at("barn", 2).await;
    assert_eq!(site.seen().given_up, Vec::<String>::new());
}

#[tokio::test]
async fn tasks_are_given_up_with_their_nodes() {
    let (bed, site) = (
        Bed::new().await,
        Site::new(Box::new(|task, _| state("working", if task == "inside" { 250 } else { 60_000 }, json!({})))).await,
    );
    let _worker = site.worker(&bed, "w1").start().ready().await;
    let mut soon = build("late", 250);
    soon["timeout"] = json!("2s");
    bed.submit(&item("inside", build("inside", 250))).await;
    bed.submit(&item("outside", build("outside", 60_000))).await;
    bed.submit(&json!({"graph_id": "h", "node_id": "late", "config": soon, "inputs": {}})).await;
    site.looked_at("inside", 1).await;
    bed.parked_is(1).await;
    let late = bed.ended(1).await.remove(0);
    assert_eq!(late.failure(), ("permanent", "timeout"));
    site.gave_up(&["late"]).await;
    let order = bed.worker("cli").argument("cancel").argument("g").start().ends().await;
    assert_eq!(order.0, Some(0), "{}", order.1);
    let events = bed.ended(3).await;
    for event in events.iter().filter(|event| event["graph_id"] == "g") {
        assert_eq!(event.failure(), ("cancelled", "graph_cancelled"));
    }
    site.gave_up(&["inside", "late", "outside"]).await;
    assert_clean(&bed).await;
}

#[tokio::test]
async fn the_tasks_of_one_turn_are_waited_for_together() {
    let (bed, site) = (
        Bed::new().await,
        Site::new(Box::new(|task, look| match (task, look) {
            ("a", 1) => state("working", 700, json!({})),
            ("b", 1) => state("working", 2500, json!({})),
            _ => built(&format!("{task} is there")),
        }))
        .await,
    );
    let script = "rules:\n  - replies:\n      - tool_calls: [{name: build, input: {name: a, poll_ms: 700}}, \
                  {name: build, input: {name: b, poll_ms: 1200}}, {name: build, input: {name: c, poll_ms: 500}}]\n      \
                  - {text: all}\n";
    let model = Model::start(script);
    let _worker =
        bed.worker_with_model("w1", &model).set("retry.park_after", "300ms").file(&site.file()).start().ready().await;
    bed.submit(&item("n", json!({"task": "Go on", "tools": ["site/build"], "llm_config": {}}))).await;
    let event = bed.ended(1).await.remove(0);
    assert_eq!((&event.output()["result"], &event.output()["tool_calls"]), (&json!("all"), &json!(3)));
    let looks = ["a", "b", "c"].map(|task| site.looks(task));
    assert_eq!(looks.each_ref().map(Vec::len), [2, 2, 1]);
    let pause = |looks: &[Instant]| looks[1] - looks[0];
    assert!(pause(&looks[0]) >= Duration::from_millis(690), "{:?}", pause(&looks[0]));
    assert!(
        pause(&looks[1]) >= Duration::from_millis(2490),
        "another one's pace is not its own: {:?}",
        pause(&looks[1])
    );
    assert!(looks[0][1] < looks[1][1], "the first is not put off for the second");
    assert_eq!(site.seen().calls.len(), 3);
    assert_eq!((model.calls().completions, model.calls().repeated), (2, 0));
    assert_clean(&bed).await;
}

#[tokio::test]
async fn whatever_becomes_of_a_task_the_node_ends_and_says_what_it_was() {
    let (bed, site) = (
        Bed::new().await,
        Site::new(Box::new(|task, look| match task {
            "refused" => state("failed", 250, json!({"error": {"code": -32602, "message": "no such street"}})),
            "broken" => state("failed", 250, json!({"error": {"code": -32603, "message": "out of bricks"}})),
            "stopped" => state("cancelled", 250, json!({"statusMessage": "the mayor was against it"})),
            "unwilling" => state(
                "completed",
                250,
                json!({"result": {"content": [{"type": "text", "text": "it rains"}], "isError": true}}),
            ),
            "forgotten" | "again" if look < 3 => json!({"code": -32602, "message": "Task not found"}),
            "again" => built("at last"),
            "outlived" => {
                let mut state = state("working", 250, json!({}));
                state["ttlMs"] = json!(600);
                state
            }
            "asleep" => state("asleep", 250, json!({})),
            "empty" => state("completed", 250, json!({})),
            "shapeless" => json!({"resultType": "complete", "status": {"working": true}}),
            "lonely" => state(
                "input_required",
                250,
                json!({"inputRequests": {"q": {"method": "elicitation/create",
            "params": {"message": "Which colour?", "requestedSchema": {"type": "object"}}}}}),
            ),
            _ => built("odd"),
        }))
        .await,
    );
    let _worker = site.worker(&bed, "w1").start().ready().await;
    let cases = [
        ("refused", "validation", "mcp_error", "no such street", false),
        ("broken", "permanent", "mcp_error", "out of bricks", false),
        ("stopped", "permanent", "mcp_task_cancelled", "the mayor was against it", false),
        ("unwilling", "permanent", "tool_error", "it rains", false),
        ("forgotten", "permanent", "mcp_task_lost", "may have taken effect", false),
        ("outlived", "permanent", "mcp_task_lost", "keeps it no longer", false),
        ("asleep", "permanent", "mcp_protocol_error", "`asleep`", true),
        ("empty", "permanent", "mcp_protocol_error", "no result", true),
        ("shapeless", "permanent", "mcp_protocol_error", "cannot be read", true),
        ("lonely", "permanent", "mcp_input_required", "Which colour?", true),
    ];
    for (name, ..) in &cases {
        let mut config = build(name, 250);
        if *name == "outlived" {
            config["tool_params"]["ttl_ms"] = json!(600);
        }
        bed.submit(&item(name, config)).await;
    }
    // The answer to the call itself.
    let nameless = json!({"tool_name": "site/build", "tool_params": {"name": null, "poll_ms": 250}});
    bed.submit(&item("nameless", nameless)).await;
    let events = bed.ended(cases.len() + 1).await;
    let of = |node: &str| events.iter().find(|event| event["node_id"] == node).unwrap_or_else(|| panic!("{node}"));
    for (name, category, code, words, _) in &cases {
        assert_eq!(of(name).failure(), (*category, *code), "{name}: {}", of(name).error());
        assert!(of(name).error().contains(words), "{name}: {}", of(name).error());
    }
    assert_eq!(of("nameless").failure(), ("permanent", "mcp_protocol_error"));
    let mut left: Vec<&str> = cases.iter().filter(|case| case.4).map(|case| case.0).collect();
    left.sort_unstable();
    site.gave_up(&left).await;

    // A tool that only reads is asked again.
    let survey = json!({"tool_name": "site/survey", "tool_params": {"name": "again", "poll_ms": 250}});
    bed.submit(&item("again", survey)).await;
    let events = bed.ended(cases.len() + 2).await;
    let again = events.iter().find(|event| event["node_id"] == "again").expect("it ended");
    assert_eq!(again.output(), &json!("at last"));
    let seen = site.seen();
    let keys: Vec<&Value> = seen.calls.iter().filter(|call| call["arguments"]["name"] == "again").collect();
    let keys: Vec<&Value> = keys.iter().map(|call| &call["_meta"]["da-node-executor/idempotencyKey"]).collect();
    assert_eq!((keys.len(), keys[0]), (3, keys[2]), "under the same key");
}

#[tokio::test]
async fn a_question_of_a_task_waits_for_a_person_and_its_answer_goes_to_the_task() {
    let answered = Arc::new(Mutex::new(0));
    let asked = Arc::clone(&answered);
    let ask = |key: &str| {
        // The words are the same, and the questions are not.
        let question = json!({"method": "elicitation/create", "params": {"message": "Go on?", "requestedSchema": {
            "type": "object", "required": ["how"], "properties": {"how": {"type": "string"}}}}});
        state("input_required", 300, json!({"inputRequests": {key: question}}))
    };
    let (bed, site) = (
        Bed::new().await,
        Site::new(Box::new(move |_, _| match *asked.lock().expect("free") {
            0 => ask("first"),
            1 => ask("second"),
            _ => built("done"),
        }))
        .await,
    );
    let file = site.file() + "elicitation = \"wait\"\n";
    let spec = |id: &str| bed.worker(id).set("retry.park_after", "200ms").file(&file);
    let mut worker = spec("w1").start().ready().await;
    bed.submit(&item("n", build("house", 300))).await;
    for (round, how) in ["slowly", "quickly"].into_iter().enumerate() {
        let event: Value = eventually("a question", async || {
            let entries = bed.entries(&bed.key("events:node.input_required")).await;
            let entry = entries.get(round)?;
            Some(serde_json::from_slice(&entry[0].1).expect("JSON"))
        })
        .await;
        let data = &event["data"];
        assert_eq!((&data["kind"], &data["message"]), (&json!("elicitation"), &json!("Go on?")));
        bed.settled().await;
        assert_eq!(site.seen().updates.len(), round);
        // Nobody keeps anything of it in mind.
        worker.kill();
        worker = spec(&format!("x{round}")).start().ready().await;
        let decision = json!({"wait_id": data["wait_id"], "by": "ann", "action": "accept", "content": {"how": how}});
        let decision = json!({"graph_id": "g", "node_id": "n", "run_id": "run-n", "decision": decision});
        bed.submit(&decision).await;
        // The server takes its time to go on: it asks the same once more, and is told once.
        site.looked_at("house", site.looks("house").len() + 2).await;
        eventually("it is told", async || (site.seen().updates.len() == round + 1).then_some(())).await;
        *answered.lock().expect("free") += 1;
    }
    let event = bed.ended(1).await.remove(0);
    assert_eq!(event.output(), &json!("done"));
    let seen = site.seen();
    let told: Vec<&Value> = seen.updates.iter().map(|update| &update["inputResponses"]).collect();
    let answer = |how: &str| json!({"action": "accept", "content": {"how": how}});
    assert_eq!(told, [&json!({"first": answer("slowly")}), &json!({"second": answer("quickly")})]);
    assert_eq!((seen.calls.len(), &seen.astray), (1, &Vec::new()));
    drop(worker);
}

#[tokio::test]
async fn a_task_that_asks_holds_nothing_that_others_of_its_turn_need() {
    let question = json!({"method": "elicitation/create", "params": {"message": "Go on?",
        "requestedSchema": {"type": "object", "properties": {}}}});
    let (bed, site) = (
        Bed::new().await,
        Site::new(Box::new(move |task, looks| match (task, looks) {
            ("asks", _) => state("input_required", 250, json!({"inputRequests": {"go": question}})),
            (_, 0..8) => state("working", 250, json!({})),
            _ => built("done"),
        }))
        .await,
    );
    let model = Model::start(
        "rules:\n  - replies:\n      - tool_calls: [{name: build, input: {name: asks, poll_ms: 250}}, \
         {name: build, input: {name: works, poll_ms: 250}}]\n",
    );
    let file = site.file() + "elicitation = \"wait\"\nconcurrency = 1\n";
    let _worker = bed.worker_with_model("w1", &model).file(&file).start().ready().await;
    bed.submit(&item("n", json!({"task": "Build both", "tools": ["site/*"], "llm_config": {}}))).await;
    // The node waits once the other has ended, and that needs the one place at the server.
    eventually("a question", async || {
        (bed.entries(&bed.key("events:node.input_required")).await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(site.looks("works").len(), 8);
}

/// The server of the official Rust SDK, killed with its owner.
struct RustSdk {
    child: Child,
    url: String,
}

impl RustSdk {
    fn start() -> Self {
        let mut command = Command::new(example("rmcp_server"));
        command.arg("http").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the server starts");
        let (stdout, mut url) = (child.stdout.take().expect("the pipe was asked for"), String::new());
        BufReader::new(stdout).read_line(&mut url).expect("the server tells its address");
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for RustSdk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn tasks_of_a_server_by_the_official_sdk_survive_a_worker_and_are_cancelled_there() {
    let (bed, server) = (Bed::new().await, RustSdk::start());
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let file = format!("[mcp.servers.sdk]\nurl = \"{}\"\nconnect_timeout = \"20s\"\n", server.url);
    let spec = |id| {
        bed.worker(id)
            .set("retry.park_after", "300ms")
            .set("lease.duration", "1s")
            .set("lease.renew", "200ms")
            .file(&file)
    };
    let with = |name: &str, ms: u64, poll_ms: u64| {
        let params = json!({"name": name, "ms": ms, "poll_ms": poll_ms, "log": log});
        item(name, json!({"tool_name": "sdk/build", "tool_params": params}))
    };
    let doomed = spec("w1").start().ready().await;
    bed.submit(&with("house", 4000, 250)).await;
    eventually("it is called", async || said().contains("called house").then_some(())).await;
    eventually("it is on record", async || {
        let journal = bed.key("journal:g:house:run-house");
        bed.ask::<bool>(&["HEXISTS", &journal, "t0:c0:task"]).await.then_some(())
    })
    .await;
    doomed.kill();
    let _next = spec("w2").start().ready().await;
    let event = bed.ended(1).await.remove(0);
    assert_eq!((event.output(), event.worker()), (&json!("built house"), "w2"));
    assert_eq!(said(), "called house\nbuilt house\n");

    bed.submit(&with("tower", 60_000, 600)).await;
    bed.parked_is(1).await;
    let order = bed.worker("cli").argument("cancel").argument("g").start().ends().await;
    assert_eq!(order.0, Some(0), "{}", order.1);
    eventually("the server stops", async || said().ends_with("cancelled tower\n").then_some(())).await;
    assert_eq!(bed.ended(2).await[1].failure(), ("cancelled", "graph_cancelled"));
}
