//! Tests of adding an index, over a repository in memory.
