//! The histories that a row adds up, asked for before they are read.

use super::ranked::Lists;
use crate::kernels::simd::prefetch;

/// Histories between the one that is read and the one that is asked for.
const AHEAD: usize = 8;

/// Bytes of a history that are asked for; what follows the hardware sees coming.
const ASKED_FOR: usize = 256;

/// Where the histories of the users of one row are.
#[derive(Default)]
pub(super) struct Parts(Vec<(usize, u32)>);

impl Parts {
    /// Takes the histories of these users; returns how many pairs they have.
    pub(super) fn find<C>(&mut self, users: &[u32], histories: &Lists<C>) -> usize {
        self.0.clear();
        let mut n_pairs = 0;
        self.0.extend(users.iter().map(|&user| {
            let range = histories.range(user as usize);
            n_pairs += range.len();
            (range.start, range.len() as u32)
        }));
        n_pairs
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What is at one place: codes, or what goes with them. One further on is asked for.
    #[inline(always)]
    pub(super) fn take<'a, T>(&self, at: usize, entries: &'a [T]) -> &'a [T] {
        let per_line = 64 / size_of::<T>();
        if let Some(&(start, length)) = self.0.get(at + AHEAD) {
            let asked_for = (length as usize).min(ASKED_FOR / size_of::<T>());
            for line in 0..asked_for.div_ceil(per_line) {
                prefetch(entries, start + line * per_line);
            }
        }
        let (start, length) = self.0[at];
        &entries[start..start + length as usize]
    }
}
