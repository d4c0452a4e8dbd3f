//! What can go wrong in a kernel that is used as documented: integers that run out of range.

use crate::types::ItemIdx;

/// A sum of the input does not fit the integers that hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The squared affinities of an item reach 2⁶³, so a pair product could overflow.
    #[error("the squared affinities of item index {} sum to 2^63 or more", item.0)]
    SquaredAffinities {
        /// The item, by its index in the run.
        item: ItemIdx,
    },
}
