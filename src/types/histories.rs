//! The sharded histories: what every model reads.

use xxhash_rust::xxh3::xxh3_64;

use super::{Ids, ItemIdx};

/// Item lists of consecutive users, end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemLists {
    /// End of each user's list in `items`.
    pub ends: Vec<u32>,
    /// The lists, each ascending.
    pub items: Vec<ItemIdx>,
}

impl ItemLists {
    /// Where the list of `row` lies in `items`.
    #[inline]
    pub fn range(&self, row: usize) -> std::ops::Range<usize> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        start as usize..self.ends[row] as usize
    }

    /// The list of `row`, ascending.
    #[inline]
    pub fn of(&self, row: usize) -> &[ItemIdx] {
        &self.items[self.range(row)]
    }
}

/// The users of one logical shard and what they did, after every filter, limit and cap.
///
/// Users belong to shards by a stable hash of their id; within a shard they are sorted by id. Their
/// row is their index. What depends on the order of users is defined per shard, never per process:
/// that is why results do not change with the number of processes.
#[derive(Clone, Debug)]
pub struct Histories {
    /// Which shard this is.
    pub shard: u32,
    /// The users' ids, ascending. Every user with a valid event is here, also without history.
    pub user_ids: Ids,
    /// Items of the history, ascending per user.
    pub interactions: ItemLists,
    /// Affinity of each interaction in units of 2⁻¹⁶ at the reference time; positive.
    pub affinities: Vec<i64>,
    /// Items that events with negative weights speak against, ascending per user; only ALS reads them.
    pub dislikes: ItemLists,
    /// What those events add up to, in the units of `affinities`; negative.
    pub dislike_affinities: Vec<i64>,
    /// Items never to recommend again: seen or excluded; from the whole log, uncapped.
    pub seen: ItemLists,
    /// Segment of each user as an index into the plan's segments, `u32::MAX` for none.
    /// Empty where the spec has no segments.
    pub segments: Vec<u32>,
    /// What the `users` table says of each user.
    pub facts: Vec<UserFacts>,
}

/// Counts of one user over the log as read, before `as_of`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserFacts {
    /// Valid events in the window that weigh more than 0.
    pub events: u32,
    /// Items with a positive affinity before support filter and cap.
    pub pairs: u32,
    /// Time of the first valid event, whatever the window.
    pub first_event_us: i64,
    /// Time of the last valid event.
    pub last_event_us: i64,
}

impl Histories {
    /// Number of users in the shard.
    pub fn n_users(&self) -> usize {
        self.user_ids.len()
    }

    /// The published index of the user in `row`: shard · 2³² + row.
    pub fn published_idx(&self, row: usize) -> i64 {
        (i64::from(self.shard) << 32) | row as i64
    }

    /// Items and affinities of the user in `row`.
    #[inline]
    pub fn of(&self, row: usize) -> (&[ItemIdx], &[i64]) {
        let range = self.interactions.range(row);
        (&self.interactions.items[range.clone()], &self.affinities[range])
    }

    /// A digest of what each user's factors and list follow from: items and affinities for and against, and
    /// what is never to be recommended. Numbers of rows and items are not in it, so it stays the same from run
    /// to run. `item_hashes`, `[n_items]`, stand for the items.
    ///
    /// # Panics
    /// If an item is not below `n_items`.
    pub fn digests(&self, item_hashes: &[u64]) -> Vec<i64> {
        let mut words: Vec<u8> = Vec::new();
        let digest = |row| {
            words.clear();
            let mut push = |word: u64| words.extend_from_slice(&word.to_le_bytes());
            let (items, affinities) = self.of(row);
            push(items.len() as u64);
            for (item, &affinity) in items.iter().zip(affinities) {
                push(item_hashes[item.index()]);
                push(affinity as u64);
            }
            if !self.dislikes.items.is_empty() {
                for at in self.dislikes.range(row) {
                    push(item_hashes[self.dislikes.items[at].index()]);
                    push(self.dislike_affinities[at] as u64);
                }
            }
            let seen = self.seen.of(row);
            push(seen.len() as u64);
            seen.iter().for_each(|item| push(item_hashes[item.index()]));
            xxh3_64(&words) as i64
        };
        (0..self.n_users()).map(digest).collect()
    }

    /// What each user says of items: affinities less what speaks against the item. Pairs that come
    /// to 0 say nothing and are left out.
    pub fn with_dislikes(&self) -> (ItemLists, Vec<i64>) {
        let (mut net, mut affinities) = (ItemLists::default(), Vec::new());
        for row in 0..self.n_users() {
            let (items, of_items) = self.of(row);
            let range = self.dislikes.range(row);
            let mut liked = items.iter().zip(of_items).peekable();
            let mut disliked = self.dislikes.items[range.clone()]
                .iter()
                .zip(&self.dislike_affinities[range])
                .peekable();
            loop {
                let item = match (liked.peek(), disliked.peek()) {
                    (Some((a, _)), Some((b, _))) => **a.min(b),
                    (Some((item, _)), None) | (None, Some((item, _))) => **item,
                    (None, None) => break,
                };
                let of_like = liked.next_if(|(other, _)| **other == item);
                let of_dislike = disliked.next_if(|(other, _)| **other == item);
                let sum = of_like.map_or(0, |(_, &a)| a) + of_dislike.map_or(0, |(_, &a)| a);
                if sum != 0 {
                    net.items.push(item);
                    affinities.push(sum);
                }
            }
            net.ends.push(net.items.len() as u32);
        }
        (net, affinities)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(ends: &[u32], items: &[u32]) -> ItemLists {
        let items = items.iter().copied().map(ItemIdx).collect();
        ItemLists { ends: ends.to_vec(), items }
    }

    #[test]
    fn a_digest_changes_with_whatever_a_user_did_and_with_nothing_else() {
        let digest = |liked: &[u32], affinities: &[i64], disliked: &[u32], seen: &[u32]| {
            // Another user before and behind.
            let around = |list: &[u32]| {
                let end = list.len() as u32 + 1;
                lists(&[1, end, end + 1], &[&[0], list, &[1]].concat())
            };
            let histories = Histories {
                shard: 0,
                user_ids: Ids::Int(vec![1, 2, 3]),
                interactions: around(liked),
                affinities: [&[5], affinities, &[6]].concat(),
                dislikes: around(disliked),
                dislike_affinities: vec![-1; disliked.len() + 2],
                seen: around(seen),
                segments: Vec::new(),
                facts: Vec::new(),
            };
            histories.digests(&[10, 11, 12, 13, 14])
        };
        let all = [
            digest(&[1, 2], &[3, 4], &[], &[1, 2]),
            digest(&[1, 3], &[3, 4], &[], &[1, 2]),
            digest(&[1, 2], &[3, 5], &[], &[1, 2]),
            digest(&[1, 2], &[3, 4], &[4], &[1, 2]),
            digest(&[1, 2], &[3, 4], &[], &[1, 2, 4]),
            digest(&[1], &[3], &[2], &[1, 2]),
        ];
        for (at, digests) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other[1] != digests[1]), "{at}");
            assert_eq!((digests[0], digests[2]), (all[0][0], all[0][2]), "{at}: others' digests");
        }
    }

    #[test]
    fn dislikes_are_taken_off_affinities() {
        let histories = Histories {
            shard: 0,
            user_ids: Ids::Int(vec![1, 2, 3]),
            interactions: lists(&[3, 4, 4], &[0, 2, 5, 1]),
            affinities: vec![10, 20, 30, 7],
            dislikes: lists(&[4, 4, 5], &[0, 1, 2, 7, 3]),
            dislike_affinities: vec![-4, -1, -20, -2, -9],
            seen: ItemLists::default(),
            segments: Vec::new(),
            facts: Vec::new(),
        };
        let (net, affinities) = histories.with_dislikes();
        assert_eq!(net, lists(&[4, 5, 6], &[0, 1, 5, 7, 1, 3]));
        assert_eq!(affinities, [6, -1, 30, -2, 7, -9]);
    }
}
