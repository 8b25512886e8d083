//! JSON-RPC and MCP as they stand on the wire, read leniently: unknown members are ignored, odd ids are no number.

use std::borrow::Cow;
use std::sync::Arc;

use jsonrpsee::core::middleware::Notification;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

use super::era::UNSUPPORTED_VERSION;
use super::error::{McpError, excerpt};
use crate::domain::task::Pace;
use crate::domain::tool::ToolOutput;

/// The first request of a session.
pub(super) const INITIALIZE: &str = "initialize";
/// Asks a modern server what it is; the first request to a server of which nothing is known.
pub(super) const DISCOVER: &str = "server/discover";
/// Asks the other side of a session for a sign of life.
pub(super) const PING: &str = "ping";
/// Asks a modern server to tell of changes.
pub(super) const LISTEN: &str = "subscriptions/listen";
/// Calls a tool.
pub(super) const CALL: &str = "tools/call";
/// Asks for the state of a task.
pub(super) const GET_TASK: &str = "tasks/get";
/// Answers what a task asks.
pub(super) const UPDATE_TASK: &str = "tasks/update";
/// Gives a task up.
pub(super) const CANCEL_TASK: &str = "tasks/cancel";
/// JSON-RPC: the parameters do not fit.
pub(super) const INVALID_PARAMS: i64 = -32602;
/// JSON-RPC: there is no such method.
pub(super) const METHOD_NOT_FOUND: i64 = -32601;

/// One message of a server.
#[derive(Debug)]
pub(super) enum Incoming {
    /// An answer.
    Answer {
        /// The request's id; none if it is no number of ours, as in errors of servers that could not read the request.
        id: Option<u64>,
        /// The result, or the error.
        outcome: Result<Box<RawValue>, Fault>,
    },
    /// A request of the server.
    Request {
        /// Its id, to be sent back as it is.
        id: Box<RawValue>,
        /// What it asks for.
        method: String,
        /// With which parameters.
        params: Value,
    },
    /// A notification.
    Notification {
        /// What it tells.
        method: String,
        /// How far a request has come, if that is what it tells.
        progress: Option<ProgressNote>,
    },
}

/// A JSON-RPC error.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    /// Its code.
    #[serde(default)]
    pub(super) code: i64,
    /// What the server says; not shortened yet.
    #[serde(default)]
    pub(super) message: String,
    /// What it says beside, for programs.
    #[serde(default)]
    pub(super) data: Value,
}

impl Fault {
    /// The error; `status` is the HTTP status it came with, where that was no success.
    pub(super) fn to_error(&self, server: Arc<str>, status: Option<u16>) -> McpError {
        match self.code {
            // Before the code meant this, servers were free to use it for anything.
            UNSUPPORTED_VERSION if self.data.get("supported").is_some() => {
                McpError::VersionRefused { server, supported: self.supported() }
            }
            code => McpError::Rpc { server, code, message: excerpt(&self.message), status },
        }
    }

    /// The versions that the server names when it refuses ours.
    fn supported(&self) -> Vec<String> {
        let versions = self.data.get("supported").and_then(Value::as_array).into_iter().flatten();
        versions.filter_map(Value::as_str).map(str::to_owned).take(100).collect()
    }
}

/// The parameters of `notifications/progress`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProgressNote {
    /// The request that came further; only tokens of ours are numbers.
    pub(super) progress_token: u64,
    /// How far it has come.
    pub(super) progress: f64,
    /// How far it has to go.
    #[serde(default)]
    pub(super) total: Option<f64>,
    /// What is happening.
    #[serde(default)]
    pub(super) message: Option<String>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The messages of one frame: one, or several where a server of 2025-03-26 sends a batch. None if it is no JSON-RPC.
pub(super) fn parse(text: &str) -> Option<Vec<Incoming>> {
    if text.trim_start().starts_with('[') {
        let frames: Vec<&RawValue> = serde_json::from_str(text).ok()?;
        return frames.into_iter().map(|frame| parse_one(frame.get())).collect();
    }
    parse_one(text).map(|message| vec![message])
}

fn parse_one(text: &str) -> Option<Incoming> {
    let message: Message<'_> = serde_json::from_str(text).ok()?;
    match message {
        Message { method: Some(method), id: Some(id), params, .. } => {
            let params = params.and_then(|params| serde_json::from_str(params.get()).ok()).unwrap_or_default();
            Some(Incoming::Request { id: id.to_owned(), method: method.into_owned(), params })
        }
        Message { method: Some(method), id: None, params, .. } => {
            let progress = params.filter(|_| method == "notifications/progress");
            let progress = progress.and_then(|params| serde_json::from_str(params.get()).ok());
            Some(Incoming::Notification { method: method.into_owned(), progress })
        }
        Message { error: Some(error), id, .. } => {
            let fault = serde_json::from_str(error.get()).unwrap_or_else(|_| Fault {
                code: 0,
                message: excerpt(error.get()),
                data: Value::Null,
            });
            Some(Incoming::Answer { id: number(id), outcome: Err(fault) })
        }
        Message { result: Some(result), id, .. } => {
            Some(Incoming::Answer { id: number(id), outcome: Ok(result.to_owned()) })
        }
        // An answer to us that says nothing, or null: better an answer that cannot be used than a wait for another.
        Message { id, .. } => {
            let id = number(id)?;
            Some(Incoming::Answer { id: Some(id), outcome: Ok(RawValue::NULL.to_owned()) })
        }
    }
}

fn number(id: Option<&RawValue>) -> Option<u64> {
    id?.get().parse().ok()
}

/// Parameters as they go out. Always an object: a server of the TypeScript SDK refuses `"params": null`.
pub(super) fn params(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("maps with string keys serialise")
}

/// A notification with empty parameters.
pub(super) fn notification(method: &'static str) -> Notification<'static> {
    Notification::new(Cow::Borrowed(method), Some(Cow::Owned(params(&serde_json::Map::new()))))
}

/// The notification that we gave up on a request.
pub(super) fn cancelled(id: u64) -> Notification<'static> {
    let body = serde_json::json!({"requestId": id, "reason": "the caller gave up"});
    Notification::new(Cow::Borrowed("notifications/cancelled"), Some(Cow::Owned(params(&body))))
}

/// The answer to `server/discover`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DiscoverResult {
    /// Said by every modern result, and by no older one.
    #[serde(default)]
    pub(super) result_type: Option<String>,
    /// The versions it speaks.
    #[serde(default)]
    pub(super) supported_versions: Option<Vec<String>>,
    /// What it offers; none where it does not say.
    #[serde(default)]
    pub(super) capabilities: Capabilities,
    /// Who it is, where drafts of the specification had it.
    #[serde(default)]
    pub(super) server_info: Option<Implementation>,
    /// How to use it, for a model.
    #[serde(default)]
    pub(super) instructions: Option<String>,
    /// Who it is.
    #[serde(default, rename = "_meta")]
    pub(super) meta: ResultMeta,
}

/// What a modern server says beside a result.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ResultMeta {
    /// Who it is.
    #[serde(rename = "io.modelcontextprotocol/serverInfo")]
    pub(super) server_info: Option<Implementation>,
}

/// The answer to `initialize`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InitializeResult {
    /// The version that the server chose.
    pub(super) protocol_version: String,
    /// What it offers.
    #[serde(default)]
    pub(super) capabilities: Capabilities,
    /// Who it is.
    #[serde(default)]
    pub(super) server_info: Implementation,
    /// How to use it, for a model.
    #[serde(default)]
    pub(super) instructions: Option<String>,
}

/// What a server offers.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Capabilities {
    /// Tools.
    pub(super) tools: Option<ToolsCapability>,
}

/// What a server offers about tools.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ToolsCapability {
    /// Whether it tells when they change.
    pub(super) list_changed: bool,
}

/// Who a server is.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Implementation {
    /// Its name.
    pub(super) name: String,
    /// Its version.
    pub(super) version: String,
}

/// One page of `tools/list`. Tools are read one by one, so that a broken one costs only itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ToolsPage {
    /// The tools.
    pub(super) tools: Vec<Value>,
    /// Where the next page begins. Only its absence ends the list: an empty text is a cursor.
    #[serde(default)]
    pub(super) next_cursor: Option<String>,
    /// For how many milliseconds the page may be kept.
    #[serde(default)]
    pub(super) ttl_ms: Option<f64>,
}

/// A tool of a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tool {
    /// Its name.
    pub(super) name: String,
    /// Its name for people.
    #[serde(default)]
    pub(super) title: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub(super) description: Option<String>,
    /// The JSON Schema of its arguments.
    #[serde(default)]
    pub(super) input_schema: Option<Value>,
    /// The JSON Schema of its structured answer.
    #[serde(default)]
    pub(super) output_schema: Option<Value>,
    /// What is said of its effects.
    #[serde(default)]
    pub(super) annotations: Option<Annotations>,
}

/// What is said of a tool's effects.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Annotations {
    /// Its name for people, where older servers put it.
    pub(super) title: Option<String>,
    /// It changes nothing.
    pub(super) read_only_hint: Option<bool>,
    /// Twice is the same as once.
    pub(super) idempotent_hint: Option<bool>,
}

/// The answer to `tools/call`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CallResult {
    /// Content blocks, of any kind.
    #[serde(default)]
    pub(super) content: Vec<Value>,
    /// The structured answer.
    #[serde(default)]
    pub(super) structured_content: Option<Value>,
    /// The tool says that it failed.
    #[serde(default)]
    pub(super) is_error: Option<bool>,
    /// Whether this is the end of the call; it is where nothing is said.
    #[serde(default)]
    pub(super) result_type: Option<String>,
    /// What the server has to know before it can go on.
    #[serde(default)]
    pub(super) input_requests: Option<Map<String, Value>>,
    /// What it wants to have back with the answers, as it is.
    #[serde(default)]
    pub(super) request_state: Option<String>,
    /// The name of the task that works on it; looked at only where there is one, so that nothing else has to fit.
    #[serde(default)]
    pub(super) task_id: Value,
    /// For how many milliseconds the server keeps that.
    #[serde(default)]
    pub(super) ttl_ms: Value,
    /// How often the server wants to be asked.
    #[serde(default)]
    pub(super) poll_interval_ms: Value,
}

impl CallResult {
    /// The end of the call.
    pub(super) fn into_output(self) -> ToolOutput {
        ToolOutput {
            content: self.content,
            structured: self.structured_content,
            is_error: self.is_error.unwrap_or(false),
        }
    }
}

/// The answer to `tasks/get`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TaskState {
    /// How it stands.
    pub(super) status: String,
    /// What is happening, for people.
    #[serde(default)]
    pub(super) status_message: Option<String>,
    /// For how many milliseconds the server keeps it.
    #[serde(default)]
    pub(super) ttl_ms: Value,
    /// How often the server wants to be asked.
    #[serde(default)]
    pub(super) poll_interval_ms: Value,
    /// What it asks.
    #[serde(default)]
    pub(super) input_requests: Option<Map<String, Value>>,
    /// How the call ended.
    #[serde(default)]
    pub(super) result: Option<Value>,
    /// The error that it ended with.
    #[serde(default)]
    pub(super) error: Option<Fault>,
}

/// What is said of a task's time. What is no number of milliseconds says nothing.
pub(super) fn pace(ttl: &Value, poll: &Value) -> Pace {
    // A fraction is cut off, and what is too large is the largest.
    let millis = |value: &Value| value.as_f64().filter(|millis| *millis >= 0.0).map(|millis| millis as u64);
    Pace { ttl_ms: millis(ttl), poll_ms: millis(poll) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Incoming {
        parse(text).expect("a message").pop().expect("one message")
    }

    #[test]
    fn an_answer_carries_its_result_as_it_was_written() {
        let Incoming::Answer { id: Some(7), outcome: Ok(result) } =
            one(r#"{"result":{"b":1.0,"a":10000000000000000000000},"id":7,"jsonrpc":"2.0","extra":0}"#)
        else {
            panic!("an answer to 7")
        };
        assert_eq!(result.get(), r#"{"b":1.0,"a":10000000000000000000000}"#);
    }

    #[test]
    fn errors_with_odd_ids_are_answers_without_one() {
        for id in [r#""id":null,"#, r#""id":"server-error","#, "", r#""id":-3,"#, r#""id":1.5,"#] {
            let text = format!(r#"{{{id}"jsonrpc":"2.0","error":{{"code":-32000,"message":"no","strange":1}}}}"#);
            let Incoming::Answer { id: None, outcome: Err(fault) } = one(&text) else { panic!("{text}") };
            assert_eq!((fault.code, fault.message.as_str()), (-32000, "no"));
        }
    }

    #[test]
    fn a_request_keeps_its_id_and_a_notification_has_none() {
        let Incoming::Request { id, method, .. } = one(r#"{"jsonrpc":"2.0","id":"a-1","method":"ping"}"#) else {
            panic!("a request")
        };
        assert_eq!((id.get(), method.as_str()), (r#""a-1""#, "ping"));
        assert!(matches!(one(r#"{"method":"notifications/x","params":{}}"#), Incoming::Notification { .. }));
    }

    #[test]
    fn a_batch_of_an_old_server_is_taken_apart() {
        let batch = r#" [{"id":1,"result":{}},{"method":"notifications/x"}]"#;
        assert_eq!(parse(batch).expect("a batch").len(), 2);
    }

    #[test]
    fn the_time_of_a_task_is_read_as_far_as_it_can_be() {
        let read = |ttl: &str, poll: &str| {
            let value = |text| serde_json::from_str::<Value>(text).expect("JSON");
            let Pace { ttl_ms, poll_ms } = pace(&value(ttl), &value(poll));
            (ttl_ms, poll_ms)
        };
        assert_eq!(read("60000", "1500.7"), (Some(60_000), Some(1500)));
        assert_eq!(read("null", "\"5s\""), (None, None));
        assert_eq!(read("-1", "1e300"), (None, Some(u64::MAX)));
    }

    #[test]
    fn what_is_no_message_is_none() {
        for text in ["", "hello", "{}", "[1]", "null", r#"{"id":"1"}"#, r#"{"id":1,"result":{}"#] {
            assert!(parse(text).is_none(), "{text}");
        }
        assert!(matches!(one(r#"{"id":1,"result":null}"#), Incoming::Answer { id: Some(1), outcome: Ok(_) }));
    }

    #[test]
    fn notifications_never_have_null_parameters() {
        let text = serde_json::to_string(&notification("notifications/initialized")).expect("it serialises");
        assert_eq!(text, r#"{"jsonrpc":"2.0","method":"notifications/initialized","params":{}}"#);
        let text = serde_json::to_string(&cancelled(3)).expect("it serialises");
        assert!(text.contains(r#""requestId":3"#), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_message_or_none(text in r#"[\[{]?("(jsonrpc|id|method|params|result|error|code)":(1|null|"x"|\{|\}|\[|\]|-1|1e9|"\\u00e9")?,?){0,6}[\]}]{0,3}"#) {
            if let Some(messages) = parse(&text) {
                proptest::prop_assert!(serde_json::from_str::<Value>(&text).is_ok(), "{} {:?}", text, messages);
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
