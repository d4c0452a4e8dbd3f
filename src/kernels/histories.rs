//! From the events of one shard to the histories of its users.
//!
//! The order of the steps is fixed: `as_of`, duplicates, undo, seen set, window, affinities; then,
//! once the support of every item is known over all shards, filter, renumbering and cap.

mod builder;
mod event;
mod group;
mod pairs;
mod plain;
mod weights;

use std::collections::HashMap;

use super::decay::{Decay, ValueTransform};
use super::event_rows::Packed;
use super::item_totals::{Adder, ItemSum, ItemTotals};
use crate::types::{Histories, IdRef, Ids, UserFacts};
use builder::Builder;
use event::{Event, Layout};
use group::{Events, Kept, Room, events};
pub use pairs::Dropped;
use pairs::{DraftPairs, finish_seen};
pub use weights::MAX;

/// What one kind of event means.
#[derive(Clone, Debug, PartialEq)]
pub struct EventKind {
    /// Weight of an event with value 1. Below 0 it speaks against the item: see [`Histories::dislikes`].
    pub weight: f64,
    /// How the value enters the weight.
    pub transform: ValueTransform,
    /// Values above this count as this.
    pub value_max: Option<f64>,
    /// Kinds of one event type in several logs are one group.
    pub group: u8,
    /// The group of which an event of this kind takes one back.
    pub undoes: Option<u8>,
    /// A negative value takes back an event of the same group.
    pub negative_undoes: bool,
    /// The item is never recommended to the user again, whatever `exclude_seen` says.
    pub excludes_item: bool,
    /// The item counts as seen.
    pub marks_seen: bool,
}

impl EventKind {
    /// Whether some event of this kind takes back another one.
    fn may_undo(&self) -> bool {
        self.undoes.is_some() || self.negative_undoes
    }
}

/// When events count. All times in microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Calendar {
    /// Events at or after this do not exist yet.
    pub as_of_us: i64,
    /// Events before this are outside the window (`i64::MIN` without one).
    pub window_start_us: i64,
    /// Events before this do not mark an item as seen (`i64::MIN`: for ever).
    pub seen_start_us: i64,
    /// Where the newer half of the window begins, for trends.
    pub middle_us: i64,
    /// How affinities fade.
    pub decay: Decay,
}

/// Events of a shard that did not count, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// At or after `as_of`.
    pub after_as_of: u64,
    /// The same user and event id again.
    pub duplicate: u64,
    /// Taken back, or what took it back.
    pub undone: u64,
    /// Takes back an event that is not there.
    pub undo_without_event: u64,
    /// Before the window.
    pub before_window: u64,
    /// So old or so light that the affinity rounds to zero.
    pub faded: u64,
}

impl Filtered {
    /// Reasons and counts, in a fixed order.
    pub fn by_reason(&self) -> [(&'static str, u64); 6] {
        [
            ("after_as_of", self.after_as_of),
            ("duplicate", self.duplicate),
            ("undone", self.undone),
            ("undo_without_event", self.undo_without_event),
            ("before_window", self.before_window),
            ("faded", self.faded),
        ]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }
}

/// Histories of a shard before the support filter: items are ranks among all ids of the log.
#[derive(Debug)]
pub struct Draft {
    user_ids: Ids,
    history: DraftPairs,
    dislikes: DraftPairs,
    seen_ends: Vec<u32>,
    seen: Vec<u32>,
    facts: Vec<UserFacts>,
    segments: Vec<u32>,
    /// Item sums of the shard's users by (segment, item rank).
    pub segment_sums: HashMap<(u32, u32), ItemSum>,
    /// All rows of the shard.
    pub rows_read: u64,
    /// Events that counted.
    pub rows_used: u64,
    /// What did not count.
    pub filtered: Filtered,
}

impl Draft {
    /// The shard's users, ascending.
    pub fn user_ids(&self) -> &Ids {
        &self.user_ids
    }

    /// Bytes held on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.user_ids.heap_bytes()
            + self.history.heap_bytes()
            + self.dislikes.heap_bytes()
            + 4 * (self.seen.capacity() + self.seen_ends.capacity())
            + size_of::<UserFacts>() * self.facts.capacity()
    }
}

/// What [`draft`] needs to know beside the rows.
#[derive(Clone, Copy)]
pub struct Params<'a> {
    /// The plan's kinds of events.
    pub kinds: &'a [EventKind],
    /// When events count.
    pub calendar: &'a Calendar,
    /// Newest items kept per user.
    pub interactions_per_user_max: usize,
    /// The segment of a user, `u32::MAX` for none. Absent where the spec has no segments.
    pub segment_of: Option<&'a (dyn Fn(IdRef<'_>) -> u32 + Sync)>,
}

/// A packed block of rows of the shard.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// [`EventRows::pack`](super::event_rows::EventRows::pack).
    pub packed: &'a [u8],
    /// The rank of each item code; absent where the codes are ranks already.
    pub ranks: Option<&'a [u32]>,
    /// Who the users are that the block has by key; absent where it has their ids.
    pub users: Option<KeyedUsers<'a>>,
}

/// The ids of users by key.
#[derive(Clone, Copy, Debug)]
pub struct KeyedUsers<'a> {
    /// Ids, in any order.
    pub ids: &'a Ids,
    /// Where the id of each key is among them.
    pub places: &'a [u32],
}

/// What a thread needs for one shard after the other.
pub struct Scratch<'a> {
    room: Room,
    adder: Adder<'a>,
}

impl<'a> Scratch<'a> {
    /// For one of `n_threads`, who add to `totals`; these have everything once all of it is dropped.
    pub fn new(totals: &'a ItemTotals, n_threads: usize) -> Self {
        Self { room: Room::default(), adder: totals.adder(n_threads) }
    }
}

/// Builds the histories of one shard up to the point where the support of its items must be known.
///
/// - `blocks`: all events of the shard's users, in any order; `like`: what kind of ids users have.
/// - `scratch`: item sums over all shards go through it; integers, so the order of shards is free.
/// - Ties: events of one user and item at one time are told apart by kind, value and id, so the
///   result depends on the set of rows only. Of duplicates the earliest counts. An undo event takes
///   back the latest event not after it that has not been taken back.
/// - A user whose events all came after `as_of` is not in the result.
/// - Cost: a table look-up per row, then sorting the events of each user: 64 bits each where all fields
///   fit that, as they do unless event ids or fine values ask for more. Memory 12 bytes a row while it
///   works, 28 in the other case, and 16 more for event ids; beside that, the result.
pub fn draft(
    blocks: &[Block<'_>],
    like: &Ids,
    params: Params<'_>,
    scratch: &mut Scratch<'_>,
) -> Draft {
    let codes = blocks;
    let blocks: Vec<Packed<'_>> = blocks.iter().map(|block| Packed::new(block.packed)).collect();
    let layout = Layout::of(&blocks, params.kinds, scratch.adder.n_items());
    let rows = Rows { blocks: &blocks, codes, layout: &layout };
    if layout.fits(u32::BITS) {
        rows.draft::<u32>(like, params, scratch)
    } else if layout.fits(u64::BITS) {
        rows.draft::<u64>(like, params, scratch)
    } else {
        rows.draft::<Event>(like, params, scratch)
    }
}

/// The rows of a shard, still packed.
struct Rows<'a> {
    blocks: &'a [Packed<'a>],
    /// What the codes of each block stand for.
    codes: &'a [Block<'a>],
    layout: &'a Layout,
}

impl Rows<'_> {
    fn draft<K: Kept>(&self, like: &Ids, params: Params<'_>, scratch: &mut Scratch<'_>) -> Draft {
        let Scratch { room, adder } = scratch;
        let ids = room.users.find(self.blocks, self.codes, like);
        let Events { mut keys, latest, n_late } =
            events::<K>(room, self.blocks, self.codes, self.layout, params);
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_unstable_by(|&a, &b| ids.cmp_rows(a as usize, b as usize));
        let digests = digests(self.blocks);
        let of_rows = (latest, keys.len());
        let adder = (adder, &mut room.marks);
        let mut builder = Builder::new(params, adder, self.layout, like, &digests, of_rows);
        builder.draft.history.reserve(ids.len(), keys.len());
        let mut spare = Vec::new();
        for code in order.into_iter().map(|code| code as usize) {
            let of_user = &mut keys[room.users.events_of(code)];
            if !of_user.is_empty() {
                builder.user(ids.get(code), of_user, &mut spare);
            }
        }
        builder.draft.rows_read = keys.len() as u64;
        builder.draft.filtered.after_as_of = n_late as u64;
        let draft = builder.finish();
        keys.clear();
        *K::of(room) = keys;
        draft
    }
}

/// Event ids by row; empty if no row has one.
fn digests(blocks: &[Packed<'_>]) -> Vec<u128> {
    if blocks.iter().all(|block| block.digests.is_none()) {
        return Vec::new();
    }
    let mut all = Vec::with_capacity(blocks.iter().map(|block| block.n_rows).sum());
    for block in blocks {
        let first = all.len();
        let Some([low, high]) = &block.digests else {
            all.resize(first + block.n_rows, 0);
            continue;
        };
        low.for_each(block.n_rows, |half| all.push(u128::from(half)));
        let mut row = first;
        high.for_each(block.n_rows, |half| {
            all[row] |= u128::from(half) << 64;
            row += 1;
        });
    }
    all
}

/// Finishes a shard: drops items without an index, renumbers, caps and sorts.
///
/// - `idx_of_rank`: the index of each item kept, `u32::MAX` for the others; ascending where kept.
/// - The newest `interactions_per_user_max` items stay, ties to the lower item; as many of what the
///   user dislikes, which is not counted.
/// - Items of the seen set that are not kept are dropped: nobody can be recommended them.
pub fn finish(
    draft: Draft,
    shard: u32,
    idx_of_rank: &[u32],
    interactions_per_user_max: usize,
) -> (Histories, Dropped) {
    let Draft { user_ids, history, dislikes, seen_ends, seen, facts, segments, .. } = draft;
    let (interactions, affinities, dropped) =
        history.finish(idx_of_rank, interactions_per_user_max);
    let (dislikes, dislike_affinities, _) = dislikes.finish(idx_of_rank, interactions_per_user_max);
    let seen = finish_seen(seen_ends, seen, idx_of_rank);
    let histories = Histories {
        shard,
        user_ids,
        interactions,
        affinities,
        dislikes,
        dislike_affinities,
        seen,
        segments,
        facts,
    };
    (histories, dropped)
}
