//! Candidates of a block of users: the largest products of factors, exact, over all items.

use rayon::prelude::*;

use super::simd::{Kernel, LANES, dispatch};
use super::top_k::Shortlist;
use crate::types::ItemIdx;

/// Items of one panel: as many as the lanes of a register tile.
const PANEL: usize = LANES;

/// Users scored together: 6 × 16 sums fill the registers of AVX2.
const GROUP: usize = 6;

/// Panels that stay in a core's second cache while all users of a block pass over them.
const CHUNK_BYTES: usize = 256 << 10;

/// The score of an item for a user: one chain of fused multiply-adds over the factors, from 0.
///
/// Every score of [`best`] is this chain, so how users and items are grouped cannot change it.
pub fn score(user: &[f32], item: &[f32]) -> f32 {
    user.iter().zip(item).fold(0.0, |sum, (&x, &y)| x.mul_add(y, sum))
}

/// Item factors as the kernel reads them: panels of 16 items, factor by factor.
///
/// Items that may not be recommended and items whose factors are all zero are left out. The rest are
/// in descending order of length, so that a user is done once the longest item left cannot enter the
/// list. 4 bytes per factor and 4 per item.
#[derive(Debug)]
pub struct PackedItems {
    n_factors: usize,
    /// The item in each lane of each panel; the last panel may be short.
    items: Vec<ItemIdx>,
    /// `[n_panels, n_factors, 16]`.
    panels: Vec<f32>,
    /// Length of the longest item of each panel, rounded up.
    lengths: Vec<f32>,
}

impl PackedItems {
    /// Packs `factors`, `[n_items, stride]`; `recommendable` is `[n_items]`.
    pub fn new(factors: &[f32], n_factors: usize, stride: usize, recommendable: &[bool]) -> Self {
        assert_eq!(factors.len(), recommendable.len() * stride, "a row per item");
        let row = |item: usize| &factors[item * stride..][..n_factors];
        let squared = |item: usize| row(item).iter().map(|&y| f64::from(y) * f64::from(y)).sum();
        let mut lengths: Vec<(f64, u32)> = (0..recommendable.len())
            .into_par_iter()
            .filter(|&item| recommendable[item])
            .map(|item| (f64::sqrt(squared(item)), item as u32))
            .filter(|&(length, _)| length > 0.0)
            .collect();
        lengths.par_sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let n_panels = lengths.len().div_ceil(PANEL);
        let mut panels = vec![0.0; n_panels * n_factors * PANEL];
        panels.par_chunks_mut(n_factors * PANEL).zip(lengths.par_chunks(PANEL)).for_each(
            |(panel, items)| {
                for (lane, &(_, item)) in items.iter().enumerate() {
                    for (factor, &value) in row(item as usize).iter().enumerate() {
                        panel[factor * PANEL + lane] = value;
                    }
                }
            },
        );
        let longest = |items: &[(f64, u32)]| rounded_up(items[0].0);
        Self {
            n_factors,
            panels,
            lengths: lengths.chunks(PANEL).map(longest).collect(),
            items: lengths.into_iter().map(|(_, item)| ItemIdx(item)).collect(),
        }
    }
}

/// A number not below `length` whose product with another such one bounds every computed score.
///
/// A chain of n fused multiply-adds is off by at most n · 2⁻²⁴ · Σ|x·y| ≤ n · 2⁻²⁴ · ‖x‖‖y‖; 1e-4 is more
/// than that share for n = 1024, and than the rounding of the lengths.
fn rounded_up(length: f64) -> f32 {
    (length * (1.0 + 1e-4)) as f32
}

/// What one call after another can use again.
#[derive(Debug, Default)]
pub struct Scratch {
    shortlists: Vec<Shortlist>,
    groups: Vec<f32>,
}

/// Users whose lists are wanted.
#[derive(Clone, Copy)]
pub struct UserBlock<'a> {
    /// `[n_users, stride]`.
    pub factors: &'a [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// Items to leave out for each user, ascending: `[n_users]`.
    pub seen: &'a [&'a [ItemIdx]],
}

/// The best `n` items of each user by [`score`].
///
/// - In the order of [`top_k::order`](super::top_k::order): higher score first, ties to the lower
///   index. Fewer where fewer are left; scores may be negative.
/// - A user whose factors are all zero has no candidates, nor is an item one whose factors are all
///   zero, that may not be recommended, or that the user has seen.
/// - All factors are finite, and so are products of their lengths.
/// - Cost: O(n_users · n_items · n_factors) time at most; items too short to enter a list are skipped.
///   Memory is about 2n entries per user.
/// - Slow twin: score all, sort, truncate.
pub fn best(
    packed: &PackedItems,
    users: UserBlock<'_>,
    n: usize,
    scratch: &mut Scratch,
) -> Vec<Vec<(ItemIdx, f32)>> {
    let n_users = users.seen.len();
    assert_eq!(users.factors.len(), n_users * users.stride, "a row per user");
    let Scratch { shortlists, groups } = scratch;
    shortlists.resize_with(n_users, Shortlist::default);
    shortlists.iter_mut().for_each(|list| list.reset(n));
    if n > 0 {
        dispatch(Block { packed, users, shortlists, groups });
    }
    shortlists.iter_mut().map(|list| list.best().to_vec()).collect()
}

struct Block<'a> {
    packed: &'a PackedItems,
    users: UserBlock<'a>,
    shortlists: &'a mut [Shortlist],
    /// `[n_groups, n_factors, GROUP]`.
    groups: &'a mut Vec<f32>,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let n_factors = self.packed.n_factors;
        let mut lengths = self.pack_users();
        let panels_per_chunk = (CHUNK_BYTES / (4 * PANEL * n_factors)).max(1);
        let n_panels = self.packed.lengths.len();
        for start in (0..n_panels).step_by(panels_per_chunk) {
            let chunk = start..n_panels.min(start + panels_per_chunk);
            for (group, lengths) in lengths.iter_mut().enumerate() {
                if lengths.iter().any(|&length| length > 0.0) {
                    self.pass(group, lengths, chunk.clone());
                }
            }
        }
    }
}

impl Block<'_> {
    /// Users in groups, factor by factor; returns their lengths, 0 for those who are done.
    #[inline(always)]
    fn pack_users(&mut self) -> Vec<[f32; GROUP]> {
        let (n_factors, stride) = (self.packed.n_factors, self.users.stride);
        let n_groups = self.users.seen.len().div_ceil(GROUP);
        self.groups.clear();
        self.groups.resize(n_groups * n_factors * GROUP, 0.0);
        let mut lengths = vec![[0.0; GROUP]; n_groups];
        for (user, row) in self.users.factors.chunks_exact(stride).enumerate() {
            let (group, lane) = (user / GROUP, user % GROUP);
            let packed = &mut self.groups[group * n_factors * GROUP..][..n_factors * GROUP];
            for (factor, &value) in row[..n_factors].iter().enumerate() {
                packed[factor * GROUP + lane] = value;
            }
            let squared: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            lengths[group][lane] = rounded_up(squared.sqrt());
        }
        lengths
    }

    /// One group over some panels, as long as one of its users can still gain.
    #[inline(always)]
    fn pass(&mut self, group: usize, lengths: &mut [f32; GROUP], panels: std::ops::Range<usize>) {
        let n_factors = self.packed.n_factors;
        let users = &self.groups[group * n_factors * GROUP..][..n_factors * GROUP];
        for panel in panels {
            let longest = self.packed.lengths[panel];
            let mut floors = [f32::INFINITY; GROUP];
            for lane in 0..GROUP {
                if lengths[lane] == 0.0 {
                    continue;
                }
                let floor = self.shortlists[group * GROUP + lane].floor();
                // Panels are in descending order, so nothing that follows can enter either.
                if floor.is_some_and(|floor| lengths[lane] * longest < floor) {
                    lengths[lane] = 0.0;
                } else {
                    floors[lane] = floor.unwrap_or(f32::NEG_INFINITY);
                }
            }
            if floors.iter().all(|&floor| floor == f32::INFINITY) {
                return;
            }
            let values = &self.packed.panels[panel * n_factors * PANEL..][..n_factors * PANEL];
            let scores = tile(users, values);
            for lane in 0..GROUP {
                if largest(&scores[lane]) >= floors[lane] {
                    let user = group * GROUP + lane;
                    let items = &self.packed.items[panel * PANEL..];
                    let list = &mut self.shortlists[user];
                    push(list, self.users.seen[user], items, &scores[lane], floors[lane]);
                }
            }
        }
    }
}

/// Adds the scores of a panel that are not below a user's floor.
fn push(
    list: &mut Shortlist,
    seen: &[ItemIdx],
    items: &[ItemIdx],
    scores: &[f32; PANEL],
    floor: f32,
) {
    for (&item, &score) in items.iter().zip(scores) {
        if score >= floor && seen.binary_search(&item).is_err() {
            list.push(item, score);
        }
    }
}

/// The scores of 16 items for each user of a group.
#[inline(always)]
fn tile(users: &[f32], panel: &[f32]) -> [[f32; PANEL]; GROUP] {
    let mut sums = [[0.0f32; PANEL]; GROUP];
    let (users, _) = users.as_chunks::<GROUP>();
    let (panel, _) = panel.as_chunks::<PANEL>();
    for (users, items) in users.iter().zip(panel) {
        for user in 0..GROUP {
            for lane in 0..PANEL {
                sums[user][lane] = users[user].mul_add(items[lane], sums[user][lane]);
            }
        }
    }
    sums
}

/// The largest of 16 finite numbers.
#[inline(always)]
fn largest(scores: &[f32; PANEL]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|lane| scores[lane].max(scores[lane + 8]));
    let four: [f32; 4] = std::array::from_fn(|lane| eight[lane].max(eight[lane + 4]));
    four[0].max(four[2]).max(four[1].max(four[3]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::reference;

    #[derive(Clone, Debug)]
    struct Case {
        n_factors: usize,
        items: Vec<Vec<f32>>,
        users: Vec<Vec<f32>>,
        seen: Vec<Vec<ItemIdx>>,
        recommendable: Vec<bool>,
    }

    /// Small whole numbers, so that ties are common, or any.
    fn values(n: usize) -> impl Strategy<Value = Vec<f32>> {
        prop_oneof![
            prop::collection::vec((-2i8..3).prop_map(f32::from), n),
            prop::collection::vec(-1f32..1.0, n),
            Just(vec![0.0; n]),
        ]
    }

    fn cases() -> impl Strategy<Value = Case> {
        (1usize..70, 0usize..70, 0usize..20).prop_flat_map(|(n_factors, n_items, n_users)| {
            let seen = prop::collection::btree_set(0..n_items.max(1) as u32, 0..8);
            let seen = seen.prop_map(|items| items.into_iter().map(ItemIdx).collect());
            (
                prop::collection::vec(values(n_factors), n_items),
                prop::collection::vec(values(n_factors), n_users),
                prop::collection::vec(seen, n_users),
                prop::collection::vec(prop::bool::weighted(0.8), n_items),
            )
                .prop_map(move |(items, users, seen, recommendable)| Case {
                    n_factors,
                    items,
                    users,
                    seen,
                    recommendable,
                })
        })
    }

    fn padded(rows: &[Vec<f32>], stride: usize) -> Vec<f32> {
        let pad = |row: &Vec<f32>| [row.as_slice(), &vec![0.0; stride - row.len()]].concat();
        rows.iter().flat_map(pad).collect()
    }

    proptest! {
        #[test]
        fn lists_equal_all_scores_sorted(case in cases(), n in 0usize..90) {
            let stride = case.n_factors.next_multiple_of(LANES);
            let (items, users) = (padded(&case.items, stride), padded(&case.users, stride));
            let packed = PackedItems::new(&items, case.n_factors, stride, &case.recommendable);
            let seen: Vec<&[ItemIdx]> = case.seen.iter().map(Vec::as_slice).collect();
            let mut scratch = Scratch::default();
            let block = UserBlock { factors: &users, stride, seen: &seen };
            let found = best(&packed, block, n, &mut scratch);
            for (user, found) in found.into_iter().enumerate() {
                let zeros = |row: &[f32]| row.iter().all(|&value| value == 0.0);
                let scored = (0..case.items.len())
                    .filter(|&item| case.recommendable[item] && !zeros(&case.items[item]))
                    .filter(|_| !zeros(&case.users[user]))
                    .filter(|&item| !case.seen[user].contains(&ItemIdx(item as u32)))
                    .map(|item| (ItemIdx(item as u32), score(&case.users[user], &case.items[item])));
                let expected = reference::select(scored.collect(), n);
                let bits = |list: &[(ItemIdx, f32)]| {
                    list.iter().map(|&(item, score)| (item, score.to_bits())).collect::<Vec<_>>()
                };
                prop_assert_eq!(bits(&found), bits(&expected));
            }
        }
    }
}
