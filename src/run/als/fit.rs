//! A fit under way: halves of iterations over all processes, losses, checkpoints.

use std::ops::Range;
use std::time::Instant;

use anyhow::Result;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::exchange::{add_up, all_rows, slice, subtrees};
use super::observed::{Observed, observed};
use super::{Factors, ITEM_SUMS_BYTES, report, system, unsolved};
use crate::job::spec::Als;
use crate::kernels::als::gram::{self, gram, rounded};
use crate::kernels::als::halves::{Halves, largest};
use crate::kernels::als::item_sums::{self, ByItem, ITEMS_PER_TASK, Request, Sums, Term, Walk};
use crate::kernels::als::loss::{Loss, Rest, ShardLoss, loss, of_users};
use crate::kernels::als::rows::{CgRows, SolveError, check_finite, solve_normal};
use crate::kernels::als::start::start;
use crate::kernels::als::tree::TreeSum;
use crate::kernels::als::users::{Params, Users, solve_users};
use crate::kernels::als::{Objective, Solver, stride};
use crate::run::Worker;
use crate::run::checkpoint::Sealed;
use crate::run::checkpoint_parts::{self as parts, FitState, SavedFit, Share};
use crate::run::prepare::Prepared;
use crate::run::warm_start::WarmStart;
use crate::store::Output;
use crate::types::{Histories, Ids};

/// Gram matrices of shards that are held at once.
const GRAMS_PER_WAVE: usize = 32;

/// Fits the factors; with `warm`, from where it says.
pub(super) fn factors(
    worker: &mut Worker<'_>,
    prepared: &Prepared,
    section: &Als,
    warm: Option<(&WarmStart, &Output)>,
) -> Result<Factors> {
    let observed = worker.agree(observed(prepared, &section.objective()))?;
    let mut fit = Fit::new(worker, (prepared, &prepared.item_ids), section, observed)?;
    fit.checkpoint = warm.map_or(fit.checkpoint, |(warm, _)| warm.checkpoint());
    let mut losses = fit.restore(worker);
    if let (Some((warm, output)), []) = (warm, &losses[..]) {
        let filled = warm.fill_items(output, prepared, section.n_factors, &mut fit.items);
        worker.agree(filled)?;
    }
    let mut n_done = losses.len();
    while !is_done(section, n_done, &losses) {
        n_done += 1;
        let is_open = losses.len() + 1 < n_done;
        losses.extend(fit.iterate(worker, n_done, is_open)?);
        if fit.needs_loss(worker, section, n_done) {
            losses.push(fit.loss(worker));
            fit.save(worker, &losses, is_done(section, n_done, &losses));
        }
    }
    fit.finish(worker, losses)
}

/// Whether no further iteration is wanted.
fn is_done(section: &Als, n_done: usize, losses: &[Loss]) -> bool {
    let enough = match losses {
        [.., before, last] => section.loss_tolerance.is_some_and(|tolerance| {
            before.full.is_finite() && before.full - last.full < tolerance * before.full
        }),
        _ => false,
    };
    enough || n_done >= section.iterations
}

/// A fit under way.
pub(super) struct Fit<'a> {
    prepared: &'a Prepared,
    /// The items that are fitted.
    item_ids: &'a Ids,
    objective: Objective,
    solver: Solver,
    n_factors: usize,
    stride: usize,
    /// What each shard's users say of items.
    observed: Vec<Observed>,
    /// Whether each user of each shard takes part.
    fitted: Vec<Vec<bool>>,
    by_item: ByItem,
    /// Item factors, whole.
    pub(super) items: Vec<f32>,
    /// User factors of this process, shard after shard.
    users: Vec<f32>,
    /// The side that is held fixed in 16 bits, where it is read so.
    halves: Option<Halves>,
    /// λ of each item.
    lambdas: Vec<f32>,
    /// Users, over all processes, that take part.
    n_users: u64,
    /// Their interactions.
    n_pairs: u64,
    /// Those of them that weigh what unobserved ones do.
    n_plain: u64,
    /// Seconds of each iteration.
    iteration_seconds: Vec<f64>,
    /// Gram matrix of the users as they are.
    gram_users: Vec<f64>,
    /// Rows that conjugate gradient left early since the last note.
    stopped: usize,
    /// Iterations whose losses were told.
    n_told: usize,
    /// Name of its checkpoints: `als-00005` is the one after the fifth iteration.
    checkpoint: String,
}

impl<'a> Fit<'a> {
    /// A fit of some items, from what users say of these.
    pub(super) fn new(
        worker: &mut Worker<'_>,
        (prepared, item_ids): (&'a Prepared, &'a Ids),
        section: &Als,
        observed: Vec<Observed>,
    ) -> Result<Self> {
        let (objective, n_factors) = (section.objective(), section.n_factors);
        let takes_part = |shard: &Histories| {
            let n_items = |user| shard.interactions.range(user).len();
            let min = section.interactions_per_user_min;
            (0..shard.n_users()).map(|user| n_items(user) >= min).collect()
        };
        let fitted: Vec<Vec<bool>> = prepared.shards.iter().map(takes_part).collect();
        let n_items = item_ids.len();
        let shards: Vec<(u32, Users<'_>)> = prepared
            .shards
            .iter()
            .zip(observed.iter().zip(&fitted))
            .map(|(shard, (observed, fitted))| (shard.shard, observed.users(shard, Some(fitted))))
            .collect();
        let (n_observed, n_positive, n_plain) =
            item_sums::counts(shards.iter().map(|(_, users)| *users), n_items, objective.base());
        let n_observed = worker.shell.collectives.all_reduce_sum(n_observed)?;
        let n_positive = worker.shell.collectives.all_reduce_sum(n_positive)?;
        let in_fit = |(shard, fitted): (&Histories, &Vec<bool>)| {
            let rows = (0..shard.n_users()).filter(|&row| fitted[row]);
            rows.filter(|&row| !shard.interactions.range(row).is_empty()).count() as i64
        };
        let n_users = prepared.shards.iter().zip(&fitted).map(in_fit).sum();
        let sums = worker.shell.collectives.all_reduce_sum(vec![n_users, n_plain])?;
        let (n_users, n_plain) = (sums[0] as u64, sums[1] as u64);
        let counts = n_observed.iter().zip(&n_positive);
        let lambdas = counts.map(|(&observed, &positive)| {
            objective.regularization_of(observed as u64, positive as u64, n_users)
        });
        let lambdas = lambdas.collect();
        let stride = stride(n_factors);
        let n_rows: usize = prepared.shards.iter().map(Histories::n_users).sum();
        let n_pairs = observed.iter().map(|observed| observed.confidences.len()).sum();
        let walk = match section.solver() {
            Solver::ConjugateGradient { .. } => {
                Walk::faster(n_pairs, n_items, n_rows, prepared.shards.len(), stride)
            }
            // Triangles of many items at once fit no cache.
            Solver::Cholesky => Walk::ItemByItem,
        };
        let by_item = worker.pool.install(|| ByItem::new(&shards, n_items, walk, objective.base()));
        Ok(Self {
            prepared,
            item_ids,
            objective,
            solver: section.solver(),
            n_factors,
            stride,
            observed,
            fitted,
            by_item,
            items: starting_items(item_ids, &n_observed, n_factors, section.seed),
            users: vec![0.0; n_rows * stride],
            halves: section.reads_halves().then(Halves::default),
            lambdas,
            n_users,
            n_pairs: n_observed.iter().sum::<i64>() as u64,
            n_plain,
            iteration_seconds: Vec::new(),
            gram_users: Vec::new(),
            stopped: 0,
            n_told: 0,
            checkpoint: "als".to_owned(),
        })
    }

    fn params(&self) -> Params<'_> {
        let n_items = self.lambdas.len() as u64;
        Params { objective: &self.objective, solver: self.solver, n_items }
    }

    /// Each shard with its users of the fit and their factors' place.
    fn shards(&self) -> impl Iterator<Item = (u32, Users<'_>, Range<usize>)> {
        let mut start = 0;
        let shards = self.prepared.shards.iter().zip(self.observed.iter().zip(&self.fitted));
        shards.map(move |(shard, (observed, fitted))| {
            let end = start + shard.n_users() * self.stride;
            let place = std::mem::replace(&mut start, end)..end;
            (shard.shard, observed.users(shard, Some(fitted)), place)
        })
    }

    /// One pass over users and items; returns the loss before it, where that is still open: the user
    /// half meets all pairs with the factors as they were.
    fn iterate(
        &mut self,
        worker: &mut Worker<'_>,
        iteration: usize,
        is_open: bool,
    ) -> Result<Option<Loss>> {
        let start = Instant::now();
        let before = self.user_half(worker, iteration, is_open)?;
        self.round_users(worker);
        self.gram_users = self.gram_of_users(worker);
        let gram = rounded(&self.gram_users);
        self.stopped += self.item_half(worker, &gram, &format!("iteration {iteration}"))?;
        self.iteration_seconds.push(start.elapsed().as_secs_f64());
        worker.job.observer.advance(1);
        Ok(before)
    }

    /// Reads users in 16 bits from here on, in units that follow from the users of all processes.
    fn round_users(&mut self, worker: &mut Worker<'_>) {
        let Some(halves) = &mut self.halves else { return };
        let largest_here = worker.pool.install(|| largest(&self.users)).to_le_bytes().to_vec();
        let parts = worker.shell.collectives.all_gather(largest_here.into());
        let of_part = |part: &[u8]| f32::from_le_bytes(part.try_into().expect("4 bytes"));
        let largest = parts.iter().map(|part| of_part(part)).fold(0.0, f32::max);
        worker.pool.install(|| halves.set(&self.users, largest));
    }

    /// Whether the loss after this iteration cannot wait for the next one's user half.
    fn needs_loss(&self, worker: &Worker<'_>, section: &Als, n_done: usize) -> bool {
        n_done >= section.iterations
            || section.loss_tolerance.is_some()
            || self.solver == Solver::Cholesky
            || self.is_saved(worker, n_done)
    }

    /// Whether a checkpoint is due that is not the last one.
    fn is_saved(&self, worker: &Worker<'_>, n_done: usize) -> bool {
        let every = worker.checkpoints.as_ref().map(|checkpoints| checkpoints.als_iterations);
        every.is_some_and(|every| n_done.is_multiple_of(every))
    }

    /// Tells of the iteration that this is the loss of.
    fn note(&mut self, worker: &Worker<'_>, loss: Loss) {
        let stopped = match std::mem::take(&mut self.stopped) {
            0 => String::new(),
            n => format!(", {n} rows stopped early"),
        };
        let Loss { full, observed } = loss;
        self.n_told += 1;
        let (iteration, seconds) = (self.n_told, self.iteration_seconds.last().unwrap_or(&0.0));
        worker.job.observer.note(
            "als",
            &format!(
                "iteration {iteration}: loss {full:.6}, of observed {observed:.6}, \
                 {seconds:.2} s{stopped}"
            ),
        );
    }

    /// Goes on from the newest checkpoint; returns the losses of the iterations that are done.
    fn restore(&mut self, worker: &mut Worker<'_>) -> Vec<Loss> {
        let pool = worker.pool;
        let read = |sealed: &Sealed<'_>| parts::read_fit(sealed, pool, self.state(&[]));
        let Some(SavedFit { items, users, losses }) = worker.restore(&self.checkpoint, read) else {
            return Vec::new();
        };
        (self.items, self.users) = (items, users);
        worker.resumed = true;
        self.n_told = losses.len();
        let observer = worker.job.observer;
        observer.note("als", &format!("resumed after iteration {}", losses.len()));
        observer.advance(losses.len() as u64);
        losses
    }

    /// Saves every so many iterations, and after the last one; a newer checkpoint takes the place of
    /// the one before it.
    fn save(&self, worker: &mut Worker<'_>, losses: &[Loss], is_last: bool) {
        if worker.checkpoints.is_none() || !(is_last || self.is_saved(worker, losses.len())) {
            return;
        }
        let name = format!("{}-{:05}", self.checkpoint, losses.len());
        let share = Share::of(worker);
        let state = self.state(losses);
        if worker.save(&name, |saving| parts::save_fit(&share, saving, state)) {
            worker.remove_all_but(&self.checkpoint, &name);
        }
    }

    fn state<'s>(&'s self, losses: &'s [Loss]) -> FitState<'s> {
        let (shards, stride) = (self.prepared.shards.as_slice(), self.stride);
        FitState { shards, stride, items: &self.items, users: &self.users, losses }
    }

    /// Users of the fit of each shard with their rows of `factors`.
    fn with_factors<'f>(&self, mut factors: &'f mut [f32]) -> Vec<(Users<'_>, &'f mut [f32])> {
        let mut shards = Vec::new();
        for (_, users, place) in self.shards() {
            let rows = factors.split_off_mut(..place.len()).expect("a row per user");
            shards.push((users, rows));
        }
        shards
    }

    /// Solves for the users of this process; returns the loss before, if it is asked for.
    fn user_half(
        &mut self,
        worker: &mut Worker<'_>,
        iteration: usize,
        with_loss: bool,
    ) -> Result<Option<Loss>> {
        let when = format!("iteration {iteration}");
        let mut users = std::mem::take(&mut self.users);
        let mut halves = self.halves.take();
        let (gram_items, solved) = worker.pool.install(|| {
            if let Some(halves) = &mut halves {
                halves.set(&self.items, largest(&self.items));
            }
            let gram_items = match &halves {
                Some(halves) => gram::of_halves(halves, 0..self.lambdas.len(), self.n_factors),
                None => gram(&self.items, self.n_factors),
            };
            let rounded = rounded(&gram_items);
            let mut system = system(&self.objective, &self.items, self.n_factors, &rounded);
            system.fixed.halves = halves.as_ref();
            let solve = |(of_shard, x): (Users<'_>, &mut [f32])| {
                solve_users(x, of_shard, system, self.params(), with_loss)
            };
            // All shards at once, so that no thread waits at the end of each.
            let solved: Vec<Result<(usize, ShardLoss), SolveError>> =
                self.with_factors(&mut users).into_par_iter().map(solve).collect();
            (gram_items, solved)
        });
        let solved: Result<Vec<(usize, ShardLoss)>> = solved
            .into_iter()
            .zip(&self.prepared.shards)
            .map(|(solved, shard)| {
                solved.map_err(|error| unsolved(&when, "user", &shard.user_ids, 0, error))
            })
            .collect();
        self.halves = halves;
        self.users = users;
        let solved = worker.agree(solved)?;
        let of_shards: Vec<ShardLoss> = solved.iter().map(|&(_, loss)| loss).collect();
        let before = with_loss.then(|| self.whole_loss(worker, &gram_items, &of_shards));
        if let Some(loss) = before {
            self.note(worker, loss);
        }
        self.stopped += solved.iter().map(|(stopped, _)| stopped).sum::<usize>();
        Ok(before)
    }

    /// Takes users' factors as they are, of those who take part.
    pub(super) fn set_users(&mut self, of_shards: &[Vec<f32>]) {
        let rows = of_shards.iter().flat_map(|of| of.chunks_exact(self.stride));
        let places = self.users.chunks_exact_mut(self.stride).zip(self.fitted.iter().flatten());
        for ((place, _), row) in places.zip(rows).filter(|((_, takes_part), _)| **takes_part) {
            place.copy_from_slice(row);
        }
    }

    /// The Gram matrix of all users: summed over shards in the shape of the tree.
    pub(super) fn gram_of_users(&self, worker: &mut Worker<'_>) -> Vec<f64> {
        let width = self.n_factors * self.stride;
        let mut encoded = Vec::new();
        let shards: Vec<_> = self.shards().map(|(shard, _, place)| (shard, place)).collect();
        for subtree in subtrees(worker) {
            let mut tree = TreeSum::new(width);
            let of_subtree = shards.iter().filter(|(shard, _)| subtree.contains(shard));
            let of_subtree: Vec<_> = of_subtree.collect();
            for wave in of_subtree.chunks(GRAMS_PER_WAVE) {
                let gram = |(_, place): &&(u32, Range<usize>)| match &self.halves {
                    Some(halves) => {
                        let rows = place.start / self.stride..place.end / self.stride;
                        gram::of_halves(halves, rows, self.n_factors)
                    }
                    None => gram(&self.users[place.clone()], self.n_factors),
                };
                let grams: Vec<Vec<f64>> =
                    worker.pool.install(|| wave.par_iter().map(gram).collect());
                for ((shard, _), gram) in wave.iter().zip(grams) {
                    tree.leaf(*shard).copy_from_slice(&gram);
                }
            }
            let mut sum = vec![0.0; width];
            tree.finish(&mut sum);
            encoded.extend_from_slice(&subtree.start.to_le_bytes());
            sum.iter().for_each(|value| encoded.extend_from_slice(&value.to_le_bytes()));
        }
        let mut tree = TreeSum::new(width);
        for part in worker.shell.collectives.all_gather(encoded.into()) {
            for subtree in part.chunks_exact(4 + 8 * width) {
                let (shard, values) = subtree.split_at(4);
                let leaf = tree.leaf(u32::from_le_bytes(shard.try_into().expect("4 bytes")));
                for (value, bytes) in leaf.iter_mut().zip(values.chunks_exact(8)) {
                    *value = f64::from_le_bytes(bytes.try_into().expect("8 bytes"));
                }
            }
        }
        let mut sum = vec![0.0; width];
        tree.finish(&mut sum);
        sum
    }

    /// Solves for all items; every process has them at the end. `gram` is that of the users.
    pub(super) fn item_half(
        &mut self,
        worker: &mut Worker<'_>,
        gram: &[f32],
        when: &str,
    ) -> Result<usize> {
        let n_items = self.lambdas.len();
        let mut stopped = 0;
        for start in (0..n_items).step_by(self.items_per_chunk()) {
            let chunk = start..n_items.min(start + self.items_per_chunk());
            let solved = match self.solver {
                Solver::ConjugateGradient { steps } => {
                    Ok(self.descend(worker, chunk.clone(), gram, steps))
                }
                Solver::Cholesky => self.solve_exactly(worker, chunk.clone(), gram).map(|()| 0),
            };
            let solved = solved.and_then(|more| {
                let factors = &self.items[chunk.start * self.stride..chunk.end * self.stride];
                check_finite(factors, self.stride).map(|()| more).map_err(|e| (chunk.start, e))
            });
            let ids = self.item_ids;
            let solved = solved.map_err(|(at, error)| unsolved(when, "item", ids, at, error));
            stopped += worker.agree(solved)?;
        }
        Ok(stopped)
    }

    /// Items whose sums are held at once: whole tasks.
    fn items_per_chunk(&self) -> usize {
        let term = match self.solver {
            Solver::ConjugateGradient { .. } => Term::Product,
            Solver::Cholesky => Term::Normal,
        };
        let items = ITEM_SUMS_BYTES as usize / (4 * item_sums::width(term, self.n_factors));
        (items / ITEMS_PER_TASK).max(1) * ITEMS_PER_TASK
    }

    /// Conjugate gradient on a chunk of items; returns how many this process's rows stopped early.
    fn descend(
        &mut self,
        worker: &mut Worker<'_>,
        chunk: Range<usize>,
        gram: &[f32],
        steps: usize,
    ) -> usize {
        let stride = self.stride;
        let mine = slice(&chunk, worker.shell.index, worker.shell.peers);
        let at = &self.items[chunk.start * stride..chunk.end * stride];
        let sums = self.sums(worker, &chunk, Term::Residual, at);
        let mut x = self.items[mine.start * stride..mine.end * stride].to_vec();
        let lambdas = self.lambdas[mine].to_vec();
        let system = system(&self.objective, &self.users, self.n_factors, gram);
        let mut cg = worker.pool.install(|| CgRows::start(&mut x, sums, system, &lambdas));
        for _ in 0..steps {
            let sums = {
                let at = all_rows(worker, cg.directions());
                self.sums(worker, &chunk, Term::Product, &at)
            };
            worker.pool.install(|| cg.step(&mut x, &sums.values, system, &lambdas));
        }
        let solved = all_rows(worker, &x);
        self.items[chunk.start * stride..chunk.end * stride].copy_from_slice(&solved);
        cg.n_stopped()
    }

    /// The exact solution of a chunk of items; an error names the row counted from the first item.
    fn solve_exactly(
        &mut self,
        worker: &mut Worker<'_>,
        chunk: Range<usize>,
        gram: &[f32],
    ) -> Result<(), (usize, SolveError)> {
        let stride = self.stride;
        let mine = slice(&chunk, worker.shell.index, worker.shell.peers);
        let mut sums = self.sums(worker, &chunk, Term::Normal, &[]);
        let mut x = vec![0.0; mine.len() * stride];
        let system = system(&self.objective, &self.users, self.n_factors, gram);
        let lambdas = &self.lambdas[mine.clone()];
        let solved = worker.pool.install(|| solve_normal(&mut x, &mut sums, system, lambdas));
        let solution = all_rows(worker, &x);
        self.items[chunk.start * stride..chunk.end * stride].copy_from_slice(&solution);
        solved.map_err(|error| (mine.start, error))
    }

    /// The sums of this process's slice of a chunk over the users of all processes.
    fn sums(&self, worker: &mut Worker<'_>, chunk: &Range<usize>, term: Term, v: &[f32]) -> Sums {
        let mut users = system(&self.objective, &self.users, self.n_factors, &[]).fixed;
        users.halves = self.halves.as_ref();
        let request = Request { by_item: &self.by_item, users, term };
        let subtrees = subtrees(worker);
        let parts: Vec<(u32, Sums)> = worker.pool.install(|| {
            let of_subtree = |shards: Range<u32>| {
                (shards.start, item_sums::sums(request, chunk.clone(), shards, v))
            };
            subtrees.into_iter().map(of_subtree).collect()
        });
        add_up(worker, chunk, item_sums::width(term, self.n_factors), parts)
    }

    /// The loss as the factors are now.
    fn loss(&mut self, worker: &mut Worker<'_>) -> Loss {
        let start = Instant::now();
        let (gram_items, of_shards) = worker.pool.install(|| {
            let gram_items = gram(&self.items, self.n_factors);
            let rounded = rounded(&gram_items);
            let system = system(&self.objective, &self.items, self.n_factors, &rounded);
            let of_shard = |(_, of_shard, place): (u32, Users<'_>, Range<usize>)| {
                of_users(&self.users[place], of_shard, system, self.params())
            };
            let shards: Vec<_> = self.shards().collect();
            (gram_items, shards.into_par_iter().map(of_shard).collect::<Vec<ShardLoss>>())
        });
        let loss = self.whole_loss(worker, &gram_items, &of_shards);
        if let Some(seconds) = self.iteration_seconds.last_mut() {
            *seconds += start.elapsed().as_secs_f64();
        }
        self.note(worker, loss);
        loss
    }

    /// The loss of all processes, from that of this one's shards.
    fn whole_loss(
        &self,
        worker: &mut Worker<'_>,
        gram_items: &[f64],
        of_shards: &[ShardLoss],
    ) -> Loss {
        let encoded: Vec<u8> = of_shards
            .iter()
            .flat_map(|loss| [loss.observed, loss.squares, loss.weight, loss.regularization])
            .flat_map(f64::to_le_bytes)
            .collect();
        // Shard after shard: the gathered parts are in order, however the shards were dealt.
        let mut sum = ShardLoss::default();
        for part in worker.shell.collectives.all_gather(encoded.into()) {
            for shard in part.chunks_exact(32) {
                let number = |at: usize| {
                    f64::from_le_bytes(shard[8 * at..][..8].try_into().expect("8 bytes"))
                };
                sum = sum.plus(ShardLoss {
                    observed: number(0),
                    squares: number(1),
                    weight: number(2),
                    regularization: number(3),
                });
            }
        }
        let norm = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        let items = self.items.chunks_exact(self.stride).zip(&self.lambdas);
        let rest = Rest {
            gram_users: &self.gram_users,
            gram_items,
            unobserved: f64::from(self.objective.unobserved()),
            regularization_items: items.map(|(row, &lambda)| f64::from(lambda) * norm(row)).sum(),
            n_pairs: self.n_users as f64 * self.lambdas.len() as f64,
            n_observed: self.n_pairs as f64,
        };
        loss(sum, rest)
    }

    /// What the manifest says of it.
    fn report(&self, losses: &[Loss]) -> Map<String, Value> {
        let all = |of: fn(&Loss) -> f64| json!(losses.iter().map(of).collect::<Vec<_>>());
        report([
            ("iterations", json!(losses.len())),
            ("loss", all(|loss| loss.full)),
            ("loss_observed", all(|loss| loss.observed)),
            ("users", json!(self.n_users)),
            ("pairs", json!(self.n_pairs)),
            ("pairs_plain", json!(self.n_plain)),
            ("iteration_seconds", json!(self.iteration_seconds)),
        ])
    }

    /// Gives users who took no part their factors, and lets go of what only the fit needs.
    fn finish(self, worker: &mut Worker<'_>, losses: Vec<Loss>) -> Result<Factors> {
        let report = self.report(&losses);
        let Self { prepared, objective, n_factors, stride, observed, fitted, items, users, .. } =
            self;
        drop((self.by_item, self.halves));
        let of = (objective, n_factors);
        let mut factors = Factors::of_item_factors(worker, prepared, of, items, observed);
        factors.report = report;
        let mut rest = users.as_slice();
        let mut folded = Ok(());
        for (at, (shard, fitted)) in prepared.shards.iter().zip(&fitted).enumerate() {
            let (of_shard, after) = rest.split_at(shard.n_users() * stride);
            rest = after;
            let mut of_shard = of_shard.to_vec();
            if fitted.contains(&false) {
                let others: Vec<bool> = fitted.iter().map(|fitted| !fitted).collect();
                let solve = || factors.fold_in(at, shard, &others, &mut of_shard);
                folded = worker.pool.install(solve).and(folded);
            }
            factors.users.push(of_shard);
        }
        worker.agree(folded)?;
        Ok(factors)
    }
}

/// Starting values of the items that somebody has; zeros for the others.
fn starting_items(ids: &Ids, n_observed: &[i64], n_factors: usize, seed: u64) -> Vec<f32> {
    let stride = stride(n_factors);
    let mut items = vec![0.0; ids.len() * stride];
    for (item, row) in items.chunks_exact_mut(stride).enumerate() {
        if n_observed[item] > 0 {
            start(ids.get(item).stable_hash(seed), n_factors, row);
        }
    }
    items
}
