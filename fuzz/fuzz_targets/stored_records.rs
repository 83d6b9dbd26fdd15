#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_hostile::stored_records::run(data));
