//! A worker that dies, panics or stands still at each single step of an item's way.

use std::time::{Duration, Instant};

use da_node_executor::failpoint::Point;
use futures_util::future::join_all;

use super::arena::Arena;
use super::checker::{End, Rules, Verdict, judge};
use super::fleet::LEASE_MS;
use super::harness::eventually;
use super::items::{Kind, Work, item};

/// Lease, the gate of the one that takes over, which has just started, and some time for the work itself.
const TAKEOVER: Duration = Duration::from_millis(2 * LEASE_MS + 3000);

/// Every step is on record when its place is reached, and no call is under way there.
const RULES: Rules = Rules { unsafe_effects_may_repeat: false, completions_may_repeat: false };

/// One agent node, which comes by every step.
fn work(arena: &Arena, end: End) -> Work {
    let (entry, mut identity) = item(Kind::Agent, "g".into(), "n".into(), "run".into(), &arena.world.host());
    identity.end = end;
    if end != End::Completed {
        identity.bears = String::new();
    }
    let mut work = Work::default();
    work.entries.push(entry.to_string().into_bytes());
    work.identities.push(identity);
    work
}

async fn verdict(arena: &mut Arena, work: &Work) -> Verdict {
    arena.drain().await;
    let evidence = arena.evidence(work).await;
    judge(&evidence, RULES)
}

fn problems(point: Point, verdict: &Verdict, accidents: &[String]) -> Vec<String> {
    let all = verdict.problems.iter().chain(accidents);
    all.map(|problem| format!("{}: {problem}", point.name())).collect()
}

async fn killed_at(point: Point) -> Vec<String> {
    let armed = format!("{}=1*return(kill)", point.name());
    let mut arena = Arena::build(1, &[], &[("FAILPOINTS", &armed)]).await;
    let work = work(&arena, End::Completed);
    while arena.feed(&work.entries).await == 0 {}
    eventually("the worker dies at its step", async || arena.fleet.dead(0).then_some(())).await;
    arena.fleet.disarm();
    let since = Instant::now();
    arena.bury(0).await;
    let verdict = verdict(&mut arena, &work).await;
    let mut found = problems(point, &verdict, &arena.watch.accidents);
    if since.elapsed() > TAKEOVER {
        found.push(format!("{}: it took {:?} until another worker had ended the item", point.name(), since.elapsed()));
    }
    let done = point == Point::SettleAnswered;
    if done && verdict.figures.re_executions > 0 {
        found.push(format!("{}: what was settled was executed again", point.name()));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_at_any_step_costs_nothing_but_time() {
    let found = join_all(Point::ALL.map(killed_at)).await.concat();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

async fn panicked_at(point: Point) -> Vec<String> {
    let armed = format!("{}=1*panic", point.name());
    let mut arena = Arena::build(1, &[], &[("FAILPOINTS", &armed)]).await;
    // A panic inside of the node is its outcome; outside of it the item is picked up again.
    let end = match point {
        Point::AfterStateLoad | Point::AfterLlmRecord | Point::AfterToolStart | Point::AfterToolEnd => {
            End::Failed { category: "internal", letter: false }
        }
        Point::AfterRead | Point::BeforeSettle | Point::SettleSent | Point::SettleAnswered => End::Completed,
    };
    let work = work(&arena, end);
    while arena.feed(&work.entries).await == 0 {}
    // The panic is the one fault, and it meets the one item.
    arena.watch.in_flight_at_faults = 1;
    let verdict = verdict(&mut arena, &work).await;
    problems(point, &verdict, &arena.watch.accidents)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_at_any_step_ends_in_one_event_and_the_process_lives() {
    let found = join_all(Point::ALL.map(panicked_at)).await.concat();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

async fn stalled_at(point: Point) -> Vec<String> {
    let armed = format!("{}=1*sleep({})", point.name(), LEASE_MS * 2);
    // Either of them may get the item and stand still with it; the other one looks for expired leases all the while.
    let mut arena = Arena::build(2, &[], &[("FAILPOINTS", &armed)]).await;
    let work = work(&arena, End::Completed);
    while arena.feed(&work.entries).await == 0 {}
    let verdict = verdict(&mut arena, &work).await;
    problems(point, &verdict, &arena.watch.accidents)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_stands_still_for_two_leases_loses_none() {
    let found = join_all(Point::ALL.map(stalled_at)).await.concat();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
