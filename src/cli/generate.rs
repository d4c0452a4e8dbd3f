//! `tidemill generate`: writes a synthetic log, with its items and users.

mod tables;

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::HumanCount;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::kernels::synthetic::Params;
use crate::types::DAY_US;

/// Where tables are written before they move to their places, so that a killed command never
/// leaves half a file under a name that a job reads.
const STAGING: &str = ".generating";

/// Write a synthetic interaction log with its items and users, as Parquet
///
/// A small shop of books, films and music is invented from the seed: a few items sell most, users
/// keep to the genres they like, some items rise and some fall. The same arguments give the same
/// bytes on every machine.
///
/// events.parquet has the columns event_id, user_id, item_id, event (view, click, cart, purchase or
/// return), quantity and timestamp, sorted by time; items.parquet has item_id, title, genre and
/// in_stock; users.parquet has user_id and country.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tidemill generate shop/
  tidemill generate shop/ --users 138000 --items 27000 --events 20000000 --files 8
  tidemill generate shop/ --ids int --days 30 --end 2026-06-30 --seed 8 --force")]
pub(super) struct GenerateArgs {
    /// Local folder for the tables; made if it does not exist
    pub(super) out_folder: PathBuf,
    /// Number of users
    #[arg(long, value_name = "N", default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) users: u32,
    /// Number of items
    #[arg(long, value_name = "N", default_value_t = 500)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) items: u32,
    /// Number of events
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(..1 << 48))]
    pub(super) events: u64,
    /// Days that the log covers
    #[arg(long, value_name = "N", default_value_t = 180)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(super) days: u32,
    /// Last day of the log, in UTC
    #[arg(long, value_name = "DATE", default_value = "2026-11-22")]
    pub(super) end: Date,
    /// Type of user and item ids
    #[arg(long, value_enum, default_value_t = GeneratedIds::String)]
    pub(super) ids: GeneratedIds,
    /// Number of event files; above 1 they are events/part-00000-of-00004.parquet and so on
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=99_999))]
    pub(super) files: u32,
    /// Rows per Parquet row group
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) row_group_rows: u32,
    /// Another seed gives another shop
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub(super) seed: u64,
    /// Replace the tables of an earlier run of this command
    #[arg(long)]
    pub(super) force: bool,
}

/// Type of the ids that are generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum GeneratedIds {
    /// 64-bit integers from 1
    Int,
    /// Strings such as u000000001 and i000000001
    String,
}

/// Runs the command: writes the tables and prints one line about them.
///
/// # Errors
/// If a table is there already and `force` is not set, or a file cannot be written.
pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    let summary = generate(args)?;
    writeln!(std::io::stdout(), "{summary}").context("cannot write to standard output")
}

/// Writes the tables; the summary is one line for people.
pub(crate) fn generate(args: &GenerateArgs) -> Result<String> {
    let params = params(args)?;
    let out = &args.out_folder;
    let old_tables = existing_tables(out)?;
    if let (Some(path), false) = (old_tables.first(), args.force) {
        bail!("{path:?} exists; pass --force to replace it, or choose another folder");
    }
    make_folder(out)?;
    let staging = out.join(STAGING);
    remove_folder(&staging)?;
    let written = tables::write(args, &params, &staging).and_then(|tables| {
        let n_bytes = total_bytes(&staging, &tables)?;
        remove_files(&old_tables)?;
        publish(&staging, out, &tables)?;
        Ok((tables.len(), n_bytes))
    });
    let removed = remove_folder(&staging);
    let (n_files, n_bytes) = written?;
    removed?;
    Ok(format!(
        "{} events of {} users and {} items: {n_files} files, {} bytes in {out:?}",
        HumanCount(params.n_events),
        HumanCount(params.n_users.into()),
        HumanCount(params.n_items.into()),
        HumanCount(n_bytes),
    ))
}

fn params(args: &GenerateArgs) -> Result<Params> {
    let end = args.end.tomorrow().and_then(|day| day.to_zoned(TimeZone::UTC));
    let end = end.with_context(|| format!("--end {} is too late, choose another day", args.end))?;
    let end_us = end.timestamp().as_microsecond();
    Ok(Params {
        n_users: args.users,
        n_items: args.items,
        n_events: args.events,
        start_us: end_us - i64::from(args.days) * DAY_US,
        end_us,
        seed: args.seed,
    })
}

/// Tables of an earlier run, whatever its number of event files: old parts that stay beside new
/// ones would be read as one log.
fn existing_tables(out: &Path) -> Result<Vec<PathBuf>> {
    let mut tables: Vec<PathBuf> = ["events.parquet", "items.parquet", "users.parquet"]
        .iter()
        .map(|table| out.join(table))
        .filter(|path| path.exists())
        .collect();
    let folder = out.join("events");
    if folder.is_dir() {
        let entries = fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = entries.with_context(|| format!("cannot list {folder:?}"))?;
        tables.extend(entries.iter().map(fs::DirEntry::path).filter(|path| is_part(path)));
    }
    tables.sort();
    Ok(tables)
}

fn is_part(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("part-") && name.ends_with(".parquet")
}

fn total_bytes(folder: &Path, tables: &[PathBuf]) -> Result<u64> {
    tables.iter().map(|table| folder.join(table)).try_fold(0, |total, path| {
        let metadata = fs::metadata(&path).with_context(|| format!("cannot read {path:?}"))?;
        Ok(total + metadata.len())
    })
}

/// Moves `tables` from `staging` to the same paths in `out`.
fn publish(staging: &Path, out: &Path, tables: &[PathBuf]) -> Result<()> {
    for table in tables {
        let to = out.join(table);
        let folder = to.parent().expect("a table lies in the folder it is published to");
        make_folder(folder)?;
        fs::rename(staging.join(table), &to).with_context(|| format!("cannot write {to:?}"))?;
    }
    Ok(())
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make folder {folder:?}"))
}

fn remove_files(paths: &[PathBuf]) -> Result<()> {
    paths.iter().try_for_each(|path| {
        fs::remove_file(path).with_context(|| format!("cannot remove {path:?}"))
    })
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {folder:?}"))
        }
        _ => Ok(()),
    }
}
