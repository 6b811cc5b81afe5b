//! Test support that ships with the library: stand-ins for what weightfs talks to.
//!
//! [`registry`] is a whole registry on loopback that can be told to fail in every way that real ones do. The tests
//! put it before every floor, `weightfs demo` mounts from it; nothing else that ships calls in here.

pub mod registry;
