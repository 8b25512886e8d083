//! Workers that die or are away: their work is taken over once, what they still believe is written nowhere, and an item
//! that ends every process is stopped.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::eventually;
use crate::harness::gate::Gate;
use crate::harness::mcp;
use crate::harness::model::Model;
use crate::harness::worker::{Spec, Worker};

fn short(bed: &Bed, gate: &Gate, id: &str) -> Spec {
    bed.worker(id)
        .set("tools.http_request.allow", gate.host())
        .set("lease.duration", "1s")
        .set("lease.renew", "200ms")
        .set("lease.sweep", "200ms")
}

fn item(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "run_id": format!("run-{node}"), "config": config, "inputs": {}})
}

/// The worker that has the one pending entry, by its place among `ids`.
async fn holder(bed: &Bed, ids: &[&str]) -> usize {
    let pending = bed.pending_is(1).await;
    ids.iter().position(|id| pending[0].1.starts_with(&format!("{id}:"))).expect("one of the workers has it")
}

async fn crashes(bed: &Bed) -> HashMap<String, u32> {
    bed.ask(&["HGETALL", &bed.key(&format!("crashes:{}", bed.stream))]).await
}

#[tokio::test]
async fn the_node_of_a_killed_worker_is_taken_over_once() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let doomed = short(&bed, &gate, "w1").start().ready().await;
    let entry = bed.submit(&item("n", gate.node("body"))).await;
    gate.arrived("body", 1).await;
    let others = [short(&bed, &gate, "w2").start().ready().await, short(&bed, &gate, "w3").start().ready().await];
    doomed.kill();
    gate.arrived("body", 2).await;
    let pending = bed.pending_is(1).await;
    assert_eq!((pending[0].0.as_str(), pending[0].3), (entry.as_str(), 2), "delivered a second time");
    assert!(!pending[0].1.starts_with("w1:"));
    assert_eq!(crashes(&bed).await, HashMap::from([(entry.clone(), 1)]));
    gate.open("body");
    let events = bed.ended(1).await;
    assert_eq!(events[0].output()["status"], 200);
    assert_ne!(events[0].worker(), "w1");
    assert_eq!(events[0]["metadata"]["work_id"], format!("{}/{entry}", bed.stream));
    assert_eq!(gate.arrivals("body"), 2);
    assert!(crashes(&bed).await.is_empty(), "a settled entry leaves no count behind");
    let mut taken = 0.0;
    for other in &others {
        taken += other.metric("executor_items_taken_over_total", &[]).await;
    }
    assert_eq!(taken, 1.0);
}

#[tokio::test]
async fn everything_a_killed_worker_held_is_taken_over_and_nothing_twice() {
    const ITEMS: usize = 40;
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let doomed = short(&bed, &gate, "w1").set("pool.size", "30").start().ready().await;
    bed.submit_all((0..ITEMS).map(|at| item(&format!("n{at}"), gate.node(&format!("{at}"))))).await;
    bed.pending_is(30).await;
    let spec = |id: &str| short(&bed, &gate, id).set("pool.size", "10");
    let _others = [spec("w2").start().ready().await, spec("w3").start().ready().await];
    doomed.kill();
    gate.open_all();
    let events = bed.ended(ITEMS).await;
    assert!(events.iter().all(|event| event["type"] == "node.completed" && event.worker() != "w1"));
    for at in 0..ITEMS {
        assert!(gate.arrivals(&format!("{at}")) <= 2, "once for the dead worker at the most, once for another");
        assert!(bed.node_state("g", &format!("n{at}")).await.is_some());
    }
    assert!(crashes(&bed).await.is_empty());
}

#[tokio::test]
async fn an_agent_of_a_killed_worker_still_comes_to_its_end() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let url = format!("http://{}/tool", gate.host());
    let model = Model::start(&format!(
        r#"
rules:
  - match: {{prompt: fetch, tool: http_request}}
    replies:
      - tool_calls: [{{name: calculate, input: {{expression: "20 + 1"}}}}]
      - tool_calls: [{{name: http_request, input: {{url: "{url}"}}}}]
      - text: "done after {{{{ turn }}}} turns"
"#
    ));
    let spec =
        |id: &str| short(&bed, &gate, id).env("LLM_API_KEY", "a key of the test").env("LLM_BASE_URL", model.base_url());
    let doomed = spec("w1").start().ready().await;
    bed.submit(&item("n", json!({"task": "fetch", "tools": ["calculate", "http_request"], "llm_config": {}}))).await;
    gate.arrived("tool", 1).await;
    let _other = spec("w2").start().ready().await;
    doomed.kill();
    gate.arrived("tool", 2).await;
    gate.open("tool");
    let events = bed.ended(1).await;
    assert_eq!(events[0].output()["result"], "done after 2 turns");
    assert_eq!((events[0].worker(), &events[0].output()["iterations"]), ("w2", &json!(3)));
}

#[tokio::test]
async fn a_worker_that_was_away_longer_than_its_lease_writes_nothing() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let away = short(&bed, &gate, "w1").start().ready().await;
    bed.submit(&item("n", gate.node("body"))).await;
    gate.arrived("body", 1).await;
    let other = short(&bed, &gate, "w2").start().ready().await;
    away.freeze();
    gate.arrived("body", 2).await;
    gate.open("body");
    let events = bed.ended(1).await;
    assert_eq!(events[0].worker(), "w2");
    let state = bed.node_state("g", "n").await.expect("a state");
    // By now the frozen worker has its answer too, and will try to settle.
    away.thaw();
    eventually("the worker that was away sees that it lost the node", async || {
        (away.metric("executor_items_total", &["lost"]).await == 1.0).then_some(())
    })
    .await;
    bed.ended(1).await;
    assert_eq!(bed.node_state("g", "n").await.expect("a state"), state, "what the new owner wrote stays");
    assert_eq!(away.metric("executor_items_total", &["completed"]).await, 0.0);
    // It is no worse for it.
    drop(other);
    away.answers("/ready", 200).await;
    bed.submit(&item("m", gate.node("body"))).await;
    let events = bed.ended(2).await;
    assert_eq!(events[1].worker(), "w1");
}

#[tokio::test]
async fn a_node_that_runs_longer_than_a_lease_stays_with_its_worker() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let _workers = [short(&bed, &gate, "w1").start().ready().await, short(&bed, &gate, "w2").start().ready().await];
    bed.submit(&item("n", gate.node("body"))).await;
    gate.arrived("body", 1).await;
    let mut renewals = 0;
    let mut idle = 0;
    // Twelve renewals at 200 ms are more than two leases of a second.
    eventually("the lease is renewed", async || {
        let now = bed.pending_is(1).await[0].2;
        renewals += usize::from(now < idle);
        idle = now;
        (renewals >= 12).then_some(())
    })
    .await;
    assert_eq!(bed.pending_is(1).await[0].3, 1, "delivered once");
    gate.open("body");
    bed.ended(1).await;
    assert_eq!(gate.arrivals("body"), 1);
}

#[tokio::test]
async fn an_item_that_ends_every_worker_becomes_a_dead_letter_before_it_runs_again() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let ids = ["w1", "w2", "w3", "w4"];
    let mut workers: Vec<Worker> = Vec::new();
    for id in ids {
        workers.push(short(&bed, &gate, id).set("work.max_crashes", "3").start().ready().await);
    }
    let data = item("n", gate.node("body"));
    let entry = bed.submit(&data).await;
    for crash in 1..=3 {
        gate.arrived("body", crash).await;
        workers[holder(&bed, &ids).await].kill();
    }
    let events = bed.ended(1).await;
    assert_eq!(events[0].failure(), ("poison", "max_crashes"));
    assert!(events[0].error().contains('3'), "{}", events[0].error());
    assert_eq!(events[0]["run_id"], "run-n");
    assert_eq!(gate.arrivals("body"), 3, "it did not run again");
    let letters = bed.dead_letters().await;
    assert_eq!(letters.len(), 1);
    let text = |field: &str| String::from_utf8(letters[0][field].clone()).expect("text");
    assert_eq!((text("reason"), text("crashes")), (String::from("poison"), String::from("3")));
    assert_eq!(text("work_id"), format!("{}/{entry}", bed.stream));
    assert_eq!((text("deliveries"), text("data")), (String::from("4"), data.to_string()));
    assert!(crashes(&bed).await.is_empty());
    // Whoever is left goes on.
    gate.open_all();
    bed.submit(&item("m", gate.node("body"))).await;
    bed.ended(2).await;
}

/// Nodes with which two processes have died one after the other, none of which has ended.
struct Suspects {
    bed: Bed,
    gate: Gate,
    /// The door of each entry.
    doors: HashMap<String, String>,
}

impl Suspects {
    async fn new() -> Self {
        let (bed, gate) = (Bed::new().await, Gate::start().await);
        let mut doors = HashMap::new();
        for door in ["a", "b", "c", "d"] {
            doors.insert(bed.submit(&item(door, gate.node(door))).await, String::from(door));
        }
        let suspects = Self { bed, gate, doors };
        for (death, id) in ["w1", "w2"].into_iter().enumerate() {
            let doomed = short(&suspects.bed, &suspects.gate, id).start().ready().await;
            for door in suspects.doors.values() {
                suspects.gate.arrived(door, death + 1).await;
            }
            assert_eq!(suspects.held_by(id).await.len(), 4, "until the second death nothing is suspected");
            doomed.kill();
        }
        suspects
    }

    /// Those of them that a worker has, by what stands in Redis.
    async fn held_by(&self, id: &str) -> Vec<String> {
        let pending = self.bed.pending().await;
        let own = pending.into_iter().filter(|(_, consumer, ..)| consumer.starts_with(&format!("{id}:")));
        own.map(|(entry, ..)| entry).filter(|entry| self.doors.contains_key(entry)).collect()
    }

    /// The one entry that a worker has.
    async fn taken_by(&self, id: &str) -> String {
        let taken = eventually("a suspect is taken over", async || {
            let held = self.held_by(id).await;
            assert!(held.len() < 2, "{held:?} at once");
            held.into_iter().next()
        })
        .await;
        self.gate.arrived(&self.doors[&taken], 3).await;
        taken
    }

    /// Lets it end, and waits until it has.
    async fn ends(&self, entry: &str) {
        let before = self.bed.count().await;
        self.gate.open(&self.doors[entry]);
        eventually("it has ended", async || (self.bed.count().await > before).then_some(())).await;
    }
}

#[tokio::test]
async fn suspects_of_a_crash_run_one_at_a_time_beside_new_work() {
    let suspects = Suspects::new().await;
    let (bed, gate) = (&suspects.bed, &suspects.gate);
    let _worker = short(bed, gate, "w3").start().ready().await;
    for at in 0..4 {
        let entry = suspects.taken_by("w3").await;
        let counts = crashes(bed).await;
        assert_eq!((counts[&entry], counts.values().sum::<u32>()), (2, 4 - at + 1), "{counts:?}");
        let (mut renewals, mut idle) = (0, 0);
        // Twelve renewals take twelve looks for expired leases: each of the others is one, and stays where it is.
        eventually("its lease is renewed many times", async || {
            let held = suspects.held_by("w3").await;
            assert_eq!(held, [entry.as_str()]);
            let pending = bed.pending().await;
            let now = pending.iter().find(|(held, ..)| *held == entry).expect("it is pending").2;
            renewals += usize::from(now < idle);
            idle = now;
            (renewals >= 12).then_some(())
        })
        .await;
        suspects.ends(&entry).await;
        let fresh = format!("fresh{at}");
        gate.open(&fresh);
        bed.submit(&item(&fresh, gate.node(&fresh))).await;
        gate.arrived(&fresh, 1).await;
    }
    let events = bed.ended(8).await;
    assert!(events.iter().all(|event| event.worker() == "w3" && event.output()["status"] == 200));
}

#[tokio::test]
async fn the_next_suspect_is_taken_over_as_soon_as_one_has_ended() {
    let suspects = Suspects::new().await;
    // The round after this one comes too late to explain that the next suspect is taken over.
    const ROUND: Duration = Duration::from_secs(5);
    let _worker = short(&suspects.bed, &suspects.gate, "w3").set("lease.sweep", "5s").start().ready().await;
    let mut entry = suspects.taken_by("w3").await;
    for _ in 0..3 {
        suspects.ends(&entry).await;
        let since = Instant::now();
        entry = suspects.taken_by("w3").await;
        assert!(since.elapsed() < ROUND.mul_f64(0.8), "only after {:?}", since.elapsed());
    }
    suspects.ends(&entry).await;
    suspects.bed.ended(4).await;
}

#[tokio::test]
async fn a_worker_that_starts_again_under_its_name_takes_over_from_itself() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let first = short(&bed, &gate, "w1").start().ready().await;
    bed.submit(&item("n", gate.node("body"))).await;
    gate.arrived("body", 1).await;
    first.kill();
    let _second = short(&bed, &gate, "w1").start().ready().await;
    gate.arrived("body", 2).await;
    assert_eq!(bed.pending_is(1).await[0].3, 2);
    gate.open("body");
    bed.ended(1).await;
}

#[tokio::test]
async fn the_tool_servers_of_a_killed_worker_end_with_it() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let server = mcp::stdio("voice", &mcp::fastmcp(), &["stdio"]);
    let doomed = short(&bed, &gate, "w1").file(&server).start().ready().await;
    bed.submit(&item("n", json!({"tool_name": "pid", "tool_params": {}}))).await;
    let pid = bed.ended(1).await[0].output()["result"].as_i64().expect("a process id");
    let alive = || std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(alive());
    doomed.kill();
    eventually("the child process is gone", async || (!alive()).then_some(())).await;
}
