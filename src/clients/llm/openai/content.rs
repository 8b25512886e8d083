//! Tool results on their way to a model of OpenAI's protocols: texts, and images and files where it takes them.

use serde_json::{Value, json};

use super::super::anthropic::content;
use crate::domain::message::ToolResult;

/// A part of what a tool answered.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    /// Words.
    Text(String),
    /// An image as a `data:` address.
    Image(String),
    /// A document: its name, and itself as a `data:` address.
    File(String, String),
}

/// The parts of one result. Images are described where the model sees none. A failure is told in words, because the
/// protocols have no place for it.
pub(super) fn parts(result: &ToolResult, images: bool) -> Vec<Part> {
    let mut parts = of_blocks(&result.content, images);
    if result.is_error {
        match parts.first_mut() {
            Some(Part::Text(text)) => text.insert_str(0, "Error: "),
            _ => parts.insert(0, Part::Text(String::from("Error:"))),
        }
    }
    parts
}

/// The parts of content blocks.
pub(super) fn of_blocks(blocks: &[Value], images: bool) -> Vec<Part> {
    content::blocks(blocks).iter().map(|block| part(block, images)).collect()
}

fn part(block: &Value, images: bool) -> Part {
    let source = &block["source"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (media_type, data) = (text(&source["media_type"]), source["data"].as_str().unwrap_or_default());
    match (block["type"].as_str(), source["type"].as_str()) {
        (Some("text"), _) => Part::Text(text(&block["text"])),
        (Some("image"), Some("base64")) if images => Part::Image(format!("data:{media_type};base64,{data}")),
        (Some("image"), Some("url")) if images => Part::Image(text(&source["url"])),
        (Some("image"), _) => {
            Part::Text(format!("[image, {media_type}, {} characters of base64, not shown]", data.len()))
        }
        (Some("document"), Some("url")) => Part::Text(format!("[document: {}]", text(&source["url"]))),
        (Some("document"), Some("text")) => Part::Text(data.to_owned()),
        (Some("document"), Some("base64")) if images => {
            let name = block["title"].as_str().unwrap_or("document.pdf").to_owned();
            Part::File(name, format!("data:{media_type};base64,{data}"))
        }
        (Some("document"), Some("base64")) => {
            Part::Text(format!("[document, {media_type}, {} characters of base64, not shown]", data.len()))
        }
        _ => Part::Text(block.to_string()),
    }
}

/// The parts of a result as text alone, and what stands for each of the others there.
pub(super) fn text_of(parts: &[Part]) -> String {
    let texts: Vec<&str> = parts
        .iter()
        .map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Image(_) => "[image, shown below]",
            Part::File(..) => "[document, shown below]",
        })
        .collect();
    texts.join("\n")
}

/// What of several results a message of the tool cannot carry in chat completions, as the parts of a user's message.
pub(super) fn shown_below<'a>(results: impl IntoIterator<Item = (&'a ToolResult, &'a [Part])>) -> Vec<Value> {
    let mut shown = Vec::new();
    for (result, parts) in results {
        let mut others = parts.iter().filter(|part| !matches!(part, Part::Text(_))).map(user_part).peekable();
        if others.peek().is_some() {
            shown.push(
                json!({"type": "text", "text": format!("From the result of the tool call {}:", result.tool_use_id)}),
            );
            shown.extend(others);
        }
    }
    shown
}

/// Parts as the content of a user's message in chat completions.
pub(super) fn user_content(parts: &[Part]) -> Vec<Value> {
    parts.iter().map(user_part).collect()
}

fn user_part(part: &Part) -> Value {
    match part {
        Part::Text(text) => json!({"type": "text", "text": text}),
        Part::Image(url) => json!({"type": "image_url", "image_url": {"url": url}}),
        Part::File(name, data) => json!({"type": "file", "file": {"filename": name, "file_data": data}}),
    }
}

/// The parts of a result as the output of a function call in responses.
pub(super) fn output(parts: &[Part]) -> Value {
    if parts.iter().all(|part| matches!(part, Part::Text(_))) {
        return Value::String(text_of(parts));
    }
    Value::Array(input(parts))
}

/// Parts as the content of an item of responses.
pub(super) fn input(parts: &[Part]) -> Vec<Value> {
    let parts = parts.iter().map(|part| match part {
        Part::Text(text) => json!({"type": "input_text", "text": text}),
        // The vendor's types demand `detail`; this is what it means to leave it away elsewhere.
        Part::Image(url) => json!({"type": "input_image", "image_url": url, "detail": "auto"}),
        Part::File(name, data) => json!({"type": "input_file", "filename": name, "file_data": data}),
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::message::text_block;

    fn result(is_error: bool) -> ToolResult {
        let image = json!({"type": "image", "data": "AAAA", "mimeType": "image/png"});
        ToolResult { tool_use_id: String::from("c1"), content: vec![text_block("a"), image], is_error }
    }

    #[test]
    fn an_image_reaches_a_model_that_sees_and_is_described_to_one_that_does_not() {
        let seen = parts(&result(false), true);
        assert_eq!(seen, [Part::Text(String::from("a")), Part::Image(String::from("data:image/png;base64,AAAA"))]);
        assert_eq!(text_of(&seen), "a\n[image, shown below]");
        assert_eq!(
            json!(shown_below([(&result(false), seen.as_slice())])),
            json!([
                {"type": "text", "text": "From the result of the tool call c1:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ])
        );
        assert_eq!(
            output(&seen),
            json!([
                {"type": "input_text", "text": "a"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
            ])
        );
        let blind = parts(&result(false), false);
        assert_eq!(output(&blind), json!("a\n[image, image/png, 4 characters of base64, not shown]"));
        assert!(shown_below([(&result(false), blind.as_slice())]).is_empty());
    }

    #[test]
    fn a_failure_is_told_in_words() {
        assert_eq!(text_of(&parts(&ToolResult::error("c", "no"), true)), "Error: no");
        assert_eq!(text_of(&parts(&result(true), false)).lines().next(), Some("Error: a"));
    }
}
