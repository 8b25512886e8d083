//! Servers that never come to an end, or stop half-way: everything about them takes bounded time and memory.

use std::time::{Duration, Instant};

use da_node_executor::clients::mcp::{McpError, Session};
use da_node_executor::domain::outcome::Failure;
use da_node_executor::modes::schema::Schema;
use serde_json::json;

use crate::harness::*;
use crate::raw_server::{Deed, raw};

/// Connects, lists, calls; the first error ends it.
async fn all_stages(url: String) -> Result<(), McpError> {
    let mut config = at(url);
    config.connect_timeout = Duration::from_millis(600);
    config.timeout = Duration::from_millis(600);
    let session = Session::connect("under-test", &config).await?;
    session.list_tools().await?;
    call(&session, "x", json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_costs_the_limit_of_its_stage_wherever_it_hangs() {
    for method in ["initialize", "notifications/initialized", "tools/list", "tools/call"] {
        for deed in [Deed::Hang, Deed::HalfAnswer, Deed::EndlessStream] {
            if method == "notifications/initialized" && !matches!(deed, Deed::Hang) {
                // Nobody reads the answer to a notification.
                continue;
            }
            let url = raw(method, deed).await;
            let started = Instant::now();
            let error = all_stages(url).await.expect_err("it hangs");
            assert!(matches!(error, McpError::TimedOut { .. }), "{method}: {error:?}");
            assert_eq!(error.may_have_run(), method == "tools/call", "{method}");
            assert!(started.elapsed() < Duration::from_secs(10), "{method}: {:?}", started.elapsed());
        }
    }
    // Silence at the very first question is no refusal of the other era.
    all_stages(raw("server/discover", Deed::Hang).await).await.map_or_else(
        |error| assert!(matches!(error, McpError::Http { status: 202, .. } | McpError::Protocol { .. }), "{error:?}"),
        |()| panic!("the call is answered by nothing"),
    );
}

#[tokio::test]
async fn a_connection_that_is_cut_leaves_the_outcome_open_only_if_a_tool_was_called() {
    for method in ["server/discover", "initialize", "tools/list", "tools/call"] {
        let error = all_stages(raw(method, Deed::Cut).await).await.expect_err("it is cut");
        assert!(matches!(error, McpError::Closed { .. }), "{method}: {error:?}");
        assert_eq!(error.may_have_run(), method == "tools/call", "{method}");
    }
}

#[tokio::test]
async fn an_answer_over_http_that_cannot_be_used_ends_in_its_error_and_is_never_held() {
    for (deed, code) in [
        (Deed::Gigabyte, "mcp_too_large"),
        (Deed::GigabyteEvent, "mcp_too_large"),
        (Deed::Redirect, "mcp_http_error"),
        (Deed::WrongId, "mcp_protocol_error"),
        (Deed::Garbage, "mcp_protocol_error"),
    ] {
        let session = connect(&at(raw("tools/call", deed).await)).await;
        let error = call(&session, "x", json!({})).await.expect_err("no answer");
        assert_eq!(Failure::from(error).code, code);
        assert!(!session.is_closed(), "{code}: only the call fails");
    }
    assert!(peak_memory() < 400, "{} MiB", peak_memory());
}

/// The most memory that this process has held, in MiB.
fn peak_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is listed");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") / 1024
}

#[tokio::test]
async fn a_gigabyte_of_output_fails_its_call_alone_and_is_never_held() {
    let session = connect(&stdio(hostile(), &["plain"])).await;
    let error = call(&session, "gigabyte", json!({})).await.expect_err("nobody wants that much");
    assert!(matches!(error, McpError::TooLarge { .. }), "{error:?}");
    assert_eq!(call(&session, "echo", json!({})).await.expect("the session lives").text(), "echo");
    assert!(peak_memory() < 400, "{} MiB", peak_memory());
    session.close().await;
}

#[tokio::test]
async fn ten_thousand_tools_in_a_circle_are_refused_quickly() {
    let session = connect(&stdio(hostile(), &["many"])).await;
    let started = Instant::now();
    let error = session.list_tools().await.expect_err("the list runs in a circle");
    assert!(matches!(error, McpError::Protocol { .. }), "{error:?}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    session.close().await;
}

#[tokio::test]
async fn schemas_that_refer_to_themselves_are_kept_and_never_run_away() {
    let session = connect(&stdio(hostile(), &["recursive"])).await;
    let tools = session.list_tools().await.expect("they are listed").tools;
    assert_eq!(tools.len(), 5);
    for tool in tools {
        assert_eq!(tool.output_schema.as_deref(), Some(&*tool.input_schema), "{}", tool.name);
        // The same check that arguments and structured answers go through: it may refuse the schema, it may not hang,
        // fetch anything or overflow the stack.
        if let Ok(schema) = Schema::compile(tool.input_schema.clone()) {
            let _ = schema.check(&json!({"left": {"left": {}, "right": 5}}));
        }
    }
    session.close().await;
}
