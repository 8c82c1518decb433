//! How a store that cannot be trusted becomes whole again.
