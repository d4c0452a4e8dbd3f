//! Where the fit of the factors begins: from scratch, or from the item factors that readers saw; or that
//! there is none, and these stay.
//!
//! Which it is follows from what is published, is settled once per run id, and stands in the manifest;
//! so the same runs in the same order give the same bytes, in any number of processes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Float32Type;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::prepare::Prepared;
use super::{Job, Refused, Worker, changes, input_file, sha256_hex};
use crate::job::Spec;
use crate::job::spec::Als;
use crate::kernels::als::stride;
use crate::schema::{IdColumn, Table, tables};
use crate::store::{
    EarlierRun, FilesAhead, FitStart, InputFile, Location, Manifest, ManifestInput, Output,
    PublishedFile, RunPath, footer, read_row_group,
};
use crate::types::Histories;

/// Where a fit begins; in all processes alike.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WarmStart {
    /// What the manifest says.
    pub(super) start: FitStart,
    /// The files to go on from; none from scratch.
    files: Vec<PublishedFile>,
    /// Of a run without a fit of its own.
    fold_in: Option<Stays>,
}

/// What of the earlier generation stays where nothing is new.
#[derive(Debug, Serialize, Deserialize)]
struct Stays {
    /// Whether lists of users may: they are in the same shards, and the job is the same to the letter.
    lists: bool,
    /// The space of the factors.
    embedding_space_id: Option<String>,
}

/// The column that says whether something is new about a user.
pub(super) const DIGEST: &str = "history_digest";

/// Settles where the fit of this run begins. `None` in a job whose fits all begin from scratch.
pub(super) fn settle(
    worker: &mut Worker<'_>,
    output: &Output,
    (path, date): (&RunPath, Date),
) -> Result<Option<WarmStart>> {
    let job = worker.job;
    let Some(section) = warm_section(&job.plan.spec) else { return Ok(None) };
    let first = worker.shell.index == 0;
    let found = if first { look(job, output, (path, date), section).map(Some) } else { Ok(None) };
    let found = worker.agree(found)?;
    let told = first.then(|| serde_json::to_vec(&found).expect("a start is plain data"));
    let told = worker.shell.collectives.broadcast(0, told.map(Into::into));
    serde_json::from_slice(&told).context("where process 0 begins its fit cannot be read")
}

/// The section of a job whose fits may go on from what was published.
fn warm_section(spec: &Spec) -> Option<&Als> {
    spec.als.as_ref().filter(|als| als.warm_iterations.is_some())
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
            return Ok(WarmStart { start, files: Vec::new(), fold_in: None });
        }
    };
    let generation = run.generation;
    start.since = Some(EarlierRun { generation, run_id: run.run_id.clone() });
    start.runs = runs + 1;
    let folds_in = section.warm_iterations == Some(0);
    let done = if folds_in { "keeps" } else { "goes on from" };
    job.observer.note("als", &format!("{done} the item factors of generation {generation}"));
    let users = folds_in && manifest.shards == job.plan.n_shards;
    let same_job = manifest.spec_sha256 == sha256_hex(job.plan.spec.resolved().as_bytes());
    let lists = users && same_job;
    let mut files = manifest.files;
    files.retain(|file| match file.table.as_str() {
        "item_factors" => true,
        "user_factors" => users,
        "items" | "user_top_k" | "user_top_k_lists" => lists,
        _ => false,
    });
    let embedding_space_id = manifest.embedding_space_id;
    let fold_in = folds_in.then_some(Stays { lists, embedding_space_id });
    Ok(WarmStart { start, files, fold_in })
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
        warm_section(spec).is_some()
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

    /// Whether item factors stay, and there is no fit.
    pub(super) fn folds_in(&self) -> bool {
        self.fold_in.is_some()
    }

    /// The space of the factors, where it is that of the earlier generation.
    pub(super) fn embedding_space_id(&self) -> Option<String> {
        self.fold_in.as_ref()?.embedding_space_id.clone()
    }

    /// Whether lists of users may stay.
    pub(super) fn keeps_lists(&self) -> bool {
        self.fold_in.as_ref().is_some_and(|stays| stays.lists)
    }

    /// The earlier files of a table, with the number of each.
    pub(super) fn files<'s>(
        &'s self,
        output: &'s Output,
        table: &'static Table,
    ) -> impl Iterator<Item = (u32, InputFile)> + 's {
        let files = self.files.iter().filter(move |file| file.table == table.name);
        files.filter_map(|file| Some((RunPath::part_of(&file.path)?, output.input_file(file))))
    }

    /// The earlier files of a table of users, for some shards in the order in which they will be read.
    pub(super) fn files_of_shards(
        &self,
        output: &Output,
        table: &'static Table,
        shards: &[Histories],
    ) -> EarlierFiles {
        let mut all: BTreeMap<u32, InputFile> = self.files(output, table).collect();
        let mine = shards.iter().filter_map(|of| Some((of.shard, all.remove(&of.shard)?)));
        let files: BTreeMap<u32, InputFile> = mine.collect();
        let ahead = FilesAhead::new(&output.location(), files.values());
        EarlierFiles { files, ahead }
    }

    /// Puts the earlier factors of items that are known into `rows`, `[n_items, stride]`, and says which
    /// these are; the others stay as they are. None from scratch.
    ///
    /// # Errors
    /// The earlier files cannot be read, or are not what a run writes.
    pub(super) fn fill_items(
        &self,
        output: &Output,
        prepared: &Prepared,
        n_factors: usize,
        rows: &mut [f32],
    ) -> Result<Vec<bool>> {
        let stride = stride(n_factors);
        let mut is_known = vec![false; prepared.item_ids.len()];
        for (_, file) in self.files(output, &tables::ITEM_FACTORS) {
            let columns = ["item_id", tables::EMBEDDING];
            let take = |_: &RecordBatch, ids: &IdColumn, vectors: &[f32]| {
                for (row, vector) in vectors.chunks_exact(n_factors).enumerate() {
                    if let Some(item) = prepared.item_ids.find_sorted(ids.get(row)) {
                        rows[item * stride..][..n_factors].copy_from_slice(vector);
                        is_known[item] = true;
                    }
                }
                Ok(())
            };
            if !each_vector(&output.location(), &file, n_factors, &columns, take)? {
                return Err(anyhow!("it has no vectors")).with_context(|| no_start(&file));
            }
        }
        Ok(is_known)
    }
}

/// Files of shards that are asked for ahead.
pub(super) struct EarlierFiles {
    files: BTreeMap<u32, InputFile>,
    ahead: FilesAhead,
}

impl EarlierFiles {
    /// Where to read the file of a shard, if there is one.
    pub(super) fn open(&self, shard: u32) -> Option<(Location, InputFile)> {
        Some(self.ahead.open(self.files.get(&shard)?))
    }
}

/// Gives the batches of an earlier table of factors, with the ids, which come first, and the vectors end to
/// end. `columns` hold both, in the order of the table. Whether the file has all of them; nothing is given else.
///
/// # Errors
/// The file cannot be read, or is not what a run writes.
pub(super) fn each_vector(
    location: &Location,
    file: &InputFile,
    n_factors: usize,
    columns: &[&str],
    mut give: impl FnMut(&RecordBatch, &IdColumn, &[f32]) -> Result<()>,
) -> Result<bool> {
    each_batch(location, file, columns, |batch| {
        let ids = IdColumn::try_new(batch.column(0))?;
        let vectors = batch.column_by_name(tables::EMBEDDING).expect("it was asked for");
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
            return Err(anyhow!("it does not have {n_factors} numbers for each id"));
        }
        give(batch, &ids, numbers)
    })
}

/// Gives the batches of a file of the earlier generation, columns in the order of the table. Whether the file
/// has all of them, as those of older versions may not; nothing is given else.
///
/// # Errors
/// The file cannot be read, and what `give` says.
pub(super) fn each_batch(
    location: &Location,
    file: &InputFile,
    columns: &[&str],
    mut give: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<bool> {
    let mut read = || -> Result<bool> {
        let footer = footer(location, file)?;
        if columns.iter().any(|column| footer.schema().column_with_name(column).is_none()) {
            return Ok(false);
        }
        for row_group in 0..footer.n_row_groups() {
            for batch in read_row_group(location, file, &footer, row_group, columns)? {
                give(&batch?)?;
            }
        }
        Ok(true)
    };
    read().with_context(|| no_start(file))
}

/// Why a run stops whose earlier generation is not whole.
fn no_start(file: &InputFile) -> String {
    format!(
        "\"{}\" cannot be gone on from; --set als.warm_runs_max=0 begins from scratch",
        file.url
    )
}
