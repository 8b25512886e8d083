//! The journal of the running node: what an earlier attempt has on record, and the writing of what this one does.
//! What follows from a record is each mode's to say.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::domain::journal::{
    self, CallId, CallRecord, Class, End, Field, Header, JOURNAL_VERSION, JournalEntry, Record, Running, Start,
    Unusable, WholeResult,
};
use crate::domain::message::{Completion, Conversation};
use crate::domain::outcome::{Failure, Resumed, Spent};
use crate::domain::session::Session;
use crate::domain::tool::{Arguments, ToolTarget};
use crate::domain::wait::{Answer, Asked, WaitId};
use crate::domain::work::Delivery;
use crate::failpoint::{self, Point};
use crate::modes::execution::Ledger;
use crate::modes::step::until_answered;
use crate::modes::waits::Page;
use crate::ports::{Appended, Cancel, CancelReason, Journal, Ports};

/// What opening the run brought of an earlier attempt.
#[derive(Debug, Default)]
pub(super) struct Earlier(Option<Result<Record, Unusable>>);

impl Earlier {
    /// Reads the fields of a journal.
    pub fn read(fields: &[(String, Vec<u8>)]) -> Self {
        Self(journal::read(fields))
    }

    /// The calls that servers still work on, as far as that can be told.
    pub fn running(&self) -> impl Iterator<Item = (CallId, &Running)> {
        let calls = self.0.as_ref().and_then(|read| read.as_ref().ok()).map(|record| &record.calls);
        calls.into_iter().flatten().filter_map(|(call, record)| match record {
            CallRecord::Running(running) => Some((*call, &**running)),
            CallRecord::Begun(_) | CallRecord::Ended(_) => None,
        })
    }

    /// When the node was first begun, if it was.
    pub fn started_at(&self) -> Option<Timestamp> {
        match self.0.as_ref()? {
            Ok(record) => Some(record.header.started_at),
            Err(unusable) => unusable.started_at,
        }
    }
}

/// What tells whether a journal belongs to this very work: the configuration, and what was put into it.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    /// The configuration, JSON.
    pub config: &'a str,
    /// A digest of the texts that were put together for a model; none where the arguments of the one call say it all.
    pub rendered: Option<String>,
}

impl Subject<'_> {
    /// A digest that does not depend on the order of an object's members: another writer of the graph may change it.
    fn digest(&self) -> String {
        let mut config: Value = serde_json::from_str(self.config).unwrap_or_default();
        config.sort_all_objects();
        digest([config.to_string().as_str(), self.rendered.as_deref().unwrap_or_default()])
    }
}

/// What the logbook works with.
pub(super) struct Desk<'a, P> {
    pub ports: &'a P,
    pub delivery: &'a Arc<Delivery>,
    pub cancel: &'a Cancel,
    pub ledger: &'a Ledger,
    pub deadline: Instant,
    /// Bytes of one entry at the most.
    pub entry_limit: usize,
}

/// The journal of the running node.
pub(super) struct Logbook<'a, P> {
    desk: Desk<'a, P>,
    subject: Subject<'a>,
    digest: OnceCell<String>,
    epoch: u32,
    started_at: Timestamp,
    before: Spent,
    turns: RefCell<Vec<Option<Completion>>>,
    calls: RefCell<BTreeMap<CallId, CallRecord>>,
    /// The calls of which a task is on record.
    tasks: RefCell<BTreeSet<CallId>>,
    waits: BTreeMap<WaitId, Asked>,
    session: Option<Box<RawValue>>,
    resumed: Option<Resumed>,
    /// The entries of an earlier epoch are still there.
    restart: Cell<bool>,
    /// The last worker died during a tool call, and no call has ended since: turns of the model alone do not show
    /// that the next worker will not die in the same way.
    suspect: Cell<bool>,
}

impl<'a, P: Ports> Logbook<'a, P> {
    /// Goes on from what is on record, or begins. A record of other work is left behind, unless a call was begun that
    /// must not be made again.
    pub fn open(
        desk: Desk<'a, P>,
        subject: Subject<'a>,
        earlier: Earlier,
        started_at: Timestamp,
    ) -> Result<Self, Failure> {
        let mut book = Self {
            desk,
            subject,
            digest: OnceCell::new(),
            epoch: 1,
            started_at,
            before: Spent::default(),
            turns: RefCell::default(),
            calls: RefCell::default(),
            tasks: RefCell::default(),
            waits: BTreeMap::new(),
            session: None,
            resumed: None,
            restart: Cell::new(false),
            suspect: Cell::new(false),
        };
        let Some(earlier) = earlier.0 else { return Ok(book) };
        match earlier {
            Ok(record) if record.header.config == book.digest() => book.go_on(record),
            Ok(record) => book.start_over(Unusable {
                why: String::from("the node's configuration or inputs have changed"),
                epoch: record.header.epoch,
                started_at: Some(record.header.started_at),
                used: record.spent(),
                unsafe_begun: record.unsafe_begun(),
            })?,
            Err(unusable) => book.start_over(unusable)?,
        }
        Ok(book)
    }

    fn go_on(&mut self, record: Record) {
        self.epoch = record.header.epoch;
        self.started_at = record.header.started_at;
        self.resumed = Some(Resumed { turns: record.turns.len(), tool_calls: record.ended_calls() });
        self.desk.ledger.spent.replace(record.spent());
        self.before = record.header.before;
        self.turns = RefCell::new(record.turns.into_iter().map(Some).collect());
        self.calls = RefCell::new(record.calls);
        let mut waits: Vec<&Asked> = record.waits.values().collect();
        waits.sort_by_key(|asked| asked.ask.asked_at);
        for asked in waits {
            if let Answer::Said(said) = asked.answer(self.desk.delivery.added_at()) {
                self.desk.ledger.decisions.borrow_mut().push(said.brief(&asked.ask));
            }
        }
        self.waits = record.waits;
        self.session = record.session;
    }

    fn start_over(&mut self, old: Unusable) -> Result<(), Failure> {
        self.desk.ledger.spent.replace(old.used.clone());
        if old.unsafe_begun {
            return Err(mismatch(&format!("{} since a tool call was begun that may have taken effect", old.why)));
        }
        tracing::warn!(reason = old.why, epoch = old.epoch, "the journal cannot be gone on from, the node starts over");
        self.desk.ledger.warn([format!("the node was started over: {}", old.why)]);
        self.epoch = old.epoch.saturating_add(1);
        self.started_at = old.started_at.unwrap_or(self.started_at);
        self.before = old.used;
        self.restart.set(true);
        Ok(())
    }

    /// How often the node was begun from its beginning.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// What was used before the node was started over.
    pub fn before(&self) -> &Spent {
        &self.before
    }

    /// What need not be done again, where there is something.
    pub fn resumed(&self) -> Option<Resumed> {
        self.resumed
    }

    /// The model's turn of this number, if it is on record; each is given once.
    pub fn turn(&self, turn: u32) -> Option<Completion> {
        let at = usize::try_from(turn.checked_sub(1)?).ok()?;
        self.turns.borrow_mut().get_mut(at)?.take()
    }

    /// What is on record of a call.
    pub fn call(&self, call: CallId) -> Result<Option<CallRecord>, Failure> {
        let found = self.calls.borrow_mut().remove(&call);
        match &found {
            Some(CallRecord::Ended(End::Unknown(_))) => self.suspect.set(true),
            Some(CallRecord::Ended(_)) => self.suspect.set(false),
            Some(CallRecord::Running(_)) => drop(self.tasks.borrow_mut().insert(call)),
            Some(CallRecord::Begun(_)) => {}
            // The model has spoken again since, so this call was answered: its answer is not ours to make up.
            None if call.turn > 0 && usize::try_from(call.turn).is_ok_and(|turn| turn < self.turns.borrow().len()) => {
                return Err(mismatch("a tool call of an earlier turn is missing in it"));
            }
            None => {}
        }
        Ok(found)
    }

    /// Whether anything is on record of a call.
    pub fn knows(&self, call: CallId) -> bool {
        self.calls.borrow().contains_key(&call)
    }

    /// Whether a call needs no looking for its tool: its end is on record, or that its server works on it.
    pub fn needs_no_tool(&self, call: CallId) -> bool {
        matches!(self.calls.borrow().get(&call), Some(CallRecord::Ended(_) | CallRecord::Running(_)))
    }

    /// Whether a task of a call was put on record.
    pub fn has_task(&self, call: CallId) -> bool {
        self.tasks.borrow().contains(&call)
    }

    /// Whether anything was asked before.
    pub fn has_asked(&self) -> bool {
        !self.waits.is_empty()
    }

    /// A question that was asked before.
    pub fn asked(&self, wait: &WaitId) -> Option<Asked> {
        self.waits.get(wait).cloned()
    }

    /// Puts on record what follows from questions that nobody answered in time, before anything does.
    pub async fn lapse(&self) -> Result<(), Failure> {
        let Desk { ports, delivery, deadline, .. } = &self.desk;
        for asked in self.waits.values() {
            if let Some(said) = asked.lapsed(delivery.added_at()) {
                let ask = Arc::new(asked.ask.clone());
                until_answered(*deadline, || ports.journal().lapse(&ask, &said)).await?;
            }
        }
        Ok(())
    }

    /// The conversation that the node goes on with: the one on record if there is any, for what is in the graph by now
    /// may be another node's; else the one that is kept there, which is put on record.
    pub async fn goes_on_with(&self, session: &str, kept: Option<&RawValue>) -> Result<Conversation, Failure> {
        let begun_with =
            self.session.as_deref().map_or(kept, |recorded| Some(recorded).filter(|it| it.get() != "null"));
        let turns = begun_with.map_or_else(|| Ok(Vec::new()), |kept| Session::turns(session, kept))?;
        if self.session.is_none() {
            self.append(Field::Session, &kept, false, None).await?;
        }
        Ok(turns)
    }

    /// What the journal begins with by now. A journal whose old entries still have to go has no new ones yet, for
    /// whatever is written first takes them away.
    pub fn page(&self) -> Page {
        Page { header: json_of(&self.header()), restart: self.restart.get() }
    }

    /// Puts a complete turn of the model on record.
    pub async fn heard(&self, turn: u32, completion: &Completion) -> Result<(), Failure> {
        self.append(Field::Turn(turn), completion, !self.suspect.get(), None).await?;
        failpoint::reach(Point::AfterLlmRecord);
        Ok(())
    }

    /// Puts on record that a call is about to be made.
    pub async fn begins(
        &self,
        call: CallId,
        target: &ToolTarget,
        arguments: &Arguments,
        key: String,
        class: Class,
    ) -> Result<(), Failure> {
        let start = Start {
            server: target.server.clone(),
            tool: target.name.clone(),
            arguments: digest_of(arguments),
            key,
            class,
            at: Timestamp::now(),
            entry: None,
        };
        self.begins_again(call, start).await
    }

    /// Puts on record that a call which was begun under another entry is about to be made under this one.
    pub async fn begins_again(&self, call: CallId, start: Start) -> Result<(), Failure> {
        let start = Start { entry: Some(self.desk.delivery.entry.to_string()), ..start };
        // A call that kills its worker begins each time: that alone is no progress.
        self.append(Field::Start(call), &start, false, None).await?;
        failpoint::reach(Point::AfterToolStart);
        Ok(())
    }

    /// Puts on record that a server works on a call, and what it was last asked.
    pub async fn runs(&self, call: CallId, running: &Running) -> Result<(), Failure> {
        self.tasks.borrow_mut().insert(call);
        // The call did not end its worker, and neither did the look before this one.
        self.append(Field::Task(call), running, true, None).await
    }

    /// Puts on record how a call ended, and stores the whole of a result of which the record has a part.
    pub async fn ended(&self, call: CallId, end: &End, whole: Option<Box<RawValue>>) -> Result<(), Failure> {
        let known = !matches!(end, End::Unknown(_));
        self.suspect.set(!known);
        let whole = whole.map(|json| WholeResult { call, json });
        self.append(Field::End(call), end, known, whole).await?;
        failpoint::reach(Point::AfterToolEnd);
        Ok(())
    }

    async fn append(
        &self,
        field: Field,
        value: &impl Serialize,
        progress: bool,
        whole: Option<WholeResult>,
    ) -> Result<(), Failure> {
        let value = json_of(value);
        // Whatever is on record is read as a whole by whoever goes on from it.
        if value.len() > self.desk.entry_limit {
            return Err(too_large(value.len(), self.desk.entry_limit));
        }
        let entry = Arc::new(JournalEntry {
            header: json_of(&self.header()),
            field: field.to_string(),
            value,
            restart: self.restart.get(),
            progress,
            whole,
        });
        let Desk { ports, delivery, cancel, deadline, .. } = &self.desk;
        match until_answered(*deadline, || ports.journal().append(delivery, &entry)).await? {
            Appended::Done => {
                self.restart.set(false);
                Ok(())
            }
            Appended::Lost => {
                cancel.cancel(CancelReason::Lost);
                // Nothing may be done any more; whoever waits for the cancellation drops this.
                pending().await
            }
        }
    }

    fn header(&self) -> Header {
        let token = &self.desk.delivery.token;
        Header {
            v: JOURNAL_VERSION,
            config: self.digest().to_owned(),
            epoch: self.epoch,
            owner: format!("{}/{}", token.consumer, token.deliveries),
            started_at: self.started_at,
            before: self.before.clone(),
            used: self.desk.ledger.spent.borrow().clone(),
        }
    }

    /// Made only when it is needed: most nodes in tool mode write no journal.
    fn digest(&self) -> &str {
        self.digest.get_or_init(|| self.subject.digest())
    }
}

/// A step that is too large to be put on record, and so for an output.
fn too_large(bytes: usize, limit: usize) -> Failure {
    Failure::validation(
        "step_too_large",
        format!(
            "a step of the node has {bytes} bytes, and at most {limit} can be put on record, which `limits.output` sets; let the model or the tool return less"
        ),
    )
}

/// Bytes that a value has on record.
pub(super) fn length_of(value: &impl Serialize) -> usize {
    json_of(value).len()
}

/// A journal that must not be gone on from, and whose node must not be started over either.
pub(super) fn mismatch(why: &str) -> Failure {
    Failure::permanent(
        "journal_mismatch",
        format!(
            "what an earlier worker had begun cannot be gone on with: {why}; check what was done and send the node again under a new `run_id`"
        ),
    )
}

/// SHA-256 of a call's arguments, whatever their order.
pub(super) fn digest_of(arguments: &Arguments) -> String {
    let mut arguments = Value::Object(arguments.clone());
    arguments.sort_all_objects();
    digest([arguments.to_string().as_str()])
}

/// SHA-256 of texts, in hexadecimal digits. The length before each keeps them from running into each other.
pub(super) fn digest<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text.as_bytes());
    }
    HEXLOWER.encode(&hasher.finalize())
}

fn json_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("entries have string keys and finite numbers")
}

#[cfg(test)]
mod tests;
