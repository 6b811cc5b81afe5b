//! The index of raw and tar layers, derived from descriptors and from tar headers read by hopping.
