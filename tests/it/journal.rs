//! Workers that die or stop in the middle of a node's steps: the next one goes on from that very step. The model counts
//! what it is asked and the gate what is done, so that nothing paid for is paid twice and nothing done is done twice.

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Event, Layout};
use crate::harness::eventually;
use crate::harness::gate::Gate;
use crate::harness::model::Model;
use crate::harness::worker::{Spec, Worker};

struct Scene {
    bed: Bed,
    gate: Gate,
    model: Model,
}

impl Scene {
    /// The model follows `replies`, in which `GATE` stands for the gate's address.
    async fn new(script: &str) -> Self {
        let (bed, gate) = (Bed::new().await, Gate::start().await);
        let model = Model::start(&script.replace("GATE", &format!("http://{}", gate.host())));
        Self { bed, gate, model }
    }

    fn worker(&self, id: &str) -> Spec {
        self.bed
            .worker_with_model(id, &self.model)
            .set("tools.http_request.allow", self.gate.host())
            .set("lease.duration", "1s")
            .set("lease.renew", "200ms")
    }

    async fn submit(&self, config: Value) {
        let item = json!({"graph_id": "g", "node_id": "n", "run_id": "r", "config": config, "inputs": {}});
        self.bed.submit(&item).await;
    }

    async fn journal(&self) -> Vec<String> {
        let mut fields: Vec<String> = self.bed.ask(&["HKEYS", &self.bed.key("journal:g:n:r")]).await;
        fields.sort_unstable();
        fields
    }

    /// The one end, with nothing left behind and no turn of the model given twice.
    async fn end(&self, completions: u64) -> Event {
        let event = self.bed.ended(1).await.remove(0);
        let calls = self.model.calls();
        assert_eq!((calls.completions, calls.repeated), (completions, 0), "{calls:?}");
        assert!(self.journal().await.is_empty(), "the journal goes with the end");
        let crashes: usize = self.bed.ask(&["EXISTS", &self.bed.key(&format!("crashes:{}", self.bed.stream))]).await;
        assert_eq!(crashes, 0);
        event
    }
}

fn agent() -> Value {
    json!({"task": "Go through the doors", "tools": ["http_request"], "llm_config": {}})
}

/// An effect, a question in whose middle the worker dies, another effect, the answer.
const COURSE: &str = r#"
rules:
  - match: {prompt: the doors}
    replies:
      - {tool_calls: [{name: http_request, input: {method: POST, url: GATE/first}}], usage: {input_tokens: 10, output_tokens: 1}}
      - {tool_calls: [{name: http_request, input: {url: GATE/wait}}], usage: {input_tokens: 20, output_tokens: 2}}
      - {tool_calls: [{name: http_request, input: {method: POST, url: GATE/third}}], usage: {input_tokens: 30, output_tokens: 3}}
      - {text: through, usage: {input_tokens: 40, output_tokens: 4}}
"#;

fn assert_whole_course(scene: &Scene, event: &Event) {
    let output = event.output();
    assert_eq!(
        (&output["result"], &output["iterations"], &output["tool_calls"]),
        (&json!("through"), &json!(4), &json!(3))
    );
    assert_eq!((&output["usage"]["input_tokens"], &output["usage"]["output_tokens"]), (&json!(100), &json!(10)));
    let doors = ["first", "wait", "third"].map(|door| scene.gate.arrivals(door));
    assert_eq!(doors, [1, 2, 1], "each effect once; the question may be asked again");
    assert_eq!((event.worker(), &event["metadata"]["resumed"]), ("w2", &json!({"turns": 2, "tool_calls": 1})));
}

#[tokio::test]
async fn an_agent_of_a_killed_worker_goes_on_from_that_very_turn() {
    let scene = Scene::new(COURSE).await;
    scene.gate.open("first");
    scene.gate.open("third");
    let doomed = scene.worker("w1").start().ready().await;
    scene.submit(agent()).await;
    scene.gate.arrived("wait", 1).await;
    let written = ["hdr", "t1:c0:end", "t1:c0:start", "t1:llm", "t2:c0:start", "t2:llm"];
    assert_eq!(scene.journal().await, written);
    let next = scene.worker("w2").start().ready().await;
    doomed.kill();
    scene.gate.arrived("wait", 2).await;
    scene.gate.open("wait");
    let event = scene.end(4).await;
    assert_whole_course(&scene, &event);
    assert_eq!(next.metric("executor_items_resumed_total", &[]).await, 1.0);
    let told = scene.bed.entries(&scene.bed.key("events:node.progress")).await;
    let told: Vec<Value> = told.iter().map(|fields| serde_json::from_slice(&fields[0].1).expect("JSON")).collect();
    let resumed = told.iter().find(|event| event["data"].get("resumed").is_some()).expect("people see that it went on");
    assert_eq!(resumed["data"]["resumed"], json!({"turns": 2, "tool_calls": 1}));
}

#[tokio::test]
async fn an_agent_of_a_worker_that_stops_is_handed_back_with_its_journal() {
    let scene = Scene::new(COURSE).await;
    scene.gate.open("first");
    scene.gate.open("third");
    // Only handing back can explain that the next worker has the work soon.
    let spec =
        |id: &str| scene.worker(id).set("lease.duration", "1h").set("lease.renew", "1m").set("shutdown.grace", "100ms");
    let first = spec("w1").start().ready().await;
    scene.submit(agent()).await;
    scene.gate.arrived("wait", 1).await;
    first.terminate();
    assert_eq!(first.ends().await.0, Some(0));
    assert!(scene.journal().await.contains(&String::from("t2:llm")));
    let _next = spec("w2").start().ready().await;
    scene.gate.arrived("wait", 2).await;
    scene.gate.open("wait");
    let event = scene.end(4).await;
    assert_whole_course(&scene, &event);
}

#[tokio::test]
async fn an_agent_outlives_more_workers_than_poison_would_as_long_as_it_comes_further() {
    const DOORS: usize = 5;
    let turns: String = (1..=DOORS)
        .map(|door| format!("      - tool_calls: [{{name: http_request, input: {{url: GATE/{door}}}}}]\n"))
        .collect();
    let scene =
        Scene::new(&format!("rules:\n  - match: {{prompt: the doors}}\n    replies:\n{turns}      - text: through\n"))
            .await;
    let mut workers = vec![scene.worker("w0").set("work.max_crashes", "2").start().ready().await];
    scene.submit(agent()).await;
    for door in 1..=DOORS {
        scene.gate.arrived(&door.to_string(), 1).await;
        workers.push(scene.worker(&format!("w{door}")).set("work.max_crashes", "2").start().ready().await);
        workers.remove(0).kill();
        scene.gate.arrived(&door.to_string(), 2).await;
        scene.gate.open(&door.to_string());
    }
    let event = scene.end(DOORS as u64 + 1).await;
    assert_eq!((&event.output()["result"], event.worker()), (&json!("through"), "w5"));
    for door in 1..=DOORS {
        assert_eq!(scene.gate.arrivals(&door.to_string()), 2, "door {door}");
    }
}

#[tokio::test]
async fn a_model_is_told_of_a_call_that_may_have_taken_effect_and_it_is_not_made_again() {
    let scene = Scene::new(
        r#"
rules:
  - match: {tool_result: may or may not have taken effect}
    reply: {text: I shall not repeat it}
  - match: {prompt: the doors}
    replies:
      - tool_calls: [{name: http_request, input: {method: POST, url: GATE/pay}}, {name: http_request, input: {url: GATE/look}}]
"#,
    )
    .await;
    scene.gate.open("look");
    let doomed = scene.worker("w1").start().ready().await;
    scene.submit(agent()).await;
    scene.gate.arrived("pay", 1).await;
    eventually("the call beside it has ended", async || {
        scene.journal().await.contains(&String::from("t1:c1:end")).then_some(())
    })
    .await;
    let _next = scene.worker("w2").start().ready().await;
    doomed.kill();
    let event = scene.end(2).await;
    assert_eq!(event.output()["result"], "I shall not repeat it");
    assert_eq!((scene.gate.arrivals("pay"), scene.gate.arrivals("look")), (1, 1));
    assert_eq!(event["metadata"]["resumed"], json!({"turns": 1, "tool_calls": 1}));
}

#[tokio::test]
async fn a_tool_node_ends_with_an_unknown_outcome_unless_the_operator_lets_it_repeat() {
    for (again, rule) in [(false, ""), (true, "[tools.unknown_outcome]\nhttp_request = \"retry\"")] {
        let scene = Scene::new("rules: [{reply: {text: never asked}}]").await;
        let doomed = scene.worker("w1").file(rule).start().ready().await;
        let url = format!("http://{}/pay", scene.gate.host());
        scene.submit(json!({"tool_name": "http_request", "tool_params": {"method": "POST", "url": url}})).await;
        scene.gate.arrived("pay", 1).await;
        let _next = scene.worker("w2").file(rule).start().ready().await;
        doomed.kill();
        if again {
            scene.gate.arrived("pay", 2).await;
            scene.gate.open("pay");
        }
        let event = scene.end(0).await;
        if again {
            assert_eq!(event.output()["status"], 200);
        } else {
            assert_eq!(event.failure(), ("permanent", "unknown_tool_outcome"));
            assert!(event.error().contains("http_request"), "{}", event.error());
        }
        assert_eq!(scene.gate.arrivals("pay"), 1 + usize::from(again));
    }
}

/// What the next worker makes of a node whose configuration in the graph's state is another one since its worker died
/// in the middle of a call.
async fn changed_between_two_workers(method: &str) -> (Scene, Vec<Worker>) {
    let scene = Scene::new(&format!(
        r#"
rules:
  - match: {{prompt: the doors}}
    replies:
      - {{tool_calls: [{{name: http_request, input: {{method: {method}, url: GATE/call}}}}]}}
      - {{text: through}}
"#
    ))
    .await;
    let with = async |task: &str| {
        let config = json!({"task": task, "tools": ["http_request"], "llm_config": {}});
        let state = json!({"graph": {"nodes": {"n": {"config": config}}}, "inputs": {}});
        scene.bed.put_state(Layout::Hash, "g", &state).await;
    };
    with("Go through the doors").await;
    let first = scene.worker("w1").start().ready().await;
    scene.bed.submit(&json!({"graph_id": "g", "node_id": "n", "run_id": "r"})).await;
    scene.gate.arrived("call", 1).await;
    with("Go through all the doors").await;
    let next = scene.worker("w2").start().ready().await;
    first.kill();
    (scene, vec![first, next])
}

#[tokio::test]
async fn an_unsafe_call_that_was_begun_under_another_configuration_ends_the_node_as_journal_mismatch() {
    let (scene, _workers) = changed_between_two_workers("POST").await;
    let event = scene.end(1).await;
    assert_eq!((event.failure(), event.worker()), (("permanent", "journal_mismatch"), "w2"));
    assert!(event.error().contains("configuration") && event.error().contains("`run_id`"), "{}", event.error());
    assert_eq!(scene.gate.arrivals("call"), 1, "nobody did it again");
}

#[tokio::test]
async fn a_node_whose_configuration_changed_before_anything_unsafe_starts_over_in_a_new_epoch() {
    let (scene, _workers) = changed_between_two_workers("GET").await;
    scene.gate.arrived("call", 2).await;
    let header: String = scene.bed.ask(&["HGET", &scene.bed.key("journal:g:n:r"), "hdr"]).await;
    let header: Value = serde_json::from_str(&header).expect("JSON");
    assert_eq!(header["epoch"], 2, "{header}");
    assert_eq!(header["before"]["tool_calls"], 1, "what was used before stays counted: {header}");
    scene.gate.open("call");
    let event = scene.end(3).await;
    assert_eq!((&event.output()["result"], event.worker()), (&json!("through"), "w2"));
    let warnings = event["metadata"]["warnings"].to_string();
    assert!(warnings.contains("started over"), "{}", event.body);
}

#[tokio::test]
async fn a_completion_is_not_paid_for_again_by_a_worker_that_takes_over_before_the_settle() {
    let scene = Scene::new("rules: [{reply: {text: once}}]").await;
    // Nothing can be settled as long as there is a list where the events belong.
    let events = scene.bed.key("events:node.completed");
    scene.bed.ask::<()>(&["RPUSH", &events, "not a stream"]).await;
    let doomed = scene.worker("w1").start().ready().await;
    scene.submit(json!({"llm_config": {"prompt": "say it"}})).await;
    eventually("the completion is on record", async || (scene.journal().await == ["hdr", "t1:llm"]).then_some(()))
        .await;
    let _next = scene.worker("w2").start().ready().await;
    doomed.kill();
    scene.bed.ask::<()>(&["DEL", &events]).await;
    let event = scene.end(1).await;
    assert_eq!((&event.output()["content"], event.worker()), (&json!("once"), "w2"));
}

#[tokio::test]
async fn a_worker_that_was_away_finds_at_its_next_entry_that_the_node_is_lost() {
    let scene = Scene::new(COURSE).await;
    scene.gate.open("first");
    scene.gate.open("third");
    let away = scene.worker("w1").start().ready().await;
    scene.submit(agent()).await;
    scene.gate.arrived("wait", 1).await;
    let _next = scene.worker("w2").start().ready().await;
    away.freeze();
    scene.gate.arrived("wait", 2).await;
    // Both have their answer now, but only one of them may go on.
    scene.gate.open("wait");
    let event = scene.end(4).await;
    assert_whole_course(&scene, &event);
    away.thaw();
    eventually("the worker that was away sees that it lost the node", async || {
        (away.metric("executor_items_total", &["lost"]).await == 1.0).then_some(())
    })
    .await;
    assert_eq!((scene.gate.arrivals("third"), scene.model.calls().completions), (1, 4));
    scene.bed.ended(1).await;
}
