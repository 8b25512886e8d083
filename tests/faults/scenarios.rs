//! The runs: a short storm, the long one, the server that loses everything, and the arm without guards.

use std::time::Instant;

use fastrand::Rng;

use super::arena::Arena;
use super::checker::{Rules, Verdict, judge};
use super::items::Work;
use super::report::table;
use super::storm::{Storm, rage};

/// What the worker is held to. A completion that nobody has put on record yet is paid for again when its worker dies.
const RULES: Rules = Rules { completions_may_repeat: true };
/// Every write is on disk before it is answered, so that what is lost was lost by a worker.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

fn number<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")),
        Err(_) => default,
    }
}

fn seed() -> u64 {
    number("FAULT_SEED", fastrand::u64(1..1_000_000))
}

/// Runs a storm; gives the verdict and the table.
async fn weather(storm: Storm, env: &[(&str, &str)]) -> (Verdict, String) {
    let started = Instant::now();
    let mut arena = Arena::build(storm.workers, DURABLE, env).await;
    let work = Work::draw(&mut Rng::with_seed(storm.seed), "", storm.items, &arena.world.host());
    arena.prepare(&work).await;
    rage(&mut arena, &work, storm).await;
    arena.drain().await;
    let evidence = arena.evidence(&work).await;
    let mut verdict = judge(&evidence, RULES);
    verdict.problems.extend(arena.watch.accidents.iter().cloned());
    let table = table(storm, &arena, &evidence, &verdict, started.elapsed());
    if !verdict.problems.is_empty() {
        let stalled = arena.watch.stalled.as_deref().unwrap_or("nobody");
        eprintln!("the work of {stalled} was taken over last of all after its death");
        eprintln!("the logs of the workers are in {}", arena.fleet.keep_logs().display());
    }
    (verdict, table)
}

fn must_hold(verdict: &Verdict, Storm { seed, items, kills, redis_faults, long_pauses, workers }: Storm) {
    assert!(
        verdict.problems.is_empty(),
        "seed {seed}: `FAULT_SEED={seed} cargo test --features failpoints --test faults short_storm` repeats a short \
         storm, `make soak SEED={seed} ITEMS={items} KILLS={kills} REDIS_FAULTS={redis_faults} \
         LONG_PAUSES={long_pauses} WORKERS={workers}` a long one\n{}",
        verdict.problems.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_happens_twice_in_a_short_storm() {
    let storm = Storm { seed: seed(), items: 1200, kills: 30, redis_faults: 3, long_pauses: 0, workers: 6 };
    // Poison takes a worker and a lease each time, and few of the others can be met so often here.
    let (verdict, table) = weather(storm, &[("EXECUTOR__WORK__MAX_CRASHES", "5")]).await;
    println!("{table}");
    must_hold(&verdict, storm);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes long; `make soak` runs it"]
async fn nothing_is_lost_and_nothing_happens_twice_in_a_long_storm() {
    let storm = Storm {
        seed: seed(),
        items: number("ITEMS", 100_000),
        kills: number("KILLS", 2000),
        redis_faults: number("REDIS_FAULTS", 100),
        long_pauses: number("LONG_PAUSES", 2),
        workers: number("WORKERS", 8),
    };
    let (verdict, table) = weather(storm, &[]).await;
    println!("{table}");
    must_hold(&verdict, storm);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_guards_the_worker_is_found_out() {
    let storm = Storm { seed: seed(), items: 300, kills: 8, redis_faults: 1, long_pauses: 0, workers: 4 };
    let (verdict, _) = weather(storm, &[("FAILPOINTS", "unguarded=return")]).await;
    assert!(
        verdict.figures.duplicate_events > 0,
        "seed {}: the suite does not notice that ownership and identity go unchecked: {:?}",
        storm.seed,
        verdict
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_comes_after_a_flush_is_done() {
    let seed = seed();
    let mut arena = Arena::build(3, &[], &[]).await;
    let host = arena.world.host();
    let gone = Work::draw(&mut Rng::with_seed(seed), "gone-", 150, &host);
    let later = Work::draw(&mut Rng::with_seed(seed + 1), "later-", 150, &host);
    arena.prepare(&gone).await;
    let mut fed = 0;
    while fed < gone.entries.len() {
        fed += arena.feed(&gone.entries[fed..]).await;
        arena.look().await;
    }
    arena.flush().await;
    arena.prepare(&later).await;
    let mut fed = 0;
    while fed < later.entries.len() {
        fed += arena.feed(&later.entries[fed..]).await;
        arena.look().await;
    }
    arena.drain().await;
    let mut evidence = arena.evidence(&later).await;
    // Runs that were in somebody's hands have lost their entry; what they still write is nobody's.
    let ours = |name: &str| !name.starts_with("gone-");
    evidence.endings.retain(|ending| ours(&ending.run));
    evidence.effects.retain(|name, _| ours(name));
    evidence.letters.retain(|letter| !letter.data.contains("gone-"));
    let verdict = judge(&evidence, RULES);
    assert_eq!(verdict.problems, [""; 0], "seed {seed}");
    assert_eq!(arena.watch.accidents, [""; 0], "seed {seed}");
    assert_eq!(arena.fleet.started(), arena.fleet.len() + arena.watch.kills, "seed {seed}: only poison ends workers");
}
