//! Whether the kernel serves complete files by itself (passthrough), and why not where it does not.
//!
//! One verdict for the mount: what refuses one file (the kernel, a missing capability, where the store lies) refuses all. It is
//! asked anew whenever a complete file is opened that has no live handles, so that what has passed is forgotten. Used by
//! [`answers`](super::answers).

use std::io;

use nix::errno::Errno;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::metrics::Metrics;

/// Whether complete files are given to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passthrough {
    /// Where the kernel takes them: such that are complete when they are opened, and that nobody has open by replies.
    #[default]
    Auto,
    /// The same, and such that became complete while they were open: they get another number for it, for who opens them then. Not
    /// for who has an overlay above the mount, or something mounted over a file of it from where this process does not see it.
    Swap,
    /// Never: everything is served by replies.
    Off,
}

/// Why the kernel serves no file by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It was turned off.
    Off,
    /// Linux before 6.9, or one built without it.
    Kernel,
    /// The process has no CAP_SYS_ADMIN.
    Permission,
    /// The store lies on a file system that is itself stacked upon another, as an overlay is.
    Stacked,
    /// Whatever else; it may pass.
    Other,
}

impl Refusal {
    /// What FUSE_DEV_IOC_BACKING_OPEN says (Linux, fs/fuse/backing.c); ENOTTY is a kernel that does not know it.
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => Self::Permission,
            Some(Errno::ELOOP) => Self::Stacked,
            Some(Errno::ENOTTY | Errno::ENOSYS | Errno::EOPNOTSUPP) => Self::Kernel,
            _ => Self::Other,
        }
    }

    /// One word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Kernel => "kernel",
            Self::Permission => "permission",
            Self::Stacked => "stacked",
            Self::Other => "refused",
        }
    }

    /// Whether nothing can change it while the mount lasts.
    fn is_final(self) -> bool {
        matches!(self, Self::Off | Self::Kernel)
    }

    fn count(self, metrics: &Metrics) {
        let counter = match self {
            Self::Off => return,
            Self::Kernel => &metrics.unknown_passthroughs,
            Self::Permission => &metrics.denied_passthroughs,
            Self::Stacked => &metrics.stacked_passthroughs,
            Self::Other => &metrics.refused_passthroughs,
        };
        counter.add(1);
    }
}

/// What the kernel said last.
#[derive(Debug)]
pub(super) struct Verdict(Mutex<Answer>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// It was not asked yet.
    Unasked,
    Taken,
    Refused(Refusal),
}

impl Verdict {
    /// Nothing is known but what was set.
    pub(super) fn new(set: Passthrough) -> Self {
        Self(Mutex::new(match set {
            Passthrough::Off => Answer::Refused(Refusal::Off),
            Passthrough::Auto | Passthrough::Swap => Answer::Unasked,
        }))
    }

    /// Why no file is given to the kernel now; `None` where nothing is known to speak against it.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        match *self.0.lock() {
            Answer::Refused(refusal) => Some(refusal),
            Answer::Unasked | Answer::Taken => None,
        }
    }

    /// Whether the kernel has taken a file, and refused none since.
    pub(super) fn is_taken(&self) -> bool {
        *self.0.lock() == Answer::Taken
    }

    /// Whether the kernel was never asked.
    pub(super) fn is_unasked(&self) -> bool {
        *self.0.lock() == Answer::Unasked
    }

    /// Takes down what came of a file that the kernel was asked to take only to find out.
    pub(super) fn learn<B>(&self, answer: &io::Result<B>) {
        *self.0.lock() =
            answer.as_ref().err().map_or(Answer::Taken, |error| Answer::Refused(Refusal::of(error)));
    }

    /// Whether it is worth asking the kernel to take a file.
    pub(super) fn may_ask(&self) -> bool {
        !self.refusal().is_some_and(Refusal::is_final)
    }

    /// Takes down that this kernel has no passthrough.
    pub(super) fn unknown(&self) {
        let mut verdict = self.0.lock();
        if *verdict != Answer::Refused(Refusal::Off) {
            *verdict = Answer::Refused(Refusal::Kernel);
        }
    }

    /// Takes down what came of a file that the kernel was asked to take, counts a refusal, and gives it on.
    pub(super) fn heard<B>(&self, answer: io::Result<B>, metrics: &Metrics) -> io::Result<B> {
        if let Err(error) = &answer {
            Refusal::of(error).count(metrics);
        }
        self.learn(&answer);
        answer
    }
}

/// How many files the kernel serves by itself, or would if they were opened now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Native {
    /// So many.
    pub files: u64,
    /// Of so many that have content.
    pub total: u64,
    /// How many of the others are not, by the reason: `off`, `kernel` (before Linux 6.9), `permission` (not root), `stacked` (the
    /// store lies on an overlay), `refused`; of single files `incomplete`, `unproved`, `unsealed` (not read back yet), `open` (served
    /// by replies since before it was whole), `unasked` (no file was opened yet, so that nobody knows what the kernel says).
    pub why_not: std::collections::BTreeMap<String, u64>,
}

impl Native {
    /// Adds those of another model.
    pub(super) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.total += other.total;
        for (reason, count) in other.why_not {
            *self.why_not.entry(reason).or_default() += count;
        }
    }

    /// Counts a file that is served by itself, or why it is not.
    pub(super) fn count(&mut self, why_not: Option<&str>) {
        self.total += 1;
        match why_not {
            None => self.files += 1,
            Some(reason) => *self.why_not.entry(reason.to_owned()).or_default() += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> io::Result<()> {
        Err(errno.into())
    }

    #[test]
    fn each_refusal_has_its_reason_and_its_counter_and_passes_with_the_next_success() {
        let (verdict, metrics) = (Verdict::new(Passthrough::Auto), Metrics::default());
        let reasons = [
            (Errno::EPERM, Refusal::Permission),
            (Errno::ELOOP, Refusal::Stacked),
            (Errno::EMFILE, Refusal::Other),
            (Errno::ENOTTY, Refusal::Kernel),
        ];
        for (errno, refusal) in reasons {
            assert!(verdict.heard(error(errno), &metrics).is_err());
            assert_eq!(verdict.refusal(), Some(refusal));
            assert_eq!(verdict.may_ask(), errno != Errno::ENOTTY, "{errno}");
        }
        let counted = [
            &metrics.denied_passthroughs,
            &metrics.stacked_passthroughs,
            &metrics.refused_passthroughs,
            &metrics.unknown_passthroughs,
        ];
        assert_eq!(counted.map(|counter| counter.value()), [1; 4]);
        assert!(!verdict.is_taken());
        verdict.heard(Ok(()), &metrics).unwrap();
        assert_eq!(verdict.refusal(), None);
        assert!(verdict.is_taken());
    }

    #[test]
    fn a_kernel_that_was_not_asked_counts_neither_as_taking_files_nor_as_refusing_them() {
        let verdict = Verdict::new(Passthrough::Swap);
        assert!(verdict.may_ask() && verdict.is_unasked() && !verdict.is_taken());
        assert_eq!(verdict.refusal(), None);
        verdict.learn(&error(Errno::EPERM));
        assert!(!verdict.is_unasked() && !verdict.is_taken());
        assert_eq!(verdict.refusal(), Some(Refusal::Permission));
        verdict.learn(&io::Result::Ok(()));
        assert!(verdict.is_taken());
    }

    #[test]
    fn what_was_turned_off_stays_off_whatever_the_kernel_knows() {
        let verdict = Verdict::new(Passthrough::Off);
        verdict.unknown();
        assert_eq!(verdict.refusal(), Some(Refusal::Off));
        assert!(!verdict.may_ask());
    }
}
