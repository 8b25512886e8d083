//! `executor-worker dead-letters` as people use it: what is shown, what comes back, what is deleted, and that nothing
//! is hidden by a limit or done by a slip.

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::gate::Gate;
use crate::harness::worker::Worker;

/// What the command line answered.
struct Said {
    code: Option<i32>,
    text: String,
    /// What went to stdout.
    printed: String,
    /// The lines that are JSON.
    records: Vec<Value>,
}

async fn dead_letters(bed: &Bed, arguments: &[&str]) -> Said {
    let command = bed.worker("cli").argument("dead-letters");
    let command: Worker = arguments.iter().fold(command, |command, argument| command.argument(*argument)).start();
    let (code, text) = command.ends().await;
    Said { code, text, printed: command.printed(), records: command.records() }
}

async fn ids(bed: &Bed, arguments: &[&str]) -> Vec<String> {
    let said = dead_letters(bed, &[&["list", "-o", "jsonl"], arguments].concat()).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    said.records.iter().map(|letter| String::from(letter["id"].as_str().expect("an id"))).collect()
}

/// Writes letters as a worker does: every third is poison, each of a graph of its own.
async fn put_letters(bed: &Bed, count: usize) {
    let mut pipeline = redis::pipe();
    for at in 1..=count {
        let data = json!({"graph_id": format!("g{at}"), "node_id": "n", "run_id": "r"}).to_string();
        let reason = if at % 3 == 0 { "poison" } else { "unknown_version" };
        let work_id = format!("{}/{at}-0", bed.stream);
        // A minute apart, the newest now.
        let now: Vec<u64> = bed.ask(&["TIME"]).await;
        let id = format!("{}-{at}", now[0] * 1000 - 60_000 * (count - at) as u64);
        pipeline.cmd("XADD").arg(bed.letters()).arg(id).arg("data").arg(data).arg("reason").arg(reason);
        pipeline.arg("error").arg("why").arg("work_id").arg(work_id).arg("crashes").arg(3).ignore();
    }
    bed.pipeline(&pipeline).await;
}

#[tokio::test]
async fn a_poison_item_comes_back_and_completes_under_its_own_name() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let spec = |id: &str| {
        let spec = bed.worker(id).set("tools.http_request.allow", gate.host()).set("work.max_crashes", "1");
        spec.set("lease.duration", "1s").set("lease.renew", "200ms").set("lease.sweep", "200ms")
    };
    let doomed = spec("w1").start().ready().await;
    let item = json!({"graph_id": "g", "node_id": "n", "run_id": "r", "config": gate.node("body"), "inputs": {}});
    let entry = bed.submit(&item).await;
    gate.arrived("body", 1).await;
    doomed.kill();
    let _worker = spec("w2").start().ready().await;
    let poisoned = bed.ended(1).await.remove(0);
    assert_eq!(poisoned.failure(), ("poison", "max_crashes"));
    assert_eq!(poisoned["metadata"].get("redriven"), None);

    let shown = dead_letters(&bed, &["show", "--graph", "g", "-o", "jsonl"]).await;
    let letter = &shown.records[0];
    assert_eq!((&letter["reason"], &letter["crashes"], &letter["node_id"]), (&json!("poison"), &json!(1), &json!("n")));
    assert_eq!(letter["data"], item.to_string());
    let id = letter["id"].as_str().expect("an id");
    let page = dead_letters(&bed, &["show", id]).await.text;
    assert!(page.contains("reason      poison") && page.contains(r#""run_id": "r""#), "{page}");

    gate.open_all();
    let tried = dead_letters(&bed, &["retry", id, "--dry-run", "-o", "jsonl"]).await;
    assert_eq!((tried.code, &tried.records[0]["result"]), (Some(0), &json!("would_be_retried")));
    assert_eq!(bed.dead_letters().await.len(), 1, "nothing was done");
    // By the name of the work, as the event gave it.
    let work_id = poisoned["metadata"]["work_id"].as_str().expect("a work id");
    assert_eq!(work_id, format!("{}/{entry}", bed.stream));
    let retried = dead_letters(&bed, &["retry", work_id, "-o", "jsonl"]).await;
    assert_eq!((retried.code, &retried.records[0]["result"]), (Some(0), &json!("retried")), "{}", retried.text);
    let events = bed.ended(2).await;
    let completed = events.iter().find(|event| event["type"] == "node.completed").expect("it completed");
    assert_eq!((&completed["run_id"], &completed["metadata"]["work_id"]), (&json!("r"), &json!(work_id)));
    assert_eq!(completed["metadata"]["redriven"], 1);
    assert_ne!(completed["id"], poisoned["id"], "an end of its own");
    assert_eq!(bed.node_state("g", "n").await.expect("a state")["status"], "completed");
    assert!(bed.dead_letters().await.is_empty());
    let again = dead_letters(&bed, &["retry", id]).await;
    assert_eq!(again.code, Some(1));
    assert!(again.text.contains(&format!("no dead letter {id}")), "{}", again.text);
    // The identity is done again: a copy of the item is a duplicate.
    bed.submit(&item).await;
    bed.ended(2).await;
}

#[tokio::test]
async fn a_list_hides_nothing_and_tells_the_totals() {
    let bed = Bed::new().await;
    put_letters(&bed, 250).await;
    let table = dead_letters(&bed, &["list"]).await;
    assert_eq!(table.code, Some(0));
    assert!(table.text.contains("100 of 250 matching shown, 250 in all; --limit 0 shows all"), "{}", table.text);
    assert!(table.text.contains("g100") && !table.text.contains("g101 "), "{}", table.text);
    let table = dead_letters(&bed, &["list", "--limit", "0"]).await.text;
    assert!(table.contains("250 of 250 matching shown, 250 in all") && !table.contains("--limit"), "{table}");
    assert!((1..=250).all(|at| table.contains(&format!("g{at} "))));

    assert_eq!(ids(&bed, &[]).await.len(), 250, "programs get all of it");
    assert_eq!(ids(&bed, &["--limit", "7"]).await.len(), 7);
    assert_eq!(ids(&bed, &["--reason", "poison"]).await.len(), 83);
    assert_eq!(ids(&bed, &["--reason", "poison", "--reason", "unknown_version"]).await.len(), 250);
    assert_eq!(ids(&bed, &["--graph", "g3", "--graph", "g4"]).await.len(), 2);
    assert_eq!(ids(&bed, &["--graph", "g4", "--reason", "poison"]).await.len(), 0);
    let young = ids(&bed, &["--newer-than", "30s"]).await;
    let old = ids(&bed, &["--older-than", "30s"]).await;
    assert_eq!((young.len(), old.len()), (1, 249));
    assert_eq!(ids(&bed, &["--newer-than", "630s", "--older-than", "30s"]).await.len(), 10);
    assert_eq!(ids(&bed, &[&old[5], &young[0]]).await, [old[5].as_str(), young[0].as_str()]);
    assert_eq!(ids(&bed, &["--stream", "another"]).await.len(), 0);

    let said = dead_letters(&bed, &["list", "-o", "json", "--reason", "poison", "--limit", "2"]).await.printed;
    let document: Value = serde_json::from_str(&said).expect("a document and nothing else");
    assert_eq!(document["letters"].as_array().map(Vec::len), Some(2));
    assert_eq!((&document["shown"], &document["matching"], &document["total"]), (&json!(2), &json!(83), &json!(250)));
}

#[tokio::test]
async fn people_who_retry_the_same_letters_at_once_add_each_once() {
    let bed = Bed::new().await;
    put_letters(&bed, 150).await;
    let all = ["retry", "--all", "-o", "jsonl"];
    let (first, second) = tokio::join!(dead_letters(&bed, &all), dead_letters(&bed, &all));
    let retried = |said: &Said| said.records.iter().filter(|record| record["result"] == "retried").count();
    assert_eq!((first.code, second.code), (Some(0), Some(0)), "{} {}", first.text, second.text);
    assert_eq!(retried(&first) + retried(&second), 150);
    assert_eq!(bed.ask::<usize>(&["XLEN", &bed.stream]).await, 150);
    assert_eq!(bed.ask::<usize>(&["XLEN", &bed.letters()]).await, 0);
}

#[tokio::test]
async fn a_letter_whose_data_was_cut_says_so_and_stays() {
    let bed = Bed::new().await;
    let _worker = bed.worker("w1").start().ready().await;
    bed.submit_raw(&vec![b'['; 70_000]).await;
    bed.settled().await;
    bed.submit_raw(b"plain text").await;
    bed.settled().await;
    let said = dead_letters(&bed, &["retry", "--reason", "not_json", "--limit", "1"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.text.contains("only the first 65536 of its 70000 bytes were kept"), "{}", said.text);
    assert!(said.text.contains("0 of 2 matching retried, 1 cannot be"), "{}", said.text);
    assert_eq!(bed.dead_letters().await.len(), 2);
}

#[tokio::test]
async fn what_is_malformed_still_comes_back_as_a_letter_of_the_same_work() {
    let bed = Bed::new().await;
    let worker = bed.worker("w1").start().ready().await;
    let entry = bed.submit(&json!({"v": 2, "graph_id": "g", "node_id": "n"})).await;
    let first = bed.ended(1).await.remove(0);
    assert_eq!(dead_letters(&bed, &["retry", "--all"]).await.code, Some(0));
    let events = bed.ended(2).await;
    let second = events.iter().find(|event| event["id"] != first["id"]).expect("it ended again, under another id");
    assert_eq!((second.failure().1, &second["run_id"]), ("unknown_version", &first["run_id"]));
    assert_eq!(second["metadata"]["redriven"], 1);
    let letters = dead_letters(&bed, &["show", "--all", "-o", "jsonl"]).await.records;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["work_id"], format!("{}/{entry}", bed.stream));
    let meta: Value = serde_json::from_str(letters[0]["meta"].as_str().expect("meta")).expect("JSON");
    assert_eq!(meta, json!({"origin": entry, "attempt": 0, "crashes": 0, "redriven": 1}));
    worker.get("/live").await;
}

#[tokio::test]
async fn purging_takes_what_is_meant_and_only_when_it_is_meant() {
    let bed = Bed::new().await;
    put_letters(&bed, 150).await;
    let left = async || bed.ask::<usize>(&["XLEN", &bed.letters()]).await;
    for slip in [&["purge", "--yes"][..], &["purge", "--all"], &["retry"], &["show"], &["purge", "poison", "--yes"]] {
        let said = dead_letters(&bed, slip).await;
        assert_eq!((said.code, left().await), (Some(2), 150), "{slip:?}: {}", said.text);
    }
    let said = dead_letters(&bed, &["purge", "--reason", "poison", "--dry-run"]).await;
    assert!(said.code == Some(0) && said.text.contains("50 of 150 dead letters would be deleted"), "{}", said.text);
    assert_eq!(left().await, 150);
    let said = dead_letters(&bed, &["purge", "--reason", "poison", "--limit", "40", "--yes"]).await;
    assert!(said.code == Some(0) && said.text.contains("40 of 150 dead letters deleted"), "{}", said.text);
    assert_eq!(ids(&bed, &["--reason", "poison"]).await.len(), 10);
    assert_eq!(left().await, 110);
    let said = dead_letters(&bed, &["purge", "--all", "--yes"]).await;
    assert!(said.text.contains("110 of 110 dead letters deleted"), "{}", said.text);
    assert_eq!(left().await, 0);
}

#[tokio::test]
async fn a_server_that_is_away_is_told_from_a_refusal() {
    let bed = Bed::new().await;
    let command = bed.worker("cli").env("REDIS_ADDR", "127.0.0.1:1").argument("dead-letters").argument("list");
    let (code, said) = command.start().ends().await;
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("Redis cannot be reached"), "{said}");
}
