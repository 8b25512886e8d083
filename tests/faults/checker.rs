//! The judge: what must hold after a run, whatever happened in it. It sees evidence alone, values that were read out of
//! Redis, the tool server and the model, and knows nothing of how they came about.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::evidence::{Effect, End, Ending, Evidence, Identity, Intended, Leftovers, Member, NodeState, Stored, Told};

/// Figures of a run; the first six have to be nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Identities, effects of completed ones, and undecodable entries without their end.
    pub lost: usize,
    /// Terminal events beyond the first of an identity.
    pub duplicate_events: usize,
    /// Node states that are not those of the last terminal event.
    pub stale_states: usize,
    /// Effects that happened more than once, where a tool that is declared idempotent has done what it was asked for
    /// once for each key.
    pub duplicate_effects: usize,
    /// Effects that went out under more than one idempotency key, and keys of more than one effect.
    pub unstable_keys: usize,
    /// Calls whose end was on record and that were made again, by a worker that had not been stopped in their middle.
    pub finished_again: usize,
    /// Calls of idempotent tools that were made again under the same key.
    pub calls_again: usize,
    /// Executions beyond the first of an identity.
    pub re_executions: usize,
    /// Completions paid for twice.
    pub completions_twice: u64,
    /// Calls of which a model was told that they may have happened.
    pub unknown_told: usize,
    /// Nodes that failed because nobody knows whether their call happened.
    pub unknown_ends: usize,
    /// Whether a worker lived for long enough to be judged by its memory.
    pub memory_judged: bool,
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
    /// Whether a completion that was under way when a fault met its worker may be paid for again.
    pub completions_may_repeat: bool,
    /// Whether the run is long enough for a worker's memory to be judged, so that not to judge it is a fault.
    pub memory_must_be_judged: bool,
    /// The longest that the work of a dead worker may wait for another one while Redis is there.
    pub takeover: Duration,
}

/// What the tools note where a call came without a key.
pub const NO_KEY: &str = "none";
/// Sentences of one kind that are told; the rest is counted.
const TOLD: usize = 5;
/// A process may grow by this much for good: caches, pools, the allocator's arenas.
const MEMORY_SLACK: u64 = 16 * 1024 * 1024;
/// Samples from which on it can be told whether a process grows.
const MEMORY_SAMPLES: usize = 8;

/// Judges a run.
pub fn judge(evidence: &Evidence, rules: Rules) -> Verdict {
    let mut court = Court { evidence, verdict: Verdict::default(), told: BTreeMap::new() };
    court.ends();
    court.sequences();
    court.states();
    court.members();
    court.letters();
    court.leftovers();
    court.effects();
    court.keys();
    court.unknown();
    court.executions(rules);
    court.takeovers(rules);
    court.memory(rules);
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
        let category = ending.category.as_deref();
        let unknown = is_unknown(ending);
        let right = match identity.end {
            End::Completed => ending.completed,
            End::CompletedOrUnknown => ending.completed || unknown,
            End::Failed { category: wanted, .. } => !ending.completed && category == Some(wanted),
        };
        if !right {
            self.tell("wrong end", || {
                format!("{name} should be {:?}, but: {category:?} {:?} {}", identity.end, ending.code, ending.result)
            });
        } else if ending.completed {
            self.right_output(name, identity, ending);
        } else if unknown {
            self.verdict.figures.unknown_ends += 1;
        }
    }

    fn right_output(&mut self, name: &str, identity: &Identity, ending: &Ending) {
        let inline = ending.result.to_string();
        let output = match &ending.stored {
            Some(Stored::Whole(output)) => output,
            Some(Stored::Missing | Stored::Changed) => {
                self.verdict.figures.lost += 1;
                return self.tell("lost output", || format!("{name}: {:?} {inline}", ending.stored));
            }
            None => &inline,
        };
        if identity.large != ending.stored.is_some() {
            self.tell("misplaced output", || format!("{name} is large: {}, but: {inline}", identity.large));
        }
        if !output.contains(&identity.bears) {
            self.tell("mixed up", || format!("{name} has a result without {:?}: {output}", identity.bears));
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

    /// What others wrote into a state stays as it was.
    fn members(&mut self) {
        let members = self.evidence.members.iter();
        let members: HashMap<_, _> = members.map(|member| ((&member.graph, &member.name), &member.value)).collect();
        for Member { graph, name, value } in &self.evidence.written_by_others {
            let found = members.get(&(graph, name)).copied();
            if found != Some(value) {
                self.verdict.figures.stale_states += 1;
                self.tell("lost field", || format!("{graph} had {name} {value}, and now {found:?}"));
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
        let Leftovers { waiting, pending, others, staged } = &self.evidence.leftovers;
        if *waiting > 0 || *pending > 0 {
            self.tell("left over", || format!("{waiting} entries and waiting items, {pending} pending"));
        }
        for what in others {
            self.tell("left over", || what.clone());
        }
        if *staged > self.evidence.in_flight_at_faults {
            self.tell("left over", || format!("{staged} outputs beside their place, more than faults can have met"));
        }
    }

    /// Each effect happened, and happened once, as far as the identity's end says so.
    fn effects(&mut self) {
        let evidence = self.evidence;
        let mut known = HashSet::new();
        let endings: HashMap<&str, &Ending> =
            evidence.endings.iter().map(|ending| (ending.run.as_str(), ending)).collect();
        let nothing = (Effect::default(), Told::default());
        for identity in &evidence.identities {
            let completed = endings.get(identity.run.as_str()).is_some_and(|ending| ending.completed);
            for intended in &identity.effects {
                known.insert(intended.name.as_str());
                let effect = evidence.effects.get(&intended.name).unwrap_or(&nothing.0);
                let told = evidence.told.get(&intended.name).unwrap_or(&nothing.1);
                self.times(intended, effect);
                if identity.agent {
                    self.words(intended, effect, told, completed);
                } else if completed && effect.times == 0 {
                    self.verdict.figures.lost += 1;
                    self.tell("lost", || format!("{} completed without its effect", intended.name));
                }
                self.verdict.figures.finished_again += effect.after_end as usize;
            }
        }
        for name in evidence.effects.keys() {
            if !known.contains(name.as_str()) {
                self.tell("unknown effect", || name.clone());
            }
        }
        // Who was stopped between the record of a call and the call itself makes it when it goes on.
        let again = self.verdict.figures.finished_again;
        if again > evidence.in_flight_at_pauses {
            self.tell("finished call made again", || {
                format!("{again} calls, but pauses met only {} items", evidence.in_flight_at_pauses)
            });
        }
    }

    fn times(&mut self, intended: &Intended, effect: &Effect) {
        let Intended { name, idempotent } = intended;
        let distinct = effect.keys.len();
        if effect.times > 0 && (distinct != 1 || effect.keys.contains(NO_KEY)) {
            self.verdict.figures.unstable_keys += 1;
            self.tell("unstable key", || format!("{name} was asked for with the keys {:?}", effect.keys));
        }
        let times = effect.times as usize;
        let extra = if *idempotent { distinct } else { times }.saturating_sub(1);
        if extra > 0 {
            self.verdict.figures.duplicate_effects += extra;
            self.tell("duplicate effect", || format!("{name} happened {} times", extra + 1));
        }
        if *idempotent {
            self.verdict.figures.calls_again += times.saturating_sub(distinct);
        }
    }

    /// What a model was told about an effect is true, and stays the same whoever goes on with the conversation.
    fn words(&mut self, intended: &Intended, effect: &Effect, told: &Told, completed: bool) {
        let name = &intended.name;
        self.verdict.figures.unknown_told += usize::from(told.unknown);
        if let Some(words) = &told.other {
            self.tell("wrong words", || format!("a model was told about {name}: {words}"));
        }
        if told.happened && told.unknown {
            self.tell("two stories", || format!("a model was told that {name} happened, and that nobody knows"));
        }
        if told.unknown && intended.idempotent {
            self.tell("needless doubt", || format!("{name} could have been asked for again"));
        }
        if told.happened && effect.times == 0 {
            self.verdict.figures.lost += 1;
            self.tell("lost", || format!("a model was told that {name} happened, but it did not"));
        }
        if completed && !told.happened && !told.unknown {
            self.verdict.figures.lost += 1;
            self.tell("lost", || format!("the agent ended without a word about {name}"));
        }
    }

    /// A key belongs to one effect, or a tool that remembers keys would leave one of them out.
    fn keys(&mut self) {
        let mut owners: HashMap<&str, &str> = HashMap::new();
        for (name, effect) in &self.evidence.effects {
            for key in effect.keys.iter().filter(|key| *key != NO_KEY) {
                if let Some(other) = owners.insert(key, name) {
                    self.verdict.figures.unstable_keys += 1;
                    self.tell("shared key", || format!("{name} and {other} were asked for with {key}"));
                }
            }
        }
    }

    /// Nobody is left in doubt about a call that no fault met.
    fn unknown(&mut self) {
        let Figures { unknown_told, unknown_ends, .. } = self.verdict.figures;
        let (doubts, held) = (unknown_told + unknown_ends, self.evidence.in_flight_at_faults);
        if doubts > held {
            self.tell("needless doubt", || format!("{doubts} unknown outcomes, but faults met only {held} items"));
        }
    }

    /// What was begun again was in somebody's hands when a fault met it.
    fn executions(&mut self, rules: Rules) {
        let mut again = 0;
        for identity in &self.evidence.identities {
            let first = identity.effects.first().and_then(|effect| self.evidence.effects.get(&effect.name));
            let by_effect = first.map_or(0, |effect| effect.times as usize);
            let begun = self.evidence.begun.get(&identity.run).copied().unwrap_or(0).max(by_effect);
            again += begun.saturating_sub(1 + identity.waits);
        }
        self.verdict.figures.re_executions = again;
        let held = self.evidence.in_flight_at_faults;
        if again > held {
            self.tell("needless execution", || format!("{again} re-executions, but faults met only {held} items"));
        }
        let twice = self.evidence.completions_repeated;
        self.verdict.figures.completions_twice = twice;
        let most = if rules.completions_may_repeat { held as u64 } else { 0 };
        if twice > most {
            self.tell("paid twice", || format!("{twice} completions, but faults can have met only {most}"));
        }
    }

    /// What a dead worker had is soon in other hands.
    fn takeovers(&mut self, rules: Rules) {
        let slowest = self.evidence.slowest_takeover;
        if slowest > rules.takeover {
            self.tell("slow takeover", || format!("{slowest:?}, and {:?} are enough", rules.takeover));
        }
    }

    /// The worker that lived through everything does not grow with the work it has done.
    fn memory(&mut self, rules: Rules) {
        let memory = &self.evidence.memory;
        self.verdict.figures.memory_judged = memory.len() >= MEMORY_SAMPLES;
        if !self.verdict.figures.memory_judged {
            if rules.memory_must_be_judged {
                self.tell("memory not judged", || format!("{} samples, {MEMORY_SAMPLES} needed", memory.len()));
            }
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

/// Whether a node failed because its call was begun and nobody knows its end.
pub fn is_unknown(ending: &Ending) -> bool {
    ending.code.as_deref() == Some("unknown_tool_outcome") && ending.category.as_deref() == Some("permanent")
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
