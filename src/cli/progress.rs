//! How far a long command has come: a bar on standard error where a person watches, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over a known number of bytes, with rate and time left. Clones are the same bar.
#[derive(Clone, Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Shows `doing` and a bar over `total` bytes, if standard error is a terminal.
    pub(super) fn of(doing: &'static str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
        let template = "{prefix} {bar:30} {percent:>3} % {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(doing);
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }

    /// `bytes` more are done.
    pub(super) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Names what is being worked at.
    pub(super) fn name(&self, what: &str) {
        self.0.set_message(super::print::safe(what));
    }

    /// Takes the bar away; what came of it is the command's to say.
    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
