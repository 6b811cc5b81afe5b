//! Neighbours among chunks: what one request may ask for.

use std::ops::Range;
use std::sync::Arc;

use super::flight::{Flight, Key};

/// Runs of neighbouring numbers, none longer than `longest`. The numbers are ascending.
pub(super) fn runs(chunks: &[u64], longest: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for chunk in chunks {
        match runs.last_mut() {
            Some(run) if run.end == *chunk && run.end - run.start < longest => run.end += 1,
            _ => runs.push(*chunk..*chunk + 1),
        }
    }
    runs
}

/// Flights in groups whose chunks are neighbours.
pub(super) fn contiguous(flights: Vec<(Key, Arc<Flight>)>) -> Vec<Vec<(Key, Arc<Flight>)>> {
    let mut groups: Vec<Vec<(Key, Arc<Flight>)>> = Vec::new();
    for flight in flights {
        let next = |group: &Vec<(Key, Arc<Flight>)>| {
            group.last().is_some_and(|((_, last), _)| last + 1 == flight.0.1)
        };
        match groups.last_mut() {
            Some(group) if next(group) => group.push(flight),
            _ => groups.push(vec![flight]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_make_runs_up_to_the_longest() {
        assert_eq!(runs(&[0, 1, 2, 3, 4, 7, 8], 4), [0..4, 4..5, 7..9]);
        assert_eq!(runs(&[], 4), Vec::<Range<u64>>::new());
        assert_eq!(runs(&[5, 6, 9], u64::MAX), [5..7, 9..10]);
    }
}
