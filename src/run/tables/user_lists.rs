//! The lists of users: computed in waves, audited, written shard by shard.

use std::ops::Range;

use anyhow::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Batches, Tables, column};
use crate::job::spec::Shape;
use crate::run::Worker;
use crate::run::earlier_lists::{EarlierList, ShardLists};
use crate::run::lists::{ListInputs, UserList};
use crate::run::prepare::Prepared;
use crate::schema::{IdRows, OptionalIdRows, Source, UserTopKListRows, UserTopKRows, tables};
use crate::store::PublishedFile;
use crate::types::Histories;

/// Users whose lists are in memory at a time: whole blocks.
const USERS_PER_WAVE: usize = 84 * USERS_PER_BLOCK;

impl Tables<'_> {
    /// `user_top_k`, or its other shape: one file per shard of this process.
    ///
    /// Many shards are computed side by side; of few shards the users are.
    pub(in crate::run) fn user_lists(
        &self,
        worker: &Worker<'_>,
        prepared: &Prepared,
        inputs: &ListInputs<'_>,
    ) -> Result<(Vec<PublishedFile>, ListCounts)> {
        let shards = &prepared.shards;
        let n_shards = worker.job.plan.n_shards;
        let observer = worker.job.observer;
        let many = shards.len() >= 2 * worker.pool.current_num_threads();
        let of_shard = |shard: &Histories| {
            let written = match inputs.top_k.shape {
                Shape::Rows => self.lists_as_rows(shard, prepared, inputs, many, n_shards),
                Shape::Lists => self.lists_as_lists(shard, prepared, inputs, many, n_shards),
            };
            observer.advance(shard.n_users() as u64);
            written
        };
        let written: Result<Vec<_>> = worker.pool.install(|| match many {
            true => shards.par_iter().with_max_len(1).map(of_shard).collect(),
            false => shards.iter().map(of_shard).collect(),
        });
        let (files, counts): (Vec<_>, Vec<ListCounts>) = written?.into_iter().unzip();
        Ok((files.concat(), counts.into_iter().fold(ListCounts::default(), ListCounts::plus)))
    }

    fn lists_as_rows(
        &self,
        shard: &Histories,
        prepared: &Prepared,
        inputs: &ListInputs<'_>,
        sequential: bool,
        n_shards: u32,
    ) -> Result<(Vec<PublishedFile>, ListCounts)> {
        let mut file = self.start(&tables::USER_TOP_K)?;
        let mut batches = Batches::new(|rows: &[ListRow]| {
            let batch = UserTopKRows {
                user: IdRows { ids: &shard.user_ids, rows: column(rows, |row| row.user) },
                rank: column(rows, |row| row.rank),
                item: IdRows { ids: &prepared.item_ids, rows: column(rows, |row| row.item) },
                score: column(rows, |row| row.score),
                source: column(rows, |row| row.source),
                because_item: OptionalIdRows {
                    ids: &prepared.item_ids,
                    rows: column(rows, |row| row.because),
                },
            };
            Ok(file.write(&batch.into_batch(self.ids)?)?)
        });
        let counts = each_list(shard, inputs, sequential, |user, list| {
            list_rows(inputs, user, list).try_for_each(|row| batches.push(row))
        })?;
        batches.finish()?;
        Ok((self.put_of_shard(&tables::USER_TOP_K, file, shard, n_shards)?, counts))
    }

    fn lists_as_lists(
        &self,
        shard: &Histories,
        prepared: &Prepared,
        inputs: &ListInputs<'_>,
        sequential: bool,
        n_shards: u32,
    ) -> Result<(Vec<PublishedFile>, ListCounts)> {
        let mut file = self.start(&tables::USER_TOP_K_LISTS)?;
        let mut batches = Batches::new(|lists: &[(u32, Vec<ListRow>)]| {
            let rows: Vec<ListRow> = lists.iter().flat_map(|(_, rows)| rows).copied().collect();
            let batch = UserTopKListRows {
                user: IdRows { ids: &shard.user_ids, rows: column(lists, |list| list.0) },
                list_lengths: lists.iter().map(|(_, rows)| rows.len()).collect(),
                item: IdRows { ids: &prepared.item_ids, rows: column(&rows, |row| row.item) },
                score: column(&rows, |row| row.score),
                source: column(&rows, |row| row.source),
                because_item: OptionalIdRows {
                    ids: &prepared.item_ids,
                    rows: column(&rows, |row| row.because),
                },
            };
            Ok(file.write(&batch.into_batch(self.ids)?)?)
        });
        let counts = each_list(shard, inputs, sequential, |user, list| {
            batches.push((user, list_rows(inputs, user, list).collect()))
        })?;
        batches.finish()?;
        Ok((self.put_of_shard(&tables::USER_TOP_K_LISTS, file, shard, n_shards)?, counts))
    }
}

/// How well lists were filled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::run) struct ListCounts {
    /// Entries of all lists.
    pub(in crate::run) rows: u64,
    /// Entries that no ranker put there.
    pub(in crate::run) fallback_rows: u64,
    /// Lists shorter than `k`.
    pub(in crate::run) short_lists: u64,
    /// Lists that stay from the generation before, beside what lists may hold since.
    #[serde(default)]
    pub(in crate::run) kept: u64,
    /// Whether some list has the item, by its index, where there are lists.
    #[serde(with = "as_runs")]
    pub(in crate::run) recommended: Vec<bool>,
}

impl ListCounts {
    fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            fallback_rows: self.fallback_rows + other.fallback_rows,
            short_lists: self.short_lists + other.short_lists,
            kept: self.kept + other.kept,
            recommended: either(self.recommended, other.recommended),
        }
    }

    /// Those of all processes.
    pub(in crate::run) fn over_processes(self, worker: &mut Worker<'_>) -> Result<Self> {
        let collectives = &mut worker.shell.collectives;
        let local = [self.rows, self.fallback_rows, self.short_lists, self.kept];
        let sums = collectives.all_reduce_sum(local.map(|count| count as i64).to_vec())?;
        let flags: Vec<u8> = self.recommended.into_iter().map(u8::from).collect();
        let recommended = collectives.all_gather(flags.into()).into_iter();
        let recommended = recommended.map(|flags| flags.iter().map(|flag| *flag != 0).collect());
        let [rows, fallback_rows, short_lists, kept] = [0, 1, 2, 3].map(|of| sums[of] as u64);
        Ok(Self {
            rows,
            fallback_rows,
            short_lists,
            kept,
            recommended: recommended.fold(Vec::new(), either),
        })
    }

    fn add(&mut self, inputs: &ListInputs<'_>, list: &UserList) {
        let fallback =
            list.entries.iter().filter(|entry| inputs.source(entry.source) == Source::Fallback);
        self.rows += list.entries.len() as u64;
        self.fallback_rows += fallback.count() as u64;
        self.short_lists += u64::from(list.entries.len() < inputs.top_k.k);
        self.recommended.resize(inputs.recommendable.len(), false);
        list.entries.iter().for_each(|entry| self.recommended[entry.item.index()] = true);
    }
}

/// Flags as the lengths of runs of equal ones, of which the first, maybe empty, is of `false`.
mod as_runs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(flags: &[bool], to: S) -> Result<S::Ok, S::Error> {
        let first = (flags.first() == Some(&true)).then_some(0);
        let runs = flags.chunk_by(|a, b| a == b).map(<[bool]>::len);
        first.into_iter().chain(runs).collect::<Vec<usize>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<bool>, D::Error> {
        let runs = Vec::<usize>::deserialize(from)?;
        let flags = runs.into_iter().zip([false, true].into_iter().cycle());
        Ok(flags.flat_map(|(n, flag)| std::iter::repeat_n(flag, n)).collect())
    }
}

/// Where one of the two is true; both are of one length, or empty.
fn either(mut a: Vec<bool>, b: Vec<bool>) -> Vec<bool> {
    if a.is_empty() {
        return b;
    }
    a.iter_mut().zip(b).for_each(|(a, b)| *a |= b);
    a
}

/// Users whose products with all items are computed together: whole groups of 6 and of 12.
const USERS_PER_BLOCK: usize = 96;

/// Computes the lists of a shard wave by wave and gives them in order of the users.
fn each_list(
    shard: &Histories,
    inputs: &ListInputs<'_>,
    sequential: bool,
    mut give: impl FnMut(u32, UserList) -> Result<()>,
) -> Result<ListCounts> {
    let mut counts = ListCounts::default();
    let earlier = inputs.earlier.as_ref().map(|earlier| earlier.of_shard(shard)).transpose()?;
    let wave = if sequential { 3 * USERS_PER_BLOCK } else { USERS_PER_WAVE };
    for start in (0..shard.n_users()).step_by(wave) {
        let users = start..shard.n_users().min(start + wave);
        let lists = lists_of(shard, inputs, earlier.as_ref(), users.clone(), sequential);
        for (user, list) in users.zip(lists) {
            audit(inputs, &list);
            counts.add(inputs, &list);
            give(user as u32, list)?;
        }
    }
    if let Some(earlier) = &earlier {
        let rows = 0..shard.n_users();
        counts.kept = rows.filter(|&row| !earlier.of(row).entries.is_empty()).count() as u64;
    }
    Ok(counts)
}

/// The lists of some users of a shard.
fn lists_of(
    shard: &Histories,
    inputs: &ListInputs<'_>,
    earlier: Option<&ShardLists>,
    users: Range<usize>,
    sequential: bool,
) -> Vec<UserList> {
    let earlier = |row: usize| earlier.map_or(EarlierList::default(), |of| of.of(row));
    // Users whose lists are made anew stand together, as products take those of a block at once.
    let mut order: Vec<usize> = users.clone().collect();
    order.sort_by_key(|&row| !earlier(row).entries.is_empty());
    let of_block = |rows: &[usize]| -> Vec<UserList> {
        let earlier: Vec<EarlierList<'_>> = rows.iter().map(|&row| earlier(row)).collect();
        let multiplied = inputs.multiplied(shard, rows, &earlier);
        let users = rows.iter().zip(multiplied).zip(earlier);
        users.map(|((&row, items), earlier)| inputs.list(shard, row, &items, earlier)).collect()
    };
    let of_blocks: Vec<Vec<UserList>> = match sequential {
        true => order.chunks(USERS_PER_BLOCK).map(of_block).collect(),
        false => order.par_chunks(USERS_PER_BLOCK).map(of_block).collect(),
    };
    let mut lists: Vec<UserList> = users.clone().map(|_| UserList::default()).collect();
    for (row, list) in order.into_iter().zip(of_blocks.into_iter().flatten()) {
        lists[row - users.start] = list;
    }
    lists
}

/// What no published list may violate, whatever the models did.
///
/// # Panics
/// If a list is too long, its scores rise or are not finite, or it holds an item twice or one that
/// may not be recommended.
fn audit(inputs: &ListInputs<'_>, list: &UserList) {
    assert!(list.entries.len() <= inputs.top_k.k, "a list is longer than k");
    assert!(list.entries.iter().all(|entry| entry.score.is_finite()), "a score is not finite");
    assert!(list.entries.is_sorted_by(|a, b| a.score >= b.score), "scores rise along a list");
    assert!(
        list.entries.iter().all(|entry| inputs.recommendable[entry.item.index()]),
        "a list holds an item that may not be recommended"
    );
}

#[derive(Clone, Copy)]
struct ListRow {
    user: u32,
    rank: i32,
    item: u32,
    score: f32,
    source: Source,
    because: Option<u32>,
}

fn list_rows(inputs: &ListInputs<'_>, user: u32, list: UserList) -> impl Iterator<Item = ListRow> {
    let ranked = (1..).zip(list.entries).zip(list.because);
    ranked.map(move |((rank, entry), because)| ListRow {
        user,
        rank,
        item: entry.item.0,
        score: entry.score,
        source: inputs.source(entry.source),
        because: because.map(|item| item.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_lists_come_back_from_json() {
        for bits in 0..64_u32 {
            let recommended = (0..bits % 7).map(|bit| bits >> bit & 1 == 1).collect();
            let counts =
                ListCounts { rows: 9, fallback_rows: 2, short_lists: 1, kept: 3, recommended };
            let json = serde_json::to_string(&counts).unwrap();
            assert_eq!(serde_json::from_str::<ListCounts>(&json).unwrap(), counts, "{json}");
        }
    }
}
