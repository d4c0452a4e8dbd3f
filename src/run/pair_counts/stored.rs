//! Counts of pairs in the state: read for a run, and written for the next.

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::{Changes, Coded, Codes, KeptPairs, batches, file_of};
use crate::kernels::cosine::pair_counts::{CODES_MAX, Differences, PairCounts, StoredGroup};
use crate::run::{Job, Worker, prepare};
use crate::schema::state::{
    PairGroup, history_batch, history_schema, key_batch, key_schema, pair_count_batch,
    pair_count_schema, read_histories, read_keys, read_pair_counts,
};
use crate::store::{
    BATCH_ROWS, Output, StateKind, StateManifest, StatePart, StateParts, TableFile,
};
use crate::types::Ids;

/// Reads what the counts in a state are of, and leaves the counts there; `None` where it has none.
pub(super) fn read(
    worker: &Worker<'_>,
    output: &Output,
    state: &StateManifest,
) -> Result<Option<KeptPairs>> {
    let stored: Vec<StatePart> =
        state.parts.iter().filter(|part| part.is_of_pairs()).cloned().collect();
    let of_items = |part: &StatePart| Some((part.clone(), n_codes_of(part)?));
    let Some((items, n_codes)) = stored.iter().find_map(of_items) else { return Ok(None) };
    let mine = prepare::owned_shards(worker);
    let is_wanted = |part: &&StatePart| match part.kind {
        StateKind::PairUsers { shard } => mine.contains(&shard),
        kind => matches!(kind, StateKind::PairItems { .. }),
    };
    let reader = Reader::new(output, stored.iter().filter(is_wanted));
    let codes = reader.items(&items, Ids::new(state.item_id_type), n_codes)?;
    let shards = mine.par_iter().with_max_len(1).map(|&shard| {
        let is_wanted = |part: &&StatePart| part.kind == StateKind::PairUsers { shard };
        let part = stored.iter().find(is_wanted);
        reader.shard(part, (Ids::new(state.user_id_type), n_codes))
    });
    let shards = worker.pool.install(|| shards.collect::<Result<Vec<Coded>>>());
    Ok(Some(KeptPairs {
        counts: None,
        shards: shards?,
        stamp: xxh3_64(items.file.path.as_bytes()),
        codes,
        lag: 0,
        stored,
        is_due: false,
    }))
}

/// The counts in some files of a state, those of its groups that a process owns.
pub(super) fn counts(
    output: &Output,
    parts: &[StatePart],
    n_codes: usize,
    is_mine: impl Fn(usize) -> bool,
    differences: &Differences,
) -> Result<PairCounts> {
    let before = parts.iter().find_map(n_codes_of).unwrap_or(0);
    let files = parts.iter().filter(|part| match part.kind {
        StateKind::PairCounts { shard } => is_mine(shard as usize),
        _ => false,
    });
    let files: Vec<&StatePart> = files.collect();
    let reader = Reader::new(output, files.iter().copied());
    let read = |part: &&StatePart, give: &mut dyn FnMut(StoredGroup<'_>)| reader.groups(part, give);
    PairCounts::read(&files, read, [before, n_codes], &is_mine, differences)?
        .context("the counts of pairs in the state are not what was written")
}

fn n_codes_of(part: &StatePart) -> Option<usize> {
    match part.kind {
        StateKind::PairItems { n_codes } => Some(n_codes as usize),
        _ => None,
    }
}

/// What is wrong with the counts in a state, if there are any: all pairs of its histories are counted again.
/// `advance` is told of the bytes of each part.
pub(in crate::run) fn problem(
    output: &Output,
    state: &StateManifest,
    advance: &dyn Fn(u64),
) -> Result<Option<String>> {
    let are_counts = |part: &&StatePart| matches!(part.kind, StateKind::PairCounts { .. });
    let of_pairs = state.parts.iter().filter(|part| part.is_of_pairs());
    let reader = Reader::new(output, of_pairs.filter(|part| !are_counts(part)));
    let (mut n_codes, mut differences) = (None, Vec::new());
    for part in state.parts.iter().filter(|part| part.is_of_pairs()) {
        match part.kind {
            StateKind::PairItems { n_codes: end } => {
                reader.items(part, Ids::new(state.item_id_type), end as usize)?;
                n_codes = Some(end as usize);
            }
            StateKind::PairUsers { .. } => {
                let users = Ids::new(state.user_id_type);
                let coded = reader.shard(Some(part), (users, CODES_MAX))?;
                let none = Coded::empty(&coded.users);
                let codes = |row| coded.of(row).iter().copied();
                differences.push(Changes::since(&none, &coded.users, codes).1.differences);
            }
            _ => continue,
        }
        advance(part.file.bytes);
    }
    let Some(n_codes) = n_codes else { return Ok(None) };
    let mut counted = PairCounts::new();
    counted.grow(n_codes, |_| true);
    batches(differences.into_iter()).for_each(|batch| counted.add(&batch));
    let found = counts(output, &state.parts, n_codes, |_| true, &Differences::default())?;
    let of_counts = state.parts.iter().filter(are_counts);
    advance(of_counts.map(|part| part.file.bytes).sum());
    Ok((found != counted)
        .then(|| "the counts of pairs are not those of their histories".to_owned()))
}

struct Reader {
    parts: StateParts,
}

impl Reader {
    fn new<'p>(output: &Output, parts: impl IntoIterator<Item = &'p StatePart>) -> Self {
        Self { parts: output.read_state_parts(parts) }
    }

    fn batches(&self, part: &StatePart) -> Result<Vec<arrow::array::RecordBatch>> {
        Ok(self.parts.batches(part, BATCH_ROWS)?.collect::<Result<_, _>>()?)
    }

    fn items(&self, part: &StatePart, mut ids: Ids, n_codes: usize) -> Result<Codes> {
        let mut keys = Vec::new();
        for batch in self.batches(part)? {
            read_keys(&batch, &mut keys, &mut ids)?;
        }
        let is_below_end = keys.last().is_none_or(|&last| (last as usize) < n_codes);
        let codes = Codes::new(&ids, keys.iter().map(|&key| key as u16).collect(), n_codes);
        let are_distinct = keys.is_sorted_by(|a, b| a < b) && codes.items.ids().len() == keys.len();
        if n_codes > CODES_MAX || !are_distinct || !is_below_end {
            bail!("\"{}\" cannot be used: it numbers items otherwise", part.file.path);
        }
        Ok(codes)
    }

    fn shard(&self, part: Option<&StatePart>, (users, n_codes): (Ids, usize)) -> Result<Coded> {
        let mut coded = Coded { users, ends: Vec::new(), codes: Vec::new() };
        let Some(part) = part else { return Ok(coded) };
        for batch in self.batches(part)? {
            read_histories(&batch, (&mut coded.users, &mut coded.ends, &mut coded.codes))?;
        }
        if coded.codes.iter().any(|&code| usize::from(code) >= n_codes) {
            bail!("\"{}\" cannot be used: it has items without a number", part.file.path);
        }
        Ok(coded)
    }

    fn groups(&self, part: &StatePart, give: &mut dyn FnMut(StoredGroup<'_>)) -> Result<()> {
        for batch in self.batches(part)? {
            read_pair_counts(&batch, |(first, ends, words)| {
                give(StoredGroup { first, ends, words })
            })?;
        }
        Ok(())
    }
}

/// Writes what this process keeps.
pub(super) fn write(
    worker: &Worker<'_>,
    output: &Output,
    kept: &KeptPairs,
    dictionary: &Ids,
) -> Result<Vec<StatePart>> {
    let writer = Writer { job: worker.job, output };
    let mine = prepare::owned_shards(worker);
    worker.pool.install(|| {
        let shards = mine.par_iter().zip(&kept.shards).with_max_len(1);
        let users = shards.filter(|(_, coded)| !coded.users.is_empty());
        let users = users.map(|(&shard, coded)| writer.users(shard, coded));
        let mut parts = users.collect::<Result<Vec<StatePart>>>()?;
        let groups: Vec<_> = kept.counts().groups().collect();
        let n_shards = writer.job.plan.n_shards;
        let counts = (0..n_shards).into_par_iter().with_max_len(1).filter_map(|shard| {
            let of_shard = groups.iter().filter(|group| file_of(group.first, n_shards) == shard);
            let of_shard: Vec<_> =
                of_shard.map(|&StoredGroup { first, ends, words }| (first, ends, words)).collect();
            (!of_shard.is_empty()).then(|| writer.counts(shard, &of_shard))
        });
        parts.extend(counts.collect::<Result<Vec<StatePart>>>()?);
        if worker.shell.index == 0 {
            parts.push(writer.items(&kept.codes, dictionary)?);
        }
        Ok(parts)
    })
}

struct Writer<'a> {
    job: &'a Job<'a>,
    output: &'a Output,
}

impl Writer<'_> {
    /// Those that some row has; others may be of items that are to be gone.
    fn items(&self, codes: &Codes, dictionary: &Ids) -> Result<StatePart> {
        let id_type = self.job.plan.item_id_type;
        let schema = key_schema(id_type);
        let mut file = TableFile::of_state(&schema, &["key"], &["key"])?;
        let ids = codes.items.ids();
        let is_there = |place: &usize| dictionary.find_sorted(ids.get(*place)).is_some();
        let mut places: Vec<usize> = (0..ids.len()).filter(is_there).collect();
        places.sort_unstable_by_key(|&place| codes.codes[place]);
        for places in places.chunks(BATCH_ROWS) {
            let keys: Vec<u32> = places.iter().map(|&place| codes.codes[place].into()).collect();
            file.write(&key_batch(&keys, &ids.take(places.iter().copied()), id_type)?)?;
        }
        self.put(StateKind::PairItems { n_codes: codes.end as u32 }, file)
    }

    fn users(&self, shard: u32, coded: &Coded) -> Result<StatePart> {
        let id_type = self.job.plan.user_id_type;
        let mut file = TableFile::of_state(&history_schema(id_type), &["id"], &[])?;
        for start in (0..coded.users.len()).step_by(BATCH_ROWS) {
            let rows = start..coded.users.len().min(start + BATCH_ROWS);
            let ids = coded.users.take(rows.clone());
            file.write(&history_batch(&ids, rows.map(|row| coded.of(row)), id_type)?)?;
        }
        self.put(StateKind::PairUsers { shard }, file)
    }

    fn counts(&self, shard: u32, groups: &[PairGroup<'_>]) -> Result<StatePart> {
        let schema = pair_count_schema();
        let mut file = TableFile::of_state(&schema, &["group"], &["words"])?;
        file.write(&pair_count_batch(groups)?)?;
        self.put(StateKind::PairCounts { shard }, file)
    }

    fn put(&self, kind: StateKind, file: TableFile) -> Result<StatePart> {
        Ok(self.output.put_state_part(kind, self.job.run_id, file)?)
    }
}
