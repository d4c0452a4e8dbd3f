//! Starting values: a stream of normal deviates per item, from its id and the seed of the job.

use crate::kernels::simd::LANES;

/// Fills the first `n_factors` numbers of `row` with deviates of mean 0 and standard deviation
/// 0.1 / √n_factors, as iALS++ does, and the rest with zeros.
///
/// `hash` is a stable hash of the item's id and the job's seed, so that an item starts at the same
/// values in every run, whatever else is in the catalog. Box-Muller on a SplitMix64 stream.
///
/// # Panics
/// If `row` is not padded.
pub fn start(hash: u64, n_factors: usize, row: &mut [f32]) {
    assert!(row.len().is_multiple_of(LANES) && row.len() >= n_factors, "a padded row");
    let scale = 0.1 / (n_factors as f64).sqrt();
    let mut state = hash;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // In (0, 1], so that its logarithm is finite.
        (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1u64 << 53) as f64
    };
    row.fill(0.0);
    for value in &mut row[..n_factors] {
        let radius = (-2.0 * libm::log(uniform())).sqrt();
        *value = (scale * radius * libm::cos(std::f64::consts::TAU * uniform())) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviates_have_their_mean_and_deviation() {
        let mut row = vec![1.0; 16_000];
        start(7, 15_990, &mut row);
        assert_eq!(row[15_990..], [0.0; 10]);
        let scaled = row[..15_990].iter().map(|&value| f64::from(value) * 10.0 * 15_990f64.sqrt());
        let (sum, squares) =
            scaled.fold((0.0, 0.0), |(sum, squares), v| (sum + v, squares + v * v));
        assert!((sum / 15_990.0).abs() < 0.03, "{sum}");
        assert!((squares / 15_990.0 - 1.0).abs() < 0.04, "{squares}");
    }

    #[test]
    fn a_row_is_a_function_of_its_hash() {
        let (mut a, mut b, mut c) = ([0.0; 16], [0.0; 16], [0.0; 16]);
        start(1, 10, &mut a);
        start(1, 10, &mut b);
        start(2, 10, &mut c);
        assert_eq!(a, b);
        assert_ne!(a, c);
    }
}
