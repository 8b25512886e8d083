//! Nothing lost, nothing twice: real worker processes under a seeded storm of kills, pauses, cut wires and restarts,
//! judged from what stands in Redis and from what the tools and the model counted.
//!
//! `make test` runs the short form, `make soak` the long one; `FAULT_SEED` repeats a run.

mod arena;
mod charges;
mod checker;
mod effects;
mod evidence;
mod fleet;
#[allow(dead_code, reason = "shared with the integration tests, which use all of it")]
#[path = "../it/harness/mod.rs"]
mod harness;
mod items;
mod leftovers;
mod model;
mod network;
mod outage;
mod redis_access;
mod report;
mod scenarios;
mod steps;
mod storm;
mod takeovers;
