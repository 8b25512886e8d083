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

/// Does a step until it succeeds, fails for good, has used up its attempts, or could only go on after `deadline`.
/// Returns what it gave with the number of attempts that counted.
pub async fn step<T, F, Op>(
    name: &'static str,
    policy: &RetryPolicy,
    deadline: Instant,
    mut operation: F,
) -> Result<(T, u32), Failure>
where
    F: FnMut() -> Op,
    Op: Future<Output = Result<T, Failure>>,
{
    let mut attempt = 1;
    loop {
        let failure = match operation().await {
            Ok(value) => return Ok((value, attempt)),
            Err(failure) => failure,
        };
        let retry = match failure.retry() {
            Retry::After(Some(asked)) if asked < SHORTEST_ASKED => Retry::After(None),
            other => other,
        };
        let (pause, counted) = match policy.next(attempt, retry, fastrand::f64()) {
            Next::Wait { pause, counted } => (pause, counted),
            Next::GiveUp => return Err(Failure { attempts: attempt, ..failure }),
        };
        let fits = Instant::now().checked_add(pause).is_some_and(|then| then < deadline);
        if !fits {
            return Err(Failure { attempts: attempt, ..failure });
        }
        tracing::info!(
            step = name,
            attempt,
            code = failure.code.as_ref(),
            error = %failure,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "step failed, trying again"
        );
        tokio::time::sleep(pause).await;
        attempt += u32::from(counted);
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

    /// Runs a step whose first `failures` tries fail; gives the result, the tries and the time it took.
    async fn run(failures: u32, failure: Failure, limit: Duration) -> (Result<((), u32), Failure>, u32, Duration) {
        let tries = Cell::new(0);
        let start = Instant::now();
        let result = step("test", &policy(), start + limit, || {
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
