//! From an event to its weight, and from a weight and a time to an integer affinity.

use crate::types::AFFINITY_ONE;

/// How the value of an event (a quantity, a price, a rating) enters its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueTransform {
    /// The value is ignored.
    None,
    /// The weight is multiplied by the value.
    Linear,
    /// The weight is multiplied by `ln(1 + value)`.
    Log1p,
}

/// The weight of one event: `weight * transform(min(value, value_max))`.
///
/// - Conventions: `value` is at least 0 and ignored (as is `value_max`) under
///   [`ValueTransform::None`]. A value of 0 weighs 0 otherwise.
/// - NaN never comes in: the caller rejects such rows before.
pub fn event_weight(
    weight: f64,
    value: f64,
    transform: ValueTransform,
    value_max: Option<f64>,
) -> f64 {
    let capped = value_max.map_or(value, |max| value.min(max));
    match transform {
        ValueTransform::None => weight,
        ValueTransform::Linear => weight * capped,
        ValueTransform::Log1p => weight * libm::log1p(capped),
    }
}

/// Exponential decay of weights with a half-life, on a grid of reference times.
///
/// Affinities are integers, so that their sums do not depend on the order of the summands. They are
/// brought not to `as_of` but to the next multiple of the half-life: runs within one half-life give
/// an event the same integer, and only the unit moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decay {
    /// Time in which a weight halves, in microseconds, above 0; `None` for weights that never fade.
    pub half_life_us: Option<i64>,
    /// The "now" of the job, in microseconds since 1970 UTC; events at or after it do not count.
    pub as_of_us: i64,
}

impl Decay {
    /// The first multiple of the half-life (counted from 1970) at or after `as_of`; `as_of` itself
    /// without a half-life. Saturates at the end of the range of an i64.
    ///
    /// # Panics
    /// If the half-life is not above 0.
    pub fn reference_time(&self) -> i64 {
        let Some(half_life) = self.half_life_us else { return self.as_of_us };
        assert!(half_life > 0, "a half-life is above 0");
        match self.as_of_us.rem_euclid(half_life) {
            0 => self.as_of_us,
            past => self.as_of_us.saturating_add(half_life - past),
        }
    }

    /// The affinity of an event: `weight * 2^16 * 2^((time - t_ref) / half_life)`, halves rounded
    /// away from zero, where `t_ref` is [`Self::reference_time`]. Without a half-life:
    /// `weight * 2^16`.
    ///
    /// - `None` if the result is not a number or does not fit an i64.
    /// - An event so old that less than half a unit is left has affinity 0.
    /// - Bits: one `libm::exp2`; the same on every machine.
    ///
    /// # Panics
    /// If the half-life is not above 0.
    pub fn affinity(&self, weight: f64, time_us: i64) -> Option<i64> {
        self.affinity_from(self.reference_time(), weight, time_us)
    }

    /// The same for a caller with many events, who asks for [`Self::reference_time`] once.
    pub fn affinity_from(&self, reference_us: i64, weight: f64, time_us: i64) -> Option<i64> {
        let faded = match self.half_life_us {
            Some(half_life) => {
                let elapsed = match time_us.checked_sub(reference_us) {
                    Some(elapsed) => elapsed as f64,
                    None => (i128::from(time_us) - i128::from(reference_us)) as f64,
                };
                libm::exp2(elapsed / half_life as f64)
            }
            None => 1.0,
        };
        to_units(weight * faded)
    }

    /// The value of one affinity unit at `as_of`: `2^-16 * 2^((t_ref - as_of) / half_life)`, from
    /// 2⁻¹⁶ to below 2⁻¹⁵. `affinity * unit` is the decayed weight that tables show.
    ///
    /// # Panics
    /// If the half-life is not above 0.
    pub fn unit(&self) -> f64 {
        let one = 1.0 / AFFINITY_ONE as f64;
        let Some(half_life) = self.half_life_us else { return one };
        let ahead = i128::from(self.reference_time()) - i128::from(self.as_of_us);
        one * libm::exp2(ahead as f64 / half_life as f64)
    }
}

/// A weight in integer units of 2⁻¹⁶, halves rounded away from zero; `None` if it is not a number
/// or does not fit.
pub fn to_units(weight: f64) -> Option<i64> {
    // 2^63 is a double and i64::MAX is not: the bound is open above.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    let units = (weight * AFFINITY_ONE as f64).round();
    (-LIMIT..LIMIT).contains(&units).then_some(units as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::DAY_US;

    fn monthly(as_of_us: i64) -> Decay {
        Decay { half_life_us: Some(30 * DAY_US), as_of_us }
    }

    #[test]
    fn the_reference_time_is_the_next_multiple() {
        assert_eq!(monthly(0).reference_time(), 0);
        assert_eq!(monthly(1).reference_time(), 30 * DAY_US);
        assert_eq!(monthly(30 * DAY_US).reference_time(), 30 * DAY_US);
        assert_eq!(monthly(-1).reference_time(), 0);
        assert_eq!(monthly(i64::MAX).reference_time(), i64::MAX);
        assert_eq!(Decay { half_life_us: None, as_of_us: 7 }.reference_time(), 7);
    }

    #[test]
    fn a_half_life_halves_exactly() {
        let decay = monthly(60 * DAY_US);
        for halvings in 0..20 {
            let time = (60 - 30 * halvings) * DAY_US;
            let exact = 3.0 * 65_536.0 / f64::from(1 << halvings);
            assert_eq!(decay.affinity(3.0, time), Some(exact.round() as i64));
        }
        assert_eq!(decay.affinity(1.0, -100_000 * DAY_US), Some(0));
    }

    #[test]
    fn halves_round_away_from_zero_and_overflow_is_seen() {
        assert_eq!(to_units(1.5 / 65_536.0), Some(2));
        assert_eq!(to_units(-0.5 / 65_536.0), Some(-1));
        assert_eq!(to_units(2f64.powi(47)), None);
        assert_eq!(to_units(-(2f64.powi(47))), Some(i64::MIN));
        assert_eq!(to_units(f64::NAN), None);
        assert_eq!(to_units(f64::INFINITY), None);
        assert_eq!(monthly(0).affinity(1.0, i64::MAX), None);
    }

    #[test]
    fn values_are_capped_then_transformed() {
        let weight = |transform, max| event_weight(2.0, 30.0, transform, max);
        assert_eq!(weight(ValueTransform::None, Some(20.0)), 2.0);
        assert_eq!(weight(ValueTransform::Linear, Some(20.0)), 40.0);
        assert_eq!(weight(ValueTransform::Linear, None), 60.0);
        assert_eq!(weight(ValueTransform::Log1p, Some(20.0)), 2.0 * libm::log1p(20.0));
        assert_eq!(event_weight(2.0, 0.0, ValueTransform::Log1p, None), 0.0);
    }

    proptest! {
        #[test]
        fn the_unit_brings_affinities_to_as_of(
            half_life in 1i64..1_000 * DAY_US,
            as_of in -(1i64 << 52)..1i64 << 52,
            halvings in 0f64..8.0,
            weight in 0.01f64..1e6,
        ) {
            let decay = Decay { half_life_us: Some(half_life), as_of_us: as_of };
            let time = as_of - (halvings * half_life as f64) as i64;
            let expected = weight * 0.5f64.powf((as_of - time) as f64 / half_life as f64);
            let affinity = decay.affinity(weight, time).expect("small weights fit");
            let error = (affinity as f64 * decay.unit() - expected).abs();
            prop_assert!(error <= decay.unit() * 0.5001 + expected * 1e-12);
            let (low, high) = (1.0 / 65_536.0, 1.0 / 32_768.0);
            prop_assert!((low..=high).contains(&decay.unit()));
        }

        #[test]
        fn moving_the_clock_within_a_period_keeps_the_integers(
            half_life in 2i64..1_000 * DAY_US,
            period in -100i64..1_000,
            (a, b) in (0f64..1.0, 0f64..1.0),
            age in 0i64..10_000 * DAY_US,
        ) {
            let at = |share: f64| {
                let into = 1 + (share * (half_life - 1) as f64) as i64;
                Decay { half_life_us: Some(half_life), as_of_us: period * half_life + into }
            };
            let time = period * half_life - age;
            prop_assert_eq!(at(a).affinity(1.0, time), at(b).affinity(1.0, time));
        }
    }
}
