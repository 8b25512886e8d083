//! Whether a call may be made: the rules that want a person's word, the word where it was given, and the question where
//! it was not. Waiting itself is [`Waits`](super::waits::Waits)'s.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::config::WaitConfig;
use crate::domain::approve::Rules;
use crate::domain::journal::CallId;
use crate::domain::node::NodeConfig;
use crate::domain::outcome::{Category, Failure};
use crate::domain::tool::{Arguments, ToolSpec, ToolTarget};
use crate::domain::wait::{Action, Answer, Ask, Asked, AskedBy, Kind, OnExpiry, Said};
use crate::modes::execution::{CallSite, Execution};
use crate::modes::logbook::mismatch;
use crate::ports::Ports;

/// What a call's question is named by, beside its place.
const APPROVAL: &str = "approval";
/// Bytes of a tool's schema that a question repeats; of a longer one only that arguments are an object.
const SCHEMA_BYTES: usize = 16 * 1024;

/// The code of a node whose question nobody answered.
pub(super) const WAIT_EXPIRED: &str = "wait_expired";

/// Characters of changed arguments that the model is shown with the result.
const SHOWN_CHARS: usize = 2000;

/// How a node asks and waits.
#[derive(Debug)]
pub(super) struct Approvals {
    /// The node's own rules; the worker's stand in the settings.
    pub rules: Rules,
    timeout: Duration,
    on_expiry: OnExpiry,
}

impl Approvals {
    /// Reads what a node says about it.
    pub fn compile(config: &NodeConfig, wait: &WaitConfig) -> Result<Self, Failure> {
        Ok(Self {
            rules: Rules::of_node(&config.approve)?,
            timeout: config.wait.timeout.unwrap_or(wait.timeout),
            on_expiry: config.wait.on_expiry.unwrap_or(wait.on_expiry),
        })
    }
}

/// Whether a call may be made.
#[derive(Debug)]
pub(super) enum Gate {
    /// Nobody has anything against it.
    Open(Permission),
    /// Somebody has.
    Refused(Refused),
    /// That has to be decided first.
    Ask(Box<Ask>),
}

/// What somebody said who agreed; nothing where nobody was asked.
#[derive(Debug, Default)]
pub(super) struct Permission {
    /// The arguments that are to be used instead.
    pub arguments: Option<Arguments>,
    /// What the model should know about it.
    pub words: Option<String>,
}

/// What somebody said who did not agree.
#[derive(Debug)]
pub(super) struct Refused {
    said: Said,
}

impl Refused {
    /// The refusal in words for a model.
    pub fn words(&self, target: &ToolTarget) -> String {
        let note = self.said.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
        format!("Not run: the call of `{target}` was refused by {}{note}.", self.said.whom())
    }

    /// The refusal as the end of a node that does nothing else.
    pub fn failure(&self, target: &ToolTarget) -> Failure {
        let note = self.said.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
        let message = format!("the call of the tool `{target}` was refused by {}{note}", self.said.whom());
        Failure::permanent("call_refused", message)
    }
}

impl<P: Ports> Execution<'_, P> {
    /// Whether any call could need a word: without rules and questions nothing has to be looked at.
    pub fn may_ask(&self) -> bool {
        !self.approvals.rules.is_empty() || !self.settings.approve.is_empty() || self.logbook.has_asked()
    }

    /// Whether a call with these arguments may be made. `begun`: it was allowed before, so nothing is asked any more.
    pub fn gate(
        &self,
        call: CallId,
        spec: &ToolSpec,
        schema: &Value,
        arguments: &Arguments,
        begun: bool,
    ) -> Result<Gate, Failure> {
        let wait_id = self.wait_id(CallSite::Tool(call), APPROVAL);
        match self.logbook.asked(&wait_id) {
            // What somebody decides is decided of this very call.
            Some(Asked { ask, .. })
                if !begun
                    && (ask.tool != Some(spec.target.to_string()) || ask.arguments.as_ref() != Some(arguments)) =>
            {
                Err(mismatch(&format!("the call of `{}` that was asked about is another one by now", spec.target)))
            }
            // The moment at which this entry was added is what counts: the timer brings a node back no earlier.
            Some(asked) => match asked.answer(self.delivery.added_at()) {
                Answer::Said(said) => decided(&asked.ask, said),
                Answer::Open => Ok(Gate::Ask(Box::new(asked.ask))),
                Answer::TooLate => Err(too_late(&asked.ask)),
            },
            None if begun => Ok(Gate::Open(Permission::default())),
            None => {
                let workers = self.settings.approve.wanting(spec, arguments);
                let guarded = workers.is_some();
                let Some(rule) = workers.or_else(|| self.approvals.rules.wanting(spec, arguments)) else {
                    return Ok(Gate::Open(Permission::default()));
                };
                let last_words = self.ledger.partial.borrow().as_ref().map(|partial| partial.text.clone());
                let ask = Ask {
                    message: format!("May the tool `{}` be called with these arguments?", spec.target),
                    schema: edited_schema(schema),
                    tool: Some(spec.target.to_string()),
                    arguments: Some(arguments.clone()),
                    last_words: last_words.filter(|words| !words.is_empty()),
                    on_expiry: self.on_expiry(guarded, &spec.target),
                    ..self.new_ask(CallSite::Tool(call), APPROVAL, Kind::Approval, AskedBy::Rule { rule })
                };
                Ok(Gate::Ask(Box::new(ask)))
            }
        }
    }

    /// What follows if nobody answers. A node cannot agree by itself to a call that the worker wants a word on.
    fn on_expiry(&self, guarded: bool, target: &ToolTarget) -> OnExpiry {
        let (nodes, workers) = (self.approvals.on_expiry, self.settings.wait.on_expiry);
        if guarded && nodes == OnExpiry::Accept && workers != OnExpiry::Accept {
            self.ledger.warn([format!(
                "`wait.on_expiry` of the node does not hold for the call of `{target}`: the worker wants a word on it"
            )]);
            return workers;
        }
        nodes
    }

    /// What somebody who agreed said of a call that was begun.
    pub fn agreed(&self, call: CallId) -> Permission {
        let asked = self.logbook.asked(&self.wait_id(CallSite::Tool(call), APPROVAL));
        match asked.map(|asked| (asked.answer(self.delivery.added_at()), asked)) {
            Some((Answer::Said(said), asked)) => match decided(&asked.ask, said) {
                Ok(Gate::Open(permission)) => permission,
                // It was begun, so somebody had agreed.
                Ok(Gate::Refused(_) | Gate::Ask(_)) | Err(_) => Permission::default(),
            },
            Some((Answer::Open | Answer::TooLate, _)) | None => Permission::default(),
        }
    }

    /// A question that has only its name, its time and its author yet.
    pub fn new_ask(&self, site: CallSite, what: &str, kind: Kind, asked_by: AskedBy) -> Ask {
        let item = &self.delivery.item;
        // In whole milliseconds, as the server reckons: in between the two would not agree on whether it is too late.
        let whole = |moment: Timestamp| Timestamp::from_millisecond(moment.as_millisecond()).unwrap_or(moment);
        // A clock that is behind the server's would leave less time than was meant.
        let asked_at = whole(Timestamp::now().max(self.delivery.added_at()));
        let timeout = SignedDuration::try_from(self.approvals.timeout).unwrap_or(SignedDuration::MAX);
        let expires_at = asked_at.checked_add(timeout).unwrap_or(Timestamp::MAX);
        // Behind the item's deadline an answer would be of no use.
        let expires_at = whole(item.deadline.map_or(expires_at, |deadline| deadline.min(expires_at)));
        Ask {
            wait_id: self.wait_id(site, what),
            kind,
            graph_id: item.graph_id.clone(),
            node_id: item.node_id.clone(),
            run_id: item.run_id.clone(),
            work_id: self.delivery.work_id.to_string(),
            message: String::new(),
            schema: json!({ "type": "object" }),
            asked_by,
            tool: None,
            arguments: None,
            last_words: None,
            url: None,
            asked_at,
            expires_at,
            on_expiry: self.approvals.on_expiry,
        }
    }
}

/// What follows from a decision.
fn decided(ask: &Ask, said: Said) -> Result<Gate, Failure> {
    match said.action {
        Action::Reject | Action::Decline => Ok(Gate::Refused(Refused { said })),
        Action::Cancel => {
            let note = said.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            let tool = ask.tool.as_deref().unwrap_or_default();
            let message = format!("the node was cancelled by {} instead of a call of `{tool}`{note}", said.whom());
            Err(Failure::new(Category::Cancelled, "cancelled", message))
        }
        Action::Accept => {
            let whom = said.whom().to_owned();
            let edited = said.content.and_then(|mut content| content.get_mut("arguments").map(Value::take));
            let arguments = match edited {
                Some(Value::Object(arguments)) => Some(arguments),
                _ => None,
            };
            let mut words = arguments.as_ref().map(|arguments| {
                let text = Value::Object(arguments.clone()).to_string();
                let cut = if text.chars().nth(SHOWN_CHARS).is_some() { "…" } else { "" };
                let shown: String = text.chars().take(SHOWN_CHARS).collect();
                format!("Note: {whom} changed the arguments of this call before it was made, to {shown}{cut}.")
            });
            if let Some(note) = said.note {
                words = Some(format!("{} Note by {whom}: {note}", words.unwrap_or_default()).trim().to_owned());
            }
            Ok(Gate::Open(Permission { arguments, words }))
        }
    }
}

/// The end of a node to whose question nobody answered.
pub(super) fn too_late(ask: &Ask) -> Failure {
    let what = ask.tool.as_deref().map(|tool| format!(" about the tool `{tool}`")).unwrap_or_default();
    Failure::permanent(
        WAIT_EXPIRED,
        format!(
            "nobody answered the question {}{what} by {}; raise `wait.timeout`, or let `wait.on_expiry` choose",
            ask.wait_id, ask.expires_at
        ),
    )
}

/// What goes with an acceptance: nothing, or other arguments.
fn edited_schema(schema: &Value) -> Value {
    let mut arguments = match schema.to_string().len() {
        0..=SCHEMA_BYTES => schema.clone(),
        _ => json!({ "type": "object" }),
    };
    // Its references mean places in itself, and not in what is put around it.
    if let Value::Object(arguments) = &mut arguments {
        arguments.entry("$id").or_insert_with(|| json!("urn:arguments"));
    }
    json!({ "type": "object", "properties": { "arguments": arguments }, "additionalProperties": false })
}

/// The worker's own rules.
pub(super) fn settings_rules(rules: &std::collections::BTreeMap<String, String>) -> Arc<Rules> {
    let rules = rules.iter().map(|(tool, when)| (tool.as_str(), when.as_str()));
    // What cannot be read is refused at the start; should it come here all the same, every call wants a word.
    Arc::new(Rules::of_settings(rules).unwrap_or_else(|_| Rules::everything()))
}

#[cfg(test)]
mod tests;
