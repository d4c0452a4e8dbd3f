//! The plan: what a run will do, decided once and the same for every process.

use std::collections::BTreeMap;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::spec::{ExcludeSeen, Negative, Spec, TimeUnit, ValueScale};
use crate::kernels::decay::{Decay, ValueTransform};
use crate::kernels::histories::{Calendar, EventKind};
use crate::schema::EventColumns;
use crate::types::{DAY_US, IdType};

/// Rows of a logical shard, about: the number of shards is the power of two at or below one per
/// this many planned rows.
pub const ROWS_PER_SHARD: u64 = 262_144;

/// Most logical shards of a run.
pub const SHARDS_MAX: u32 = 4_096;

/// Kinds of events that fit the row format; one code is left for event types without a weight.
const KINDS_MAX: usize = 255;

/// Everything that a run needs to know before it reads a row. Frozen, and broadcast as it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The resolved spec.
    pub spec: Spec,
    /// The logs, in the order of the spec.
    pub sources: Vec<SourcePlan>,
    /// Side tables and deny lists: the files of each, frozen like the logs.
    pub side_tables: SideTables,
    /// Number of logical shards, a power of two.
    pub n_shards: u32,
    /// Type of user ids: the widest of all logs.
    pub user_id_type: IdType,
    /// Type of item ids: the widest of all logs.
    pub item_id_type: IdType,
    /// The run's "now": events at or after it do not count. Absent: just after the newest event.
    pub as_of_us: Option<i64>,
    /// The date the result is for. Absent: derived from `as_of` once that is known.
    pub logical_date: Option<Date>,
    /// Share of users kept, by a hash of their id.
    pub sample_users: Option<f64>,
    /// Rows of the logs by their footers, before any pruning by date.
    pub n_rows: u64,
    /// Files left out because their partition is outside what can count.
    pub files_pruned: u64,
}

/// What is read of one log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourcePlan {
    /// Where it lies, as the spec says.
    pub url: String,
    /// The mapped columns.
    pub columns: EventColumns,
    /// Unit of an integer time column.
    pub time_unit: Option<String>,
    /// Event types of this log; the position of the first in the run's kinds is `first_kind`.
    pub kinds: Vec<String>,
    /// See `kinds`.
    pub first_kind: usize,
    /// The files, in the order of their keys.
    pub files: Vec<FilePlan>,
}

/// Files of the tables beside the logs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SideTables {
    /// Of `[items]`.
    pub items: Vec<FilePlan>,
    /// Of `[users]`.
    pub users: Vec<FilePlan>,
    /// Of `[deny] items`.
    pub deny_items: Vec<FilePlan>,
    /// Of `[deny] users`.
    pub deny_users: Vec<FilePlan>,
    /// Of `[delete] items`.
    pub delete_items: Vec<FilePlan>,
    /// Of `[delete] users`.
    pub delete_users: Vec<FilePlan>,
}

impl SideTables {
    /// All files of all side tables.
    pub fn files(&self) -> impl Iterator<Item = &FilePlan> {
        let Self { items, users, deny_items, deny_users, delete_items, delete_users } = self;
        [items, users, deny_items, deny_users, delete_items, delete_users].into_iter().flatten()
    }
}

/// One frozen input file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilePlan {
    /// Key in its store.
    pub key: String,
    /// The same for people.
    pub url: String,
    /// Size.
    pub bytes: u64,
    /// Version tag of the store: the file that is read must be the one that was planned.
    pub etag: Option<String>,
    /// Hive partition keys of its folders.
    pub partitions: BTreeMap<String, String>,
    /// The row groups, in order.
    pub row_groups: Vec<RowGroupPlan>,
}

/// One row group.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RowGroupPlan {
    /// Rows by the footer.
    pub rows: u64,
    /// Bytes of the whole row group after decompression.
    pub bytes: u64,
}

impl FilePlan {
    /// Rows by the footer.
    pub fn rows(&self) -> u64 {
        self.row_groups.iter().map(|group| group.rows).sum()
    }
}

/// Why a spec and its input do not make a plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// Two files hold ids that cannot be mixed.
    #[error(
        "{what} ids are {first_type:?} in \"{first}\" and {second_type:?} in \"{second}\"; cast one of \
         them upstream"
    )]
    MixedIds {
        /// `user` or `item`.
        what: &'static str,
        /// A file.
        first: String,
        /// The ids of it.
        first_type: IdType,
        /// Another file.
        second: String,
        /// The ids of it.
        second_type: IdType,
    },
    /// More kinds of events than the row format knows.
    #[error("the logs name {n_kinds} event types, at most {KINDS_MAX} are possible; merge some")]
    TooManyKinds {
        /// How many.
        n_kinds: usize,
    },
    /// A date or time that cannot be used.
    #[error("{0}")]
    Time(String),
}

impl Plan {
    /// What every kind of event means; `kinds[source.first_kind + i]` is `source.kinds[i]`.
    pub fn event_kinds(&self) -> Vec<EventKind> {
        event_kinds(&self.spec)
    }

    /// By kind of event: whether its log says when things happened.
    pub fn kinds_with_times(&self) -> Vec<bool> {
        let of_source =
            |source: &SourcePlan| vec![source.columns.time.is_some(); source.kinds.len()];
        self.sources.iter().flat_map(of_source).collect()
    }

    /// The zone in which days begin and naive timestamps are read.
    pub fn time_zone(&self) -> TimeZone {
        time_zone(&self.spec)
    }

    /// Whether any log has times.
    pub fn has_times(&self) -> bool {
        self.sources.iter().any(|source| source.columns.time.is_some())
    }

    /// When events count, once `as_of` and the oldest event are known.
    pub fn calendar(&self, as_of_us: i64, oldest_us: i64) -> Calendar {
        let history = &self.spec.history;
        let before = |days: &super::spec::Days| as_of_us.saturating_sub(days.micros());
        let window_start_us = history.window_days.as_ref().map_or(i64::MIN, before);
        let seen_days = self.spec.top_k.as_ref().and_then(|top_k| top_k.exclude_seen_days.as_ref());
        let start_us = window_start_us.max(oldest_us.min(as_of_us));
        Calendar {
            as_of_us,
            window_start_us,
            seen_start_us: seen_days.map_or(i64::MIN, before),
            middle_us: start_us + (as_of_us - start_us) / 2,
            decay: Decay {
                half_life_us: history.half_life_days.as_ref().map(|days| days.micros()),
                as_of_us,
            },
        }
    }
}

/// The zone of a checked spec.
pub fn time_zone(spec: &Spec) -> TimeZone {
    TimeZone::get(&spec.time_zone).expect("the spec's check has looked the zone up")
}

/// Names of the kinds of one log, in the order of their codes.
pub fn kind_names(events: &super::spec::Events) -> Vec<String> {
    events.weights_or_default().into_keys().collect()
}

/// The meaning of every kind of every log, in order.
pub fn event_kinds(spec: &Spec) -> Vec<EventKind> {
    let mut groups: Vec<String> = Vec::new();
    let mut group_of = |name: &str| {
        let known = groups.iter().position(|group| group == name);
        known.unwrap_or_else(|| {
            groups.push(name.to_owned());
            groups.len() - 1
        }) as u8
    };
    let exclude_seen = spec.top_k.as_ref().map(|top_k| &top_k.exclude_seen);
    let mut kinds = Vec::new();
    for events in &spec.events {
        for (name, weight) in events.weights_or_default() {
            kinds.push(EventKind {
                weight: weight.weight,
                transform: match weight.value {
                    ValueScale::None => ValueTransform::None,
                    ValueScale::Linear => ValueTransform::Linear,
                    ValueScale::Log1p => ValueTransform::Log1p,
                },
                value_max: weight.value_max,
                group: group_of(&name),
                undoes: weight.undoes.as_deref().map(&mut group_of),
                negative_undoes: weight.negative == Negative::Undo,
                excludes_item: weight.excludes_item,
                marks_seen: exclude_seen.is_some_and(|seen: &ExcludeSeen| seen.covers(&name)),
            });
        }
    }
    kinds
}

/// Checks that the kinds of events fit the row format.
pub fn check_kinds(spec: &Spec) -> Result<(), PlanError> {
    match event_kinds(spec).len() {
        n_kinds if n_kinds > KINDS_MAX => Err(PlanError::TooManyKinds { n_kinds }),
        _ => Ok(()),
    }
}

/// Name of a time unit in the spec.
pub fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Seconds => "s",
        TimeUnit::Milliseconds => "ms",
        TimeUnit::Microseconds => "us",
        TimeUnit::Nanoseconds => "ns",
    }
}

/// Number of logical shards for so many planned rows: the power of two at or below one per
/// 262,144 rows, 1 to 4,096.
pub fn n_shards(n_rows: u64) -> u32 {
    let wanted = (n_rows / ROWS_PER_SHARD).clamp(1, u64::from(SHARDS_MAX));
    1 << wanted.ilog2()
}

/// The widest type of all files' ids.
pub fn widest<'a>(
    what: &'static str,
    types: impl IntoIterator<Item = (&'a str, IdType)>,
) -> Result<Option<IdType>, PlanError> {
    let mut widest: Option<(&str, IdType)> = None;
    for (file, id_type) in types {
        widest = Some(match widest {
            None => (file, id_type),
            Some((first, first_type)) => match first_type.widen(id_type) {
                Some(wider) => (first, wider),
                None => {
                    return Err(PlanError::MixedIds {
                        what,
                        first: first.to_owned(),
                        first_type,
                        second: file.to_owned(),
                        second_type: id_type,
                    });
                }
            },
        });
    }
    Ok(widest.map(|(_, id_type)| id_type))
}

/// The end of a day as an instant: the first microsecond that does not belong to it.
pub fn end_of_day(date: Date, zone: &TimeZone) -> Result<i64, PlanError> {
    let midnight = date.tomorrow().and_then(|next| next.to_zoned(zone.clone()));
    midnight
        .map(|midnight| midnight.timestamp().as_microsecond())
        .map_err(|error| PlanError::Time(format!("date \"{date}\" has no end: {error}")))
}

/// The last day of which an event can lie before `as_of`.
pub fn date_before(as_of_us: i64, zone: &TimeZone) -> Result<Date, PlanError> {
    jiff::Timestamp::from_microsecond(as_of_us - 1)
        .map(|instant| zone.to_datetime(instant).date())
        .map_err(|error| PlanError::Time(format!("as_of {as_of_us} is out of range: {error}")))
}

/// An instant as `--as-of` takes it: RFC 3339, or a wall-clock time or date of `zone`.
pub fn parse_instant(text: &str, zone: &TimeZone) -> Result<i64, PlanError> {
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Ok(instant.as_microsecond());
    }
    let wall: Result<jiff::civil::DateTime, _> = text.parse();
    wall.and_then(|wall| wall.to_zoned(zone.clone()))
        .map(|zoned| zoned.timestamp().as_microsecond())
        .map_err(|_| {
            PlanError::Time(format!(
                "\"{text}\" is not a time; write 2026-11-23T00:00:00Z or 2026-11-23T00:00"
            ))
        })
}

/// Whether a file of a log can be left out: the day its folder names lies wholly outside of what
/// can count, with a day to spare on both sides since folders are not always exact.
pub fn is_prunable(day: Date, as_of_us: i64, oldest_needed_us: Option<i64>) -> bool {
    let Ok(start) = day.to_zoned(TimeZone::UTC) else { return false };
    let start_us = start.timestamp().as_microsecond();
    let after = start_us - DAY_US >= as_of_us;
    let before = oldest_needed_us.is_some_and(|oldest| start_us + 2 * DAY_US <= oldest);
    after || before
}

/// The oldest time of any event that the spec can need, if there is one: the start of the window,
/// or of the time for which seen items are excluded, whichever is earlier.
pub fn oldest_needed_us(spec: &Spec, as_of_us: i64) -> Option<i64> {
    let window = spec.history.window_days.as_ref()?.micros();
    let seen = match &spec.top_k {
        None => 0,
        Some(top_k) if top_k.exclude_seen == ExcludeSeen::Any(false) => 0,
        Some(top_k) => top_k.exclude_seen_days.as_ref()?.micros(),
    };
    let excludes = spec.events.iter().flat_map(|events| events.weights.values());
    if excludes.clone().any(|weight| weight.excludes_item) {
        return None;
    }
    Some(as_of_us.saturating_sub(window.max(seen)))
}
