//! The one layer of retries: around a single step (a state load, a tool discovery, one call of a model or of a tool).
//! Clients below never retry, and nothing above does.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::outcome::Failure;
use crate::retry::{Next, Retry, RetryPolicy, backoff};

/// The shortest wait that counts as one that the other side asked for. Less would be a loop at the speed of the
/// network that uses up no attempt.
const SHORTEST_ASKED: Duration = Duration::from_millis(100);

/// Upper bounds of the waits for a store that is away: work goes on soon after it is back.
const STORE_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_STORE_PAUSE: Duration = Duration::from_secs(1);

/// How patiently one step is tried.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How often, and how long between the tries.
    pub policy: RetryPolicy,
    /// The moment after which no try is begun.
    pub deadline: Instant,
    /// Attempts that were used up before the node was parked in this step.
    pub made: u32,
    /// Whether it was: a wait that was asked for uses up none.
    pub parked: bool,
    /// The longest wait that is worth holding a slot for; without it every wait is.
    pub park_after: Option<Duration>,
    /// Whether the same can be had elsewhere: then nothing is waited out that the other side is known to need time for.
    pub elsewhere: bool,
}

/// Why a step gave nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Halt {
    /// It failed for good.
    Failed(Failure),
    /// It can go on after a wait that is too long to hold a slot for.
    Parked {
        /// The moment it can go on.
        until: Instant,
        /// Attempts that are used up by then.
        made: u32,
        /// What is waited out.
        failure: Failure,
    },
}

/// Does a step until it succeeds, fails for good, has used up its attempts, or could only go on after the deadline or
/// a long wait. Returns what it gave with the number of attempts that counted.
pub async fn step<T, F, Op>(name: &'static str, patience: &Patience, mut operation: F) -> Result<(T, u32), Halt>
where
    F: FnMut() -> Op,
    Op: Future<Output = Result<T, Failure>>,
{
    let Patience { policy, deadline, made, park_after, elsewhere, parked: _ } = patience;
    let mut attempt = made.saturating_add(1);
    loop {
        let failure = match operation().await {
            Ok(value) => return Ok((value, attempt)),
            Err(failure) => Failure { attempts: attempt, ..failure },
        };
        if *elsewhere && failure.needs_time() {
            return Err(Halt::Failed(failure));
        }
        let retry = match failure.retry() {
            Retry::After(Some(asked)) if asked < SHORTEST_ASKED => Retry::After(None),
            other => other,
        };
        let (pause, counted) = match policy.next(attempt, retry, fastrand::f64()) {
            Next::Wait { pause, counted } => (pause, counted),
            Next::GiveUp => return Err(Halt::Failed(failure)),
        };
        let Some(until) = Instant::now().checked_add(pause).filter(|then| then < deadline) else {
            return Err(Halt::Failed(failure));
        };
        let made = attempt - u32::from(!counted);
        if park_after.is_some_and(|longest| pause > longest) {
            return Err(Halt::Parked { until, made, failure });
        }
        tracing::info!(
            step = name,
            attempt,
            code = failure.code.as_ref(),
            error = %failure,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "step failed, trying again"
        );
        tokio::time::sleep_until(until).await;
        attempt = made.saturating_add(1);
    }
}

/// Asks the store until it answers. A store that is away is no fault of the node, and the node's failure could not be
/// written either: it is asked for as long as the node may take. Whoever reads work logs the outage, once.
pub async fn until_answered<T, F, Op>(deadline: Instant, mut operation: F) -> Result<T, Failure>
where
    F: FnMut() -> Op,
    Op: Future<Output = Result<T, Failure>>,
{
    let mut attempt = 0;
    loop {
        let failure = match operation().await {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        attempt += 1;
        let pause = backoff(STORE_PAUSE, LONGEST_STORE_PAUSE, attempt, 0.5 + fastrand::f64() / 2.0);
        if failure.retry() == Retry::Never || Instant::now() + pause >= deadline {
            return Err(Failure { attempts: attempt, ..failure });
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::num::NonZeroU32;

    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: NonZeroU32::new(3).expect("3 is not zero"),
            initial: Duration::from_secs(1),
            max: Duration::from_secs(8),
        }
    }

    fn patience(limit: Duration) -> Patience {
        let deadline = Instant::now() + limit;
        Patience { policy: policy(), deadline, made: 0, parked: false, park_after: None, elsewhere: false }
    }

    /// Runs a step whose first `failures` tries fail; gives the result, the tries and the time it took.
    async fn run(failures: u32, failure: Failure, limit: Duration) -> (Result<((), u32), Failure>, u32, Duration) {
        let (result, tries, took) = run_with(failures, failure, &patience(limit)).await;
        let result = result.map_err(|halt| match halt {
            Halt::Failed(failure) => failure,
            parked @ Halt::Parked { .. } => panic!("nobody may park here: {parked:?}"),
        });
        (result, tries, took)
    }

    async fn run_with(
        failures: u32,
        failure: Failure,
        patience: &Patience,
    ) -> (Result<((), u32), Halt>, u32, Duration) {
        let tries = Cell::new(0);
        let start = Instant::now();
        let result = step("test", patience, || {
            tries.set(tries.get() + 1);
            let result = if tries.get() > failures { Ok(()) } else { Err(failure.clone()) };
            async move { result }
        })
        .await;
        (result, tries.get(), start.elapsed())
    }

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn a_retriable_failure_is_tried_up_to_the_limit_and_says_how_often() {
        let (result, tries, took) = run(2, Failure::retriable("busy", "busy"), LONG).await;
        assert_eq!((result, tries), (Ok(((), 3)), 3));
        assert!(took <= Duration::from_secs(3), "waits of at most 1 s and 2 s, took {took:?}");
        let (result, tries, _) = run(9, Failure::retriable("busy", "busy"), LONG).await;
        assert_eq!((result.expect_err("it never succeeds").attempts, tries), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn every_other_failure_is_final() {
        for failure in [
            Failure::permanent("p", "p"),
            Failure::configuration("c", "c"),
            Failure::validation("v", "v"),
            Failure::internal("i", "i"),
        ] {
            let (result, tries, took) = run(1, failure, LONG).await;
            assert_eq!((result.expect_err("no retry").attempts, tries, took), (1, 1, Duration::ZERO));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_was_asked_for_uses_up_no_attempt() {
        let asked = Duration::from_secs(7);
        let limited = Failure::retriable("rate_limited", "slow down").with_retry_after(Some(asked));
        let (result, tries, took) = run(8, limited, LONG).await;
        assert_eq!((result, tries), (Ok(((), 1)), 9));
        assert!(took >= asked * 8 && took <= asked.mul_f64(8.8), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_asked_wait_after_the_other_ends_with_the_nodes_time_and_the_error_that_asked() {
        let limited = Failure::retriable("rate_limited", "slow down").with_retry_after(Some(Duration::from_secs(60)));
        let (result, tries, took) = run(u32::MAX, limited.clone(), LONG).await;
        assert_eq!(result, Err(limited), "no attempt is used up");
        assert!((9..=10).contains(&tries) && took < LONG, "{tries} tries in {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_parks_the_node_and_says_what_was_used_up() {
        let asked = Duration::from_secs(30);
        let limited = Failure::retriable("rate_limited", "slow down").with_retry_after(Some(asked));
        let parking = Patience { park_after: Some(Duration::from_secs(5)), ..patience(LONG) };
        for made in [0, 2] {
            let start = Instant::now();
            let (result, tries, took) = run_with(1, limited.clone(), &Patience { made, ..parking }).await;
            let Err(Halt::Parked { until, made: used, failure }) = result else { panic!("it is parked: {result:?}") };
            assert_eq!((tries, took, used), (1, Duration::ZERO, made), "an asked wait uses up nothing");
            assert!(until >= start + asked && until <= start + asked.mul_f64(1.1));
            assert_eq!((failure.code.as_ref(), failure.attempts), ("rate_limited", made + 1));
        }
        let short = limited.clone().with_retry_after(Some(Duration::from_secs(4)));
        let (result, tries, took) = run_with(1, short, &parking).await;
        assert_eq!((result, tries), (Ok(((), 1)), 2));
        assert!(took >= Duration::from_secs(4), "a short wait holds the slot");
        let (result, ..) = run_with(1, limited, &Patience { deadline: Instant::now() + asked, ..parking }).await;
        assert!(matches!(result, Err(Halt::Failed(_))), "what is due after the deadline fails at once: {result:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_of_our_own_that_parks_uses_up_its_attempt_and_the_limit_holds_afterwards() {
        let slow = RetryPolicy { initial: Duration::from_secs(3600), max: Duration::from_secs(3600), ..policy() };
        let parking = Patience { policy: slow, park_after: Some(Duration::ZERO), ..patience(LONG * 100) };
        let busy = || Failure::retriable("busy", "busy");
        let mut made = 0;
        for round in 1..=2 {
            let (result, tries, _) = run_with(1, busy(), &Patience { made, ..parking }).await;
            let Err(Halt::Parked { made: used, .. }) = result else { panic!("it is parked: {result:?}") };
            assert_eq!((used, tries), (round, 1));
            made = used;
        }
        let (result, ..) = run_with(1, busy(), &Patience { made, ..parking }).await;
        let Err(Halt::Failed(failure)) = result else { panic!("the third attempt is the last: {result:?}") };
        assert_eq!(failure.attempts, 3);
        let (result, ..) = run_with(0, busy(), &Patience { made, ..parking }).await;
        assert_eq!(result, Ok(((), 3)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_asked_wait_of_nothing_is_no_endless_loop() {
        let limited = Failure::retriable("rate_limited", "slow down").with_retry_after(Some(Duration::ZERO));
        let (result, tries, _) = run(u32::MAX, limited, LONG).await;
        assert_eq!((result.expect_err("it never succeeds").attempts, tries), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_beyond_the_deadline_is_not_begun_and_the_error_stays() {
        let limited = Failure::retriable("rate_limited", "slow down").with_retry_after(Some(Duration::from_secs(60)));
        let (result, tries, took) = run(1, limited.clone(), Duration::from_secs(30)).await;
        assert_eq!((result, tries, took), (Err(limited), 1, Duration::ZERO));
    }
}
