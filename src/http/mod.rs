//! What the worker serves over HTTP: health, metrics, the API, and the scripted model of demos and tests.
//! Handlers read shared facts; only an order of the API waits for what was ordered.

pub mod api;
pub mod health;
pub mod scripted_model;
mod scripted_openai;
pub mod waits;
