//! Tests against real servers, in one binary. Each module holds one subject; `harness` starts what they need.

mod aimock;
mod approval;
mod blobs;
mod cancel;
mod chaos;
mod cli;
mod concurrency;
mod config_start;
mod dead_letters;
mod deadlines;
mod elicitation;
mod errors;
mod events;
#[path = "../mcp/example.rs"]
mod example;
#[cfg(not(feature = "failpoints"))]
mod failpoints;
mod harness;
mod health;
mod hostile;
mod identity;
mod janitor;
mod journal;
mod layouts;
mod limits;
mod local_model;
mod malformed;
mod modes;
mod openai;
mod parking;
mod reconcile;
mod redis_trouble;
mod retries;
mod scripts;
mod session;
mod shutdown;
mod status;
mod supervision;
mod takeover;
mod tasks;
mod tls;
mod tool_results;
mod tool_servers;
mod waiting;
