//! The two layouts of a state as text: taking the wanted parts out of it, and putting a node state into a document.
//! Nothing is decoded that is not asked for, and what is not ours keeps its bytes. No I/O.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::clients::redis::members;
use crate::domain::state::{NodeView, Snapshot};
use crate::ports::Wanted;

/// What the fields of nodes begin with in the hash layout.
pub(super) const NODE: &str = "node:";
/// What the fields of conversations begin with in the hash layout.
pub(super) const SESSION: &str = "session:";
/// The members of a document that hold them.
const NODE_STATES: &str = "node_states";
const SESSIONS: &str = "sessions";

/// Where a state cannot be read, and why. The words never contain what the state holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Corrupt {
    /// The field, or the path in a document.
    pub(super) field: String,
    /// What is wrong.
    pub(super) reason: String,
}

impl Corrupt {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }

    fn json(field: impl Into<String>, error: &serde_json::Error) -> Self {
        // A message about data quotes it; one about syntax does not.
        let reason = match error.classify() {
            serde_json::error::Category::Data => {
                format!("has an unexpected shape at line {} column {}", error.line(), error.column())
            }
            _ => format!("is not valid JSON: {error}"),
        };
        Self::new(field, reason)
    }
}

/// What was found of a state.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Inputs and nodes.
    pub(super) snapshot: Snapshot,
    /// The node's own configuration, JSON.
    pub(super) config: Option<String>,
    /// The graph's status.
    pub(super) status: Option<String>,
}

/// The fields of a hash that answer what is wanted; `None` means all of them.
pub(super) fn hash_fields(wanted: &Wanted) -> Option<Vec<String>> {
    if wanted.all_nodes {
        return None;
    }
    let mut fields = Vec::with_capacity(wanted.nodes.len() + 4);
    fields.push(String::from("status"));
    if wanted.inputs {
        fields.push(String::from("inputs"));
    }
    if wanted.config {
        fields.push(String::from("graph"));
    }
    fields.extend(wanted.nodes.iter().map(|node| format!("{NODE}{node}")));
    fields.extend(wanted.session.iter().map(|session| format!("{SESSION}{session}")));
    Some(fields)
}

/// Reads the fields of a hash. `node` is the one whose configuration may be wanted.
pub(super) fn read_hash<'a>(
    fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    wanted: &Wanted,
    node: &str,
) -> Result<Found, Corrupt> {
    let mut found = Found::default();
    for (field, value) in fields {
        match field {
            "status" => found.status = Some(String::from_utf8_lossy(value).into_owned()),
            "inputs" if wanted.inputs => found.snapshot.inputs = decode(value, field)?,
            "graph" if wanted.config => found.config = node_config(utf8(value, field)?, node, field)?,
            _ => {
                if let Some(id) = field.strip_prefix(NODE) {
                    found.snapshot.nodes.insert(String::from(id), decode::<NodeView>(value, field)?);
                } else if let Some(name) = field.strip_prefix(SESSION)
                    && wanted.session.as_deref() == Some(name)
                {
                    found.snapshot.session = Some(decode(value, field)?);
                }
            }
        }
    }
    Ok(found)
}

/// The members of a document that a worker knows.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
    #[serde(borrow, default)]
    inputs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    graph: Option<&'a RawValue>,
    #[serde(borrow, default)]
    node_states: Option<&'a RawValue>,
    #[serde(borrow, default)]
    sessions: Option<&'a RawValue>,
}

/// Reads a document. `node` is the one whose configuration may be wanted.
pub(super) fn read_document(document: &[u8], wanted: &Wanted, node: &str) -> Result<Found, Corrupt> {
    let text = utf8(document, "the document")?;
    let document: Document<'_> = serde_json::from_str(text).map_err(|error| Corrupt::json("the document", &error))?;
    let mut found = Found::default();
    if let Some(status) = document.status {
        found.status = serde_json::from_str(status.get()).map_err(|error| Corrupt::json("status", &error))?;
    }
    if let (true, Some(inputs)) = (wanted.inputs, present(document.inputs)) {
        found.snapshot.inputs = decode(inputs.get().as_bytes(), "inputs")?;
    }
    if let (true, Some(graph)) = (wanted.config, present(document.graph)) {
        found.config = node_config(graph.get(), node, "graph")?;
    }
    if let (true, Some(states)) = (wanted.all_nodes || !wanted.nodes.is_empty(), present(document.node_states)) {
        let members =
            members(states.get(), NODE_STATES, |id| wanted.all_nodes || wanted.nodes.iter().any(|node| node == id))?;
        for (id, state) in members {
            let view = serde_json::from_str(state.get())
                .map_err(|error| Corrupt::json(format!("node_states.{id}"), &error))?;
            found.snapshot.nodes.insert(id, view);
        }
    }
    if let (Some(name), Some(sessions)) = (&wanted.session, present(document.sessions)) {
        let session = members(sessions.get(), SESSIONS, |session| session == name)?.pop();
        found.snapshot.session = session.and_then(|(_, session)| present(Some(session)).map(ToOwned::to_owned));
    }
    Ok(found)
}

/// The status of a document; none too where it cannot be read, for nothing follows from that.
pub(super) fn document_status(document: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Only {
        status: Option<String>,
    }
    serde_json::from_slice::<Only>(document).ok()?.status
}

/// The ids and states of the nodes of a document, as they stand there.
pub(super) fn document_node_states(document: &[u8]) -> Result<Vec<(String, String)>, Corrupt> {
    let text = utf8(document, "the document")?;
    let document: Document<'_> = serde_json::from_str(text).map_err(|error| Corrupt::json("the document", &error))?;
    let Some(states) = present(document.node_states) else { return Ok(Vec::new()) };
    let states = members(states.get(), NODE_STATES, |_| true)?.into_iter();
    Ok(states.map(|(id, state)| (id, String::from(state.get()))).collect())
}

/// The state of one node as it stands in a document; none too where it cannot be read.
pub(super) fn document_node_state<'a>(document: &'a str, node: &str) -> Option<&'a str> {
    let states = members(document, "the document", |name| name == NODE_STATES).ok()?.pop()?.1;
    let (_, state) = members(states.get(), NODE_STATES, |id| id == node).ok()?.pop()?;
    Some(state.get())
}

/// The ids of the nodes of a document: those with a state, and those of the graph.
pub(super) fn document_node_ids(document: &[u8]) -> Result<Vec<String>, Corrupt> {
    let text = utf8(document, "the document")?;
    let document: Document<'_> = serde_json::from_str(text).map_err(|error| Corrupt::json("the document", &error))?;
    let mut ids = Vec::new();
    if let Some(states) = present(document.node_states) {
        ids.extend(members(states.get(), NODE_STATES, |_| true)?.into_iter().map(|(id, _)| id));
    }
    if let Some(graph) = present(document.graph) {
        ids.extend(graph_node_ids(graph.get(), "graph")?);
    }
    Ok(ids)
}

/// The ids of the nodes of a graph.
pub(super) fn graph_node_ids(graph: &str, field: &str) -> Result<Vec<String>, Corrupt> {
    let Some(nodes) = graph_nodes(graph, field)? else { return Ok(Vec::new()) };
    if nodes.get().starts_with('[') {
        #[derive(Deserialize)]
        struct Named {
            id: Option<String>,
        }
        let nodes: Vec<Named> = decode(nodes.get().as_bytes(), field)?;
        return Ok(nodes.into_iter().filter_map(|node| node.id).collect());
    }
    Ok(members(nodes.get(), field, |_| true)?.into_iter().map(|(id, _)| id).collect())
}

/// The document with `state` as the state of `node`; every other byte stays.
pub(super) fn replace_node_state(document: &str, node: &str, state: &str) -> Result<String, Corrupt> {
    replace(document, NODE_STATES, node, state)
}

/// The document with `json` as the conversation of this name; every other byte stays.
pub(super) fn replace_session(document: &str, name: &str, json: &str) -> Result<String, Corrupt> {
    replace(document, SESSIONS, name, json)
}

/// The document with `value` under `name` in the object that is its `member`.
fn replace(document: &str, member: &str, name: &str, value: &str) -> Result<String, Corrupt> {
    let object = members(document, "the document", |other| other == member)?.pop();
    let (range, with) = match object.map(|(_, object)| object) {
        None => insertion(document, document, member, &format!("{{{}:{value}}}", quoted(name))),
        Some(object) if object.get() == "null" => {
            (place(document, object.get()), format!("{{{}:{value}}}", quoted(name)))
        }
        Some(object) => match members(object.get(), member, |other| other == name)?.pop() {
            Some((_, old)) => (place(document, old.get()), String::from(value)),
            None => insertion(document, object.get(), name, value),
        },
    };
    let mut replaced = String::with_capacity(document.len() + with.len());
    replaced.push_str(&document[..range.start]);
    replaced.push_str(&with);
    replaced.push_str(&document[range.end..]);
    Ok(replaced)
}

/// A new member at the end of `object`, which is a part of `document`.
fn insertion(document: &str, object: &str, name: &str, value: &str) -> (std::ops::Range<usize>, String) {
    let range = place(document, object);
    let end = range.start + object.rfind('}').expect("an object that was read ends with a brace");
    let comma = if is_empty(object) { "" } else { "," };
    (end..end, format!("{comma}{}:{value}", quoted(name)))
}

fn is_empty(object: &str) -> bool {
    object.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).is_some_and(|rest| rest.trim().is_empty())
}

/// Where `part`, which was borrowed from `whole`, stands in it.
fn place(whole: &str, part: &str) -> std::ops::Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

/// A JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

fn utf8<'a>(value: &'a [u8], field: &str) -> Result<&'a str, Corrupt> {
    std::str::from_utf8(value).map_err(|_| Corrupt::new(field, "is not UTF-8"))
}

fn decode<T: serde::de::DeserializeOwned>(value: &[u8], field: &str) -> Result<T, Corrupt> {
    serde_json::from_slice(value).map_err(|error| Corrupt::json(field, &error))
}

fn present(value: Option<&RawValue>) -> Option<&RawValue> {
    value.filter(|value| value.get() != "null")
}

fn graph_nodes<'a>(graph: &'a str, field: &str) -> Result<Option<&'a RawValue>, Corrupt> {
    let nodes = members(graph, field, |name| name == "nodes")?.pop().map(|(_, nodes)| nodes);
    Ok(present(nodes))
}

/// The configuration of one node of a graph, whose nodes are an object by id or a list of objects with an `id`.
fn node_config(graph: &str, node: &str, field: &str) -> Result<Option<String>, Corrupt> {
    let Some(nodes) = graph_nodes(graph, field)? else { return Ok(None) };
    let own = if nodes.get().starts_with('[') {
        members::by_id(nodes.get(), node).map_err(|error| Corrupt::json(field, &error))?
    } else {
        members(nodes.get(), field, |id| id == node)?.pop().map(|(_, own)| own)
    };
    let Some(own) = present(own) else { return Ok(None) };
    let config = members(own.get(), field, |name| name == "config")?.pop().map(|(_, config)| config);
    Ok(present(config).map(|config| String::from(config.get())))
}

/// The members of a JSON object whose names are wanted, in order; the values are borrowed, the others skipped.
fn members<'a>(
    object: &'a str,
    field: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, &'a RawValue)>, Corrupt> {
    members::of_object(object, wanted).map_err(|error| Corrupt::json(field, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(nodes: &[&str]) -> Wanted {
        Wanted {
            inputs: true,
            nodes: nodes.iter().map(|node| String::from(*node)).collect(),
            all_nodes: false,
            config: true,
            session: None,
        }
    }

    fn output<'a>(found: &'a Found, node: &str) -> &'a str {
        found.snapshot.nodes[node].output.as_ref().expect("the node has an output").get()
    }

    #[test]
    fn a_document_gives_only_what_is_wanted() {
        let document =
            br#"{"status":"running","inputs":{"a":1e400000000000},"graph":{"nodes":{"n":{"config":{ "k" : 1 }}}},
            "node_states":{"m":{"status":"completed","output":7},"broken":"not a node state"}}"#;
        let nothing = Wanted { inputs: false, ..wanted(&["m"]) };
        let found = read_document(document, &nothing, "n").expect("the wanted parts are well formed");
        assert_eq!(found.status.as_deref(), Some("running"));
        assert_eq!(found.config.as_deref(), Some(r#"{ "k" : 1 }"#));
        assert_eq!(output(&found, "m"), "7");
        assert!(!found.snapshot.nodes.contains_key("broken"));
        assert_eq!(read_document(document, &wanted(&["m"]), "n").expect_err("the number is none").field, "inputs");
        let broken = read_document(document, &Wanted { inputs: false, ..wanted(&["broken"]) }, "n");
        assert_eq!(broken.expect_err("a string is no node state").field, "node_states.broken");
    }

    #[test]
    fn a_hash_is_read_by_its_fields() {
        let wanted = wanted(&["m"]);
        let fields = hash_fields(&wanted).expect("not all nodes are wanted");
        assert_eq!(fields, ["status", "inputs", "graph", "node:m"]);
        let values: [(&str, &[u8]); 4] = [
            ("status", b"running"),
            ("inputs", br#"{"a":1}"#),
            ("graph", br#"{"nodes":[{"id":"x"},{"id":"n","config":{"t":2}},7]}"#),
            ("node:m", br#"{"output":"o"}"#),
        ];
        let found = read_hash(values, &wanted, "n").expect("well formed");
        assert_eq!(found.snapshot.inputs["a"], 1);
        assert_eq!(found.config.as_deref(), Some(r#"{"t":2}"#));
        assert_eq!(output(&found, "m"), "\"o\"");
    }

    #[test]
    fn a_corrupt_state_names_the_field_and_does_not_quote_it() {
        let error = read_hash([("inputs", &br#""secret""#[..])], &wanted(&[]), "n").expect_err("not an object");
        assert_eq!(error.field, "inputs");
        assert!(!error.reason.contains("secret"), "{}", error.reason);
        let error = read_hash([("node:m", &b"{\"output\":"[..])], &wanted(&[]), "n").expect_err("cut off");
        assert_eq!(error.field, "node:m");
    }

    #[test]
    fn a_node_state_is_put_into_a_document_and_every_other_byte_stays() {
        let put = |document: &str| replace_node_state(document, "n", "{}").expect("a document");
        assert_eq!(put(r#"{ "x" : 1.10 }"#), r#"{ "x" : 1.10 ,"node_states":{"n":{}}}"#);
        assert_eq!(put("{ }"), r#"{ "node_states":{"n":{}}}"#);
        assert_eq!(put(r#"{"node_states":null,"y":2}"#), r#"{"node_states":{"n":{}},"y":2}"#);
        assert_eq!(put(r#"{"node_states":{},"y":2}"#), r#"{"node_states":{"n":{}},"y":2}"#);
        assert_eq!(
            put(r#"{"node_states":{"m": {"a":12345678901234567890.10}}}"#),
            r#"{"node_states":{"m": {"a":12345678901234567890.10},"n":{}}}"#
        );
        assert_eq!(
            put(r#"{"a":"{","node_states":{"n": {"old":1} ,"m":1},"b":"}"}"#),
            r#"{"a":"{","node_states":{"n": {} ,"m":1},"b":"}"}"#
        );
        let text = "{\"node_states\":{\"\\u006e\":1}}";
        assert_eq!(put(text), r#"{"node_states":{"\u006e":{}}}"#, "an escaped name is the same name");
    }

    #[test]
    fn a_conversation_is_read_by_its_name_in_either_layout() {
        let named = |session: &str| Wanted { session: Some(String::from(session)), ..Wanted::default() };
        assert_eq!(hash_fields(&named("a")).expect("not all"), ["status", "session:a"]);
        let read = |found: Result<Found, Corrupt>| {
            found.expect("well formed").snapshot.session.map(|session| String::from(session.get()))
        };
        let fields: [(&str, &[u8]); 2] = [("session:b", b"{ }"), ("session:a", b"{\"v\": 1}")];
        assert_eq!(read(read_hash(fields, &named("a"), "n")).as_deref(), Some("{\"v\": 1}"));
        let broken = read_hash([("session:a", &b"{"[..])], &named("a"), "n");
        assert_eq!(broken.expect_err("cut off").field, "session:a");
        assert_eq!(read(read_hash(fields, &Wanted::default(), "n")), None, "nobody asked");

        let document = replace_session(r#"{"x": 1}"#, "a", "{\"v\":1}").expect("a document");
        let document = replace_session(&document, "b", "null").expect("a document");
        assert_eq!(document, r#"{"x": 1,"sessions":{"a":{"v":1},"b":null}}"#);
        assert_eq!(read(read_document(document.as_bytes(), &named("a"), "n")).as_deref(), Some("{\"v\":1}"));
        for absent in ["b", "c"] {
            assert_eq!(read(read_document(document.as_bytes(), &named(absent), "n")), None);
        }
    }

    #[test]
    fn a_document_that_is_none_is_not_written() {
        for document in ["", "[]", "{", "{\"node_states\":[]}", "{} {}"] {
            assert!(replace_node_state(document, "n", "{}").is_err(), "{document}");
        }
    }

    #[test]
    fn node_ids_come_from_states_and_graph() {
        let ids = document_node_ids(br#"{"node_states":{"a":1},"graph":{"nodes":[{"id":"b"}]}}"#).expect("well formed");
        assert_eq!(ids, ["a", "b"]);
    }

    proptest::proptest! {
        #[test]
        fn any_node_id_can_be_put_and_read_back(id in "\\PC{1,12}", other in "\\PC{1,12}") {
            proptest::prop_assume!(id != other);
            let document = replace_node_state("{}", &other, "{\"output\":1}").expect("a document");
            let document = replace_node_state(&document, &id, "{\"output\":2}").expect("a document");
            let document = replace_node_state(&document, &id, "{\"output\":3}").expect("a document");
            let all = Wanted { all_nodes: true, ..Wanted::default() };
            let found = read_document(document.as_bytes(), &all, "n").expect("well formed");
            proptest::prop_assert_eq!(output(&found, &id), "3");
            proptest::prop_assert_eq!(output(&found, &other), "1");
        }
    }
}
