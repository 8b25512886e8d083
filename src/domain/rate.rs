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
/// Calls that stand in line at the most; each is looked at whenever anybody asks.
pub const LINE: usize = 32;
/// How long the place in line is kept for a call that does not come back when it was told to.
pub const GRACE: Duration = Duration::from_secs(10);
/// The shortest wait after which a call in line asks again.
pub const SHORTEST: Duration = Duration::from_millis(100);
/// What makes a wait longer than somebody has patience for.
pub const MOMENT: Duration = Duration::from_millis(1);
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
    /// Which call it is: the same whenever it asks again.
    pub who: u64,
    /// Of the requests.
    pub request: Charge,
    /// Of the tokens.
    pub tokens: Charge,
    /// The longest wait that is waited out on the spot.
    pub patience: u64,
    /// The longest wait that it comes back from; nothing for a call that goes elsewhere.
    pub returns: u64,
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

/// A call that was told to ask again, and which nobody who came later holds up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Which call it is.
    pub who: u64,
    /// Until when its place is kept.
    pub until: u64,
    /// When it can begin at the latest, as far as that could be said.
    pub by: u64,
    /// What it will be charged of the requests.
    pub requests: u64,
    /// What it will be charged of the tokens.
    pub tokens: u64,
}

/// The state of a limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limit {
    /// When the allowance of requests is full.
    pub requests: u64,
    /// When the allowance of tokens is full.
    pub tokens: u64,
    /// Until when nobody may ask, because the provider said so.
    pub closed: u64,
    /// Up to when there are calls that were told to ask again and found no place in line.
    pub queue: u64,
    /// When the allowance of tokens was full for the last time. A charge of before that has been made good by time:
    /// giving back what was not used of it would be to give it twice.
    pub era: u64,
    /// The calls that wait for their turn, in the order in which they came. A call that needs much would never begin
    /// if those that need little went before it whenever there is enough for them. They do where it begins no later for
    /// that than it was told: what others gave back is not left lying until those who were told of less are back. (The
    /// schedulers of large computers call this backfilling.)
    pub line: Vec<Waiting>,
}

/// When the allowances are full.
#[derive(Debug, Clone, Copy)]
struct Full {
    requests: u64,
    tokens: u64,
}

impl Full {
    /// The same after these charges have been taken at `start`.
    fn after(self, start: u64, requests: Charge, tokens: Charge) -> Self {
        let after = |full: u64, charge: Charge| if charge.cost > 0 { full.max(start) + charge.cost } else { full };
        Self { requests: after(self.requests, requests), tokens: after(self.tokens, tokens) }
    }
}

impl Limit {
    /// Lets a call begin, or says when it has a chance. It is not charged before it begins, so nothing has to be given
    /// back by a call that never does; but those who came after it find what is left of the allowance by then.
    pub fn reserve(&mut self, now: u64, demand: &Demand) -> Verdict {
        let Demand { who, request, tokens, patience, returns } = *demand;
        self.line.retain(|waiting| waiting.until > now);
        let place = self.line.iter().position(|waiting| waiting.who == who);
        let ahead = place.unwrap_or(self.line.len());
        let earliest = now.max(self.closed);
        let full = Full { requests: self.requests, tokens: self.tokens };
        let (starts, left) = self.begun(ahead, earliest, full, (request, tokens));
        let alone = earliest.max(request.from(full.requests)).max(tokens.from(full.tokens));
        let fits = alone == now && {
            let (moved, _) = self.begun(ahead, earliest, full.after(now, request, tokens), (request, tokens));
            moved.iter().zip(starts).zip(&self.line).all(|((moved, start), waiting)| *moved <= start.max(waiting.by))
        };
        let without_tokens = earliest.max(request.from(left.requests));
        let start = if fits { now } else { without_tokens.max(tokens.from(left.tokens)) };
        let wait = start - now;
        if fits || (ahead == 0 && wait <= patience) {
            place.map(|place| self.line.remove(place));
            if tokens.cost > 0 && self.tokens < start {
                self.era = start;
            }
            let full = Full { requests: self.requests, tokens: self.tokens }.after(start, request, tokens);
            (self.requests, self.tokens) = (full.requests, full.tokens);
            return Verdict::Go { wait, era: self.era };
        }
        // A wait for tokens is mostly shorter than it seems, because what others do not use is given back. But a long
        // one is not waited out on the spot half by half.
        let least = if wait > patience { patience + micros(MOMENT) } else { 0 };
        let sooner = now + (wait / 2).max(least).max(micros(SHORTEST));
        let again = sooner.max(without_tokens).min(earliest + micros(SPREAD));
        // Whoever comes back for it does so up to a tenth late, so that not all do at once.
        let until = again + (again - now) / 8 + micros(GRACE);
        match place {
            Some(place) if returns < again - now => {
                self.line.remove(place);
                Verdict::Later { wait }
            }
            None if returns < again - now => Verdict::Later { wait },
            Some(place) => {
                let waiting = &mut self.line[place];
                (waiting.until, waiting.by) = (until, waiting.by.min(start));
                Verdict::Later { wait: again - now }
            }
            None if self.line.len() < LINE => {
                self.line.push(Waiting { who, until, by: start, requests: request.cost, tokens: tokens.cost });
                Verdict::Later { wait: again - now }
            }
            None => {
                // Each is given a moment of its own, or all would come back at once for one place.
                let told = self.queue.clamp(again, again + micros(SPREAD));
                self.queue = told + request.cost.max(tokens.cost);
                Verdict::Later { wait: told - now }
            }
        }
    }

    /// When each of the first in line could begin, one after the other, and what they leave. Their costs are their own,
    /// what may be saved up is the limit's and the same for all.
    fn begun(
        &self,
        ahead: usize,
        earliest: u64,
        mut full: Full,
        (request, tokens): (Charge, Charge),
    ) -> (Vec<u64>, Full) {
        let starts = self.line[..ahead].iter().map(|waiting| {
            let request = Charge { cost: waiting.requests, ..request };
            let tokens = Charge { cost: waiting.tokens, ..tokens };
            let start = earliest.max(request.from(full.requests)).max(tokens.from(full.tokens));
            full = full.after(start, request, tokens);
            start
        });
        (starts.collect(), full)
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
            && self.line.iter().all(|waiting| waiting.until <= now)
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
mod tests;
