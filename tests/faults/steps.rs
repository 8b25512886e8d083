//! A worker that dies, panics or stands still at each single step of an item's way.

use std::time::Instant;

use da_node_executor::failpoint::{MARK, Point};
use futures_util::future::join_all;

use super::arena::Arena;
use super::checker::{Figures, Rules, Verdict, judge};
use super::evidence::{End, Evidence, Identity};
use super::fleet::LEASE_MS;
use super::harness::eventually;
use super::items::{Entry, Kind, Work, item};
use super::takeovers::TAKEOVER;

/// Every step is on record when its place is reached, and nothing is paid for and not on record there.
const RULES: Rules = Rules { completions_may_repeat: false, memory_must_be_judged: false, takeover: TAKEOVER };

/// One node.
fn work(arena: &Arena, kind: Kind, end: Option<End>) -> Work {
    let (entry, mut identity) = item(kind, "g".into(), "n".into(), "run".into(), &arena.world.host());
    if let Some(end) = end {
        identity.end = end;
        identity.bears = String::new();
    }
    let mut work = Work::default();
    work.entries.push(Entry { data: entry.to_string().into_bytes(), stop: None });
    work.identities.push(identity);
    work
}

async fn judged(arena: &mut Arena, work: &Work) -> (Evidence, Verdict) {
    arena.drain().await;
    let evidence = arena.evidence(work).await;
    let verdict = judge(&evidence, RULES);
    (evidence, verdict)
}

fn problems(point: Point, verdict: &Verdict, accidents: &[String]) -> Vec<String> {
    let all = verdict.problems.iter().chain(accidents);
    all.map(|problem| format!("{}: {problem}", point.name())).collect()
}

/// What is wrong unless a worker did at a place what it was told, and each of them at most once.
fn not_reached(arena: &Arena, point: Point, action: &str) -> Option<String> {
    let mark = format!("{} {action}", point.name());
    let reached: Vec<Vec<String>> = (0..arena.fleet.len()).map(|slot| arena.fleet.reached(slot)).collect();
    let right = reached.iter().all(|marks| marks.is_empty() || *marks == [mark.as_str()])
        && reached.iter().any(|marks| !marks.is_empty());
    (!right).then(|| format!("no worker, or not just once, did `{mark}`: {reached:?}"))
}

/// A worker that is killed when a node comes to a place for the nth time.
#[derive(Debug, Clone, Copy)]
struct Death {
    kind: Kind,
    point: Point,
    nth: u32,
}

impl Death {
    /// Every place that an agent comes to, each time that it does.
    fn of_agents() -> Vec<Self> {
        let times = |point| match point {
            Point::AfterLlmRecord | Point::AfterToolStart | Point::AfterToolEnd => 3,
            Point::AfterRead
            | Point::AfterStateLoad
            | Point::BeforeSettle
            | Point::SettleSent
            | Point::SettleAnswered => 1,
        };
        let each = |point| (1..=times(point)).map(move |nth| Self { kind: Kind::Agent, point, nth });
        Point::ALL.into_iter().flat_map(each).collect()
    }

    /// The worker dies, another one goes on; gives what is wrong then.
    async fn happens(self) -> Vec<String> {
        let Self { kind, point, nth } = self;
        let armed = match nth {
            1 => format!("{}=1*return(kill)", point.name()),
            _ => format!("{}={}*off->1*return(kill)", point.name(), nth - 1),
        };
        let mut arena = Arena::build(1, &[], &[("FAILPOINTS", &armed)]).await;
        let work = work(&arena, kind, None);
        while arena.feed(&work.entries).await == 0 {}
        eventually("the worker dies at its step", async || arena.fleet.dead(0).then_some(())).await;
        arena.fleet.disarm();
        let reached = not_reached(&arena, point, "kill");
        let since = Instant::now();
        arena.bury(0).await;
        let (evidence, verdict) = judged(&mut arena, &work).await;
        let mut found = problems(point, &verdict, &arena.watch.accidents);
        let took = since.elapsed();
        if took > TAKEOVER {
            found.push(format!("{self:?}: it took {took:?} until another worker had ended the item"));
        }
        if point == Point::SettleAnswered && verdict.figures.re_executions > 0 {
            found.push(format!("{self:?}: what was settled was executed again"));
        }
        found.extend(reached);
        found.extend(self.doubts(&work.identities[0], &evidence, &verdict.figures));
        found
    }

    /// What is wrong with the calls of which nobody knows whether they happened.
    fn doubts(self, identity: &Identity, evidence: &Evidence, figures: &Figures) -> Option<String> {
        let doubts = figures.unknown_told + figures.unknown_ends;
        let calls: u32 = evidence.effects.values().map(|effect| effect.times).sum();
        let calls = calls as usize;
        let all = identity.effects.len();
        let right = match (self.point, self.nth) {
            // The record is there and its call is not made: nobody can know, unless the tool may be asked again.
            (Point::AfterToolStart, 1) => (calls, doubts) == (all - 1, 1),
            (Point::AfterToolStart, 2) => calls + doubts == all && doubts <= 1,
            // The other call of the turn may be under way.
            (Point::AfterToolStart, _) => (all..=all + 1).contains(&(calls + doubts)) && doubts <= 1,
            (Point::AfterToolEnd, 2) => (all..=all + 1).contains(&calls) && doubts <= 1,
            _ => (calls, doubts) == (all, 0),
        };
        (!right)
            .then(|| format!("{self:?}: {calls} calls for {all} effects, {doubts} in doubt: {:?}", evidence.effects))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_at_any_step_costs_nothing_but_time() {
    let found = join_all(Death::of_agents().into_iter().map(Death::happens)).await.concat();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_node_whose_call_was_begun_ends_in_doubt_and_is_not_called_again() {
    let begun = |kind| Death { kind, point: Point::AfterToolStart, nth: 1 };
    let ended = |kind| Death { kind, point: Point::AfterToolEnd, nth: 1 };
    let deaths = [begun(Kind::Charge), begun(Kind::Request), ended(Kind::Charge), ended(Kind::Request)];
    let found = join_all(deaths.map(Death::happens)).await.concat();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

async fn panicked_at(point: Point) -> Vec<String> {
    let armed = format!("{}=1*return(panic)", point.name());
    let mut arena = Arena::build(1, &[], &[("FAILPOINTS", &armed)]).await;
    // A panic inside of the node is its outcome; outside of it the item is picked up again.
    let end = match point {
        Point::AfterStateLoad | Point::AfterLlmRecord | Point::AfterToolStart | Point::AfterToolEnd => {
            Some(End::Failed { category: "internal", letter: false })
        }
        Point::AfterRead | Point::BeforeSettle | Point::SettleSent | Point::SettleAnswered => None,
    };
    let work = work(&arena, Kind::Agent, end);
    while arena.feed(&work.entries).await == 0 {}
    // The panic is the one fault, and it meets the one item.
    arena.watch.charges.at_faults = 1;
    let (_, verdict) = judged(&mut arena, &work).await;
    let mut found = problems(point, &verdict, &arena.watch.accidents);
    found.extend(not_reached(&arena, point, "panic"));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_at_any_step_ends_in_one_event_and_the_process_lives() {
    let found = join_all(Point::ALL.map(panicked_at)).await.concat();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

async fn stalled_at(point: Point) -> Vec<String> {
    let stall = format!("stall {}", LEASE_MS * 2);
    let armed = format!("{}=1*return({stall})", point.name());
    // Either of them may get the item and stand still with it; the other one looks for expired leases all the while.
    let mut arena = Arena::build(2, &[], &[("FAILPOINTS", &armed)]).await;
    let work = work(&arena, Kind::Agent, None);
    while arena.feed(&work.entries).await == 0 {}
    let (_, verdict) = judged(&mut arena, &work).await;
    let mut found = problems(point, &verdict, &arena.watch.accidents);
    found.extend(not_reached(&arena, point, &stall));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_stands_still_for_two_leases_loses_none() {
    let found = join_all(Point::ALL.map(stalled_at)).await.concat();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_program_of_this_suite_has_the_mark_that_the_one_of_a_release_must_not_have() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_executor-worker")).expect("the program is built");
    assert!(memchr::memmem::find(&program, MARK.as_bytes()).is_some());
}
