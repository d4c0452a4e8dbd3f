//! What a run says when it is done.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;

use anyhow::Result;
use indicatif::{BinaryBytes, HumanCount};
use serde_json::Value;

use super::published::{Published, UserList};
use super::{SpecArgs, published};
use crate::job::Spec;
use crate::run::{self, Outcome};
use crate::store::{EarlierRun, FitStart, Gate, Manifest, Output, PublishedFile};

const EXAMPLES: usize = 3;
const ENTRIES: usize = 4;

/// The outcome of a run as text.
pub(super) fn of(outcome: &Outcome, spec: &Spec, args: &SpecArgs) -> Result<String> {
    match outcome {
        Outcome::AlreadyPublished { current } => Ok(format!(
            "{}: nothing to do; the same input and spec are published already, as generation {} of \
             {}\n(--force publishes them again)",
            spec.name, current.generation, current.logical_date
        )),
        Outcome::Published { current, manifest } => {
            let head = format!(
                "{}: published {} as generation {}",
                spec.name, manifest.logical_date, current.generation
            );
            with_tables(&head, manifest, spec, args)
        }
        Outcome::NotPublished { manifest } => {
            let head = format!(
                "{}: {} is written but not published; no reader sees it",
                spec.name, manifest.logical_date
            );
            with_tables(&head, manifest, spec, args)
        }
    }
}

fn with_tables(head: &str, manifest: &Manifest, spec: &Spec, args: &SpecArgs) -> Result<String> {
    let mut out = format!("\n{head}\n\n{}", counts(manifest));
    out += &tables(manifest, spec, args);
    // Elsewhere than on a terminal it is kept as a log, where ids do not belong.
    if std::io::stdout().is_terminal() {
        let runtime = run::runtime(spec)?;
        let output = Output::open(&runtime, &spec.output.url, &args.base())?;
        out += &examples(&Published::new(output, manifest.clone()))?;
    }
    out += &how_to_open(manifest, spec, args);
    Ok(out)
}

fn counts(manifest: &Manifest) -> String {
    let number = |key: &str| manifest.counts.get(key).and_then(Value::as_u64).unwrap_or(0);
    let reasons = |key: &str| -> String {
        let map = manifest.counts.get(key).and_then(Value::as_object);
        let reasons: Vec<String> = map
            .into_iter()
            .flatten()
            .map(|(reason, n)| format!("{reason} {}", HumanCount(n.as_u64().unwrap_or(0))))
            .collect();
        if reasons.is_empty() { "none".to_owned() } else { reasons.join(", ") }
    };
    let mut out = format!(
        "rows       {} read, {} used\nfiltered   {}\nrejected   {}\nusers      {}, {} with a \
         history\nitems      {}, {} eligible; {} interactions\n",
        HumanCount(number("rows")),
        HumanCount(number("rows_used")),
        reasons("rows_filtered"),
        reasons("rows_rejected"),
        HumanCount(number("users")),
        HumanCount(number("users_with_history")),
        HumanCount(number("items")),
        HumanCount(number("items_eligible")),
        HumanCount(number("interactions")),
    );
    let list_rows = number("list_rows");
    if list_rows > 0 {
        let share = 100.0 * number("list_rows_fallback") as f64 / list_rows as f64;
        let _ = writeln!(out, "lists      {} rows, {share:.1} % fallback", HumanCount(list_rows));
    }
    if let Some(EarlierRun { generation, run_id }) = &manifest.changes_since {
        let _ = writeln!(out, "changes    since generation {generation}, run {run_id}");
    }
    if let Some(FitStart { since: Some(EarlierRun { generation, run_id }), .. }) =
        &manifest.fit_start
    {
        let _ = writeln!(out, "als        goes on from generation {generation}, run {run_id}");
    }
    for Gate { name, value, min, max, .. } in &manifest.gates {
        let min = min.map_or(String::new(), |min| format!(", at least {min}"));
        let max = max.map_or(String::new(), |max| format!(", at most {max}"));
        let _ = writeln!(out, "gate       {name} {value:.3}{min}{max}");
    }
    out
}

fn tables(manifest: &Manifest, spec: &Spec, args: &SpecArgs) -> String {
    let mut sums: BTreeMap<&str, (u64, u64, usize)> = BTreeMap::new();
    for file in &manifest.files {
        let sum = sums.entry(&file.table).or_default();
        *sum = (sum.0 + file.rows, sum.1 + file.bytes, sum.2 + 1);
    }
    let mut out = format!("\ntables in {}\n", folder(spec, args));
    for (table, (rows, bytes, files)) in sums {
        let plural = if files == 1 { "file" } else { "files" };
        let rows = HumanCount(rows).to_string();
        let bytes = BinaryBytes(bytes).to_string();
        let _ = writeln!(out, "  {table:<28}{rows:>12} rows {bytes:>12}  {files} {plural}");
    }
    out
}

/// The output's folder as it is reached from here.
fn folder(spec: &Spec, args: &SpecArgs) -> String {
    if spec.output.url.contains("://") && !spec.output.url.starts_with("file://") {
        return spec.output.url.trim_end_matches('/').to_owned();
    }
    let joined = args.base().join(spec.output.url.trim_start_matches("file://"));
    let full = joined.canonicalize().unwrap_or(joined);
    let here = std::env::current_dir().unwrap_or_default();
    full.strip_prefix(&here).map(Path::to_owned).unwrap_or(full).display().to_string()
}

/// The lists of the first users whom a ranker gave something.
fn examples(published: &Published) -> Result<String> {
    let mut out = String::new();
    for list in published.first_lists(EXAMPLES)? {
        out += &example(published, &list)?;
    }
    Ok(out)
}

fn example(published: &Published, list: &UserList) -> Result<String> {
    let mut out = format!("\nuser {}\n", list.user);
    let titles = published.titles()?;
    for entry in list.entries.iter().take(ENTRIES) {
        let because = match &entry.because {
            Some(item) => format!("because of {}", published::name(titles, item)),
            None => entry.source.clone(),
        };
        let name = published::name(titles, &entry.item);
        let _ = writeln!(out, "  {:>2}  {name:<44} {because}", entry.rank);
    }
    let left = list.entries.len().saturating_sub(ENTRIES);
    if left > 0 {
        let _ = writeln!(out, "      and {left} more");
    }
    Ok(out)
}

fn how_to_open(manifest: &Manifest, spec: &Spec, args: &SpecArgs) -> String {
    let shown = ["user_top_k", "user_top_k_lists", "item_neighbors", "item_popularity", "items"];
    let file = shown
        .iter()
        .find_map(|table| manifest.files.iter().find(|file| file.table == *table))
        .or(manifest.files.first());
    let Some(file) = file else { return String::new() };
    let parent = |file: &PublishedFile| Path::new(&file.path).parent().map(Path::to_owned);
    let mut of_table = manifest.files.iter().filter(|other| other.table == file.table);
    // Files of an earlier run lie elsewhere; then one shows what they hold.
    let files = match of_table.all(|other| parent(other) == parent(file)) {
        true => format!("{}/*.parquet", parent(file).unwrap_or_default().display()),
        false => file.path.clone(),
    };
    let (folder, job) = (folder(spec, args), args.spec.display());
    let mut out = format!(
        "\nopen them in DuckDB\n  SELECT * FROM read_parquet('{folder}/{files}') LIMIT 20;\n\
         look closer\n  tidemill show {job} --user ID     tidemill show {job} --item ID"
    );
    let index = manifest.files.iter().find(|file| file.path.ends_with(".faiss"));
    if let Some(PublishedFile { path, .. }) = index {
        let _ = write!(
            out,
            "\nopen the index in FAISS, or ask it without Python\n  \
             index = faiss.read_index('{folder}/{path}')\n  \
             tidemill search {folder}/{path} --item ID"
        );
    }
    out
}
