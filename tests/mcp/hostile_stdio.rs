//! Servers over stdio that break the protocol: each ends in a clear error or in nothing, in bounded time and memory.

use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::{Endpoint, Era, McpError, Session};
use da_node_executor::config::McpServerConfig;
use da_node_executor::domain::outcome::{Category, Failure};
use serde_json::json;

use crate::harness::*;

fn breaking(mode: &str) -> McpServerConfig {
    stdio(hostile(), &[mode])
}

/// Whether a process is there. One that ended and that nobody waited for counts as gone.
fn alive(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn pids(session: &Session) -> Vec<i64> {
    let pids = call(session, "pids", json!({})).await.expect("the pids").into_value();
    let pids: Vec<i64> = pids.as_array().expect("a list").iter().filter_map(|pid| pid.as_i64()).collect();
    assert!(pids.len() == 2 && pids.iter().all(|&pid| alive(pid)), "{pids:?}");
    pids
}

#[tokio::test]
async fn noise_on_the_pipe_is_dropped_and_questions_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let mut config = breaking("noise");
    config.env.insert(String::from("LOG"), log.to_str().expect("UTF-8").into());
    let session = connect(&config).await;
    assert_eq!(session.info().protocol_version, "2024-11-05", "an older server is understood");
    for number in 0..20 {
        let tool = format!("tool-{number}");
        assert_eq!(call(&session, &tool, json!({})).await.expect("an answer").text(), tool);
    }
    until("the questions are answered", || {
        let said = said(&log);
        said.contains(r#"{"jsonrpc":"2.0","id":"p-1","result":{}}"#)
            && said.contains(r#""id":-7,"error":{"code":-32601"#)
    })
    .await;
    assert!(said(&log).contains(r#""method":"notifications/initialized","params":{}"#));
    session.close().await;
}

#[tokio::test]
async fn a_huge_answer_fails_its_call_alone() {
    let session = connect(&breaking("plain")).await;
    let silent = call(&session, "silent", json!({}));
    let huge = async { call(&session, "huge", json!({})).await.expect_err("40 MiB are too much") };
    let error = tokio::select! {
        answer = silent => panic!("{answer:?}"),
        error = huge => error,
    };
    assert!(matches!(error, McpError::TooLarge { .. }), "{error:?}");
    assert!(error.may_have_run());
    assert_eq!(call(&session, "fine", json!({})).await.expect("the session lives").text(), "fine");
}

#[tokio::test]
async fn a_child_that_stops_reading_costs_each_call_its_limit_and_can_be_closed() {
    let mut config = breaking("plain");
    config.timeout = Duration::from_millis(700);
    let session = connect(&config).await;
    let started = Instant::now();
    let deaf = call(&session, "deaf", json!({}));
    // More than the pipe takes, so that whatever follows waits behind it.
    let large = call(&session, "fine", json!({"text": "x".repeat(1024 * 1024)}));
    let behind = call(&session, "fine", json!({}));
    let (deaf, large, behind) = tokio::join!(deaf, large, behind);
    for (call, may_have_run) in [(deaf, true), (large, true), (behind, false)] {
        let error = call.expect_err("nobody reads it");
        assert!(matches!(error, McpError::TimedOut { .. }), "{error:?}");
        assert_eq!(error.may_have_run(), may_have_run, "{error:?}");
    }
    session.close().await;
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_flood_of_notifications_is_counted_and_hides_no_answer() {
    let session = connect(&breaking("flood")).await;
    assert_eq!(call(&session, "fine", json!({})).await.expect("an answer").text(), "fine");
    assert_eq!(session.tools_changed(), 100_000);
}

#[tokio::test]
async fn a_server_that_never_answers_costs_the_time_to_connect_and_no_more() {
    let mut config = breaking("mute");
    config.connect_timeout = Duration::from_millis(700);
    let started = Instant::now();
    let error = refusal(&config).await;
    assert!(matches!(error, McpError::TimedOut { may_have_run: false, .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(Failure::from(error).category, Category::Retriable);
}

#[tokio::test]
async fn an_unknown_version_or_a_nonsensical_opening_is_refused() {
    let error = refusal(&breaking("unknown-version")).await;
    assert!(matches!(&error, McpError::UnsupportedVersion { version, .. } if version == "1999-01-01"), "{error:?}");
    let error = refusal(&breaking("nonsense")).await;
    assert!(matches!(error, McpError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_child_that_ends_at_the_question_for_its_era_is_started_again_and_asked_once_in_its_life() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let mut config = breaking("shy");
    config.env.insert(String::from("LOG"), log.to_str().expect("UTF-8").into());
    let endpoint = Endpoint::new("under-test", config);
    for _ in 0..2 {
        let session = endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(session.info().era, Era::Legacy);
        assert_eq!(call(&session, "fine", json!({})).await.expect("an answer").text(), "fine");
        session.close().await;
    }
    let said = said(&log);
    let times = |method: &str| said.matches(&format!("\"{method}\"")).count();
    assert_eq!((times("server/discover"), times("initialize")), (1, 2), "{said}");
}

#[tokio::test]
async fn a_child_that_dies_at_once_says_why_without_its_secrets() {
    let mut config = breaking("dies");
    config.env.insert(String::from("KEY"), String::from("s3cret-value").into());
    let error = refusal(&config).await;
    let McpError::Closed { cause, may_have_run: false, .. } = &error else { panic!("{error:?}") };
    assert!(cause.contains('7') && cause.contains("cannot open the database with key ***"), "{cause}");
}

#[tokio::test]
async fn a_list_in_pages_is_read_whole_and_broken_tools_are_left_out() {
    let session = connect(&breaking("pages")).await;
    let tools = session.list_tools().await.expect("the tools").tools;
    let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d"], "an empty cursor is a cursor, a name counts once");
}

#[tokio::test]
async fn a_list_without_an_end_is_refused() {
    let session = connect(&breaking("cursor-loop")).await;
    let error = session.list_tools().await.expect_err("it runs in a circle");
    assert!(matches!(error, McpError::Protocol { .. }), "{error:?}");
    let session = connect(&breaking("endless-list")).await;
    let error = session.list_tools().await.expect_err("it has no end");
    assert!(matches!(error, McpError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn odd_results_survive_and_broken_ones_are_named() {
    let session = connect(&breaking("plain")).await;
    let odd = call(&session, "odd-result", json!({})).await.expect("a result");
    let every_block_as_it_was_sent = [
        json!({"type": "resource_link", "uri": "file:///a b", "name": "a", "size": 12345678901234567890_u64, "_meta": {"x": 1.0}}),
        json!({"type": "resource", "resource": {"uri": "u:1", "mimeType": "text/plain", "text": "größe"}, "annotations": {}}),
        json!({"type": "resource", "resource": {"uri": "u:2", "blob": "AAEC"}}),
        json!({"type": "hologram", "depth": 3}),
    ];
    assert_eq!(odd.content, every_block_as_it_was_sent);
    assert_eq!((odd.structured, odd.is_error), (Some(json!([1])), false));
    let error = call(&session, "no-object", json!({})).await.expect_err("no result");
    assert!(matches!(error, McpError::Protocol { .. }), "{error:?}");
    let error = call(&session, "ask-more", json!({})).await.expect_err("it asks without an end");
    assert!(matches!(error, McpError::InputRequired { .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_leaves_the_outcome_open() {
    for tool in ["half-an-answer", "close-output"] {
        let session = connect(&breaking("plain")).await;
        let error = call(&session, tool, json!({})).await.expect_err("no answer");
        assert!(matches!(error, McpError::Closed { may_have_run: true, .. }), "{tool}: {error:?}");
        tokio::time::timeout(PATIENCE, session.closed()).await.expect("the session notices");
    }
}

#[tokio::test]
async fn closing_ends_a_child_that_will_not_go_and_all_that_it_started() {
    let session = connect(&breaking("stubborn")).await;
    let pids = pids(&session).await;
    session.close().await;
    assert!(!alive(pids[0]), "the child is gone when closing returns");
    until("nothing is left", || !pids.iter().any(|&pid| alive(pid))).await;
}

#[tokio::test]
async fn dropping_a_session_kills_its_processes_at_once() {
    let session = connect(&breaking("stubborn")).await;
    let pids = pids(&session).await;
    drop(session);
    until("nothing is left", || !pids.iter().any(|&pid| alive(pid))).await;
}

#[test]
fn a_runtime_that_ends_takes_the_processes_of_its_sessions_with_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (session, pids) = runtime.block_on(async {
        let session = connect(&breaking("stubborn")).await;
        let pids = pids(&session).await;
        (session, pids)
    });
    drop(runtime);
    drop(session);
    let deadline = Instant::now() + PATIENCE;
    while pids.iter().any(|&pid| alive(pid)) {
        assert!(Instant::now() < deadline, "the processes outlive the runtime");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_child_sees_a_small_environment() {
    // The test process has more variables than these: cargo sets some.
    let mut config = stdio(vec![String::from("sh")], &["-c", "env >&2; exit 1"]);
    config.command = Some(String::from("sh"));
    let folder = tempfile::tempdir().expect("a folder");
    let seen = folder.path().join("environment");
    config.args[1] = format!("env > '{}'", seen.display());
    config.env.insert(String::from("GIVEN"), String::from("yes").into());
    let error = refusal(&config).await;
    assert!(matches!(error, McpError::Closed { .. }), "{error:?}");
    let seen = said(&seen);
    assert!(seen.contains("GIVEN=yes\n") && seen.contains("PATH="), "{seen}");
    assert!(!seen.contains("CARGO"), "{seen}");
}
