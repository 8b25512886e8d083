//! A request as a script sees it: who speaks about what, at which turn. Read from the body of the Messages API, so
//! that a script behaves the same in this process and over HTTP.

use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::file::Match;

/// What is asked.
#[derive(Debug)]
pub(super) struct Ask {
    /// The same for every request of one conversation: a hash of the system prompt and the first user message.
    pub key: String,
    pub model: String,
    pub system: String,
    /// The first thing that the user said.
    pub prompt: String,
    /// The last thing that the user said, tool results apart.
    pub last: String,
    /// How many turns the model has had.
    pub turn: usize,
    /// What the tools of the turn before answered, as texts.
    pub tool_results: Vec<String>,
    pub tools: Vec<String>,
    pub tools_allowed: bool,
    /// A count that depends on the request alone: a quarter of its characters.
    pub input_tokens: u64,
}

impl Ask {
    /// Reads a body that obeys the rules of the API.
    pub fn read(body: &Value) -> Self {
        let messages = body.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let of = |role: &'static str| messages.iter().filter(move |message| message["role"] == role);
        let system = text_of(&body["system"]);
        let prompt = of("user").map(|message| text_of(&message["content"])).next().unwrap_or_default();
        let last = of("user").map(|message| text_of(&message["content"])).rfind(|text| !text.is_empty());
        let answered = messages.iter().rposition(|message| message["role"] == "assistant").map_or(0, |at| at + 1);
        let results = messages[answered..].iter().filter_map(|message| message["content"].as_array()).flatten();
        let tools: Vec<String> = body["tools"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|tool| tool["name"].as_str().map(str::to_owned))
            .collect();
        let counted: usize = ["system", "tools", "messages"].iter().map(|name| json_chars(&body[*name])).sum();
        Self {
            key: digest(&[&system, &prompt]),
            model: body["model"].as_str().unwrap_or_default().to_owned(),
            last: last.unwrap_or_default(),
            turn: of("assistant").count(),
            tool_results: results
                .filter(|block| block["type"] == "tool_result")
                .map(|block| text_of(&block["content"]))
                .collect(),
            tools_allowed: !tools.is_empty() && body["tool_choice"]["type"] != "none",
            tools,
            input_tokens: tokens(counted),
            system,
            prompt,
        }
    }

    /// Whether a rule applies.
    pub fn matches(&self, when: &Match) -> bool {
        let contains = |text: &str, parts: &[String]| parts.iter().all(|part| text.contains(part.as_str()));
        contains(&self.prompt, &when.prompt)
            && contains(&self.last, &when.last)
            && contains(&self.system, &when.system)
            && when.tool_result.iter().all(|part| self.tool_results.iter().any(|result| result.contains(part.as_str())))
            && when.tool.iter().all(|tool| self.tools.contains(tool))
            && when.model.as_ref().is_none_or(|model| *model == self.model)
            && when.turn.is_none_or(|turn| turn == self.turn)
            && when.tools_allowed.is_none_or(|allowed| allowed == self.tools_allowed)
    }

    /// The request in one sentence, for a person who wonders why no rule applied.
    pub fn summary(&self) -> String {
        format!(
            "turn {}, model {:?}, prompt {:?}, last said {:?}, tool results {:?}, tools {:?}{}",
            self.turn,
            self.model,
            short(&self.prompt),
            short(&self.last),
            self.tool_results.iter().map(|result| short(result)).collect::<Vec<_>>(),
            self.tools,
            if self.tools.is_empty() || self.tools_allowed { "" } else { " (not allowed)" },
        )
    }
}

/// The text of a message or of a tool result: itself, or its text blocks in lines.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts =
                blocks.iter().filter(|block| block["type"] == "text").filter_map(|block| block["text"].as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// The beginning of a text, for an error or the log of calls.
pub(super) fn short(text: &str) -> String {
    let mut chars = text.chars();
    let mut short: String = chars.by_ref().take(120).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

/// A name that depends on the parts alone: 24 hexadecimal digits.
pub(super) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    HEXLOWER.encode(&hash.finalize()[..12])
}

/// Characters as tokens: four make one.
pub(super) fn tokens(chars: usize) -> u64 {
    chars.div_ceil(4) as u64
}

fn json_chars(value: &Value) -> usize {
    if value.is_null() { 0 } else { value.to_string().chars().count() }
}
