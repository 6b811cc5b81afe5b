//! What to load before it is asked for: a policy, not a pipeline.
//!
//! Pure functions: the loader tells what was read and gets ranges to warm; it fetches them as it fetches
//! everything else. A prefetch is never waited for.
//!
//! [`stream`] follows the readers of one file, [`tensors`] knows where a weight file's tensors end, and
//! [`opening`] says what a fresh mount loads.

pub mod opening;
pub mod stream;
pub mod tensors;
