//! Whether the run went as it must: every outcome, the one terminal event of each, and nothing left behind.

use serde_json::Value;

use crate::cli::dev::ledger::{Ending, Run};
use crate::cli::dev::scenario::{Expected, Is, Sabotage, Sample};
use crate::clients::redis::{DeadLetter, StreamStats};
use crate::domain::event::EventType;

/// Who decides in this run.
pub const PERSON: &str = "the demo";
/// Milliseconds that the person thinks about it.
pub const MOMENT: u64 = 1000;

/// What is in Redis at the end.
#[derive(Debug)]
pub struct Leftovers<'a> {
    /// The work stream and its group.
    pub stats: StreamStats,
    /// The dead letters.
    pub letters: &'a [DeadLetter],
    /// Turns of the model that were paid for twice, where that can be told.
    pub paid_twice: Option<u64>,
}

/// Everything that is not as it should be, a sentence each. With a real model the words of an outcome are its own:
/// then nodes that need a model must only have completed.
pub fn differences(runs: &[(&Sample, Option<&Run>)], leftovers: &Leftovers<'_>, scripted: bool) -> Vec<String> {
    let mut found = Vec::new();
    for (sample, run) in runs {
        let mut differs = |what: String| found.push(format!("{}: {what}", sample.name));
        match run {
            None => differs(String::from("it was not submitted, for it waits for one that did not end")),
            Some(run) => judge(sample, run, scripted, &mut differs),
        }
    }
    letters(runs, leftovers.letters, &mut found);
    if let Some(turns) = leftovers.paid_twice.filter(|turns| *turns > 0) {
        found.push(format!("{turns} turns of the model were asked for again although they had been given"));
    }
    let StreamStats { length, pending, .. } = leftovers.stats;
    if length != 0 || pending != 0 {
        found.push(format!("the work stream should be empty; it has {length} entries, {pending} of them pending"));
    }
    found
}

fn judge(sample: &Sample, run: &Run, scripted: bool, differs: &mut impl FnMut(String)) {
    if run.endings.len() > 1 {
        differs(format!("it has {} terminal events, more than one", run.endings.len()));
    }
    let Some(ending) = run.ending() else {
        return differs(String::from("it has no terminal event"));
    };
    let exact = scripted || sample.mode == "tool";
    match sample.expected {
        Expected::Output(parts) => output(ending, if exact { parts } else { &[] }, differs),
        Expected::Failure { category, code } => failure(ending, category, code, differs),
    }
    if let Some(attempts) = sample.attempts.filter(|attempts| exact && *attempts != ending.attempts) {
        differs(format!("it took {} attempts instead of {attempts}", ending.attempts));
    }
    if exact && run.mode.as_deref() != Some(sample.mode) {
        differs(format!("it ran in mode {:?} instead of {:?}", run.mode.as_deref().unwrap_or("none"), sample.mode));
    }
    if sample.asks && exact {
        let by = |decision: &Value| decision.get("by").and_then(Value::as_str) == Some(PERSON);
        match run.asked {
            None => differs(String::from("it did not wait for a person")),
            Some(_) if !ending.decisions.iter().any(by) => {
                differs(String::from("it ended without the word of a person"))
            }
            Some(asked) if ending.at < asked + MOMENT => {
                differs(format!("it ended {} ms after it had asked, before anybody agreed", ending.at - asked))
            }
            Some(_) => {}
        }
    }
    let deaths = run.kills();
    match sample.sabotage {
        Sabotage::None => {}
        Sabotage::OnceInATool if !exact => {}
        Sabotage::OnceInATool if deaths != 1 => {
            differs(format!("its worker was killed {deaths} times instead of once"))
        }
        Sabotage::OnceInATool => {
            let dead = run.deliveries.iter().any(|delivery| delivery.killed && delivery.worker == ending.worker);
            if dead {
                differs(format!("{} ended it, which was killed before", ending.worker));
            }
            if ending.resumed.is_none_or(|resumed| resumed.turns == 0) {
                differs(String::from("it was begun anew instead of going on from what was on record"));
            }
        }
        Sabotage::AtEveryStart if deaths != 3 => differs(format!("it killed {deaths} workers instead of 3")),
        Sabotage::AtEveryStart => {}
    }
}

fn output(ending: &Ending, parts: &[(&str, Is)], differs: &mut impl FnMut(String)) {
    if ending.kind != EventType::NodeCompleted {
        let error = ending.data.get("error").unwrap_or(&Value::Null);
        return differs(format!("it failed instead of completing: {error}"));
    }
    let output = ending.data.get("output").unwrap_or(&Value::Null);
    for (pointer, expected) in parts {
        let part = output.pointer(pointer).unwrap_or(&Value::Null);
        let place = if pointer.is_empty() { String::from("its output") } else { format!("{pointer} of its output") };
        match expected {
            Is::Json(text) => {
                if serde_json::from_str::<Value>(text).ok().as_ref() != Some(part) {
                    differs(format!("{place} is {part} instead of {text}"));
                }
            }
            Is::Saying(words) => {
                if !part.as_str().is_some_and(|text| text.contains(words)) {
                    differs(format!("{place} is {part}, which does not say {words:?}"));
                }
            }
        }
    }
}

fn failure(ending: &Ending, category: &str, code: &str, differs: &mut impl FnMut(String)) {
    if ending.kind != EventType::NodeFailed {
        return differs(format!("it completed instead of failing as {category}"));
    }
    let text = |pointer: &str| ending.data.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (found, found_code) = (text("/error_details/category"), text("/error_details/code"));
    if (found, found_code) != (category, code) {
        differs(format!("it failed as {found}/{found_code} instead of {category}/{code}: {}", text("/error")));
    }
    if text("/error").is_empty() {
        differs(String::from("its failure has no words"));
    }
}

/// Exactly the poison nodes are dead letters.
fn letters(runs: &[(&Sample, Option<&Run>)], letters: &[DeadLetter], found: &mut Vec<String>) {
    let poisoned =
        runs.iter().filter(|(sample, _)| matches!(sample.expected, Expected::Failure { category: "poison", .. }));
    let mut expected = 0;
    for (sample, run) in poisoned {
        expected += 1;
        let work = run.map_or("", |run| run.run_id.as_str());
        match letters.iter().find(|letter| letter.work_id == work) {
            None => found.push(format!("{}: it is not among the dead letters", sample.name)),
            Some(letter) if (letter.reason.as_str(), letter.crashes) != ("poison", 3) => found.push(format!(
                "{}: its dead letter says {:?} after {} crashes instead of \"poison\" after 3",
                sample.name, letter.reason, letter.crashes
            )),
            Some(_) => {}
        }
    }
    if letters.len() > expected {
        found.push(format!("there are {} dead letters instead of {expected}", letters.len()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::dev::ledger::{Delivery, Resumed};

    const PLAIN: Sample = Sample {
        name: "plain",
        file: "plain.json",
        json: "{}",
        mode: "tool",
        after: &[],
        sabotage: Sabotage::None,
        asks: false,
        attempts: Some(1),
        expected: Expected::Output(&[("/sum", Is::Json("42")), ("/text", Is::Saying("forty"))]),
    };
    const POISON: Sample = Sample {
        name: "poison",
        sabotage: Sabotage::AtEveryStart,
        attempts: None,
        expected: Expected::Failure { category: "poison", code: "max_crashes" },
        ..PLAIN
    };
    const NOTHING: Leftovers<'static> =
        Leftovers { stats: StreamStats { length: 0, lag: None, pending: 0 }, letters: &[], paid_twice: Some(0) };

    fn run(kind: EventType, data: Value) -> Run {
        Run {
            graph: String::from("g"),
            node: String::from("n"),
            run_id: String::from("s/1-0"),
            mode: Some(String::from("tool")),
            since: 0,
            deliveries: Vec::new(),
            asked: None,
            waits: false,
            endings: vec![Ending {
                kind,
                data,
                worker: String::from("w"),
                attempts: 1,
                resumed: None,
                decisions: Vec::new(),
                at: 1,
            }],
        }
    }

    fn good() -> Run {
        run(EventType::NodeCompleted, json!({"output": {"sum": 42, "text": "forty-two"}}))
    }

    fn of(sample: &Sample, run: &Run) -> Vec<String> {
        differences(&[(sample, Some(run))], &NOTHING, true)
    }

    fn poisoned(deaths: u64) -> Run {
        let data = json!({"error": "it kills", "error_details": {"category": "poison", "code": "max_crashes"}});
        let delivery = |number| Delivery { number, worker: format!("w{number}"), killed: true, tools: 0 };
        Run { deliveries: (1..=deaths).map(delivery).collect(), ..run(EventType::NodeFailed, data) }
    }

    fn letter(crashes: u32) -> DeadLetter {
        DeadLetter {
            work_id: String::from("s/1-0"),
            reason: String::from("poison"),
            error: String::from("it kills"),
            crashes,
            ..DeadLetter::default()
        }
    }

    #[test]
    fn what_is_as_it_should_be_passes() {
        assert_eq!(of(&PLAIN, &good()), [""; 0]);
        let letters = [letter(3)];
        let leftovers = Leftovers { letters: &letters, ..NOTHING };
        assert_eq!(differences(&[(&POISON, Some(&poisoned(3)))], &leftovers, true), [""; 0]);
    }

    #[test]
    fn each_difference_is_told() {
        let wrong = run(EventType::NodeCompleted, json!({"output": {"sum": 41, "text": "forty-one"}}));
        assert_eq!(of(&PLAIN, &wrong), ["plain: /sum of its output is 41 instead of 42"]);
        let failed = run(EventType::NodeFailed, json!({"error": "no"}));
        assert_eq!(of(&PLAIN, &failed), ["plain: it failed instead of completing: \"no\""]);
        let twice = Run { endings: [good().endings, good().endings].concat(), ..good() };
        assert_eq!(of(&PLAIN, &twice), ["plain: it has 2 terminal events, more than one"]);
        let silent = Run { endings: Vec::new(), ..good() };
        assert_eq!(of(&PLAIN, &silent), ["plain: it has no terminal event"]);
        let mut retried = good();
        retried.endings[0].attempts = 2;
        assert_eq!(of(&PLAIN, &retried), ["plain: it took 2 attempts instead of 1"]);
        assert!(differences(&[(&PLAIN, None)], &NOTHING, true)[0].contains("not submitted"));
    }

    #[test]
    fn a_poison_node_needs_three_deaths_and_one_dead_letter() {
        let judge = |run: &Run, letters: &[DeadLetter]| {
            differences(&[(&POISON, Some(run))], &Leftovers { letters, ..NOTHING }, true)
        };
        assert_eq!(judge(&poisoned(3), &[]), ["poison: it is not among the dead letters"]);
        assert_eq!(judge(&poisoned(2), &[letter(3)]), ["poison: it killed 2 workers instead of 3"]);
        assert_eq!(judge(&poisoned(3), &[letter(2)]).len(), 1);
        assert_eq!(judge(&poisoned(3), &[letter(3), letter(3)]), ["there are 2 dead letters instead of 1"]);
        assert_eq!(judge(&good(), &[letter(3)])[0], "poison: it completed instead of failing as poison");
    }

    #[test]
    fn a_node_that_asks_has_to_wait_for_a_persons_word() {
        let sample = Sample { asks: true, ..PLAIN };
        assert_eq!(of(&sample, &good()), ["plain: it did not wait for a person"]);
        let mut asked = Run { asked: Some(1000), ..good() };
        asked.endings[0].at = 2500;
        assert_eq!(of(&sample, &asked), ["plain: it ended without the word of a person"]);
        asked.endings[0].decisions = vec![json!({"by": PERSON})];
        assert_eq!(of(&sample, &asked), [""; 0]);
        asked.endings[0].at = 1200;
        assert!(of(&sample, &asked)[0].contains("200 ms"));
    }

    #[test]
    fn work_that_is_left_is_told() {
        let stats = StreamStats { length: 2, lag: None, pending: 1 };
        let found = differences(&[], &Leftovers { stats, ..NOTHING }, true);
        assert_eq!(found, ["the work stream should be empty; it has 2 entries, 1 of them pending"]);
    }

    #[test]
    fn a_turn_that_is_paid_for_twice_is_told() {
        let twice = |paid_twice| differences(&[], &Leftovers { paid_twice, ..NOTHING }, true);
        assert_eq!(twice(Some(1)), ["1 turns of the model were asked for again although they had been given"]);
        assert_eq!(twice(None), [""; 0]);
    }

    #[test]
    fn a_real_model_only_has_to_complete() {
        let sample = Sample { mode: "llm", ..PLAIN };
        let other = run(EventType::NodeCompleted, json!({"output": {"content": "as it likes"}}));
        assert_eq!(differences(&[(&sample, Some(&other))], &NOTHING, false), [""; 0]);
        let failed = run(EventType::NodeFailed, json!({"error": "no"}));
        assert_eq!(differences(&[(&sample, Some(&failed))], &NOTHING, false).len(), 1);
    }

    #[test]
    fn a_killed_worker_cannot_end_a_node() {
        let sample = Sample { sabotage: Sabotage::OnceInATool, ..PLAIN };
        let delivery = |number, worker: &str, killed| Delivery { number, worker: worker.to_owned(), killed, tools: 1 };
        let mut went_on = good();
        went_on.endings[0].resumed = Some(Resumed { turns: 2, tool_calls: 1 });
        let two = || vec![delivery(1, "dead", true), delivery(2, "w", false)];
        let taken = Run { deliveries: two(), ..went_on.clone() };
        assert_eq!(of(&sample, &taken), [""; 0]);
        assert_eq!(of(&sample, &good()), ["plain: its worker was killed 0 times instead of once"]);
        let anew = Run { deliveries: two(), ..good() };
        assert_eq!(of(&sample, &anew), ["plain: it was begun anew instead of going on from what was on record"]);
        let ghost = Run { deliveries: vec![delivery(1, "w", true)], ..went_on };
        assert_eq!(of(&sample, &ghost), ["plain: w ended it, which was killed before"]);
    }
}
