use serde_json::{Value, json};

use super::super::evidence::Letter;
use super::*;

const STRICT: Rules =
    Rules { completions_may_repeat: false, memory_must_be_judged: false, takeover: Duration::from_secs(9) };

fn intended(name: String, idempotent: bool) -> Intended {
    Intended { name, idempotent }
}

fn identity(run: &str, end: End) -> Identity {
    Identity {
        graph: String::from("g"),
        node: String::from("n"),
        run: String::from(run),
        end,
        bears: String::from(run),
        effects: vec![intended(format!("{run}.0"), false), intended(format!("{run}.1"), true)],
        agent: false,
        large: false,
        waits: 0,
    }
}

fn ending(run: &str, seq: u64) -> Ending {
    Ending {
        event_id: format!("evt_{run}"),
        completed: true,
        graph: String::from("g"),
        node: String::from("n"),
        run: String::from(run),
        seq,
        result: json!({"said": run}),
        stored: None,
        category: None,
        code: None,
        work_id: format!("s/{run}"),
    }
}

fn effect(times: u32, keys: &[&str]) -> Effect {
    Effect { times, keys: keys.iter().map(|key| String::from(*key)).collect(), after_end: 0 }
}

/// An agent and a tool of one node, one after the other; a poison item; an entry that nobody can read.
fn good() -> Evidence {
    let poison = Ending {
        completed: false,
        node: String::from("p"),
        result: json!("r3 kills"),
        category: Some(String::from("poison")),
        ..ending("r3", 3)
    };
    let mut poisoned = identity("r3", End::Failed { category: "poison", letter: true });
    poisoned.node = String::from("p");
    let state = |node: &str, run: &str, result: Value| NodeState {
        graph: String::from("g"),
        node: String::from(node),
        run: String::from(run),
        result,
    };
    let letter = |work: &str, data: &str| Letter { work_id: work.into(), reason: "x".into(), data: String::from(data) };
    let runs = ["r1", "r2", "r3"];
    let agent = Identity { agent: true, ..identity("r1", End::Completed) };
    let once = |run: &str, number: usize| {
        let name = format!("{run}.{number}");
        (name.clone(), effect(1, &[&format!("key of {name}")]))
    };
    let happened = Told { happened: true, ..Told::default() };
    Evidence {
        identities: vec![agent, identity("r2", End::CompletedOrUnknown), poisoned],
        undecodable: vec![String::from("junk")],
        endings: vec![ending("r1", 1), ending("r2", 2), poison],
        states: vec![state("n", "r2", json!({"said": "r2"})), state("p", "r3", json!("r3 kills"))],
        letters: vec![letter("s/r3", "{}"), letter("s/9", "junk")],
        effects: runs.iter().flat_map(|run| [once(run, 0), once(run, 1)]).collect(),
        told: ["r1.0", "r1.1"].map(|name| (String::from(name), happened.clone())).into(),
        begun: runs.iter().map(|run| (String::from(*run), 1)).collect(),
        memory: vec![100 << 20; 16],
        ..Evidence::default()
    }
}

fn problems(change: impl FnOnce(&mut Evidence)) -> Vec<String> {
    let mut evidence = good();
    change(&mut evidence);
    judge(&evidence, STRICT).problems
}

fn only(found: &[String], kind: &str) {
    assert!(found.len() == 1 && found[0].starts_with(kind), "{kind} expected: {found:?}");
}

#[test]
fn a_run_without_a_fault_is_clean() {
    let verdict = judge(&good(), STRICT);
    let clean = Figures { memory_judged: true, ..Figures::default() };
    assert_eq!((verdict.problems.as_slice(), verdict.figures), ([].as_slice(), clean));
}

#[test]
fn an_identity_without_an_end_is_lost() {
    let found = problems(|evidence| {
        evidence.endings.remove(1);
        evidence.endings[1].seq = 2;
        evidence.states[0] =
            NodeState { run: "r1".into(), result: json!({"said": "r1"}), ..evidence.states[0].clone() };
    });
    only(&found, "lost");
}

#[test]
fn a_second_terminal_event_is_told_whatever_its_id_is() {
    for id in ["evt_r2", "evt_other"] {
        let found = problems(|evidence| {
            evidence.endings.push(Ending { event_id: String::from(id), seq: 4, ..ending("r2", 4) });
        });
        only(&found, "duplicate event");
    }
    let mut evidence = good();
    evidence.endings.push(ending("r2", 4));
    assert_eq!(judge(&evidence, STRICT).figures.duplicate_events, 1);
}

#[test]
fn an_event_that_vanished_leaves_a_gap_in_the_count() {
    only(&problems(|evidence| evidence.endings[2].seq = 4), "broken count");
}

#[test]
fn an_end_of_the_wrong_kind_is_told() {
    only(&problems(|evidence| evidence.endings[2].category = Some(String::from("internal"))), "wrong end");
    only(
        &problems(|evidence| evidence.identities[0].end = End::Failed { category: "poison", letter: false }),
        "wrong end",
    );
    only(&problems(|evidence| evidence.identities[0].bears = String::from("r7")), "mixed up");
}

#[test]
fn a_state_that_an_older_owner_wrote_last_is_told() {
    only(&problems(|evidence| evidence.states[0].run = String::from("r1")), "stale state");
    only(&problems(|evidence| evidence.states[0].result = json!("other")), "stale state");
    only(&problems(|evidence| drop(evidence.states.remove(0))), "lost state");
}

#[test]
fn what_others_wrote_into_a_state_stays() {
    let status = |value: &str| Member { graph: "g".into(), name: "status".into(), value: json!(value) };
    let found = |members: Vec<Member>| {
        problems(|evidence| (evidence.members, evidence.written_by_others) = (members, vec![status("running")]))
    };
    assert_eq!(found(vec![status("running")]), [""; 0]);
    only(&found(vec![status("completed")]), "lost field");
    only(&found(vec![]), "lost field");
}

#[test]
fn letters_are_neither_missing_nor_too_many() {
    only(&problems(|evidence| drop(evidence.letters.remove(0))), "no letter");
    only(&problems(|evidence| drop(evidence.letters.remove(1))), "lost");
    let extra = Letter { work_id: "s/r1".into(), reason: "poison".into(), data: "{}".into() };
    only(&problems(|evidence| evidence.letters.push(extra)), "unknown letter");
    let found = problems(|evidence| evidence.letters.push(evidence.letters[0].clone()));
    assert!(found.iter().any(|what| what.starts_with("duplicate letter")), "{found:?}");
}

#[test]
fn what_is_left_behind_is_told() {
    only(&problems(|evidence| evidence.leftovers.pending = 1), "left over");
    only(&problems(|evidence| evidence.leftovers.waiting = 1), "left over");
    only(&problems(|evidence| evidence.leftovers.others.push(String::from("journal"))), "left over");
    only(&problems(|evidence| evidence.leftovers.staged = 1), "left over");
    let met = |evidence: &mut Evidence| (evidence.leftovers.staged, evidence.in_flight_at_faults) = (1, 1);
    assert_eq!(problems(met), [""; 0], "its worker died before it settled");
}

fn change(evidence: &mut Evidence, name: &str, times: u32, keys: &[&str]) {
    evidence.effects.insert(String::from(name), effect(times, keys));
    evidence.in_flight_at_faults = 9;
}

#[test]
fn an_effect_is_there_once_under_one_key() {
    for agent_or_tool in ["r1.0", "r2.0"] {
        only(&problems(|evidence| change(evidence, agent_or_tool, 2, &["k"])), "duplicate effect");
        only(&problems(|evidence| change(evidence, agent_or_tool, 0, &[])), "lost");
    }
    only(&problems(|evidence| change(evidence, "other", 1, &["k"])), "unknown effect");
    only(&problems(|evidence| change(evidence, "r2.0", 1, &[NO_KEY])), "unstable key");
    only(&problems(|evidence| change(evidence, "r2.0", 1, &["key of r1.0"])), "shared key");
    let mut evidence = good();
    change(&mut evidence, "r1.0", 3, &["k"]);
    let figures = judge(&evidence, STRICT).figures;
    assert_eq!((figures.duplicate_effects, figures.re_executions), (2, 2));
}

#[test]
fn an_idempotent_tool_may_be_asked_again_under_the_same_key_alone() {
    let mut evidence = good();
    change(&mut evidence, "r2.1", 3, &["k"]);
    let verdict = judge(&evidence, STRICT);
    assert_eq!((verdict.problems.len(), verdict.figures.duplicate_effects, verdict.figures.calls_again), (0, 0, 2));
    let found = problems(|evidence| change(evidence, "r2.1", 2, &["k", "l"]));
    assert!(found[0].starts_with("unstable key") && found[1].starts_with("duplicate effect"), "{found:?}");
}

/// The tool node's end is that nobody knows.
fn doubtful(evidence: &mut Evidence) {
    let ending = &mut evidence.endings[1];
    ending.completed = false;
    (ending.category, ending.code) = (Some("permanent".into()), Some("unknown_tool_outcome".into()));
    evidence.in_flight_at_faults = 1;
}

#[test]
fn a_tool_node_may_end_in_doubt_whether_or_not_its_call_happened() {
    for times in [0, 1] {
        let mut evidence = good();
        doubtful(&mut evidence);
        evidence.effects.insert(String::from("r2.0"), effect(times, &["k"][..times as usize]));
        let verdict = judge(&evidence, STRICT);
        assert_eq!((verdict.problems.as_slice(), verdict.figures.unknown_ends), ([].as_slice(), 1));
    }
    let twice = |evidence: &mut Evidence| {
        doubtful(evidence);
        change(evidence, "r2.0", 2, &["k"]);
    };
    only(&problems(twice), "duplicate effect");
    let without_a_fault = |evidence: &mut Evidence| {
        doubtful(evidence);
        evidence.in_flight_at_faults = 0;
    };
    only(&problems(without_a_fault), "needless doubt");
    let of_an_agent = |evidence: &mut Evidence| {
        doubtful(evidence);
        evidence.identities[1].end = End::Completed;
    };
    only(&problems(of_an_agent), "wrong end");
    let otherwise = |evidence: &mut Evidence| {
        doubtful(evidence);
        evidence.endings[1].code = Some("journal_mismatch".into());
    };
    only(&problems(otherwise), "wrong end");
}

#[test]
fn a_model_is_told_the_truth_and_one_story() {
    let told = |name: &str, words: Told| {
        problems(|evidence| {
            evidence.told.insert(String::from(name), words);
            evidence.in_flight_at_faults = 1;
        })
    };
    let unknown = Told { unknown: true, ..Told::default() };
    assert_eq!(told("r1.0", unknown.clone()), [""; 0]);
    only(&told("r1.0", Told { happened: true, ..unknown.clone() }), "two stories");
    only(&told("r1.1", unknown.clone()), "needless doubt");
    only(&told("r1.0", Told::default()), "lost");
    only(&told("r1.0", Told { happened: true, other: Some("no".into()), ..Told::default() }), "wrong words");
    let in_doubt = |times: u32| {
        let unknown = unknown.clone();
        problems(move |evidence| {
            evidence.told.insert(String::from("r1.0"), unknown);
            change(evidence, "r1.0", times, &["k", "k"][..times as usize]);
        })
    };
    assert_eq!((in_doubt(0), in_doubt(1)), (vec![], vec![]));
    only(&in_doubt(2), "duplicate effect");
}

#[test]
fn only_who_was_stopped_makes_a_finished_call_again() {
    let again = |pauses| {
        problems(|evidence| {
            change(evidence, "r1.1", 2, &["k"]);
            evidence.effects.get_mut("r1.1").expect("it is there").after_end = 1;
            evidence.in_flight_at_pauses = pauses;
        })
    };
    only(&again(0), "finished call made again");
    assert_eq!(again(1), [""; 0]);
}

#[test]
fn a_large_output_is_stored_whole_and_a_small_one_is_not() {
    let stored = |large: bool, stored: Option<Stored>| {
        problems(|evidence| {
            evidence.identities[0].large = large;
            evidence.endings[0].stored = stored;
        })
    };
    assert_eq!(stored(true, Some(Stored::Whole("a lot of r1".into()))), [""; 0]);
    only(&stored(true, Some(Stored::Whole("a lot of r2".into()))), "mixed up");
    only(&stored(true, Some(Stored::Missing)), "lost output");
    only(&stored(true, Some(Stored::Changed)), "lost output");
    only(&stored(true, None), "misplaced output");
    only(&stored(false, Some(Stored::Whole("r1".into()))), "misplaced output");
}

#[test]
fn nothing_is_executed_again_without_a_fault() {
    let again = |held| {
        problems(|evidence| {
            evidence.begun.insert(String::from("r1"), 3);
            evidence.in_flight_at_faults = held;
        })
    };
    only(&again(1), "needless execution");
    assert_eq!(again(2), [""; 0]);
    let waits = |evidence: &mut Evidence| {
        evidence.identities[0].waits = 2;
        evidence.begun.insert(String::from("r1"), 3);
    };
    assert_eq!(problems(waits), [""; 0], "who waits comes back");
}

#[test]
fn completions_are_paid_for_once() {
    let twice = |evidence: &mut Evidence| (evidence.completions_repeated, evidence.in_flight_at_faults) = (2, 1);
    only(&problems(twice), "paid twice");
    let mut evidence = good();
    twice(&mut evidence);
    let lenient = Rules { completions_may_repeat: true, ..STRICT };
    only(&judge(&evidence, lenient).problems, "paid twice");
    evidence.in_flight_at_faults = 2;
    assert_eq!(judge(&evidence, lenient).problems, [""; 0], "each was under way when a fault met it");
}

#[test]
fn work_that_a_dead_worker_leaves_behind_does_not_wait_for_long() {
    let waits = |seconds| problems(|evidence| evidence.slowest_takeover = Duration::from_secs(seconds));
    only(&waits(10), "slow takeover");
    assert_eq!(waits(9), [""; 0]);
}

#[test]
fn memory_that_grows_with_the_work_is_told() {
    only(&problems(|evidence| evidence.memory = (1..=64).map(|step| step * (4 << 20)).collect()), "memory grows");
    let warm: Vec<u64> = (0..64).map(|step| if step < 8 { 40 << 20 } else { 90 << 20 }).collect();
    assert_eq!(problems(|evidence| evidence.memory = warm), [""; 0], "caches are warmed up once");
    let late = (0..64).map(|step| if step < 32 { 50 << 20 } else { 90 << 20 }).collect();
    only(&problems(|evidence| evidence.memory = late), "memory grows");
}

#[test]
fn memory_that_cannot_be_judged_is_told_where_it_has_to_be() {
    let evidence = Evidence { memory: vec![100 << 20; 7], ..good() };
    let verdict = judge(&evidence, STRICT);
    assert_eq!((verdict.figures.memory_judged, verdict.problems), (false, Vec::new()));
    only(&judge(&evidence, Rules { memory_must_be_judged: true, ..STRICT }).problems, "memory not judged");
    assert!(judge(&good(), STRICT).figures.memory_judged);
}

#[test]
fn many_problems_of_a_kind_are_counted() {
    let found = problems(|evidence| evidence.leftovers.others = (0..9).map(|n| format!("key {n}")).collect());
    assert_eq!((found.len(), found[5].as_str()), (6, "left over: 4 more"));
}
