//! How long the work of dead workers waits until somebody else has it: by the clock, and counting only the time in which
//! Redis was there, for while it is away nobody can take anything over.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::fleet::{CONNECT_MS, LEASE_MS, SWEEP_MS};

/// How long a takeover may take while Redis is there. A lease runs out, Redis may go away just then, and when it is back
/// workers connect, have a lease of contact, and look: 4.25 s, of which a machine with much else to do may make four times
/// as much. Whatever else a worker waits for takes longer.
pub const TAKEOVER: Duration = Duration::from_millis(4 * (LEASE_MS + CONNECT_MS + LEASE_MS + SWEEP_MS));

/// The deaths whose work still waits, and the longest wait so far.
#[derive(Debug, Default)]
pub struct Takeovers {
    waiting: HashMap<String, Death>,
    /// The time in which Redis was there, as far as it was looked.
    served: Duration,
    /// When it answered last, unless it has been away since.
    answered: Option<Instant>,
    /// By the clock.
    pub longest: Duration,
    /// Without the time in which Redis was away.
    pub longest_served: Duration,
    /// Whose work that was.
    pub slowest: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Death {
    since: Instant,
    /// The time in which Redis had been there until then.
    served: Duration,
}

impl Takeovers {
    /// The worker of this name has died.
    pub fn died(&mut self, id: &str, now: Instant) {
        self.waiting.insert(String::from(id), Death { since: now, served: self.served });
    }

    /// Redis is not there.
    pub fn away(&mut self) {
        self.answered = None;
    }

    /// Redis has answered: `holds` says whether a name has anything, `lives` whether another process bears it, whose
    /// things are its own.
    pub fn answered(&mut self, now: Instant, holds: impl Fn(&str) -> bool, lives: impl Fn(&str) -> bool) {
        self.served += self.answered.replace(now).map_or(Duration::ZERO, |last| now - last);
        let Self { waiting, served, longest, longest_served, slowest, .. } = self;
        waiting.retain(|id, death| {
            if lives(id) {
                *death = Death { since: now, served: *served };
            } else if !holds(id) {
                *longest = (*longest).max(now - death.since);
                let waited = *served - death.served;
                if waited > *longest_served {
                    *longest_served = waited;
                    *slowest = Some(id.clone());
                }
                return false;
            }
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn only_the_time_in_which_redis_is_there_counts_against_the_worker() {
        let (mut takeovers, start) = (Takeovers::default(), Instant::now());
        let (holds, nothing, nobody) = (|_: &str| true, |_: &str| false, |_: &str| false);
        takeovers.answered(start, holds, nobody);
        takeovers.died("w1", start);
        takeovers.answered(start + SECOND, holds, nobody);
        takeovers.away();
        takeovers.answered(start + SECOND * 31, holds, nobody);
        takeovers.answered(start + SECOND * 33, nothing, nobody);
        assert_eq!((takeovers.longest, takeovers.longest_served), (SECOND * 33, SECOND * 3));
        assert_eq!(takeovers.slowest.as_deref(), Some("w1"));
        takeovers.died("w2", start + SECOND * 34);
        takeovers.answered(start + SECOND * 36, nothing, nobody);
        assert_eq!((takeovers.longest, takeovers.longest_served), (SECOND * 33, SECOND * 3), "that was soon");
    }

    #[test]
    fn what_a_living_namesake_holds_waits_for_nobody() {
        let (mut takeovers, start) = (Takeovers::default(), Instant::now());
        takeovers.answered(start, |_| true, |_| true);
        takeovers.died("w1", start);
        takeovers.answered(start + SECOND * 5, |_| true, |_| true);
        takeovers.answered(start + SECOND * 6, |_| false, |_| false);
        assert_eq!((takeovers.longest, takeovers.longest_served), (SECOND, SECOND));
    }
}
