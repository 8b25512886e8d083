//! The state of a node that goes on after it waited for others: it runs again. Where it still says that it waits, and for
//! this very run, the script that opens the run says so in a hash; in a document it is compared and set here.

use std::sync::LazyLock;

use redis::Cmd;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::to_raw_value;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::layout;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply::{self, Word};
use crate::clients::redis::script::Script;
use crate::domain::state::{NodeRecord, NodeStatus};
use crate::domain::work::Delivery;

static RESUME: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("scripts/owned.lua"), include_str!("scripts/resume.lua"))));

/// Compares with a document before it is left as it is: the node's end is written all the same.
const COMPARES: u32 = 8;

/// A node that goes on.
#[derive(Debug)]
pub(super) struct Resumption<'a> {
    delivery: &'a Delivery,
    /// Its state from now on, JSON.
    running: String,
}

impl<'a> Resumption<'a> {
    /// The node of this delivery, if it comes back from a wait for others.
    pub(super) fn of(delivery: &'a Delivery) -> Option<Self> {
        delivery.meta.asked_at?;
        let metadata = to_raw_value(&json!({ "work_id": delivery.work_id })).expect("JSON values are JSON");
        let started_at = delivery.meta.since.unwrap_or_else(|| delivery.added_at());
        let record = NodeRecord::unended(&delivery.item, NodeStatus::Running, started_at, &metadata);
        Some(Self { delivery, running: serde_json::to_string(&record).expect("a node state has string keys") })
    }

    /// What the script that opens the run is told; see `scripts/open.lua`.
    pub(super) fn write(&self, call: &mut Cmd) {
        let item = &self.delivery.item;
        let (node, run) = (layout::quoted(item.node_id.as_str()), layout::quoted(item.run_id.as_str()));
        let waiting = NodeStatus::Waiting.as_str();
        call.arg("back")
            .arg(format!("{}{}", layout::NODE, item.node_id))
            .arg(format!(r#"{{"node_id":{node},"status":"{waiting}","#))
            .arg(format!(r#""run_id":{run}"#))
            .arg(&self.running);
    }

    /// Says in the document under `key` that the node runs, where it says that the node waits; not at any price.
    pub(super) async fn into_document(
        self,
        link: &Link,
        group: &str,
        key: &str,
        read: &[u8],
    ) -> Result<(), RedisError> {
        let Delivery { stream, entry, token, .. } = self.delivery;
        let mut old = read.to_vec();
        for _ in 0..COMPARES {
            let Some(new) = std::str::from_utf8(&old).ok().and_then(|old| self.replaced(old)) else { return Ok(()) };
            let mut call = RESUME.call(2, old.len() + new.len() + 256);
            call.arg(&**stream).arg(key).arg(group).arg(entry.as_str()).arg(&*token.consumer).arg(token.deliveries);
            call.arg(&old).arg(new);
            match reply::word(link.eval(&RESUME, &call).await?, "a node that goes on")? {
                (Word::Conflict, Some(document)) => old = document,
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// The document in which the node runs; none if this run of it does not wait there.
    fn replaced(&self, document: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct State {
            status: Option<NodeStatus>,
            run_id: Option<String>,
        }
        let item = &self.delivery.item;
        let state = layout::document_node_state(document, item.node_id.as_str())?;
        let State { status, run_id } = serde_json::from_str(state).ok()?;
        if status != Some(NodeStatus::Waiting) || run_id.as_deref() != Some(item.run_id.as_str()) {
            return None;
        }
        layout::replace_node_state(document, item.node_id.as_str(), &self.running).ok()
    }
}
