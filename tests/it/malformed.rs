//! Entries that nobody can understand: each becomes a dead letter with its reason, consumers are told where the ids
//! can be read, and the reader goes on.

use std::collections::HashMap;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::harness::bed::Bed;
use crate::harness::eventually;

/// What an entry is made of, the reason of its dead letter, and the node that a `node.failed` names.
struct Case {
    fields: Vec<(&'static str, Vec<u8>)>,
    reason: &'static str,
    told: Option<&'static str>,
}

fn data(bytes: impl Into<Vec<u8>>, reason: &'static str) -> Case {
    Case { fields: vec![("data", bytes.into())], reason, told: None }
}

fn told(node: &'static str, text: &str, reason: &'static str) -> Case {
    Case { told: Some(node), ..data(text, reason) }
}

const LIMIT: usize = 100_000;

fn cases() -> Vec<Case> {
    let long = "i".repeat(257);
    let good = br#"{"graph_id":"g","node_id":"n"}"#.to_vec();
    vec![
        Case { fields: vec![("payload", good.clone())], reason: "no_data", told: None },
        data("", "not_json"),
        data("   \n ", "not_json"),
        data("plain text", "not_json"),
        data("null", "not_an_object"),
        data("42", "not_an_object"),
        data(r#"["graph_id"]"#, "not_an_object"),
        data(r#""{\"graph_id\":\"g\"}""#, "not_an_object"),
        data(r#"{"graph_id":"g","node_id":"n""#, "not_json"),
        data(r#"{"graph_id":"g","node_id":"n"} and more"#, "not_json"),
        data(r#"{"graph_id":"g",'node_id':"n"}"#, "not_json"),
        data(b"{\"graph_id\":\"g\",\"node_id\":\"\xff\xfe\"}".to_vec(), "not_utf8"),
        data(b"\x00\x01\x02\x80".to_vec(), "not_utf8"),
        data("{}", "missing_id"),
        data(r#"{"graph_id":"g"}"#, "missing_id"),
        data(r#"{"node_id":"n"}"#, "missing_id"),
        data(r#"{"graph_id":null,"node_id":"n"}"#, "missing_id"),
        data(r#"{"graph_id":7,"node_id":"n"}"#, "invalid_field"),
        data(r#"{"graph_id":"g","node_id":{"id":"n"}}"#, "invalid_field"),
        data(r#"{"graph_id":"","node_id":"n"}"#, "invalid_id"),
        data(r#"{"graph_id":"g\u0000","node_id":"n"}"#, "invalid_id"),
        data(r#"{"graph_id":"g","node_id":"n\nm"}"#, "invalid_id"),
        data(format!(r#"{{"graph_id":"{long}","node_id":"n"}}"#), "invalid_id"),
        data(format!(r#"{{"graph_id":"g","node_id":"n","run_id":"{long}"}}"#), "invalid_id"),
        data(r#"{"graph_id":"g","node_id":"n","run_id":5}"#, "invalid_field"),
        data(r#"{"id":"e","type":"node.work","data":{"node_id":"n"}}"#, "missing_id"),
        data(r#"{"id":"e","type":"node.work","execution_id":"g","data":{}}"#, "missing_id"),
        data(vec![b'['; 5000], "not_json"),
        data(
            format!("{{\"graph_id\":\"g\",\"node_id\":\"n\",\"inputs\":{}1{}}}", "[".repeat(300), "]".repeat(300)),
            "not_json",
        ),
        data(
            [br#"{"graph_id":"g","node_id":"n","inputs":{"x":""#.to_vec(), vec![b'x'; LIMIT], b"\"}}".to_vec()]
                .concat(),
            "too_large",
        ),
        Case {
            fields: vec![("data", good), ("meta", b"not the worker's".to_vec())],
            reason: "invalid_meta",
            told: None,
        },
        told("version", r#"{"v":2,"graph_id":"told","node_id":"version"}"#, "unknown_version"),
        told("word", r#"{"v":"1","graph_id":"told","node_id":"word"}"#, "unknown_version"),
        told("type", r#"{"id":"e","type":"node.done","data":{"graph_id":"told","node_id":"type"}}"#, "unknown_type"),
        told("none", r#"{"id":"e","data":{"graph_id":"told","node_id":"none"}}"#, "unknown_type"),
        told("inputs", r#"{"graph_id":"told","node_id":"inputs","inputs":[1]}"#, "invalid_field"),
        told("config", r#"{"graph_id":"told","node_id":"config","config":"{}"}"#, "invalid_field"),
        told("deadline", r#"{"graph_id":"told","node_id":"deadline","deadline":"tomorrow"}"#, "invalid_field"),
        told("depends", r#"{"graph_id":"told","node_id":"depends","dependencies":"m"}"#, "invalid_field"),
        told("trace", r#"{"graph_id":"told","node_id":"trace","traceparent":1}"#, "invalid_field"),
    ]
}

#[tokio::test]
async fn entries_of_every_malformed_kind_become_dead_letters_and_the_reader_goes_on() {
    let bed = Bed::new().await;
    // Two permits: a reader that lost one to an entry would soon stand still.
    let worker = bed.worker("w1").set("limits.item", LIMIT.to_string()).set("pool.size", "2").start().ready().await;
    let cases = cases();
    assert!(cases.len() >= 20);
    let mut by_work_id = HashMap::new();
    for case in &cases {
        let mut command = redis::cmd("XADD");
        command.arg(&bed.stream).arg("*");
        for (name, value) in &case.fields {
            command.arg(name).arg(value);
        }
        let entry: String = bed.send(&command).await;
        by_work_id.insert(format!("{}/{entry}", bed.stream), case);
    }
    let good = json!({"graph_id": "good", "node_id": "n", "inputs": {}, "config": {"tool_name": "current_time"}});
    bed.submit(&good).await;
    let told: Vec<&str> = cases.iter().filter_map(|case| case.told).collect();
    let events = bed.ended(told.len() + 1).await;
    assert!(events.iter().any(|event| event["graph_id"] == "good" && event["type"] == "node.completed"));

    let letters = bed.dead_letters().await;
    assert_eq!(letters.len(), cases.len());
    for letter in &letters {
        let text = |field: &str| String::from_utf8(letter[field].clone()).expect("text");
        let case = by_work_id.remove(&text("work_id")).expect("one letter an entry");
        let shown = String::from_utf8_lossy(&case.fields[0].1).chars().take(80).collect::<String>();
        assert_eq!(text("reason"), case.reason, "{shown}: {}", text("error"));
        assert!(text("error").len() > 10, "{shown}");
        // What a program prints of itself is nothing that people can act on.
        let words = text("error");
        assert!(!["Some(", "None", "Error("].iter().any(|word| words.contains(word)), "{shown}: {words}");
        assert_eq!((text("deliveries"), text("crashes"), text("worker_id")), ("1".into(), "0".into(), "w1".into()));
        assert!(text("at").parse::<jiff::Timestamp>().is_ok(), "{}", text("at"));
        let sent =
            case.fields.iter().find(|(name, _)| *name == "data").map(|(_, value)| value.clone()).unwrap_or_default();
        if sent.len() <= 64 * 1024 {
            assert_eq!(letter["data"], sent, "{shown}");
            assert!(!letter.contains_key("sha256"));
        } else {
            assert_eq!(letter["data"], sent[..64 * 1024]);
            assert_eq!(text("length"), sent.len().to_string());
            let digest: String = Sha256::digest(&sent).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(text("sha256"), digest);
        }
        if let Some(node) = case.told {
            let event = events.iter().find(|event| event["node_id"] == node).expect("consumers are told");
            assert_eq!(event.failure(), ("validation", case.reason));
            assert_eq!((event.error(), event["graph_id"].as_str()), (text("error").as_str(), Some("told")));
            assert_eq!(event["metadata"]["work_id"], text("work_id"));
        }
    }
    eventually("every letter is counted", async || {
        (worker.metric("executor_dead_letters_total", &[]).await as usize == cases.len()).then_some(())
    })
    .await;
    assert_eq!(worker.metric("executor_dead_letters_total", &["missing_id"]).await, 6.0);
    assert_eq!(worker.metric("executor_items_in_flight", &[]).await, 0.0);
}

#[tokio::test]
async fn entries_that_were_deleted_while_they_were_pending_leave_nothing_behind() {
    let bed = Bed::new().await;
    // Somebody else read them, died, and the entries were trimmed away.
    bed.ask::<()>(&["XGROUP", "CREATE", &bed.stream, "executor-workers", "0", "MKSTREAM"]).await;
    for _ in 0..3 {
        bed.submit(&json!({"graph_id": "g", "node_id": "n"})).await;
    }
    let words = ["XREADGROUP", "GROUP", "executor-workers", "gone:1", "COUNT", "3", "STREAMS", &bed.stream, ">"];
    bed.ask::<redis::Value>(&words).await;
    bed.ask::<()>(&["XTRIM", &bed.stream, "MAXLEN", "0"]).await;
    assert_eq!(bed.pending().await.len(), 3);
    let _worker = bed.worker("w1").set("lease.duration", "500ms").set("lease.renew", "150ms").start().ready().await;
    bed.settled().await;
    assert_eq!((bed.count().await, bed.dead_letters().await.len()), (0, 0));
}
