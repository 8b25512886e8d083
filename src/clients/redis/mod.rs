//! Redis: streams, leases, state, settling. The only module that imports the redis crate.
//!
//! Every write that matters is a server-side script that first checks the ownership token, a pair of consumer name
//! and delivery count; see `scripts/owned.lua`. JSON is never decoded in a script, and every key stands in KEYS.

mod aside;
mod blob;
mod cancel;
mod creation;
mod dead_letters;
mod ending;
mod error;
mod events;
mod fields;
mod forget;
mod journal;
mod keys;
mod layout;
mod lease;
mod letter;
mod link;
mod members;
mod open_questions;
mod overview;
mod parking;
mod rate_limit;
mod reconcile;
mod record;
mod registry;
mod reply;
mod resumption;
mod script;
mod server;
mod settle;
mod state;
mod stream;
mod upkeep;
mod waiting;

pub use blob::{BlobError, Blobs, LargeOutput};
pub use cancel::{CancelOrders, CancelWatch};
pub use dead_letters::{DeadLetter, DeadLetters, Pages, Redriven, Span};
pub use ending::settled_by;
pub use error::RedisError;
pub use events::{EventLog, EventTail, TailedEvent};
pub use forget::forget;
pub use journal::JournalWriter;
pub use keys::Keys;
pub use lease::{Held, Leases, RELEASED, Renewal, Takeover};
pub use letter::{LETTER_BYTES, Letter};
pub use link::Link;
pub use open_questions::Open;
pub use overview::{Holder, StreamOverview, overview, registered};
pub use parking::{Moved, ParkingLot, Waiting};
pub use rate_limit::RateLimits;
pub use reconcile::{NodeStates, Reconciler};
pub use registry::WorkerRegistry;
pub use server::{
    Permissions, ServerFacts, ServerIdentity, StreamStats, identity, now_millis, preflight, stream_stats, submit,
};
pub use settle::{Settled, Settlement, Settler};
pub use state::{StateError, StateForm, StateStore};
pub use stream::{RawEntry, WorkStreams};
pub use upkeep::{Mended, Upkeep};
pub use waiting::{Decided, WaitingRoom};
