//! Limits of time: when the node's time is up and whose limit that is, and whether it was begun in time at all.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use crate::domain::outcome::{Category, Failure};
use crate::domain::work::Delivery;

/// The longest limit of time; a sum with a longer one might not be a moment any more.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How far apart two timers of one moment may fire.
const TIMER_SLACK: Duration = Duration::from_millis(5);

/// When the node's time is up, and whose limit that is.
pub(super) struct Deadline {
    /// The moment.
    pub at: Instant,
    /// The limit that comes first: a length of time, or the item's own moment.
    limit: Option<Duration>,
}

impl Deadline {
    /// The earliest limit. `used` is the time that earlier attempts took, their pauses included: a node that keeps
    /// changing hands ends too. A node that comes back after a wait is judged by the server's clock as well: one here
    /// that is behind would let it wait anew again and again, for a moment that is over there.
    pub fn of(
        start: Instant,
        used: Duration,
        delivery: &Delivery,
        own: Option<Duration>,
        default: Duration,
    ) -> Result<Self, Failure> {
        let limit = own.unwrap_or(default).min(LONGEST);
        let relative = Self { at: start + limit.saturating_sub(used), limit: Some(limit) };
        let Some(moment) = delivery.item.deadline else {
            return Ok(relative);
        };
        // In milliseconds, as the server reckons.
        let late = delivery.meta.since.is_some() && moment.as_millisecond() <= delivery.added_at().as_millisecond();
        let left = moment.duration_since(Timestamp::now());
        let Some(left) = Duration::try_from(left).ok().filter(|left| !left.is_zero() && !late) else {
            return Err(Self { at: start, limit: None }.failure());
        };
        match Instant::now().checked_add(left) {
            Some(at) if at < relative.at => Ok(Self { at, limit: None }),
            _ => Ok(relative),
        }
    }

    /// Ends the work when its time is up.
    pub async fn bound<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        match timeout_at(self.at, work).await {
            // Clients end a call at the node's time themselves, a moment before it: that is no trouble of theirs.
            Ok(Err(failure))
                if self.is_up() && (failure.category == Category::Retriable || failure.code == "timeout") =>
            {
                Err(self.failure())
            }
            Ok(result) => result,
            Err(_) => Err(self.failure()),
        }
    }

    fn is_up(&self) -> bool {
        Instant::now() + TIMER_SLACK >= self.at
    }

    fn failure(&self) -> Failure {
        match self.limit {
            Some(limit) => Failure::timed_out(limit),
            None => Failure::permanent(
                "deadline_exceeded",
                "the item's `deadline` has passed; the result would be of no use",
            ),
        }
    }
}

/// How long ago a moment was; nothing if another machine's clock says that it is still to come.
pub(super) fn since(moment: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(moment)).unwrap_or_default()
}

/// Whether the entry is young enough for its first start. Later starts do not count: the worker's own waits and
/// takeovers are no fault of a queue.
pub(super) fn first_start_in_time(
    delivery: &Delivery,
    start: Instant,
    queue_age: Option<Duration>,
) -> Result<(), Failure> {
    let Delivery { entry, token, meta, .. } = delivery;
    let first = token.deliveries == 1 && meta.since.is_none();
    let (Some(limit), Some(added), true) = (queue_age, entry.millis(), first) else { return Ok(()) };
    let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0);
    let age = Duration::from_millis(now.saturating_sub(added)).saturating_sub(start.elapsed());
    if age <= limit {
        return Ok(());
    }
    let (age, limit) = (humantime::format_duration(age), humantime::format_duration(limit));
    let message =
        format!("the item waited {age} in the stream, `limits.queue_age` allows {limit}; add workers or send it again");
    Err(Failure::permanent("queue_timeout", message))
}
