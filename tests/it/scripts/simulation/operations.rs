//! What can happen, in random order: requests of three workers, answers that are lost, time that passes.

use proptest::prelude::*;

/// Workers that are there at any time.
pub const WORKERS: usize = 3;
/// Identities that are submitted.
pub const RUNS: usize = 4;
/// Work streams.
pub const STREAMS: usize = 2;

/// How a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Completed,
    Failed,
    /// With a dead letter beside it.
    Poison,
}

/// One thing that happens. `pick` chooses among what the worker holds.
#[derive(Debug, Clone)]
pub enum Operation {
    /// A producer adds an item; the run after the last is one that nobody understands.
    Submit {
        run: usize,
        stream: usize,
    },
    Read {
        worker: usize,
        permits: usize,
        lost: bool,
    },
    Open {
        worker: usize,
        pick: usize,
    },
    Append {
        worker: usize,
        pick: usize,
        field: usize,
        restart: bool,
        progress: bool,
        lost: bool,
    },
    /// A request about something that was handed back meanwhile arrives at last.
    Straggle {
        pick: usize,
        field: usize,
    },
    Settle {
        worker: usize,
        pick: usize,
        ending: Ending,
        large: bool,
        lost: bool,
        between: Vec<Operation>,
    },
    Park {
        worker: usize,
        pick: usize,
        due: bool,
        lost: bool,
    },
    /// A mover looks for what is due, and brings it back when `between` has happened.
    Move {
        stream: usize,
        lost: bool,
        between: Vec<Operation>,
    },
    HandBack {
        worker: usize,
        pick: usize,
    },
    Renew {
        worker: usize,
        lost: bool,
    },
    /// A worker looks for what it may take over, and takes it when `between` has happened.
    Claim {
        worker: usize,
        stream: usize,
        limit: usize,
        suspects: Option<usize>,
        lost: bool,
        between: Vec<Operation>,
    },
    Stranded {
        worker: usize,
        stream: usize,
    },
    /// Somebody retries a dead letter, seen now or long ago.
    Redrive {
        pick: usize,
        stale: bool,
    },
    /// Somebody orders a node or, after the last, the graph to stop.
    Order {
        run: usize,
    },
    Recall {
        run: usize,
    },
    Clean {
        worker: usize,
    },
    /// The process is gone with everything it knew; another one starts.
    Die {
        worker: usize,
    },
    /// The clock jumps ahead: every lease runs out, and everything parked is due.
    Late,
    /// The clock jumps back: no lease has run out, and nothing parked is due.
    Early,
    /// One owner is silent for longer than a lease.
    Stall {
        pick: usize,
    },
    /// Redis loses the group, and with it who has what.
    Forget,
}

fn pick() -> impl Strategy<Value = usize> {
    0..6_usize
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.2)
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![3 => Just(Ending::Completed), 1 => Just(Ending::Failed), 2 => Just(Ending::Poison)]
}

/// What a rival does while somebody brings work back: the same, and then it lets the work wait again.
fn meanwhile_moving(stream: usize) -> impl Strategy<Value = Vec<Operation>> {
    use Operation::*;
    (1..5_usize, 0..WORKERS, any::<bool>()).prop_map(move |(steps, worker, due)| {
        let again = [
            Move { stream, lost: false, between: Vec::new() },
            Read { worker, permits: 1, lost: false },
            Open { worker, pick: 0 },
            Park { worker, pick: 0, due, lost: false },
        ];
        again.into_iter().take(steps).collect()
    })
}

/// What a rival does while somebody takes work over: the same, and then it hands the work back or goes silent.
fn meanwhile_claiming(stream: usize) -> impl Strategy<Value = Vec<Operation>> {
    use Operation::*;
    (1..4_usize, 0..WORKERS, any::<bool>()).prop_map(move |(steps, worker, silent)| {
        let (limit, suspects, between) = (3, Some(3), Vec::new());
        let again = [
            Claim { worker, stream, limit, suspects, lost: false, between },
            if silent { Late } else { HandBack { worker, pick: 0 } },
            if silent { Die { worker } } else { HandBack { worker, pick: 0 } },
        ];
        again.into_iter().take(steps).collect()
    })
}

/// `slow` says whether others may pass between two steps of one operation.
fn operation(slow: bool) -> BoxedStrategy<Operation> {
    use Operation::*;
    let worker = || 0..WORKERS;
    let stream = || 0..STREAMS;
    let nothing = || Just(Vec::new()).boxed();
    let others = move || if slow { prop::collection::vec(operation(false), 0..4).boxed() } else { nothing() };
    let movers = move |stream| match slow {
        true => prop_oneof![nothing(), others(), meanwhile_moving(stream)].boxed(),
        false => nothing(),
    };
    let claimers = move |stream| match slow {
        true => prop_oneof![nothing(), others(), meanwhile_claiming(stream)].boxed(),
        false => nothing(),
    };
    let claim = (worker(), stream(), 1..4_usize, prop::option::weighted(0.7, 0..3_usize), rarely()).prop_flat_map(
        move |(worker, stream, limit, suspects, lost)| {
            claimers(stream).prop_map(move |between| Claim { worker, stream, limit, suspects, lost, between })
        },
    );
    prop_oneof![
        7 => (0..=RUNS, stream()).prop_map(|(run, stream)| Submit { run, stream }),
        10 => (worker(), 1..=2_usize, rarely()).prop_map(|(worker, permits, lost)| Read { worker, permits, lost }),
        9 => (worker(), pick()).prop_map(|(worker, pick)| Open { worker, pick }),
        9 => (worker(), pick(), 0..2_usize, rarely(), any::<bool>(), rarely()).prop_map(
            |(worker, pick, field, restart, progress, lost)| Append { worker, pick, field, restart, progress, lost }
        ),
        4 => (pick(), 0..2_usize).prop_map(|(pick, field)| Straggle { pick, field }),
        8 => (worker(), pick(), ending(), rarely(), any::<bool>(), others()).prop_map(
            |(worker, pick, ending, large, lost, between)| Settle { worker, pick, ending, large, lost, between }
        ),
        8 => (worker(), pick(), prop::bool::weighted(0.7), any::<bool>())
            .prop_map(|(worker, pick, due, lost)| Park { worker, pick, due, lost }),
        7 => (stream(), rarely()).prop_flat_map(move |(stream, lost)| {
            movers(stream).prop_map(move |between| Move { stream, lost, between })
        }),
        5 => (worker(), pick()).prop_map(|(worker, pick)| HandBack { worker, pick }),
        3 => (worker(), rarely()).prop_map(|(worker, lost)| Renew { worker, lost }),
        10 => claim,
        2 => (worker(), stream()).prop_map(|(worker, stream)| Stranded { worker, stream }),
        5 => (pick(), any::<bool>()).prop_map(|(pick, stale)| Redrive { pick, stale }),
        1 => (0..=RUNS).prop_map(|run| Order { run }),
        2 => (0..=RUNS).prop_map(|run| Recall { run }),
        2 => worker().prop_map(|worker| Clean { worker }),
        2 => worker().prop_map(|worker| Die { worker }),
        3 => Just(Late),
        1 => Just(Early),
        5 => pick().prop_map(|pick| Stall { pick }),
        1 => Just(Forget),
    ]
    .boxed()
}

/// A history of up to `length` operations.
pub fn history(length: usize) -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(operation(true), 1..length)
}
