//! What parking and waiting share: the keys and arguments of a run whose entry leaves its stream and comes back later, in
//! the order in which `scripts/aside.lua` has them. What each of the two adds stands beside its own script.

use std::sync::Arc;

use redis::Cmd;

use crate::clients::redis::keys::Keys;
use crate::clients::redis::record;
use crate::clients::redis::script::Script;
use crate::domain::ids::{GraphId, NodeId, RunId};
use crate::domain::work::{Delivery, Meta, WorkItem};

/// Where runs are put aside: the names of the keys, the group, and the work streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) keys: &'a Keys,
    pub(super) group: &'a str,
    pub(super) streams: &'a [Arc<str>],
}

/// Begins the call of a script that puts a run aside; `keys` are the script's own, and about `bytes` bytes of its own
/// arguments follow.
pub(super) fn call(
    script: &Script,
    place: Place<'_>,
    delivery: &Delivery,
    meta: &Meta,
    keys: &[String],
    bytes: usize,
) -> Cmd {
    let Place { keys: names, group, streams } = place;
    let (item, stream) = (&delivery.item, &delivery.stream);
    let others = || streams.iter().filter(|other| *other != stream);
    let mut call = script.call(7 + keys.len() + others().count(), bytes + 1024);
    call.arg(&**stream)
        .arg(names.done(&item.graph_id))
        .arg(names.crashes(stream))
        .arg(names.parked(stream))
        .arg(names.parked_bodies(stream))
        .arg(names.state(&item.graph_id))
        .arg(names.journal(&item.graph_id, &item.node_id, &item.run_id))
        .arg(keys);
    for other in others() {
        call.arg(&**other);
    }
    call.arg(group)
        .arg(delivery.entry.as_str())
        .arg(&*delivery.token.consumer)
        .arg(delivery.token.deliveries)
        .arg(record::field(&item.node_id, &item.run_id))
        .arg(record::parked(delivery))
        .arg(&*record::line(&delivery.work_id))
        .arg(delivery.meta.first_entry(&delivery.entry).as_str())
        .arg(serde_json::to_string(meta).expect("a meta has string keys"))
        .arg(Run::lines(item));
    call
}

/// The names of one run, as they are kept where no JSON is read.
pub(super) struct Run {
    pub(super) graph: GraphId,
    pub(super) node: NodeId,
    pub(super) run: RunId,
}

impl Run {
    /// The names of an item's run, a line each.
    pub(super) fn lines(item: &WorkItem) -> String {
        format!("{}\n{}\n{}", item.graph_id, item.node_id, item.run_id)
    }

    /// Reads the three lines.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split('\n');
        let graph = GraphId::new(lines.next()?).ok()?;
        let node = NodeId::new(lines.next()?).ok()?;
        let run = RunId::new(lines.next()?).ok()?;
        Some(Self { graph, node, run })
    }
}
