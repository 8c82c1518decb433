//! Faults begin and end. What a fault destroys is asked of the atlas first.

use dynamo_core::admission::Task;

use super::members::Wanted;
use super::{COPY_MS, Phase, World};
use crate::atlas;
use crate::disk::{Disk, Place};
use crate::knobs::Durability;
use crate::messages::NodeIx;
use crate::nemesis::Fault;
use crate::shared::{Event, Shared};

impl World {
    pub(super) fn undo_later(&mut self, index: usize, after_ms: u64) {
        let at_us = self.sh.now_us + after_ms * 1000;
        self.sh.queue.push(at_us, Event::Undo(index));
    }

    pub(super) fn begin_fault(&mut self, index: usize) {
        let (_, fault) = self.plan[index];
        let now_us = self.sh.now_us;
        self.sh.trace.mix(&[now_us, 5, index as u64]);
        self.sh.trace.line(now_us, || format!("FAULT {index} {fault:?}"));
        self.sh.stats.faults += 1;
        match fault {
            Fault::Kill(node, ms) => self.take_down(index, node, ms, false),
            Fault::Power(node, ms) => self.take_down(index, node, ms, true),
            Fault::PowerAll(ms) => {
                for node in 0..self.nodes.len() {
                    self.take_down(index, node, ms, true);
                }
            }
            Fault::Stop(node, ms) => {
                if self.nodes[node].down_by.is_none() && self.nodes[node].process.is_some() {
                    self.nodes[node].stop(&mut self.sh);
                    self.nodes[node].dark = false;
                    self.break_calls(node);
                    self.nodes[node].down_by = Some(index);
                    self.undo_later(index, ms);
                }
            }
            Fault::Pause(node, ms) => {
                let until_us = now_us + ms * 1000;
                self.nodes[node].paused_until_us = until_us;
            }
            Fault::Split(..) | Fault::OneWay(..) => {
                self.each_cut(fault, |sh, from, to| sh.net.cut(from, to));
                let (Fault::Split(_, ms) | Fault::OneWay(_, _, ms)) = fault else {
                    return;
                };
                self.undo_later(index, ms);
            }
            Fault::Clog(node, ms) => self.sh.net.clog(node, now_us + ms * 1000),
            Fault::SlowLink(node, by_ms, ms) => {
                self.sh.net.slow_us[node] = by_ms * 1000;
                self.undo_later(index, ms);
            }
            Fault::SlowDisk(node, by_ms, ms) => {
                self.nodes[node].disk.slow_us = by_ms * 1000;
                self.nodes[node].hints.slow_us = by_ms * 1000;
                self.undo_later(index, ms);
            }
            Fault::DiskStall(node, ms) => {
                let until_us = now_us + ms * 1000;
                self.nodes[node].disk.stalled_until_us = until_us;
                self.nodes[node].hints.stalled_until_us = until_us;
            }
            Fault::DiskFull(node, ms) => {
                self.nodes[node].disk.full = true;
                self.nodes[node].hints.full = true;
                self.undo_later(index, ms);
            }
            Fault::FailSync(node, _) => self.nodes[node].disk.fail_sync = true,
            Fault::ReadError(node, ms) => {
                self.nodes[node].disk.read_errors = true;
                self.undo_later(index, ms);
            }
            Fault::Corrupt(node, random) => self.corrupt(node, random),
            Fault::EmptyDisk(node, ms) => self.empty(index, node, ms),
            Fault::OldDisk(node, back_ms, ms) => self.put_back(index, node, back_ms, ms),
            Fault::ClockStep(node, ms) => {
                let skew_ms = &mut self.nodes[node].clock.skew_ms;
                *skew_ms = skew_ms
                    .saturating_add(ms)
                    .clamp(-400_000_000_000, 400_000_000_000);
            }
            Fault::Deafen(node, ms) => self.sh.deaf_until_us[node] = now_us + ms * 1000,
            Fault::Commit(node, random) => self.commit(node, Wanted::Any(random)),
            Fault::Members(node, bits) => self.commit(node, Wanted::These(bits)),
            Fault::Bury(node, _, back_ms) => self.bury(index, node, back_ms),
            Fault::Swap(one, other, ms) => self.swap(index, one, other, ms),
            Fault::Stranger(node, ms) => {
                self.sh.net.at[node] = None;
                self.undo_later(index, ms);
            }
            Fault::PauseTask(node, task, ms) => {
                self.pause_task(node, task, true);
                self.undo_later(index, ms);
            }
            Fault::Ghost(back_ms) => self.ghost(back_ms),
            Fault::ClockDrift(node, rate) => {
                // A running process would see its monotonic clock jump.
                if self.nodes[node].process.is_none() {
                    self.nodes[node].clock.rate = rate;
                }
            }
        }
    }

    /// A process that is started anew has forgotten it, as the real one has.
    fn pause_task(&mut self, node: NodeIx, task: Task, paused: bool) {
        let process = self.nodes[node].process.as_mut();
        if let Some(admission) = process.and_then(|process| process.admission.as_mut()) {
            admission.pause(task, paused);
        }
    }

    fn take_down(&mut self, index: usize, node: NodeIx, ms: u64, power: bool) {
        if self.nodes[node].down_by.is_some() {
            return;
        }
        self.excused |= power && self.sh.knobs.durability != Durability::Every;
        self.crash(node, power);
        self.nodes[node].down_by = Some(index);
        self.undo_later(index, ms);
    }

    fn corrupt(&mut self, node: NodeIx, random: u64) {
        let Some(key) = atlas::nth_record(&self.nodes[node].disk, random) else {
            return;
        };
        if atlas::may_corrupt(&self.sh, self.members(), node, key) {
            self.nodes[node].disk.corrupt(Place::Data(key));
            self.sh.stats.amnesias += 1;
            let now_us = self.sh.now_us;
            self.sh
                .trace
                .line(now_us, || format!("n{node}: key {key} is damaged"));
        } else {
            self.sh.stats.spared += 1;
        }
    }

    fn empty(&mut self, index: usize, node: NodeIx, ms: u64) {
        if self.nodes[node].down_by.is_some() {
            return;
        }
        if !atlas::may_empty(&self.sh, self.members(), node) {
            self.sh.stats.spared += 1;
            return;
        }
        self.take_down(index, node, ms, true);
        self.sh.stats.amnesias += 1;
        self.sh.old[node] = None;
        self.nodes[node].disk = Disk::default();
        self.nodes[node].unwhole = true;
        self.nodes[node].hints = Disk::default();
        let now_us = self.sh.now_us;
        self.sh.trace.line(now_us, || {
            format!("n{node}: the disk is replaced by an empty one")
        });
    }

    /// The disk is replaced by a copy of what it held that long ago.
    fn put_back(&mut self, index: usize, node: NodeIx, back_ms: u64, ms: u64) {
        let wanted_us = self.sh.now_us.saturating_sub(back_ms * 1000);
        let copy = self.copies[node]
            .iter()
            .rev()
            .find(|(at_us, ..)| *at_us <= wanted_us);
        let Some((_, disk, hints)) = copy.cloned() else {
            return;
        };
        if self.nodes[node].down_by.is_some() || !atlas::may_put_back(&self.sh, self.members(), node, &disk) {
            self.sh.stats.spared += 1;
            return;
        }
        self.take_down(index, node, ms, true);
        self.sh.stats.amnesias += 1;
        self.sh.old[node] = Some(0);
        self.nodes[node].disk = disk;
        self.nodes[node].unwhole = true;
        self.nodes[node].hints = hints;
        let now_us = self.sh.now_us;
        self.sh.trace.line(now_us, || {
            format!("n{node}: the disk is put back by {back_ms} ms")
        });
    }

    /// Keeps copies of the disks, for faults that put one back.
    pub(super) fn keep_copies(&mut self) {
        for (node, copies) in self.nodes.iter().zip(&mut self.copies) {
            copies.push((self.sh.now_us, node.disk.snapshot(), node.hints.snapshot()));
        }
        let at_us = self.sh.now_us + COPY_MS * 1000;
        if self.phase == Phase::Safety {
            self.sh.queue.push(at_us, Event::Copy);
        }
    }

    pub(super) fn undo_fault(&mut self, index: usize) {
        let (_, fault) = self.plan[index];
        let (now_us, late) = (self.sh.now_us, self.phase != Phase::Safety);
        self.sh.trace.mix(&[now_us, 6, index as u64]);
        self.sh
            .trace
            .line(now_us, || format!("end of fault {index} {fault:?}"));
        match fault {
            Fault::Split(..) | Fault::OneWay(..) if self.phase == Phase::Safety => {
                self.each_cut(fault, |sh, from, to| sh.net.mend(from, to));
            }
            Fault::SlowLink(node, ..) => self.sh.net.slow_us[node] = 0,
            Fault::SlowDisk(node, ..) => {
                self.nodes[node].disk.slow_us = 0;
                self.nodes[node].hints.slow_us = 0;
            }
            Fault::DiskFull(node, _) => {
                self.nodes[node].disk.full = false;
                self.nodes[node].hints.full = false;
            }
            Fault::ReadError(node, _) => self.nodes[node].disk.read_errors = false,
            Fault::Swap(one, other, _) => {
                self.sh.net.at[one] = Some(one);
                self.sh.net.at[other] = Some(other);
            }
            Fault::Stranger(node, _) => self.sh.net.at[node] = Some(node),
            Fault::PauseTask(node, task, _) => self.pause_task(node, task, false),
            _ => {}
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].down_by == Some(index) && !(late && self.is_waited_for(node)) {
                self.nodes[node].down_by = None;
                self.nodes[node].dark = false;
                self.nodes[node].start(&mut self.sh);
            }
        }
    }

    pub(super) fn each_cut(&mut self, fault: Fault, change: impl Fn(&mut Shared, NodeIx, NodeIx)) {
        let count = self.nodes.len();
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let cut = match fault {
                    Fault::Split(side, _) => (side >> from & 1) != (side >> to & 1),
                    Fault::OneWay(node, outwards, _) => {
                        (outwards && from == node) || (!outwards && to == node)
                    }
                    _ => false,
                };
                if cut {
                    change(&mut self.sh, from, to);
                }
            }
        }
    }
}
