//! The table of executions: drawn in place on a terminal, one line an event elsewhere.

use std::io;

use comfy_table::{ContentArrangement, Table, presets};
use console::{Term, style, truncate_str};
use serde_json::Value;

use crate::cli::dev::ledger::{Ledger, Run};
use crate::domain::event::EventType;

/// Characters of an outcome that the table and its lines show.
const OUTCOME_CHARS: usize = 120;
/// The width where no terminal says one.
const WIDTH: usize = 160;
/// A completed node.
const GOOD: char = '✔';
/// A failed node.
const BAD: char = '✘';
/// A node at work.
const BUSY: char = '▸';

/// Where executions are shown.
pub struct Board {
    term: Term,
    live: bool,
    drawn: usize,
}

impl Board {
    /// On a terminal a table that is drawn again and again, elsewhere lines.
    pub fn new() -> Self {
        let term = Term::buffered_stdout();
        let live = term.is_term();
        Self { term, live, drawn: 0 }
    }

    /// Whether there is a terminal.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// From now on lines instead of a table.
    pub fn be_plain(&mut self) {
        self.live = false;
    }

    /// Begins to draw.
    pub fn open(&self) {
        if self.live {
            let _ = self.term.hide_cursor();
        }
    }

    /// Draws the table over the one before, if this is a terminal. One that went away sends a signal of its own.
    pub fn draw(&mut self, ledger: &Ledger, planned: &[(&str, &str)], now: u64) {
        if self.live {
            let _ = self.try_to_draw(ledger, planned, now);
        }
    }

    fn try_to_draw(&mut self, ledger: &Ledger, planned: &[(&str, &str)], now: u64) -> io::Result<()> {
        let (height, width) = self.term.size();
        // What does not fit could not be cleared again.
        let lines: Vec<String> = render(ledger, planned, now, width.into())
            .into_iter()
            .take(usize::from(height).saturating_sub(1))
            .collect();
        self.term.clear_last_lines(self.drawn)?;
        for line in &lines {
            self.term.write_line(&paint(line))?;
        }
        self.drawn = lines.len();
        self.term.flush()
    }

    /// Leaves the table as it stands; on something that is no terminal it is written now, once.
    pub fn close(&mut self, ledger: &Ledger, now: u64) {
        if self.live {
            self.draw(ledger, &[], now);
            self.drawn = 0;
            let _ = self.term.show_cursor();
            let _ = self.term.flush();
        } else {
            render(ledger, &[], now, WIDTH).iter().for_each(|line| self.line(line));
        }
    }

    /// Writes one line; beneath a live table there is no place for one.
    pub fn line(&self, text: &str) {
        let _ = self.term.write_line(&paint(text));
        let _ = self.term.flush();
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if self.live {
            let _ = self.term.show_cursor();
            let _ = self.term.flush();
        }
    }
}

/// Colour is added to the finished text, so that it has no width of its own in the table.
fn paint(line: &str) -> String {
    let mut painted = String::with_capacity(line.len() + 16);
    for part in line.chars() {
        match part {
            GOOD => painted.push_str(&style(part).green().to_string()),
            BAD => painted.push_str(&style(part).red().to_string()),
            BUSY => painted.push_str(&style(part).cyan().to_string()),
            other => painted.push(other),
        }
    }
    painted
}

/// One line a node, none wider than `width`.
fn render(ledger: &Ledger, planned: &[(&str, &str)], now: u64, width: usize) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["NODE", "MODE", "WORKER", "TOOLS", "ATTEMPTS", "TAKEN OVER", "TIME", "OUTCOME"]);
    for run in ledger.runs() {
        table.add_row(row(run, now));
    }
    for (node, mode) in planned {
        table.add_row([*node, *mode, "", "", "", "", "", "waits"]);
    }
    table.lines().map(|line| truncate_str(line.trim_end(), width, "…").into_owned()).collect()
}

fn row(run: &Run, now: u64) -> [String; 8] {
    let ending = run.ending();
    let count = |number: u64| if number == 0 { String::from("-") } else { number.to_string() };
    let until = ending.map_or(now, |ending| ending.at);
    [
        run.node.clone(),
        run.mode.clone().unwrap_or_else(|| String::from("-")),
        workers(run),
        count(run.tools()),
        ending.map_or_else(|| String::from("-"), |ending| ending.attempts.to_string()),
        count(run.deliveries.len().saturating_sub(1) as u64),
        seconds(until.saturating_sub(run.since)),
        outcome(run),
    ]
}

/// The workers that had it, such as `1 ✘ 2`: a cross stands for a death.
fn workers(run: &Run) -> String {
    let mut text = String::new();
    for delivery in &run.deliveries {
        if !text.is_empty() && !text.ends_with(BAD) {
            text.push_str(" → ");
        } else if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(delivery.worker.strip_prefix("worker-").unwrap_or(&delivery.worker));
        if delivery.killed {
            text.push(' ');
            text.push(BAD);
        }
    }
    text
}

/// How it stands, in a few words.
pub fn outcome(run: &Run) -> String {
    match run.ending() {
        Some(ending) if ending.kind == EventType::NodeCompleted => {
            let output = ending.data.get("output").unwrap_or(&Value::Null);
            short(&format!("{GOOD} {}", essence(output)))
        }
        Some(ending) => {
            let text = |pointer: &str| ending.data.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            short(&format!("{BAD} {}: {}", text("/error_details/category"), text("/error")))
        }
        None if run.waits => format!("{BUSY} waits for a person's word, in no worker"),
        None if run.deliveries.is_empty() => String::from("queued"),
        None if run.deliveries.last().is_some_and(|last| last.killed) => format!("{BUSY} waits for a takeover"),
        None => format!("{BUSY} running"),
    }
}

/// The part of an output that a person wants to see first.
fn essence(output: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match output.get("result").or_else(|| output.get("content")) {
        Some(part) => text(part),
        None => text(output),
    }
}

fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    truncate_str(&line, OUTCOME_CHARS, "…").into_owned()
}

/// Milliseconds as seconds.
pub fn seconds(millis: u64) -> String {
    format!("{}.{:02} s", millis / 1000, millis % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use console::measure_text_width;
    use serde_json::json;

    use super::*;
    use crate::cli::dev::ledger::{Delivery, Ending};

    fn run(deliveries: Vec<Delivery>, endings: Vec<Ending>) -> Run {
        Run {
            graph: String::from("g"),
            node: String::from("n"),
            run_id: String::from("r"),
            mode: Some(String::from("agent")),
            since: 1000,
            deliveries,
            asked: None,
            waits: false,
            endings,
        }
    }

    fn delivery(number: u64, killed: bool) -> Delivery {
        Delivery { number, worker: format!("worker-{number}"), killed, tools: number }
    }

    fn ending(kind: EventType, data: Value) -> Ending {
        Ending {
            kind,
            data,
            worker: String::from("worker-2"),
            attempts: 2,
            resumed: None,
            decisions: Vec::new(),
            at: 2340,
        }
    }

    #[test]
    fn a_row_tells_who_had_it_how_long_and_what_came_of_it() {
        let output = json!({"output": {"result": "two\nlines", "tool_calls": 5}});
        let run = run(vec![delivery(1, true), delivery(2, false)], vec![ending(EventType::NodeCompleted, output)]);
        let row = row(&run, 9999);
        assert_eq!(row, ["n", "agent", "1 ✘ 2", "5", "2", "1", "1.34 s", "✔ two lines"]);
    }

    #[test]
    fn a_failure_shows_its_category_and_its_words() {
        let data = json!({"error": "no", "error_details": {"category": "poison", "code": "max_crashes"}});
        assert_eq!(outcome(&run(Vec::new(), vec![ending(EventType::NodeFailed, data)])), "✘ poison: no");
        assert_eq!(outcome(&run(vec![delivery(1, true)], Vec::new())), "▸ waits for a takeover");
        assert_eq!(outcome(&run(Vec::new(), Vec::new())), "queued");
        let asking = Run { waits: true, ..run(vec![delivery(1, false)], Vec::new()) };
        assert!(outcome(&asking).contains("waits for a person"));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let output = json!({"output": "a long text ".repeat(40)});
        let mut ledger = Ledger::default();
        let entry = crate::domain::ids::EntryId::new("1-0");
        ledger.submitted("g", "n", String::from("r"), "tool", &entry);
        let event =
            json!({"graph_id": "g", "node_id": "n", "run_id": "r", "data": output, "metadata": {"worker_id": "w"}});
        let kind = EventType::NodeCompleted;
        ledger.tell(&crate::clients::redis::TailedEvent { kind, entry, data: event.to_string() });
        let lines = render(&ledger, &[("later", "llm")], 0, 80);
        assert_eq!(lines.len(), 3, "a header and a line a node");
        assert!(lines.iter().all(|line| measure_text_width(line) <= 80), "{lines:?}");
        assert!(lines[1].ends_with('…') && lines[2].ends_with("waits"), "{lines:?}");
    }
}
