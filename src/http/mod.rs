//! What the worker serves over HTTP: health, metrics, and the scripted model of demos and tests.
//! Handlers read shared facts and never wait on an actor.

pub mod health;
//! What this process serves over HTTP.
pub mod scripted_model;
