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

/// The same, and cut where neighbours lie in different places, unless a run would have fewer than `fewest`.
pub(super) fn runs_by_place<P: PartialEq>(
    chunks: &[u64],
    fewest: u64,
    longest: u64,
    place: impl Fn(u64) -> P,
) -> Vec<Range<u64>> {
    let mut cut: Vec<Range<u64>> = Vec::new();
    let mut at = None;
    for run in runs(chunks, u64::MAX) {
        let mut start = run.start;
        for chunk in run.clone() {
            let here = Some(place(chunk));
            let len = chunk - start;
            if len >= longest || (len >= fewest && here != at) {
                cut.push(start..chunk);
                start = chunk;
            }
            at = here;
        }
        cut.push(start..run.end);
    }
    cut
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

    #[test]
    fn runs_end_where_places_do_unless_they_were_too_short() {
        let chunks: Vec<u64> = (2..13).collect();
        assert_eq!(runs_by_place(&chunks, 1, 16, |chunk| chunk / 4), [2..4, 4..8, 8..12, 12..13]);
        assert_eq!(runs_by_place(&chunks, 3, 16, |chunk| chunk / 4), [2..8, 8..12, 12..13]);
        assert_eq!(runs_by_place(&chunks, 2, 16, |chunk| chunk), [2..4, 4..6, 6..8, 8..10, 10..12, 12..13]);
        assert_eq!(runs_by_place(&chunks, 1, 5, |_| ()), [2..7, 7..12, 12..13]);
        assert_eq!(runs_by_place(&[1, 2, 5], 1, 5, |_| ()), [1..3, 5..6]);
        assert_eq!(runs_by_place(&[], 1, 5, |_| ()), Vec::<Range<u64>>::new());
    }
}
