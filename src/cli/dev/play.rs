//! The run of the demo: submits samples when their turn has come, kills workers where a sample asks for it, and keeps
//! the table current.

use std::time::{Duration, Instant};

use console::style;
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::dev::board::{Board, outcome};
use crate::cli::dev::ledger::{Ledger, Resumed, Run, Step};
use crate::cli::dev::scenario::{SAMPLES, Sabotage, Sample, asks, sabotage_of};
use crate::cli::dev::stage::Stage;
use crate::cli::dev::verdict::{self, Leftovers, MOMENT, PERSON};
use crate::cli::dev::{Interrupts, Trouble, print_addresses, print_line};
use crate::cli::{FAILED, UNAVAILABLE};
use crate::clients::redis::{DeadLetter, DeadLetters, EventTail, Span, stream_stats, submit};
use crate::domain::event::EventType;
use crate::domain::wait::{Action, Ask, Decision};
use crate::domain::work::WorkItem;

/// The whole run with a scripted model; it takes about ten seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// The same with a real one.
const PATIENCE_WITH_A_MODEL: Duration = Duration::from_secs(600);
/// How often the table is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How long the last acknowledgements and the last progress may take.
const SETTLING: Duration = Duration::from_secs(5);
/// How long Redis may stay silent in the middle.
const SILENCE: Duration = Duration::from_secs(5);
/// Dead letters that are shown.
const LETTERS: usize = 10;

/// How the run ended.
pub enum Ended {
    /// Every sample has a terminal event.
    Everything,
    /// Not every one, and the time is up.
    OutOfTime,
    /// Somebody wants it to end.
    Interrupted,
}

/// A run of all samples.
pub struct Play<'a> {
    stage: &'a mut Stage,
    tail: EventTail,
    ledger: Ledger,
    board: Board,
    /// For each sample the place of its run, once it is submitted.
    places: Vec<Option<usize>>,
    letters: Vec<DeadLetter>,
    /// Workers that ended although nobody killed them, a sentence each.
    accidents: Vec<String>,
    /// Decisions that a person will have made by then, ready to be sent.
    decisions: Vec<(Instant, String)>,
    began: Instant,
}

impl<'a> Play<'a> {
    /// Reads events from now on.
    pub async fn begin(stage: &'a mut Stage) -> Result<Self, Trouble> {
        let kinds = [
            EventType::NodeStarted,
            EventType::ToolExecuted,
            EventType::NodeProgress,
            EventType::NodeInputRequired,
            EventType::NodeDecision,
            EventType::NodeCompleted,
            EventType::NodeFailed,
        ];
        let tail = EventTail::begin(&stage.config.redis, &stage.keys, &kinds).await?;
        let board = Board::new();
        board.open();
        Ok(Self {
            stage,
            tail,
            ledger: Ledger::default(),
            board,
            places: vec![None; SAMPLES.len()],
            letters: Vec::new(),
            accidents: Vec::new(),
            decisions: Vec::new(),
            began: Instant::now(),
        })
    }

    /// Submits every sample and waits until each has ended.
    pub async fn until_ended(&mut self, interrupts: &mut Interrupts) -> Result<Ended, Trouble> {
        let patience = if self.stage.scripted() { PATIENCE } else { PATIENCE_WITH_A_MODEL };
        let ended = loop {
            self.submit_what_is_due().await?;
            if (0..SAMPLES.len()).all(|sample| self.has_ended(sample)) {
                break Ended::Everything;
            }
            if self.began.elapsed() > patience {
                break Ended::OutOfTime;
            }
            if !self.follow(interrupts).await? {
                break Ended::Interrupted;
            }
        };
        if !matches!(ended, Ended::Interrupted) {
            self.quiet().await?;
        }
        self.board.close(&self.ledger, now());
        Ok(ended)
    }

    /// Shows what others submit, one line an event, until a signal.
    pub async fn until_interrupted(&mut self, interrupts: &mut Interrupts) -> Result<(), Trouble> {
        self.board.be_plain();
        while self.follow(interrupts).await? {}
        Ok(())
    }

    /// What is not as it should be.
    pub async fn differences(&mut self) -> Result<Vec<String>, Trouble> {
        let stream = self.stage.stream().to_owned();
        let stats = stream_stats(&self.stage.link, &stream, &self.stage.config.work.group).await?;
        let letters = DeadLetters::new(self.stage.link.clone(), self.stage.keys.clone());
        self.letters = letters.read(&stream, Span::all()).await?.next().await?;
        self.letters.truncate(LETTERS);
        // Whoever submits a sample beside this run says the same to the model again.
        let alone = self.ledger.runs().len() == SAMPLES.len();
        let paid_twice = self.stage.paid_twice().filter(|_| alone);
        let leftovers = Leftovers { stats, letters: &self.letters, paid_twice };
        let runs: Vec<(&Sample, Option<&Run>)> = SAMPLES
            .iter()
            .zip(&self.places)
            .map(|(sample, place)| (sample, place.and_then(|place| self.ledger.runs().get(place))))
            .collect();
        let mut differences = verdict::differences(&runs, &leftovers, self.stage.scripted());
        differences.extend(self.accidents.iter().cloned());
        Ok(differences)
    }

    /// The last word about the samples.
    pub fn tell_verdict(&self, differences: &[String]) {
        print_line("");
        for letter in &self.letters {
            print_line(format_args!(
                "{:<12} {} ({} crashes) in {}: {}",
                style("dead letter").bold(),
                letter.reason,
                letter.crashes,
                self.stage.keys.dead(self.stage.stream()),
                letter.error
            ));
        }
        let took = self.began.elapsed().as_secs_f64();
        if differences.is_empty() {
            return print_line(format_args!(
                "{} Every outcome is the expected one, after {took:.1} s.",
                style("✔").green()
            ));
        }
        print_line(format_args!("{} Not every outcome is the expected one:", style("✘").red()));
        for difference in differences {
            print_line(format_args!("  - {difference}"));
        }
    }

    /// What a person may do while everything is still there.
    pub fn tell_what_next(&self) {
        print_line("");
        print_addresses(self.stage);
        print_line("\nIn another terminal:");
        for command in self.stage.commands() {
            print_line(format_args!("  {command}"));
        }
        print_line("\nCtrl-C ends it all.");
    }

    async fn submit_what_is_due(&mut self) -> Result<(), Trouble> {
        for (place, sample) in SAMPLES.iter().enumerate() {
            let due = self.places[place].is_none() && sample.after.iter().all(|name| self.has_ended(at(name)));
            if !due {
                continue;
            }
            let entry = submit(&self.stage.link, self.stage.stream(), sample.json.as_bytes()).await?;
            let item = WorkItem::parse(sample.json.as_bytes(), self.stage.stream(), &entry)
                .map_err(|error| Trouble::new(FAILED, format!("examples/{}: {error}", sample.file)))?;
            let (graph, node) = (item.graph_id.as_str(), item.node_id.as_str());
            self.places[place] = Some(self.ledger.submitted(graph, node, item.run_id.into(), sample.mode, &entry));
            self.say(sample.name, "submitted");
        }
        Ok(())
    }

    fn has_ended(&self, sample: usize) -> bool {
        let run = self.places[sample].and_then(|place| self.ledger.runs().get(place));
        run.is_some_and(|run| run.ending().is_some())
    }

    /// One frame: events, what they ask for, the table. False when a signal came.
    async fn follow(&mut self, interrupts: &mut Interrupts) -> Result<bool, Trouble> {
        let since = Instant::now();
        loop {
            let events = tokio::select! {
                () = interrupts.next() => return Ok(false),
                events = self.tail.next(FRAME) => events,
            };
            match events {
                Ok(events) => {
                    for event in events {
                        if let Some(step) = self.ledger.tell(&event) {
                            self.react(&step)?;
                        }
                    }
                    break;
                }
                // The same call goes on where the last one ended.
                Err(error) if since.elapsed() < SILENCE => {
                    tokio::time::sleep(FRAME).await;
                    drop(error);
                }
                Err(error) => return Err(Trouble::new(UNAVAILABLE, error)),
            }
        }
        let accidents = self.stage.workers.replace_the_dead().map_err(|error| Trouble::new(FAILED, error))?;
        for accident in accidents {
            let what = format!("ended by itself with {} and was replaced", accident.status);
            self.say(&accident.worker, &what);
            self.accidents.push(format!("{}: it {what}", accident.worker));
        }
        self.decide_what_is_due().await?;
        self.draw();
        Ok(true)
    }

    /// Plays the person that sample nodes wait for.
    async fn decide_what_is_due(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.decisions).into_iter().partition(|(moment, _)| *moment <= now);
        self.decisions = later;
        for (_, decision) in due {
            submit(&self.stage.link, self.stage.stream(), decision.as_bytes()).await?;
        }
        Ok(())
    }

    fn react(&mut self, step: &Step) -> Result<(), Trouble> {
        let Some(run) = self.ledger.runs().get(step.run) else { return Ok(()) };
        let node = run.node.clone();
        self.say(&node, &words(step, run));
        if step.kind == EventType::NodeInputRequired
            && asks(&run.graph, &run.node)
            && let Ok(ask) = serde_json::from_value::<Ask>(step.data.clone())
        {
            let moment = Instant::now() + Duration::from_millis(MOMENT);
            self.decisions.push((moment, agreed(&ask)));
        }
        let doomed = match sabotage_of(&run.graph, &run.node) {
            Sabotage::None => false,
            Sabotage::AtEveryStart => step.kind == EventType::NodeStarted,
            Sabotage::OnceInATool => {
                let number = |name: &str| step.data.get(name).and_then(Value::as_u64).unwrap_or_default();
                let calls = step.kind == EventType::NodeProgress && number("tool_calls") > 0;
                calls && number("iteration") > 1 && run.kills() == 0
            }
        };
        if !doomed || run.ending().is_some() {
            return Ok(());
        }
        let replaced = self.stage.workers.kill_and_replace(&step.worker);
        let replaced =
            replaced.map_err(|error| Trouble::new(FAILED, format!("a worker cannot be started: {error}")))?;
        if let Some(successor) = replaced {
            self.ledger.killed(step.run, &step.worker);
            self.say(&node, &format!("this demo kills {} with SIGKILL; {successor} replaces it", step.worker));
        }
        Ok(())
    }

    /// Waits until the stream is empty and no event came for a moment, so that what follows a terminal event is seen.
    async fn quiet(&mut self) -> Result<(), Trouble> {
        let deadline = Instant::now() + SETTLING;
        while Instant::now() < deadline {
            let events = self.tail.next(Duration::from_millis(250)).await?;
            let calm = events.is_empty();
            for event in events {
                if let Some(step) = self.ledger.tell(&event) {
                    self.react(&step)?;
                }
            }
            let stats = stream_stats(&self.stage.link, self.stage.stream(), &self.stage.config.work.group).await?;
            self.draw();
            if calm && stats.length == 0 && stats.pending == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn draw(&mut self) {
        let planned: Vec<(&str, &str)> = SAMPLES
            .iter()
            .zip(&self.places)
            .filter(|(_, place)| place.is_none())
            .map(|(sample, _)| (sample.name, sample.mode))
            .collect();
        self.board.draw(&self.ledger, &planned, now());
    }

    fn say(&self, about: &str, what: &str) {
        if !self.board.is_live() {
            self.board.line(&format!("{:>7.2} s  {about:<10} {what}", self.began.elapsed().as_secs_f64()));
        }
    }
}

/// The decision of a person who agrees.
fn agreed(ask: &Ask) -> String {
    let Ask { graph_id, node_id, run_id, wait_id, .. } = ask.clone();
    let (by, note) = (Some(String::from(PERSON)), Some(String::from("once, and not more")));
    let action = Action::Accept;
    Decision { graph_id, node_id, run_id, wait_id, action, content: None, by, note }.to_json()
}

/// The place of a sample by its name.
fn at(name: &str) -> usize {
    SAMPLES.iter().position(|sample| sample.name == name).expect("samples wait for samples; a test holds it")
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// An event in words.
fn words(step: &Step, run: &Run) -> String {
    let text = |pointer: &str| step.data.pointer(pointer).and_then(Value::as_str);
    match step.kind {
        EventType::NodeStarted => {
            let times = run.deliveries.len();
            if times > 1 { format!("taken over by {}", step.worker) } else { format!("started by {}", step.worker) }
        }
        EventType::NodeProgress => match Resumed::of(&step.data) {
            Some(Resumed { turns, tool_calls }) => {
                format!("goes on: {turns} turns of the model and {tool_calls} tool calls are on record")
            }
            None => format!("turn {} of the model", step.data.get("iteration").unwrap_or(&Value::Null)),
        },
        EventType::LlmDelta => String::from("the model writes"),
        EventType::NodeInputRequired => format!("waits: {}", text("/message").unwrap_or("?")),
        EventType::NodeDecision => {
            format!("{} by {}", text("/action").unwrap_or("?"), text("/by").unwrap_or("somebody"))
        }
        EventType::ToolExecuted => format!("tool {} ended", text("/tool").unwrap_or("?")),
        EventType::NodeCompleted | EventType::NodeFailed => outcome(run),
    }
}
