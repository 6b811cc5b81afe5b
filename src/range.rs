//! The two number spaces of a layer, each a type of its own: stored bytes and content.
//!
//! A bare `u64` offset crosses no function boundary: who holds a [`StoredRange`] can ask a repository for
//! it, who holds a [`ContentRange`] can not.

use std::fmt;

macro_rules! range {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            start: u64,
            end: u64,
        }

        impl $name {
            /// The bytes from `start` to before `end`; an `end` before `start` makes an empty range at `start`.
            #[must_use]
            pub const fn new(start: u64, end: u64) -> Self {
                Self { start, end: if end < start { start } else { end } }
            }

            /// `len` bytes from `start` on, or `None` where the end does not fit 64 bits.
            #[must_use]
            pub const fn at(start: u64, len: u64) -> Option<Self> {
                match start.checked_add(len) {
                    Some(end) => Some(Self { start, end }),
                    None => None,
                }
            }

            /// The first byte.
            #[must_use]
            pub const fn start(self) -> u64 {
                self.start
            }

            /// One past the last byte.
            #[must_use]
            pub const fn end(self) -> u64 {
                self.end
            }

            /// How many bytes.
            #[must_use]
            pub const fn len(self) -> u64 {
                self.end - self.start
            }

            /// Whether it holds no byte.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.end == self.start
            }

            /// What both ranges hold; empty, at the later start, where they do not meet.
            #[must_use]
            pub fn meet(self, other: Self) -> Self {
                Self::new(self.start.max(other.start), self.end.min(other.end))
            }

            /// Whether `other` lies within this range.
            #[must_use]
            pub const fn covers(self, other: Self) -> bool {
                self.start <= other.start && other.end <= self.end
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}..{})"), self.start, self.end)
            }
        }

        impl fmt::Display for $name {
            /// First and last byte, as HTTP writes them: `0-4194303`.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if self.is_empty() {
                    write!(f, "{} (empty)", self.start)
                } else {
                    write!(f, "{}-{}", self.start, self.end - 1)
                }
            }
        }
    };
}

range! {
    /// A stretch of a blob as the repository keeps it.
    StoredRange
}

range! {
    /// A stretch of a layer once decoded, or of one file of it where the text says so.
    ContentRange
}
