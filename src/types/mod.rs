//! What every layer shares: ids, indices, sharded histories, the item dictionary, errors on one line.

mod histories;
mod ids;
mod log_row;
mod one_line;

pub use histories::{Histories, ItemLists, UserFacts};
pub use ids::{ByteIds, IdRef, IdType, Ids};
pub use log_row::LogRow;
pub use one_line::one_line;

/// Rank of an item's id among the items kept in this run: `0..n_items`.
///
/// Items are renumbered in sorted order of their ids, so a lower index is a lower id and every tie
/// that goes "to the lower index" is the same for any process count, thread count and file order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct ItemIdx(pub u32);

impl ItemIdx {
    /// The index as a position in an item-sized slice.
    #[inline]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Microseconds in a day.
pub const DAY_US: i64 = 86_400 * 1_000_000;

/// Units in an affinity or weight of 1: affinities are integers in units of 2⁻¹⁶, so that their
/// sums do not depend on the order of the summands.
pub const AFFINITY_ONE: i64 = 1 << 16;

/// The logical shard of a user among `n_shards`, a power of two.
///
/// It depends on the id alone, so a user stays in place whatever the cluster looks like. Doubling
/// the number of shards splits each shard in two neighbors.
#[inline]
pub fn shard_of(user: IdRef<'_>, n_shards: u32) -> u32 {
    shard_of_hash(shard_hash(user), n_shards)
}

/// The hash of a user that decides the shard.
#[inline]
pub fn shard_hash(user: IdRef<'_>) -> u64 {
    const SHARD_SEED: u64 = 0x7469_6465_6D69_6C6C;
    user.stable_hash(SHARD_SEED)
}

/// The shard of a user of that [`shard_hash`].
#[inline]
pub fn shard_of_hash(hash: u64, n_shards: u32) -> u32 {
    ((u128::from(hash) * u128::from(n_shards)) >> 64) as u32
}
