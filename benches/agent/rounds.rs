//! Rounds of everybody in turn, so that whatever else the machine does meets all of them.

use std::ops::AddAssign;
use std::path::Path;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::ours::Ours;
use crate::peer::Peer;
use crate::report::{Report, median};

/// Frameworks beside which the worker is measured: their names, and those by which `peer.py` knows them.
const PEERS: [(&str, &str); 2] = [("LangGraph", "langgraph"), ("pydantic-ai", "pydantic-ai")];
/// How much less CPU time than each of them worker and Redis together shall need.
const TARGET: f64 = 20.0;
/// So often the worker has all conversations before each turn of a peer. The system tells the CPU time of other
/// processes in hundredths of a second, of which the worker would need but a few otherwise.
const REPEATS: usize = 5;

/// What so many turns took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Turns of the model.
    pub turns: usize,
    /// CPU time of the process, in user and kernel mode.
    pub cpu: Duration,
    /// CPU time of its Redis, if it needs one.
    pub redis_cpu: Duration,
    /// From the first prompt to the last answer.
    pub wall: Duration,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.turns += other.turns;
        self.cpu += other.cpu;
        self.redis_cpu += other.redis_cpu;
        self.wall += other.wall;
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub conversations: usize,
    pub turns: usize,
    pub at_once: usize,
    pub rounds: usize,
    pub peers: bool,
}

/// What one side needed in each round. Every figure is in microseconds for one turn, and the median of the rounds.
#[derive(Default)]
struct Costs(Vec<Cost>);

impl Costs {
    fn median(&self, of: impl Fn(&Cost) -> Duration) -> f64 {
        let per_turn = |cost: &Cost| of(cost).as_secs_f64() * 1e6 / cost.turns as f64;
        median(&self.0.iter().map(per_turn).collect::<Vec<_>>())
    }

    fn cpu(&self) -> f64 {
        self.median(|cost| cost.cpu)
    }

    fn redis_cpu(&self) -> f64 {
        self.median(|cost| cost.redis_cpu)
    }

    fn both_cpu(&self) -> f64 {
        self.median(|cost| cost.cpu + cost.redis_cpu)
    }

    fn wall(&self) -> f64 {
        self.median(|cost| cost.wall)
    }
}

/// Many conversations at once: what counts is the CPU time.
pub async fn busy(report: &mut Report, program: &Path, size: Size) {
    let (ours, peers) = measure(program, size).await;
    let title = format!("{} at once", size.at_once);
    report.note(
        &format!("{title}: CPU of a turn in µs, worker + Redis"),
        format!("{:.0} + {:.0}", ours.cpu(), ours.redis_cpu()),
    );
    for (name, peer) in &peers {
        report.note(&format!("{title}: CPU of a turn in µs, {name}"), format!("{:.0}", peer.cpu()));
    }
    for (name, peer) in &peers {
        report.at_least(&format!("{title}: CPU, {name} / (worker + Redis)"), peer.cpu() / ours.both_cpu(), TARGET);
        report.note(&format!("{title}: CPU, {name} / worker alone"), format!("{:.2}", peer.cpu() / ours.cpu()));
    }
    wall(report, &title, &ours, &peers);
}

/// One conversation after another: how long a turn takes from end to end.
pub async fn one_by_one(report: &mut Report, program: &Path, size: Size) {
    let (ours, peers) = measure(program, size).await;
    wall(report, "one by one", &ours, &peers);
}

fn wall(report: &mut Report, title: &str, ours: &Costs, peers: &[(&str, Costs)]) {
    report.note(&format!("{title}: time of a turn in µs, worker"), format!("{:.0}", ours.wall()));
    for (name, peer) in peers {
        report.note(&format!("{title}: time of a turn in µs, {name}"), format!("{:.0}", peer.wall()));
    }
    for (name, peer) in peers {
        report.note(&format!("{title}: time, {name} / worker"), format!("{:.2}", peer.wall() / ours.wall()));
    }
}

async fn measure(program: &Path, size: Size) -> (Costs, Vec<(&'static str, Costs)>) {
    let Size { conversations, turns, at_once, rounds, .. } = size;
    eprintln!(
        "{conversations} conversations of {turns} turns, {at_once} at once, {rounds} rounds after one to warm up"
    );
    let endpoint = Endpoint::start(turns);
    let mut worker = Ours::start(program, &endpoint.base_url(), at_once).await;
    let names = if size.peers { &PEERS[..] } else { &[] };
    let mut peers: Vec<Peer> = names.iter().map(|(_, script)| Peer::start(script, &endpoint.base_url())).collect();
    for peer in &peers {
        eprintln!("  beside {}", peer.versions);
    }

    let mut ours = Costs::default();
    let mut theirs: Vec<(&str, Costs)> = names.iter().map(|(name, _)| (*name, Costs::default())).collect();
    for round in 0..=rounds {
        let mut cost_of_worker = Cost::default();
        // Without peers there is one share all the same.
        for peer in 0..peers.len().max(1) {
            for _ in 0..REPEATS {
                cost_of_worker += counted(&endpoint, size, async { worker.round(conversations, turns).await }).await;
            }
            if let Some((name, costs)) = theirs.get_mut(peer) {
                let cost = counted(&endpoint, size, async { peers[peer].round(conversations, turns, at_once) }).await;
                tell(name, cost);
                if round > 0 {
                    costs.0.push(cost);
                }
            }
        }
        tell("worker", cost_of_worker);
        if round > 0 {
            ours.0.push(cost_of_worker);
        }
    }
    worker.stop();
    (ours, theirs)
}

/// A run in which the endpoint gave every turn once; a retry would be a turn that costs twice.
async fn counted(endpoint: &Endpoint, size: Size, run: impl Future<Output = Cost>) -> Cost {
    let before = endpoint.answered();
    let cost = run.await;
    let given = endpoint.answered() - before;
    assert_eq!((given, cost.turns), (size.conversations * size.turns, given), "turns that the endpoint gave");
    cost
}

fn tell(name: &str, cost: Cost) {
    let [cpu, redis_cpu, wall] = [cost.cpu, cost.redis_cpu, cost.wall].map(|duration| duration.as_secs_f64());
    eprintln!("  {name:11} {:6} turns: CPU {cpu:6.2} s, Redis {redis_cpu:5.2} s, wall {wall:6.2} s", cost.turns);
}
