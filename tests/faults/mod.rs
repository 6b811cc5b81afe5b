//! Every fault of a registry against whole models: what passes is not seen, what stays is a bounded error, and what comes
//! right again is read on without opening anything anew.
//!
//! [`kinds`] lists the faults and what each may cost; [`setting`] opens a model over a registry that has them. The other
//! modules go through them: [`matrix`] one by one, [`mixture`] all at once, [`stream`] over a long time with short-lived
//! tokens and addresses, [`outage`] with nobody there, [`names`] with a name that leads nowhere, [`moved`] with a tag that
//! names something else, [`mounted`] through the kernel, [`wire`] the faults themselves.
//!
//! Scaled down by default. `WEIGHTFS_TEST_FAULT_SECONDS=30`, `WEIGHTFS_TEST_READS=100000`, `WEIGHTFS_TEST_STREAM_MIB=20480`
//! and `WEIGHTFS_TEST_OUTAGE=300` (seconds) are the full sizes; what takes long says its figures in one line at its end.

mod figures;
mod kinds;
mod setting;

mod lies;
mod matrix;
mod mixture;
mod mounted;
mod moved;
mod names;
mod outage;
mod stream;
mod wire;

/// A number from the environment, or how much of it an everyday run takes.
fn scale(variable: &str, everyday: u64) -> u64 {
    let asked = std::env::var(variable).ok();
    asked.map_or(everyday, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}
