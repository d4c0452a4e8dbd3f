//! `tidemill show`: one user or item of the current run.

use std::fmt::Write;

use anyhow::{Result, anyhow};
use clap::Args;
use serde_json::{Value, json};

use super::published::{self, Published};
use super::{SpecArgs, print};
use crate::run::{self, Refused, UserEvent};
use crate::store::Output;

/// Show a user's list beside their history, or an item's neighbors and its row in every table
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill show jobs/quickstart.toml --user u000000001
  tidemill show jobs/quickstart.toml --item i000000042
  tidemill show jobs/nightly.toml --user 4711 --json | jq .list.entries")]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(super) struct ShowArgs {
    #[command(flatten)]
    spec: SpecArgs,
    /// The user's id, as in the log
    #[arg(long, group = "what")]
    user: Option<String>,
    /// The item's id, as in the log
    #[arg(long, group = "what")]
    item: Option<String>,
    /// Newest events of the user's history to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    events: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ShowArgs) -> Result<()> {
    let spec = args.spec.load()?;
    let runtime = run::runtime(&spec)?;
    let output = Output::open(&runtime, &spec.output.url, &args.spec.base()).map_err(|error| {
        Refused::no_input(anyhow!(error).context("nothing is published; run the job first"))
    })?;
    let published = Published::current(output)?;
    let shown = match (&args.user, &args.item) {
        (Some(user), _) => {
            let plan = run::plan(&runtime, &spec, &args.spec.base(), &args.spec.flags(&spec)?)?;
            let mut events = run::events_of_user(&runtime, &plan, &args.spec.base(), user)?;
            events.truncate(args.events);
            show_user(&published, user, &events, args.json)?
        }
        (None, Some(item)) => show_item(&published, item, args.json)?,
        (None, None) => return Err(Refused::usage(anyhow!("give --user or --item"))),
    };
    print(&shown);
    Ok(())
}

fn show_user(
    published: &Published,
    user: &str,
    events: &[UserEvent],
    as_json: bool,
) -> Result<String> {
    let row =
        published.rows("users", "user_id", user)?.pop().ok_or_else(|| unknown("user", user))?;
    let list = published.list_of(user)?;
    if as_json {
        return Ok(serde_json::to_string_pretty(
            &json!({ "user": row, "list": list, "history": events }),
        )?);
    }
    let titles = published.titles()?;
    let mut out = format!("user {user}  {}\n\nlist\n", fields(&row, "user_id"));
    for entry in list.iter().flat_map(|list| &list.entries) {
        let because = entry.because.as_ref();
        let because = because.map(|item| format!("because of {}", published::name(titles, item)));
        let name = published::name(titles, &entry.item);
        let reason = because.unwrap_or_else(|| entry.source.clone());
        writeln!(out, "  {:>3}  {:<10.6} {name:<44} {reason}", entry.rank, entry.score)?;
    }
    writeln!(out, "\nhistory, newest first")?;
    for event in events {
        let name = published::name(titles, &event.item);
        let time = event.time.as_deref().unwrap_or("");
        writeln!(out, "  {time:<28} {:<14} {name}", event.event)?;
    }
    Ok(out)
}

fn show_item(published: &Published, item: &str, as_json: bool) -> Result<String> {
    let mut rows = Vec::new();
    for table in ["items", "item_popularity", "item_popularity_by_segment", "debias_weights"] {
        for row in published.rows(table, "item_id", item)? {
            rows.push((table, row));
        }
    }
    if rows.is_empty() {
        return Err(unknown("item", item));
    }
    let neighbors = published.rows("item_neighbors", "item_id", item)?;
    let titles = published.titles()?;
    if as_json {
        let tables: Vec<Value> =
            rows.iter().map(|(table, row)| json!({ "table": table, "row": row })).collect();
        return Ok(serde_json::to_string_pretty(
            &json!({ "item": item, "tables": tables, "neighbors": neighbors }),
        )?);
    }
    let mut out = format!("item {}\n", published::name(titles, item));
    for (table, row) in &rows {
        writeln!(out, "  {table:<28} {}", fields(row, "item_id"))?;
    }
    writeln!(out, "\nneighbors")?;
    for row in &neighbors {
        let neighbor = row["neighbor_id"].as_str().map(str::to_owned);
        let neighbor = neighbor.unwrap_or_else(|| row["neighbor_id"].to_string());
        let name = published::name(titles, &neighbor);
        writeln!(
            out,
            "  {:>3}  {:<8.4} {name:<44} {} users",
            row["rank"],
            row["score"].as_f64().unwrap_or(0.0),
            row["support"]
        )?;
    }
    Ok(out)
}

/// The columns of a row beside its key, nulls left out.
fn fields(row: &Value, key: &str) -> String {
    let columns = row.as_object().into_iter().flatten();
    let shown: Vec<String> = columns
        .filter(|(name, value)| *name != key && !value.is_null())
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        })
        .collect();
    shown.join(", ")
}

fn unknown(what: &str, id: &str) -> anyhow::Error {
    Refused::no_input(anyhow!(
        "{what} \"{id}\" is not in the current run; ids are written as in the log"
    ))
}
