//! Limits that all workers share: the scripts reckon as the domain does, and any number of callers at once get exactly
//! what there is.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use da_node_executor::clients::redis::{Link, RateLimits};
use da_node_executor::domain::rate::{
    Amendment, Charge, Demand, GRACE, LINE, Limit, MOMENT, Rate, SHORTEST, SPREAD, Verdict, Waiting, micros,
};
use da_node_executor::ports::SharedLimits as _;
use redis::FromRedisValue;
use tokio::time::{Instant, sleep, timeout};

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

/// A call that comes back after any wait.
fn call(who: u64, request: Charge) -> Demand {
    Demand { who, request, returns: u64::MAX, ..Demand::default() }
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
    let fields: HashMap<String, String> = world.redis(&["HGETALL", key]).await;
    let field = |name: &str| fields.get(name).map_or(0, |number| number.parse().expect("a number"));
    let waiting = |words: &str| {
        let mut words = words.split(':');
        let who = u64::from_str_radix(words.next().expect("a name"), 16).expect("digits");
        let numbers: Vec<u64> = words.map(|word| word.parse().expect("a number")).collect();
        let [until, by, requests, tokens] = numbers[..] else { panic!("{numbers:?}") };
        Waiting { who, until, by, requests, tokens }
    };
    Limit {
        line: fields.get("line").map_or_else(Vec::new, |line| line.split(',').map(waiting).collect()),
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
                    who: random.u64(0..4) << 61 | random.u64(0..3),
                    request: charge(random.u8(0..8) > 0, &requests, 1),
                    tokens: charge(random.u8(0..8) > 0, &tokens, random.u64(1..20_000)),
                    patience: [0, 500_000, 5_000_000, 100_000_000][random.usize(0..4)],
                    returns: [0, 9_000_000, 1 << 50][random.usize(0..3)],
                };
                let expected = model.reserve(now, &demand);
                let Demand { who, request, tokens, patience, returns } = demand;
                let numbers = [patience, request.cost, request.burst, tokens.cost, tokens.burst];
                let more = [returns, micros(SPREAD), LINE as u64, micros(GRACE), micros(SHORTEST), micros(MOMENT)];
                let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
                let words = [words, vec![format!("{who:x}")], more.iter().map(u64::to_string).collect()].concat();
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
async fn fifty_callers_at_once_get_exactly_what_there_is_and_the_others_stand_in_line() {
    let world = World::new().await;
    // One more comes together in ten seconds only.
    let rate = rate(6, Duration::from_secs(200));
    let demands: Vec<Demand> = (0..50).map(|who| call(who, rate.charge(1))).collect();
    // Five processes, ten callers in each.
    let processes: Vec<RateLimits> = (0..5).map(|_| limits(&world)).collect();
    let calls = demands.iter().enumerate().map(|(at, demand)| processes[at % 5].reserve("p", "m", demand));
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
    assert!(waits.iter().all(|wait| seconds(wait) <= 60), "nobody is sent away for longer: {waits:?}");
    let other = processes[0].reserve("p", "another model", &demands[0]).await.expect("an answer");
    assert!(matches!(other, Verdict::Go { wait: 0, .. }), "each model has its own");
}

/// Asks until it may begin; gives how long that took.
async fn begins(limits: &RateLimits, demand: &Demand) -> Duration {
    let asked = Instant::now();
    loop {
        match limits.reserve("p", "m", demand).await.expect("an answer") {
            Verdict::Go { wait, .. } => {
                sleep(Duration::from_micros(wait)).await;
                return asked.elapsed();
            }
            Verdict::Later { wait } => sleep(Duration::from_micros(wait)).await,
        }
    }
}

#[tokio::test]
async fn a_large_call_has_its_turn_although_small_ones_take_all_there_is() {
    let world = World::new().await;
    // A hundred tokens a second, of which two hundred may be saved up.
    let rate = rate(6_000, Duration::from_secs(2));
    let patience = micros(Duration::from_secs(1));
    let (begun, names, over) = (AtomicUsize::new(0), AtomicU64::new(10), AtomicBool::new(false));
    // Eight callers in as many processes, whose calls of ten tokens wait in line for less than they have patience for.
    let small = async |limits: RateLimits| {
        while !over.load(Ordering::Relaxed) {
            let who = names.fetch_add(1, Ordering::Relaxed);
            let demand = Demand { tokens: rate.charge(10), patience, ..call(who, Charge::default()) };
            begins(&limits, &demand).await;
            begun.fetch_add(1, Ordering::Relaxed);
        }
    };
    let large = async {
        let at_least = async |count: usize| {
            eventually("small calls begin", async || (begun.load(Ordering::Relaxed) >= count).then_some(())).await;
        };
        // By then everything that was saved up is used.
        at_least(30).await;
        let demand = Demand { tokens: rate.charge(190), patience, ..call(1, Charge::default()) };
        let limits = limits(&world);
        let took = timeout(Duration::from_secs(20), begins(&limits, &demand)).await.expect("it has its turn");
        at_least(begun.load(Ordering::Relaxed) + 20).await;
        over.store(true, Ordering::Relaxed);
        took
    };
    let (_, took) = tokio::join!(futures_util::future::join_all((0..8).map(|_| small(limits(&world)))), large);
    // What it needs comes together in two seconds, after what was promised before it came.
    assert!(took < Duration::from_secs(6), "{took:?}");
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
    limits.reserve("p", "m", &call(1, quick.charge(1))).await.expect("an answer");
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
