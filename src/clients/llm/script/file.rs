//! The file of a scripted model: rules in YAML or JSON, checked when they are loaded so that a mistake is told with
//! its line and never surfaces in the middle of a conversation.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

/// Why a script cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("cannot read the script {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The script says something that makes no sense.
    #[error("{path}:{line}:{column}: {problem}")]
    Invalid {
        /// The file.
        path: String,
        /// The line, from 1.
        line: u64,
        /// The column, from 1.
        column: u64,
        /// What is wrong.
        problem: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Vec<Spanned<RawRule>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, rename = "match")]
    when: Match,
    #[serde(default)]
    reply: Option<Reply>,
    #[serde(default)]
    replies: Vec<Reply>,
}

/// One rule: when it applies and what it answers.
#[derive(Debug)]
pub(super) struct Rule {
    pub name: String,
    pub when: Match,
    pub replies: Replies,
}

/// What a rule answers.
#[derive(Debug)]
pub(super) enum Replies {
    /// The same at every turn.
    Always(Box<Reply>),
    /// One a turn of the conversation; the rule does not apply after the last.
    Turns(Vec<Reply>),
}

impl Replies {
    /// The reply of a turn, counted from 0.
    pub fn at(&self, turn: usize) -> Option<&Reply> {
        match self {
            Self::Always(reply) => Some(reply),
            Self::Turns(replies) => replies.get(turn),
        }
    }

    pub fn all(&self) -> &[Reply] {
        match self {
            Self::Always(reply) => std::slice::from_ref(reply),
            Self::Turns(replies) => replies,
        }
    }
}

/// When a rule applies: every member that is set must hold. Texts hold if they are contained.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Match {
    /// In the first thing that the user said.
    #[serde(deserialize_with = "texts")]
    pub prompt: Vec<String>,
    /// In the last thing that the user said, tool results apart.
    #[serde(deserialize_with = "texts")]
    pub last: Vec<String>,
    /// In the system prompt.
    #[serde(deserialize_with = "texts")]
    pub system: Vec<String>,
    /// In the results of the tools that the turn before asked for.
    #[serde(deserialize_with = "texts")]
    pub tool_result: Vec<String>,
    /// Names of tools that are offered.
    #[serde(deserialize_with = "texts")]
    pub tool: Vec<String>,
    /// The model's name, as a whole.
    pub model: Option<String>,
    /// How many turns the model has had already.
    pub turn: Option<usize>,
    /// Whether the model may use its tools.
    pub tools_allowed: Option<bool>,
}

/// One answer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Reply {
    pub thinking: Option<String>,
    pub text: Option<String>,
    pub json: Option<Value>,
    pub tool_calls: Vec<ToolCall>,
    pub content: Vec<Value>,
    pub stop_reason: Option<String>,
    pub stop_sequence: Option<String>,
    pub stop_details: Option<Value>,
    pub usage: Option<UsageFile>,
    #[serde(deserialize_with = "duration")]
    pub delay: Duration,
    /// The time between two events of an answer that is streamed.
    #[serde(deserialize_with = "duration")]
    pub pace: Duration,
    /// Headers of the answer, be it an error.
    pub headers: BTreeMap<String, String>,
    pub error: Option<ErrorReply>,
    pub fail_first: Option<FailFirst>,
}

/// A tool that the scripted model asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ToolCall {
    pub name: String,
    #[serde(default)]
    pub input: Map<String, Value>,
}

/// Tokens in place of the counted ones; `input_tokens` is all of the input, cached tokens included.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UsageFile {
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cache_read_tokens: u64,
    pub cache_write_tokens: u64,
}

/// An error in place of an answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ErrorReply {
    pub status: u16,
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub message: Option<String>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub retry_after: Option<Duration>,
}

/// An error for the first calls of a turn, counted for each conversation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailFirst {
    pub times: u32,
    #[serde(default = "overloaded")]
    pub status: u16,
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub message: Option<String>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub retry_after: Option<Duration>,
}

impl FailFirst {
    pub fn error(&self) -> ErrorReply {
        ErrorReply {
            status: self.status,
            kind: self.kind.clone(),
            message: self.message.clone(),
            retry_after: self.retry_after,
        }
    }
}

fn overloaded() -> u16 {
    529
}

/// Reads the file.
pub(super) fn load(path: &Path) -> Result<Vec<Rule>, ScriptError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| ScriptError::Read { path: name.clone(), source })?;
    parse(&text, &name)
}

/// Reads a script that is at hand; `path` is its name in errors.
pub(super) fn parse(text: &str, path: &str) -> Result<Vec<Rule>, ScriptError> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        ScriptError::Invalid { path: path.to_owned(), line, column, problem: error.to_string() }
    })?;
    let mut rules = Vec::with_capacity(file.rules.len());
    for (index, rule) in file.rules.into_iter().enumerate() {
        let at = rule.referenced;
        let invalid = |problem: String| ScriptError::Invalid {
            path: path.to_owned(),
            line: at.line(),
            column: at.column(),
            problem,
        };
        rules.push(check(rule.value, index).map_err(invalid)?);
    }
    if rules.is_empty() {
        let problem = String::from("`rules` is empty");
        return Err(ScriptError::Invalid { path: path.to_owned(), line: 1, column: 1, problem });
    }
    Ok(rules)
}

fn check(rule: RawRule, index: usize) -> Result<Rule, String> {
    let name = rule.name.unwrap_or_else(|| format!("rule {}", index + 1));
    let replies = match (rule.reply, rule.replies) {
        (Some(reply), replies) if replies.is_empty() => Replies::Always(Box::new(reply)),
        (None, replies) if !replies.is_empty() => Replies::Turns(replies),
        (Some(_), _) => return Err(format!("{name} has both `reply` and `replies`; keep one")),
        (None, _) => return Err(format!("{name} has neither `reply` nor `replies`")),
    };
    if rule.when.turn.is_some() && matches!(replies, Replies::Turns(_)) {
        return Err(format!("{name} matches one `turn` but has `replies` for several; use `reply`"));
    }
    for (turn, reply) in replies.all().iter().enumerate() {
        let place = match &replies {
            Replies::Always(_) => format!("the reply of {name}"),
            Replies::Turns(_) => format!("reply {} of {name}", turn + 1),
        };
        reply.check().map_err(|problem| format!("{place} {problem}"))?;
    }
    Ok(Rule { name, when: rule.when, replies })
}

impl Reply {
    fn check(&self) -> Result<(), String> {
        let says = self.text.is_some()
            || self.json.is_some()
            || self.thinking.is_some()
            || !self.tool_calls.is_empty()
            || !self.content.is_empty()
            || self.stop_reason.is_some();
        match &self.error {
            Some(_) if says => return Err(String::from("has both an `error` and an answer")),
            None if !says => return Err(String::from("says nothing; give `text`, `json`, `tool_calls` or `error`")),
            _ => {}
        }
        if self.text.is_some() && self.json.is_some() {
            return Err(String::from("has both `text` and `json`; keep one"));
        }
        let statuses =
            self.error.iter().map(|error| error.status).chain(self.fail_first.iter().map(|fail| fail.status));
        if let Some(status) = statuses.into_iter().find(|status| !(400..=599).contains(status)) {
            return Err(format!("has the status {status}; an error is 400 to 599"));
        }
        let token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let header = self.headers.iter().find(|(name, value)| {
            name.is_empty() || !name.bytes().all(token) || !value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        });
        if let Some((name, _)) = header {
            return Err(format!("has a header that cannot be sent: {name:?}"));
        }
        if let Some(block) = self.content.iter().find(|block| block.get("type").and_then(Value::as_str).is_none()) {
            return Err(format!("has a block without a `type` in `content`: {block}"));
        }
        let environment = super::reply::environment();
        for text in self.templates() {
            environment.template_from_str(text).map_err(|error| format!("has a broken template: {error}"))?;
        }
        Ok(())
    }

    fn templates(&self) -> Vec<&str> {
        fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::String(text) => found.push(text),
                Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
                Value::Object(members) => members.values().for_each(|member| strings(member, found)),
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
        let mut found: Vec<&str> = self.text.as_deref().into_iter().chain(self.thinking.as_deref()).collect();
        self.json.iter().for_each(|json| strings(json, &mut found));
        self.tool_calls.iter().flat_map(|call| call.input.values()).for_each(|value| strings(value, &mut found));
        found
    }
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let wrong = || serde::de::Error::custom("expected a text or a list of texts");
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(vec![text]),
        Value::Array(items) => {
            items.into_iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let wrong = |value: &Value| serde::de::Error::custom(format!("{value} is no duration; use \"200ms\" or seconds"));
    let value = Value::deserialize(deserializer)?;
    match &value {
        Value::String(text) => humantime::parse_duration(text).map_err(|_| wrong(&value)),
        Value::Number(number) => {
            number.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| wrong(&value))
        }
        _ => Err(wrong(&value)),
    }
}

fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text, "turns.yaml").expect_err("not a script").to_string()
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml =
            parse("rules:\n  - match: {prompt: [a, b]}\n    reply: {text: hi, delay: 200ms}\n", "y").expect("YAML");
        let json = parse(r#"{"rules":[{"match":{"prompt":["a","b"]},"reply":{"text":"hi","delay":0.2}}]}"#, "j");
        for rules in [yaml, json.expect("JSON")] {
            assert_eq!(rules[0].when.prompt, ["a", "b"]);
            assert_eq!(rules[0].replies.at(7).expect("always").delay, Duration::from_millis(200));
        }
    }

    #[test]
    fn a_mistake_is_told_with_file_and_line() {
        let unknown = refused("rules:\n  - name: a\n    reply: {text: hi}\n  - replys: []\n");
        assert!(unknown.starts_with("turns.yaml:4:") && unknown.contains("replys"), "{unknown}");
        let both =
            refused("rules:\n  - reply: {text: a}\n  - name: two\n    reply: {text: a}\n    replies: [{text: b}]\n");
        assert!(both.starts_with("turns.yaml:3:") && both.contains("two has both"), "{both}");
        let syntax = refused("rules:\n  - reply: {text: \"open\n");
        assert!(syntax.starts_with("turns.yaml:"), "{syntax}");
        let delay = refused("rules:\n  - reply:\n      text: a\n      delay: soon\n");
        assert!(delay.starts_with("turns.yaml:4:") && delay.contains("soon"), "{delay}");
    }

    #[test]
    fn a_reply_that_makes_no_sense_is_refused() {
        assert!(refused("rules: [{reply: {delay: 1s}}]").contains("says nothing"));
        assert!(refused("rules: [{reply: {text: a, error: {status: 500}}}]").contains("both an `error`"));
        assert!(refused("rules: [{reply: {error: {status: 200}}}]").contains("400 to 599"));
        assert!(refused("rules: [{reply: {text: 'a {{ b'}}]").contains("broken template"));
        assert!(refused("rules: [{match: {turn: 1}, replies: [{text: a}]}]").contains("use `reply`"));
        assert!(refused("rules: [{reply: {text: a, headers: {'a b': c}}}]").contains("cannot be sent"));
        assert!(refused("rules: [{}]").contains("neither"));
        assert!(refused("rules: []").contains("empty"));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load(Path::new("no/such/script.yaml")).expect_err("missing").to_string();
        assert!(error.contains("no/such/script.yaml"), "{error}");
    }
}
