//! Anti-entropy: Merkle trees per partition and their exchange. Paper: §4.7.
