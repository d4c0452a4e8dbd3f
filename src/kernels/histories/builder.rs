//! The histories of one shard, user by user.

use std::collections::HashMap;

use super::event::{Event, Layout};
use super::group::Kept;
use super::pairs::DraftPairs;
use super::plain::{Marks, Plain};
use super::weights::{MAX, Weights};
use super::{Draft, EventKind, Filtered, Params};
use crate::kernels::item_totals::{Adder, Cells, OfUser, PairSums};
use crate::types::{IdRef, Ids, UserFacts};

/// One item in the history of the user at hand.
pub(super) struct Pair {
    pub(super) item: u32,
    pub(super) affinity: i64,
    pub(super) last_us: i64,
}

/// Takes the users of a shard one after the other.
pub(super) struct Builder<'a, 't> {
    params: Params<'a>,
    adder: &'a mut Adder<'t>,
    layout: &'a Layout,
    weights: Weights<'a>,
    /// Whether some kind takes back another.
    may_undo: bool,
    /// Where sums are all that decides.
    plain: Option<Plain>,
    marks: &'a mut Marks,
    pub(super) draft: Draft,
    /// What the user at hand likes, and what they do not.
    pairs: Vec<Pair>,
    dislikes: Vec<Pair>,
    /// What the user did with every item.
    of_items: Vec<OfUser>,
    /// Segment of the user at hand, `u32::MAX` for none.
    segment: u32,
    /// Events of the item at hand that stand, where some do not.
    standing: Vec<Event>,
    /// Per group, the events of the item at hand that may still be taken back.
    open: Vec<Vec<usize>>,
    /// As in the rows.
    digests: &'a [u128],
}

impl<'a, 't> Builder<'a, 't> {
    pub(super) fn new(
        params: Params<'a>,
        (adder, marks): (&'a mut Adder<'t>, &'a mut Marks),
        layout: &'a Layout,
        like: &Ids,
        digests: &'a [u128],
        (latest, n_rows): (u64, usize),
    ) -> Self {
        let weights = Weights::new(params.kinds, &params.calendar.decay);
        let latest_us = layout.time_us(latest);
        let plain = Plain::of(params, layout, &weights, latest_us, n_rows);
        let plain = plain.filter(|plain| {
            digests.is_empty() && adder.begin(n_rows, plain.same(layout, latest_us))
        });
        if plain.is_some() {
            marks.reserve(adder.n_items());
        }
        let draft = Draft {
            user_ids: like.new_like(),
            history: DraftPairs::default(),
            dislikes: DraftPairs::default(),
            seen_ends: Vec::new(),
            seen: Vec::new(),
            facts: Vec::new(),
            segments: Vec::new(),
            segment_sums: HashMap::new(),
            rows_read: 0,
            rows_used: 0,
            filtered: Filtered::default(),
        };
        Self {
            params,
            adder,
            layout,
            weights,
            plain,
            marks,
            may_undo: params.kinds.iter().any(EventKind::may_undo),
            draft,
            pairs: Vec::new(),
            dislikes: Vec::new(),
            of_items: Vec::new(),
            segment: u32::MAX,
            standing: Vec::new(),
            open: vec![Vec::new(); params.kinds.len()],
            digests,
        }
    }

    /// Takes the events of one user, of which there are some; `spare` is room.
    pub(super) fn user<K: Kept>(&mut self, id: IdRef<'_>, events: &mut [K], spare: &mut Vec<K>) {
        if self.plain_user(id, events) {
            return;
        }
        K::sort(events, self.layout, spare);
        let n_left = self.drop_repeated(events);
        let events = &events[..n_left];
        let mut facts =
            UserFacts { first_event_us: i64::MAX, last_event_us: i64::MIN, ..UserFacts::default() };
        self.segment = self.params.segment_of.map_or(u32::MAX, |segment_of| segment_of(id));
        self.pairs.clear();
        self.dislikes.clear();
        self.of_items.clear();
        let layout = self.layout;
        for of_item in events.chunk_by(|a, b| a.item(layout) == b.item(layout)) {
            self.item(of_item, &mut facts);
        }
        facts.pairs = self.pairs.len() as u32;
        self.adder.add_user(self.of_items.iter().copied());
        let (draft, cap) = (&mut self.draft, self.params.interactions_per_user_max);
        draft.history.push(&mut self.pairs, cap);
        draft.dislikes.push(&mut self.dislikes, cap);
        self.close_user(id, facts);
    }

    /// Takes the events of one user where sums decide; false if it has not, as for a user who may be
    /// over the cap, of which the newest items are wanted.
    fn plain_user<K: Kept>(&mut self, id: IdRef<'_>, events: &[K]) -> bool {
        let Self { plain: Some(plain), marks, params, layout, draft, adder, .. } = self else {
            return false;
        };
        let mut cells = adder.cells();
        // Of events at one time the lowest items are the newest.
        let is_any = matches!(cells, Cells::Any(_));
        if is_any && events.len() > params.interactions_per_user_max {
            return false;
        }
        let (mut facts, mut heaviest) = (UserFacts::default(), 0);
        let items = draft.history.push_from(events.len(), |items, affinities| {
            (facts, heaviest) =
                plain.user(events, layout, (&mut cells, marks), (items, affinities));
            facts.pairs as usize
        });
        adder.add_heaviest(heaviest);
        if plain.marks_seen {
            draft.seen.extend_from_slice(items);
        }
        draft.dislikes.push(&mut [], usize::MAX);
        draft.rows_used += events.len() as u64;
        self.close_user(id, facts);
        true
    }

    /// Moves the events that count to the front, still in order; returns how many they are.
    fn drop_repeated<K: Kept>(&mut self, events: &mut [K]) -> usize {
        let layout = self.layout;
        // 0 for an event without id.
        let digest =
            |event: &K| self.digests.get(event.event(layout).row as usize).copied().unwrap_or(0);
        if self.digests.is_empty() || events.iter().all(|event| digest(event) == 0) {
            return events.len();
        }
        let mut first_of: HashMap<u128, (u64, usize)> = HashMap::with_capacity(events.len());
        for (position, event) in events.iter().enumerate() {
            let ticks = event.ticks(layout);
            let first = first_of.entry(digest(event)).or_insert((ticks, position));
            *first = (*first).min((ticks, position));
        }
        let mut position = 0;
        let n_first = retain(events, |event| {
            position += 1;
            digest(event) == 0 || first_of[&digest(event)].1 == position - 1
        });
        self.draft.filtered.duplicate += (events.len() - n_first) as u64;
        n_first
    }

    /// Takes the events of one item, in order of time.
    #[inline]
    fn item<K: Kept>(&mut self, keys: &[K], facts: &mut UserFacts) {
        let layout = self.layout;
        let (item, last) = (keys[0].item(layout), keys[keys.len() - 1]);
        let first_us = layout.time_us(keys[0].ticks(layout));
        let last_us = layout.time_us(last.ticks(layout));
        facts.first_event_us = facts.first_event_us.min(first_us);
        facts.last_event_us = facts.last_event_us.max(last_us);
        let mut sums = Sums::new();
        if self.may_undo && keys.iter().any(|key| key.event(layout).is_undo) {
            self.take_back(keys);
            for place in 0..self.standing.len() {
                self.event(self.standing[place], &mut sums);
            }
        } else {
            keys.iter().for_each(|key| self.event(key.event(layout), &mut sums));
        }
        facts.events += sums.events as u32;
        let sums = self.close_item(item, &sums);
        self.of_items.push(OfUser { item, first_us, last_us, sums });
    }

    /// Takes an event that stands.
    ///
    /// Inlined, like what writes an item, so that sums stay in registers: they are read as pairs where
    /// they were written one by one, and a processor waits for such memory.
    #[inline(always)]
    fn event(&mut self, event: Event, sums: &mut Sums) {
        let Params { kinds, calendar, .. } = self.params;
        let kind = &kinds[usize::from(event.kind)];
        let time_us = self.layout.time_us(event.ticks);
        sums.seen |= kind.excludes_item || (kind.marks_seen && time_us >= calendar.seen_start_us);
        if time_us < calendar.window_start_us {
            self.draft.filtered.before_window += 1;
            return;
        }
        self.draft.rows_used += 1;
        if kind.weight == 0.0 {
            return;
        }
        let of_event = self.weights.of(event.kind, event.value_bits, time_us);
        if of_event.affinity == 0 {
            self.draft.filtered.faded += 1;
            self.draft.rows_used -= 1;
            return;
        }
        if of_event.is_negative {
            sums.against = sums.against.saturating_add(of_event.affinity).min(MAX);
            sums.last_against_us = sums.last_against_us.max(time_us);
            return;
        }
        sums.events += 1;
        sums.affinity = sums.affinity.saturating_add(of_event.affinity).min(MAX);
        sums.weight = sums.weight.saturating_add(of_event.units).min(MAX);
        sums.newer += if time_us >= calendar.middle_us { of_event.units } else { 0 };
        sums.last_us = sums.last_us.max(time_us);
    }

    /// Writes the item at hand; returns what is to be added to its sums.
    #[inline(always)]
    fn close_item(&mut self, item: u32, sums: &Sums) -> Option<PairSums> {
        if sums.against > 0 {
            let (affinity, last_us) = (-sums.against, sums.last_against_us);
            self.dislikes.push(Pair { item, affinity, last_us });
            self.adder.add_heaviest(sums.against);
        }
        if sums.seen {
            self.draft.seen.push(item);
        }
        let &Sums { events, weight, affinity, newer, last_us, .. } = sums;
        if affinity == 0 {
            return None;
        }
        self.pairs.push(Pair { item, affinity, last_us });
        let sums = PairSums { events, weight, affinity, newer };
        if self.segment != u32::MAX {
            self.draft.segment_sums.entry((self.segment, item)).or_default().add(sums);
        }
        Some(sums)
    }

    /// Puts into `standing` the events that stand: neither taken back nor taking back.
    fn take_back<K: Kept>(&mut self, keys: &[K]) {
        let mut stands = vec![true; keys.len()];
        self.open.iter_mut().for_each(Vec::clear);
        for (position, key) in keys.iter().enumerate() {
            let event = key.event(self.layout);
            let kind = &self.params.kinds[usize::from(event.kind)];
            if !event.is_undo {
                self.open[usize::from(kind.group)].push(position);
                continue;
            }
            stands[position] = false;
            let target = kind.undoes.unwrap_or(kind.group);
            match self.open[usize::from(target)].pop() {
                Some(undone) => {
                    stands[undone] = false;
                    self.draft.filtered.undone += 2;
                }
                None => self.draft.filtered.undo_without_event += 1,
            }
        }
        self.standing.clear();
        let standing = keys.iter().zip(stands).filter(|(_, stands)| *stands);
        self.standing.extend(standing.map(|(key, _)| key.event(self.layout)));
    }

    /// Writes the user at hand.
    fn close_user(&mut self, id: IdRef<'_>, facts: UserFacts) {
        let draft = &mut self.draft;
        draft.user_ids.push(id);
        draft.seen_ends.push(u32::try_from(draft.seen.len()).expect("a shard: under 2^32 pairs"));
        draft.facts.push(facts);
        if self.params.segment_of.is_some() {
            draft.segments.push(self.segment);
        }
    }

    /// What has become of the shard.
    pub(super) fn finish(mut self) -> Draft {
        let draft = &mut self.draft;
        draft.history.shrink_to_fit();
        draft.dislikes.shrink_to_fit();
        draft.seen.shrink_to_fit();
        draft.seen_ends.shrink_to_fit();
        draft.facts.shrink_to_fit();
        self.draft
    }
}

/// What the events of one user and item add up to.
struct Sums {
    seen: bool,
    events: i64,
    weight: i64,
    affinity: i64,
    newer: i64,
    last_us: i64,
    against: i64,
    last_against_us: i64,
}

impl Sums {
    fn new() -> Self {
        Self {
            seen: false,
            events: 0,
            weight: 0,
            affinity: 0,
            newer: 0,
            last_us: i64::MIN,
            against: 0,
            last_against_us: i64::MIN,
        }
    }
}

/// Like `Vec::retain` on a slice: keeps order, returns how many stay at the front.
fn retain<K: Kept>(events: &mut [K], mut keep: impl FnMut(&K) -> bool) -> usize {
    let mut kept = 0;
    for position in 0..events.len() {
        if keep(&events[position]) {
            events[kept] = events[position];
            kept += 1;
        }
    }
    kept
}
