//! What every implementation of a trait must do: one suite a trait, run over each of them.

mod push;
mod repository;
