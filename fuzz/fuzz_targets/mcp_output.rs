//! Any bytes as the output of an MCP server that is a child process: `make fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| da_node_executor::clients::mcp::fuzz::output(bytes));
