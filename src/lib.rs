//! DA Node Executor: a worker that runs the nodes of AI-agent graphs from Redis Streams.
//!
//! ```text
//!  Redis  executor.work ─► StreamReader ──(permit + item)──► NodeExecutor ×N ──► Publisher ─► one settle script ─► Redis
//!              ▲              │  ▲                             │  ▲  │
//!              └─ LeaseKeeper ┘  └──────── permit freed ───────┘  │  ├─► StateStore: load what templates name
//!                 own thread                                      │  ├─► LlmActor (one per provider)
//!                                                                 │  └─► McpSessionActor (one per server) / function registry
//!                                       lost or cancelled ────────┘
//! ```
//!
//! Imports point down only: `cli` and `app` over `http` and `actors`, those over `modes` and `clients`, all over
//! `ports`, `config` and `domain`. `tests/layers.rs` holds it. Start reading at [`actors::executor`].

pub mod actors;
pub mod app;
pub mod cli;
pub mod clients;
pub mod config;
pub mod domain;
pub mod failpoint;
pub mod health;
pub mod http;
pub mod metrics;
pub mod modes;
pub mod ports;
pub mod retry;
pub mod telemetry;
pub mod tools;

pub use cli::worker::Worker;
