//! A response that comes as events: the last of them bears the whole of it, so the others are only signs of life and
//! pieces of its text.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::chat_stream::{More, Step};
use super::error;

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    delta: Option<Value>,
    #[serde(default)]
    item: Option<Box<RawValue>>,
    #[serde(default)]
    response: Option<Box<RawValue>>,
}

/// A response that is being awaited.
#[derive(Default)]
pub(super) struct Awaited {
    items: Vec<Box<RawValue>>,
    response: Option<Box<RawValue>>,
}

impl Awaited {
    /// Takes the data of one event.
    pub fn take(&mut self, data: &str) -> Result<Step, String> {
        if data.trim() == "[DONE]" {
            return Ok(Step::Done);
        }
        let event: Event = serde_json::from_str(data).map_err(|error| format!("an event makes no sense: {error}"))?;
        match event.r#type.as_str() {
            kind @ ("response.output_text.delta" | "response.reasoning_summary_text.delta") => {
                let text = event.delta.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
                let thinking = kind != "response.output_text.delta";
                Ok(Step::More(vec![if thinking { More::Thinking(text) } else { More::Text(text) }]))
            }
            "response.output_item.added" => Ok(Step::More(event.item.iter().filter_map(|item| begun(item)).collect())),
            "response.output_item.done" => {
                self.items.extend(event.item);
                Ok(Step::More(Vec::new()))
            }
            "response.completed" | "response.incomplete" | "response.failed" => {
                self.response = event.response;
                Ok(Step::Done)
            }
            "error" => {
                let error: Value = serde_json::from_str(data).unwrap_or_default();
                let inner = error.get("error").filter(|inner| inner.is_object()).cloned();
                Ok(Step::Error(error::of_error(&inner.unwrap_or_else(|| without_type(error)))))
            }
            _ => Ok(Step::More(Vec::new())),
        }
    }

    /// The body that the server would have sent as a whole; nothing if the answer did not come to its end.
    pub fn whole(self) -> Option<Vec<u8>> {
        let response = self.response?;
        #[derive(Deserialize)]
        struct Output {
            #[serde(default)]
            output: Vec<serde::de::IgnoredAny>,
        }
        let empty = serde_json::from_str::<Output>(response.get()).is_ok_and(|response| response.output.is_empty());
        if !empty || self.items.is_empty() {
            return Some(response.get().as_bytes().to_vec());
        }
        // Some servers leave the items out of the last event, having sent each of them before.
        let mut members: indexmap::IndexMap<String, Box<RawValue>> = serde_json::from_str(response.get()).ok()?;
        members.insert(String::from("output"), serde_json::value::to_raw_value(&self.items).ok()?);
        serde_json::to_vec(&members).ok()
    }
}

/// The tool that an item begins to ask for, if it is a call.
fn begun(item: &RawValue) -> Option<More> {
    let item: Value = serde_json::from_str(item.get()).ok()?;
    let text = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
    (item["type"] == "function_call").then(|| More::Tool { id: text("call_id"), name: text("name") })
}

/// The event's own type is not the error's.
fn without_type(mut event: Value) -> Value {
    if let Value::Object(members) = &mut event {
        members.shift_remove("type");
    }
    event
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn steps(events: &[Value]) -> (Vec<More>, Awaited) {
        let (mut seen, mut awaited) = (Vec::new(), Awaited::default());
        for event in events {
            if let Step::More(more) = awaited.take(&event.to_string()).expect("an event") {
                seen.extend(more);
            }
        }
        (seen, awaited)
    }

    #[test]
    fn the_last_event_bears_the_response() {
        let response = json!({"status": "completed", "output": [{"type": "message"}]});
        let (seen, awaited) = steps(&[
            json!({"type": "response.created", "response": {"status": "in_progress", "output": []}}),
            json!({"type": "response.output_text.delta", "delta": "a"}),
            json!({"type": "response.output_text.delta", "delta": "b"}),
            json!({"type": "response.unheard_of", "x": 1}),
            json!({"type": "response.completed", "response": response}),
        ]);
        assert_eq!(seen, ["a", "b"].map(|text| More::Text(text.to_owned())));
        assert_eq!(awaited.whole(), Some(response.to_string().into_bytes()));
    }

    #[test]
    fn items_that_the_last_event_leaves_out_are_those_that_came_before() {
        let (_, awaited) = steps(&[
            json!({"type": "response.output_item.done", "item": {"type": "message", "n": 1}}),
            json!({"type": "response.completed", "response": {"status": "completed", "output": []}}),
        ]);
        let whole: Value = serde_json::from_slice(&awaited.whole().expect("a response")).expect("JSON");
        assert_eq!(whole, json!({"status": "completed", "output": [{"type": "message", "n": 1}]}));
    }

    #[test]
    fn an_answer_without_its_end_is_no_answer_and_errors_are_told() {
        assert!(steps(&[json!({"type": "response.created", "response": {}})]).1.whole().is_none());
        let mut awaited = Awaited::default();
        for event in [
            r#"{"type":"error","code":"rate_limit_exceeded","message":"slow"}"#,
            r#"{"type":"error","error":{"type":"requests","code":"rate_limit_exceeded","message":"slow"}}"#,
        ] {
            let Ok(Step::Error(told)) = awaited.take(event) else { panic!("an error: {event}") };
            let text = told.text;
            assert_eq!((text.kind.as_deref(), text.message.as_deref()), (Some("rate_limit_exceeded"), Some("slow")));
        }
    }
}
