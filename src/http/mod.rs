//! What this process serves over HTTP.

pub mod scripted_model;
