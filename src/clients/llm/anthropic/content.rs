//! Content blocks of MCP as blocks of the Messages API: images and documents as themselves, as far as the API takes
//! them; everything else in words.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::domain::message::text_block;

/// Image types that the API takes; any other image is only described.
const IMAGE_TYPES: &[&str] = &["image/jpeg", "image/png", "image/gif", "image/webp"];
/// The type of documents that the API reads page by page.
const PDF: &str = "application/pdf";
/// Bytes of one image that the API takes.
const MAX_IMAGE: usize = 5 * 1024 * 1024;
/// Bytes of one document, so that a whole request stays below the 32 MB that the API takes.
const MAX_DOCUMENT: usize = 22 * 1024 * 1024;

/// Maps the blocks of one result. Never empty and without empty texts, because the API refuses both.
pub(in crate::clients::llm) fn blocks(content: &[Value]) -> Vec<Value> {
    let blocks = some_blocks(content);
    if blocks.is_empty() { vec![text_block("(no output)")] } else { blocks }
}

/// Maps blocks of which there may be none in the end.
pub(super) fn some_blocks(content: &[Value]) -> Vec<Value> {
    content.iter().filter_map(block).collect()
}

fn block(block: &Value) -> Option<Value> {
    let member = |name: &str| block.get(name).and_then(Value::as_str);
    match member("type") {
        Some("text") => {
            let text = member("text").unwrap_or_default();
            (!text.is_empty()).then(|| text_block(text))
        }
        Some(kind @ ("image" | "document")) => Some(match (member("data"), member("url")) {
            (None, Some(url)) if is_web(url) => json!({"type": kind, "source": {"type": "url", "url": url}}),
            (data, _) => binary(kind, data.unwrap_or_default(), member("mimeType"), member("title")),
        }),
        Some("audio") => Some(binary("audio", member("data").unwrap_or_default(), member("mimeType"), None)),
        Some("resource_link") => Some(text_block(link(block))),
        Some("resource") => Some(resource(block.get("resource").unwrap_or(&Value::Null))),
        Some(kind) => Some(text_block(format!("[content of the unknown type {kind:?}] {block}"))),
        None => Some(text_block(block.to_string())),
    }
}

/// Bytes as an image or a document, or else a description of them. What the bytes begin with goes before what is said
/// of them, because the API refuses what is neither.
fn binary(kind: &str, data: &str, media_type: Option<&str>, title: Option<&str>) -> Value {
    let data = without_whitespace(data);
    let shown = |reason: &str| {
        let media_type = media_type.unwrap_or("unknown type");
        text_block(format!("[{kind}, {media_type}, {} characters of base64, not shown{reason}]", data.len()))
    };
    if kind == "audio" {
        return shown("");
    }
    let media_type = begins_as(&data).or(media_type).unwrap_or_default();
    let limit = match media_type {
        PDF => MAX_DOCUMENT,
        image if IMAGE_TYPES.contains(&image) => MAX_IMAGE,
        _ => return shown(""),
    };
    if data.len() / 4 * 3 > limit {
        return shown(&format!(": it is larger than {} MB", limit >> 20));
    }
    if !is_base64(&data) {
        return shown(": it is not valid");
    }
    let kind = if media_type == PDF { "document" } else { "image" };
    let mut block =
        json!({"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data.as_ref()}});
    if let Some(title) = title.filter(|title| kind == "document" && !title.is_empty()) {
        block["title"] = json!(title);
    }
    block
}

/// What the first bytes say of the type.
fn begins_as(data: &str) -> Option<&'static str> {
    let bytes = STANDARD.decode(data.get(..16)?).ok()?;
    Some(match bytes.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [0xff, 0xd8, 0xff, ..] => "image/jpeg",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => "image/webp",
        [b'%', b'P', b'D', b'F', b'-', ..] => PDF,
        _ => return None,
    })
}

/// Encoders of mail wrap their lines, which the API does not take.
fn without_whitespace(data: &str) -> Cow<'_, str> {
    match data.bytes().any(|byte| byte.is_ascii_whitespace()) {
        true => Cow::Owned(data.split_ascii_whitespace().collect()),
        false => Cow::Borrowed(data),
    }
}

fn is_base64(data: &str) -> bool {
    let (body, end) = data.split_at(data.trim_end_matches('=').len());
    !body.is_empty()
        && data.len().is_multiple_of(4)
        && end.len() <= 2
        && body.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

fn is_web(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
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
    match (member("text"), member("blob")) {
        (Some(text), _) => text_block(format!("{}\n{text}", link(resource))),
        (None, Some(blob)) => {
            let title = member("title").or(member("name")).or(member("uri"));
            let shown = binary("resource", blob, member("mimeType"), title);
            if shown["type"] != "text" {
                return shown;
            }
            text_block(format!("{} ({} characters of base64, not shown)", link(resource), blob.len()))
        }
        (None, None) => text_block(link(resource)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginnings of files, as base64.
    const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAA";
    const PDF_DATA: &str = "JVBERi0xLjQKJcOkw7zDtsOf";

    fn text_of(block: Value) -> String {
        let blocks = blocks(&[block]);
        assert_eq!(blocks.len(), 1);
        blocks[0]["text"].as_str().expect("rendered as text").to_owned()
    }

    fn one(block: Value) -> Value {
        blocks(&[block]).remove(0)
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
    fn what_the_bytes_are_goes_before_what_is_said_of_them() {
        let image = one(json!({"type": "image", "data": PNG, "mimeType": "image/jpeg"}));
        assert_eq!(image["source"]["media_type"], "image/png");
        let untyped = one(json!({"type": "image", "data": PNG}));
        assert_eq!(untyped["source"]["media_type"], "image/png");
        let document = one(json!({"type": "image", "data": PDF_DATA, "mimeType": "image/png"}));
        assert_eq!((&document["type"], &document["source"]["media_type"]), (&json!("document"), &json!(PDF)));
    }

    #[test]
    fn documents_are_documents_with_their_titles() {
        let document =
            json!({"type": "resource", "resource": {"uri": "file:///a.pdf", "mimeType": PDF, "blob": PDF_DATA}});
        let source = json!({"type": "base64", "media_type": PDF, "data": PDF_DATA});
        assert_eq!(one(document), json!({"type": "document", "source": source, "title": "file:///a.pdf"}));
        let own = json!({"type": "document", "data": PDF_DATA, "mimeType": PDF, "title": "A"});
        assert_eq!(one(own), json!({"type": "document", "source": source, "title": "A"}));
        let at = json!({"type": "document", "url": "https://example.com/a.pdf"});
        assert_eq!(one(at)["source"], json!({"type": "url", "url": "https://example.com/a.pdf"}));
        assert!(text_of(json!({"type": "image", "url": "file:///etc/passwd"})).contains("not shown"));
    }

    #[test]
    fn what_is_too_large_or_no_base64_is_described() {
        let large = PNG.to_owned() + &"A".repeat(7_000_000);
        assert!(text_of(json!({"type": "image", "data": large, "mimeType": "image/png"})).contains("larger than 5 MB"));
        for broken in ["AAA", "A", "====", "AA=A", "AA!=", ""] {
            let text = text_of(json!({"type": "image", "data": broken, "mimeType": "image/png"}));
            assert!(text.contains("not valid"), "{broken}: {text}");
        }
        let wrapped = format!("{}\r\n{}", &PNG[..12], &PNG[12..]);
        let image = one(json!({"type": "image", "data": wrapped, "mimeType": "image/png"}));
        assert_eq!(image["source"]["data"], PNG);
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
        let other = json!({"type": "resource", "resource": {"uri": "u:2", "mimeType": "x/y", "blob": "AAAA"}});
        assert_eq!(text_of(other), "[resource: u:2, x/y] (4 characters of base64, not shown)");
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
