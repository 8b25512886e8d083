//! Looking through the questions that nodes wait with: by name, page by page, the soonest of them; and what became of
//! one that is not open any more. Asking and deciding are [`super::waiting`]'s.

use std::collections::{BTreeSet, HashSet};

use redis::Pipeline;
use serde_json::Value;

use crate::clients::redis::aside::Run;
use crate::clients::redis::error::RedisError;
use crate::clients::redis::fields;
use crate::clients::redis::reply;
use crate::clients::redis::waiting::{WaitingRoom, asked};
use crate::domain::ids::{GraphId, NodeId, RunId};
use crate::domain::journal::{ask_field, said_field};
use crate::domain::wait::{Ask, Asked, Told, WaitId};

/// Questions that one look takes.
const PAGE: usize = 500;
/// Pages of the audit in which an answer is looked for.
const AUDIT_PAGES: usize = 10;

/// A question that may be open, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Its name.
    pub wait_id: WaitId,
    /// The graph.
    pub graph_id: GraphId,
    /// The node.
    pub node_id: NodeId,
    /// The identity.
    pub run_id: RunId,
}

impl WaitingRoom {
    /// How many questions are open, as far as the index knows.
    pub async fn count(&self) -> Result<u64, RedisError> {
        let mut command = redis::cmd("HLEN");
        command.arg(self.keys.waits());
        let length = self.link.query(&command).await?;
        reply::number(&length).ok_or(RedisError::Unexpected { what: "the number of open questions" })
    }

    /// Forgets questions of a run that has ended.
    pub async fn forget(&self, waits: &[WaitId]) -> Result<(), RedisError> {
        if waits.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd("HDEL");
        command.arg(self.keys.waits());
        for wait in waits {
            command.arg(wait.as_str());
        }
        self.link.query(&command).await.map(drop)
    }

    /// Whose a question is.
    pub async fn find(&self, wait: &WaitId) -> Result<Option<Open>, RedisError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.waits()).arg(wait.as_str());
        let names = reply::text(self.link.query(&command).await?);
        Ok(names.and_then(|names| open(wait.as_str(), &names)))
    }

    /// All questions that may be open, some at a time; `from` is 0 at first, and the answer's is 0 after the last.
    pub async fn page(&self, from: u64) -> Result<(u64, Vec<Open>), RedisError> {
        let what = "a look through the open questions";
        let mut command = redis::cmd("HSCAN");
        command.arg(self.keys.waits()).arg(from).arg("COUNT").arg(PAGE);
        let [next, found] = reply::tuple::<2>(self.link.query(&command).await?, what)?;
        let mut found = reply::list(found, what)?.into_iter();
        let mut page = Vec::new();
        while let (Some(wait), Some(names)) = (found.next(), found.next()) {
            if let (Some(wait), Some(names)) = (reply::text(wait), reply::text(names)) {
                page.extend(open(&wait, &names));
            }
        }
        Ok((reply::number(&next).ok_or(RedisError::Unexpected { what })?, page))
    }

    /// These questions as they are kept; none for one that is gone, and an error for one that cannot be read.
    pub async fn look(&self, waits: &[Open]) -> Result<Vec<Result<Option<Asked>, RedisError>>, RedisError> {
        let mut found = Vec::with_capacity(waits.len());
        for batch in waits.chunks(PAGE) {
            let mut pipeline = Pipeline::with_capacity(batch.len());
            for Open { wait_id, graph_id, node_id, run_id } in batch {
                pipeline
                    .cmd("HMGET")
                    .arg(self.keys.journal(graph_id, node_id, run_id))
                    .arg(ask_field(wait_id))
                    .arg(said_field(wait_id));
            }
            for kept in self.link.pipeline(&pipeline).await? {
                found.push(match kept {
                    Ok(kept) => asked(kept),
                    Err(error @ RedisError::WrongType { .. }) => Err(error),
                    Err(error) => return Err(error),
                });
            }
        }
        Ok(found)
    }

    /// The open questions that are wanted, the one that is due first leading, at most `limit` of them, with the number of
    /// all.
    pub async fn soonest(
        &self,
        wanted: impl Fn(&Open) -> bool,
        limit: usize,
    ) -> Result<(usize, Vec<Told>), RedisError> {
        let first = |asks: &mut Vec<Told>| {
            asks.sort_by(|Told { ask: one, .. }, Told { ask: other, .. }| {
                (one.expires_at, &one.wait_id).cmp(&(other.expires_at, &other.wait_id))
            });
            asks.truncate(limit);
        };
        let (mut from, mut seen, mut soonest) = (0, HashSet::new(), Vec::new());
        loop {
            let (next, page) = self.open(from, &wanted).await?;
            // A page may show a question twice.
            let new = page.into_iter().filter(|ask| seen.insert(ask.wait_id.clone()));
            soonest.extend(new.map(Ask::told));
            if soonest.len() / 2 > limit {
                first(&mut soonest);
            }
            from = next;
            if from == 0 {
                first(&mut soonest);
                return Ok((seen.len(), soonest));
            }
        }
    }

    /// Questions that are open and wanted, some at a time, as [`Self::page`] finds them. The index is mended on the way.
    pub async fn open(&self, from: u64, wanted: impl Fn(&Open) -> bool) -> Result<(u64, Vec<Ask>), RedisError> {
        let (next, mut page) = self.page(from).await?;
        page.retain(wanted);
        let (mut asks, mut gone) = (Vec::with_capacity(page.len()), Vec::new());
        for (open, asked) in page.iter().zip(self.look(&page).await?) {
            match asked {
                Ok(Some(Asked { ask, said: None })) => asks.push(ask),
                Ok(Some(_) | None) => gone.push(open.wait_id.clone()),
                // Whoever asked it can read it; one question must not hide all others.
                Err(error) => tracing::warn!(%error, wait_id = %open.wait_id, "a question cannot be read"),
            }
        }
        self.forget(&gone).await?;
        Ok((next, asks))
    }

    /// Forgets questions, some at a time, whose journal is gone or has their answer. Gives where to go on, as
    /// [`Self::page`] does.
    pub async fn mend(&self, from: u64) -> Result<u64, RedisError> {
        let (next, page) = self.page(from).await?;
        let mut pipeline = Pipeline::with_capacity(2 * page.len());
        for Open { wait_id, graph_id, node_id, run_id } in &page {
            let journal = self.keys.journal(graph_id, node_id, run_id);
            pipeline.cmd("HEXISTS").arg(&journal).arg(ask_field(wait_id));
            pipeline.cmd("HEXISTS").arg(&journal).arg(said_field(wait_id));
        }
        if page.is_empty() {
            return Ok(next);
        }
        let mut found = self.link.pipeline(&pipeline).await?.into_iter();
        let mut gone = Vec::new();
        for open in page {
            let mut is_there = || found.next().map_or(Ok(None), |answer| answer.map(|answer| reply::number(&answer)));
            let (asked, said) = (is_there()?, is_there()?);
            if asked == Some(0) || said == Some(1) {
                gone.push(open.wait_id);
            }
        }
        self.forget(&gone).await?;
        Ok(next)
    }

    /// What the audit says of a question that is not open any more, if it was answered lately.
    pub async fn audited(&self, wait: &WaitId) -> Result<Option<Value>, RedisError> {
        let what = "the audit of decisions";
        let mut end = String::from("+");
        for _ in 0..AUDIT_PAGES {
            let mut command = redis::cmd("XREVRANGE");
            command.arg(self.keys.audit()).arg(&end).arg("-").arg("COUNT").arg(PAGE);
            let entries = reply::list(self.link.query(&command).await?, what)?;
            let full = entries.len() == PAGE;
            for entry in entries {
                let (id, fields) = fields::entry(entry)?;
                let line: Value = serde_json::from_slice(&fields.data.unwrap_or_default()).unwrap_or_default();
                if line["wait_id"] == wait.as_str() {
                    return Ok(Some(line));
                }
                end = format!("({id}");
            }
            if !full {
                break;
            }
        }
        Ok(None)
    }

    /// Lets the waiting nodes of a graph be due at once, or one of them. Gives their number.
    pub async fn wake(&self, graph: &GraphId, node: Option<&NodeId>) -> Result<usize, RedisError> {
        let (mut from, mut woken) = (0, BTreeSet::new());
        loop {
            let (next, mut page) = self.page(from).await?;
            page.retain(|open| open.graph_id == *graph && node.is_none_or(|node| open.node_id == *node));
            for asked in self.look(&page).await?.into_iter().filter_map(Result::ok).flatten() {
                let Some((stream, first)) = asked.ask.origin() else { continue };
                let mut command = redis::cmd("ZADD");
                command.arg(self.keys.parked(stream)).arg("XX").arg(0).arg(first);
                self.link.query(&command).await?;
                woken.insert(asked.ask.work_id);
            }
            from = next;
            if from == 0 {
                return Ok(woken.len());
            }
        }
    }
}

fn open(wait: &str, names: &str) -> Option<Open> {
    let Run { graph, node, run } = Run::parse(names)?;
    Some(Open { wait_id: WaitId::from_text(wait), graph_id: graph, node_id: node, run_id: run })
}
