//! How an execution ends: the failure that a person can act on, and the few ways a node leaves the worker.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::domain::message::Usage;
use crate::domain::node::Mode;
use crate::domain::session::Session;
use crate::domain::task::OpenTask;
use crate::domain::wait::Ask;
use crate::retry::Retry;

/// The kinds of failure that consumers tell apart (`error_details.category`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Network trouble, rate limits, an overloaded model: trying later may help.
    Retriable,
    /// The node, the graph or the worker is configured wrongly.
    Configuration,
    /// Data does not fit: an input, a template, a schema, a state.
    Validation,
    /// The other side said no for good.
    Permanent,
    /// The item ended too many worker processes.
    Poison,
    /// Somebody cancelled the node or its graph.
    Cancelled,
    /// A fault of the worker itself.
    Internal,
}

impl Category {
    /// The category as consumers read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retriable => "retriable",
            Self::Configuration => "configuration",
            Self::Validation => "validation",
            Self::Permanent => "permanent",
            Self::Poison => "poison",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

/// Why a step or a node failed, in words for a person and in a code for a program.
#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure it is.
    pub category: Category,
    /// A stable snake_case name of the cause.
    pub code: Cow<'static, str>,
    /// A sentence a person can act on; never a secret.
    pub message: String,
    /// How often the failing step was tried.
    pub attempts: u32,
    /// How long the other side asked us to wait.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of one attempt.
    pub fn new(category: Category, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { category, code: code.into(), message: message.into(), attempts: 1, retry_after: None }
    }

    /// A failure that trying later may cure.
    pub fn retriable(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Category::Retriable, code, message)
    }

    /// A failure of configuration.
    pub fn configuration(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Category::Configuration, code, message)
    }

    /// A failure of data.
    pub fn validation(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Category::Validation, code, message)
    }

    /// A failure that the other side will repeat.
    pub fn permanent(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Category::Permanent, code, message)
    }

    /// A fault of the worker.
    pub fn internal(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(Category::Internal, code, message)
    }

    /// The node's time is up.
    pub fn timed_out(limit: Duration) -> Self {
        Self::permanent(
            "timeout",
            format!("the node did not finish within {}; raise `timeout`", humantime::format_duration(limit)),
        )
    }

    /// Adds the wait that the other side asked for.
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// Whether the other side is known to need time: it has no capacity, or it named a wait. Trying at once again would
    /// be in vain.
    pub fn needs_time(&self) -> bool {
        self.category == Category::Retriable && (self.retry_after.is_some() || self.code == OVERLOADED)
    }

    /// What this failure says about trying the same step again.
    pub fn retry(&self) -> Retry {
        match self.category {
            Category::Retriable => Retry::After(self.retry_after),
            Category::Configuration
            | Category::Validation
            | Category::Permanent
            | Category::Poison
            | Category::Cancelled
            | Category::Internal => Retry::Never,
        }
    }
}

/// The code of a failure of which the other side says that it has no capacity.
pub const OVERLOADED: &str = "overloaded";

/// What an agent had reached when it failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Partial {
    /// The last text the model wrote.
    pub text: String,
    /// Finished turns of the model.
    pub iterations: u32,
    /// A reference to the whole conversation, where it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Value>,
}

/// What one execution used, whatever its outcome.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// Tokens of all completions, when a model was called at all.
    pub usage: Option<Usage>,
    /// Tool calls that were made.
    pub tool_calls: u32,
    /// The highest attempt number any step needed.
    pub attempts: u32,
    /// Tries of steps beyond the first, in this execution alone.
    #[serde(skip)]
    pub retries: u32,
}

/// Steps of an earlier attempt that were not done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resumed {
    /// Turns of the model.
    pub turns: usize,
    /// Tool calls.
    pub tool_calls: usize,
}

/// The end of one execution of a node.
#[derive(Debug)]
pub enum Outcome {
    /// The node produced its output.
    Completed {
        /// The output as stored and sent, JSON.
        output: Box<RawValue>,
        /// What `output_mapping` found in the output, a JSON object.
        mapped: Option<Box<RawValue>>,
    },
    /// The node failed for good.
    Failed {
        /// Why.
        failure: Failure,
        /// How far an agent came.
        partial: Option<Partial>,
    },
    /// The open script said that this run is somebody else's or done: the entry is gone already.
    Duplicate,
    /// The entry is no longer ours; its new owner settles it.
    Lost,
    /// The worker stops before the node ended: the entry is handed back.
    Unfinished,
    /// A step has to wait for long: the entry leaves the stream until then, and its slot is free.
    Parked(Box<Parking>),
    /// Somebody else has to say how the node goes on: the entry leaves the stream until then, and its slot is free.
    Waiting(Box<Waiting>),
}

/// A wait for what somebody else says.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// The questions, none of which is answered.
    pub asks: Vec<Ask>,
    /// The moment after which nobody needs to answer any more.
    pub expires_at: Timestamp,
    /// When the node goes on all the same, because other steps of it wait for that.
    pub until: Option<Instant>,
    /// Those steps and the attempts that each has used up.
    pub waits: BTreeMap<String, u32>,
    /// When the node was first begun.
    pub since: Timestamp,
    /// The journal's header, JSON, for one that nothing was written to before.
    pub header: String,
    /// Whether everything in the journal before goes.
    pub restart: bool,
}

/// A wait that is too long to hold a slot for.
#[derive(Debug, Clone, PartialEq)]
pub struct Parking {
    /// When the node goes on.
    pub until: Instant,
    /// What is waited out.
    pub failure: Failure,
    /// The steps that go on then, by names that are the same in every run of the node, and the attempts that each has
    /// used up.
    pub waits: BTreeMap<String, u32>,
    /// When the node was first begun.
    pub since: Timestamp,
}

/// An outcome with what is known about the execution.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// The mode, if the configuration could be read.
    pub mode: Option<Mode>,
    /// What it used.
    pub spent: Spent,
    /// Remarks for `metadata.warnings`.
    pub warnings: Vec<String>,
    /// What was gone on from, where another worker had begun.
    pub resumed: Option<Resumed>,
    /// What others decided about it, in few words.
    pub decisions: Vec<Value>,
    /// The conversation that a completed node leaves to later ones.
    pub session: Option<Session>,
    /// The conversation in which a node failed, in the form of a session, JSON.
    pub conversation: Option<Box<RawValue>>,
    /// What servers still work on. Nobody waits for it once this end is written; until then the node may be another's.
    pub tasks: Vec<OpenTask>,
}

impl Report {
    /// A report of an execution that ended before its mode was known.
    pub fn early(outcome: Outcome) -> Self {
        Self {
            outcome,
            mode: None,
            spent: Spent::default(),
            warnings: Vec::new(),
            resumed: None,
            decisions: Vec::new(),
            session: None,
            conversation: None,
            tasks: Vec::new(),
        }
    }
}
