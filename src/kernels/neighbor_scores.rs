//! Candidates of one user: the neighbors of everything in the history, their similarities summed.

use crate::kernels::CandidateLists;
use crate::kernels::top_k::Shortlist;
use crate::types::ItemIdx;

/// One user's history.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// The items, in ascending order, each once.
    pub items: &'a [ItemIdx],
    /// What each item counts, above 0 and finite, or `None` if each counts 1.
    pub weights: Option<&'a [f32]>,
}

/// What may not be recommended to one user.
#[derive(Clone, Copy, Debug)]
pub struct Filter<'a> {
    /// Items to leave out for this user, in any order.
    pub seen: &'a [ItemIdx],
    /// Whether an item may be recommended to anybody: `[n_items]`.
    pub recommendable: &'a [bool],
}

/// A ranker's list for one user, best first, and the reason for each entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReasonedList {
    /// Items and scores, in the order of [`top_k::order`](crate::kernels::top_k::order).
    pub list: Vec<(ItemIdx, f32)>,
    /// For each entry the history item that contributed most, ties to the lower index; empty from a
    /// scratch without reasons.
    pub because: Vec<ItemIdx>,
}

/// One thread's accumulator over all items, empty between users: 12 bytes per item.
#[derive(Debug)]
pub struct Scratch {
    cells: Vec<Cell>,
    touched: Vec<ItemIdx>,
    shortlist: Shortlist,
    reasons: bool,
}

/// What one item has gathered for the user at hand; a contribution is above 0, so an empty cell is
/// one whose score is 0.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    score: f32,
    largest: f32,
    because: ItemIdx,
}

impl Scratch {
    /// An empty accumulator.
    pub fn new(n_items: usize) -> Self {
        Self {
            cells: vec![Cell::default(); n_items],
            touched: Vec::new(),
            shortlist: Shortlist::default(),
            reasons: true,
        }
    }

    /// An empty accumulator that does not remember which item contributed most.
    pub fn without_reasons(n_items: usize) -> Self {
        Self { reasons: false, ..Self::new(n_items) }
    }
}

/// The best `k` candidates of one user: `score(j) = sum over i in history of weight_i * sim(i, j)`,
/// where j is in row i of `neighbors`.
///
/// - Summed in f32, in the order of the history, so the bits depend on nothing else. A contribution
///   too small for an f32 counts for nothing.
/// - Items that the filter leaves out are gone before the selection. Items of the history are
///   candidates like any other unless they are in `seen`.
/// - Empty history, no neighbors, or nothing left: an empty list. Scores are above 0.
/// - `neighbors` has a row per item, and its scores are above 0.
/// - Cost: O(history * n_neighbors + seen + k log k) time; memory is the scratch.
/// - Slow twin: `reference::neighbor_scores`.
///
/// # Panics
/// If the shapes disagree.
pub fn neighbor_scores(
    history: &History<'_>,
    neighbors: &CandidateLists,
    filter: &Filter<'_>,
    k: usize,
    scratch: &mut Scratch,
) -> ReasonedList {
    assert!(history.weights.is_none_or(|weights| weights.len() == history.items.len()));
    assert_eq!(scratch.cells.len(), filter.recommendable.len(), "a cell per item");
    debug_assert!(history.items.is_sorted_by(|a, b| a < b), "a history is sorted");
    for (at, &item) in history.items.iter().enumerate() {
        let weight = history.weights.map_or(1.0, |weights| weights[at]);
        match scratch.reasons {
            true => scratch.add::<true>(item, weight, neighbors),
            false => scratch.add::<false>(item, weight, neighbors),
        }
    }
    let best = scratch.best(filter, k);
    scratch.clear();
    best
}

impl Scratch {
    /// Adds what one history item says about its neighbors.
    fn add<const REASONS: bool>(
        &mut self,
        because: ItemIdx,
        weight: f32,
        neighbors: &CandidateLists,
    ) {
        let Self { cells, touched, .. } = self;
        // A plain slice, so that its address stays in a register while `touched` grows.
        let cells = &mut cells[..];
        for &(item, similarity) in neighbors.of(because.index()) {
            let cell = &mut cells[item.index()];
            let contribution = weight * similarity;
            if cell.score == 0.0 && contribution > 0.0 {
                touched.push(item);
            }
            if REASONS && contribution > cell.largest {
                (cell.largest, cell.because) = (contribution, because);
            }
            cell.score += contribution;
        }
    }

    fn best(&mut self, filter: &Filter<'_>, k: usize) -> ReasonedList {
        // Emptying the cells of seen items is cheaper than a look-up per candidate.
        for item in filter.seen {
            self.cells[item.index()] = Cell::default();
        }
        self.shortlist.reset(k);
        for &item in &self.touched {
            let score = self.cells[item.index()].score;
            if score > 0.0 && filter.recommendable[item.index()] {
                self.shortlist.push(item, score);
            }
        }
        let list = self.shortlist.best().to_vec();
        let of_reasons = if self.reasons { list.as_slice() } else { &[] };
        let because = of_reasons.iter().map(|(item, _)| self.cells[item.index()].because).collect();
        ReasonedList { list, because }
    }

    fn clear(&mut self) {
        for item in self.touched.drain(..) {
            self.cells[item.index()] = Cell::default();
        }
    }
}
