//! Dead letters on the terminal and for programs: a table, one JSON document, or one JSON object a line. What is
//! printed is never held: a table is begun anew after so many rows.

use std::io::{StdoutLock, Write as _};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::clients::redis::{DeadLetter, LETTER_BYTES, Redriven};

/// Rows of one table.
const ROWS: usize = 1000;
/// The longest part of an error in a table.
const ERROR_CHARS: usize = 160;

/// How things are printed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Format {
    /// How to print it.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Output::Table)]
    output: Output,
}

impl Format {
    /// Whether it is for people.
    pub fn is_table(self) -> bool {
        self.output == Output::Table
    }
}

/// The forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON object with all of it and the totals.
    Json,
    /// One JSON object a line.
    Jsonl,
}

/// Prints one after the other.
pub struct Printer {
    output: Output,
    full: bool,
    out: StdoutLock<'static>,
    table: Table,
    rows: usize,
    printed: usize,
}

impl Printer {
    /// Prints in this form; with `full`, all that is known of a letter.
    pub fn new(format: Format, full: bool) -> Self {
        Self { output: format.output, full, out: std::io::stdout().lock(), table: Table::new(), rows: 0, printed: 0 }
    }

    /// A letter.
    pub fn letter(&mut self, letter: &DeadLetter) -> std::io::Result<()> {
        match (self.output, self.full) {
            (Output::Table, true) => {
                if self.printed > 0 {
                    writeln!(self.out)?;
                }
                self.printed += 1;
                self.out.write_all(page(letter).as_bytes())
            }
            (Output::Table, false) => {
                let header = ["ID", "AT", "REASON", "GRAPH", "NODE", "DELIVERIES", "CRASHES", "ERROR"];
                let name = |id: &Option<String>| id.clone().unwrap_or_else(|| String::from("-"));
                self.row(
                    &header,
                    vec![
                        letter.id.clone(),
                        at(letter),
                        letter.reason.clone(),
                        name(&letter.graph_id),
                        name(&letter.node_id),
                        letter.deliveries.to_string(),
                        letter.crashes.to_string(),
                        shortened(&letter.error),
                    ],
                )
            }
            (Output::Json | Output::Jsonl, full) => self.object(&object(letter, full)),
        }
    }

    /// What became of the retry of a letter; none where it would only be tried.
    pub fn retried(&mut self, letter: &DeadLetter, redriven: Option<&Redriven>) -> std::io::Result<()> {
        let (result, entry, by) = match redriven {
            None => ("would_be_retried", None, None),
            Some(Redriven::Added(entry)) => ("retried", Some(entry.as_str()), None),
            Some(Redriven::Gone) => ("gone", None, None),
            Some(Redriven::Cut) => ("cut", None, None),
            Some(Redriven::Empty) => ("empty", None, None),
            Some(Redriven::Taken { by }) => ("taken", None, Some(by.as_str())),
        };
        if self.output == Output::Table {
            let words = match redriven {
                None => String::from("would be retried"),
                Some(Redriven::Added(entry)) => format!("retried as {entry}"),
                Some(Redriven::Gone) => String::from("somebody else retried or deleted it"),
                Some(Redriven::Cut) => format!(
                    "cannot be retried: only the first {LETTER_BYTES} of its {} bytes were kept; submit it from its source",
                    letter.length.unwrap_or_default()
                ),
                Some(Redriven::Empty) => String::from("cannot be retried: its entry had no data"),
                Some(Redriven::Taken { by }) => {
                    format!("cannot be retried: {by} has its run; submit it with a new run_id")
                }
            };
            let row = vec![letter.id.clone(), letter.work_id.clone(), letter.reason.clone(), words];
            return self.row(&["ID", "WORK", "REASON", "RESULT"], row);
        }
        let mut object = json!({"stream": letter.stream, "id": letter.id, "work_id": letter.work_id, "result": result});
        for (name, value) in [("entry", entry), ("by", by)] {
            if let Some(value) = value {
                object[name] = Value::from(value);
            }
        }
        self.object(&object)
    }

    /// The end, with the totals for the form that has a place for them.
    pub fn end(&mut self, totals: &Value) -> std::io::Result<()> {
        self.flush_table()?;
        if self.output == Output::Json {
            if self.printed == 0 {
                write!(self.out, "{{\"letters\":[")?;
            }
            let totals = totals.to_string();
            writeln!(self.out, "],{}", totals.trim_start_matches('{'))?;
        }
        self.out.flush()
    }

    fn object(&mut self, object: &Value) -> std::io::Result<()> {
        self.printed += 1;
        match (self.output, self.printed) {
            (Output::Json, 1) => write!(self.out, "{{\"letters\":[\n{object}"),
            (Output::Json, _) => write!(self.out, ",\n{object}"),
            _ => writeln!(self.out, "{object}"),
        }
    }

    fn row(&mut self, header: &[&str], row: Vec<String>) -> std::io::Result<()> {
        if self.rows == 0 {
            self.table = Table::new();
            self.table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
            self.table.set_header(header.iter().copied());
        }
        self.table.add_row(row.iter().map(|cell| harmless(cell)));
        self.rows += 1;
        if self.rows == ROWS { self.flush_table() } else { Ok(()) }
    }

    fn flush_table(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.rows) == 0 {
            return Ok(());
        }
        writeln!(self.out, "{}", self.table)
    }
}

/// A reader such as `head` that closes the pipe early is no error.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// A number with its thousands set apart.
pub fn grouped(number: impl TryInto<u64>) -> String {
    let digits = number.try_into().unwrap_or(u64::MAX).to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn shortened(error: &str) -> String {
    match error.char_indices().nth(ERROR_CHARS) {
        Some((end, _)) => format!("{}…", &error[..end]),
        None => String::from(error),
    }
}

/// When the letter was written: by the worker's clock, else by the server's.
fn at(letter: &DeadLetter) -> String {
    let by_server = || Timestamp::from_millisecond(i64::try_from(letter.millis()).unwrap_or_default()).ok();
    let at = letter.at.parse::<Timestamp>().ok().or_else(by_server).unwrap_or_default();
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Foreign text without what a terminal would obey.
fn harmless(text: &str) -> String {
    let harmless = |char: char| if char.is_control() && char != '\n' { char::REPLACEMENT_CHARACTER } else { char };
    text.chars().map(harmless).collect()
}

/// All that is known of a letter, a line a fact, its data at the end.
fn page(letter: &DeadLetter) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{name:<11} {}\n", harmless(value)));
        }
    };
    let name = |id: &Option<String>| id.clone().unwrap_or_default();
    fact("id", &letter.id);
    fact("stream", &letter.stream);
    fact("work_id", &letter.work_id);
    fact("graph_id", &name(&letter.graph_id));
    fact("node_id", &name(&letter.node_id));
    fact("run_id", &name(&letter.run_id));
    fact("at", &letter.at);
    fact("reason", &letter.reason);
    fact("error", &letter.error);
    fact("deliveries", &letter.deliveries.to_string());
    fact("crashes", &letter.crashes.to_string());
    fact("worker_id", &letter.worker_id);
    fact("meta", &name(&letter.meta));
    if let Some(length) = letter.length {
        fact("data", &format!("the first {} of {length} bytes, which cannot be retried", letter.data.len()));
        fact("sha256", &name(&letter.sha256));
    } else {
        fact("data", &format!("{} bytes", letter.data.len()));
    }
    let data = match serde_json::from_slice::<Value>(&letter.data) {
        Ok(data) => format!("{data:#}"),
        Err(_) => harmless(&String::from_utf8_lossy(&letter.data)),
    };
    if !data.is_empty() {
        text.push_str(&data);
        text.push('\n');
    }
    text
}

/// A letter as JSON; data that is no text is given in base64.
fn object(letter: &DeadLetter, full: bool) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            object.insert(String::from(name), value);
        }
    };
    put("stream", json!(letter.stream));
    put("id", json!(letter.id));
    put("work_id", json!(letter.work_id));
    put("graph_id", json!(letter.graph_id));
    put("node_id", json!(letter.node_id));
    put("run_id", json!(letter.run_id));
    put("at", json!(letter.at));
    put("reason", json!(letter.reason));
    put("error", json!(letter.error));
    put("deliveries", json!(letter.deliveries));
    put("crashes", json!(letter.crashes));
    put("worker_id", json!(letter.worker_id));
    put("length", json!(letter.length));
    put("sha256", json!(letter.sha256));
    if full {
        put("meta", json!(letter.meta));
        match std::str::from_utf8(&letter.data) {
            Ok(data) => put("data", json!(data)),
            Err(_) => {
                use base64::Engine as _;
                put("data_base64", json!(base64::engine::general_purpose::STANDARD.encode(&letter.data)));
            }
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_set_apart_by_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(|number: u64| grouped(number)), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn bytes_that_are_no_text_come_through_and_harm_no_terminal() {
        let letter = DeadLetter { data: b"\xff\x1b[2J".to_vec(), ..DeadLetter::default() };
        assert_eq!(object(&letter, true)["data_base64"], "/xtbMko=");
        assert!(object(&letter, false).get("data_base64").is_none());
        assert!(!page(&letter).contains('\x1b'));
    }
}
