//! Reads a run's tables back, for people.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::run::Refused;
use crate::store::{self, InputFile, IoRuntime, Manifest, Output, PublishedFile};
use crate::types::{IdRef, IdType, shard_of};

/// One run and the output it lies in.
pub(super) struct Published {
    output: Output,
    /// The run's manifest.
    pub(super) manifest: Manifest,
    titles: OnceCell<BTreeMap<String, String>>,
}

/// A user's list.
#[derive(Debug, Serialize)]
pub(super) struct UserList {
    pub(super) user: String,
    pub(super) entries: Vec<Entry>,
}

/// One place of a list.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    pub(super) rank: i32,
    pub(super) item: String,
    pub(super) score: f32,
    pub(super) source: String,
    pub(super) because: Option<String>,
}

impl Published {
    pub(super) fn new(output: Output, manifest: Manifest) -> Self {
        Self { output, manifest, titles: OnceCell::new() }
    }

    /// The run that readers see.
    pub(super) fn current(output: Output) -> Result<Self> {
        let current = output.read_current()?.ok_or_else(|| {
            Refused::no_input(anyhow!(
                "nothing is published in \"{}\"; run the job first",
                output.url()
            ))
        })?;
        let manifest = output.read_manifest(&current)?;
        Ok(Self::new(output, manifest))
    }

    /// The run that a file belongs to, and the file's entry in the run's manifest; `None` for a
    /// file that no committed manifest around it lists. `url` is absolute.
    pub(super) fn of_file(runtime: &IoRuntime, url: &str) -> Result<Option<(Self, PublishedFile)>> {
        // <output>/runs/<logical_date>/<run_id>/…
        let Some(at) = url.rfind("/runs/") else { return Ok(None) };
        let (root, path) = (&url[..at], &url[at + 1..]);
        let Some((end, _)) = path.match_indices('/').nth(2) else { return Ok(None) };
        let manifest = format!("{}/_manifest.json", &path[..end]);
        let output = Output::open(runtime, root, Path::new(""))?;
        let log = output.read_log()?;
        let commit = log.entries().iter().find(|entry| entry.run.manifest == manifest);
        let Some(commit) = commit else { return Ok(None) };
        let manifest = output.read_manifest(&commit.run)?;
        let entry = manifest.files.iter().find(|entry| entry.path == path).cloned();
        Ok(entry.map(|entry| (Self::new(output, manifest), entry)))
    }

    /// Titles of items by id, as text.
    pub(super) fn titles(&self) -> Result<&BTreeMap<String, String>> {
        if let Some(titles) = self.titles.get() {
            return Ok(titles);
        }
        let mut titles = BTreeMap::new();
        for file in self.output.table_files(&self.manifest, "items") {
            for batch in self.read(&file, &["item_id", "title"])? {
                let (ids, names) = (text(&batch, "item_id")?, text(&batch, "title")?);
                for row in (0..batch.num_rows()).filter(|&row| !names.is_null(row)) {
                    let (id, name) = (ids.as_string::<i32>(), names.as_string::<i32>());
                    titles.insert(id.value(row).to_owned(), name.value(row).to_owned());
                }
            }
        }
        Ok(self.titles.get_or_init(|| titles))
    }

    /// The first lists that a ranker put something into.
    pub(super) fn first_lists(&self, n_lists: usize) -> Result<Vec<UserList>> {
        let mut lists = Vec::new();
        for file in self.list_files() {
            for batch in self.read_all(&file)? {
                for list in lists_of(&batch)? {
                    if list.entries.iter().any(|entry| entry.source != "fallback") {
                        lists.push(list);
                    }
                    if lists.len() == n_lists {
                        return Ok(lists);
                    }
                }
            }
        }
        Ok(lists)
    }

    /// The list of one user; empty where there is none.
    pub(super) fn list_of(&self, user: &str) -> Result<Option<UserList>> {
        let mut found: Option<UserList> = None;
        for file in self.list_files() {
            if !self.may_hold(&file, "user_id", user)? {
                continue;
            }
            for batch in self.read_all(&file)? {
                for list in lists_of(&batch)?.into_iter().filter(|list| list.user == user) {
                    match &mut found {
                        Some(found) => found.entries.extend(list.entries),
                        None => found = Some(list),
                    }
                }
            }
        }
        Ok(found)
    }

    /// Rows of a table whose `column` is `value` as text, as JSON objects.
    pub(super) fn rows(&self, table: &str, column: &str, value: &str) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for file in self.output.table_files(&self.manifest, table) {
            if column == "user_id" && !self.may_hold(&file, column, value)? {
                continue;
            }
            for batch in self.read_all(&file)? {
                let keys = text(&batch, column)?;
                let keys = keys.as_string::<i32>();
                for row in (0..batch.num_rows()).filter(|&row| keys.value(row) == value) {
                    rows.push(json_row(&batch, row)?);
                }
            }
        }
        Ok(rows)
    }

    fn list_files(&self) -> Vec<InputFile> {
        let mut files = self.output.table_files(&self.manifest, "user_top_k");
        files.extend(self.output.table_files(&self.manifest, "user_top_k_lists"));
        files
    }

    /// Whether a file of a table that is cut by user shard can hold a user.
    pub(super) fn may_hold(&self, file: &InputFile, column: &str, user: &str) -> Result<bool> {
        let footer = store::footer(&self.output.location(), file)?;
        let field = footer.schema().field_with_name(column)?.data_type().clone();
        let id_type = crate::schema::id_type_of(&field)?;
        let number;
        let id = match id_type {
            IdType::Int32 | IdType::Int64 => {
                number = user.parse().map_err(|_| {
                    Refused::usage(anyhow!("\"{user}\" is not an integer, and user ids here are"))
                })?;
                IdRef::Int(number)
            }
            _ => IdRef::Bytes(user.as_bytes()),
        };
        let part = format!("part-{:05}-of-", shard_of(id, self.manifest.shards));
        Ok(file.key.contains(&part))
    }

    /// The files of one table.
    pub(super) fn files(&self, table: &str) -> Vec<InputFile> {
        self.output.table_files(&self.manifest, table)
    }

    /// Gives the named columns of a file batch by batch until `take` has enough.
    pub(super) fn each_batch(
        &self,
        file: &InputFile,
        columns: &[&str],
        mut take: impl FnMut(RecordBatch) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let location = self.output.location();
        let footer = store::footer(&location, file)?;
        for row_group in 0..footer.n_row_groups() {
            for batch in store::read_row_group(&location, file, &footer, row_group, columns)? {
                if take(batch?)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn read(&self, file: &InputFile, columns: &[&str]) -> Result<Vec<RecordBatch>> {
        Ok(store::read_all(&self.output.location(), file, Some(columns))?)
    }

    fn read_all(&self, file: &InputFile) -> Result<Vec<RecordBatch>> {
        Ok(store::read_all(&self.output.location(), file, None)?)
    }
}

/// An item as people read it: title and id, or the id alone.
pub(super) fn name(titles: &BTreeMap<String, String>, item: &str) -> String {
    match titles.get(item) {
        Some(title) => format!("{title} [{item}]"),
        None => item.to_owned(),
    }
}

/// A column as text.
pub(super) fn text(batch: &RecordBatch, column: &str) -> Result<ArrayRef> {
    let array = batch.column_by_name(column).with_context(|| format!("no column \"{column}\""))?;
    Ok(as_text(array)?)
}

fn as_text(array: &ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
    match array.data_type() {
        // Arrow writes zones only with a feature that brings a zone database; ours are all UTC.
        DataType::Timestamp(unit, Some(_)) => {
            cast(&cast(array, &DataType::Timestamp(*unit, None))?, &DataType::Utf8)
        }
        _ => cast(array, &DataType::Utf8),
    }
}

fn lists_of(batch: &RecordBatch) -> Result<Vec<UserList>> {
    match batch.column_by_name("rank") {
        Some(_) => lists_of_rows(batch),
        None => lists_of_lists(batch),
    }
}

fn lists_of_rows(batch: &RecordBatch) -> Result<Vec<UserList>> {
    let users = text(batch, "user_id")?;
    let entries = entries(
        batch.column_by_name("item_id"),
        batch.column_by_name("score"),
        batch.column_by_name("source"),
        batch.column_by_name("because_item_id"),
    )?;
    let ranks =
        cast(batch.column_by_name("rank").context("no column \"rank\"")?, &DataType::Int32)?;
    let ranks = ranks.as_primitive::<arrow::datatypes::Int32Type>();
    let mut lists: Vec<UserList> = Vec::new();
    for (row, mut entry) in entries.into_iter().enumerate() {
        let user = users.as_string::<i32>().value(row);
        entry.rank = ranks.value(row);
        match lists.last_mut().filter(|list| list.user == user) {
            Some(list) => list.entries.push(entry),
            None => lists.push(UserList { user: user.to_owned(), entries: vec![entry] }),
        }
    }
    Ok(lists)
}

fn lists_of_lists(batch: &RecordBatch) -> Result<Vec<UserList>> {
    let users = text(batch, "user_id")?;
    let of_row = |column: &str, row: usize| {
        batch.column_by_name(column).map(|array| array.as_list::<i32>().value(row))
    };
    (0..batch.num_rows())
        .map(|row| {
            let mut entries = entries(
                of_row("item_ids", row).as_ref(),
                of_row("scores", row).as_ref(),
                of_row("sources", row).as_ref(),
                of_row("because_item_ids", row).as_ref(),
            )?;
            (1..).zip(&mut entries).for_each(|(rank, entry)| entry.rank = rank);
            Ok(UserList { user: users.as_string::<i32>().value(row).to_owned(), entries })
        })
        .collect()
}

fn entries(
    items: Option<&ArrayRef>,
    scores: Option<&ArrayRef>,
    sources: Option<&ArrayRef>,
    because: Option<&ArrayRef>,
) -> Result<Vec<Entry>> {
    let lacking = "a list table lacks a column";
    let items = as_text(items.context(lacking)?)?;
    let scores = cast(scores.context(lacking)?, &DataType::Float32)?;
    let sources = as_text(sources.context(lacking)?)?;
    let because = as_text(because.context(lacking)?)?;
    let (items, sources) = (items.as_string::<i32>(), sources.as_string::<i32>());
    let (scores, because) =
        (scores.as_primitive::<arrow::datatypes::Float32Type>(), because.as_string::<i32>());
    Ok((0..items.len())
        .map(|row| Entry {
            rank: 0,
            item: items.value(row).to_owned(),
            score: scores.value(row),
            source: sources.value(row).to_owned(),
            because: (!because.is_null(row)).then(|| because.value(row).to_owned()),
        })
        .collect())
}

/// A row as a JSON object: numbers as numbers, everything else as text.
fn json_row(batch: &RecordBatch, row: usize) -> Result<Value> {
    let mut object = Map::new();
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        let value = if array.is_null(row) || field.data_type().is_nested() {
            Value::Null
        } else if field.data_type().is_numeric() {
            let number = as_text(&array.slice(row, 1))?;
            serde_json::from_str(number.as_string::<i32>().value(0)).unwrap_or(Value::Null)
        } else {
            let text = as_text(&array.slice(row, 1))?;
            match text.as_string::<i32>().value(0) {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                text => Value::String(text.to_owned()),
            }
        };
        object.insert(field.name().clone(), value);
    }
    Ok(Value::Object(object))
}
