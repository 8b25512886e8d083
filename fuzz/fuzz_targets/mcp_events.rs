//! Any bytes as a stream of server-sent events: `cargo +nightly fuzz run mcp_events`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| da_node_executor::clients::mcp::fuzz::events(bytes));
