//! Tests against real servers, in one binary. Each module holds one subject; `harness` starts what they need.

mod harness;
mod scripts;
