//! The list of one user: rankers, combination, filters, fallback.

use std::sync::Mutex;

use super::als::Factors;
use super::earlier_lists::{EarlierList, EarlierLists};
use crate::job::spec::{Combine as SpecCombine, HistoryWeights, Ranker, TopK};
use crate::kernels::CandidateLists;
use crate::kernels::als::explain;
use crate::kernels::combine::{Candidate, Combine, Ranker as RankerList, Source, combine, fill};
use crate::kernels::factor_scores::{self, PackedItems, UserBlock, best};
use crate::kernels::neighbor_scores::{Filter, History, ReasonedList, Scratch, neighbor_scores};
use crate::kernels::top_k;
use crate::schema;
use crate::types::{Histories, ItemIdx};

/// Everything that the lists of all users are made from; item-sized.
pub(super) struct ListInputs<'a> {
    /// `[top_k]` of the spec.
    pub(super) top_k: &'a TopK,
    /// The rankers and their weights, in a fixed order.
    pub(super) rankers: Vec<(Ranker, f64)>,
    /// What each item of a history proposes.
    pub(super) neighbors: Option<&'a CandidateLists>,
    /// Items by popularity with their share of the most popular one.
    pub(super) popularity: &'a [(ItemIdx, f32)],
    /// The same within each segment.
    pub(super) popularity_by_segment: &'a [&'a [(ItemIdx, f32)]],
    /// Whether an item may be recommended to anybody.
    pub(super) recommendable: &'a [bool],
    /// Factors, where they are a ranker.
    pub(super) factors: Option<FactorRanker<'a>>,
    /// Lists that stay, where factors alone rank.
    pub(super) earlier: Option<EarlierLists<'a>>,
    /// Popularity discounts, where `top_k.debias` is on.
    pub(super) discounts: Option<&'a [f32]>,
    /// Whether short lists are filled up.
    pub(super) fallback: bool,
    /// Value of one affinity unit, for weighted histories.
    pub(super) affinity_unit: f64,
    /// One accumulator per thread of the pool.
    pub(super) scratches: Vec<Mutex<Scratch>>,
}

/// Factors as a ranker.
#[derive(Clone, Copy)]
pub(super) struct FactorRanker<'a> {
    /// The factors.
    pub(super) model: &'a Factors,
    /// Those of the items, as scores are computed from them.
    pub(super) packed: &'a PackedItems,
}

/// A user's list, best first, and the history item behind each entry, where it is asked for.
#[derive(Debug, Default)]
pub(super) struct UserList {
    pub(super) entries: Vec<Candidate>,
    pub(super) because: Vec<Option<ItemIdx>>,
}

impl ListInputs<'_> {
    /// One accumulator per thread, which keeps reasons where they are asked for.
    pub(super) fn scratches(
        n_threads: usize,
        n_items: usize,
        because: bool,
    ) -> Vec<Mutex<Scratch>> {
        let new = if because { Scratch::new } else { Scratch::without_reasons };
        (0..n_threads).map(|_| Mutex::new(new(n_items))).collect()
    }

    /// The list of the user in `row` of a shard. Of a list that stays, the earlier entries keep their reasons.
    pub(super) fn list(
        &self,
        histories: &Histories,
        row: usize,
        multiplied: &[(ItemIdx, f32)],
        earlier: EarlierList<'_>,
    ) -> UserList {
        let seen = histories.seen.of(row);
        let reasoned = self.neighbor_candidates(histories, row, seen);
        let segment = histories.segments.get(row).copied();
        let popular = self.popular_candidates(seen, segment);
        let lists: Vec<RankerList<'_>> = self
            .rankers
            .iter()
            .map(|&(ranker, weight)| match ranker {
                Ranker::Als => RankerList { weight, list: multiplied },
                Ranker::ItemNeighbors => RankerList { weight, list: &reasoned.list },
                Ranker::Popularity => RankerList { weight, list: &popular },
            })
            .collect();
        let mut entries = combine(&lists, self.combine(), self.discounts);
        entries.truncate(self.top_k.k);
        if self.fallback {
            self.fill_up(&mut entries, seen, segment);
        }
        let mut because = vec![None; entries.len()];
        if self.top_k.because {
            of_neighbors(&reasoned, &entries, &mut because);
            self.explain(histories, row, (multiplied, earlier), &entries, &mut because);
        }
        UserList { entries, because }
    }

    /// The reasons of entries that only factors propose.
    fn explain(
        &self,
        histories: &Histories,
        row: usize,
        (multiplied, earlier): (&[(ItemIdx, f32)], EarlierList<'_>),
        entries: &[Candidate],
        because: &mut [Option<ItemIdx>],
    ) {
        let Some(FactorRanker { model, .. }) = self.factors else { return };
        let mut told = earlier.entries.iter().zip(earlier.because).peekable();
        let mut open = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            // What stays of a list stays in its order.
            match told.next_if(|((item, _), _)| *item == entry.item) {
                Some((_, reason)) => because[at] = because[at].or(*reason),
                None if because[at].is_none() => open.push(at),
                None => {}
            }
        }
        let mut proposed: Vec<ItemIdx> = multiplied.iter().map(|&(item, _)| item).collect();
        proposed.sort_unstable();
        open.retain(|&at| proposed.binary_search(&entries[at].item).is_ok());
        if open.is_empty() {
            return;
        }
        let items: Vec<ItemIdx> = open.iter().map(|&at| entries[at].item).collect();
        let (users, _) = model.of_shard(histories);
        let reasons = explain(row, &items, users, model.system(), model.params());
        open.into_iter().zip(reasons).for_each(|(at, reason)| because[at] = reason);
    }

    /// What factors propose to some users of a shard: empty lists without that ranker. `earlier` has the lists
    /// that stay; to users who have one, only what lists may hold since is proposed beside it.
    pub(super) fn multiplied(
        &self,
        histories: &Histories,
        rows: &[usize],
        earlier: &[EarlierList<'_>],
    ) -> Vec<Vec<(ItemIdx, f32)>> {
        let Some(FactorRanker { model, packed }) = self.factors else {
            return vec![Vec::new(); rows.len()];
        };
        let (_, x) = model.of_shard(histories);
        let vector = |row: usize| &x[row * model.stride..][..model.stride];
        let products = |packed: &PackedItems, of: &[usize]| {
            let factors: Vec<f32> = of.iter().flat_map(|&at| vector(rows[at])).copied().collect();
            let seen: Vec<_> = of.iter().map(|&at| histories.seen.of(rows[at])).collect();
            let users = UserBlock { factors: &factors, stride: model.stride, seen: &seen };
            best(packed, users, self.n_candidates(), &mut factor_scores::Scratch::default())
        };
        let (anew, stay): (Vec<usize>, Vec<usize>) =
            (0..rows.len()).partition(|&at| earlier[at].entries.is_empty());
        let mut proposed = vec![Vec::new(); rows.len()];
        for (&at, list) in anew.iter().zip(products(packed, &anew)) {
            proposed[at] = list;
        }
        let Some(lists) = self.earlier.as_ref().filter(|_| !stay.is_empty()) else {
            return proposed;
        };
        for (&at, mut list) in stay.iter().zip(products(&lists.since, &stay)) {
            list.extend_from_slice(earlier[at].entries);
            top_k::select(&mut list, self.n_candidates());
            proposed[at] = list;
        }
        proposed
    }

    /// Items that each ranker proposes to a user. The list of a single one is cut as it is, unless
    /// discounts put it into another order.
    fn n_candidates(&self) -> usize {
        match (self.rankers.as_slice(), self.discounts) {
            ([_], None) => self.top_k.k,
            _ => self.top_k.n_candidates(),
        }
    }

    /// What put an entry there, as the lists name it.
    pub(super) fn source(&self, source: Source) -> schema::Source {
        match source {
            Source::Ranker(position) => self.rankers[position].0.source(),
            Source::Fallback => schema::Source::Fallback,
        }
    }

    fn combine(&self) -> Combine {
        match self.top_k.combine {
            SpecCombine::ScaledScore => Combine::ScaledScore,
            SpecCombine::ReciprocalRank => {
                Combine::ReciprocalRank { constant: self.top_k.reciprocal_rank_constant }
            }
        }
    }

    fn neighbor_candidates(
        &self,
        histories: &Histories,
        row: usize,
        seen: &[ItemIdx],
    ) -> ReasonedList {
        let Some(neighbors) = self.neighbors else { return ReasonedList::default() };
        let (items, affinities) = histories.of(row);
        let weights: Option<Vec<f32>> = match self.top_k.history_weights {
            HistoryWeights::Binary => None,
            HistoryWeights::Affinity => {
                let weight = |&affinity: &i64| (affinity as f64 * self.affinity_unit) as f32;
                Some(affinities.iter().map(weight).collect())
            }
        };
        let history = History { items, weights: weights.as_deref() };
        let filter = Filter { seen, recommendable: self.recommendable };
        let thread = rayon::current_thread_index().unwrap_or(0) % self.scratches.len();
        let mut scratch = self.scratches[thread].lock().expect("no thread panics with a scratch");
        neighbor_scores(&history, neighbors, &filter, self.n_candidates(), &mut scratch)
    }

    /// Popular items of the user's segment, of all users without one.
    fn popular_candidates(&self, seen: &[ItemIdx], segment: Option<u32>) -> Vec<(ItemIdx, f32)> {
        if !self.rankers.iter().any(|&(ranker, _)| ranker == Ranker::Popularity) {
            return Vec::new();
        }
        let allowed = |item: ItemIdx| self.is_allowed(item, seen);
        let popular = self.popularity_of(segment).unwrap_or(self.popularity);
        let popular = popular.iter().copied().filter(|&(item, _)| allowed(item));
        popular.take(self.n_candidates()).collect()
    }

    /// Items by popularity within a segment; none for a user without one.
    fn popularity_of(&self, segment: Option<u32>) -> Option<&[(ItemIdx, f32)]> {
        self.popularity_by_segment.get(segment? as usize).copied()
    }

    fn is_allowed(&self, item: ItemIdx, seen: &[ItemIdx]) -> bool {
        self.recommendable[item.index()] && seen.binary_search(&item).is_err()
    }

    /// Popular items of the user's segment, then popular items of all.
    fn fill_up(&self, entries: &mut Vec<Candidate>, seen: &[ItemIdx], segment: Option<u32>) {
        let k = self.top_k.k;
        if let Some(popular) = self.popularity_of(segment) {
            fill(entries, k, popular.iter().copied(), |item| self.is_allowed(item, seen));
        }
        fill(entries, k, self.popularity.iter().copied(), |item| self.is_allowed(item, seen));
    }
}

/// The reasons of entries that neighbors propose.
fn of_neighbors(reasoned: &ReasonedList, entries: &[Candidate], because: &mut [Option<ItemIdx>]) {
    for (entry, because) in entries.iter().zip(because) {
        let place = reasoned.list.iter().position(|&(item, _)| item == entry.item);
        *because = place.map(|place| reasoned.because[place]);
    }
}
