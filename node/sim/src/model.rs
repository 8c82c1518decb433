//! What a value of a data type must be, worked out from the writes that went into it: row D53, told without merging.
//!
//! A reader's context names writes. The value beside it must be what these writes make together, no more and no less:
//! whatever was retried, repeated, split, lost and merged on the way.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dynamo_core::crdt::{DataType, Field, FieldOperation, LeafOperation, LeafType, Operation, View};
use dynamo_core::version::{Dot, Seen};

use crate::keys::KeyIx;
use crate::ledger::{Built, Ledger, Write};

/// A write under one of its names.
struct Effect<'a> {
    dot: Dot,
    number: u32,
    write: &'a Write,
    built: &'a Built,
}

/// The value that these writes of a key make.
pub fn expected(ledger: &Ledger, key: KeyIx, data_type: DataType, seen: &Seen) -> View {
    let entry = ledger.key(key);
    let effects: Vec<Effect> = entry
        .dots
        .iter()
        .filter(|(dot, _)| seen.contains(dot))
        .filter_map(|(dot, (number, _))| {
            Some(Effect {
                dot: *dot,
                number: *number,
                write: ledger.write(*number),
                built: entry.built.get(dot)?,
            })
        })
        .collect();
    if let DataType::Leaf(leaf_type) = data_type {
        return leaf(&effects, None, leaf_type);
    }
    let fields: BTreeSet<Field> = effects.iter().flat_map(Effect::fields).collect();
    let shown = |field: Field| {
        let view = leaf(&effects, Some(&field), field.leaf_type);
        let nothing = match &view {
            View::Set(elements) => elements.is_empty(),
            View::Flag(on) => !on,
            View::Register(value) => value.is_none(),
            View::Counter(_) | View::Map(_) => false,
        };
        (!nothing).then_some((field, view))
    };
    View::Map(fields.into_iter().filter_map(shown).collect())
}

fn leaf(effects: &[Effect], field: Option<&Field>, leaf_type: LeafType) -> View {
    let here = || {
        effects
            .iter()
            .flat_map(|effect| effect.on(field).map(move |operation| (effect, operation)))
    };
    let stays = |effect: &Effect, element: Option<&Bytes>| !removed(effects, field, element, &effect.dot);
    match leaf_type {
        LeafType::Counter => {
            // By operation: retries of one with an id count once, others as often as they were applied.
            let mut amounts: BTreeMap<(u32, Option<Dot>), i64> = BTreeMap::new();
            let mut first: BTreeMap<u32, Dot> = BTreeMap::new();
            for (effect, operation) in here() {
                if let LeafOperation::Increment(amount) = operation {
                    let counted = *first.entry(effect.number).or_insert(effect.dot);
                    let name = if effect.write.op_id.is_none() {
                        Some(effect.dot)
                    } else if counted == effect.dot {
                        None
                    } else {
                        continue;
                    };
                    *amounts.entry((effect.number, name)).or_default() += amount;
                }
            }
            View::Counter(amounts.values().sum())
        }
        LeafType::Set => {
            let mut elements: BTreeSet<Bytes> = BTreeSet::new();
            for (effect, operation) in here() {
                if let LeafOperation::Add(added) = operation {
                    elements.extend(added.iter().filter(|one| stays(effect, Some(one))).cloned());
                }
            }
            View::Set(elements.into_iter().collect())
        }
        LeafType::Flag => {
            let on = |(effect, operation): (&Effect, &LeafOperation)| {
                *operation == LeafOperation::Enable && stays(effect, None)
            };
            View::Flag(here().any(on))
        }
        LeafType::Register => {
            let assigned: Vec<(&Effect, &Bytes)> = here()
                .filter_map(|(effect, operation)| match operation {
                    LeafOperation::Assign(value) => Some((effect, value)),
                    _ => None,
                })
                .collect();
            let newest = |dot: &Dot| !assigned.iter().any(|(later, _)| later.built.upon.contains(dot));
            let last = assigned
                .iter()
                .filter(|(effect, _)| newest(&effect.dot) && stays(effect, None))
                .max_by_key(|(effect, _)| (effect.built.stamp, effect.dot));
            View::Register(last.map(|(_, value)| (*value).clone()))
        }
    }
}

/// True if some removal here was made by a client that had seen the write of that name.
fn removed(effects: &[Effect], field: Option<&Field>, element: Option<&Bytes>, dot: &Dot) -> bool {
    effects.iter().any(|effect| {
        let of_this = |operation: &LeafOperation| match (operation, element) {
            (LeafOperation::Remove(elements), Some(element)) => elements.contains(element),
            (LeafOperation::Disable, None) => true,
            _ => false,
        };
        effect.write.past.contains(dot) && (effect.removes(field) || effect.on(field).any(of_this))
    })
}

impl Effect<'_> {
    /// What it does to the value, or to a field of it.
    fn on(&self, field: Option<&Field>) -> impl Iterator<Item = &LeafOperation> {
        let (whole, parts) = match (&self.write.operation, field) {
            (Some(Operation::Leaf(operation)), None) => (Some(operation), None),
            (Some(Operation::Map(parts)), Some(field)) => (None, Some((parts, field))),
            _ => (None, None),
        };
        let parts = parts.into_iter().flat_map(|(parts, field)| {
            parts.iter().filter_map(|part| match part {
                FieldOperation::Update { name, operation }
                    if *name == field.name && operation.leaf_type() == field.leaf_type =>
                {
                    Some(operation)
                }
                _ => None,
            })
        });
        whole.into_iter().chain(parts.collect::<Vec<_>>())
    }

    /// The fields that it changes.
    fn fields(&self) -> Vec<Field> {
        let Some(Operation::Map(parts)) = &self.write.operation else {
            return Vec::new();
        };
        let updated = parts.iter().filter_map(|part| match part {
            FieldOperation::Update { name, operation } => Some(Field {
                leaf_type: operation.leaf_type(),
                name: name.clone(),
            }),
            FieldOperation::Remove(_) => None,
        });
        updated.collect()
    }

    fn removes(&self, field: Option<&Field>) -> bool {
        let (Some(Operation::Map(parts)), Some(field)) = (&self.write.operation, field) else {
            return false;
        };
        parts
            .iter()
            .any(|part| matches!(part, FieldOperation::Remove(of) if of == field))
    }
}
