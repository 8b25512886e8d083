//! What a fault can have cost: the entries that a worker had in its hands when the fault met it, counted where the server
//! keeps the books. A fault that takes nothing out of anybody's hands is charged with nothing.

use std::collections::HashMap;

/// How many entries each consumer has pending.
pub type Pending = HashMap<String, usize>;

/// What the server says of who has what.
#[derive(Debug, Clone)]
pub enum Books {
    /// Just now.
    Now(Pending),
    /// Right before it went away. Nothing changes hands until it is back.
    Then(Pending),
}

/// The charges of a run.
#[derive(Debug, Default)]
pub struct Charges {
    /// Items that workers held when a fault met them, summed up over all faults.
    pub at_faults: usize,
    /// The same of workers that were stopped in their middle and went on with what was no longer theirs.
    pub at_pauses: usize,
    /// Workers that a fault has met and that may still be given work by a read which was under way.
    struck: Vec<Struck>,
}

/// A worker that a fault has met, and how many entries at once it was seen to have since.
#[derive(Debug)]
struct Struck {
    id: String,
    over: Over,
    counted: usize,
}

/// When a fault is over for the worker that it met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// When [`Charges::over`] says so: it stands still.
    Recovered,
    /// When [`Charges::over`] says so: its wire is so bad that its leases may run out.
    Healed,
    /// When this process has ended, which was told to.
    Ended(u32),
    /// When it has no entry any more: it is dead.
    Taken,
}

impl Charges {
    /// A fault has met a worker: what it holds from now on, until it is over, is what can be executed again for it. It
    /// reads no more, but a read that waits in Redis may still bring it some.
    pub fn struck(&mut self, id: &str, over: Over) {
        self.struck.push(Struck { id: String::from(id), over, counted: 0 });
    }

    /// Whether a worker is struck in this way.
    pub fn is_struck(&self, id: &str, over: Over) -> bool {
        self.struck.iter().any(|struck| struck.over == over && struck.id == id)
    }

    /// What had met a worker in this way is over.
    pub fn over(&mut self, over: Over, met: impl Fn(&str) -> bool) {
        self.struck.retain(|struck| struck.over != over || !met(&struck.id));
    }

    /// Whether nobody is struck.
    pub fn is_empty(&self) -> bool {
        self.struck.is_empty()
    }

    /// Counts what those hold who are struck, by the books as they are or as they were when the server went away.
    /// `leaves` says whether a process that was told to end is still there, `lives` whether some process bears a name.
    pub fn count(&mut self, books: &Books, leaves: impl Fn(u32) -> bool, lives: impl Fn(&str) -> bool) {
        let Self { at_faults, at_pauses, struck } = self;
        let (pending, now) = match books {
            Books::Now(pending) => (pending, true),
            Books::Then(pending) => (pending, false),
        };
        for Struck { id, over, counted } in struck.iter_mut() {
            // What a namesake takes up after a death is its own.
            if *over == Over::Taken && *counted > 0 && lives(id) {
                continue;
            }
            let more = held(pending, id).saturating_sub(*counted);
            *counted += more;
            *at_faults += more;
            if *over == Over::Recovered {
                *at_pauses += more;
            }
        }
        struck.retain(|struck| match struck.over {
            Over::Recovered | Over::Healed => true,
            Over::Ended(process) => leaves(process),
            // What the server gave out at the last moment stands in its books when it is back.
            Over::Taken => !now || held(pending, &struck.id) > 0,
        });
    }
}

/// What all consumers of a worker have pending; one process is one consumer, twins are two.
pub fn held(pending: &Pending, id: &str) -> usize {
    let own = |consumer: &str| consumer.strip_prefix(id).is_some_and(|rest| rest.starts_with(':'));
    pending.iter().filter(|(consumer, _)| own(consumer)).map(|(_, count)| count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(of: &[(&str, usize)]) -> Pending {
        of.iter().map(|(consumer, count)| (String::from(*consumer), *count)).collect()
    }

    #[test]
    fn who_dies_while_the_server_is_away_is_charged_with_what_it_had_and_with_what_it_still_got() {
        let mut charges = Charges::default();
        let then = Books::Then(pending(&[("w1:a", 2), ("w10:a", 7)]));
        charges.struck("w1", Over::Taken);
        for _ in 0..2 {
            charges.count(&then, |_| false, |_| false);
            assert_eq!(charges.at_faults, 2, "each once, however often it is looked, and nothing of somebody else's");
        }
        charges.count(&Books::Now(pending(&[("w1:a", 3)])), |_| false, |_| false);
        assert_eq!((charges.at_faults, charges.at_pauses), (3, 0));
        charges.count(&Books::Now(pending(&[])), |_| false, |_| false);
        assert!(charges.is_empty(), "somebody has taken it over");
    }

    #[test]
    fn a_pause_and_a_bad_wire_are_charged_until_they_are_over_and_a_leave_until_its_end() {
        let mut charges = Charges::default();
        charges.struck("w1", Over::Recovered);
        charges.struck("w2", Over::Healed);
        charges.struck("w3", Over::Ended(7));
        let books = |count| Books::Now(pending(&[("w1:a", count), ("w2:a", count), ("w3:a", count)]));
        charges.count(&books(1), |process| process == 7, |_| true);
        charges.count(&books(2), |_| false, |_| true);
        assert_eq!((charges.at_faults, charges.at_pauses), (6, 2));
        charges.over(Over::Recovered, |id| id == "w1");
        assert!(charges.is_struck("w2", Over::Healed));
        charges.over(Over::Healed, |_| true);
        assert!(charges.is_empty());
    }

    #[test]
    fn what_a_namesake_takes_up_after_a_death_is_its_own() {
        let mut charges = Charges::default();
        charges.struck("w1", Over::Taken);
        charges.count(&Books::Now(pending(&[("w1:a", 1)])), |_| false, |_| true);
        charges.count(&Books::Now(pending(&[("w1:a", 1), ("w1:b", 5)])), |_| false, |_| true);
        assert_eq!(charges.at_faults, 1);
    }
}
