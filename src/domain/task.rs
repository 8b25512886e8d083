//! Tasks of tool servers: calls that a server works on by itself, and whose end it is asked for. What is known of one, and
//! when it is looked at next; asking is the MCP client's, and waiting the modes'.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::domain::journal::Running;
use crate::domain::outcome::Failure;
use crate::domain::tool::{ToolOutput, ToolTarget};

/// The pause between two looks where the server names none.
const USUAL_PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause, whatever the server names: less would be a loop at the speed of the network.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause, whatever the server names: more is a slip, and a result that nobody fetches for a day.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// A pause is at least this part of the time that the task has run. What takes long is looked at less often, so that even
/// a server that wants to be asked each second keeps no slot for an hour.
const PART_OF_AGE: u32 = 10;
/// Up to here the age of a task makes its pauses longer than its server names.
const LONGEST_OWN_PAUSE: Duration = Duration::from_secs(60);
/// How late a look may come that waited outside of a slot: up to a second until it is noticed, and then for a slot.
const LATENESS: Duration = Duration::from_secs(2);
/// How long a server is asked on that does not answer.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The code of a call whose task its server does not know any more.
pub const LOST: &str = "mcp_task_lost";

/// What a server says of the time that a task takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Milliseconds from its beginning after which the server may forget it; none for ever.
    pub ttl_ms: Option<u64>,
    /// Milliseconds between two looks; none where it does not say.
    pub poll_ms: Option<u64>,
}

/// A task, as it stands on record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The name that the server gave it.
    pub id: String,
    /// When the server told of it.
    pub since: Timestamp,
    /// As the server said last, see [`Pace`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// The same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_ms: Option<u64>,
    /// When it is looked at next.
    pub due: Timestamp,
    /// Since when the server has not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_since: Option<Timestamp>,
    /// Its questions that were answered, by the server's names for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answered: Vec<String>,
    /// How often the call was made before, for tasks that came to nothing.
    #[serde(default)]
    pub before: u32,
}

impl Task {
    /// A task that a server just told of.
    pub fn new(id: String, pace: Pace, now: Timestamp) -> Self {
        let Pace { ttl_ms, poll_ms } = pace;
        let task =
            Self { id, since: now, ttl_ms, poll_ms, due: now, away_since: None, answered: Vec::new(), before: 0 };
        Self { due: later(now, task.pause(now)), ..task }
    }

    /// The server answered that it goes on.
    pub fn goes_on(&mut self, pace: Pace, now: Timestamp) {
        let Pace { ttl_ms, poll_ms } = pace;
        // Who does not name a pause again has not changed his mind.
        (self.ttl_ms, self.poll_ms, self.away_since) = (ttl_ms, poll_ms.or(self.poll_ms), None);
        self.due = later(now, self.pause(now));
    }

    /// The server could not be asked, and may want a pause of its own. Whether it is asked again.
    pub fn away(&mut self, asked: Option<Duration>, now: Timestamp) -> bool {
        let since = *self.away_since.get_or_insert(now);
        self.due = later(now, self.pause(now).max(asked.unwrap_or_default().min(LONGEST_PAUSE)));
        between(since, now) < PATIENCE
    }

    /// How long the next look is away. Another worker may have reckoned by another clock, so it is never longer than a
    /// pause that begins now.
    pub fn wait(&self, now: Timestamp) -> Duration {
        let longest = self.away_since.map_or(Duration::ZERO, |since| between(since, self.due)).max(self.pause(now));
        between(now, self.due).min(longest)
    }

    /// How long it has run.
    pub fn age(&self, now: Timestamp) -> Duration {
        between(self.since, now)
    }

    /// Whether the server may have forgotten it by now.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.left(now).is_some_and(|left| left.is_zero())
    }

    /// How long the server keeps it yet, if it says so.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        Some(Duration::from_millis(self.ttl_ms?).saturating_sub(self.age(now)))
    }

    /// The pause from now to the next look.
    fn pause(&self, now: Timestamp) -> Duration {
        let named = self.poll_ms.map_or(USUAL_PAUSE, Duration::from_millis);
        let own = (self.age(now) / PART_OF_AGE).min(LONGEST_OWN_PAUSE);
        let pause = named.max(own).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        match self.left(now) {
            // What ended in time has to be fetched in time, and who comes back from outside of a slot is late.
            Some(left) if !left.is_zero() => {
                let last = left.saturating_sub(LATENESS).max(left / 2).min(left * 9 / 10);
                pause.min(last).max(SHORTEST_PAUSE)
            }
            _ => pause,
        }
    }
}

/// What a call came to.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolAnswer {
    /// It has ended.
    Done(ToolOutput),
    /// The server works on it by itself.
    Task(Task),
}

impl From<ToolOutput> for ToolAnswer {
    fn from(output: ToolOutput) -> Self {
        Self::Done(output)
    }
}

/// What a look at a task found.
#[derive(Debug, Clone, PartialEq)]
pub enum TaskNews {
    /// It goes on.
    GoesOn {
        /// What the server says of its time by now.
        pace: Pace,
        /// What is happening, in the server's words, shortened.
        message: Option<String>,
        /// Its questions that were answered just now, by the server's names for them.
        answered: Vec<String>,
    },
    /// It has ended, as the call would have.
    Ended(Result<ToolOutput, Failure>),
    /// The server does not know it any more: how it ended, nobody can say.
    Lost(Failure),
}

/// How long it is from one moment to a later one; nothing if it is none.
fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

fn later(moment: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    moment.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// A task that a server may still work on.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenTask {
    /// The tool.
    pub target: ToolTarget,
    /// The server's name for it.
    pub id: String,
}

impl OpenTask {
    /// The task of a call.
    pub fn of(running: &Running) -> Self {
        Self { target: running.start.target(), id: running.task.id.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a moment")
    }

    fn task(ttl_ms: Option<u64>, poll_ms: Option<u64>) -> Task {
        Task::new(String::from("task-1"), Pace { ttl_ms, poll_ms }, at(0))
    }

    #[test]
    fn a_task_is_looked_at_as_its_server_says_within_bounds() {
        for (poll_ms, pause) in
            [(None, USUAL_PAUSE), (Some(7000), 7 * SECOND), (Some(0), SHORTEST_PAUSE), (Some(u64::MAX), LONGEST_PAUSE)]
        {
            assert_eq!(task(None, poll_ms).wait(at(0)), pause, "{poll_ms:?}");
        }
    }

    #[test]
    fn a_pause_that_was_named_once_stays_until_another_is_named() {
        let mut task = task(None, Some(7000));
        task.goes_on(Pace::default(), at(7));
        assert_eq!(task.wait(at(7)), 7 * SECOND);
        task.goes_on(Pace { ttl_ms: None, poll_ms: Some(3000) }, at(14));
        assert_eq!(task.wait(at(14)), 3 * SECOND);
    }

    #[test]
    fn what_takes_long_is_looked_at_less_often_but_never_less_than_each_minute() {
        let waits = |age, poll_ms| {
            let mut task = task(None, poll_ms);
            task.goes_on(Pace { ttl_ms: None, poll_ms }, at(age));
            task.wait(at(age))
        };
        assert_eq!(waits(5, Some(1000)), SECOND);
        assert_eq!(waits(200, Some(1000)), 20 * SECOND, "a slot is free meanwhile");
        assert_eq!(waits(80_000, Some(1000)), LONGEST_OWN_PAUSE);
        assert_eq!(waits(80_000, Some(90_000)), 90 * SECOND, "the server wants it so");
    }

    #[test]
    fn what_a_server_forgets_is_looked_at_before() {
        let mut task = task(Some(20_000), Some(60_000));
        assert_eq!(task.wait(at(0)), 18 * SECOND);
        assert!(!task.is_over(at(19)) && task.is_over(at(20)));
        task.goes_on(Pace { ttl_ms: Some(40_000), poll_ms: Some(60_000) }, at(18));
        assert!(!task.is_over(at(20)), "the server may give it more time");
        assert_eq!(task.wait(at(18)), Duration::from_millis(19_800));
    }

    #[test]
    fn another_clock_puts_no_look_off_for_longer_than_a_pause() {
        let task = task(None, Some(5000));
        assert_eq!(task.wait(at(3)), 2 * SECOND);
        assert_eq!(task.wait(at(60)), Duration::ZERO);
        assert_eq!(task.wait(at(-1000)), 5 * SECOND);
    }

    #[test]
    fn a_server_that_does_not_answer_is_asked_on_for_a_while() {
        let mut task = task(None, Some(1000));
        assert!(task.away(None, at(10)));
        assert_eq!(task.wait(at(10)), SECOND);
        assert!(task.away(Some(30 * SECOND), at(20)));
        assert_eq!(task.wait(at(20)), 30 * SECOND, "it said when it is back");
        task.goes_on(Pace { ttl_ms: None, poll_ms: Some(1000) }, at(50));
        assert_eq!(task.away_since, None);
        assert!(task.away(None, at(60)), "it was there meanwhile");
        assert!(!task.away(None, at(60 + 15 * 60)));
    }

    #[test]
    fn what_is_on_record_is_read_again() {
        let mut task = task(Some(1), None);
        task.answered.push(String::from("name"));
        let text = serde_json::to_string(&task).expect("JSON");
        assert_eq!(serde_json::from_str::<Task>(&text).expect("a task"), task);
        let bare = r#"{"id": "t", "since": "2026-01-02T03:04:05Z", "due": "2026-01-02T03:04:06Z"}"#;
        assert_eq!(serde_json::from_str::<Task>(bare).expect("a task").ttl_ms, None);
    }
}
