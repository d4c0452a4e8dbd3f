//! `tidemill search`: what is nearest in a published vector file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Int64Type};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::print;
use super::published::{Published, text};
use crate::run::{self, Hit, Refused};
use crate::schema::tables;
use crate::schema::vectors::Metric;
use crate::store::{IoRuntime, Location, VectorFile, list_inputs};

/// Find what is nearest to an item or a user in a flat vector file, by comparing with every vector
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill search out/runs/2026-11-22/<run_id>/vectors/item_factors.flat_ip.faiss --user u000000001
  tidemill search out/runs/2026-11-22/<run_id>/vectors/item_factors.cosine.faiss --item i000000042
  tidemill search s3://recs/nightly/runs/<date>/<run_id>/vectors/item_factors.cosine.faiss --item 42
  tidemill search copied.flat_ip.faiss --item 42 --k 20 --json | jq '.hits[].id'

A file within its run is searched by the ids of the log, and told by titles. A file on its own
knows no tables: --item, or --user in a file of users, is an id of the file, an integer.")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct SearchArgs {
    /// The file, a path or a url: flat_ip, flat_l2 or cosine
    pub(super) file: String,
    /// The item to search with; it is left out itself
    #[arg(long, group = "what", allow_hyphen_values = true)]
    pub(super) item: Option<String>,
    /// The user to search with
    #[arg(long, group = "what", allow_hyphen_values = true)]
    pub(super) user: Option<String>,
    /// Most results
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(super) k: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Items or users: one of the two sides of a model.
#[derive(Debug, PartialEq, Eq)]
struct Side {
    name: &'static str,
    /// The table of everybody on that side.
    table: &'static str,
    factors: &'static str,
    id: &'static str,
    idx: &'static str,
    /// What people call one, where the table says it.
    title: Option<&'static str>,
}

static ITEM: Side = Side {
    name: "item",
    table: "items",
    factors: "item_factors",
    id: "item_id",
    idx: "item_idx",
    title: Some("title"),
};

static USER: Side = Side {
    name: "user",
    table: "users",
    factors: "user_factors",
    id: "user_id",
    idx: "user_idx",
    title: None,
};

/// What is searched with.
struct Query {
    vector: Vec<f32>,
    /// The query's own id in the file, not to be found.
    own_id: Option<i64>,
}

/// A result as it is told.
#[derive(Debug, Serialize)]
struct Found {
    rank: usize,
    id: String,
    title: Option<String>,
    score: f32,
}

pub(super) fn run(args: &SearchArgs) -> Result<()> {
    print(&search(args)?);
    Ok(())
}

/// What the command prints.
pub(super) fn search(args: &SearchArgs) -> Result<String> {
    let (side, id) = match (&args.item, &args.user) {
        (Some(item), _) => (&ITEM, item.as_str()),
        (None, Some(user)) => (&USER, user.as_str()),
        (None, None) => return Err(Refused::usage(anyhow!("give --item or --user"))),
    };
    let runtime = IoRuntime::new().context("the threads for input cannot be started")?;
    let url = absolute(&args.file)?;
    let file = open(&runtime, &url)?;
    let run = SearchedRun::of(&runtime, &url)?;
    let query = match &run {
        Some(run) => run.query(side, id)?,
        None => query_in_file(&file, side, id)?,
    };
    let hits = run::nearest(&file, &query.vector, args.k, query.own_id)?;
    let names = run.map_or_else(|| Ok(BTreeMap::new()), |run| run.names(&hits))?;
    shown(args, &file, (side, id), &found(&hits, &names))
}

/// A path from the root, so that the run around the file is found; urls are that already.
fn absolute(file: &str) -> Result<String> {
    let Some(path) = file.strip_prefix("file://").or((!file.contains("://")).then_some(file))
    else {
        return Ok(file.to_owned());
    };
    let path = Path::new(path).canonicalize();
    let path = path
        .with_context(|| format!("\"{file}\" cannot be read; check the path"))
        .map_err(Refused::no_input)?;
    if path.is_dir() {
        return Err(Refused::usage(anyhow!("\"{file}\" is a folder; name a vector file in it")));
    }
    Ok(path.display().to_string())
}

fn open(runtime: &IoRuntime, url: &str) -> Result<VectorFile> {
    let location = Location::open(runtime, url, Path::new(""))?;
    let files = list_inputs(&location)?.files;
    let file = files.first().expect("a listing has at least one file");
    Ok(VectorFile::open(&location, file)?)
}

fn shown(
    args: &SearchArgs,
    file: &VectorFile,
    (side, id): (&Side, &str),
    found: &[Found],
) -> Result<String> {
    let metric = match file.flat().metric {
        Metric::InnerProduct => "inner_product",
        Metric::L2 => "squared_distance",
    };
    if args.json {
        let shown = json!({ "file": args.file, (side.name): id, "score": metric, "hits": found });
        return Ok(serde_json::to_string_pretty(&shown)?);
    }
    let mut out = format!("nearest to {} {id}, by {}", side.name, metric.replace('_', " "));
    for Found { rank, id, title, score } in found {
        let name = title.as_ref().map_or(id.clone(), |title| format!("{title} [{id}]"));
        write!(out, "\n  {rank:>3}  {score:<12.6} {name}")?;
    }
    Ok(out)
}

/// The query of a file on its own: one of its vectors.
fn query_in_file(file: &VectorFile, side: &Side, id: &str) -> Result<Query> {
    let name = side.name;
    let own_id: i64 = id.parse().map_err(|_| {
        Refused::usage(anyhow!(
            "\"{id}\" is not an integer, and this file is on its own, so --{name} is an id of the \
             file; search the file in its run to use ids of the log"
        ))
    })?;
    let vector = file.find(own_id)?.ok_or_else(|| {
        Refused::no_input(anyhow!(
            "the file has no vector of id {own_id}, and no run around it that says more"
        ))
    })?;
    Ok(Query { vector, own_id: Some(own_id) })
}

/// Hits by rank, and by id and title where these are known.
fn found(hits: &[Hit], names: &Names) -> Vec<Found> {
    let found = |(rank, hit): (usize, &Hit)| {
        let Name { id, title } = match names.get(&hit.id) {
            Some(name) => name.clone(),
            None => Name { id: hit.id.to_string(), title: None },
        };
        Found { rank, id, title, score: hit.score }
    };
    (1..).zip(hits).map(found).collect()
}

/// What the log calls an item or a user.
#[derive(Clone, Debug)]
struct Name {
    id: String,
    title: Option<String>,
}

/// By the id in the file.
type Names = BTreeMap<i64, Name>;

/// The run of the searched file.
struct SearchedRun {
    published: Published,
    /// Whose vectors the file holds.
    side: &'static Side,
    /// Whether they are of length 1.
    is_cosine: bool,
}

impl SearchedRun {
    /// `None` for a file on its own.
    fn of(runtime: &IoRuntime, url: &str) -> Result<Option<Self>> {
        let Some((published, entry)) = Published::of_file(runtime, url)? else {
            return Ok(None);
        };
        let (table, kind) = entry.table.split_once('.').unwrap_or_default();
        let side = [&ITEM, &USER].into_iter().find(|side| side.factors == table);
        let side = side.ok_or_else(|| {
            Refused::usage(anyhow!("\"{}\" is not a vector file of its run", entry.path))
        })?;
        Ok(Some(Self { published, side, is_cosine: kind == "cosine" }))
    }

    /// The vector of an item or user, from the run's table of factors.
    fn query(&self, side: &Side, id: &str) -> Result<Query> {
        let columns = [side.id, side.idx, tables::EMBEDDING];
        let mut query = None;
        for file in self.published.files(side.factors) {
            if *side == USER && !self.published.may_hold(&file, side.id, id)? {
                continue;
            }
            self.published.each_batch(&file, &columns, |batch| {
                query = self.query_in(&batch, side, id)?;
                Ok(if query.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if query.is_some() {
                break;
            }
        }
        query.ok_or_else(|| {
            let (name, table) = (side.name, side.factors);
            Refused::no_input(anyhow!(
                "{name} \"{id}\" has no row in the run's table \"{table}\": there is no history of \
                 it; ids are written as in the log"
            ))
        })
    }

    fn query_in(&self, batch: &RecordBatch, side: &Side, id: &str) -> Result<Option<Query>> {
        let ids = text(batch, side.id)?;
        let ids = ids.as_string::<i32>();
        let Some(row) = (0..ids.len()).find(|&row| ids.value(row) == id) else {
            return Ok(None);
        };
        let embeddings = column(batch, tables::EMBEDDING)?;
        let mut vector = embedding(embeddings, row)?;
        if self.is_cosine {
            vector = run::scaled_to_one(&vector);
        }
        let own_id = (side == self.side).then(|| vector_ids(batch, side)).transpose()?;
        Ok(Some(Query { vector, own_id: own_id.map(|ids| ids.value(row)) }))
    }

    /// What the log calls those that were found.
    fn names(&self, hits: &[Hit]) -> Result<Names> {
        let side = self.side;
        let columns: Vec<&str> = [side.id, side.idx].into_iter().chain(side.title).collect();
        let wanted: BTreeSet<i64> = hits.iter().map(|hit| hit.id).collect();
        let mut names = Names::new();
        for file in self.published.files(side.table) {
            self.published.each_batch(&file, &columns, |batch| {
                let ids = vector_ids(&batch, side)?;
                let rows = (0..ids.len()).filter(|&row| ids.is_valid(row));
                for row in rows.filter(|&row| wanted.contains(&ids.value(row))) {
                    names.insert(ids.value(row), name_of(&batch.slice(row, 1), side)?);
                }
                let all = names.len() == wanted.len();
                Ok(if all { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        Ok(names)
    }
}

fn name_of(row: &RecordBatch, side: &Side) -> Result<Name> {
    let id = text(row, side.id)?.as_string::<i32>().value(0).to_owned();
    let title = side.title.map(|column| text(row, column)).transpose()?;
    let title = title.filter(|title| title.is_valid(0));
    Ok(Name { id, title: title.map(|title| title.as_string::<i32>().value(0).to_owned()) })
}

/// The id in vector files of what each row is about: its own where it is an integer, else the
/// published index, which those without a history lack.
fn vector_ids(batch: &RecordBatch, side: &Side) -> Result<Int64Array> {
    let own = column(batch, side.id)?;
    let ids = if own.data_type().is_integer() { own } else { column(batch, side.idx)? };
    Ok(arrow::compute::cast(ids, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

fn column<'b>(batch: &'b RecordBatch, name: &str) -> Result<&'b ArrayRef> {
    batch.column_by_name(name).with_context(|| format!("no column \"{name}\""))
}

fn embedding(column: &ArrayRef, row: usize) -> Result<Vec<f32>> {
    let list = match column.data_type() {
        DataType::FixedSizeList(..) => column.as_fixed_size_list().value(row),
        DataType::List(_) => column.as_list::<i32>().value(row),
        other => return Err(anyhow!("column \"embedding\" is {other}, expected a list")),
    };
    let floats = list.as_primitive_opt::<Float32Type>();
    Ok(floats.context("column \"embedding\" holds no float32")?.values().to_vec())
}
