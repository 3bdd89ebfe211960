//! Fuzz target: see `lb_tests::fuzz::packet`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_tests::fuzz::packet(bytes));
