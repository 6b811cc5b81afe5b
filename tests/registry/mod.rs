//! A registry with faults, for every suite that reads from one, and the tests of the client against it.
//!
//! [`server`] is the registry of the demo with rules around it, [`uploads`] what takes pushes; [`sample`] is a small image
//! layout to serve.

pub(crate) mod sample;
pub(crate) mod server;
pub(crate) mod uploads;

mod answers;
mod authorization;
mod faults;
mod outages;
mod push;
mod redirects;
