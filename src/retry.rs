//! When a step that failed is tried again: one pure backoff, one policy, and the answer an error gives about itself.

use std::num::NonZeroU32;
use std::time::Duration;

/// What an error says about trying the same step again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same step will fail the same way.
    Never,
    /// Try again: after the wait the other side asked for, or after our own backoff.
    After(Option<Duration>),
}

/// How often and how patiently one step is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included.
    pub max_attempts: NonZeroU32,
    /// Upper bound of the first wait.
    pub initial: Duration,
    /// Upper bound of every wait that we choose ourselves.
    pub max: Duration,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait this long, then try again.
    Wait {
        /// The pause before the next try.
        pause: Duration,
        /// Whether the failure used up an attempt: a wait that the server asked for does not.
        counted: bool,
    },
    /// No further try.
    GiveUp,
}

impl RetryPolicy {
    /// Decides what follows attempt number `attempt` (from 1) that failed with `retry`; `random` is in `[0, 1)`.
    ///
    /// Our own waits are exponential with full jitter: uniform in `[0, min(max, initial × 2^(attempt-1))]`
    /// (Brooker, "Exponential Backoff And Jitter", AWS 2015). A server's own wait is taken as it is, with up to a
    /// tenth on top so that a fleet does not return in one instant.
    pub fn next(&self, attempt: u32, retry: Retry, random: f64) -> Next {
        match retry {
            Retry::Never => Next::GiveUp,
            Retry::After(Some(asked)) => {
                Next::Wait { pause: asked.saturating_add(asked.mul_f64(random * 0.1)), counted: false }
            }
            Retry::After(None) if attempt >= self.max_attempts.get() => Next::GiveUp,
            Retry::After(None) => Next::Wait { pause: backoff(self.initial, self.max, attempt, random), counted: true },
        }
    }
}

/// Exponential backoff with full jitter and a cap; `attempt` counts from 1, `random` is in `[0, 1)`.
pub fn backoff(initial: Duration, max: Duration, attempt: u32, random: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(31);
    initial.saturating_mul(1 << doublings).min(max).mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: NonZeroU32::new(3).expect("3 is not zero"),
            initial: Duration::from_secs(1),
            max: Duration::from_secs(5),
        }
    }

    #[test]
    fn waits_double_up_to_the_cap_and_are_spread_over_the_whole_range() {
        let at = |attempt, random| backoff(Duration::from_secs(1), Duration::from_secs(5), attempt, random);
        assert_eq!(at(1, 0.5), Duration::from_millis(500));
        assert_eq!(at(3, 0.5), Duration::from_secs(2));
        assert_eq!(at(4, 0.5), Duration::from_millis(2500));
        assert_eq!(at(u32::MAX, 0.5), Duration::from_millis(2500));
        assert_eq!(at(2, 0.0), Duration::ZERO);
    }

    #[test]
    fn the_last_attempt_is_the_last() {
        assert!(matches!(policy().next(2, Retry::After(None), 0.5), Next::Wait { counted: true, .. }));
        assert_eq!(policy().next(3, Retry::After(None), 0.5), Next::GiveUp);
        assert_eq!(policy().next(1, Retry::Never, 0.5), Next::GiveUp);
    }

    #[test]
    fn a_wait_that_the_server_asked_for_uses_up_no_attempt() {
        let asked = Duration::from_secs(20);
        let Next::Wait { pause, counted } = policy().next(99, Retry::After(Some(asked)), 0.999) else {
            panic!("a server's wait is honoured")
        };
        assert!(!counted && pause >= asked && pause <= asked.mul_f64(1.1));
    }
}
