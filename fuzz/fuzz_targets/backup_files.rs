#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate_hostile::backup_files::run(data));
