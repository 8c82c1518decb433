//! Where hints go. Paper: §4.6.
