//! What the worker serves over HTTP: health, metrics, and the scripted model of demos and tests.
//! Handlers read shared facts and never wait on an actor.

pub mod health;
pub mod scripted_model;
