//! Reading the state of a generation through.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::Serialize;

use super::load::summed;
use crate::kernels::event_rows::Packed;
use crate::run::pair_counts;
use crate::schema::state::{read_keys, read_rows};
use crate::store::{BATCH_ROWS, Output, StateKind, StateManifest, StatePart, StateParts};
use crate::types::{Ids, LogRow};

/// What a state holds, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StateCheck {
    /// Rows of the logs, equal ones included.
    pub rows: u64,
    /// Users with a key.
    pub users: u64,
    /// Items with a key.
    pub items: u64,
    /// What cannot be in a state that this program wrote, a line each.
    pub problems: Vec<String>,
}

/// Reads all parts of a state and holds them against each other. `advance` is told of the bytes of each.
///
/// # Errors
/// When a part cannot be read. What does not fit is a problem, no error.
pub fn check_state(
    output: &Output,
    state: &StateManifest,
    advance: &dyn Fn(u64),
) -> Result<StateCheck> {
    let of_rows = state.parts.iter().filter(|part| !part.is_of_pairs());
    let parts = output.read_state_parts(of_rows);
    let mut check = Checker { parts, state, advance, found: StateCheck::default() };
    let items = check.keys(|part| part.kind == StateKind::Items, state.item_id_type)?;
    check.expect(items.last().is_none_or(|&last| last < state.n_items), || {
        format!("items have keys from {} on", state.n_items)
    });
    check.found.items = items.len() as u64;
    for shard in 0..state.shards {
        check.shard(shard, &items)?;
    }
    check.found.problems.extend(pair_counts::problem(output, state, advance)?);
    Ok(check.found)
}

struct Checker<'a> {
    parts: StateParts,
    state: &'a StateManifest,
    advance: &'a dyn Fn(u64),
    found: StateCheck,
}

impl Checker<'_> {
    fn expect(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.found.problems.push(problem());
        }
    }

    /// The keys in some parts, each of which must be there once, as must its id.
    fn keys(
        &mut self,
        is_wanted: impl Fn(&StatePart) -> bool,
        id_type: crate::types::IdType,
    ) -> Result<BTreeSet<u32>> {
        let (mut keys, mut ids) = (Vec::new(), Ids::new(id_type));
        for part in self.state.parts.iter().filter(|part| is_wanted(part)) {
            for batch in self.parts.batches(part, BATCH_ROWS)? {
                read_keys(&batch?, &mut keys, &mut ids)
                    .with_context(|| format!("\"{}\" cannot be used", part.file.path))?;
            }
            (self.advance)(part.file.bytes);
        }
        let distinct: BTreeSet<u32> = keys.iter().copied().collect();
        let n_distinct_ids = ids.sorted_unique().len();
        self.expect(distinct.len() == keys.len() && n_distinct_ids == keys.len(), || {
            "a key or an id is there twice".to_owned()
        });
        Ok(distinct)
    }

    fn shard(&mut self, shard: u32, items: &BTreeSet<u32>) -> Result<()> {
        let state = self.state;
        let users = self.keys(|part| part.is_users_of(shard), state.user_id_type)?;
        self.found.users += users.len() as u64;
        let n_users = state.n_users[shard as usize];
        self.expect(users.last().is_none_or(|&last| last < n_users), || {
            format!("shard {shard} has keys of users from {n_users} on")
        });
        let mut all = Vec::new();
        for part in state.parts.iter().filter(|part| part.is_rows_of(shard)) {
            let rows = self.rows(part)?;
            let is_sorted = rows.is_sorted_by_key(|(row, copies)| (-copies, *row));
            self.expect(is_sorted && rows.len() as u64 == part.log_rows(), || {
                format!("the rows of \"{}\" are not sorted, or others are there", part.file.path)
            });
            all.extend(rows);
        }
        let numbers: BTreeSet<u32> = state.inputs.iter().map(|input| input.number).collect();
        for (row, copies) in summed(all) {
            self.found.rows += copies.max(0) as u64;
            let fits = copies > 0
                && users.contains(&row.user)
                && items.contains(&row.item)
                && numbers.contains(&row.file);
            self.expect(fits, || format!("shard {shard}: {row:?} is there {copies} times"));
        }
        Ok(())
    }

    fn rows(&self, part: &StatePart) -> Result<Vec<(LogRow, i64)>> {
        let mut all = Vec::new();
        for batch in self.parts.batches(part, BATCH_ROWS)? {
            let batch = batch?;
            let blocks = read_rows(&batch)
                .with_context(|| format!("\"{}\" cannot be used", part.file.path))?;
            for (copies, block) in blocks {
                Packed::new(block).each_stored_row(|row| all.push((row, i64::from(copies))));
            }
        }
        (self.advance)(part.file.bytes);
        Ok(all)
    }
}
