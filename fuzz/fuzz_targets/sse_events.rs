//! Any bytes as a stream of server-sent events: `make fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| da_node_executor::clients::fuzz::events(bytes));
