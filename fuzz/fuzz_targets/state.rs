//! The state machine of a connection.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stafett::mqtt::fuzz_state(data));
