//! Tests through a real mount of a real registry: what a person and an engine see.
//!
//! Each file is one promise: every byte right (`bytes`), little fetched (`laziness`), kept bytes (`keeping`), nothing wrong served
//! (`integrity`, and `bound` where a model brings its own chunk digests), a registry that fails (`outage`), the kernel's view (`kernel`), what the kernel serves by itself (`native`), readers at random (`scattered`), disks that fail (`disk`), compressed layers without an index (`compressed`, and `guided` where they say themselves where their parts lie), and a mount
//! within the test's own process, over a repository in memory (`library`).

mod bound;
mod bytes;
mod compressed;
mod disk;
mod guided;
mod integrity;
mod keeping;
mod kernel;
mod laziness;
mod library;
mod native;
mod outage;
mod parts;
mod scattered;
