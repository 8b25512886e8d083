//! Any bytes as the answer of a model that comes in pieces: `make fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| da_node_executor::clients::fuzz::model_stream(bytes));
