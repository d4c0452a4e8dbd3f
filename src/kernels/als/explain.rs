//! Why an item is recommended: the history item that adds most to its score.

use super::pairs::{Fixed, Pairs};
use super::rows::{RowInput, Scratch, System, factor};
use super::triangle::{Sides, add_sides, load_sides, solve_many};
use super::users::{Params, Users, lambda_of};
use crate::kernels::simd::{Kernel, LANES, Simd, dispatch};
use crate::types::ItemIdx;

/// For each recommended item the history item that contributes most to its score, ties to the lower
/// index; `None` where nothing contributes or the normal equations have no positive pivot.
///
/// With user factors that solve their equations, x · y_i = Σ_j target_j · (y_j · A⁻¹ y_i): the
/// terms are the contributions (Hu, Koren, Volinsky, section 5). Negative interactions have none.
/// Each is one chain of fused multiply-adds over the factors.
/// Cost: O(history · n_factors² + n_factors³ + recommended · (n_factors² + history · n_factors)).
pub fn explain(
    user: usize,
    recommended: &[ItemIdx],
    users: Users<'_>,
    system: System<'_>,
    params: Params<'_>,
) -> Vec<Option<ItemIdx>> {
    dispatch(Explain { user, recommended, users, system, params })
}

struct Explain<'a> {
    user: usize,
    recommended: &'a [ItemIdx],
    users: Users<'a>,
    system: System<'a>,
    params: Params<'a>,
}

impl Kernel for Explain<'_> {
    type Output = Because;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Because {
        let Self { user, recommended, users, system, params } = self;
        let mut scratch = Scratch::new(system.fixed.n_factors, system.fixed.stride);
        let pairs = users.of(user);
        let input = RowInput { pairs, plain: None, lambda: lambda_of(pairs, params) };
        let mut rhs = vec![0.0; system.fixed.stride];
        let mut because = Vec::with_capacity(recommended.len());
        if let Some(triangle) = factor(simd, &input, system, &mut scratch, &mut rhs)
            && !pairs.rows.is_empty()
        {
            let terms = Terms { pairs, fixed: system.fixed };
            let wide = S::REGISTERS >= 32;
            for items in recommended.chunks(if wide { 2 * LANES } else { LANES }) {
                if !wide {
                    terms.largest::<S, 1, 4>(simd, triangle, items, &mut because);
                } else if items.len() <= LANES {
                    terms.largest::<S, 1, 8>(simd, triangle, items, &mut because);
                } else {
                    terms.largest::<S, 2, 8>(simd, triangle, items, &mut because);
                }
            }
        }
        because.resize(recommended.len(), None);
        because
    }
}

type Because = Vec<Option<ItemIdx>>;

/// What the terms of a user's scores are made of.
#[derive(Clone, Copy)]
struct Terms<'a> {
    pairs: Pairs<'a, ItemIdx>,
    fixed: Fixed<'a>,
}

impl Terms<'_> {
    /// The largest terms of up to `GROUPS` · 16 items, from `ROWS` items of the history at a time.
    #[inline(always)]
    fn largest<S: Simd, const GROUPS: usize, const ROWS: usize>(
        self,
        simd: S,
        triangle: &[f32],
        items: &[ItemIdx],
        because: &mut Because,
    ) {
        let mut x: Vec<Sides<GROUPS>> = vec![[[0.0; LANES]; GROUPS]; self.fixed.n_factors];
        for (group, items) in items.chunks(LANES).enumerate() {
            self.columns(simd, items, group, &mut x);
        }
        solve_many::<S, GROUPS, ROWS>(simd, triangle, &mut x);
        let mut largest = Largest::<S, GROUPS>::new(simd);
        for start in (0..self.pairs.rows.len()).step_by(ROWS) {
            self.add_terms::<S, GROUPS, ROWS>(simd, start, &x, &mut largest);
        }
        let places = largest.places(simd);
        let places = places.as_flattened().iter().take(items.len());
        because.extend(places.map(|&at| self.pairs.rows.get(at.to_bits() as usize).copied()));
    }

    /// The factors of up to 16 items, as right-hand sides.
    #[inline(always)]
    fn columns<S: Simd, const GROUPS: usize>(
        self,
        simd: S,
        items: &[ItemIdx],
        group: usize,
        x: &mut [Sides<GROUPS>],
    ) {
        for (at, x) in x.chunks_mut(LANES).enumerate() {
            let mut rows = [simd.splat(0.0); LANES];
            for (row, &item) in rows.iter_mut().zip(items) {
                let (groups, _) = self.fixed.row(item).as_chunks::<LANES>();
                *row = simd.load(&groups[at]);
            }
            let columns = simd.transpose(rows);
            for (x, column) in x.iter_mut().zip(columns) {
                simd.store(column, &mut x[group]);
            }
        }
    }

    /// The terms of `ROWS` items of the history. The last item comes again where too few are left, and
    /// changes nothing.
    #[inline(always)]
    fn add_terms<S: Simd, const GROUPS: usize, const ROWS: usize>(
        self,
        simd: S,
        start: usize,
        x: &[Sides<GROUPS>],
        largest: &mut Largest<S, GROUPS>,
    ) {
        let Self { pairs, fixed } = self;
        let mut rows: [&[f32]; ROWS] = [&[]; ROWS];
        for (row, factors) in rows.iter_mut().enumerate() {
            let at = (start + row).min(pairs.rows.len() - 1);
            *factors = &fixed.row(pairs.rows[at])[..x.len()];
        }
        let mut sums = [[simd.splat(0.0); GROUPS]; ROWS];
        for (factor, x) in x.iter().enumerate() {
            let x = load_sides(simd, x);
            for row in 0..ROWS {
                add_sides(simd, &mut sums[row], rows[row][factor], &x);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let at = (start + row).min(pairs.rows.len() - 1);
            largest.raise(simd, pairs.confidences[at].max(0.0), sums, at as u32);
        }
    }
}

/// The largest term of each recommended item, and the bits of its place in the history.
struct Largest<S: Simd, const GROUPS: usize> {
    terms: [S::Lanes; GROUPS],
    places: [S::Lanes; GROUPS],
}

impl<S: Simd, const GROUPS: usize> Largest<S, GROUPS> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        let nowhere = simd.splat(f32::from_bits(u32::MAX));
        Self { terms: [simd.splat(0.0); GROUPS], places: [nowhere; GROUPS] }
    }

    /// Puts the terms of one item of the history in the place of smaller ones.
    #[inline(always)]
    fn raise(&mut self, simd: S, confidence: f32, products: &[S::Lanes; GROUPS], place: u32) {
        let (confidence, place) = (simd.splat(confidence), simd.splat(f32::from_bits(place)));
        let largest = self.terms.iter_mut().zip(&mut self.places);
        for ((largest, at), &product) in largest.zip(products) {
            let (term, before) = (simd.mul(confidence, product), *largest);
            *largest = simd.where_greater(term, before, term, before);
            *at = simd.where_greater(term, before, place, *at);
        }
    }

    #[inline(always)]
    fn places(&self, simd: S) -> Sides<GROUPS> {
        let mut places = [[0.0; LANES]; GROUPS];
        for (to, &lanes) in places.iter_mut().zip(&self.places) {
            simd.store(lanes, to);
        }
        places
    }
}
