//! The walk of a user's events where nothing but sums decides: no event takes back, repeats or misses
//! the window.

use super::event::{Key, Layout};
use super::weights::{MAX, Weights};
use super::{Calendar, EventKind, Params};
use crate::kernels::item_totals::{OfUser, PairSums};

/// What events of a shard weigh, if all of them count and each weighs what its kind does.
pub(super) struct Plain {
    /// Weight and affinity of an event by kind, in units of 2⁻¹⁶.
    units: Vec<i64>,
    /// Whether the items of all events count as seen; none does otherwise.
    pub(super) marks_seen: bool,
    /// Events from here on are in the newer half of the window.
    middle_ticks: u64,
}

/// The events of one user and item. Sums go from the user's first event to the last one of the run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Run {
    pub(super) item: u32,
    pub(super) events: u32,
    pub(super) first_ticks: u64,
    pub(super) last_ticks: u64,
    pub(super) weight: i64,
    pub(super) newer: i64,
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
        Some(Self { units, marks_seen, middle_ticks: layout.ticks_from(calendar.middle_us) })
    }

    /// The runs of a user's events, which lie next to each other by item, in the same order.
    ///
    /// Every event writes the run that it would end, and only the last of an item moves on: whether
    /// the next event is of the same item is nothing that a processor could foresee.
    #[inline]
    pub(super) fn runs<'r, K: Key>(
        &self,
        events: &[K],
        layout: &Layout,
        room: &'r mut Vec<Run>,
    ) -> &'r [Run] {
        if room.len() < events.len() {
            room.resize(events.len(), Run::default());
        }
        let runs = &mut room[..events.len()];
        let Some(last) = events.last() else { return &[] };
        let mut run = Run { first_ticks: u64::MAX, ..Run::default() };
        let mut n_runs = 0;
        let nexts = events[1..].iter().chain([last]);
        for (event, next) in events.iter().zip(nexts) {
            let ticks = event.ticks(layout);
            let units = self.units[usize::from(event.kind(layout))];
            run.item = event.item(layout);
            run.events = run.events.wrapping_add(1);
            run.first_ticks = run.first_ticks.min(ticks);
            run.last_ticks = run.last_ticks.max(ticks);
            run.weight = run.weight.wrapping_add(units);
            let is_newer = ticks >= self.middle_ticks;
            run.newer = run.newer.wrapping_add(if is_newer { units } else { 0 });
            runs[n_runs] = run;
            let ends = run.item != next.item(layout);
            n_runs += usize::from(ends);
            run.events = if ends { 0 } else { run.events };
            run.first_ticks = if ends { u64::MAX } else { run.first_ticks };
            run.last_ticks = if ends { 0 } else { run.last_ticks };
        }
        // The last event is its own next one, so its run is not counted yet.
        &room[..n_runs + 1]
    }
}

/// What a user did with each item.
pub(super) fn of_user(runs: &[Run], layout: &Layout) -> impl Iterator<Item = OfUser> {
    let (mut weight, mut newer) = (0, 0);
    runs.iter().map(move |run| {
        let of_run = run.weight.wrapping_sub(weight);
        let sums = PairSums {
            events: i64::from(run.events),
            weight: of_run,
            affinity: of_run,
            newer: run.newer.wrapping_sub(newer),
        };
        (weight, newer) = (run.weight, run.newer);
        OfUser {
            item: run.item,
            first_us: layout.time_us(run.first_ticks),
            last_us: layout.time_us(run.last_ticks),
            sums: Some(sums),
        }
    })
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
