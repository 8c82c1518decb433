//! Who is who: addresses that lead to others, and a former member that comes back.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::membership::View;
use dynamo_core::types::Incarnation;
use dynamo_core::version::{Actor, Content, Dot, KeyState, Seen, Sibling, Stamp};

use super::World;
use crate::disk::{Batch, Disk, Place, Value};
use crate::messages::{Body, Envelope, NodeIx, Reply, Request};
use crate::node::{Node, boot};
use crate::shared::Event;

impl World {
    /// All nodes but a ghost.
    pub(super) fn members(&self) -> &[Node] {
        &self.nodes[..self.sh.knobs.nodes]
    }

    /// Two nodes are found at each other's address.
    pub(super) fn swap(&mut self, index: usize, one: NodeIx, other: NodeIx, ms: u64) {
        self.sh.net.at[one] = Some(other);
        self.sh.net.at[other] = Some(one);
        self.undo_later(index, ms);
    }

    /// Somebody of another cluster is asked: it refuses, and writes to the asker whatever it has itself.
    pub(super) fn stranger(&mut self, asked: &Envelope) {
        let (from, to, call) = (asked.from, asked.to, asked.call);
        let life = Incarnation {
            generation: 1,
            id: u64::MAX,
        };
        self.sh.stats.refused += 1;
        let refusal = Body::Reply(Reply::NotServing);
        self.sh.send(to, (life, (1, 1, None)), from, call, refusal);
        let dot = Dot {
            actor: Actor {
                incarnation: life.id,
                epoch: 1,
            },
            counter: 1,
        };
        let foreign = Sibling {
            stamp: Stamp::default(),
            expires_at_ms: None,
            op_id: None,
            content: Content::Value(Bytes::from_static(b"of another cluster")),
        };
        let key = self.sh.fresh() as u32 % (self.sh.knobs.keys + self.sh.knobs.others.len() as u32);
        let write = Request::Write {
            key,
            state: Rc::new(KeyState::from_write(&Seen::new(), dot, foreign)),
            hint_for: None,
            sync: false,
        };
        let call = self.sh.fresh();
        let at_us = self.sh.now_us + 1000;
        let envelope = Envelope {
            from: to,
            incarnation: life,
            cluster: 1,
            epochs: (1, 1, None),
            to: from,
            call,
            body: Body::Request(write),
        };
        self.sh.queue.push(at_us, Event::Arrive(Box::new(envelope)));
    }

    /// A former member starts on an old disk: its view knows the ring that listed it, its records and hints are those of
    /// the first node back then, the hints for everybody.
    pub(super) fn ghost(&mut self, back_ms: u64) {
        let (me, now_us) = (self.sh.knobs.nodes, self.sh.now_us);
        let since_us = now_us.saturating_sub(back_ms * 1000);
        let copy = self.copies[0].iter().rev().find(|(at_us, ..)| *at_us <= since_us);
        let (Some((_, disk, _)), Some(former), None) = (copy.cloned(), &self.sh.former, self.nodes.get(me))
        else {
            return;
        };
        let mut node = Node::new(me);
        let life = Incarnation {
            generation: 1,
            id: u64::MAX - 1,
        };
        let mut view = View::new(
            former.cluster_id(),
            node.entry(&self.sh, life, 1),
            Some(Arc::clone(former)),
        );
        if let Some(peer) = self.nodes.iter().find_map(|node| node.process.as_ref()) {
            let mut known = peer.view.answer(&view.digest()).delta;
            known.ring = None;
            known.log.clear();
            view.merge(known);
        }
        let (mut records, mut hints) = (Batch::default(), Batch::default());
        for (place, value) in disk.iter() {
            if let Place::Data(key) = place {
                records.put(*place, value.clone());
                for owner in 0..me {
                    hints.put(Place::Hint(owner, *key), value.clone());
                }
            }
        }
        let meta = [
            (boot::incarnation_place(), boot::incarnation_bytes(life)),
            (Place::Meta(boot::STARTS), boot::number_bytes(1)),
            (Place::Meta(boot::CONFIRMED), Bytes::new()),
            (Place::Meta(boot::VIEW), view.encode()),
        ];
        for (place, bytes) in meta {
            records.put(place, Value::Bytes(bytes));
        }
        let write = |disk: &mut Disk, batch| {
            disk.write(batch);
            disk.sync();
        };
        write(&mut node.disk, records);
        write(&mut node.hints, hints);
        node.known = true;
        node.start(&mut self.sh);
        self.nodes.push(node);
        self.copies.push(Vec::new());
    }
}
