//! Floor 6: those who ask for mounts: which run, who serves them, and the plane that looks after all of a node.
//!
//! [`State`] has the record of every mount that runs on this machine. [`Plane`] is what `weightfs serve` is: it starts one
//! process for each artifact that is asked for, shows it wherever it is asked for, and starts it again when it dies. [`control`],
//! [`csi`], [`snapshots`] and [`page`] are the ways to it. Every model is still mounted by [`Mount::open`](crate::mount::Mount::open), in a process of
//! its own.

mod book;
pub mod control;
pub mod csi;
mod exposition;
mod host;
pub mod listen;
pub mod notify;
pub mod page;
mod plane;
pub mod process;
pub mod snapshots;
pub mod start;
pub mod state;
mod view;
mod volumes;
mod wish;

pub use book::{Origin, Overrides, Volume};
pub use listen::{Listen, Listening};
pub use plane::{Config, Plane, Settle, configuration};
pub use process::Process;
pub use state::{Record, State, StateConfig};
pub use view::{Condition, Shown};
pub use volumes::Published;
pub use wish::{Settled, Wish};
