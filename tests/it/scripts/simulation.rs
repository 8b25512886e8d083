//! The scripts as a state machine: random histories of three workers, lost answers and jumps of the clock against a
//! model of what is promised. `SIMULATION_CASES` sets how many, `SIMULATION_SEED` repeats a run.

mod model;
mod operations;
mod play;
mod sight;
mod wire;

use std::sync::Arc;

use da_node_executor::clients::redis::{Keys, Link};
use da_node_executor::config::{Config, RedisConfig, StateConfig, WorkConfig};
use proptest::test_runner::{Config as Limits, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use redis::aio::MultiplexedConnection;

use self::operations::{Operation, STREAMS, history};
use self::play::{Access, Check, Play};
use self::wire::{Swaps, Wire};
use super::{GROUP, World};
use crate::harness::redis::shared;
use crate::harness::unique;

/// Histories of one run.
const CASES: u32 = 100;
/// Operations of a history at the most.
const LENGTH: usize = 120;

/// The scripts as they are put together, by the names of their parts.
const SCRIPTS: &[&[&str]] = &[
    &["owned", "hold"],
    &["take"],
    &["owned", "run", "open"],
    &["owned", "run", "settle"],
    &["owned", "unclaimed", "run", "settle"],
    &["owned", "dead_letter"],
    &["owned", "run", "aside", "park"],
    &["owned", "run", "aside", "wait"],
    &["owned", "decide"],
    &["owned", "journal"],
    &["due"],
    &["return"],
    &["reap"],
    &["mend"],
    &["uncount"],
    &["redrive"],
];

/// Scripts that follow another request, so that others may pass in between.
const SECOND_STEPS: &[&[&str]] = &[&["take"], &["return"], &["owned", "unclaimed", "run", "settle"]];

fn part(name: &str) -> String {
    let path = format!("{}/src/clients/redis/scripts/{name}.lua", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn digest(code: &str) -> String {
    redis::Script::new(code).get_hash().to_owned()
}

fn text(parts: &[&str]) -> String {
    parts.iter().map(|name| part(name)).collect()
}

/// A guard that is taken away: in this part, these words become those.
struct Breach {
    seed: u64,
    part: &'static str,
    guard: &'static str,
    gone: &'static str,
}

fn cases() -> u32 {
    setting("SIMULATION_CASES").unwrap_or(CASES)
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

async fn world(redis: &RedisConfig, raw: &MultiplexedConnection) -> World {
    let config = Config::default();
    let prefix = format!("{}:", unique("s"));
    let streams: Vec<String> = (0..STREAMS).map(|at| format!("{prefix}work{at}")).collect();
    let stream = Arc::from(streams[0].as_str());
    let block = std::time::Duration::from_millis(1);
    World {
        redis: redis.clone(),
        work: WorkConfig { streams, group: String::from(GROUP), block, ..config.work },
        state: StateConfig { prefix: prefix.clone(), ..config.state },
        keys: Keys::new(&prefix),
        stream,
        raw: raw.clone(),
    }
}

async fn play(operations: &[Operation], access: &Access, redis: &RedisConfig, raw: &MultiplexedConnection) -> Check {
    let mut play = Play::begin(world(redis, raw).await, access).await;
    for (at, operation) in operations.iter().enumerate() {
        play.step(operation).await.map_err(|error| format!("step {at}, {operation:?}:\n{error}"))?;
    }
    play.finish().await.map_err(|error| format!("in the end:\n{error}"))
}

/// Plays histories; gives the first that fails, as short as it can be made within `shrink` tries.
fn simulate(breach: Option<&Breach>, seed: u64, shrink: u32) -> Result<(), TestError<Vec<Operation>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = shared();
    let (access, redis, raw) = runtime.block_on(async {
        let raw = server.connect().await;
        let mut swaps = Swaps::new();
        if let Some(Breach { part, guard, gone, .. }) = breach {
            let whole = self::part(part);
            assert_eq!(whole.matches(guard).count(), 1, "{part} has this guard once: {guard}");
            for parts in SCRIPTS.iter().filter(|parts| parts.contains(part)) {
                let code = text(parts);
                let open = code.replace(&whole, &whole.replace(guard, gone));
                let load = redis::cmd("SCRIPT").arg("LOAD").arg(&open).query_async(&mut raw.clone()).await;
                swaps.insert(digest(&code), load.expect("it is still a script"));
            }
        }
        let mut redis = server.config();
        let wire = Wire::to(server.port(), swaps.clone()).await;
        let slow = Link::new(&RedisConfig { url: wire.url(), ..redis.clone() }).expect("an address");
        let mut plain = None;
        // Without a breach nothing has to be looked into, and the way is shorter.
        if breach.is_some() {
            let wire = Wire::to(server.port(), swaps).await;
            redis.url = wire.url();
            plain = Some(wire);
        }
        let link = Link::new(&redis).expect("an address");
        let second_steps = SECOND_STEPS.iter().map(|parts| digest(&text(parts))).collect();
        (Access { link, slow, wire, second_steps, _plain: plain }, redis, raw)
    });
    let limits = Limits { cases: cases(), failure_persistence: None, max_shrink_iters: shrink, ..Limits::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(limits, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    runner.run(&history(LENGTH), |operations| {
        runtime.block_on(play(&operations, &access, &redis, &raw)).map_err(TestCaseError::fail)
    })
}

#[test]
fn whatever_happens_in_whatever_order_the_scripts_keep_what_is_promised() {
    let seed = setting("SIMULATION_SEED").unwrap_or_else(|| fastrand::u64(..));
    if let Err(error) = simulate(None, seed, 3000) {
        panic!("SIMULATION_SEED={seed} repeats this:\n{error}");
    }
}

/// A guard that is taken away; histories of this seed find it out soon.
const fn breach(seed: u64, part: &'static str, guard: &'static str, gone: &'static str) -> Breach {
    Breach { seed, part, guard, gone }
}

/// Each script without one of its guards does something that was promised not to happen.
fn all_are_found_out(breaches: &[Breach]) {
    for breach in breaches {
        match simulate(Some(breach), breach.seed, 0) {
            Err(TestError::Fail(..)) => {}
            other => panic!("nobody misses {:?} of {}.lua: {other:?}", breach.guard, breach.part),
        }
    }
}

#[test]
fn an_owner_who_is_not_asked_for_is_found_out() {
    all_are_found_out(&[
        breach(0, "owned", "pending and pending[2] == consumer and pending[4] == tonumber(deliveries)", "pending"),
        breach(6, "owned", " and pending[4] == tonumber(deliveries)", ""),
        breach(0, "owned", "pending[2] == consumer and ", ""),
        breach(
            0,
            "unclaimed",
            "if redis.pcall('XPENDING', stream, group, entry, entry, 1)[1] then return false end",
            "",
        ),
        breach(0, "unclaimed", "return not entries.err and #entries > 0", "return false"),
        breach(0, "hold", "held[#held + 1] = 'JUSTID'", ""),
        breach(0, "hold", "held[#held + 1] = ARGV[4]", "held[#held + 1] = '0'"),
    ]);
}

#[test]
fn a_journal_that_is_kept_wrongly_is_found_out() {
    all_are_found_out(&[
        breach(0, "journal", "then return 'lost' end\nlocal kind", "then return 'ok' end\nlocal kind"),
        breach(2, "journal", " and added > 0", ""),
    ]);
}

#[test]
fn a_run_that_two_may_have_is_found_out() {
    all_are_found_out(&[
        breach(0, "run", "if kind == 'd' then return true end", "if kind == 'd' then return false end"),
        breach(0, "run", "if kind ~= 'r' or not stream then return true end", "if kind ~= 'r' then return false end"),
        breach(0, "run", "return not found.err and #found > 0", "return false"),
        breach(0, "run", "i = i == 1 and first or i + 1", "return false"),
        breach(0, "run", "if work == work_id then return false end", ""),
        breach(0, "open", "if record or ARGV[4] ~= '1' then", "if ARGV[4] ~= '1' then"),
        breach(0, "settle", "return run[1] == ARGV[6] and 'again' or 'lost'", "return 'lost'"),
        breach(0, "settle", "if taken(run[1], ARGV[7], 10) then", "if false then"),
        breach(0, "settle", "redis.call('DEL', KEYS[4])", "0"),
        breach(0, "settle", "record_run(KEYS[3], ARGV[8], ARGV[5], ARGV[6], seq)", ""),
    ]);
}

#[test]
fn a_takeover_of_what_has_changed_hands_is_found_out() {
    all_are_found_out(&[
        breach(0, "take", "pending[2] == ARGV[i + 1] and ", ""),
        breach(0, "take", " and pending[4] == tonumber(ARGV[i + 2])", ""),
        breach(2, "take", " and pending[3] >= tonumber(ARGV[3])", ""),
        breach(0, "take", "if ARGV[4] == '1' then", "if true then"),
        breach(0, "reap", "facts.pending == 0 and ", ""),
    ]);
}

#[test]
fn parked_work_that_comes_back_wrongly_is_found_out() {
    all_are_found_out(&[
        breach(0, "aside", "return record == ARGV[6] and 'again' or 'lost' end", "return 'lost' end"),
        breach(0, "aside", "redis.call('HSET', KEYS[2], ARGV[5], ARGV[6])", ""),
        breach(0, "aside", "redis.call('PERSIST', KEYS[6])", ""),
        breach(7, "return", "if due and tonumber(due) <= now and", "if"),
        breach(0, "return", "if due and tonumber(due) <= now and redis.call('ZREM', KEYS[2], first) == 1 then", "do"),
        breach(0, "return", "string.sub(facts[1], 1, #parked) == parked", "false"),
    ]);
}

#[test]
fn a_wait_for_somebody_that_goes_wrong_is_found_out() {
    all_are_found_out(&[
        breach(0, "wait", "redis.call('HSETNX', KEYS[7], 'hdr', ARGV[18])", ""),
        breach(0, "wait", "redis.call('HSET', KEYS[6], ARGV[14], ARGV[15])", ""),
        breach(0, "decide", "redis.call('HSET', KEYS[3], ARGV[8], ARGV[9])", ""),
        breach(0, "open", "redis.call('HSET', KEYS[2], ARGV[10], ARGV[13])", ""),
    ]);
}

#[test]
fn a_dead_letter_that_is_retried_wrongly_is_found_out() {
    all_are_found_out(&[
        breach(0, "redrive", "if not letter then return 'gone' end", "letter = letter or {'', {'data', 'x'}}"),
        breach(1, "redrive", "free = not record or (kind == 'd' and work == ARGV[2])", "free = true"),
        breach(1, "redrive", "kind == 'd' and work == ARGV[2]", "kind == 'd'"),
        breach(0, "redrive", "redis.call('XDEL', KEYS[2], ARGV[1])", ""),
        breach(0, "redrive", "if KEYS[3] then redis.call('HDEL', KEYS[3], ARGV[4]) end", ""),
    ]);
}
