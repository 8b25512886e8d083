//! The scripts of waiting: an entry that leaves its stream with questions, and decisions that bring it back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use da_node_executor::clients::redis::{Decided, RawEntry, RedisError, Settled};
use da_node_executor::domain::event::EventType;
use da_node_executor::domain::journal::{ask_field, said_field};
use da_node_executor::domain::outcome::Waiting;
use da_node_executor::domain::settlement::{WrittenAsk, WrittenWait};
use da_node_executor::domain::wait::{Action, Ask, Asked, AskedBy, Decision, Kind, OnExpiry, WaitId};
use da_node_executor::domain::work::{Content, Delivery, Meta, read_entry};
use da_node_executor::ports::{Opened, Wanted};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{GROUP, ITEM, Worker, World};

/// The state of a node that waits.
const WAITS: &str = r#"{"node_id":"n","status":"waiting","run_id":"r"}"#;

fn ask(delivery: &Delivery, name: &str) -> Ask {
    let item = &delivery.item;
    Ask {
        wait_id: WaitId::from_text(name),
        kind: Kind::Approval,
        graph_id: item.graph_id.clone(),
        node_id: item.node_id.clone(),
        run_id: item.run_id.clone(),
        work_id: delivery.work_id.to_string(),
        message: String::from("May it be?"),
        schema: json!({"type": "object"}),
        asked_by: AskedBy::Rule { rule: String::from("pay") },
        tool: Some(String::from("pay")),
        arguments: None,
        last_words: None,
        url: None,
        asked_at: Timestamp::now(),
        expires_at: Timestamp::now() + SignedDuration::from_hours(1),
        on_expiry: OnExpiry::Fail,
    }
}

fn waiting(asks: &[Ask]) -> Waiting {
    Waiting {
        asks: asks.to_vec(),
        expires_at: asks.iter().map(|ask| ask.expires_at).min().expect("a question"),
        until: None,
        waits: std::collections::BTreeMap::new(),
        since: Timestamp::now(),
        header: String::from(r#"{"v":1}"#),
        restart: false,
    }
}

fn written(waiting: &Waiting) -> WrittenWait {
    let asks = waiting.asks.iter().map(|ask| WrittenAsk {
        wait_id: ask.wait_id.clone(),
        ask_json: json!(ask).to_string(),
        event_json: json!({"asks": ask.wait_id}).to_string(),
    });
    WrittenWait { node_json: String::from(WAITS), asks: asks.collect() }
}

fn meta(delivery: &Delivery) -> Meta {
    let origin = delivery.meta.origin.clone().unwrap_or_else(|| delivery.entry.to_string());
    Meta { origin: Some(origin), asked_at: Some(Timestamp::now()), ..Meta::default() }
}

async fn wait_for(worker: &Worker, delivery: &Delivery, waiting: &Waiting) -> Settled {
    let (meta, written) = (meta(delivery), written(waiting));
    worker.waiting.wait(delivery, &meta, waiting, &written, true).await.expect("an answer")
}

async fn wait(worker: &Worker, delivery: &Delivery, asks: &[Ask]) -> Settled {
    wait_for(worker, delivery, &waiting(asks)).await
}

fn decision(ask: &Ask, action: Action, by: &str) -> Decision {
    Decision {
        graph_id: ask.graph_id.clone(),
        node_id: ask.node_id.clone(),
        run_id: ask.run_id.clone(),
        wait_id: ask.wait_id.clone(),
        action,
        content: None,
        by: Some(by.to_owned()),
        note: None,
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the signature is the client's")]
fn fits(_: &Ask, content: &Value) -> Result<(), String> {
    match content.get("bad") {
        Some(_) => Err(String::from("it is bad")),
        None => Ok(()),
    }
}

/// Decides by hand.
async fn decide(worker: &Worker, decision: &Decision) -> Decided {
    worker.waiting.decide(decision, None, fits).await.expect("an answer")
}

fn refusal(decided: Decided) -> &'static str {
    match decided {
        Decided::Refused(refusal) => refusal.code,
        other => panic!("it was not refused: {other:?}"),
    }
}

/// A worker with an item whose run it has opened; the state expires.
async fn running(world: &World) -> (Worker, Arc<Delivery>) {
    world.redis::<()>(&["HSET", &world.key("state:g"), "status", "running"]).await;
    world.redis::<()>(&["PEXPIRE", &world.key("state:g"), "172800000"]).await;
    let (worker, delivery) = world.worker_with("w:1", ITEM).await;
    let opened = worker.store.open(&delivery, &Wanted::default()).await.expect("an answer").0;
    assert!(matches!(opened, Opened::Ready { .. }));
    (worker, delivery)
}

async fn told(world: &World, kind: EventType) -> Vec<Value> {
    let entries: Vec<(String, Vec<String>)> = world.redis(&["XRANGE", &world.keys.events(kind), "-", "+"]).await;
    entries.into_iter().map(|(_, fields)| serde_json::from_str(&fields[1]).expect("JSON")).collect()
}

async fn returned(world: &World, worker: &Worker) -> u64 {
    worker.parking.bring_back(&world.stream, 100).await.expect("an answer").returned
}

#[tokio::test]
async fn a_node_waits_by_one_script_and_comes_back_with_its_answer() {
    let world = World::new().await;
    let (mut worker, ours) = running(&world).await;
    let ask = ask(&ours, "wait_a");
    assert_eq!(wait(&worker, &ours, std::slice::from_ref(&ask)).await, Settled::Done);
    assert_eq!((world.pending().await, world.length(&world.stream).await), (0, 0));
    let state: String = world.redis(&["HGET", &world.key("state:g"), "node:n"]).await;
    assert!(state.contains("waiting"), "{state}");
    for key in ["state:g", "done:g", "journal:g:n:r"] {
        assert_eq!(world.ttl(&world.key(key)).await, -1, "{key} does not expire while the node waits");
    }
    assert_eq!(told(&world, EventType::NodeInputRequired).await, [json!({"asks": "wait_a"})]);
    let index: String = world.redis(&["HGET", &world.keys.waits(), "wait_a"]).await;
    assert_eq!(index, "g\nn\nr");
    assert_eq!(returned(&world, &worker).await, 0, "nobody has decided");

    assert_eq!(decide(&worker, &decision(&ask, Action::Accept, "ann")).await, Decided::Counts);
    assert_eq!(returned(&world, &worker).await, 1);
    let back = worker.read_one().await;
    assert_eq!((&back.work_id, back.meta.asked_at.is_some()), (&ours.work_id, true));
    let Opened::Ready { journal, .. } = worker.store.open(&back, &Wanted::default()).await.expect("an answer").0 else {
        panic!("the run is ours");
    };
    let field = |name: &str| journal.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
    let kept: Ask = serde_json::from_slice(&field(&ask_field(&ask.wait_id)).expect("the question")).expect("JSON");
    assert_eq!(kept, ask);
    let said: Value = serde_json::from_slice(&field(&said_field(&ask.wait_id)).expect("the answer")).expect("JSON");
    assert_eq!((&said["action"], &said["by"]), (&json!("accept"), &json!("ann")));
    assert_eq!(field("hdr").as_deref(), Some(&br#"{"v":1}"#[..]));
    assert!(!world.redis::<bool>(&["EXISTS", &world.keys.waits()]).await, "it is not open any more");
    let answers = told(&world, EventType::NodeDecision).await;
    assert_eq!((&answers[0]["data"]["accepted"], &answers[0]["data"]["wait_id"]), (&json!(true), &json!("wait_a")));
    let audit: Vec<(String, Vec<String>)> = world.redis(&["XRANGE", &world.keys.audit(), "-", "+"]).await;
    let line: Value = serde_json::from_str(&audit[0].1[1]).expect("JSON");
    assert_eq!((&line["by"], &line["tool"], &line["node_id"]), (&json!("ann"), &json!("pay"), &json!("n")));
    assert_eq!(worker.settle(&back).await.expect("an answer"), Settled::Done);
    assert!(!world.redis::<bool>(&["EXISTS", &world.key("journal:g:n:r")]).await);
}

#[tokio::test]
async fn of_two_decisions_at_once_one_counts_and_the_other_is_told_which() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    let ask = ask(&ours, "wait_a");
    wait(&worker, &ours, std::slice::from_ref(&ask)).await;
    let others: Vec<Worker> = (0..8).map(|number| world.worker(&format!("p:{number}"))).collect();
    let all = others.iter().enumerate().map(|(number, worker)| {
        let action = if number % 2 == 0 { Action::Accept } else { Action::Reject };
        let decision = decision(&ask, action, &format!("person {number}"));
        async move { decide(worker, &decision).await }
    });
    let answers = futures_util::future::join_all(all).await;
    let winner = answers.iter().position(|answer| *answer == Decided::Counts).expect("one counts");
    assert_eq!(answers.iter().filter(|answer| **answer == Decided::Counts).count(), 1);
    for answer in answers.into_iter().filter(|answer| *answer != Decided::Counts) {
        let Decided::Refused(refusal) = answer else { panic!("{answer:?}") };
        assert_eq!(refusal.code, "already_decided");
        let by = refusal.said.expect("the decision that counts").by;
        assert_eq!(by, Some(format!("person {winner}")));
    }
    let told = told(&world, EventType::NodeDecision).await;
    assert_eq!((told.len(), told.iter().filter(|event| event["data"]["accepted"] == true).count()), (8, 1));
}

#[tokio::test]
async fn what_does_not_count_is_told_and_changes_nothing() {
    let world = World::new().await;
    let (mut worker, ours) = running(&world).await;
    let early = ask(&ours, "wait_a");
    let unknown = decision(&early, Action::Accept, "ann");
    assert_eq!(refusal(decide(&worker, &unknown).await), "unknown_wait");
    let late = Ask { expires_at: Timestamp::now() - SignedDuration::from_secs(1), ..ask(&ours, "wait_b") };
    wait(&worker, &ours, &[early.clone(), late.clone()]).await;
    let bad = Decision { content: Some(json!({"bad": 1})), ..decision(&early, Action::Accept, "ann") };
    assert_eq!(refusal(decide(&worker, &bad).await), "content_invalid");
    assert_eq!(refusal(decide(&worker, &decision(&late, Action::Accept, "ann")).await), "wait_expired");
    let journal: Vec<String> = world.redis(&["HKEYS", &world.key("journal:g:n:r")]).await;
    assert!(journal.iter().all(|field| !field.ends_with(":said")), "{journal:?}");
    // Its own timer brings it back.
    assert_eq!(returned(&world, &worker).await, 1);
    let back = worker.read_one().await;
    assert_eq!(worker.settle(&back).await.expect("an answer"), Settled::Done);
    assert_eq!(refusal(decide(&worker, &decision(&early, Action::Accept, "ann")).await), "node_ended");
    let codes: Vec<Value> =
        told(&world, EventType::NodeDecision).await.iter().map(|event| event["data"]["code"].clone()).collect();
    assert_eq!(codes, ["unknown_wait", "content_invalid", "wait_expired", "node_ended"]);
    assert!(!world.redis::<bool>(&["EXISTS", &world.keys.audit()]).await, "only what counts is audited");
}

#[tokio::test]
async fn what_follows_when_nobody_answers_is_put_on_record_once_and_not_before_its_time() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    let early = Ask { on_expiry: OnExpiry::Accept, ..ask(&ours, "wait_a") };
    let late = Ask { expires_at: Timestamp::now() - SignedDuration::from_secs(1), ..ask(&ours, "wait_b") };
    let late = Ask { on_expiry: OnExpiry::Reject, ..late };
    wait(&worker, &ours, &[early.clone(), late.clone()]).await;
    for ask in [&early, &late, &late] {
        let said = Asked { ask: ask.clone(), said: None }.lapsed(ask.expires_at).expect("something was chosen");
        worker.waiting.lapse(ask, &said).await.expect("an answer");
    }
    let journal: Vec<String> = world.redis(&["HKEYS", &world.key("journal:g:n:r")]).await;
    assert!(
        journal.contains(&said_field(&late.wait_id)) && !journal.contains(&said_field(&early.wait_id)),
        "{journal:?}"
    );
    let told = told(&world, EventType::NodeDecision).await;
    assert_eq!(
        (told.len(), &told[0]["data"]["wait_id"], &told[0]["data"]["expired"]),
        (1, &json!("wait_b"), &json!(true))
    );
    let audit: Vec<(String, Vec<String>)> = world.redis(&["XRANGE", &world.keys.audit(), "-", "+"]).await;
    let line: Value = serde_json::from_str(&audit[0].1[1]).expect("JSON");
    assert_eq!((audit.len(), &line["action"], &line["expired"]), (1, &json!("reject"), &json!(true)));
    let index: Vec<String> = world.redis(&["HKEYS", &world.keys.waits()]).await;
    assert_eq!(index, ["wait_a"]);
    let decided = decide(&worker, &decision(&late, Action::Accept, "ann")).await;
    let Decided::Refused(refusal) = decided else { panic!("{decided:?}") };
    assert_eq!((refusal.code, refusal.said.map(|said| said.expired)), ("already_decided", Some(true)));
    // A question that is gone has no answer.
    world.redis::<()>(&["DEL", &world.key("journal:g:n:r")]).await;
    let said = Asked { ask: late.clone(), said: None }.lapsed(late.expires_at).expect("something was chosen");
    worker.waiting.lapse(&late, &said).await.expect("an answer");
    assert!(!world.redis::<bool>(&["EXISTS", &world.key("journal:g:n:r")]).await);
}

/// The state of the node after it came back and was opened.
async fn reopened(world: &World, state: &str) -> Value {
    let (mut worker, ours) = running(world).await;
    let ask = ask(&ours, "wait_a");
    wait(&worker, &ours, std::slice::from_ref(&ask)).await;
    if !state.is_empty() {
        world.redis::<()>(&["HSET", &world.key("state:g"), "node:n", state]).await;
    }
    decide(&worker, &decision(&ask, Action::Accept, "ann")).await;
    assert_eq!(returned(world, &worker).await, 1);
    let back = worker.read_one().await;
    worker.store.open(&back, &Wanted::default()).await.expect("an answer");
    serde_json::from_str(&world.redis::<String>(&["HGET", &world.key("state:g"), "node:n"]).await).expect("JSON")
}

#[tokio::test]
async fn a_node_that_goes_on_runs_and_what_others_wrote_meanwhile_stays() {
    let state = reopened(&World::new().await, "").await;
    assert_eq!((&state["status"], &state["run_id"], &state["node_id"]), (&json!("running"), &json!("r"), &json!("n")));
    for state in [
        r#"{"node_id":"n","status":"completed","output":{"status":"waiting"},"run_id":"r"}"#,
        r#"{"node_id":"n","status":"waiting","run_id":"r2"}"#,
        r#"{"output":{"node_id":"n","status":"waiting","run_id":"r"}}"#,
    ] {
        let found = reopened(&World::new().await, state).await;
        assert_eq!(found, serde_json::from_str::<Value>(state).expect("JSON"));
    }
}

#[tokio::test]
async fn a_document_shows_that_its_node_goes_on_and_keeps_what_others_wrote() {
    let world = World::new().await;
    let document = r#"{"status":"running","other":1.10,"node_states":{"m":{"status":"completed"}}}"#;
    world.redis::<()>(&["SET", &world.key("state:g"), document, "PX", "100000"]).await;
    let (mut worker, ours) = world.worker_with("w:1", ITEM).await;
    worker.store.open(&ours, &Wanted::default()).await.expect("an answer");
    let ask = ask(&ours, "wait_a");
    wait(&worker, &ours, std::slice::from_ref(&ask)).await;
    decide(&worker, &decision(&ask, Action::Accept, "ann")).await;
    assert_eq!(returned(&world, &worker).await, 1);
    let back = worker.read_one().await;
    worker.store.open(&back, &Wanted::default()).await.expect("an answer");
    let text: String = world.redis(&["GET", &world.key("state:g")]).await;
    assert!(text.contains(r#""n":{"node_id":"n","status":"running""#) && text.contains(r#""other":1.10"#), "{text}");
    assert!(world.ttl(&world.key("state:g")).await > 0, "it expires as before");
    // Once more, as by a worker that takes it over: there is nothing to change.
    worker.store.open(&back, &Wanted::default()).await.expect("an answer");
    assert_eq!(world.redis::<String>(&["GET", &world.key("state:g")]).await, text);
}

/// A decision that came by the stream, read as a worker reads.
async fn came(world: &World, worker: &mut Worker, decision: &Decision) -> (RawEntry, Decision) {
    world.submit(&decision.to_json()).await;
    let raw = worker.streams.read(1).await.expect("the stream can be read").pop().expect("an entry");
    let content = read_entry(&raw.stream, &raw.entry, raw.data.as_deref(), raw.meta.as_deref(), 1 << 20);
    match content.expect("it is well formed") {
        Content::Decision(decision) => (raw, *decision),
        Content::Work(_) => panic!("it is a decision"),
    }
}

#[tokio::test]
async fn a_decision_by_the_stream_is_acknowledged_with_what_comes_of_it_and_only_by_its_owner() {
    let world = World::new().await;
    let (mut worker, ours) = running(&world).await;
    let ask = ask(&ours, "wait_a");
    wait(&worker, &ours, std::slice::from_ref(&ask)).await;
    let (raw, sent) = came(&world, &mut worker, &decision(&ask, Action::Reject, "ann")).await;
    world.redis::<()>(&["XCLAIM", &world.stream, GROUP, "w:2", "0", raw.entry.as_str()]).await;
    assert_eq!(worker.waiting.decide(&sent, Some(&raw), fits).await.expect("an answer"), Decided::Lost);
    assert_eq!(world.pending().await, 1, "nothing was done");
    let mut theirs = raw.clone();
    theirs.token.consumer = Arc::from("w:2");
    theirs.token.deliveries = 2;
    assert_eq!(worker.waiting.decide(&sent, Some(&theirs), fits).await.expect("an answer"), Decided::Counts);
    assert_eq!((world.pending().await, world.length(&world.stream).await), (0, 0));
    assert_eq!(worker.waiting.decide(&sent, Some(&theirs), fits).await.expect("an answer"), Decided::Lost);
    let (raw, sent) = came(&world, &mut worker, &decision(&ask, Action::Accept, "bob")).await;
    let answer = worker.waiting.decide(&sent, Some(&raw), fits).await.expect("an answer");
    assert_eq!(refusal(answer), "already_decided");
    assert_eq!((world.pending().await, world.length(&world.stream).await), (0, 0), "it is answered all the same");
}

#[tokio::test]
async fn a_node_that_waits_again_asks_nothing_twice_and_misses_no_answer() {
    let world = World::new().await;
    let (mut worker, ours) = running(&world).await;
    let (first, second) = (ask(&ours, "wait_a"), ask(&ours, "wait_b"));
    wait(&worker, &ours, &[first.clone(), second.clone()]).await;
    decide(&worker, &decision(&first, Action::Accept, "ann")).await;
    assert_eq!(returned(&world, &worker).await, 1);
    let mut back = worker.read_one().await;
    assert_eq!(wait(&worker, &back, std::slice::from_ref(&second)).await, Settled::Done);
    assert_eq!(told(&world, EventType::NodeInputRequired).await.len(), 2);
    assert_eq!(returned(&world, &worker).await, 0);
    world.redis::<()>(&["ZADD", &world.keys.parked(&world.stream), "1", ours.entry.as_str()]).await;
    assert_eq!(returned(&world, &worker).await, 1);
    back = worker.read_one().await;
    // The answer comes while the node runs, so it must not sleep over it.
    assert_eq!(decide(&worker, &decision(&second, Action::Accept, "ann")).await, Decided::Counts);
    assert_eq!(wait(&worker, &back, std::slice::from_ref(&second)).await, Settled::Done);
    assert_eq!(returned(&world, &worker).await, 1);
    let index: u64 = world.redis(&["HLEN", &world.keys.waits()]).await;
    assert_eq!(index, 0);
}

#[tokio::test]
async fn waiting_after_a_lost_answer_says_so_and_what_is_not_ours_does_not_wait() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    let asks = [ask(&ours, "wait_a")];
    assert_eq!(wait(&worker, &ours, &asks).await, Settled::Done);
    assert_eq!(wait(&worker, &ours, &asks).await, Settled::Again);
    assert_eq!(told(&world, EventType::NodeInputRequired).await.len(), 1);
    let (other, copy) = world.worker_with("w:2", ITEM).await;
    assert_eq!(wait(&other, &copy, &asks).await, Settled::Duplicate, "the run waits already");
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    world.steal(&ours, "w:2").await;
    assert_eq!(wait(&worker, &ours, &[ask(&ours, "wait_a")]).await, Settled::Lost);
    assert!(!world.redis::<bool>(&["EXISTS", &world.keys.waits()]).await);
}

#[tokio::test]
async fn a_document_shows_that_its_node_waits_whoever_else_writes_it() {
    let world = World::new().await;
    let document = r#"{"status":"running","other":1.10,"node_states":{"m":{"status":"completed"}}}"#;
    world.redis::<()>(&["SET", &world.key("state:g"), document, "PX", "100000"]).await;
    let (worker, ours) = world.worker_with("w:1", ITEM).await;
    worker.store.open(&ours, &Wanted::default()).await.expect("an answer");
    assert_eq!(wait(&worker, &ours, &[ask(&ours, "wait_a")]).await, Settled::Done);
    let document: String = world.redis(&["GET", &world.key("state:g")]).await;
    assert!(document.contains(&format!(r#""n":{WAITS}"#)), "{document}");
    assert!(document.contains(r#""other":1.10"#) && document.contains(r#""m":{"status":"completed"}"#), "{document}");
    assert_eq!(world.ttl(&world.key("state:g")).await, -1);
}

#[tokio::test]
async fn steps_that_only_wait_for_a_moment_bring_the_node_back_before_anybody_decides() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    let waiting =
        Waiting { until: Some(Instant::now() + Duration::from_millis(1)), ..waiting(&[ask(&ours, "wait_a")]) };
    assert_eq!(wait_for(&worker, &ours, &waiting).await, Settled::Done);
    crate::harness::eventually("it is due", async || (returned(&world, &worker).await == 1).then_some(())).await;
}

#[tokio::test]
async fn a_key_of_another_type_is_named_before_anything_is_written() {
    for name in ["done:g", "journal:g:n:r", "waits", "events:node.input_required", "state:g"] {
        let world = World::new().await;
        let (worker, ours) = running(&world).await;
        let key = world.key(name);
        world.spoil(&key).await;
        assert_eq!(wait(&worker, &ours, &[ask(&ours, "wait_a")]).await, Settled::WrongType { key });
        world.assert_untouched(&ours).await;
    }
    for name in ["waits", "waits:audit", "events:node.decision"] {
        let world = World::new().await;
        let (worker, ours) = running(&world).await;
        let ask = ask(&ours, "wait_a");
        wait(&worker, &ours, std::slice::from_ref(&ask)).await;
        let key = world.key(name);
        world.spoil(&key).await;
        let error = worker.waiting.decide(&decision(&ask, Action::Accept, "ann"), None, fits).await;
        assert!(matches!(&error, Err(RedisError::WrongType { key: Some(found) }) if *found == key), "{error:?}");
        let journal: Vec<String> = world.redis(&["HKEYS", &world.key("journal:g:n:r")]).await;
        assert!(journal.iter().all(|field| !field.ends_with(":said")), "{journal:?}");
    }
}

#[tokio::test]
async fn open_questions_are_found_by_name_and_page_by_page() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    let asks: Vec<Ask> = (0..700).map(|number| ask(&ours, &format!("wait_{number}"))).collect();
    wait(&worker, &ours, &asks).await;
    let (mut from, mut found) = (0, Vec::new());
    loop {
        let (next, page) = worker.waiting.page(from).await.expect("an answer");
        found.extend(page);
        from = next;
        if from == 0 {
            break;
        }
    }
    let names: std::collections::HashSet<&str> = found.iter().map(|open| open.wait_id.as_str()).collect();
    assert_eq!(names.len(), 700);
    let looked = worker.waiting.look(&found).await.expect("an answer");
    let open = |asked: &Option<Asked>| asked.as_ref().is_some_and(|asked| asked.said.is_none());
    assert!(looked.iter().all(|asked| asked.as_ref().is_ok_and(open)));
    let one = worker.waiting.find(&asks[7].wait_id).await.expect("an answer").expect("it is open");
    assert_eq!((one.graph_id, one.node_id), (asks[7].graph_id.clone(), asks[7].node_id.clone()));
    worker.waiting.forget(&[asks[7].wait_id.clone()]).await.expect("an answer");
    assert_eq!(worker.waiting.find(&asks[7].wait_id).await.expect("an answer"), None);
    assert_eq!(worker.waiting.count().await.expect("an answer"), 699);

    // A journal that is gone leaves names behind; they are forgotten by whoever looks through them.
    decide(&worker, &decision(&asks[8], Action::Accept, "ann")).await;
    world.redis::<()>(&["HSET", &world.keys.waits(), "wait_8", "g\nn\nr"]).await;
    world.redis::<()>(&["HSET", &world.keys.waits(), "wait_gone", "g\nn\nother"]).await;
    let mut from = 0;
    loop {
        from = worker.waiting.mend(from).await.expect("an answer");
        if from == 0 {
            break;
        }
    }
    assert_eq!(worker.waiting.count().await.expect("an answer"), 698);
}

#[tokio::test]
async fn a_question_that_cannot_be_read_is_told_to_who_decides_and_hides_no_other() {
    let world = World::new().await;
    let (worker, ours) = running(&world).await;
    let (odd, plain) = (ask(&ours, "wait_odd"), ask(&ours, "wait_plain"));
    wait(&worker, &ours, &[odd.clone(), plain.clone()]).await;
    let journal = world.key("journal:g:n:r");
    world.redis::<()>(&["HSET", &journal, "w:wait_odd:ask", r#"{"kind":"of tomorrow"}"#]).await;
    assert_eq!(refusal(decide(&worker, &decision(&odd, Action::Accept, "ann")).await), "question_unreadable");
    let (_, open) = worker.waiting.open(0, |_| true).await.expect("an answer");
    assert_eq!(open.iter().map(|ask| ask.wait_id.as_str()).collect::<Vec<_>>(), ["wait_plain"]);
    assert!(world.redis::<bool>(&["HEXISTS", &world.keys.waits(), "wait_odd"]).await, "whoever can read it finds it");
    assert!(matches!(decide(&worker, &decision(&plain, Action::Accept, "ann")).await, Decided::Counts));
    // Nor may somebody's key in the journal's place stop who reads decisions.
    world.redis::<()>(&["DEL", &journal]).await;
    world.redis::<()>(&["SET", &journal, "text"]).await;
    assert_eq!(refusal(decide(&worker, &decision(&odd, Action::Accept, "ann")).await), "question_unreadable");
    assert_eq!(told(&world, EventType::NodeDecision).await.len(), 3);
}
