//! Two-phase removal of tombstones.
