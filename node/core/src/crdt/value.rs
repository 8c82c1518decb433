//! One sibling's value: its stores, the writes it has seen, the op ids it remembers.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::counter::{Counter, Overflow};
use super::leaf::{Leaf, Writer};
use super::operation::{DataType, Field, FieldOperation, LeafOperation, Operation};
use super::store::{DotMap, Key, Keyed, Places, Store};
use crate::types::OpId;
use crate::version::{Actor, Dot, Seen, open_frame, put_seen, read_seen, seal_frame};
use crate::wire::{DecodeError, Reader, put_varint};

/// Op ids that a value remembers of each actor's latest writes, unless there are more than 8 actors.
pub const OP_IDS_MAX: usize = 256;
/// Op ids that a value remembers of all actors together: with more than 8 they share this number.
const OP_IDS_TOTAL: usize = 8 * OP_IDS_MAX;
/// Op ids that a value remembers of each actor, however many there are.
const OP_IDS_MIN: usize = 16;

const FORMAT_VERSION: u8 = 1;
const TARGET_FIELD: u8 = 1;
const TARGET_ELEMENT: u8 = 2;

/// A value of a data type, as it stands in a sibling.
///
/// ```text
///   value    = frame of: type (1 byte) ‖ seen ‖ op ids: marks ‖ contents ‖ claims
///   marks    = number ‖ (place of the actor in seen ‖ counter ‖ mark)*               ascending
///   counter  = totals: marks ‖ remembered: marks        set = number ‖ (element ‖ marks)*
///   flag     = marks        register = marks            map = number ‖ (field ‖ contents)*
///   claims   = number ‖ (target ‖ seen)*                what is removed, should it still come
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    seen: Seen,
    /// Of writes that are remembered.
    op_ids: DotMap<OpId>,
    contents: Contents,
    /// Dots that a removal's context knew and this value does not, none of them in `seen`: when they come, what they
    /// added to the target is removed.
    claims: BTreeMap<Target, Seen>,
}

/// What a reader gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum View {
    /// The sum.
    Counter(i64),
    /// The elements, ascending.
    Set(Vec<Bytes>),
    /// On or off.
    Flag(bool),
    /// The bytes; `None`: never assigned.
    Register(Option<Bytes>),
    /// The fields, by type and name. A set without elements and a flag that is off are no fields.
    Map(Vec<(Field, View)>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Contents {
    Leaf(Leaf),
    Map(Keyed<Field, Leaf>),
}

/// What a removal removes: a field or the whole value, or one element of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Target {
    field: Option<Field>,
    element: Option<Bytes>,
}

impl Value {
    /// The value of a key that was never written.
    pub fn new(data_type: DataType) -> Self {
        Self {
            seen: Seen::new(),
            op_ids: DotMap::default(),
            contents: match data_type {
                DataType::Leaf(leaf_type) => Contents::Leaf(Leaf::new(leaf_type)),
                DataType::Map => Contents::Map(Keyed::default()),
            },
            claims: BTreeMap::new(),
        }
    }

    /// The writes whose effects this value holds, or held.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Adds what another value of the same type holds: idempotent, commutative and associative.
    pub fn merge(&mut self, other: &Self) {
        self.op_ids.join(&self.seen, &other.op_ids, &other.seen);
        match (&mut self.contents, &other.contents) {
            (Contents::Leaf(ours), Contents::Leaf(theirs)) => ours.join(&self.seen, theirs, &other.seen),
            (Contents::Map(ours), Contents::Map(theirs)) => ours.join(&self.seen, theirs, &other.seen),
            _ => {}
        }
        self.seen.union(&other.seen);
        for (target, claims) in &other.claims {
            self.claims.entry(target.clone()).or_default().union(claims);
        }
        self.fulfil_claims();
    }

    /// What a reader gets. An increment that two coordinators have applied, as the client tried both, counts once.
    pub fn view(&self) -> View {
        let mut settled = self.clone();
        settled.settle();
        match &settled.contents {
            Contents::Leaf(leaf) => leaf.view(),
            Contents::Map(fields) => View::Map(
                fields
                    .iter()
                    .map(|(field, leaf)| (field.clone(), leaf.view()))
                    .collect(),
            ),
        }
    }

    /// The first write with this op id, if it is remembered.
    pub fn write_of(&self, op_id: &OpId) -> Option<Dot> {
        self.op_ids
            .iter()
            .find(|(_, known)| *known == op_id)
            .map(|(dot, _)| *dot)
    }

    /// The value as a sibling holds it.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(256);
        let places = Places::new(&self.seen);
        seal_frame(&mut out, FORMAT_VERSION, |out| {
            out.push(self.data_type_byte());
            put_seen(out, &self.seen);
            self.op_ids.put(out, &places);
            match &self.contents {
                Contents::Leaf(leaf) => leaf.put(out, &places),
                Contents::Map(fields) => fields.put(out, &places),
            }
            put_varint(out, self.claims.len() as u64);
            for (target, claims) in &self.claims {
                target.put(out);
                put_seen(out, claims);
            }
        });
        out.into()
    }

    /// Reads a sibling's value.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`encode`](Self::encode) writes for a value of `data_type`.
    pub fn decode(bytes: Bytes, data_type: DataType) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(open_frame(bytes, FORMAT_VERSION)?);
        if reader.byte()? != data_type.byte() {
            return Err(DecodeError::Invalid("data type"));
        }
        let seen = read_seen(&mut reader)?;
        let places = Places::new(&seen);
        let op_ids = DotMap::read(&mut reader, &places)?;
        let contents = match data_type {
            DataType::Leaf(leaf_type) => Contents::Leaf(Leaf::read(&mut reader, leaf_type, &places)?),
            DataType::Map => Contents::Map(Keyed::read(&mut reader, |reader, field: &Field| {
                Leaf::read(reader, field.leaf_type, &places)
            })?),
        };
        let claims = read_claims(&mut reader, &seen)?;
        reader.finish()?;
        Ok(Self {
            seen,
            op_ids,
            contents,
            claims,
        })
    }

    /// Takes out what was counted under a second dot as well: of dots with one op id the smallest stays.
    pub(super) fn settle(&mut self) {
        let mut first: BTreeMap<OpId, Dot> = BTreeMap::new();
        let mut repeated = Vec::new();
        for (dot, op_id) in self.op_ids.iter() {
            if *first.entry(*op_id).or_insert(*dot) != *dot {
                repeated.push(*dot);
            }
        }
        if repeated.is_empty() {
            return;
        }
        for dot in &repeated {
            self.op_ids.remove(dot);
        }
        self.contents
            .change_counters(|counter| counter.take_out(&repeated));
    }

    /// The highest counter of an actor that the value knows of, be it that a removal claims it; 0: none.
    pub(super) fn counter_max(&self, actor: Actor) -> u64 {
        let claimed = self.claims.values().map(|claimed| claimed.counter_max(actor));
        claimed.max().unwrap_or(0).max(self.seen.counter_max(actor))
    }

    /// Takes note that all of `seen` is known: what it names and is not here was deleted.
    pub(super) fn know(&mut self, seen: &Seen) {
        self.seen.union(seen);
        self.fulfil_claims();
    }

    /// Applies a checked operation as the write `writer.dot`, a new dot.
    pub(super) fn apply(
        &mut self,
        operation: &Operation,
        writer: &Writer,
        op_id: Option<OpId>,
    ) -> Result<(), Overflow> {
        let unknown = writer.context.without(&self.seen);
        self.seen.insert(writer.dot);
        match operation {
            Operation::Leaf(operation) => self.apply_leaf(None, operation, writer, &unknown)?,
            Operation::Map(parts) => {
                for part in parts {
                    self.apply_part(part, writer, &unknown)?;
                }
            }
        }
        if let Some(op_id) = op_id {
            self.op_ids.insert(writer.dot, op_id);
            self.forget_oldest(writer.dot);
        }
        Ok(())
    }

    fn apply_part(&mut self, part: &FieldOperation, writer: &Writer, unknown: &Seen) -> Result<(), Overflow> {
        match part {
            FieldOperation::Update { name, operation } => {
                let field = Field {
                    leaf_type: operation.leaf_type(),
                    name: name.clone(),
                };
                self.apply_leaf(Some(&field), operation, writer, unknown)
            }
            FieldOperation::Remove(field) => {
                if let Contents::Map(fields) = &mut self.contents {
                    fields.drop_covered_of(field, writer.context);
                }
                self.claim(Some(field), None, unknown);
                Ok(())
            }
        }
    }

    fn apply_leaf(
        &mut self,
        field: Option<&Field>,
        operation: &LeafOperation,
        writer: &Writer,
        unknown: &Seen,
    ) -> Result<(), Overflow> {
        match (&mut self.contents, field) {
            (Contents::Leaf(leaf), None) => leaf.apply(operation, writer)?,
            (Contents::Map(fields), Some(field)) => {
                let empty = Leaf::new(field.leaf_type);
                fields.change(field, empty, |leaf| leaf.apply(operation, writer))?;
            }
            _ => {}
        }
        match operation {
            LeafOperation::Remove(elements) => {
                for element in elements {
                    self.claim(field, Some(element), unknown);
                }
            }
            LeafOperation::Disable => self.claim(field, None, unknown),
            _ => {}
        }
        Ok(())
    }

    /// Notes that what `unknown` dots will add to a target is removed.
    fn claim(&mut self, field: Option<&Field>, element: Option<&Bytes>, unknown: &Seen) {
        if !unknown.is_empty() {
            let target = Target {
                field: field.cloned(),
                element: element.cloned(),
            };
            self.claims.entry(target).or_default().union(unknown);
        }
    }

    /// Removes what is claimed and has come.
    fn fulfil_claims(&mut self) {
        let Self {
            seen,
            contents,
            claims,
            ..
        } = self;
        claims.retain(|target, claimed| {
            contents.drop_claimed(target, claimed);
            *claimed = claimed.without(seen);
            !claimed.is_empty()
        });
    }

    /// Forgets the oldest op ids of each actor that has too many. What the writer's own actor added under them moves
    /// into its total; what other actors added stays under its dots until they do the same.
    fn forget_oldest(&mut self, dot: Dot) {
        let mut by_actor: BTreeMap<Actor, Vec<Dot>> = BTreeMap::new();
        for (dot, _) in self.op_ids.iter() {
            by_actor.entry(dot.actor).or_default().push(*dot);
        }
        let window = (OP_IDS_TOTAL / by_actor.len().max(1)).clamp(OP_IDS_MIN, OP_IDS_MAX);
        for dots in by_actor.values() {
            for oldest in dots.iter().take(dots.len().saturating_sub(window)) {
                self.op_ids.remove(oldest);
            }
        }
        let op_ids = &self.op_ids;
        self.contents
            .change_counters(|counter| counter.forget(dot, |known| op_ids.get(known).is_some()));
    }

    fn data_type_byte(&self) -> u8 {
        match &self.contents {
            Contents::Leaf(leaf) => DataType::Leaf(leaf.leaf_type()).byte(),
            Contents::Map(_) => DataType::Map.byte(),
        }
    }
}

impl Contents {
    fn change_counters(&mut self, change: impl Fn(&mut Counter)) {
        match self {
            Self::Leaf(leaf) => {
                if let Some(counter) = leaf.counter_mut() {
                    change(counter);
                }
            }
            Self::Map(fields) => {
                fields.stores_mut().filter_map(Leaf::counter_mut).for_each(change);
                fields.prune();
            }
        }
    }

    fn drop_claimed(&mut self, target: &Target, claims: &Seen) {
        match (self, &target.field) {
            (Self::Leaf(leaf), None) => leaf.drop_claimed(target.element.as_ref(), claims),
            (Self::Map(fields), Some(field)) => {
                fields.change(field, Leaf::new(field.leaf_type), |leaf| {
                    leaf.drop_claimed(target.element.as_ref(), claims);
                });
            }
            _ => {}
        }
    }
}

impl Target {
    fn put(&self, out: &mut Vec<u8>) {
        let field = self.field.as_ref().map_or(0, |_| TARGET_FIELD);
        let element = self.element.as_ref().map_or(0, |_| TARGET_ELEMENT);
        out.push(field | element);
        if let Some(field) = &self.field {
            field.put(out);
        }
        if let Some(element) = &self.element {
            element.put(out);
        }
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let flags = reader.byte()?;
        if flags & !(TARGET_FIELD | TARGET_ELEMENT) != 0 {
            return Err(DecodeError::Invalid("target of a claim"));
        }
        let has = |flag| flags & flag != 0;
        Ok(Self {
            field: has(TARGET_FIELD).then(|| Field::read(reader)).transpose()?,
            element: has(TARGET_ELEMENT).then(|| Bytes::read(reader)).transpose()?,
        })
    }
}

fn read_claims(reader: &mut Reader, seen: &Seen) -> Result<BTreeMap<Target, Seen>, DecodeError> {
    let mut claims: BTreeMap<Target, Seen> = BTreeMap::new();
    for _ in 0..reader.count(2)? {
        let target = Target::read(reader)?;
        if claims.last_key_value().is_some_and(|(last, _)| *last >= target) {
            return Err(DecodeError::Invalid("order of claims"));
        }
        let claimed = read_seen(reader)?;
        if claimed.is_empty() || claimed.without(seen) != claimed {
            return Err(DecodeError::Invalid("claim of what was seen"));
        }
        claims.insert(target, claimed);
    }
    Ok(claims)
}
