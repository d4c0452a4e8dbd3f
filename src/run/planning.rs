//! From a spec to a plan: lists inputs, reads footers, checks columns. Reads no row.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::Refused;
use crate::job::plan::{self, FilePlan, Plan, RowGroupPlan, SideTables, SourcePlan};
use crate::job::spec::{EventColumns as SpecColumns, Events, Spec};
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

/// Plans a run.
///
/// # Errors
/// No input, a file that is no Parquet file, a missing or unreadable column, ids that cannot be
/// mixed, a date that is none.
pub fn plan(runtime: &IoRuntime, spec: &Spec, base: &Path, flags: &PlanFlags) -> Result<Plan> {
    plan::check_kinds(spec)?;
    let zone = plan::time_zone(spec);
    let (logical_date, as_of_us) = when(flags, &zone)?;
    let mut sources = Vec::new();
    let mut user_types: Vec<(String, IdType)> = Vec::new();
    let mut item_types: Vec<(String, IdType)> = Vec::new();
    let (mut n_rows, mut files_pruned, mut first_kind) = (0, 0, 0);
    for events in &spec.events {
        let times = TimeReader::new(events.time_unit.map(plan::unit_name), zone.clone());
        let columns = columns(&events.columns);
        let (files, footers) = log_files(runtime, events, base)?;
        let mut planned = Vec::with_capacity(files.len());
        for (file, footer) in files.iter().zip(&footers) {
            let keys: Vec<&str> = file.partitions.keys().map(String::as_str).collect();
            let (user, item) = schema::check_columns(footer.schema(), &columns, &times, &keys)
                .with_context(|| format!("\"{}\" does not fit the spec", file.url))
                .map_err(Refused::bad_data)?;
            user_types.push((file.url.clone(), user));
            item_types.push((file.url.clone(), item));
            n_rows += footer.n_rows();
            match is_pruned(spec, events, file, as_of_us)? {
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
    let user_id_type = widest("user", &user_types)?;
    let item_id_type = widest("item", &item_types)?;
    Ok(Plan {
        spec: spec.clone(),
        sources,
        side_tables: side_tables(runtime, spec, base)?,
        n_shards: spec.shards.unwrap_or_else(|| plan::n_shards(n_rows)),
        user_id_type,
        item_id_type,
        as_of_us,
        logical_date,
        sample_users: flags.sample_users,
        n_rows,
        files_pruned,
    })
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
) -> Result<(Vec<InputFile>, Vec<Footer>)> {
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
    let footers = store::footers(&location, &files)?;
    Ok((files, footers))
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

fn side_tables(runtime: &IoRuntime, spec: &Spec, base: &Path) -> Result<SideTables> {
    let files = |url: Option<&str>, columns: &[&str]| -> Result<Vec<FilePlan>> {
        let Some(url) = url else { return Ok(Vec::new()) };
        let location = Location::open(runtime, url, base)?;
        let files = store::list_inputs(&location)?.files;
        let footers = store::footers(&location, &files)?;
        for (file, footer) in files.iter().zip(&footers) {
            for column in columns {
                if footer.schema().field_with_name(column).is_err() {
                    let missing = ColumnError::missing(column, footer.schema());
                    let context = format!("\"{}\" does not fit the spec", file.url);
                    return Err(Refused::bad_data(anyhow!(missing).context(context)));
                }
            }
        }
        Ok(files.iter().zip(&footers).map(|(file, footer)| file_plan(file, footer)).collect())
    };
    let deny = spec.deny.clone().unwrap_or_default();
    let mut item_columns: Vec<&str> = Vec::new();
    if let Some(items) = &spec.items {
        item_columns.push(&items.columns.item);
        item_columns.extend(items.columns.title.as_deref());
        item_columns.extend(items.recommend_where.keys().map(String::as_str));
    }
    let user_columns: Vec<&str> = spec
        .users
        .iter()
        .flat_map(|users| [users.columns.user.as_str(), users.columns.segment.as_str()])
        .collect();
    let denied = |list: &Option<crate::job::spec::IdList>| -> Result<Vec<FilePlan>> {
        let Some(list) = list else { return Ok(Vec::new()) };
        files(Some(&list.url), &[&list.column])
    };
    Ok(SideTables {
        items: files(spec.items.as_ref().map(|items| items.url.as_str()), &item_columns)?,
        users: files(spec.users.as_ref().map(|users| users.url.as_str()), &user_columns)?,
        deny_items: denied(&deny.items)?,
        deny_users: denied(&deny.users)?,
    })
}
