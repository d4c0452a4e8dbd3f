//! The synthetic tables as Parquet files.

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, Int8Array, Int32Array, Int64Array, RecordBatch,
    StringArray, StringBuilder, TimestampMicrosecondArray,
};
use indicatif::{ProgressBar, ProgressStyle};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use rayon::prelude::*;

use super::{GenerateArgs, GeneratedIds, make_folder};
use crate::kernels::synthetic::{
    CHUNK_EVENTS, Catalog, EVENT_KINDS, Event, Item, Params, Users, chunk_events,
};

/// Rows per batch of the side tables.
const BATCH_ROWS: usize = 65_536;

/// Chunks of events made at once, by as many threads as there are; bounds what is held in memory.
const CHUNKS_AHEAD: u64 = 8;

/// A dictionary larger than this is dropped by the writer: enough for 500,000 ids per row group.
const DICTIONARY_BYTES_MAX: usize = 8 << 20;

/// Writes all tables below `folder` and returns their paths in it.
pub(super) fn write(args: &GenerateArgs, params: &Params, folder: &Path) -> Result<Vec<PathBuf>> {
    let catalog = Catalog::new(params);
    let users = Users::new(params, &catalog);
    let mut tables = vec![PathBuf::from("items.parquet"), PathBuf::from("users.parquet")];
    write_items(args, &catalog, &folder.join(&tables[0]))?;
    write_users(args, &users, &folder.join(&tables[1]))?;
    let progress = progress_bar(params.n_events);
    for file in 0..args.files {
        let table = match args.files {
            1 => PathBuf::from("events.parquet"),
            n_files => format!("events/part-{file:05}-of-{n_files:05}.parquet").into(),
        };
        let mut writer =
            TableWriter::create(args, &folder.join(&table), &event_batch(args, 0, &[]))?;
        let rows = file_rows(params.n_events, args.files, file);
        for_each_event_batch(args, params, (&catalog, &users), rows, |batch| {
            progress.inc(batch.num_rows() as u64);
            writer.write(batch)
        })?;
        writer.close()?;
        tables.push(table);
    }
    progress.finish_and_clear();
    Ok(tables)
}

/// First row and row after the last of event file `file`.
fn file_rows(n_events: u64, n_files: u32, file: u32) -> (u64, u64) {
    let row = |file: u32| {
        let row = u128::from(n_events) * u128::from(file) / u128::from(n_files);
        u64::try_from(row).expect("a file ends within the log")
    };
    (row(file), row(file + 1))
}

/// Hands on the rows from `start` to `end`, in order. A chunk that two files share is made twice,
/// which costs less than it would to hold it.
fn for_each_event_batch(
    args: &GenerateArgs,
    params: &Params,
    (catalog, users): (&Catalog, &Users),
    (start, end): (u64, u64),
    mut write: impl FnMut(&RecordBatch) -> Result<()>,
) -> Result<()> {
    let end_chunk = end.div_ceil(CHUNK_EVENTS);
    for first in (start / CHUNK_EVENTS..end_chunk).step_by(CHUNKS_AHEAD as usize) {
        let chunks = first..end_chunk.min(first + CHUNKS_AHEAD);
        let batches: Vec<RecordBatch> = chunks
            .into_par_iter()
            .map(|chunk| {
                let first_row = chunk * CHUNK_EVENTS;
                let from = start.max(first_row) - first_row;
                let to = end.min(first_row + CHUNK_EVENTS) - first_row;
                let events = chunk_events(params, catalog, users, chunk);
                event_batch(args, first_row + from, &events[from as usize..to as usize])
            })
            .collect();
        batches.iter().try_for_each(&mut write)?;
    }
    Ok(())
}

fn event_batch(args: &GenerateArgs, first_row: u64, events: &[Event]) -> RecordBatch {
    let event_ids = (first_row as i64 + 1..).take(events.len());
    let kinds = Int8Array::from_iter_values(events.iter().map(|event| event.kind as i8));
    let kind_names: ArrayRef = Arc::new(StringArray::from_iter_values(EVENT_KINDS));
    let kinds = DictionaryArray::new(kinds, kind_names);
    let quantities = Int32Array::from_iter_values(events.iter().map(|event| event.quantity));
    let times = events.iter().map(|event| event.time_us);
    let times = TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC");
    batch([
        ("event_id", Arc::new(Int64Array::from_iter_values(event_ids)) as ArrayRef),
        ("user_id", ids(args.ids, 'u', events.iter().map(|event| event.user))),
        ("item_id", ids(args.ids, 'i', events.iter().map(|event| event.item))),
        ("event", Arc::new(kinds)),
        ("quantity", Arc::new(quantities)),
        ("timestamp", Arc::new(times)),
    ])
}

fn write_items(args: &GenerateArgs, catalog: &Catalog, path: &Path) -> Result<()> {
    let mut items = (0..).zip(catalog.items());
    let mut writer = TableWriter::create(args, path, &item_batch(args, &[]))?;
    loop {
        let rows: Vec<(u32, Item)> = items.by_ref().take(BATCH_ROWS).collect();
        if rows.is_empty() {
            return writer.close();
        }
        writer.write(&item_batch(args, &rows))?;
    }
}

fn item_batch(args: &GenerateArgs, rows: &[(u32, Item)]) -> RecordBatch {
    let titles = StringArray::from_iter_values(rows.iter().map(|(_, item)| &item.title));
    let genres = StringArray::from_iter_values(rows.iter().map(|(_, item)| item.genre));
    let in_stock: BooleanArray = rows.iter().map(|(_, item)| Some(item.in_stock)).collect();
    batch([
        ("item_id", ids(args.ids, 'i', rows.iter().map(|(number, _)| *number))),
        ("title", Arc::new(titles)),
        ("genre", Arc::new(genres)),
        ("in_stock", Arc::new(in_stock)),
    ])
}

fn write_users(args: &GenerateArgs, users: &Users, path: &Path) -> Result<()> {
    let mut countries = (0..).zip(users.countries());
    let mut writer = TableWriter::create(args, path, &user_batch(args, &[]))?;
    loop {
        let rows: Vec<(u32, &str)> = countries.by_ref().take(BATCH_ROWS).collect();
        if rows.is_empty() {
            return writer.close();
        }
        writer.write(&user_batch(args, &rows))?;
    }
}

fn user_batch(args: &GenerateArgs, rows: &[(u32, &str)]) -> RecordBatch {
    let countries = StringArray::from_iter_values(rows.iter().map(|(_, country)| country));
    batch([
        ("user_id", ids(args.ids, 'u', rows.iter().map(|(number, _)| *number))),
        ("country", Arc::new(countries)),
    ])
}

/// Ids of users and items count from 1.
fn ids(id_type: GeneratedIds, prefix: char, numbers: impl Iterator<Item = u32>) -> ArrayRef {
    match id_type {
        GeneratedIds::Int => {
            Arc::new(Int64Array::from_iter_values(numbers.map(|number| i64::from(number) + 1)))
        }
        GeneratedIds::String => {
            let mut ids = StringBuilder::new();
            for number in numbers {
                write!(ids, "{prefix}{:09}", u64::from(number) + 1).expect("memory takes any text");
                ids.append_value("");
            }
            Arc::new(ids.finish())
        }
    }
}

fn batch<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    let columns = columns.into_iter().map(|(name, array)| (name, array, false));
    RecordBatch::try_from_iter_with_nullable(columns).expect("columns are of one length")
}

/// A Parquet file on its way; errors name it.
struct TableWriter {
    path: PathBuf,
    writer: ArrowWriter<File>,
}

impl TableWriter {
    /// Creates the file and its folder; `batch` tells the columns.
    fn create(args: &GenerateArgs, path: &Path, batch: &RecordBatch) -> Result<Self> {
        let folder = path.parent().expect("a table lies in a folder");
        make_folder(folder)?;
        let file = File::create(path).with_context(|| format!("cannot create {path:?}"))?;
        let properties = writer_properties(args.row_group_rows as usize);
        let writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))
            .with_context(|| format!("cannot write {path:?}"))?;
        Ok(Self { path: path.to_owned(), writer })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).with_context(|| format!("cannot write {:?}", self.path))
    }

    fn close(self) -> Result<()> {
        self.writer.close().with_context(|| format!("cannot write {:?}", self.path))?;
        Ok(())
    }
}

/// Whatever decides the bytes of a file, so that they do not follow a library's defaults.
fn writer_properties(row_group_rows: usize) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_created_by("tidemill".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("3 is a zstd level")))
        .set_max_row_group_row_count(Some(row_group_rows))
        .set_data_page_row_count_limit(20_000)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX);
    // These only rise: their differences are small, and no value comes back.
    for column in ["event_id", "timestamp"] {
        properties = properties
            .set_column_dictionary_enabled(ColumnPath::from(column), false)
            .set_column_encoding(ColumnPath::from(column), Encoding::DELTA_BINARY_PACKED);
    }
    properties.build()
}

/// Shown on a terminal only.
fn progress_bar(n_events: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "generate {wide_bar} {human_pos} of {human_len} events, {eta} left",
    );
    ProgressBar::new(n_events).with_style(style.expect("the template is well formed"))
}
