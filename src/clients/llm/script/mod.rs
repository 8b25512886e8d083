//! A model whose answers stand in a file. It speaks the Messages API over values; this process and an HTTP server use
//! it alike. `docs/scripted-model.md` describes the file.

mod ask;
mod check;
mod file;
pub mod openai;
mod reply;
mod stream;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value, json};

pub use file::ScriptError;

use ask::Ask;
use check::Api;
use file::Rule;

/// Conversations that are remembered; the oldest is forgotten first.
const MAX_CONVERSATIONS: usize = 10_000;
/// Requests whose moments are remembered; the oldest is forgotten first.
const MAX_ARRIVALS: usize = 10_000;

/// An error of the API.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// The type, such as `rate_limit_error`.
    pub kind: String,
    /// The words.
    pub message: String,
    /// For `retry-after`.
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// A request that breaks a rule.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { status: 400, kind: String::from("invalid_request_error"), message: message.into(), retry_after: None }
    }

    /// The body of the answer.
    pub fn body(&self, request_id: &str) -> Value {
        json!({
            "type": "error",
            "error": {"type": self.kind, "message": self.message},
            "request_id": request_id,
        })
    }
}

/// An answer that is ready but not given yet: wait for `delay`, then [`ScriptedModel::finish`] it.
#[derive(Debug)]
#[must_use = "a completion counts once it is finished"]
pub struct Pending {
    /// How long the model takes.
    pub delay: Duration,
    /// How long it takes from one event to the next where the answer is streamed.
    pub pace: Duration,
    /// Headers of the answer.
    pub headers: BTreeMap<String, String>,
    turn: Option<(String, usize)>,
    result: Result<Value, ApiError>,
}

/// How often the model was asked, and what for.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Calls {
    /// Requests, whatever became of them.
    pub requests: u64,
    /// Messages that were given: what a provider would bill.
    pub completions: u64,
    /// Errors that were given.
    pub errors: u64,
    /// Messages given for a turn that had been given before: what was paid for twice.
    pub repeated: u64,
    /// When the latest requests came, in ms since 1970.
    pub arrivals: VecDeque<u64>,
    /// The conversations by their key, the latest last.
    pub conversations: IndexMap<String, ConversationCalls>,
}

/// How often the model was asked in one conversation.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConversationCalls {
    /// The beginning of the first user message.
    pub prompt: String,
    /// Requests that obeyed the rules of the API.
    pub requests: u64,
    /// Messages given.
    pub completions: u64,
    /// Errors given.
    pub errors: u64,
    /// Messages given by turn, from 0.
    pub turns: BTreeMap<usize, u64>,
    #[serde(skip)]
    failures: HashMap<(usize, usize), u32>,
}

/// A model that answers by a script.
#[derive(Debug)]
pub struct ScriptedModel {
    rules: Vec<Rule>,
    pauses: bool,
    calls: Mutex<Calls>,
}

impl Pending {
    fn error(error: ApiError) -> Self {
        let headers = BTreeMap::new();
        Self { delay: Duration::ZERO, pace: Duration::ZERO, headers, turn: None, result: Err(error) }
    }

    /// The message; none where the answer is an error.
    pub fn message(&self) -> Option<&Value> {
        self.result.as_ref().ok()
    }

    /// The events of the answer as it is streamed; none where it is an error, which is never streamed.
    pub fn events(&self) -> Option<Vec<Value>> {
        self.result.as_ref().ok().map(stream::events)
    }
}

impl ScriptedModel {
    /// Reads a script in YAML or JSON.
    pub fn load(path: &Path) -> Result<Self, ScriptError> {
        file::load(path).map(Self::new)
    }

    /// Takes a script that is at hand; `name` stands for its file in errors.
    pub fn parse(text: &str, name: &str) -> Result<Self, ScriptError> {
        file::parse(text, name).map(Self::new)
    }

    fn new(rules: Vec<Rule>) -> Self {
        let replies = rules.iter().flat_map(|rule| rule.replies.all());
        let pauses = replies.into_iter().any(|reply| reply.stop_reason.as_deref() == Some("pause_turn"));
        Self { rules, pauses, calls: Mutex::default() }
    }

    /// Counts a request that is refused before it can be read.
    fn refuse(&self, error: ApiError) -> Pending {
        self.calls().arrived();
        Pending::error(error)
    }

    /// Decides the answer to a body of the Messages API that came with this `anthropic-version`.
    pub fn answer(&self, body: &Value, version: &str) -> Pending {
        self.answer_as(body, Api { version, pauses: self.pauses, translated: false })
    }

    fn answer_as(&self, body: &Value, api: Api<'_>) -> Pending {
        self.calls().arrived();
        if let Err(error) = check::request(body, api) {
            return Pending::error(error);
        }
        let ask = Ask::read(body);
        let pending = self.decide(&ask, body);
        Pending { turn: Some((ask.key, ask.turn)), ..pending }
    }

    fn decide(&self, ask: &Ask, body: &Value) -> Pending {
        let applying = self.rules.iter().enumerate().filter(|(_, rule)| ask.matches(&rule.when));
        let found = applying.filter_map(|(index, rule)| Some((index, rule, rule.replies.at(ask.turn)?))).next();
        let mut calls = self.calls();
        let conversation = calls.conversation(ask);
        conversation.requests += 1;
        let Some((index, rule, reply)) = found else {
            let message = format!("no rule of the script applies: {}", ask.summary());
            return Pending::error(ApiError::invalid(message));
        };
        let headers = reply.headers.clone();
        if let Some(fail) = &reply.fail_first {
            let failed = conversation.failures.entry((index, ask.turn)).or_default();
            if *failed < fail.times {
                *failed += 1;
                return Pending { delay: reply.delay, headers, ..Pending::error(reply::error(&fail.error())) };
            }
        }
        drop(calls);
        let result = match &reply.error {
            Some(error) => Err(reply::error(error)),
            None if !reply.tool_calls.is_empty() && !ask.tools.is_empty() && !ask.tools_allowed => {
                Err(ApiError::invalid(format!(
                    "{} calls tools where the request forbids them; add a rule with `tools_allowed: false`",
                    rule.name
                )))
            }
            None => reply::message(reply, ask, body),
        };
        Pending { delay: reply.delay, pace: reply.pace, headers, turn: None, result }
    }

    /// Gives the answer and counts it. An answer that nobody waited for is not given, and so not counted.
    pub fn finish(&self, pending: Pending) -> Result<Value, ApiError> {
        let mut calls = self.calls();
        let given = pending.result.is_ok();
        let mut again = false;
        if let Some((key, turn)) = pending.turn
            && let Some(conversation) = calls.conversations.get_mut(&key)
        {
            if given {
                conversation.completions += 1;
                let times = conversation.turns.entry(turn).or_default();
                *times += 1;
                again = *times > 1;
            } else {
                conversation.errors += 1;
            }
        }
        calls.completions += u64::from(given);
        calls.errors += u64::from(!given);
        calls.repeated += u64::from(again);
        pending.result
    }

    /// What was asked so far.
    pub fn log(&self) -> Calls {
        self.calls().clone()
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        // The counters are valid after every step, so a panic elsewhere leaves nothing half done.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    fn arrived(&mut self) {
        self.requests += 1;
        if self.arrivals.len() >= MAX_ARRIVALS {
            self.arrivals.pop_front();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.arrivals.push_back(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    }

    fn conversation(&mut self, ask: &Ask) -> &mut ConversationCalls {
        if self.conversations.len() >= MAX_CONVERSATIONS && !self.conversations.contains_key(&ask.key) {
            self.conversations.shift_remove_index(0);
        }
        self.conversations
            .entry(ask.key.clone())
            .or_insert_with(|| ConversationCalls { prompt: ask::short(&ask.prompt), ..ConversationCalls::default() })
    }
}

#[cfg(test)]
mod tests;
