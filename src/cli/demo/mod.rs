//! What `weightfs demo` is made of.
pub mod registry;

use crate::config::Environment;
use crate::error::Result;

pub(super) fn run(_json: bool, _environment: &Environment) -> Result<()> {
    Ok(())
}
