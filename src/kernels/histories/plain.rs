//! The events of a user where nothing but sums decides: no event takes back, repeats or misses the
//! window.
//!
//! Nothing is sorted: events add to the cells of their items, and the marked items, in order, are the
//! user's.

use super::event::{Key, Layout};
use super::weights::{MAX, Weights};
use super::{Calendar, EventKind, Params};
use crate::kernels::item_totals::{Cells, Same};
use crate::kernels::simd::prefetch;
use crate::types::UserFacts;

/// What events of a shard weigh, if all of them count and each weighs what its kind does.
pub(super) struct Plain {
    /// Weight and affinity of an event by kind, in units of 2⁻¹⁶.
    units: Vec<i64>,
    /// Whether the items of all events count as seen; none does otherwise.
    pub(super) marks_seen: bool,
    /// Events from here on are in the newer half of the window.
    middle_us: i64,
}

/// So many events ahead their items are asked for.
const AHEAD: usize = 16;

/// Which items the user at hand has: a bit for each, and a bit for each word with some.
#[derive(Default)]
pub(super) struct Marks {
    words: Vec<u64>,
    of_words: Vec<u64>,
}

impl Marks {
    /// Makes room for `n_items`.
    pub(super) fn reserve(&mut self, n_items: usize) {
        self.words.resize(n_items.div_ceil(64), 0);
        self.of_words.resize(self.words.len().div_ceil(64), 0);
    }

    #[inline(always)]
    fn set(&mut self, item: usize) {
        self.words[item / 64] |= 1 << (item % 64);
        self.of_words[item / 4096] |= 1 << (item / 64 % 64);
    }

    /// Gives every marked item, ascending, and unmarks it.
    #[inline(always)]
    fn drain(&mut self, mut give: impl FnMut(usize)) {
        for (n, of_words) in self.of_words.iter_mut().enumerate() {
            let mut marked_words = std::mem::take(of_words);
            while marked_words != 0 {
                let word = 64 * n + marked_words.trailing_zeros() as usize;
                marked_words &= marked_words - 1;
                let mut marked = std::mem::take(&mut self.words[word]);
                while marked != 0 {
                    give(64 * word + marked.trailing_zeros() as usize);
                    marked &= marked - 1;
                }
            }
        }
    }
}

impl Plain {
    /// `None` where some event of `n_rows` may be left out, may weigh something of its own, or may add
    /// up to [`MAX`]. Events are from `layout`'s first time up to `latest_us`, and without ids.
    pub(super) fn of(
        params: Params<'_>,
        layout: &Layout,
        weights: &Weights<'_>,
        latest_us: i64,
        n_rows: usize,
    ) -> Option<Self> {
        let Params { kinds, calendar, segment_of, .. } = params;
        let first_us = layout.time_us(0);
        let all_count = first_us >= calendar.window_start_us && latest_us < calendar.as_of_us;
        if !all_count || segment_of.is_some() || kinds.iter().any(EventKind::may_undo) {
            return None;
        }
        let marks_seen = all_or_none(kinds, calendar, first_us)?;
        let units: Option<Vec<i64>> = (0..kinds.len()).map(|kind| weights.plain(kind)).collect();
        let units = units?;
        let heaviest = units.iter().copied().max().unwrap_or(0);
        let all = i64::try_from(n_rows).ok().and_then(|n_rows| heaviest.checked_mul(n_rows));
        if all.is_none_or(|all| all >= MAX) {
            return None;
        }
        Some(Self { units, marks_seen, middle_us: calendar.middle_us })
    }

    /// What all events of the shard have in common; `None` if they differ in weight or time.
    pub(super) fn same(&self, layout: &Layout, latest_us: i64) -> Option<Same> {
        let &[weight] = &self.units[..] else { return None };
        let time_us = layout.time_us(0);
        let is_newer = time_us >= self.middle_us;
        (time_us == latest_us).then_some(Same { weight, time_us, is_newer })
    }

    /// Adds the events of a user to `cells` and writes the user's items, ascending, and what they weigh
    /// into `items` and `affinities`, which have room for one of each event. Returns the facts, and the
    /// largest of these.
    pub(super) fn user<K: Key>(
        &self,
        events: &[K],
        layout: &Layout,
        (cells, marks): (&mut Cells<'_>, &mut Marks),
        (items, affinities): (&mut [u32], &mut [i64]),
    ) -> (UserFacts, i64) {
        let mut facts = UserFacts { events: events.len() as u32, ..UserFacts::default() };
        let mut pairs = items.iter_mut().zip(affinities);
        let (mut n_pairs, mut heaviest) = (0, 0);
        let mut write = |item: usize, weight: i64| {
            if let Some((to_item, affinity)) = pairs.next() {
                (*to_item, *affinity) = (item as u32, weight);
                heaviest = weight.max(heaviest);
                n_pairs += 1;
            }
        };
        match cells {
            Cells::Same(counts, same) => {
                let Same { weight, time_us, .. } = *same;
                for (n, event) in events.iter().enumerate() {
                    if let Some(later) = events.get(n + AHEAD) {
                        prefetch(counts, later.item(layout) as usize);
                    }
                    let item = event.item(layout) as usize;
                    counts[item].add_event();
                    marks.set(item);
                }
                marks.drain(|item| write(item, weight * i64::from(counts[item].close_user())));
                (facts.first_event_us, facts.last_event_us) = (time_us, time_us);
            }
            Cells::Any(cells) => {
                let (mut first_us, mut last_us) = (i64::MAX, i64::MIN);
                for (n, event) in events.iter().enumerate() {
                    if let Some(later) = events.get(n + AHEAD) {
                        prefetch(cells, later.item(layout) as usize);
                    }
                    let item = event.item(layout) as usize;
                    let time_us = layout.time_us(event.ticks(layout));
                    let units = self.units[usize::from(event.kind(layout))];
                    let newer = if time_us >= self.middle_us { units } else { 0 };
                    cells[item].add_event(units, newer, time_us);
                    marks.set(item);
                    (first_us, last_us) = (first_us.min(time_us), last_us.max(time_us));
                }
                marks.drain(|item| write(item, cells[item].close_user()));
                (facts.first_event_us, facts.last_event_us) = (first_us, last_us);
            }
        }
        facts.pairs = n_pairs;
        (facts, heaviest)
    }
}

/// Whether the events of all kinds mark their items as seen; `None` if only some may.
fn all_or_none(kinds: &[EventKind], calendar: &Calendar, first_us: i64) -> Option<bool> {
    let is_late = first_us >= calendar.seen_start_us;
    if kinds.iter().all(|kind| kind.excludes_item || (kind.marks_seen && is_late)) {
        return Some(true);
    }
    let marks_none = kinds.iter().all(|kind| !kind.excludes_item && !kind.marks_seen);
    marks_none.then_some(false)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn marked_items_come_once_and_in_order(
            users in prop::collection::vec(prop::collection::vec(0usize..9_000, 0..60), 1..4)
        ) {
            let mut marks = Marks::default();
            marks.reserve(9_000);
            for items in users {
                items.iter().for_each(|&item| marks.set(item));
                let mut found = Vec::new();
                marks.drain(|item| found.push(item));
                prop_assert_eq!(found, Vec::from_iter(BTreeSet::from_iter(items)));
            }
        }
    }
}
