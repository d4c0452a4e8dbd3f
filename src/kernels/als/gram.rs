//! Gram matrices: FᵀF of factors F.

use std::ops::Range;

use rayon::prelude::*;

use super::halves::{Halves, Number, Numbers};
use super::stride;
use crate::kernels::half::Half;
use crate::kernels::simd::{Kernel, LANES, Simd, dispatch};

/// Rows that are summed up in f32 before they are added to an f64.
const CHUNK_ROWS: usize = 256;

/// FᵀF of `factors`, `[n_rows, stride]`, as `[n_factors, stride]` in f64.
///
/// Chunks of 256 rows are summed in f32 in their order, the chunks in f64 in theirs, so the bits do
/// not depend on the number of threads. Cost: O(n_rows · n_factors²) time on all threads of the pool.
pub fn gram(factors: &[f32], n_factors: usize) -> Vec<f64> {
    of_numbers(Numbers { numbers: factors, unit: 1.0 }, n_factors)
}

/// The same of rows in 16 bits, of which `rows` count.
pub fn of_halves(halves: &Halves, rows: Range<usize>, n_factors: usize) -> Vec<f64> {
    let Numbers { numbers, unit }: Numbers<'_, Half> = halves.all();
    let stride = stride(n_factors);
    let numbers = &numbers[rows.start * stride..rows.end * stride];
    of_numbers(Numbers { numbers, unit }, n_factors)
}

fn of_numbers<N: Number>(Numbers { numbers, unit }: Numbers<'_, N>, n_factors: usize) -> Vec<f64> {
    let stride = stride(n_factors);
    /// Chunks in flight: bounds the memory, and is no part of the result.
    const CHUNKS_PER_WAVE: usize = 64;
    let mut sum = vec![0.0f64; n_factors * stride];
    for wave in numbers.chunks(CHUNKS_PER_WAVE * CHUNK_ROWS * stride) {
        let chunks: Vec<Vec<f32>> = wave
            .par_chunks(CHUNK_ROWS * stride)
            .map(|numbers| dispatch(Chunk { rows: Numbers { numbers, unit }, n_factors, stride }))
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

struct Chunk<'a, N> {
    rows: Numbers<'a, N>,
    n_factors: usize,
    stride: usize,
}

/// Rows that are added together: each number of the sum is fetched once for all of them.
const TOGETHER: usize = 8;

impl<N: Number> Kernel for Chunk<'_, N> {
    type Output = Vec<f32>;

    /// Lower triangle by whole groups of lanes, then its mirror image.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { rows, n_factors, stride } = self;
        let mut sum = vec![0.0f32; n_factors * stride];
        let n_rows = rows.numbers.len() / stride;
        let mut near = vec![0.0; TOGETHER * stride];
        for first in (0..n_rows).step_by(TOGETHER) {
            let last = n_rows.min(first + TOGETHER);
            // Rows of zeros add nothing.
            near[(last - first) * stride..].fill(0.0);
            rows.write(simd, &mut near[..(last - first) * stride], stride, first..last);
            add_rows(simd, &mut sum, &near, n_factors, stride);
        }
        for a in 0..n_factors {
            for b in a + 1..n_factors {
                sum[a * stride + b] = sum[b * stride + a];
            }
        }
        sum
    }
}

/// Adds the products of some rows with themselves, row after row.
#[inline(always)]
fn add_rows<S: Simd>(simd: S, sum: &mut [f32], rows: &[f32], n_factors: usize, stride: usize) {
    for (a, sum) in sum.chunks_exact_mut(stride).take(n_factors).enumerate() {
        let mut scales = [simd.splat(0.0); TOGETHER];
        for row in 0..TOGETHER {
            scales[row] = simd.splat(rows[row * stride + a]);
        }
        let (groups, _) = sum.as_chunks_mut::<LANES>();
        for (group, sum) in groups[..a / LANES + 1].iter_mut().enumerate() {
            let mut lanes = simd.load(sum);
            for row in 0..TOGETHER {
                let of_row = rows[row * stride + group * LANES..].first_chunk();
                let of_row = simd.load(of_row.expect("whole groups"));
                lanes = simd.mul_add(scales[row], of_row, lanes);
            }
            simd.store(lanes, sum);
        }
    }
}
