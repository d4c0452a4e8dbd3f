//! The tables beside the logs: titles, filters and segments, and the deny lists.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, RecordBatch};

use super::{Refused, input_file};
use crate::job::plan::{FilePlan, Plan};
use crate::job::spec::{FilterValue, IdList, Items, Spec};
use crate::schema::{self, IdColumn};
use crate::store::{self, IoRuntime, Location};
use crate::types::{IdRef, IdType, Ids, shard_of};

/// What `[items]` and `[deny] items` say, per id of the dictionary.
pub(super) struct ItemFacts {
    /// Title, where there is one.
    pub(super) titles: Vec<Option<String>>,
    /// Whether lists may hold the item.
    pub(super) recommendable: Vec<bool>,
    /// Whether `[items]` has the item and allows it.
    pub(super) in_catalog: Vec<bool>,
    /// Items that `[items]` has and allows, those without an event included.
    pub(super) n_catalog: u64,
}

/// What `[users]` says of the users of this process.
#[derive(Default)]
pub(super) struct Segments {
    /// Names in sorted order.
    pub(super) names: Vec<String>,
    of_user: HashMap<u128, u32>,
}

impl Segments {
    /// The segment of a user, `u32::MAX` for none.
    pub(super) fn of(&self, user: IdRef<'_>) -> u32 {
        self.of_user.get(&user.digest()).copied().unwrap_or(u32::MAX)
    }
}

/// Opens the files of a side table as the plan froze them, and gives their rows batch by batch.
fn each_batch(
    runtime: &IoRuntime,
    url: &str,
    base: &Path,
    files: &[FilePlan],
    columns: &[&str],
    mut take: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let location = Location::open(runtime, url, base)?;
    for file in files {
        for batch in store::read_all(&location, &input_file(file), Some(columns))? {
            take(&batch).with_context(|| format!("\"{}\" cannot be used", file.url))?;
        }
    }
    Ok(())
}

/// Ids of side tables must be of the log's kind, or nothing would ever match.
fn check_kind(what: &str, ids: &IdColumn, of_log: IdType) -> Result<()> {
    if ids.id_type().widen(of_log).is_some() {
        return Ok(());
    }
    Err(Refused::bad_data(anyhow!(
        "{what} ids are {:?} here and {of_log:?} in the log; cast one of them upstream",
        ids.id_type()
    )))
}

/// Reads titles and filters for the ids of the dictionary.
pub(super) fn items(
    runtime: &IoRuntime,
    plan: &Plan,
    base: &Path,
    dictionary: &Ids,
) -> Result<ItemFacts> {
    let filtered = plan.spec.items.as_ref().is_some_and(|items| !items.recommend_where.is_empty());
    let mut facts = ItemFacts {
        titles: vec![None; dictionary.len()],
        recommendable: vec![!filtered; dictionary.len()],
        in_catalog: vec![false; dictionary.len()],
        n_catalog: 0,
    };
    // Digests of what the catalog allows and the log does not know.
    let mut unknown: HashSet<u128> = HashSet::new();
    if let Some(items) = &plan.spec.items {
        let mut columns = vec![items.columns.item.as_str()];
        columns.extend(items.columns.title.as_deref());
        columns.extend(items.recommend_where.keys().map(String::as_str));
        columns.sort_unstable();
        columns.dedup();
        let wanted: BTreeMap<&str, Vec<String>> = items
            .recommend_where
            .iter()
            .map(|(column, values)| (column.as_str(), values.0.iter().map(text).collect()))
            .collect();
        let files = &plan.side_tables.items;
        each_batch(runtime, &items.url, base, files, &columns, |batch| {
            item_batch(batch, items, &wanted, plan, dictionary, &mut facts, &mut unknown)
        })?;
    }
    if let Some(list) = plan.spec.deny.as_ref().and_then(|deny| deny.items.as_ref()) {
        let files = &plan.side_tables.deny_items;
        each_batch(runtime, &list.url, base, files, &[&list.column], |batch| {
            let ids = schema::id_column(batch, &list.column)?;
            check_kind("item", &ids, plan.item_id_type)?;
            for id in (0..ids.len()).filter_map(|row| ids.get_opt(row)) {
                match dictionary.find_sorted(id) {
                    Some(rank) => {
                        facts.recommendable[rank] = false;
                        facts.in_catalog[rank] = false;
                    }
                    None => drop(unknown.remove(&id.digest())),
                }
            }
            Ok(())
        })?;
    }
    let known = facts.in_catalog.iter().filter(|is_in| **is_in).count();
    facts.n_catalog = (known + unknown.len()) as u64;
    Ok(facts)
}

fn item_batch(
    batch: &RecordBatch,
    items: &Items,
    wanted: &BTreeMap<&str, Vec<String>>,
    plan: &Plan,
    dictionary: &Ids,
    facts: &mut ItemFacts,
    unknown: &mut HashSet<u128>,
) -> Result<()> {
    let ids = schema::id_column(batch, &items.columns.item)?;
    check_kind("item", &ids, plan.item_id_type)?;
    let title = items.columns.title.as_deref();
    let titles = title.map(|title| schema::text_column(batch, title)).transpose()?;
    let mut filters = Vec::new();
    for (column, values) in wanted {
        filters.push((schema::text_column(batch, column)?, values));
    }
    for row in 0..ids.len() {
        let Some(id) = ids.get_opt(row) else { continue };
        let allowed = filters.iter().all(|(texts, values)| {
            !texts.is_null(row) && values.iter().any(|value| value == texts.value(row))
        });
        let Some(rank) = dictionary.find_sorted(id) else {
            if allowed {
                unknown.insert(id.digest());
            }
            continue;
        };
        if let Some(titles) = titles.as_ref().filter(|titles| !titles.is_null(row)) {
            // Of several rows for one item the smallest title counts, in whatever order they come.
            let title = titles.value(row);
            if facts.titles[rank].as_deref().is_none_or(|other| title < other) {
                facts.titles[rank] = Some(title.to_owned());
            }
        }
        facts.recommendable[rank] |= allowed;
        facts.in_catalog[rank] |= allowed;
    }
    Ok(())
}

/// Reads the segments of the users whose shards are `mine`; the names are those of all users.
pub(super) fn segments(
    runtime: &IoRuntime,
    plan: &Plan,
    base: &Path,
    mine: &[u32],
) -> Result<Segments> {
    let Some(users) = &plan.spec.users else { return Ok(Segments::default()) };
    let mine: HashSet<u32> = mine.iter().copied().collect();
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut of_user: HashMap<u128, String> = HashMap::new();
    let columns = [users.columns.user.as_str(), users.columns.segment.as_str()];
    each_batch(runtime, &users.url, base, &plan.side_tables.users, &columns, |batch| {
        let ids = schema::id_column(batch, columns[0])?;
        check_kind("user", &ids, plan.user_id_type)?;
        let segments = schema::text_column(batch, columns[1])?;
        for row in (0..ids.len()).filter(|&row| !segments.is_null(row)) {
            let Some(id) = ids.get_opt(row) else { continue };
            let segment = segments.value(row);
            if segment == schema::tables::EVERY_SEGMENT {
                return Err(Refused::bad_data(anyhow!(
                    "segment \"{segment}\" stands for every visitor; rename it upstream"
                )));
            }
            if !names.contains(segment) {
                names.insert(segment.to_owned());
            }
            if mine.contains(&shard_of(id, plan.n_shards)) {
                // Of several rows for one user the smallest name counts.
                let here = of_user.entry(id.digest()).or_insert_with(|| segment.to_owned());
                if segment < here.as_str() {
                    *here = segment.to_owned();
                }
            }
        }
        Ok(())
    })?;
    let names: Vec<String> = names.into_iter().collect();
    let of_user = of_user
        .into_iter()
        .map(|(user, name)| {
            (user, names.binary_search(&name).expect("every name was collected") as u32)
        })
        .collect();
    Ok(Segments { names, of_user })
}

/// Reads the users whose rows do not count, as digests.
pub(super) fn denied_users(runtime: &IoRuntime, plan: &Plan, base: &Path) -> Result<HashSet<u128>> {
    let list = plan.spec.deny.as_ref().and_then(|deny| deny.users.as_ref());
    let of =
        ListOf { list, files: &plan.side_tables.deny_users, kind: ("user", plan.user_id_type) };
    of.digests(runtime, base)
}

/// Users and items that are to be gone, as digests.
#[derive(Clone, Debug, Default)]
pub(super) struct Deleted {
    pub(super) users: HashSet<u128>,
    pub(super) items: HashSet<u128>,
}

/// Reads who and what is to be gone.
pub(super) fn deleted(runtime: &IoRuntime, plan: &Plan, base: &Path) -> Result<Deleted> {
    let lists = plan.spec.delete.as_ref();
    let users = ListOf {
        list: lists.and_then(|lists| lists.users.as_ref()),
        files: &plan.side_tables.delete_users,
        kind: ("user", plan.user_id_type),
    };
    let items = ListOf {
        list: lists.and_then(|lists| lists.items.as_ref()),
        files: &plan.side_tables.delete_items,
        kind: ("item", plan.item_id_type),
    };
    Ok(Deleted { users: users.digests(runtime, base)?, items: items.digests(runtime, base)? })
}

/// The ids that `[delete]` lists, as text: users, then items.
///
/// # Errors
/// A list that cannot be read.
pub fn listed_to_delete(
    runtime: &IoRuntime,
    spec: &Spec,
    base: &Path,
) -> Result<[BTreeSet<String>; 2]> {
    let lists = spec.delete.as_ref();
    let users = lists.and_then(|lists| lists.users.as_ref());
    let items = lists.and_then(|lists| lists.items.as_ref());
    let read = |list: Option<&IdList>| -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let Some(list) = list else { return Ok(found) };
        let location = Location::open(runtime, &list.url, base)?;
        for file in store::list_inputs(&location)?.files {
            for batch in store::read_all(&location, &file, Some(&[&list.column]))? {
                let ids = schema::id_column(&batch, &list.column)?;
                let ids =
                    (0..ids.len()).filter_map(|row| ids.get_opt(row).map(|id| id.to_string()));
                found.extend(ids);
            }
        }
        Ok(found)
    };
    Ok([read(users)?, read(items)?])
}

/// A list of ids, its files, and what the ids are of.
struct ListOf<'a> {
    list: Option<&'a IdList>,
    files: &'a [FilePlan],
    kind: (&'static str, IdType),
}

impl ListOf<'_> {
    fn digests(&self, runtime: &IoRuntime, base: &Path) -> Result<HashSet<u128>> {
        let mut digests = HashSet::new();
        let Some(list) = self.list else { return Ok(digests) };
        each_batch(runtime, &list.url, base, self.files, &[&list.column], |batch| {
            let ids = schema::id_column(batch, &list.column)?;
            check_kind(self.kind.0, &ids, self.kind.1)?;
            digests.extend((0..ids.len()).filter_map(|row| ids.get_opt(row)).map(IdRef::digest));
            Ok(())
        })?;
        Ok(digests)
    }
}

/// A value of a filter as [`schema::text_column`] writes it.
fn text(value: &FilterValue) -> String {
    match value {
        FilterValue::Bool(value) => value.to_string(),
        FilterValue::Integer(value) => value.to_string(),
        FilterValue::Text(value) => value.clone(),
    }
}
