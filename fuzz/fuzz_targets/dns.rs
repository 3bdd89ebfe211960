//! Fuzz target: see `lb_tests::fuzz::dns`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_tests::fuzz::dns(bytes));
