//! What is different since the generation that readers saw when the run began, and what is not.
//!
//! A table of changes is made beside the file of its table, from the rows that were just encoded and
//! those of the earlier file, a batch of each at a time. Where a job says so, a file that is as it was is
//! listed and not written. Nothing here makes a run fail but a store that takes no files: what cannot be
//! told is a warning, and the table goes without.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow};
use arrow::array::{ArrayRef, RecordBatch, make_comparator};
use arrow::compute::{SortOptions, concat_batches};
use serde::{Deserialize, Serialize};

use super::side::Deleted;
use super::warm_start::WarmStart;
use super::{Job, Worker, one_line, prepare};
use crate::job::Spec;
use crate::schema::changes::{Differ, KeyRange, ROWS_AT_ONCE, has_columns};
use crate::schema::{CHANGES_SUFFIX, IdTypes, Kind, Table, tables};
use crate::store::{
    BATCH_ROWS, Current, EarlierRun, EncodedFile, FilesAhead, Footer, InputFile, Location, Output,
    PublishedFile, RunPath, TableFile, footer, read_row_group,
};
use crate::types::IdRef;

/// What readers see, for a job that is held against it.
pub(super) fn earlier(output: &Output, spec: &Spec) -> Option<Current> {
    if !spec.tells_changes() && !spec.shares_files() && !WarmStart::is_wanted(spec) {
        return None;
    }
    output.read_current().unwrap_or_else(|error| {
        tracing::warn!(error = one_line(&error), "no earlier generation can be read");
        None
    })
}

/// The generation that a run is held against; in all processes alike.
pub(super) struct Changes {
    since: EarlierRun,
    tells_changes: bool,
    shares_files: bool,
    location: Location,
    /// The files of its tables, but those of changes.
    tables: BTreeMap<String, Vec<EarlierFile>>,
    /// Those of shards, of which this process reads some.
    ahead: BTreeMap<String, FilesAhead>,
    /// What may not be told, not even to take it out.
    deleted: Deleted,
    /// Tables without changes that this process has warned of.
    warned: Mutex<BTreeSet<&'static str>>,
}

struct EarlierFile {
    part: u32,
    published: PublishedFile,
    file: InputFile,
    footer: OnceLock<Footer>,
}

/// What process 0 tells the others of it.
#[derive(Serialize, Deserialize)]
struct Told {
    since: EarlierRun,
    files: Vec<PublishedFile>,
}

/// Where the earlier rows of a file are.
pub(super) enum Beside<'a> {
    /// In the file of the same shard.
    Shard(u32),
    /// In all files of the table: those of a range of keys.
    Range(&'a KeyRange),
}

/// Settles which generation a run is held against. It stays the same for all processes that go by the name
/// of this run, so that files that are written twice are the same files.
pub(super) fn settle(
    worker: &mut Worker<'_>,
    output: &Output,
    path: &RunPath,
    deleted: Deleted,
) -> Result<Option<Changes>> {
    let job = worker.job;
    let spec = &job.plan.spec;
    if !spec.tells_changes() && !spec.shares_files() {
        return Ok(None);
    }
    let first = worker.shell.index == 0;
    let found = if first { look(job, output, path) } else { Ok(None) };
    let found = worker.agree(found)?;
    let told = first.then(|| serde_json::to_vec(&found).expect("file entries are plain data"));
    let told = worker.shell.collectives.broadcast(0, told.map(Into::into));
    let told: Option<Told> =
        serde_json::from_slice(&told).context("the earlier files of process 0 cannot be read")?;
    let Some(Told { since, files }) = told else { return Ok(None) };
    let mine = prepare::owned_shards(worker);
    Ok(Some(Changes::new(output, spec, (since, files), deleted, &mine)))
}

/// The run that readers saw when this one began, as the first process that went by its name found it.
pub(super) fn earlier_run(
    job: &Job<'_>,
    output: &Output,
    path: &RunPath,
) -> Result<Option<Current>> {
    let record = path.file("_changes_since.json");
    Ok(output.put_once(&record, job.earlier.clone())?)
}

/// What process 0 finds; `None`, and a line that says why, where there is nothing to be held against.
fn look(job: &Job<'_>, output: &Output, path: &RunPath) -> Result<Option<Told>> {
    let none = |why: String| {
        job.observer.note("changes", &format!("no earlier tables to tell changes from: {why}"));
        Ok(None)
    };
    let Some(run) = earlier_run(job, output, path)? else {
        return none("nothing was published before".to_owned());
    };
    let generation = run.generation;
    if output.read_log()?.is_collected(&run.run_id) {
        return none(format!("generation {generation} is given up by gc"));
    }
    let manifest = match output.read_manifest(&run) {
        Ok(manifest) => manifest,
        Err(error) => return none(format!("generation {generation}: {}", one_line(&error))),
    };
    if manifest.shards != job.plan.n_shards {
        let (before, now) = (manifest.shards, job.plan.n_shards);
        return none(format!("generation {generation} has {before} shards, this run {now}"));
    }
    let is_earlier =
        |file: &PublishedFile| tables::by_name(&file.table).is_some_and(tables::has_changes);
    let files = manifest.files.into_iter().filter(is_earlier).collect();
    let since = EarlierRun { generation, run_id: run.run_id };
    Ok(Some(Told { since, files }))
}

/// Leaves out tables of changes of which a process could not write its part.
pub(super) fn only_whole(mut files: Vec<PublishedFile>) -> Vec<PublishedFile> {
    let mut n_files: BTreeMap<String, usize> = BTreeMap::new();
    for file in &files {
        *n_files.entry(file.table.clone()).or_default() += 1;
    }
    files.retain(|file| {
        let of = file.table.strip_suffix(CHANGES_SUFFIX);
        of.is_none_or(|of| n_files.get(of) == n_files.get(&file.table))
    });
    files
}

impl Changes {
    /// `files`: those of the tables of the generation `since`; `shards`: those of this process.
    pub(super) fn new(
        output: &Output,
        spec: &Spec,
        (since, files): (EarlierRun, Vec<PublishedFile>),
        deleted: Deleted,
        shards: &[u32],
    ) -> Self {
        let mut tables: BTreeMap<String, Vec<EarlierFile>> = BTreeMap::new();
        for published in files {
            let Some(part) = RunPath::part_of(&published.path) else { continue };
            let (file, footer) = (output.input_file(&published), OnceLock::new());
            let table = published.table.clone();
            let earlier = EarlierFile { part, published, file, footer };
            tables.entry(table).or_default().push(earlier);
        }
        tables.values_mut().for_each(|files| files.sort_unstable_by_key(|file| file.part));
        let location = output.location();
        let of_shards = tables
            .iter()
            .filter(|(name, _)| tables::by_name(name).is_some_and(tables::is_of_shards));
        let ahead = of_shards.map(|(name, files)| {
            let mine = files.iter().filter(|file| shards.contains(&file.part));
            (name.clone(), FilesAhead::new(&location, mine.map(|file| &file.file)))
        });
        let ahead = ahead.collect();
        Self {
            since,
            tells_changes: spec.tells_changes(),
            shares_files: spec.shares_files(),
            location,
            tables,
            ahead,
            deleted,
            warned: Mutex::default(),
        }
    }

    /// What the manifest says: where the changes start, and whose files are listed, if `files` has some.
    pub(super) fn since(&self, files: &[PublishedFile]) -> [Option<EarlierRun>; 2] {
        let is_change = |file: &PublishedFile| file.table.ends_with(CHANGES_SUFFIX);
        let is_earlier = |file: &PublishedFile| {
            let earlier = self.tables.get(&file.table).into_iter().flatten();
            earlier.map(|earlier| &earlier.published.path).any(|path| *path == file.path)
        };
        let since = |found: bool| found.then(|| self.since.clone());
        [since(files.iter().any(is_change)), since(files.iter().any(is_earlier))]
    }

    /// The earlier file in the place of the one that is to be written to `path`, if it has the same bytes
    /// and is there.
    pub(super) fn same(
        &self,
        output: &Output,
        path: &str,
        new: &EncodedFile,
    ) -> Option<PublishedFile> {
        let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
        let files = self.tables.get(&new.table).filter(|_| self.shares_files)?;
        let found = files.iter().map(|file| &file.published).find(|file| {
            (file.bytes, &file.sha256) == (new.bytes.len() as u64, &new.sha256)
                && name(&file.path) == name(path)
        })?;
        // One that is damaged is written anew.
        let checked = output.check_files(std::slice::from_ref(found));
        let warn =
            |error| tracing::warn!(path, error = one_line(&error), "a file is not as it was");
        checked.map_err(warn).ok().map(|()| found.clone())
    }

    /// The changes that make the earlier rows those of a file of `table`; `None`, and a warning of the
    /// first of a table, where they are not to be told.
    ///
    /// Holds a batch of both, and what it makes. A file that is as it was is not read.
    pub(super) fn file(
        &self,
        table: &'static Table,
        ids: IdTypes,
        new: &EncodedFile,
        beside: Beside<'_>,
    ) -> Option<EncodedFile> {
        if !self.tells_changes || !tables::has_changes(table) {
            return None;
        }
        let made = self.make(table, ids, new, beside);
        let warn = |error: anyhow::Error| {
            let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
            if warned.insert(table.name) {
                let (table, error) = (table.name, one_line(error.as_ref()));
                tracing::warn!(table, error, "no changes are told of a table; load it whole");
            }
        };
        made.map_err(warn).ok()
    }

    fn make(
        &self,
        table: &'static Table,
        ids: IdTypes,
        new: &EncodedFile,
        beside: Beside<'_>,
    ) -> Result<EncodedFile> {
        let files = self.tables.get(table.name).map_or(&[][..], Vec::as_slice);
        let whole = KeyRange::default();
        let (files, range) = match beside {
            Beside::Shard(shard) => {
                let at = files.binary_search_by_key(&shard, |file| file.part);
                (at.map_or(&[][..], |at| &files[at..=at]), &whole)
            }
            Beside::Range(range) => (files, range),
        };
        if files.is_empty() {
            return Err(anyhow!("generation {} has no such table", self.since.generation));
        }
        let name = table.changes_name();
        let mut out = Cut::new(TableFile::new(&name, &table.changes_schema(ids), table.key)?);
        let is_gone = |kind: Kind, id: IdRef<'_>| match kind {
            Kind::UserId => self.deleted.users.contains(&id.digest()),
            _ => self.deleted.items.contains(&id.digest()),
        };
        // Of several files, another may hold keys that are gone from the range of this one.
        let is_as_it_was = files.len() == 1 && files[0].published.sha256 == new.sha256;
        if !is_as_it_was {
            let differ = Differ::new(table, ids, &is_gone)?;
            let old = files.iter().flat_map(|file| self.rows(table, ids, file, range));
            let new = new.batches(ROWS_AT_ONCE)?.map(|batch| Ok(batch?));
            differ.changes(old, new, range, |rows| out.push(rows))?;
        }
        out.finish()
    }

    /// The rows of an earlier file, but of row groups that lie outside the range.
    fn rows<'r>(
        &'r self,
        table: &'static Table,
        ids: IdTypes,
        file: &'r EarlierFile,
        range: &'r KeyRange,
    ) -> Box<dyn Iterator<Item = Result<RecordBatch>> + 'r> {
        let ahead = self.ahead.get(table.name).map(|ahead| ahead.open(&file.file));
        let (location, input) = ahead.unwrap_or_else(|| (self.location.clone(), file.file.clone()));
        let footer = match self.footer(table, ids, file, (&location, &input)) {
            Ok(footer) => footer,
            Err(error) => return Box::new(std::iter::once(Err(error))),
        };
        let groups = (0..footer.n_row_groups())
            .filter(|&group| may_hold(footer, group, table.key[0], range));
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
        Box::new(groups.flat_map(move |group| -> Box<dyn Iterator<Item = Result<RecordBatch>>> {
            match read_row_group(&location, &input, footer, group, &columns) {
                Ok(rows) => Box::new(rows.map(|batch| Ok(batch?))),
                Err(error) => Box::new(std::iter::once(Err(error.into()))),
            }
        }))
    }

    fn footer<'f>(
        &self,
        table: &Table,
        ids: IdTypes,
        file: &'f EarlierFile,
        (location, input): (&Location, &InputFile),
    ) -> Result<&'f Footer> {
        if let Some(footer) = file.footer.get() {
            return Ok(footer);
        }
        let footer = footer(location, input)?;
        if !has_columns(footer.schema(), table, ids) {
            return Err(anyhow!("generation {} has other columns", self.since.generation));
        }
        Ok(file.footer.get_or_init(|| footer))
    }
}

/// Whether a row group may hold keys of a range, by what its footer says of the first column.
fn may_hold(footer: &Footer, group: usize, column: &str, range: &KeyRange) -> bool {
    let Some([least, largest]) = footer.bounds(group, column) else { return true };
    // What cannot be compared is read.
    let below = |one: &ArrayRef, other: &ArrayRef| {
        let compare = make_comparator(one, other, SortOptions::default());
        compare.is_ok_and(|compare| compare(0, 0).is_lt())
    };
    let first = |key: &Option<Vec<ArrayRef>>| key.as_ref().map(|key| key[0].clone());
    let is_low = first(&range.from).is_some_and(|from| below(&largest, &from));
    // A key of more columns may begin as the bound does.
    let is_high = first(&range.until).is_some_and(|until| below(&until, &least));
    !is_low && !is_high
}

/// Cuts rows into batches of [`BATCH_ROWS`] from the start of a file, however they come.
struct Cut {
    file: TableFile,
    pending: Vec<RecordBatch>,
    n_pending: usize,
}

impl Cut {
    fn new(file: TableFile) -> Self {
        Self { file, pending: Vec::new(), n_pending: 0 }
    }

    fn push(&mut self, rows: RecordBatch) -> Result<()> {
        self.n_pending += rows.num_rows();
        self.pending.push(rows);
        while self.n_pending >= BATCH_ROWS {
            self.write(BATCH_ROWS)?;
        }
        Ok(())
    }

    /// Writes the first `n` of the rows that are pending.
    fn write(&mut self, n: usize) -> Result<()> {
        let all = concat_batches(self.pending[0].schema_ref(), &self.pending)?;
        self.file.write(&all.slice(0, n))?;
        self.n_pending -= n;
        self.pending = vec![all.slice(n, self.n_pending)];
        Ok(())
    }

    fn finish(mut self) -> Result<EncodedFile> {
        if self.n_pending > 0 {
            self.write(self.n_pending)?;
        }
        Ok(self.file.finish()?)
    }
}
