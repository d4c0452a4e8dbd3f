//! Results of stages as bytes that outlive their process: small, and equal for equal results.
//!
//! Unlike blocks of the wire, these come back from a disk or a store. So reading them never panics:
//! what cannot be is [`Damaged`].

use std::ops::Range;

use super::NeighborLists;
use super::codec::put;
use crate::types::{ByteIds, Histories, Ids, ItemIdx, ItemLists, UserFacts};

/// Bytes that are not what was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its numbers are not those of a saved result")]
pub struct Damaged;

/// Appends a number in groups of seven bits, lowest first: small ones take a byte.
pub fn put_u64(value: u64, out: &mut Vec<u8>) {
    put(value, out);
}

/// The same for numbers of either sign.
pub fn put_i64(value: i64, out: &mut Vec<u8>) {
    put(((value << 1) ^ (value >> 63)) as u64, out);
}

/// Appends floats as they are.
pub fn put_floats(values: &[f32], out: &mut Vec<u8>) {
    out.reserve(4 * values.len());
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

/// Appends ids; sorted ones take few bytes, since each tells only what its predecessor does not.
pub fn put_ids(ids: &Ids, out: &mut Vec<u8>) {
    put_u64(ids.len() as u64, out);
    match ids {
        Ids::Int(ids) => {
            let mut last = 0;
            for &id in ids {
                put_i64(id.wrapping_sub(last), out);
                last = id;
            }
        }
        Ids::Bytes(ids) => {
            let mut last: &[u8] = &[];
            for row in 0..ids.parts().1.len() {
                let id = ids.get(row);
                let same = last.iter().zip(id).take_while(|(a, b)| a == b).count();
                put_u64(same as u64, out);
                put_u64((id.len() - same) as u64, out);
                out.extend_from_slice(&id[same..]);
                last = id;
            }
        }
    }
}

/// Reads what the functions above wrote, from the front.
#[derive(Debug)]
pub struct Saved<'a>(&'a [u8]);

impl<'a> Saved<'a> {
    /// Everything is still to be read.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The inverse of [`put_u64`].
    ///
    /// # Errors
    /// [`Damaged`], as of all functions here.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, Damaged> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Damaged)?;
            self.0 = rest;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err(Damaged)
    }

    /// The inverse of [`put_i64`].
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn i64(&mut self) -> Result<i64, Damaged> {
        let coded = self.u64()?;
        Ok((coded >> 1) as i64 ^ -((coded & 1) as i64))
    }

    /// A number that [`put_u64`] wrote and that fits 32 bits.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn u32(&mut self) -> Result<u32, Damaged> {
        u32::try_from(self.u64()?).map_err(|_| Damaged)
    }

    /// How many of something follow, each of a byte at least: so no number asks for more memory
    /// than there are bytes.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn n(&mut self) -> Result<usize, Damaged> {
        let n = usize::try_from(self.u64()?).map_err(|_| Damaged)?;
        (n <= self.0.len()).then_some(n).ok_or(Damaged)
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Damaged> {
        let (bytes, rest) = self.0.split_at_checked(n).ok_or(Damaged)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// The inverse of [`put_floats`] for all bytes that are left, which must be `n` floats.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn floats(self, n: usize) -> Result<Vec<f32>, Damaged> {
        let (words, rest) = self.0.as_chunks::<4>();
        if words.len() != n || !rest.is_empty() {
            return Err(Damaged);
        }
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// The inverse of [`put_ids`] for ids of the kind of `like`.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn ids(&mut self, like: &Ids) -> Result<Ids, Damaged> {
        let n_ids = self.n()?;
        if let Ids::Int(_) = like {
            let mut last = 0i64;
            let mut next = || {
                last = last.wrapping_add(self.i64()?);
                Ok(last)
            };
            return Ok(Ids::Int((0..n_ids).map(|_| next()).collect::<Result<_, _>>()?));
        }
        let mut ids = ByteIds::default();
        let mut last = Vec::new();
        for _ in 0..n_ids {
            let (same, more) = (self.u64()? as usize, self.n()?);
            if same > last.len() {
                return Err(Damaged);
            }
            last.truncate(same);
            last.extend_from_slice(self.bytes(more)?);
            ids.push(&last);
        }
        Ok(Ids::Bytes(ids))
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn finish(self) -> Result<(), Damaged> {
        self.0.is_empty().then_some(()).ok_or(Damaged)
    }

    fn lists(&mut self) -> Result<ItemLists, Damaged> {
        let mut lists = ItemLists::default();
        for _ in 0..self.n()? {
            let mut last = 0u32;
            for _ in 0..self.n()? {
                last = last.checked_add(self.u32()?).ok_or(Damaged)?;
                lists.items.push(ItemIdx(last));
            }
            lists.ends.push(u32::try_from(lists.items.len()).map_err(|_| Damaged)?);
        }
        lists.items.shrink_to_fit();
        Ok(lists)
    }

    fn facts(&mut self) -> Result<UserFacts, Damaged> {
        let (events, pairs, first_event_us) = (self.u32()?, self.u32()?, self.i64()?);
        let last_event_us = first_event_us.wrapping_add(self.i64()?);
        Ok(UserFacts { events, pairs, first_event_us, last_event_us })
    }
}

/// Item lists: how many, then each one's length and the distances between its items.
fn put_lists(lists: &ItemLists, out: &mut Vec<u8>) {
    put_u64(lists.ends.len() as u64, out);
    for row in 0..lists.ends.len() {
        let items = lists.of(row);
        put_u64(items.len() as u64, out);
        let mut last = 0;
        for item in items {
            put_u64(u64::from(item.0 - last), out);
            last = item.0;
        }
    }
}

/// Appends the histories of a shard: about 4 bytes per pair, and its ids.
pub fn put_histories(shard: &Histories, out: &mut Vec<u8>) {
    put_u64(u64::from(shard.shard), out);
    put_ids(&shard.user_ids, out);
    put_lists(&shard.interactions, out);
    shard.affinities.iter().for_each(|&affinity| put_i64(affinity, out));
    put_lists(&shard.dislikes, out);
    shard.dislike_affinities.iter().for_each(|&affinity| put_i64(affinity, out));
    put_lists(&shard.seen, out);
    put_u64(shard.segments.len() as u64, out);
    // "None" is the largest number, and 0 takes the fewest bytes.
    let segments = shard.segments.iter();
    segments.for_each(|&segment| put_u64(u64::from(segment.wrapping_add(1)), out));
    put_u64(shard.facts.len() as u64, out);
    for facts in &shard.facts {
        put_u64(u64::from(facts.events), out);
        put_u64(u64::from(facts.pairs), out);
        put_i64(facts.first_event_us, out);
        put_i64(facts.last_event_us.wrapping_sub(facts.first_event_us), out);
    }
}

/// The inverse of [`put_histories`] for `shard`, whose users have ids of the kind of `like` and
/// whose items are below `n_items`.
///
/// # Errors
/// [`Damaged`].
pub fn read_histories(
    bytes: &[u8],
    shard: u32,
    like: &Ids,
    n_items: usize,
) -> Result<Histories, Damaged> {
    let mut saved = Saved::new(bytes);
    let of_shard = saved.u32()?;
    let user_ids = saved.ids(like)?;
    let interactions = saved.lists()?;
    let affinities = many(interactions.items.len(), || saved.i64())?;
    let dislikes = saved.lists()?;
    let dislike_affinities = many(dislikes.items.len(), || saved.i64())?;
    let seen = saved.lists()?;
    let n_segments = saved.n()?;
    let segments = many(n_segments, || Ok(saved.u32()?.wrapping_sub(1)))?;
    let n_facts = saved.n()?;
    let facts = many(n_facts, || saved.facts())?;
    saved.finish()?;
    let n_users = user_ids.len();
    let is_in = |lists: &ItemLists| lists.items.iter().all(|item| item.index() < n_items);
    let fits = of_shard == shard
        && [&interactions, &dislikes, &seen].iter().all(|lists| lists.ends.len() == n_users)
        && [&interactions, &dislikes, &seen].into_iter().all(is_in)
        && [0, n_users].contains(&segments.len())
        && facts.len() == n_users;
    let shard = Histories {
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
    fits.then_some(shard).ok_or(Damaged)
}

fn many<T>(n: usize, mut read: impl FnMut() -> Result<T, Damaged>) -> Result<Vec<T>, Damaged> {
    let mut values = Vec::with_capacity(n);
    for _ in 0..n {
        values.push(read()?);
    }
    Ok(values)
}

/// Appends the neighbors of some items: about 8 bytes each.
pub fn put_neighbors(lists: &NeighborLists, rows: Range<usize>, out: &mut Vec<u8>) {
    put_u64(rows.len() as u64, out);
    for row in rows {
        let neighbors = lists.of(row);
        put_u64(neighbors.items.len() as u64, out);
        neighbors.items.iter().for_each(|item| put_u64(u64::from(item.0), out));
        neighbors.supports.iter().for_each(|&support| put_u64(u64::from(support), out));
        put_floats(neighbors.scores, out);
    }
}

/// The inverse of [`put_neighbors`] for `n_rows` items, whose neighbors are below `n_items`.
///
/// # Errors
/// [`Damaged`].
pub fn read_neighbors(
    bytes: &[u8],
    n_rows: usize,
    n_items: usize,
) -> Result<NeighborLists, Damaged> {
    let mut saved = Saved::new(bytes);
    if saved.n()? != n_rows {
        return Err(Damaged);
    }
    let mut lists = NeighborLists::default();
    for _ in 0..n_rows {
        let n = saved.n()?;
        let items = many(n, || saved.u32())?;
        let supports = many(n, || saved.u32())?;
        let scores = Saved::new(saved.bytes(4 * n)?).floats(n)?;
        if items.iter().any(|&item| item as usize >= n_items) {
            return Err(Damaged);
        }
        let rows = items.into_iter().zip(scores).zip(supports);
        lists.push_row(rows.map(|((item, score), support)| (ItemIdx(item), score, support)));
    }
    saved.finish()?;
    Ok(lists)
}

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;
