//! Names of files in the making, which nobody else has: not another process of our number in a container of its own, and
//! not one that was killed.
//!
//! Only names. Whoever makes a file under one does so with `O_EXCL`, and [`make`] sees to it that what is there already
//! is left to whom it belongs. Image layouts that are pushed into and folders that are pulled into use it.

use std::hash::{BuildHasher, RandomState};

/// What every such name begins with.
pub(crate) const BEGINS: &str = ".weightfs-";
/// How many names are tried. One that is taken is a wonder; many in a row are a file system that says so of everything.
const TRIES: usize = 16;

/// Makes something under a name of its own: `make(name)` is called with others while `is_taken` says of its error that
/// something has the name. Gives the name and what was made.
///
/// # Errors
/// The last one of `make`.
pub(crate) fn make<T, E>(
    mut make: impl FnMut(&str) -> Result<T, E>,
    is_taken: impl Fn(&E) -> bool,
) -> Result<(String, T), E> {
    let mut tries = 1;
    loop {
        let name = name();
        match make(&name) {
            Err(error) if is_taken(&error) && tries < TRIES => tries += 1,
            made => return made.map(|made| (name, made)),
        }
    }
}

/// A name with 128 bits that the system drew, which nobody can guess.
fn name() -> String {
    let keys = RandomState::new();
    format!("{BEGINS}{:016x}{:016x}.tmp", keys.hash_one(0), keys.hash_one(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_comes_twice() {
        let draw = || (0..1000).map(|_| name()).collect::<Vec<_>>();
        let names: BTreeSet<_> = [std::thread::spawn(draw), std::thread::spawn(draw)]
            .into_iter()
            .flat_map(|drawing| drawing.join().unwrap())
            .collect();
        assert_eq!(names.len(), 2000);
    }

    #[test]
    fn a_name_that_is_taken_is_left_and_another_used_but_not_for_ever() {
        let mut seen = Vec::new();
        let busy = |name: &str, free: usize| {
            seen.push(name.to_owned());
            if seen.len() > free { Ok(seen.len()) } else { Err("taken") }
        };
        let mut busy = busy;
        let (name, made) = make(|name| busy(name, 3), |error| *error == "taken").unwrap();
        assert_eq!(made, 4);
        assert_eq!(seen.last(), Some(&name));
        let mut count = 0;
        let never = |_: &str| {
            count += 1;
            Err::<(), _>("taken")
        };
        assert!(make(never, |error| *error == "taken").is_err() && count == TRIES);
        assert_eq!(make(|_| Err::<(), _>("broken"), |error| *error == "taken").unwrap_err(), "broken");
    }
}
