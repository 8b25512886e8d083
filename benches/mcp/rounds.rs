//! Rounds of all clients in turn, each a process of its own, against one server.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::client::{Figures, Who};
use crate::report::{Report, median};
use crate::{Answers, Era, Way};

/// The least share of the other client's calls a second, and the most of its CPU time and memory: as good, within what
/// two runs of the same differ by.
const NOT_SLOWER: f64 = 0.95;
const NO_MORE: f64 = 1.05;

/// One kind of round.
pub struct Cell {
    pub way: Way,
    pub at_once: usize,
    pub era: Era,
    pub calls: usize,
    pub rounds: usize,
    pub delay_ms: u64,
}

/// Plays the rounds of one kind.
pub fn play(report: &mut Report, cell: &Cell) {
    let server = match cell.way {
        Way::Http => Some(Server::start(cell, Answers::Json)),
        Way::Sse => Some(Server::start(cell, Answers::Sse)),
        Way::Stdio => None,
    };
    let clients: &[Who] = match cell.way {
        Way::Http | Way::Sse => &[Who::Ours, Who::SdkPooled, Who::Sdk],
        Way::Stdio => &[Who::Ours, Who::Sdk],
    };
    let mut all: Vec<(Who, Vec<Figures>)> = clients.iter().map(|who| (*who, Vec::new())).collect();
    for round in 0..cell.rounds {
        for turn in 0..clients.len() {
            // Nobody always goes first.
            let (who, figures) = &mut all[(round + turn) % clients.len()];
            figures.push(run(*who, cell, server.as_ref()));
        }
    }
    let name = format!("{} {} {}", name(&cell.way), cell.at_once, name(&cell.era));
    let middle = |who: Who, of: fn(&Figures) -> f64| {
        let figures = &all.iter().find(|(client, _)| *client == who).expect("it was measured").1;
        median(&figures.iter().map(of).collect::<Vec<_>>())
    };
    for who in clients {
        let [rate, cpu, peak] =
            [|f: &Figures| f.rate, |f: &Figures| f.cpu_us, |f: &Figures| f.peak_mb].map(|of| middle(*who, of));
        let figures = format!("{rate:.0} calls/s, {cpu:.1} µs CPU a call, {peak:.1} MB");
        eprintln!("{name}, {}: {figures}", self::name(who));
        report.note(&format!("{name}: {}", self::name(who)), figures);
    }
    let rival = if cell.way == Way::Stdio { Who::Sdk } else { Who::SdkPooled };
    let ratio = |of: fn(&Figures) -> f64| middle(Who::Ours, of) / middle(rival, of);
    report.at_least(&format!("{name}: calls a second, ours / SDK"), ratio(|f| f.rate), NOT_SLOWER);
    report.at_most(&format!("{name}: CPU of a call, ours / SDK"), ratio(|f| f.cpu_us), NO_MORE);
    report.at_most(&format!("{name}: peak memory, ours / SDK"), ratio(|f| f.peak_mb), NO_MORE);
}

fn run(who: Who, cell: &Cell, server: Option<&Server>) -> Figures {
    let mut command = this_program();
    command.arg("client").args([name(&who), name(&cell.era)]);
    command.args([cell.at_once, cell.calls].map(|number| number.to_string())).arg(cell.delay_ms.to_string());
    command.args(server.map(|server| &server.url));
    let output = command.stderr(Stdio::inherit()).output().expect("this program can be run");
    assert!(output.status.success(), "the client failed: {who:?}");
    serde_json::from_slice(&output.stdout).expect("the client printed its figures")
}

/// How a value is named on the command line.
fn name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_owned()
}

fn this_program() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    // A proxy of the environment is not meant for this machine.
    command.stdin(Stdio::null()).env("NO_PROXY", "127.0.0.1");
    command
}

/// The server over HTTP, killed with its owner.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(cell: &Cell, answers: Answers) -> Self {
        let mut command = this_program();
        command
            .arg("serve-http")
            .args([name(&cell.era), name(&answers), cell.delay_ms.to_string()])
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("this program can be run");
        let mut url = String::new();
        let stdout = child.stdout.take().expect("the pipe was asked for");
        BufReader::new(stdout).read_line(&mut url).expect("the server tells its address");
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
