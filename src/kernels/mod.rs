//! Pure functions on slices: the maths of every model, and nothing else.
//!
//! A kernel is handed numbers and returns numbers. It sees no file, clock, Arrow array or timely
//! stream, and its result does not depend on the number of threads. Each one is held against a slow
//! twin that follows its definition word for word.
//!
//! | kernel | what it computes | cost |
//! |---|---|---|
//! | [`event_rows`], [`dictionary`], [`code_table`], [`codec`] | packed rows, item ids, coded histories | linear |
//! | [`saved`] | results of stages as bytes that outlive their process | linear |
//! | [`histories`], [`item_totals`] | events of a shard to histories, and sums per item | O(n log n) per shard |
//! | [`decay`] | weight of an event, and its integer affinity under a half-life | O(1) per event |
//! | [`popularity`] | order, ranks, shares and trend of items, from their integer sums | O(n log n) for the order |
//! | [`debias`] | propensity, IPS weight and discount of an item | O(n_items) |
//! | [`cosine`] | item-item neighbors from all users' histories | O(sum of squared history lengths) |
//! | [`als`] | factors of users and items by alternating least squares | O(pairs * n_factors) per pass |
//! | [`factor_scores`] | candidates of users by products of factors, exact | O(n_users * n_items * n_factors) |
//! | [`neighbor_scores`] | candidates of one user from the neighbors of the history | O(history * n_neighbors) |
//! | [`top_k`] | the best k of many scored items | O(n + k log k) |
//! | [`combine`] | one list from several rankers, discounts, the fallback | O(n log n) for n candidates |
//! | [`simd`], [`half`] | instructions chosen while running, numbers in 16 bits | |
//! | [`synthetic`] | a seeded shop and its log, for examples and tests | linear |

pub mod als;
pub mod code_table;
pub mod codec;
pub mod combine;
pub mod cosine;
pub mod debias;
pub mod decay;
pub mod dictionary;
pub mod event_rows;
pub mod factor_scores;
pub mod half;
pub mod histories;
pub mod item_totals;
pub mod neighbor_scores;
pub mod popularity;
pub mod saved;
pub mod simd;
pub mod synthetic;
pub mod top_k;

mod candidate_lists;
mod error;
mod neighbor_lists;

pub use candidate_lists::CandidateLists;
pub use error::KernelError;
pub use neighbor_lists::{NeighborLists, Neighbors};

#[cfg(test)]
mod combine_tests;
#[cfg(test)]
mod histories_tests;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod synthetic_tests;
