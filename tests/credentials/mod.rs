//! Who asks: credentials from every place where people keep them, against registries that behave like those of the world.
//!
//! [`standin`] is such a registry; [`scene`] brings a sample model, a folder for configuration and an ear for what is logged.

mod interop;
mod login;
mod programs;
mod registries;
mod scene;
mod standin;
mod tokens;
