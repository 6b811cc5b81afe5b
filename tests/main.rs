//! The one test program: what floors do together, against real parts and fixtures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test, and what helps it, fails by panicking"
)]

mod support;

mod contract;
mod house;
mod index;
mod mount;
mod registry;
