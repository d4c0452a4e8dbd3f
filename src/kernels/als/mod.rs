//! Alternating least squares on implicit feedback.
//!
//! The predicted preference of user u for item i is s = x_u · y_i. All dialects minimize
//!
//! ```text
//! sum over observed (extra · s² − 2 · target · s + target) + unobserved · sum over all pairs s²
//!   + sum over rows λ_row ‖row‖²
//! ```
//!
//! and differ in the numbers: see [`Objective`]. With one side held fixed, the best row of the other
//! side solves
//!
//! ```text
//! (unobserved · G + sum extra · y yᵀ + λ_row I) x = sum target · y,    G = YᵀY
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | [`objective`] | dialects: confidence of a weight, regularization of a row |
//! | [`start`] | starting values of an item from its id |
//! | [`gram`] | G of items, or of the users of a shard |
//! | [`users`] | the users of a shard, item factors at hand |
//! | [`item_sums`] | what a process's users say about items, summed over shards in a fixed tree |
//! | [`halves`] | the fixed side in 16 bits |
//! | [`rows`] | conjugate gradient and Cholesky on rows whose sums are known |
//! | [`loss`] | the sum above |
//! | [`explain`](fn@explain) | which item of the history speaks most for a recommendation |
//!
//! Factors are f32 in rows of [`stride`] numbers, the tail of a row being zeros.

pub mod gram;
pub mod halves;
pub mod item_sums;
pub mod loss;
pub mod objective;
pub mod rows;
pub mod start;
pub mod tree;
pub mod users;

mod explain;
mod pairs;
mod tiles;
mod triangle;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;

pub use explain::explain;
pub use objective::{Confidence, Dialect, Objective};
pub use pairs::{Fixed, Pairs, Row};

use super::simd::LANES;

/// Numbers from one row of factors to the next.
pub fn stride(n_factors: usize) -> usize {
    n_factors.next_multiple_of(LANES)
}

/// How the normal equations are solved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solver {
    /// So many steps of conjugate gradient from the values of the last iteration.
    ConjugateGradient {
        /// Steps per row and half iteration.
        steps: usize,
    },
    /// Exactly, by a Cholesky factorization per row.
    Cholesky,
}
