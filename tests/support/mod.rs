//! What tests share: fixtures and the real parts they run against.

pub(crate) mod artifacts;
mod dialects;
pub(crate) mod tar_writers;
