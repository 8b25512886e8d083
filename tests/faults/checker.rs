//! The judge: what must hold after a run, whatever happened in it. It sees evidence alone, values that were read out of
//! Redis, the tool server and the model, and knows nothing of how they came about.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

/// How an identity has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With `node.completed`.
    Completed,
    /// With `node.failed` of this category, beside a dead letter if it says so.
    Failed { category: &'static str, letter: bool },
}

/// One identity that was submitted, once or several times.
#[derive(Debug, Clone)]
pub struct Identity {
    pub graph: String,
    pub node: String,
    pub run: String,
    pub end: End,
    /// A text that its output must contain, so that no result lands with somebody else.
    pub bears: String,
    /// The effects that it has, by name, and whether repeating one is harmless.
    pub effects: Vec<(String, bool)>,
}

/// One terminal event.
#[derive(Debug, Clone)]
pub struct Ending {
    pub event_id: String,
    pub completed: bool,
    pub graph: String,
    pub node: String,
    pub run: String,
    pub seq: u64,
    /// The output, or the sentence of the error.
    pub result: Value,
    /// The category of the error.
    pub category: Option<String>,
    pub work_id: String,
}

/// A node as the graph's state has it.
#[derive(Debug, Clone)]
pub struct NodeState {
    pub graph: String,
    pub node: String,
    pub run: String,
    /// The output, or the sentence of the error.
    pub result: Value,
}

/// A dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    pub work_id: String,
    pub reason: String,
    pub data: String,
}

/// What the tool server counted of one effect.
#[derive(Debug, Clone, Default)]
pub struct Effect {
    pub times: u32,
    /// The idempotency keys it was asked with.
    pub keys: BTreeSet<String>,
}

/// What is left in Redis that must be gone.
#[derive(Debug, Clone, Default)]
pub struct Leftovers {
    pub entries: usize,
    pub pending: usize,
    /// Keys that belong to work in progress, such as journals.
    pub keys: Vec<String>,
}

/// Everything that is known after a run.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    pub identities: Vec<Identity>,
    /// Texts of entries that cannot be understood; each must be a dead letter.
    pub undecodable: Vec<String>,
    pub endings: Vec<Ending>,
    pub states: Vec<NodeState>,
    pub letters: Vec<Letter>,
    pub leftovers: Leftovers,
    pub effects: HashMap<String, Effect>,
    /// Completions that the model gave once more for a turn it had given before.
    pub completions_repeated: u64,
    /// How often each identity was begun, by what workers told.
    pub begun: HashMap<String, usize>,
    /// Items that workers held when a fault met them, summed up over all faults.
    pub in_flight_at_faults: usize,
    /// Resident bytes of the worker that was never killed, in the order of time.
    pub memory: Vec<u64>,
}

/// Figures of a run; the first five have to be nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Identities and undecodable entries without their end.
    pub lost: usize,
    /// Terminal events beyond the first of an identity.
    pub duplicate_events: usize,
    /// Node states that are not those of the last terminal event.
    pub stale_states: usize,
    /// Effects that must not be repeated and were.
    pub duplicate_effects: usize,
    /// Effects that went out under more than one idempotency key.
    pub unstable_keys: usize,
    /// Harmless effects that were repeated.
    pub repeated_effects: usize,
    /// Executions beyond the first of an identity.
    pub re_executions: usize,
    /// Completions paid for twice.
    pub completions_twice: u64,
}

/// What the judge says.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    pub figures: Figures,
    /// A sentence for each thing that must not be, few of a kind.
    pub problems: Vec<String>,
}

/// What the worker is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Whether an effect that must not be repeated may happen twice when its worker dies in the middle.
    pub unsafe_effects_may_repeat: bool,
    /// Whether a completion may be paid for twice.
    pub completions_may_repeat: bool,
}

/// Sentences of one kind that are told; the rest is counted.
const TOLD: usize = 5;
/// A process may grow by this much for good: caches, pools, the allocator's arenas.
const MEMORY_SLACK: u64 = 48 * 1024 * 1024;

/// Judges a run.
pub fn judge(evidence: &Evidence, rules: Rules) -> Verdict {
    let mut court = Court { evidence, verdict: Verdict::default(), told: BTreeMap::new() };
    court.ends();
    court.sequences();
    court.states();
    court.letters();
    court.leftovers();
    court.effects(rules);
    court.executions(rules);
    court.memory();
    let untold: Vec<String> = court
        .told
        .iter()
        .filter(|(_, times)| **times > TOLD)
        .map(|(kind, times)| format!("{kind}: {} more", times - TOLD))
        .collect();
    court.verdict.problems.extend(untold);
    court.verdict
}

struct Court<'a> {
    evidence: &'a Evidence,
    verdict: Verdict,
    told: BTreeMap<&'static str, usize>,
}

impl Court<'_> {
    fn tell(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        let times = self.told.entry(kind).or_default();
        *times += 1;
        if *times <= TOLD {
            self.verdict.problems.push(format!("{kind}: {}", what()));
        }
    }

    /// Each identity has exactly one terminal event, of the right kind and with its own result.
    fn ends(&mut self) {
        let mut by_run: HashMap<&str, Vec<&Ending>> = HashMap::new();
        for ending in &self.evidence.endings {
            by_run.entry(&ending.run).or_default().push(ending);
        }
        for identity in &self.evidence.identities {
            let endings = by_run.remove(identity.run.as_str()).unwrap_or_default();
            let name = format!("{} of {}/{}", identity.run, identity.graph, identity.node);
            let Some(ending) = endings.first() else {
                self.verdict.figures.lost += 1;
                self.tell("lost", || format!("{name} has no terminal event"));
                continue;
            };
            if endings.len() > 1 {
                self.verdict.figures.duplicate_events += endings.len() - 1;
                let ids: BTreeSet<&str> = endings.iter().map(|ending| ending.event_id.as_str()).collect();
                self.tell("duplicate event", || format!("{name} has {} terminal events {ids:?}", endings.len()));
            }
            for ending in &endings {
                self.right_end(&name, identity, ending);
            }
            if (ending.graph.as_str(), ending.node.as_str()) != (identity.graph.as_str(), identity.node.as_str()) {
                self.tell("mixed up", || format!("{name} ended as {}/{}", ending.graph, ending.node));
            }
        }
        for (run, endings) in by_run {
            self.tell("unknown event", || format!("{} events of {run}, which nobody submitted", endings.len()));
        }
    }

    fn right_end(&mut self, name: &str, identity: &Identity, ending: &Ending) {
        let right = match identity.end {
            End::Completed => ending.completed,
            End::Failed { category, .. } => !ending.completed && ending.category.as_deref() == Some(category),
        };
        if !right {
            self.tell("wrong end", || {
                format!("{name} should be {:?}, but: {:?} {}", identity.end, ending.category, ending.result)
            });
        } else if !ending.result.to_string().contains(&identity.bears) {
            self.tell("mixed up", || format!("{name} has a result without {:?}: {}", identity.bears, ending.result));
        }
    }

    /// The terminal events of a graph are counted without a gap: none vanished after it was written.
    fn sequences(&mut self) {
        let mut graphs: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for ending in &self.evidence.endings {
            graphs.entry(&ending.graph).or_default().push(ending.seq);
        }
        for (graph, mut seqs) in graphs {
            seqs.sort_unstable();
            if !seqs.iter().copied().eq(1..=seqs.len() as u64) {
                self.tell("broken count", || format!("the events of {graph} are counted {seqs:?}"));
            }
        }
    }

    /// A node's state is that of its last terminal event.
    fn states(&mut self) {
        let mut last: HashMap<(&str, &str), &Ending> = HashMap::new();
        for ending in &self.evidence.endings {
            let known = last.entry((&ending.graph, &ending.node)).or_insert(ending);
            if ending.seq > known.seq {
                *known = ending;
            }
        }
        let states: HashMap<(&str, &str), &NodeState> =
            self.evidence.states.iter().map(|state| ((state.graph.as_str(), state.node.as_str()), state)).collect();
        for ((graph, node), ending) in last {
            match states.get(&(graph, node)) {
                Some(state) if state.run == ending.run && state.result == ending.result => {}
                Some(state) => {
                    self.verdict.figures.stale_states += 1;
                    self.tell("stale state", || {
                        format!("{graph}/{node} is of {}, but {} ended last: {}", state.run, ending.run, state.result)
                    });
                }
                None => {
                    self.verdict.figures.stale_states += 1;
                    self.tell("lost state", || format!("{graph}/{node} has no state, but {} ended it", ending.run));
                }
            }
        }
    }

    fn letters(&mut self) {
        let mut works = BTreeSet::new();
        for letter in &self.evidence.letters {
            if !works.insert(letter.work_id.as_str()) {
                self.tell("duplicate letter", || format!("{} ({})", letter.work_id, letter.reason));
            }
        }
        let mut known = 0;
        for text in &self.evidence.undecodable {
            let found = self.evidence.letters.iter().filter(|letter| letter.data == *text).count();
            known += found;
            if found == 0 {
                self.verdict.figures.lost += 1;
                self.tell("lost", || format!("an entry that nobody can read is no dead letter: {text}"));
            }
        }
        let ended: HashMap<&str, &str> =
            self.evidence.endings.iter().map(|ending| (ending.run.as_str(), ending.work_id.as_str())).collect();
        for identity in &self.evidence.identities {
            let End::Failed { letter: true, .. } = identity.end else { continue };
            let work = ended.get(identity.run.as_str()).copied().unwrap_or_default();
            if works.contains(work) {
                known += 1;
            } else {
                self.tell("no letter", || format!("{} failed and should be a dead letter too", identity.run));
            }
        }
        if self.evidence.letters.len() > known {
            let (all, reasons) = (self.evidence.letters.len(), self.evidence.letters.iter().map(|l| l.reason.as_str()));
            let reasons: BTreeSet<&str> = reasons.collect();
            self.tell("unknown letter", || format!("{all} letters, {known} expected; reasons: {reasons:?}"));
        }
    }

    fn leftovers(&mut self) {
        let Leftovers { entries, pending, keys } = &self.evidence.leftovers;
        if *entries > 0 || *pending > 0 {
            self.tell("left over", || format!("{entries} entries in the stream, {pending} pending"));
        }
        for key in keys {
            self.tell("left over", || key.clone());
        }
    }

    fn effects(&mut self, rules: Rules) {
        let mut known = BTreeSet::new();
        let completed: BTreeSet<&str> =
            self.evidence.endings.iter().filter(|ending| ending.completed).map(|ending| ending.run.as_str()).collect();
        for identity in &self.evidence.identities {
            for (name, harmless) in &identity.effects {
                known.insert(name.as_str());
                let effect = self.evidence.effects.get(name).cloned().unwrap_or_default();
                if effect.times == 0 {
                    if completed.contains(identity.run.as_str()) {
                        self.verdict.figures.lost += 1;
                        self.tell("lost", || format!("{} completed without its effect {name}", identity.run));
                    }
                    continue;
                }
                if effect.keys.len() != 1 {
                    self.verdict.figures.unstable_keys += 1;
                    self.tell("unstable key", || format!("{name} was asked for with {} keys", effect.keys.len()));
                }
                let extra = (effect.times - 1) as usize;
                // Whoever kills its worker comes again, whatever it does.
                let poison = matches!(identity.end, End::Failed { .. });
                if *harmless || poison {
                    self.verdict.figures.repeated_effects += extra;
                } else if extra > 0 {
                    self.verdict.figures.duplicate_effects += extra;
                    if !rules.unsafe_effects_may_repeat {
                        self.tell("duplicate effect", || format!("{name} happened {} times", effect.times));
                    }
                }
            }
        }
        for name in self.evidence.effects.keys() {
            if !known.contains(name.as_str()) {
                self.tell("unknown effect", || name.clone());
            }
        }
    }

    /// What was begun again was in somebody's hands when a fault met them.
    fn executions(&mut self, rules: Rules) {
        let mut again = 0;
        for identity in &self.evidence.identities {
            let first = identity.effects.first().and_then(|(name, _)| self.evidence.effects.get(name));
            let by_effect = first.map_or(0, |effect| effect.times as usize);
            let begun = self.evidence.begun.get(&identity.run).copied().unwrap_or(0).max(by_effect);
            again += begun.saturating_sub(1);
        }
        self.verdict.figures.re_executions = again;
        let held = self.evidence.in_flight_at_faults;
        if again > held {
            self.tell("needless execution", || format!("{again} re-executions, but faults met only {held} items"));
        }
        let twice = self.evidence.completions_repeated;
        self.verdict.figures.completions_twice = twice;
        if twice > 0 && !rules.completions_may_repeat {
            self.tell("paid twice", || format!("{twice} completions"));
        }
    }

    /// The worker that lived through everything does not grow with the work it has done.
    fn memory(&mut self) {
        let memory = &self.evidence.memory;
        if memory.len() < 8 {
            return;
        }
        let quarter = memory.len() / 4;
        // The first quarter warms caches up; from then on the typical size must stay.
        let (early, late) = (median(&memory[quarter..2 * quarter]), median(&memory[memory.len() - quarter..]));
        if late > early + early / 4 + MEMORY_SLACK {
            self.tell("memory grows", || format!("{} KiB early, {} KiB late", early / 1024, late / 1024));
        }
    }
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STRICT: Rules = Rules { unsafe_effects_may_repeat: false, completions_may_repeat: false };

    fn identity(run: &str, end: End) -> Identity {
        Identity {
            graph: String::from("g"),
            node: String::from("n"),
            run: String::from(run),
            end,
            bears: String::from(run),
            effects: vec![(format!("{run}.0"), false), (format!("{run}.1"), true)],
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
            category: None,
            work_id: format!("s/{run}"),
        }
    }

    fn once() -> Effect {
        Effect { times: 1, keys: BTreeSet::from([String::from("k")]) }
    }

    /// Two identities of one node, one after the other; a poison item; an entry that nobody can read.
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
        let letter =
            |work: &str, data: &str| Letter { work_id: work.into(), reason: "x".into(), data: String::from(data) };
        let runs = ["r1", "r2", "r3"];
        Evidence {
            identities: vec![identity("r1", End::Completed), identity("r2", End::Completed), poisoned],
            undecodable: vec![String::from("junk")],
            endings: vec![ending("r1", 1), ending("r2", 2), poison],
            states: vec![state("n", "r2", json!({"said": "r2"})), state("p", "r3", json!("r3 kills"))],
            letters: vec![letter("s/r3", "{}"), letter("s/9", "junk")],
            effects: runs.iter().flat_map(|run| [(format!("{run}.0"), once()), (format!("{run}.1"), once())]).collect(),
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
        assert_eq!((verdict.problems.as_slice(), verdict.figures), ([].as_slice(), Figures::default()));
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
        only(&problems(|evidence| evidence.leftovers.entries = 1), "left over");
        only(&problems(|evidence| evidence.leftovers.keys.push(String::from("journal"))), "left over");
    }

    fn change(evidence: &mut Evidence, name: &str, times: u32, keys: &[&str]) {
        let keys = keys.iter().map(|key| String::from(*key)).collect();
        evidence.effects.insert(String::from(name), Effect { times, keys });
        evidence.in_flight_at_faults = 9;
    }

    #[test]
    fn an_effect_is_there_once_under_one_key() {
        only(&problems(|evidence| change(evidence, "r1.0", 2, &["k"])), "duplicate effect");
        only(&problems(|evidence| change(evidence, "r1.0", 0, &[])), "lost");
        assert_eq!(problems(|evidence| change(evidence, "r1.1", 2, &["k"])), [""; 0], "a harmless one may come again");
        only(&problems(|evidence| change(evidence, "r1.1", 2, &["k", "l"])), "unstable key");
        only(&problems(|evidence| change(evidence, "other", 1, &["k"])), "unknown effect");
        let mut evidence = good();
        change(&mut evidence, "r1.0", 3, &["k"]);
        let lenient = Rules { unsafe_effects_may_repeat: true, ..STRICT };
        let verdict = judge(&evidence, lenient);
        assert_eq!(
            (verdict.problems.len(), verdict.figures.duplicate_effects, verdict.figures.re_executions),
            (0, 2, 2)
        );
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
    }

    #[test]
    fn completions_are_paid_for_once() {
        only(&problems(|evidence| evidence.completions_repeated = 1), "paid twice");
    }

    #[test]
    fn memory_that_grows_with_the_work_is_told() {
        only(&problems(|evidence| evidence.memory = (1..=64).map(|step| step * (4 << 20)).collect()), "memory grows");
        let warm: Vec<u64> = (0..64).map(|step| if step < 8 { 40 << 20 } else { 90 << 20 }).collect();
        assert_eq!(problems(|evidence| evidence.memory = warm), [""; 0], "caches are warmed up once");
    }

    #[test]
    fn many_problems_of_a_kind_are_counted() {
        let found = problems(|evidence| evidence.leftovers.keys = (0..9).map(|n| format!("key {n}")).collect());
        assert_eq!((found.len(), found[5].as_str()), (6, "left over: 4 more"));
    }
}
