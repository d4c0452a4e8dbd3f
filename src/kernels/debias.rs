//! Weights against popularity: the chance that an item was shown, its inverse, and a discount.

/// How popularity turns into a propensity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// The power of the share of the most popular item; 0.5 is the usual choice. At least 0.
    pub propensity_exponent: f64,
    /// Propensities are clipped from below here, so that weights stay bounded. In [1e-30, 1].
    pub propensity_min: f64,
}

/// The debiasing columns of every item, each computed in f64 and rounded once to f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DebiasWeights {
    /// Chance of having been shown, relative to the most popular item: in [`propensity_min`, 1].
    ///
    /// [`propensity_min`]: Params::propensity_min
    pub propensity: Vec<f32>,
    /// `1 / propensity`, at least 1.
    pub ips_weight: Vec<f32>,
    /// `1 / sqrt(popularity + 1)`, in (0, 1].
    pub discount: Vec<f32>,
}

/// The debiasing weights of all items.
///
/// - `popularity` is a count per item, at least 0.
/// - Empty input gives empty columns; where no item has an event all have the least propensity.
/// - Source: Saito et al. (WSDM 2020) for the clipped power law.
///
/// # Panics
/// If a parameter is out of its range or a count is negative.
pub fn weights(popularity: &[i64], params: &Params) -> DebiasWeights {
    assert!(popularity.iter().all(|&n| n >= 0), "a popularity is at least 0");
    let n_max = popularity.iter().copied().max().unwrap_or(0);
    let mut weights = DebiasWeights::default();
    for &n in popularity {
        let propensity = propensity(n, n_max, params);
        weights.propensity.push(propensity as f32);
        weights.ips_weight.push((1.0 / propensity) as f32);
        weights.discount.push(discount(n) as f32);
    }
    weights
}

/// `max((n / n_max)^exponent, propensity_min)`; `propensity_min` where `n` is 0, whatever the
/// exponent. The power is `libm::pow`: the same bits on every machine.
///
/// # Panics
/// If a parameter is out of its range.
pub fn propensity(n: i64, n_max: i64, params: &Params) -> f64 {
    let Params { propensity_exponent, propensity_min } = *params;
    assert!(propensity_exponent >= 0.0, "a propensity exponent is at least 0");
    assert!((1e-30..=1.0).contains(&propensity_min), "a least propensity is in [1e-30, 1]");
    if n == 0 {
        return propensity_min;
    }
    libm::pow(n as f64 / n_max as f64, propensity_exponent).max(propensity_min)
}

/// `1 / sqrt(n + 1)`: 1 for an item without events, falling with popularity.
pub fn discount(n: i64) -> f64 {
    1.0 / (n as f64 + 1.0).sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARAMS: Params = Params { propensity_exponent: 0.5, propensity_min: 0.1 };

    #[test]
    fn a_square_root_with_a_clip() {
        let weights = weights(&[100, 25, 0, 1], &PARAMS);
        assert_eq!(weights.propensity, [1.0, 0.5, 0.1, 0.1]);
        assert_eq!(weights.ips_weight, [1.0, 2.0, 10.0, 10.0]);
        assert_eq!(weights.discount[2], 1.0);
        assert_eq!(weights.discount[1], (1.0 / 26f64.sqrt()) as f32);
    }

    #[test]
    fn no_events_at_all() {
        assert_eq!(weights(&[0, 0], &PARAMS).propensity, [0.1, 0.1]);
        assert_eq!(weights(&[], &PARAMS), DebiasWeights::default());
        let flat = Params { propensity_exponent: 0.0, propensity_min: 0.1 };
        assert_eq!(weights(&[0, 3], &flat).propensity, [0.1, 1.0]);
    }

    proptest! {
        #[test]
        fn weights_follow_popularity(
            counts in prop::collection::vec(0i64..1_000_000, 1..40),
            propensity_exponent in 0f64..3.0,
            propensity_min in 1e-6f64..1.0,
        ) {
            let params = Params { propensity_exponent, propensity_min };
            let all = weights(&counts, &params);
            let max = *counts.iter().max().unwrap();
            for (row, &n) in counts.iter().enumerate() {
                let share = if n == 0 { 0.0 } else { n as f64 / max as f64 };
                let plain = share.powf(propensity_exponent) * f64::from(u8::from(n > 0));
                let expected = plain.max(propensity_min);
                let propensity = f64::from(all.propensity[row]);
                prop_assert!((propensity / expected - 1.0).abs() < 1e-6);
                let product = f64::from(all.ips_weight[row]) * propensity;
                prop_assert!((product - 1.0).abs() < 1e-6);
                let inverse = f64::from(all.discount[row]).powi(2) * (n + 1) as f64;
                prop_assert!((inverse - 1.0).abs() < 1e-6);
            }
        }
    }
}
