//! Nodes that wait for a person: they hold no slot, and go on from the very turn, on any worker, after any restart. The
//! model counts what it is asked and the gate what is done.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Layout};
use crate::harness::eventually;
use crate::harness::gate::Gate;
use crate::harness::model::Model;
use crate::harness::worker::Spec;

const TOKEN: &str = "0123456789abcdef-of-the-test";

const SCRIPT: &str = r#"
rules:
  - match: {prompt: one door}
    replies:
      - {text: I shall knock., tool_calls: [{name: http_request, input: {url: "GATE/a"}}]}
      - {text: I was let in.}
  - match: {prompt: three doors}
    replies:
      - tool_calls:
          - {name: http_request, input: {url: "GATE/a"}}
          - {name: http_request, input: {url: "GATE/b"}}
          - {name: calculate, input: {expression: 1 + 1}}
      - {text: through all of them}
"#;

struct Scene {
    bed: Bed,
    gate: Gate,
    model: Model,
}

impl Scene {
    async fn new(bed: Bed) -> Self {
        let scene = Self::with_closed_doors(bed).await;
        scene.gate.open_all();
        scene
    }

    async fn with_closed_doors(bed: Bed) -> Self {
        let gate = Gate::start().await;
        let model = Model::start(&SCRIPT.replace("GATE", &format!("http://{}", gate.host())));
        Self { bed, gate, model }
    }

    fn worker(&self, id: &str) -> Spec {
        self.bed
            .worker_with_model(id, &self.model)
            .set("tools.http_request.allow", self.gate.host())
            .set("retry.park_after", "100ms")
    }

    /// Submits an agent whose requests want a word.
    async fn submit(&self, node: &str, task: &str) {
        let config = json!({"task": task, "tools": ["http_request", "calculate"], "llm_config": {},
            "approve": ["http_request"]});
        self.bed.submit(&item(node, config)).await;
    }

    /// The questions that are open, when there are so many.
    async fn asked(&self, count: usize) -> Vec<Value> {
        let stream = self.bed.key("events:node.input_required");
        eventually(&format!("{count} questions"), async || {
            let open: usize = self.bed.ask(&["HLEN", &self.bed.key("waits")]).await;
            (open == count).then_some(())
        })
        .await;
        let entries = self.bed.entries(&stream).await;
        entries.into_iter().map(|fields| serde_json::from_slice(&fields[0].1).expect("an event is JSON")).collect()
    }

    async fn decide(&self, event: &Value, decision: Value) {
        let mut members = json!({"wait_id": event["data"]["wait_id"], "by": "ann"});
        members.as_object_mut().expect("an object").extend(decision.as_object().expect("an object").clone());
        let item = json!({"v": 1, "graph_id": event["graph_id"], "node_id": event["node_id"],
            "run_id": event["run_id"], "decision": members});
        self.bed.submit(&item).await;
    }

    async fn answers(&self, count: usize) -> Vec<Value> {
        let stream = self.bed.key("events:node.decision");
        let entries = eventually(&format!("{count} answers"), async || {
            let entries = self.bed.entries(&stream).await;
            (entries.len() >= count).then_some(entries)
        })
        .await;
        entries.into_iter().map(|fields| serde_json::from_slice(&fields[0].1).expect("an event is JSON")).collect()
    }

    /// Nothing of waiting is left.
    async fn assert_clean(&self) {
        for name in [format!("parked:{}", self.bed.stream), format!("parked-bodies:{}", self.bed.stream)] {
            let exists: bool = self.bed.ask(&["EXISTS", &self.bed.key(&name)]).await;
            assert!(!exists, "{name} is left behind");
        }
        self.asked(0).await;
    }
}

fn item(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "run_id": format!("run-{node}"), "config": config, "inputs": {}})
}

#[tokio::test]
async fn a_node_that_waits_holds_no_slot_and_goes_on_with_the_decision() {
    for layout in Layout::BOTH {
        let scene = Scene::with_closed_doors(Bed::new().await).await;
        scene.bed.put_state(layout, "g", &json!({"status": "running"})).await;
        let worker = scene.worker("w1").set("pool.size", "1").start().ready().await;
        scene.submit("n", "one door").await;
        let event = scene.asked(1).await.remove(0);
        let data = &event["data"];
        assert_eq!((&data["kind"], &data["tool"]), (&json!("approval"), &json!("http_request")));
        assert_eq!(data["last_words"], "I shall knock.");
        assert_eq!(data["arguments"]["url"], format!("http://{}/a", scene.gate.host()));
        assert!(data["schema"]["properties"]["arguments"]["properties"]["url"].is_object(), "{data}");
        let state = scene.bed.node_state("g", "n").await.expect("it waits");
        assert_eq!((&state["status"], &state["waiting"][0]["wait_id"]), (&json!("waiting"), &data["wait_id"]));
        assert!(state["completed_at"].is_null());
        // The only slot is free.
        let other = item("other", json!({"tool_name": "calculate", "tool_params": {"expression": "1 + 1"}}));
        scene.bed.run(&other).await;
        assert_eq!(worker.metric("executor_items_in_flight", &[]).await, 0.0);
        assert_eq!(scene.gate.arrivals("a"), 0, "nobody has agreed yet");

        scene.decide(&event, json!({"action": "accept", "note": "be polite"})).await;
        // While the call is made nobody waits for a person any more.
        scene.gate.arrived("a", 1).await;
        let state = scene.bed.node_state("g", "n").await.expect("it runs");
        assert_eq!((&state["status"], &state["run_id"]), (&json!("running"), &json!("run-n")), "{layout:?}");
        assert!(state["waiting"].is_null() && state["started_at"].is_string(), "{state}");
        scene.gate.open_all();
        let events = scene.bed.ended(2).await;
        let end = events.iter().find(|event| event["node_id"] == "n").expect("it ended");
        assert_eq!(end.output()["result"], "I was let in.");
        let decision = &end["metadata"]["decisions"][0];
        assert_eq!((&decision["by"], &decision["action"]), (&json!("ann"), &json!("accept")));
        let state = scene.bed.node_state("g", "n").await.expect("it ended");
        assert_eq!((&state["status"], &state["metadata"]["decisions"][0]), (&json!("completed"), decision));
        let calls = scene.model.calls();
        assert_eq!((calls.completions, calls.repeated, scene.gate.arrivals("a")), (2, 0, 1));
        assert_eq!(scene.answers(1).await[0]["data"]["accepted"], true);
        assert_eq!(worker.metric("executor_items_total", &["waiting"]).await, 1.0);
        assert_eq!(worker.metric("executor_wait_decisions_total", &["accepted"]).await, 1.0);
        scene.assert_clean().await;
    }
}

#[tokio::test]
async fn calls_of_one_turn_wait_together_and_are_decided_one_by_one() {
    let scene = Scene::new(Bed::new().await).await;
    let _worker = scene.worker("w1").start().ready().await;
    scene.submit("n", "three doors").await;
    let events = scene.asked(2).await;
    let journal: Vec<String> = scene.bed.ask(&["HKEYS", &scene.bed.key("journal:g:n:run-n")]).await;
    assert!(journal.contains(&String::from("t1:c2:end")), "what wants no word is done: {journal:?}");
    // One of them is made with other arguments.
    let edited = json!({"arguments": {"url": format!("http://{}/c", scene.gate.host())}});
    scene.decide(&events[1], json!({"action": "accept", "content": edited})).await;
    scene.gate.arrived("c", 1).await;
    assert_eq!((scene.gate.arrivals("a"), scene.asked(1).await.len()), (0, 2));
    // A second word on the same, one of no use and one for nobody change nothing.
    scene.decide(&events[1], json!({"action": "reject", "by": "bob"})).await;
    scene.decide(&events[0], json!({"action": "accept", "content": {"argumnets": {}}})).await;
    let mut unknown = events[0].clone();
    unknown["data"]["wait_id"] = json!("wait_unknown");
    scene.decide(&unknown, json!({"action": "accept"})).await;
    let answers = scene.answers(4).await;
    let mut codes: Vec<&str> = answers.iter().filter_map(|answer| answer["data"]["code"].as_str()).collect();
    codes.sort_unstable();
    assert_eq!(codes, ["already_decided", "content_invalid", "unknown_wait"]);
    let second = answers.iter().find(|answer| answer["data"]["by"] == "bob").expect("the second word");
    assert_eq!(second["data"]["decided"]["by"], "ann");
    scene.decide(&events[0], json!({"action": "reject", "note": "not that one"})).await;
    let event = scene.bed.ended(1).await.remove(0);
    assert_eq!(event.output()["result"], "through all of them");
    let arrivals = ["a", "b", "c"].map(|door| scene.gate.arrivals(door));
    assert_eq!((arrivals, scene.model.calls().completions), ([0, 0, 1], 2));
    let edited: Vec<_> =
        event["metadata"]["decisions"].as_array().expect("a list").iter().map(|it| &it["edited"]).collect();
    assert_eq!(edited.iter().filter(|edited| ***edited == true).count(), 1, "{edited:?}");
    assert_eq!(edited.len(), 2);
    // The node is gone, so there is nothing to decide any more.
    scene.decide(&events[0], json!({"action": "accept"})).await;
    assert_eq!(scene.answers(6).await[5]["data"]["code"], "node_ended");
    scene.assert_clean().await;
}

/// When the decision comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    While,
    After,
}

#[tokio::test]
async fn every_worker_and_redis_may_restart_before_while_and_after_the_decision() {
    for moment in [Moment::Before, Moment::While, Moment::After] {
        let bed = Bed::with_own_redis(&["--appendonly", "yes", "--appendfsync", "always"]).await;
        let mut scene = Scene::new(bed).await;
        let (killed, stopped) = (scene.worker("w1").start().ready().await, scene.worker("w2").start().ready().await);
        scene.submit("n", "one door").await;
        let event = scene.asked(1).await.remove(0);
        killed.kill();
        stopped.terminate();
        stopped.ends().await;
        scene.bed.own_server().kill();
        scene.bed.own_server().start_again();
        scene.bed.reconnect().await;
        let decision = json!({"action": "accept"});
        if moment == Moment::Before {
            scene.decide(&event, decision.clone()).await;
        }
        let mut back = scene.worker("w3").start();
        if moment == Moment::While {
            scene.decide(&event, decision.clone()).await;
        }
        back = back.ready().await;
        if moment == Moment::After {
            scene.decide(&event, decision).await;
        }
        let end = scene.bed.ended(1).await.remove(0);
        assert_eq!(end.output()["result"], "I was let in.", "{moment:?}");
        assert_eq!(end.worker(), "w3");
        let calls = scene.model.calls();
        assert_eq!((calls.completions, calls.repeated), (2, 0), "{moment:?}: no completion is paid twice");
        assert_eq!(scene.gate.arrivals("a"), 1, "{moment:?}: the approved call runs once");
        assert_eq!(end["metadata"]["resumed"]["turns"], 1, "{moment:?}: it is the same conversation");
        scene.assert_clean().await;
        drop(back);
    }
}

#[tokio::test]
async fn a_tool_node_waits_for_a_word_that_the_worker_wants() {
    let scene = Scene::new(Bed::new().await).await;
    let rules = "[tools.approve]\ncalculate = \"'6' in args.expression\"\n";
    let _worker = scene.worker("w1").file(rules).start().ready().await;
    let node = |name: &str, expression: &str| {
        item(name, json!({"tool_name": "calculate", "tool_params": {"expression": expression}}))
    };
    let event = scene.bed.run(&node("free", "1 + 1")).await;
    assert!(event["metadata"]["decisions"].is_null());
    scene.bed.submit(&node("asked", "6 * 7")).await;
    let question = scene.asked(1).await.remove(0);
    assert_eq!(question["data"]["asked_by"]["type"], "rule");
    scene.decide(&question, json!({"action": "accept", "content": {"arguments": {"expression": "6 * 8"}}})).await;
    let events = scene.bed.ended(2).await;
    let end = events.iter().find(|event| event["node_id"] == "asked").expect("it ended");
    assert_eq!(end.output(), &json!(48));
}

#[tokio::test]
async fn a_node_whose_question_nobody_answers_fails_when_its_time_is_over() {
    let scene = Scene::new(Bed::new().await).await;
    let _worker = scene.worker("w1").set("wait.timeout", "1s").start().ready().await;
    scene.submit("n", "one door").await;
    let event = scene.bed.ended(1).await.remove(0);
    assert_eq!(event.failure(), ("permanent", "wait_expired"));
    assert_eq!((scene.gate.arrivals("a"), scene.model.calls().completions), (0, 1));
    scene.assert_clean().await;
}

#[tokio::test]
async fn what_nobody_answers_is_audited_and_told_before_anything_follows_from_it() {
    let scene = Scene::new(Bed::new().await).await;
    let settings = |id| scene.worker(id).set("wait.timeout", "1s").set("wait.on_expiry", "accept");
    let _worker = settings("w1").start().ready().await;
    scene.submit("n", "one door").await;
    let event = scene.bed.ended(1).await.remove(0);
    assert_eq!((event.output(), scene.gate.arrivals("a")).1, 1);
    let decision = &event["metadata"]["decisions"][0];
    assert_eq!((&decision["action"], &decision["expired"]), (&json!("accept"), &json!(true)));
    let audit = scene.bed.entries(&scene.bed.key("waits:audit")).await;
    assert_eq!(audit.len(), 1);
    let line: Value = serde_json::from_slice(&audit[0][0].1).expect("JSON");
    assert_eq!(
        (&line["expired"], &line["tool"], &line["node_id"]),
        (&json!(true), &json!("http_request"), &json!("n"))
    );
    assert_eq!((&line["by"], &line["at"]), (&decision["by"], &decision["at"]));
    let told = &scene.answers(1).await[0]["data"];
    assert_eq!((&told["accepted"], &told["expired"], &told["kind"]), (&json!(true), &json!(true), &json!("approval")));
    assert_eq!(scene.answers(1).await.len(), 1);
    scene.assert_clean().await;
}

#[tokio::test]
async fn a_large_call_is_told_in_part_shown_whole_and_made_as_it_was_asked_for() {
    let scene = Scene::new(Bed::new().await).await;
    let worker = scene.worker("w1").set("http.admin_token", TOKEN).start().ready().await;
    let text = "A long letter. ".repeat(3000);
    let params = json!({"expression": "letter", "data": {"to": "ann", "letter": text}});
    let config = json!({"tool_name": "json_query", "tool_params": params, "approve": ["json_query"]});
    scene.bed.submit(&item("n", config)).await;
    let event = scene.asked(1).await.remove(0);
    let told = &event["data"];
    assert_eq!(
        (&told["shortened"], &told["arguments"]["data"]["to"]),
        (&json!(["schema", "arguments"]), &json!("ann"))
    );
    let letter = told["arguments"]["data"]["letter"].as_str().expect("a part of it");
    assert!(letter.contains("of 45000 characters left out …]") && event.to_string().len() < 10_000, "{event}");
    let wait_id = told["wait_id"].as_str().expect("a name");
    let get = async |path: &str| {
        let url = format!("http://{}{path}", worker.address().await);
        let answer = reqwest::Client::new().get(url).bearer_auth(TOKEN).send().await.expect("the worker answers");
        answer.json::<Value>().await.expect("JSON")
    };
    assert_eq!(get("/api/waits").await["waits"][0]["arguments"], told["arguments"], "a list is no place for it");
    assert_eq!(get(&format!("/api/waits/{wait_id}")).await["arguments"], params);
    let command = scene.bed.worker("cli").argument("waits").argument("show").argument(wait_id).start();
    assert_eq!(command.ends().await.0, Some(0));
    let shown: Value = serde_json::from_str(&command.printed()).expect("JSON");
    assert_eq!((&shown["arguments"], &shown["shortened"]), (&params, &Value::Null));
    scene.decide(&event, json!({"action": "accept"})).await;
    let end = scene.bed.ended(1).await.remove(0);
    assert_eq!(end.output(), &json!(text));
    let audit = scene.bed.entries(&scene.bed.key("waits:audit")).await;
    let line: Value = serde_json::from_slice(&audit[0][0].1).expect("JSON");
    assert_eq!(line["arguments"]["bytes"], json!(params.to_string().len()), "it tells which arguments were agreed to");
    assert_eq!(line["arguments"]["sha256"].as_str().map(str::len), Some(64));
}

#[tokio::test]
async fn an_order_to_stop_ends_a_node_that_waits() {
    let scene = Scene::new(Bed::new().await).await;
    let _worker = scene.worker("w1").start().ready().await;
    scene.submit("n", "one door").await;
    let question = scene.asked(1).await.remove(0);
    scene.bed.ask::<()>(&["HSET", &scene.bed.key("cancel:g"), "n", "{}"]).await;
    let event = scene.bed.ended(1).await.remove(0);
    assert_eq!(event.failure(), ("cancelled", "cancelled"));
    scene.decide(&question, json!({"action": "accept"})).await;
    assert_eq!(scene.answers(1).await[0]["data"]["code"], "node_ended");
    assert_eq!(scene.gate.arrivals("a"), 0);
    scene.assert_clean().await;
}

/// Figures of the server's commands.
async fn calls(bed: &Bed, command: &str) -> u64 {
    let stats: String = bed.ask(&["INFO", "commandstats"]).await;
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|rest| rest.split(',').next()?.parse().ok()).unwrap_or(0)
}

async fn memory(bed: &Bed) -> u64 {
    let info: String = bed.ask(&["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    used.and_then(|used| used.trim().parse().ok()).expect("the server knows its memory")
}

/// Lets so many nodes wait for a word on a call, and says how many bytes of Redis each takes beside its journal.
async fn cost_of_waiting(bed: &Bed, graphs: &str, nodes: usize, tool: &str, params: &Value) -> u64 {
    let open = async || bed.ask::<usize>(&["HLEN", &bed.key("waits")]).await;
    let (before, waiting) = (memory(bed).await, open().await);
    let config = json!({"tool_name": tool, "tool_params": params, "approve": [tool]});
    let graph = |at: usize| format!("{graphs}-{}", at / 100);
    bed.submit_all((0..nodes).map(|at| {
        let mut item = item(&format!("node-{at}"), config.clone());
        item["graph_id"] = json!(graph(at));
        item
    }))
    .await;
    let patience = tokio::time::Instant::now() + std::time::Duration::from_secs(240);
    while open().await < waiting + nodes {
        assert!(tokio::time::Instant::now() < patience, "they do not all wait");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    bed.settled().await;
    // They are all alike, so some of them tell about all.
    let mut journals = 0;
    for at in (0..nodes).step_by(100) {
        let key = bed.key(&format!("journal:{}:node-{at}:run-node-{at}", graph(at)));
        journals += bed.ask::<u64>(&["MEMORY", "USAGE", &key]).await;
    }
    (memory(bed).await.saturating_sub(before) - journals * 100) / nodes as u64
}

#[tokio::test]
async fn ten_thousand_waiting_nodes_cost_no_slot_no_renewal_and_little_memory() {
    const NODES: usize = 10_000;
    let bed = Bed::with_own_redis(&[]).await;
    // That a node was started is told of every node, whether it waits or not.
    let worker = bed
        .worker("w1")
        .set("retry.park_after", "100ms")
        .set("tools.http_request.allow", "mail.example")
        .file("events.progress = []")
        .start()
        .ready()
        .await;
    // Arguments of the size that people see: a letter with an address, some lines and a few figures.
    let letter = json!({"to": "ada@example.com", "subject": "Your refund for order 2026-11-0017", "amount": 129.9,
        "currency": "EUR", "headers": {"content-type": "application/json", "x-tenant": "acme"},
        "text": "Dear Ada, the parcel never arrived, so we send your money back. It takes two or three days. \
            Please tell us if anything else is wrong with your order; we are here on all working days."});
    let query = json!({"expression": "[to, subject, amount, text]", "data": letter});
    assert!(query.to_string().len() > 400, "{query}");
    let each = cost_of_waiting(&bed, "graph", NODES, "json_query", &query).await;
    assert!(each < 4096, "each waiting node takes {each} bytes beside its journal");
    // A tool that has much to say of its arguments takes no more.
    let request = json!({"url": "http://mail.example/letters", "method": "POST", "body": letter});
    let each = cost_of_waiting(&bed, "mail", NODES / 10, "http_request", &request).await;
    assert!(each < 4096, "each waiting node with a large schema takes {each} bytes beside its journal");
    assert_eq!(worker.metric("executor_items_in_flight", &[]).await, 0.0, "no slot");
    assert_eq!(worker.metric("executor_waits_open", &[]).await, (NODES + NODES / 10) as f64);
    // The mover goes on looking, and nothing is renewed meanwhile.
    let (renewed, looked) = (calls(&bed, "xclaim").await, calls(&bed, "zrangebyscore").await);
    eventually("the mover has looked many times", async || {
        (calls(&bed, "zrangebyscore").await > looked + 30).then_some(())
    })
    .await;
    assert_eq!(calls(&bed, "xclaim").await, renewed, "no renewal");
    // One of them still goes on at once, and a cancelled graph ends all of its nodes at once.
    let command = bed.worker("cli").argument("cancel").argument("graph-7").start();
    assert_eq!(command.ends().await.0, Some(0));
    let events = bed.ended(100).await;
    assert!(events.iter().all(|event| event.failure() == ("cancelled", "graph_cancelled")));
    // Orders that somebody wrote by hand reach the others too, wherever they stand among those that wait.
    for graph in ["graph-0", "graph-51", "graph-99"] {
        bed.ask::<()>(&["HSET", &bed.key(&format!("cancel:{graph}")), "*", "1"]).await;
    }
    assert_eq!(bed.ended(400).await.len(), 400);
}
