//! What events weigh.

use super::{Decay, EventKind, ValueTransform};
use crate::kernels::decay::event_weight;
use crate::types::AFFINITY_ONE;

/// Affinities and weights of a pair stop here: 2⁴⁸ in units of 2⁻¹⁶ is a weight of 4 × 10⁹. A run in
/// which any pair gets there is refused.
pub const MAX: i64 = 1 << 48;

/// What one event weighs, in units of 2⁻¹⁶.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    /// Whether it speaks against the item.
    pub(super) is_negative: bool,
    /// Undecayed.
    pub(super) units: i64,
    /// At the reference time, at least 0.
    pub(super) affinity: i64,
}

/// The weights of all kinds, computed once where they do not depend on the event.
pub(super) struct Weights<'a> {
    kinds: &'a [EventKind],
    decay: &'a Decay,
    reference_us: i64,
    fixed: Vec<Option<Weight>>,
}

impl<'a> Weights<'a> {
    pub(super) fn new(kinds: &'a [EventKind], decay: &'a Decay) -> Self {
        let reference_us = decay.reference_time();
        let mut weights = Self { kinds, decay, reference_us, fixed: Vec::new() };
        let never_fades = decay.half_life_us.is_none();
        let fixed = |kind: &EventKind| {
            let is_fixed = never_fades && kind.transform == ValueTransform::None;
            is_fixed.then(|| weights.computed(kind, 1.0, 0))
        };
        weights.fixed = kinds.iter().map(fixed).collect();
        weights
    }

    /// What an event weighs.
    #[inline]
    pub(super) fn of(&self, kind: u8, value_bits: u32, time_us: i64) -> Weight {
        let kind = usize::from(kind);
        match self.fixed[kind] {
            Some(weight) => weight,
            None => self.computed(&self.kinds[kind], f32::from_bits(value_bits), time_us),
        }
    }

    /// What every event of a kind weighs, if that is above 0 and its affinity is the same.
    pub(super) fn plain(&self, kind: usize) -> Option<i64> {
        let Weight { is_negative, units, affinity } = self.fixed[kind]?;
        (!is_negative && units > 0 && affinity == units).then_some(units)
    }

    fn computed(&self, kind: &EventKind, value: f32, time_us: i64) -> Weight {
        let EventKind { weight, transform, value_max, .. } = *kind;
        let weight = event_weight(weight, f64::from(value), transform, value_max);
        let affinity = self.decay.affinity_from(self.reference_us, weight.abs(), time_us);
        Weight {
            is_negative: weight < 0.0,
            units: ((weight * AFFINITY_ONE as f64).round() as i64).min(MAX),
            affinity: affinity.unwrap_or(MAX),
        }
    }
}
