//! Tool results on their way to the model: content blocks of MCP as blocks of the Messages API.

use serde_json::{Value, json};

use crate::domain::message::text_block;

/// Image types that the API takes; any other image is only described.
const IMAGE_TYPES: &[&str] = &["image/jpeg", "image/png", "image/gif", "image/webp"];

/// Maps the blocks of one result. Never empty and without empty texts, because the API refuses both.
pub(super) fn blocks(content: &[Value]) -> Vec<Value> {
    let blocks: Vec<Value> = content.iter().filter_map(block).collect();
    if blocks.is_empty() { vec![text_block("(no output)")] } else { blocks }
}

fn block(block: &Value) -> Option<Value> {
    let member = |name: &str| block.get(name).and_then(Value::as_str);
    match member("type") {
        Some("text") => {
            let text = member("text").unwrap_or_default();
            (!text.is_empty()).then(|| text_block(text))
        }
        Some("image") => Some(image(member("data"), member("mimeType"))),
        Some("audio") => Some(text_block(format!(
            "[audio, {}, {} characters of base64, not shown]",
            member("mimeType").unwrap_or("unknown type"),
            member("data").map_or(0, str::len),
        ))),
        Some("resource_link") => Some(text_block(link(block))),
        Some("resource") => Some(resource(block.get("resource").unwrap_or(&Value::Null))),
        Some(kind) => Some(text_block(format!("[content of the unknown type {kind:?}] {block}"))),
        None => Some(text_block(block.to_string())),
    }
}

fn image(data: Option<&str>, media_type: Option<&str>) -> Value {
    match (data, media_type) {
        (Some(data), Some(media_type)) if IMAGE_TYPES.contains(&media_type) && !data.is_empty() => {
            json!({"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}})
        }
        _ => text_block(format!(
            "[image, {}, {} characters of base64, not shown]",
            media_type.unwrap_or("unknown type"),
            data.map_or(0, str::len),
        )),
    }
}

fn link(block: &Value) -> String {
    let parts = ["uri", "mimeType", "title", "name", "description"]
        .iter()
        .filter_map(|name| block.get(name).and_then(Value::as_str))
        .collect::<Vec<_>>();
    format!("[resource: {}]", parts.join(", "))
}

fn resource(resource: &Value) -> Value {
    let member = |name: &str| resource.get(name).and_then(Value::as_str);
    let media_type = member("mimeType");
    match (member("text"), member("blob")) {
        (Some(text), _) => text_block(format!("{}\n{text}", link(resource))),
        (None, Some(blob)) if media_type.is_some_and(|kind| IMAGE_TYPES.contains(&kind)) => {
            image(Some(blob), media_type)
        }
        (None, Some(blob)) => {
            text_block(format!("{} ({} characters of base64, not shown)", link(resource), blob.len()))
        }
        (None, None) => text_block(link(resource)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(block: Value) -> String {
        let blocks = blocks(&[block]);
        assert_eq!(blocks.len(), 1);
        blocks[0]["text"].as_str().expect("rendered as text").to_owned()
    }

    #[test]
    fn text_and_images_keep_their_kind() {
        let content =
            [json!({"type": "text", "text": "a"}), json!({"type": "image", "data": "AAAA", "mimeType": "image/png"})];
        assert_eq!(
            blocks(&content),
            vec![
                json!({"type": "text", "text": "a"}),
                json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}),
            ]
        );
    }

    #[test]
    fn an_image_type_that_the_api_refuses_is_described() {
        let text = text_of(json!({"type": "image", "data": "AAAA", "mimeType": "image/svg+xml"}));
        assert!(text.contains("image/svg+xml") && !text.contains("AAAA"), "{text}");
    }

    #[test]
    fn resources_are_told_with_address_type_and_text() {
        let text = text_of(
            json!({"type": "resource", "resource": {"uri": "file:///a.txt", "mimeType": "text/plain", "text": "hello"}}),
        );
        assert_eq!(text, "[resource: file:///a.txt, text/plain]\nhello");
        let text = text_of(json!({"type": "resource_link", "uri": "file:///b", "name": "b"}));
        assert_eq!(text, "[resource: file:///b, b]");
        let image =
            blocks(&[json!({"type": "resource", "resource": {"uri": "u:1", "mimeType": "image/gif", "blob": "R0lG"}})]);
        assert_eq!(image[0]["source"]["media_type"], "image/gif");
    }

    #[test]
    fn audio_and_unknown_kinds_become_words() {
        assert!(text_of(json!({"type": "audio", "data": "AAAA", "mimeType": "audio/wav"})).contains("audio/wav"));
        assert!(text_of(json!({"type": "hologram", "x": 1})).contains("hologram"));
        assert_eq!(text_of(json!({"x": 1})), r#"{"x":1}"#);
    }

    #[test]
    fn an_empty_result_says_so() {
        assert_eq!(text_of(json!({"type": "text", "text": ""})), "(no output)");
        assert_eq!(blocks(&[]), vec![text_block("(no output)")]);
    }
}
