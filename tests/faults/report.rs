//! The table of a run.

use std::fmt::Write as _;
use std::time::Duration;

use super::arena::Arena;
use super::checker::Verdict;
use super::evidence::{Ending, Evidence};
use super::storm::Storm;

/// The figures, one a line, as docs/reliability.md shows them.
pub fn table(storm: Storm, arena: &Arena, evidence: &Evidence, verdict: &Verdict, took: Duration) -> String {
    let (figures, watch) = (&verdict.figures, &arena.watch);
    let count = |what: fn(&Ending) -> bool| evidence.endings.iter().filter(|ending| what(ending)).count();
    let effects: u32 = evidence.effects.values().map(|effect| effect.times).sum();
    let mebibytes = |bytes: Option<&u64>| bytes.map_or(0, |bytes| bytes / 1024 / 1024);
    let memory = &evidence.memory;
    let rows: [(&str, String); 24] = [
        ("items", storm.items.to_string()),
        ("worker kills (`SIGKILL`)", watch.kills.to_string()),
        ("Redis faults", watch.redis_faults.to_string()),
        ("worker pauses beyond the lease (`SIGSTOP`)", watch.pauses.to_string()),
        ("workers told to stop (`SIGTERM`)", watch.stops.to_string()),
        ("second workers of one name", watch.twins.to_string()),
        ("network faults", watch.wire_faults.to_string()),
        ("answers of settlements lost", arena.wire.lost().to_string()),
        ("**lost**", figures.lost.to_string()),
        ("**duplicate terminal events**", figures.duplicate_events.to_string()),
        ("**duplicate effects**", format!("{} (of {effects} calls)", figures.duplicate_effects)),
        ("**states lost or of an older owner**", figures.stale_states.to_string()),
        ("**idempotency keys not of one effect**", figures.unstable_keys.to_string()),
        (
            "re-executions",
            format!("{} (items that faults can have met: {})", figures.re_executions, watch.charges.at_faults),
        ),
        ("calls repeated under their own key (idempotent tools)", figures.calls_again.to_string()),
        ("calls that a stopped worker made late (idempotent tools)", figures.finished_again.to_string()),
        (
            "calls that a fault left in doubt",
            format!("{} told to the model, {} ended their node", figures.unknown_told, figures.unknown_ends),
        ),
        ("completions paid twice", figures.completions_twice.to_string()),
        ("decisions of a person, some of them twice", arena.watch.decisions.to_string()),
        ("waits outside of a slot asked for", arena.world.put_off().to_string()),
        (
            "outputs stored apart, nodes cancelled, dead letters",
            format!(
                "{}, {}, {}",
                count(|ending| ending.stored.is_some()),
                count(|ending| ending.category.as_deref() == Some("cancelled")),
                evidence.letters.len()
            ),
        ),
        (
            "longest takeover",
            format!(
                "{:.1} s (without the time in which Redis was away: {:.1} s)",
                watch.takeovers.longest.as_secs_f64(),
                watch.takeovers.longest_served.as_secs_f64()
            ),
        ),
        (
            "memory of one worker, early and late",
            format!(
                "{} MiB, {} MiB{}",
                mebibytes(memory.get(memory.len() / 4)),
                mebibytes(memory.last()),
                if figures.memory_judged { "" } else { " (too short to be judged)" }
            ),
        ),
        ("duration", format!("{:.0} s", took.as_secs_f64())),
    ];
    let mut table = format!("| seed {} | |\n|---|---|\n", storm.seed);
    for (name, value) in rows {
        let _ = writeln!(table, "| {name} | {value} |");
    }
    table
}
