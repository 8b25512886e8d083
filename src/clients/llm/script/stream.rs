//! A message of the script as the events in which the Messages API streams it.

use serde_json::{Value, json};

/// Characters of one piece of text.
const PIECE: usize = 12;

/// The events of a message, in order. Put together again they are the message.
pub(super) fn events(message: &Value) -> Vec<Value> {
    let mut start = message.clone();
    start["content"] = json!([]);
    start["stop_reason"] = Value::Null;
    start["stop_sequence"] = Value::Null;
    start["usage"]["output_tokens"] = json!(1);
    if let Some(start) = start.as_object_mut() {
        start.shift_remove("stop_details");
    }
    let mut events = vec![json!({"type": "message_start", "message": start}), json!({"type": "ping"})];
    for (index, block) in message["content"].as_array().into_iter().flatten().enumerate() {
        let (begun, deltas) = taken_apart(block);
        events.push(json!({"type": "content_block_start", "index": index, "content_block": begun}));
        let deltas = deltas.into_iter();
        events.extend(deltas.map(|delta| json!({"type": "content_block_delta", "index": index, "delta": delta})));
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    let mut end = json!({"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]});
    if let Some(details) = message.get("stop_details") {
        end["stop_details"] = details.clone();
    }
    events.push(json!({"type": "message_delta", "delta": end, "usage": message["usage"]}));
    events.push(json!({"type": "message_stop"}));
    events
}

/// A block as it begins, and what makes it grow. Kinds that nobody knows come whole.
fn taken_apart(block: &Value) -> (Value, Vec<Value>) {
    let mut begun = block.clone();
    let deltas = match block["type"].as_str() {
        Some("text") => {
            begun["text"] = json!("");
            pieces(&block["text"]).map(|text| json!({"type": "text_delta", "text": text})).collect()
        }
        Some("thinking") => {
            begun["thinking"] = json!("");
            begun["signature"] = json!("");
            let thinking = pieces(&block["thinking"]).map(|text| json!({"type": "thinking_delta", "thinking": text}));
            thinking.chain([json!({"type": "signature_delta", "signature": block["signature"]})]).collect()
        }
        Some("tool_use") => {
            begun["input"] = json!({});
            let input = Value::String(block["input"].to_string());
            pieces(&input).map(|part| json!({"type": "input_json_delta", "partial_json": part})).collect()
        }
        _ => Vec::new(),
    };
    (begun, deltas)
}

fn pieces(text: &Value) -> impl Iterator<Item = String> {
    let chars: Vec<char> = text.as_str().unwrap_or_default().chars().collect();
    chars.chunks(PIECE).map(|piece| piece.iter().collect()).collect::<Vec<String>>().into_iter()
}
