//! Anti-entropy: Merkle trees per partition and their exchange. Paper: §4.7.

pub mod tree;
pub mod trees;

pub use tree::{Tree, TreeShape, record_hash};
pub use trees::{TreeState, Trees};
