//! How many requests and tokens a minute may have: the arithmetic of a limit that several share (GCRA, the "generic
//! cell rate algorithm" of ATM networks). Where the limit is kept is elsewhere; the script of Redis reckons the same.
//!
//! A limit is a moment for each of its two kinds: when the allowance that may be saved up would be full again. Using
//! some of it moves the moment into the future. Moments and amounts are microseconds on the clock of whoever keeps
//! the limit, so several processes need not agree on anything but their configuration.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// How far those who are told to ask again are spread at the most: longer than that, room may be there sooner.
pub const SPREAD: Duration = Duration::from_secs(60);
const MINUTE: Duration = Duration::from_secs(60);

/// An allowance that fills up evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_minute: NonZeroU64,
    burst: Duration,
}

impl Rate {
    /// So much in a minute, of which what comes together in `burst` may be saved up and used at once. In any time,
    /// no more is used than comes together in that time and `burst`.
    pub fn new(per_minute: NonZeroU64, burst: Duration) -> Self {
        Self { per_minute, burst }
    }

    /// The charge for an amount.
    pub fn charge(&self, amount: u64) -> Charge {
        Charge { cost: self.time_of(amount), burst: micros(self.burst) }
    }

    /// How long the allowance needs to come to this amount.
    pub fn time_of(&self, amount: u64) -> u64 {
        let micros = u128::from(amount) * MINUTE.as_micros();
        u64::try_from(micros.div_ceil(u128::from(self.per_minute.get()))).unwrap_or(u64::MAX).min(LONGEST)
    }

    /// How long it is until the allowance is full, if so much of it is left.
    pub fn missing(&self, left: u64) -> u64 {
        micros(self.burst).saturating_sub(self.time_of(left))
    }
}

/// No charge is longer than this: sums of moments must not overflow, nor lose their last digit in a float.
const LONGEST: u64 = 24 * 3600 * 1_000_000;

/// A duration in the unit of this arithmetic.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min(LONGEST)
}

/// What is taken of one allowance; nothing, if there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charge {
    /// The time in which it comes together.
    pub cost: u64,
    /// The time in which what may be saved up comes together.
    pub burst: u64,
}

impl Charge {
    /// When it can be taken, if the allowance is full at `full`. More than can be saved up is taken from a full one,
    /// which is then in debt.
    fn from(self, full: u64) -> u64 {
        if self.cost == 0 { 0 } else { full.saturating_sub(self.burst.saturating_sub(self.cost)) }
    }
}

/// A call that wants to begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Of the requests.
    pub request: Charge,
    /// Of the tokens.
    pub tokens: Charge,
    /// The longest wait that is waited out on the spot.
    pub patience: u64,
    /// Whether who has to wait longer comes back for it.
    pub returns: bool,
}

/// What a limit says to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is charged and begins after this wait.
    Go {
        /// How long it waits.
        wait: u64,
        /// The time to which the charge of tokens belongs; what was used of it is told with it.
        era: u64,
    },
    /// It is not charged and asks again after this wait.
    Later {
        /// How long it waits.
        wait: u64,
    },
}

/// What is known after a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amendment {
    /// The time to which the charge belongs.
    pub era: u64,
    /// What was used beyond the charge of tokens, or below it.
    pub tokens: i64,
    /// How long nobody may ask.
    pub closed: u64,
    /// The allowance of requests is not full before so long.
    pub requests_full: u64,
    /// The allowance of tokens is not full before so long.
    pub tokens_full: u64,
}

impl Amendment {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self { era: self.era, ..Self::default() }
    }
}

/// The state of a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// When the allowance of requests is full.
    pub requests: u64,
    /// When the allowance of tokens is full.
    pub tokens: u64,
    /// Until when nobody may ask, because the provider said so.
    pub closed: u64,
    /// Up to when there are calls that were told to ask again.
    pub queue: u64,
    /// When the allowance of tokens was full for the last time. A charge of before that has been made good by time:
    /// giving back what was not used of it would be to give it twice.
    pub era: u64,
}

impl Limit {
    /// Lets a call begin, or says when it has a chance.
    pub fn reserve(&mut self, now: u64, demand: &Demand) -> Verdict {
        let Demand { request, tokens, patience, returns } = *demand;
        let start = now.max(self.closed).max(request.from(self.requests)).max(tokens.from(self.tokens));
        let wait = start - now;
        if wait > patience {
            if !returns {
                return Verdict::Later { wait };
            }
            // Each is given a moment of its own, or all would come back at once for the room of one.
            let told = self.queue.clamp(start, start + micros(SPREAD));
            self.queue = told + request.cost.max(tokens.cost);
            return Verdict::Later { wait: told - now };
        }
        if request.cost > 0 {
            self.requests = self.requests.max(start) + request.cost;
        }
        if tokens.cost > 0 {
            if self.tokens < start {
                self.era = start;
            }
            self.tokens = self.tokens.max(start) + tokens.cost;
        }
        Verdict::Go { wait, era: self.era }
    }

    /// Takes note of what a call used and of what the provider said.
    pub fn amend(&mut self, now: u64, amendment: &Amendment) {
        let Amendment { era, tokens, closed, requests_full, tokens_full } = *amendment;
        if tokens > 0 {
            self.tokens = self.tokens.max(now) + tokens.unsigned_abs();
        } else if era == self.era {
            self.tokens = self.tokens.saturating_sub(tokens.unsigned_abs());
        }
        if closed > 0 {
            self.closed = self.closed.max(now + closed);
        }
        if requests_full > 0 {
            self.requests = self.requests.max(now + requests_full);
        }
        if tokens_full > 0 && now + tokens_full > self.tokens {
            self.tokens = now + tokens_full;
            // The provider's own count knows what earlier calls used.
            self.era = now.max(self.era + 1);
        }
    }

    /// Whether it says no more than a limit that was never used.
    pub fn is_idle(&self, now: u64) -> bool {
        self.requests.max(self.tokens).max(self.closed).max(self.queue) <= now
    }
}

/// What a provider says of its own allowances with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateWord {
    /// When it was heard.
    pub at: Instant,
    /// Requests that are left.
    pub requests: Option<u64>,
    /// Tokens that are left, read and written together.
    pub tokens: Option<u64>,
    /// How long until an allowance of which nothing is left is there again.
    pub empty_for: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn rate(per_minute: u64, burst: Duration) -> Rate {
        Rate::new(NonZeroU64::new(per_minute).expect("not zero"), burst)
    }

    fn demand(request: Charge, tokens: Charge, patience: u64) -> Demand {
        Demand { request, tokens, patience, returns: true }
    }

    #[test]
    fn a_burst_goes_at_once_and_then_one_after_the_other() {
        let one = rate(60, Duration::from_secs(3)).charge(1);
        let mut limit = Limit::default();
        let now = 100 * SECOND;
        let waits: Vec<_> = (0..5).map(|_| limit.reserve(now, &demand(one, Charge::default(), 10 * SECOND))).collect();
        let go = |wait| Verdict::Go { wait: wait * SECOND, era: 0 };
        assert_eq!(waits, [go(0), go(0), go(0), go(1), go(2)]);
        assert_eq!(limit.reserve(now + 60 * SECOND, &demand(one, Charge::default(), 0)), go(0));
    }

    #[test]
    fn who_would_wait_for_long_is_not_charged_and_each_gets_a_moment_of_its_own() {
        let one = rate(60, Duration::from_secs(1)).charge(1);
        let mut limit = Limit::default();
        let now = 100 * SECOND;
        let ask = |limit: &mut Limit, now| limit.reserve(now, &demand(one, Charge::default(), 0));
        assert_eq!(ask(&mut limit, now), Verdict::Go { wait: 0, era: 0 });
        let told: Vec<_> = (0..3).map(|_| ask(&mut limit, now)).collect();
        assert_eq!(told, [1, 2, 3].map(|wait| Verdict::Later { wait: wait * SECOND }));
        let elsewhere = Demand { returns: false, ..demand(one, Charge::default(), 0) };
        assert_eq!(limit.reserve(now, &elsewhere), Verdict::Later { wait: SECOND });
        let last = (0..100).map(|_| ask(&mut limit, now)).last();
        assert_eq!(last, Some(Verdict::Later { wait: 61 * SECOND }), "nobody is sent away for hours");
        // Nobody's place is kept: who is there when there is room has it.
        assert_eq!(ask(&mut limit, now + SECOND), Verdict::Go { wait: 0, era: 0 });
    }

    #[test]
    fn more_than_can_be_saved_up_begins_with_a_full_allowance_and_is_paid_off() {
        let tokens = rate(600, Duration::from_secs(60));
        let mut limit = Limit::default();
        let now = 100 * SECOND;
        let huge = demand(Charge::default(), tokens.charge(900), u64::MAX);
        assert_eq!(limit.reserve(now, &huge), Verdict::Go { wait: 0, era: now });
        let small = demand(Charge::default(), tokens.charge(10), u64::MAX);
        assert_eq!(limit.reserve(now, &small), Verdict::Go { wait: 31 * SECOND, era: now });
    }

    #[test]
    fn what_was_not_used_is_given_back_once_and_not_after_time_made_it_good() {
        let tokens = rate(600, Duration::from_secs(60));
        let charge = tokens.charge(600);
        let mut limit = Limit::default();
        let now = 1000 * SECOND;
        let ask = |limit: &mut Limit, now| limit.reserve(now, &demand(Charge::default(), charge, 0));
        let Verdict::Go { era, .. } = ask(&mut limit, now) else { panic!("it is full") };
        assert!(matches!(ask(&mut limit, now), Verdict::Later { .. }));
        let back = Amendment { era, tokens: -(charge.cost as i64), ..Amendment::default() };
        limit.amend(now, &back);
        let Verdict::Go { era, .. } = ask(&mut limit, now) else { panic!("it was given back") };
        // A minute later everything would be there again without the gift.
        let later = now + 61 * SECOND;
        assert!(matches!(ask(&mut limit, later), Verdict::Go { wait: 0, .. }));
        limit.amend(later, &Amendment { era, ..back });
        assert!(matches!(ask(&mut limit, later), Verdict::Later { .. }), "the first charge is long forgiven");
    }

    #[test]
    fn the_providers_word_closes_the_limit_or_lowers_what_is_left() {
        let rate = rate(60, Duration::from_secs(10));
        let now = 100 * SECOND;
        let ask = |limit: &mut Limit, now| limit.reserve(now, &demand(rate.charge(1), Charge::default(), 0));
        let mut limit = Limit::default();
        limit.amend(now, &Amendment { closed: 7 * SECOND, ..Amendment::default() });
        limit.amend(now, &Amendment { closed: 2 * SECOND, ..Amendment::default() });
        assert_eq!(ask(&mut limit, now), Verdict::Later { wait: 7 * SECOND });
        assert_eq!(ask(&mut limit, now + 8 * SECOND), Verdict::Go { wait: 0, era: 0 });
        let mut limit = Limit::default();
        limit.amend(now, &Amendment { requests_full: rate.missing(2), ..Amendment::default() });
        let go = Verdict::Go { wait: 0, era: 0 };
        assert_eq!([ask(&mut limit, now), ask(&mut limit, now)], [go, go]);
        assert_eq!(ask(&mut limit, now), Verdict::Later { wait: SECOND }, "two were left");
        assert_eq!(rate.missing(10), 0, "enough is left");
    }

    #[test]
    fn the_providers_count_of_tokens_goes_before_what_is_given_back_later() {
        let rate = rate(600, Duration::from_secs(60));
        let mut limit = Limit::default();
        let now = 100 * SECOND;
        let charge = rate.charge(300);
        let Verdict::Go { era, .. } = limit.reserve(now, &demand(Charge::default(), charge, 0)) else { panic!("full") };
        limit.amend(now, &Amendment { tokens_full: rate.missing(0), ..Amendment::default() });
        limit.amend(now, &Amendment { era, tokens: -(charge.cost as i64), ..Amendment::default() });
        assert_eq!(limit.tokens, now + 60 * SECOND);
    }

    proptest! {
        /// Whatever is asked and when, no window of time sees more than comes together in it and in the burst.
        #[test]
        fn no_window_sees_more_than_its_share_and_the_burst(
            per_minute in 1u64..5000,
            burst in 0u64..90,
            asks in prop::collection::vec((0u64..3_000_000, 1u64..400, 0u64..8), 1..120),
        ) {
            let rate = rate(per_minute, Duration::from_secs(burst));
            let mut limit = Limit::default();
            let mut now = 1_000 * SECOND;
            let mut begun: Vec<(u64, u64)> = Vec::new();
            for (pause, amount, patience) in asks {
                now += pause;
                let ask = demand(Charge::default(), rate.charge(amount), patience * SECOND);
                if let Verdict::Go { wait, .. } = limit.reserve(now, &ask) {
                    begun.push((now + wait, amount));
                }
            }
            begun.sort_unstable();
            for (first, (from, _)) in begun.iter().enumerate() {
                let (mut used, mut largest) = (0, 0);
                for (until, amount) in &begun[first..] {
                    used += amount;
                    largest = largest.max(*amount);
                    let time = until - from + burst * SECOND;
                    let share = time as f64 * per_minute as f64 / 60e6;
                    // What is larger than can be saved up began with a full allowance.
                    let over = (largest as f64 - (burst * per_minute) as f64 / 60.0).max(0.0);
                    prop_assert!(used as f64 <= share + over + 1e-6, "{used} in {}, {share} + {over}", until - from);
                }
            }
        }

        /// Charges that are corrected at once by what was used let through what the tokens allow, not what was feared.
        #[test]
        fn corrected_charges_let_through_what_is_really_used(used in 1u64..50, feared in 50u64..600) {
            let rate = rate(600, Duration::from_secs(60));
            let mut limit = Limit::default();
            let mut now = 1_000 * SECOND;
            let (begin, mut done) = (now, 0);
            while now < begin + 600 * SECOND {
                match limit.reserve(now, &demand(Charge::default(), rate.charge(feared), u64::MAX)) {
                    Verdict::Go { wait, era } => {
                        now += wait;
                        let tokens = rate.time_of(used) as i64 - rate.time_of(feared) as i64;
                        limit.amend(now, &Amendment { era, tokens, ..Amendment::default() });
                        done += used;
                    }
                    Verdict::Later { .. } => unreachable!("there is patience"),
                }
            }
            let most = 600 + 600 * (now - begin) / (60 * SECOND) + feared;
            prop_assert!(done <= most, "{done} of {most}");
            prop_assert!(done + 600 + feared >= 600 * 10, "{done} is too little");
        }
    }
}
