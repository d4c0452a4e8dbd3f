//! From the events of one shard to the histories of its users.
//!
//! The order of the steps is fixed: `as_of`, duplicates, undo, seen set, window, affinities; then,
//! once the support of every item is known over all shards, filter, renumbering and cap.

use std::collections::HashMap;

use super::decay::{Decay, ValueTransform, event_weight};
use super::event_rows::EventRows;
use super::item_totals::{ItemSum, ItemTotals, PairSums};
use crate::types::{AFFINITY_ONE, Histories, IdRef, Ids, ItemIdx, ItemLists, UserFacts};

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

/// Items and affinities of consecutive users, end to end.
#[derive(Debug, Default)]
struct DraftPairs {
    ends: Vec<u32>,
    /// Ascending per user, or newest first where the user has more than the cap.
    items: Vec<u32>,
    affinities: Vec<i64>,
}

impl DraftPairs {
    /// Appends one user. Users over the cap are kept newest first, so that the cap can be applied
    /// after the support filter without keeping a time per pair.
    fn push(&mut self, pairs: &mut [Pair], cap: usize) {
        if pairs.len() > cap {
            pairs.sort_unstable_by(|a, b| b.last_us.cmp(&a.last_us).then(a.item.cmp(&b.item)));
        }
        self.items.extend(pairs.iter().map(|pair| pair.item));
        self.affinities.extend(pairs.iter().map(|pair| pair.affinity));
        self.ends.push(u32::try_from(self.items.len()).expect("a shard holds under 2^32 pairs"));
    }

    fn shrink_to_fit(&mut self) {
        self.ends.shrink_to_fit();
        self.items.shrink_to_fit();
        self.affinities.shrink_to_fit();
    }

    fn heap_bytes(&self) -> usize {
        4 * (self.items.capacity() + self.ends.capacity()) + 8 * self.affinities.capacity()
    }

    /// Drops items without an index, renumbers, caps and sorts.
    fn finish(self, idx_of_rank: &[u32], cap: usize) -> (ItemLists, Vec<i64>, Dropped) {
        let (mut dropped, mut start) = (Dropped::default(), 0);
        let mut kept = ItemLists { ends: Vec::with_capacity(self.ends.len()), items: Vec::new() };
        kept.items.reserve(self.items.len());
        let mut affinities = Vec::with_capacity(self.items.len());
        let mut pairs: Vec<(ItemIdx, i64)> = Vec::new();
        for end in self.ends.iter().map(|&end| end as usize) {
            pairs.clear();
            pairs.extend((start..end).filter_map(|place| {
                let idx = idx_of_rank[self.items[place] as usize];
                (idx != u32::MAX).then_some((ItemIdx(idx), self.affinities[place]))
            }));
            dropped.too_few_users += (end - start - pairs.len()) as u64;
            if pairs.len() > cap {
                dropped.over_cap += (pairs.len() - cap) as u64;
                dropped.users_over_cap += 1;
                pairs.truncate(cap);
            }
            pairs.sort_unstable_by_key(|&(item, _)| item);
            kept.items.extend(pairs.iter().map(|&(item, _)| item));
            affinities.extend(pairs.iter().map(|&(_, affinity)| affinity));
            kept.ends.push(kept.items.len() as u32);
            start = end;
        }
        kept.items.shrink_to_fit();
        affinities.shrink_to_fit();
        (kept, affinities, dropped)
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

/// One event, with its fields in the order that decides between events of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    item: u32,
    time: i64,
    /// Undo events come after the others of the same instant.
    is_undo: bool,
    kind: u8,
    value_bits: u32,
    /// Row that it came from, where its id is. The order of events that differ in nothing else
    /// decides nothing.
    row: u32,
}

/// Builds the histories of one shard up to the point where the support of its items must be known.
///
/// - `rows`: all events of the shard's users, in any order; `items` are ranks.
/// - `totals`: item sums over all shards, added to; integers, so the order of shards is free.
/// - Ties: events of one user and item at one time are told apart by kind, value and id, so the
///   result depends on the set of rows only. Of duplicates the earliest counts. An undo event takes
///   back the latest event not after it that has not been taken back.
/// - A user whose events all came after `as_of` is not in the result.
/// - Cost: O(n log n) in the rows of the shard; memory 45 bytes a row while it works, 61 with ids.
pub fn draft(mut rows: EventRows, params: Params<'_>, totals: &ItemTotals) -> Draft {
    let digests = std::mem::take(&mut rows.digests);
    let (user_ids, starts, mut events) = group_by_user(rows, params.kinds);
    let mut builder = Builder::new(params, totals, user_ids.new_like(), digests);
    for user in 0..user_ids.len() {
        let (start, end) = (starts[user], starts[user + 1]);
        builder.user(user_ids.get(user), &mut events[start..end]);
    }
    builder.finish()
}

/// Sorts users by id and gathers their events: ids, starts (`n_users + 1`), events.
fn group_by_user(mut rows: EventRows, kinds: &[EventKind]) -> (Ids, Vec<usize>, Vec<Event>) {
    let mut code_of: HashMap<u128, u32, super::dictionary::DigestHasher> = HashMap::default();
    let mut distinct = rows.users.new_like();
    let mut codes = Vec::with_capacity(rows.len());
    for user in rows.users.iter() {
        let code = *code_of.entry(user.digest()).or_insert_with(|| {
            distinct.push(user);
            distinct.len() as u32 - 1
        });
        codes.push(code);
    }
    // The largest column goes before the events are made.
    rows.users = rows.users.new_like();
    drop(code_of);
    let mut order: Vec<u32> = (0..distinct.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| distinct.cmp_rows(a as usize, b as usize));
    let mut rank_of = vec![0u32; order.len()];
    for (rank, &code) in order.iter().enumerate() {
        rank_of[code as usize] = rank as u32;
    }
    let user_ids = distinct.take(order.iter().map(|&code| code as usize));

    let mut starts = vec![0usize; user_ids.len() + 1];
    for code in &mut codes {
        *code = rank_of[*code as usize];
        starts[*code as usize + 1] += 1;
    }
    for user in 0..user_ids.len() {
        starts[user + 1] += starts[user];
    }
    let mut next = starts.clone();
    let blank = Event { item: 0, time: 0, is_undo: false, kind: 0, value_bits: 0, row: 0 };
    let mut events = vec![blank; rows.len()];
    for (row, &user) in codes.iter().enumerate() {
        let place = &mut next[user as usize];
        events[*place] = event(&rows, row, kinds);
        *place += 1;
    }
    (user_ids, starts, events)
}

fn event(rows: &EventRows, row: usize, kinds: &[EventKind]) -> Event {
    let kind = rows.kinds[row];
    let meaning = &kinds[usize::from(kind)];
    Event {
        item: rows.items[row],
        time: rows.times[row],
        is_undo: meaning.undoes.is_some() || (rows.values[row] < 0.0 && meaning.negative_undoes),
        kind,
        value_bits: rows.values[row].to_bits(),
        row: u32::try_from(row).expect("a shard holds under 2^32 rows"),
    }
}

/// One item in the history of the user at hand.
struct Pair {
    item: u32,
    affinity: i64,
    last_us: i64,
}

struct Builder<'a> {
    params: Params<'a>,
    totals: &'a ItemTotals,
    draft: Draft,
    /// What the user at hand likes, and what they do not.
    pairs: Vec<Pair>,
    dislikes: Vec<Pair>,
    /// Segment of the user at hand, `u32::MAX` for none.
    segment: u32,
    /// Per group, the events of the item at hand that may still be taken back.
    open: Vec<Vec<usize>>,
    counts: Vec<bool>,
    /// As in the rows.
    digests: Vec<u128>,
}

impl<'a> Builder<'a> {
    fn new(params: Params<'a>, totals: &'a ItemTotals, user_ids: Ids, digests: Vec<u128>) -> Self {
        let draft = Draft {
            user_ids,
            history: DraftPairs::default(),
            dislikes: DraftPairs::default(),
            seen_ends: Vec::new(),
            seen: Vec::new(),
            facts: Vec::new(),
            segments: Vec::new(),
            segment_sums: HashMap::new(),
            rows_used: 0,
            filtered: Filtered::default(),
        };
        let open = vec![Vec::new(); params.kinds.len()];
        Self {
            params,
            totals,
            draft,
            pairs: Vec::new(),
            dislikes: Vec::new(),
            segment: u32::MAX,
            open,
            counts: Vec::new(),
            digests,
        }
    }

    fn user(&mut self, id: IdRef<'_>, events: &mut [Event]) {
        events.sort_unstable();
        let n_left = self.drop_later_and_repeated(events);
        if n_left == 0 {
            return;
        }
        let events = &events[..n_left];
        let mut facts =
            UserFacts { first_event_us: i64::MAX, last_event_us: i64::MIN, ..UserFacts::default() };
        self.segment = self.params.segment_of.map_or(u32::MAX, |segment_of| segment_of(id));
        self.pairs.clear();
        self.dislikes.clear();
        for of_item in events.chunk_by(|a, b| a.item == b.item) {
            self.item(of_item, &mut facts);
        }
        facts.pairs = self.pairs.len() as u32;
        self.close_user(id, facts);
    }

    /// Moves the events that count to the front, still in order; returns how many they are.
    fn drop_later_and_repeated(&mut self, events: &mut [Event]) -> usize {
        let as_of = self.params.calendar.as_of_us;
        let n_before = retain(events, |event| event.time < as_of);
        self.draft.filtered.after_as_of += (events.len() - n_before) as u64;
        let events = &mut events[..n_before];
        // 0 for an event without id.
        let digest = |event: &Event| self.digests.get(event.row as usize).copied().unwrap_or(0);
        if n_before < 2 || events.iter().all(|event| digest(event) == 0) {
            return n_before;
        }
        let mut first_of: HashMap<u128, (i64, usize)> = HashMap::with_capacity(n_before);
        for (position, event) in events.iter().enumerate() {
            let first = first_of.entry(digest(event)).or_insert((event.time, position));
            *first = (*first).min((event.time, position));
        }
        let mut position = 0;
        let n_first = retain(events, |event| {
            position += 1;
            digest(event) == 0 || first_of[&digest(event)].1 == position - 1
        });
        self.draft.filtered.duplicate += (n_before - n_first) as u64;
        n_first
    }

    /// Takes the events of one item, in order of time.
    fn item(&mut self, events: &[Event], facts: &mut UserFacts) {
        self.take_back(events);
        let Params { kinds, calendar, .. } = self.params;
        let (mut seen, mut affinity, mut last_us) = (false, 0i64, i64::MIN);
        let (mut against, mut last_against_us) = (0i64, i64::MIN);
        let (mut n_events, mut weight, mut newer) = (0i64, 0i64, 0i64);
        for (event, _) in events.iter().zip(&self.counts).filter(|(_, counts)| **counts) {
            let kind = &kinds[usize::from(event.kind)];
            seen |= kind.excludes_item || (kind.marks_seen && event.time >= calendar.seen_start_us);
            if event.time < calendar.window_start_us {
                self.draft.filtered.before_window += 1;
                continue;
            }
            self.draft.rows_used += 1;
            if kind.weight == 0.0 {
                continue;
            }
            let value = f64::from(f32::from_bits(event.value_bits));
            let event_weight = event_weight(kind.weight, value, kind.transform, kind.value_max);
            let event_affinity = calendar.decay.affinity(event_weight.abs(), event.time);
            let event_affinity = event_affinity.unwrap_or(MAX);
            if event_affinity == 0 {
                self.draft.filtered.faded += 1;
                self.draft.rows_used -= 1;
                continue;
            }
            if event_weight < 0.0 {
                against = against.saturating_add(event_affinity).min(MAX);
                last_against_us = last_against_us.max(event.time);
                continue;
            }
            n_events += 1;
            affinity = affinity.saturating_add(event_affinity).min(MAX);
            let units = ((event_weight * AFFINITY_ONE as f64).round() as i64).min(MAX);
            weight = weight.saturating_add(units).min(MAX);
            newer += if event.time >= calendar.middle_us { units } else { 0 };
            last_us = last_us.max(event.time);
        }
        let item = events[0].item;
        if affinity > 0 {
            facts.events += n_events as u32;
            self.pairs.push(Pair { item, affinity, last_us });
            self.add_to_sums(item, PairSums { events: n_events, weight, affinity, newer });
        }
        if against > 0 {
            self.dislikes.push(Pair { item, affinity: -against, last_us: last_against_us });
            self.totals.add_heaviest(against);
        }
        if seen {
            self.draft.seen.push(item);
        }
        let (first_us, last_us) = (events[0].time, events[events.len() - 1].time);
        facts.first_event_us = facts.first_event_us.min(first_us);
        facts.last_event_us = facts.last_event_us.max(last_us);
        self.totals.add_times(item, first_us, last_us);
    }

    fn add_to_sums(&mut self, item: u32, sums: PairSums) {
        self.totals.add_pair(item, sums);
        if self.segment != u32::MAX {
            let of_segment = self.draft.segment_sums.entry((self.segment, item)).or_default();
            of_segment.add(sums);
        }
    }

    /// Marks in `counts` the events that stand: neither taken back nor taking back.
    fn take_back(&mut self, events: &[Event]) {
        self.counts.clear();
        self.counts.resize(events.len(), true);
        if !events.iter().any(|event| event.is_undo) {
            return;
        }
        self.open.iter_mut().for_each(Vec::clear);
        for (position, event) in events.iter().enumerate() {
            let kind = &self.params.kinds[usize::from(event.kind)];
            if !event.is_undo {
                self.open[usize::from(kind.group)].push(position);
                continue;
            }
            self.counts[position] = false;
            let target = kind.undoes.unwrap_or(kind.group);
            match self.open[usize::from(target)].pop() {
                Some(undone) => {
                    self.counts[undone] = false;
                    self.draft.filtered.undone += 2;
                }
                None => self.draft.filtered.undo_without_event += 1,
            }
        }
    }

    /// Writes the user at hand.
    fn close_user(&mut self, id: IdRef<'_>, facts: UserFacts) {
        let (draft, cap) = (&mut self.draft, self.params.interactions_per_user_max);
        draft.user_ids.push(id);
        draft.history.push(&mut self.pairs, cap);
        draft.dislikes.push(&mut self.dislikes, cap);
        draft.seen_ends.push(u32::try_from(draft.seen.len()).expect("a shard: under 2^32 pairs"));
        draft.facts.push(facts);
        if self.params.segment_of.is_some() {
            draft.segments.push(self.segment);
        }
    }

    fn finish(mut self) -> Draft {
        let draft = &mut self.draft;
        draft.history.shrink_to_fit();
        draft.dislikes.shrink_to_fit();
        draft.seen.shrink_to_fit();
        draft.seen_ends.shrink_to_fit();
        draft.facts.shrink_to_fit();
        self.draft
    }
}

/// Affinities and weights of a pair stop here: 2⁴⁸ in units of 2⁻¹⁶ is a weight of 4 × 10⁹. A run in
/// which any pair gets there is refused.
pub const MAX: i64 = 1 << 48;

/// Like `Vec::retain` on a slice: keeps order, returns how many stay at the front.
fn retain(events: &mut [Event], mut keep: impl FnMut(&Event) -> bool) -> usize {
    let mut kept = 0;
    for position in 0..events.len() {
        if keep(&events[position]) {
            events[kept] = events[position];
            kept += 1;
        }
    }
    kept
}

/// Pairs of a shard that did not enter the histories, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The item has too few users.
    pub too_few_users: u64,
    /// Older than the user's newest `interactions_per_user_max`.
    pub over_cap: u64,
    /// Users cut by the cap.
    pub users_over_cap: u64,
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
    let seen = finish_seen(&seen_ends, &seen, idx_of_rank);
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

fn finish_seen(ends: &[u32], seen: &[u32], idx_of_rank: &[u32]) -> ItemLists {
    let mut kept = ItemLists { ends: Vec::with_capacity(ends.len()), items: Vec::new() };
    kept.items.reserve(seen.len());
    let mut start = 0;
    for end in ends.iter().map(|&end| end as usize) {
        kept.items.extend(
            seen[start..end]
                .iter()
                .map(|&rank| ItemIdx(idx_of_rank[rank as usize]))
                .filter(|idx| idx.0 != u32::MAX),
        );
        kept.ends.push(kept.items.len() as u32);
        start = end;
    }
    kept.items.shrink_to_fit();
    kept
}
