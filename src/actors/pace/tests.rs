//! Limits of models as one process keeps them, and what becomes of calls when the shared ones are away.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;

use super::*;
use crate::clients::llm::StatusError;
use crate::clients::llm::fixture::{request, with_settings};
use crate::config::ModelLimits;
use crate::domain::message::{AssistantTurn, StopReason};

fn limited(change: impl FnOnce(&mut ProviderConfig)) -> ProviderConfig {
    let mut config = ProviderConfig { burst: Duration::from_secs(1), ..ProviderConfig::default() };
    change(&mut config);
    config
}

fn a_minute(requests: u32) -> ProviderConfig {
    limited(|config| config.requests_per_minute = requests.try_into().ok())
}

fn pace(config: &ProviderConfig, limits: Option<Arc<dyn SharedLimits>>, patience: Option<Duration>) -> Pace {
    Pace::new("p", config, Sharing { limits, patience }, Arc::new(Metrics::new("w")))
}

fn refused(answer: Result<Option<Place>, Failure>) -> Failure {
    answer.err().expect("there is no room")
}

fn completion(input: u64, output: u64, cached: u64) -> Result<Completion, LlmError> {
    let usage = Usage { input_tokens: input, output_tokens: output, cache_read_tokens: cached, ..Usage::default() };
    let turn = AssistantTurn {
        raw: RawValue::from_string(String::from("[]")).expect("JSON"),
        text: String::new(),
        tool_uses: Vec::new(),
        author: None,
    };
    Ok(Completion {
        turn,
        stop_reason: StopReason::EndTurn,
        model: String::from("m"),
        provider: None,
        usage,
        request_id: None,
        warnings: Vec::new(),
        shortened: 0,
    })
}

fn status(status: u16, retry_after: Option<Duration>) -> Result<Completion, LlmError> {
    Err(LlmError::Status(Box::new(StatusError {
        provider: String::from("p"),
        status,
        kind: None,
        message: String::from("no"),
        retry_after,
        should_retry: None,
        request_id: None,
        endpoint: None,
    })))
}

#[tokio::test(start_paused = true)]
async fn a_provider_without_limits_asks_nobody() {
    let counted = Arc::new(Absent::default());
    let pace = pace(&ProviderConfig::default(), Some(Arc::clone(&counted) as _), None);
    for _ in 0..1000 {
        assert!(pace.admit(&mut request("x"), "m").await.expect("free").is_none());
    }
    pace.settle(None, "m", &completion(1, 1, 0)).await;
    assert_eq!(counted.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn calls_wait_in_line_and_each_model_has_its_own() {
    let pace = pace(&a_minute(60), None, None);
    let start = Instant::now();
    for at in 0..5 {
        pace.admit(&mut request("x"), "m").await.expect("it waits");
        assert_eq!(start.elapsed().as_secs(), at);
    }
    pace.admit(&mut request("x"), "other").await.expect("its own limit");
    assert_eq!(start.elapsed(), Duration::from_secs(4));
    let waits = pace.metrics.encode();
    assert!(waits.contains(r#"executor_llm_limit_wait_seconds_count{provider="p"} 6"#), "{waits}");
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_is_told_instead_of_waited_out_and_nobody_waits_who_can_go_elsewhere() {
    let pace = pace(&a_minute(6), None, Some(Duration::from_secs(3)));
    pace.admit(&mut request("x"), "m").await.expect("the first");
    let failure = refused(pace.admit(&mut request("x"), "m").await);
    assert_eq!((failure.code.as_ref(), failure.retry_after), ("limit_reached", Some(Duration::from_secs(10))));
    assert!(failure.message.contains("10s") && failure.needs_time(), "{failure}");
    tokio::time::advance(Duration::from_secs(8)).await;
    let elsewhere = LlmRequest { elsewhere: true, ..request("x") };
    let failure = refused(pace.admit(&mut elsewhere.clone(), "m").await);
    assert_eq!(failure.retry_after, Some(Duration::from_secs(2)));
    pace.admit(&mut request("x"), "m").await.expect("two seconds are waited out");
    let waits = pace.metrics.encode();
    assert!(waits.contains(r#"executor_llm_deferred_total{provider="p",cause="limit"} 2"#), "{waits}");
}

#[tokio::test(start_paused = true)]
async fn a_node_does_not_wait_beyond_its_time() {
    let pace = pace(&a_minute(1), None, None);
    pace.admit(&mut request("x"), "m").await.expect("the first");
    let mut hurried = request("x");
    hurried.context.deadline = std::time::Instant::now() + Duration::from_secs(30);
    assert_eq!(refused(pace.admit(&mut hurried, "m").await).retry_after, Some(Duration::from_secs(60)));
}

#[tokio::test(start_paused = true)]
async fn tokens_are_charged_for_what_is_feared_and_corrected_by_what_was_used() {
    let config = limited(|config| config.tokens_per_minute = 10_000.try_into().ok());
    let pace = pace(&config, None, Some(Duration::ZERO));
    let call = || with_settings(request("hello"), serde_json::json!({"max_tokens": 6000}));
    let first = pace.admit(&mut call(), "m").await.expect("room for one");
    refused(pace.admit(&mut call(), "m").await);
    // Of 5000 tokens read 4000 came out of the cache, which the provider does not count.
    pace.settle(first, "m", &completion(5000, 1000, 4000)).await;
    let second = pace.admit(&mut call(), "m").await.expect("2000 were used");
    refused(pace.admit(&mut call(), "m").await);
    // An error of the provider costs nothing, a broken connection may have cost everything.
    pace.settle(second, "m", &status(500, None)).await;
    let third = pace.admit(&mut call(), "m").await.expect("nothing was used");
    let cut = LlmError::Truncated { provider: String::from("p"), request_id: None };
    pace.settle(third, "m", &Err(cut)).await;
    refused(pace.admit(&mut call(), "m").await);
    pace.leave(pace.admit(&mut call(), "other").await.expect("its own limit"), "other").await;
    pace.admit(&mut call(), "other").await.expect("the place was given back");
}

#[tokio::test(start_paused = true)]
async fn small_calls_wait_behind_a_large_one_that_came_before_them() {
    let config = limited(|config| config.tokens_per_minute = 60_000.try_into().ok());
    let pace = pace(&config, None, Some(Duration::from_secs(5)));
    let call = |who: &str, tokens: u32| {
        let mut call = with_settings(request("hello"), serde_json::json!({ "max_tokens": tokens }));
        call.context.idempotency_key = who.to_owned();
        call
    };
    let start = Instant::now();
    pace.admit(&mut call("first", 59_000), "m").await.expect("all that was saved up");
    let wait = refused(pace.admit(&mut call("large", 30_000), "m").await).retry_after.expect("a wait");
    assert!(wait > Duration::from_secs(14) && wait < Duration::from_secs(15), "half of it: {wait:?}");
    // There are enough tokens for this one, but the other one would begin later for it.
    refused(pace.admit(&mut call("small", 100), "m").await);
    tokio::time::sleep(Duration::from_secs(25)).await;
    let (mut large, mut small) = (call("large", 30_000), call("small", 100));
    let (large, small) = tokio::join!(
        async {
            pace.admit(&mut large, "m").await.expect("its turn");
            start.elapsed().as_secs_f64()
        },
        async {
            pace.admit(&mut small, "m").await.expect("its turn");
            start.elapsed().as_secs_f64()
        }
    );
    assert!((28.9..29.2).contains(&large) && (large..29.5).contains(&small), "{large} {small}");
}

#[tokio::test(start_paused = true)]
async fn what_the_provider_says_closes_or_lowers_the_limit() {
    let pace = pace(&a_minute(600), None, Some(Duration::ZERO));
    let mut call = request("x");
    let place = pace.admit(&mut call, "m").await.expect("room");
    pace.settle(place, "m", &status(429, Some(Duration::from_secs(20)))).await;
    assert_eq!(refused(pace.admit(&mut request("x"), "m").await).retry_after, Some(Duration::from_secs(20)));
    tokio::time::advance(Duration::from_secs(21)).await;

    let word = |requests, empty_for| RateWord { at: std::time::Instant::now(), requests, tokens: None, empty_for };
    let place = pace.admit(&mut call, "m").await.expect("room again");
    call.rate_word.as_ref().expect("somebody listens").set(word(Some(0), Some(Duration::from_secs(9)))).expect("once");
    pace.settle(place, "m", &completion(1, 1, 0)).await;
    let wait = refused(pace.admit(&mut request("x"), "m").await).retry_after.expect("a wait");
    assert!(wait > Duration::from_millis(8_500) && wait <= Duration::from_secs(9), "{wait:?}");
    tokio::time::advance(Duration::from_secs(10)).await;

    let place = pace.admit(&mut call, "m").await.expect("room again");
    call.rate_word.as_ref().expect("somebody listens").set(word(Some(3), None)).expect("once");
    pace.settle(place, "m", &completion(1, 1, 0)).await;
    for _ in 0..3 {
        pace.admit(&mut request("x"), "m").await.expect("three were left");
    }
    refused(pace.admit(&mut request("x"), "m").await);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_in_line_does_not_begin_after_the_provider_asked_everybody_to_stop() {
    let mut config = a_minute(60);
    config.tokens_per_minute = 33_000.try_into().ok();
    let pace = pace(&config, None, Some(Duration::from_secs(5)));
    let first = pace.admit(&mut request("x"), "m").await.expect("room");
    let (mut one, mut other) = (request("x"), request("x"));
    let (waiting, ()) = tokio::join!(pace.admit(&mut one, "m"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        pace.settle(first, "m", &status(429, Some(Duration::from_secs(20)))).await;
    });
    let wait = refused(waiting).retry_after.expect("a wait");
    assert_eq!(wait, Duration::from_millis(19_500));
    tokio::time::advance(wait).await;
    // Neither of the two charges of 16,000 is left, or the second would have to wait for longer.
    for call in [&mut one, &mut other] {
        pace.admit(call, "m").await.expect("all tokens are there");
    }
}

#[tokio::test(start_paused = true)]
async fn headers_may_count_without_a_limit_and_not_count_with_one() {
    let always = pace(&limited(|config| config.rate_headers = When::Always), None, Some(Duration::ZERO));
    let place = always.admit(&mut request("x"), "m").await.expect("free");
    always.settle(place, "m", &status(529, Some(Duration::from_secs(5)))).await;
    refused(always.admit(&mut request("x"), "m").await);
    let config = ProviderConfig { rate_headers: When::Never, ..a_minute(600) };
    let never = pace(&config, None, Some(Duration::ZERO));
    let mut call = request("x");
    let place = never.admit(&mut call, "m").await.expect("room");
    assert!(call.rate_word.is_none());
    never.settle(place, "m", &status(429, Some(Duration::from_secs(5)))).await;
    never.admit(&mut request("x"), "m").await.expect("nobody listened");
}

#[test]
fn a_models_own_limits_go_before_those_of_the_provider() {
    let mut config = a_minute(60);
    config
        .limits
        .insert(String::from("small"), ModelLimits { tokens_per_minute: 9.try_into().ok(), ..Default::default() });
    config
        .limits
        .insert(String::from("fast"), ModelLimits { requests_per_minute: 99.try_into().ok(), ..Default::default() });
    let pace = pace(&config, None, None);
    let rates = |model: &str| pace.rates(model).map(|rates| (rates.requests, rates.tokens)).expect("limits");
    let of = |number: u64| Rate::new(number.try_into().expect("not zero"), Duration::from_secs(1));
    assert_eq!(rates("any"), (Some(of(60)), None));
    assert_eq!(rates("fast"), (Some(of(99)), None));
    assert_eq!(rates("small").0, Some(of(60)));
    assert!(rates("small").1.is_some());
}

/// Shared limits that do not answer until they are back.
#[derive(Default)]
struct Absent {
    back: AtomicBool,
    hangs: AtomicBool,
    asked: AtomicU32,
}

impl SharedLimits for Absent {
    fn reserve<'a>(&'a self, _: &'a str, _: &'a str, _: &'a Demand) -> BoxFuture<'a, Result<Verdict, Failure>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        async move {
            if self.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            match self.back.load(Ordering::Relaxed) {
                true => Ok(Verdict::Go { wait: 0, era: 0 }),
                false => Err(Failure::retriable("redis_unavailable", "away")),
            }
        }
        .boxed()
    }

    fn amend<'a>(&'a self, _: &'a str, _: &'a str, _: &'a Amendment) -> BoxFuture<'a, Result<(), Failure>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        async { Err(Failure::retriable("redis_unavailable", "away")) }.boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_shared_limits_are_away_each_process_keeps_them_itself_and_no_call_fails_or_hangs() {
    for hangs in [false, true] {
        let absent = Arc::new(Absent { hangs: AtomicBool::new(hangs), ..Absent::default() });
        let pace = pace(&a_minute(60), Some(Arc::clone(&absent) as _), Some(Duration::from_secs(9)));
        let start = Instant::now();
        let place = pace.admit(&mut request("x"), "m").await.expect("it goes on");
        let limit = if hangs { ANSWER } else { Duration::ZERO };
        assert_eq!(start.elapsed(), limit, "an answer is not waited for longer than that");
        pace.settle(place, "m", &status(429, Some(Duration::from_secs(3)))).await;
        assert_eq!(absent.asked.load(Ordering::Relaxed), 1, "nobody asks again at once");
        let before = Instant::now();
        pace.admit(&mut request("x"), "m").await.expect("it waits");
        assert_eq!(before.elapsed(), Duration::from_secs(3), "our own limit heard of it");
        absent.back.store(true, Ordering::Relaxed);
        absent.hangs.store(false, Ordering::Relaxed);
        let before = Instant::now();
        pace.admit(&mut request("x"), "m").await.expect("it is asked again");
        assert_eq!((before.elapsed(), absent.asked.load(Ordering::Relaxed)), (Duration::ZERO, 2));
        let alone = pace.metrics.encode();
        assert!(alone.contains(r#"executor_llm_limit_alone_total{provider="p"} 2"#), "{alone}");
    }
}
