//! Tool servers that break the protocol in every way, all at once beside good ones: each of their nodes ends in a clear
//! error, in bounded time and memory, and nobody else notices.

#[path = "../mcp/raw_server.rs"]
mod raw_server;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::bed::{Bed, Event};
use crate::harness::mcp;
use raw_server::{Deed, raw};

/// The most that all of it may take; a gigabyte through a pipe has its price.
const PATIENCE: Duration = Duration::from_secs(100);
/// The most memory of the worker, in MiB. A few messages of 32 MiB are held at once, none of the five gigabytes.
const MEMORY: u64 = 800;
/// Nodes of good servers, and of the worker's own functions, that run meanwhile.
const OTHERS: usize = 60;

/// How a node of a hostile server ends.
const COMPLETES: &str = "completes";

/// Servers over stdio: what they do, which tool of theirs is called, and how that ends.
const CHILDREN: &[(&str, &str, &str)] = &[
    ("noise", "echo", COMPLETES),
    ("flood", "echo", COMPLETES),
    ("recursive", "tree", COMPLETES),
    ("plain", "gigabyte", "mcp_too_large"),
    ("plain", "huge", "mcp_too_large"),
    ("plain", "silent", "mcp_timeout"),
    ("plain", "half-an-answer", "mcp_connection_closed"),
    ("plain", "close-output", "mcp_connection_closed"),
    ("plain", "no-object", "mcp_protocol_error"),
    ("plain", "ask-more", "mcp_input_required"),
    ("many", "x", "mcp_protocol_error"),
    ("cursor-loop", "x", "mcp_protocol_error"),
    ("endless-list", "x", "mcp_too_large"),
    ("mute", "x", "mcp_timeout"),
    ("dies", "x", "mcp_connection_closed"),
    ("unknown-version", "x", "mcp_unsupported_version"),
    ("nonsense", "x", "mcp_protocol_error"),
];

/// Servers over HTTP: where they misbehave and how, and how the call of a tool ends.
const REMOTE: &[(&str, Deed, &str)] = &[
    ("initialize", Deed::Hang, "mcp_timeout"),
    ("tools/list", Deed::Hang, "mcp_timeout"),
    ("tools/call", Deed::Hang, "mcp_timeout"),
    ("tools/call", Deed::HalfAnswer, "mcp_timeout"),
    // Whichever of its limits is reached first.
    ("tools/list", Deed::EndlessStream, "mcp_timeout or mcp_too_large"),
    ("tools/call", Deed::Cut, "mcp_connection_closed"),
    ("tools/call", Deed::Gigabyte, "mcp_too_large"),
    ("tools/call", Deed::GigabyteEvent, "mcp_too_large"),
    ("initialize", Deed::Redirect, "mcp_http_error"),
    ("tools/call", Deed::Redirect, "mcp_http_error"),
    ("tools/call", Deed::WrongId, "mcp_protocol_error"),
    ("tools/list", Deed::Garbage, "mcp_protocol_error"),
];

fn item(node: &str, tool: &str, with: &Value) -> Value {
    let config = json!({"tool_name": tool, "tool_params": with, "retry": {"max_attempts": 1}});
    json!({"graph_id": "g", "node_id": node, "inputs": {}, "config": config})
}

fn ended(event: &Event) -> &str {
    if event["type"] == "node.completed" { COMPLETES } else { event.failure().1 }
}

#[tokio::test]
async fn hostile_tool_servers_fail_their_own_nodes_in_bounded_time_and_memory() {
    let bed = Bed::new().await;
    let mut file = mcp::stdio("good", &mcp::fastmcp(), &["stdio"]);
    let mut expected = Vec::new();
    for (at, (mode, tool, end)) in CHILDREN.iter().enumerate() {
        let name = format!("child-{at}");
        let server = mcp::stdio(&name, &mcp::hostile(), &[mode]);
        // Who is silent is given up soon; who has much to say has its time.
        file += &match *end {
            "mcp_timeout" => server.replace("20s", "3s") + "timeout = \"1s\"\n",
            _ => server.replace("20s", "60s"),
        };
        expected.push((name, *tool, format!("{mode} {tool}"), *end));
    }
    for (at, (method, deed, end)) in REMOTE.iter().enumerate() {
        let name = format!("remote-{at}");
        let url = raw(method, *deed).await;
        let (connect, call) = if end.starts_with("mcp_timeout") { ("3s", "1s") } else { ("60s", "60s") };
        file +=
            &format!("[mcp.servers.{name}]\nurl = \"{url}\"\nconnect_timeout = \"{connect}\"\ntimeout = \"{call}\"\n");
        expected.push((name, "x", format!("{method} {deed:?}"), *end));
    }
    let worker = bed.worker("w1").file(&file).set("pool.size", "128").start().ready().await;

    let began = Instant::now();
    bed.submit_all(expected.iter().map(|(name, tool, ..)| item(name, &format!("{name}/{tool}"), &json!({})))).await;
    for other in 0..OTHERS {
        // A name alone is looked for at every server.
        let (tool, with) = match other % 3 {
            0 => ("calculate", json!({"expression": "1 + 1"})),
            1 => ("good/add", json!({"a": other, "b": 1})),
            _ => ("add", json!({"a": other, "b": 1})),
        };
        bed.submit(&item(&format!("other-{other}"), tool, &with)).await;
    }
    let all = expected.len() + OTHERS;
    while bed.count().await < all {
        assert!(began.elapsed() < PATIENCE, "{} of {all} nodes ended", bed.count().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let events = bed.ended(all).await;
    let of = |node: &str| events.iter().find(|event| event["node_id"] == node).expect("each node has its event");
    for (name, _, what, end) in &expected {
        let event = of(name);
        assert!(end.split(" or ").any(|end| end == ended(event)), "{what} ends by {end}: {}", event.body);
        if *end != COMPLETES {
            assert!(event.error().contains(name.as_str()), "{what}: the server is named: {}", event.error());
        }
    }
    for other in 0..OTHERS {
        of(&format!("other-{other}")).output();
    }
    assert!(worker.peak_memory() < MEMORY, "{} MiB", worker.peak_memory());

    // Those that hang still hang, and nobody who does not name them waits for that.
    let began = Instant::now();
    for other in 0..10 {
        bed.run(&item(&format!("later-{other}"), "calculate", &json!({"expression": "2 * 2"}))).await.output();
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(worker.get("/ready").await.status, 200);
}
