//! When a provider that keeps failing is left alone (a circuit breaker), and how it gets another chance: one call at a
//! time. Which failures count is the clients'.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// The shortest wait that is told: who is told less would ask in a loop.
const SHORTEST: Duration = Duration::from_millis(200);

/// What the end of a call says of the provider's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It answered, be it with a refusal.
    Well,
    /// It did not, or said that it cannot.
    Sick,
    /// The call says nothing of it.
    None,
}

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failures in a row after which it opens.
    pub failures: NonZeroU32,
    /// How long it is open at first; each probe that fails doubles it.
    pub pause: Duration,
    /// The longest that it is open.
    pub max_pause: Duration,
}

/// Whether a call may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Free,
    /// It may, and its end decides for all.
    Probe,
    /// It may not before this wait.
    Refused(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, pause: Duration },
    HalfOpen { pause: Duration },
}

/// The breaker of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    state: State,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0 } }
    }
}

impl Breaker {
    /// How long a call would have to wait, which is not begun by this.
    pub fn refuses(&self, policy: &BreakerPolicy, now: Instant) -> Option<Duration> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { until, .. } if now >= until => None,
            State::Open { until, .. } => Some((until - now).max(SHORTEST)),
            // Nobody knows how long the probe takes.
            State::HalfOpen { .. } => Some(policy.pause.max(SHORTEST)),
        }
    }

    /// Lets a call begin, or says when to ask again.
    pub fn admit(&mut self, policy: &BreakerPolicy, now: Instant) -> Admission {
        if let Some(wait) = self.refuses(policy, now) {
            return Admission::Refused(wait);
        }
        match self.state {
            State::Open { pause, .. } => {
                self.state = State::HalfOpen { pause };
                Admission::Probe
            }
            State::Closed { .. } | State::HalfOpen { .. } => Admission::Free,
        }
    }

    /// Takes note of the end of a call. Gives true where this opened it.
    pub fn ended(&mut self, policy: &BreakerPolicy, now: Instant, probe: bool, sign: Sign) -> bool {
        match (self.state, sign) {
            // An answer is an answer, whenever its call began.
            (_, Sign::Well) => self.state = State::Closed { failures: 0 },
            (State::Closed { failures }, Sign::Sick) if failures + 1 >= policy.failures.get() => {
                self.state = State::Open { until: now + policy.pause, pause: policy.pause };
                return true;
            }
            (State::Closed { failures }, Sign::Sick) => self.state = State::Closed { failures: failures + 1 },
            (State::HalfOpen { pause }, Sign::Sick) if probe => {
                let pause = pause.saturating_mul(2).min(policy.max_pause);
                self.state = State::Open { until: now + pause, pause };
                return true;
            }
            // The next call is the probe then.
            (State::HalfOpen { pause }, Sign::None) if probe => self.state = State::Open { until: now, pause },
            // Calls that had begun before say nothing new.
            (State::Open { .. } | State::HalfOpen { .. }, Sign::Sick) | (_, Sign::None) => {}
        }
        false
    }

    /// Whether it is as if nothing had ever failed.
    pub fn is_idle(&self) -> bool {
        self.state == State::Closed { failures: 0 }
    }

    /// Whether calls are refused, or only one is let through.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> BreakerPolicy {
        BreakerPolicy {
            failures: NonZeroU32::new(3).expect("3 is not zero"),
            pause: Duration::from_secs(5),
            max_pause: Duration::from_secs(12),
        }
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        let opens = [(); 3].map(|()| breaker.ended(&policy(), now, false, Sign::Sick));
        assert_eq!(opens, [false, false, true]);
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_an_answer_ends_the_row() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for sign in [Sign::Sick, Sign::Sick, Sign::Well, Sign::Sick, Sign::None, Sign::Sick] {
            assert!(!breaker.ended(&policy(), now, false, sign));
        }
        assert_eq!(breaker.admit(&policy(), now), Admission::Free);
        assert!(breaker.ended(&policy(), now, false, Sign::Sick));
        assert_eq!(breaker.admit(&policy(), now), Admission::Refused(Duration::from_secs(5)));
        let shortly = now + Duration::from_millis(4_990);
        assert_eq!(breaker.admit(&policy(), shortly), Admission::Refused(SHORTEST));
    }

    #[test]
    fn one_call_probes_and_its_answer_closes() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + Duration::from_secs(5);
        assert_eq!(breaker.refuses(&policy(), later), None, "looking begins nothing");
        assert_eq!(breaker.admit(&policy(), later), Admission::Probe);
        assert!(matches!(breaker.admit(&policy(), later), Admission::Refused(_)), "one at a time");
        assert!(!breaker.ended(&policy(), later, false, Sign::Sick), "an old call does not decide");
        breaker.ended(&policy(), later, true, Sign::Well);
        assert_eq!((breaker.admit(&policy(), later), breaker.is_idle()), (Admission::Free, true));
    }

    #[test]
    fn each_probe_that_fails_doubles_the_pause_up_to_the_longest() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for pause in [5, 10, 12, 12] {
            let pause = Duration::from_secs(pause);
            assert_eq!(breaker.admit(&policy(), now), Admission::Refused(pause));
            now += pause;
            assert_eq!(breaker.admit(&policy(), now), Admission::Probe);
            assert!(breaker.ended(&policy(), now, true, Sign::Sick));
        }
    }

    #[test]
    fn a_probe_that_told_nothing_leaves_its_place_to_the_next() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + Duration::from_secs(6);
        assert_eq!(breaker.admit(&policy(), later), Admission::Probe);
        breaker.ended(&policy(), later, true, Sign::None);
        assert!(breaker.is_open());
        assert_eq!(breaker.admit(&policy(), later), Admission::Probe);
    }

    #[test]
    fn an_answer_to_an_old_call_closes_too() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.ended(&policy(), now, false, Sign::Well);
        assert_eq!(breaker.admit(&policy(), now), Admission::Free);
    }
}
