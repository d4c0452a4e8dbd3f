//! Candidates of a block of users: the largest products of factors, exact, over all items.

use rayon::prelude::*;

use super::simd::{Kernel, LANES, Simd, dispatch};
use super::top_k::Shortlist;
use crate::types::ItemIdx;

/// Items of one panel: as many as the lanes of a register.
const PANEL: usize = LANES;

/// Panels that stay in a core's second cache while all users of a block pass over them.
const CHUNK_BYTES: usize = if cfg!(test) { 4 << 10 } else { 256 << 10 };

/// Panels from the first one for which the items a user has seen are bits; further on, where few users
/// get to, they are searched.
const MARKED_PANELS: usize = if cfg!(test) { 3 } else { 1024 };

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
/// list. 4 bytes per factor and 8 per item.
#[derive(Debug)]
pub struct PackedItems {
    n_factors: usize,
    /// The item in each lane of each panel; the last panel may be short.
    items: Vec<ItemIdx>,
    /// `[n_panels, n_factors, 16]`.
    panels: Vec<f32>,
    /// Length of the longest item of each panel, rounded up.
    lengths: Vec<f32>,
    /// Where each item is among `items`; `[n_items]`.
    places: Vec<u32>,
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
        // A tile may reach one panel beyond the last.
        let mut panels = vec![0.0; (n_panels + 1) * n_factors * PANEL];
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
        let mut places = vec![u32::MAX; recommendable.len()];
        for (place, &(_, item)) in (0..).zip(&lengths) {
            places[item as usize] = place;
        }
        Self {
            n_factors,
            panels,
            places,
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
    marks: Vec<u16>,
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
    let Scratch { shortlists, groups, marks } = scratch;
    shortlists.resize_with(n_users, Shortlist::default);
    shortlists.iter_mut().for_each(|list| list.reset(n));
    if n > 0 {
        dispatch(Block { packed, users, shortlists, groups, marks });
    }
    shortlists.iter_mut().map(|list| list.best().to_vec()).collect()
}

struct Block<'a> {
    packed: &'a PackedItems,
    users: UserBlock<'a>,
    shortlists: &'a mut [Shortlist],
    /// `[n_groups, n_factors, USERS]`.
    groups: &'a mut Vec<f32>,
    /// A bit per item of the first panels that a user has seen: `[n_users, n_marked]`.
    marks: &'a mut Vec<u16>,
}

impl Kernel for Block<'_> {
    type Output = ();

    /// 12 users × 32 items are 24 registers of AVX-512, 6 users × 16 items are 12 of AVX2.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if S::REGISTERS >= 32 {
            self.in_tiles::<S, 12, 2>(simd);
        } else {
            self.in_tiles::<S, 6, 1>(simd);
        }
    }
}

/// What decides whether a group of users can gain from a panel.
struct Group<const USERS: usize> {
    /// Length of each user, rounded up; 0 where there is none.
    lengths: [f32; LANES],
    /// What a score must reach to enter the list of each user.
    floors: [f32; LANES],
    /// Whether all are done.
    done: bool,
}

/// The scores of some panels for each user of a group.
type Tile<V, const USERS: usize, const PANELS: usize> = [[V; PANELS]; USERS];

impl Block<'_> {
    #[inline(always)]
    fn in_tiles<S: Simd, const USERS: usize, const PANELS: usize>(mut self, simd: S) {
        let n_factors = self.packed.n_factors;
        let mut groups = self.pack_users::<USERS>();
        self.mark();
        let tiles_per_chunk = (CHUNK_BYTES / (4 * PANELS * PANEL * n_factors)).max(1);
        let n_panels = self.packed.lengths.len();
        for start in (0..n_panels).step_by(tiles_per_chunk * PANELS) {
            let chunk = start..n_panels.min(start + tiles_per_chunk * PANELS);
            for (at, group) in groups.iter_mut().enumerate().filter(|(_, group)| !group.done) {
                self.pass::<S, USERS, PANELS>(simd, at, group, chunk.clone());
            }
        }
    }

    /// Users in groups, factor by factor.
    #[inline(always)]
    fn pack_users<const USERS: usize>(&mut self) -> Vec<Group<USERS>> {
        let (n_factors, stride) = (self.packed.n_factors, self.users.stride);
        let n_groups = self.users.seen.len().div_ceil(USERS);
        self.groups.clear();
        self.groups.resize(n_groups * n_factors * USERS, 0.0);
        let mut groups: Vec<Group<USERS>> = Vec::with_capacity(n_groups);
        for (user, row) in self.users.factors.chunks_exact(stride).enumerate() {
            let (group, lane) = (user / USERS, user % USERS);
            let packed = &mut self.groups[group * n_factors * USERS..][..n_factors * USERS];
            for (factor, &value) in row[..n_factors].iter().enumerate() {
                packed[factor * USERS + lane] = value;
            }
            if lane == 0 {
                let nobody = [f32::INFINITY; LANES];
                groups.push(Group { lengths: [0.0; LANES], floors: nobody, done: false });
            }
            let squared: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            if squared > 0.0 {
                groups[group].lengths[lane] = rounded_up(squared.sqrt());
                groups[group].floors[lane] = f32::NEG_INFINITY;
            }
        }
        groups
    }

    fn n_marked(&self) -> usize {
        self.packed.lengths.len().min(MARKED_PANELS)
    }

    /// Marks what the users have seen.
    fn mark(&mut self) {
        let n_marked = self.n_marked();
        self.marks.clear();
        self.marks.resize(self.users.seen.len() * n_marked, 0);
        for (user, seen) in self.users.seen.iter().enumerate() {
            let marks = &mut self.marks[user * n_marked..][..n_marked];
            for item in *seen {
                // Items that are left out are beyond all panels.
                let place =
                    self.packed.places.get(item.index()).map_or(usize::MAX, |&at| at as usize);
                if let Some(marks) = marks.get_mut(place / PANEL) {
                    *marks |= 1 << (place % PANEL);
                }
            }
        }
    }

    /// One group over some panels, as long as one of its users can still gain.
    #[inline(always)]
    fn pass<S: Simd, const USERS: usize, const PANELS: usize>(
        &mut self,
        simd: S,
        at: usize,
        group: &mut Group<USERS>,
        panels: std::ops::Range<usize>,
    ) {
        let n_factors = self.packed.n_factors;
        let lengths = simd.load(&group.lengths);
        for panel in panels.clone().step_by(PANELS) {
            // Panels are in descending order, so nothing that follows can enter either.
            let bounds = simd.mul(lengths, simd.splat(self.packed.lengths[panel]));
            if simd.at_least(bounds, simd.load(&group.floors)) == 0 {
                group.done = true;
                return;
            }
            let users = &self.groups[at * n_factors * USERS..][..n_factors * USERS];
            let values = &self.packed.panels[panel * n_factors * PANEL..];
            let scores = tile::<S, USERS, PANELS>(simd, users, values, n_factors);
            let reached = reached(simd, &scores, &group.floors);
            if reached != [0; USERS] {
                let mut numbers = [[[0.0; PANEL]; PANELS]; USERS];
                for (numbers, scores) in numbers.iter_mut().zip(&scores) {
                    for (numbers, &scores) in numbers.iter_mut().zip(scores) {
                        simd.store(scores, numbers);
                    }
                }
                self.push(at, group, panel, &reached, &numbers);
            }
        }
    }

    /// Adds the scores that reach a user's floor.
    #[inline(never)]
    fn push<const USERS: usize, const PANELS: usize>(
        &mut self,
        at: usize,
        group: &mut Group<USERS>,
        panel: usize,
        reached: &[u32; USERS],
        scores: &Tile<[f32; PANEL], USERS, PANELS>,
    ) {
        let n_marked = self.n_marked();
        let items = &self.packed.items[panel * PANEL..];
        for (lane, (&reached, scores)) in reached.iter().zip(scores).enumerate() {
            if reached == 0 {
                continue;
            }
            let user = at * USERS + lane;
            let (list, seen) = (&mut self.shortlists[user], self.users.seen[user]);
            let marks = &self.marks[user * n_marked..][..n_marked];
            let mut left = reached;
            for (nth, marks) in marks.iter().skip(panel).take(PANELS).enumerate() {
                left &= !(u32::from(*marks) << (PANEL * nth));
            }
            while left != 0 {
                let place = left.trailing_zeros() as usize;
                left &= left - 1;
                // The last panel may be short.
                let Some(&item) = items.get(place) else { break };
                let is_marked = panel + place / PANEL < n_marked;
                if is_marked || seen.binary_search(&item).is_err() {
                    list.push(item, scores[place / PANEL][place % PANEL]);
                }
            }
            if let Some(floor) = list.floor() {
                group.floors[lane] = floor;
            }
        }
    }
}

/// Which scores reach the floor of each user: a bit each, of the first panel the lowest.
#[inline(always)]
fn reached<S: Simd, const USERS: usize, const PANELS: usize>(
    simd: S,
    scores: &Tile<S::Lanes, USERS, PANELS>,
    floors: &[f32; LANES],
) -> [u32; USERS] {
    let mut reached = [0; USERS];
    for ((bits, scores), &floor) in reached.iter_mut().zip(scores).zip(floors) {
        let floor = simd.splat(floor);
        for (panel, &scores) in scores.iter().enumerate() {
            *bits |= simd.at_least(scores, floor) << (PANEL * panel);
        }
    }
    reached
}

/// The scores of `PANELS` panels for each user of a group.
#[inline(always)]
fn tile<S: Simd, const USERS: usize, const PANELS: usize>(
    simd: S,
    users: &[f32],
    values: &[f32],
    n_factors: usize,
) -> Tile<S::Lanes, USERS, PANELS> {
    let mut sums = [[simd.splat(0.0); PANELS]; USERS];
    let (users, _) = users.as_chunks::<USERS>();
    let (values, _) = values.as_chunks::<PANEL>();
    let mut panels: [&[[f32; PANEL]]; PANELS] = [&[]; PANELS];
    for panel in 0..PANELS {
        panels[panel] = &values[panel * n_factors..][..users.len()];
    }
    for (factor, users) in users.iter().enumerate() {
        let mut items = [simd.splat(0.0); PANELS];
        for panel in 0..PANELS {
            items[panel] = simd.load(&panels[panel][factor]);
        }
        for user in 0..USERS {
            let value = simd.splat(users[user]);
            for panel in 0..PANELS {
                sums[user][panel] = simd.mul_add(value, items[panel], sums[user][panel]);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::reference;
    use crate::kernels::simd::at_each_level;

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
        (1usize..140, 0usize..150, 0usize..30).prop_flat_map(|(n_factors, n_items, n_users)| {
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
            let block = UserBlock { factors: &users, stride, seen: &seen };
            let mut scratch = Scratch::default();
            // What a call leaves in the scratch changes nothing.
            let found = at_each_level(|| best(&packed, block, n, &mut Scratch::default()));
            best(&packed, block, 3, &mut scratch);
            let again = best(&packed, block, n, &mut scratch);
            for (user, found) in found.into_iter().chain([again]).flat_map(|lists| lists.into_iter().enumerate()) {
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
