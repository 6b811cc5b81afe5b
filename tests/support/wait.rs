//! Waiting for a condition, with an end.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(20);

/// Asks `holds` until it says yes.
///
/// # Panics
/// After `limit`, with `what`.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    assert!(eventually(limit, &mut holds), "waited {limit:?} in vain: {what}");
}

/// Whether `holds` says yes within `limit`.
pub fn eventually(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !holds() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}

/// Asks `holds` again and again, hardly with a pause, for what may be over soon; gives how long it took until it said yes.
///
/// # Panics
/// After `limit`, with `what`.
pub fn closely(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_micros(500));
    }
    begun.elapsed()
}

/// Waits until `value` has stayed the same for half a second, and gives it.
///
/// # Panics
/// When it is still moving after a minute.
pub fn settled<T: PartialEq + Copy>(what: &str, mut value: impl FnMut() -> T) -> T {
    let calm = Duration::from_millis(500);
    let (mut last, mut since) = (value(), Instant::now());
    until(&format!("{what} settles"), Duration::from_secs(60), || {
        let now = value();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() >= calm
    });
    last
}

/// The exit status of `child` if it ends within `limit`; else it is killed and the answer is `None`.
pub fn ended(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    eventually(limit, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if status.is_none() {
        let _already_gone = child.kill();
        child.wait().unwrap();
    }
    status
}
