//! What every conversation of the benchmark is made of: the task, the tool calls of the model, and their results. The
//! endpoint, the worker and its peers all go by it.

/// The tool that the model calls.
pub const TOOL: &str = "calculate";
/// The model that is asked.
pub const MODEL: &str = "claude-sonnet-5-5";
/// Tokens that it may write in a turn: the worker's default.
pub const MAX_TOKENS: u32 = 16_000;

const BEFORE_NUMBER: &str = "Multiply the next two numbers until you are told that it is enough. This is conversation ";

/// One conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversation(pub usize);

impl Conversation {
    /// The conversation that began with this prompt.
    pub fn of(prompt: &str) -> Option<Self> {
        prompt.strip_prefix(BEFORE_NUMBER)?.strip_suffix('.')?.parse().ok().map(Self)
    }

    /// The task.
    pub fn prompt(self) -> String {
        format!("{BEFORE_NUMBER}{}.", self.0)
    }

    /// What the model has calculated in this turn; no two turns ask for the same.
    pub fn expression(self, turn: usize) -> String {
        format!("{} * {}", self.factors(turn).0, self.factors(turn).1)
    }

    /// What the tool has to answer.
    pub fn product(self, turn: usize) -> String {
        let (left, right) = self.factors(turn);
        (left * right).to_string()
    }

    /// The text with which the last of `turns` turns ends it.
    pub fn answer(self, turns: usize) -> String {
        format!("Conversation {} came to {}.", self.0, self.product(turns.saturating_sub(2)))
    }

    fn factors(self, turn: usize) -> (usize, usize) {
        (1_000 + self.0, 17 + turn)
    }
}
