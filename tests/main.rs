//! The one test program: real registries, real mounts, real engines.
//!
//! One program, so that what costs much (the sample model, the limit on heavy tests) is there once. The shared tools are in
//! `support`; every other module is a kind of test, named after what it goes through.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test fails by panicking, and chooses its own numbers"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "seeds and what a child saw belong into a test's output"
)]
#![allow(unreachable_pub, reason = "a test program has no callers outside it")]

mod cli;
mod engines;
mod model;
mod mount;
mod support;
