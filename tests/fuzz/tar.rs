//! An archive from anybody: refused, or members that lie in it one after the other, the same whether their headers come at
//! once or piece by piece.

use weightfs::codec::tar::{MemberKind, Step, step};

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    let size = data.len() as u64;
    let mut at = 0;
    while let Some(rest) = data.get(at..) {
        let remaining = size - at as u64;
        let whole = step(rest, remaining);
        assert_eq!(piecewise(rest, remaining), whole.as_ref().ok().cloned(), "at {at}");
        match whole {
            Ok(Step::Member(member)) => {
                assert!(member.data > 0 && member.data.saturating_add(member.size) <= remaining);
                assert!(member.next > member.data.saturating_sub(1) && member.next <= remaining);
                assert!(member.size == 0 || member.kind == MemberKind::File);
                at += usize::try_from(member.next).expect("within the input");
            }
            Ok(Step::End(mark)) => return assert!(mark <= remaining),
            Ok(Step::Need(_)) => panic!("there is no more than all of it"),
            Err(_) => return,
        }
    }
}

/// What a reader sees who fetches only what he is told to need.
fn piecewise(rest: &[u8], remaining: u64) -> Option<Step> {
    let mut had = 0;
    for _ in 0..1 << 16 {
        match step(&rest[..had], remaining) {
            Ok(Step::Need(more)) => {
                assert!(more > had as u64 && more <= remaining, "{more} of {remaining}, {had} are here");
                had = usize::try_from(more).expect("within the input");
            }
            found => return found.ok(),
        }
    }
    panic!("more and more is needed");
}
