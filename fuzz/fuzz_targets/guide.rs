//! Fuzzes the target of this name in `tests/fuzz`, where its corpus is replayed as well.
#![no_main]

#[path = "../../tests/fuzz/guide.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
