//! The record of a run: who has it, and how it ended. This shape is frozen, for workers of different versions share it.
//!
//! Hash `{prefix}done:{graph}`, field `"{node_id}\n{run_id}"`, value lines by the first letter:
//!
//! | state | value |
//! |---|---|
//! | running | `"r\n{work_id}\n{stream}\n{entry}"` |
//! | parked | `"p\n{work_id}\n{consumer}\n{deliveries}"`: the work waits outside of the stream |
//! | done | `"d\n{work_id}\n{consumer}\n{deliveries}\n{event_id}"` |
//!
//! Fields that are no runs have no line break in their names: `"seq"` counts the graph's terminal events, `"held"` its
//! parked runs, and `"kept"` has the ms that the state had to live before the first of them.
//! The hash expires as the state does: prolonged at each write, never shortened, and not at all while a run is parked.

use std::borrow::Cow;

use crate::domain::ids::{NodeId, RunId, WorkId};
use crate::domain::work::{Delivery, Token};

/// The field of a run.
pub(super) fn field(node: &NodeId, run: &RunId) -> String {
    format!("{node}\n{run}")
}

/// The value of a run that this delivery has.
pub(super) fn running(delivery: &Delivery) -> String {
    format!("r\n{}\n{}\n{}", line(&delivery.work_id), delivery.stream, delivery.entry)
}

/// The value of a run that this delivery parks.
pub(super) fn parked(delivery: &Delivery) -> String {
    format!("p\n{}\n{}\n{}", line(&delivery.work_id), delivery.token.consumer, delivery.token.deliveries)
}

/// The value of a run whose terminal event went out.
pub(super) fn done(work: &WorkId, token: &Token, event_id: &str) -> String {
    format!("d\n{}\n{}\n{}\n{event_id}", line(work), token.consumer, token.deliveries)
}

/// The work id in the value of a run whose terminal event went out; `None` for a run that goes on.
pub(super) fn settled_by(value: &str) -> Option<&str> {
    value.strip_prefix("d\n")?.lines().next()
}

/// The work id in the value of a run that waits outside of the stream; `None` for every other.
pub(super) fn parked_by(value: &str) -> Option<&str> {
    value.strip_prefix("p\n")?.lines().next()
}

/// The work id on one line: its entry part may come from a `meta` that somebody else wrote.
pub(super) fn line(work: &WorkId) -> Cow<'_, str> {
    let text = work.as_str();
    if text.contains('\n') { text.replace('\n', " ").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::ids::EntryId;

    #[test]
    fn a_record_has_a_fixed_number_of_lines_whatever_the_ids_are() {
        let token = Token { consumer: Arc::from("w:1"), deliveries: 2 };
        let work = WorkId::new("executor.work", &EntryId::new("5-0\nforged"));
        assert_eq!(done(&work, &token, "evt_1"), "d\nexecutor.work/5-0 forged\nw:1\n2\nevt_1");
    }

    #[test]
    fn only_a_settled_run_tells_who_settled_it() {
        assert_eq!(settled_by("d\nexecutor.work/5-0\nw:1\n2\nevt_1"), Some("executor.work/5-0"));
        assert_eq!(settled_by("r\nexecutor.work/5-0\nexecutor.work\n5-0"), None);
        assert_eq!(parked_by("p\nexecutor.work/5-0\nw:1\n2"), Some("executor.work/5-0"));
        assert_eq!(parked_by("r\nexecutor.work/5-0\nexecutor.work\n5-0"), None);
    }

    #[test]
    fn no_run_is_named_like_the_counter() {
        let field = field(&NodeId::new("seq").expect("an id"), &RunId::new("r").expect("an id"));
        assert_eq!(field, "seq\nr");
    }
}
