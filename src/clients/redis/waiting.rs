//! Nodes that wait for what others say: one script takes an entry out of its stream and asks, another puts a decision on
//! record and lets the node be due. Bringing nodes back is the mover's, as for all parked work.
//!
//! The questions of a run and their answers stand in its journal, fields `w:{wait_id}:ask` and `w:{wait_id}:said`. Hash
//! `{prefix}waits`: for each open question graph, node and run, a line each, so that it is found by its name alone; it
//! may lag behind, and the journal decides. Stream `{prefix}waits:audit`: what was decided.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use redis::Pipeline;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::parking::Run;
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;
use crate::clients::redis::settle::{self, Answer, Settled, Turns, WriteNode};
use crate::clients::redis::stream::RawEntry;
use crate::clients::redis::{fields, layout, lease, record};
use crate::config::Config;
use crate::domain::event::{Event, EventType, Subject};
use crate::domain::ids::{GraphId, NodeId, RunId};
use crate::domain::journal::{ask_field, said_field};
use crate::domain::outcome::Waiting;
use crate::domain::settlement::WrittenWait;
use crate::domain::wait::{self, Ask, Asked, Decision, Refusal, Said, WaitId};
use crate::domain::work::{Delivery, Meta};

static WAIT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(
        include_str!("scripts/owned.lua"),
        include_str!("scripts/run.lua"),
        include_str!("scripts/aside.lua"),
        include_str!("scripts/wait.lua")
    ))
});
static DECIDE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("scripts/owned.lua"), include_str!("scripts/decide.lua"))));

/// How often a decision is judged anew because what it was judged by has changed. Questions only go forward, from open to
/// decided to gone, so more would be a fault.
const JUDGED: usize = 8;
/// Questions that one look takes.
const PAGE: usize = 500;
/// Bytes of arguments, and of what goes with a decision, that the audit keeps whole.
const AUDITED: usize = 8 << 10;
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

/// What became of a decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Decided {
    /// It counts.
    Counts,
    /// It does not.
    Refused(Refusal),
    /// The entry that it came by is not ours any more.
    Lost,
}

/// Where nodes wait for others.
#[derive(Debug, Clone)]
pub struct WaitingRoom {
    link: Link,
    keys: Keys,
    group: Arc<str>,
    ttl_ms: u64,
    streams: Arc<[Arc<str>]>,
    maxlen: usize,
    audit_maxlen: usize,
    worker_id: Arc<str>,
    turns: Turns,
}

impl WaitingRoom {
    /// The waiting nodes of this configuration's streams. Its events bear the worker's name.
    pub fn new(link: Link, keys: Keys, config: &Config) -> Self {
        Self {
            turns: Turns::new(&link),
            link,
            keys,
            group: Arc::from(config.work.group.as_str()),
            ttl_ms: lease::millis(config.state.ttl),
            streams: config.work.streams.iter().map(|stream| Arc::from(stream.as_str())).collect(),
            maxlen: config.events.maxlen.get(),
            audit_maxlen: config.wait.audit_maxlen.get(),
            worker_id: Arc::from(config.worker.id.as_str()),
        }
    }

    /// Takes an entry out of its stream and asks. After an error whose outcome is unknown the same is simply asked again.
    /// Without `write_state` the graph's state is left alone.
    pub async fn wait(
        &self,
        delivery: &Delivery,
        meta: &Meta,
        waiting: &Waiting,
        written: &WrittenWait,
        write_state: bool,
    ) -> Result<Settled, RedisError> {
        let wait = Wait { room: self, delivery, meta, waiting, written, write_state };
        self.turns.write(&self.keys, &delivery.item, &written.node_json, None, &wait).await.map(Answer::settled)
    }

    fn wait_call(&self, wait: &Wait<'_>, replace: Option<(&str, &str)>) -> redis::Cmd {
        let Wait { delivery, meta, waiting, written, write_state, .. } = *wait;
        let (item, stream) = (&delivery.item, &delivery.stream);
        let others = || self.streams.iter().filter(|other| *other != stream);
        let (old, new) = replace.unwrap_or_default();
        let bytes: usize = written.asks.iter().map(|ask| ask.ask_json.len() + ask.event_json.len()).sum();
        let names = Run::lines(item);
        let mut call = WAIT.call(9 + others().count(), bytes + old.len() + new.len() + 2048);
        call.arg(&**stream)
            .arg(self.keys.done(&item.graph_id))
            .arg(self.keys.crashes(stream))
            .arg(self.keys.parked(stream))
            .arg(self.keys.parked_bodies(stream))
            .arg(self.keys.state(&item.graph_id))
            .arg(self.keys.journal(&item.graph_id, &item.node_id, &item.run_id))
            .arg(self.keys.waits())
            .arg(self.keys.events(EventType::NodeInputRequired));
        for other in others() {
            call.arg(&**other);
        }
        call.arg(&*self.group)
            .arg(delivery.entry.as_str())
            .arg(&*delivery.token.consumer)
            .arg(delivery.token.deliveries)
            .arg(record::field(&item.node_id, &item.run_id))
            .arg(record::parked(delivery))
            .arg(&*record::line(&delivery.work_id))
            .arg(waiting.expires_at.as_millisecond())
            .arg(delivery.meta.first_entry(&delivery.entry).as_str())
            .arg(serde_json::to_string(meta).expect("a meta has string keys"))
            .arg(&names);
        match waiting.until {
            Some(until) => call.arg(lease::millis(until.saturating_duration_since(Instant::now()))),
            None => call.arg(""),
        };
        call.arg(self.ttl_ms);
        if write_state {
            call.arg(format!("{}{}", layout::NODE, item.node_id)).arg(&written.node_json);
        } else {
            call.arg("").arg("");
        }
        call.arg(old).arg(new).arg(&waiting.header).arg(u8::from(waiting.restart)).arg(self.maxlen);
        for ask in &written.asks {
            call.arg(ask.wait_id.as_str())
                .arg(ask_field(&ask.wait_id))
                .arg(&ask.ask_json)
                .arg(said_field(&ask.wait_id))
                .arg(&ask.event_json)
                .arg(&names);
        }
        call
    }

    /// Judges a decision and puts it on record if it counts; whatever comes of it is told by an event. `entry` is what
    /// it came by, if it came by a work stream. `fits` says whether a content satisfies what was asked.
    pub async fn decide(
        &self,
        decision: &Decision,
        entry: Option<&RawEntry>,
        fits: impl Fn(&Ask, &Value) -> Result<(), String>,
    ) -> Result<Decided, RedisError> {
        let mut own: Option<Said> = None;
        for _ in 0..JUDGED {
            let Facts { asked, ended, parked, now } = self.facts(decision).await?;
            if let (Some(own), Ok(Some(Asked { said: Some(said), .. }))) = (&own, &asked)
                && own == said
            {
                // Our answer is on record: only the word about it had been lost.
                return Ok(Decided::Counts);
            }
            let judged = match &asked {
                Ok(asked) => wait::judge(decision, asked.as_ref(), ended, now, &fits),
                Err(refusal) => Err(refusal.clone()),
            };
            let asked = asked.ok().flatten();
            // A second try of the same must be known as such.
            let said = own.get_or_insert_with(|| decision.said(now)).clone();
            let ask = asked.as_ref().map(|asked| &asked.ask);
            // The work that waits now goes on, whoever had asked first for the same run.
            let work = parked.as_deref().or(ask.map(|ask| ask.work_id.as_str()));
            let call = self.decide_call(decision, entry, ask, work, &judged, &said, now);
            let answer = match self.link.eval(&DECIDE, &call).await {
                Ok(answer) => answer,
                // Without an entry nobody else will try this again.
                Err(error) if entry.is_none() && error.is_outage() => continue,
                Err(error) => return Err(error),
            };
            let unexpected = RedisError::Unexpected { what: "a decision" };
            if let redis::Value::Array(parts) = answer {
                return Err(RedisError::WrongType { key: parts.into_iter().nth(1).and_then(reply::text) });
            }
            match reply::as_bytes(&answer) {
                Some(b"ok") => return Ok(judged.map_or_else(Decided::Refused, |()| Decided::Counts)),
                Some(b"lost") => return Ok(Decided::Lost),
                Some(b"changed") => {}
                _ => return Err(unexpected),
            }
        }
        Err(RedisError::Unexpected { what: "a question that keeps changing" })
    }

    async fn facts(&self, decision: &Decision) -> Result<Facts, RedisError> {
        let what = "a question";
        let Decision { graph_id, node_id, run_id, wait_id, .. } = decision;
        let mut pipeline = Pipeline::with_capacity(3);
        pipeline
            .cmd("HMGET")
            .arg(self.keys.journal(graph_id, node_id, run_id))
            .arg(ask_field(wait_id))
            .arg(said_field(wait_id));
        pipeline.cmd("HGET").arg(self.keys.done(graph_id)).arg(record::field(node_id, run_id));
        pipeline.cmd("TIME");
        let answers: Result<[_; 3], _> = self.link.pipeline(&pipeline).await?.try_into();
        let [kept, done, time] = answers.map_err(|_| RedisError::Unexpected { what })?;
        let done = reply::text(done?);
        let [seconds, micros] = reply::tuple::<2>(time?, what)?;
        let millis = reply::number(&seconds).zip(reply::number(&micros)).map(|(s, micros)| s * 1000 + micros / 1000);
        let now = millis.and_then(|millis| Timestamp::from_millisecond(i64::try_from(millis).ok()?).ok());
        let unreadable = |why: &str| Refusal::new("question_unreadable", format!("the question cannot be read: {why}"));
        let asked = match kept {
            Ok(kept) => asked(kept).map_err(|_| unreadable("another version of the worker may have written it")),
            Err(RedisError::WrongType { .. }) => Err(unreadable("the key of its journal holds something else")),
            Err(error) => return Err(error),
        };
        Ok(Facts {
            asked,
            ended: done.as_deref().and_then(record::settled_by).is_some(),
            parked: done.as_deref().and_then(record::parked_by).map(String::from),
            now: now.ok_or(RedisError::Unexpected { what })?,
        })
    }

    #[allow(clippy::too_many_arguments, reason = "each is a part of the one call")]
    fn decide_call(
        &self,
        decision: &Decision,
        entry: Option<&RawEntry>,
        ask: Option<&Ask>,
        work: Option<&str>,
        judged: &Result<(), Refusal>,
        said: &Said,
        now: Timestamp,
    ) -> redis::Cmd {
        let Decision { graph_id, node_id, run_id, wait_id, .. } = decision;
        let (stream, first) = work.and_then(|work| work.rsplit_once('/')).unwrap_or_default();
        let by_hand = || self.streams.first().map_or("", |stream| &**stream);
        let own = entry.map_or_else(by_hand, |entry| &*entry.stream);
        let event = self.event(decision, entry, ask, judged, now);
        let mut call = DECIDE.call(7, event.len() + 2048);
        call.arg(own)
            .arg(self.keys.crashes(own))
            .arg(self.keys.journal(graph_id, node_id, run_id))
            .arg(self.keys.waits())
            .arg(self.keys.parked(if stream.is_empty() { own } else { stream }))
            .arg(self.keys.events(EventType::NodeDecision))
            .arg(self.keys.audit())
            .arg(&*self.group);
        match entry {
            Some(entry) => call.arg(entry.entry.as_str()).arg(&*entry.token.consumer).arg(entry.token.deliveries),
            None => call.arg("").arg("").arg(0),
        };
        call.arg(u8::from(judged.is_ok()))
            .arg(wait_id.as_str())
            .arg(ask_field(wait_id))
            .arg(said_field(wait_id))
            .arg(serde_json::to_string(said).expect("an answer has string keys"))
            .arg(ask.map_or(0, |ask| ask.expires_at.as_millisecond()))
            .arg(first)
            .arg(event)
            .arg(self.maxlen)
            .arg(audit(decision, ask, said))
            .arg(self.audit_maxlen);
        call
    }

    /// The event that answers a decision.
    fn event(
        &self,
        decision: &Decision,
        entry: Option<&RawEntry>,
        ask: Option<&Ask>,
        judged: &Result<(), Refusal>,
        now: Timestamp,
    ) -> String {
        let Decision { graph_id, node_id, run_id, wait_id, action, by, note, .. } = decision;
        let mut data = json!({
            "graph_id": graph_id, "node_id": node_id, "wait_id": wait_id, "action": action,
            "accepted": judged.is_ok(), "kind": ask.map(|ask| ask.kind), "by": by, "note": note,
        });
        if let Err(Refusal { code, message, said }) = judged {
            data["code"] = Value::from(*code);
            data["message"] = Value::from(message.as_str());
            if let Some(said) = said {
                data["decided"] = json!({ "action": said.action, "by": said.by, "at": said.at });
            }
        }
        let metadata = json!({
            "worker_id": &*self.worker_id,
            "work_id": ask.map(|ask| &ask.work_id),
            "entry": entry.map(|entry| format!("{}/{}", entry.stream, entry.entry)),
        });
        let raw = |value: &Value| serde_json::value::to_raw_value(value).expect("JSON values are JSON");
        let (data, metadata) = (raw(&data), raw(&metadata));
        let id = uuid::Uuid::now_v7().to_string();
        Event::new(EventType::NodeDecision, id, Subject { graph_id, node_id, run_id }, now, &data, &metadata).to_json()
    }

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

    /// Questions that are open, some at a time, as [`Self::page`] finds them. The index is mended on the way.
    pub async fn open(&self, from: u64) -> Result<(u64, Vec<Ask>), RedisError> {
        let (next, page) = self.page(from).await?;
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

/// What a decision is judged by.
struct Facts {
    /// The question; what cannot be read here is not to be decided by this worker.
    asked: Result<Option<Asked>, Refusal>,
    /// Whether the run has ended.
    ended: bool,
    /// The work that waits outside of its stream, if the run does.
    parked: Option<String>,
    /// The server's clock.
    now: Timestamp,
}

/// A node that begins to wait.
struct Wait<'a> {
    room: &'a WaitingRoom,
    delivery: &'a Delivery,
    meta: &'a Meta,
    waiting: &'a Waiting,
    written: &'a WrittenWait,
    write_state: bool,
}

impl WriteNode for Wait<'_> {
    async fn once(&self, replace: Option<(&str, &str)>) -> Result<Answer, RedisError> {
        let call = self.room.wait_call(self, replace);
        settle::answer(self.room.link.eval(&WAIT, &call).await?)
    }
}

fn open(wait: &str, names: &str) -> Option<Open> {
    let Run { graph, node, run } = Run::parse(names)?;
    Some(Open { wait_id: WaitId::from_text(wait), graph_id: graph, node_id: node, run_id: run })
}

/// A question and its answer as they stand in the journal.
fn asked(kept: redis::Value) -> Result<Option<Asked>, RedisError> {
    let what = "a question in a journal";
    let [ask, said] = reply::tuple::<2>(kept, what)?;
    let Some(ask) = reply::bytes(ask) else { return Ok(None) };
    let unexpected = |_| RedisError::Unexpected { what };
    let said = reply::bytes(said).map(|said| serde_json::from_slice(&said)).transpose().map_err(unexpected)?;
    Ok(Some(Asked { ask: serde_json::from_slice(&ask).map_err(unexpected)?, said }))
}

/// What is kept about a decision that counts, after its node is long gone.
fn audit(decision: &Decision, ask: Option<&Ask>, said: &Said) -> String {
    let Decision { graph_id, node_id, run_id, .. } = decision;
    let mut line = ask.map_or_else(|| json!({}), |ask| said.brief(ask));
    line["graph_id"] = json!(graph_id);
    line["node_id"] = json!(node_id);
    line["run_id"] = json!(run_id);
    if let Some(ask) = ask {
        line["asked_by"] = json!(ask.asked_by);
        line["asked_at"] = json!(ask.asked_at);
        line["arguments"] = bounded(&json!(ask.arguments));
    }
    if let Some(content) = &said.content {
        line["content"] = bounded(content);
    }
    line.to_string()
}

/// A value as the audit keeps it: of a large one the beginning and a digest, which still tells what it was.
fn bounded(value: &Value) -> Value {
    let text = value.to_string();
    if text.len() <= AUDITED {
        return value.clone();
    }
    let beginning: String = text.chars().take(AUDITED / 8).collect();
    json!({ "bytes": text.len(), "sha256": HEXLOWER.encode(&Sha256::digest(text.as_bytes())), "beginning": beginning })
}
