//! What tests share: fixtures and the real parts they run against.

pub(crate) mod artifacts;
pub(crate) mod tar_writers;
