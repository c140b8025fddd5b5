//! Fuzzes `outrider_tests::strangers::config`, which says what must hold.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| outrider_tests::strangers::config::check(bytes));
