//! Limits that all workers share: the scripts reckon as the domain does, and any number of callers at once get exactly
//! what there is.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::time::Duration;

use da_node_executor::clients::redis::{Link, RateLimits};
use da_node_executor::domain::rate::{Amendment, Charge, Demand, Limit, Rate, SPREAD, Verdict, micros};
use da_node_executor::ports::SharedLimits as _;
use redis::FromRedisValue;

use super::World;
use crate::harness::eventually;

const RESERVE: &str = include_str!("../../../src/clients/redis/scripts/reserve.lua");
const AMEND: &str = include_str!("../../../src/clients/redis/scripts/amend.lua");

fn limits(world: &World) -> RateLimits {
    RateLimits::new(Link::new(&world.redis).expect("an address"), world.keys.clone())
}

fn rate(per_minute: u64, burst: Duration) -> Rate {
    Rate::new(NonZeroU64::new(per_minute).expect("not zero"), burst)
}

fn one(rate: &Rate) -> Demand {
    Demand { request: rate.charge(1), tokens: Charge::default(), patience: 0, returns: true }
}

/// A script with the test's clock in the place of the server's.
async fn run<T: FromRedisValue>(world: &World, script: &str, key: &str, now: u64, arguments: &[String]) -> T {
    let script = script.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}");
    let (seconds, rest) = ((now / 1_000_000).to_string(), (now % 1_000_000).to_string());
    let mut words = vec!["EVAL", &script, "1", key];
    words.extend(arguments.iter().map(String::as_str));
    words.extend([seconds.as_str(), rest.as_str()]);
    world.redis(&words).await
}

/// What is stored; a limit that is gone says nothing.
async fn stored(world: &World, key: &str) -> Limit {
    let fields: HashMap<String, u64> = world.redis(&["HGETALL", key]).await;
    let field = |name: &str| fields.get(name).copied().unwrap_or_default();
    Limit {
        requests: field("requests"),
        tokens: field("tokens"),
        closed: field("closed"),
        queue: field("queue"),
        era: field("era"),
    }
}

#[tokio::test]
async fn the_scripts_reckon_as_the_domain_does() {
    let world = World::new().await;
    let mut random = fastrand::Rng::with_seed(7);
    for history in 0..40 {
        let key = world.keys.limit("p", &format!("m{history}"));
        let requests = rate(random.u64(1..2000), Duration::from_secs(random.u64(0..90)));
        let tokens = rate(random.u64(100..100_000), Duration::from_secs(60));
        let (mut model, mut now) = (Limit::default(), 1_795_000_000_000_000 + random.u64(0..1_000_000));
        let mut eras = vec![0];
        for step in 0..50 {
            now += random.u64(0..4_000_000);
            let place = format!("history {history}, step {step}");
            if random.u8(0..10) < 7 {
                let charge =
                    |used: bool, rate: &Rate, amount| if used { rate.charge(amount) } else { Charge::default() };
                let demand = Demand {
                    request: charge(random.u8(0..8) > 0, &requests, 1),
                    tokens: charge(random.u8(0..8) > 0, &tokens, random.u64(1..20_000)),
                    patience: [0, 500_000, 5_000_000, 100_000_000][random.usize(0..4)],
                    returns: random.bool(),
                };
                let expected = model.reserve(now, &demand);
                let Demand { request, tokens, patience, returns } = demand;
                let numbers = [patience, request.cost, request.burst, tokens.cost, tokens.burst, returns.into()];
                let words: Vec<String> = numbers.into_iter().chain([micros(SPREAD)]).map(|n| n.to_string()).collect();
                let answer: Vec<u64> = run(&world, RESERVE, &key, now, &words).await;
                match (expected, answer.as_slice()) {
                    (Verdict::Go { wait, era }, [1, told, told_era]) => {
                        assert_eq!((wait, era), (*told, *told_era), "{place}");
                        eras.push(era);
                    }
                    (Verdict::Later { wait }, [0, told]) => assert_eq!(wait, *told, "{place}"),
                    other => panic!("{place}: {other:?}"),
                }
            } else {
                let mut some = |most: u64| if random.bool() { random.u64(0..most) } else { 0 };
                let amendment = Amendment {
                    closed: some(9_000_000),
                    requests_full: some(30_000_000),
                    tokens_full: some(30_000_000),
                    tokens: some(20_000_000) as i64 - some(60_000_000) as i64,
                    era: eras[random.usize(0..eras.len())],
                };
                model.amend(now, &amendment);
                let Amendment { era, tokens, closed, requests_full, tokens_full } = amendment;
                let words = [era.to_string(), tokens.to_string(), closed.to_string()];
                let words = [words.as_slice(), &[requests_full.to_string(), tokens_full.to_string()]].concat();
                let _: u64 = run(&world, AMEND, &key, now, &words).await;
            }
            let stored = stored(&world, &key).await;
            if stored == Limit::default() {
                assert!(model.is_idle(now), "{place}: {model:?}");
                model = Limit::default();
            }
            assert_eq!(stored, model, "{place}");
        }
    }
}

#[tokio::test]
async fn fifty_callers_at_once_get_exactly_what_there_is_and_each_other_a_moment_of_its_own() {
    let world = World::new().await;
    // One more comes together in ten seconds only.
    let rate = rate(6, Duration::from_secs(200));
    let demand = one(&rate);
    // Five processes, ten callers in each.
    let processes: Vec<RateLimits> = (0..5).map(|_| limits(&world)).collect();
    let calls = (0..50).map(|at| processes[at % 5].reserve("p", "m", &demand));
    let answers = futures_util::future::join_all(calls).await;
    let mut waits: Vec<u64> = Vec::new();
    let mut begun = 0;
    for answer in answers {
        match answer.expect("an answer") {
            Verdict::Go { wait, .. } => {
                assert_eq!(wait, 0);
                begun += 1;
            }
            Verdict::Later { wait } => waits.push(wait),
        }
    }
    assert_eq!((begun, waits.len()), (20, 30));
    waits.sort_unstable();
    let seconds = |wait: &u64| wait.div_ceil(1_000_000);
    assert_eq!(waits.iter().take(6).map(seconds).collect::<Vec<_>>(), [10, 20, 30, 40, 50, 60]);
    assert!(waits.iter().all(|wait| seconds(wait) <= 70), "nobody is sent away for longer: {waits:?}");
    let other = processes[0].reserve("p", "another model", &demand).await.expect("an answer");
    assert!(matches!(other, Verdict::Go { wait: 0, .. }), "each model has its own");
}

#[tokio::test]
async fn the_word_of_one_process_holds_for_the_others() {
    let world = World::new().await;
    let (first, second) = (limits(&world), limits(&world));
    let demand = Demand::default();
    assert!(matches!(second.reserve("p", "m", &demand).await, Ok(Verdict::Go { wait: 0, .. })));
    let closed = Amendment { closed: micros(Duration::from_secs(30)), ..Amendment::default() };
    first.amend("p", "m", &closed).await.expect("an answer");
    let Ok(Verdict::Later { wait }) = second.reserve("p", "m", &demand).await else { panic!("it is closed") };
    assert!(wait > 25_000_000 && wait <= 30_000_000, "{wait}");
    let life: i64 = world.redis(&["PTTL", &world.keys.limit("p", "m")]).await;
    assert!(life > 25_000 && life <= 31_000, "it goes by itself: {life}");
}

#[tokio::test]
async fn a_limit_that_is_full_again_leaves_nothing_behind() {
    let world = World::new().await;
    let limits = limits(&world);
    let key = world.keys.limit("p", "m");
    let tokens = rate(600, Duration::from_secs(60)).charge(600);
    let demand = Demand { tokens, ..Demand::default() };
    let Ok(Verdict::Go { era, .. }) = limits.reserve("p", "m", &demand).await else { panic!("it is full") };
    let back = Amendment { era, tokens: -(tokens.cost as i64), ..Amendment::default() };
    limits.amend("p", "m", &back).await.expect("an answer");
    assert!(!world.redis::<bool>(&["EXISTS", &key]).await, "everything was given back");
    let quick = rate(6000, Duration::from_secs(1));
    limits.reserve("p", "m", &one(&quick)).await.expect("an answer");
    eventually("the key expires", async || (!world.redis::<bool>(&["EXISTS", &key]).await).then_some(())).await;
}

#[tokio::test]
async fn a_key_of_another_type_is_an_error_and_no_more() {
    let world = World::new().await;
    world.spoil(&world.keys.limit("p", "m")).await;
    let failure = limits(&world).reserve("p", "m", &Demand::default()).await.expect_err("a list is no limit");
    assert!(failure.code.contains("wrong"), "{failure:?}");
    let amendment = Amendment { closed: 1, ..Amendment::default() };
    limits(&world).amend("p", "m", &amendment).await.expect_err("a list is no limit");
}
