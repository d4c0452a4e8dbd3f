//! Where the fit of the factors begins: from scratch, or from the item factors that readers saw.
//!
//! Which it is follows from what is published, is settled once per run id, and stands in the manifest;
//! so the same runs in the same order give the same bytes, in any number of processes.

use anyhow::{Context, Result, anyhow};
use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::prepare::Prepared;
use super::{Job, Refused, Worker, changes, input_file, sha256_hex};
use crate::job::Spec;
use crate::job::spec::Als;
use crate::kernels::als::stride;
use crate::schema::{IdColumn, tables};
use crate::store::{
    EarlierRun, FitStart, InputFile, Location, Manifest, ManifestInput, Output, PublishedFile,
    RunPath, footer, read_row_group,
};

/// Where a fit begins; in all processes alike.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WarmStart {
    /// What the manifest says.
    pub(super) start: FitStart,
    /// The files of the item factors to go on from; none from scratch.
    files: Vec<PublishedFile>,
}

/// Settles where the fit of this run begins. `None` in a job whose fits all begin from scratch.
pub(super) fn settle(
    worker: &mut Worker<'_>,
    output: &Output,
    (path, date): (&RunPath, Date),
) -> Result<Option<WarmStart>> {
    let job = worker.job;
    let Some(section) = job.plan.spec.als.as_ref().filter(|als| als.warm_iterations.is_some())
    else {
        return Ok(None);
    };
    let first = worker.shell.index == 0;
    let found = if first { look(job, output, (path, date), section).map(Some) } else { Ok(None) };
    let found = worker.agree(found)?;
    let told = first.then(|| serde_json::to_vec(&found).expect("a start is plain data"));
    let told = worker.shell.collectives.broadcast(0, told.map(Into::into));
    serde_json::from_slice(&told).context("where process 0 begins its fit cannot be read")
}

/// What process 0 finds, with a line that says it.
fn look(
    job: &Job<'_>,
    output: &Output,
    (path, date): (&RunPath, Date),
    section: &Als,
) -> Result<WarmStart> {
    let lists = &job.plan.side_tables;
    let lists = lists.delete_users.iter().chain(&lists.delete_items);
    let mut start = FitStart {
        section_sha256: digest(section),
        deleted: lists.map(|file| ManifestInput::from(&input_file(file))).collect(),
        since: None,
        runs: 0,
    };
    let earlier = changes::earlier_run(job, output, path)?;
    let found = match &earlier {
        None => Err("nothing was published before".to_owned()),
        Some(run) if run.logical_date > date.to_string() => {
            Err(format!("generation {} stands for a later day", run.generation))
        }
        Some(_) if job.plan.sample_users.is_some() => Err("this is a sample of users".to_owned()),
        Some(run) if output.read_log()?.is_collected(&run.run_id) => {
            // Part of the files of this run may be made from it, so there is no other beginning.
            return Err(Refused::config(anyhow!(
                "generation {}, from whose factors this run goes on, was given up by gc; begin a new \
                 run",
                run.generation
            )));
        }
        Some(run) => {
            let manifest = output.read_manifest(run)?;
            match may_follow(section, &start, &manifest) {
                Ok(runs) => Ok((run, runs, manifest)),
                Err(why) => Err(format!("generation {}: {why}", run.generation)),
            }
        }
    };
    let (run, runs, manifest) = match found {
        Ok(found) => found,
        Err(why) => {
            job.observer.note("als", &format!("the factors begin from scratch: {why}"));
            return Ok(WarmStart { start, files: Vec::new() });
        }
    };
    let generation = run.generation;
    job.observer.note("als", &format!("goes on from the item factors of generation {generation}"));
    start.since = Some(EarlierRun { generation, run_id: run.run_id.clone() });
    start.runs = runs + 1;
    let mut files = manifest.files;
    files.retain(|file| file.table == tables::ITEM_FACTORS.name);
    Ok(WarmStart { start, files })
}

/// How many runs in a row the earlier one ended, if this one may go on from it.
fn may_follow(section: &Als, start: &FitStart, earlier: &Manifest) -> Result<usize, &'static str> {
    let Some(before) = &earlier.fit_start else {
        return Err("it says nothing of its fit");
    };
    if before.section_sha256 != start.section_sha256 {
        return Err("the section [als] was another one");
    }
    // A list without a version may have changed.
    let is_known = |list: &ManifestInput| list.etag.is_some();
    if before.deleted != start.deleted || !start.deleted.iter().all(is_known) {
        return Err("the lists of [delete] were others, and nobody on them may be in the factors");
    }
    if section.warm_runs_max == 0 {
        return Err("als.warm_runs_max is 0");
    }
    if before.runs >= section.warm_runs_max {
        return Err("it was the last of als.warm_runs_max runs in a row that went on");
    }
    Ok(before.runs)
}

/// Digest of what decides the meaning of factors: all of the section but the numbers of iterations.
fn digest(section: &Als) -> String {
    let Als { iterations, warm_iterations, warm_runs_max, .. } = Als::default();
    let decisive = Als { iterations, warm_iterations, warm_runs_max, ..section.clone() };
    sha256_hex(serde_json::to_string(&decisive).expect("a section is plain data").as_bytes())
}

impl WarmStart {
    /// Whether the job of `spec` looks at what was published.
    pub(super) fn is_wanted(spec: &Spec) -> bool {
        spec.als.as_ref().is_some_and(|als| als.warm_iterations.is_some())
    }

    /// Iterations of a fit that begins here.
    pub(super) fn iterations(&self, section: &Als) -> usize {
        section.warm_iterations.filter(|_| self.start.since.is_some()).unwrap_or(section.iterations)
    }

    /// What the checkpoints of a fit that begins here are called.
    pub(super) fn checkpoint(&self) -> String {
        let since = self.start.since.as_ref();
        since.map_or("als".to_owned(), |run| format!("als_since_{}", run.generation))
    }

    /// Puts the earlier factors of items that are known into `rows`, `[n_items, stride]`; the others stay as
    /// they are. Nothing from scratch.
    ///
    /// # Errors
    /// The earlier files cannot be read, or are not what a run writes.
    pub(super) fn fill(
        &self,
        output: &Output,
        prepared: &Prepared,
        n_factors: usize,
        rows: &mut [f32],
    ) -> Result<()> {
        let location = output.location();
        for file in &self.files {
            let file = output.input_file(file);
            fill_from(&location, &file, prepared, n_factors, rows)
                .with_context(|| format!("\"{}\" cannot be gone on from", file.url))?;
        }
        Ok(())
    }
}

fn fill_from(
    location: &Location,
    file: &InputFile,
    prepared: &Prepared,
    n_factors: usize,
    rows: &mut [f32],
) -> Result<()> {
    let footer = footer(location, file)?;
    for row_group in 0..footer.n_row_groups() {
        for batch in read_row_group(location, file, &footer, row_group, &["item_id", "embedding"])?
        {
            let batch = batch?;
            let ids = IdColumn::try_new(batch.column(0))?;
            let vectors = batch.column(1);
            let (numbers, width) =
                match (vectors.as_fixed_size_list_opt(), vectors.as_list_opt::<i32>()) {
                    (Some(vectors), _) => (vectors.values(), Some(vectors.value_length() as usize)),
                    (None, Some(vectors)) => (vectors.values(), None),
                    (None, None) => {
                        return Err(anyhow!("its vectors are of type {}", vectors.data_type()));
                    }
                };
            let numbers = numbers
                .as_primitive_opt::<Float32Type>()
                .ok_or_else(|| anyhow!("its vectors hold no 32-bit floats"))?
                .values();
            let is_whole = numbers.len() == ids.len() * n_factors
                && width.is_none_or(|width| width == n_factors)
                && numbers.iter().all(|number| number.is_finite());
            if !is_whole || ids.null_count() > 0 {
                return Err(anyhow!("it does not have {n_factors} numbers for each item"));
            }
            for (row, vector) in numbers.chunks_exact(n_factors).enumerate() {
                if let Some(item) = prepared.item_ids.find_sorted(ids.get(row)) {
                    rows[item * stride(n_factors)..][..n_factors].copy_from_slice(vector);
                }
            }
        }
    }
    Ok(())
}
