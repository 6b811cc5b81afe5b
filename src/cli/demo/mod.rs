//! What `weightfs demo` is made of.

pub mod registry;
