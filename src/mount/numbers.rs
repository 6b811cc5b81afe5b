//! How several models share the numbers of one superblock: each has a slot, which stands above its own node numbers.
//!
//! A mount of one model has slot 0, where numbers are as [`handles`](super::handles) makes them. Pure; used by
//! [`answers`](super::answers) and by who routes questions to models.

use fuser::INodeNo;

use super::handles::{Ino, LAST_GENERATION, NODE_BITS};

/// Where the number of a slot stands in a node number, in a superblock that shows several models: above the node and a
/// generation that has few values there.
const SLOT_SHIFT: u32 = 44;

/// What the numbers of one model's nodes have in common: nothing where it has the superblock for itself, else its slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Base(u64);

impl Base {
    /// How many slots a superblock has, from 1 on: numbers stay positive as signed integers. No slot is used twice, since the
    /// kernel may remember what it was told of a former one's numbers.
    pub(super) const SLOTS: u64 = (1 << (63 - SLOT_SHIFT)) - 1;

    /// That of a slot.
    pub(super) fn of(slot: u64) -> Self {
        Self(slot << SLOT_SHIFT)
    }

    /// The slot that a number is of; 0 for those of no model.
    pub(super) fn slot(ino: INodeNo) -> u64 {
        ino.0 >> SLOT_SHIFT
    }

    /// The number as the kernel is told it.
    pub(super) fn outer(self, ino: Ino) -> INodeNo {
        INodeNo(self.0 | ino.0)
    }

    /// The number within the model.
    pub(super) fn inner(self, ino: INodeNo) -> Ino {
        Ino(ino.0 ^ self.0)
    }

    /// The number of no node of a model: what stands beside it in its slot.
    pub(super) fn beside(self, which: u64) -> INodeNo {
        self.outer(Ino(((1 << NODE_BITS) - 1) - which))
    }

    /// The last generation that a node's number may have.
    pub(super) fn last_generation(self) -> u32 {
        match self.0 {
            0 => LAST_GENERATION,
            _ => (1 << (SLOT_SHIFT - NODE_BITS)) - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::NodeId;

    #[test]
    fn a_slots_numbers_are_its_own_and_those_of_a_lone_model_stay_as_they_are() {
        let ino = Ino::new(NodeId::ROOT, 15);
        let (lone, one, two) = (Base::default(), Base::of(1), Base::of(Base::SLOTS));
        assert_eq!((lone.outer(ino).0, lone.inner(INodeNo(ino.0))), (ino.0, ino));
        for base in [one, two] {
            assert_eq!(base.inner(base.outer(ino)), ino);
            assert!(i64::try_from(base.beside(0).0).is_ok());
            assert_eq!(base.inner(base.beside(1)).position().map(|at| at > 1 << 30), Some(true));
        }
        let slots = [lone.outer(Ino(1)), one.outer(ino), one.beside(0), two.outer(ino), two.beside(1)];
        assert_eq!(slots.map(Base::slot), [0, 1, 1, Base::SLOTS, Base::SLOTS]);
        assert_eq!(one.last_generation(), 15, "as far as the numbers go");
    }
}
