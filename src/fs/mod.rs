//! Floor 4: files and folders; knows nothing of FUSE.
//!
//! [`Tree`] is what there is, [`Model`] an artifact opened: pinned, indexed and ready to be read.

mod assemble;
mod growth;
pub mod model;
mod open;
mod pin;
pub mod tree;

#[cfg(test)]
mod mutation_tests;

pub use model::{IndexedBy, Model};
pub use pin::{chunk_names, diff_ids, parent, resolve};
pub use tree::{Child, Node, NodeId, NodeKind, Tree};
