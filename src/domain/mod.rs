//! The vocabulary of the worker: what comes in, what a node is, what goes out.
//! No I/O, no async and no actor lives here, so every rule can be tested as a value.

pub mod approve;
pub mod blob;
pub mod breaker;
pub mod cancel;
pub mod delta;
pub mod event;
pub mod excerpt;
pub mod ids;
pub mod journal;
pub mod message;
pub mod node;
pub mod outcome;
pub mod price;
pub mod rate;
pub mod republish;
pub mod session;
pub mod settlement;
pub mod state;
pub mod task;
pub mod tool;
pub mod tool_server;
pub mod wait;
pub mod work;
