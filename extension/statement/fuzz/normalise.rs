#![no_main]

mod check;
mod reference;

libfuzzer_sys::fuzz_target!(|input: &[u8]| check::normalise(input));
