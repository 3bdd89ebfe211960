//! Fuzz target: see `lb_tests::fuzz::allocations`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_tests::fuzz::allocations(bytes));
