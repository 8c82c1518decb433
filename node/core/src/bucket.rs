//! What holds for the keys of one bucket: replicas, conflicts, expiry.
