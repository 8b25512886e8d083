//! A node's configuration, its mode, and the remarks about members that nobody knows.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::domain::outcome::Failure;
use crate::domain::wait::OnExpiry;

/// What kind of work a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A model with tools, in a loop.
    Agent,
    /// One completion.
    Llm,
    /// One direct tool call.
    Tool,
}

impl Mode {
    /// The mode as events, metrics and logs bear it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Llm => "llm",
            Self::Tool => "tool",
        }
    }
}

/// A node's configuration as it stands in an item or in the graph.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct NodeConfig {
    /// `agent`, `llm` or `tool` must agree with the members; any other value means nothing.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The same under the name that graphs use.
    pub node_type: Option<String>,
    /// agent: what to do (template).
    pub task: Option<String>,
    /// agent: the system prompt (template).
    pub system: Option<String>,
    /// agent: tool names, `server/name`, `server/*`, `*`.
    pub tools: Option<Vec<String>>,
    /// agent: turns of the model at the most.
    pub max_iterations: Option<NonZeroU32>,
    /// The model and how it is called.
    pub llm_config: Option<LlmConfig>,
    /// Content blocks that the model is shown with the task (templates in strings at any depth).
    pub attachments: Option<Value>,
    /// The JSON Schema that the answer must satisfy.
    pub output_schema: Option<Value>,
    /// agent, llm: the conversation of the graph that the node goes on with and leaves behind.
    pub session: Option<String>,
    /// Budgets.
    pub limits: Limits,
    /// agent, tool: calls that want a person's word first: names of tools, or objects of `tool` and `when`.
    pub approve: Vec<Value>,
    /// How long such a word is waited for.
    pub wait: WaitOverride,
    /// tool: the tool.
    pub tool_name: Option<String>,
    /// tool: its arguments (templates in strings at any depth).
    #[serde(alias = "parameters")]
    pub tool_params: Option<Map<String, Value>>,
    /// tool: let a model read the arguments out of a text.
    pub extract_params: Option<ExtractParams>,
    /// How long the node may take.
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
    /// How often a step is tried.
    pub retry: RetryOverride,
    /// Templates rendered first, then usable as inputs.
    pub input_mapping: Map<String, Value>,
    /// JMESPath over the output, stored beside it.
    pub output_mapping: Map<String, Value>,
}

/// The model of a node and how it is called.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct LlmConfig {
    /// Providers by their configured names, each perhaps with a model as `name/model`: the next is asked when one is
    /// overloaded or away. Empty means the worker's default.
    #[serde(deserialize_with = "one_or_several")]
    pub provider: Vec<String>,
    /// The model, as the provider names it.
    pub model: Option<String>,
    /// llm: the prompt (template).
    pub prompt: Option<String>,
    /// llm: the system prompt (template).
    #[serde(alias = "system_prompt")]
    pub system: Option<String>,
    /// Content blocks that the model is shown with the prompt (templates in strings at any depth).
    pub attachments: Option<Value>,
    /// Tokens that may be written, thinking included.
    pub max_tokens: Option<NonZeroU32>,
    /// Sampling, where the provider still takes it.
    pub temperature: Option<f64>,
    /// Sampling, where the provider still takes it.
    pub top_p: Option<f64>,
    /// Texts that end the answer.
    #[serde(alias = "stop")]
    pub stop_sequences: Vec<String>,
    /// How hard the model tries, in the provider's words.
    pub effort: Option<String>,
    /// Whether the provider holds the model to the schemas of the tools, where it can.
    pub strict_tools: bool,
    /// The provider's own thinking settings, sent as they are.
    pub thinking: Option<Value>,
    /// The JSON Schema that the answer must satisfy.
    pub output_schema: Option<Value>,
    /// Members added to the request body as they are.
    pub extra: Map<String, Value>,
}

impl LlmConfig {
    /// Who is asked with these settings: the provider, and the model where one is chosen.
    pub fn author(&self) -> String {
        let provider = self.provider.first().map_or("", String::as_str);
        format!("{provider}/{}", self.model.as_deref().unwrap_or_default())
    }
}

/// Budgets of a node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Tool calls at the most.
    pub max_tool_calls: Option<u32>,
    /// Tokens read and written at the most.
    pub max_tokens: Option<u64>,
    /// Money at the most, in US dollars.
    pub max_cost_usd: Option<f64>,
    /// How long the node may take.
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
}

/// A node's own settings of waiting; what is absent is the worker's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WaitOverride {
    /// How long an answer is waited for.
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
    /// What follows when there is none by then.
    pub on_expiry: Option<OnExpiry>,
}

/// A node's own retry settings; what is absent is the worker's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RetryOverride {
    /// Attempts in all.
    pub max_attempts: Option<NonZeroU32>,
    /// Upper bound of the first wait.
    #[serde(deserialize_with = "duration")]
    pub initial: Option<Duration>,
    /// Upper bound of every wait.
    #[serde(deserialize_with = "duration")]
    pub max: Option<Duration>,
}

/// Lets a model read a tool's arguments out of a text.
#[derive(Debug, Clone, Deserialize)]
pub struct ExtractParams {
    /// The text (template).
    pub from: String,
    /// The model; absent means the node's `llm_config` or the worker's default.
    #[serde(default)]
    pub llm_config: Option<LlmConfig>,
}

/// A text, or a list of texts.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "`provider` must be a name or a list of names")]
    enum Names {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Option::<Names>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Names::One(name)) => vec![name],
        Some(Names::Several(names)) => names,
    })
}

/// Seconds as a number, or a humantime text such as `"1m 30s"`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match Option::<Value>::deserialize(deserializer)? {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(seconds)) => {
            let seconds = seconds.as_f64().unwrap_or(-1.0);
            Duration::try_from_secs_f64(seconds).map(Some).map_err(|_| {
                serde::de::Error::custom(format!("{seconds} is not a duration; use seconds or a text such as \"90s\""))
            })
        }
        Some(Value::String(text)) => {
            let parsed = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            match parsed {
                Some(parsed) => Ok(Some(parsed)),
                None => humantime::parse_duration(&text).map(Some).map_err(|error| {
                    serde::de::Error::custom(format!("{text:?} is not a duration ({error}); use seconds or \"90s\""))
                }),
            }
        }
        Some(other) => Err(serde::de::Error::custom(format!("{other} is not a duration; use seconds or \"90s\""))),
    }
}

const NODE_MEMBERS: &[&str] = &[
    "type",
    "node_type",
    "task",
    "system",
    "tools",
    "max_iterations",
    "attachments",
    "llm_config",
    "output_schema",
    "session",
    "limits",
    "approve",
    "wait",
    "tool_name",
    "tool_params",
    "parameters",
    "extract_params",
    "timeout",
    "retry",
    "input_mapping",
    "output_mapping",
];
const LLM_MEMBERS: &[&str] = &[
    "provider",
    "model",
    "prompt",
    "system",
    "system_prompt",
    "attachments",
    "max_tokens",
    "temperature",
    "top_p",
    "stop_sequences",
    "stop",
    "effort",
    "thinking",
    "strict_tools",
    "output_schema",
    "extra",
];
const LIMIT_MEMBERS: &[&str] = &["max_tool_calls", "max_tokens", "max_cost_usd", "timeout"];
const WAIT_MEMBERS: &[&str] = &["timeout", "on_expiry"];
const RETRY_MEMBERS: &[&str] = &["max_attempts", "initial", "max"];
const EXTRACT_MEMBERS: &[&str] = &["from", "llm_config"];

impl NodeConfig {
    /// Reads a configuration and remarks on members that nobody knows, each with the nearest known name.
    pub fn parse(json: &str) -> Result<(Self, Vec<String>), Failure> {
        let value: Value = serde_json::from_str(json).map_err(|error| {
            Failure::configuration("invalid_config", format!("the node's `config` is not JSON: {error}"))
        })?;
        let Value::Object(members) = &value else {
            return Err(Failure::configuration("invalid_config", "the node's `config` is not a JSON object"));
        };
        let mut warnings = Vec::new();
        unknown_members(members, "", NODE_MEMBERS, &mut warnings);
        for (path, known) in
            [("llm_config", LLM_MEMBERS), ("limits", LIMIT_MEMBERS), ("retry", RETRY_MEMBERS), ("wait", WAIT_MEMBERS)]
        {
            if let Some(Value::Object(inner)) = members.get(path) {
                unknown_members(inner, path, known, &mut warnings);
            }
        }
        if let Some(Value::Object(extract)) = members.get("extract_params") {
            unknown_members(extract, "extract_params", EXTRACT_MEMBERS, &mut warnings);
            if let Some(Value::Object(inner)) = extract.get("llm_config") {
                unknown_members(inner, "extract_params.llm_config", LLM_MEMBERS, &mut warnings);
            }
        }
        let members: Map<String, Value> = match value {
            Value::Object(members) => members.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            _ => unreachable!("checked above"),
        };
        let mut config: Self = serde_json::from_value(Value::Object(members)).map_err(|error| {
            Failure::configuration(
                "invalid_config",
                format!("the node's `config` has a member of the wrong shape: {error}"),
            )
        })?;
        if config.kind.is_none() {
            config.kind.clone_from(&config.node_type);
        }
        Ok((config, warnings))
    }

    /// Which mode the members mean, or a failure that names the members that contradict each other.
    pub fn mode(&self) -> Result<Mode, Failure> {
        let llm = self.llm_config.is_some();
        let tools = self.tools.as_ref().is_some_and(|tools| !tools.is_empty());
        let tool = self.tool_name.as_ref().is_some_and(|name| !name.is_empty());
        let extract = self.extract_params.is_some();
        let wrong = |message: &str| Err(Failure::configuration("ambiguous_mode", message));
        let mode = match (llm, tools, tool) {
            (_, _, false) if extract => {
                return wrong("`extract_params` needs `tool_name`: it reads the arguments of that tool");
            }
            (true, true, false) => Mode::Agent,
            (true, false, false) => Mode::Llm,
            (false, false, true) => Mode::Tool,
            (true, false, true) if extract => Mode::Tool,
            (_, true, true) => {
                return wrong(
                    "both `tools` and `tool_name` are set; remove `tools` for a direct call, or `tool_name` for an agent",
                );
            }
            (true, false, true) => {
                return wrong(
                    "both `llm_config` and `tool_name` are set; remove one, or add `extract_params` to let the model read the arguments",
                );
            }
            (false, true, false) => return wrong("`tools` is set without `llm_config`; an agent needs a model"),
            (false, false, false) => {
                return wrong(
                    "none of `llm_config` and `tool_name` is set; give `llm_config` (with `tools` for an agent) or `tool_name`",
                );
            }
        };
        match self.kind.as_deref() {
            Some(kind @ ("agent" | "llm" | "tool")) if kind != mode.as_str() => Err(Failure::configuration(
                "contradicting_type",
                format!(
                    "`type` is {kind:?} but the members `llm_config`, `tools` and `tool_name` mean {:?}",
                    mode.as_str()
                ),
            )),
            _ => Ok(mode),
        }
    }

    /// The node's own limit of time: the earlier of `timeout` and `limits.timeout`.
    pub fn time_limit(&self) -> Option<Duration> {
        match (self.timeout, self.limits.timeout) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

fn unknown_members(members: &Map<String, Value>, path: &str, known: &[&str], warnings: &mut Vec<String>) {
    for name in members.keys().filter(|name| !known.contains(&name.as_str())) {
        let full = if path.is_empty() { format!("config.{name}") } else { format!("config.{path}.{name}") };
        let hint =
            nearest(name, known.iter().copied()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        warnings.push(format!("unknown member `{full}` was ignored{hint}"));
    }
}

/// The known name that is nearest to `name`, if any is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(json: &str) -> Result<Mode, Failure> {
        NodeConfig::parse(json).expect("well formed").0.mode()
    }

    #[test]
    fn the_members_decide_the_mode() {
        assert_eq!(mode(r#"{"llm_config":{},"tools":["a"],"task":"t"}"#), Ok(Mode::Agent));
        assert_eq!(mode(r#"{"llm_config":{"prompt":"p"}}"#), Ok(Mode::Llm));
        assert_eq!(mode(r#"{"llm_config":{"prompt":"p"},"tools":[]}"#), Ok(Mode::Llm));
        assert_eq!(mode(r#"{"tool_name":"t"}"#), Ok(Mode::Tool));
        assert_eq!(mode(r#"{"tool_name":"t","extract_params":{"from":"x"},"llm_config":{}}"#), Ok(Mode::Tool));
    }

    #[test]
    fn every_other_combination_names_the_members() {
        for (json, word) in [
            ("{}", "`tool_name`"),
            (r#"{"tools":["a"]}"#, "`llm_config`"),
            (r#"{"tools":["a"],"tool_name":"t"}"#, "`tools`"),
            (r#"{"llm_config":{},"tools":["a"],"tool_name":"t"}"#, "`tool_name`"),
            (r#"{"llm_config":{},"tool_name":"t"}"#, "`extract_params`"),
            (r#"{"llm_config":{},"extract_params":{"from":"x"}}"#, "`extract_params`"),
        ] {
            let failure = mode(json).expect_err(json);
            assert!(failure.message.contains(word), "{json}: {}", failure.message);
        }
    }

    #[test]
    fn a_type_that_contradicts_is_refused_and_other_types_mean_nothing() {
        assert_eq!(mode(r#"{"type":"agent","tool_name":"t"}"#).expect_err("contradiction").code, "contradicting_type");
        assert_eq!(
            mode(r#"{"node_type":"llm","tool_name":"t"}"#).expect_err("contradiction").code,
            "contradicting_type"
        );
        assert_eq!(mode(r#"{"type":"executor","tool_name":"t"}"#), Ok(Mode::Tool));
    }

    #[test]
    fn unknown_members_come_back_with_the_nearest_known_name() {
        let (_, warnings) = NodeConfig::parse(r#"{"tool_name":"t","tool_parms":{},"llm_config":{"temprature":1}}"#)
            .expect("well formed");
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("did you mean `tool_params`"), "{warnings:?}");
        assert!(warnings[1].contains("did you mean `temperature`"), "{warnings:?}");
    }

    #[test]
    fn a_timeout_is_seconds_or_humantime_and_the_earlier_wins() {
        let limit = |json| NodeConfig::parse(json).map(|(config, _)| config.time_limit());
        assert_eq!(limit(r#"{"timeout":1.5}"#), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(limit(r#"{"timeout":"2m","limits":{"timeout":"90"}}"#), Ok(Some(Duration::from_secs(90))));
        assert!(limit(r#"{"timeout":"soon"}"#).expect_err("no duration").message.contains("soon"));
        assert!(limit(r#"{"timeout":-1}"#).is_err());
    }
}
