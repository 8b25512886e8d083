//! The journal of one execution: what is on record about each step, and the fields it is kept under. Where it is
//! stored is the Redis client's; when it is written and read again is the modes'.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::domain::message::{Completion, Usage};
use crate::domain::outcome::{Failure, Spent};
use crate::domain::task::Task;
use crate::domain::tool::{ToolOutput, ToolTarget};
use crate::domain::wait::{Ask, Asked, Said, WaitId};

/// The version of the journal's shape that this worker writes, and the only one that it goes on from.
pub const JOURNAL_VERSION: u64 = 1;
/// The field of the header.
pub const HEADER: &str = "hdr";
/// The field of the conversation that was there before.
const SESSION: &str = "session";

/// A tool call by the turn that asked for it and its place there. Tool mode's one call is the first of turn 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    /// The model's turn, from 1.
    pub turn: u32,
    /// The place among the calls of that turn, from 0.
    pub index: u32,
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}:c{}", self.turn, self.index)
    }
}

/// The name of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A complete turn of the model, from 1.
    Turn(u32),
    /// A tool call is about to begin.
    Start(CallId),
    /// Its server works on a tool call by itself.
    Task(CallId),
    /// A tool call has ended.
    End(CallId),
    /// The conversation that the node goes on with.
    Session,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => f.write_str(SESSION),
            Self::Turn(turn) => write!(f, "t{turn}:llm"),
            Self::Start(call) => write!(f, "{call}:start"),
            Self::Task(call) => write!(f, "{call}:task"),
            Self::End(call) => write!(f, "{call}:end"),
        }
    }
}

impl Field {
    fn parse(name: &str) -> Option<Self> {
        if name == SESSION {
            return Some(Self::Session);
        }
        let (turn, rest) = name.strip_prefix('t')?.split_once(':')?;
        let turn = turn.parse().ok()?;
        if rest == "llm" {
            return Some(Self::Turn(turn));
        }
        let (index, kind) = rest.strip_prefix('c')?.split_once(':')?;
        let call = CallId { turn, index: index.parse().ok()? };
        match kind {
            "start" => Some(Self::Start(call)),
            "task" => Some(Self::Task(call)),
            "end" => Some(Self::End(call)),
            _ => None,
        }
    }
}

/// What the names of entries about questions begin with; the id and one of the next two follow.
const WAIT: &str = "w:";
const ASK: &str = ":ask";
const SAID: &str = ":said";

/// The name of the entry of a question.
pub fn ask_field(wait: &WaitId) -> String {
    format!("{WAIT}{wait}{ASK}")
}

/// The name of the entry of its answer.
pub fn said_field(wait: &WaitId) -> String {
    format!("{WAIT}{wait}{SAID}")
}

/// What the journal belongs to and what has been used; written anew with every entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the shape.
    pub v: u64,
    /// A digest of the configuration and of the inputs as they were put into it.
    pub config: String,
    /// How often the node was begun from its beginning; a part of every idempotency key.
    pub epoch: u32,
    /// Who wrote last: consumer and delivery count.
    pub owner: String,
    /// When the node was first begun; its time counts from here, whoever goes on with it.
    pub started_at: Timestamp,
    /// What epochs before this one used.
    pub before: Spent,
    /// What was used in all. Calls that run side by side may be missing from it; the entries are what counts.
    pub used: Spent,
}

/// Whether a call may simply be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// It changes nothing, or twice is the same as once.
    Safe,
    /// Nobody says so.
    Unsafe,
}

/// A tool call that was begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The MCP server; none for the function registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The tool's own name.
    pub tool: String,
    /// SHA-256 of the arguments as JSON.
    pub arguments: String,
    /// The call's idempotency key.
    pub key: String,
    /// Whether it may be made again.
    pub class: Class,
    /// When it was begun.
    pub at: Timestamp,
    /// The entry under which it was last begun: a node that waited outside of its slot comes back under another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
}

impl Start {
    /// Where the call went.
    pub fn target(&self) -> ToolTarget {
        ToolTarget { server: self.server.clone(), name: self.tool.clone() }
    }
}

/// A call that its server works on by itself. It has the call's beginning in it, for not every call has that on record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Running {
    /// The call.
    #[serde(flatten)]
    pub start: Start,
    /// What its server is asked about.
    pub task: Task,
}

/// How a tool call ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The tool answered, or the call was refused before it ran; for an agent as the model was shown it.
    Answered(ToolOutput),
    /// The call failed, and with it the node.
    Failed(Failure),
    /// The worker died during the call: what the model was told about it.
    Unknown(ToolOutput),
}

/// One entry on its way into the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalEntry {
    /// The header, JSON.
    pub header: String,
    /// The entry's name.
    pub field: String,
    /// The entry, JSON.
    pub value: String,
    /// Whether everything before goes: a new epoch begins.
    pub restart: bool,
    /// Whether the node has come further than a crash before it. This clears the count of crashes.
    pub progress: bool,
    /// What the entry only refers to, stored in the same step.
    pub whole: Option<WholeResult>,
}

/// The result of a tool call of which the model was shown only a part.
#[derive(Debug, Clone)]
pub struct WholeResult {
    /// The call.
    pub call: CallId,
    /// The result, JSON.
    pub json: Box<RawValue>,
}

impl PartialEq for WholeResult {
    fn eq(&self, other: &Self) -> bool {
        self.call == other.call && self.json.get() == other.json.get()
    }
}

/// What is known of one tool call.
#[derive(Debug, Clone, PartialEq)]
pub enum CallRecord {
    /// It was begun, and nothing is known of its end.
    Begun(Start),
    /// Its server works on it, whether or not somebody waits for that.
    Running(Box<Running>),
    /// It has ended.
    Ended(End),
}

/// A journal that can be gone on from.
#[derive(Debug, Clone)]
pub struct Record {
    /// The header.
    pub header: Header,
    /// The model's turns, the first one first.
    pub turns: Vec<Completion>,
    /// The tool calls.
    pub calls: BTreeMap<CallId, CallRecord>,
    /// The questions that were asked.
    pub waits: BTreeMap<WaitId, Asked>,
    /// The conversation that the node went on with, `null` for none; absent where that was not put on record.
    pub session: Option<Box<RawValue>>,
    starts: u32,
    unsafe_begun: bool,
}

impl Record {
    /// Whether a call was begun that may not simply be made again.
    pub fn unsafe_begun(&self) -> bool {
        self.unsafe_begun
    }

    /// What this epoch and those before it used.
    pub fn spent(&self) -> Spent {
        let Header { before, used, .. } = &self.header;
        let mut usage = before.usage;
        for turn in &self.turns {
            *usage.get_or_insert_with(Usage::default) += turn.usage;
        }
        Spent {
            usage,
            tool_calls: before.tool_calls + self.starts,
            attempts: before.attempts.max(used.attempts),
            retries: 0,
        }
    }

    /// Tool calls that have ended, as opposed to begun.
    pub fn ended_calls(&self) -> usize {
        self.calls.values().filter(|call| matches!(call, CallRecord::Ended(End::Answered(_) | End::Failed(_)))).count()
    }
}

/// A journal that cannot be gone on from: another version wrote it, or it is damaged.
#[derive(Debug, Clone, PartialEq)]
pub struct Unusable {
    /// Why, for a person.
    pub why: String,
    /// Its epoch, as far as it can be told.
    pub epoch: u32,
    /// When the node was first begun, if that can be told.
    pub started_at: Option<Timestamp>,
    /// What was used, if that can be told.
    pub used: Spent,
    /// Whether a call may have been begun that may not simply be made again.
    pub unsafe_begun: bool,
}

/// Reads the fields of a journal; nothing if there are none.
pub fn read(fields: &[(String, Vec<u8>)]) -> Option<Result<Record, Unusable>> {
    if fields.is_empty() {
        return None;
    }
    Some(record(fields).map_err(|why| unusable(fields, why)))
}

fn record(fields: &[(String, Vec<u8>)]) -> Result<Record, String> {
    let broken = |name: &str, error: serde_json::Error| format!("its entry `{name}` cannot be read: {error}");
    let header = header(fields).ok_or("it has no header")?;
    if header.get("v").and_then(Value::as_u64) != Some(JOURNAL_VERSION) {
        return Err(String::from("another version of the worker wrote it"));
    }
    let header = serde_json::from_value(header).map_err(|error| broken(HEADER, error))?;
    let mut turns = BTreeMap::new();
    let mut session = None;
    let (mut starts, mut ends) = (BTreeMap::<CallId, Start>::new(), BTreeMap::<CallId, End>::new());
    let mut tasks = BTreeMap::<CallId, Running>::new();
    let (mut asks, mut answers) = (BTreeMap::<WaitId, Ask>::new(), BTreeMap::<WaitId, Said>::new());
    for (name, value) in fields.iter().filter(|(name, _)| name != HEADER) {
        let broken = |error| broken(name, error);
        if let Some(wait) = name.strip_prefix(WAIT) {
            if let Some(wait) = wait.strip_suffix(ASK) {
                asks.insert(WaitId::from_text(wait), serde_json::from_slice(value).map_err(broken)?);
                continue;
            }
            if let Some(wait) = wait.strip_suffix(SAID) {
                answers.insert(WaitId::from_text(wait), serde_json::from_slice(value).map_err(broken)?);
                continue;
            }
        }
        match Field::parse(name).ok_or_else(|| format!("it has an entry `{name}` of an unknown kind"))? {
            Field::Turn(turn) => drop(turns.insert(turn, serde_json::from_slice(value).map_err(broken)?)),
            Field::Start(call) => drop(starts.insert(call, serde_json::from_slice(value).map_err(broken)?)),
            Field::Task(call) => drop(tasks.insert(call, serde_json::from_slice(value).map_err(broken)?)),
            Field::End(call) => drop(ends.insert(call, serde_json::from_slice(value).map_err(broken)?)),
            Field::Session => session = Some(serde_json::from_slice(value).map_err(broken)?),
        }
    }
    let turns: Vec<Completion> =
        (1..).zip(turns).map_while(|(at, (turn, heard))| (at == turn).then_some(heard)).collect();
    let recorded = fields.iter().filter(|(name, _)| name.ends_with(":llm")).count();
    let begun = starts.keys().chain(tasks.keys().filter(|call| !starts.contains_key(call))).count();
    let mut all = starts.values().chain(tasks.values().map(|running| &running.start));
    let unsafe_begun = all.any(|start| start.class == Class::Unsafe);
    let mut calls: BTreeMap<CallId, CallRecord> =
        starts.into_iter().map(|(call, start)| (call, CallRecord::Begun(start))).collect();
    calls.extend(tasks.into_iter().map(|(call, running)| (call, CallRecord::Running(Box::new(running)))));
    calls.extend(ends.into_iter().map(|(call, end)| (call, CallRecord::Ended(end))));
    let known = u32::try_from(turns.len()).unwrap_or(u32::MAX);
    if turns.len() != recorded || calls.keys().any(|call| call.turn > known) {
        return Err(String::from("a turn of the model is missing in it"));
    }
    let asked = |(wait, ask): (WaitId, Ask)| {
        let said = answers.remove(&wait);
        (wait, Asked { ask, said })
    };
    let waits = asks.into_iter().map(asked).collect();
    let starts = u32::try_from(begun).unwrap_or(u32::MAX);
    Ok(Record { header, turns, calls, waits, session, starts, unsafe_begun })
}

fn header(fields: &[(String, Vec<u8>)]) -> Option<Value> {
    let (_, header) = fields.iter().find(|(name, _)| name == HEADER)?;
    serde_json::from_slice(header).ok()
}

/// What can be told of a journal whose shape is not ours. What cannot be told counts as the worst.
fn unusable(fields: &[(String, Vec<u8>)], why: String) -> Unusable {
    let header = header(fields).unwrap_or_default();
    let part = |name: &str| header.get(name).cloned().unwrap_or_default();
    let safe = |value: &[u8]| {
        let start: Value = serde_json::from_slice(value).unwrap_or_default();
        start.get("class").and_then(Value::as_str) == Some("safe")
    };
    Unusable {
        why,
        epoch: part("epoch").as_u64().and_then(|epoch| u32::try_from(epoch).ok()).unwrap_or(1),
        started_at: serde_json::from_value(part("started_at")).ok(),
        used: serde_json::from_value(part("used")).unwrap_or_default(),
        unsafe_begun: fields
            .iter()
            .any(|(name, value)| (name.ends_with(":start") || name.ends_with(":task")) && !safe(value)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::message::{AssistantTurn, StopReason};
    use crate::domain::wait::Action;

    const RAW: &str = r#"[ {"type":"text",  "text":"hé","sig":1.0e2} ]"#;

    fn completion() -> Completion {
        Completion {
            turn: AssistantTurn {
                raw: serde_json::from_str(RAW).expect("JSON"),
                text: String::from("hé"),
                tool_uses: Vec::new(),
                author: None,
            },
            stop_reason: StopReason::Refusal { category: Some(String::from("bio")), explanation: None },
            model: String::from("m"),
            provider: None,
            usage: Usage { input_tokens: 10, output_tokens: 5, ..Usage::default() },
            request_id: None,
            warnings: vec![String::from("left out")],
            shortened: 1,
        }
    }

    fn header() -> Header {
        let before = Spent {
            usage: Some(Usage { input_tokens: 1, ..Usage::default() }),
            tool_calls: 2,
            attempts: 1,
            retries: 0,
        };
        Header {
            v: JOURNAL_VERSION,
            config: String::from("abc"),
            epoch: 3,
            owner: String::from("w:1/2"),
            started_at: "2026-01-02T03:04:05.123Z".parse().expect("a time"),
            used: Spent { attempts: 4, ..before.clone() },
            before,
        }
    }

    fn start(class: Class) -> Start {
        Start {
            server: Some(String::from("srv")),
            tool: String::from("a:b/c"),
            arguments: String::from("0f"),
            key: String::from("key"),
            class,
            at: Timestamp::UNIX_EPOCH,
            entry: Some(String::from("5-0")),
        }
    }

    fn field<T: Serialize>(field: impl fmt::Display, value: &T) -> (String, Vec<u8>) {
        (field.to_string(), serde_json::to_vec(value).expect("JSON"))
    }

    const CALL: CallId = CallId { turn: 1, index: 0 };

    fn fields() -> Vec<(String, Vec<u8>)> {
        vec![
            field(Field::End(CALL), &End::Answered(ToolOutput::structured(Value::Null))),
            field(HEADER, &header()),
            field(Field::Start(CallId { index: 1, ..CALL }), &start(Class::Safe)),
            field(Field::Turn(1), &completion()),
            field(Field::Start(CALL), &start(Class::Unsafe)),
        ]
    }

    fn usable(fields: &[(String, Vec<u8>)]) -> Record {
        read(fields).expect("there is a journal").expect("it can be gone on from")
    }

    fn refused(fields: &[(String, Vec<u8>)]) -> Unusable {
        read(fields).expect("there is a journal").expect_err("it cannot be gone on from")
    }

    #[test]
    fn what_was_written_is_read_again_and_a_models_turn_byte_for_byte() {
        let record = usable(&fields());
        assert_eq!(record.header, header());
        assert_eq!((record.turns.len(), record.turns[0].turn.raw.get()), (1, RAW));
        assert_eq!(
            (&record.turns[0].stop_reason, &record.turns[0].warnings),
            (&completion().stop_reason, &completion().warnings)
        );
        let answered = End::Answered(ToolOutput::structured(Value::Null));
        assert_eq!(record.calls[&CALL], CallRecord::Ended(answered), "an answer of null is an answer");
        assert_eq!(record.calls[&CallId { index: 1, ..CALL }], CallRecord::Begun(start(Class::Safe)));
        assert_eq!(start(Class::Safe).target().to_string(), "srv/a:b/c");
        assert!(read(&[]).is_none());
    }

    #[test]
    fn failures_keep_everything_that_the_event_tells() {
        let failure = Failure { attempts: 3, ..Failure::retriable("http_503", "busy") }
            .with_retry_after(Some(std::time::Duration::from_millis(1500)));
        let end = End::Failed(failure);
        let text = serde_json::to_string(&end).expect("JSON");
        assert_eq!(serde_json::from_str::<End>(&text).expect("an end"), end);
    }

    #[test]
    fn a_call_that_its_server_works_on_is_one_call_until_it_has_ended() {
        let pace = crate::domain::task::Pace { ttl_ms: Some(60_000), poll_ms: None };
        let task = Task::new(String::from("task-1"), pace, Timestamp::UNIX_EPOCH);
        let running = Running { start: start(Class::Unsafe), task };
        let second = CallId { index: 1, ..CALL };
        let mut fields = fields();
        fields.push(field(Field::Task(second), &running));
        fields.push(field(Field::Task(CallId { index: 2, ..CALL }), &running));
        let record = usable(&fields);
        assert_eq!(record.calls[&second], CallRecord::Running(Box::new(running.clone())));
        assert_eq!(record.spent().tool_calls, 5, "of the third no beginning was put on record, and it was made");
        fields.push(field(Field::End(second), &End::Answered(ToolOutput::structured(Value::Null))));
        assert!(matches!(usable(&fields).calls[&second], CallRecord::Ended(_)));
        fields.retain(|(name, _)| !name.ends_with(":start"));
        assert!(usable(&fields).unsafe_begun());
        fields.push(field("t1:c9:heard", &running));
        assert!(refused(&fields).unsafe_begun, "also where nothing else can be told of it");
    }

    #[test]
    fn questions_are_read_with_their_answers() {
        let ask = crate::domain::wait::tests::ask();
        let said = Said {
            action: Action::Reject,
            content: None,
            by: None,
            note: None,
            at: Timestamp::UNIX_EPOCH,
            expired: false,
        };
        let mut fields = fields();
        fields.push(field(ask_field(&ask.wait_id), &ask));
        assert_eq!(usable(&fields).waits[&ask.wait_id], Asked { ask: ask.clone(), said: None });
        fields.push(field(said_field(&ask.wait_id), &said));
        assert_eq!(usable(&fields).waits[&ask.wait_id].said, Some(said));
        fields.push((String::from("w:x:heard"), b"{}".to_vec()));
        assert!(refused(&fields).why.contains("unknown kind"), "whoever does not know a question must not go on");
    }

    #[test]
    fn what_was_used_is_counted_from_the_entries_on_top_of_earlier_epochs() {
        let record = usable(&fields());
        let usage = Usage { input_tokens: 11, output_tokens: 5, ..Usage::default() };
        assert_eq!(record.spent(), Spent { usage: Some(usage), tool_calls: 4, attempts: 4, retries: 0 });
        assert!(record.unsafe_begun());
        assert_eq!(record.ended_calls(), 1);
    }

    #[test]
    fn another_version_is_told_with_what_can_be_told_of_it() {
        let mut fields = fields();
        fields[1].1 =
            json!({"v": 2, "epoch": 7, "started_at": "2026-01-02T03:04:05Z", "news": []}).to_string().into_bytes();
        let unusable = refused(&fields);
        assert_eq!((unusable.epoch, unusable.unsafe_begun), (7, true));
        assert_eq!(unusable.started_at, "2026-01-02T03:04:05Z".parse().ok());
        assert!(unusable.why.contains("another version"), "{}", unusable.why);
        // A call of a shape that is not known may have been any.
        fields.retain(|(name, _)| !name.starts_with("t1:c0"));
        assert!(!refused(&fields).unsafe_begun);
        fields.push((String::from("t9:c0:start"), b"\xff".to_vec()));
        assert!(refused(&fields).unsafe_begun);
    }

    #[test]
    fn a_damaged_journal_is_not_gone_on_from() {
        let with = |name: &str, value: &str| {
            let mut fields = fields();
            fields.retain(|(field, _)| field != name);
            fields.push((name.to_owned(), value.as_bytes().to_vec()));
            refused(&fields).why
        };
        assert!(with("t1:llm", "{").contains("`t1:llm`"));
        assert!(with("t1:c0:start", "{}").contains("`t1:c0:start`"));
        assert!(with("t1:c0:end", "{\"gone\": 1}").contains("`t1:c0:end`"));
        assert!(with("hdr", "[").contains("no header"));
        assert!(with("t1:c0:middle", "{}").contains("unknown kind"));
        let gap = serde_json::to_string(&completion()).expect("JSON");
        assert!(with("t3:llm", &gap).contains("missing"));
        assert!(with("t2:c0:end", r#"{"answered":{"content":[],"is_error":false}}"#).contains("missing"));
    }

    #[test]
    fn fields_bear_the_names_of_the_contract() {
        let call = CallId { turn: 12, index: 3 };
        for (expected, field) in [
            ("t12:llm", Field::Turn(12)),
            ("t12:c3:start", Field::Start(call)),
            ("t12:c3:task", Field::Task(call)),
            ("t12:c3:end", Field::End(call)),
        ] {
            assert_eq!((field.to_string().as_str(), Field::parse(expected)), (expected, Some(field)));
        }
    }
}
