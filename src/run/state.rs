//! Incremental runs: what this run takes from the state of the last, and what it keeps for the next.
//!
//! State holds every row of the logs that counts, by user, with a number that tells its file. Everything
//! that follows the scan sees rows, wherever they came from, so an incremental run cannot give other bytes
//! than a full one: only what has to be read is different.

mod check;
mod load;
mod save;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::counts::ScanCounts;
use super::scan::{DELETED_ITEM, DELETED_USER};
use super::side::Deleted;
use super::{one_line, sha256_hex};
use crate::job::plan::{FilePlan, Plan};
use crate::store::{Output, STATE_FORMAT, StateInput, StateManifest};
use crate::types::IdRef;
pub use check::{StateCheck, check_state};
pub(super) use load::{Stored, StoredUsers, load};
pub(super) use save::save;

/// What process 0 found before the run began; in all processes alike.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StatePlan {
    /// Digest of all that decides what rows mean, but the number of shards.
    meaning: String,
    /// The generation to go on from.
    base: Option<StateManifest>,
    from: StateUse,
}

/// How a run uses the state of the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StateUse {
    /// Goes on from it, and adds a run of rows to each shard that changed.
    #[default]
    Add,
    /// Goes on from it, and writes every shard anew as one run.
    Compact,
    /// Reads all files, and writes every shard anew.
    Rebuild,
}

impl StatePlan {
    /// Looks for a state that fits the plan, and takes over its number of shards where the spec leaves
    /// it open. `None` for a job that is not incremental.
    ///
    /// A state that cannot be read is a warning: the run reads all files then.
    pub(super) fn find(output: &Output, plan: &mut Plan, from: StateUse) -> Option<Self> {
        if !plan.spec.is_incremental() {
            return None;
        }
        let (meaning, shards) = (meaning(plan), plan.spec.shards);
        if from == StateUse::Rebuild {
            return Some(Self { meaning, base: None, from });
        }
        let found = output.read_log().and_then(|log| {
            output.find_state(&log, |state, of_state| {
                state.meaning == meaning && shards.is_none_or(|shards| shards == of_state)
            })
        });
        let base = found.unwrap_or_else(|error| {
            tracing::warn!(
                error = one_line(&error),
                "no state can be read; this run reads all files"
            );
            None
        });
        let base = base.map(|(_, state)| state);
        if let Some(base) = &base {
            plan.n_shards = base.shards;
        }
        Some(Self { meaning, base, from })
    }
}

impl StatePlan {
    /// The generation to go on from.
    pub(super) fn base(&self) -> Option<&StateManifest> {
        self.base.as_ref()
    }

    /// The same, if nobody is to be gone now who was there, or the other way round.
    pub(super) fn base_with_the_same_left_out(
        &self,
        state: &StateManifest,
    ) -> Option<&StateManifest> {
        self.base().filter(|base| base.left_out == state.left_out)
    }

    /// Whether all is written anew.
    pub(super) fn writes_all(&self) -> bool {
        self.from != StateUse::Add
    }
}

/// Digest of all that decides what the rows of the state mean, but the number of shards.
fn meaning(plan: &Plan) -> String {
    let denied = plan.side_tables.deny_users.iter();
    let denied: Vec<_> = denied.map(|file| (&file.url, file.bytes, &file.etag)).collect();
    let decisive = json!({
        "format": STATE_FORMAT,
        "events": plan.spec.with_defaults().events,
        "time_zone": plan.spec.time_zone,
        "denied_users": denied,
        "sample_users": plan.sample_users,
        "user_id_type": plan.user_id_type,
        "item_id_type": plan.item_id_type,
    });
    sha256_hex(decisive.to_string().as_bytes())
}

/// The files of the plan beside those of the state.
pub(super) struct Files {
    /// By log and file: the number that its rows carry.
    numbers: Vec<Vec<u32>>,
    /// By log and file: whether its rows come from the state.
    kept: Vec<Vec<bool>>,
    /// Numbers of files that are gone, or there in another version.
    gone: BTreeSet<u32>,
}

impl Files {
    fn new(plan: &Plan, base: Option<&StateManifest>, left_out: &[u64]) -> Self {
        let known = base.map_or(&[][..], |base| &base.inputs);
        // Who is no longer to be gone is read again, with the files that held them.
        let comes_back = base.is_some_and(|base| {
            base.left_out.iter().any(|mark| left_out.binary_search(mark).is_err())
        });
        let of_file: BTreeMap<(u32, &str), &StateInput> =
            known.iter().map(|input| ((input.log, input.url.as_str()), input)).collect();
        let mut next = known.iter().map(|input| input.number + 1).max().unwrap_or(0);
        let mut files = Self { numbers: Vec::new(), kept: Vec::new(), gone: BTreeSet::new() };
        files.gone = known.iter().map(|input| input.number).collect();
        for (log, source) in plan.sources.iter().enumerate() {
            let (mut numbers, mut kept) = (Vec::new(), Vec::new());
            for file in &source.files {
                let input = of_file.get(&(log as u32, file.url.as_str()));
                let is_whole = |input: &StateInput| !comes_back || !has_left_out(input);
                let is_same = input.is_some_and(|input| is_same(file, input) && is_whole(input));
                let number = input.map_or(next, |input| input.number);
                next = next.max(number + 1);
                if is_same {
                    files.gone.remove(&number);
                }
                numbers.push(number);
                kept.push(is_same);
            }
            files.numbers.push(numbers);
            files.kept.push(kept);
        }
        files
    }

    /// Whether at least half of the rows that a state was made of are of files that are as they were.
    fn keep_most(&self, base: &StateManifest) -> bool {
        let rows = |input: &StateInput| input.counts["rows"].as_u64().unwrap_or(0);
        let (gone, kept): (Vec<_>, Vec<_>) =
            base.inputs.iter().partition(|input| self.gone.contains(&input.number));
        let sum = |inputs: Vec<&StateInput>| inputs.into_iter().map(rows).sum::<u64>();
        sum(gone) <= sum(kept)
    }

    /// Whether the rows of a file come from the state.
    pub(super) fn is_kept(&self, log: usize, file: usize) -> bool {
        self.kept[log][file]
    }

    /// The number that the rows of a file carry.
    pub(super) fn number(&self, log: usize, file: usize) -> u32 {
        self.numbers[log][file]
    }

    /// Rows of the files that have to be read.
    pub(super) fn rows_to_read(&self, plan: &Plan) -> u64 {
        let logs = plan.sources.iter().enumerate();
        let files = logs.flat_map(|(log, source)| {
            source.files.iter().enumerate().map(move |(at, file)| (log, at, file))
        });
        files.filter(|(log, at, _)| !self.kept[*log][*at]).map(|(_, _, file)| file.rows()).sum()
    }
}

/// Whether a file is the version whose rows the state holds. One without a version never is.
fn is_same(file: &FilePlan, input: &StateInput) -> bool {
    file.etag.is_some() && file.etag == input.etag && file.bytes == input.bytes
}

/// Whether rows of a file are not in the state as they were to be gone.
fn has_left_out(input: &StateInput) -> bool {
    let filtered = &input.counts["filtered"];
    [DELETED_USER, DELETED_ITEM].iter().any(|reason| filtered[*reason].as_u64().unwrap_or(0) > 0)
}

/// Marks of what is to be gone, sorted; they differ from job to job.
fn marks(meaning: &str, deleted: &Deleted) -> Vec<u64> {
    let seed = |kind: &str| IdRef::Bytes(format!("{kind} {meaning}").as_bytes()).stable_hash(0);
    let of = |digests: &HashSet<u128>, seed: u64| -> Vec<u64> {
        let mark = |digest: &u128| IdRef::Bytes(&digest.to_le_bytes()).stable_hash(seed);
        digests.iter().map(mark).collect()
    };
    let mut marks = of(&deleted.users, seed("user"));
    marks.extend(of(&deleted.items, seed("item")));
    marks.sort_unstable();
    marks
}

/// Rows of the state that are to be gone, by number of their file: of users, and of items.
type LeftOut = BTreeMap<u32, [u64; 2]>;

/// What this run goes on from.
pub(super) struct Base {
    meaning: String,
    from: StateUse,
    /// The generation whose rows are taken over; none where all files are read.
    manifest: Option<StateManifest>,
    /// The files of the plan.
    pub(super) files: Files,
    /// Marks of what is to be gone.
    marks: Vec<u64>,
    /// Rows that the last run kept and this one does not, over all processes.
    left_out: LeftOut,
}

impl Base {
    /// Adds what became of those rows of the kept files that are not in the state.
    pub(super) fn add_counts(&self, counts: &mut ScanCounts) -> Result<()> {
        let kept = self.manifest.iter().flat_map(|base| &base.inputs);
        for input in kept.filter(|input| !self.files.gone.contains(&input.number)) {
            counts.merge(&self.counts_of(input)?);
        }
        Ok(())
    }

    /// What became of the rows of a kept file that this run's state does not hold.
    fn counts_of(&self, input: &StateInput) -> Result<ScanCounts> {
        let mut counts: ScanCounts = serde_json::from_value(input.counts.clone())?;
        let [users, items] = self.left_out.get(&input.number).copied().unwrap_or_default();
        counts.filter(DELETED_USER, users);
        counts.filter(DELETED_ITEM, items);
        Ok(counts)
    }
}
