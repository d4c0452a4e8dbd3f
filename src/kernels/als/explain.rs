//! Why an item is recommended: the history item that adds most to its score.

use super::rows::{Scratch, System, factor};
use super::triangle;
use super::users::{Params, Users, input};
use crate::kernels::simd::{Kernel, dispatch, dot};
use crate::types::ItemIdx;

/// For each recommended item the history item that contributes most to its score, ties to the lower
/// index; `None` where nothing contributes or the normal equations have no positive pivot.
///
/// With user factors that solve their equations, x · y_i = Σ_j target_j · (y_j · A⁻¹ y_i): the
/// terms are the contributions (Hu, Koren, Volinsky, section 5). Negative interactions have none.
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
    type Output = Vec<Option<ItemIdx>>;

    #[inline(always)]
    fn run(self) -> Vec<Option<ItemIdx>> {
        let Self { user, recommended, users, system, params } = self;
        let fixed = system.fixed;
        let mut scratch = Scratch::new(fixed.n_factors, fixed.stride);
        let input = input(users.of(user), params);
        let mut solved = vec![0.0; fixed.stride];
        let Some(triangle) = factor(&input, system, &mut scratch, &mut solved) else {
            return vec![None; recommended.len()];
        };
        let mut because = Vec::with_capacity(recommended.len());
        for &item in recommended {
            solved.copy_from_slice(fixed.row(item));
            triangle::solve(triangle, fixed.n_factors, &mut solved);
            let mut best = (0.0, None);
            for (&from, &confidence) in input.pairs.rows.iter().zip(input.pairs.confidences) {
                let contribution = confidence.max(0.0) * dot(fixed.row(from), &solved);
                if contribution > best.0 {
                    best = (contribution, Some(from));
                }
            }
            because.push(best.1);
        }
        because
    }
}
