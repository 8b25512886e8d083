//! Questions that a node waits for, and the decisions that let it go on: their shapes, and whether a decision is still
//! in time. Where they are kept is the Redis client's; what follows from an answer is the modes'.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::excerpt;
use crate::domain::ids::{GraphId, NodeId, RunId, WorkId};
use crate::domain::tool::Arguments;

/// Characters of a name or a note that are kept.
const WORDS: usize = 2000;

/// What events and lists tell of a question: bytes of the arguments and of the schema as JSON, characters of each text.
const TOLD_ARGUMENTS: usize = 4 << 10;
const TOLD_SCHEMA: usize = 16 << 10;
/// The schema of an approval matters only to those who change the arguments, and every waiting call has one: bytes of both
/// together.
const TOLD_APPROVAL: usize = 896;
const TOLD_CHARS: usize = 2000;

/// The name of one question. It follows from the execution and the place in it, so asking again gives it again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WaitId(String);

impl WaitId {
    /// The name of what has this digest.
    pub fn of_digest(digest: &str) -> Self {
        Self(format!("wait_{}", digest.get(..32).unwrap_or(digest)))
    }

    /// A name as somebody wrote it.
    pub fn from_text(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WaitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A person's word on a tool call.
    Approval,
    /// An answer to what a tool server asks.
    Elicitation,
    /// The end of a task that runs elsewhere.
    Task,
    /// A moment.
    Timer,
}

impl Kind {
    /// The kind as events and metrics bear it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approval => "approval",
            Self::Elicitation => "elicitation",
            Self::Task => "task",
            Self::Timer => "timer",
        }
    }
}

/// What follows when nobody has decided in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    /// The node fails.
    #[default]
    Fail,
    /// As if somebody had refused.
    Reject,
    /// As if somebody had agreed.
    Accept,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AskedBy {
    /// A rule that wants a person's word before the node makes a call.
    Rule {
        /// The rule, as it was written.
        rule: String,
    },
    /// A tool server, in the middle of a call.
    Server {
        /// The server by its configured name.
        name: String,
    },
}

/// A question, as it is kept and as the event tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Its name.
    pub wait_id: WaitId,
    /// What is waited for.
    pub kind: Kind,
    /// The graph.
    pub graph_id: GraphId,
    /// The node.
    pub node_id: NodeId,
    /// The identity.
    pub run_id: RunId,
    /// The piece of work.
    pub work_id: String,
    /// What is asked, for a person.
    pub message: String,
    /// Who asks.
    pub asked_by: AskedBy,
    /// The tool that is about to be called, or that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Arguments>,
    /// The last words of the model that wants the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_words: Option<String>,
    /// Where a person has to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What the content of an acceptance must satisfy, JSON Schema.
    pub schema: Value,
    /// When it was asked.
    pub asked_at: Timestamp,
    /// When it is too late.
    pub expires_at: Timestamp,
    /// What follows then.
    #[serde(default)]
    pub on_expiry: OnExpiry,
}

impl Ask {
    /// The stream in which the waiting work entered, and its first entry's id.
    pub fn origin(&self) -> Option<(&str, &str)> {
        self.work_id.rsplit_once('/')
    }

    /// The name of the waiting work.
    pub fn work(&self) -> WorkId {
        WorkId::from_text(self.work_id.as_str())
    }

    /// The question as events and lists tell it: cut where it is large. The whole of it is for those who ask for this one.
    pub fn told(mut self) -> Told {
        let mut shortened = Vec::new();
        if let Some(cut) = excerpt::of_text(&self.message, TOLD_CHARS) {
            self.message = cut;
            shortened.push("message");
        }
        let room = match (self.kind, &self.arguments) {
            (Kind::Approval, Some(arguments)) => TOLD_APPROVAL.saturating_sub(excerpt::length_of(arguments)),
            (Kind::Approval, None) => TOLD_APPROVAL,
            _ => TOLD_SCHEMA,
        };
        if self.schema.to_string().len() > room {
            self.schema = excerpt::of_schema(&self.schema);
            // A part of what is demanded would be another schema.
            if self.schema.to_string().len() > room {
                self.schema = json!({ "type": "object" });
            }
            shortened.push("schema");
        }
        if let Some(cut) = self.arguments.as_ref().and_then(|arguments| excerpt::of_object(arguments, TOLD_ARGUMENTS)) {
            self.arguments = Some(cut);
            shortened.push("arguments");
        }
        if let Some(cut) = self.last_words.as_ref().and_then(|words| excerpt::of_text(words, TOLD_CHARS)) {
            self.last_words = Some(cut);
            shortened.push("last_words");
        }
        Told { ask: self, shortened }
    }

    /// The question in few words, for a node's state.
    pub fn brief(&self) -> Value {
        json!({ "wait_id": self.wait_id, "kind": self.kind, "tool": self.tool, "expires_at": self.expires_at })
    }
}

/// A question as events and lists tell it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// The question, cut where it is large.
    #[serde(flatten)]
    pub ask: Ask,
    /// Its members that are not whole here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shortened: Vec<&'static str>,
}

/// What somebody decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Yes.
    Accept,
    /// No.
    Reject,
    /// No, in the words of MCP; means the same.
    Decline,
    /// Neither: an approval's node is ended as cancelled, a tool server is told that nobody answers.
    Cancel,
}

impl Action {
    /// The action as decisions bear it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Reject => "reject",
            Self::Decline => "decline",
            Self::Cancel => "cancel",
        }
    }

    /// The action of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Accept, Self::Reject, Self::Decline, Self::Cancel].into_iter().find(|action| action.as_str() == name)
    }
}

/// A decision as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The graph.
    pub graph_id: GraphId,
    /// The node.
    pub node_id: NodeId,
    /// The identity.
    pub run_id: RunId,
    /// Which question it answers.
    pub wait_id: WaitId,
    /// What was decided.
    pub action: Action,
    /// What goes with it.
    pub content: Option<Value>,
    /// Who decided.
    pub by: Option<String>,
    /// Why.
    pub note: Option<String>,
}

impl Decision {
    /// The decision as it is kept once it counts.
    pub fn said(&self, at: Timestamp) -> Said {
        let content = self.content.clone().filter(|_| self.action == Action::Accept);
        Said { action: self.action, content, by: self.by.clone(), note: self.note.clone(), at, expired: false }
    }

    /// The decision as an entry of a work stream bears it.
    pub fn to_json(&self) -> String {
        let mut decision = json!({ "wait_id": self.wait_id, "action": self.action });
        let members = [("by", &self.by), ("note", &self.note)];
        for (name, words) in members.into_iter().filter_map(|(name, words)| Some((name, words.as_ref()?))) {
            decision[name] = Value::from(words.as_str());
        }
        if let Some(content) = &self.content {
            decision["content"] = content.clone();
        }
        json!({
            "v": 1,
            "graph_id": self.graph_id,
            "node_id": self.node_id,
            "run_id": self.run_id,
            "decision": decision,
        })
        .to_string()
    }
}

/// Somebody's words as they are kept; none where they say nothing.
pub fn words(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.chars().take(WORDS).collect())
}

/// A decision that counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// What was decided.
    pub action: Action,
    /// What goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Value>,
    /// Who decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// When it was decided.
    pub at: Timestamp,
    /// Nobody decided in time, and this is what was chosen for that case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
}

impl Said {
    /// Who decided, for a sentence.
    pub fn whom(&self) -> &str {
        self.by.as_deref().unwrap_or("somebody")
    }

    /// The decision in few words, for a node's metadata.
    pub fn brief(&self, ask: &Ask) -> Value {
        let mut brief = json!({ "wait_id": ask.wait_id, "kind": ask.kind, "action": self.action, "at": self.at });
        let members = [("tool", &ask.tool), ("by", &self.by), ("note", &self.note)];
        for (name, words) in members.into_iter().filter_map(|(name, words)| Some((name, words.as_ref()?))) {
            brief[name] = Value::from(words.as_str());
        }
        if ask.kind == Kind::Approval && self.content.as_ref().is_some_and(|content| content.get("arguments").is_some())
        {
            brief["edited"] = Value::from(true);
        }
        if self.expired {
            brief["expired"] = Value::from(true);
        }
        brief
    }
}

/// A question and, once there is one, its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The question.
    pub ask: Ask,
    /// The answer.
    pub said: Option<Said>,
}

/// The author of a decision that nobody made.
const NOBODY: &str = "nobody, the time to decide was over";

/// How a question stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Nobody has answered yet.
    Open,
    /// It is answered, by somebody or by what was chosen for the case that nobody does.
    Said(Said),
    /// Nobody answered in time, and that fails the node.
    TooLate,
}

impl Asked {
    /// How the question stood at a moment by the clock of the server, which refuses decisions from its end on.
    pub fn answer(&self, now: Timestamp) -> Answer {
        match &self.said {
            Some(said) => Answer::Said(said.clone()),
            None if now < self.ask.expires_at => Answer::Open,
            None => self.lapsed(now).map_or(Answer::TooLate, Answer::Said),
        }
    }

    /// What was chosen for the case that nobody answers, if nobody has by this moment, and something was chosen.
    pub fn lapsed(&self, now: Timestamp) -> Option<Said> {
        if self.said.is_some() || now < self.ask.expires_at {
            return None;
        }
        let action = match self.ask.on_expiry {
            OnExpiry::Fail => return None,
            OnExpiry::Reject => Action::Reject,
            OnExpiry::Accept => Action::Accept,
        };
        let (by, at) = (Some(String::from(NOBODY)), self.ask.expires_at);
        Some(Said { action, content: None, by, note: None, at, expired: true })
    }
}

/// Why a decision does not count.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// A stable snake_case name of the cause.
    pub code: &'static str,
    /// A sentence for whoever decided.
    pub message: String,
    /// The decision that counts instead.
    pub said: Option<Box<Said>>,
}

impl Refusal {
    /// A refusal with nothing decided yet.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), said: None }
    }
}

/// Judges a decision by what is known of its question. `fits` says whether the content satisfies the schema.
pub fn judge(
    decision: &Decision,
    asked: Option<&Asked>,
    ended: bool,
    now: Timestamp,
    fits: impl FnOnce(&Ask, &Value) -> Result<(), String>,
) -> Result<(), Refusal> {
    let Some(Asked { ask, said }) = asked else {
        return Err(match ended {
            true => Refusal::new("node_ended", "the node has ended; nothing waits for this decision any more"),
            false => Refusal::new(
                "unknown_wait",
                format!("nothing waits for a decision under the name `{}`", decision.wait_id),
            ),
        });
    };
    if let Some(said) = said {
        let message = format!("{} decided first: {} at {}", said.whom(), said.action.as_str(), said.at);
        return Err(Refusal { said: Some(Box::new(said.clone())), ..Refusal::new("already_decided", message) });
    }
    if now >= ask.expires_at {
        return Err(Refusal::new("wait_expired", format!("the time to decide was over at {}", ask.expires_at)));
    }
    if matches!(ask.kind, Kind::Task | Kind::Timer) {
        return Err(Refusal::new("not_to_be_decided", "nobody is asked here: the node goes on by itself"));
    }
    if decision.action != Action::Accept {
        return Ok(());
    }
    // An approval may do without a content: the call is then made as it stands.
    if ask.kind == Kind::Approval && decision.content.is_none() {
        return Ok(());
    }
    // So may whatever asks for nothing.
    let empty = Value::Object(serde_json::Map::new());
    fits(ask, decision.content.as_ref().unwrap_or(&empty)).map_err(|why| {
        Refusal::new("content_invalid", format!("the decision's `content` does not fit what was asked: {why}"))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    pub(crate) fn ask() -> Ask {
        Ask {
            wait_id: WaitId::of_digest(&"0f".repeat(32)),
            kind: Kind::Approval,
            graph_id: GraphId::new("g").expect("an id"),
            node_id: NodeId::new("n").expect("an id"),
            run_id: RunId::new("r").expect("an id"),
            work_id: String::from("executor.work/5-0"),
            message: String::from("May `pay` be called?"),
            schema: json!({"type": "object"}),
            asked_by: AskedBy::Rule { rule: String::from("pay") },
            tool: Some(String::from("shop/pay")),
            arguments: None,
            last_words: None,
            url: None,
            asked_at: time("2026-01-02T03:04:05Z"),
            expires_at: time("2026-01-09T03:04:05Z"),
            on_expiry: OnExpiry::Fail,
        }
    }

    fn decision(action: Action, content: Option<Value>) -> Decision {
        let Ask { graph_id, node_id, run_id, wait_id, .. } = ask();
        let by = Some(String::from("ann"));
        Decision { graph_id, node_id, run_id, wait_id, action, content, by, note: None }
    }

    fn judged(decision: &Decision, asked: Option<&Asked>, ended: bool, now: &str) -> Result<(), &'static str> {
        let fits = |_: &Ask, content: &Value| match content.get("bad") {
            Some(_) => Err(String::from("it is bad")),
            None => Ok(()),
        };
        judge(decision, asked, ended, time(now), fits).map_err(|refusal| refusal.code)
    }

    const EARLY: &str = "2026-01-03T00:00:00Z";

    #[test]
    fn a_question_comes_back_as_it_was_kept() {
        let text = serde_json::to_string(&ask()).expect("JSON");
        assert_eq!(serde_json::from_str::<Ask>(&text).expect("a question"), ask());
        assert_eq!(ask().origin(), Some(("executor.work", "5-0")));
        assert_eq!(ask().wait_id.as_str().len(), 37);
    }

    #[test]
    fn the_first_decision_in_time_counts_and_every_other_one_says_why_not() {
        let open = Asked { ask: ask(), said: None };
        let yes = decision(Action::Accept, None);
        assert_eq!(judged(&yes, Some(&open), false, EARLY), Ok(()));
        assert_eq!(judged(&yes, Some(&open), false, "2026-01-09T03:04:05Z"), Err("wait_expired"));
        assert_eq!(judged(&yes, None, false, EARLY), Err("unknown_wait"));
        assert_eq!(judged(&yes, None, true, EARLY), Err("node_ended"));
        let decided = Asked { said: Some(yes.said(time(EARLY))), ..open.clone() };
        assert_eq!(judged(&yes, Some(&decided), false, EARLY), Err("already_decided"));
        let refusal = judge(&yes, Some(&decided), false, time(EARLY), |_, _| Ok(())).expect_err("it is the second");
        assert!(refusal.message.contains("ann decided first: accept"), "{}", refusal.message);
        let timer = Asked { ask: Ask { kind: Kind::Timer, ..ask() }, said: None };
        assert_eq!(judged(&yes, Some(&timer), false, EARLY), Err("not_to_be_decided"));
    }

    #[test]
    fn the_content_matters_to_an_acceptance_alone() {
        let open = Asked { ask: ask(), said: None };
        let bad = Some(json!({"bad": 1}));
        assert_eq!(judged(&decision(Action::Accept, bad.clone()), Some(&open), false, EARLY), Err("content_invalid"));
        let no = decision(Action::Reject, bad);
        assert_eq!(judged(&no, Some(&open), false, EARLY), Ok(()));
        assert_eq!(no.said(time(EARLY)).content, None, "what goes with a refusal is not kept");
    }

    #[test]
    fn what_nobody_answers_in_time_has_the_answer_that_was_chosen_and_says_so() {
        let open = Asked { ask: Ask { on_expiry: OnExpiry::Reject, ..ask() }, said: None };
        let (before, end) = (time("2026-01-09T03:04:04.999Z"), ask().expires_at);
        assert_eq!((open.lapsed(before), open.answer(before)), (None, Answer::Open));
        let said = open.lapsed(end).expect("it is too late");
        assert_eq!((said.action, said.at, said.expired), (Action::Reject, end, true));
        assert_eq!(said.brief(&open.ask)["expired"], true);
        assert_eq!(open.answer(end), Answer::Said(said));
        let failing = Asked { ask: ask(), said: None };
        assert_eq!((failing.lapsed(end), failing.answer(end)), (None, Answer::TooLate));
        let decided = Asked { said: Some(decision(Action::Accept, None).said(before)), ..open };
        assert_eq!(decided.lapsed(end), None);
    }

    #[test]
    fn a_large_question_is_told_in_part_and_says_which() {
        let plain = Ask { last_words: Some(String::from("I shall pay.")), ..ask() };
        assert_eq!(json!(plain.clone().told()), json!(plain));
        let arguments = json!({"to": "ann", "body": "word ".repeat(5000)});
        let large = Ask {
            arguments: arguments.as_object().cloned(),
            last_words: Some("Well. ".repeat(1000)),
            message: "Sure? ".repeat(1000),
            schema: json!({"type": "object", "required": ["x".repeat(20_000)]}),
            ..ask()
        };
        let told = json!(large.told());
        assert_eq!(told["shortened"], json!(["message", "schema", "arguments", "last_words"]));
        assert_eq!((&told["schema"], &told["arguments"]["to"]), (&json!({"type": "object"}), &json!("ann")));
        assert!(told["arguments"]["body"].as_str().is_some_and(|body| body.contains("of 25000 characters left out")));
        assert!(told.to_string().len() < 12_000, "{}", told.to_string().len());
    }

    #[test]
    fn the_schema_of_a_call_is_told_without_its_words_and_that_of_a_form_with_them() {
        let schema = json!({"type": "object", "description": "x".repeat(800), "maxProperties": 7});
        let of = |kind, arguments: Option<Value>| {
            let arguments = arguments.and_then(|arguments| arguments.as_object().cloned());
            json!(Ask { kind, schema: schema.clone(), arguments, ..ask() }.told())
        };
        for whole in [of(Kind::Approval, None), of(Kind::Elicitation, Some(json!({"to": "x".repeat(2000)})))] {
            assert_eq!((&whole["schema"], &whole["shortened"]), (&schema, &Value::Null));
        }
        for (length, left) in [(100, json!({"type": "object", "maxProperties": 7})), (880, json!({"type": "object"}))] {
            let call = of(Kind::Approval, Some(json!({"to": "x".repeat(length)})));
            assert_eq!((&call["schema"], &call["shortened"]), (&left, &json!(["schema"])), "{length}");
        }
    }

    #[test]
    fn an_action_is_known_by_its_name() {
        for action in [Action::Accept, Action::Reject, Action::Decline, Action::Cancel] {
            assert_eq!(Action::parse(action.as_str()), Some(action));
        }
        assert_eq!(Action::parse("approve"), None);
    }

    #[test]
    fn words_that_say_nothing_are_none_and_long_ones_are_cut() {
        assert_eq!(words(" \n"), None);
        assert_eq!(words(&"x".repeat(WORDS + 7)).map(|text| text.len()), Some(WORDS));
    }
}
