//! The tests of the registry's client against a registry with faults, which every suite may use.
//!
//! The registry itself is the library's `testing::registry`; [`server`] starts it, [`uploads`] is what takes pushes around it;
//! [`tls`] puts TLS before it; [`sample`] is a small image layout to serve.

pub(crate) mod sample;
pub(crate) mod server;
pub(crate) mod uploads;

mod answers;
mod authorization;
mod faults;
mod outages;
mod push;
mod redirects;
pub(crate) mod tls;
