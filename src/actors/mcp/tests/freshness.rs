//! How long what is known of a server is believed, on a clock that stands still until a test moves it.

use tokio::time::advance;

use super::*;
use crate::domain::outcome::Category;

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

fn tools(names: &[&str], ttl: &Value) -> Value {
    let tools = names.iter().map(|name| json!({"name": name, "inputSchema": {"type": "object"}}));
    json!({"tools": tools.collect::<Vec<_>>(), "ttlMs": ttl})
}

#[tokio::test(start_paused = true)]
async fn a_list_is_read_again_once_its_time_is_over_and_never_before() {
    let _still = Still::hold();
    for (said, time) in [
        (json!(90_000), 90 * SECOND),
        (json!(5_001), 5 * SECOND + MOMENT),
        // A list before each call would cost more than it tells.
        (json!(1), 5 * SECOND),
        (json!(0), 60 * SECOND),
        (Value::Null, 60 * SECOND),
    ] {
        let (mock, page) = modern(tools(&["t"], &said)).await;
        let server = server_at(&mock, McpServerConfig::default(), no_lock());
        assert_eq!(server.offer(true).await.expect("a list").len(), 1);
        *page.lock().expect("nobody panics with it") = tools(&["t", "u"], &said);
        for part in [Duration::ZERO, time / 2, time - time / 2 - MOMENT] {
            advance(part).await;
            for named in [true, false] {
                assert_eq!(server.offer(named).await.expect("the list at hand").len(), 1, "{said}");
            }
            server.call(&call("t")).await.expect("an answer");
        }
        let seen = (asked(&mock, "server/discover").await, asked(&mock, "tools/list").await);
        assert_eq!(seen, (1, 1), "{said}: neither a node nor a call asks before its time is over");

        advance(MOMENT).await;
        assert!(server.current_tools().is_none(), "{said}");
        for _ in 0..3 {
            assert_eq!(server.offer(true).await.expect("the new list").len(), 2, "{said}");
        }
        assert_eq!(asked(&mock, "tools/list").await, 2, "{said}: once for all of them");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_list_that_is_slow_to_come_is_waited_for_a_second() {
    let _still = Still::hold();
    let (mock, _) = modern(tools(&["t"], &json!(1))).await;
    let server = server_at(&mock, McpServerConfig::default(), no_lock());
    server.offer(true).await.expect("a list");
    let slow = ResponseTemplate::new(200).set_delay(20 * PATIENCE);
    let lists = matchers::body_partial_json(json!({"method": "tools/list"}));
    Mock::given(lists).respond_with(slow).with_priority(1).mount(&mock).await;
    advance(5 * SECOND).await;
    let offered = tokio::spawn({
        let server = Arc::clone(&server);
        async move { server.offer(true).await }
    });
    let deadline = Instant::now() + PATIENCE;
    while asked(&mock, "tools/list").await < 2 {
        assert!(Instant::now() < deadline, "nobody asks for a newer list");
        tokio::task::yield_now().await;
    }
    advance(SECOND - MOMENT).await;
    assert!(!offered.is_finished(), "the newer one may still come");
    advance(MOMENT).await;
    assert_eq!(offered.await.expect("no panic").expect("the list at hand").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_tried_again_after_pauses_that_grow() {
    let _still = Still::hold();
    let mock = MockServer::start().await;
    Mock::given(matchers::any()).respond_with(ResponseTemplate::new(503)).mount(&mock).await;
    let server = server_at(&mock, McpServerConfig::default(), no_lock());
    let attempts = async || mock.received_requests().await.expect("they are kept").len();
    for tenths in 0..1000 {
        let failure = server.discover().await.expect_err("it is away");
        assert_eq!((failure.category, &*failure.code), (Category::Retriable, "mcp_http_error"));
        if tenths == 0 {
            let again = server.session().await.map(drop).expect_err("it is not asked again at once");
            assert_eq!((again.code, attempts().await), (failure.code, 1));
            assert!(again.retry_after.is_some_and(|wait| wait <= SECOND / 5), "whoever asks is told how long");
        }
        advance(SECOND / 10).await;
    }
    // By pauses of a fifth of a second to half a minute, each of them cut by up to a half.
    let all = attempts().await;
    assert!((9..=14).contains(&all), "{all} attempts in a hundred seconds");
}
