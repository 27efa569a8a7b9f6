#![no_main]

libfuzzer_sys::fuzz_target!(|payload: &[u8]| iot_ingest::fuzz::feed("line_protocol", payload));
