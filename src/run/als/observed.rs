//! What users say of items, as confidences.

use anyhow::{Result, anyhow};
use rayon::prelude::*;

use crate::kernels::als::Objective;
use crate::kernels::als::users::Users;
use crate::run::Refused;
use crate::run::prepare::Prepared;
use crate::types::{Histories, ItemIdx, ItemLists};

/// What the users of a shard say of items, as ALS reads it.
pub(super) struct Observed {
    /// Items of each user, dislikes among them. Absent where there are none: then the history is it.
    merged: Option<ItemLists>,
    /// Signed confidence of each of them.
    pub(super) confidences: Vec<f32>,
}

impl Observed {
    fn new(shard: &Histories, unit: f64, objective: &Objective) -> Self {
        let merged = (!shard.dislikes.items.is_empty()).then(|| shard.with_dislikes());
        let (merged, affinities) = merged.unzip();
        let affinities = affinities.as_ref().unwrap_or(&shard.affinities);
        let confidence = |&affinity: &i64| objective.confidence(affinity as f64 * unit);
        Self { merged, confidences: affinities.par_iter().map(confidence).collect() }
    }

    /// The same of some items, which get other numbers: `[n_items]`, `None` for those left out.
    pub(super) fn of_items(&self, shard: &Histories, numbers: &[Option<ItemIdx>]) -> Self {
        let Users { interactions, confidences, .. } = self.users(shard, None);
        let (mut merged, mut of_items) = (ItemLists::default(), Vec::new());
        for row in 0..shard.n_users() {
            let range = interactions.range(row);
            for (item, &confidence) in interactions.of(row).iter().zip(&confidences[range]) {
                if let Some(number) = numbers[item.index()] {
                    merged.items.push(number);
                    of_items.push(confidence);
                }
            }
            merged.ends.push(merged.items.len() as u32);
        }
        Self { merged: Some(merged), confidences: of_items }
    }

    /// The users of `shard`, whose pairs these are.
    pub(super) fn users<'a>(
        &'a self,
        shard: &'a Histories,
        solved: Option<&'a [bool]>,
    ) -> Users<'a> {
        let interactions = self.merged.as_ref().unwrap_or(&shard.interactions);
        Users { interactions, confidences: &self.confidences, solved }
    }
}

/// What the users of each shard say of items.
pub(super) fn observed(prepared: &Prepared, objective: &Objective) -> Result<Vec<Observed>> {
    let unit = prepared.calendar.decay.unit();
    let of_shard = |shard| Observed::new(shard, unit, objective);
    let observed: Vec<Observed> = prepared.shards.iter().map(of_shard).collect();
    if observed.iter().flat_map(|of| &of.confidences).all(|confidence| confidence.is_finite()) {
        return Ok(observed);
    }
    Err(Refused::config(anyhow!(
        "als: the confidence of an interaction exceeds the range of 32-bit floats; lower als.alpha \
         or the weights in events.weights, or set als.confidence = \"log\""
    )))
}
