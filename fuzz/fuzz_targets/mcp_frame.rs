//! Any bytes as one frame of JSON-RPC: `make fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| da_node_executor::clients::mcp::fuzz::frame(bytes));
