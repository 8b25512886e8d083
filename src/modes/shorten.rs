//! A conversation that does not fit into the model's context window: the oldest results of tools are shortened, with a
//! marker in their place. What a model wrote stays as it is, and so does what stands before thinking that is signed,
//! because the signature holds only for the very conversation that it came from.

use std::sync::Arc;

use serde_json::Value;

use crate::domain::message::{Conversation, ToolResult, Turn, text_block};
use crate::domain::node::LlmConfig;
use crate::modes::toolbox::shortened;

/// Characters of a result's text that are kept.
const KEPT: usize = 1000;
/// What a result has to have beyond that, so that shortening it is worth a marker.
const WORTH: usize = 200;
/// One pass leaves out at least this part of the conversation, if there is so much: fewer requests are made in vain.
const PART: usize = 4;

/// Shortens results, the oldest first, until a quarter of the conversation is left out or nothing more can be. Gives
/// the bytes that were left out. The same conversation is always shortened alike.
pub(super) fn shorten(turns: &mut Conversation, may_unbind: bool) -> usize {
    let enough = turns.iter().map(|turn| size(turn)).sum::<usize>() / PART;
    let bound = turns.iter().rposition(|turn| matches!(&**turn, Turn::Assistant(turn) if turn.is_signed()));
    let first = if may_unbind { 0 } else { bound.map_or(0, |last| last + 1) };
    let mut left_out = 0;
    for turn in &mut turns[first..] {
        let Turn::ToolResults(results) = &**turn else { continue };
        let shorter = Turn::ToolResults(results.iter().map(shorter).collect());
        let saved = size(turn).saturating_sub(size(&shorter));
        if saved > 0 {
            left_out += saved;
            *turn = Arc::new(shorter);
        }
        if left_out >= enough {
            break;
        }
    }
    left_out
}

/// Whether the provider was told to drop thinking whose beginning has changed, so that the beginning may change.
pub(super) fn may_unbind(settings: &LlmConfig) -> bool {
    let behaviour = "/block_binding/prefix_mismatch_behavior";
    settings.thinking.as_ref().and_then(|thinking| thinking.pointer(behaviour)).is_some_and(|how| how == "drop_block")
}

/// Bytes of a turn, about as many as it has in a request.
pub(super) fn size(turn: &Turn) -> usize {
    match turn {
        Turn::User(text) => text.len(),
        Turn::Content(blocks) => blocks.iter().map(json_len).sum(),
        Turn::Assistant(turn) => turn.raw.get().len(),
        Turn::ToolResults(results) => results.iter().flat_map(|result| &result.content).map(json_len).sum(),
    }
}

fn shorter(result: &ToolResult) -> ToolResult {
    if result.content.iter().map(json_len).sum::<usize>() <= KEPT + WORTH {
        return result.clone();
    }
    let (content, _) = shortened(result.content.iter().map(left_out).collect(), KEPT);
    ToolResult { content, ..result.clone() }
}

/// Text as it is; words about what is no text.
fn left_out(block: &Value) -> Value {
    let kind = block.get("type").and_then(Value::as_str).unwrap_or("block");
    let length = json_len(block);
    let is_text = kind == "text" || block.pointer("/resource/text").is_some();
    if is_text || length <= WORTH {
        return block.clone();
    }
    text_block(format!("[… {kind} of {length} bytes left out …]"))
}

fn json_len(value: &Value) -> usize {
    value.to_string().len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::message::AssistantTurn;

    fn results(content: Value) -> Arc<Turn> {
        let Value::Array(content) = content else { panic!("blocks") };
        Arc::new(Turn::ToolResults(vec![ToolResult { tool_use_id: String::from("u"), content, is_error: true }]))
    }

    fn assistant(raw: &Value) -> Arc<Turn> {
        let raw = serde_json::value::to_raw_value(raw).expect("JSON");
        Arc::new(Turn::Assistant(AssistantTurn { raw, text: String::new(), tool_uses: Vec::new(), author: None }))
    }

    fn long(letter: &str, length: usize) -> Value {
        json!([text_block(letter.repeat(length))])
    }

    fn text(turns: &Conversation, at: usize) -> String {
        let Turn::ToolResults(results) = &*turns[at] else { panic!("results") };
        assert!(results[0].is_error && results[0].tool_use_id == "u", "only the content changes");
        results[0].content.iter().map(|block| block["text"].as_str().unwrap_or("?")).collect()
    }

    #[test]
    fn the_oldest_results_go_first_and_only_as_many_as_are_needed() {
        let plain = assistant(&json!([text_block("I look")]));
        let prompt = Arc::new(Turn::User("p".repeat(3000)));
        let mut turns = vec![
            prompt,
            plain.clone(),
            results(long("a", 9000)),
            plain.clone(),
            results(long("b", 500)),
            plain,
            results(long("c", 9000)),
        ];
        let before: usize = turns.iter().map(|turn| size(turn)).sum();
        let left_out = shorten(&mut turns, false);
        assert!(left_out > before / PART, "{left_out} of {before}");
        assert_eq!(before - left_out, turns.iter().map(|turn| size(turn)).sum::<usize>());
        let first = text(&turns, 2);
        assert!(first.len() < KEPT + 100 && first.contains("8000 of 9000 characters left out"), "{first}");
        assert_eq!((text(&turns, 4), text(&turns, 6)), ("b".repeat(500), "c".repeat(9000)));
        assert!(shorten(&mut turns, false) > 0);
        assert!(text(&turns, 6).contains("left out"));
        assert_eq!(shorten(&mut turns, false), 0, "nothing is shortened twice");
        assert!(matches!(&*turns[0], Turn::User(prompt) if prompt.len() == 3000));
    }

    #[test]
    fn what_stands_before_signed_thinking_stays_unless_the_provider_drops_it() {
        for kind in ["thinking", "redacted_thinking"] {
            let signed = assistant(&json!([{"type": kind, "signature": "s", "data": "d"}, text_block("x")]));
            let turns = vec![results(long("a", 9000)), signed, results(long("b", 9000))];
            let mut kept = turns.clone();
            shorten(&mut kept, false);
            assert_eq!((text(&kept, 0).len(), text(&kept, 2).len() < 2000), (9000, true));
            let mut dropped = turns;
            shorten(&mut dropped, true);
            assert!(text(&dropped, 0).len() < 2000);
        }
        let drop = json!({"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}});
        assert!(may_unbind(&LlmConfig { thinking: Some(drop), ..LlmConfig::default() }));
        assert!(!may_unbind(&LlmConfig { thinking: Some(json!({"type": "adaptive"})), ..LlmConfig::default() }));
    }

    #[test]
    fn what_is_no_text_is_left_out_whole() {
        let image = json!({"type": "image", "data": "A".repeat(5000), "mimeType": "image/png"});
        let mut turns = vec![results(json!([text_block("seen:"), image]))];
        assert!(shorten(&mut turns, false) > 4000);
        let words = text(&turns, 0);
        assert!(words.starts_with("seen:[… image of 50") && words.ends_with("left out …]"), "{words}");
    }
}
