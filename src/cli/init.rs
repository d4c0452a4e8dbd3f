//! `tidemill init`: a commented spec that fits a log.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, Schema};
use clap::Args;

use super::print;
use crate::run::Refused;
use crate::schema::id_type_of;
use crate::store::{self, Footer, InputFile, IoRuntime, Location};

/// Read the columns of a log and write a commented spec that fits it
///
/// Columns are guessed by name and type, event types from the first rows. Read the comments, then
/// check the result with `tidemill check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tidemill init log/events.parquet
  tidemill init 'log/dt=*/' --out jobs/mine.toml
  tidemill init log/ --user customer --item article --out jobs/mine.toml")]
pub(super) struct InitArgs {
    /// The log: a Parquet file, folder or pattern
    url: String,
    /// Write the spec here instead of to stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The column that says who, where it cannot be guessed
    #[arg(long, value_name = "COLUMN")]
    user: Option<String>,
    /// The column that says what, where it cannot be guessed
    #[arg(long, value_name = "COLUMN")]
    item: Option<String>,
}

/// Words in column names, the likeliest first.
const USER: [&str; 8] =
    ["user", "customer", "household", "visitor", "member", "account", "shopper", "client"];
const ITEM: [&str; 9] =
    ["item", "product", "article", "movie", "sku", "track", "song", "book", "content"];
const TIME: [&str; 7] = ["timestamp", "event_time", "time", "ts", "created", "date", "occurred"];
const EVENT: [&str; 5] = ["event_type", "event_name", "event", "action", "interaction"];
const VALUE: [&str; 5] = ["quantity", "rating", "count", "value", "amount"];
const ID: [&str; 3] = ["event_id", "row_id", "uuid"];

pub(super) fn run(args: &InitArgs) -> Result<()> {
    let runtime = IoRuntime::new().context("the threads for input cannot be started")?;
    let location = Location::open(&runtime, &args.url, Path::new("."))?;
    let files = store::list_inputs(&location)?.files;
    let first = files.first().expect("a listing has a file");
    let footer = store::footer(&location, first)?;
    let guess = guess(footer.schema(), args)?;
    let sample = Sample::read(&location, first, &footer, &guess)?;
    let url = match &args.out {
        // Paths of a spec are relative to its folder, and this one is relative to here.
        Some(_) => absolute(&args.url)?,
        None => args.url.clone(),
    };
    let spec = write_spec(&url, &guess, &sample, footer.schema());
    let Some(out) = &args.out else {
        print(&spec);
        return Ok(());
    };
    let mut file = std::fs::File::create_new(out).map_err(|error| {
        let error = anyhow!(error).context(format!("\"{}\" cannot be created", out.display()));
        Refused::usage(error.context("choose another --out; an existing spec is not overwritten"))
    })?;
    file.write_all(spec.as_bytes()).with_context(|| format!("\"{}\"", out.display()))?;
    print(&format!("wrote {}; now: tidemill check {}", out.display(), out.display()));
    Ok(())
}

fn absolute(url: &str) -> Result<String> {
    if url.contains("://") {
        return Ok(url.to_owned());
    }
    let path =
        std::path::absolute(url).with_context(|| format!("\"{url}\" has no absolute form"))?;
    let slash = if url.ends_with('/') && !path.to_string_lossy().ends_with('/') { "/" } else { "" };
    Ok(format!("{}{slash}", path.display()))
}

/// The columns of a log by what they are for.
struct Guess {
    user: String,
    item: String,
    time: Option<String>,
    event: Option<String>,
    value: Option<String>,
    id: Option<String>,
}

fn guess(schema: &Schema, args: &InitArgs) -> Result<Guess> {
    let find = |words: &[&str], fits: &dyn Fn(&DataType) -> bool| -> Option<String> {
        let fields = || schema.fields().iter().filter(|field| fits(field.data_type()));
        let exact = |word: &&str| {
            fields().find(|field| {
                let name = field.name().to_lowercase();
                name == **word || name == format!("{word}_id") || name == format!("{word}id")
            })
        };
        let within =
            |word: &&str| fields().find(|field| field.name().to_lowercase().contains(*word));
        let found = words.iter().find_map(exact);
        found.or_else(|| words.iter().find_map(within)).map(|field| field.name().clone())
    };
    let is_id = |data_type: &DataType| id_type_of(data_type).is_ok();
    let named = |given: &Option<String>, words: &[&str], what: &str| {
        given.clone().or_else(|| find(words, &is_id)).ok_or_else(|| {
            let names: Vec<&str> =
                schema.fields().iter().map(|field| field.name().as_str()).collect();
            Refused::usage(anyhow!(
                "no column looks like the {what}; name it with --{what}: the log has {}",
                names.join(", ")
            ))
        })
    };
    let user = named(&args.user, &USER, "user")?;
    let item = named(&args.item, &ITEM, "item")?;
    let other = |column: &Option<String>| column.clone().filter(|c| *c != user && *c != item);
    let is_time = |data_type: &DataType| {
        matches!(data_type, DataType::Timestamp(..) | DataType::Date32 | DataType::Date64)
    };
    let time = find(&TIME, &is_time).or_else(|| find(&TIME[..4], &|t| *t == DataType::Int64));
    let is_text = |data_type: &DataType| match data_type {
        DataType::Dictionary(_, values) => **values == DataType::Utf8,
        other => matches!(other, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View),
    };
    let event = find(&EVENT, &is_text);
    let value = find(&VALUE, &|t| t.is_numeric());
    let id = find(&ID, &is_id).filter(|id| Some(id) != event.as_ref());
    Ok(Guess { time: other(&time), event: other(&event), value: other(&value), id, user, item })
}

/// What the first rows hold.
struct Sample {
    /// Event types and their counts.
    events: BTreeMap<String, usize>,
    /// A time of an integer column.
    time: Option<i64>,
}

impl Sample {
    fn read(location: &Location, file: &InputFile, footer: &Footer, guess: &Guess) -> Result<Self> {
        let mut sample = Self { events: BTreeMap::new(), time: None };
        let columns: Vec<&str> =
            guess.event.iter().chain(&guess.time).map(String::as_str).collect();
        if columns.is_empty() || footer.n_row_groups() == 0 {
            return Ok(sample);
        }
        for batch in store::read_row_group(location, file, footer, 0, &columns)?.take(4) {
            let batch = batch?;
            if let Some(array) = guess.event.as_ref().and_then(|name| batch.column_by_name(name)) {
                let names = cast(array, &DataType::Utf8)?;
                for name in names.as_string::<i32>().iter().flatten() {
                    *sample.events.entry(name.to_owned()).or_default() += 1;
                }
            }
            let array = guess.time.as_ref().and_then(|name| batch.column_by_name(name));
            if let Some(times) = array.and_then(|array| array.as_primitive_opt::<Int64Type>()) {
                let first = (0..times.len()).find(|&row| !times.is_null(row));
                sample.time = sample.time.or(first.map(|row| times.value(row)));
            }
        }
        Ok(sample)
    }
}

/// The weight of an event type by its name.
fn weight(event: &str, events: &BTreeMap<String, usize>) -> String {
    let name = event.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    if has(&["return", "refund"]) {
        let is_bought = |other: &&String| is_purchase(&other.to_lowercase());
        return match events.keys().find(is_bought) {
            Some(purchase) => format!("{{ undoes = {purchase:?} }}   # takes back the latest one"),
            None => "0.0".to_owned(),
        };
    }
    if has(&["hide", "dislike", "block"]) {
        return "{ excludes_item = true }   # never recommended to this user again".to_owned();
    }
    let weight = match () {
        () if is_purchase(&name) => "10.0",
        () if has(&["cart", "basket", "wish", "favor", "save"]) => "5.0",
        () if has(&["click", "play", "open"]) => "2.0",
        () => "1.0",
    };
    weight.to_owned()
}

fn is_purchase(name: &str) -> bool {
    ["purchase", "buy", "order", "transaction", "checkout"].iter().any(|word| name.contains(word))
}

fn write_spec(url: &str, guess: &Guess, sample: &Sample, schema: &Schema) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string");
    line("# Written by `tidemill init`: columns were guessed from names and types. jobs/README.md of".into());
    line(
        "# Tidemill lists every key. Check it with `tidemill check`, run it with `tidemill run`."
            .into(),
    );
    line("name = \"my-job\"".into());
    let all: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    line(format!("\n# The log has the columns {}.", all.join(", ")));
    line("[[events]]".into());
    line(format!("url = {url:?}"));
    let value = guess.value.as_ref().filter(|_| guess.event.is_none());
    let optional = [("time", &guess.time), ("event", &guess.event), ("id", &guess.id)];
    let mut columns = format!("user = {:?}, item = {:?}", guess.user, guess.item);
    for (role, column) in optional {
        if let Some(column) = column {
            write!(columns, ", {role} = {column:?}").expect("writing to a string");
        }
    }
    if let Some(value) = value {
        write!(columns, ", value = {value:?}").expect("writing to a string");
    }
    line(format!("columns = {{ {columns} }}"));
    if let Some(unit) = sample.time.map(time_unit) {
        line(format!("time_unit = \"{unit}\"   # by the size of the numbers"));
    }
    if guess.event.is_some() {
        line("\n# Event types of the first rows; one that is not listed weighs nothing.".into());
        line("[events.weights]".into());
        for event in sample.events.keys() {
            line(format!("{event:?} = {}", weight(event, &sample.events)));
        }
        if sample.events.is_empty() {
            line("\"*\" = 1.0".into());
        }
    } else if value.is_some() {
        line("# Every row weighs ln(1 + value); \"linear\" and \"none\" are possible too.".into());
        line("weights = { \"*\" = { weight = 1.0, value = \"log1p\" } }".into());
    }
    line(history(guess));
    out
}

fn history(guess: &Guess) -> String {
    let half_life = match guess.time {
        Some(_) => "half_life_days = 30               # an event of a month ago counts half\n",
        None => "",
    };
    let seen = match guess.event {
        Some(_) => "exclude_seen = true               # or a list of event types, or false",
        None => "exclude_seen = true               # false recommends what the user has already",
    };
    format!(
        "\n[history]\n{half_life}interactions_per_user_max = 1000  # the newest are kept\n\
         users_per_item_min = 2            # rarer items are left out\n\n\
         [popularity]\n\n[debias]\n\n[item_neighbors]\nn_neighbors = 100\n\
         shrinkage = 10.0                  # larger: pairs with few common users score lower\n\n\
         [top_k]\nk = 50\n{seen}\n\n[limits]\nmemory_bytes_max = \"8GiB\"\n\n\
         # Where tables are published; one job owns the folder.\n[output]\nurl = \"tidemill-out/\""
    )
}

/// The unit of an integer time, taken for some day after 1990.
fn time_unit(time: i64) -> &'static str {
    match time.unsigned_abs() {
        0..100_000_000_000 => "s",
        100_000_000_000..100_000_000_000_000 => "ms",
        100_000_000_000_000..100_000_000_000_000_000 => "us",
        _ => "ns",
    }
}
