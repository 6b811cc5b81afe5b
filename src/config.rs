//! Roof: settings (see lib.rs).
