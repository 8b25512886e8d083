//! What is known after a run, as plain values: what was submitted, what stands in Redis, what the tools and the model
//! counted. How it is read is elsewhere, and so is what follows from it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde_json::Value;

/// How an identity has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With `node.completed`.
    Completed,
    /// With `node.completed`, or with `node.failed` where a worker ended in the middle of its one call and nobody knows
    /// whether that took effect.
    CompletedOrUnknown,
    /// With `node.failed` of this category, beside a dead letter if it says so.
    Failed { category: &'static str, letter: bool },
}

/// An effect that an identity is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intended {
    pub name: String,
    /// Whether the tool is declared idempotent: it may be called again, under the same key.
    pub idempotent: bool,
}

/// One identity that was submitted, once or several times.
#[derive(Debug, Clone)]
pub struct Identity {
    pub graph: String,
    pub node: String,
    pub run: String,
    pub end: End,
    /// A text that its output must contain, so that no result lands with somebody else.
    pub bears: String,
    pub effects: Vec<Intended>,
    /// Whether a model decides, which then is told what became of each effect.
    pub agent: bool,
    /// Whether its output is too large for state and event.
    pub large: bool,
    /// How often it is begun again because it had to wait outside of a slot.
    pub waits: usize,
}

/// An output that is stored by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// It is what the reference was made for.
    Whole(String),
    /// It is not there.
    Missing,
    /// It is something else.
    Changed,
}

/// One terminal event.
#[derive(Debug, Clone)]
pub struct Ending {
    pub event_id: String,
    pub completed: bool,
    pub graph: String,
    pub node: String,
    pub run: String,
    pub seq: u64,
    /// The output, or the sentence of the error.
    pub result: Value,
    /// What the output refers to, if it is a reference.
    pub stored: Option<Stored>,
    /// The category of the error.
    pub category: Option<String>,
    /// The code of the error.
    pub code: Option<String>,
    pub work_id: String,
}

/// A node as the graph's state has it.
#[derive(Debug, Clone)]
pub struct NodeState {
    pub graph: String,
    pub node: String,
    pub run: String,
    /// The output, or the sentence of the error.
    pub result: Value,
}

/// Something in the state of a graph that is not a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub graph: String,
    pub name: String,
    pub value: Value,
}

/// A dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    pub work_id: String,
    pub reason: String,
    pub data: String,
}

/// What the tools counted of one effect.
#[derive(Debug, Clone, Default)]
pub struct Effect {
    pub times: u32,
    /// The idempotency keys it was asked with.
    pub keys: BTreeSet<String>,
    /// How often it was asked for after a model had been told that it had happened.
    pub after_end: u32,
}

/// What a model was told about one effect, in all of its requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// That it happened.
    pub happened: bool,
    /// That nobody knows.
    pub unknown: bool,
    /// Something else: the words.
    pub other: Option<String>,
}

/// What is left in Redis that must be gone.
#[derive(Debug, Clone, Default)]
pub struct Leftovers {
    /// Entries in the stream, and items that wait outside of it.
    pub waiting: usize,
    pub pending: usize,
    /// A sentence for each thing that is still there, such as a journal or a run that counts as going on.
    pub others: Vec<String>,
    /// Outputs beside their place, of workers that died before they settled. They go by themselves.
    pub staged: usize,
}

/// Everything that is known after a run.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    pub identities: Vec<Identity>,
    /// Texts of entries that cannot be understood; each must be a dead letter.
    pub undecodable: Vec<String>,
    pub endings: Vec<Ending>,
    pub states: Vec<NodeState>,
    /// What else stands in the states, and what others wrote there, which has to stay.
    pub members: Vec<Member>,
    pub written_by_others: Vec<Member>,
    pub letters: Vec<Letter>,
    pub leftovers: Leftovers,
    pub effects: HashMap<String, Effect>,
    pub told: HashMap<String, Told>,
    /// Completions that the model gave once more for a turn it had given before.
    pub completions_repeated: u64,
    /// How often each identity was begun, by what workers told.
    pub begun: HashMap<String, usize>,
    /// Items that workers held when a fault met them, summed up over all faults.
    pub in_flight_at_faults: usize,
    /// The same of workers that were stopped in their middle and went on with what was no longer theirs.
    pub in_flight_at_pauses: usize,
    /// The longest time for which the work of a dead worker waited for another one while Redis was there.
    pub slowest_takeover: Duration,
    /// Resident bytes of the worker that lived longest, in the order of time.
    pub memory: Vec<u64>,
}
