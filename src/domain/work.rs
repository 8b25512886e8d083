//! A work item as producers write it, in both shapes of the contract, and the identity that makes it one execution.
//! Where it came from in the stream is [`Delivery`]; reading streams is the Redis client's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::domain::ids::{EntryId, GraphId, NodeId, RunId, WorkId};
use crate::domain::wait::{self, Action, Decision, WaitId};

/// The version of the item's shape that this worker understands.
pub const ITEM_VERSION: u64 = 1;

/// Proof that an entry is ours: the consumer it was delivered to and how often it was delivered. Both only change
/// when the entry changes hands, so an older owner's token never matches again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The consumer name, with the nonce of the process's start.
    pub consumer: Arc<str>,
    /// The delivery count from the pending list.
    pub deliveries: u64,
}

/// What the worker adds beside `data` when it puts an entry into the stream again.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Meta {
    /// The entry id under which the work first entered the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Attempts already made.
    #[serde(default)]
    pub attempt: u32,
    /// Processes that died with it.
    #[serde(default)]
    pub crashes: u32,
    /// How often somebody brought it back from the dead letters.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redriven: u32,
    /// The steps that were waited for outside of the stream, and the attempts that each has used up. Every other step
    /// begins at its first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waits: BTreeMap<String, u32>,
    /// When the node was first begun: waiting outside of a slot is part of the node's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Milliseconds that the node waited for others, before the wait that `asked_at` began: they are no part of its time.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub waited_ms: u64,
    /// When the node began to wait for others, if that is what it comes back from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<Timestamp>,
    /// Questions that were open by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<WaitId>,
}

impl Meta {
    /// The id under which the work first entered its stream, of which `entry` is the present one.
    pub fn first_entry(&self, entry: &EntryId) -> EntryId {
        self.origin.as_deref().map_or_else(|| entry.clone(), EntryId::new)
    }

    /// How long the node waited for others, if it came back with this entry.
    pub fn waited(&self, entry: &EntryId) -> Duration {
        let asked = self.asked_at.and_then(|asked| u64::try_from(asked.as_millisecond()).ok());
        let last = asked.zip(entry.millis()).map_or(0, |(asked, back)| back.saturating_sub(asked));
        Duration::from_millis(self.waited_ms.saturating_add(last))
    }
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_nothing(length: &u64) -> bool {
    *length == 0
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// One delivered entry of a work stream.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The stream it was read from.
    pub stream: Arc<str>,
    /// Its id in that stream.
    pub entry: EntryId,
    /// Proof of ownership.
    pub token: Token,
    /// What the worker itself wrote beside the data.
    pub meta: Meta,
    /// Processes that died with it, this delivery's takeover included.
    pub crashes: u32,
    /// The name of the work, through parking and takeover.
    pub work_id: WorkId,
    /// The item itself.
    pub item: WorkItem,
}

impl Delivery {
    /// When this entry was added, by the server's clock.
    pub fn added_at(&self) -> Timestamp {
        let millis = self.entry.millis().and_then(|millis| i64::try_from(millis).ok());
        millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or_default()
    }

    /// The same without what only running it needs: for keeping many.
    pub fn bare(&self) -> Self {
        let KnownIds { graph_id, node_id, run_id } = self.item.known_ids();
        Self {
            stream: Arc::clone(&self.stream),
            entry: self.entry.clone(),
            token: self.token.clone(),
            meta: Meta::default(),
            crashes: self.crashes,
            work_id: self.work_id.clone(),
            item: WorkItem {
                graph_id,
                node_id,
                run_id,
                config: None,
                inputs: None,
                node_states: Map::new(),
                dependencies: Vec::new(),
                deadline: None,
                traceparent: None,
                metadata: None,
            },
        }
    }
}

/// One intended execution of a node.
#[derive(Debug, Clone)]
pub struct WorkItem {
    /// The graph.
    pub graph_id: GraphId,
    /// The node.
    pub node_id: NodeId,
    /// The identity: two items with the same one are one execution.
    pub run_id: RunId,
    /// The node's configuration; absent means that the state's graph has it.
    pub config: Option<Box<RawValue>>,
    /// Inputs laid over the state's for this node; absent is not the same as empty.
    pub inputs: Option<Map<String, Value>>,
    /// States of other nodes, used only where the state lacks them.
    pub node_states: Map<String, Value>,
    /// Nodes that this one waits for; information only.
    pub dependencies: Vec<String>,
    /// The moment after which a result is of no use.
    pub deadline: Option<Timestamp>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The producer's own metadata, handed through to events.
    pub metadata: Option<Box<RawValue>>,
}

/// The ids of an item that could otherwise not be understood: enough to tell its consumers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownIds {
    /// The graph.
    pub graph_id: GraphId,
    /// The node.
    pub node_id: NodeId,
    /// The identity.
    pub run_id: RunId,
}

/// Why an entry cannot be understood. Such an entry becomes a dead letter at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Malformed {
    /// A stable snake_case name of the cause.
    pub reason: &'static str,
    /// A sentence that names the field and the remedy.
    pub message: String,
    /// The ids, if they could be read.
    pub ids: Option<KnownIds>,
}

impl Malformed {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), ids: None }
    }
}

/// What an entry of a work stream is.
#[derive(Debug, Clone)]
pub enum Content {
    /// Work, and what the worker itself wrote beside it.
    Work(Box<(WorkItem, Meta)>),
    /// What somebody decided about work that waits.
    Decision(Box<Decision>),
}

/// Reads the fields of an entry that must be work.
pub fn parse_entry(
    stream: &Arc<str>,
    entry: &EntryId,
    data: Option<&[u8]>,
    meta: Option<&[u8]>,
    max_bytes: usize,
) -> Result<(WorkItem, Meta), Malformed> {
    match read_entry(stream, entry, data, meta, max_bytes)? {
        Content::Work(work) => Ok(*work),
        Content::Decision(_) => Err(no_work()),
    }
}

fn no_work() -> Malformed {
    Malformed::new("invalid_field", "this is a decision about work that waits, and no work")
}

/// Reads the fields of an entry: `data`, and `meta` where the worker wrote one.
pub fn read_entry(
    stream: &Arc<str>,
    entry: &EntryId,
    data: Option<&[u8]>,
    meta: Option<&[u8]>,
    max_bytes: usize,
) -> Result<Content, Malformed> {
    let data = data.ok_or_else(|| {
        Malformed::new("no_data", "the entry has no field `data`; XADD the item as JSON in a field named `data`")
    })?;
    if data.len() > max_bytes {
        return Err(Malformed::new(
            "too_large",
            format!(
                "the item has {} bytes, more than `limits.item` allows ({max_bytes}); put large inputs into the state",
                data.len()
            ),
        ));
    }
    let meta = match meta {
        None => Meta::default(),
        Some(bytes) => serde_json::from_slice(bytes).map_err(|error| {
            Malformed::new("invalid_meta", format!("field `meta` is not the worker's own: {error}"))
        })?,
    };
    Ok(match WorkItem::parse_any(data, stream, &meta.first_entry(entry))? {
        Parsed::Work(item) => Content::Work(Box::new((*item, meta))),
        Parsed::Decision(decision) => Content::Decision(decision),
    })
}

/// What the field `data` holds.
enum Parsed {
    Work(Box<WorkItem>),
    Decision(Box<Decision>),
}

/// Both shapes at once: an object in `data` makes it an envelope.
#[derive(Deserialize)]
struct Wire<'a> {
    v: Option<Value>,
    id: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<Value>,
    graph_id: Option<Value>,
    execution_id: Option<Value>,
    node_id: Option<Value>,
    run_id: Option<Value>,
    #[serde(borrow)]
    config: Option<&'a RawValue>,
    inputs: Option<Value>,
    dependencies: Option<Value>,
    deadline: Option<Value>,
    traceparent: Option<Value>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    state: Option<Value>,
    node_state: Option<Value>,
    decision: Option<Value>,
}

fn decode<'a>(text: &'a str, what: &str) -> Result<Wire<'a>, Malformed> {
    let not_json = |error| Malformed::new("not_json", format!("{what} is not valid JSON: {error}"));
    if text.trim_ascii().is_empty() {
        return Err(Malformed::new("not_json", format!("{what} is empty; it must be a JSON object")));
    }
    if !text.trim_start().starts_with('{') {
        let _: IgnoredAny = serde_json::from_str(text).map_err(not_json)?;
        return Err(Malformed::new("not_an_object", format!("{what} is JSON, but not an object")));
    }
    serde_json::from_str(text).map_err(not_json)
}

impl WorkItem {
    /// Reads an item of either shape. `origin` is the entry id under which the work first entered `stream`.
    pub fn parse(data: &[u8], stream: &str, origin: &EntryId) -> Result<Self, Malformed> {
        match Self::parse_any(data, stream, origin)? {
            Parsed::Work(item) => Ok(*item),
            Parsed::Decision(_) => Err(no_work()),
        }
    }

    fn parse_any(data: &[u8], stream: &str, origin: &EntryId) -> Result<Parsed, Malformed> {
        let text = std::str::from_utf8(data)
            .map_err(|error| Malformed::new("not_utf8", format!("field `data` is not UTF-8: {error}")))?;
        let outer = decode(text, "field `data`")?;
        let inner_text = outer.data.map(RawValue::get).filter(|inner| inner.starts_with('{'));
        let Some(inner_text) = inner_text else {
            if let Some(decision) = present(outer.decision.as_ref()) {
                return self::decision(&outer, None, decision).map(Parsed::Decision);
            }
            return Self::from_wire(outer, None, stream, origin).map(|item| Parsed::Work(Box::new(item)));
        };
        let envelope_type = text_member(&outer.kind, "type")?;
        let inner = decode(inner_text, "the envelope's `data`")?;
        if let Some(decision) = present(inner.decision.as_ref()) {
            return self::decision(&inner, Some(&outer), decision).map(Parsed::Decision);
        }
        let item = Self::from_wire(inner, Some(&outer), stream, origin)?;
        match envelope_type.as_deref() {
            Some("node.work") => Ok(Parsed::Work(Box::new(item))),
            other => {
                let seen = other.map_or_else(|| String::from("is missing"), |other| format!("is {other:?}"));
                let message = format!("the envelope's `type` {seen}; this worker takes \"node.work\"");
                Err(Malformed { ids: Some(item.known_ids()), ..Malformed::new("unknown_type", message) })
            }
        }
    }

    /// The ids that consumers know this item by.
    pub fn known_ids(&self) -> KnownIds {
        KnownIds { graph_id: self.graph_id.clone(), node_id: self.node_id.clone(), run_id: self.run_id.clone() }
    }

    fn from_wire(
        wire: Wire<'_>,
        envelope: Option<&Wire<'_>>,
        stream: &str,
        origin: &EntryId,
    ) -> Result<Self, Malformed> {
        let graph = match (&wire.graph_id, envelope) {
            (None | Some(Value::Null), Some(envelope)) => (&envelope.execution_id, "execution_id"),
            (graph, _) => (graph, "graph_id"),
        };
        let graph_id = GraphId::new(required(graph.0, graph.1)?).map_err(|error| invalid(graph.1, &error))?;
        let node_id = NodeId::new(required(&wire.node_id, "node_id")?).map_err(|error| invalid("node_id", &error))?;
        let given = match text_member(&wire.run_id, "run_id")? {
            Some(run) => Some(("run_id", run)),
            None => match envelope {
                Some(envelope) => text_member(&envelope.id, "id")?.map(|id| ("id", id)),
                None => None,
            },
        };
        let run_id = match given {
            Some((field, run)) => RunId::new(run).map_err(|error| invalid(field, &error))?,
            None => RunId::new(format!("{stream}/{origin}")).map_err(|error| invalid("run_id", &error))?,
        };
        let ids = KnownIds { graph_id: graph_id.clone(), node_id: node_id.clone(), run_id: run_id.clone() };
        Self::rest(wire, envelope, graph_id, node_id, run_id)
            .map_err(|malformed| Malformed { ids: Some(ids), ..malformed })
    }

    fn rest(
        wire: Wire<'_>,
        envelope: Option<&Wire<'_>>,
        graph_id: GraphId,
        node_id: NodeId,
        run_id: RunId,
    ) -> Result<Self, Malformed> {
        for version in [wire.v.as_ref(), envelope.and_then(|envelope| envelope.v.as_ref())].into_iter().flatten() {
            if version.as_u64() != Some(ITEM_VERSION) {
                return Err(Malformed::new(
                    "unknown_version",
                    format!("`v` is {version}; this worker understands {ITEM_VERSION}; upgrade the worker"),
                ));
            }
        }
        let inputs = match (wire.inputs, envelope) {
            (None | Some(Value::Null), Some(_)) => object(wire.state, "state")?,
            (inputs, _) => object(inputs, "inputs")?,
        };
        let dependencies = match wire.dependencies {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => serde_json::from_value(value)
                .map_err(|_| Malformed::new("invalid_field", "`dependencies` is not a list of node ids"))?,
        };
        let deadline = text_member(&wire.deadline, "deadline")?
            .map(|text| {
                text.parse().map_err(|error| {
                    Malformed::new("invalid_field", format!("`deadline` is not a time in RFC 3339: {error}"))
                })
            })
            .transpose()?;
        let metadata = wire.metadata.or_else(|| envelope.and_then(|envelope| envelope.metadata));
        let traceparent = match text_member(&wire.traceparent, "traceparent")? {
            None => envelope.map_or(Ok(None), |envelope| text_member(&envelope.traceparent, "traceparent"))?,
            some => some,
        };
        let config = wire.config.filter(|raw| raw.get() != "null");
        if let Some(raw) = config
            && !raw.get().starts_with('{')
        {
            return Err(Malformed::new("invalid_field", "`config` is not a JSON object"));
        }
        Ok(Self {
            graph_id,
            node_id,
            run_id,
            config: config.map(ToOwned::to_owned),
            inputs,
            node_states: object(wire.node_state, "node_state")?.unwrap_or_default(),
            dependencies,
            deadline,
            traceparent,
            metadata: metadata.filter(|raw| raw.get() != "null").map(ToOwned::to_owned),
        })
    }
}

fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

/// Reads a decision. One that cannot be understood names no ids: the node that it is about goes on waiting, and must not
/// be taken for one that failed.
fn decision(wire: &Wire<'_>, envelope: Option<&Wire<'_>>, decision: &Value) -> Result<Box<Decision>, Malformed> {
    let wrong = |message: String| Malformed::new("invalid_decision", message);
    for version in [wire.v.as_ref(), envelope.and_then(|envelope| envelope.v.as_ref())].into_iter().flatten() {
        if version.as_u64() != Some(ITEM_VERSION) {
            return Err(Malformed::new(
                "unknown_version",
                format!("`v` is {version}; this worker understands {ITEM_VERSION}; upgrade the worker"),
            ));
        }
    }
    let graph = match present(wire.graph_id.as_ref()) {
        None => (envelope.map_or(&wire.graph_id, |envelope| &envelope.execution_id), "execution_id"),
        Some(_) => (&wire.graph_id, "graph_id"),
    };
    let graph_id = GraphId::new(required(graph.0, "graph_id")?).map_err(|error| invalid(graph.1, &error))?;
    let node_id = NodeId::new(required(&wire.node_id, "node_id")?).map_err(|error| invalid("node_id", &error))?;
    let run_id = RunId::new(required(&wire.run_id, "run_id")?).map_err(|error| invalid("run_id", &error))?;
    let Value::Object(members) = decision else {
        return Err(wrong(String::from("`decision` is not a JSON object")));
    };
    let text = |name: &str| match present(members.get(name)) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(wrong(format!("`decision.{name}` is not a string"))),
    };
    let wait_id = text("wait_id")?.filter(|wait| !wait.is_empty() && wait.len() <= 256);
    let wait_id = wait_id.ok_or_else(|| wrong(String::from("`decision.wait_id` is missing, empty or too long")))?;
    let action = text("action")?.unwrap_or_default();
    let action = Action::parse(action).ok_or_else(|| {
        wrong(format!("`decision.action` is {action:?}; it must be accept, reject, decline or cancel"))
    })?;
    Ok(Box::new(Decision {
        graph_id,
        node_id,
        run_id,
        wait_id: WaitId::from_text(wait_id),
        action,
        content: present(members.get("content")).cloned(),
        by: text("by")?.and_then(wait::words),
        note: text("note")?.and_then(wait::words),
    }))
}

fn invalid(field: &str, error: &crate::domain::ids::InvalidId) -> Malformed {
    Malformed::new("invalid_id", format!("`{field}` {error}; use 1 to 256 characters without control characters"))
}

fn text_member(value: &Option<Value>, field: &str) -> Result<Option<String>, Malformed> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Malformed::new("invalid_field", format!("`{field}` is not a string"))),
    }
}

fn required(value: &Option<Value>, field: &str) -> Result<String, Malformed> {
    text_member(value, field)?.ok_or_else(|| Malformed::new("missing_id", format!("`{field}` is missing")))
}

fn object(value: Option<Value>, field: &str) -> Result<Option<Map<String, Value>>, Malformed> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(Malformed::new("invalid_field", format!("`{field}` is not a JSON object"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &str) -> Result<WorkItem, Malformed> {
        WorkItem::parse(data.as_bytes(), "executor.work", &EntryId::new("5-0"))
    }

    fn reason(data: &str) -> &'static str {
        parse(data).expect_err("the item is malformed").reason
    }

    #[test]
    fn a_plain_item_is_read_and_unknown_members_are_ignored() {
        let item = parse(
            r#"{"v":1,"graph_id":"g","node_id":"n","run_id":"r","config":{"tool_name":"t"},"inputs":{"a":1},
                "dependencies":["m"],"deadline":"2026-01-02T03:04:05.123456789Z","traceparent":"00-a","metadata":{"k":1},"new":2}"#,
        )
        .expect("the item is well formed");
        assert_eq!(item.run_id.as_str(), "r");
        assert_eq!(item.config.expect("a config").get(), r#"{"tool_name":"t"}"#);
        assert_eq!(item.inputs.expect("inputs")["a"], 1);
        assert_eq!(item.dependencies, ["m"]);
        assert_eq!(item.metadata.expect("metadata").get(), r#"{"k":1}"#);
        assert!(item.deadline.is_some());
    }

    #[test]
    fn an_envelope_gives_graph_identity_inputs_and_node_states() {
        let item = parse(
            r#"{"id":"evt-1","type":"node.work","timestamp":"2026-01-02T03:04:05.123456789Z","execution_id":"g",
                "data":{"node_id":"n","node_type":"executor","state":{"a":1},"node_state":{"m":{"status":"completed"}}},
                "metadata":{"k":2}}"#,
        )
        .expect("the envelope is well formed");
        assert_eq!((item.graph_id.as_str(), item.run_id.as_str()), ("g", "evt-1"));
        assert_eq!(item.inputs.expect("inputs")["a"], 1);
        assert_eq!(item.node_states["m"]["status"], "completed");
        assert_eq!(item.metadata.expect("metadata").get(), r#"{"k":2}"#);
    }

    fn read(data: &str) -> Result<Content, Malformed> {
        read_entry(&Arc::from("executor.work"), &EntryId::new("5-0"), Some(data.as_bytes()), None, 1 << 20)
    }

    #[test]
    fn a_decision_is_read_bare_or_in_an_envelope_and_is_no_work() {
        let bare = r#"{"v":1,"graph_id":"g","node_id":"n","run_id":"r",
            "decision":{"wait_id":"w","action":"accept","content":{"a":1},"by":"ann","note":" "}}"#;
        let enveloped = r#"{"id":"e","type":"node.decision","execution_id":"g","data":{"node_id":"n","run_id":"r",
            "decision":{"wait_id":"w","action":"accept","content":{"a":1},"by":"ann"}}}"#;
        for data in [bare, enveloped] {
            let Ok(Content::Decision(decision)) = read(data) else { panic!("no decision: {data}") };
            assert_eq!((decision.graph_id.as_str(), decision.run_id.as_str()), ("g", "r"));
            assert_eq!((decision.action, decision.by.as_deref(), &decision.note), (Action::Accept, Some("ann"), &None));
            assert_eq!(decision.content, Some(serde_json::json!({"a": 1})));
            let Ok(Content::Decision(again)) = read(&decision.to_json()) else { panic!("it is written as it is read") };
            assert_eq!(again, decision);
        }
        assert_eq!(reason(bare), "invalid_field");
        let work = r#"{"graph_id":"g","node_id":"n","decision":null}"#;
        assert!(matches!(read(work), Ok(Content::Work(_))));
    }

    #[test]
    fn a_decision_that_cannot_be_understood_is_about_no_node() {
        for (decision, reason) in [
            (r#"{"wait_id":"w","action":"approve"}"#, "invalid_decision"),
            (r#"{"action":"accept"}"#, "invalid_decision"),
            (r#"{"wait_id":"w","action":"accept","by":7}"#, "invalid_decision"),
            ("7", "invalid_decision"),
        ] {
            let data = format!(r#"{{"graph_id":"g","node_id":"n","run_id":"r","decision":{decision}}}"#);
            let malformed = read(&data).expect_err("no decision");
            assert_eq!((malformed.reason, malformed.ids), (reason, None), "{decision}");
        }
        let no_run = r#"{"graph_id":"g","node_id":"n","decision":{"wait_id":"w","action":"accept"}}"#;
        assert_eq!(read(no_run).expect_err("whose?").reason, "missing_id");
    }

    #[test]
    fn the_time_that_a_node_waited_for_others_adds_up() {
        let meta = Meta { waited_ms: 5, asked_at: "1970-01-01T00:00:01Z".parse().ok(), ..Meta::default() };
        assert_eq!(meta.waited(&EntryId::new("1500-0")), Duration::from_millis(505));
        assert_eq!(meta.waited(&EntryId::new("900-0")), Duration::from_millis(5), "clocks differ");
        assert_eq!(Meta::default().waited(&EntryId::new("900-0")), Duration::ZERO);
    }

    #[test]
    fn without_a_run_id_the_first_entry_is_the_identity() {
        let item = parse(r#"{"graph_id":"g","node_id":"n"}"#).expect("ids suffice");
        assert_eq!(item.run_id.as_str(), "executor.work/5-0");
        assert!(item.config.is_none() && item.inputs.is_none());
    }

    #[test]
    fn what_cannot_be_understood_says_why() {
        assert_eq!(reason(""), "not_json");
        assert_eq!(reason("nope"), "not_json");
        assert_eq!(reason("[]"), "not_an_object");
        assert_eq!(reason(r#"{"graph_id":"g","node_id":"n""#), "not_json");
        assert_eq!(reason(r#"{"node_id":"n"}"#), "missing_id");
        assert_eq!(reason(r#"{"graph_id":1,"node_id":"n"}"#), "invalid_field");
        assert_eq!(reason(r#"{"graph_id":"","node_id":"n"}"#), "invalid_id");
        assert_eq!(reason(r#"{"graph_id":"g","node_id":"n","v":2}"#), "unknown_version");
        assert_eq!(reason(r#"{"type":"node.done","data":{"graph_id":"g","node_id":"n"}}"#), "unknown_type");
        assert_eq!(reason(r#"{"graph_id":"g","node_id":"n","deadline":"tomorrow"}"#), "invalid_field");
        assert_eq!(reason(r#"{"graph_id":"g","node_id":"n","inputs":[1]}"#), "invalid_field");
        let error = WorkItem::parse(b"{\"graph_id\":\"\xff\"}", "s", &EntryId::new("1-0")).expect_err("not UTF-8");
        assert_eq!(error.reason, "not_utf8");
    }

    #[test]
    fn what_is_empty_is_no_json_and_what_is_json_is_no_object_are_told_apart() {
        let words = |data: &str| parse(data).expect_err("malformed").message;
        assert_eq!(words(" \n"), "field `data` is empty; it must be a JSON object");
        assert!(words("nope").starts_with("field `data` is not valid JSON: "), "{}", words("nope"));
        assert_eq!(words("[1]"), "field `data` is JSON, but not an object");
        // However deep it is, looking at it takes no stack.
        assert_eq!(reason(&"[".repeat(1_000_000)), "not_json");
        assert_eq!(reason(&format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000))), "not_an_object");
    }

    #[test]
    fn the_type_of_an_envelope_is_told_as_json_would() {
        let words = |data: &str| parse(data).expect_err("malformed").message;
        let wrong = words(r#"{"type":"node.wrk","data":{"graph_id":"g","node_id":"n"}}"#);
        assert_eq!(wrong, r#"the envelope's `type` is "node.wrk"; this worker takes "node.work""#);
        let none = words(r#"{"data":{"graph_id":"g","node_id":"n"}}"#);
        assert_eq!(none, r#"the envelope's `type` is missing; this worker takes "node.work""#);
    }

    #[test]
    fn a_malformed_item_whose_ids_can_be_read_keeps_them() {
        let error = parse(r#"{"graph_id":"g","node_id":"n","v":2}"#).expect_err("unknown version");
        assert_eq!(error.ids.expect("ids").node_id.as_str(), "n");
    }

    #[test]
    fn a_re_added_entry_keeps_its_first_identity() {
        let stream: Arc<str> = Arc::from("executor.work");
        let (item, meta) = parse_entry(
            &stream,
            &EntryId::new("9-0"),
            Some(br#"{"graph_id":"g","node_id":"n"}"#),
            Some(br#"{"origin":"5-0","attempt":2,"crashes":1}"#),
            1000,
        )
        .expect("well formed");
        assert_eq!(item.run_id.as_str(), "executor.work/5-0");
        assert_eq!((meta.attempt, meta.crashes), (2, 1));
    }
}
