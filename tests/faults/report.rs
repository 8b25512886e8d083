//! The table of a run.

use std::fmt::Write as _;
use std::time::Duration;

use super::arena::Watch;
use super::checker::Verdict;
use super::storm::Storm;

/// The figures, one a line, as docs/reliability.md shows them.
pub fn table(storm: Storm, watch: &Watch, verdict: &Verdict, lost_answers: usize, took: Duration) -> String {
    let figures = &verdict.figures;
    let rows: [(&str, String); 14] = [
        ("items", storm.items.to_string()),
        ("worker kills", watch.kills.to_string()),
        ("Redis faults", watch.redis_faults.to_string()),
        ("worker pauses beyond the lease", watch.pauses.to_string()),
        ("network faults", watch.wire_faults.to_string()),
        ("answers of settlements lost", lost_answers.to_string()),
        ("**lost**", figures.lost.to_string()),
        ("**duplicate terminal events**", figures.duplicate_events.to_string()),
        ("**states lost or of an older owner**", figures.stale_states.to_string()),
        ("duplicate effects", figures.duplicate_effects.to_string()),
        (
            "re-executions",
            format!("{} (items in flight at faults: {})", figures.re_executions, watch.in_flight_at_faults),
        ),
        ("completions paid twice", figures.completions_twice.to_string()),
        ("longest takeover", format!("{:.1} s", watch.longest_takeover.as_secs_f64())),
        ("duration", format!("{:.0} s", took.as_secs_f64())),
    ];
    let mut table = format!("| seed {} | |\n|---|---|\n", storm.seed);
    for (name, value) in rows {
        let _ = writeln!(table, "| {name} | {value} |");
    }
    table
}
