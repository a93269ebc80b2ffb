//! Bytes to packets and back.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stafett::mqtt::codec::fuzz_decode(data));
