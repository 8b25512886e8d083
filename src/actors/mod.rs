//! Thin shells around the work: each actor owns an address, a restart rule and a few handles.
//!
//! [`reader`] pulls entries and [`lease`] keeps them ours; [`pool`] spreads them over [`executor`]s; those ask
//! [`store`], [`llm`] and [`mcp`] through [`handles`] and hand every result to [`publisher`]. [`custody`] is what
//! travels with an item, [`supervise`] rebuilds what dies, [`progress`] and [`registrar`] tell the outside. [`mover`]
//! brings nodes back that waited outside of the stream, [`janitor`] cleans up.

pub mod circuit;
pub mod custody;
pub mod executor;
pub mod handles;
pub mod janitor;
pub mod kept;
pub mod lease;
pub mod llm;
pub mod mcp;
pub mod messages;
pub mod mover;
pub mod pace;
pub mod pool;
pub mod progress;
pub mod publisher;
pub mod reader;
pub mod registrar;
pub mod routes;
pub mod store;
pub mod supervise;
