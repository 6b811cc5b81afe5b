//! What to load before it is asked for: a policy, not a pipeline.
//!
//! Pure functions: the loader tells what was read and gets ranges to warm; it fetches them as it fetches
//! everything else. A prefetch is never waited for.
//!
//! [`stream`] follows the readers of one file, [`tensors`] and [`gguf`] know where a weight file's tensors
//! lie, and [`opening`] says what a fresh mount loads.

pub mod gguf;
pub mod opening;
pub mod stream;
pub mod tensors;
