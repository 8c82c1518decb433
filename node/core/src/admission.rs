//! How much background work the foreground leaves room for. Paper: §6.5.
