//! Floor 6: those who ask for mounts: which run, who serves them, and the plane that looks after all of a node.
//!
//! [`State`] has the record of every mount that runs on this machine. [`Plane`] is what `weightfs serve` is: it starts one
//! process for each artifact that is asked for, shows it wherever it is asked for, and starts it again when it dies. [`control`],
//! [`csi`], [`snapshots`] and [`page`] are the ways to it. Every model is still mounted by [`Mount::open`](crate::mount::Mount::open), in a process of
//! its own.

pub mod artifacts;
mod book;
mod claims;
pub mod control;
pub mod csi;
pub mod dynamic;
mod exposition;
mod host;
pub mod inherited;
pub mod listen;
pub mod notify;
mod operations;
pub mod page;
mod places;
mod plane;
pub mod process;
mod put;
mod refused;
pub mod report;
mod showing;
pub mod snapshots;
pub mod start;
pub mod state;
mod terms;
mod turns;
mod view;
mod volumes;
mod wish;

pub use artifacts::{Artifacts, Registered};
pub use book::{Origin, Overrides, Volume};
pub use inherited::Inherited;
pub use listen::{Listen, Listening};
pub use plane::{Config, Plane, Settle, configuration};
pub use process::Process;
pub use state::{Record, State, StateConfig};
pub use terms::{Renewal, Room, Terms};
pub use view::{Condition, Shown};
pub use volumes::{Published, Wanted};
pub use wish::{INTEGRITY, Settled, Wish};
