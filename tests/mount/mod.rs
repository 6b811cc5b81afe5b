//! Tests through a real mount of a real registry: what a person and an engine see.
//!
//! Each file is one promise: every byte right (`bytes`), little fetched (`laziness`), kept bytes (`keeping`), nothing wrong served
//! (`integrity`), a registry that fails (`outage`), the kernel's view (`kernel`), and disks that fail (`disk`).

mod bytes;
mod disk;
mod integrity;
mod keeping;
mod kernel;
mod laziness;
mod outage;
mod parts;
