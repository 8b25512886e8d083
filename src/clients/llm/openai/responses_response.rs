//! A response as the worker's own completion.

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::super::history;
use super::calls::{self, Ids};
use super::{Read, error};
use crate::domain::message::{AssistantTurn, Completion, StopReason, Usage};

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    incomplete_details: Option<Incomplete>,
    output: Vec<Box<RawValue>>,
    #[serde(default)]
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct Incomplete {
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<InputDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InputDetails {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
}

/// The members of an item that the worker reads; items of other types pass through unread.
#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    content: Option<Value>,
    #[serde(default)]
    call_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<Box<RawValue>>,
    #[serde(default)]
    status: Option<String>,
}

/// Reads a response. `asked` is the model of the request, for servers that name none in the answer.
pub(super) fn completion(body: &[u8], asked: &str, ids: &mut Ids<'_>) -> Result<Read, String> {
    let response: Response = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let incomplete = match response.status.as_deref() {
        Some("completed") | None => None,
        Some("incomplete") => Some(response.incomplete_details.and_then(|details| details.reason).unwrap_or_default()),
        Some("failed") => {
            return Ok(Read::Error(error::of_error(&response.error.unwrap_or_default())));
        }
        Some(other) => return Err(format!("its `status` is {other:?}, so it is not complete")),
    };
    let mut said = Said::default();
    let mut output = Vec::with_capacity(response.output.len());
    for raw in response.output {
        output.push(said.read(raw, ids)?);
    }
    // What was being written when the answer was cut may lack arguments; running it would be a guess.
    if incomplete.is_some() && said.last_is_a_call {
        said.turn.tool_uses.pop();
    }
    let stop_reason = match (incomplete, said.refusal) {
        (Some(reason), _) => match reason.as_str() {
            "max_output_tokens" | "max_tokens" => StopReason::MaxTokens,
            "content_filter" => StopReason::Refusal { category: Some(reason), explanation: None },
            _ => StopReason::Other(format!("incomplete: {reason}")),
        },
        (None, Some(words)) => StopReason::Refusal { category: None, explanation: Some(words) },
        (None, None) if !said.turn.tool_uses.is_empty() => StopReason::ToolUse,
        (None, None) => StopReason::EndTurn,
    };
    let raw = if output.is_empty() {
        String::from("[]")
    } else {
        history::responses(&serde_json::to_string(&output).map_err(|error| error.to_string())?)
    };
    let usage = response.usage.unwrap_or_default();
    let details = usage.input_tokens_details.unwrap_or_default();
    Ok(Read::Completion(Box::new(Completion {
        turn: AssistantTurn { raw: RawValue::from_string(raw).map_err(|error| error.to_string())?, ..said.turn },
        stop_reason,
        model: response.model.filter(|model| !model.is_empty()).unwrap_or_else(|| asked.to_owned()),
        provider: None,
        usage: Usage {
            input_tokens: usage.input_tokens.unwrap_or_default(),
            output_tokens: usage.output_tokens.unwrap_or_default(),
            cache_read_tokens: details.cached_tokens.unwrap_or_default(),
            cache_write_tokens: details.cache_write_tokens.unwrap_or_default(),
            cost: None,
        },
        request_id: None,
        warnings: Vec::new(),
        shortened: 0,
    })))
}

/// What the items read so far say.
struct Said {
    turn: AssistantTurn,
    refusal: Option<String>,
    calls: usize,
    last_is_a_call: bool,
}

impl Default for Said {
    fn default() -> Self {
        let raw = RawValue::from_string(String::from("[]")).expect("a list is JSON");
        let turn = AssistantTurn { raw, text: String::new(), tool_uses: Vec::new(), author: None };
        Self { turn, refusal: None, calls: 0, last_is_a_call: false }
    }
}

impl Said {
    /// Reads an item and gives it back as it can be sent again.
    fn read(&mut self, raw: Box<RawValue>, ids: &mut Ids<'_>) -> Result<Box<RawValue>, String> {
        let item: Item = serde_json::from_str(raw.get()).map_err(|error| format!("an item makes no sense: {error}"))?;
        self.last_is_a_call = false;
        match item.r#type.as_str() {
            "message" => {
                for part in item.content.as_ref().and_then(Value::as_array).into_iter().flatten() {
                    match part["type"].as_str() {
                        Some("output_text") => self.turn.text.push_str(part["text"].as_str().unwrap_or_default()),
                        Some("refusal") => {
                            let words = part["refusal"].as_str().unwrap_or_default();
                            self.refusal.get_or_insert_default().push_str(words);
                        }
                        _ => {}
                    }
                }
                Ok(raw)
            }
            "function_call" => {
                let call = calls::read(ids, self.calls, item.call_id.as_deref(), item.name, item.arguments.as_deref())?;
                self.calls += 1;
                self.last_is_a_call = item.status.as_deref() != Some("completed");
                self.turn.tool_uses.push(call.tool_use);
                if call.id.is_none() && call.arguments.is_none() {
                    return Ok(raw);
                }
                let mut members: IndexMap<String, Box<RawValue>> =
                    serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
                for (name, text) in [("call_id", call.id), ("arguments", call.arguments)] {
                    if let Some(text) = text {
                        members.insert(name.to_owned(), to_raw_value(&text).map_err(|error| error.to_string())?);
                    }
                }
                to_raw_value(&members).map_err(|error| error.to_string())
            }
            _ => Ok(raw),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clients::llm::fixture::request;

    fn read_text(body: &str) -> Result<Completion, String> {
        let call = request("x");
        match completion(body.as_bytes(), "asked", &mut Ids::of(&call))? {
            Read::Completion(completion) => Ok(*completion),
            Read::Error(told) => Err(format!("an error: {told:?}")),
        }
    }

    fn message(text: &str) -> Value {
        json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]})
    }

    fn call(id: &str, arguments: &str, status: &str) -> Value {
        json!({"type": "function_call", "call_id": id, "name": "add", "arguments": arguments, "status": status})
    }

    #[test]
    fn items_are_kept_byte_for_byte() {
        let items = [
            r#"{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":"Ab+/==","n":12345678901234567890123}"#,
            r#"{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"output_text","text":"h\u00e9","annotations":[]}]}"#,
            r#"{"type":"hologram","x":1.0e2}"#,
            r#"{"id":"fc_1","type":"function_call","call_id":"c1","name":"add","arguments":"{\"b\": 1, \"a\": 2}"}"#,
        ]
        .join(",");
        let body = format!(
            r#"{{"id":"resp_1","status":"completed","model":"m","error":null,"incomplete_details":null,"output":[{items}],"usage":{{"input_tokens":100,"input_tokens_details":{{"cached_tokens":80}},"output_tokens":7,"output_tokens_details":{{"reasoning_tokens":5}}}}}}"#
        );
        let read = read_text(&body).expect("a completion");
        assert_eq!(read.turn.raw.get(), format!(r#"{{"output":[{items}]}}"#));
        assert_eq!((read.turn.text.as_str(), read.stop_reason), ("hé", StopReason::ToolUse));
        assert_eq!(read.turn.tool_uses[0].input, *json!({"b": 1, "a": 2}).as_object().expect("an object"));
        let usage =
            Usage { input_tokens: 100, output_tokens: 7, cache_read_tokens: 80, cache_write_tokens: 0, cost: None };
        assert_eq!((read.usage, read.model.as_str()), (usage, "m"));
    }

    #[test]
    fn every_end_has_its_arm() {
        let ended = |status: &str, reason: &str, output: Value| {
            let body = json!({"status": status, "incomplete_details": {"reason": reason}, "output": output});
            read_text(&body.to_string()).expect("a completion")
        };
        assert_eq!(ended("completed", "", json!([message("a")])).stop_reason, StopReason::EndTurn);
        let filtered = StopReason::Refusal { category: Some(String::from("content_filter")), explanation: None };
        assert_eq!(ended("incomplete", "content_filter", json!([])).stop_reason, filtered);
        let calls = json!([call("c1", "{}", "completed"), call("c2", "{\"x", "incomplete")]);
        let cut = ended("incomplete", "max_output_tokens", calls);
        assert_eq!((cut.stop_reason, cut.turn.tool_uses.len()), (StopReason::MaxTokens, 1));
        assert!(matches!(ended("incomplete", "coffee", json!([])).stop_reason, StopReason::Other(_)));
        let refusal = json!([{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]);
        let refused = StopReason::Refusal { category: None, explanation: Some(String::from("no")) };
        assert_eq!(ended("completed", "", refusal).stop_reason, refused);
        assert_eq!(ended("completed", "", json!([])).turn.raw.get(), "[]");
    }

    #[test]
    fn calls_that_could_not_be_sent_back_are_mended() {
        let body = json!({"status": "completed", "output": [call("", "{oops", "completed")]});
        let read = read_text(&body.to_string()).expect("a completion");
        let tool = &read.turn.tool_uses[0];
        assert!(tool.problem.is_some() && tool.id.starts_with("call_"));
        let raw: Value = serde_json::from_str(read.turn.raw.get()).expect("JSON");
        let sent = &raw["output"][0];
        assert_eq!((&sent["call_id"], &sent["arguments"]), (&json!(tool.id), &json!(r#"{"invalid_json":"{oops"}"#)));
        assert_eq!(sent["status"], "completed");
    }

    #[test]
    fn what_is_no_response_is_refused_with_the_reason() {
        for (body, words) in [
            (r#"{"choices":[]}"#, "output"),
            (r#"{"status":"in_progress","output":[]}"#, "not complete"),
            (r#"{"status":"failed","error":{"code":"server_error","message":"m"},"output":[]}"#, "an error"),
            (r#"{"output":[{"type":"function_call","call_id":"c"}]}"#, "no name"),
        ] {
            let problem = read_text(body).expect_err(words);
            assert!(problem.contains(words), "{words}: {problem}");
        }
    }
}
