//! One list from several rankers: combination, popularity discount, and the fallback.

use crate::kernels::top_k;
use crate::types::ItemIdx;

/// How the lists of several rankers become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combine {
    /// Each ranker's scores are brought to [0, 1] per user, then summed with the rankers' weights.
    ScaledScore,
    /// The sum of `weight / (constant + rank)`, ranks counted from 1; 60 is the usual constant.
    ReciprocalRank {
        /// At least 0: the larger, the less the first ranks stand out.
        constant: f64,
    },
}

/// What one ranker says about one user.
#[derive(Clone, Copy, Debug)]
pub struct Ranker<'a> {
    /// How much the ranker counts, above 0 and finite.
    pub weight: f64,
    /// Its list in the order of [`top_k::order`], each item once, all scores finite.
    pub list: &'a [(ItemIdx, f32)],
}

/// Where an entry of a list comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The ranker with the largest contribution, by its position; ties to the first.
    Ranker(usize),
    /// The list was too short.
    Fallback,
}

/// An entry of a user's list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The item.
    pub item: ItemIdx,
    /// Comparable within one list only. Finite.
    pub score: f32,
    /// Who put it there.
    pub source: Source,
}

/// Combines the rankers' lists into one: all their items, by score, ties to the lower index.
///
/// - A ranker that does not list an item adds nothing to it. Sums are f64 in the order of the
///   rankers, rounded once to f32.
/// - A single ranker keeps its scores as they are: there is nothing to bring together.
/// - `discounts`, `[n_items]` in (0, 1], are multiplied with the combined scores after these are
///   brought to [0, 1] per user.
/// - Scaled to [0, 1] means `(s - lo) / (hi - lo)` with `hi` the list's highest score and `lo` its
///   lowest, or 0 if that is lower; 1 where `hi` = `lo`.
/// - No rankers, or empty lists: an empty list.
/// - Cost: O(n log n) for n entries. Slow twin: `reference::combine`.
pub fn combine(
    rankers: &[Ranker<'_>],
    combine: Combine,
    discounts: Option<&[f32]>,
) -> Vec<Candidate> {
    let mut candidates = match rankers {
        [only] => as_they_are(only.list),
        several => sum(contributions(several, combine)),
    };
    if let Some(discounts) = discounts {
        let scale = Scale::of(candidates.iter().map(|candidate| candidate.score));
        for candidate in &mut candidates {
            let discount = f64::from(discounts[candidate.item.index()]);
            candidate.score = (scale.apply(candidate.score) * discount) as f32;
        }
    }
    candidates.sort_unstable_by(|a, b| top_k::order(&(a.item, a.score), &(b.item, b.score)));
    candidates
}

fn as_they_are(list: &[(ItemIdx, f32)]) -> Vec<Candidate> {
    list.iter().map(|&(item, score)| Candidate { item, score, source: Source::Ranker(0) }).collect()
}

/// What a ranker adds to an item.
struct Contribution {
    item: ItemIdx,
    ranker: usize,
    score: f64,
}

/// All that the rankers add, in the order of items, then rankers.
fn contributions(rankers: &[Ranker<'_>], combine: Combine) -> Vec<Contribution> {
    let mut all = Vec::with_capacity(rankers.iter().map(|ranker| ranker.list.len()).sum());
    for (ranker, &Ranker { weight, list }) in rankers.iter().enumerate() {
        let scale = Scale::of(list.iter().map(|&(_, score)| score));
        for (rank, &(item, score)) in (1u32..).zip(list) {
            let share = match combine {
                Combine::ScaledScore => scale.apply(score),
                Combine::ReciprocalRank { constant } => 1.0 / (constant + f64::from(rank)),
            };
            all.push(Contribution { item, ranker, score: weight * share });
        }
    }
    all.sort_unstable_by_key(|contribution| (contribution.item, contribution.ranker));
    all
}

/// One candidate per item.
fn sum(contributions: Vec<Contribution>) -> Vec<Candidate> {
    let of_item = |group: &[Contribution]| {
        let score = group.iter().map(|one| one.score).sum::<f64>() as f32;
        let best = group.iter().reduce(|best, one| if one.score > best.score { one } else { best });
        let best = best.expect("a group has an entry");
        Candidate { item: best.item, score, source: Source::Ranker(best.ranker) }
    };
    contributions.chunk_by(|a, b| a.item == b.item).map(of_item).collect()
}

/// A list's own scale: its highest score is 1, and 0 or its lowest score is 0.
struct Scale {
    lo: f64,
    hi: f64,
}

impl Scale {
    fn of(scores: impl Iterator<Item = f32>) -> Self {
        scores.map(f64::from).fold(Self { lo: 0.0, hi: f64::NEG_INFINITY }, |scale, score| {
            debug_assert!(score.is_finite(), "a score is finite");
            // Not `min`: which zero it takes of 0.0 and -0.0 is up to the platform.
            let lo = if score < scale.lo { score } else { scale.lo };
            Self { lo, hi: scale.hi.max(score) }
        })
    }

    fn apply(&self, score: f32) -> f64 {
        if self.hi > self.lo { (f64::from(score) - self.lo) / (self.hi - self.lo) } else { 1.0 }
    }
}

/// Appends fallback items until the list has `k` entries or the fallback ends.
///
/// - `fallback` gives each item once, best first, with a share in (0, 1] that never increases:
///   `popularity::shares`. Items that are in the list, or not allowed, are skipped.
/// - Scores never increase along the list and are finite. With `low` the lowest score so far: `low *
///   share` where that is above 0, `low - 1 + share` where it is not; the share itself in an empty
///   list.
/// - A list of `k` or more entries stays as it is.
/// - Cost: O(n log n) for the list plus the part of the fallback that is walked.
pub fn fill(
    list: &mut Vec<Candidate>,
    k: usize,
    fallback: impl IntoIterator<Item = (ItemIdx, f32)>,
    is_allowed: impl Fn(ItemIdx) -> bool,
) {
    if list.len() >= k {
        return;
    }
    let low = list.last().map_or(1.0, |candidate| f64::from(candidate.score));
    let score = |share: f32| {
        let share = f64::from(share);
        (if low > 0.0 { low * share } else { low - 1.0 + share }) as f32
    };
    let mut listed: Vec<ItemIdx> = list.iter().map(|candidate| candidate.item).collect();
    listed.sort_unstable();
    let more = fallback
        .into_iter()
        .filter(|&(item, _)| listed.binary_search(&item).is_err() && is_allowed(item))
        .take(k - list.len())
        .map(|(item, share)| Candidate { item, score: score(share), source: Source::Fallback });
    list.extend(more);
}
