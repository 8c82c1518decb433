//! What must hold, one file for each rule; the names are those of the design (I1 to I19). Paper sections stand in each.
//!
//! [`on_read`], [`on_ack`] and [`on_record`] are asked while a run goes on, [`at_end`] once everything is quiet.

pub mod i01_acknowledged_survives;
pub mod i02_nothing_invented;
pub mod i03_names_are_unique;
pub mod i04_context_covers_what_was_seen;
pub mod i05_siblings_are_concurrent;
pub mod i06_ack_means_synced;
pub mod i07_deleted_stays_deleted;
pub mod i08_hints_are_delivered;
pub mod i09_released_on_a_synced_word;
pub mod i10_rings_only_grow;
pub mod i11_nothing_late;
pub mod i12_memory_is_bounded;
pub mod i13_tree_is_the_fold;
pub mod i14_a_seed_is_a_reproduction;
pub mod i15_reads_meet_writes;
pub mod i16_data_types_add_up;
pub mod i17_last_write_wins;
pub mod i18_one_base_per_epoch;
pub mod i19_the_dead_have_no_part;

use dynamo_core::bucket::Conflict;
use dynamo_core::coordinator::WriteOutcome;
use dynamo_core::version::{Dot, KeyState, Seen};

use crate::keys::KeyIx;
use crate::messages::NodeIx;
use crate::node::Node;
use crate::shared::Shared;

/// A client was shown this, having been promised that.
pub fn on_read(sh: &mut Shared, key: KeyIx, state: Option<&KeyState>, promised: &Seen) {
    i15_reads_meet_writes::check(sh, key, state, promised);
    if let Some(state) = state {
        on_state(sh, key, state, "a reply");
        i04_context_covers_what_was_seen::check(sh, key, state);
    }
}

/// A node has written this state of a key.
pub fn on_record(sh: &mut Shared, key: KeyIx, state: &KeyState, node: NodeIx) {
    let whose = format!("a record of n{node}");
    i02_nothing_invented::check(sh, key, state, &whose);
    i05_siblings_are_concurrent::concurrent(sh, key, state, &whose);
    i05_siblings_are_concurrent::count(sh, key, state);
    // Two that are dead take each other's data when they come back, until they hear of it: nobody else does.
    if !sh.buried.contains(&node) {
        i07_deleted_stays_deleted::check(sh, key, state, &whose);
    }
}

/// A client was told that its write is applied.
pub fn on_ack(sh: &mut Shared, number: u32, dot: Dot, outcome: &WriteOutcome, context: &Seen) {
    i03_names_are_unique::check(sh);
    i04_context_covers_what_was_seen::check_put(sh, number, dot, context);
    i06_ack_means_synced::check(sh, number, dot, outcome);
    i16_data_types_add_up::check_put(sh, number, dot, context);
}

/// Everything is quiet.
pub fn at_end(sh: &mut Shared, nodes: &[Node], kept: bool) {
    i03_names_are_unique::check(sh);
    i08_hints_are_delivered::check(sh, nodes);
    i13_tree_is_the_fold::check(sh, nodes);
    for key in sh.keys.all() {
        let state = merged(sh, nodes, key);
        if let Some(state) = &state {
            on_state(sh, key, state, "the final state");
        }
        if kept {
            i01_acknowledged_survives::check(sh, key, state.as_ref());
        }
    }
}

/// All that the primaries know of a key.
pub fn merged(sh: &Shared, nodes: &[Node], key: KeyIx) -> Option<KeyState> {
    let mut merged: Option<KeyState> = None;
    for node in &sh.preference_of(key).0 {
        if let Some(state) = nodes[*node].disk.peek(crate::disk::Place::Data(key)) {
            merged.get_or_insert_default().merge(state);
        }
    }
    merged
}

fn on_state(sh: &mut Shared, key: KeyIx, state: &KeyState, whose: &str) {
    i02_nothing_invented::check(sh, key, state, whose);
    i05_siblings_are_concurrent::check(sh, key, state, whose);
    i07_deleted_stays_deleted::check(sh, key, state, whose);
    let conflict = sh.keys.get(key).conflict;
    if let Some(data_type) = conflict.data_type() {
        i16_data_types_add_up::check(sh, key, data_type, state, whose);
    } else if conflict == Conflict::Lww {
        i17_last_write_wins::check(sh, key, state, whose);
    }
}
