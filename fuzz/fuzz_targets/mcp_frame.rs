//! Any bytes as one frame of JSON-RPC: `cargo +nightly fuzz run mcp_frame`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| da_node_executor::clients::mcp::fuzz::frame(bytes));
