//! The one test program: what floors do together, real registries, real mounts, real engines.
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
    reason = "a test, and what helps it, fails by panicking, and chooses its own numbers"
)]
#![allow(clippy::print_stdout, reason = "seeds, and what a part of a test has to say to it")]
#![allow(unreachable_pub, reason = "a test program has no callers outside it")]

mod support;

mod bench;
mod cache;
mod cli;
mod contract;
mod credentials;
mod engines;
mod faults;
mod fuzz;
mod house;
mod index;
mod model;
mod mount;
mod neighbours;
mod pack;
mod pull;
mod registry;
mod serve;
mod ways;
