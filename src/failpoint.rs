//! Named places in the way of an item where a test can make the process die, panic or stop for a while. They exist
//! with the feature `failpoints` alone; without it every function here is empty. What is done where is told by the
//! environment variable `FAILPOINTS`, such as `before_settle=1*return(kill)`; see [`MARK`] for the actions.

use std::future::Future;

/// What begins the line that is written to stderr where an action is taken, with the place and the action behind it:
/// `kill`, `panic`, or `stall MILLISECONDS`. A test must see it, or it would not notice that a place is never reached.
pub const MARK: &str = "failpoint reached:";

/// A place in the way of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// An entry was read and is in nobody's hands yet.
    AfterRead,
    /// The run is ours and the state was read.
    AfterStateLoad,
    /// A model's turn is on record.
    AfterLlmRecord,
    /// The start of a tool call is on record: the next thing is the call itself.
    AfterToolStart,
    /// The end of a tool call is on record.
    AfterToolEnd,
    /// The node ended and nothing of it is written.
    BeforeSettle,
    /// The settlement is on its way and nobody has seen an answer.
    SettleSent,
    /// Redis said that the run is settled.
    SettleAnswered,
}

impl Point {
    /// Every place, in the order in which an item comes to it.
    pub const ALL: [Self; 8] = [
        Self::AfterRead,
        Self::AfterStateLoad,
        Self::AfterLlmRecord,
        Self::AfterToolStart,
        Self::AfterToolEnd,
        Self::BeforeSettle,
        Self::SettleSent,
        Self::SettleAnswered,
    ];

    /// The name in `FAILPOINTS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfterRead => "after_read",
            Self::AfterStateLoad => "after_state_load",
            Self::AfterLlmRecord => "after_llm_record",
            Self::AfterToolStart => "after_tool_start",
            Self::AfterToolEnd => "after_tool_end",
            Self::BeforeSettle => "before_settle",
            Self::SettleSent => "settle_sent",
            Self::SettleAnswered => "settle_answered",
        }
    }
}

/// Reads `FAILPOINTS`. Called once, at the start of the process.
pub fn arm() {
    #[cfg(feature = "failpoints")]
    armed::arm();
}

/// Does what `FAILPOINTS` says about this place, which is nothing unless it is named there.
#[inline]
pub fn reach(point: Point) {
    #[cfg(feature = "failpoints")]
    armed::reach(point);
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
}

/// Waits for `request`, and reaches `point` once it is on its way but before its answer is looked at.
#[inline]
pub fn sent<F: Future>(point: Point, request: F) -> impl Future<Output = F::Output> {
    #[cfg(feature = "failpoints")]
    let request = armed::sent(point, request);
    #[cfg(not(feature = "failpoints"))]
    let _ = point;
    request
}

/// Whether the scripts shall leave out the checks of ownership and identity (`FAILPOINTS=unguarded=return`): the
/// fault suite has to notice that they are missing, or it would notice nothing.
#[cfg(feature = "failpoints")]
pub fn unguarded() -> bool {
    armed::unguarded()
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::future::Future;
    use std::io::Write as _;
    use std::pin::pin;
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use nix::sys::signal::{Signal, raise};

    use super::{MARK, Point};

    /// Long enough for a request to leave the process; its answer may have arrived by then.
    const ON_ITS_WAY: Duration = Duration::from_micros(300);

    pub fn arm() {
        // The scenario ends with the process.
        std::mem::forget(fail::FailScenario::setup());
        for (name, action) in fail::list() {
            tracing::warn!(point = name, action, "a failpoint is set");
        }
    }

    pub fn reach(point: Point) {
        fail::fail_point!(point.name(), |action: Option<String>| act(point, action.as_deref()));
    }

    pub async fn sent<F: Future>(point: Point, request: F) -> F::Output {
        let mut request = pin!(request);
        if let Some(answer) = (&mut request).now_or_never() {
            return answer;
        }
        tokio::time::sleep(ON_ITS_WAY).await;
        reach(point);
        request.await
    }

    pub fn unguarded() -> bool {
        fail::fail_point!("unguarded", |_| true);
        false
    }

    fn act(point: Point, action: Option<&str>) {
        let action = action.unwrap_or_default();
        // In one piece, so that no record of another thread comes in between.
        let line = format!("{MARK} {} {action}\n", point.name());
        let _ = std::io::stderr().write_all(line.as_bytes());
        match action.split_once(' ').unwrap_or((action, "")) {
            // As a kill from outside: nothing is unwound, flushed or told.
            ("kill", "") => drop(raise(Signal::SIGKILL)),
            ("panic", "") => panic!("told to panic at {}", point.name()),
            // The thread stands still, and everything with it that would have run there.
            ("stall", millis) => {
                let millis = millis.parse().unwrap_or_else(|_| panic!("`{action}` names no time"));
                std::thread::sleep(Duration::from_millis(millis));
            }
            _ => panic!("`return({action})` means nothing at {}", point.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_a_name_of_its_own() {
        let names: std::collections::HashSet<&str> = Point::ALL.into_iter().map(Point::name).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }

    #[tokio::test]
    async fn a_request_is_answered_through_a_place_that_is_not_named() {
        reach(Point::AfterRead);
        assert_eq!(sent(Point::SettleSent, async { 7 }).await, 7);
        let later = async {
            tokio::task::yield_now().await;
            8
        };
        assert_eq!(sent(Point::SettleSent, later).await, 8);
    }
}
