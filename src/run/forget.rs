//! Where ids are in an output: in tables, vector files, stored state, and what runs left on their way.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use arrow::array::AsArray;
use serde::Serialize;

use crate::schema::{self, IdColumn};
use crate::store::{self, InputFile, Location, Log, Output, Standing, VectorFile};
use crate::types::IdRef;

/// Columns of published tables that hold ids of users, and of items.
const USER_COLUMNS: [&str; 1] = ["user_id"];
const ITEM_COLUMNS: [&str; 5] =
    ["item_id", "neighbor_id", "because_item_id", "item_ids", "because_item_ids"];

/// Ids that are to be nowhere, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Of users.
    pub users: BTreeSet<String>,
    /// Of items.
    pub items: BTreeSet<String>,
}

/// A file that holds an id it should not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// The generation that the file belongs to; none for what runs left on their way.
    pub generation: Option<u64>,
    /// The run of that generation.
    pub run_id: Option<String>,
    /// The file, relative to the output.
    pub path: String,
    /// How many of the ids are in it.
    pub ids: usize,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ForgetCheck {
    /// Generations whose files are there.
    pub generations: usize,
    /// Files of which every id was looked at.
    pub files: usize,
    /// Ids looked at in them.
    pub ids: u64,
    /// Where the ids are; empty if they are nowhere.
    pub holdings: Vec<Holding>,
}

/// Looks for ids in all files of all generations that are there, withdrawn ones included, and in
/// checkpoints and reports of runs that were never published.
///
/// Every row of every id column is read. A checkpoint holds histories in a form that is not searched: one
/// that is there counts as holding the ids. `advance` is told of each file.
///
/// # Errors
/// When the log, a manifest or a file cannot be read: then nothing is proved.
pub fn forget_check(
    output: &Output,
    forgotten: &Forgotten,
    advance: &dyn Fn(&str),
) -> Result<ForgetCheck> {
    let log = output.read_log()?;
    let location = output.location();
    let mut search = Search {
        output,
        location: &location,
        forgotten,
        advance,
        found: ForgetCheck::default(),
        seen: BTreeMap::new(),
    };
    search.generations(&log)?;
    search.leftovers()?;
    Ok(search.found)
}

struct Search<'a> {
    output: &'a Output,
    location: &'a Location,
    forgotten: &'a Forgotten,
    advance: &'a dyn Fn(&str),
    found: ForgetCheck,
    /// Files of state that were searched, with how many of the ids they hold.
    seen: BTreeMap<String, usize>,
}

impl Search<'_> {
    fn generations(&mut self, log: &Log) -> Result<()> {
        let is_there = |entry: &&store::LogEntry| log.standing(entry) != Standing::Collected;
        for entry in log.publications().filter(is_there) {
            let run = &entry.run;
            let manifest = self.output.read_manifest(run)?;
            self.found.generations += 1;
            let mut holding = Vec::new();
            for file in &manifest.files {
                let n = self.published(&file.path, &self.output.input_file(file))?;
                holding.extend((n > 0).then(|| (file.path.clone(), n)));
            }
            if let Some(state) = &manifest.state {
                for part in self.output.state_files(state)? {
                    let n = self.stored(&part)?;
                    holding.extend((n > 0).then_some((part.file.path, n)));
                }
            }
            self.found.holdings.extend(holding.into_iter().map(|(path, ids)| Holding {
                generation: Some(run.generation),
                run_id: Some(run.run_id.clone()),
                path,
                ids,
            }));
        }
        Ok(())
    }

    /// How many of the ids a file of a run holds.
    fn published(&mut self, path: &str, file: &InputFile) -> Result<usize> {
        (self.advance)(path);
        if path.starts_with("tables/") {
            return self.table(file);
        }
        if !path.ends_with(".faiss") {
            return Ok(0);
        }
        let is_of_users = path.contains("/vectors/user_factors");
        let wanted = if is_of_users { &self.forgotten.users } else { &self.forgotten.items };
        let wanted: BTreeSet<i64> = wanted.iter().filter_map(|id| id.parse().ok()).collect();
        let vectors = VectorFile::open(self.location, file)?;
        if vectors.flat().ids_at.is_none() || wanted.is_empty() {
            return Ok(0);
        }
        self.found.files += 1;
        let mut held = BTreeSet::new();
        for block in vectors.blocks() {
            let ids = block?.ids;
            self.found.ids += ids.len() as u64;
            held.extend(ids.into_iter().filter(|id| wanted.contains(id)));
        }
        Ok(held.len())
    }

    fn table(&mut self, file: &InputFile) -> Result<usize> {
        let footer = store::footer(self.location, file)?;
        let schema = footer.schema().clone();
        let there = |names: &[&'static str]| -> Vec<&'static str> {
            let is_there = |name: &&&str| schema.field_with_name(name).is_ok();
            names.iter().filter(is_there).copied().collect()
        };
        let (of_users, of_items) = (there(&USER_COLUMNS), there(&ITEM_COLUMNS));
        let columns = [of_users.clone(), of_items].concat();
        if columns.is_empty() {
            return Ok(0);
        }
        self.found.files += 1;
        let (mut users, mut items) = (BTreeSet::new(), BTreeSet::new());
        for group in 0..footer.n_row_groups() {
            for batch in store::read_row_group(self.location, file, &footer, group, &columns)? {
                let batch = batch?;
                for name in &columns {
                    let array = batch.column_by_name(name).context("a column was asked for")?;
                    // Lists of ids are looked at end to end.
                    let array = match array.as_list_opt::<i32>() {
                        Some(lists) => lists.values(),
                        None => array,
                    };
                    let ids = IdColumn::try_new(array)?;
                    self.found.ids += ids.len() as u64;
                    let (wanted, held) = match of_users.contains(name) {
                        true => (&self.forgotten.users, &mut users),
                        false => (&self.forgotten.items, &mut items),
                    };
                    held.extend(ids_in(&ids, wanted));
                }
            }
        }
        Ok(users.len() + items.len())
    }

    /// How many of the ids a file of state holds.
    fn stored(&mut self, part: &store::StateFile) -> Result<usize> {
        let path = &part.file.path;
        let wanted = match part.kind.as_str() {
            "users" | "pair_users" => &self.forgotten.users,
            "items" | "pair_items" => &self.forgotten.items,
            // Rows know keys only, and counts not even those.
            "rows" | "pair_counts" => return Ok(0),
            other => bail!("\"{path}\" holds {other:?}, which a newer version may look into"),
        };
        if let Some(&n) = self.seen.get(path) {
            return Ok(n);
        }
        (self.advance)(path);
        self.found.files += 1;
        let mut held = BTreeSet::new();
        for batch in
            store::read_all(self.location, &self.output.input_file(&part.file), Some(&["id"]))?
        {
            let ids = schema::id_column(&batch, "id")?;
            self.found.ids += ids.len() as u64;
            held.extend(ids_in(&ids, wanted));
        }
        self.seen.insert(path.clone(), held.len());
        Ok(held.len())
    }

    /// What runs left that were never published.
    fn leftovers(&mut self) -> Result<()> {
        let n = self.forgotten.users.len() + self.forgotten.items.len();
        for path in self.output.checkpoint_paths()? {
            (self.advance)(&path);
            let (generation, run_id) = (None, None);
            self.found.holdings.push(Holding { generation, run_id, path, ids: n });
        }
        for path in self.output.failed_reports()? {
            (self.advance)(&path);
            self.found.files += 1;
            let text = self.output.get(&path)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let all = self.forgotten.users.iter().chain(&self.forgotten.items);
            // A number stands for much else; a report names no user and no item, but may quote a file.
            let is_named = |id: &&String| id.parse::<i64>().is_err() && text.contains(id.as_str());
            let ids = all.filter(is_named).count();
            if ids > 0 {
                let (generation, run_id) = (None, None);
                self.found.holdings.push(Holding { generation, run_id, path, ids });
            }
        }
        Ok(())
    }
}

/// Which of the ids that are wanted a column holds.
fn ids_in<'a>(
    column: &'a IdColumn,
    wanted: &'a BTreeSet<String>,
) -> impl Iterator<Item = String> + 'a {
    let is_int = column.id_type().is_int();
    let ints: BTreeSet<i64> = match is_int {
        true => wanted.iter().filter_map(|id| id.parse().ok()).collect(),
        false => BTreeSet::new(),
    };
    let ids = (0..column.len()).filter_map(|row| column.get_opt(row));
    ids.filter_map(move |id| match id {
        IdRef::Int(id) => ints.contains(&id).then(|| id.to_string()),
        IdRef::Bytes(id) => {
            std::str::from_utf8(id).ok().filter(|id| wanted.contains(*id)).map(str::to_owned)
        }
    })
}
