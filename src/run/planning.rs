//! From a spec to a plan: lists inputs, then reads footers and checks columns. Reads no row.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Refused;
use crate::job::plan::{self, FilePlan, Plan, RowGroupPlan, SideTables, SourcePlan};
use crate::job::spec::{
    Delete, Deny, EventColumns as SpecColumns, Events, Gates, IdList, Spec, Store,
};
use crate::schema::{self, ColumnError, EventColumns, TimeReader};
use crate::store::{self, Footer, InputFile, IoRuntime, Location};
use crate::types::IdType;

/// What the command line adds to the spec for one run.
#[derive(Clone, Debug, Default)]
pub struct PlanFlags {
    /// The day the result is for.
    pub date: Option<String>,
    /// The run's "now".
    pub as_of: Option<String>,
    /// Share of users to keep.
    pub sample_users: Option<f64>,
}

/// A file of a log that cannot be read, and is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadFile {
    /// As in messages.
    pub url: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The input as it is listed: what a run is told from an earlier one by, before a byte is read.
pub(super) struct Frozen {
    logical_date: Option<Date>,
    as_of_us: Option<i64>,
    /// Of each log.
    logs: Vec<FrozenLog>,
    side_tables: [Vec<InputFile>; 6],
}

struct FrozenLog {
    location: Location,
    files: Vec<InputFile>,
    /// Files outside of all that can count.
    pruned: Vec<bool>,
}

impl FrozenLog {
    /// The files that can be read; `left_out` cannot.
    fn readable(&self, left_out: &[BadFile]) -> (Vec<InputFile>, Vec<bool>) {
        let files = self.files.iter().zip(&self.pruned);
        let is_left_out = |file: &InputFile| left_out.iter().any(|bad| bad.url == file.url);
        let readable = files.filter(|(file, _)| !is_left_out(file));
        readable.map(|(file, pruned)| (file.clone(), *pruned)).unzip()
    }
}

/// Plans a run.
///
/// # Errors
/// No input, a file that is no Parquet file, a missing or unreadable column, ids that cannot be
/// mixed, a date that is none.
pub fn plan(runtime: &IoRuntime, spec: &Spec, base: &Path, flags: &PlanFlags) -> Result<Plan> {
    freeze(runtime, spec, base, flags)?.plan(runtime, spec, base, flags, &[])
}

/// Lists the input. Reads nothing.
///
/// # Errors
/// No input, a date that is none, a file outside of the folders that the spec names.
pub(super) fn freeze(
    runtime: &IoRuntime,
    spec: &Spec,
    base: &Path,
    flags: &PlanFlags,
) -> Result<Frozen> {
    plan::check_kinds(spec)?;
    let (logical_date, as_of_us) = when(flags, &plan::time_zone(spec))?;
    let logs = spec.events.iter().map(|events| {
        let (location, files) = log_files(runtime, events, base)?;
        let pruned = files.iter().map(|file| is_pruned(spec, events, file, as_of_us));
        let pruned = pruned.collect::<Result<_>>()?;
        Ok(FrozenLog { location, files, pruned })
    });
    let logs = logs.collect::<Result<_>>()?;
    let listed = side_urls(spec).map(|url| match url {
        None => Ok(Vec::new()),
        Some(url) => Ok(store::list_inputs(&Location::open(runtime, url, base)?)?.files),
    });
    let side_tables: Vec<_> = listed.into_iter().collect::<Result<_>>()?;
    let side_tables = side_tables.try_into().expect("there are six");
    Ok(Frozen { logical_date, as_of_us, logs, side_tables })
}

impl Frozen {
    /// Hex digest of all that decides the bytes of the tables.
    ///
    /// Files outside of what can count are left out, so that tomorrow's folder does not make
    /// yesterday's run a new one; nor do gates, checkpoints, state and how the store is reached.
    pub(super) fn fingerprint(&self, spec: &Spec, flags: &PlanFlags) -> String {
        let counts = |log: &'_ FrozenLog| -> Vec<InputFile> {
            let files = log.files.iter().zip(&log.pruned);
            files.filter(|(_, pruned)| !**pruned).map(|(file, _)| file.clone()).collect()
        };
        let files = self.logs.iter().flat_map(counts);
        let side = self.side_tables.iter().flatten().cloned();
        let input: Vec<_> =
            files.chain(side).map(|file| (file.url, file.bytes, file.etag)).collect();
        let same_results = Spec {
            store: Store::default(),
            gates: Gates::default(),
            checkpoints: None,
            incremental: None,
            ..spec.clone()
        };
        let decisive = json!({
            "spec": same_results.resolved(),
            "input": input,
            "as_of_us": self.as_of_us,
            "logical_date": self.logical_date,
            "sample_users": flags.sample_users,
            "code_version": env!("CARGO_PKG_VERSION"),
            "instruction_set": super::instruction_set(),
        });
        super::sha256_hex(decisive.to_string().as_bytes())
    }

    /// Whether the folders of the last day before a given `as_of` are there. Looks at no file.
    ///
    /// # Errors
    /// The first log without that folder: its data may be on its way (75).
    pub(super) fn check_last_day(&self, spec: &Spec) -> Result<()> {
        let Some(as_of_us) = self.as_of_us.filter(|_| spec.gates.last_day_required) else {
            return Ok(());
        };
        let day = plan::date_before(as_of_us, &plan::time_zone(spec)).map_err(Refused::usage)?;
        for (events, log) in spec.events.iter().zip(&self.logs) {
            let Some(key) = &events.partition_date else { continue };
            let is_of_day = |file: &InputFile| {
                file.partitions.get(key).and_then(|value| value.parse::<Date>().ok()) == Some(day)
            };
            if !log.files.iter().any(is_of_day) {
                return Err(Refused::temporary(anyhow!(
                    "log \"{}\" has no folder \"{key}={day}\" yet; run again when the day's events \
                     are there, or set gates.last_day_required = false",
                    events.url
                )));
            }
        }
        Ok(())
    }

    /// Reads the footers of all files but those `left_out`, and checks the columns.
    ///
    /// # Errors
    /// A file that is no Parquet file, a missing or unreadable column, ids that cannot be mixed.
    pub(super) fn plan(
        self,
        runtime: &IoRuntime,
        spec: &Spec,
        base: &Path,
        flags: &PlanFlags,
        left_out: &[BadFile],
    ) -> Result<Plan> {
        let zone = plan::time_zone(spec);
        let mut sources = Vec::new();
        let mut types = IdTypesSeen::default();
        let (mut n_rows, mut files_pruned, mut first_kind) = (0, 0, 0);
        for (events, log) in spec.events.iter().zip(&self.logs) {
            let times = TimeReader::new(events.time_unit.map(plan::unit_name), zone.clone());
            let columns = columns(&events.columns);
            let (files, pruned) = log.readable(left_out);
            if files.is_empty() {
                return Err(Refused::bad_data(anyhow!(
                    "every file of log \"{}\" is damaged; write it again",
                    events.url
                )));
            }
            let footers = store::footers(&log.location, &files)?;
            let mut planned = Vec::with_capacity(files.len());
            for ((file, footer), pruned) in files.iter().zip(&footers).zip(&pruned) {
                let keys: Vec<&str> = file.partitions.keys().map(String::as_str).collect();
                let (user, item) = schema::check_columns(footer.schema(), &columns, &times, &keys)
                    .with_context(|| format!("\"{}\" does not fit the spec", file.url))
                    .map_err(Refused::bad_data)?;
                types.users.push((file.url.clone(), user));
                types.items.push((file.url.clone(), item));
                n_rows += footer.n_rows();
                match pruned {
                    true => files_pruned += 1,
                    false => planned.push(file_plan(file, footer)),
                }
            }
            let kinds = plan::kind_names(events);
            let n_kinds = kinds.len();
            sources.push(SourcePlan {
                url: events.url.clone(),
                columns,
                time_unit: events.time_unit.map(|unit| plan::unit_name(unit).to_owned()),
                kinds,
                first_kind,
                files: planned,
            });
            first_kind += n_kinds;
        }
        Ok(Plan {
            spec: spec.clone(),
            sources,
            side_tables: side_tables(runtime, spec, base, &self.side_tables)?,
            n_shards: spec.shards.unwrap_or_else(|| plan::n_shards(n_rows)),
            user_id_type: widest("user", &types.users)?,
            item_id_type: widest("item", &types.items)?,
            as_of_us: self.as_of_us,
            logical_date: self.logical_date,
            sample_users: flags.sample_users,
            n_rows,
            files_pruned,
        })
    }
}

/// The id types of all files of all logs.
#[derive(Default)]
struct IdTypesSeen {
    users: Vec<(String, IdType)>,
    items: Vec<(String, IdType)>,
}

/// The logical date and `as_of`, as far as flags say.
fn when(flags: &PlanFlags, zone: &TimeZone) -> Result<(Option<Date>, Option<i64>)> {
    let date = match &flags.date {
        Some(text) => Some(text.parse::<Date>().map_err(|_| {
            Refused::usage(anyhow!("\"{text}\" is not a date; write it as 2026-11-22"))
        })?),
        None => None,
    };
    let as_of = match (&flags.as_of, date) {
        (Some(text), _) => Some(plan::parse_instant(text, zone).map_err(Refused::usage)?),
        (None, Some(date)) => Some(plan::end_of_day(date, zone).map_err(Refused::usage)?),
        (None, None) => None,
    };
    let date = match (date, as_of) {
        (None, Some(as_of)) => Some(plan::date_before(as_of, zone).map_err(Refused::usage)?),
        (date, _) => date,
    };
    Ok((date, as_of))
}

fn columns(columns: &SpecColumns) -> EventColumns {
    EventColumns {
        user: columns.user.clone(),
        item: columns.item.clone(),
        time: columns.time.clone(),
        event: columns.event.clone(),
        value: columns.value.clone(),
        id: columns.id.clone(),
    }
}

fn log_files(
    runtime: &IoRuntime,
    events: &Events,
    base: &Path,
) -> Result<(Location, Vec<InputFile>)> {
    let location = Location::open(runtime, &events.url, base)?;
    let mut files = store::list_inputs(&location)?.files;
    files.retain(|file| {
        events.partition_where.iter().all(|(key, wanted)| {
            file.partitions.get(key).is_some_and(|value| wanted.0.contains(value))
        })
    });
    if files.is_empty() {
        return Err(Refused::no_input(anyhow!(
            "no file of \"{}\" is in a folder that partition_where asks for; check its keys and \
             values",
            events.url
        )));
    }
    Ok((location, files))
}

/// Whether the day of a file's folder lies outside of all that can count.
fn is_pruned(
    spec: &Spec,
    events: &Events,
    file: &InputFile,
    as_of_us: Option<i64>,
) -> Result<bool> {
    let Some(key) = &events.partition_date else { return Ok(false) };
    let value = file.partitions.get(key).ok_or_else(|| {
        Refused::bad_data(anyhow!(
            "\"{}\" has no folder \"{key}=\", which partition_date names; remove partition_date or \
             move the file",
            file.url
        ))
    })?;
    let day: Date = value.parse().map_err(|_| {
        Refused::bad_data(anyhow!(
            "folder \"{key}={value}\" of \"{}\" is not a date; write it as 2026-11-22",
            file.url
        ))
    })?;
    let Some(as_of_us) = as_of_us else { return Ok(false) };
    Ok(plan::is_prunable(day, as_of_us, plan::oldest_needed_us(spec, as_of_us)))
}

fn file_plan(file: &InputFile, footer: &Footer) -> FilePlan {
    let groups = footer.metadata().row_groups();
    FilePlan {
        key: file.key.clone(),
        url: file.url.clone(),
        bytes: file.bytes,
        etag: file.etag.clone(),
        partitions: file.partitions.clone(),
        row_groups: groups
            .iter()
            .map(|group| RowGroupPlan {
                rows: group.num_rows() as u64,
                bytes: group.total_byte_size().max(0) as u64,
            })
            .collect(),
    }
}

fn widest(what: &'static str, types: &[(String, IdType)]) -> Result<IdType> {
    let types = types.iter().map(|(file, id_type)| (file.as_str(), *id_type));
    let widest = plan::widest(what, types).map_err(Refused::bad_data)?;
    Ok(widest.expect("a log has a file"))
}

/// Urls of `[items]`, `[users]`, and items and users of `[deny]` and of `[delete]`.
fn side_urls(spec: &Spec) -> [Option<&str>; 6] {
    let denied = |list: fn(&Deny) -> Option<&IdList>| {
        spec.deny.as_ref().and_then(list).map(|list| list.url.as_str())
    };
    let deleted = |list: fn(&Delete) -> Option<&IdList>| {
        spec.delete.as_ref().and_then(list).map(|list| list.url.as_str())
    };
    [
        spec.items.as_ref().map(|items| items.url.as_str()),
        spec.users.as_ref().map(|users| users.url.as_str()),
        denied(|deny| deny.items.as_ref()),
        denied(|deny| deny.users.as_ref()),
        deleted(|delete| delete.items.as_ref()),
        deleted(|delete| delete.users.as_ref()),
    ]
}

/// Columns that are read of each of them.
fn side_columns(spec: &Spec) -> [Vec<&str>; 6] {
    let mut of_items: Vec<&str> = Vec::new();
    if let Some(items) = &spec.items {
        of_items.push(&items.columns.item);
        of_items.extend(items.columns.title.as_deref());
        of_items.extend(items.recommend_where.keys().map(String::as_str));
    }
    let users = spec.users.iter();
    let of_users =
        users.flat_map(|users| [users.columns.user.as_str(), users.columns.segment.as_str()]);
    let denied = |list: fn(&Deny) -> Option<&IdList>| {
        spec.deny.as_ref().and_then(list).map(|list| list.column.as_str()).into_iter().collect()
    };
    let deleted = |list: fn(&Delete) -> Option<&IdList>| {
        let list = spec.delete.as_ref().and_then(list);
        list.map(|list| list.column.as_str()).into_iter().collect()
    };
    [
        of_items,
        of_users.collect(),
        denied(|deny| deny.items.as_ref()),
        denied(|deny| deny.users.as_ref()),
        deleted(|delete| delete.items.as_ref()),
        deleted(|delete| delete.users.as_ref()),
    ]
}

fn side_tables(
    runtime: &IoRuntime,
    spec: &Spec,
    base: &Path,
    listed: &[Vec<InputFile>; 6],
) -> Result<SideTables> {
    let (urls, columns) = (side_urls(spec), side_columns(spec));
    let planned = |table: usize| -> Result<Vec<FilePlan>> {
        let Some(url) = urls[table] else { return Ok(Vec::new()) };
        let (location, files) = (Location::open(runtime, url, base)?, &listed[table]);
        let footers = store::footers(&location, files)?;
        for (file, footer) in files.iter().zip(&footers) {
            let is_there = |column: &&&str| footer.schema().field_with_name(column).is_ok();
            if let Some(column) = columns[table].iter().find(|column| !is_there(column)) {
                let missing = ColumnError::missing(column, footer.schema());
                let context = format!("\"{}\" does not fit the spec", file.url);
                return Err(Refused::bad_data(anyhow!(missing).context(context)));
            }
        }
        Ok(files.iter().zip(&footers).map(|(file, footer)| file_plan(file, footer)).collect())
    };
    Ok(SideTables {
        items: planned(0)?,
        users: planned(1)?,
        deny_items: planned(2)?,
        deny_users: planned(3)?,
        delete_items: planned(4)?,
        delete_users: planned(5)?,
    })
}
