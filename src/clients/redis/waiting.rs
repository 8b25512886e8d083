//! Nodes that wait for what others say: one script takes an entry out of its stream and asks, another puts a decision on
//! record and lets the node be due. Bringing nodes back is the mover's, as for all parked work; looking through the
//! questions is in [`super::open_questions`].
//!
//! The questions of a run and their answers stand in its journal, fields `w:{wait_id}:ask` and `w:{wait_id}:said`. Hash
//! `{prefix}waits`: for each open question graph, node and run, a line each, so that it is found by its name alone; it
//! may lag behind, and the journal decides. Stream `{prefix}waits:audit`: what was decided.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use redis::Pipeline;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::clients::redis::aside::{self, Place};
use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;
use crate::clients::redis::settle::{self, Answer, Settled, Turns, WriteNode};
use crate::clients::redis::stream::RawEntry;
use crate::clients::redis::{layout, lease, record};
use crate::config::Config;
use crate::domain::event::{Event, EventType, Subject};
use crate::domain::journal::{ask_field, said_field};
use crate::domain::outcome::Waiting;
use crate::domain::settlement::WrittenWait;
use crate::domain::wait::{self, Ask, Asked, Decision, Refusal, Said};
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
/// Bytes of arguments, and of what goes with a decision, that the audit keeps whole.
const AUDITED: usize = 8 << 10;

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
    pub(super) link: Link,
    pub(super) keys: Keys,
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
        let (old, new) = replace.unwrap_or_default();
        let bytes: usize = written.asks.iter().map(|ask| ask.ask_json.len() + ask.event_json.len()).sum();
        let bytes = bytes + written.node_json.len() + old.len() + new.len();
        let place = Place { keys: &self.keys, group: &self.group, streams: &self.streams };
        let own = [self.keys.waits(), self.keys.events(EventType::NodeInputRequired)];
        let mut call = aside::call(&WAIT, place, delivery, meta, &own, bytes);
        call.arg(waiting.expires_at.as_millisecond());
        match waiting.until {
            Some(until) => call.arg(lease::millis(until.saturating_duration_since(Instant::now()))),
            None => call.arg(""),
        };
        call.arg(self.ttl_ms);
        if write_state {
            call.arg(format!("{}{}", layout::NODE, delivery.item.node_id)).arg(&written.node_json);
        } else {
            call.arg("").arg("");
        }
        call.arg(old).arg(new).arg(&waiting.header).arg(u8::from(waiting.restart)).arg(self.maxlen);
        for ask in &written.asks {
            call.arg(ask.wait_id.as_str())
                .arg(ask_field(&ask.wait_id))
                .arg(&ask.ask_json)
                .arg(said_field(&ask.wait_id))
                .arg(&ask.event_json);
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
        for tried in 1..=JUDGED {
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
            match self.put(&call).await {
                Ok(Put::Done) => return Ok(judged.map_or_else(Decided::Refused, |()| Decided::Counts)),
                Ok(Put::Lost) => return Ok(Decided::Lost),
                Ok(Put::Changed) => {}
                // Without an entry nobody else will try this again.
                Err(error) if entry.is_none() && error.is_outage() && tried < JUDGED => {}
                Err(error) => return Err(error),
            }
        }
        Err(RedisError::Unexpected { what: "a question that keeps changing" })
    }

    /// Puts on record what follows from a question that nobody answered in time, as a decision of nobody. Doing it
    /// again, or when it is not so, does nothing.
    pub async fn lapse(&self, ask: &Ask, said: &Said) -> Result<(), RedisError> {
        let Ask { graph_id, node_id, run_id, wait_id, .. } = ask.clone();
        let (action, by) = (said.action, said.by.clone());
        let decision = Decision { graph_id, node_id, run_id, wait_id, action, content: None, by, note: None };
        let now = Timestamp::now();
        let call = self.decide_call(&decision, None, Some(ask), Some(&ask.work_id), &Ok(()), said, now);
        self.put(&call).await.map(drop)
    }

    async fn put(&self, call: &redis::Cmd) -> Result<Put, RedisError> {
        let answer = self.link.eval(&DECIDE, call).await?;
        if let redis::Value::Array(parts) = answer {
            return Err(RedisError::WrongType { key: parts.into_iter().nth(1).and_then(reply::text) });
        }
        match reply::as_bytes(&answer) {
            Some(b"ok") => Ok(Put::Done),
            Some(b"lost") => Ok(Put::Lost),
            Some(b"changed") => Ok(Put::Changed),
            _ => Err(RedisError::Unexpected { what: "a decision" }),
        }
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
        let event = self.event(decision, entry, ask, judged, said, now);
        let counts = match (judged, said.expired) {
            (Ok(()), false) => "1",
            (Ok(()), true) => "late",
            (Err(_), _) => "0",
        };
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
        call.arg(counts)
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
        answer: &Said,
        now: Timestamp,
    ) -> String {
        let Decision { graph_id, node_id, run_id, wait_id, action, by, note, .. } = decision;
        let mut data = json!({
            "graph_id": graph_id, "node_id": node_id, "wait_id": wait_id, "action": action,
            "accepted": judged.is_ok(), "kind": ask.map(|ask| ask.kind), "by": by, "note": note,
        });
        if answer.expired {
            data["expired"] = Value::from(true);
        }
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

/// What the script said of an answer.
enum Put {
    /// It is on record, or what it does not count for is told.
    Done,
    /// The entry that it came by is not ours any more.
    Lost,
    /// The question is not as it was.
    Changed,
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

/// A question and its answer as they stand in the journal.
pub(super) fn asked(kept: redis::Value) -> Result<Option<Asked>, RedisError> {
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
