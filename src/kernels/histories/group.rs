//! The rows of a shard gathered by user.

use xxhash_rust::xxh3::xxh3_64;

use super::EventKind;
use super::event::{Event, Key, Layout};
use crate::kernels::code_table::{CodeTable, mixed};
use crate::kernels::event_rows::{Column, Packed, PackedUsers};
use crate::types::{ByteIds, Ids};

/// Room for the rows of one shard, to be used again for the next.
#[derive(Default)]
pub(super) struct Room {
    /// Users in the order of first sight.
    pub(super) users: Users,
    coded: Vec<u64>,
    wide: Vec<Event>,
    columns: Columns,
}

/// The users of a shard and where their events go.
pub(super) struct Users {
    table: CodeTable,
    /// The user of each row, by code.
    code_of_row: Vec<u32>,
    /// Where the events of the user of each code begin, and at the end that of all.
    starts: Vec<u32>,
    /// Where the next event of each user goes.
    next: Vec<u32>,
    /// Ids of the rows of a block.
    of_block: Vec<i64>,
}

impl Default for Users {
    fn default() -> Self {
        Self {
            table: CodeTable::sparse(),
            code_of_row: Vec::new(),
            starts: Vec::new(),
            next: Vec::new(),
            of_block: Vec::new(),
        }
    }
}

impl Users {
    /// Finds the users of `blocks`, whose ids are of the kind of `like`; returns their ids by code.
    pub(super) fn find(&mut self, blocks: &[Packed<'_>], like: &Ids) -> Ids {
        let mut ids = like.new_like();
        self.table.clear();
        self.code_of_row.clear();
        self.next.clear();
        for block in blocks {
            match (&block.users, &mut ids) {
                (PackedUsers::Int(column), Ids::Int(ids)) => self.ints(column, block.n_rows, ids),
                (PackedUsers::Bytes { distinct, codes }, Ids::Bytes(ids)) => {
                    self.texts(distinct, codes, block.n_rows, ids);
                }
                _ => panic!("users of a shard are all integers or all bytes"),
            }
        }
        self.starts.clear();
        let mut start = 0;
        for n_events in &mut self.next {
            self.starts.push(start);
            start += *n_events;
            *n_events = start - *n_events;
        }
        self.starts.push(start);
        ids
    }

    fn ints(&mut self, column: &Column<'_>, n_rows: usize, ids: &mut Vec<i64>) {
        let Self { table, code_of_row, next, of_block, .. } = self;
        column.decode(n_rows, of_block, Column::as_i64);
        let hash = |id: i64| mixed(id as u64);
        let first_row = code_of_row.len();
        code_of_row.resize(first_row + n_rows, 0);
        for (&id, code) in of_block.iter().zip(&mut code_of_row[first_row..]) {
            let is_same = |code: u32| ids[code as usize] == id;
            let hash_of = |code: u32| hash(ids[code as usize]);
            let new = ids.len() as u32;
            *code = table.find_or_add(hash(id), new, is_same, hash_of);
            if *code == new {
                ids.push(id);
            }
        }
        next.resize(ids.len(), 0);
        code_of_row[first_row..].iter().for_each(|&code| next[code as usize] += 1);
    }

    fn texts(&mut self, distinct: &ByteIds, codes: &Column<'_>, n_rows: usize, ids: &mut ByteIds) {
        let Self { table, code_of_row, next, .. } = self;
        let of_block: Vec<u32> = (0..distinct.len())
            .map(|of_block| {
                let id = distinct.get(of_block);
                let is_same = |code: u32| ids.get(code as usize) == id;
                let hash_of = |code: u32| xxh3_64(ids.get(code as usize));
                let new = ids.len() as u32;
                let code = table.find_or_add(xxh3_64(id), new, is_same, hash_of);
                if code == new {
                    ids.push(id);
                    next.push(0);
                }
                code
            })
            .collect();
        code_of_row.reserve(n_rows);
        codes.for_each(n_rows, |code| {
            let code = of_block[code as usize];
            next[code as usize] += 1;
            code_of_row.push(code);
        });
    }

    /// Where the events of the user of a code lie.
    pub(super) fn events_of(&self, code: usize) -> std::ops::Range<usize> {
        self.starts[code] as usize..self.starts[code + 1] as usize
    }
}

/// The columns of one block.
#[derive(Default)]
struct Columns {
    items: Vec<u32>,
    ticks: Vec<u64>,
    kinds: Vec<u8>,
    values: Vec<u32>,
}

impl Columns {
    fn decode(&mut self, block: &Packed<'_>, ranks: Option<&[u32]>, layout: &Layout) {
        let Self { items, ticks, kinds, values } = self;
        let n_rows = block.n_rows;
        match ranks {
            Some(ranks) => block.items.decode(n_rows, items, |code| ranks[code as usize]),
            None => block.items.decode(n_rows, items, |rank| rank as u32),
        }
        let (multiplier, first) = layout.ticks_of(&block.times);
        block.times.decode_offsets(n_rows, ticks, |offset| {
            first.wrapping_add(multiplier.wrapping_mul(offset))
        });
        block.kinds.decode(n_rows, kinds, |kind| kind as u8);
        block.values.decode(n_rows, values, |bits| bits as u32);
    }
}

/// When an event of a kind takes another one back.
#[derive(Clone, Copy)]
enum Undoes {
    Never,
    Always,
    BelowZero,
}

impl Undoes {
    fn of(kind: &EventKind) -> Self {
        match (kind.undoes.is_some(), kind.negative_undoes) {
            (true, _) => Self::Always,
            (false, true) => Self::BelowZero,
            (false, false) => Self::Never,
        }
    }

    fn says(self, value_bits: u32) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::BelowZero => f32::from_bits(value_bits) < 0.0,
        }
    }
}

/// Where keys of a kind are kept between shards.
pub(super) trait Kept: Key {
    /// Their place in the room.
    fn of(room: &mut Room) -> &mut Vec<Self>;
}

impl Kept for u64 {
    fn of(room: &mut Room) -> &mut Vec<Self> {
        &mut room.coded
    }
}

impl Kept for Event {
    fn of(room: &mut Room) -> &mut Vec<Self> {
        &mut room.wide
    }
}

/// The events of all rows, those of one user next to each other: see [`Users::events_of`]. And the ticks
/// of the latest.
///
/// `ranks` by block, where items are codes.
pub(super) fn events<K: Kept>(
    room: &mut Room,
    blocks: &[Packed<'_>],
    ranks: &[Option<&[u32]>],
    layout: &Layout,
    kinds: &[EventKind],
) -> (Vec<K>, u64) {
    let mut events = std::mem::take(K::of(room));
    let has_ids = blocks.iter().any(|block| block.digests.is_some());
    let undoes: Vec<Undoes> = kinds.iter().map(Undoes::of).collect();
    let Room { users, columns, .. } = room;
    events.resize(users.code_of_row.len(), K::default());
    let (mut first_row, mut latest) = (0, 0);
    for (block, ranks) in blocks.iter().zip(ranks) {
        columns.decode(block, *ranks, layout);
        let Columns { items, ticks, kinds, values } = &*columns;
        latest = ticks.iter().copied().fold(latest, u64::max);
        let users_of = &users.code_of_row[first_row..][..block.n_rows];
        let rows = items.iter().zip(ticks).zip(kinds).zip(values).zip(users_of);
        for (row, ((((&item, &ticks), &kind), &value_bits), &user)) in (first_row..).zip(rows) {
            let is_undo = undoes[usize::from(kind)].says(value_bits);
            let row = if has_ids { row as u32 } else { 0 };
            let event = Event { item, ticks, is_undo, kind, value_bits, row };
            let place = &mut users.next[user as usize];
            events[*place as usize] = K::new(event, layout);
            *place += 1;
        }
        first_row += block.n_rows;
    }
    (events, latest)
}
