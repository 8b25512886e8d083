//! The runs: a short storm, the long one, the server that loses everything, and the arm without guards.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::arena::Arena;
use super::charges::Over;
use super::checker::{Rules, Verdict, judge};
use super::harness::eventually;
use super::items::{Entry, Kind, Work, item};
use super::network::Wire;
use super::outage::{How, Outage};
use super::report::table;
use super::storm::{Storm, lulls, rage};
use super::takeovers::TAKEOVER;

/// What the worker is held to. A completion that nobody has put on record yet is paid for again when its worker dies.
const RULES: Rules = Rules { completions_may_repeat: true, memory_must_be_judged: false, takeover: TAKEOVER };
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
async fn weather(storm: Storm, rules: Rules, env: &[(&str, &str)]) -> (Verdict, String) {
    // First of all, for a run may end in many ways.
    println!("seed {}", storm.seed);
    let started = Instant::now();
    let mut arena = Arena::build(storm.workers, DURABLE, env).await;
    let work = Work::draw(&mut Rng::with_seed(storm.seed), "", storm.items, &arena.world.host());
    arena.prepare(&work).await;
    rage(&mut arena, &work, storm).await;
    arena.drain().await;
    let evidence = arena.evidence(&work).await;
    let mut verdict = judge(&evidence, rules);
    verdict.problems.extend(arena.watch.accidents.iter().cloned());
    verdict.problems.extend(lulls(&arena, storm));
    let table = table(storm, &arena, &evidence, &verdict, started.elapsed());
    if !verdict.problems.is_empty() {
        let slowest = arena.watch.takeovers.slowest.as_deref().unwrap_or("nobody");
        eprintln!("the work of {slowest} was taken over last of all after its death");
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
    let (verdict, table) = weather(storm, RULES, &[("EXECUTOR__WORK__MAX_CRASHES", "5")]).await;
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
    let (verdict, table) = weather(storm, Rules { memory_must_be_judged: true, ..RULES }, &[]).await;
    println!("{table}");
    must_hold(&verdict, storm);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_guards_the_worker_is_found_out() {
    let storm = Storm { seed: seed(), items: 300, kills: 8, redis_faults: 1, long_pauses: 0, workers: 4 };
    let (verdict, _) = weather(storm, RULES, &[("FAILPOINTS", "unguarded=return")]).await;
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
    println!("seed {seed}");
    let mut arena = Arena::build(3, &[], &[]).await;
    let host = arena.world.host();
    let gone = Work::draw(&mut Rng::with_seed(seed), "gone-", 150, &host);
    let later = Work::draw(&mut Rng::with_seed(seed + 1), "later-", 150, &host);
    arena.prepare(&gone).await;
    feed(&mut arena, &gone.entries).await;
    arena.flush().await;
    arena.prepare(&later).await;
    feed(&mut arena, &later.entries).await;
    arena.drain().await;
    let mut evidence = arena.evidence(&later).await;
    // Runs that were in somebody's hands have lost their entry; what they still write is nobody's.
    let ours = |name: &str| !name.starts_with("gone-");
    evidence.endings.retain(|ending| ours(&ending.run));
    evidence.effects.retain(|name, _| ours(name));
    evidence.letters.retain(|letter| !letter.data.contains("gone-"));
    evidence.leftovers.others.retain(|other| !other.contains("gone-"));
    let verdict = judge(&evidence, RULES);
    assert_eq!(verdict.problems, [""; 0], "seed {seed}");
    assert_eq!(arena.watch.accidents, [""; 0], "seed {seed}");
    assert_eq!(arena.fleet.started(), arena.fleet.len() + arena.watch.kills, "seed {seed}: only poison ends workers");
}

async fn feed(arena: &mut Arena, entries: &[Entry]) {
    let mut fed = 0;
    while fed < entries.len() {
        fed += arena.feed(&entries[fed..]).await;
        arena.look().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_of_redis_and_of_the_wire_alone_takes_nothing_out_of_anybodys_hands() {
    /// So long that only a fault makes it run out, and not a machine that has much else to do.
    const LEASE: &str = "4s";
    /// As rarely as may be, so that others come to look for work before all leases are renewed: they have to wait.
    const RENEW: &str = "1300ms";
    /// Nodes that run all the while, two for each worker.
    const HELD: usize = 8;
    /// Longer than a lease.
    const AWAY: Duration = Duration::from_secs(5);
    let seed = seed();
    println!("seed {seed}");
    let leases = [("EXECUTOR__LEASE__DURATION", LEASE), ("EXECUTOR__LEASE__RENEW", RENEW)];
    let mut arena = Arena::build(4, DURABLE, &leases).await;
    let host = arena.world.host();
    let mut work = Work::draw(&mut Rng::with_seed(seed), "", 420, &host).without_poison();
    let outages = [How::Pause, How::Kill, How::Silence].map(|how| {
        let held = work.hold(&format!("{how:?}-"), HELD, AWAY + Duration::from_secs(1), &host);
        (Outage { how, away: AWAY }, held)
    });
    arena.prepare(&work).await;
    let mut parts = work.entries.chunks(work.entries.len().div_ceil(7));
    let mut part = || parts.next().expect("one for each trouble");
    feed(&mut arena, part()).await;
    arena.wire.cut();
    arena.wire.lose_settlements(3);
    feed(&mut arena, part()).await;
    eventually("the answers are lost", async || (arena.wire.lost() == 3).then_some(())).await;
    arena.wire.set(Wire::Slow(Duration::from_millis(100)));
    feed(&mut arena, part()).await;
    arena.wire.set(Wire::Frozen);
    tokio::time::sleep(Duration::from_millis(900)).await;
    arena.wire.heal();
    for (number, (outage, held)) in (1..).zip(outages) {
        // Some nodes run for longer than Redis is away, and the others are where they happen to be.
        feed(&mut arena, &held).await;
        let begun = async || {
            let effects = arena.world.effects();
            (effects.keys().filter(|name| name.contains('-')).count() == number * HELD).then_some(())
        };
        eventually("the long nodes have begun", begun).await;
        feed(&mut arena, part()).await;
        let back = outage.begins(&mut arena).await;
        while !back.is_finished() {
            arena.look().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        back.await.expect("the server comes back");
    }
    feed(&mut arena, part()).await;
    arena.drain().await;
    let mut evidence = arena.evidence(&work).await;
    // Whatever was counted meanwhile: nothing is to be excused.
    (evidence.in_flight_at_faults, evidence.in_flight_at_pauses) = (0, 0);
    // A request on a connection that was given up may be heeded when its node has ended: what it lays ready expires.
    evidence.leftovers.staged = 0;
    let verdict = judge(&evidence, Rules { completions_may_repeat: false, ..RULES });
    let problems = [verdict.problems, arena.watch.accidents.clone()].concat();
    if !problems.is_empty() {
        let warnings = arena.fleet.warnings();
        eprintln!("{}\nthe logs of the workers are in {}", warnings.join("\n"), arena.fleet.keep_logs().display());
    }
    assert_eq!(problems, [""; 0], "seed {seed}");
    assert_eq!(arena.fleet.started(), arena.fleet.len(), "nobody died");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_is_charged_with_the_items_that_it_meets_and_no_others() {
    const HELD: usize = 3;
    let mut arena = Arena::build(1, &[], &[]).await;
    let host = arena.world.host();
    let entry = |at: usize| {
        let (data, _) = item(Kind::Held, "g".into(), format!("n{at}"), format!("r{at}"), &host);
        Entry { data: data.to_string().into_bytes(), stop: None }
    };
    let entries: Vec<Entry> = (0..HELD).map(entry).collect();
    while arena.feed(&entries).await == 0 {}
    while arena.eyes.pending().await.is_none_or(|pending| pending.values().sum::<usize>() < HELD) {}
    let id = String::from(arena.fleet.id(0));
    arena.fleet.freeze(0);
    arena.struck(&id, Over::Recovered).await;
    arena.look().await;
    let charged = |arena: &Arena| (arena.watch.charges.at_faults, arena.watch.charges.at_pauses);
    assert_eq!(charged(&arena), (HELD, HELD), "each once, however often it is looked");
    arena.recovered(&id).await;
    arena.fleet.thaw(0);
    arena.look().await;
    assert_eq!(charged(&arena), (HELD, HELD), "what it has later is no matter of the fault");
    // The next one takes over what the one that leaves hands back; that is in nobody's hands at a fault.
    let (id, process) = arena.fleet.retire(0);
    arena.struck(&id, Over::Ended(process)).await;
    let gone = async || {
        arena.look().await;
        (!arena.fleet.is_leaving(process)).then_some(())
    };
    eventually("the worker has left", gone).await;
    arena.look().await;
    assert_eq!(charged(&arena), (2 * HELD, HELD));
    assert_eq!(arena.watch.accidents, [""; 0]);
}
