//! How pairs get their numbers: integer sums by item, then two sorts.

use std::cmp::Reverse;

use rayon::prelude::*;

use super::Interactions;
use super::ranked::{Code, Lists};
use crate::kernels::KernelError;
use crate::types::ItemIdx;

/// Number of users of each item.
pub(super) fn supports(interactions: &Interactions<'_>) -> Vec<u64> {
    let Interactions { items, n_items, .. } = *interactions;
    let parts = items.par_chunks(part_size(interactions));
    sum(n_items, parts.map(|items| added(n_items, items.iter().map(|&item| (item, 1)))))
}

/// The sum of each item's squared affinities, where pairs have affinities.
pub(super) fn squared_norms(
    interactions: &Interactions<'_>,
) -> Result<Option<Vec<u64>>, KernelError> {
    let Interactions { items, affinities: Some(affinities), n_items, .. } = *interactions else {
        return Ok(None);
    };
    // Sums that do not fit stay at the largest number, which is refused.
    let square = |affinity: &i64| affinity.unsigned_abs().saturating_mul(affinity.unsigned_abs());
    let size = part_size(interactions);
    let parts = items.par_chunks(size).zip(affinities.par_chunks(size));
    let sums = parts.map(|(items, affinities)| {
        added(n_items, items.iter().copied().zip(affinities.iter().map(square)))
    });
    let sums = sum(n_items, sums);
    match sums.iter().position(|&sum| sum >= 1 << 63) {
        Some(item) => Err(KernelError::SquaredAffinities { item: ItemIdx(item as u32) }),
        None => Ok(Some(sums)),
    }
}

/// Pairs that a thread sums up: so many that all sums take 2 bytes per pair at most.
fn part_size(interactions: &Interactions<'_>) -> usize {
    let n_pairs = interactions.items.len();
    let most = n_pairs / (4 * interactions.n_items.max(1));
    n_pairs.div_ceil(most.clamp(1, rayon::current_num_threads())).max(1)
}

fn added(n_items: usize, values: impl Iterator<Item = (ItemIdx, u64)>) -> Vec<u64> {
    let mut sums = vec![0u64; n_items];
    for (item, value) in values {
        let sum = &mut sums[item.index()];
        *sum = sum.saturating_add(value);
    }
    sums
}

fn sum(n_items: usize, parts: impl ParallelIterator<Item = Vec<u64>>) -> Vec<u64> {
    let add = |mut sums: Vec<u64>, part: Vec<u64>| {
        sums.iter_mut().zip(part).for_each(|(sum, value)| *sum = sum.saturating_add(value));
        sums
    };
    parts.reduce_with(add).unwrap_or_else(|| vec![0; n_items])
}

/// The items in the order of their codes.
pub(super) fn items_by(squared_norms: &[u64]) -> Vec<ItemIdx> {
    let mut items: Vec<ItemIdx> = (0..squared_norms.len() as u32).map(ItemIdx).collect();
    items.par_sort_unstable_by_key(|&item| (squared_norms[item.index()], item));
    items
}

/// Where lists of these lengths start, and the end of the last.
pub(super) fn offsets(lengths: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut end = 0;
    let ends = lengths.map(|length| {
        end += length;
        end
    });
    std::iter::once(0).chain(ends).collect()
}

/// The histories in order of rank, each in order of code.
pub(super) fn by_rank<C: Code>(interactions: &Interactions<'_>, codes: &[u32]) -> Lists<C> {
    let length = |user: &u32| interactions.range(*user).len() as u64;
    let mut order: Vec<u32> = (0..interactions.n_users() as u32).collect();
    order.par_sort_unstable_by_key(|user| (Reverse(length(user)), *user));
    let offsets = offsets(order.iter().map(length));
    let mut entries = vec![C::default(); interactions.items.len()];
    let mut affinities = interactions.affinities.map(|values| vec![0; values.len()]);
    // More parts than threads, as long histories take longer to sort.
    let bounds = bounds(&offsets, 8 * rayon::current_num_threads());
    let pieces = split(&mut entries, &bounds, &offsets);
    let of_pieces = split_or_empty(affinities.as_mut(), &bounds, &offsets);
    let parts = bounds.par_windows(2).zip(pieces).zip(of_pieces);
    parts.for_each(|((part, entries), affinities)| {
        let users = &order[part[0]..part[1]];
        match interactions.affinities {
            None => fill(interactions, users, codes, entries),
            Some(from) => fill_weighted(interactions, users, codes, from, entries, affinities),
        }
    });
    Lists { offsets, entries, affinities }
}

/// Writes the histories of some users.
fn fill<C: Code>(
    interactions: &Interactions<'_>,
    users: &[u32],
    codes: &[u32],
    mut entries: &mut [C],
) {
    for &user in users {
        let items = &interactions.items[interactions.range(user)];
        let (history, rest) = entries.split_at_mut(items.len());
        for (entry, item) in history.iter_mut().zip(items) {
            *entry = C::new(codes[item.index()]);
        }
        history.sort_unstable();
        entries = rest;
    }
}

/// Writes the histories of some users with their affinities.
fn fill_weighted<C: Code>(
    interactions: &Interactions<'_>,
    users: &[u32],
    codes: &[u32],
    from: &[i64],
    entries: &mut [C],
    affinities: &mut [i64],
) {
    let mut history: Vec<(C, i64)> = Vec::new();
    let mut places = entries.iter_mut().zip(affinities);
    for &user in users {
        let range = interactions.range(user);
        let pairs = interactions.items[range.clone()].iter().zip(&from[range]);
        history.clear();
        history.extend(pairs.map(|(item, &affinity)| (C::new(codes[item.index()]), affinity)));
        history.sort_unstable_by_key(|&(code, _)| code);
        for (pair, (entry, affinity)) in history.iter().zip(&mut places) {
            (*entry, *affinity) = *pair;
        }
    }
}

/// The users of each code, by a counting sort. A thread takes a range of codes from all histories.
pub(super) fn by_code<C: Code>(histories: &Lists<C>, offsets: Vec<u64>) -> Lists<u32> {
    let mut entries = vec![0; histories.entries.len()];
    let mut affinities = histories.affinities.as_ref().map(|values| vec![0; values.len()]);
    let bounds = bounds(&offsets, rayon::current_num_threads());
    let pieces = split(&mut entries, &bounds, &offsets);
    let of_pieces = split_or_empty(affinities.as_mut(), &bounds, &offsets);
    let parts = bounds.par_windows(2).zip(pieces).zip(of_pieces);
    parts.for_each(|((part, entries), affinities)| {
        let start = offsets[part[0]];
        let next = offsets[part[0]..part[1]].iter().map(|offset| offset - start).collect();
        deal(histories, part, next, entries, affinities);
    });
    Lists { offsets, entries, affinities }
}

/// Deals the pairs of a range of codes, of which the next ones go to these places.
fn deal<C: Code>(
    histories: &Lists<C>,
    codes: &[usize],
    mut next: Vec<u64>,
    entries: &mut [u32],
    affinities: &mut [i64],
) {
    for rank in 0..histories.len() {
        let pairs = histories.range(rank);
        let history = &histories.entries[pairs.clone()];
        let first = history.partition_point(|code| code.index() < codes[0]);
        for (pair, code) in (pairs.start + first..).zip(&history[first..]) {
            if code.index() >= codes[1] {
                break;
            }
            let place = &mut next[code.index() - codes[0]];
            entries[*place as usize] = rank as u32;
            if let Some(from) = &histories.affinities {
                affinities[*place as usize] = from[pair];
            }
            *place += 1;
        }
    }
}

/// Cuts lists into at most `n_parts` ranges with about as many entries each: where each starts, and
/// the end of the last.
pub(super) fn bounds(offsets: &[u64], n_parts: usize) -> Vec<usize> {
    let n_lists = offsets.len() - 1;
    let size = offsets[n_lists].div_ceil(n_parts as u64);
    let starts = (1..n_parts as u64)
        .map(|part| offsets.partition_point(|&offset| offset < part * size).min(n_lists));
    let mut bounds: Vec<usize> = std::iter::once(0).chain(starts).chain([n_lists]).collect();
    bounds.dedup();
    bounds
}

/// What lies between consecutive bounds.
pub(super) fn split<'a, T>(
    mut entries: &'a mut [T],
    bounds: &[usize],
    offsets: &[u64],
) -> Vec<&'a mut [T]> {
    let mut pieces = Vec::with_capacity(bounds.len());
    for part in bounds.windows(2) {
        let size = (offsets[part[1]] - offsets[part[0]]) as usize;
        let (piece, rest) = entries.split_at_mut(size);
        pieces.push(piece);
        entries = rest;
    }
    pieces
}

/// The same of affinities, with empty pieces where there are none.
fn split_or_empty<'a>(
    affinities: Option<&'a mut Vec<i64>>,
    bounds: &[usize],
    offsets: &[u64],
) -> Vec<&'a mut [i64]> {
    match affinities {
        Some(affinities) => split(affinities, bounds, offsets),
        None => bounds.windows(2).map(|_| Default::default()).collect(),
    }
}
