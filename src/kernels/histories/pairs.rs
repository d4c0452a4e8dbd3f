//! Items and affinities of the users of a shard, before and after the support of items is known.

use super::builder::Pair;
use crate::types::{ItemIdx, ItemLists};

/// Items and affinities of consecutive users, end to end.
#[derive(Debug, Default)]
pub(super) struct DraftPairs {
    ends: Vec<u32>,
    /// Ascending per user, or newest first where the user has more than the cap.
    items: Vec<u32>,
    affinities: Vec<i64>,
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

impl DraftPairs {
    pub(super) fn reserve(&mut self, n_users: usize, n_pairs: usize) {
        self.ends.reserve(n_users);
        self.items.reserve(n_pairs);
        self.affinities.reserve(n_pairs);
    }

    /// Appends one user. Users over the cap are kept newest first, so that the cap can be applied
    /// after the support filter without keeping a time per pair.
    pub(super) fn push(&mut self, pairs: &mut [Pair], cap: usize) {
        if pairs.len() > cap {
            pairs.sort_unstable_by(|a, b| b.last_us.cmp(&a.last_us).then(a.item.cmp(&b.item)));
        }
        self.items.extend(pairs.iter().map(|pair| pair.item));
        self.affinities.extend(pairs.iter().map(|pair| pair.affinity));
        self.ends.push(u32::try_from(self.items.len()).expect("a shard holds under 2^32 pairs"));
    }

    /// Appends a user of at most `most` pairs: `write` writes them, ascending, to the front of the room that
    /// it is given, and returns how many they are. Returns their items.
    #[inline]
    pub(super) fn push_from(
        &mut self,
        most: usize,
        write: impl FnOnce(&mut [u32], &mut [i64]) -> usize,
    ) -> &[u32] {
        let start = self.items.len();
        self.items.resize(start + most, 0);
        self.affinities.resize(start + most, 0);
        let end = start + write(&mut self.items[start..], &mut self.affinities[start..]);
        self.items.truncate(end);
        self.affinities.truncate(end);
        self.ends.push(u32::try_from(end).expect("a shard holds under 2^32 pairs"));
        &self.items[start..]
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.ends.shrink_to_fit();
        self.items.shrink_to_fit();
        self.affinities.shrink_to_fit();
    }

    pub(super) fn heap_bytes(&self) -> usize {
        4 * (self.items.capacity() + self.ends.capacity()) + 8 * self.affinities.capacity()
    }

    /// Drops items without an index, renumbers, caps and sorts, all in place.
    pub(super) fn finish(
        mut self,
        idx_of_rank: &[u32],
        cap: usize,
    ) -> (ItemLists, Vec<i64>, Dropped) {
        let (mut dropped, mut start, mut n_kept) = (Dropped::default(), 0, 0);
        if all_are_kept(idx_of_rank) && self.longest() <= cap {
            let items = self.items.into_iter().map(ItemIdx).collect();
            return (ItemLists { ends: self.ends, items }, self.affinities, dropped);
        }
        for user in 0..self.ends.len() {
            let end = self.ends[user] as usize;
            let first = n_kept;
            for place in start..end {
                let idx = idx_of_rank[self.items[place] as usize];
                if idx != u32::MAX {
                    self.items[n_kept] = idx;
                    self.affinities[n_kept] = self.affinities[place];
                    n_kept += 1;
                }
            }
            dropped.too_few_users += (end - start - (n_kept - first)) as u64;
            if end - start > cap {
                n_kept = self.cut(first, n_kept, cap, &mut dropped);
            }
            self.ends[user] = n_kept as u32;
            start = end;
        }
        self.items.truncate(n_kept);
        self.affinities.truncate(n_kept);
        self.shrink_to_fit();
        let items = self.items.into_iter().map(ItemIdx).collect();
        (ItemLists { ends: self.ends, items }, self.affinities, dropped)
    }

    /// Pairs of the user who has most.
    fn longest(&self) -> usize {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| end - start).max().unwrap_or(0) as usize
    }

    /// Keeps the first `cap` of the pairs of a user and sorts them by item; returns their new end.
    fn cut(&mut self, first: usize, end: usize, cap: usize, dropped: &mut Dropped) -> usize {
        let over = (end - first).saturating_sub(cap);
        dropped.over_cap += over as u64;
        dropped.users_over_cap += u64::from(over > 0);
        let end = end - over;
        let (items, affinities) = (&mut self.items[first..end], &mut self.affinities[first..end]);
        let mut pairs: Vec<(u32, i64)> =
            items.iter().copied().zip(affinities.iter().copied()).collect();
        pairs.sort_unstable_by_key(|&(item, _)| item);
        for (place, (item, affinity)) in pairs.into_iter().enumerate() {
            (items[place], affinities[place]) = (item, affinity);
        }
        end
    }
}

/// Whether every item has an index, which then is its rank: they count from 0 on.
fn all_are_kept(idx_of_rank: &[u32]) -> bool {
    idx_of_rank.last().is_none_or(|&last| last as usize == idx_of_rank.len() - 1)
}

/// The seen items of each user that have an index.
pub(super) fn finish_seen(
    mut ends: Vec<u32>,
    mut seen: Vec<u32>,
    idx_of_rank: &[u32],
) -> ItemLists {
    if all_are_kept(idx_of_rank) {
        return ItemLists { ends, items: seen.into_iter().map(ItemIdx).collect() };
    }
    let (mut start, mut n_kept) = (0, 0);
    for end in &mut ends {
        for place in start..*end as usize {
            let idx = idx_of_rank[seen[place] as usize];
            if idx != u32::MAX {
                seen[n_kept] = idx;
                n_kept += 1;
            }
        }
        start = *end as usize;
        *end = n_kept as u32;
    }
    seen.truncate(n_kept);
    seen.shrink_to_fit();
    ItemLists { ends, items: seen.into_iter().map(ItemIdx).collect() }
}
