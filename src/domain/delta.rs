//! Pieces of an answer while a model writes it, gathered until somebody fetches them. They are for people who watch:
//! what counts is the whole answer, so pieces may be left out and nothing waits for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Bytes that may wait to be fetched; what comes beyond them is left out.
const MOST_WAITING: usize = 64 * 1024;

/// One piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Piece {
    /// An answer begins. What was told of an earlier try of the same turn is void.
    Begin,
    /// Text of the answer.
    Text {
        /// It goes on where the last one ended.
        text: String,
    },
    /// What the model thinks, where the provider shows it.
    Thinking {
        /// It goes on where the last one ended.
        text: String,
    },
    /// The model begins to ask for a tool.
    ToolUse {
        /// The provider's id of the use.
        id: String,
        /// The tool, as the model knows it.
        name: String,
    },
    /// Pieces were left out here.
    Gap,
}

impl Piece {
    fn bytes(&self) -> usize {
        match self {
            Self::Begin | Self::Gap => 0,
            Self::Text { text } | Self::Thinking { text } => text.len(),
            Self::ToolUse { id, name } => id.len() + name.len(),
        }
    }
}

/// Where a client tells the pieces and the caller fetches them.
#[derive(Debug, Clone, Default)]
pub struct Deltas(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    pieces: Vec<Piece>,
    bytes: usize,
}

impl Deltas {
    /// Tells that an answer begins.
    pub fn begin(&self) {
        let mut waiting = self.waiting();
        *waiting = Waiting::default();
        waiting.pieces.push(Piece::Begin);
    }

    /// Tells text of the answer.
    pub fn text(&self, more: &str) {
        self.waiting().add(Piece::Text { text: more.to_owned() });
    }

    /// Tells what the model thinks.
    pub fn thinking(&self, more: &str) {
        self.waiting().add(Piece::Thinking { text: more.to_owned() });
    }

    /// Tells that the model asks for a tool.
    pub fn tool_use(&self, id: &str, name: &str) {
        self.waiting().add(Piece::ToolUse { id: id.to_owned(), name: name.to_owned() });
    }

    /// What was told since the last time.
    pub fn fetch(&self) -> Vec<Piece> {
        std::mem::take(&mut *self.waiting()).pieces
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change is complete at once, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn add(&mut self, piece: Piece) {
        if self.bytes + piece.bytes() > MOST_WAITING {
            if self.pieces.last() != Some(&Piece::Gap) {
                self.pieces.push(Piece::Gap);
            }
            return;
        }
        self.bytes += piece.bytes();
        match (self.pieces.last_mut(), &piece) {
            (Some(Piece::Text { text }), Piece::Text { text: more })
            | (Some(Piece::Thinking { text }), Piece::Thinking { text: more }) => text.push_str(more),
            _ => self.pieces.push(piece),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text { text: text.to_owned() }
    }

    #[test]
    fn pieces_of_a_kind_join_until_they_are_fetched() {
        let deltas = Deltas::default();
        deltas.begin();
        deltas.thinking("hm");
        deltas.thinking("m");
        deltas.text("a");
        deltas.text("b");
        deltas.tool_use("t1", "add");
        let told = deltas.fetch();
        let thinking = Piece::Thinking { text: String::from("hmm") };
        let tool_use = Piece::ToolUse { id: String::from("t1"), name: String::from("add") };
        assert_eq!(told, [Piece::Begin, thinking, text("ab"), tool_use]);
        deltas.text("c");
        assert_eq!((deltas.fetch(), deltas.fetch()), (vec![text("c")], vec![]));
    }

    #[test]
    fn what_nobody_fetches_is_bounded_and_the_gap_is_told() {
        let deltas = Deltas::default();
        for _ in 0..10 {
            deltas.text(&"x".repeat(MOST_WAITING / 4));
        }
        assert_eq!(deltas.fetch(), [text(&"x".repeat(MOST_WAITING)), Piece::Gap]);
        deltas.text("late");
        deltas.begin();
        assert_eq!(deltas.fetch(), [Piece::Begin], "a new try makes the old one void");
    }
}
