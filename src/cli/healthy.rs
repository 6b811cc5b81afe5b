//! `weightfs healthy`: whether `weightfs serve` answers, for who ends it where it does not.
//!
//! At its control socket, where nobody but its own user gets: what everybody on the node may ask, everybody may keep busy.

use super::print;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::serve::control::{self, Question};

/// Asks the plane whether it answers, and no process of a mount.
///
/// # Errors
/// `NotFound` where nobody listens, `Busy` where no answer comes within a minute, `Storage` where the line breaks.
pub(super) fn run(settings: &Settings) -> Result<()> {
    let socket = settings.serve.control(&settings.state.live);
    match control::ask(&socket, &Question::Health {})? {
        Some(_) => print::line("ok"),
        None => {
            let doing = format!("no 'weightfs serve' listens at {}", socket.display());
            Err(Error::new(Kind::NotFound, doing).hint("say with --state or WEIGHTFS_CONTROL where it does"))
        }
    }
}
