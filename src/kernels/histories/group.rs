//! The rows of a shard gathered by user.

use std::iter::repeat_n;

use super::event::{Event, Key, Layout};
use super::plain::Marks;
use super::{Block, EventKind, KeyedUsers, Params};
use crate::kernels::dictionary::Interner;
use crate::kernels::event_rows::{Column, Packed, PackedUsers};
use crate::types::{IdRef, Ids};

/// Room for the rows of one shard, to be used again for the next.
#[derive(Default)]
pub(super) struct Room {
    /// Users in the order of first sight.
    pub(super) users: Users,
    narrow: Vec<u32>,
    coded: Vec<u64>,
    wide: Vec<Event>,
    columns: Columns,
    pub(super) marks: Marks,
}

/// The users of a shard and where their events go.
pub(super) struct Users {
    interner: Interner,
    /// The user of each row, by code.
    code_of_row: Vec<u32>,
    /// Where the events of the user of each code begin.
    starts: Vec<u32>,
    /// Where the next event of each user goes.
    next: Vec<u32>,
    /// Ids, or codes of ids, of the rows of a block.
    ints: Vec<i64>,
    of_block: Vec<u32>,
}

impl Default for Users {
    fn default() -> Self {
        Self {
            interner: Interner::sparse(),
            code_of_row: Vec::new(),
            starts: Vec::new(),
            next: Vec::new(),
            ints: Vec::new(),
            of_block: Vec::new(),
        }
    }
}

impl Users {
    /// Finds the users of `blocks`, whose ids are of the kind of `like`; returns their ids by code.
    pub(super) fn find(&mut self, blocks: &[Packed<'_>], codes: &[Block<'_>], like: &Ids) -> Ids {
        let Self { interner, code_of_row, starts, next, ints, of_block } = self;
        interner.begin(like);
        code_of_row.clear();
        next.clear();
        for (block, codes) in blocks.iter().zip(codes) {
            if let Some(KeyedUsers { ids, places }) = codes.users {
                block.each_user_key(|key, length| {
                    let code = interner.intern(ids.get(places[key as usize] as usize));
                    code_of_row.extend(repeat_n(counted(code, length, next), length));
                });
                continue;
            }
            match &block.users {
                PackedUsers::Int(column) if column.are_runs() => {
                    column.each_run(block.n_rows, |id, length| {
                        let code = interner.intern_int(Column::as_i64(id));
                        code_of_row.extend(repeat_n(counted(code, length, next), length));
                    });
                }
                PackedUsers::Int(column) => {
                    column.decode(block.n_rows, ints, Column::as_i64);
                    code_of_row
                        .extend(ints.iter().map(|&id| counted(interner.intern_int(id), 1, next)));
                }
                PackedUsers::Bytes { distinct, codes } => {
                    of_block.clear();
                    let ids = (0..distinct.len()).map(|code| IdRef::Bytes(distinct.get(code)));
                    of_block.extend(ids.map(|id| interner.intern(id)));
                    codes.each_run(block.n_rows, |code, length| {
                        let code = counted(of_block[code as usize], length, next);
                        code_of_row.extend(repeat_n(code, length));
                    });
                }
            }
        }
        starts.clear();
        let mut start = 0;
        for n_events in &mut *next {
            starts.push(start);
            start += *n_events;
            *n_events = start - *n_events;
        }
        interner.take_ids()
    }

    /// Where the events of the user of a code lie, once they are put there.
    pub(super) fn events_of(&self, code: usize) -> std::ops::Range<usize> {
        self.starts[code] as usize..self.next[code] as usize
    }
}

/// Counts rows of a user; returns the user's code.
#[inline(always)]
fn counted(code: u32, n_rows: usize, n_events: &mut Vec<u32>) -> u32 {
    if code as usize >= n_events.len() {
        n_events.resize(code as usize + 1, 0);
    }
    n_events[code as usize] += n_rows as u32;
    code
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
    fn decode_items(&mut self, block: &Packed<'_>, ranks: Option<&[u32]>) {
        let Packed { n_rows, items, .. } = block;
        match ranks {
            Some(ranks) => items.decode(*n_rows, &mut self.items, |code| ranks[code as usize]),
            None => items.decode(*n_rows, &mut self.items, |rank| rank as u32),
        }
    }

    fn decode(&mut self, block: &Packed<'_>, ranks: Option<&[u32]>, layout: &Layout) {
        self.decode_items(block, ranks);
        let Self { ticks, kinds, values, .. } = self;
        let n_rows = block.n_rows;
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

impl Kept for u32 {
    fn of(room: &mut Room) -> &mut Vec<Self> {
        &mut room.narrow
    }
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

/// The events of a shard.
pub(super) struct Events<K> {
    /// Those of one user next to each other: see [`Users::events_of`].
    pub(super) keys: Vec<K>,
    /// Ticks of the latest.
    pub(super) latest: u64,
    /// Rows that are left out, as they are of `as_of` or after.
    pub(super) n_late: usize,
}

/// The events of all rows before `as_of`. `codes`: what these stand for, by block.
pub(super) fn events<K: Kept>(
    room: &mut Room,
    blocks: &[Packed<'_>],
    codes: &[Block<'_>],
    layout: &Layout,
    Params { kinds, calendar, .. }: Params<'_>,
) -> Events<K> {
    let is_late = |ticks| layout.time_us(ticks) >= calendar.as_of_us;
    let mut events = std::mem::take(K::of(room));
    let has_ids = blocks.iter().any(|block| block.digests.is_some());
    let undoes: Vec<Undoes> = kinds.iter().map(Undoes::of).collect();
    let Room { users, columns, .. } = room;
    let Users { code_of_row, next, .. } = users;
    events.resize(code_of_row.len(), K::default());
    let (mut users_of_rows, mut end, mut latest, mut n_late) = (&code_of_row[..], 0, 0, 0);
    for (block, codes) in blocks.iter().zip(codes) {
        let first_row = end;
        end += block.n_rows;
        let users_of = users_of_rows.split_off(..block.n_rows).expect("a user of every row");
        let mut places = Places { events: &mut events, next, users_of };
        let are_runs = block.users.column().are_runs();
        if layout.is_item_alone() {
            if is_late(0) {
                n_late += block.n_rows;
                continue;
            }
            columns.decode_items(block, codes.ranks);
            places.put(are_runs, columns.items.iter().map(|&item| K::of_item(item)));
            continue;
        }
        columns.decode(block, codes.ranks, layout);
        let Columns { items, ticks, kinds, values } = &*columns;
        let rows = items.iter().zip(ticks).zip(kinds).zip(values).zip(first_row..);
        let keys = rows.map(|((((&item, &ticks), &kind), &value_bits), row)| {
            let is_undo = undoes[usize::from(kind)].says(value_bits);
            let row = if has_ids { row as u32 } else { 0 };
            K::new(Event { item, ticks, is_undo, kind, value_bits, row }, layout)
        });
        let newest = ticks.iter().copied().max().unwrap_or(0);
        if !is_late(newest) {
            latest = latest.max(newest);
            places.put(are_runs, keys);
            continue;
        }
        let in_time = |ticks: &u64| !is_late(*ticks);
        let counts = ticks.iter().map(in_time);
        n_late += places.put_some(keys.zip(counts));
        let in_time = ticks.iter().copied().filter(in_time);
        latest = in_time.fold(latest, u64::max);
    }
    Events { keys: events, latest, n_late }
}

/// Where the events of a block go.
struct Places<'a, K> {
    events: &'a mut [K],
    /// By user.
    next: &'a mut [u32],
    /// By row.
    users_of: &'a [u32],
}

impl<K> Places<'_, K> {
    /// Puts each key to those of its user. `are_runs`: whether most rows are of the user of the row before.
    #[inline(always)]
    fn put(&mut self, are_runs: bool, mut keys: impl Iterator<Item = K>) {
        let Self { events, next, users_of } = self;
        if are_runs {
            for run in users_of.chunk_by(|a, b| a == b) {
                let place = &mut next[run[0] as usize];
                let of_run = &mut events[*place as usize..][..run.len()];
                of_run.iter_mut().zip(&mut keys).for_each(|(event, key)| *event = key);
                *place += run.len() as u32;
            }
            return;
        }
        for (key, &user) in keys.zip(*users_of) {
            let place = &mut next[user as usize];
            events[*place as usize] = key;
            *place += 1;
        }
    }

    /// Puts the keys that count; returns how many do not.
    fn put_some(&mut self, keys: impl Iterator<Item = (K, bool)>) -> usize {
        let Self { events, next, users_of } = self;
        let mut n_left_out = 0;
        for ((key, counts), &user) in keys.zip(*users_of) {
            if !counts {
                n_left_out += 1;
                continue;
            }
            let place = &mut next[user as usize];
            events[*place as usize] = key;
            *place += 1;
        }
        n_left_out
    }
}
