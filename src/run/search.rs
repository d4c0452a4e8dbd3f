//! Exact search in a flat vector file, without an index in memory.

use std::cmp::Ordering;

use anyhow::{Result, anyhow};

use super::Refused;
use crate::schema::vectors::Metric;
use crate::store::VectorFile;

/// One vector that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Its id in the file.
    pub id: i64,
    /// Its inner product with the query, or its squared distance, as the file has it.
    pub score: f32,
}

/// The `k` vectors of `file` nearest to `query`, nearest first, except the one of id `leave_out`.
///
/// Scores are summed in f64 in the order of the dimensions and rounded once. Ties go to the lower
/// id; vectors whose score is not a number are not found, as FAISS does it. Reads the whole file,
/// holding a block of it and about 2 `k` hits.
///
/// # Errors
/// A query of another dimension, and whatever the store says.
pub fn nearest(
    file: &VectorFile,
    query: &[f32],
    k: usize,
    leave_out: Option<i64>,
) -> Result<Vec<Hit>> {
    let flat = file.flat();
    if query.len() != flat.dimension {
        return Err(Refused::bad_data(anyhow!(
            "the query has {} dimensions and the vectors of the file have {}; they are of \
             different models",
            query.len(),
            flat.dimension
        )));
    }
    let score = match flat.metric {
        Metric::InnerProduct => inner_product,
        Metric::L2 => squared_distance,
    };
    let mut best = Best { metric: flat.metric, k, hits: Vec::new() };
    for block in file.blocks() {
        let block = block?;
        for (&id, vector) in block.ids.iter().zip(block.floats.chunks_exact(flat.dimension)) {
            if leave_out != Some(id) {
                // Adding 0 turns -0 into 0: they are one score.
                best.push(Hit { id, score: score(query, vector) as f32 + 0.0 });
            }
        }
    }
    Ok(best.finish())
}

fn inner_product(query: &[f32], vector: &[f32]) -> f64 {
    let products = query.iter().zip(vector).map(|(&a, &b)| f64::from(a) * f64::from(b));
    products.sum()
}

fn squared_distance(query: &[f32], vector: &[f32]) -> f64 {
    let differences = query.iter().zip(vector).map(|(&a, &b)| f64::from(a) - f64::from(b));
    differences.map(|difference| difference * difference).sum()
}

/// The best hits so far, cut whenever there are twice as many as asked for.
struct Best {
    metric: Metric,
    k: usize,
    hits: Vec<Hit>,
}

impl Best {
    fn order(&self) -> impl Fn(&Hit, &Hit) -> Ordering + use<> {
        let metric = self.metric;
        move |a, b| {
            let nearer = match metric {
                Metric::InnerProduct => b.score.total_cmp(&a.score),
                Metric::L2 => a.score.total_cmp(&b.score),
            };
            nearer.then(a.id.cmp(&b.id))
        }
    }

    fn push(&mut self, hit: Hit) {
        if hit.score.is_nan() {
            return;
        }
        self.hits.push(hit);
        if self.hits.len() >= self.k.saturating_mul(2).saturating_add(16) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let order = self.order();
        if self.hits.len() > self.k {
            self.hits.select_nth_unstable_by(self.k, order);
            self.hits.truncate(self.k);
        }
    }

    fn finish(mut self) -> Vec<Hit> {
        self.cut();
        let order = self.order();
        self.hits.sort_unstable_by(order);
        self.hits
    }
}
