//! I19: a member that was declared dead and comes back after all has no part any more: who knows of it takes nothing about
//! data from it, and once it knows itself it reads for no client. Paper: §4.8.1 (an administrator's word removes a member).

use dynamo_core::transition::Layouts;

use crate::messages::NodeIx;
use crate::shared::Shared;

/// A node takes a message about data.
pub fn heard(sh: &mut Shared, node: NodeIx, layouts: Option<&Layouts>, sender: NodeIx) {
    if is_known_dead(sh, layouts, sender) {
        let what = format!("n{node} takes data from n{sender}, which it knows to be dead");
        sh.violated("I19", what);
    }
}

/// A node begins to read for a client.
pub fn serves(sh: &mut Shared, node: NodeIx, layouts: Option<&Layouts>) {
    if is_known_dead(sh, layouts, node) {
        sh.violated(
            "I19",
            format!("n{node} reads for a client; it knows that it is dead"),
        );
    }
}

fn is_known_dead(sh: &Shared, layouts: Option<&Layouts>, node: NodeIx) -> bool {
    let member = &sh.members[node];
    let known = |layouts: &Layouts| layouts.dead().contains(member) || !layouts.lists(member);
    sh.buried.contains(&node) && layouts.is_some_and(known)
}
