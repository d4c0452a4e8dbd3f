//! Gram matrices: FᵀF of factors F.

use rayon::prelude::*;

use super::stride;
use crate::kernels::simd::{Kernel, LANES, Simd, add_scaled, dispatch};

/// Rows that are summed up in f32 before they are added to an f64.
const CHUNK_ROWS: usize = 256;

/// FᵀF of `factors`, `[n_rows, stride]`, as `[n_factors, stride]` in f64.
///
/// Chunks of 256 rows are summed in f32 in their order, the chunks in f64 in theirs, so the bits do
/// not depend on the number of threads. Cost: O(n_rows · n_factors²) time on all threads of the pool.
pub fn gram(factors: &[f32], n_factors: usize) -> Vec<f64> {
    let stride = stride(n_factors);
    /// Chunks in flight: bounds the memory, and is no part of the result.
    const CHUNKS_PER_WAVE: usize = 64;
    let mut sum = vec![0.0f64; n_factors * stride];
    for wave in factors.chunks(CHUNKS_PER_WAVE * CHUNK_ROWS * stride) {
        let chunks: Vec<Vec<f32>> = wave
            .par_chunks(CHUNK_ROWS * stride)
            .map(|rows| dispatch(Chunk { rows, n_factors, stride }))
            .collect();
        for chunk in chunks {
            sum.iter_mut().zip(chunk).for_each(|(sum, part)| *sum += f64::from(part));
        }
    }
    sum
}

/// The matrix as the kernels read it.
pub fn rounded(gram: &[f64]) -> Vec<f32> {
    gram.iter().map(|&value| value as f32).collect()
}

struct Chunk<'a> {
    rows: &'a [f32],
    n_factors: usize,
    stride: usize,
}

impl Kernel for Chunk<'_> {
    type Output = Vec<f32>;

    /// Lower triangle by whole groups of lanes, then its mirror image.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { rows, n_factors, stride } = self;
        let mut sum = vec![0.0f32; n_factors * stride];
        for row in rows.chunks_exact(stride) {
            for a in 0..n_factors {
                let width = (a / LANES + 1) * LANES;
                add_scaled(simd, &mut sum[a * stride..a * stride + width], row[a], &row[..width]);
            }
        }
        for a in 0..n_factors {
            for b in a + 1..n_factors {
                sum[a * stride + b] = sum[b * stride + a];
            }
        }
        sum
    }
}
